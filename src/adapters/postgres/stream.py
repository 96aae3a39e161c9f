"""Rows of one statement, by a cursor on the server: a chunk at a time, all of one snapshot.

Where the unit has a transaction open the cursor lives in it. Else it has a connection and a
transaction of its own until the stream is closed, which any task may do: an abandoned generator is
closed by the event loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import psycopg
from attrs import define, field

from ...service_layer.limited import TimeLimit
from .connections import Connection, Connections, check_usable
from .errors import translate
from .opening import NOTHING, Opening
from .rows import Row
from .statement import (
    Command,
    CommandFailedError,
    Parameters,
    execute_together,
    fetch_among,
)
from .waiting import interruptible, is_cancelled

CHUNK: Final = 1_000
"""Rows that are fetched at a time."""

_numbers: Final = itertools.count(1)
"""Of cursors, in this process; it also keeps psycopg from preparing their statements."""


class RowStream(Protocol):
    """Rows that are read as they are wanted."""

    async def next_chunk(self) -> list[Row]:
        """Read the next rows; none at the end. Errors: the domain's."""
        ...

    async def close(self) -> None:
        """Give back what the stream holds."""


@define(eq=False)
class ServerCursor:
    """A cursor on the server, in an open transaction."""

    connection: Connection
    around: Opening = NOTHING
    """What holds only while it is read, as in a transaction of the host's."""
    name: bytes = field(init=False, factory=lambda: b"conversation_store_%d" % next(_numbers))
    is_over: bool = False

    async def open(self, text: bytes, parameters: Parameters, *before: Command) -> None:
        """Open it: 1 round trip."""
        declare = Command(b"DECLARE " + self.name + b" NO SCROLL CURSOR FOR " + text, parameters)
        try:
            commands = [*before, *self.around.for_a_while(), declare, *self.around.restoring()]
            await execute_together(self.connection, [], commands)
        except CommandFailedError as failure:
            raise translate(failure.error) from failure.error

    async def next_chunk(self) -> list[Row]:
        """Fetch the next rows: 1 round trip.

        Mostly a statement by itself, not one of a pipeline: after a pipeline the server does not
        count how long the transaction is idle.
        """
        if self.is_over:
            return []
        check_usable(self.connection)
        text = b"FETCH FORWARD %d FROM %b" % (CHUNK, self.name)
        fetch = Command(text, prepare=False)
        commands = [*self.around.for_a_while(), fetch, *self.around.restoring()]
        rows = await fetch_among(self.connection, commands, fetch)
        self.is_over = len(rows) < CHUNK
        return rows


@define(eq=False)
class StreamAlone:
    """A stream with a connection and a transaction of its own."""

    connections: Connections
    cursor: ServerCursor
    is_closed: bool = False

    @classmethod
    async def open(
        cls,
        connections: Connections,
        before: Sequence[Command],
        text: bytes,
        parameters: Parameters,
    ) -> StreamAlone:
        """Borrow a connection and begin to read, in a transaction that is begun by `before`."""
        stream = cls(connections, ServerCursor(await connections.borrow()))
        connections.note_reading(stream.cursor.connection, stream.cursor.name)
        try:
            await stream.cursor.open(text, parameters, *before)
        except BaseException:
            await stream.close()
            raise
        return stream

    @interruptible
    async def next_chunk(self) -> list[Row]:
        """Read the next rows."""
        return await self.cursor.next_chunk()

    @interruptible
    async def close(self) -> None:
        """End the transaction and give the connection back."""
        if self.is_closed:
            return
        self.is_closed = True
        connection = self.cursor.connection
        try:
            await self.connections.end_reading(connection, self.cursor.name)
        except psycopg.Error as error:
            if not is_cancelled():
                raise translate(error) from error


@define(eq=False)
class StreamInside:
    """A stream in the transaction that the unit, or the host, has open; it ends with that."""

    cursor: ServerCursor
    check: Callable[[], None]
    """Raises UnitOfWorkMisuse when the block that it was opened in is no more."""
    fail: Callable[[BaseException], Awaitable[None]]
    """Fails the block that an error leaves in ruins."""

    @classmethod
    async def open(
        cls,
        cursor: ServerCursor,
        check: Callable[[], None],
        fail: Callable[[BaseException], Awaitable[None]],
        text: bytes,
        parameters: Parameters,
    ) -> StreamInside:
        """Begin to read."""
        stream = cls(cursor, check, fail)
        try:
            check_usable(cursor.connection)
            await cursor.open(text, parameters)
        except BaseException as error:
            await fail(error)
            raise
        return stream

    @interruptible
    async def next_chunk(self) -> list[Row]:
        """Read the next rows."""
        self.check()
        try:
            return await self.cursor.next_chunk()
        except BaseException as error:
            await self.fail(error)
            raise

    async def close(self) -> None:
        """Leave the cursor to the transaction: it may be another task that closes the stream."""


@define(eq=False)
class LimitedStream:
    """A stream of a unit of work that has a timeout."""

    stream: RowStream
    limit: TimeLimit

    async def next_chunk(self) -> list[Row]:
        """Read the next rows, as long as there is time. Errors: StoreTimeout."""
        self.limit.check()
        return await self.limit.keep(self.stream.next_chunk())

    async def close(self) -> None:
        """Give back what the stream holds."""
        await self.stream.close()
