"""What the documents say of speed is what was measured: made from the files of results."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from benchmarks.chapters import chapters_in
from benchmarks.dialogues import PROJECT
from benchmarks.report import BEGIN, DOCUMENT, END, PARTS, PLOTS, README, document, filled

if TYPE_CHECKING:
    from pathlib import Path

RESULTS = PROJECT / "benchmarks" / "results"
TO_BE_MADE = "run `make bench-report`"


def test_the_document_is_made_from_the_results() -> None:
    """Nobody typed a number into docs/benchmarks.md."""
    assert DOCUMENT.read_text("utf-8") == document(RESULTS), TO_BE_MADE


@pytest.mark.parametrize("part_of", PARTS, ids=lambda path: path.name)
def test_a_part_of_a_document_is_made_from_the_results(part_of: Path) -> None:
    """Nobody typed a number between the marks of README and comparison."""
    text = part_of.read_text("utf-8")

    assert text == filled(RESULTS, text, PARTS[part_of]), TO_BE_MADE


def test_the_plots_are_drawn_from_these_results() -> None:
    """Each plot that is shown is there, and names the results that it was drawn from."""
    digests = {digest for _, _, digest in chapters_in(RESULTS)}
    shown = set(re.findall(r"\(benchmarks/([\w-]+)\.svg\)", DOCUMENT.read_text("utf-8")))
    shown |= set(re.findall(r"\(docs/benchmarks/([\w-]+)\.svg\)", README.read_text("utf-8")))
    drawn = {plot.stem for plot in PLOTS.glob("*.svg")}
    stale = [
        plot.name
        for plot in PLOTS.glob("*.svg")
        if not any(digest in plot.read_text("utf-8") for digest in digests)
    ]

    assert shown == drawn
    assert {plot.stem for plot in PLOTS.glob("*.png")} == drawn
    assert stale == [], TO_BE_MADE


def test_results_that_nothing_is_made_of_are_noticed(tmp_path: Path) -> None:
    """A file of results without a chapter would be forgotten."""
    (tmp_path / "other.json").write_text(json.dumps({}), "utf-8")

    with pytest.raises(AssertionError, match=r"other\.json"):
        document(tmp_path)


def test_a_document_without_marks_is_refused() -> None:
    """The part is put between its marks or nowhere."""
    make = PARTS[README]

    assert filled(RESULTS, f"before {BEGIN} old {END} after", make).startswith(f"before {BEGIN}\n")
    with pytest.raises(AssertionError, match="no place"):
        filled(RESULTS, "no marks", make)
