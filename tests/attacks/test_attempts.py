"""What is another's does not exist: no answer, no error and no row tells otherwise."""

from __future__ import annotations

from typing import Final

import pytest
from attacks import siege
from attacks.attempts import ATTEMPTS, of_each_function, on_one_conversation
from attacks.hosts_sql import STATEMENTS
from attacks.scene import TwinScene, both_walls, first_wall, second_wall
from attacks.siege import Way, lay_siege

WAYS: Final[tuple[Way, ...]] = (
    siege.behind_a_write,
    siege.in_an_inner_block,
    siege.in_time,
    siege.run,
)
"""Ways to make a call in any store."""

ON_THE_SERVER: Final[tuple[Way, ...]] = (
    siege.lent,
    siege.inside_the_hosts,
    siege.behind_sql,
    siege.with_its_answer_lost,
)
TOGETHER: Final[tuple[Way, ...]] = (siege.with_others,)
"""There is no group commit under row security: turns of several users share a statement."""


async def test_the_twin_lets_nobody_in(attack_report: list[str]) -> None:
    """Every attempt is answered as for somebody who never was."""
    scene = await TwinScene.make()
    report = await lay_siege(scene, ATTEMPTS)
    for way in WAYS:
        report.add(await lay_siege(scene, on_one_conversation(), way))
    attack_report.append(report.said("the twin"))
    assert report.complaints == []


async def test_the_first_wall_lets_nobody_in(
    dsn: str, migrated: set[str], attack_report: list[str]
) -> None:
    """As the application role, by the predicates of the statements alone, the same."""
    async with first_wall(dsn, migrated) as scene:
        report = await lay_siege(scene, ATTEMPTS)
        for way in (*WAYS, *ON_THE_SERVER, *TOGETHER):
            report.add(await lay_siege(scene, on_one_conversation(), way))
    attack_report.append(report.said("PostgreSQL, the predicates alone"))
    assert report.complaints == []


async def test_both_walls_let_nobody_in(
    dsn: str, migrated: set[str], attack_report: list[str]
) -> None:
    """With row security the same, and SQL of the host's own reaches nothing either."""
    async with both_walls(dsn, migrated) as scene:
        report = await lay_siege(scene, [*ATTEMPTS, *STATEMENTS])
        for way in (*WAYS, *ON_THE_SERVER):
            report.add(await lay_siege(scene, of_each_function(), way))
    attack_report.append(report.said("PostgreSQL, predicates and policies"))
    assert report.complaints == []


async def test_the_second_wall_lets_nobody_in(
    dsn: str, migrated: set[str], attack_report: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the policies alone the same: the statements have no predicates, and names are not checked.

    So it is the server that refuses to do something for another user.
    """
    async with second_wall(dsn, migrated, monkeypatch) as scene:
        report = await lay_siege(scene, [*ATTEMPTS, *STATEMENTS], walls=False)
        for way in (*WAYS, *ON_THE_SERVER):
            report.add(await lay_siege(scene, of_each_function(), way, walls=False))
    attack_report.append(report.said("PostgreSQL, the policies alone"))
    assert report.complaints == []
