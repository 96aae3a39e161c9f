"""The budgets: what a call costs on the wire, counted between the driver and the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import psycopg
import pytest
from store_fixtures import turn
from wire_proxy import WireCount
from wired_store import SERVICE_FUNCTIONS, Wired, wired_store

from conversation_store import (
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    Status,
    append_messages,
    close_conversation,
    delete_conversation,
    erase_user,
    export_conversations,
    find_conversation,
    get_conversation,
    import_conversations,
    latest_messages,
    messages_after,
)


@pytest.fixture
async def wired(dsn: str, migrated: set[str]) -> AsyncIterator[Wired]:
    """Give a store behind the proxy."""
    async with wired_store(dsn, migrated) as wired:
        yield wired


async def counted(wired: Wired, call: Callable[[], Awaitable[Any]]) -> WireCount:
    """Count what a call sends."""
    with wired.proxy.count() as wire:
        await call()
    return wire


@pytest.mark.parametrize("user_id", [None, "u"])
@pytest.mark.parametrize("name", SERVICE_FUNCTIONS)
async def test_a_service_function_is_one_statement_in_one_round_trip(
    wired: Wired, name: str, user_id: str | None
) -> None:
    """Alone, scoped or not: 1 round trip, 1 statement, and no BEGIN or COMMIT."""
    uow = wired.store.unit_of_work(user_id=user_id)
    if name.endswith(", replay"):
        await SERVICE_FUNCTIONS[name](wired, uow)
    wire = await counted(wired, lambda: SERVICE_FUNCTIONS[name](wired, uow))
    assert (wire.round_trips, wire.statements) == (1, 1), wire.texts


async def test_a_prepared_statement_stays_one_round_trip(wired: Wired) -> None:
    """After it was prepared, which costs one trip once, a call is 1 round trip without a Parse."""
    uow = wired.store.unit_of_work()
    for _ in range(8):
        await SERVICE_FUNCTIONS["append_messages"](wired, uow)
    wire = await counted(wired, lambda: SERVICE_FUNCTIONS["append_messages"](wired, uow))
    assert (wire.round_trips, wire.statements) == (1, 1)
    assert "P" not in wire.messages


async def test_a_refusal_is_one_round_trip(wired: Wired) -> None:
    """A refused write costs no more than one that was accepted, and nothing to clean up."""
    uow = wired.store.unit_of_work()
    await close_conversation(uow, conversation_id=wired.conversation)

    async def refused() -> None:
        with pytest.raises(ConversationNotAcceptingMessages):
            await append_messages(uow, conversation_id=wired.conversation, drafts=turn(1))

    wire = await counted(wired, refused)
    assert (wire.round_trips, wire.statements) == (1, 1)


@pytest.mark.parametrize("writes", [2, 3, 10])
async def test_a_unit_of_several_writes_is_one_round_trip(wired: Wired, writes: int) -> None:
    """N registered writes are n + 2 statements, BEGIN … COMMIT, in 1 round trip."""

    async def unit() -> None:
        async with wired.store.unit_of_work() as uow:
            for number in range(writes):
                uow.messages.append(wired.conversation, turn(number))

    wire = await counted(wired, unit)
    assert (wire.round_trips, wire.statements) == (1, writes + 2)
    assert wire.texts[0].startswith("BEGIN")
    assert wire.texts[-1] == "COMMIT"


async def test_a_refused_unit_of_several_writes_rolls_back_with_one_more_trip(
    wired: Wired,
) -> None:
    """The pipeline ends with the refusal; the connection is cleaned by a rollback."""

    async def unit() -> None:
        with pytest.raises(ConversationNotFound):
            async with wired.store.unit_of_work() as uow:
                uow.messages.append(wired.conversation, turn(1))
                uow.messages.append(4_000_000_000, turn(1))

    wire = await counted(wired, unit)
    assert wire.round_trips == 2


@pytest.mark.parametrize("functions", [1, 2, 5])
async def test_service_functions_in_an_outer_block(wired: Wired, functions: int) -> None:
    """K write service functions in one outer block are k + 2 round trips."""

    async def unit() -> None:
        async with wired.store.unit_of_work() as uow:
            for number in range(functions):
                await append_messages(uow, conversation_id=wired.conversation, drafts=turn(number))

    wire = await counted(wired, unit)
    assert wire.round_trips == functions + 2
    assert sum(text.startswith("SAVEPOINT") for text in wire.texts) == functions
    # A savepoint is released with what comes next; the last one ends with the transaction.
    assert sum(text.startswith("RELEASE") for text in wire.texts) == functions - 1


async def test_reads_in_a_block_need_no_transaction(wired: Wired) -> None:
    """Reads before any write are 1 round trip each, and leaving sends nothing."""

    async def unit() -> None:
        async with wired.store.unit_of_work() as uow:
            await get_conversation(uow, conversation_id=wired.conversation)
            await uow.messages.latest(wired.conversation)
            async with uow:
                await uow.messages.get(wired.message)

    wire = await counted(wired, unit)
    assert (wire.round_trips, wire.statements) == (3, 3)


async def test_a_read_between_two_writes(wired: Wired) -> None:
    """BEGIN, the first write, the read, the second write, COMMIT: one round trip each."""

    async def unit() -> None:
        async with wired.store.unit_of_work() as uow:
            uow.messages.append(wired.conversation, turn(1))
            await uow.messages.latest(wired.conversation)
            uow.conversations.set_status(wired.conversation, Status.CLOSED)

    wire = await counted(wired, unit)
    assert (wire.round_trips, wire.statements) == (5, 5)


async def test_a_block_that_did_nothing_sends_nothing(wired: Wired) -> None:
    """Entering, nesting, leaving and rolling back are free while nothing was sent."""

    async def unit() -> None:
        async with wired.store.unit_of_work() as uow:
            async with uow:
                pass
            async with uow:
                uow.messages.append(wired.conversation, turn(1))
                await uow.rollback()
            await uow.rollback()

    wire = await counted(wired, unit)
    assert (wire.round_trips, wire.statements) == (0, 0)


async def test_a_unit_in_a_hosts_transaction_is_one_round_trip(wired: Wired) -> None:
    """SAVEPOINT, the writes and RELEASE travel together; the host's transaction stays open."""
    connection = await psycopg.AsyncConnection.connect(wired.proxy.dsn)
    async with connection, connection.transaction():

        async def unit() -> None:
            uow = wired.store.unit_of_work(connection=connection)
            await append_messages(uow, conversation_id=wired.conversation, drafts=turn(1))

        wire = await counted(wired, unit)
    assert (wire.round_trips, wire.statements) == (1, 3)


