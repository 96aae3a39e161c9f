"""A batch of an import: COPY into both tables, inside the unit's open transaction.

COPY cannot skip what exists. So what exists is looked up first, and only the rest is sent. A
session that another transaction stores between the two breaks the unique constraint: the batch is
undone to its savepoint and looked up anew. Rows are written in the binary format, which is cheapest
for both sides (https://www.postgresql.org/docs/current/sql-copy.html).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import count, repeat
from typing import Any, Final

import psycopg
from attrs import frozen
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.types.string import StrBinaryDumper

from ...domain.errors import TransactionAborted
from ...domain.imported import ImportedConversation, Session, pick_new
from ...domain.json_object import dump_json
from ...domain.receipt import ImportReceipt
from ...domain.repository import OnDuplicate
from ...service_layer.script import MAX_SENDS
from .connections import Connection
from .errors import DEADLOCK, SESSION_KEY, NotEncodableError, translate
from .rows import Row, utc
from .statement import Command, CommandFailedError, Cursor, Statement, execute_together, new_cursor
from .tallying import note_sent
from .texts import Texts

_TRIAL: Final = b"conversation_store_batch"
_SAVE: Final = Command(b"SAVEPOINT " + _TRIAL)
# As one text, for the reason that PsycopgUnitOfWork gives for its own.
_UNDO: Final = b"ROLLBACK TO SAVEPOINT " + _TRIAL + b"; RELEASE SAVEPOINT " + _TRIAL

_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_JSONB_VERSION: Final = "\x01"

# In the binary format a time is the integer of its microseconds, and JSON a text behind a version.
_INTEGER: Final = Int8BinaryDumper.oid
_TEXT: Final = StrBinaryDumper.oid
_CONVERSATION_TYPES: Final = [_INTEGER, *[_TEXT] * 7, *[_INTEGER] * 4]
_MESSAGE_TYPES: Final = [*[_INTEGER] * 3, *[_TEXT] * 2, _INTEGER, *[_TEXT] * 3]


@frozen
class OpenTransaction:
    """What a batch needs of the unit whose transaction it is stored in."""

    connection: Connection
    draw_ids: Callable[[int], Awaitable[Sequence[int]]]
    sent: list[Statement[Any]]
    """What was carried out in it."""


@frozen
class _Placed:
    """A conversation as it is about to be stored."""

    imported: ImportedConversation
    id: int
    message_ids: Sequence[int]
    start_time: datetime
    last_activity: datetime


async def store_batch(
    transaction: OpenTransaction,
    texts: Texts,
    batch: Sequence[ImportedConversation],
    on_duplicate: OnDuplicate,
) -> ImportReceipt:
    """Store those conversations of a batch that do not exist. Errors: DuplicateSession."""
    ids: Sequence[int] = ()
    for _ in range(MAX_SENDS):
        now, there = await _look_up(transaction.connection, texts, batch)
        new = pick_new(batch, there.__contains__, refuses=on_duplicate == "error")
        messages = sum(len(imported.messages) for imported in new)
        if len(ids) != len(new) + messages:
            ids = await transaction.draw_ids(len(new) + messages)
        if not new or await _is_copied(transaction.connection, texts, _place(new, ids, now)):
            transaction.sent.append(_note(texts, ids, len(new)))
            return ImportReceipt(
                conversations=len(new), messages=messages, skipped=len(batch) - len(new)
            )
    reason = "other transactions stored the same sessions, or waited for each other, meanwhile"
    raise TransactionAborted(reason=reason)


async def _look_up(
    connection: Connection, texts: Texts, batch: Sequence[ImportedConversation]
) -> tuple[datetime, set[Session]]:
    """Return the server's time, and the sessions of a batch that exist: 1 round trip."""
    sessions = dump_json([imported.session for imported in batch])
    cursors: list[Cursor] = []
    try:
        command = Command(texts.look_up, {"sessions": sessions})
        await execute_together(connection, cursors, [_SAVE, command])
    except CommandFailedError as failure:
        raise translate(failure.error) from failure.error
    rows = await cursors[-1].fetchall()
    return utc(rows[0][0]), {(user_id, session_id) for _, user_id, session_id in rows}


def _place(new: Sequence[ImportedConversation], ids: Sequence[int], now: datetime) -> list[_Placed]:
    """Give ids and the times that a record lacks.

    In the order of sessions, so that two imports of the same ones do not wait for each other in a
    circle.
    """
    placed: list[_Placed] = []
    first = len(new)
    for imported, conversation_id in zip(new, ids, strict=False):
        start, last = imported.start_time, imported.last_activity
        message_ids = ids[first : first + len(imported.messages)]
        first += len(message_ids)
        start_time, last_activity = start or last or now, last or max(start or now, now)
        placed.append(_Placed(imported, conversation_id, message_ids, start_time, last_activity))
    placed.sort(key=lambda one: one.imported.session)
    return placed


async def _is_copied(connection: Connection, texts: Texts, placed: list[_Placed]) -> bool:
    """Send the rows; where others were faster, undo that and return False."""
    try:
        await _copy(
            connection, texts.copy_conversations, _CONVERSATION_TYPES, _conversation_rows(placed)
        )
        await _copy(connection, texts.copy_messages, _MESSAGE_TYPES, _message_rows(placed))
    except psycopg.Error as error:
        if error.sqlstate != DEADLOCK and error.diag.constraint_name != SESSION_KEY:
            raise translate(error) from error
    else:
        return True
    note_sent(connection)
    try:
        await new_cursor(connection).execute(_UNDO, prepare=False)
    except psycopg.Error as error:
        raise translate(error) from error
    return False


def _note(texts: Texts, ids: Sequence[int], conversations: int) -> Statement[None]:
    """Return what is to be known of the batch if its COMMIT is lost."""
    return Statement(
        texts.copy_messages,
        lambda _: {},
        lambda _ids, _rows: None,
        ids=ids,
        new_conversations=conversations,
    )


async def _copy(
    connection: Connection, text: bytes, types: Sequence[int], rows: Iterable[Row]
) -> None:
    note_sent(connection, round_trips=2)  # before the rows, and after them
    try:
        async with new_cursor(connection).copy(text) as copy:
            copy.set_types(types)
            for row in rows:
                await copy.write_row(row)
    except UnicodeEncodeError as error:
        encoding = error.encoding
    else:
        return
    raise NotEncodableError(encoding)


def _conversation_rows(placed: Sequence[_Placed]) -> Iterator[Row]:
    for one in placed:
        imported = one.imported
        yield (
            one.id,
            imported.user_id,
            imported.session_id,
            imported.status.value,
            imported.rescue_id,
            imported.intent_type,
            imported.source,
            _jsonb(imported.metadata),
            _time(one.start_time),
            _time(one.last_activity),
            len(imported.messages),
            1,
        )


def _message_rows(placed: Sequence[_Placed]) -> Iterator[Row]:
    for one in placed:
        messages = one.imported.messages
        times = map(_time, messages.timestamps) if messages.timestamps else None
        yield from zip(
            repeat(one.id),
            count(1),
            one.message_ids,
            messages.roles,
            messages.contents,
            times or repeat(_time(one.last_activity)),
            messages.intent_types,
            map(_jsonb, messages.slots),
            map(_jsonb, messages.metadata),
            strict=False,
        )


def _jsonb(text: str | None) -> str | None:
    return None if text is None else _JSONB_VERSION + text


def _time(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND
