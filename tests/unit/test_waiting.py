"""Work that was cancelled ends after a grace, and a timeout inside of it is its own affair."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import psycopg
import pytest

from conversation_store.adapters.postgres.waiting import AGAIN, in_time, interruptibly


async def stubborn(log: list[str], times: int) -> str:
    """Wait for what never comes; be cancelled so many times before giving in."""
    for number in range(times):
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError:
            log.append(f"interrupted {number}")
            if number == times - 1:
                raise
    return "unmoved"


async def run(work: Coroutine[Any, Any, Any], grace: float) -> Any:
    """Do work as the store does."""
    return await interruptibly(work, grace)


async def test_work_that_is_not_cancelled_is_what_it_was() -> None:
    """Its result and its errors come out, and what it waits for may fail."""

    async def work(fails: bool) -> int:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        if fails:
            loop.call_soon(future.set_exception, LookupError())
        else:
            loop.call_soon(future.set_result, 7)
        await asyncio.sleep(0)
        return await future

    assert await run(work(fails=False), 0.01) == 7
    with pytest.raises(LookupError):
        await run(work(fails=True), 0.01)


@pytest.mark.parametrize("times", [1, 2, 5])
async def test_cancelled_once_work_is_interrupted_until_it_ends(times: int) -> None:
    """However often it waits anew; and `asyncio.timeout` still knows its own cancellation."""
    log: list[str] = []
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run(stubborn(log, times), 0.03)
    assert log == [f"interrupted {number}" for number in range(times)]
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_work_that_ends_within_the_grace_is_not_interrupted_again() -> None:
    """What it does on its way out has the grace to end well."""
    log: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.02)
            log.append("cleaned up")

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await run(work(), 0.2)
    assert log == ["cleaned up"]


async def test_a_timeout_inside_the_work_does_not_end_it() -> None:
    """The work met its own limit and goes on: nothing interrupts it after the grace."""

    async def work() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        await asyncio.sleep(0.03 + 3 * AGAIN)
        return "done"

    assert await run(work(), 0.02) == "done"


async def test_cleaning_that_is_not_answered_fails_and_is_told() -> None:
    """The exception that it cleans up after has a note of it."""
    log: list[str] = []
    error = LookupError("first")
    try:
        raise error
    except LookupError:
        with pytest.raises(psycopg.OperationalError, match="did not answer within"):
            await in_time(stubborn(log, 2), 0.02)
    assert len(log) == 2
    assert "did not answer within 0.02 s" in error.__notes__[0]


async def test_who_was_cancelled_has_less_time_to_clean_up() -> None:
    """On its way out a task does not wait for as long as one that goes on."""
    loop = asyncio.get_running_loop()

    async def work() -> float:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            began = loop.time()
            with pytest.raises(psycopg.OperationalError):
                await in_time(asyncio.sleep(10), 5)
            return loop.time() - began
        return 0

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    assert await task < 1
