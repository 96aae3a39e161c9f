"""A store in a thread of its own, for programs without an event loop, or with several."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future, wait
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Final, Generic, Protocol, Self, TypeVar
from weakref import WeakKeyDictionary

from ..domain.errors import StoreClosed, UnitOfWorkMisuse
from ..service_layer.unit_of_work import AsyncUnitOfWork

T = TypeVar("T")


class Store(Protocol):
    """What a history needs of a store; ConversationStore has it."""

    def unit_of_work(self, *, user_id: str | None = None) -> AsyncUnitOfWork:
        """Return a unit of work that acts for one user."""
        ...


_LOOPS: Final[WeakKeyDictionary[Store, asyncio.AbstractEventLoop]] = WeakKeyDictionary()
"""The event loop in which a framework uses a store that is in no thread."""


def check_loop(store: Store) -> None:
    """See that a store is used in one event loop, as long as that is there.

    Who lends its connections to another waits there for what happens here, perhaps for ever.

    Raises: UnitOfWorkMisuse.
    """
    here = asyncio.get_running_loop()
    known = _LOOPS.setdefault(store, here)
    if known is here:
        return
    if not known.is_closed():
        reason = "the store is in use in another event loop: put it in a StoreThread"
        raise UnitOfWorkMisuse(reason=reason)
    _LOOPS[store] = here


class StoreThread:
    """A store in a thread and an event loop of its own, for programs without one, or with several.

        with StoreThread(ConversationStore.connect(dsn)) as thread:
            session = AgentsSession("s-1", store=thread, user_id="ada")
            Runner.run_sync(agent, "Hello", session=session)

    Left, it takes no more work, waits for what others do in it, closes the store and ends the
    thread. A process that is forked needs one of its own.
    """

    def __init__(self, store: AbstractAsyncContextManager[Store]) -> None:
        """Take a store that is not opened yet."""
        self._opening = store
        self._opened: Store | None = None
        self._was_entered = False
        self._takes_work = False
        self._working: set[Future[Any]] = set()
        self._taking = threading.Lock()

    def __enter__(self) -> Self:
        """Start the thread and open the store, once. Raises what opening it raises."""
        with self._taking:
            if self._was_entered:
                raise UnitOfWorkMisuse(reason="a StoreThread is entered once")
            self._was_entered = True
        served: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(_serve(served)), name="conversation-store", daemon=True
        )
        self._thread.start()
        self._loop, self._left = served.result()
        try:
            self._opened = _Work(self._loop, self._opening.__aenter__()).wait()
        except BaseException:
            self._end()
            raise
        self._takes_work = True
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Wait for what is done in it, close the store and end the thread."""
        if not self._thread.is_alive():  # in a forked process: the store is the other's
            return
        self._check_outside()
        with self._taking:
            self._takes_work = False
        try:
            wait(self._working)
            _Work(self._loop, self._opening.__aexit__(exc_type, exc, traceback)).wait()
        finally:
            self._end()

    @property
    def store(self) -> Store:
        """The store, for use in its own loop. Raises: StoreClosed."""
        if self._opened is None:
            raise StoreClosed(reason="the thread of the store is not entered")
        return self._opened

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work in the loop of the store, and wait for it here, in any other thread.

        Who is interrupted cancels it, and waits for its end.

        Raises: StoreClosed; UnitOfWorkMisuse in the loop of the store, which it would hold.
        """
        try:
            self._check_outside()
        except UnitOfWorkMisuse:
            work.close()
            raise
        return self._begin(work).wait()

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work in the loop of the store; who is cancelled cancels it, and waits for its end.

        Raises: StoreClosed.
        """
        return await self._begin(work).result()

    def _begin(self, work: Coroutine[Any, Any, T]) -> _Work[T]:
        if self._takes_work and self._thread.is_alive():  # else it is a forked process
            with self._taking:
                if self._takes_work:
                    begun = _Work(self._loop, work)
                    self._working.add(begun.ended)
                    begun.ended.add_done_callback(self._working.discard)
                    return begun
        work.close()
        raise StoreClosed(reason="the thread of the store is not entered in this process")

    def _check_outside(self) -> None:
        if self._was_entered and threading.current_thread() is self._thread:
            raise UnitOfWorkMisuse(reason="in its own loop a StoreThread cannot be waited for")

    def _end(self) -> None:
        self._opened = None
        self._loop.call_soon_threadsafe(self._left.set)
        self._thread.join()


async def _serve(served: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]]) -> None:
    """Run an event loop until the event is set."""
    left = asyncio.Event()
    served.set_result((asyncio.get_running_loop(), left))
    await left.wait()


class _Work(Generic[T]):
    """Work in an event loop that others wait for, until it has really ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, T]) -> None:
        self.ended: Future[T] = Future()
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._start, work)

    def wait(self) -> T:
        """Hold this thread until it ended."""
        try:
            return self.ended.result()
        except BaseException:
            if not self.ended.done():
                self._cancel()
                wait([self.ended])
            raise

    async def result(self) -> T:
        """Wait until it ended, in another event loop."""
        ended, interruption = asyncio.wrap_future(self.ended), None
        while not ended.done():
            try:
                await asyncio.wait([ended])
            except asyncio.CancelledError as error:
                interruption = error
                self._cancel()
        if interruption is None:
            return ended.result()
        _ = ended.cancelled() or ended.exception()  # who is cancelled has no use for it
        raise interruption

    def _start(self, work: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(work)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        self._loop.call_soon_threadsafe(lambda: self._task and self._task.cancel())

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.ended.cancel()
            self.ended.set_running_or_notify_cancel()  # for who waits by wait()
        elif error := task.exception():
            self.ended.set_exception(error)
        else:
            self.ended.set_result(task.result())
