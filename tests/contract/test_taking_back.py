"""What popping and replacing promise: the end of a history, or all of it, goes as one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from histories import whole_history
from server_waits import is_waiting
from store_fixtures import draft, turn

from conversation_store import (
    ConcurrentUpdate,
    Conversation,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStore,
    InvalidMessage,
    Message,
    MessageNotFound,
    NewConversation,
    Outcome,
    RequestConflict,
    TransactionAborted,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    get_conversation,
    get_message,
    get_or_start_conversation,
    latest_messages,
    pop_message,
    redact_message,
    replace_messages,
    start_conversation,
)


async def start(store: Any, count: int = 3, **values: Any) -> tuple[Conversation, list[Message]]:
    """Start a conversation of so many messages."""
    drafts = [draft(f"{number}", slots={"n": number}) for number in range(count)]
    given = {"user_id": "u", "session_id": "s", "drafts": drafts} | values
    return await start_conversation(store.unit_of_work(), **given)


async def pop(store: Any, conversation: Conversation, **values: Any) -> Message | None:
    """Pop the newest message."""
    return await pop_message(store.unit_of_work(), conversation_id=conversation.id, **values)


async def replace(
    store: Any, conversation: Conversation, *contents: str, **values: Any
) -> list[Message]:
    """Replace all messages."""
    drafts = [draft(content) for content in contents]
    return await replace_messages(
        store.unit_of_work(), conversation_id=conversation.id, drafts=drafts, **values
    )


async def append(
    store: Any, conversation: Conversation, *contents: str, **values: Any
) -> list[Message]:
    """Append a turn."""
    drafts = [draft(content) for content in contents]
    return await append_messages(
        store.unit_of_work(), conversation_id=conversation.id, drafts=drafts, **values
    )


async def read(store: Any, conversation: Conversation) -> tuple[Conversation, list[Message]]:
    """Read a conversation and its messages, which have no gap and are counted."""
    uow = store.unit_of_work()
    found = await get_conversation(uow, conversation_id=conversation.id)
    history = await latest_messages(uow, conversation_id=conversation.id)
    assert [message.position for message in history] == list(range(1, found.message_count + 1))
    return found, history


CALLS: dict[str, Any] = {
    "pop": pop,
    "replace": lambda store, chat, **values: replace(store, chat, "new", **values),
    "clear": replace,
}
"""All ways to take something away."""


# Popping ----------------------------------------------------------------------------------------


async def test_the_newest_message_is_given_and_gone(store: Any) -> None:
    """One by one from the end, until there is none; that is told, and changes nothing."""
    conversation, messages = await start(store)
    for left in (2, 1, 0):
        assert await pop(store, conversation) == messages[left]
        found, history = await read(store, conversation)
        assert history == messages[:left]
        assert (found.version, found.message_count) == (4 - left, left)
        assert found.last_activity == conversation.last_activity
        with pytest.raises(MessageNotFound):
            await get_message(store.unit_of_work(), message_id=messages[left].id)
    before = await read(store, conversation)
    uow = store.unit_of_work()
    assert await pop_message(uow, conversation_id=conversation.id) is None
    assert uow.outcome is Outcome.COMMITTED
    assert await read(store, conversation) == before


async def test_the_next_message_takes_the_free_position(store: Any) -> None:
    """It has an id of its own, and what was popped does not come back."""
    conversation, messages = await start(store)
    await pop(store, conversation)
    [added] = await append(store, conversation, "again")
    assert (added.position, added.id > messages[-1].id) == (3, True)
    assert (await read(store, conversation))[1] == [*messages[:2], added]
    assert await pop(store, conversation) == added


async def test_what_is_popped_shares_nothing_with_the_store(store: Any) -> None:
    """Who writes into the slots that were returned changes what is his own."""
    conversation, messages = await start(store)
    async with store.unit_of_work() as uow:
        popped = await uow.messages.pop(conversation.id)
        assert popped is not None
        assert popped.slots is not None
        popped.slots["n"] = "other"
        await uow.rollback()
    assert (await read(store, conversation))[1] == messages


async def test_a_tombstone_is_popped_as_it_is(store: Any) -> None:
    """What it said before is not told."""
    conversation, messages = await start(store)
    tombstone = await redact_message(store.unit_of_work(), message_id=messages[-1].id)
    assert await pop(store, conversation) == tombstone


# Replacing --------------------------------------------------------------------------------------


async def test_all_messages_are_replaced(store: Any) -> None:
    """The new ones stand from 1 on, with new ids; more of them than before, or fewer."""
    conversation, messages = await start(store)
    gone = messages
    for number, contents in enumerate((("a",), ("b", "c", "d", "e"), ("f", "g")), 2):
        added = await replace(store, conversation, *contents)
        assert [message.content for message in added] == list(contents)
        found, history = await read(store, conversation)
        assert history == added
        assert (found.version, found.message_count) == (number, len(contents))
        assert found.last_activity == added[0].timestamp >= gone[0].timestamp
        for message in gone:
            with pytest.raises(MessageNotFound):
                await get_message(store.unit_of_work(), message_id=message.id)
        for message in added:
            uow = store.unit_of_work()
            assert await get_message(uow, message_id=message.id) == message
        gone = added
    [last] = await append(store, conversation, "on")
    assert last.position == 3


async def test_a_conversation_is_cleared(store: Any) -> None:
    """It has no messages then, and goes on from position 1; nothing was said meanwhile."""
    conversation, _ = await start(store)
    assert await replace(store, conversation) == []
    found, history = await read(store, conversation)
    assert (history, found.version, found.message_count) == ([], 2, 0)
    assert found.last_activity == conversation.last_activity
    assert await replace(store, conversation) == []
    assert await pop(store, conversation) is None
    [first] = await append(store, conversation, "first")
    assert first.position == 1


async def test_everything_of_a_draft_is_stored(store: Any) -> None:
    """Role, intent_type, slots and metadata, as an append stores them."""
    conversation, _ = await start(store)
    drafts = [
        draft("ü\u2028", role, intent_type="i", slots={"a": [1.0, -0.0]}, metadata={"b": None})
        for role in ("system", "user", "assistant", "tool")
    ]
    added = await replace_messages(
        store.unit_of_work(), conversation_id=conversation.id, drafts=drafts
    )
    assert (await read(store, conversation))[1] == added
    assert [(m.role, m.slots, m.metadata) for m in added] == [
        (d.role, d.slots, d.metadata) for d in drafts
    ]


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLS)
async def test_a_version_that_is_expected(store: Any, name: str) -> None:
    """At another nothing is changed, and it is told which it is."""
    conversation, messages = await start(store)
    for version in (0, 2):
        with pytest.raises(ConcurrentUpdate) as caught:
            await CALLS[name](store, conversation, expected_version=version)
        assert (caught.value.expected_version, caught.value.actual_version) == (version, 1)
    assert await read(store, conversation) == (conversation, messages)
    await CALLS[name](store, conversation, expected_version=1)
    assert (await read(store, conversation))[0].version == 2


@pytest.mark.parametrize("name", CALLS)
async def test_a_conversation_that_accepts_no_messages(store: Any, name: str) -> None:
    """It is left as it is, an empty one too. That comes before the version."""
    for count, end in ((0, close_conversation), (3, archive_conversation)):
        conversation, messages = await start(store, count, session_id=f"s-{count}")
        ended = await end(store.unit_of_work(), conversation_id=conversation.id)
        for values in ({}, {"expected_version": 1}):
            with pytest.raises(ConversationNotAcceptingMessages) as caught:
                await CALLS[name](store, conversation, **values)
            assert caught.value.status == ended.status
        assert await read(store, conversation) == (ended, messages)


@pytest.mark.parametrize("name", CALLS)
async def test_a_conversation_that_is_not_there(store: Any, name: str) -> None:
    """Gone, never there, or another user's is the same."""
    conversation, _ = await start(store)
    other, messages = await start(store, user_id="them")
    await delete_conversation(store.unit_of_work(), conversation_id=conversation.id)
    with pytest.raises(ConversationNotFound):
        await CALLS[name](store, conversation)
    async with store.unit_of_work(user_id="u") as uow:
        with pytest.raises(ConversationNotFound):
            async with uow:
                await uow.messages.pop(other.id)
        with pytest.raises(ConversationNotFound):
            async with uow:
                await uow.messages.replace(other.id, [])
    assert await read(store, other) == (other, messages)


