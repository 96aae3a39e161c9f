"""What every store promises of messages."""

from __future__ import annotations

from typing import Any

import pytest
from store_fixtures import draft, turn

from conversation_store import (
    ConcurrentUpdate,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    InvalidLimit,
    MessageNotFound,
    RequestConflict,
    Role,
    append_messages,
    archive_conversation,
    close_conversation,
    get_conversation,
    get_message,
    latest_messages,
    messages_after,
    reopen_conversation,
    start_conversation,
)

MISSING = 4_000_000_000_000


async def start(store: Any, **values: Any) -> int:
    """Start a conversation."""
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", **values
    )
    return conversation.id


async def append(store: Any, conversation_id: int, drafts: Any, **values: Any) -> Any:
    """Append a turn."""
    return await append_messages(
        store.unit_of_work(), conversation_id=conversation_id, drafts=drafts, **values
    )


async def contents(store: Any, conversation_id: int) -> list[str]:
    """Return what was said."""
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation_id)
    return [message.content for message in messages]


async def test_a_turn_gets_the_next_positions(store: Any) -> None:
    """Positions go on from the last one, without gaps."""
    conversation = await start(store, drafts=turn(1))
    second = await append(store, conversation, turn(2))
    third = await append(store, conversation, [draft("x"), draft("y"), draft("z")])
    assert [message.position for message in second + third] == [3, 4, 5, 6, 7]


async def test_a_turn_has_one_time_that_never_goes_back(store: Any) -> None:
    """All messages of a turn share the store's time, and later turns are not earlier."""
    conversation = await start(store)
    times = []
    for number in range(5):
        messages = await append(store, conversation, turn(number))
        assert len({message.timestamp for message in messages}) == 1
        times.append(messages[0].timestamp)
    assert times == sorted(times)
    after = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    assert after.last_activity == times[-1]


async def test_an_append_moves_count_version_and_activity(store: Any) -> None:
    """One append is one version; message_count is the newest position."""
    conversation = await start(store)
    before = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    await append(store, conversation, turn(1))
    after = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    assert (after.message_count, after.version) == (2, before.version + 1)
    assert after.last_activity >= before.last_activity
    assert after.start_time == before.start_time


async def test_what_is_read_equals_what_was_returned(store: Any) -> None:
    """Every value of a message comes back equal."""
    conversation = await start(store)
    drafts = [
        draft("", "assistant", metadata={"tool_call": {"id": "c1"}}),
        draft('{"a": 1}', "tool", intent_type="Find", slots={"city": ["Köln"], "n": 1.5}),
        draft("be brief", "system"),
        draft("line\nbreak\ttab \u2028 \U0001f600 \u202e"),
    ]
    returned = await append(store, conversation, drafts)
    assert [message.role for message in returned] == [
        Role.ASSISTANT,
        Role.TOOL,
        Role.SYSTEM,
        Role.USER,
    ]
    stored = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert stored == returned
    for message in stored:
        assert await get_message(store.unit_of_work(), message_id=message.id) == message


async def test_ids_are_unique(store: Any) -> None:
    """No message and no conversation shares an id with another."""
    ids = []
    for number in range(5):
        conversation, messages = await start_conversation(
            store.unit_of_work(), user_id="u", session_id=f"s-{number}", drafts=turn(number)
        )
        ids += [conversation.id, *(message.id for message in messages)]
    assert len(set(ids)) == len(ids) == 15


async def test_a_long_turn_is_stored_whole(store: Any) -> None:
    """A call takes up to 1000 messages."""
    conversation = await start(store)
    messages = await append(store, conversation, [draft(str(n)) for n in range(1000)])
    assert [message.position for message in messages] == list(range(1, 1001))
    read = await messages_after(
        store.unit_of_work(), conversation_id=conversation, position=0, limit=1000
    )
    assert read == messages


async def test_what_was_returned_can_be_changed_without_harm(store: Any) -> None:
    """Changing slots that went in or came out does not change what is stored."""
    conversation = await start(store)
    said = draft("x", slots={"a": [1]})
    [returned] = await append(store, conversation, [said])
    assert said.slots is not None
    said.slots["a"].append(2)
    returned.slots["a"].append(3)
    [stored] = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert stored.slots == {"a": [1]}
    stored.slots["a"].append(4)
    [again] = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert again.slots == {"a": [1]}


async def test_a_draft_changed_after_it_was_registered_is_stored_as_it_was(store: Any) -> None:
    """A write is what it was when it was registered, not when it is sent."""
    conversation = await start(store)
    said = draft("x", slots={"a": [1]})
    async with store.unit_of_work() as uow:
        uow.messages.append(conversation, [said])
        assert said.slots is not None
        said.slots["a"].append(object())
    [stored] = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert stored.slots == {"a": [1]}


# Refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_id", [None, "r"])
async def test_an_append_needs_the_conversation(store: Any, request_id: str | None) -> None:
    """Appending to an unknown conversation is ConversationNotFound."""
    with pytest.raises(ConversationNotFound) as caught:
        await append(store, MISSING, turn(1), request_id=request_id)
    assert caught.value.conversation_id == MISSING


@pytest.mark.parametrize("request_id", [None, "r"])
@pytest.mark.parametrize("status", ["closed", "archived"])
async def test_only_an_active_conversation_takes_messages(
    store: Any, status: str, request_id: str | None
) -> None:
    """A closed or archived conversation refuses, unchanged; a reopened one accepts."""
    conversation = await start(store, drafts=turn(1))
    change = close_conversation if status == "closed" else archive_conversation
    before = await change(store.unit_of_work(), conversation_id=conversation)
    with pytest.raises(ConversationNotAcceptingMessages) as caught:
        await append(store, conversation, turn(2), request_id=request_id)
    assert (caught.value.conversation_id, caught.value.status) == (conversation, status)
    uow = store.unit_of_work()
    assert await get_conversation(uow, conversation_id=conversation) == before
    await close_conversation(uow, conversation_id=conversation)
    await reopen_conversation(uow, conversation_id=conversation)
    assert len(await append(store, conversation, turn(2), request_id=request_id)) == 2


@pytest.mark.parametrize("request_id", [None, "r"])
async def test_an_append_checks_the_expected_version(store: Any, request_id: str | None) -> None:
    """An append for a version that has passed is ConcurrentUpdate and stores nothing."""
    conversation = await start(store)
    await append(store, conversation, turn(1), expected_version=1)
    with pytest.raises(ConcurrentUpdate) as caught:
        await append(store, conversation, turn(2), expected_version=1, request_id=request_id)
    assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
    assert await contents(store, conversation) == ["question 1", "answer 1"]


@pytest.mark.parametrize("request_id", [None, "r"])
async def test_a_status_that_refuses_is_told_before_a_stale_version(
    store: Any, request_id: str | None
) -> None:
    """Of two reasons the status comes first."""
    conversation = await start(store)
    await close_conversation(store.unit_of_work(), conversation_id=conversation)
    with pytest.raises(ConversationNotAcceptingMessages):
        await append(store, conversation, turn(1), expected_version=99, request_id=request_id)


# Requests ---------------------------------------------------------------------------------------


async def test_a_request_is_stored_once(store: Any) -> None:
    """The same request with the same drafts gives the messages stored first and writes nothing."""
    conversation = await start(store)
    await append(store, conversation, turn(0))
    drafts = [draft("q", slots={"b": 1, "aa": 2}), draft("a", "assistant", metadata={"m": 1.0})]
    first = await append(store, conversation, drafts, request_id="r")
    await append(store, conversation, turn(9))
    before = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    again = await append(store, conversation, drafts, request_id="r")
    assert again == first
    after = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    assert after == before


async def test_a_request_with_other_drafts_is_a_conflict(store: Any) -> None:
    """The same request_id for other content is RequestConflict."""
    conversation = await start(store)
    await append(store, conversation, [draft("a")], request_id="r")
    for other in ([draft("b")], [draft("a"), draft("a")], [draft("a", slots={})]):
        with pytest.raises(RequestConflict) as caught:
            await append(store, conversation, other, request_id="r")
        error = caught.value
        assert (error.conversation_id, error.request_id, error.position) == (conversation, "r", 1)
    assert await contents(store, conversation) == ["a"]


async def test_another_request_is_another_turn(store: Any) -> None:
    """The same drafts under another request_id are stored again."""
    conversation = await start(store)
    for request_id in ("r", "R", "r "):
        await append(store, conversation, [draft("a")], request_id=request_id)
    assert await contents(store, conversation) == ["a", "a", "a"]


async def test_a_request_belongs_to_its_conversation(store: Any) -> None:
    """Two conversations may use the same request_id."""
    first = await start(store)
    second, _ = await start_conversation(store.unit_of_work(), user_id="u", session_id="s-2")
    await append(store, first, [draft("a")], request_id="r")
    await append(store, second.id, [draft("b")], request_id="r")
    assert await contents(store, second.id) == ["b"]


