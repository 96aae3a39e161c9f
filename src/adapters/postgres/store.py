"""A store on PostgreSQL: its pool, its texts, its ids."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, IsolationLevel
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool

from ...domain.errors import StoreMisconfigured, StoreUnavailable
from ...domain.scope import Scope
from ...service_layer.observer import Observer, PoolState
from ...service_layer.retry import Retry
from .connection_string import UNREADABLE, check_connection_string
from .connections import Connection, Pool, PooledConnections
from .errors import translate
from .group_commit import GroupCommit
from .ids import DRAWING, IdSource, draw_blocks
from .lent import LentConnection
from .migrate import Wanted, check_schema, migrate
from .observed import ObservedPsycopgUnitOfWork
from .quiet import quieten
from .statement import fetch_rows
from .texts import Texts
from .unit_of_work import PsycopgUnitOfWork
from .waiting import in_time, interruptible

CONNECTING: Final = 10
"""Seconds that a new connection may take, where the connection string does not say."""


class PostgresStore:
    """What units of work on one schema of one database share."""

    def __init__(
        self,
        pool: Pool,
        schema: str,
        *,
        dsn: str | None = None,
        coalesce: bool = False,
        row_security: bool = False,
        retry: Retry | None = None,
        observer: Observer | None = None,
    ) -> None:
        check_schema(schema)
        if coalesce and row_security:
            raise StoreMisconfigured(
                reason="coalesce and row_security exclude each other: turns that are stored by one "
                "statement would be of several users; take one of the two"
            )
        self._pool = pool
        self._dsn = dsn
        """Where our own pool connects to; None: the pool is the host's."""
        self._schema = schema
        self._row_security = row_security
        self._texts = Texts(schema)
        self._connections = PooledConnections(pool)
        self.retry = retry or Retry()
        self._observer = observer
        self._tell_end: Callable[[], None] | None = None
        self._ids = IdSource(self._draw_blocks)
        self._group_commit = GroupCommit(self._connections, self._texts) if coalesce else None

    async def open(self) -> None:
        """Open our own pool. Errors: StoreUnavailable at once if the server cannot be reached."""
        if self._dsn is None:
            return
        try:
            # The pool would go on trying until its timeout; one try says at once what is wrong.
            async with await connect_once(self._dsn):
                pass
            await self._pool.open(wait=True, timeout=self._pool.timeout)
        except psycopg.Error as error:
            await self._pool.close()
            raise _unreachable(error) from error
        except BaseException:
            await self._pool.close()
            raise
        if self._observer is not None:
            self._tell_end = self._observer.pool_opened(self._pool_state)

    async def close(self) -> None:
        """Close what is ours; a pool that was lent stays open."""
        if self._tell_end is not None:
            self._tell_end()
            self._tell_end = None
        await self._ids.close()
        if self._dsn is not None:
            await self._pool.close()

    def unit_of_work(
        self,
        user_id: str | None = None,
        connection: Connection | None = None,
        timeout: float | None = None,
    ) -> PsycopgUnitOfWork:
        """Return a unit of work, over the pool or over one connection of the host's."""
        is_lent = connection is not None
        new_unit: Callable[..., PsycopgUnitOfWork] = PsycopgUnitOfWork
        if self._observer is not None:
            new_unit = partial(ObservedPsycopgUnitOfWork, self._observer)
        return new_unit(
            self._connections if connection is None else LentConnection(connection),
            self._texts,
            self._ids,
            Scope(user_id, self._row_security),
            group_commit=None if is_lent else self._group_commit,
            retry=self.retry,
            timeout=timeout,
        )

    @interruptible
    async def migrate(
        self,
        id_block: int,
        connection: Connection | None = None,
        *,
        row_security: bool = False,
        roles: Mapping[str, str] | None = None,
    ) -> list[str]:
        """Apply the migrations that are missing, over the pool or inside the host's transaction."""
        wanted = Wanted(id_block=id_block, row_security=row_security, roles=roles or {})
        if connection is not None:
            return await migrate(connection, self._schema, wanted)
        async with self._connections.borrowed() as borrowed:
            return await migrate(borrowed, self._schema, wanted)

    @interruptible
    async def ping(self) -> None:
        """Ask the server for an answer. Errors: StoreUnavailable, StoreTimeout."""
        async with self._connections.borrowed() as connection:
            await fetch_rows(connection, b"SELECT 1", {})

    def _pool_state(self) -> PoolState:
        now = self._pool.get_stats()
        idle = now.get("pool_available", 0)
        return PoolState(
            used=now.get("pool_size", 0) - idle,
            idle=idle,
            waiting=now.get("requests_waiting", 0),
            most=self._pool.max_size,
        )

    @interruptible
    async def _draw_blocks(self, blocks: int) -> list[range]:
        async with self._connections.borrowed() as connection:
            try:
                return await in_time(draw_blocks(connection, self._texts, blocks), DRAWING)
            except psycopg.Error as error:
                raise translate(error) from error


def new_pool(
    dsn: str, *, min_size: int, max_size: int, timeout: float, prepare_threshold: int | None
) -> Pool:
    """Return a pool, not yet open, whose connections are as units of work want them."""
    return AsyncConnectionPool(
        with_connect_timeout(dsn),
        min_size=min_size,
        max_size=max_size,
        timeout=timeout,
        open=False,
        configure=_configure,
        name="conversation-store",
        kwargs={
            "autocommit": True,
            "prepare_threshold": prepare_threshold,
            "fallback_application_name": "conversation-store",
        },
    )


async def connect_once(dsn: str, **options: Any) -> Connection:
    """Return a connection, after one try; `options` are those of psycopg.

    Errors: StoreMisconfigured for a connection string that cannot be read, StoreUnavailable.
    """
    check_connection_string(dsn)
    try:
        return await AsyncConnection.connect(with_connect_timeout(dsn), **options)
    except psycopg.ProgrammingError:
        pass  # what it says may quote any part of the string
    except psycopg.Error as error:
        raise _unreachable(error) from error
    raise StoreMisconfigured(reason=UNREADABLE)


def _unreachable(error: psycopg.Error) -> StoreUnavailable:
    quieten(error)
    return StoreUnavailable(reason=f"the server cannot be reached: {error}")


def with_connect_timeout(dsn: str) -> str:
    """Add a limit to a connection string that has none.

    While the network swallows everything the pool's workers would be held up for long after it is
    back.
    """
    try:
        given = conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeError):
        return dsn  # told when it is used
    if "connect_timeout" in given or "PGCONNECT_TIMEOUT" in os.environ:
        return dsn
    return make_conninfo(dsn, connect_timeout=CONNECTING)


async def _configure(connection: Connection) -> None:
    await connection.set_isolation_level(IsolationLevel.READ_COMMITTED)
