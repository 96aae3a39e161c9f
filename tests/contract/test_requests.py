"""What request_id promises: the same request again stores nothing, whatever else happens."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from store_fixtures import draft, turn

from conversation_store import (
    Conversation,
    ConversationNotFound,
    DuplicateSession,
    InvalidMessage,
    Message,
    NewConversation,
    Outcome,
    RequestConflict,
    UnitOfWorkMisuse,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    erase_user,
    export_conversations,
    find_conversation,
    get_conversation,
    get_or_start_conversation,
    import_conversations,
    latest_messages,
    start_conversation,
    update_conversation,
)

Started = tuple[Conversation, list[Message]]

VALUES: dict[str, Any] = {
    "rescue_id": "case",
    "intent_type": "booking",
    "source": "web",
    "metadata": {"b": {"y": 1, "x": [2.5, None]}, "a": "ü"},
}


async def start(store: Any, **values: Any) -> Started:
    """Start the conversation of session s with request r, unless told otherwise."""
    given = {"user_id": "u", "session_id": "s", "drafts": turn(1), "request_id": "r"} | values
    return await start_conversation(store.unit_of_work(), **given)


async def get_or_start(store: Any, **values: Any) -> tuple[Conversation, bool]:
    """Get or start it likewise."""
    given = {"user_id": "u", "session_id": "s", "drafts": turn(1), "request_id": "r"} | values
    return await get_or_start_conversation(store.unit_of_work(), **given)


async def append(store: Any, conversation_id: int, **values: Any) -> list[Message]:
    """Append the same turn with the same request, unless told otherwise."""
    given = {"drafts": turn(1), "request_id": "r"} | values
    return await append_messages(store.unit_of_work(), conversation_id=conversation_id, **given)


async def stored(store: Any, session_id: str = "s") -> Started:
    """Return what is stored of a session."""
    uow = store.unit_of_work()
    found = await find_conversation(uow, user_id="u", session_id=session_id)
    assert found is not None
    return found, await latest_messages(uow, conversation_id=found.id, limit=1000)


# Starts -----------------------------------------------------------------------------------------


async def test_a_start_is_stored_once(store: Any) -> None:
    """The same start again gives the same conversation and messages, and writes nothing."""
    first = await start(store, **VALUES)
    uow = store.unit_of_work()
    again = await start_conversation(
        uow, user_id="u", session_id="s", drafts=turn(1), request_id="r", **VALUES
    )
    assert again == first == await stored(store)
    assert first[0].version == 1
    assert uow.outcome is Outcome.COMMITTED
    assert [message.position for message in again[1]] == [1, 2]


async def test_a_start_gives_the_conversation_as_it_is_now(store: Any) -> None:
    """What happened since is in the conversation, not in the messages."""
    conversation, messages = await start(store, metadata={"n": 1})
    await append(store, conversation.id, drafts=turn(2), request_id="later")
    uow = store.unit_of_work()
    await update_conversation(uow, conversation_id=conversation.id, metadata={"n": 2})
    now = await archive_conversation(uow, conversation_id=conversation.id)
    assert (now.version, now.message_count, now.metadata) == (4, 4, {"n": 2})
    assert await start(store, metadata={"n": 1}) == (now, messages)
    assert await get_conversation(uow, conversation_id=conversation.id) == now


@pytest.mark.parametrize("size", [1, 2, 12, 1000])
async def test_messages_of_a_start_come_back_in_order(store: Any, size: int) -> None:
    """However many they are, and whatever was said after them."""
    drafts = [draft(f"{number}", slots={"n": number}) for number in range(size)]
    conversation, messages = await start(store, drafts=drafts)
    await append(store, conversation.id, drafts=turn(2), request_id=None)
    assert (await start(store, drafts=drafts))[1] == messages
    assert [message.content for message in messages] == [f"{number}" for number in range(size)]
    assert {message.timestamp for message in messages} == {conversation.start_time}


@pytest.mark.parametrize(
    "other",
    [
        {"drafts": turn(2)},
        {"drafts": turn(1)[:1]},
        {"drafts": [*turn(1), draft("more")]},
        {"drafts": turn(1)[::-1]},
        {"rescue_id": "another"},
        {"rescue_id": None},
        {"intent_type": "another"},
        {"source": None},
        {"metadata": {}},
        {"metadata": None},
        {"metadata": {**VALUES["metadata"], "c": 1}},
        # What stands in one field does not pass for what stands in another.
        {"rescue_id": "booking", "intent_type": "case"},
        {"rescue_id": None, "intent_type": "case", "source": "booking"},
    ],
    ids=str,
)
async def test_a_start_with_other_content_is_a_conflict(store: Any, other: Any) -> None:
    """The same request_id with anything else is RequestConflict, for both kinds of starts."""
    conversation, _ = before = await start(store, **VALUES)
    for call in (start, get_or_start):
        with pytest.raises(RequestConflict) as caught:
            await call(store, **VALUES | other)
        error = caught.value
        assert (error.conversation_id, error.request_id, error.position) == (
            conversation.id,
            "r",
            1,
        )
    assert await stored(store) == before


async def test_another_start_of_the_session_is_a_duplicate(store: Any) -> None:
    """A session that exists without the request is DuplicateSession, as without request_id."""
    before = await start(store)
    for request_id in (None, "R", "r ", "other"):
        with pytest.raises(DuplicateSession) as caught:
            await start(store, request_id=request_id)
        assert (caught.value.user_id, caught.value.session_id) == ("u", "s")
    assert await stored(store) == before


async def test_a_session_that_was_started_without_a_request_has_none(store: Any) -> None:
    """A start without request_id cannot be told from another, so it is no replay."""
    await start(store, request_id=None)
    with pytest.raises(DuplicateSession):
        await start(store)
    assert (await get_or_start(store))[1] is False


async def test_a_request_belongs_to_one_session(store: Any) -> None:
    """Other sessions and other users may use the same request_id."""
    ids = set()
    for user_id in ("u", "v"):
        for session_id in ("s", "t"):
            conversation, messages = await start(store, user_id=user_id, session_id=session_id)
            again = await start(store, user_id=user_id, session_id=session_id)
            assert again == (conversation, messages)
            ids |= {conversation.id, *(message.id for message in messages)}
    assert len(ids) == 4 * 3


@pytest.mark.parametrize("call", [start, get_or_start])
async def test_a_request_of_a_start_needs_drafts(store: Any, call: Callable[..., Any]) -> None:
    """It is kept on the first message; the error says what to do without one."""
    with pytest.raises(InvalidMessage, match="get_or_start_conversation") as caught:
        await call(store, drafts=[])
    assert caught.value.field == "request_id"
    assert await find_conversation(store.unit_of_work(), user_id="u", session_id="s") is None


@pytest.mark.parametrize("call", [start, get_or_start])
@pytest.mark.parametrize("request_id", ["", "x" * 256, "a\0b", "\ud800", 7, b"r"], ids=repr)
async def test_a_request_of_a_start_is_a_name(
    store: Any, call: Callable[..., Any], request_id: Any
) -> None:
    """It is a text of 1..255 characters that can be stored."""
    with pytest.raises(InvalidMessage) as caught:
        await call(store, request_id=request_id)
    assert caught.value.field == "request_id"


async def test_a_start_that_was_rolled_back_can_be_sent_again(store: Any) -> None:
    """A request that was not stored is not remembered."""
    async with store.unit_of_work() as uow:
        await start_conversation(uow, user_id="u", session_id="s", drafts=turn(1), request_id="r")
        await uow.rollback()
    conversation, messages = await start(store, drafts=turn(2))
    assert await stored(store) == (conversation, messages)


@pytest.mark.parametrize("by_user", [True, False])
async def test_a_start_after_a_removal_is_new(store: Any, by_user: bool) -> None:
    """With the conversation its requests go: the same request stores a new one."""
    before, _ = await start(store)
    uow = store.unit_of_work()
    if by_user:
        await erase_user(uow, user_id="u")
    else:
        await delete_conversation(uow, conversation_id=before.id)
    after, messages = await start(store, drafts=turn(2), source="anew")
    assert after.id != before.id
    assert await start(store, drafts=turn(2), source="anew") == (after, messages)
    with pytest.raises(ConversationNotFound):
        await append(store, before.id)


async def test_a_start_is_repeated_in_its_own_unit(store: Any) -> None:
    """A unit sees what it has registered itself: sent together, and one after the other."""
    async with store.unit_of_work() as uow:
        first = await start_conversation(
            uow, user_id="u", session_id="s", drafts=turn(1), request_id="r"
        )
        assert first == await start_conversation(
            uow, user_id="u", session_id="s", drafts=turn(1), request_id="r"
        )
        with pytest.raises(RequestConflict):
            await start_conversation(
                uow, user_id="u", session_id="s", drafts=turn(2), request_id="r"
            )
        found, created = await get_or_start_conversation(
            uow, user_id="u", session_id="s", drafts=turn(1), request_id="r"
        )
        assert (found, created) == (first[0], True)
    assert await stored(store) == first


async def test_one_request_registered_several_times_is_stored_once(store: Any) -> None:
    """What is sent together sees what was registered before it."""
    new = NewConversation(user_id="u", session_id="s")
    async with store.unit_of_work() as uow:
        first = uow.conversations.add(new, turn(1), request_id="r")
        again = uow.conversations.add(new, turn(1), request_id="r")
        found = uow.conversations.get_or_add(new, turn(1), request_id="r")
        other = uow.conversations.get_or_add(new, turn(2), request_id="other")
    assert await first == await again == await stored(store)
    conversation, _ = await first
    assert await found == (conversation, True)
    assert await other == (conversation, False)


# get_or_start -----------------------------------------------------------------------------------


async def test_who_created_is_told_so_again(store: Any) -> None:
    """The request that created the conversation created it; another did not."""
    conversation, created = await get_or_start(store, **VALUES)
    assert created
    before = await stored(store)
    assert await get_or_start(store, **VALUES) == (conversation, True)
    assert await get_or_start(store, request_id="other") == (conversation, False)
    assert await get_or_start(store, request_id=None) == (conversation, False)
    assert await stored(store) == before


async def test_the_two_kinds_of_starts_are_one_request(store: Any) -> None:
    """What one of them stored, the other finds."""
    first = await start(store)
    assert await get_or_start(store) == (first[0], True)
    second, _ = await get_or_start(store, session_id="t")
    assert (await start(store, session_id="t"))[0] == second


async def test_a_handler_may_be_repeated_whole(store: Any) -> None:
    """Get or start, and append unless that created: each turn is stored once however often."""

    async def handle(number: int) -> int:
        values: dict[str, Any] = {"drafts": turn(number), "request_id": f"r-{number}"}
        chat, created = await get_or_start(store, **values)
        if not created:
            await append(store, chat.id, **values)
        return (await stored(store))[0].message_count

    for number in (1, 2, 3):
        for _ in range(2):
            assert await handle(number) == 2 * number
    for number in (1, 2, 3):
        assert await handle(number) == 6


# Starts and appends -----------------------------------------------------------------------------


async def test_an_append_repeats_the_turn_of_a_start(store: Any) -> None:
    """A request is one turn: stored by a start, an append of it gives what is stored."""
    conversation, messages = await start(store, **VALUES)
    await append(store, conversation.id, drafts=turn(2), request_id="later")
    await close_conversation(store.unit_of_work(), conversation_id=conversation.id)
    assert await append(store, conversation.id) == messages
    assert await append(store, conversation.id, expected_version=99) == messages
    assert (await stored(store))[0].message_count == 4


@pytest.mark.parametrize("other", [turn(2), turn(1)[:1], [*turn(1), draft("more")]])
async def test_an_append_of_other_content_meets_the_request_of_a_start(
    store: Any, other: Any
) -> None:
    """Starts and appends share the request_ids of a conversation."""
    conversation, _ = before = await start(store)
    with pytest.raises(RequestConflict) as caught:
        await append(store, conversation.id, drafts=other)
    assert (caught.value.request_id, caught.value.position) == ("r", 1)
    assert await stored(store) == before


async def test_a_start_meets_the_request_of_an_append(store: Any) -> None:
    """An append is no start: its request in a start is a conflict, whatever it said."""
    conversation, _ = await start(store, request_id="first")
    await append(store, conversation.id, drafts=turn(2))
    before = await stored(store)
    for drafts in (turn(2), turn(3)):
        with pytest.raises(RequestConflict) as caught:
            await start(store, drafts=drafts)
        assert (caught.value.request_id, caught.value.position) == ("r", 3)
    assert await get_or_start(store, drafts=turn(2)) == (before[0], False)
    with pytest.raises(RequestConflict):
        await get_or_start(store, drafts=turn(3))
    assert await stored(store) == before


# Scope, transfer --------------------------------------------------------------------------------


async def test_the_request_of_another_user_does_not_exist(store: Any) -> None:
    """A unit that acts for a user finds that user's requests only."""
    mine = await start(store)
    theirs = store.unit_of_work(user_id="them")
    with pytest.raises(ConversationNotFound):
        await append_messages(theirs, conversation_id=mine[0].id, drafts=turn(1), request_id="r")
    with pytest.raises(UnitOfWorkMisuse):
        await start_conversation(
            theirs, user_id="u", session_id="s", drafts=turn(1), request_id="r"
        )
    started, _ = await start_conversation(theirs, session_id="s", drafts=turn(2), request_id="r")
    assert started.id != mine[0].id
    own = store.unit_of_work(user_id="u")
    again = await start_conversation(own, session_id="s", drafts=turn(1), request_id="r")
    assert again == mine == await stored(store)


