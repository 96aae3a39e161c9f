"""A batch of an import in memory: looked up, then stored, as PostgreSQL does it.

Sessions that do not exist are taken in their own order, whatever that of the stream. One that
another unit stores meanwhile, or a circle of waits, undoes the batch, and it is looked up anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from ...domain.errors import TransactionAborted
from ...domain.imported import ImportedConversation, Session, pick_new
from ...domain.repository import OnDuplicate
from ...service_layer.script import MAX_SENDS
from .database import Layer, View


async def take_sessions(
    view: View, batch: Sequence[ImportedConversation], on_duplicate: OnDuplicate
) -> tuple[datetime, list[ImportedConversation]]:
    """Hold the sessions of a batch that do not exist; return their records, and the time.

    Errors: DuplicateSession.
    """
    for _ in range(MAX_SENDS):
        now = view.database.clock()
        new = pick_new(
            batch,
            lambda session: view.find_session(session) is not None,
            refuses=on_duplicate == "error",
        )
        if await _are_held(view, sorted(imported.session for imported in new)):
            return now, new
    reason = "other transactions stored the same sessions, or waited for each other, meanwhile"
    raise TransactionAborted(reason=reason)


async def _are_held(view: View, sessions: Sequence[Session]) -> bool:
    """Hold sessions, all or none; return False where others were faster."""
    attempt = Layer()
    view.layers.append(attempt)
    is_held = False
    try:
        for session in sessions:
            if await view.lock_session(session) is not None:
                return False
        is_held = True
    except TransactionAborted:
        return False
    finally:
        view.layers.pop()
        if is_held:
            view.layers[-1].locks += attempt.locks
        else:
            view.release(attempt)
    return True
