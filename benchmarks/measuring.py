"""One slice: an operation, done again and again by so many tasks for so long."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeAlias

from attrs import frozen

Operation: TypeAlias = Callable[[int], Awaitable[Any]]
"""Does it once; is told which of the tasks does it."""


@frozen
class Slice:
    """What was measured in a slice."""

    latencies: Sequence[float]
    """Seconds, one an operation."""
    seconds: float
    """From the first beginning to the last end."""
    cpu_seconds: float
    """Of the client's process, all threads."""

    @property
    def operations(self) -> int:
        """How many there were."""
        return len(self.latencies)

    @property
    def p50(self) -> float:
        """Seconds of the median operation."""
        return statistics.median(self.latencies)

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def cpu(self) -> float:
        """Seconds of CPU an operation."""
        return self.cpu_seconds / self.operations


async def measure(operation: Operation, *, tasks: int, seconds: float) -> Slice:
    """Measure an operation: each task begins one after another until the time is over."""
    gc.collect()  # nobody pays for the garbage of who came before
    latencies: list[float] = []
    clock = time.perf_counter
    begin, cpu = clock(), time.process_time()
    deadline = begin + seconds

    async def one_after_another(task: int) -> None:
        began = clock()
        while True:
            await operation(task)
            ended = clock()
            latencies.append(ended - began)
            if ended >= deadline:
                return
            began = ended

    if tasks == 1:
        await one_after_another(0)
    else:
        async with asyncio.TaskGroup() as group:
            for task in range(tasks):
                group.create_task(one_after_another(task))
    return Slice(latencies, clock() - begin, time.process_time() - cpu)


def settle() -> None:
    """Take what there is out of the collector's sight: modules, and what contenders keep.

    Or each collection would look through the libraries of all contenders, for whoever is measured.
    """
    gc.collect()
    gc.freeze()


async def warm_up(operation: Operation, *, tasks: int, times: int, seconds: float) -> float:
    """Do it so often in each task, or for so long; return the seconds of CPU of one operation."""
    done = 0
    deadline = time.perf_counter() + seconds
    cpu = time.process_time()

    async def one_after_another(task: int) -> None:
        nonlocal done
        for _ in range(times):
            await operation(task)
            done += 1
            if time.perf_counter() >= deadline:
                return

    async with asyncio.TaskGroup() as group:
        for task in range(tasks):
            group.create_task(one_after_another(task))
    return (time.process_time() - cpu) / done


def percentile(values: Iterable[float], part: float) -> float:
    """Return the value below which this part of all values lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def spread(values: Sequence[float]) -> list[float]:
    """Return lower quartile, median and upper quartile."""
    if len(values) == 1:
        return [values[0]] * 3
    return statistics.quantiles(values, n=4, method="inclusive")
