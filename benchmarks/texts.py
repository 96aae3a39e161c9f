"""What people say in the benchmarks: the turns of real dialogues, as lengths and slots come."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
_PLACES = (
    PROJECT.parent / "shared" / "data" / "sgd_2000.jsonl.gz",
    PROJECT / "examples" / "dialogues.jsonl",
)


class Said(NamedTuple):
    """One message of a dialogue."""

    role: str
    content: str
    intent_type: str | None
    slots: dict[str, Any] | None


def turns() -> tuple[str, list[tuple[Said, Said]]]:
    """Return where the dialogues come from, and their turns: what a user said and the answer."""
    place = next(place for place in _PLACES if place.exists())
    with gzip.open(place, "rt") if place.suffix == ".gz" else place.open(encoding="utf-8") as lines:
        dialogues = [json.loads(line) for line in lines]
    found: list[tuple[Said, Said]] = []
    for dialogue in dialogues:
        said = [
            Said(each["role"], each["content"], each["intent_type"], each["slots"])
            for each in dialogue["messages"]
            if each["role"] in {"user", "assistant"}
        ]
        found += [
            (one, two)
            for one, two in itertools.pairwise(said)
            if one.role == "user" and two.role == "assistant"
        ]
    return place.name, found
