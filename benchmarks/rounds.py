"""Rounds: all contenders have one slice each, in an order that is drawn anew for each round.

What disturbs the machine for a while disturbs all of a round alike, so a ratio is taken within a
round, to the limit's slice of that very round, and the median of these ratios is what is reported.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from attrs import define, field

from .contenders.registry import LIMIT
from .measuring import Operation, Slice, measure, percentile, spread
from .plan import Plan


@define
class Course:
    """What became of one contender in one scenario."""

    operation: Operation
    slices: dict[int, Slice] = field(factory=dict)
    """By number of the round."""
    cannot: str | None = None
    """Why there is nothing to report."""

    @property
    def used(self) -> float:
        """Seconds of its slices."""
        return sum(each.seconds for each in self.slices.values())


async def run_rounds(
    operations: Mapping[str, Operation], *, tasks: int, plan: Plan, chance: random.Random
) -> dict[str, Course]:
    """Measure operations, which are warm, by key of the contender."""
    courses = {key: Course(operation) for key, operation in operations.items()}
    budget = plan.rounds * plan.slice_seconds * 1.5
    for number in range(plan.rounds):
        order = [key for key, course in courses.items() if course.cannot is None]
        chance.shuffle(order)
        for key in order:
            if courses[key].used < budget or key == LIMIT:
                await _slice(courses[key], number, tasks, plan)
    return courses


async def _slice(course: Course, number: int, tasks: int, plan: Plan) -> None:
    """Measure one slice, or note the error of that contender, so that the others go on."""
    try:
        measured = await measure(course.operation, tasks=tasks, seconds=plan.slice_seconds)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is that contender's result
        course.cannot = failure(error)
    else:
        course.slices[number] = measured


def failure(error: BaseException) -> str:
    """Say in a few words what went wrong."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"failed: {type(error).__name__}"


def figures(course: Course, limit: Course | None) -> dict[str, Any]:
    """Return what is reported of a contender's slices."""
    if course.cannot is not None:
        return {"cannot": course.cannot}
    slices = course.slices
    latencies = [latency for each in slices.values() for latency in each.latencies]
    result: dict[str, Any] = {
        "operations": len(latencies),
        "rounds": len(slices),
        "p50_ms": round(spread([each.p50 for each in slices.values()])[1] * 1e3, 4),
        "p99_ms": round(percentile(latencies, 0.99) * 1e3, 4),
        "per_second": round(spread([each.rate for each in slices.values()])[1], 1),
        "cpu_us": round(spread([each.cpu for each in slices.values()])[1] * 1e6, 1),
    }
    if limit is not None and limit.slices:
        pairs = [(each, limit.slices[n]) for n, each in slices.items() if n in limit.slices]
        for name, ratios in {
            "p50": [ours.p50 / theirs.p50 for ours, theirs in pairs],
            "cpu": [ours.cpu / theirs.cpu for ours, theirs in pairs],
            "per_second": [ours.rate / theirs.rate for ours, theirs in pairs],
        }.items():
            result[f"{name}_ratio"] = [round(value, 3) for value in spread(ratios)]
    return result
