"""Waits for the server to wait, so that a test acts when what it acts on has come so far.

A fixed time would be right for one machine alone.
"""

from __future__ import annotations

import asyncio

import psycopg

_WAITING = """
    SELECT FROM pg_stat_activity WHERE datname = current_database()
    AND (wait_event_type = 'Lock' OR wait_event = 'PgSleep')
"""


async def until_the_server_waits(dsn: str, *, count: int = 1) -> None:
    """Return when so many processes of the database wait for a lock, or sleep."""
    async with (
        asyncio.timeout(10),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watcher,
    ):
        while (await watcher.execute(_WAITING)).rowcount < count:
            await asyncio.sleep(0.01)
