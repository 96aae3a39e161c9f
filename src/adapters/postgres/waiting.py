"""How long is waited for the network by who was cancelled, or only cleans up.

The driver, cancelled, asks the server to cancel the statement and waits for up to 10 s to hear how
it ended; so outcomes are known. Cancelled a second time it ends the connection at once. What is
done here is to cancel it a second time, after a grace. No connection is ever ended from outside:
one that is closed while a task still waits for its socket leaves a number to be used by the next,
which that task would then take out of the event loop.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from types import CoroutineType, coroutine
from typing import Any, Final, ParamSpec, TypeVar, cast

import psycopg

P = ParamSpec("P")
T = TypeVar("T")

GRACE: Final = 0.25
"""Seconds in which work that was cancelled may find out how it ended."""
CLEANING: Final = 2.0
"""Seconds in which a connection has to answer to be kept, where something is only cleaned up."""
AGAIN: Final = 0.02
"""Seconds after which work that was interrupted and goes on waiting is interrupted once more."""


@coroutine
def interruptibly(
    work: Coroutine[Any, Any, T], grace: float = GRACE
) -> Generator[asyncio.Future[Any] | None, Any, T]:
    """Do work that, once its task was cancelled, goes on for a grace at most."""
    step: Callable[[Any], Any] = work.send
    answer: Any = None
    interruption: _Interruption | None = None
    try:
        while True:
            waits_for = step(answer)
            if interruption is not None:
                interruption.waits_for = waits_for
            try:
                answer = yield waits_for
                step = work.send
            except BaseException as error:  # noqa: BLE001 - it is the work's to handle
                step, answer = work.throw, error
                if isinstance(error, asyncio.CancelledError):
                    interruption = interruption or _Interruption()
                    interruption.begin(grace)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        if interruption is not None:
            interruption.end()


class _Interruption:
    """What ends the waits of work whose task was cancelled.

    What it waits for is cancelled, not the task again: by the count of a task's cancellations
    `asyncio.timeout` knows its own. That count also tells a cancellation from a timeout inside the
    work, which the work handles itself.
    """

    def __init__(self) -> None:
        self.waits_for: asyncio.Future[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[Any] | None = None
        self._count = 0

    def begin(self, grace: float) -> None:
        """Interrupt the work after a grace, and then until it ends."""
        if self._timer is None:
            self._task = asyncio.current_task()
            self._count = self._task.cancelling() if self._task is not None else 0
            self._timer = asyncio.get_running_loop().call_later(grace, self._interrupt)

    def end(self) -> None:
        """Interrupt no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _interrupt(self) -> None:
        self._timer = None
        if self._task is None or not 0 < self._count <= self._task.cancelling():
            return  # it was a timeout inside the work, and is over
        if self.waits_for is not None:  # else it only lets others run
            self.waits_for.cancel()
        self._timer = asyncio.get_running_loop().call_later(AGAIN, self._interrupt)


def interruptible(
    method: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, CoroutineType[Any, Any, T]]:
    """Have a method end soon after it was cancelled."""

    @wraps(method)
    async def ending_soon(*args: P.args, **kwargs: P.kwargs) -> T:
        return await interruptibly(method(*args, **kwargs))

    return cast("Callable[P, CoroutineType[Any, Any, T]]", ending_soon)


async def in_time(work: Coroutine[Any, Any, T], seconds: float | None = None) -> T:
    """Do what is answered at once, or never; where it is not answered the connection is closed.

    Who was cancelled before has no more than the grace. An exception that is being handled, during
    which this cleans up, is told by a note. Errors: the driver's.
    """
    handled = sys.exception()
    limit = GRACE if is_cancelled() else seconds or CLEANING
    try:
        async with asyncio.timeout(limit):
            return await interruptibly(work, grace=0)
    except TimeoutError as error:
        reason = f"the server did not answer within {limit:g} s, so the connection was ended"
        if handled is not None:
            handled.add_note(f"Cleaning up after this, {reason}.")
        raise psycopg.OperationalError(reason) from error


def patience(left: float | None) -> float:
    """Return how many seconds a unit may clean up that has so many left; None: without limit."""
    return CLEANING if left is None else min(CLEANING, max(GRACE, left))


def is_cancelled() -> bool:
    """Whether the current task was cancelled and is on its way out."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
