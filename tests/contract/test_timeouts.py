"""The timeout of a unit of work: all that it waits for ends in time; then nothing is stored."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import Any

import pytest
from pulse import within
from store_fixtures import draft, turn

from conversation_store import (
    ConversationStore,
    InvalidLimit,
    Outcome,
    StoreTimeout,
    UnitOfWorkMisuse,
    append_messages,
    export_conversations,
    get_conversation,
    import_conversations,
    latest_messages,
    start_conversation,
)

SOON = 0.1
"""Seconds of a unit that is not done in time."""
ENOUGH = 0.5
"""Seconds of one that is not done in time either, though a busy machine stores a turn in them."""
LONG = 20.0
"""Seconds of one that is."""
PROMISED = 0.5
"""Seconds after its timeout in which a unit ends."""


async def start(store: ConversationStore, session_id: str = "s") -> int:
    """Start a conversation."""
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id="u", session_id=session_id
    )
    return conversation.id


async def count(store: ConversationStore, conversation: int) -> int:
    """Return how many messages are stored."""
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert found.message_count == len(messages)
    return len(messages)


def check_error(error: StoreTimeout, seconds: float = SOON) -> None:
    """Check that it is the error of a unit that was not done in time, the same in every store."""
    assert error.reason == f"the unit of work was not done within its timeout of {seconds:g} s"
    assert error.sqlstate is None
    assert error.retryable


@pytest.mark.parametrize(
    "seconds", [0, -1, 0.0, math.nan, math.inf, -math.inf, 86_401, 10**400, True, "5", b"5", [5]]
)
async def test_what_is_no_timeout_is_refused(store: ConversationStore, seconds: Any) -> None:
    """A number of seconds above 0, at most a day."""
    with pytest.raises(InvalidLimit) as caught:
        store.unit_of_work(timeout=seconds)
    assert caught.value.field == "timeout"


@pytest.mark.parametrize("seconds", [None, LONG, 20, 86_400])
async def test_in_time_a_unit_does_what_it_always_does(
    store: ConversationStore, seconds: float | None
) -> None:
    """Alone, nested, in one flush and in several, reading, importing, exporting."""
    uow = store.unit_of_work(timeout=seconds)
    chat, messages = await start_conversation(uow, user_id="u", session_id="s", drafts=turn(1))
    assert [message.position for message in messages] == [1, 2]
    assert uow.outcome is Outcome.COMMITTED
    async with uow:
        one = uow.messages.append(chat.id, turn(2))
        two = uow.messages.append(chat.id, turn(3), request_id="r")
    assert [message.position for message in [*await one, *await two]] == [3, 4, 5, 6]
    async with uow:
        await append_messages(uow, conversation_id=chat.id, drafts=turn(4))
        with pytest.raises(LookupError):
            async with uow:
                await append_messages(uow, conversation_id=chat.id, drafts=turn(5))
                raise LookupError
        assert len(await latest_messages(uow, conversation_id=chat.id)) == 8
        await append_messages(uow, conversation_id=chat.id, drafts=turn(6))
    assert len(await latest_messages(uow, conversation_id=chat.id)) == 10
    records = [record async for record in export_conversations(uow)]
    assert [len(record["messages"]) for record in records] == [10]
    renamed = records[0] | {"session_id": "other"}
    receipt = await import_conversations(uow, records=[renamed])
    assert (receipt.conversations, receipt.messages) == (1, 10)
    async with uow:
        await append_messages(uow, conversation_id=chat.id, drafts=turn(7))
        await uow.rollback()
    assert await count(store, chat.id) == 10


async def test_a_wait_for_a_lock_ends_in_time(shared_store: ConversationStore) -> None:
    """Who waits for another unit gives up; the other, and who waits without, are not hurt."""
    conversation = await start(shared_store)
    uow = shared_store.unit_of_work(timeout=ENOUGH)
    async with shared_store.unit_of_work() as holder:
        await append_messages(holder, conversation_id=conversation, drafts=[draft("held")])
        patient = asyncio.create_task(
            append_messages(
                shared_store.unit_of_work(), conversation_id=conversation, drafts=[draft("patient")]
            )
        )
        async with within(ENOUGH + PROMISED):
            with pytest.raises(StoreTimeout) as caught:
                await append_messages(uow, conversation_id=conversation, drafts=[draft("hasty")])
    await patient
    check_error(caught.value, ENOUGH)
    assert uow.outcome is Outcome.ROLLED_BACK
    messages = await latest_messages(shared_store.unit_of_work(), conversation_id=conversation)
    assert [message.content for message in messages] == ["held", "patient"]
    await append_messages(uow, conversation_id=conversation, drafts=[draft("again")])


async def test_a_wait_in_an_inner_block_fails_the_whole_unit(
    shared_store: ConversationStore,
) -> None:
    """Caught in the outer block it is no use: there is no time left to commit anything."""
    first, second = await start(shared_store), await start(shared_store, "s-2")
    uow = shared_store.unit_of_work(timeout=ENOUGH)
    async with shared_store.unit_of_work() as holder:
        await append_messages(holder, conversation_id=second, drafts=[draft("held")])
        with pytest.raises(StoreTimeout) as caught:
            async with uow:
                await append_messages(uow, conversation_id=first, drafts=[draft("outer")])
                with pytest.raises(StoreTimeout) as inner:
                    await append_messages(uow, conversation_id=second, drafts=[draft("inner")])
                check_error(inner.value, ENOUGH)
    check_error(caught.value, ENOUGH)
    assert uow.outcome is Outcome.ROLLED_BACK
    assert await count(shared_store, first) == 0
    assert await count(shared_store, second) == 1


async def test_a_failed_block_says_why(shared_store: ConversationStore) -> None:
    """Its Pendings, and leaving it after the error was swallowed, raise the same error."""
    conversation = await start(shared_store)
    uow = shared_store.unit_of_work(timeout=SOON)
    async with shared_store.unit_of_work() as holder:
        await append_messages(holder, conversation_id=conversation, drafts=[draft("held")])
        with pytest.raises(StoreTimeout) as caught:
            async with uow:
                pending = uow.messages.append(conversation, turn(1))
                with pytest.raises(StoreTimeout):
                    await pending
        check_error(caught.value)
        with pytest.raises(StoreTimeout) as again:
            await pending
        check_error(again.value)


async def test_time_is_counted_from_entering(store: ConversationStore) -> None:
    """What the host does in the block takes time, too; then nothing more is sent."""
    conversation = await start(store)
    uow = store.unit_of_work(timeout=ENOUGH)
    await asyncio.sleep(ENOUGH)
    await append_messages(uow, conversation_id=conversation, drafts=turn(1))
    with pytest.raises(StoreTimeout) as caught:
        async with uow:
            uow.messages.append(conversation, turn(2))
            await asyncio.sleep(ENOUGH)
    check_error(caught.value, ENOUGH)
    assert uow.outcome is Outcome.NOT_STARTED
    assert await count(store, conversation) == 2
    await append_messages(uow, conversation_id=conversation, drafts=turn(2))  # entered anew


async def test_an_interactive_unit_that_is_late_is_rolled_back(store: ConversationStore) -> None:
    """What it sent in time is not stored either."""
    conversation = await start(store)
    uow = store.unit_of_work(timeout=ENOUGH)
    with pytest.raises(StoreTimeout) as caught:
        async with uow:
            await append_messages(uow, conversation_id=conversation, drafts=turn(1))
            await asyncio.sleep(ENOUGH)
    check_error(caught.value, ENOUGH)
    assert uow.outcome is Outcome.ROLLED_BACK
    assert await count(store, conversation) == 0


async def test_late_reads_writes_and_imports_are_not_sent(store: ConversationStore) -> None:
    """Each raises; a unit that has nothing to store is left cleanly, and so is one rolled back."""
    conversation = await start(store)
    uow = store.unit_of_work(timeout=SOON)
    async with uow:
        await asyncio.sleep(SOON)
        with pytest.raises(StoreTimeout) as caught:
            await latest_messages(uow, conversation_id=conversation)
        check_error(caught.value)
    async with uow:
        await asyncio.sleep(SOON)
        with pytest.raises(StoreTimeout):
            await append_messages(uow, conversation_id=conversation, drafts=turn(1))
        await uow.rollback()
    async with store.unit_of_work(timeout=ENOUGH) as other:
        await append_messages(other, conversation_id=conversation, drafts=turn(1))
        await asyncio.sleep(ENOUGH)
        await other.rollback()
    records: list[Any] = [record async for record in export_conversations(store.unit_of_work())]
    with pytest.raises(StoreTimeout):
        async with uow:
            await asyncio.sleep(SOON)
            await import_conversations(uow, records=records, on_duplicate="skip")
    assert await count(store, conversation) == 0


async def test_misuse_is_misuse_however_late(store: ConversationStore) -> None:
    """Outside of a block nothing can be read or stored, whatever became of the unit before."""
    uow = store.unit_of_work(timeout=SOON)
    async with uow:
        await asyncio.sleep(SOON)
    with pytest.raises(UnitOfWorkMisuse):
        await uow.messages.latest(1, limit=1)
    with pytest.raises(UnitOfWorkMisuse):
        uow.messages.append(1, turn(1))
    with pytest.raises(UnitOfWorkMisuse):
        await uow.conversations.add_imported([], "error")


async def test_an_export_ends_with_the_time_of_its_unit(store: ConversationStore) -> None:
    """It is a read of the unit that began it."""
    for number in range(3):
        await start(store, f"s-{number}")
    seen = 0
    async with aclosing(export_conversations(store.unit_of_work(timeout=ENOUGH))) as records:
        with pytest.raises(StoreTimeout) as caught:
            async for _ in records:
                seen += 1
                await asyncio.sleep(ENOUGH)
    check_error(caught.value, ENOUGH)
    assert seen == 1


async def test_an_exception_of_the_host_goes_on(store: ConversationStore) -> None:
    """However late it is."""
    conversation = await start(store)
    uow = store.unit_of_work(timeout=ENOUGH)
    with pytest.raises(LookupError):
        async with uow:
            await append_messages(uow, conversation_id=conversation, drafts=turn(1))
            await asyncio.sleep(ENOUGH)
            raise LookupError
    assert uow.outcome is Outcome.ROLLED_BACK
    assert await count(store, conversation) == 0


async def test_a_timeout_of_the_host_is_not_the_unit_s(shared_store: ConversationStore) -> None:
    """Whose limit is met first, that one's error it is."""
    conversation = await start(shared_store)
    async with shared_store.unit_of_work() as holder:
        await append_messages(holder, conversation_id=conversation, drafts=[draft("held")])
        for hosts, units, error in ((ENOUGH, LONG, TimeoutError), (LONG, ENOUGH, StoreTimeout)):
            uow = shared_store.unit_of_work(timeout=units)
            with pytest.raises(error):
                async with asyncio.timeout(hosts):
                    await append_messages(uow, conversation_id=conversation, drafts=turn(1))
            assert uow.outcome is Outcome.ROLLED_BACK
