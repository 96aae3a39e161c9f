"""One connection that the host lent, and uses itself before, after and meanwhile.

A stream may end while the host is at work on it, for an abandoned generator is closed by another
task. Whatever is then judged of the connection, or done to it, is done in its turn: with the lock
of the driver held, so that nobody else waits for its socket.
"""

# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false
# What the driver's commit() and others do once they have the lock has no public name.

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Generator
from typing import Any, Final

import psycopg
from attrs import define, field
from psycopg.pq import PipelineStatus, TransactionStatus

from ...domain.errors import UnitOfWorkMisuse
from ...service_layer.uninterrupted import begin_uninterrupted
from .connections import (
    Connection,
    Connections,
    Manner,
    cut,
    doubt,
    forget_doubt,
    is_idle,
    is_usable,
)
from .tallying import note_sent
from .waiting import CLEANING, GRACE, in_time, is_cancelled

_ENDING: Final = "_conversation_store_ending"
"""The attribute of a connection on which a stream is being ended."""

_READING: Final = "_conversation_store_reading"
"""The attribute of a connection that names the cursor of the last stream that was begun on it."""

_AGAIN: Final = 0.02
"""Seconds after which is looked again whether the host has ended what it began inside a stream."""

_endings: Final[set[asyncio.Task[None]]] = set()
"""What ends streams; the event loop itself keeps no strong reference."""


class LentConnection(Connections):
    """One connection of the host's, which the host itself uses before and after."""

    def __init__(self, connection: Connection) -> None:
        super().__init__()
        self.connection = connection

    def check(self) -> bool:
        """Return whether it is inside a transaction; raise UnitOfWorkMisuse if it is unusable."""
        status = self.connection.pgconn.transaction_status
        if self.connection.closed:
            raise UnitOfWorkMisuse(reason="the connection that was lent is closed")
        if self.connection.pgconn.pipeline_status != PipelineStatus.OFF:
            raise UnitOfWorkMisuse(reason="the connection that was lent is in pipeline mode")
        if status not in (TransactionStatus.IDLE, TransactionStatus.INTRANS):
            reason = "the connection that was lent is busy or in a failed transaction"
            raise UnitOfWorkMisuse(reason=reason)
        return status == TransactionStatus.INTRANS

    def refuse(self, connection: Connection) -> None:
        """Do nothing: it is the host's, and the only one."""

    async def settle(self) -> None:
        """Wait until a stream that is being ended on it has ended, as far as it can now."""
        ending: _Ending | None = self.connection.__dict__.get(_ENDING)
        if ending is not None:
            await asyncio.wait([ending.told], timeout=CLEANING)

    def note_reading(self, connection: Connection, cursor: bytes) -> None:
        """Note that the transaction that is begun now is that of a cursor."""
        connection.__dict__[_READING] = cursor

    async def end_reading(self, connection: Connection, cursor: bytes) -> None:
        """End the transaction of a cursor when it is its turn. Errors: the driver's.

        Statements of the host's that are under way are waited for. Where the host has begun a
        transaction(), a pipeline or a COPY inside, that ends first, and is not waited for here.
        """
        seconds = GRACE if is_cancelled() else CLEANING
        # Begun before anything is waited for: whoever uses the connection next queues behind.
        turn = begin_uninterrupted(connection.lock.acquire())
        manner = self._manners.pop(id(connection), None)
        ending = _Ending(connection, cursor, manner, seconds)
        connection.__dict__[_ENDING] = ending
        task = asyncio.create_task(ending.run(turn))
        _endings.add(task)
        task.add_done_callback(_endings.discard)
        await asyncio.wait([ending.told], timeout=2 * seconds)
        if ending.told.done() and (error := ending.told.result()) is not None:
            raise error

    async def _take(self) -> Connection:
        if self.check():
            reason = "a transaction was begun on the lent connection while the unit was open"
            raise UnitOfWorkMisuse(reason=reason)
        return self.connection

    async def _put(self, connection: Connection) -> None:
        pass


@define(eq=False)
class _Ending:
    """The end of a stream on a connection that the host goes on using."""

    connection: Connection
    cursor: bytes
    manner: Manner | None
    """What autocommit and isolation level are to be again, where they were changed."""
    seconds: float
    """In which the server has to answer."""
    told: asyncio.Future[psycopg.Error | None] = field(init=False)
    """Done when it has ended, or has to wait for the host; an error, where it failed."""

    def __attrs_post_init__(self) -> None:
        self.told = asyncio.get_running_loop().create_future()

    async def run(self, turn: Awaitable[bool] | None) -> None:
        """End it, as soon as the host is not in the middle of anything."""
        try:
            if turn is not None:
                await turn
            while not await self._in_turn():
                self._tell(None)
                await asyncio.sleep(_AGAIN)
                await self.connection.lock.acquire()
        finally:
            attributes = self.connection.__dict__
            if attributes.get(_ENDING) is self:
                del attributes[_ENDING]
            self._tell(None)

    async def _in_turn(self) -> bool:
        """End it, unless the host is in the middle of something; the lock is held, and released."""
        connection = self.connection
        try:
            if connection.closed:
                return True
            if not is_idle(connection) and not (is_usable(connection) and self._is_its_own()):
                return False
            if not await self._end_transaction():
                return False
            await self._restore_manner()
        except BaseException as error:
            cut(connection)
            if not isinstance(error, psycopg.Error):
                raise
            self._tell(error)
        finally:
            connection.lock.release()
        return True

    def _is_its_own(self) -> bool:
        """Whether no other stream was begun since, after the host had ended the transaction."""
        return bool(self.connection.__dict__.get(_READING) == self.cursor)

    async def _end_transaction(self) -> bool:
        """End what is open; return whether the host lets it, not being inside transaction()."""
        connection = self.connection
        is_doubted = forget_doubt(connection)
        try:
            if is_doubted and is_idle(connection):
                await self._do(connection._exec_command(b"BEGIN"))
                note_sent(connection)
            status = connection.pgconn.transaction_status
            if is_doubted or status == TransactionStatus.INERROR:
                await self._do(connection._rollback_gen())
            else:
                # Rolled back, it would cost the connection its prepared statements, and the host
                # what it wrote on it meanwhile.
                await self._do(connection._commit_gen())
            if status != TransactionStatus.IDLE:
                note_sent(connection)
        except psycopg.ProgrammingError as error:
            if error.sqlstate is None:
                if is_doubted:
                    doubt(connection)
                return False
            self._fail(error)
        except psycopg.Error as error:
            self._fail(error)
        return True

    def _fail(self, error: psycopg.Error) -> None:
        """Tell of an error; what the host wrote meanwhile may be what cannot be committed."""
        note_sent(self.connection)
        if not is_idle(self.connection):
            cut(self.connection)
        self._tell(error)

    async def _restore_manner(self) -> None:
        if self.manner is not None and not self.connection.closed:
            autocommit, isolation_level = self.manner
            await self._do(self.connection._set_autocommit_gen(autocommit))
            await self._do(self.connection._set_isolation_level_gen(isolation_level))

    async def _do(self, work: Generator[Any, Any, Any]) -> None:
        """Do what the driver's commit() and others do once they have the lock, which is held."""
        await in_time(self.connection.wait(work), self.seconds)

    def _tell(self, error: psycopg.Error | None) -> None:
        if not self.told.done():
            self.told.set_result(error)
