"""Walls with one stone taken out, and the attempts that would come through there."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from attrs import define, field

from conversation_store.adapters.postgres.texts import Texts

from . import siege
from .attempts import Attempt, of_each_function, on_one_conversation
from .hosts_sql import STATEMENTS, HostsSql
from .predicates import WatchedTexts, without_one
from .scene import PostgresScene
from .siege import Answer, Way, alone, answer, answer_of_nobody, complaints

WAYS: tuple[Way, ...] = (alone, siege.with_others, siege.with_its_answer_lost)
"""Ways that between them use every statement."""


@define
class Played:
    """An attempt as it goes while all walls stand."""

    attempt: Attempt | HostsSql
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
        # Methods of repositories first: a service function may walk for ever over what it should
        # not see.
        for way in WAYS:
            attempts = sorted(on_one_conversation(), key=lambda one: "." not in one.function)
            for attempt in attempts:
                as_nobody = await answer_of_nobody(scene, way, attempt, scene.target)
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


@define
class Policy:
    """A policy as it stands."""

    name: str
    table: str
    using: str
    check: str | None

    def weakened(self) -> dict[str, tuple[str, str]]:
        """Return how it can be weakened, or be gone: what does it, and what undoes that."""
        on = f"{self.name} ON {self.table}"
        check = self.check or self.using
        again = f"USING ({self.using}) WITH CHECK ({check})"
        weakened = {
            "all may be seen and written": (
                f"ALTER POLICY {on} USING (true) WITH CHECK (true)",
                f"ALTER POLICY {on} {again}",
            ),
            "all may be written": (
                f"ALTER POLICY {on} WITH CHECK (true)",
                f"ALTER POLICY {on} {again}",
            ),
            "gone": (f"DROP POLICY {on}", f"CREATE POLICY {on} {again}"),
            "off": (
                f"ALTER TABLE {self.table} DISABLE ROW LEVEL SECURITY",
                f"ALTER TABLE {self.table} ENABLE ROW LEVEL SECURITY",
            ),
        }
        for command, clause in {
            "SELECT": "USING (true)",
            "INSERT": "WITH CHECK (true)",
            "UPDATE": "USING (true)",
            "DELETE": "USING (true)",
        }.items():
            extra = f"extra ON {self.table}"
            weakened[f"anybody's for {command}"] = (
                f"CREATE POLICY {extra} FOR {command} {clause}",
                f"DROP POLICY {extra}",
            )
        return weakened


def policies_of(scene: PostgresScene) -> list[Policy]:
    """Return the policies of a schema."""
    rows = scene.execute(
        """SELECT polname, polrelid::regclass::text, pg_get_expr(polqual, polrelid),
            pg_get_expr(polwithcheck, polrelid)
        FROM pg_policy WHERE polrelid IN
            ('ai_conversations'::regclass, 'ai_messages'::regclass) ORDER BY polname"""
    )
    return [Policy(*row) for row in rows]


@define
class WeakPolicies:
    """The policies of a store, each weakened in turn."""

    scene: PostgresScene
    plays: list[Played] = field(factory=list[Played])
    count: int = 0

    @classmethod
    async def watch(cls, scene: PostgresScene) -> WeakPolicies:
        """Make each attempt once, on nobody."""
        weak = cls(scene)
        attempts: list[Attempt | HostsSql] = [*STATEMENTS, *of_each_function()]
        for attempt in attempts:
            as_nobody = await answer_of_nobody(scene, alone, attempt, scene.target)
            weak.plays.append(Played(attempt, alone, as_nobody))
        return weak

    async def survivors(self) -> list[str]:
        """Return what can be done to a policy without any attempt finding it."""
        survivors: list[str] = []
        for policy in policies_of(self.scene):
            for name, (harm, undo) in policy.weakened().items():
                self.count += 1
                self.scene.execute(harm)
                try:
                    if not await self._is_found():
                        survivors.append(f"{policy.table}: {name}")
                finally:
                    self.scene.execute(undo)
        return survivors

    async def _is_found(self) -> bool:
        for played in self.plays:
            found = await answer(self.scene, played.way, played.attempt, self.scene.target)
            if [*complaints(self.scene, played.attempt, found, played.as_nobody, walls=False)]:
                return True
        return False
