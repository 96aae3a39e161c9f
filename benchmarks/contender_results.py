"""The results of contenders.json, by what they are asked for."""

from __future__ import annotations

from statistics import median
from typing import Any, Final

from attrs import define, field

from .plotting import LIMIT, OTHERS, OURS, OURS_TOO

COLOURS: Final = {"ours": OURS, "coalesce": OURS_TOO, "bare": LIMIT}
_ORDER: Final = ("ours", "coalesce", "bare")
Cell = dict[str, Any]


@define
class ContenderResults:
    """One run."""

    data: dict[str, Any]
    _cells: dict[tuple[str, str, int, str], Cell] = field(init=False)
    _trips: dict[tuple[str, str], Cell] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._cells = {
            (cell["scenario"], cell["network"], cell["tasks"], cell["contender"]): cell
            for cell in self.data["cells"]
        }
        self._trips = {(row["scenario"], row["contender"]): row for row in self.data["round_trips"]}

    @property
    def keys(self) -> list[str]:
        """Contenders: ours, the limit, the others in their order."""
        known = self.data["contenders"]
        first = [key for key in _ORDER if key in known]
        return first + [key for key in known if key not in first]

    def name(self, key: str) -> str:
        """Return the name of a contender."""
        name: str = self.data["contenders"][key]["name"]
        return name

    def colour(self, key: str) -> str:
        """Return the colour of its bars."""
        return COLOURS.get(key, OTHERS)

    def cell(self, scenario: str, network: str, tasks: int, key: str) -> Cell:
        """Return what was measured, or why it was not."""
        return self._cells.get((scenario, network, tasks, key), {"cannot": "not measured"})

    def trips(self, scenario: str, key: str) -> Cell:
        """Return the round trips of an operation, or why they were not counted."""
        return self._trips.get((scenario, key), {"cannot": "not measured"})

    def scenarios(self) -> list[str]:
        """Return the scenarios that were run, in their order."""
        return list(dict.fromkeys(cell["scenario"] for cell in self.data["cells"]))

    def tasks(self, network: str) -> list[int]:
        """Return how many tasks there were at once, each time."""
        cells = self.data["cells"]
        return sorted({cell["tasks"] for cell in cells if cell["network"] == network})

    def writers(self, key: str) -> dict[str, Any]:
        """Return the rounds of writers together: medians of speeds, sums of counts."""
        rows = [row for row in self.data.get("writers_rounds", []) if row["contender"] == key]
        failed = [row["cannot"] for row in rows if "cannot" in row]
        if failed or not rows:
            return {"cannot": failed[0] if failed else "not measured"}
        speeds = ("turns_per_second", "p50_ms", "p99_ms")
        counts = ("turns", "lost", "doubled", "interleaved", "polls", "polls_moved", "polls_half")
        return {name: median(row[name] for row in rows) for name in speeds} | {
            name: sum(row[name] for row in rows) for name in counts
        }


def short(value: float) -> str:
    """Write a number with three digits that count, or all of a large one."""
    if value >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"
