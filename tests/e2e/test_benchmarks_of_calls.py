"""The benchmarks of this package alone: imports and exports, and where the CPU of a call goes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg
import pytest
from benchmarks import copying, overhead
from benchmarks.dialogues import PROJECT
from psycopg.conninfo import make_conninfo
from psycopg.sql import SQL, Identifier

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASE = Identifier("benchmarks_of_calls")
CONVERSATIONS = 30


@pytest.fixture
def database(dsn: str) -> Iterator[str]:
    """Give the connection string of an empty database."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(DATABASE))
        connection.execute(SQL("CREATE DATABASE {}").format(DATABASE))
        yield make_conninfo(dsn, dbname="benchmarks_of_calls")
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(DATABASE))


def rows_of(dsn: str) -> tuple[int, int]:
    """Count conversations and messages."""
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT (SELECT count(*) FROM operational.ai_conversations),"
            " (SELECT count(*) FROM operational.ai_messages)"
        ).fetchone()
    assert found is not None
    return found[0], found[1]


def test_imports_and_exports_are_measured(database: str) -> None:
    """All contenders take part in each round, and what is imported is all there at the end."""
    asyncio.run(copying.migrate(database))
    seconds = asyncio.run(copying.measure(database, CONVERSATIONS, 2))
    memory = {"import": {"N": 1, "10N": 1}, "export": {"N": 1, "10N": 1}}
    results = copying.report(CONVERSATIONS, seconds, memory)

    assert {name: len(rounds) for name, rounds in seconds.items()} == dict.fromkeys(
        ["import", "bare COPY", "check only", "export", "bare cursor"], 2
    )
    assert rows_of(database) == (CONVERSATIONS, CONVERSATIONS * copying.MESSAGES_A_RECORD)
    assert results["messages"] == CONVERSATIONS * copying.MESSAGES_A_RECORD
    assert "import / bare COPY" in copying.text(json.loads(json.dumps(results)))


def test_bare_copy_stores_what_an_import_stores(database: str) -> None:
    """The limit does the same work."""
    asyncio.run(copying.migrate(database))
    given = list(copying.records(CONVERSATIONS))

    async def copy() -> None:
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            await copying.bare_copy(connection, copying.tuples(given))

    asyncio.run(copy())

    assert rows_of(database) == (CONVERSATIONS, CONVERSATIONS * copying.MESSAGES_A_RECORD)


def test_the_cpu_of_calls_is_put_to_accounts(database: str) -> None:
    """All of it is somebody's, and most accounts are known."""
    found = asyncio.run(overhead.look(database, 40))

    assert len(found) == 5
    for parts in found.values():
        assert sum(parts.values()) == pytest.approx(1, abs=0.01)
        assert {"driver", "event loop", "pool", "adapter", "unit of work"} <= set(parts)
        assert parts.get("the rest", 0) < 0.3
    assert found["latest_messages, 1,000"]["rows to entities"] > 0


def test_messages_with_slots_are_read_beside_the_driver(database: str) -> None:
    """Both read what was stored; there is a ratio for each page."""
    record, with_slots = overhead.messages_with_slots()
    found = asyncio.run(overhead.beside_the_driver(database, 1))

    assert len(record["messages"]) == 1000
    assert 0 < with_slots <= 1000
    assert len(found) == 2
    assert all(ratio > 0 for ratio in found.values())


def test_owners_are_known_wherever_the_package_lies() -> None:
    """In a checkout as in an installation."""
    for folder in (Path("/x/site-packages/conversation_store"), PROJECT / "src"):
        file = str(folder / "adapters" / "postgres" / "rows.py")
        assert overhead.owner_of(file, "to_messages") == "rows to entities"
    assert overhead.owner_of("~", "<built-in method len>") is None
    assert overhead.owner_of("~", "<method 'poll' of 'select.epoll' objects>") == "waiting"
