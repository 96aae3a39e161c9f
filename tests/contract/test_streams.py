"""What every store promises of long imports and exports: of streams that others work beside."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, nullcontext
from typing import Any

import pytest
from store_fixtures import draft

from conversation_store import (
    AsyncUnitOfWork,
    DuplicateSession,
    ImportReceipt,
    InvalidConversation,
    InvalidRecord,
    Outcome,
    UnitOfWorkMisuse,
    append_messages,
    delete_conversation,
    export_conversations,
    find_conversation,
    import_conversations,
    start_conversation,
)


def record(number: int, messages: int = 1) -> Any:
    """Return a record."""
    said = [{"role": "user", "content": f"said {n}"} for n in range(messages)]
    return {"user_id": "u", "session_id": f"s-{number:05}", "messages": said}


async def load(store: Any, *numbers: int, **values: Any) -> ImportReceipt:
    """Import records of these numbers."""
    records = [record(number) for number in numbers]
    return await import_conversations(store.unit_of_work(), records=records, **values)


async def sessions(uow: AsyncUnitOfWork) -> list[str]:
    """Return the sessions that an export gives."""
    return [r["session_id"] async for r in export_conversations(uow)]


# Export -------------------------------------------------------------------------------------------


async def test_an_export_is_one_snapshot(store: Any) -> None:
    """What happens after its first record was asked for is not in it, wherever it happens."""
    await load(store, *range(1500))
    uow, other = store.unit_of_work(), store.unit_of_work()
    first = await find_conversation(other, user_id="u", session_id="s-00000")
    last = await find_conversation(other, user_id="u", session_id="s-01499")
    assert first is not None
    assert last is not None
    out: list[Any] = []
    async for exported in export_conversations(uow):
        if not out:
            await append_messages(other, conversation_id=last.id, drafts=[draft("late")])
            await delete_conversation(other, conversation_id=first.id)
            await load(store, 9999)
        out.append(exported)
    assert [r["session_id"] for r in out] == [f"s-{n:05}" for n in range(1500)]
    assert [len(r["messages"]) for r in out] == [1] * 1500
    assert len(await sessions(uow)) == 1500


async def test_an_export_sees_what_its_unit_wrote(store: Any) -> None:
    """Inside a block it reads in the unit's transaction, and the unit may go on meanwhile."""
    await load(store, 1)
    async with store.unit_of_work() as uow:
        _, messages = await start_conversation(
            uow, user_id="u", session_id="s-00000", drafts=[draft("mine")]
        )
        out: list[str] = []
        async for exported in export_conversations(uow):
            out.append(exported["session_id"])
            async with uow:
                await append_messages(
                    uow, conversation_id=messages[0].conversation_id, drafts=[draft("more")]
                )
        assert out == ["s-00000", "s-00001"]
        await uow.rollback()
    assert await sessions(store.unit_of_work()) == ["s-00001"]


async def test_an_export_leaves_its_unit_free(store: Any) -> None:
    """Where the unit had no transaction open, what it does between two records is its own."""
    await load(store, 1, 2)
    uow = store.unit_of_work()
    async for exported in export_conversations(uow):
        number = int(exported["session_id"][2:])
        await start_conversation(uow, user_id="u", session_id=f"t-{number}")
        assert uow.outcome is Outcome.COMMITTED
    assert await sessions(uow) == ["s-00001", "s-00002", "t-1", "t-2"]


@pytest.mark.parametrize("how", ["left", "rolled back"])
async def test_an_export_ends_with_the_block_it_began_in(store: Any, how: str) -> None:
    """Reading on when its transaction is over is misuse."""
    await load(store, *range(1200))
    uow = store.unit_of_work()
    async with uow:
        await start_conversation(uow, user_id="u", session_id="a")
        records = export_conversations(uow)
        assert (await anext(records))["session_id"] == "a"
        if how == "rolled back":
            await uow.rollback()
            with pytest.raises(UnitOfWorkMisuse):
                [_ async for _ in records]
    if how == "left":
        with pytest.raises(UnitOfWorkMisuse):
            [_ async for _ in records]
    assert len(await sessions(uow)) == 1200 + (how == "left")