@pytest.mark.parametrize("drafts", [None, [1], "text", turn(1) * 501])
async def test_what_are_no_drafts(store: Any, drafts: Any) -> None:
    """They are refused before anything is sent."""
    conversation, messages = await start(store)
    with pytest.raises(InvalidMessage, match="drafts"):
        await replace_messages(store.unit_of_work(), conversation_id=conversation.id, drafts=drafts)
    assert await read(store, conversation) == (conversation, messages)


# Units of work ----------------------------------------------------------------------------------


async def test_together_with_other_writes(store: Any) -> None:
    """In one unit, each sees what came before it."""
    conversation, messages = await start(store)
    async with store.unit_of_work() as uow:
        [first, second] = await uow.messages.append(conversation.id, turn(1))
        assert await uow.messages.pop(conversation.id) == second
        assert await uow.messages.pop(conversation.id) == first
        assert await uow.messages.pop(conversation.id) == messages[2]
        again = uow.messages.append(conversation.id, turn(2))
        assert await uow.messages.latest(conversation.id) == [*messages[:2], *await again]
        replaced = await uow.messages.replace(conversation.id, turn(3))
        popped = uow.messages.pop(conversation.id)
        assert await uow.messages.latest(conversation.id) == replaced[:1]
        assert await popped == replaced[1]
        uow.messages.append(conversation.id, turn(4))
    found, history = await read(store, conversation)
    assert [message.content for message in history] == [d.content for d in (turn(3)[0], *turn(4))]
    assert found.version == 9


