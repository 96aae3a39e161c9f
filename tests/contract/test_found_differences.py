"""Where the twin and PostgreSQL once differed: found by `make fuzz`, each held by a test since."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from server_waits import is_waiting
from store_fixtures import draft, turn

from conversation_store import (
    ConversationStore,
    DuplicateSession,
    ImportReceipt,
    Outcome,
    append_messages,
    close_conversation,
    get_or_start_conversation,
    import_conversations,
    list_conversations,
    start_conversation,
)


def record(session: str) -> Any:
    """Return a record without times."""
    return {"user_id": "u", "session_id": session, "messages": [{"role": "user", "content": "x"}]}


async def start(store: Any, session: str) -> int:
    """Start a conversation."""
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id="u", session_id=session
    )
    return conversation.id


async def test_records_of_a_batch_that_have_no_times_take_the_same(store: Any) -> None:
    """The store's clock is read once a batch."""
    records = [record("b"), record("a"), record("c")]
    await import_conversations(store.unit_of_work(), records=records)
    page = await list_conversations(store.unit_of_work(), user_id="u")
    assert [found.session_id for found in page.conversations] == ["c", "a", "b"]
    times = {
        time for found in page.conversations for time in (found.start_time, found.last_activity)
    }
    assert len(times) == 1


async def test_an_import_that_waits_for_a_session_holds_no_later_one(
    shared_store: ConversationStore,
) -> None:
    """Sessions are taken in their own order, whatever that of the stream."""
    uow = shared_store.unit_of_work()
    async with uow:
        await uow.conversations.find("a", "u")
        await start_conversation(uow, user_id="u", session_id="a")
        importing = asyncio.create_task(
            import_conversations(
                shared_store.unit_of_work(),
                records=[record("b"), record("a"), record("c")],
                on_duplicate="skip",
            )
        )
        assert await is_waiting(shared_store, importing)
        async with asyncio.timeout(10):  # who waits for a lock has an error before
            await start(shared_store, "b")
            await start_conversation(uow, user_id="u", session_id="c")
    assert await importing == ImportReceipt(skipped=3)


async def test_an_import_goes_on_where_another_rolled_back(
    shared_store: ConversationStore,
) -> None:
    """It stores what it waited for."""
    uow = shared_store.unit_of_work()
    async with uow:
        await start_conversation(uow, user_id="u", session_id="a")
        importing = asyncio.create_task(
            import_conversations(shared_store.unit_of_work(), records=[record("b"), record("a")])
        )
        assert await is_waiting(shared_store, importing)
        await uow.rollback()
    assert await importing == ImportReceipt(conversations=2, messages=2)


async def test_a_start_does_not_wait_for_who_only_locks_the_conversation(
    shared_store: ConversationStore,
) -> None:
    """Nothing of a session changes where a change of status is none, so its name is taken."""
    conversation = await start(shared_store, "s")
    await close_conversation(shared_store.unit_of_work(), conversation_id=conversation)
    async with shared_store.unit_of_work() as uow:
        await close_conversation(uow, conversation_id=conversation)
        closing = asyncio.create_task(
            close_conversation(shared_store.unit_of_work(), conversation_id=conversation)
        )
        assert await is_waiting(shared_store, closing)
        async with asyncio.timeout(10):  # who waits for a lock has an error before
            with pytest.raises(DuplicateSession):
                await start(shared_store, "s")
    await closing


async def test_get_or_start_that_lost_a_race_holds_the_session(
    shared_store: ConversationStore,
) -> None:
    """Where it had to wait for the conversation it gives, the others wait for its unit."""
    winner, loser = shared_store.unit_of_work(), shared_store.unit_of_work()

    async def lose(may_end: asyncio.Event) -> bool:
        async with loser:
            _, created = await get_or_start_conversation(loser, user_id="u", session_id="s")
            lost.set()
            await may_end.wait()
            return created

    lost, may_end = asyncio.Event(), asyncio.Event()
    async with winner:
        await start_conversation(winner, user_id="u", session_id="s")
        await winner.conversations.find("s", "u")
        losing = asyncio.create_task(lose(may_end))
        assert await is_waiting(shared_store, losing)
    await lost.wait()
    starting = asyncio.create_task(start(shared_store, "s"))
    assert await is_waiting(shared_store, starting)
    may_end.set()
    assert await losing is False
    with pytest.raises(DuplicateSession):
        await starting


@pytest.mark.parametrize("function", [start_conversation, get_or_start_conversation])
async def test_a_start_that_waited_was_started_when_it_came(
    shared_store: ConversationStore, function: Any
) -> None:
    """Its time is that of before the wait."""
    uow = shared_store.unit_of_work()
    async with uow:
        await start_conversation(uow, user_id="u", session_id="s")
        await uow.conversations.find("s", "u")
        starting = asyncio.create_task(
            function(shared_store.unit_of_work(), user_id="u", session_id="s")
        )
        assert await is_waiting(shared_store, starting)
        later = await start(shared_store, "later")
        await uow.rollback()
    await starting
    page = await list_conversations(shared_store.unit_of_work(), user_id="u")
    assert [found.session_id for found in page.conversations] == ["later", "s"]
    assert page.conversations[0].id == later


@pytest.mark.parametrize("how", ["a closed block", "a request"])
async def test_who_waits_for_what_a_closed_block_wrote_waits_for_the_unit(
    shared_store: ConversationStore, how: str
) -> None:
    """Although the block around is rolled back; who comes later does not wait."""
    conversation, other = await start(shared_store, "s"), await start(shared_store, "t")

    def append(text: str) -> asyncio.Task[Any]:
        return asyncio.create_task(
            append_messages(
                shared_store.unit_of_work(), conversation_id=conversation, drafts=[draft(text)]
            )
        )

    async with shared_store.unit_of_work() as uow:
        async with uow:
            if how == "a request":
                await uow.messages.append(conversation, turn(1), request_id="r")
            else:
                await append_messages(uow, conversation_id=conversation, drafts=turn(1))
                await uow.messages.append(other, turn(1))
            first = append("first")
            assert await is_waiting(shared_store, first)
            await uow.rollback()
        assert await is_waiting(shared_store, first)
        if not _is_coalescing(shared_store):  # there turns of one conversation keep their order
            [message] = await append("second")
            assert message.position == 1
        await uow.messages.append(other, turn(2))
    assert uow.outcome is Outcome.COMMITTED
    [message] = await first
    assert message.position == (1 if _is_coalescing(shared_store) else 2)


def _is_coalescing(store: ConversationStore) -> bool:
    return getattr(store._adapter, "_group_commit", None) is not None


@pytest.mark.parametrize("end", ["commits", "rolls back"])
@pytest.mark.parametrize("request_id", [None, "r"])
async def test_an_append_that_waited_has_the_time_when_it_came_unless_it_met_a_change(
    shared_store: ConversationStore, end: str, request_id: str | None
) -> None:
    """What it waited for was rolled back: as if there had been no wait."""
    conversation = await start(shared_store, "s")
    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(conversation, turn(1))
        appending = asyncio.create_task(
            append_messages(
                shared_store.unit_of_work(),
                conversation_id=conversation,
                drafts=turn(2),
                request_id=request_id,
            )
        )
        assert await is_waiting(shared_store, appending)
        _, [later] = await start_conversation(
            shared_store.unit_of_work(), user_id="u", session_id="t", drafts=[draft("later")]
        )
        if end == "rolls back":
            await uow.rollback()
    messages = await appending
    assert (messages[0].timestamp < later.timestamp) is (end == "rolls back")
