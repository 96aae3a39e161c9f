"""The tests of faults would find it: each guard of the store, broken, shows.

docs/how-we-test.md says the same in a table, which is held true here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.finders import FINDERS
from faults.guards import GUARDS, Guard
from ledger import left_in_transaction

TABLE = Path(__file__).resolve().parents[2] / "docs" / "how-we-test.md"


@pytest.mark.parametrize("name", sorted({guard.finder for guard in GUARDS}))
async def test_all_is_well_while_no_guard_is_broken(dsn: str, name: str) -> None:
    """Who finds broken guards finds nothing where there is none."""
    assert await FINDERS[name](dsn, "", "") == []


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
async def test_a_broken_guard_is_found(
    dsn: str, monkeypatch: pytest.MonkeyPatch, guard: Guard
) -> None:
    """It is found, in these words."""
    with monkeypatch.context() as patch:
        guard.break_(patch)
        found = await FINDERS[guard.finder](dsn, guard.harm, guard.name)
    assert [text for text in found if guard.words in text], found
    assert await left_in_transaction(dsn) == []


def test_the_table_says_what_is_tested() -> None:
    """The table of the documentation has these guards, word for word."""
    lines = TABLE.read_text("utf-8").split("<!-- guards -->")[1].strip().splitlines()[2:]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    assert rows == [(g.name, g.broken, g.finder, f"`{g.words}`") for g in GUARDS]
