"""Storing many whole conversations, as fast as each contender can."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from typing import Any

from .contenders.contender import CannotDoError, Said
from .contenders.registry import LIMIT
from .measuring import spread
from .rounds import failure
from .scenarios import Stage

_FAST = 1000  # messages a second: then a few more conversations tell better
_MORE = 50
_FIRST = 2  # conversations, to see how fast it is


async def load_in_rounds(
    stages: dict[str, Stage], *, chance: random.Random, rounds: int
) -> dict[str, dict[str, Any]]:
    """Measure how many messages a second each contender stores; a batch is what fits the time."""
    sizes: dict[str, int] = {}
    rates: dict[str, dict[int, tuple[float, float]]] = {key: {} for key in stages}
    cannot: dict[str, str] = {}
    for key, stage in stages.items():
        try:
            await _load(stage, _FIRST)
            messages_a_second, _ = await _load(stage, _FIRST)
            if messages_a_second > _FAST:
                messages_a_second, _ = await _load(stage, _MORE)
        except CannotDoError as error:
            cannot[key] = str(error)
        except Exception as error:  # noqa: BLE001 - it is that contender's result
            cannot[key] = failure(error)
        else:
            fits = messages_a_second * stage.plan.bulk_seconds
            a_dialogue = sum(map(len, stage.dialogues.texts)) / len(stage.dialogues.texts)
            most = len(stage.dialogues.texts)
            sizes[key] = max(_FIRST, min(most, round(fits / a_dialogue)))
    for number in range(rounds):
        order = list(sizes)
        chance.shuffle(order)
        for key in order:
            rates[key][number] = await _load(stages[key], sizes[key])
    results: dict[str, dict[str, Any]] = {key: {"cannot": why} for key, why in cannot.items()}
    for key, size in sizes.items():
        results[key] = {
            "conversations": size,
            "messages_per_second": round(spread([r for r, _ in rates[key].values()])[1]),
            "cpu_us": round(spread([cpu for _, cpu in rates[key].values()])[1] * 1e6, 1),
        }
        if LIMIT in sizes:
            ratios = [rate / rates[LIMIT][n][0] for n, (rate, _) in rates[key].items()]
            results[key]["ratio"] = [round(value, 3) for value in spread(ratios)]
    return results


async def _load(stage: Stage, size: int) -> tuple[float, float]:
    """Return messages a second, and seconds of CPU a message."""
    conversations: list[tuple[str, str, Sequence[Said]]] = [
        (f"loader-{number % 100}", f"load-{next(stage.numbers)}", said)
        for number, said in zip(range(size), itertools.cycle(stage.dialogues.texts), strict=False)
    ]
    messages = sum(len(said) for _, _, said in conversations)
    began, cpu = time.perf_counter(), time.process_time()
    await stage.contender.load(conversations)
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    return messages / seconds, cpu / messages
