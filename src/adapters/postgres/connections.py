"""Where connections come from: a pool of ours, or of the host's; or one that it lent, see lent.py.

What the host lent is given back as it was and never closed, except when it is broken.
"""

from __future__ import annotations

import asyncio
import select
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any, Final, TypeAlias, TypeVar

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg_pool import AsyncConnectionPool

from ...domain.errors import (
    ConversationStoreError,
    StoreTimeout,
    StoreUnavailable,
    UnitOfWorkMisuse,
)
from ...service_layer.uninterrupted import begin_uninterrupted
from .encryption import EncryptionWatch
from .errors import MISUSE, READ_ONLY, translate
from .tallying import note_sent
from .waiting import in_time

Connection: TypeAlias = AsyncConnection[Any]
Pool: TypeAlias = AsyncConnectionPool[Any]

T = TypeVar("T")

_MOST_READS: Final = 16
"""Of what a host's connection that listens may have been told."""

_REFUSED: Final = "_conversation_store_refused"
"""The attribute of a connection that is not to be given out again."""

_WARNED: Final = "_conversation_store_warned"
"""The attribute of a connection that says whether the server warned since it was borrowed."""

_DOUBTED: Final = "_conversation_store_doubted"
"""The attribute of a connection whose driver may believe in statements that were never prepared."""

Manner: TypeAlias = tuple[bool, IsolationLevel | None]
"""The autocommit and isolation level of a connection."""


class Connections(ABC):
    """Gives connections that are idle, in autocommit, at READ COMMITTED, and takes them back."""

    def __init__(self) -> None:
        self._manners: dict[int, Manner] = {}

    @abstractmethod
    def refuse(self, connection: Connection) -> None:
        """Learn that a connection leads to a server that takes no writes, a standby."""

    async def borrow(self) -> Connection:
        """Give a connection. Errors: StoreTimeout, StoreUnavailable."""
        connection = await self._take()
        if connection.__dict__.get(_WARNED, True):
            self._meet(connection)
            _watch(connection)
        if connection.autocommit and connection.isolation_level is IsolationLevel.READ_COMMITTED:
            return connection
        manner = connection.autocommit, connection.isolation_level
        try:
            await connection.set_autocommit(True)
            await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
        except psycopg.Error as error:
            await self._put(connection)
            raise translate(error) from error
        except BaseException:
            await self._put(connection)
            raise
        self._manners[id(connection)] = manner
        return connection

    async def give_back(self, connection: Connection) -> None:
        """Take a connection back, clean or closed, and as it was."""
        manner = self._manners.pop(id(connection), None) if self._manners else None
        try:
            if not is_idle(connection) or _DOUBTED in connection.__dict__:
                await clean(connection)
            if manner is not None and not connection.closed:
                await connection.set_autocommit(manner[0])
                await connection.set_isolation_level(manner[1])
        except BaseException:
            cut(connection)
            raise
        finally:
            await self._put(connection)

    def note_reading(self, connection: Connection, cursor: bytes) -> None:  # noqa: B027 - it is alone
        """Note that the transaction that is begun now is that of a cursor."""

    async def end_reading(self, connection: Connection, cursor: bytes) -> None:  # noqa: ARG002
        """End the transaction of a cursor, and take its connection back. Errors: the driver's.

        Not rolled back: that would cost the connection its prepared statements.
        """
        try:
            await asyncio.sleep(0)  # what follows
            if connection.pgconn.transaction_status == TransactionStatus.INTRANS:
                note_sent(connection)
                await in_time(connection.commit())
        finally:
            await self.give_back(connection)

    @asynccontextmanager
    async def borrowed(self) -> AsyncGenerator[Connection]:
        """Lend a connection for a block, where its own cost does not matter."""
        connection = await self.borrow()
        try:
            yield connection
        except StoreUnavailable as error:
            if error.sqlstate == READ_ONLY:
                self.refuse(connection)
            raise
        finally:
            await self.give_back(connection)

    def _meet(self, connection: Connection) -> None:  # noqa: B027 - the host knows its own
        """Look at a connection when it is borrowed for the first time, or after it warned."""

    @abstractmethod
    async def _take(self) -> Connection: ...

    @abstractmethod
    async def _put(self, connection: Connection) -> None: ...


async def clean(connection: Connection) -> None:
    """Bring a connection back to idle with rollback(), or close it if it does not answer soon.

    Never by a literal ROLLBACK: only rollback() makes psycopg forget the prepared statements of a
    pipeline that failed, some of which the server never saw. Idle, a connection has nothing to
    roll back, so one that is in doubt gets something.
    """
    if connection.closed:
        return
    try:
        if forget_doubt(connection) and is_idle(connection):
            note_sent(connection, 2, round_trips=2)
            await in_time(_begin_and_roll_back(connection))
        elif is_usable(connection):
            note_sent(connection)
            await in_time(connection.rollback())
    except psycopg.Error:
        cut(connection)
    except BaseException:
        cut(connection)
        raise
    if not is_idle(connection):
        cut(connection)


async def _begin_and_roll_back(connection: Connection) -> None:
    async with connection.transaction(force_rollback=True):
        pass


