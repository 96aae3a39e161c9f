"""Many writers on one conversation, and a reader that keeps looking: how fast, and how right."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from typing import Any

from attrs import define

from .contenders.contender import Contender, Handle, Said
from .measuring import percentile
from .plan import Plan

_BETWEEN_POLLS = 0.02  # seconds


@define
class Polls:
    """What a reader saw who polled."""

    number: int = 0
    moved: int = 0
    """Polls in which something that was seen before had another place, or none."""
    half: int = 0
    """Polls that showed a part of a turn."""


async def write_at_once(contender: Contender, name: str, plan: Plan) -> dict[str, Any]:
    """Let writers append turns to one conversation for a while; return speed and counts."""
    handle = await contender.start("writers", name, ("user", "We begin."))
    polls = Polls()
    latencies: list[float] = []
    busy = set(range(plan.writers))

    async def write(writer: int) -> None:
        for number in itertools.count():
            turn = [("user", f"{writer}/{number} asks"), ("assistant", f"{writer}/{number} says")]
            began = time.perf_counter()
            await contender.append_turn(handle, turn)
            ended = time.perf_counter()
            latencies.append(ended - began)
            if ended >= deadline:
                busy.discard(writer)
                return

    start = time.perf_counter()
    deadline = start + plan.writer_seconds
    async with asyncio.TaskGroup() as group:
        group.create_task(_poll(contender, handle, polls, lambda: not busy))
        writers = [group.create_task(write(writer)) for writer in range(plan.writers)]
        await asyncio.gather(*writers)
        seconds = time.perf_counter() - start
    turns = len(latencies)
    said = contender.said(await contender.read_all(handle))[1:]
    return {
        "turns": turns,
        "turns_per_second": round(turns / seconds, 1),
        "p50_ms": round(percentile(latencies, 0.5) * 1e3, 3),
        "p99_ms": round(percentile(latencies, 0.99) * 1e3, 3),
        "lost": 2 * turns - len(set(said)),
        "doubled": len(said) - len(set(said)),
        "interleaved": _interleaved(said),
        "polls": polls.number,
        "polls_moved": polls.moved,
        "polls_half": polls.half,
    }


async def _poll(contender: Contender, handle: Handle, polls: Polls, is_over: Any) -> None:
    seen: Sequence[Said] = []
    while not is_over():
        now = contender.said(await contender.read_all(handle))
        polls.number += 1
        polls.moved += list(now[: len(seen)]) != list(seen)
        polls.half += _has_half(now[1:])
        seen = now
        await asyncio.sleep(_BETWEEN_POLLS)


def _turn_of(said: Said) -> str:
    return said[1].split()[0]


def _interleaved(said: Sequence[Said]) -> int:
    """Count the turns whose answer does not follow its question."""
    followed = {
        _turn_of(first)
        for first, second in itertools.pairwise(said)
        if first[1].endswith("asks") and second[1] == f"{_turn_of(first)} says"
    }
    return len({_turn_of(each) for each in said} - followed)


def _has_half(said: Sequence[Said]) -> bool:
    questions = {_turn_of(each) for each in said if each[1].endswith("asks")}
    answers = {_turn_of(each) for each in said if each[1].endswith("says")}
    return questions != answers
