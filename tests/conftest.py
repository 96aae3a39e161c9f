"""What all tests share: the server, the stores, the data."""

from __future__ import annotations

import gzip
import json
import os
import platform
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import psycopg_pool
import pytest
from psycopg import sql
from server_under_test import ServerUnderTest, test_server
from store_fixtures import AWKWARD_SCHEMA, open_store

from conversation_store import ConversationStore

test_server.__test__ = False  # type: ignore[attr-defined]

_SHARED = Path(
    os.environ.get("CONVERSATION_STORE_SHARED", Path(__file__).resolve().parents[2] / "shared")
)
_origin: list[str] = []


def pytest_report_header() -> str:
    """Say what runs; which server it is, is said at the end."""
    return (
        f"conversation-store on Python {platform.python_version()}, psycopg {psycopg.__version__}, "
        f"psycopg-pool {psycopg_pool.__version__}, libpq {psycopg.pq.version()}"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which server the tests ran on."""
    for origin in _origin:
        terminalreporter.write_line(f"server under test: {origin}")


_MAY_NOT_BE_SKIPPED = {"server", "store", "shared_store"}
_NEED_THE_DATA = {"dialogues", "naughty_strings"}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI fail a test that was skipped although what it needs is, or has to be, there."""
    report = yield
    asked_for = set(getattr(item, "fixturenames", ()))
    needed = _MAY_NOT_BE_SKIPPED | (_NEED_THE_DATA if _SHARED.exists() else set())
    if report.skipped and asked_for & needed and "CONVERSATION_STORE_CI" in os.environ:
        report.outcome = "failed"
    return report


@pytest.fixture(scope="session")
def server() -> Iterator[ServerUnderTest]:
    """Give the one server of this run."""
    with test_server() as running:
        with psycopg.connect(running.dsn, autocommit=True) as connection:
            version = connection.execute("SHOW server_version").fetchone()
            # A wait that does not end is a bug; the contract of both adapters knows a limit.
            for setting in ("lock_timeout = '2s'", "deadlock_timeout = '100ms'"):
                with suppress(psycopg.errors.InsufficientPrivilege):
                    connection.execute(
                        sql.SQL("ALTER DATABASE {} SET ").format(
                            sql.Identifier(connection.info.dbname)
                        )
                        + sql.SQL(setting)
                    )
        _origin.append(f"PostgreSQL {version[0] if version else '?'} ({running.origin})")
        yield running


@pytest.fixture(scope="session")
def dsn(server: ServerUnderTest) -> str:
    """Give the connection string of the server."""
    return server.dsn


@pytest.fixture(scope="session")
def migrated(dsn: str) -> set[str]:
    """Remember which schemas of this run were migrated."""
    return set()


@pytest.fixture
async def postgres(dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    """Give an empty store on PostgreSQL, in the default schema."""
    async with open_store(dsn, "operational", migrated) as store:
        yield store


@pytest.fixture
async def awkward_postgres(dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    """Give an empty store on PostgreSQL, in a schema with an awkward name."""
    async with open_store(dsn, AWKWARD_SCHEMA, migrated) as store:
        yield store


@pytest.fixture(scope="session")
def dialogues() -> list[dict[str, Any]]:
    """Give the 2,000 dialogues of ../shared/data."""
    path = _SHARED / "data" / "sgd_2000.jsonl.gz"
    if not path.exists():
        pytest.skip(f"the dialogues are not in this checkout's neighbourhood ({path.name})")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def naughty_strings() -> list[str]:
    """Give the 515 hostile strings of ../shared/data."""
    path = _SHARED / "data" / "naughty_strings.json"
    if not path.exists():
        pytest.skip(f"the hostile strings are not in this checkout's neighbourhood ({path.name})")
    strings: list[str] = json.loads(path.read_text("utf-8"))
    return strings