async def test_an_import_is_eight_round_trips_a_batch(wired: Wired) -> None:
    """2,400 conversations of 3 messages are 3 batches; the first may wait for ids twice.

    BEGIN; SAVEPOINT with the look-up; ids; two COPYs of two trips each; COMMIT.
    """
    records: list[Any] = [
        {
            "user_id": "u",
            "session_id": f"i-{number}",
            "messages": [{"role": "user", "content": "x"}] * 3,
        }
        for number in range(2400)
    ]
    wire = await counted(
        wired, lambda: import_conversations(wired.store.unit_of_work(), records=records)
    )
    draws = sum("nextval" in text for text in wire.texts)
    assert sum(text.startswith("COPY") for text in wire.texts) == 6
    assert wire.round_trips == 3 * 7 + draws
    assert draws <= 2 * 3
    skipped = await counted(
        wired,
        lambda: import_conversations(
            wired.store.unit_of_work(), records=records, on_duplicate="skip"
        ),
    )
    assert skipped.round_trips == 3 * 3


async def test_an_export_is_one_round_trip_a_chunk(wired: Wired) -> None:
    """2,400 messages are 3 chunks of 1,000, in a transaction of 2 round trips more."""
    records: list[Any] = [
        {
            "user_id": "v",
            "session_id": f"e-{number}",
            "messages": [{"role": "user", "content": "x"}] * 20,
        }
        for number in range(120)
    ]
    await import_conversations(wired.store.unit_of_work(), records=records)

    async def export() -> None:
        uow = wired.store.unit_of_work(user_id="v")
        assert len([record async for record in export_conversations(uow)]) == 120

    wire = await counted(wired, export)
    assert sum(text.startswith("FETCH") for text in wire.texts) == 3
    assert (wire.round_trips, wire.statements) == (5, 6)


async def test_a_removal_is_one_round_trip_a_batch(wired: Wired) -> None:
    """5,000 messages are 3 batches, 1,200 conversations 3; a last one finds nothing more.

    It starts at the beginning again, for what the user started meanwhile.
    """

    def record(number: int, messages: int) -> Any:
        said = [{"role": "user", "content": "x"}] * messages
        return {"user_id": "v", "session_id": f"r-{number:04}", "messages": said}

    uow = wired.store.unit_of_work(user_id="v")
    await import_conversations(uow, records=[record(0, 5000)])
    found = await find_conversation(uow, session_id="r-0000")
    assert found is not None
    wire = await counted(wired, lambda: delete_conversation(uow, conversation_id=found.id))
    assert (wire.round_trips, wire.statements) == (3, 3)

    await import_conversations(uow, records=[record(number, 1) for number in range(1200)])
    wire = await counted(wired, lambda: erase_user(uow))
    assert (wire.round_trips, wire.statements) == (4, 4)


async def test_ids_are_drawn_once_a_block(wired: Wired) -> None:
    """Drawing ids is amortised: 1,000 a block, so 400 turns of two draw at most once."""

    async def turns() -> None:
        for number in range(400):
            await append_messages(
                wired.store.unit_of_work(),
                conversation_id=wired.conversation,
                drafts=turn(number),
            )

    wire = await counted(wired, turns)
    assert sum("nextval" in text for text in wire.texts) <= 1


async def test_values_do_not_multiply_prepared_statements(wired: Wired) -> None:
    """One text is one prepared statement, whatever the size of its integers and what is NULL."""
    uow = wired.store.unit_of_work()
    for number in range(30):
        position = (0, 5, 40_000, 3_000_000_000)[number % 4]
        await messages_after(uow, conversation_id=wired.conversation, position=position)
        await append_messages(
            uow,
            conversation_id=wired.conversation,
            drafts=turn(1) * (number % 3 + 1),
            expected_version=number + 1 if number % 2 else None,
        )
        await latest_messages(
            wired.store.unit_of_work(user_id="u" if number % 2 else None),
            conversation_id=wired.conversation,
            before=None if number % 2 else 7,
        )
    async with uow:
        connection = await uow.connection()
        cursor = await connection.execute(
            "SELECT count(*), count(DISTINCT statement) FROM pg_prepared_statements"
        )
        total, distinct = await cursor.fetchone()
        await uow.rollback()
    assert total == distinct >= 3