async def test_a_request_is_replayed_by_a_closed_conversation(store: Any) -> None:
    """Replay comes before the status and the version: the first try was accepted."""
    conversation = await start(store)
    first = await append(store, conversation, turn(1), request_id="r", expected_version=1)
    await close_conversation(store.unit_of_work(), conversation_id=conversation)
    again = await append(store, conversation, turn(1), request_id="r", expected_version=1)
    assert again == first


async def test_a_request_conflict_is_told_before_a_closed_status(store: Any) -> None:
    """RequestConflict comes before ConversationNotAcceptingMessages."""
    conversation = await start(store)
    await append(store, conversation, turn(1), request_id="r")
    await close_conversation(store.unit_of_work(), conversation_id=conversation)
    with pytest.raises(RequestConflict):
        await append(store, conversation, turn(2), request_id="r")


async def test_a_request_that_was_rolled_back_can_be_sent_again(store: Any) -> None:
    """A request that was not stored is not remembered."""
    conversation = await start(store)
    async with store.unit_of_work() as uow:
        pending = uow.messages.append(conversation, turn(1), request_id="r")
        await pending
        await uow.rollback()
    messages = await append(store, conversation, turn(2), request_id="r")
    assert [message.position for message in messages] == [1, 2]


# Reading ----------------------------------------------------------------------------------------


async def filled(store: Any, count: int = 10) -> int:
    """Start a conversation of numbered messages."""
    return await start(store, drafts=[draft(str(n)) for n in range(1, count + 1)])


def positions(messages: Any) -> list[int]:
    """Return the positions of messages."""
    return [message.position for message in messages]


async def test_latest_gives_the_newest_oldest_first(store: Any) -> None:
    """The page is the end of the conversation, in reading order."""
    conversation = await filled(store)
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation, limit=3)
    assert positions(messages) == [8, 9, 10]


async def test_latest_goes_back_page_by_page(store: Any) -> None:
    """`before` gives the page before a position, to the beginning."""
    conversation = await filled(store)
    seen: list[int] = []
    before = None
    while before is None or before > 1:
        page = await latest_messages(
            store.unit_of_work(), conversation_id=conversation, limit=4, before=before
        )
        seen = positions(page) + seen
        before = page[0].position
        await append(store, conversation, [draft("meanwhile")])
    assert seen == list(range(1, 11))


@pytest.mark.parametrize("before", [1, 0, -5])
async def test_nothing_is_before_the_first_message(store: Any, before: int) -> None:
    """Before position 1 there is an empty page."""
    conversation = await filled(store, 2)
    page = await latest_messages(store.unit_of_work(), conversation_id=conversation, before=before)
    assert page == []


async def test_messages_after_a_position(store: Any) -> None:
    """The page starts behind the position, oldest first."""
    conversation = await filled(store)
    uow = store.unit_of_work()
    page = await messages_after(uow, conversation_id=conversation, position=4, limit=3)
    assert positions(page) == [5, 6, 7]
    page = await messages_after(uow, conversation_id=conversation, position=9, limit=3)
    assert positions(page) == [10]
    for position in (10, 2**63 - 1):
        page = await messages_after(uow, conversation_id=conversation, position=position)
        assert page == []
    page = await messages_after(uow, conversation_id=conversation, position=-3, limit=1000)
    assert positions(page) == list(range(1, 11))


async def test_an_empty_conversation_has_an_empty_page(store: Any) -> None:
    """A conversation without messages is not an unknown one."""
    conversation = await start(store)
    uow = store.unit_of_work()
    assert await latest_messages(uow, conversation_id=conversation) == []
    assert await messages_after(uow, conversation_id=conversation, position=0) == []


async def test_reading_needs_the_conversation(store: Any) -> None:
    """Reading messages of an unknown conversation is ConversationNotFound."""
    uow = store.unit_of_work()
    with pytest.raises(ConversationNotFound):
        await latest_messages(uow, conversation_id=MISSING)
    with pytest.raises(ConversationNotFound):
        await messages_after(uow, conversation_id=MISSING, position=0)


async def test_an_unknown_message_is_not_found(store: Any) -> None:
    """MessageNotFound names the id."""
    with pytest.raises(MessageNotFound) as caught:
        await get_message(store.unit_of_work(), message_id=MISSING)
    assert caught.value.message_id == MISSING


@pytest.mark.parametrize("limit", [0, 1001, None, True])
async def test_a_page_has_1_to_1000_messages(store: Any, limit: Any) -> None:
    """Any other limit is InvalidLimit."""
    uow = store.unit_of_work()
    with pytest.raises(InvalidLimit):
        await latest_messages(uow, conversation_id=1, limit=limit)
    with pytest.raises(InvalidLimit):
        await messages_after(uow, conversation_id=1, position=0, limit=limit)
