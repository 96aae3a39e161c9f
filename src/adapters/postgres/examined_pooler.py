"""Whether a pooler stands between, of which kind, and whether it bears prepared statements.

A connection prepares a statement. Others then hold transactions open until one of them has the
server's end that the first one had: behind a pooler in transaction mode that happens soon. What the
first one prepared it then asks for at another end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Final

import psycopg

from ...domain.errors import ConversationStoreError
from .connections import Connection
from .findings import Finding, advice, ok, problem
from .statement import new_cursor
from .waiting import in_time

_PID: Final = b"SELECT pg_backend_pid() AS conversation_store_doctor"
_MOST_OTHERS: Final = 4
_SECONDS: Final = 5.0
_LOST: Final = {"26000", "42P05", "08P01"}
"""SQLSTATE of a prepared statement that is not there, or there already; of confusion."""

_ABOUT: Final = "pooler"
_TRANSACTIONS: Final = "there is one, in transaction mode"


async def look_at_pooler(
    connect: Callable[[], Awaitable[Connection]], *, prepares: bool
) -> Finding:
    """Look for a pooler; `connect` gives connections in autocommit. Errors: the driver's."""
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(await connect())
        if await _pid(connection) == connection.info.backend_pid:
            return ok(_ABOUT, "none between")
        try:
            home = await in_time(_pid(connection, prepare=prepares), _SECONDS)
            for _ in range(_MOST_OTHERS):
                if await in_time(_hold(connect, stack), _SECONDS) == home:
                    break
            else:
                return ok(_ABOUT, "there is one; it seems to keep sessions")
            await in_time(_pid(connection, prepare=prepares), _SECONDS)
        except (psycopg.OperationalError, ConversationStoreError):
            remedy = "let it have 2 connections or more to the server, and look again"
            return advice(_ABOUT, "there is one; it gave no second connection in time", remedy)
        except psycopg.Error as error:
            if error.sqlstate not in _LOST:
                raise
            remedy = "connect with prepare_threshold=None, and tell doctor so (--no-prepare); "
            remedy += "or PgBouncer 1.21 with max_prepared_statements"
            return problem(_ABOUT, f"{_TRANSACTIONS}; it loses prepared statements", remedy)
    what = "it bears prepared statements" if prepares else "no statements are prepared"
    return ok(_ABOUT, f"{_TRANSACTIONS}; {what}")


async def _hold(connect: Callable[[], Awaitable[Connection]], stack: AsyncExitStack) -> int:
    """Open a transaction on a connection that is closed with the stack; say at which end."""
    connection = await stack.enter_async_context(await connect())
    await connection.set_autocommit(False)
    return await _pid(connection)


async def _pid(connection: Connection, *, prepare: bool = False) -> int:
    cursor = new_cursor(connection)
    await cursor.execute(_PID, prepare=prepare)
    [(pid,)] = await cursor.fetchall()
    return int(pid)