async def test_rolled_back_all_is_there(store: Any) -> None:
    """As if nothing had been: words, version, and the requests that stored them."""
    conversation, _ = await start(store)
    messages = await append(store, conversation, "a", "b", request_id="r")
    before = await read(store, conversation)
    async with store.unit_of_work() as uow:
        await uow.messages.pop(conversation.id)
        with pytest.raises(LookupError):
            async with uow:
                uow.messages.append(conversation.id, turn(1))
                await uow.messages.replace(conversation.id, turn(2))
                await uow.messages.pop(conversation.id)
                raise LookupError
        assert await uow.messages.latest(conversation.id) == before[1][:-1]
        uow.messages.append(conversation.id, turn(3))
        await uow.rollback()
    assert await read(store, conversation) == before
    assert await append(store, conversation, "a", "b", request_id="r") == messages
    for message in before[1]:
        assert await get_message(store.unit_of_work(), message_id=message.id) == message


# Requests ---------------------------------------------------------------------------------------


async def test_a_request_whose_turn_lost_its_end(store: Any) -> None:
    """What is left of it is no answer, also when others stand where its end was: a conflict."""
    conversation, _ = await start(store)
    await append(store, conversation, "a", "b", request_id="r")
    other = await append(store, conversation, "c", "d", request_id="other")
    for _ in range(3):
        await pop(store, conversation)
    for _ in range(2):
        before = await read(store, conversation)
        with pytest.raises(RequestConflict) as caught:
            await append(store, conversation, "a", "b", request_id="r")
        assert caught.value.position == 4
        assert await read(store, conversation) == before
        await append(store, conversation, "e")
    again = await append(store, conversation, "c", "d", request_id="other")
    assert [message.position for message in again] == [7, 8]
    assert {message.id for message in again}.isdisjoint(message.id for message in other)


async def test_a_request_whose_turn_is_gone(store: Any) -> None:
    """It is forgotten, and stored anew when it is sent again; once."""
    conversation, _ = await start(store)
    for take in (pop, replace):
        await append(store, conversation, "a", request_id="r")
        await take(store, conversation)
        [again] = await append(store, conversation, "a", request_id="r")
        assert await append(store, conversation, "a", request_id="r") == [again]
        await pop(store, conversation)
        await append(store, conversation, "other words", request_id="r")
        await pop(store, conversation)
    assert (await read(store, conversation))[1] == []


async def test_a_request_beyond_what_was_popped(store: Any) -> None:
    """One whose turn is whole is answered as before."""
    conversation, _ = await start(store)
    messages = await append(store, conversation, "a", "b", request_id="r")
    await append(store, conversation, "c", request_id="other")
    await pop(store, conversation)
    assert await append(store, conversation, "a", "b", request_id="r") == messages


@pytest.mark.parametrize("how", [start_conversation, get_or_start_conversation])
async def test_a_start_whose_turn_lost_its_end(store: Any, how: Any) -> None:
    """A conflict, whichever function asks; gone whole, the session is taken all the same."""
    values: dict[str, Any] = {
        "user_id": "u",
        "session_id": "s",
        "drafts": turn(1),
        "request_id": "r",
    }
    await how(store.unit_of_work(), **values)
    conversation, _ = await get_or_start_conversation(
        store.unit_of_work(), user_id="u", session_id="s"
    )
    await pop(store, conversation)
    await append(store, conversation, "c")
    for function in (start_conversation, get_or_start_conversation):
        with pytest.raises(RequestConflict):
            await function(store.unit_of_work(), **values)
    await replace(store, conversation)
    found, is_new = await get_or_start_conversation(store.unit_of_work(), **values)
    assert (found.id, found.message_count, is_new) == (conversation.id, 0, False)


