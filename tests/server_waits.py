"""Waits for the server to wait, so that a test acts when what it acts on has come so far.

A fixed time would be right for one machine alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

import psycopg

from conversation_store import ConversationStore

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


async def is_waiting(store: ConversationStore, task: asyncio.Task[Any]) -> bool:
    """Return whether a task goes on waiting; on a server, once that has something wait for a lock.

    What was not sent yet, because the machine is busy, seems to wait, too.
    """
    await asyncio.wait([task], timeout=0.15)
    dsn = getattr(store._adapter, "_dsn", None)
    if dsn is not None and not task.done():
        watching = asyncio.create_task(until_the_server_waits(dsn))
        await asyncio.wait([task, watching], timeout=1, return_when=asyncio.FIRST_COMPLETED)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    return not task.done()
