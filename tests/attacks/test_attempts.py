"""What is another's does not exist: no answer, no error and no row tells otherwise."""

from __future__ import annotations

from typing import Final

from attacks import siege
from attacks.attempts import ATTEMPTS, on_one_conversation
from attacks.scene import TwinScene, first_wall
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
    siege.with_others,
    siege.with_its_answer_lost,
)


async def test_the_twin_lets_nobody_in(attack_report: list[str]) -> None:
    """Every attempt is answered as for somebody who never was."""
    scene = await TwinScene.make()
    report = await lay_siege(scene, ATTEMPTS)
    for way in WAYS:
        report.add(await lay_siege(scene, on_one_conversation(), way))
    attack_report.append(report.said("the twin"))
    print("\n".join(report.complaints))
    assert report.complaints == []


async def test_the_first_wall_lets_nobody_in(
    dsn: str, migrated: set[str], attack_report: list[str]
) -> None:
    """On PostgreSQL the same, by the predicates of the statements alone."""
    async with first_wall(dsn, migrated) as scene:
        report = await lay_siege(scene, ATTEMPTS)
        for way in (*WAYS, *ON_THE_SERVER):
            report.add(await lay_siege(scene, on_one_conversation(), way))
    attack_report.append(report.said("PostgreSQL, the predicates alone"))
    print("\n".join(report.complaints))
    assert report.complaints == []
