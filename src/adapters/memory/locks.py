"""Locks as PostgreSQL has them on rows and unique keys: first come, first served, held to the end.

A wait that would close a circle is refused at once, in the unit that would close it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Hashable

from attrs import define, field

from ...domain.errors import StoreTimeout, TransactionAborted


@define(eq=False)
class Holder:
    """Who holds locks: one unit of work."""

    waits_for: Lock | None = None


@define(eq=False)
class Lock:
    """One lock: who holds it, and who waits."""

    owner: Holder
    waiters: deque[tuple[Holder, asyncio.Future[None]]] = field(
        factory=deque[tuple[Holder, asyncio.Future[None]]]
    )


class Locks:
    """The locks of one store."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._locks: dict[Hashable, Lock] = {}

    async def acquire(self, key: Hashable, holder: Holder) -> bool:
        """Wait for a lock; return whether it was acquired now and not held before.

        Raises TransactionAborted for a deadlock, StoreTimeout after the lock timeout.
        """
        lock = self._locks.get(key)
        if lock is None:
            self._locks[key] = Lock(holder)
            return True
        if lock.owner is holder:
            return False
        if _closes_a_circle(lock, holder):
            raise TransactionAborted(
                reason="the transaction was the victim of a deadlock", sqlstate="40P01"
            )
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        lock.waiters.append((holder, granted))
        holder.waits_for = lock
        try:
            async with asyncio.timeout(self._timeout):
                await granted
        except BaseException as error:
            self._give_up(key, lock, holder, granted)
            if isinstance(error, TimeoutError):
                raise StoreTimeout(
                    reason="a lock was not free in time (lock_timeout)", sqlstate="55P03"
                ) from None
            raise
        finally:
            holder.waits_for = None
        return True

    def release(self, key: Hashable) -> None:
        """Pass a lock on to the next who waits for it."""
        lock = self._locks[key]
        while lock.waiters:
            holder, granted = lock.waiters.popleft()
            if not granted.done():
                lock.owner, holder.waits_for = holder, None
                granted.set_result(None)
                return
        del self._locks[key]

    def _give_up(
        self, key: Hashable, lock: Lock, holder: Holder, granted: asyncio.Future[None]
    ) -> None:
        if lock.owner is holder:  # granted and interrupted at the same moment
            self.release(key)
        elif (holder, granted) in lock.waiters:  # else it was passed over as given up
            lock.waiters.remove((holder, granted))


def _closes_a_circle(lock: Lock, holder: Holder) -> bool:
    """Whether the owner of a lock waits, through others, for this holder."""
    owner = lock.owner
    while owner.waits_for is not None:
        owner = owner.waits_for.owner
        if owner is holder:
            return True
    return False
