"""Units of work and service functions that tell an observer what they do.

A store without an observer makes none of these units, so being observed costs only who wants it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from functools import wraps
from types import TracebackType
from typing import Any, TypeVar, cast

from ..domain.errors import StoreError
from .limited import LimitedUnitOfWork
from .observer import Observation, Observer, Tally
from .script import Step
from .unit_of_work import AsyncUnitOfWork

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Coroutine[Any, Any, Any]])


class ObservedUnitOfWork(LimitedUnitOfWork):
    """What an adapter's unit of work becomes by inheriting from this before its own class."""

    observer: Observer
    tally: Tally
    """All that was sent for it so far."""

    _watch: Observation | None = None
    """From entering the outermost block until it is left."""
    _before: Tally
    """The tally when it was entered."""
    _is_again = False
    """Whether what is sent was sent before."""

    def _prepare(self) -> None:
        super()._prepare()
        self._before = self.tally.copy()
        self._watch = self.observer.unit_began()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the innermost block; see AsyncUnitOfWork."""
        try:
            await super().__aexit__(exc_type, exc, traceback)
        except BaseException as error:
            self._tell_end(error)
            raise
        self._tell_end(exc)

    def _tell_end(self, error: BaseException | None) -> None:
        """Tell the observer of the end of the unit, if this was its outermost block."""
        if self._watch is not None and not self._blocks:
            watch, self._watch = self._watch, None
            watch.end(self._since(self._before), error, self._outcome)

    def _since(self, before: Tally) -> Tally:
        done = Tally()
        done.add(self.tally, before)
        return done

    async def _send_again(self, steps: list[Step], error: StoreError) -> None:
        self._is_again = True
        try:
            await super()._send_again(steps, error)
        finally:
            self._is_again = False

    async def _send_once(self, steps: list[Step]) -> None:
        self.tally.retries += self._is_again
        await super()._send_once(steps)

    # What service functions ask -------------------------------------------------------------------

    async def watch_call(self, function: str, work: Coroutine[Any, Any, T]) -> T:
        """Do the work of a service function, and tell of it."""
        before = self.tally.copy()
        watch = self.observer.call_began(function, self._watch, stream=False)
        try:
            result = await work
        except BaseException as error:
            watch.end(self._since(before), error, None)
            raise
        watch.end(self._since(before), None, None)
        return result

    async def watch_stream(self, function: str, items: AsyncGenerator[T]) -> AsyncGenerator[T]:
        """Give what a service function gives bit by bit, and tell of it.

        The unit may do other work meanwhile; that is not counted here.
        """
        done, before = Tally(), self.tally.copy()
        watch = self.observer.call_began(function, self._watch, stream=True)
        try:
            async with aclosing(items):
                async for item in items:
                    done.add(self.tally, before)
                    try:
                        yield item
                    finally:
                        before = self.tally.copy()
        except GeneratorExit:  # whoever reads has enough
            self._end_stream(watch, done, before, None)
            raise
        except BaseException as error:
            self._end_stream(watch, done, before, error)
            raise
        self._end_stream(watch, done, before, None)

    def _end_stream(
        self, watch: Observation, done: Tally, before: Tally, error: BaseException | None
    ) -> None:
        done.add(self.tally, before)
        watch.end(done, error, None)


def observed(function: Function) -> Function:
    """Have a service function tell the observer of its unit of work, if there is one."""

    @wraps(function)
    async def call(uow: AsyncUnitOfWork, **arguments: Any) -> Any:
        work = function(uow, **arguments)
        if isinstance(uow, ObservedUnitOfWork):
            return await uow.watch_call(function.__name__, work)
        return await work

    return cast("Function", call)


def observed_stream(
    uow: AsyncUnitOfWork, function: str, items: AsyncGenerator[T]
) -> AsyncGenerator[T]:
    """Have what a service function gives bit by bit tell the observer, if there is one."""
    return uow.watch_stream(function, items) if isinstance(uow, ObservedUnitOfWork) else items