async def test_records_hold_no_requests(store: Any) -> None:
    """A request is between a host and this store: a conversation travels without it."""
    await start(store, **VALUES)
    uow = store.unit_of_work()
    records = [record async for record in export_conversations(uow)]
    assert "request" not in str(records)
    await erase_user(uow, user_id="u")
    await import_conversations(uow, records=records)
    assert [record async for record in export_conversations(uow)] == records
    with pytest.raises(DuplicateSession):
        await start(store, **VALUES)
    conversation, created = await get_or_start(store, **VALUES)
    assert not created
    appended = await append(store, conversation.id)
    assert [message.position for message in appended] == [3, 4]


# Content ----------------------------------------------------------------------------------------

Send = Callable[[Any, str, dict[str, Any]], Awaitable[Any]]


async def _start_with_metadata(store: Any, session_id: str, value: dict[str, Any]) -> Any:
    return await start(store, session_id=session_id, metadata=value)


async def _start_with_slots(store: Any, session_id: str, value: dict[str, Any]) -> Any:
    return await start(store, session_id=session_id, drafts=[draft("x", slots=value)])


async def _append_with_metadata(store: Any, session_id: str, value: dict[str, Any]) -> Any:
    chat, _ = await get_or_start(store, session_id=session_id, drafts=[], request_id=None)
    return await append(store, chat.id, drafts=[draft("x", metadata=value)])


