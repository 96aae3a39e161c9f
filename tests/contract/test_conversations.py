"""What every store promises of conversations."""

from __future__ import annotations

from datetime import UTC
from typing import Any

import pytest
from store_fixtures import draft, turn

from conversation_store import (
    ConcurrentUpdate,
    ConversationNotFound,
    DuplicateSession,
    InvalidConversation,
    InvalidCursor,
    InvalidLimit,
    InvalidTransition,
    MessageNotFound,
    Status,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    erase_user,
    find_conversation,
    get_conversation,
    get_message,
    get_or_start_conversation,
    latest_messages,
    list_conversations,
    reopen_conversation,
    start_conversation,
    update_conversation,
)

MISSING = 4_000_000_000_000


async def start(store: Any, session: str = "s-1", user: str = "u-1", **values: Any) -> Any:
    """Start a conversation."""
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id=user, session_id=session, **values
    )
    return conversation


async def test_a_started_conversation_is_active_at_version_1(store: Any) -> None:
    """Starting gives an active, empty conversation at version 1."""
    conversation = await start(store)
    assert (conversation.status, conversation.version, conversation.message_count) == (
        Status.ACTIVE,
        1,
        0,
    )


async def test_all_values_given_at_the_start_are_kept(store: Any) -> None:
    """What is given at the start comes back from the store equal to what was returned."""
    conversation = await start(
        store, rescue_id="r", intent_type="i", source="web", metadata={"bb": [1, {}], "a": None}
    )
    stored = await get_conversation(store.unit_of_work(), conversation_id=conversation.id)
    assert stored == conversation
    assert (stored.rescue_id, stored.intent_type, stored.source) == ("r", "i", "web")
    assert stored.metadata == {"a": None, "bb": [1, {}]}


async def test_first_messages_are_stored_with_the_conversation(store: Any) -> None:
    """First messages get positions 1, 2 … and the time at which the conversation started."""
    conversation, messages = await start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", drafts=turn(1)
    )
    assert [message.position for message in messages] == [1, 2]
    assert {message.timestamp for message in messages} == {conversation.start_time}
    assert conversation.message_count == 2
    stored = await latest_messages(store.unit_of_work(), conversation_id=conversation.id)
    assert stored == messages


async def test_times_are_aware_and_in_utc(store: Any) -> None:
    """Times that the store gives are in UTC, whatever the server's time zone."""
    conversation = await start(store, drafts=turn(1))
    stored = await get_conversation(store.unit_of_work(), conversation_id=conversation.id)
    [message, _] = await latest_messages(store.unit_of_work(), conversation_id=conversation.id)
    for time in (conversation.start_time, stored.last_activity, message.timestamp):
        assert time.tzinfo is UTC


async def test_a_session_is_started_once(store: Any) -> None:
    """Starting a session that the user has already is DuplicateSession and stores nothing."""
    first = await start(store, drafts=turn(1))
    with pytest.raises(DuplicateSession) as caught:
        await start(store, drafts=turn(2))
    assert (caught.value.user_id, caught.value.session_id) == ("u-1", "s-1")
    stored = await get_conversation(store.unit_of_work(), conversation_id=first.id)
    assert stored == first


async def test_another_user_may_use_the_same_session_id(store: Any) -> None:
    """A session_id is unique per user only."""
    first = await start(store)
    second = await start(store, user="u-2")
    assert first.id != second.id


async def test_get_or_start_creates_once(store: Any) -> None:
    """The first call creates the conversation with its drafts, the second gives the same one."""
    first, created = await get_or_start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", drafts=turn(1), intent_type="i"
    )
    again, created_again = await get_or_start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", drafts=turn(2), intent_type="j"
    )
    assert (created, created_again) == (True, False)
    assert again == first
    stored = await latest_messages(store.unit_of_work(), conversation_id=first.id)
    assert [message.content for message in stored] == ["question 1", "answer 1"]


