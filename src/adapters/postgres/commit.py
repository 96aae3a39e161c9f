"""How a unit ended that was interrupted in its last moment."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import Final

from psycopg import AsyncTransaction

from ...service_layer.unit_of_work import Outcome
from .connections import Connection
from .statement import Cursor, succeeded

COMMIT_GRACE: Final = 1.0
"""Seconds that a cancelled unit waits to learn how its COMMIT ended."""
CANCEL_GRACE: Final = 0.25
"""Seconds that it then waits for the server to cancel it, before it cuts the connection."""


def judge_interrupted(cursors: list[Cursor], connection: Connection) -> Outcome:
    """Return what became of a unit that was cancelled while it was sent; its last word tells."""
    if cursors and succeeded(cursors[-1]):
        return Outcome.COMMITTED
    return Outcome.UNKNOWN if connection.closed else Outcome.ROLLED_BACK


def begin_commit(
    transaction: AbstractAsyncContextManager[AsyncTransaction],
) -> asyncio.Task[bool | None]:
    """Commit in a task of its own, which cancelling the unit does not end."""
    task = asyncio.create_task(_commit(transaction))
    # Where nobody waits any more, its error was told as an unknown outcome.
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    return task


async def _commit(transaction: AbstractAsyncContextManager[AsyncTransaction]) -> bool | None:
    return await transaction.__aexit__(None, None, None)


async def await_commit(task: asyncio.Task[bool | None]) -> Outcome:
    """Wait a moment for a COMMIT whose unit was cancelled."""
    await asyncio.wait([task], timeout=COMMIT_GRACE)
    if not task.done():
        task.cancel()  # the driver cancels it on the server, too, if it gets through
        await asyncio.wait([task], timeout=CANCEL_GRACE)
        return Outcome.UNKNOWN
    return Outcome.ROLLED_BACK if task.cancelled() or task.exception() else Outcome.COMMITTED
