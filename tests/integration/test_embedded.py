"""The embedded server: that it starts wherever we run, and that it is gone whatever ends us."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from conversation_store.adapters.postgres import embedded
from conversation_store.adapters.postgres.embedded import (
    EmbeddedPostgres,
    EmbeddedPostgresError,
    find_binaries,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
if_not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may enter everywhere")

# A host that starts a server, tells of it, and waits for its end.
HOST = """
import importlib.util, json, sys, time
spec = importlib.util.spec_from_file_location("embedded", sys.argv[1])
embedded = importlib.util.module_from_spec(spec)
spec.loader.exec_module(embedded)
from pathlib import Path
with embedded.EmbeddedPostgres(binaries=Path(sys.argv[2])) as server:
    print(json.dumps([server.dsn, server.pid]), flush=True)
    sys.stdin.readline()
"""


def ask(server: EmbeddedPostgres, query: str) -> Any:  # noqa: ANN401
    """Return the one value that the query gives."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        row = conn.execute(query.encode()).fetchone()
        assert row
        return row[0]


def folder_of(dsn: str) -> Path:
    """Return the folder of the server, which is where its socket is."""
    return Path(str(psycopg.conninfo.conninfo_to_dict(dsn)["host"]))


def runs(pid: int) -> bool:
    """Say whether there is such a process, zombies apart."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)  # noqa: S607
    return bool(state.stdout.strip()) and not state.stdout.startswith(b"Z")


def eventually(condition: Callable[[], bool]) -> bool:
    """Wait for the condition, for 20 seconds at most."""
    deadline = time.monotonic() + 20
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def nothing_is_left(folder: Path, pid: int) -> bool:
    """Say whether server and folder are gone."""
    return not folder.exists() and not runs(pid)


@contextmanager
def host_with_a_server(
    python: str = sys.executable, **how: Any  # noqa: ANN401
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Start a host in a process of its own; its server's dsn and process id come with it."""
    command = [python, "-I", "-c", HOST, str(embedded.__file__), str(find_binaries())]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, **how) as host:
        assert host.stdout
        try:
            dsn, pid = json.loads(host.stdout.readline())
            yield host, dsn, pid
        finally:
            host.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server for the tests that only look."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
def private_folder(tmp_path: Path) -> Path:
    """A folder that nobody else may enter, like the home of root."""
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    return folder


def test_it_is_a_server(server: EmbeddedPostgres) -> None:
    """The dsn leads to a server of the version that is told, and its process is the one told."""
    assert ask(server, "SELECT current_setting('server_version')").startswith(server.version)
    assert ask(server, "SELECT pg_backend_pid()") != server.pid
    assert runs(server.pid)
    assert "ready to accept connections" in server.log()


def test_it_sorts_and_stores_like_nobody_s_locale(server: EmbeddedPostgres) -> None:
    """The encoding is UTF8 and the collation is C, whatever the machine's locale."""
    assert ask(server, "SHOW server_encoding") == "UTF8"
    assert ask(server, "SELECT datcollate FROM pg_database WHERE datname = 'postgres'") == "C"


def test_it_listens_behind_a_private_folder_only(server: EmbeddedPostgres) -> None:
    """Without TCP there is nothing but a socket, in a folder that is closed to other users."""
    assert ask(server, "SHOW listen_addresses") == ""
    folder = folder_of(server.dsn)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(str(folder / f".s.PGSQL.{server.port}")) < 104


def test_it_is_fast_rather_than_durable(server: EmbeddedPostgres) -> None:
    """What only survives power cuts is off, unless durability is asked for."""
    assert ask(server, "SHOW fsync") == "off"
    with EmbeddedPostgres(durable=True) as durable:
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert ask(durable, f"SHOW {name}") == "on"


def test_settings_are_stronger_than_ours() -> None:
    """The settings of the caller override ours."""
    with EmbeddedPostgres(settings={"fsync": "on", "max_connections": "17"}) as server:
        assert ask(server, "SHOW fsync") == "on"
        assert ask(server, "SHOW max_connections") == "17"


def test_settings_that_the_dsn_depends_on_are_refused() -> None:
    """A port of one's own would make the dsn a lie, so it is refused before anything starts."""
    with pytest.raises(ValueError, match="port"):
        EmbeddedPostgres(settings={"port": "5433"})


def test_after_the_block_nothing_is_left() -> None:
    """Leaving the block ends the server and removes its folder, clients or not; the log stays."""
    with EmbeddedPostgres() as server:
        conn = psycopg.connect(server.dsn)
        conn.execute("SELECT 1")
        folder, pid = folder_of(server.dsn), server.pid
    assert nothing_is_left(folder, pid)
    assert "database system is shut down" in server.log()
    conn.close()


def test_after_an_error_nothing_is_left() -> None:
    """An error in the block goes on as it is, once the server has been ended."""
    with pytest.raises(ZeroDivisionError) as caught, EmbeddedPostgres() as server:
        folder, pid = folder_of(server.dsn), server.pid
        raise ZeroDivisionError
    assert nothing_is_left(folder, pid)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_after_the_end_of_our_process_nothing_is_left(end: signal.Signals) -> None:
    """However our process ends, server and folder are gone soon after."""
    with host_with_a_server(stderr=subprocess.DEVNULL) as (host, dsn, pid):
        assert runs(pid)
        host.send_signal(end)
        host.wait(20)
        assert eventually(lambda: nothing_is_left(folder_of(dsn), pid))


def test_after_a_kill_during_the_start_nothing_is_left(tmp_path: Path) -> None:
    """A host that is killed before its server runs leaves nothing either."""
    command = [sys.executable, "-I", "-c", HOST, str(embedded.__file__), str(find_binaries())]
    short = Path("/tmp") / f"test-{os.getpid()}"  # noqa: S108 - short, for the sake of the socket
    short.mkdir(mode=0o755)
    try:
        for wait in (0.05, 0.15, 0.25, 0.4):
            pipe = subprocess.PIPE
            environment = {**os.environ, "TMPDIR": str(short)}
            with subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment) as host:
                time.sleep(wait)
                host.kill()
            assert eventually(lambda: not any(short.iterdir()))
    finally:
        shutil.rmtree(short)
    assert not any(tmp_path.iterdir())
