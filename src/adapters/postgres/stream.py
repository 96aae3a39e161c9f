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
from psycopg.pq import TransactionStatus

from ...service_layer.limited import TimeLimit
from .connections import Connection, Connections, check_usable
from .errors import translate
from .rows import Row
from .statement import (
    COMMIT,
    Command,
    CommandFailedError,
    Parameters,
    execute_together,
    new_cursor,
)
from .waiting import in_time, interruptible, is_cancelled

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
class _ServerCursor:
    """A cursor on the server, in an open transaction."""

    connection: Connection
    name: bytes = field(init=False, factory=lambda: b"conversation_store_%d" % next(_numbers))
    is_over: bool = False

    async def open(self, text: bytes, parameters: Parameters, *before: Command) -> None:
        """Open it: 1 round trip."""
        declare = Command(b"DECLARE " + self.name + b" NO SCROLL CURSOR FOR " + text, parameters)
        try:
            await execute_together(self.connection, [], [*before, declare])
        except CommandFailedError as failure:
            raise translate(failure.error) from failure.error

    async def next_chunk(self) -> list[Row]:
        """Fetch the next rows: 1 round trip.

        A statement by itself, never one of a pipeline: after a pipeline the server does not count
        how long the transaction is idle.
        """
        if self.is_over:
            return []
        check_usable(self.connection)
        cursor = new_cursor(self.connection)
        try:
            text = b"FETCH FORWARD %d FROM %b" % (CHUNK, self.name)
            await cursor.execute(text, binary=True, prepare=False)
        except psycopg.Error as error:
            raise translate(error) from error
        rows = await cursor.fetchall()
        self.is_over = len(rows) < CHUNK
        return rows


@define(eq=False)
class StreamAlone:
    """A stream with a connection and a transaction of its own."""

    connections: Connections
    cursor: _ServerCursor
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
        stream = cls(connections, _ServerCursor(await connections.borrow()))
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
            # Not rolled back: that would cost the connection its prepared statements, and the
            # host, where it lent the connection, what it wrote on it meanwhile.
            if connection.pgconn.transaction_status == TransactionStatus.INTRANS:
                await in_time(new_cursor(connection).execute(COMMIT.text))
        except psycopg.Error as error:
            if not is_cancelled():
                raise translate(error) from error
        finally:
            await self.connections.give_back(connection)


@define(eq=False)
class StreamInside:
    """A stream in the transaction that the unit, or the host, has open; it ends with that."""

    cursor: _ServerCursor
    check: Callable[[], None]
    """Raises UnitOfWorkMisuse when the block that it was opened in is no more."""
    fail: Callable[[BaseException], Awaitable[None]]
    """Fails the block that an error leaves in ruins."""

    @classmethod
    async def open(
        cls,
        connection: Connection,
        check: Callable[[], None],
        fail: Callable[[BaseException], Awaitable[None]],
        text: bytes,
        parameters: Parameters,
    ) -> StreamInside:
        """Begin to read."""
        stream = cls(_ServerCursor(connection), check, fail)
        try:
            check_usable(connection)
            await stream.cursor.open(text, parameters)
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
