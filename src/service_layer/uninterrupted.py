"""Work that begins at once and is not interrupted half done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


def begin_uninterrupted(work: Coroutine[Any, Any, T]) -> asyncio.Future[T] | None:
    """Run a coroutine; if it has to wait, return the task that goes on with it.

    For what must not be interrupted half done. Mostly such work need not wait for anything, and
    then it costs no task; cancelling who waits for the task does not end it.
    """
    try:
        waits_for = work.send(None)
    except StopIteration:
        return None
    task = asyncio.ensure_future(_Rest(work, waits_for))
    _unfinished.add(task)
    task.add_done_callback(_unfinished.discard)
    return task


_unfinished: set[asyncio.Future[Any]] = set()
"""What `begin_uninterrupted` started; the event loop itself keeps no strong reference."""


class _Rest(Awaitable[T]):
    """The rest of a coroutine that was begun, from what it waits for on."""

    def __init__(self, work: Coroutine[Any, Any, T], waits_for: Any) -> None:
        self._work = work
        self._waits_for = waits_for

    def __await__(self) -> Generator[Any, Any, T]:
        waits_for = self._waits_for
        while True:
            try:
                answer = yield waits_for
            except BaseException as error:  # noqa: BLE001 - it is the coroutine's to handle
                step = partial(self._work.throw, error)
            else:
                step = partial(self._work.send, answer)
            try:
                waits_for = step()
            except StopIteration as end:
                result: T = end.value
                return result
