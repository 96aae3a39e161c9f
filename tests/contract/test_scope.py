"""Rule 10: a unit that acts for one user; what belongs to others does not exist for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from contract.conftest import KINDS
from store_fixtures import draft, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConversationNotFound,
    InvalidConversation,
    MessageNotFound,
    UnitOfWorkMisuse,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    erase_user,
    export_conversations,
    find_conversation,
    get_conversation,
    get_message,
    get_or_start_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    messages_after,
    pop_message,
    redact_message,
    reopen_conversation,
    replace_messages,
    start_conversation,
    update_conversation,
)

pytestmark = pytest.mark.parametrize("store", [*KINDS, "secured"], indirect=True)


@pytest.fixture
async def theirs(store: Any) -> Any:
    """Give a conversation of another user, with its messages."""
    return await start_conversation(
        store.unit_of_work(), user_id="them", session_id="s", drafts=turn(1)
    )


async def as_it_was(store: Any, theirs: Any) -> bool:
    """Return whether the other user's conversation is untouched."""
    conversation, messages = theirs
    uow = store.unit_of_work()
    found = await get_conversation(uow, conversation_id=conversation.id)
    said = await latest_messages(uow, conversation_id=conversation.id)
    return bool((found, said) == (conversation, messages))


ATTEMPTS: dict[str, Callable[[AsyncUnitOfWork, int], Awaitable[Any]]] = {
    "get": lambda uow, i: get_conversation(uow, conversation_id=i),
    "append": lambda uow, i: append_messages(uow, conversation_id=i, drafts=turn(2)),
    "append a request": lambda uow, i: append_messages(
        uow, conversation_id=i, drafts=turn(2), request_id="r"
    ),
    "append at a version": lambda uow, i: append_messages(
        uow, conversation_id=i, drafts=turn(2), expected_version=9
    ),
    "pop": lambda uow, i: pop_message(uow, conversation_id=i),
    "replace": lambda uow, i: replace_messages(uow, conversation_id=i, drafts=turn(2)),
    "clear": lambda uow, i: replace_messages(uow, conversation_id=i, drafts=[]),
    "latest": lambda uow, i: latest_messages(uow, conversation_id=i),
    "after": lambda uow, i: messages_after(uow, conversation_id=i, position=0),
    "update": lambda uow, i: update_conversation(uow, conversation_id=i, rescue_id="x"),
    "close": lambda uow, i: close_conversation(uow, conversation_id=i),
    "reopen": lambda uow, i: reopen_conversation(uow, conversation_id=i),
    "archive": lambda uow, i: archive_conversation(uow, conversation_id=i),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
async def test_others_conversations_do_not_exist(store: Any, theirs: Any, attempt: str) -> None:
    """Every access by id is ConversationNotFound, as for an id that never was."""
    conversation, _ = theirs
    with pytest.raises(ConversationNotFound) as caught:
        await ATTEMPTS[attempt](store.unit_of_work(user_id="me"), conversation.id)
    assert caught.value.conversation_id == conversation.id
    assert await as_it_was(store, theirs)


@pytest.mark.parametrize("attempt", ATTEMPTS)
async def test_ones_own_conversations_do_exist(store: Any, attempt: str) -> None:
    """The same accesses work on what is the user's own."""
    uow = store.unit_of_work(user_id="me")
    conversation, _ = await start_conversation(uow, session_id="mine")
    if attempt == "append at a version":
        await append_messages(
            uow, conversation_id=conversation.id, drafts=turn(1), expected_version=1
        )
    else:
        await ATTEMPTS[attempt](uow, conversation.id)


async def test_others_messages_do_not_exist(store: Any, theirs: Any) -> None:
    """A message of another user is MessageNotFound; one's own is found."""
    _, [message, _] = theirs
    with pytest.raises(MessageNotFound):
        await get_message(store.unit_of_work(user_id="me"), message_id=message.id)
    assert await get_message(store.unit_of_work(user_id="them"), message_id=message.id) == message


async def test_a_message_of_others_is_not_redacted(store: Any, theirs: Any) -> None:
    """It is MessageNotFound, and it stays; its owner redacts it."""
    _, [message, _] = theirs
    with pytest.raises(MessageNotFound):
        await redact_message(store.unit_of_work(user_id="me"), message_id=message.id)
    assert await as_it_was(store, theirs)
    uow = store.unit_of_work(user_id="them")
    assert (await redact_message(uow, message_id=message.id)).is_redacted


async def test_a_delete_of_what_is_others_is_silent_and_does_nothing(
    store: Any, theirs: Any
) -> None:
    """Gone or another's is the same."""
    conversation, _ = theirs
    await delete_conversation(store.unit_of_work(user_id="me"), conversation_id=conversation.id)
    assert await as_it_was(store, theirs)


async def test_user_id_may_be_left_out(store: Any) -> None:
    """The user that the unit acts for is whose conversation is meant."""
    uow = store.unit_of_work(user_id="me")
    conversation, _ = await start_conversation(uow, session_id="s", drafts=turn(1))
    assert conversation.user_id == "me"
    assert await find_conversation(uow, session_id="s") == conversation
    assert (await get_or_start_conversation(uow, session_id="s"))[1] is False
    page = await list_conversations(uow)
    assert page.conversations == [conversation]
    assert (await erase_user(uow)).conversations == 1


async def test_without_a_scope_a_user_id_must_be_named(store: Any) -> None:
    """A unit that acts for the application needs to be told whose conversation is meant."""
    uow = store.unit_of_work()
    for call in (
        lambda: start_conversation(uow, session_id="s"),
        lambda: get_or_start_conversation(uow, session_id="s"),
        lambda: find_conversation(uow, session_id="s"),
        lambda: list_conversations(uow),
        lambda: erase_user(uow),
    ):
        with pytest.raises(InvalidConversation) as caught:
            await call()
        assert caught.value.field == "user_id"


async def test_naming_another_user_is_misuse(store: Any, theirs: Any) -> None:
    """A scoped unit refuses to be used for somebody else."""
    uow = store.unit_of_work(user_id="me")
    record: Any = {"user_id": "them", "session_id": "x", "messages": []}

    async def export() -> Any:
        return [record async for record in export_conversations(uow, user_id="them")]

    for call in (
        lambda: start_conversation(uow, user_id="them", session_id="x"),
        lambda: get_or_start_conversation(uow, user_id="them", session_id="s"),
        lambda: find_conversation(uow, user_id="them", session_id="s"),
        lambda: list_conversations(uow, user_id="them"),
        lambda: erase_user(uow, user_id="them"),
        lambda: import_conversations(uow, records=[record]),
        export,
    ):
        with pytest.raises(UnitOfWorkMisuse):
            await call()
    assert await as_it_was(store, theirs)


async def test_the_same_session_id_of_another_user_is_no_duplicate(store: Any, theirs: Any) -> None:
    """Whether others use a session_id cannot be found out."""
    uow = store.unit_of_work(user_id="me")
    conversation, _ = await start_conversation(uow, session_id="s", drafts=[draft("mine")])
    assert conversation.user_id == "me"
    assert await as_it_was(store, theirs)


async def test_an_export_is_of_ones_own(store: Any, theirs: Any) -> None:
    """A scoped export shows the user's own conversations; an unscoped one all, or one user's."""
    uow = store.unit_of_work(user_id="me")
    await start_conversation(uow, session_id="mine")

    async def users(unit: Any, **values: Any) -> list[str]:
        return [r["user_id"] async for r in export_conversations(unit, **values)]

    assert await users(uow) == ["me"]
    assert await users(store.unit_of_work()) == ["me", "them"]
    assert await users(store.unit_of_work(), user_id="them") == ["them"]


@pytest.mark.parametrize("user_id", ["", "x" * 256, "a\0", 7])
async def test_a_scope_is_a_user_id_that_could_be_stored(store: Any, user_id: Any) -> None:
    """A user_id that no conversation can have is refused."""
    with pytest.raises(InvalidConversation):
        store.unit_of_work(user_id=user_id)
