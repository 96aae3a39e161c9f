"""Locks as PostgreSQL has them on rows and unique keys: first come, first served, held to the end.

A wait that would close a circle is refused at once, in the unit that would close it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Hashable

from attrs import define, field

from ...domain.errors import StoreTimeout, TransactionAborted


@define(eq=False)
class Holder:
    """Who holds locks: one unit of work."""

    has_changed: Callable[[int], bool]
    """Whether it has changed a conversation, and not only locked it."""
    waits_for: Lock | None = None
    end: Lock = field(init=False)
    """Not a lock on anything: those who wait for it wait until the unit ends."""

    def __attrs_post_init__(self) -> None:
        self.end = Lock(self)

    def withdraw(self, granted: asyncio.Future[bool]) -> None:
        """Wait no more."""
        if self.waits_for is not None and (self, granted) in self.waits_for.waiters:
            self.waits_for.waiters.remove((self, granted))


@define(eq=False)
class Lock:
    """One lock: who holds it, and who waits."""

    owner: Holder
    waiters: deque[tuple[Holder, asyncio.Future[bool]]] = field(
        factory=deque[tuple[Holder, asyncio.Future[bool]]]
    )
    """Each is told whether it holds the lock now, or is to try again."""


class Locks:
    """The locks of one store."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._locks: dict[Hashable, Lock] = {}

    async def acquire(self, key: Hashable, holder: Holder) -> bool:
        """Wait for a lock; return whether it was acquired now and not held before.

        Raises TransactionAborted for a deadlock, StoreTimeout after the lock timeout.
        """
        while True:
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
            if await self._wait(key, lock, holder):
                return True

    async def _wait(self, key: Hashable, lock: Lock, holder: Holder) -> bool:
        granted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        lock.waiters.append((holder, granted))
        holder.waits_for = lock
        try:
            async with asyncio.timeout(self._timeout):
                return await granted
        except BaseException as error:
            if lock.owner is holder:  # granted and interrupted at the same moment
                self.release(key)
            else:
                holder.withdraw(granted)
            if isinstance(error, TimeoutError):
                raise StoreTimeout(
                    reason="a lock was not free in time (lock_timeout)", sqlstate="55P03"
                ) from None
            raise
        finally:
            holder.waits_for = None

    def owner(self, key: Hashable) -> Holder | None:
        """Return who holds a lock."""
        lock = self._locks.get(key)
        return None if lock is None else lock.owner

    def release(self, key: Hashable) -> None:
        """Pass a lock on to the next who waits for it."""
        lock = self._locks[key]
        while lock.waiters:
            holder, granted = lock.waiters.popleft()
            if not granted.done():
                lock.owner, holder.waits_for = holder, None
                granted.set_result(True)
                return
        del self._locks[key]

    def abandon(self, key: Hashable) -> None:
        """Let go of a lock; who waits for it already goes on waiting until its unit ends.

        As for a row whose savepoint was released before the one around it was rolled back: whoever
        came earlier waits for the transaction.
        """
        lock = self._locks.pop(key)
        for holder, granted in lock.waiters:
            if not granted.done():
                holder.waits_for = lock.owner.end
                lock.owner.end.waiters.append((holder, granted))

    def end(self, holder: Holder) -> None:
        """Let those who wait for the end of a unit try again."""
        while holder.end.waiters:
            waiter, granted = holder.end.waiters.popleft()
            if not granted.done():
                waiter.waits_for = None
                granted.set_result(False)


def _closes_a_circle(lock: Lock, holder: Holder) -> bool:
    """Whether the owner of a lock waits, through others, for this holder."""
    owner = lock.owner
    while owner.waits_for is not None:
        owner = owner.waits_for.owner
        if owner is holder:
            return True
    return False
