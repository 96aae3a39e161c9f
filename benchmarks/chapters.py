"""The chapters of docs/benchmarks.md: one for each file of results.

A further benchmark writes a file into benchmarks/results and gets a line in CHAPTERS: what makes
its text, and what draws its plots.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from attrs import frozen

from . import contender_plots, contender_tables, copying, overhead
from .plotting import Plots

Results = dict[str, Any]


@frozen
class Chapter:
    """What is made of one file of results."""

    file: str
    text: Callable[[Results], str]
    """Makes the Markdown, from its heading (##) on; names plots as benchmarks/NAME.svg."""
    draw: Callable[[Results, Plots], None]
    """Draws the plots that the text names."""


CHAPTERS: Final = [
    Chapter("contenders.json", contender_tables.text, contender_plots.draw),
    Chapter("overhead.json", overhead.text, lambda _results, _plots: None),
    Chapter("copying.json", copying.text, lambda _results, _plots: None),
]


OTHERS: Final = {
    "indexes.json",
    "naptime_15s.json",
    "naptime_1min.json",
    "soak.json",
    "storage.json",
    "table_growth.json",
    "write_run.json",
}
"""Of other documents: docs/large-tables.md and docs/how-we-test.md."""


def chapters_in(results: Path) -> Iterator[tuple[Chapter, Results, str]]:
    """Give the chapters whose results are there, with these and their digest."""
    known = {chapter.file for chapter in CHAPTERS} | OTHERS
    unknown = {file.name for file in results.glob("*.json")} - known
    assert not unknown, f"no chapter is made of {sorted(unknown)}: see benchmarks/chapters.py"
    for chapter in CHAPTERS:
        file = results / chapter.file
        if file.exists():
            content = file.read_bytes()
            yield chapter, json.loads(content), hashlib.sha256(content).hexdigest()
