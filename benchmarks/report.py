"""Writes docs/benchmarks.md, its plots, and parts of README and comparison between two marks.

All of it is made from the files in benchmarks/results; a test holds that it is what they make.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from .chapters import chapters_in
from .contender_tables import comparison_block, readme_block
from .dialogues import PROJECT
from .plotting import Plots

DOCUMENT: Final = PROJECT / "docs" / "benchmarks.md"
PLOTS: Final = PROJECT / "docs" / "benchmarks"
README: Final = PROJECT / "README.md"
COMPARISON: Final = PROJECT / "docs" / "comparison.md"
BEGIN: Final = "<!-- benchmarks:begin -->"
END: Final = "<!-- benchmarks:end -->"
_HEAD: Final = """\
<!-- Made by `python -m benchmarks report` from benchmarks/results. Not to be changed by hand. -->

# Benchmarks

What is measured, how ratios are made, and what is fair and what is not stands in
[benchmarks/README.md](../benchmarks/README.md). `make bench` measures it on your machine.
"""


def document(results: Path) -> str:
    """Return what docs/benchmarks.md is to hold."""
    parts = [_HEAD, *(chapter.text(data) for chapter, data, _ in chapters_in(results))]
    return "\n".join(part.strip() + "\n" for part in parts)


def filled(results: Path, text: str, make: Callable[[dict[str, Any]], str]) -> str:
    """Return a text with what is made of the contenders' results between its marks."""
    blocks = [
        make(data) for chapter, data, _ in chapters_in(results) if chapter.file == "contenders.json"
    ]
    between = f"{BEGIN}\n" + "".join(f"{block.strip()}\n" for block in blocks) + END
    made, marks = re.subn(
        f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: between, text, flags=re.DOTALL
    )
    assert marks == 1, f"there is no place between {BEGIN} and {END}"
    return made


PARTS: Final = {README: readme_block, COMPARISON: comparison_block}
"""Documents of which a part is made, and what makes it."""


def write_all(results: Path) -> None:
    """Write the document, its plots, and the parts of others."""
    DOCUMENT.write_text(document(results), "utf-8")
    for part_of, make in PARTS.items():
        part_of.write_text(filled(results, part_of.read_text("utf-8"), make), "utf-8")
    for chapter, data, digest in chapters_in(results):
        chapter.draw(data, Plots(PLOTS, made_from=digest))
