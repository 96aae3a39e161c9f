"""What a turn and a look at the newest messages cost as a conversation gets longer."""

from __future__ import annotations

import random
import time
from statistics import median
from typing import Any

from attrs import evolve

from .contenders.contender import CannotDoError, Handle
from .measuring import Operation
from .plan import Plan
from .rounds import failure, run_rounds
from .scenarios import Stage

_LATEST = 50
_ROUNDS = 3


class Growth:
    """Measures each contender at each length, until filling takes too long."""

    def __init__(self, stages: dict[str, Stage], plan: Plan, chance: random.Random) -> None:
        self._stages = stages
        self._plan = evolve(plan, rounds=min(_ROUNDS, plan.rounds))
        self._chance = chance
        self._rates: dict[str, float] = {}  # messages a second, when it was filled last
        self._ended: dict[str, str] = {}

    async def measure(self) -> list[dict[str, Any]]:
        """Return a row for each length and contender."""
        results: list[dict[str, Any]] = []
        for length in self._plan.lengths:
            handles = {key: await self._filled(key, length) for key in self._stages}
            rows = {key: {"contender": key, "length": length} for key in self._stages}
            for name in ("latest", "append"):
                operations = {
                    key: self._operation(name, key, handle)
                    for key, handle in handles.items()
                    if key not in self._ended
                }
                courses = await run_rounds(
                    operations, tasks=1, plan=self._plan, chance=self._chance
                )
                for key, course in courses.items():
                    if course.cannot is not None:
                        self._ended[key] = course.cannot
                        continue
                    p50 = median(each.p50 for each in course.slices.values())
                    rows[key][f"{name}_ms"] = round(p50 * 1e3, 4)
            for key, why in self._ended.items():
                rows[key]["cannot"] = why
            results += rows.values()
        return results

    async def _filled(self, key: str, length: int) -> Handle:
        """Return a conversation of that length, or note why there is none."""
        stage = self._stages[key]
        seconds = length / self._rates[key] if key in self._rates else 0.0
        if key not in self._ended and seconds > self._plan.seed_seconds:
            self._ended[key] = f"left out: filling takes {seconds:.0f} s"
        if key in self._ended:
            return None
        name, said = f"grow-{next(stage.numbers)}", stage.dialogues.long(length)
        began = time.perf_counter()
        try:
            (loaded,) = await stage.contender.load([("grower", name, said)])
            self._rates[key] = length / (time.perf_counter() - began)
            return await stage.contender.resolve(loaded)
        except CannotDoError as error:
            self._ended[key] = str(error)
        except Exception as error:  # noqa: BLE001 - it is that contender's result
            self._ended[key] = failure(error)
        return None

    def _operation(self, name: str, key: str, handle: Handle) -> Operation:
        stage = self._stages[key]
        if name == "latest":
            return lambda _: stage.contender.latest(handle, _LATEST)
        turns = stage.dialogues.turns()
        return lambda _: stage.contender.append_turn(handle, next(turns))
