"""What is said in the benchmarks: real dialogues where they are, else texts of the examples."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, cast

from attrs import field, frozen

from conversation_store import MessageRecord

from .contenders.contender import Said

PROJECT: Final = Path(__file__).resolve().parents[1]
_EXAMPLES: Final = PROJECT / "examples" / "dialogues.jsonl"
_SPEAKERS: Final = ("user", "assistant")
_MADE_UP: Final = 2000  # dialogues


@frozen
class Dialogues:
    """Dialogues, and where they come from."""

    origin: str
    texts: Sequence[Sequence[Said]]
    _pairs: Sequence[tuple[Said, Said]] = field(init=False)

    @_pairs.default
    def _take_apart(self) -> Sequence[tuple[Said, Said]]:
        return [
            (first, second)
            for said in self.texts
            for first, second in itertools.pairwise(said)
            if (first[0], second[0]) == _SPEAKERS
        ]

    def turns(self) -> Iterator[tuple[Said, Said]]:
        """Give turns without end: what a user said, and what the assistant said next."""
        return itertools.cycle(self._pairs)

    def long(self, length: int) -> list[Said]:
        """Return one conversation of so many messages, put together from turns."""
        return list(itertools.islice(itertools.chain.from_iterable(self.turns()), length))


def read_dialogues() -> Dialogues:
    """Read the dialogues that lie beside the checkout, or make some up."""
    real = _real()
    if real is None:
        return made_up()
    with gzip.open(real, "rt", encoding="utf-8") as lines:
        texts = [_spoken(json.loads(line)) for line in lines]
    return Dialogues("Schema-Guided Dialogue", texts)


def read_messages() -> list[MessageRecord]:
    """Read the messages of dialogues with all that they have: intents and slots, no times."""
    real = _real()
    text = _EXAMPLES.read_bytes() if real is None else gzip.decompress(real.read_bytes())
    fields = ("role", "content", "intent_type", "slots")
    return [
        cast("MessageRecord", {name: message.get(name) for name in fields})
        for line in text.splitlines()
        for message in json.loads(line)["messages"]
    ]


def _real() -> Path | None:
    beside = os.environ.get("CONVERSATION_STORE_SHARED", PROJECT.parent / "shared")
    real = Path(beside, "data", "sgd_2000.jsonl.gz")
    return real if real.exists() else None


def made_up() -> Dialogues:
    """Make up dialogues of texts of the examples: lengths as there, the same at every call."""
    records = [json.loads(line) for line in _EXAMPLES.read_text("utf-8").splitlines()]
    contents = [content for record in records for _, content in _spoken(record)]
    chance = random.Random(1)  # not the seed of the run: its order alone is drawn anew
    texts = [
        [(speaker, chance.choice(contents)) for speaker in _SPEAKERS * chance.randint(5, 15)]
        for _ in range(_MADE_UP)
    ]
    return Dialogues("made up from the examples", texts)


def _spoken(record: dict[str, Any]) -> list[Said]:
    messages = ((message["role"], message["content"]) for message in record["messages"])
    return [(role, content) for role, content in messages if role in _SPEAKERS]
