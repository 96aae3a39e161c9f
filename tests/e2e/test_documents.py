"""Every Python block of the documents runs, in order, on a real server.

The blocks of one document are one program: they share their names and one event loop, and may use
`await` at the top level; a block without runs in a thread, as a program without an event loop. They
find the server in CONVERSATION_STORE_DSN, there an empty database, `chat`, and the roles of ROLES.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

from conversation_store import ConversationStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

PROJECT = Path(__file__).resolve().parents[2]
MOST_LINES_OF_THE_FIRST_EXAMPLE = 15
BLOCK = re.compile(r"^```python\n(?P<source>.*?)^```$", re.MULTILINE | re.DOTALL)
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
        Block(document, text.count("\n", 0, found.start("source")) + 1, found["source"])
        for found in BLOCK.finditer(text)
    ]


def name_of(document: Path) -> str:
    """Return the path of a document within the project."""
    return document.relative_to(PROJECT).as_posix()


DOCUMENTS = [
    document
    for document in (*sorted(PROJECT.glob("*.md")), *sorted(PROJECT.glob("docs/**/*.md")))
    if document.is_file()
]

ROLES = ("chat_owner", "chat_app", "chat_reader", "chat_maintenance")
"""Those that the documents speak of; the last one is not bound by policies."""


@pytest.fixture
def database(dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Give the connection string of the owner of a database that is made for one document.

    Who names no server in a connection string reaches this one.
    """
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS chat WITH (FORCE)")
        for role in ROLES:
            name = Identifier(role)
            connection.execute(SQL("DROP ROLE IF EXISTS {}").format(name))
            connection.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(name))
        connection.execute("ALTER ROLE chat_maintenance BYPASSRLS")
        connection.execute("CREATE DATABASE chat OWNER chat_owner")
        for variable, value in (
            ("PGHOST", connection.info.host),
            ("PGPORT", str(connection.info.port)),
            ("PGPASSWORD", "secret"),
        ):
            monkeypatch.setenv(variable, value)
        yield make_conninfo(dsn, dbname="chat", user="chat_owner", password="secret")
        connection.execute("DROP DATABASE chat WITH (FORCE)")
        for role in ROLES:
            connection.execute(SQL("DROP ROLE {}").format(Identifier(role)))


@pytest.fixture
def answers_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """See to it that agents of the OpenAI SDK ask no model over the network."""
    if "CONVERSATION_STORE_CI" not in os.environ:
        pytest.importorskip("agents", reason="needs the extra openai-agents")
    import agents
    from agents_stub import Stub

    agents.set_tracing_disabled(True)
    monkeypatch.setattr(agents, "Agent", partial(agents.Agent, model=Stub()))


def run_as_a_program(code: CodeType, names: dict[str, Any]) -> None:
    """Run a block that is in no event loop; a loop that it leaves to its thread is closed."""
    exec(code, names)  # noqa: S102 - our own documents
    with suppress(RuntimeError):  # there is none
        asyncio.get_event_loop_policy().get_event_loop().close()


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if blocks_of(d)], ids=name_of)
async def test_the_blocks_of_a_document_run(
    document: Path, database: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """A reader who types in what a document shows, from top to bottom, meets no error.

    A test that a document shows is played with a store in memory, as pytest would.
    """
    monkeypatch.setenv("CONVERSATION_STORE_DSN", database)
    blocks = blocks_of(document)
    if any("from agents import" in block.source for block in blocks):
        request.getfixturevalue("answers_offline")
    names: dict[str, Any] = {"__name__": "document"}
    for block in blocks:
        code = block.compiled()
        if code.co_flags & inspect.CO_COROUTINE:
            await eval(code, names)  # noqa: S307 - our own documents
        else:
            await asyncio.to_thread(run_as_a_program, code, names)
    for test in [value for name, value in names.items() if name.startswith("test_")]:
        if "conversation_store" in inspect.signature(test).parameters:
            async with ConversationStore.in_memory() as store:
                await test(store)


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

    assert len(first.source.splitlines()) <= MOST_LINES_OF_THE_FIRST_EXAMPLE
