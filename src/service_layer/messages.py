"""Service functions for messages. Round trips are those of a call on its own."""

from __future__ import annotations

from collections.abc import Sequence

from ..domain.message import Message, MessageDraft
from .observed import observed
from .unit_of_work import AsyncUnitOfWork


@observed
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


@observed
async def pop_message(
    uow: AsyncUnitOfWork, *, conversation_id: int, expected_version: int | None = None
) -> Message | None:
    """Take the newest message of a conversation away again, and return it.

    The conversation's message_count falls by 1, its version grows by 1, its last_activity stays.
    The next message that is appended gets the position that is free again: whoever read that
    position before, and goes on from there, does not see it.

    If the message is the only one of a turn that was stored with a request_id, that request is
    forgotten: sent again, it is stored anew. If the turn has messages left, that request sent again
    is a RequestConflict from now on: what is left of it is no answer.

    Args:
        uow: the unit of work.
        conversation_id: which conversation; it must accept messages.
        expected_version: refuse if the conversation is at another version.

    Returns: the message that is gone; None, and nothing is changed, if there was none.

    Raises, the first that holds: ConversationNotFound, ConversationNotAcceptingMessages,
    ConcurrentUpdate. Without expected_version a lost answer is a CommitOutcomeUnknown: done again,
    it could take a second message.

    Round trips: 1; 2 where others appended at the same moment.
    """
    async with uow:
        popped = uow.messages.pop(conversation_id, expected_version=expected_version)
    return await popped


@observed
async def replace_messages(
    uow: AsyncUnitOfWork,
    *,
    conversation_id: int,
    drafts: Sequence[MessageDraft],
    expected_version: int | None = None,
) -> list[Message]:
    """Put messages in the place of all that a conversation has; no drafts clear it.

    Either all of the old messages are there or all of the new ones, for everyone. The new ones have
    new ids and the positions from 1 on. The conversation's version grows by 1; its last_activity
    moves if something is said, and stays if it is cleared. Requests whose messages are gone are
    forgotten: sent again, they are stored anew. Whoever reads on from a position begins again.

    Args:
        uow: the unit of work.
        conversation_id: which conversation; it must accept messages.
        drafts: the messages, 0..1000, oldest first.
        expected_version: refuse if the conversation is at another version; so a history that was
            read, changed and stored again loses nothing that others appended meanwhile.

    Returns: the messages as they are stored.

    Raises, the first that holds: InvalidMessage, ConversationNotFound,
    ConversationNotAcceptingMessages, ConcurrentUpdate. Without drafts and without expected_version
    a lost answer is a CommitOutcomeUnknown: done again, it could take what came since.

    Round trips: 1; 2 where others appended at the same moment. However many messages go, they go
    in one statement; a conversation that is to go as a whole goes in batches, by
    delete_conversation.
    """
    async with uow:
        replaced = uow.messages.replace(conversation_id, drafts, expected_version=expected_version)
    return await replaced


@observed
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


@observed
async def get_message(uow: AsyncUnitOfWork, *, message_id: int) -> Message:
    """Read one message.

    Raises: MessageNotFound; InvalidMessage for an id beyond 64 bits.

    Round trips: 1.
    """
    async with uow:
        return await uow.messages.get(message_id)


@observed
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


@observed
async def messages_after(
    uow: AsyncUnitOfWork, *, conversation_id: int, position: int, limit: int = 100
) -> list[Message]:
    """Read the messages that follow a position, oldest first; 0 reads from the beginning.

    Positions have no gaps and are given out in commit order, so whoever goes on from the last
    position read misses nothing and reads nothing twice, unless messages are popped or replaced.

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