async def test_an_export_begun_in_an_inner_block_that_was_undone(store: Any) -> None:
    """It is over, and the unit is not."""
    await load(store, *range(1200))
    async with store.unit_of_work() as uow:
        await start_conversation(uow, user_id="u", session_id="a")
        with pytest.raises(ZeroDivisionError):
            async with uow:
                await start_conversation(uow, user_id="u", session_id="b")
                records = export_conversations(uow)
                await anext(records)
                raise ZeroDivisionError
        with pytest.raises(UnitOfWorkMisuse):
            [_ async for _ in records]
        await start_conversation(uow, user_id="u", session_id="c")
    assert len(await sessions(uow)) == 1202


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("how", ["break", "aclose", "exception", "cancelled", "abandoned"])
async def test_an_export_may_be_stopped(store: Any, how: str, inside: bool) -> None:
    """However its consumer stops, the unit and the store go on."""
    await load(store, *range(1200))
    uow = store.unit_of_work()

    async def consume(limit: asyncio.Timeout) -> None:
        records = export_conversations(uow)
        async for _ in records:
            if how == "break":
                return
            if how == "aclose":
                await records.aclose()
                return
            if how == "exception":
                raise ZeroDivisionError
            if how == "cancelled":
                limit.reschedule(asyncio.get_running_loop().time())
                await asyncio.sleep(60)
            await asyncio.sleep(0)
            del records
            return

    async def run() -> None:
        raised = {"cancelled": TimeoutError, "exception": ZeroDivisionError}.get(how)
        with pytest.raises(raised) if raised else nullcontext():
            async with asyncio.timeout(None) as limit:
                await consume(limit)
        gc.collect()
        await asyncio.sleep(0.01)  # the event loop closes what was abandoned, in a task of its own

    if inside:
        async with uow:
            await start_conversation(uow, user_id="u", session_id="a")
            await run()
            await start_conversation(uow, user_id="u", session_id="b")
        assert uow.outcome is Outcome.COMMITTED
    else:
        await run()
        await run()
    assert len(await sessions(uow)) == 1200 + 2 * inside


async def test_an_export_of_which_only_the_first_record_is_wanted(store: Any) -> None:
    """It is abandoned when that was read, not before."""
    await load(store, 1, 2)
    uow = store.unit_of_work()
    assert (await anext(export_conversations(uow)))["session_id"] == "s-00001"
    async with uow:
        assert (await anext(export_conversations(uow)))["session_id"] == "s-00001"
        await start_conversation(uow, user_id="u", session_id="a")
        assert (await anext(export_conversations(uow)))["session_id"] == "a"
    assert uow.outcome is Outcome.COMMITTED


async def test_two_exports_at_once(store: Any) -> None:
    """Two streams of one unit are read in turns."""
    await load(store, *range(1100))
    uow = store.unit_of_work()
    async with (
        aclosing(export_conversations(uow)) as one,
        aclosing(export_conversations(uow)) as other,
    ):
        for number in range(1100):
            assert (await anext(one))["session_id"] == (await anext(other))["session_id"]
            assert number < 1100
    async with uow:
        await start_conversation(uow, user_id="u", session_id="a")
        async with aclosing(export_conversations(uow)) as one:
            await anext(one)
            assert len(await sessions(uow)) == 1101
            assert len([_ async for _ in one]) == 1100


async def test_a_bad_user_is_told_when_the_first_record_is_asked_for(store: Any) -> None:
    """An export that cannot begin raises, and leaves its unit free."""
    uow = store.unit_of_work()
    with pytest.raises(InvalidConversation):
        [_ async for _ in export_conversations(uow, user_id="")]
    await start_conversation(uow, user_id="u", session_id="a")


# Import -------------------------------------------------------------------------------------------


