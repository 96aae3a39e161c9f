"""Service functions that move whole conversations: in, out, and away for good."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from typing import Any, Final, get_args

from ..domain.errors import ConversationStoreError, InvalidConversation
from ..domain.receipt import ErasureReceipt, ImportReceipt
from ..domain.record import (
    ConversationRecord,
    ImportedConversation,
    check_record,
    to_record,
)
from ..domain.repository import OnDuplicate
from .unit_of_work import AsyncUnitOfWork

BATCH_CONVERSATIONS: Final = 500
"""Most conversations that an import stores in one transaction."""
BATCH_MESSAGES: Final = 5_000
"""So many messages end a batch of an import."""
BATCH_CHARACTERS: Final = 8_000_000
"""So much content ends a batch of an import."""
EXPORT_PAGE: Final = 50
"""Conversations that an export reads at a time."""


async def import_conversations(
    uow: AsyncUnitOfWork,
    *,
    records: Iterable[ConversationRecord] | AsyncIterable[ConversationRecord],
    on_duplicate: OnDuplicate = "error",
    progress: Callable[[ImportReceipt], None] | None = None,
) -> ImportReceipt:
    """Store conversations with their messages from a stream of records.

    The stream is read as it is stored, a batch at a time; each batch is a transaction of its own
    unless the unit is inside an open block. Ids and versions are new; times are the record's
    where it has them.

    Args:
        uow: the unit of work.
        records: the records; see ConversationRecord.
        on_duplicate: what to do with a session that the user has already: "error" refuses the
            batch, "skip" leaves the record out.
        progress: called after each batch with what was stored so far.

    Returns: what was stored and what was left out.

    Raises: InvalidRecord, naming the record and the field; DuplicateSession, naming the session.
    Nothing of the batch that failed is stored; `imported` of every ConversationStoreError raised
    here says what the batches before it have stored.

    Round trips: 1 a batch, of at most 500 conversations.
    """
    if on_duplicate not in get_args(OnDuplicate):
        reason = "must be 'error' or 'skip'"
        raise InvalidConversation(field="on_duplicate", reason=reason)
    receipt = ImportReceipt()
    try:
        async for batch in _batches(records):
            async with uow:
                stored = uow.conversations.add_imported(batch, on_duplicate)
            receipt += await stored
            if progress is not None:
                progress(receipt)
    except ConversationStoreError as error:
        error.imported = receipt
        raise
    return receipt


async def _batches(
    records: Iterable[Any] | AsyncIterable[Any],
) -> AsyncIterator[list[ImportedConversation]]:
    batch: list[ImportedConversation] = []
    messages = characters = number = 0
    async for record in _each(records):
        number += 1
        imported = check_record(record, number)
        batch.append(imported)
        messages += len(imported.conversation.drafts)
        characters += sum(len(draft.content) for draft in imported.conversation.drafts)
        if (
            len(batch) >= BATCH_CONVERSATIONS
            or messages >= BATCH_MESSAGES
            or characters >= BATCH_CHARACTERS
        ):
            yield batch
            batch = []
            messages = characters = 0
    if batch:
        yield batch


async def _each(records: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(records, AsyncIterable):
        async for record in records:
            yield record
    else:
        for record in records:
            yield record


async def export_conversations(
    uow: AsyncUnitOfWork, *, user_id: str | None = None
) -> AsyncIterator[ConversationRecord]:
    """Read conversations with all their messages as records, ordered by user_id and session_id.

    The stream is read a page at a time and nothing is held between pages, neither a connection
    nor a transaction: each conversation is whole, as it was when its page was read. What was
    exported and imported into an empty store exports the same again, byte for byte.

    Args:
        uow: the unit of work.
        user_id: only this user's conversations; None is all that the unit may see.

    Raises: InvalidConversation.

    Round trips: 1 for every 50 conversations.
    """
    after: tuple[str, str] | None = None
    while True:
        async with uow:
            page = await uow.conversations.export_page(user_id, after, EXPORT_PAGE)
        for conversation, messages in page:
            yield to_record(conversation, messages)
        if len(page) < EXPORT_PAGE:
            return
        after = (page[-1][0].user_id, page[-1][0].session_id)


async def erase_user(uow: AsyncUnitOfWork, *, user_id: str | None = None) -> ErasureReceipt:
    """Remove all that a user has, for good.

    Removes what was committed when it runs; a conversation that the user starts meanwhile
    survives, so keep the user out first.

    Args:
        uow: the unit of work.
        user_id: whose; may be left out where the unit acts for one user.

    Returns: how many conversations and messages were removed.

    Raises: InvalidConversation.

    Round trips: 1.
    """
    async with uow:
        erased = uow.conversations.erase_user(user_id)
    return await erased
