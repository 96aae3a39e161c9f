"""Service functions for conversations.

Each runs in its own block of the unit of work it is given: alone it is a transaction of its own,
inside an open block it is a part of that. Round trips are those of a call on its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..domain.conversation import (
    UNCHANGED,
    Conversation,
    ConversationChanges,
    NewConversation,
    Status,
    Unchanged,
    to_status,
)
from ..domain.errors import InvalidConversation
from ..domain.message import Message, MessageDraft
from ..domain.page import ConversationPage
from .observed import observed
from .unit_of_work import AsyncUnitOfWork


@observed
async def start_conversation(
    uow: AsyncUnitOfWork,
    *,
    user_id: str | None = None,
    session_id: str,
    drafts: Sequence[MessageDraft] = (),
    rescue_id: str | None = None,
    intent_type: str | None = None,
    source: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> tuple[Conversation, list[Message]]:
    """Start a conversation, with its first messages if there are any.

    Args:
        uow: the unit of work.
        user_id: whose conversation it is, 1..255 characters; may be left out where the unit acts
            for one user.
        session_id: the host's name for it, 1..255 characters, unique per user.
        drafts: its first messages, at most 1000; stored together with it or not at all.
        rescue_id: reference to a case in the host's world, 1..255 characters.
        intent_type: what it is about, 1..255 characters.
        source: where it came from, 1..255 characters.
        metadata: the host's JSON object, at most 1 MB.
        request_id: the host's key for this start, 1..255 characters; needs `drafts`. The same key
            with the same content again (drafts, rescue_id, intent_type, source and metadata) stores
            nothing: it gives the conversation as it is now, and the messages stored the first time.

    Returns: the active conversation at version 1, and its messages at positions 1, 2, 3 …

    Raises, the first that holds: InvalidConversation, InvalidMessage, RequestConflict (the
    conversation of this session has that request_id with other content, or of an append),
    DuplicateSession.

    Round trips: 1; with a request_id 2 where another started the session at the same moment.
    """
    new = NewConversation(
        user_id=_owner(uow, user_id),
        session_id=session_id,
        rescue_id=rescue_id,
        intent_type=intent_type,
        source=source,
        metadata=metadata,
    )
    async with uow:
        started = uow.conversations.add(new, drafts, request_id=request_id)
    return await started


@observed
async def get_or_start_conversation(
    uow: AsyncUnitOfWork,
    *,
    user_id: str | None = None,
    session_id: str,
    drafts: Sequence[MessageDraft] = (),
    rescue_id: str | None = None,
    intent_type: str | None = None,
    source: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> tuple[Conversation, bool]:
    """Give the conversation of a session, starting it if the user has none.

    Raced by any number of callers, one creates it and all get the same. **Only a conversation
    that is created takes the drafts and the other values; for one that was there, of whatever
    status, they are not stored.**

    Args: as `start_conversation`. With a `request_id` the same call again, after an answer that
    was lost, says again that it created the conversation, so its drafts are stored. Where it
    says that it did not, append the drafts, with the same request_id: then that may be done again
    too, both calls, and stores nothing more.

    Returns: the conversation, and whether this call, or the same request before, created it.

    Raises, the first that holds: InvalidConversation, InvalidMessage, RequestConflict (the
    conversation has that request_id with other content).

    Round trips: 1; with a request_id 2 where another started the session at the same moment.
    """
    new = NewConversation(
        user_id=_owner(uow, user_id),
        session_id=session_id,
        rescue_id=rescue_id,
        intent_type=intent_type,
        source=source,
        metadata=metadata,
    )
    async with uow:
        found = uow.conversations.get_or_add(new, drafts, request_id=request_id)
    return await found


def _owner(uow: AsyncUnitOfWork, user_id: str | None) -> str:
    """Return the user that is named, or the one that the unit acts for."""
    owner = uow.user_id if user_id is None else user_id
    if owner is None:
        raise InvalidConversation(field="user_id", reason="is missing")
    return owner


@observed
async def get_conversation(uow: AsyncUnitOfWork, *, conversation_id: int) -> Conversation:
    """Read one conversation.

    Raises: ConversationNotFound; InvalidConversation for an id beyond 64 bits.

    Round trips: 1.
    """
    async with uow:
        return await uow.conversations.get(conversation_id)


@observed
async def find_conversation(
    uow: AsyncUnitOfWork, *, user_id: str | None = None, session_id: str
) -> Conversation | None:
    """Read the conversation of a session; None if the user has none.

    Args:
        uow: the unit of work.
        user_id: whose; may be left out where the unit acts for one user.
        session_id: the host's name for it.

    Raises: InvalidConversation.

    Round trips: 1.
    """
    async with uow:
        return await uow.conversations.find(session_id, user_id)


@observed
async def list_conversations(
    uow: AsyncUnitOfWork,
    *,
    user_id: str | None = None,
    status: str | None = None,
    limit: int = 20,
    after: str | None = None,
) -> ConversationPage:
    """Read a page of a user's conversations, the most recent activity first.

    No conversation is shown twice while pages are read, except one that moved. One that becomes
    active meanwhile may be missed; it is then on a fresh first page.

    Args:
        uow: the unit of work.
        user_id: whose; may be left out where the unit acts for one user.
        status: only those of this status.
        limit: size of the page, 1..1000.
        after: the `next_cursor` of the page before, of the same user and status.

    Raises: InvalidConversation, InvalidLimit, InvalidCursor.

    Round trips: 1.
    """
    wanted = None if status is None else to_status(status)
    async with uow:
        return await uow.conversations.list_page(user_id, status=wanted, limit=limit, after=after)


@observed
async def update_conversation(
    uow: AsyncUnitOfWork,
    *,
    conversation_id: int,
    rescue_id: str | Unchanged | None = UNCHANGED,
    intent_type: str | Unchanged | None = UNCHANGED,
    metadata: Mapping[str, Any] | Unchanged | None = UNCHANGED,
    expected_version: int | None = None,
) -> Conversation:
    """Set some columns of a conversation; those that are not given stay as they are.

    Args:
        uow: the unit of work.
        conversation_id: which conversation.
        rescue_id: its new reference; None clears it.
        intent_type: its new intent; None clears it.
        metadata: its new JSON object, whole; None clears it.
        expected_version: refuse if the conversation is at another version. Appends move the
            version too, so leave it out unless the change depends on all that was said.

    Returns: the conversation after the change.

    Raises: ConversationNotFound, ConcurrentUpdate, InvalidConversation.

    Round trips: 1.
    """
    changes = ConversationChanges(rescue_id=rescue_id, intent_type=intent_type, metadata=metadata)
    async with uow:
        updated = uow.conversations.update(
            conversation_id, changes, expected_version=expected_version
        )
    return await updated


@observed
async def close_conversation(
    uow: AsyncUnitOfWork, *, conversation_id: int, expected_version: int | None = None
) -> Conversation:
    """Close a conversation: it accepts no messages until it is reopened.

    From active or archived; a closed one stays as it is. Returns the conversation after the
    change.

    Raises: ConversationNotFound; ConcurrentUpdate where `expected_version` is given and it is at
    another version.

    Round trips: 1.
    """
    return await _set_status(uow, conversation_id, Status.CLOSED, expected_version)


@observed
async def reopen_conversation(
    uow: AsyncUnitOfWork, *, conversation_id: int, expected_version: int | None = None
) -> Conversation:
    """Make a closed conversation active again; an active one stays as it is.

    Raises: ConversationNotFound; InvalidTransition for an archived one (close it first);
    ConcurrentUpdate where `expected_version` is given and it is at another version.

    Round trips: 1.
    """
    return await _set_status(uow, conversation_id, Status.ACTIVE, expected_version)


@observed
async def archive_conversation(
    uow: AsyncUnitOfWork, *, conversation_id: int, expected_version: int | None = None
) -> Conversation:
    """Put a conversation away, from active or closed; an archived one stays as it is.

    Raises: ConversationNotFound; ConcurrentUpdate where `expected_version` is given and it is at
    another version.

    Round trips: 1.
    """
    return await _set_status(uow, conversation_id, Status.ARCHIVED, expected_version)


async def _set_status(
    uow: AsyncUnitOfWork, conversation_id: int, target: Status, expected_version: int | None
) -> Conversation:
    async with uow:
        changed = uow.conversations.set_status(
            conversation_id, target, expected_version=expected_version
        )
    return await changed
