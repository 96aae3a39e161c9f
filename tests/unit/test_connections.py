"""Giving a connection back, whatever happens meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from conversation_store.service_layer.uninterrupted import begin_uninterrupted


async def run(work: Coroutine[Any, Any, None]) -> None:
    """Run work, waiting for it as the store does."""
    task = begin_uninterrupted(work)
    if task is not None:
        await asyncio.shield(task)


async def test_work_that_need_not_wait_costs_no_task() -> None:
    """What runs through at once runs in the caller."""
    tasks: set[object] = set()

    async def work() -> None:
        tasks.add(asyncio.current_task())

    before = asyncio.all_tasks()
    await run(work())
    assert tasks == {asyncio.current_task()}
    assert asyncio.all_tasks() == before


async def test_work_that_waits_is_finished_though_its_caller_is_cancelled() -> None:
    """The caller is cancelled at once; what it began goes on to its end."""
    lock, done = asyncio.Lock(), asyncio.Event()
    await lock.acquire()

    async def work() -> None:
        async with lock:
            await asyncio.sleep(0)
        done.set()

    caller = asyncio.create_task(run(work()))
    await asyncio.sleep(0)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not done.is_set()
    lock.release()
    async with asyncio.timeout(1):
        await done.wait()


async def test_what_the_work_waits_for_may_fail() -> None:
    """An error that work waits for is the work's to handle, and what it raises is the caller's."""
    failing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    seen: list[str] = []

    async def work() -> None:
        try:
            await failing
        except LookupError as error:
            seen.append(str(error))
        await asyncio.sleep(0)
        raise ArithmeticError

    caller = asyncio.create_task(run(work()))
    await asyncio.sleep(0)
    failing.set_exception(LookupError("lost"))
    with pytest.raises(ArithmeticError):
        await caller
    assert seen == ["lost"]