# Meetings ---------------------------------------------------------------------------------------


async def test_many_pop_at_once(shared_store: ConversationStore) -> None:
    """Each gets a message that no other gets, from the end on."""
    conversation, _ = await start(shared_store, 12)
    first = await whole_history(shared_store, conversation.id)
    popped = await asyncio.gather(*(pop(shared_store, conversation) for _ in range(10)))
    assert sorted(message.position for message in popped if message) == list(range(3, 13))
    assert (await read(shared_store, conversation))[1] == first[:2]


async def test_pops_beside_appends(shared_store: ConversationStore) -> None:
    """What was appended is there or was popped, once; no gap, and as many versions as changes."""
    conversation, _ = await start(shared_store)
    first = await whole_history(shared_store, conversation.id)
    calls: list[Any] = []
    for number in range(8):
        request_id = f"r-{number}" if number % 2 else None
        values: Any = {"request_id": request_id}
        calls += [
            append(shared_store, conversation, f"a-{number}", f"b-{number}", **values),
            pop(shared_store, conversation),
        ]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    appended = [message for end in ends if isinstance(end, list) for message in end]
    popped = [end for end in ends if isinstance(end, Message)]
    refused = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(end, TransactionAborted) for end in refused)
    found, history = await read(shared_store, conversation)
    ids = sorted(message.id for message in (*history, *popped))
    assert ids == sorted(message.id for message in (*first, *appended))
    assert len(appended) == 16
    assert found.version == 1 + 8 + len(popped)


async def test_replacements_beside_appends(shared_store: ConversationStore) -> None:
    """Of many who replace the history, one is last; what is there is hers, and appends after it."""
    conversation, _ = await start(shared_store)
    calls: list[Any] = []
    for number in range(8):
        calls += [
            replace(shared_store, conversation, f"new-{number}", f"new-{number}"),
            append(shared_store, conversation, f"a-{number}"),
        ]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    refused = [end for end in ends if isinstance(end, BaseException)]
    assert all(isinstance(end, TransactionAborted) for end in refused)
    found, history = await read(shared_store, conversation)
    assert found.version == 1 + 16 - len(refused)
    first, second, *rest = [message.content for message in history]
    assert first == second
    assert first.startswith("new-")
    assert all(content.startswith("a-") for content in rest)


@pytest.mark.parametrize("name", CALLS)
async def test_it_waits_for_the_unit_that_appended(
    shared_store: ConversationStore, name: str
) -> None:
    """What was appended meanwhile is taken, too."""
    conversation, _ = await start(shared_store)
    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(conversation.id, turn(1))
        call = asyncio.create_task(CALLS[name](shared_store, conversation))
        assert await is_waiting(shared_store, call)
    await call
    found, _ = await read(shared_store, conversation)
    assert (found.version, found.message_count) == (3, {"pop": 4, "replace": 1, "clear": 0}[name])


@pytest.mark.parametrize("name", CALLS)
async def test_it_waits_in_an_open_block(shared_store: ConversationStore, name: str) -> None:
    """There what came meanwhile cannot be seen: the unit is given up, and may be done again."""
    conversation, messages = await start(shared_store)

    async def work(other: Any) -> None:
        await other.conversations.add(NewConversation(user_id="u", session_id=name))
        if name == "pop":
            await other.messages.pop(conversation.id)
        else:
            await other.messages.replace(conversation.id, turn(2) if name == "replace" else [])

    async with shared_store.unit_of_work() as uow:
        added = await uow.messages.append(conversation.id, turn(1))
        other = shared_store.unit_of_work()

        async def once() -> None:
            async with other:
                await work(other)

        call = asyncio.create_task(once())
        assert await is_waiting(shared_store, call)
    with pytest.raises(TransactionAborted) as caught:
        await call
    assert caught.value.retryable
    assert (await read(shared_store, conversation))[1] == [*messages, *added]
    await shared_store.run(work)
    assert (await read(shared_store, conversation))[0].version == 3
