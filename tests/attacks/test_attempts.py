"""What is another's does not exist: no answer, no error and no row tells otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from attacks import siege
from attacks.attempts import ATTEMPTS, Attempt, of_each_function, on_one_conversation
from attacks.hosts_sql import STATEMENTS, HostsSql
from attacks.scene import Scene, TwinScene, both_walls, first_wall, second_wall
from attacks.siege import Way, lay_siege

TABLE: Final = Path(__file__).resolve().parents[2] / "docs" / "how-we-test.md"

WAYS: Final[tuple[Way, ...]] = (
    siege.behind_a_write,
    siege.in_an_inner_block,
    siege.in_time,
    siege.run,
    siege.while_she_writes,
)
"""Ways to make a call in any store."""

ON_THE_SERVER: Final[tuple[Way, ...]] = (
    siege.lent,
    siege.inside_the_hosts,
    siege.behind_sql,
    siege.with_its_answer_lost,
)
"""Ways in a store that has a server; group commit, where turns of several users share a statement,
is not to be had with row security."""


@dataclass(frozen=True)
class Plan:
    """What is tried on one kind of store."""

    store: str
    alone: Sequence[Attempt | HostsSql]
    """In a unit of work of its own."""
    ways: Mapping[Way, Sequence[Attempt]]
    """In other ways."""
    walls: bool = True

    @property
    def pairs(self) -> int:
        """Return how many pairs of function and attempt that are."""
        return len(self.alone) + sum(map(len, self.ways.values()))

    async def carry_out(self, scene: Scene, lines: list[str]) -> list[str]:
        """Try it all, say so, and return what is wrong."""
        report = await lay_siege(scene, self.alone, walls=self.walls)
        for way, attempts in self.ways.items():
            report.add(await lay_siege(scene, attempts, way, walls=self.walls))
        lines.append(report.said(self.store))
        assert report.pairs == self.pairs
        return report.complaints


TWIN: Final = Plan("the twin", ATTEMPTS, dict.fromkeys(WAYS, on_one_conversation()))
FIRST: Final = Plan(
    "PostgreSQL, the predicates alone",
    ATTEMPTS,
    dict.fromkeys((*WAYS, *ON_THE_SERVER), of_each_function())
    | dict.fromkeys((siege.with_others, siege.with_its_answer_lost), on_one_conversation()),
)
BOTH: Final = Plan(
    "PostgreSQL, predicates and policies",
    [*ATTEMPTS, *STATEMENTS],
    dict.fromkeys(ON_THE_SERVER, of_each_function()),
)
SECOND: Final = Plan(
    "PostgreSQL, the policies alone",
    [*ATTEMPTS, *STATEMENTS],
    dict.fromkeys((*WAYS, *ON_THE_SERVER), of_each_function()),
    walls=False,
)


async def test_the_twin_lets_nobody_in(attack_report: list[str]) -> None:
    """Every attempt is answered as for somebody who never was."""
    assert await TWIN.carry_out(await TwinScene.make(), attack_report) == []


async def test_the_first_wall_lets_nobody_in(
    dsn: str, migrated: set[str], attack_report: list[str]
) -> None:
    """As the application role, by the predicates of the statements alone, the same."""
    async with first_wall(dsn, migrated) as scene:
        assert await FIRST.carry_out(scene, attack_report) == []


async def test_both_walls_let_nobody_in(
    dsn: str, migrated: set[str], attack_report: list[str]
) -> None:
    """With row security the same, and SQL of the host's own reaches nothing either."""
    async with both_walls(dsn, migrated) as scene:
        assert await BOTH.carry_out(scene, attack_report) == []


async def test_the_second_wall_lets_nobody_in(
    dsn: str, migrated: set[str], attack_report: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the policies alone the same: the statements have no predicates, and names are not checked.

    So it is the server that refuses to do something for another user.
    """
    async with second_wall(dsn, migrated, monkeypatch) as scene:
        assert await SECOND.carry_out(scene, attack_report) == []


def test_the_table_says_how_many_there_are() -> None:
    """The table of the documentation has these numbers."""
    lines = TABLE.read_text("utf-8").split("<!-- attacks -->")[1].strip().splitlines()[2:]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert rows == [(plan.store, str(plan.pairs)) for plan in (TWIN, FIRST, BOTH, SECOND)]
