"""What an observer is told of units of work and service functions, on both adapters."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest
from attrs import define
from store_fixtures import draft, open_store, turn
from watching import Watcher
from wired_store import service_functions

import conversation_store
from conversation_store import (
    AsyncUnitOfWork,
    ConversationNotFound,
    ConversationStore,
    DuplicateSession,
    Outcome,
    Retry,
    TransactionAborted,
    append_messages,
    export_conversations,
    get_conversation,
    import_conversations,
    start_conversation,
)


@define
class Watched:
    """A store and who watches it."""

    store: ConversationStore
    watcher: Watcher
    conversation: int


@pytest.fixture(params=["memory", "postgres"])
async def watched(request: pytest.FixtureRequest) -> AsyncIterator[Watched]:
    """Give a watched store of each kind, with one conversation."""
    watcher = Watcher()
    if request.param == "memory":
        opened: Any = ConversationStore.in_memory(observer=watcher)
    else:
        dsn, migrated = (request.getfixturevalue(name) for name in ("dsn", "migrated"))
        opened = open_store(dsn, "operational", migrated, observer=watcher)
    async with opened as store:
        started, _ = await start_conversation(store.unit_of_work(), user_id="u", session_id="s")
        watcher.forget()
        yield Watched(store, watcher, started.id)


@pytest.mark.parametrize("name", sorted({*service_functions()} - {"export_conversations"}))
def test_every_service_function_is_told_of(name: str) -> None:
    """All are wrapped by what tells of them; that goes for those that are added, too.

    An export is a stream, and has tests of its own.
    """
    assert hasattr(getattr(conversation_store, name), "__wrapped__")


async def test_a_call_and_its_unit(watched: Watched) -> None:
    """The call makes the unit, and both end well, in this order."""
    uow = watched.store.unit_of_work()
    await append_messages(uow, conversation_id=watched.conversation, drafts=turn(1))
    call, unit = watched.watcher.seen
    assert (call.function, call.around, call.error, call.outcome) == (
        "append_messages",
        None,
        None,
        None,
    )
    assert (unit.function, unit.around, unit.error) == (None, call, None)
    assert unit.outcome is Outcome.COMMITTED
    assert call.tally == unit.tally


async def test_calls_inside_a_block(watched: Watched) -> None:
    """They are told of as calls inside the unit, which ends when its outermost block is left."""
    async with watched.store.unit_of_work() as uow:
        for number in range(2):
            await append_messages(uow, conversation_id=watched.conversation, drafts=turn(number))
        async with uow:
            pass
        [unit] = watched.watcher.units
        assert unit.tally is None
    assert [call.around for call in watched.watcher.calls] == [unit, unit]
    assert unit.outcome is Outcome.COMMITTED


async def test_a_unit_that_is_entered_again_is_another(watched: Watched) -> None:
    """Each entering is one unit, with a tally of its own."""
    uow = watched.store.unit_of_work()
    for _ in range(2):
        await get_conversation(uow, conversation_id=watched.conversation)
    first, second = watched.watcher.units
    assert first.tally is not None
    assert second.tally is not None
    assert first.tally.round_trips == second.tally.round_trips


async def test_errors_are_told_and_raised(watched: Watched) -> None:
    """The call and the unit end with the error that the caller gets."""
    uow = watched.store.unit_of_work()
    with pytest.raises(DuplicateSession) as raised:
        await start_conversation(uow, user_id="u", session_id="s")
    call, unit = watched.watcher.seen
    assert call.error is unit.error is raised.value
    assert unit.outcome is Outcome.ROLLED_BACK


async def test_a_block_that_is_left_by_the_hosts_error(watched: Watched) -> None:
    """The unit is told to end with the host's error; nothing is stored."""
    with pytest.raises(ZeroDivisionError):
        async with watched.store.unit_of_work() as uow:
            await append_messages(uow, conversation_id=watched.conversation, drafts=turn(1))
            raise ZeroDivisionError
    [unit] = watched.watcher.units
    assert isinstance(unit.error, ZeroDivisionError)
    assert unit.outcome is Outcome.ROLLED_BACK


async def test_a_unit_that_is_cancelled(watched: Watched) -> None:
    """It ends with the cancellation."""

    async def work() -> None:
        async with watched.store.unit_of_work():
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    [unit] = watched.watcher.units
    assert isinstance(unit.error, asyncio.CancelledError)
    assert unit.outcome is Outcome.NOT_STARTED


async def test_an_export_is_one_call_until_its_end(watched: Watched) -> None:
    """Read to the end, or left half way: it ends once, without an error."""
    records: Any = [
        {"user_id": "v", "session_id": str(number), "messages": [{"role": "user", "content": "x"}]}
        for number in range(3)
    ]
    await import_conversations(watched.store.unit_of_work(), records=records)
    watched.watcher.forget()
    uow = watched.store.unit_of_work(user_id="v")
    assert len([record async for record in export_conversations(uow)]) == 3
    async with aclosing(export_conversations(uow)) as stream:
        await anext(stream)
        await get_conversation(watched.store.unit_of_work(), conversation_id=watched.conversation)
        whole, half, _ = watched.watcher.calls
        assert half.tally is None
    assert (whole.function, whole.error) == ("export_conversations", None)
    assert half.tally is not None
    assert half.error is None
    assert whole.tally == half.tally or half.tally.waited


async def test_run_tells_of_tries(watched: Watched) -> None:
    """Each try is a unit, and those after the first are told of as tries."""

    async def work(uow: AsyncUnitOfWork) -> int:
        if len(watched.watcher.units) < 3:
            raise TransactionAborted(reason="a deadlock")
        return (await get_conversation(uow, conversation_id=watched.conversation)).id

    assert await watched.store.run(work) == watched.conversation
    assert len(watched.watcher.units) == 3
    assert watched.watcher.tries == 2


class Broken(Watcher):
    """An observer that raises."""

    def call_began(self, *_: object, **__: object) -> Any:
        """Raise."""
        raise ValueError("quotes a secret")

    unit_began = tried_again = waited = pool_opened = call_began


class BrokenAtTheEnd(Watcher):
    """An observer whose observations raise."""

    def unit_began(self) -> Any:
        """Begin what cannot end."""
        return self

    def end(self, *_: object) -> None:
        """Raise."""
        raise ValueError("quotes a secret")


@pytest.mark.parametrize("kind", [Broken, BrokenAtTheEnd])
async def test_what_an_observer_raises_harms_nothing(
    kind: type[Watcher], dsn: str, migrated: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """All is done as without one; the log says that it raised, and not what."""
    with caplog.at_level(logging.WARNING, "conversation_store"):
        async with open_store(dsn, "operational", migrated, observer=kind()) as store:
            started, _ = await start_conversation(
                store.unit_of_work(), user_id="u", session_id="s", drafts=[draft("x")]
            )
            assert started.message_count == 1
            with pytest.raises(ConversationNotFound):
                await get_conversation(store.unit_of_work(), conversation_id=started.id + 9)
    assert "the observer of the store raised ValueError" in caplog.text
    assert "secret" not in caplog.text


async def test_a_store_without_an_observer_has_units_that_tell_nobody() -> None:
    """Its units are of the plain class: being observed is another class's doing."""
    uow = ConversationStore.in_memory(retry=Retry()).unit_of_work()
    assert not hasattr(uow, "observer")
