"""An export in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ...domain.imported import Session
from ...domain.record import ConversationRecord, to_record
from .database import Stored


class SnapshotRecords:
    """The records of conversations as they were when the export began.

    A version of a conversation never changes, so a list of them is a snapshot.
    """

    def __init__(self, seen: Iterable[Stored], check: Callable[[], None]) -> None:
        self._left = sorted(seen, key=_session, reverse=True)
        self._check = check

    def __aiter__(self) -> SnapshotRecords:
        return self

    async def __anext__(self) -> ConversationRecord:
        self._check()
        if not self._left:
            raise StopAsyncIteration
        stored = self._left.pop()
        return to_record(stored.shown(), stored.shown_messages())

    async def aclose(self) -> None:
        """Let go of the snapshot."""
        self._left.clear()


def _session(stored: Stored) -> Session:
    return stored.conversation.user_id, stored.conversation.session_id
