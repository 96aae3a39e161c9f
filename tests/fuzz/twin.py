"""The side in memory, and how it says who waits for whom."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Hashable
from datetime import UTC, datetime, timedelta
from typing import Final

from conversation_store import ConversationStore, TransactionAborted
from conversation_store.adapters.memory.database import Database
from conversation_store.adapters.memory.locks import Holder, Locks
from conversation_store.adapters.memory.unit_of_work import InMemoryUnitOfWork

from .hands import HANG, IMPATIENCE, Side

_MOMENT: Final = timedelta(microseconds=1)
_A_FEW: Final = 5
"""Turns of the event loop in which a task that was cancelled learns of it."""
_AT_ONCE: Final = 1000
"""Turns of the event loop that need no time between them."""


class WatchedLocks(Locks):
    """The locks of the twin, telling how many circles of waits there were."""

    circles = 0

    async def acquire(self, key: Hashable, holder: Holder) -> bool:
        """Wait for a lock."""
        try:
            return await super().acquire(key, holder)
        except TransactionAborted:
            self.circles += 1
            raise


class Twin(Side):
    """The twin."""

    def __init__(self) -> None:
        super().__init__()
        self._now = datetime.now(UTC)
        self.locks = WatchedLocks(None)
        database = self._database = Database(self._clock, None)
        database.locks = self.locks
        # The same database once more, of those who wait for its locks a moment only.
        impatient = copy.copy(database)
        self._hasty = impatient.locks = WatchedLocks(IMPATIENCE)
        impatient.locks._locks = self.locks._locks
        self._stores = {True: _store(database), False: _store(impatient)}

    def _clock(self) -> datetime:
        """Give a time that was not given before: the server's clock is as fine as its work."""
        self._now = max(self._now + _MOMENT, datetime.now(UTC))
        return self._now

    def store(self, *, patient: bool) -> ConversationStore:
        """Return the store."""
        return self._stores[patient]

    def holder(self, number: int) -> Holder:
        """Return as whom the unit of a hand holds locks."""
        uow = self.hands[number].uow
        assert isinstance(uow, InMemoryUnitOfWork)
        return uow._view._holder

    def waits_for(self, number: int) -> Holder | None:
        """Return whom a hand waits for, if it does."""
        lock = self.holder(number).waits_for
        return None if lock is None else lock.owner

    @property
    def circles(self) -> int:
        """How many circles of waits there were."""
        return self.locks.circles + self._hasty.circles

    def is_stored(self, conversation_id: int) -> bool:
        """Whether a conversation is there for all to see."""
        return conversation_id in self._database.conversations

    def owners(self, user_id: str, session_id: str) -> list[Holder]:
        """Return who holds a session, or a conversation that has ever been of it."""
        keys: list[Hashable] = [("session", (user_id, session_id))]
        keys += [
            ("conversation", self.names.conversations[number])
            for number, home in self.names.homes.items()
            if home == (user_id, session_id)
        ]
        locks = [self.locks._locks.get(key) for key in keys]
        return [lock.owner for lock in locks if lock is not None]

    async def settle(self) -> set[int]:
        """Let all work on that can; return who waits for a lock."""
        for _ in range(_A_FEW):  # who was cancelled seems to wait until it runs
            await asyncio.sleep(0)
        turns = 0
        while True:
            busy = self.busy()
            waiting = {n for n in busy if self.waits_for(n) and self.hands[n].is_patient}
            if waiting == busy:
                return waiting
            turns += 1
            assert turns < _AT_ONCE + HANG * 1000, "a hand of the twin is stuck"
            await asyncio.sleep(0 if turns < _AT_ONCE else 0.001)


def _store(database: Database) -> ConversationStore:
    store = ConversationStore.in_memory()
    store._adapter._database = database  # type: ignore[attr-defined]
    return store
