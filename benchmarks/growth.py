"""What a turn and a look at the newest messages cost as a conversation gets longer."""

from __future__ import annotations

import random
import time
from typing import Any

from .contenders.contender import CannotDoError, Handle
from .measuring import Operation, measure
from .rounds import failure
from .scenarios import Stage

_LATEST = 50


async def grow(stages: dict[str, Stage], *, chance: random.Random) -> list[dict[str, Any]]:
    """Measure each contender at each length, until filling or one operation takes too long."""
    results: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    ended: dict[str, str] = {}
    for length in next(iter(stages.values())).plan.lengths:
        order = list(stages)
        chance.shuffle(order)
        for key in order:
            stage = stages[key]
            row: dict[str, Any] = {"contender": key, "length": length}
            filling = length / rates[key] if key in rates else 0.0
            if key not in ended and filling > stage.plan.seed_seconds:
                ended[key] = f"left out: filling takes {filling:.0f} s"
            if key not in ended:
                try:
                    row |= await _at(stage, length, rates)
                except CannotDoError as error:
                    ended[key] = str(error)
                except Exception as error:  # noqa: BLE001 - it is that contender's result
                    ended[key] = failure(error)
            if key in ended:
                row["cannot"] = ended[key]
            results.append(row)
    return results


async def _at(stage: Stage, length: int, rates: dict[str, float]) -> dict[str, Any]:
    said = stage.dialogues.long(length)
    began = time.perf_counter()
    (loaded,) = await stage.contender.load([("grower", f"grow-{next(stage.numbers)}", said)])
    rates[stage.key] = length / (time.perf_counter() - began)
    handle = await stage.contender.resolve(loaded)
    return {
        f"{name}_ms": round(await _median_of(operation, stage) * 1e3, 4)
        for name, operation in _operations(stage, handle).items()
    }


def _operations(stage: Stage, handle: Handle) -> dict[str, Operation]:
    turns = stage.dialogues.turns()
    contender = stage.contender
    return {
        "latest": lambda _: contender.latest(handle, _LATEST),
        "append": lambda _: contender.append_turn(handle, next(turns)),
    }


async def _median_of(operation: Operation, stage: Stage) -> float:
    await measure(operation, tasks=1, seconds=stage.plan.warm_up_seconds)
    return (await measure(operation, tasks=1, seconds=stage.plan.slice_seconds)).p50
