"""Service functions for messages. Round trips are those of a call on its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..domain.message import Message, MessageDraft
from .unit_of_work import AsyncUnitOfWork


async def append_messages(
    uow: AsyncUnitOfWork,
    *,
    conversation_id: int,
    drafts: Sequence[MessageDraft],
    request_id: str | None = None,
    expected_version: int | None = None,
) -> list[Message]:
    """Append a turn: its messages get the next positions, side by side, or none is stored.

    Args:
        uow: the unit of work.
        conversation_id: which conversation.
        drafts: the messages, 1..1000, oldest first.
        request_id: the host's key for this append, 1..255 characters. The same key with the same
            drafts again gives the messages stored the first time and stores nothing.
        expected_version: refuse if the conversation is at another version.

    Returns: the messages as they are stored.

    Raises, the first that holds: InvalidMessage, ConversationNotFound, RequestConflict (the
    request_id was used with other drafts), ConversationNotAcceptingMessages, ConcurrentUpdate.

    Round trips: 1; 2 where another process stored the same request_id at the same moment.
    """
    async with uow:
        appended = uow.messages.append(
            conversation_id, drafts, request_id=request_id, expected_version=expected_version
        )
    return await appended


async def redact_message(uow: AsyncUnitOfWork, *, message_id: int) -> Message:
    """Take the words of a message for good; a tombstone keeps its place.

    Its content becomes "[redacted]" and its slots {"redacted": true}; its intent_type and metadata
    are cleared. Its id, position, role and timestamp stay, so the history has no gap. The
    conversation may be of any status; its version grows by 1, its last_activity stays. One that is
    redacted already stays as it is. If the message's turn was stored with a request_id, that
    request sent again is a RequestConflict from now on: what it said cannot be compared any more.

    Args:
        uow: the unit of work.
        message_id: which message.

    Returns: the message as it is now; its `is_redacted` is true.

    Raises: MessageNotFound; InvalidMessage for an id beyond 64 bits.

    Round trips: 1.
    """
    async with uow:
        redacted = uow.messages.redact(message_id)
    return await redacted


async def get_message(uow: AsyncUnitOfWork, *, message_id: int) -> Message:
    """Read one message.

    Raises: MessageNotFound; InvalidMessage for an id beyond 64 bits.

    Round trips: 1.
    """
    async with uow:
        return await uow.messages.get(message_id)


async def latest_messages(
    uow: AsyncUnitOfWork, *, conversation_id: int, limit: int = 50, before: int | None = None
) -> list[Message]:
    """Read the newest messages of a conversation, oldest of them first.

    Args:
        uow: the unit of work.
        conversation_id: which conversation.
        limit: at most how many, 1..1000.
        before: only those before this position; the first position of a page gives the page
            before it. Pages do not shift while messages are appended.

    Raises: ConversationNotFound, InvalidLimit, InvalidMessage.

    Round trips: 1.
    """
    async with uow:
        return await uow.messages.latest(conversation_id, limit=limit, before=before)


async def messages_after(
    uow: AsyncUnitOfWork, *, conversation_id: int, position: int, limit: int = 100
) -> list[Message]:
    """Read the messages that follow a position, oldest first; 0 reads from the beginning.

    Positions have no gaps and are given out in commit order, so whoever goes on from the last
    position read misses nothing and reads nothing twice.

    Args:
        uow: the unit of work.
        conversation_id: which conversation.
        position: the last position that is known.
        limit: at most how many, 1..1000.

    Raises: ConversationNotFound, InvalidLimit, InvalidMessage.

    Round trips: 1.
    """
    async with uow:
        return await uow.messages.after(conversation_id, position, limit=limit)
