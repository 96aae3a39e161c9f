"""Every Python block of the documents runs, in order, on a real server.

The blocks of one document are one program: they share their names and one event loop, and may use
`await` at the top level. It finds the server in CONVERSATION_STORE_DSN, and there an empty database
of its own. A block after `<!-- not run: reason -->` is only compiled.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

PROJECT = Path(__file__).resolve().parents[2]
MOST_LINES_OF_THE_FIRST_EXAMPLE = 15
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]+) -->\n+)?```python\n(?P<source>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
PYTHON_FENCE = re.compile(r"^[ \t]*(?:```+|~~~+)[ \t]*(?:py|\{)", re.MULTILINE | re.IGNORECASE)


LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def leads_somewhere(document: Path, link: str) -> bool:
    """Whether a relative link of a document leads to a file, and to a heading of it."""
    path, _, heading = link.partition("#")
    target = (document.parent / path).resolve() if path else document
    if not target.exists():
        return False
    headings = HEADING.findall(target.read_text("utf-8")) if heading else []
    anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]
    return not heading or heading in anchors


class Block(NamedTuple):
    """A Python block of a document."""

    document: Path
    line: int
    source: str
    reason: str | None
    """Why it is not run; None: it is."""

    def compiled(self) -> CodeType:
        """Compile it so that errors name the document's own lines."""
        source = "\n" * (self.line - 1) + self.source
        name = str(self.document)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code: CodeType = compile(source, name, "exec", flags, dont_inherit=True)
        return code


def blocks_of(document: Path) -> list[Block]:
    """Find the Python blocks of a document."""
    text = document.read_text("utf-8")
    return [
        Block(document, text.count("\n", 0, found.start("source")) + 1, found["source"], reason)
        for found in BLOCK.finditer(text)
        for reason in [found["reason"]]
    ]


def name_of(document: Path) -> str:
    """Return the path of a document within the project."""
    return document.relative_to(PROJECT).as_posix()


DOCUMENTS = [
    document
    for document in (*sorted(PROJECT.glob("*.md")), *sorted(PROJECT.glob("docs/**/*.md")))
    if document.is_file()
]
NOT_RUN = [block for document in DOCUMENTS for block in blocks_of(document) if block.reason]


@pytest.fixture
def database(dsn: str) -> Iterator[str]:
    """Give the connection string of an empty database that is there for one document."""
    name = Identifier("a document")
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(SQL("CREATE DATABASE {}").format(name))
        yield make_conninfo(dsn, dbname="a document")
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks_of(d)], ids=name_of)
async def test_the_blocks_of_a_document_run(
    document: Path, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader who types in what a document shows, from top to bottom, meets no error."""
    monkeypatch.setenv("CONVERSATION_STORE_DSN", database)
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks_of(document):
        if block.reason is None:
            code = block.compiled()
            result = eval(code, names)  # noqa: S307 - our own documents
            if code.co_flags & inspect.CO_COROUTINE:
                await result


@pytest.mark.parametrize(
    "block", NOT_RUN, ids=[f"{name_of(block.document)}:{block.line}" for block in NOT_RUN]
)
def test_a_block_that_is_not_run_can_be_compiled(block: Block) -> None:
    """What cannot run here, for the reason that the document gives, is Python all the same."""
    block.compiled()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_no_python_block_is_overlooked(document: Path) -> None:
    """Python stands in blocks that start with ```python at the margin, and nowhere else."""
    fences = PYTHON_FENCE.findall(document.read_text("utf-8"))

    assert len(fences) == len(blocks_of(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(document: Path) -> None:
    """What a document links to is there: a file, and in a document the heading."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", document.read_text("utf-8"), flags=re.DOTALL)
    lost = [link for link in LINK.findall(text) if not leads_somewhere(document, link)]
    assert lost == []


def test_the_readme_starts_with_a_short_example_that_runs() -> None:
    """The first thing that a newcomer reads is no longer than a screen, and true."""
    first = blocks_of(PROJECT / "README.md")[0]

    assert first.reason is None
    assert len(first.source.splitlines()) <= MOST_LINES_OF_THE_FIRST_EXAMPLE
