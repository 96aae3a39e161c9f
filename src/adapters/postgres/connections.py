"""Where connections come from: a pool of ours, a pool of the host's, or one connection lent by it.

What the host lent is given back as it was and never closed, except when it is broken.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg_pool import AsyncConnectionPool

from ...domain.errors import StoreTimeout, UnitOfWorkMisuse
from .errors import translate

Connection: TypeAlias = AsyncConnection[Any]
Pool: TypeAlias = AsyncConnectionPool[Any]

_Manner: TypeAlias = tuple[bool, IsolationLevel | None]


class Connections(ABC):
    """Gives connections that are idle, in autocommit, at READ COMMITTED, and takes them back."""

    def __init__(self) -> None:
        self._manners: dict[int, _Manner] = {}

    async def borrow(self) -> Connection:
        """Give a connection. Errors: StoreTimeout, StoreUnavailable."""
        connection = await self._take()
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
            if connection.pgconn.transaction_status != TransactionStatus.IDLE:
                await clean(connection)
            if manner is not None and not connection.closed:
                await connection.set_autocommit(manner[0])
                await connection.set_isolation_level(manner[1])
        except BaseException:
            await connection.close()
            raise
        finally:
            await self._put(connection)

    @abstractmethod
    async def _take(self) -> Connection: ...

    @abstractmethod
    async def _put(self, connection: Connection) -> None: ...


async def clean(connection: Connection) -> None:
    """Bring a connection back to idle with rollback(), or close it.

    Never by a literal ROLLBACK: only rollback() makes psycopg forget the prepared statements of a
    pipeline that failed, some of which the server never saw.
    """
    if connection.closed:
        return
    try:
        if connection.pgconn.pipeline_status == PipelineStatus.OFF:
            await connection.rollback()
    except psycopg.Error:
        await connection.close()
    except BaseException:
        await connection.close()
        raise
    if connection.pgconn.transaction_status != TransactionStatus.IDLE:
        await connection.close()


class PooledConnections(Connections):
    """The connections of a pool."""

    def __init__(self, pool: Pool) -> None:
        super().__init__()
        self.pool = pool

    async def _take(self) -> Connection:
        try:
            connection: Connection = await self.pool.getconn()
        except psycopg.errors.OperationalError as error:
            translated = translate(error)
            if isinstance(translated, StoreTimeout):
                waiting = self.pool.get_stats().get("requests_waiting", 0)
                translated.reason = (
                    f"no connection was free within {self.pool.timeout:g} s "
                    f"(pool of {self.pool.max_size}, {waiting} more waiting)"
                )
            raise translated from error
        return connection

    async def _put(self, connection: Connection) -> None:
        await self.pool.putconn(connection)


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

    async def _take(self) -> Connection:
        return self.connection

    async def _put(self, connection: Connection) -> None:
        pass
