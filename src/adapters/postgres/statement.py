"""How statements and scripts of them are sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, Generic, TypeAlias, TypeVar

import psycopg
from attrs import define, field
from psycopg import AsyncCursor
from psycopg.pq import ExecStatus
from psycopg.rows import tuple_row

from ...domain.unit import Write
from ...service_layer.uninterrupted import begin_uninterrupted
from .connections import Connection, cut, doubt, is_idle
from .errors import NotEncodableError, translate
from .quiet import REFUSED
from .rows import Row
from .tallying import note_sent

T = TypeVar("T")

Parameters: TypeAlias = Mapping[str, object]
Cursor: TypeAlias = AsyncCursor[Row]


@define(eq=False)
class Look(Generic[T]):
    """How to see what a statement stored, when its answer was lost; it writes nothing.

    It locks the conversation's row: so it is answered only when all that it shows is as durable as
    a write of its own would be, on the synchronous standbys too.
    """

    text: bytes
    """Its parameters are among those of the statement."""
    read: Callable[[Sequence[int], list[Row]], list[T] | None]
    """The result of the statement, from those ids and what was found; [] where its conversation
    does not have it, or not as this statement would have stored it; None where the conversation
    itself is not there, and may have been removed since."""
    proves_stored: bool = False
    """Whether finding it proves that the unit was stored: the statement inserts ids of its own."""
    proves_absent: bool = False
    """Whether a conversation that does not have it proves that the unit was not stored."""


@define(eq=False)
class Statement(Write[T]):
    """A write that is one SQL statement."""

    text: bytes
    bind: Callable[[Sequence[int]], Parameters]
    """Its parameters, from the ids it was given."""
    read: Callable[[Sequence[int], list[Row]], T]
    """Its result, from those ids and the rows it returned."""
    ids_needed: int = 0
    ids: Sequence[int] = ()
    new_conversations: int = 0
    """How many of its ids are those of conversations; the others are those of messages."""
    conversation_id: int | None = None
    """The conversation it is about, where that exists already."""
    is_short: bool = False
    """Whether its parameters and its result are small enough to stay with a cursor."""
    request_id: str | None = None
    """Its request, if it has one: then it can meet itself, sent by another, and is sent again."""

    is_removal: bool = False
    """Whether it may take away what the unit did before in the conversation it is about."""
    is_repeatable: bool = False
    """Whether it may be sent again where its answer was lost, if need be after others' changes."""
    look: Callable[[], Look[T]] | None = None
    """How to see afterwards what it stored, where that can be seen."""

    read_placed: Callable[[Sequence[int], list[Row]], T] | None = None
    """Its result where it was stored together with others, from its ids and (base, time).

    None: it is never stored together with others.
    """

    @property
    def home(self) -> int | None:
        """The conversation that it stores something in: one that exists, or the one it starts."""
        if self.conversation_id is None and self.new_conversations:
            return self.ids[0]
        return self.conversation_id

    async def result_of(self, cursor: Cursor) -> T:
        """Read the result from the cursor it was sent with."""
        return self.read(self.ids, await rows_of(cursor))


@define(eq=False)
class Command:
    """A text to be sent, with its parameters; of a statement, or one that controls blocks."""

    text: bytes
    parameters: Parameters | None = field(default=None, repr=False)
    is_short: bool = False
    prepare: bool | None = None
    """Whether psycopg may have it prepared; None: as often as it is used."""

    @classmethod
    def of(cls, statement: Statement[Any]) -> Command:
        """Return the command of a statement."""
        return cls(statement.text, statement.bind(statement.ids), statement.is_short)


BEGIN: Final = Command(b"BEGIN ISOLATION LEVEL READ COMMITTED")
COMMIT: Final = Command(b"COMMIT")


SHORT: Final = 32_768
"""Characters of the drafts of a statement that is short."""

_KEPT: Final = "_conversation_store_cursors"
"""The attribute of a connection that holds its cursors: they end with it."""


class CommandFailedError(Exception):
    """Of commands that were sent together, this one failed, so the later ones were skipped."""

    def __init__(self, index: int, error: psycopg.Error) -> None:
        super().__init__(error)
        self.index = index
        self.error = error


def new_cursor(connection: Connection) -> Cursor:
    """Return a cursor of plain tuples, whatever factories the connection was given."""
    return AsyncCursor(connection, row_factory=tuple_row)


async def execute(cursor: Cursor, command: Command) -> None:
    """Send one command: one round trip, or none yet inside a pipeline."""
    try:
        await cursor.execute(command.text, command.parameters, binary=True, prepare=command.prepare)
    except UnicodeEncodeError as error:  # it holds the whole text, so it is no cause to be told
        encoding = error.encoding
    else:
        return
    raise NotEncodableError(encoding)


