"""The attacks would notice: with one stone of a wall taken out, somebody comes through."""

from __future__ import annotations

from typing import Any

import pytest
from attacks.attempts import ATTEMPTS, on_one_conversation
from attacks.mutants import Mutants, WeakPolicies
from attacks.scene import TwinScene, first_wall, second_wall
from attacks.siege import lay_siege
from attrs import evolve

from conversation_store import Conversation
from conversation_store.adapters.memory import conversations, messages, verdicts
from conversation_store.adapters.postgres import removal
from conversation_store.domain import unit
from conversation_store.domain.removal import RemovalCondition

EQUIVALENT = {
    "look_for_start, predicate 1": "the row is looked for by an id that this unit has drawn",
    "look_for_turn, predicate 1": "the messages are looked for by ids that this unit has drawn",
    "remove_part, predicate 1": "what it finds counts only beside what the second one finds",
    "look_for_rest, predicate 1": "it is looked for only where another write was refused",
    "look_up, predicate 1": "what is found is compared with the users of the batch once more",
}
"""Predicates that keep nobody out, and why they do not have to."""


async def test_a_predicate_taken_out_is_found(
    dsn: str, migrated: set[str], attack_report: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every statement, one predicate at a time, where nothing else keeps users apart."""
    monkeypatch.setattr(removal, "BATCH_LOOKED_AT", 1)  # so that a walk has a second step
    async with first_wall(dsn, migrated) as scene:
        mutants = await Mutants.watch(scene)
        survivors = await mutants.survivors()
    found = mutants.count - len(survivors)
    attack_report.append(f"attacks: of {mutants.count} predicates taken out {found} were found")
    assert sorted(survivors) == sorted(EQUIVALENT)


async def test_a_weakened_policy_is_found(
    dsn: str, migrated: set[str], attack_report: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each table, for each command, where nothing but policies keeps users apart."""
    async with second_wall(dsn, migrated, monkeypatch) as scene:
        weak = await WeakPolicies.watch(scene)
        survivors = await weak.survivors()
    found = weak.count - len(survivors)
    attack_report.append(f"attacks: of {weak.count} weakened policies {found} were found")
    assert survivors == []


async def test_what_the_twin_does_not_check_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks of the store in memory, of everything that is addressed by its id."""
    is_met_by = RemovalCondition.is_met_by

    def is_met_by_anyone(self: RemovalCondition, conversation: Conversation) -> bool:
        return is_met_by(evolve(self, user_id=None), conversation)

    monkeypatch.setattr(RemovalCondition, "is_met_by", is_met_by_anyone)
    for module in (conversations, messages, verdicts):
        monkeypatch.setattr(module, "is_seen", lambda *_: True)
    report = await lay_siege(await TwinScene.make(), on_one_conversation())
    missed = {
        one.function
        for one in on_one_conversation()
        if {"conversation_id", "message_id"} & one.tries
    } - report.came_through
    assert missed == set()


async def test_another_user_that_may_be_named_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one check of what a scoped unit may name, in both stores alike."""

    def owner(self: Any, user_id: str | None) -> str:
        return user_id or self._unit.user_id

    monkeypatch.setattr(unit.Repository, "_owner", owner)
    report = await lay_siege(await TwinScene.make(), ATTEMPTS)
    assert {one.function for one in ATTEMPTS if one.is_misuse} == report.came_through