sends = pytest.mark.parametrize(
    "send", [_start_with_metadata, _start_with_slots, _append_with_metadata]
)

ALIKE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"a": 1, "bb": 2}, {"bb": 2, "a": 1}),
    ({"n": -0.0}, {"n": 0.0}),
    ({"n": 1e16}, {"n": 10**16}),
    ({"n": (1, 2)}, {"n": [1, 2]}),
    ({"b": 1, "a": [{"d": {}, "c": 2}]}, {"a": [{"c": 2, "d": {}}], "b": 1}),
]
UNLIKE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"n": 1}, {"n": 1.0}),  # they are read back so
    ({"n": 1}, {"n": True}),
    ({"n": 0}, {"n": -0.0}),
    ({"n": 0}, {"n": None}),
    ({"n": None}, {}),
    ({"n": "1"}, {"n": 1}),
    ({"n": [1, 2]}, {"n": [2, 1]}),
    ({"n": 0.1}, {"n": 0.1 + 2**-55}),
    ({"n": "\u00e9"}, {"n": "e\u0301"}),
]


@sends
async def test_what_is_stored_alike_is_the_same_content(store: Any, send: Send) -> None:
    """Content is compared in canonical form."""
    for number, (first, again) in enumerate(ALIKE):
        assert await send(store, f"{number}", first) == await send(store, f"{number}", again)


@sends
async def test_what_is_stored_otherwise_is_other_content(store: Any, send: Send) -> None:
    """Where values are read back as something else, they are something else."""
    for number, (first, other) in enumerate(UNLIKE):
        await send(store, f"{number}", first)
        with pytest.raises(RequestConflict):
            await send(store, f"{number}", other)
        await send(store, f"{number}", first)
