"""A unit of work that waits for a limited time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import Any, Final, TypeVar

from attrs import frozen

from ..domain.errors import CommitOutcomeUnknown, InvalidLimit, StoreError, StoreTimeout
from ..domain.scope import Scope
from .outcome import Outcome
from .retry import Retry
from .script import Block, BlockState, Step, first_block, was_interrupted
from .unit_of_work import AsyncUnitOfWork

T = TypeVar("T")

MOST_SECONDS: Final = 86_400
"""The longest timeout: a day."""


def check_timeout(timeout: Any) -> None:
    """Raise InvalidLimit for what is no timeout."""
    if timeout is None:
        return
    number: float = 0
    if isinstance(timeout, int) and not isinstance(timeout, bool):
        number = int.__int__(timeout)  # a subclass may say one thing and hold another
    elif isinstance(timeout, float):
        number = float.__float__(timeout)
    if not 0 < number <= MOST_SECONDS:
        reason = f"must be a number of seconds above 0, at most {MOST_SECONDS}, or None"
        raise InvalidLimit(field="timeout", reason=reason)


@frozen
class TimeLimit:
    """The time in which a unit of work has to be done."""

    seconds: float
    end: float
    """By the clock of the event loop."""

    @classmethod
    def beginning_now(cls, seconds: float) -> TimeLimit:
        """Return the limit of a unit that is entered now."""
        return cls(seconds, asyncio.get_running_loop().time() + seconds)

    def left(self) -> float:
        """Return how many seconds are left; 0 or less where it is over."""
        return self.end - asyncio.get_running_loop().time()

    def error(self) -> StoreTimeout:
        """Return the error of a unit that was not done in time."""
        reason = f"the unit of work was not done within its timeout of {self.seconds:g} s"
        return StoreTimeout(reason=reason)

    def check(self) -> None:
        """Raise StoreTimeout where the time is over."""
        if self.left() <= 0:
            raise self.error()

    async def keep(self, work: Awaitable[T]) -> T:
        """Do work as long as there is time. Errors: StoreTimeout."""
        limit = asyncio.timeout_at(self.end)
        try:
            async with limit:
                return await work
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise self.error() from error


class LimitedUnitOfWork(AsyncUnitOfWork):
    """A unit of work whose waits, from entering it on, all end in time where it has a timeout.

    What it waits for is interrupted as if its task were cancelled, and tells how it ended.
    """

    def __init__(
        self,
        scope: Scope | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(scope, retry)
        check_timeout(timeout)
        self._timeout = timeout
        self._limit: TimeLimit | None = None
        self._is_kept = False
        """Whether the limit is being kept right now."""

    def _prepare(self) -> None:
        super()._prepare()
        if self._timeout is not None:
            self._limit = TimeLimit.beginning_now(self._timeout)

    # Everything that a unit may wait for is waited for in one of these.

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the innermost block; see AsyncUnitOfWork."""
        if self._limit is None or exc is not None:
            await self._wait(super().__aexit__(exc_type, exc, traceback))
        else:
            await self._leave(self._limit)

    async def _leave(self, limit: TimeLimit) -> None:
        """Leave the innermost block, which nothing has failed in, as long as there is time."""
        block = self._blocks[-1] if self._blocks else None
        if limit.left() <= 0 and _has_something(block):
            error = limit.error()
            await self._wait(super().__aexit__(StoreTimeout, error, None))
            raise error
        try:
            await self._in_time(super().__aexit__(None, None, None))
        except StoreTimeout:
            if self._outcome is not Outcome.COMMITTED:  # else it was done at the last moment
                raise

    async def rollback(self) -> None:
        """Discard what was done in the innermost block; see AsyncUnitOfWork."""
        await self._wait(super().rollback())

    async def before_read(self) -> None:
        """Send what is registered, so that a read sees it."""
        await super().before_read()
        if self._limit is not None:
            self._limit.check()

    def still_open(self) -> Callable[[], None]:
        """Return a check that a stream that begins now can go on; see AsyncUnitOfWork."""
        check, limit = super().still_open(), self._limit
        if limit is None:
            return check

        def check_both() -> None:
            check()
            limit.check()

        return check_both

    async def perform(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do at once, in the current block, what cannot be registered; see AsyncUnitOfWork."""
        self._check_live()
        if self._limit is not None:
            self._limit.check()
        return await self._in_time(super().perform(work))

    async def _send(self, steps: list[Step]) -> None:
        if self._limit is not None and steps and not self._is_kept and self._limit.left() <= 0:
            error = self._limit.error()
            await self._wait(self._fail(first_block(steps), error))
            raise error
        await self._in_time(super()._send(steps))

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for work as long as there is time. Errors: StoreTimeout, CommitOutcomeUnknown."""
        if self._limit is None or self._is_kept:
            return await self._wait(work)
        blocks = [*self._blocks]
        self._is_kept = True
        try:
            return await self._limit.keep(self._wait(work))
        except StoreTimeout as error:
            if not isinstance(error.__cause__, TimeoutError):
                raise  # a limit of the server's, or of the pool
            is_known = self._outcome is not Outcome.UNKNOWN
            met: StoreError = error if is_known else self._in_question(error.reason)
            for block in blocks:
                if block.state is BlockState.FAILED and was_interrupted(block.error):
                    block.error = met
            raise met from error.__cause__
        finally:
            self._is_kept = False

    # What an adapter does ---------------------------------------------------------------------

    def _wait(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        """Wait for work; an adapter may end it soon after it was cancelled."""
        return work

    def _in_question(self, reason: str) -> CommitOutcomeUnknown:
        """Return the error of a unit of which it is unknown whether it is stored."""
        return CommitOutcomeUnknown(reason=reason)


def _has_something(block: Block | None) -> bool:
    """Whether leaving a block has something to wait for."""
    return block is not None and block.state is BlockState.LIVE and (block.wrote or block.opened)
