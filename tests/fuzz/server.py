"""The side on PostgreSQL, and how the server says who waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Literal, get_args

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conversation_store import ConversationStore

from .hands import HANG, IMPATIENCE, Side

Manner = Literal["pool", "coalescing", "always_coalescing", "lent", "lent_in_transaction"]
"""How the store on PostgreSQL is used."""
MANNERS: Final[tuple[Manner, ...]] = get_args(Manner)

_LONG: Final = 1.0
"""Seconds after which a side that waits where the other does not is taken at its word."""
_A_LOOK: Final = 0.01
"""Seconds that outlast the server's look for a circle of waits, a millisecond after a wait began.

Then it is over before the next step: who closes a circle is its victim, as in the twin.
"""
_SCHEMA: Final = "fuzz"
_SETTINGS: Final = "-c lock_timeout={} -c deadlock_timeout=1ms"
_WAITING: Final = """
    SELECT count(DISTINCT pid) FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE NOT granted AND datname = current_database()
"""


class Cuts(logging.Handler):
    """Counts the connections that the driver gave up because their cancellation took too long."""

    count = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Take notice of a warning of the driver's."""
        self.count += "cancellation interrupted" in record.msg


class Server:
    """What all sides on PostgreSQL share: the stores, and a connection to look in from outside."""

    def __init__(self, dsn: str, monitor: psycopg.AsyncConnection[Any]) -> None:
        self.dsn = dsn
        self.monitor = monitor
        self.cuts = Cuts()
        self.stores: dict[tuple[Manner, bool], ConversationStore] = {}
        """By manner, and whether it waits for locks without end."""

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncGenerator[Server]:
        """Open the stores on a schema that is made anew."""
        async with AsyncExitStack() as stack:
            monitor = await psycopg.AsyncConnection.connect(
                make_conninfo(dsn, options="-c lock_timeout=10s"), autocommit=True
            )
            await stack.enter_async_context(monitor)
            schema = sql.Identifier(_SCHEMA)
            await monitor.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(schema))
            server = cls(dsn, monitor)
            logging.getLogger("psycopg").addHandler(server.cuts)
            stack.callback(logging.getLogger("psycopg").removeHandler, server.cuts)
            for manner in ("pool", "coalescing", "always_coalescing"):
                for patient in (True, False):
                    store = server._store(manner, patient=patient)
                    server.stores[manner, patient] = await stack.enter_async_context(store)
            # One block of ids for all: they grow as the twin's do.
            await server.stores["pool", True].migrate(id_block=1_000_000)
            yield server

    def _store(self, manner: Manner, *, patient: bool) -> ConversationStore:
        store = ConversationStore.connect(
            self.dsn_of(patient=patient),
            schema=_SCHEMA,
            min_size=1,
            max_size=20,
            coalesce=manner != "pool",
        )
        if manner == "always_coalescing":  # a turn that comes alone, too, goes the way of many
            store._adapter._group_commit._go_together = lambda _: True  # type: ignore[attr-defined]
        return store

    def dsn_of(self, *, patient: bool) -> str:
        """Return how to connect as those do who wait for locks without end, or a moment only."""
        settings = _SETTINGS.format(0 if patient else round(IMPATIENCE * 1000))
        return make_conninfo(self.dsn, options=settings)

    async def empty(self) -> None:
        """Remove all that is stored."""
        tables = [sql.Identifier(_SCHEMA, name) for name in ("ai_conversations", "ai_messages")]
        await self.monitor.execute(sql.SQL("TRUNCATE {}, {}").format(*tables))

    async def lend(self, manner: Manner) -> psycopg.AsyncConnection[Any] | None:
        """Return a connection of the host's, where it is lent."""
        if not manner.startswith("lent"):
            return None
        connection = await psycopg.AsyncConnection.connect(self.dsn_of(patient=True))
        if manner == "lent_in_transaction":
            await connection.execute("SELECT 1")
        return connection


class Postgres(Side):
    """The store on PostgreSQL, used in one manner."""

    def __init__(
        self, server: Server, manner: Manner, lent: psycopg.AsyncConnection[Any] | None
    ) -> None:
        super().__init__()
        self._server = server
        self._manner: Manner = "pool" if lent else manner
        self.lent = lent
        self._waiting: set[int] = set()

    def store(self, *, patient: bool) -> ConversationStore:
        """Return the store."""
        return self._server.stores[self._manner, patient]

    async def settle(self, expected: set[int]) -> None:
        """Let all work on until those wait who are expected to, or others do for good."""
        clock = asyncio.get_running_loop().time
        began = clock()
        while True:
            busy = self.busy()
            if busy < expected:
                return
            if busy == expected and await self._do_wait(len(busy)):
                if busy - self._waiting:
                    await asyncio.sleep(_A_LOOK)
                self._waiting = busy
                return
            since = clock() - began
            assert since < HANG, "a hand on PostgreSQL is stuck"
            if since > _LONG and await self._do_wait(len(busy)):
                return
            ends = [hand.ended for hand in self.hands if hand.is_busy and hand.ended is not None]
            pause = 0.002 if busy == expected else _LONG / 4
            if ends:
                await asyncio.wait(ends, timeout=pause, return_when=asyncio.FIRST_COMPLETED)

    async def _do_wait(self, count: int) -> bool:
        """Whether as many connections wait for a lock that is not given to them."""
        if not count:
            return True
        cursor = await self._server.monitor.execute(_WAITING)
        row = await cursor.fetchone()
        return row is not None and row[0] == count
