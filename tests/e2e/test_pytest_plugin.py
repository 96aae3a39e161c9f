"""The fixtures for the tests of hosts, in runs of pytest of their own."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

pytest_plugins = ["pytester"]

Run = Callable[..., pytest.RunResult]

PLUGIN = "conversation_store.entrypoints.pytest_plugin"
BY_NAME = ("-p", "asyncio", "-p", "conversation_store")
"""The entry points by which pytest finds plugins; what else is installed here takes seconds."""

HOST = """
import pytest
from conversation_store import MessageDraft, append_messages, start_conversation

async def remember(store):
    uow = store.unit_of_work(user_id="ada")
    chat, _ = await start_conversation(uow, session_id="s")
    drafts = [MessageDraft(role="user", content="hello")]
    [message] = await append_messages(uow, conversation_id=chat.id, drafts=drafts)
    assert message.position == 1

@pytest.mark.parametrize("time", [1, 2])
async def test_in_memory(conversation_store, time):
    await remember(conversation_store)

@pytest.mark.parametrize("time", [1, 2])
async def test_on_a_server(conversation_store_on_server, time):
    await remember(conversation_store_on_server)

async def test_both(conversation_store, conversation_store_on_server):
    await remember(conversation_store)
    await remember(conversation_store_on_server)

async def test_by_name(conversation_store_on_server, conversation_store_schema):
    await remember(conversation_store_on_server)
    async with conversation_store_on_server.unit_of_work() as uow:
        connection = await uow.connection()
        text = f"SELECT count(*) FROM {conversation_store_schema}.ai_messages"
        assert await (await connection.execute(text)).fetchone() == (1,)
"""


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Give a way to run the tests of a host, each run a process."""
    for name in ("CONVERSATION_STORE_TEST_DSN", "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    pytester.makepyfile(test_host=HOST)

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run_it(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_subprocess("-W", "error", *BY_NAME, *arguments, timeout=60)

    return run_it


def schemas(dsn: str) -> int:
    """Return how many schemas of such runs are there."""
    text = "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'conversation!_store!_test%' "
    with psycopg.connect(dsn) as connection:
        row = connection.execute(text + "ESCAPE '!'").fetchone()
    assert row is not None
    return int(row[0])


def test_on_a_server_that_is_named(run: Run, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By option or by variable; each test begins empty, and the schema of the run is dropped."""
    run("--conversation-store-dsn", dsn).assert_outcomes(passed=6)
    monkeypatch.setenv("CONVERSATION_STORE_TEST_DSN", dsn)
    run("-k", "on_a_server").assert_outcomes(passed=2, deselected=4)
    assert schemas(dsn) == 0


def test_a_transaction_that_is_left_open(
    pytester: pytest.Pytester, run: Run, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next test says so; it does not wait for ever."""
    pytester.makepyfile(
        test_host="""
        import psycopg, pytest

        left = []

        @pytest.fixture(scope="module", autouse=True)
        def closing():
            yield
            left[0].close()

        def test_first(
            conversation_store_on_server, conversation_store_dsn, conversation_store_schema
        ):
            left.append(psycopg.connect(conversation_store_dsn))
            left[0].execute(f"SELECT FROM {conversation_store_schema}.ai_messages")

        def test_second(conversation_store_on_server):
            pass
        """
    )
    monkeypatch.setenv("CONVERSATION_STORE_TEST_DSN", dsn)
    before = schemas(dsn)
    result = run("-p", "no:randomly")
    assert result.parseoutcomes() == {"passed": 1, "errors": 1}
    result.stdout.fnmatch_lines(["*a test before this one left a transaction open*"])
    assert schemas(dsn) == before


def test_on_a_server_of_its_own(run: Run) -> None:
    """Where none is named, one is started for the run."""
    run().assert_outcomes(passed=6)


def test_no_server(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said what to do, and the tests in memory run."""
    monkeypatch.setenv("CONVERSATION_STORE_PG_BINDIR", "/nowhere")
    missing = run("-k", "in_memory or by_name")
    missing.assert_outcomes(passed=2, errors=1, deselected=3)
    missing.stdout.fnmatch_lines(["*conversation-store?embedded?*--conversation-store-dsn*"])


@pytest.mark.parametrize(
    ("dsn", "said"),
    [
        ("host=127.0.0.1 port=1 password=s3cret", "cannot be reached"),
        ("host=127.0.0.1 s3cret", "cannot be read"),
        ("postgresql://me:s3@s3cret@127.0.0.1:1/db", "percent-encoded"),
    ],
)
def test_a_server_that_does_not_answer(dsn: str, said: str) -> None:
    """What is wrong is said, and no password."""
    plugin: Any = import_module(PLUGIN)
    with pytest.raises(pytest.fail.Exception, match=said) as failed:
        plugin._connected(dsn)
    assert "s3cret" not in str(failed.value)
    assert not failed.value.pytrace


def test_a_failure_shows_no_password(
    pytester: pytest.Pytester, run: Run, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither of a test that was given the connection string, nor of a fixture of ours."""
    pytester.makepyfile(
        test_host="""
        import pytest

        @pytest.fixture(scope="session")
        def conversation_store_schema(conversation_store_dsn):
            return "no such schema"

        def test_of_its_own(conversation_store_dsn):
            assert not conversation_store_dsn

        def test_on_a_server(conversation_store_on_server):
            pass
        """
    )
    with_password = dsn if "password" in conninfo_to_dict(dsn) else f"{dsn} password=s3cret"
    monkeypatch.setenv("CONVERSATION_STORE_TEST_DSN", with_password)
    failed = run()
    assert failed.parseoutcomes() == {"failed": 1, "errors": 1}
    assert str(conninfo_to_dict(with_password)["password"]) not in failed.stdout.str()


def test_without_pytest_asyncio(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fixture in memory needs pytest alone; the other says what it needs."""
    pytester.makepyfile(
        """
        import asyncio
        from conversation_store import start_conversation

        def test_in_memory(conversation_store):
            uow = conversation_store.unit_of_work(user_id="ada")
            asyncio.run(start_conversation(uow, session_id="s"))

        def test_on_a_server(conversation_store_on_server):
            pass
        """
    )
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    code = (
        "import sys; sys.modules['pytest_asyncio'] = None\n"
        f"import pytest; sys.exit(pytest.main(['-W', 'error', '-p', {PLUGIN!r}]))"
    )
    result = pytester.run(sys.executable, "-c", code)
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*conversation-store?pytest?*", "*1 passed, 1 error*"])
