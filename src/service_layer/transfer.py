"""Service functions that move whole conversations, in and out."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Callable,
    Iterable,
    Sequence,
)
from contextlib import aclosing
from itertools import islice
from typing import Any, Final, cast, get_args

from ..domain.errors import ConversationStoreError, InvalidConversation
from ..domain.imported import ImportedConversation
from ..domain.json_object import weigh
from ..domain.receipt import ImportReceipt
from ..domain.record import ConversationRecord, check_record
from ..domain.repository import OnDuplicate
from .observed import observed, observed_stream
from .uninterrupted import begin_uninterrupted
from .unit_of_work import AsyncUnitOfWork

BATCH_CONVERSATIONS: Final = 1_000
"""Most conversations that an import stores in one transaction."""
BATCH_MESSAGES: Final = 20_000
"""So many messages end a batch of an import."""
BATCH_CHARACTERS: Final = 8_000_000
"""So much content, slots and metadata ends a batch of an import."""
MOST_CHARACTERS: Final = 2 * BATCH_CHARACTERS
"""So much as text splits a batch: a part that its objects hold many times was counted once."""
_CHECKED_AT_ONCE: Final = 16
"""Records that are checked without letting others run."""


@observed
async def import_conversations(
    uow: AsyncUnitOfWork,
    *,
    records: Iterable[ConversationRecord] | AsyncIterable[ConversationRecord],
    on_duplicate: OnDuplicate = "error",
    progress: Callable[[ImportReceipt], None] | None = None,
) -> ImportReceipt:
    """Store conversations with their messages from a stream of records.

    The stream is read a batch ahead of what is stored, whatever its length; each batch is a
    transaction of its own unless the unit is inside an open block. No transaction of the import is
    open while the stream is waited for. Ids and versions are new; times are the record's where it
    has them. An import that ended half way is gone on with by importing the same stream again with
    `on_duplicate="skip"`.

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

    Round trips: 8 a batch, of at most 1,000 conversations or about 20,000 messages.
    """
    if on_duplicate not in get_args(OnDuplicate):
        reason = "must be 'error' or 'skip'"
        raise InvalidConversation(field="on_duplicate", reason=reason)
    if not isinstance(records, Iterable | AsyncIterable):
        reason = f"must be an iterable of records, not {type(records).__name__}"
        raise InvalidConversation(field="records", reason=reason)
    receipt = ImportReceipt()
    try:
        async with aclosing(_checked_batches(records)) as batches:
            async for batch in batches:
                async with uow:
                    stored = await uow.conversations.add_imported(batch, on_duplicate)
                receipt += stored
                if progress is not None:
                    progress(receipt)
    except ConversationStoreError as error:
        error.imported = receipt
        raise
    return receipt


async def _checked_batches(
    records: Iterable[Any] | AsyncIterable[Any],
) -> AsyncGenerator[list[ImportedConversation]]:
    """Give batches that were checked; while one of them is stored the next is being checked.

    An error of the stream itself is raised when all is given that was read whole before it.
    """
    stream = _Stream(records)
    checking = await stream.begin_next()
    while checking is not None:
        batch = await checking
        checking = await stream.begin_next()
        try:
            yield batch
        except BaseException:
            if checking is not None:
                checking.cancel()
            raise
    if stream.error is not None:
        raise stream.error


class _Stream:
    """A stream of records that is read a batch at a time."""

    def __init__(self, records: Iterable[Any] | AsyncIterable[Any]) -> None:
        self.error: Exception | None = None
        """What ended the stream."""
        self._batches = _batches(records)
        self._rest: tuple[int, list[Any]] | None = None
        """Of a batch that turned out too large: the number of a record, and all from it on."""

    async def begin_next(self) -> asyncio.Task[list[ImportedConversation]] | None:
        """Read the next batch and begin to check it; None if there is none."""
        try:
            batch = self._rest or await anext(self._batches, None)
        except Exception as error:  # noqa: BLE001 - whatever the host's own stream raises
            self.error = error
            return None
        if batch is None:
            return None
        self._rest = None
        checking = asyncio.create_task(self._check(*batch))
        # Where nobody waits for it any more, the import has failed already.
        checking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return checking

    async def _check(self, first: int, batch: list[Any]) -> list[ImportedConversation]:
        """Check records, as many as go into one transaction; let others run now and then."""
        checked: list[ImportedConversation] = []
        size = 0
        for number, record in enumerate(batch, first):
            if size >= MOST_CHARACTERS:
                self._rest = number, batch[number - first :]
                break
            checked.append(check_record(record, number))
            size += checked[-1].size
            if number % _CHECKED_AT_ONCE == 0:
                await asyncio.sleep(0)
        return checked


async def _batches(
    records: Iterable[Any] | AsyncIterable[Any],
) -> AsyncGenerator[tuple[int, list[Any]]]:
    """Give the number of the first record of each batch, and its records, not yet checked."""
    batch: list[Any] = []
    first = 1
    messages = characters = 0
    async for record in _each(records):
        batch.append(record)
        weight = _weight(record)
        if weight is not None:
            messages += weight[0]
            characters += weight[1]
        if (
            weight is None
            or len(batch) >= BATCH_CONVERSATIONS
            or messages >= BATCH_MESSAGES
            or characters >= BATCH_CHARACTERS
        ):
            yield first, batch
            first += len(batch)
            batch = []
            messages = characters = 0
    if batch:
        yield first, batch


def _weight(record: Any) -> tuple[int, int] | None:
    """Return how many messages and characters a record holds; None if it has no such form.

    It will be refused then, so there is no need to read on.
    """
    try:
        messages = record["messages"]
        if not isinstance(messages, list | tuple):
            return None
        # One that is longer ends the batch, however much longer it is.
        some = list(islice(cast("Sequence[Any]", messages), BATCH_MESSAGES))
        lengths = [len(message["content"]) for message in some]
        objects = [message.get(name) for message in some for name in ("slots", "metadata")]
        objects.append(record.get("metadata"))
        size = sum(weigh(value) for value in objects if value)
    except Exception:  # noqa: BLE001 - whatever it is, a closer look will tell
        return None
    return len(lengths), sum(lengths) + size


async def _each(records: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(records, AsyncIterable):
        async for record in records:
            yield record
    else:
        for record in records:
            yield record


def export_conversations(
    uow: AsyncUnitOfWork, *, user_id: str | None = None
) -> AsyncGenerator[ConversationRecord]:
    """Read conversations with all their messages as records, ordered by user_id and session_id.

    All are as they were when the first record was asked for: one snapshot. The stream is read as
    it is consumed, by a cursor on the server. What was exported and imported into an empty store
    exports the same again, byte for byte.

    Where the unit has a transaction open, inside a block that wrote or in a host's transaction, it
    is read in that and sees what the unit wrote; it can be read until that block is left. Else it
    holds a connection and a transaction of its own until its end or `aclose()`, and the unit is
    free for other work meanwhile. Whoever may stop early uses `contextlib.aclosing`; an export that
    nothing refers to any more is ended, too, but not waited for.

    Args:
        uow: the unit of work.
        user_id: only this user's conversations; None is all that the unit may see.

    Raises: InvalidConversation; StoreTimeout where the consumer takes longer with a record than the
    role may be idle in a transaction.

    Round trips: 1 for every 1,000 messages, and 2 for its begin and end.
    """
    records = _exported(uow, user_id)
    return _Export(observed_stream(uow, export_conversations.__name__, records))


async def _exported(
    uow: AsyncUnitOfWork, user_id: str | None
) -> AsyncGenerator[ConversationRecord]:
    async with uow:
        records = await uow.conversations.export(user_id)
    async with aclosing(records):
        async for record in records:
            yield record


class _Export(AsyncGenerator[ConversationRecord]):
    """The records of an export, whose end begins in the moment in which they are abandoned.

    The event loop closes an abandoned generator some turns later. By then whoever lent a connection
    for it may have begun something else on that.
    """

    def __init__(self, records: AsyncGenerator[ConversationRecord]) -> None:
        self._records = records
        self._loop: asyncio.AbstractEventLoop | None = None

    # Coroutines, each of which keeps the export from being abandoned while it is waited for.

    async def __anext__(self) -> ConversationRecord:
        self._loop = asyncio.get_running_loop()
        return await self._records.__anext__()

    async def asend(self, value: None) -> ConversationRecord:
        return await self._records.asend(value)

    async def athrow(self, *error: Any) -> ConversationRecord:
        return await self._records.athrow(*error)

    async def aclose(self) -> None:
        await self._records.aclose()

    def __del__(self) -> None:
        try:
            is_here = self._loop is asyncio.get_running_loop()
        except RuntimeError:
            return  # the event loop is over, or the garbage is collected by another thread
        if is_here:
            begin_uninterrupted(self._records.aclose())
