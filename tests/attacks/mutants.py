"""Walls with one stone taken out, and the attempts that would come through there."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from attrs import define, field

from conversation_store.adapters.postgres.texts import Texts

from . import siege
from .attempts import ATTEMPTS, Attempt
from .predicates import WatchedTexts, without_one
from .scene import PostgresScene
from .siege import Answer, Way, alone, answer, complaints

WAYS: tuple[Way, ...] = (alone, siege.with_others, siege.with_its_answer_lost)
"""Ways that between them use every statement."""


@define
class Played:
    """An attempt as it goes while all walls stand."""

    attempt: Attempt
    way: Way
    as_nobody: Answer


@define
class Mutants:
    """The statements of a store, each with one predicate taken out in turn."""

    scene: PostgresScene
    texts: list[Texts]
    plays: dict[str, list[Played]] = field(factory=lambda: defaultdict(list))
    """By the name of a statement: the attempts that use it."""
    count: int = 0
    """How many predicates were taken out."""

    @classmethod
    async def watch(cls, scene: PostgresScene) -> Mutants:
        """Make all attempts once and note which statements each uses."""
        assert scene.together is not None
        adapters: list[Any] = [scene.store._adapter, scene.together._adapter]
        mutants = cls(scene, [adapter._texts for adapter in adapters])
        asked_for: set[str] = set()
        for texts in mutants.texts:
            texts.__class__ = WatchedTexts
            texts.asked_for = asked_for  # type: ignore[attr-defined]
        for way in WAYS:
            for attempt in ATTEMPTS:
                as_nobody = await answer(scene, way, attempt, scene.nobody)
                asked_for.clear()
                await answer(scene, way, attempt, scene.target)
                for name in asked_for:
                    mutants.plays[name].append(Played(attempt, way, as_nobody))
        for texts in mutants.texts:
            texts.__class__ = Texts
        return mutants

    async def survivors(self) -> list[str]:
        """Return the predicates that can be taken out without any attempt finding it."""
        survivors: list[str] = []
        for name, number, text in without_one(self.texts[0]):
            self.count += 1
            if not await self._is_found(name, text):
                survivors.append(f"{name}, predicate {number}")
        return survivors

    async def _is_found(self, name: str, text: bytes) -> bool:
        original = getattr(self.texts[0], name)
        for texts in self.texts:
            setattr(texts, name, text)
        try:
            for played in self.plays[name]:
                found = await answer(self.scene, played.way, played.attempt, self.scene.target)
                if [*complaints(self.scene, played.attempt, found, played.as_nobody)]:
                    return True
            return False
        finally:
            for texts in self.texts:
                setattr(texts, name, original)
