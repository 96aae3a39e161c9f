"""The hands of a side: each is a task with a unit of work of its own that does what it is told."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

from conversation_store import AsyncUnitOfWork, ConversationStore

from .names import Ended, Names

Act = Callable[["Hand"], Awaitable[Any]]
"""What a hand does; an error that it raises is how it ended."""
IMPATIENCE: Final = 0.03
"""Seconds that an impatient unit waits for a lock."""
HANG: Final = 20.0
"""Seconds after which something is not slow any more but stuck."""
MOST_PENDINGS: Final = 6
MOST_EXPORTS: Final = 2


class HostError(Exception):
    """An error of the host's own, with which a block is left."""


class Hand:
    """One task of one side, with the unit of work that it uses now."""

    def __init__(self, side: Side) -> None:
        self.side = side
        self.names = side.names
        self.uow = side.unit_of_work()
        self.is_patient = True
        """Whether it waits for locks without end."""
        self.pendings: list[Awaitable[Any]] = []
        self.exports: list[AsyncIterator[Any]] = []
        self.ended: asyncio.Future[Ended] | None = None
        """How what it was told ends; None: it was told nothing that was not looked at."""
        self._inbox: asyncio.Queue[Act] = asyncio.Queue()
        self._is_told_to_stop = False
        self._task = asyncio.create_task(self._live())

    @property
    def is_busy(self) -> bool:
        """Whether it is at work, or waits."""
        return self.ended is not None and not self.ended.done()

    @property
    def depth(self) -> int:
        """How many blocks of its unit are open."""
        return len(self.uow._blocks)

    def tell(self, act: Act) -> None:
        """Have it do something; it is not busy."""
        self.ended = asyncio.get_running_loop().create_future()
        self._inbox.put_nowait(act)

    def interrupt(self) -> None:
        """Cancel what it does."""
        self._is_told_to_stop = True
        self._task.cancel()

    def renew(
        self, user_id: str | None, *, patient: bool = True, timeout: float | None = None
    ) -> None:
        """Take a new unit of work."""
        self.uow = self.side.unit_of_work(user_id, patient=patient, timeout=timeout)
        self.is_patient = patient

    def keep_pending(self, pending: Awaitable[Any]) -> None:
        """Keep a Pending to be awaited later."""
        self.pendings.append(pending)
        del self.pendings[:-MOST_PENDINGS]

    async def keep_export(self, records: AsyncIterator[Any]) -> None:
        """Keep records to be read later."""
        self.exports.append(records)
        while len(self.exports) > MOST_EXPORTS:
            await self.exports.pop(0).aclose()  # type: ignore[attr-defined]

    async def end(self) -> None:
        """Stop, whatever it does, and leave nothing open."""
        self._is_told_to_stop = False
        self._task.cancel()
        await asyncio.wait([self._task])
        while self.depth:
            with suppress(Exception):
                await self.uow.__aexit__(HostError, HostError(), None)
        for records in self.exports:
            with suppress(Exception):
                await records.aclose()  # type: ignore[attr-defined]

    async def _live(self) -> None:
        while True:
            act = await self._inbox.get()
            ended = self.ended
            assert ended is not None
            try:
                ended.set_result(Ended(await act(self)))
            except asyncio.CancelledError as error:
                if not self._is_told_to_stop:
                    raise
                self._is_told_to_stop = False
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
                ended.set_result(Ended(error=error))
            except Exception as error:  # noqa: BLE001 - whatever it is, the other side is to match
                ended.set_result(Ended(error=error))


class Side(ABC):
    """One of the two stores, with its hands."""

    def __init__(self) -> None:
        self.names = Names()
        self.hands: list[Hand] = []
        self.lent: Any = None
        """The host's connection that all units use, if there is one."""

    @abstractmethod
    def store(self, *, patient: bool) -> ConversationStore:
        """Return the store, whose units wait for locks without end or a moment only."""

    def unit_of_work(
        self, user_id: str | None = None, *, patient: bool = True, timeout: float | None = None
    ) -> AsyncUnitOfWork:
        """Return a unit of work."""
        store = self.store(patient=patient)
        return store.unit_of_work(user_id=user_id, connection=self.lent, timeout=timeout)

    def add_hands(self, count: int) -> None:
        """Make hands."""
        self.hands = [Hand(self) for _ in range(count)]

    def busy(self) -> set[int]:
        """Return the numbers of the hands that have not ended what they were told."""
        return {number for number, hand in enumerate(self.hands) if hand.is_busy}

    async def end_hands(self) -> None:
        """End all hands, and what they left open."""
        for hand in self.hands:
            await hand.end()
        self.hands = []
