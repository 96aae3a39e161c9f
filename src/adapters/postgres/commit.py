"""How a unit ended that was interrupted in its last moment."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any, Final

import psycopg
from psycopg import AsyncTransaction
from psycopg.pq import TransactionStatus

from ...domain.errors import CommitOutcomeUnknown, StoreUnavailable
from ...service_layer.outcome import Outcome
from .connections import Connection, has_warned
from .errors import translate
from .statement import Cursor, Statement, succeeded
from .waiting import GRACE

CANCEL_GRACE: Final = 0.05
"""Seconds that the server is given to cancel a COMMIT, before the connection is cut."""
COMMIT_GRACE: Final = GRACE - CANCEL_GRACE
"""Seconds that a cancelled unit waits before that to learn how its COMMIT ended."""


def judge_interrupted(cursors: list[Cursor], connection: Connection) -> Outcome:
    """Return what became of a unit that was cancelled while it was sent; its last word tells."""
    if cursors and succeeded(cursors[-1]):
        return Outcome.UNKNOWN if has_warned(connection) else Outcome.COMMITTED
    return Outcome.UNKNOWN if connection.closed else Outcome.ROLLED_BACK


def is_lost(error: psycopg.Error, connection: Connection) -> bool:
    """Whether a unit that failed while it was committed may be stored all the same."""
    is_cut_off = connection.closed or connection.pgconn.transaction_status in (
        TransactionStatus.UNKNOWN,
        TransactionStatus.ACTIVE,
    )
    return is_cut_off and isinstance(translate(error), StoreUnavailable)


def outcome_unknown(
    cause: psycopg.Error | str, sent: Sequence[Statement[Any]]
) -> CommitOutcomeUnknown:
    """Return the error of a unit that was lost, with what its host needs to ask about it later."""
    existing = [s.conversation_id for s in sent if s.conversation_id is not None]
    return CommitOutcomeUnknown(
        reason=cause
        if isinstance(cause, str)
        else "the connection was lost while the unit of work was committed",
        sqlstate=None if isinstance(cause, str) else cause.sqlstate,
        conversation_ids=(*existing, *(i for s in sent for i in s.ids[: s.new_conversations])),
        message_ids=tuple(i for s in sent for i in s.ids[s.new_conversations :]),
        request_ids=tuple(s.request_id for s in sent if s.request_id is not None),
    )


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
    """Wait a moment for a COMMIT whose unit was cancelled; afterwards the task is over.

    It must be: a connection that is cut while a task still waits for its socket leaves a number
    to be used by the next one, which that task would then take out of the event loop.
    """
    with suppress(asyncio.CancelledError):  # cancelled again: so no more waiting
        await asyncio.wait([task], timeout=COMMIT_GRACE)
    if task.done() and not task.cancelled():
        error = task.exception()
        if error is None:
            return Outcome.COMMITTED
        was_refused = isinstance(error, psycopg.Error) and error.sqlstate is not None
        return Outcome.ROLLED_BACK if was_refused else Outcome.UNKNOWN
    while not task.done():
        # First the driver cancels it on the server; the second time it cuts the connection.
        task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=CANCEL_GRACE)
    return Outcome.UNKNOWN