async def test_get_or_start_gives_a_closed_conversation_as_it_is(store: Any) -> None:
    """A conversation of any status is found, and not reopened."""
    conversation = await start(store)
    closed = await close_conversation(store.unit_of_work(), conversation_id=conversation.id)
    found, created = await get_or_start_conversation(
        store.unit_of_work(), user_id="u-1", session_id="s-1"
    )
    assert (found, created) == (closed, False)


async def test_get_refuses_what_is_not_there(store: Any) -> None:
    """An unknown id is ConversationNotFound."""
    with pytest.raises(ConversationNotFound) as caught:
        await get_conversation(store.unit_of_work(), conversation_id=MISSING)
    assert caught.value.conversation_id == MISSING


async def test_find_gives_none_for_an_unknown_session(store: Any) -> None:
    """Find returns the conversation of a session, or None."""
    conversation = await start(store)
    uow = store.unit_of_work()
    assert await find_conversation(uow, user_id="u-1", session_id="s-1") == conversation
    assert await find_conversation(uow, user_id="u-1", session_id="s-2") is None
    assert await find_conversation(uow, user_id="u-2", session_id="s-1") is None


# Status -----------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Any] = {
    "active": reopen_conversation,
    "closed": close_conversation,
    "archived": archive_conversation,
}
_ALLOWED = {
    ("active", "closed"),
    ("closed", "active"),
    ("active", "archived"),
    ("closed", "archived"),
    ("archived", "closed"),
}


async def reach(store: Any, status: str) -> Any:
    """Return a conversation of that status."""
    conversation = await start(store)
    if status != "active":
        conversation = await _FUNCTIONS[status](
            store.unit_of_work(), conversation_id=conversation.id
        )
    return conversation


@pytest.mark.parametrize("target", ["active", "closed", "archived"])
@pytest.mark.parametrize("status", ["active", "closed", "archived"])
async def test_statuses_follow_each_other_by_the_table(
    store: Any, status: str, target: str
) -> None:
    """A transition of the table moves the version; already there changes nothing; else refused."""
    before = await reach(store, status)
    change = _FUNCTIONS[target](store.unit_of_work(), conversation_id=before.id)
    if status == target:
        assert await change == before
    elif (status, target) in _ALLOWED:
        after = await change
        assert (after.status, after.version) == (target, before.version + 1)
        assert after.last_activity == before.last_activity
    else:
        with pytest.raises(InvalidTransition) as caught:
            await change
        assert (caught.value.conversation_id, caught.value.status, caught.value.target) == (
            before.id,
            status,
            target,
        )


@pytest.mark.parametrize("target", ["active", "closed", "archived"])
async def test_a_status_change_needs_the_conversation(store: Any, target: str) -> None:
    """Changing the status of an unknown conversation is ConversationNotFound."""
    with pytest.raises(ConversationNotFound):
        await _FUNCTIONS[target](store.unit_of_work(), conversation_id=MISSING)


async def test_a_status_change_checks_the_expected_version(store: Any) -> None:
    """With an expected_version that has passed, the change is ConcurrentUpdate."""
    conversation = await start(store)
    await append_messages(store.unit_of_work(), conversation_id=conversation.id, drafts=turn(1))
    with pytest.raises(ConcurrentUpdate) as caught:
        await close_conversation(
            store.unit_of_work(), conversation_id=conversation.id, expected_version=1
        )
    assert (caught.value.expected_version, caught.value.actual_version) == (1, 2)
    closed = await close_conversation(
        store.unit_of_work(), conversation_id=conversation.id, expected_version=2
    )
    assert closed.status is Status.CLOSED


async def test_a_status_reached_already_still_checks_the_version(store: Any) -> None:
    """Success without change is for the version that the caller expects."""
    closed = await reach(store, "closed")
    with pytest.raises(ConcurrentUpdate):
        await close_conversation(
            store.unit_of_work(), conversation_id=closed.id, expected_version=1
        )


async def test_a_forbidden_transition_is_told_before_a_stale_version(store: Any) -> None:
    """Of two reasons the rule of the domain comes first."""
    archived = await reach(store, "archived")
    with pytest.raises(InvalidTransition):
        await reopen_conversation(
            store.unit_of_work(), conversation_id=archived.id, expected_version=1
        )