async def execute_alone(connection: Connection, cursors: list[Cursor], command: Command) -> None:
    """Send one command: one round trip; `cursors` gets its cursor once there is an answer.

    Errors: the driver's.
    """
    cursor = _kept_cursor(connection, command.text) if command.is_short else new_cursor(connection)
    former = cursor.pgresult
    try:
        await execute(cursor, command)
    finally:
        if cursor.pgresult is not former:
            cursors.append(cursor)
    if not cursors or not succeeded(cursor):
        raise _lost(connection)


def _kept_cursor(connection: Connection, text: bytes) -> Cursor:
    """Return the cursor that this connection keeps for a text.

    A cursor that meets its text again still knows the types of its parameters and columns, which
    is a tenth of the CPU of a call; but it holds its last parameters and result until then.
    """
    kept: dict[bytes, Cursor] = connection.__dict__.setdefault(_KEPT, {})
    cursor = kept.get(text)
    if cursor is None:
        cursor = kept[text] = new_cursor(connection)
    return cursor


async def execute_together(
    connection: Connection, cursors: list[Cursor], commands: list[Command]
) -> None:
    """Send commands in one round trip; `cursors` gets one for each.

    No code of others runs while the pipeline is open, and what is sent ends in a Sync. Raises
    CommandFailedError for the first that failed; psycopg may report it at a later one.
    """
    try:
        await _execute_together(connection, cursors, commands)
    except BaseException as error:
        # Without a BEGIN nothing is rolled back, so the driver forgets nothing by itself of what
        # the server may have skipped. What was refused, it had prepared.
        was_refused = isinstance(error, CommandFailedError) and error.error.sqlstate == REFUSED
        seen = cursors[:-1] if was_refused else cursors
        if is_idle(connection) and not all(map(succeeded, seen)):
            doubt(connection)
        raise
    finally:
        note_sent(connection, len(commands), cursors)


async def _execute_together(
    connection: Connection, cursors: list[Cursor], commands: list[Command]
) -> None:
    failure: psycopg.Error | None = None
    try:
        if len(commands) == 1:
            await execute_alone(connection, cursors, commands[0])
            return
        cursors.extend(new_cursor(connection) for _ in commands)
        async with pipeline_of(connection):
            # Kept until the pipeline is left, or psycopg would log a warning on leaving it.
            try:
                for cursor, command in zip(cursors, commands, strict=True):
                    await execute(cursor, command)
            except psycopg.Error as error:
                failure = error
    except psycopg.Error as error:
        failure = failure or error
    if failure is None and not succeeded(cursors[-1]):
        failure = _lost(connection)
    if failure is not None:
        guilty = next((i for i, cursor in enumerate(cursors) if not succeeded(cursor)), 0)
        raise CommandFailedError(guilty, failure) from failure


def _lost(connection: Connection) -> psycopg.OperationalError:
    cut(connection)  # what was sent on it nobody will read
    return psycopg.OperationalError("the server's answer was lost")


@asynccontextmanager
async def pipeline_of(connection: Connection) -> AsyncGenerator[None]:
    """Hold a connection in pipeline mode; it is out of it again however the block is left.

    The driver's own context manager, interrupted while it enters, would leave the mode on.
    """
    manager = connection.pipeline()
    entering = begin_uninterrupted(manager.__aenter__())
    if entering is not None:
        try:
            await asyncio.shield(entering)
        except BaseException:
            while not entering.done():  # it waits for nothing but its turn
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([entering])
            if not entering.cancelled() and entering.exception() is None:
                await manager.__aexit__(None, None, None)
            raise
    try:
        yield
    except BaseException as error:
        if not await manager.__aexit__(type(error), error, error.__traceback__):
            raise
    else:
        await manager.__aexit__(None, None, None)


def succeeded(cursor: Cursor) -> bool:
    """Whether the server answered that the command of this cursor was carried out."""
    result = cursor.pgresult
    return result is not None and result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK)


async def rows_of(cursor: Cursor) -> list[Row]:
    """Return the rows that the command of this cursor returned, if it returns any."""
    result = cursor.pgresult
    if result is None or result.status != ExecStatus.TUPLES_OK:
        return []
    return await cursor.fetchall()


async def fetch_among(
    connection: Connection, commands: Sequence[Command], read: Command
) -> list[Row]:
    """Read the rows of one of several commands, in one round trip. Errors: the domain's."""
    cursors: list[Cursor] = []
    try:
        await execute_together(connection, cursors, list(commands))
    except CommandFailedError as failure:
        raise translate(failure.error) from failure.error
    return await rows_of(cursors[commands.index(read)])


async def fetch_rows(connection: Connection, text: bytes, parameters: Parameters) -> list[Row]:
    """Read rows: one round trip. Errors: the domain's."""
    cursor = new_cursor(connection)
    try:
        await execute(cursor, Command(text, parameters))
    except psycopg.Error as error:
        raise translate(error) from error
    finally:
        note_sent(connection, 1, [cursor])
    return await cursor.fetchall()