def doubt(connection: Connection) -> None:
    """Have `clean` make the driver forget what it believes to be prepared on a connection."""
    connection.__dict__[_DOUBTED] = True


def forget_doubt(connection: Connection) -> bool:
    """Return whether a connection was in doubt, which who asks puts right."""
    return bool(connection.__dict__.pop(_DOUBTED, False))


def has_warned(connection: Connection) -> bool:
    """Whether the server warned of something since the connection was borrowed.

    A COMMIT that is cancelled while it waits for the synchronous standbys succeeds, with a warning
    that it perhaps did not reach them.
    """
    return bool(connection.__dict__.get(_WARNED, False))


def _watch(connection: Connection) -> None:
    """Note from now on whether the server warns of something."""
    attributes = connection.__dict__
    if _WARNED not in attributes:

        def note(diagnostic: psycopg.errors.Diagnostic) -> None:
            if diagnostic.severity_nonlocalized == "WARNING":
                attributes[_WARNED] = True

        connection.add_notice_handler(note)
    attributes[_WARNED] = False


def is_idle(connection: Connection) -> bool:
    """Whether a connection is outside of any transaction, pipeline or statement."""
    pgconn = connection.pgconn
    is_at_rest = pgconn.transaction_status == TransactionStatus.IDLE
    return is_at_rest and pgconn.pipeline_status == PipelineStatus.OFF


def is_usable(connection: Connection) -> bool:
    """Whether a statement can be sent on a connection now."""
    pgconn = connection.pgconn
    can_send = pgconn.transaction_status not in (
        TransactionStatus.ACTIVE,
        TransactionStatus.UNKNOWN,
    )
    return can_send and pgconn.pipeline_status == PipelineStatus.OFF


def check_usable(connection: Connection) -> None:
    """Refuse to go on with a connection that the host closed, or left in the middle of something.

    Whoever waited for it would wait for ever.
    """
    if connection.closed:
        raise StoreUnavailable(reason="the connection of the unit's transaction is closed")
    if not is_usable(connection):
        reason = "the unit's connection was left in a pipeline, or with a statement or COPY open"
        raise UnitOfWorkMisuse(reason=reason)


def check_transaction(connection: Connection) -> None:
    """Refuse to commit what the server would silently roll back, or what is over already."""
    check_usable(connection)
    status = connection.pgconn.transaction_status
    if status == TransactionStatus.INERROR:
        raise UnitOfWorkMisuse(reason=MISUSE["25P02"])
    if status == TransactionStatus.IDLE:
        raise UnitOfWorkMisuse(reason=MISUSE["25P01"])


def cut(connection: Connection) -> None:
    """End a connection at once: whatever state it is in, nobody is to use it again.

    Not by close(), which in some pools gives it back instead.
    """
    connection.pgconn.finish()


def was_closed(connection: Connection) -> bool:
    """Whether the server ended an idle connection, as far as it can be known without a trip.

    An idle connection has nothing to read but the server's last word and the end, or what it
    tells unasked; reading meets the end.
    """
    for _ in range(_MOST_READS):
        if connection.closed:
            return True
        if not _is_readable(connection.pgconn.socket):
            return False
        try:
            connection.pgconn.consume_input()
        except psycopg.OperationalError:
            return True
    return False


def _is_readable(socket: int) -> bool:
    if not hasattr(select, "poll"):  # Windows
        return bool(select.select([socket], [], [], 0)[0])
    poll = select.poll()
    poll.register(socket, select.POLLIN)
    return bool(poll.poll(0))


class PooledConnections(Connections):
    """The connections of a pool."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool
        self._encryption = EncryptionWatch()
        self._waiting = 0
        """How many ask for a connection now; the pool counts those who gave up, too."""

    def refuse(self, connection: Connection) -> None:
        """See to it that the connection is not given out again: the next may lead elsewhere."""
        connection.__dict__[_REFUSED] = True

    def _meet(self, connection: Connection) -> None:
        self._encryption.look_at(connection.pgconn)

    async def _take(self) -> Connection:
        while True:
            self._waiting += 1
            try:
                connection: Connection = await self.pool.getconn()
            except psycopg.OperationalError as error:
                raise self._translated(error) from error
            finally:
                self._waiting -= 1
            if not was_closed(connection):
                return connection
            # A restart of the server, or a pooler that cuts idle connections: nothing was sent on
            # it, so another does as well.
            cut(connection)
            await self._put(connection)

    def _translated(self, error: psycopg.OperationalError) -> ConversationStoreError:
        translated = translate(error)
        if isinstance(translated, StoreTimeout):
            translated.reason = (
                f"no connection was free within {self.pool.timeout:g} s "
                f"(pool of {self.pool.max_size}, {self._waiting - 1} more waiting)"
            )
        return translated

    async def _put(self, connection: Connection) -> None:
        if _REFUSED in connection.__dict__:
            cut(connection)
        # A pool that is interrupted while it takes a connection back loses it for good.
        task = begin_uninterrupted(self.pool.putconn(connection))
        if task is not None:
            await asyncio.shield(task)