# Update -----------------------------------------------------------------------------------------


async def test_update_sets_only_what_is_given(store: Any) -> None:
    """Columns that are not given stay; None clears; the version moves by one."""
    before = await start(store, rescue_id="r", intent_type="i", metadata={"a": 1})
    after = await update_conversation(
        store.unit_of_work(), conversation_id=before.id, rescue_id=None, metadata={"b": 2}
    )
    assert (after.rescue_id, after.intent_type, after.metadata) == (None, "i", {"b": 2})
    assert after.version == 2
    assert await get_conversation(store.unit_of_work(), conversation_id=before.id) == after


async def test_update_works_in_every_status(store: Any) -> None:
    """A closed or archived conversation can still be labelled."""
    archived = await reach(store, "archived")
    after = await update_conversation(
        store.unit_of_work(), conversation_id=archived.id, intent_type="late"
    )
    assert (after.intent_type, after.status) == ("late", Status.ARCHIVED)


async def test_update_checks_the_expected_version(store: Any) -> None:
    """A stale update stores nothing."""
    before = await start(store)
    with pytest.raises(ConcurrentUpdate) as caught:
        await update_conversation(
            store.unit_of_work(), conversation_id=before.id, rescue_id="r", expected_version=7
        )
    assert caught.value.actual_version == 1
    assert await get_conversation(store.unit_of_work(), conversation_id=before.id) == before


async def test_update_needs_the_conversation(store: Any) -> None:
    """Updating an unknown conversation is ConversationNotFound."""
    with pytest.raises(ConversationNotFound):
        await update_conversation(store.unit_of_work(), conversation_id=MISSING, rescue_id="r")


async def test_update_needs_something_to_change(store: Any) -> None:
    """An update that names no column is refused."""
    with pytest.raises(InvalidConversation, match="at least one of"):
        await update_conversation(store.unit_of_work(), conversation_id=1)


# Delete -----------------------------------------------------------------------------------------


async def test_delete_removes_the_conversation_and_its_messages(store: Any) -> None:
    """After a delete neither the conversation nor any message of it is there."""
    conversation, [message, _] = await start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", drafts=turn(1)
    )
    await delete_conversation(store.unit_of_work(), conversation_id=conversation.id)
    with pytest.raises(ConversationNotFound):
        await get_conversation(store.unit_of_work(), conversation_id=conversation.id)
    with pytest.raises(MessageNotFound):
        await get_message(store.unit_of_work(), message_id=message.id)
    with pytest.raises(ConversationNotFound):
        await append_messages(store.unit_of_work(), conversation_id=conversation.id, drafts=turn(2))


async def test_delete_is_idempotent(store: Any) -> None:
    """Deleting what is gone, or never was, is success."""
    conversation = await start(store)
    for _ in range(2):
        await delete_conversation(store.unit_of_work(), conversation_id=conversation.id)
    await delete_conversation(store.unit_of_work(), conversation_id=MISSING)


async def test_a_deleted_session_can_be_started_again(store: Any) -> None:
    """The session_id is free after a delete, and the new conversation begins at position 1."""
    first = await start(store, drafts=turn(1))
    await delete_conversation(store.unit_of_work(), conversation_id=first.id)
    again, messages = await start_conversation(
        store.unit_of_work(), user_id="u-1", session_id="s-1", drafts=[draft("new")]
    )
    assert again.id != first.id
    assert [message.position for message in messages] == [1]


async def test_erase_removes_all_of_one_user(store: Any) -> None:
    """Erasing removes a user's conversations and messages, counts them, and nobody else's."""
    for session in ("a", "b"):
        await start(store, session, drafts=turn(1))
    other = await start(store, user="u-2", drafts=turn(1))
    receipt = await erase_user(store.unit_of_work(), user_id="u-1")
    assert (receipt.conversations, receipt.messages) == (2, 4)
    page = await list_conversations(store.unit_of_work(), user_id="u-1")
    assert page.conversations == []
    assert await get_conversation(store.unit_of_work(), conversation_id=other.id) == other
    again = await erase_user(store.unit_of_work(), user_id="u-1")
    assert (again.conversations, again.messages) == (0, 0)