async def test_an_error_of_the_stream_keeps_what_was_read_whole_before(store: Any) -> None:
    """Batches that were read are stored, the one that was being read is not; the error goes on."""

    def stream() -> Iterator[Any]:
        for number in range(2500):
            yield record(number)
        raise ZeroDivisionError

    told: list[int] = []
    with pytest.raises(ZeroDivisionError):
        await import_conversations(
            store.unit_of_work(),
            records=stream(),
            progress=lambda so_far: told.append(so_far.conversations),
        )
    assert told == [1000, 2000]
    assert len(await sessions(store.unit_of_work())) == 2000


async def test_an_import_reads_a_batch_ahead(store: Any) -> None:
    """While a batch is stored the next one was read, and no more; after a bad record nothing is."""
    read = 0

    def stream() -> Iterator[Any]:
        nonlocal read
        for number in range(5000):
            read += 1
            yield record(number) | ({"more": 1} if number == 3700 else {})

    seen: list[tuple[int, int]] = []
    with pytest.raises(InvalidRecord) as caught:
        await import_conversations(
            store.unit_of_work(),
            records=stream(),
            progress=lambda so_far: seen.append((so_far.conversations, read)),
        )
    assert seen == [(1000, 2000), (2000, 3000), (3000, 4000)]
    assert caught.value.record == 3701
    assert caught.value.imported == ImportReceipt(conversations=3000, messages=3000)
    assert read == 4000


async def test_an_import_may_read_an_export_of_another_unit(store: Any) -> None:
    """Conversations go from one user's to another's without being in memory together."""
    await load(store, *range(30))

    async def moved() -> AsyncIterator[Any]:
        async for exported in export_conversations(store.unit_of_work(), user_id="u"):
            yield exported | {"user_id": "v"}

    receipt = await import_conversations(store.unit_of_work(), records=moved())
    assert receipt.conversations == 30
    assert len(await sessions(store.unit_of_work())) == 60


async def test_an_import_in_an_inner_block_can_fail_alone(store: Any) -> None:
    """Caught around the call, a refused batch undoes its own batch only."""
    async with store.unit_of_work() as uow:
        await start_conversation(uow, user_id="u", session_id="s-00005")
        with pytest.raises(DuplicateSession) as caught:
            await import_conversations(uow, records=[record(n) for n in range(10)])
        assert caught.value.session_id == "s-00005"
        receipt = await import_conversations(
            uow, records=[record(n) for n in range(10)], on_duplicate="skip"
        )
        assert receipt == ImportReceipt(conversations=9, messages=9, skipped=1)
        await start_conversation(uow, user_id="u", session_id="t")
    assert uow.outcome is Outcome.COMMITTED
    assert len(await sessions(uow)) == 11


async def test_the_first_duplicate_of_a_batch_is_named(store: Any) -> None:
    """In the order of the stream, be it in the store or in the batch itself."""
    await load(store, 7, 3)
    with pytest.raises(DuplicateSession) as caught:
        await load(store, 9, 8, 7, 3)
    assert caught.value.session_id == "s-00007"
    with pytest.raises(DuplicateSession) as caught:
        await load(store, 9, 8, 9, 3)
    assert caught.value.session_id == "s-00009"


async def test_an_import_that_ended_half_way_can_be_gone_on_with(store: Any) -> None:
    """The same stream again, skipping what is there, stores the rest once."""

    def stream(broken: bool) -> Iterator[Any]:
        for number in range(2600):
            if broken and number == 1700:
                raise ZeroDivisionError
            yield record(number, messages=2)

    with pytest.raises(ZeroDivisionError):
        await import_conversations(store.unit_of_work(), records=stream(broken=True))
    receipt = await import_conversations(
        store.unit_of_work(), records=stream(broken=False), on_duplicate="skip"
    )
    assert receipt == ImportReceipt(conversations=1600, messages=3200, skipped=1000)
    assert await sessions(store.unit_of_work()) == [f"s-{n:05}" for n in range(2600)]