# Lists ------------------------------------------------------------------------------------------


async def test_a_list_shows_the_most_recent_activity_first(store: Any) -> None:
    """An append moves its conversation to the top."""
    first, second = await start(store, "a"), await start(store, "b")
    await append_messages(store.unit_of_work(), conversation_id=first.id, drafts=turn(1))
    page = await list_conversations(store.unit_of_work(), user_id="u-1")
    assert [conversation.id for conversation in page.conversations] == [first.id, second.id]
    assert page.next_cursor is None


async def test_a_list_is_read_page_by_page(store: Any) -> None:
    """Following the cursor shows every conversation once, the last page without a cursor."""
    ids = [(await start(store, f"s-{n}")).id for n in range(7)]
    seen: list[int] = []
    after = None
    pages = 0
    while pages == 0 or after is not None:
        page = await list_conversations(store.unit_of_work(), user_id="u-1", limit=3, after=after)
        seen += [conversation.id for conversation in page.conversations]
        after = page.next_cursor
        pages += 1
    assert pages == 3
    assert seen == ids[::-1]


async def test_a_full_last_page_has_no_cursor(store: Any) -> None:
    """A cursor is given only where there is more to read."""
    for n in range(2):
        await start(store, f"s-{n}")
    page = await list_conversations(store.unit_of_work(), user_id="u-1", limit=2)
    assert page.next_cursor is None


async def test_a_list_can_be_of_one_status(store: Any) -> None:
    """With a status the list shows only those, and pages through only those."""
    ids = [(await start(store, f"s-{n}")).id for n in range(6)]
    for conversation_id in ids[::2]:
        await close_conversation(store.unit_of_work(), conversation_id=conversation_id)
    first = await list_conversations(store.unit_of_work(), user_id="u-1", status="closed", limit=2)
    rest = await list_conversations(
        store.unit_of_work(), user_id="u-1", status="closed", limit=2, after=first.next_cursor
    )
    listed = [conversation.id for conversation in first.conversations + rest.conversations]
    assert listed == ids[::2][::-1]


async def test_a_list_is_of_one_user(store: Any) -> None:
    """Others' conversations are not listed."""
    await start(store)
    page = await list_conversations(store.unit_of_work(), user_id="u-2")
    assert page.conversations == []


@pytest.mark.parametrize("kind", ["damaged", "of another user", "of another status", "no text"])
async def test_a_cursor_belongs_to_its_list(store: Any, kind: str) -> None:
    """A damaged or foreign cursor is InvalidCursor."""
    for n in range(2):
        await start(store, f"s-{n}")
    page = await list_conversations(store.unit_of_work(), user_id="u-1", limit=1)
    assert page.next_cursor is not None
    arguments: dict[str, Any] = {"user_id": "u-1", "after": page.next_cursor}
    if kind == "damaged":
        arguments["after"] = "x" + page.next_cursor[1:-1] + "="
    elif kind == "of another user":
        arguments["user_id"] = "u-2"
    elif kind == "of another status":
        arguments["status"] = "active"
    else:
        arguments["after"] = 7
    with pytest.raises(InvalidCursor) as caught:
        await list_conversations(store.unit_of_work(), **arguments)
    assert caught.value.field == "after"


@pytest.mark.parametrize("limit", [0, 1001, -1, True, "5", 2.0, 10**30])
async def test_a_limit_is_1_to_1000(store: Any, limit: Any) -> None:
    """Any other limit is InvalidLimit."""
    with pytest.raises(InvalidLimit) as caught:
        await list_conversations(store.unit_of_work(), user_id="u", limit=limit)
    assert caught.value.field == "limit"


async def test_the_largest_limit_is_accepted(store: Any) -> None:
    """1000 is within the limits."""
    await start(store)
    page = await list_conversations(store.unit_of_work(), user_id="u-1", limit=1000)
    assert len(page.conversations) == 1
