"""PostgreSQL servers that a test kills, starts again and promotes; none outlives the test process.

    with Cluster() as cluster:
        primary = cluster.new_server({"synchronous_standby_names": "*"})
        primary.start()
        replica = cluster.replica_of(primary)
        replica.start()
        primary.kill()
        replica.promote()

This file is also the guardian, run as a script: the process that starts the servers. When our end
of a pipe closes, `kill -9` included, it ends them and removes the folder that holds everything.
Starting blocks the thread: in a test with an event loop use `asyncio.to_thread(server.start)`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import IO, Any, Final, Self, cast

import psycopg

from conversation_store.adapters.postgres.embedded import (
    EmbeddedPostgresError,
    _Guardian,
    _remove,
    _tail,
    find_binaries,
)

SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "listen_addresses": "",
    "max_connections": "60",
    "dynamic_shared_memory_type": "mmap",  # in the data directory, so a killed server leaves none
}
SECONDS_TO_START: Final = 60
FIRST_PORT: Final = 5432


@dataclass(eq=False)
class Server:
    """One server of a cluster, running or not."""

    cluster: Cluster
    name: str
    port: int
    """The number in the name of its socket."""
    settings: dict[str, str] = field(default_factory=dict)
    pid: int = 0
    """Of the postmaster that was started last."""

    @property
    def dsn(self) -> str:
        """How to connect, as superuser."""
        return f"host={self.cluster.folder} port={self.port} user=postgres dbname=postgres"

    def start(self) -> None:
        """Start it, on the data that it left; it accepts connections when this returns."""
        settings = SETTINGS | {"port": str(self.port)} | self.settings
        self.pid = self.cluster.tell("start", self.name, settings)

    def stop(self) -> None:
        """Shut it down in good order."""
        self.cluster.tell("stop", self.name, int(signal.SIGINT))

    def kill(self) -> None:
        """`kill -9` the postmaster and all its processes, as when the machine goes."""
        children = self._children()
        for pid in (self.pid, *children):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill_postmaster(self) -> None:
        """`kill -9` the postmaster alone: its processes end as soon as they notice."""
        os.kill(self.pid, signal.SIGKILL)

    def kill_backend(self, application: str) -> None:
        """`kill -9` one that serves this application: the server then ends all and recovers."""
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = %s"
        with self.connect() as connection:
            while (row := connection.execute(query, [application]).fetchone()) is None:
                time.sleep(0.02)
            with suppress(ProcessLookupError):
                os.kill(row[0], signal.SIGKILL)

    def promote(self) -> None:
        """Make a standby a primary; it takes writes when this returns."""
        with self.connect() as connection:
            connection.execute("SELECT pg_promote()")

    def wait_until_up(self) -> None:
        """Wait until it accepts connections, after a crash that it recovers from by itself."""
        deadline = time.monotonic() + SECONDS_TO_START
        while time.monotonic() < deadline:
            with suppress(psycopg.OperationalError):
                self.connect().close()
                break
            time.sleep(0.05)

    def connect(self) -> psycopg.Connection[Any]:
        """Connect to it as superuser, in autocommit."""
        return psycopg.connect(self.dsn, autocommit=True)

    def _children(self) -> list[int]:
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True)
        pairs = [line.split() for line in listed.stdout.decode().splitlines()]
        return [int(pid) for pid, parent in pairs if int(parent) == self.pid]


class Cluster:
    """Servers in one folder, from entering the block to leaving it."""

    folder: Path
    """Of the data and of the sockets; only this user may enter it."""

    def __init__(self) -> None:
        self._servers = 0

    def __enter__(self) -> Self:
        order = {"parent": os.getpid(), "binaries": str(find_binaries())}
        command = [sys.executable, "-I", __file__, json.dumps(order)]
        self._guardian = Popen(  # in a session of its own: Ctrl-C in our terminal is not for it
            command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=DEVNULL, start_new_session=True
        )
        self.folder = Path(self._hear())
        return self

    def __exit__(self, *exc: object) -> None:
        self._guardian.communicate()  # the end of its input ends it

    def new_server(self, settings: dict[str, str] | None = None) -> Server:
        """Make a server with an empty database; it is not started yet."""
        server = self._next(settings)
        self.tell("initdb", server.name)
        return server

    def replica_of(self, primary: Server, settings: dict[str, str] | None = None) -> Server:
        """Make a standby that streams from a server that runs; it is not started yet."""
        replica = self._next(settings)
        self.tell("basebackup", replica.name, f"{primary.dsn} application_name={replica.name}")
        return replica

    def tell(self, *order: Any) -> Any:
        """Have the guardian do something; return its answer."""
        say_to = cast("IO[bytes]", self._guardian.stdin)
        say_to.write(json.dumps(order).encode() + b"\n")
        return self._hear()

    def _hear(self) -> Any:
        heard = cast("IO[bytes]", self._guardian.stdout).readline()
        error, answer = json.loads(heard or '["the guardian died", null]')
        if error:
            raise EmbeddedPostgresError(error)
        return answer

    def _next(self, settings: dict[str, str] | None) -> Server:
        self._servers += 1
        name, port = f"server{self._servers}", FIRST_PORT + self._servers - 1
        return Server(self, name, port, settings or {})


# The guardian -----------------------------------------------------------------------------------


class _ClusterGuardian(_Guardian):
    """The process that starts the servers; it knows from its base how, as root and as a user."""

    def __init__(self, order: dict[str, Any]) -> None:
        super().__init__(order)
        self.servers: dict[str, Popen[Any]] = {}

    def run(self) -> None:
        for deaf_to in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(deaf_to, lambda *_: None)
        try:
            self._become_somebody()
            self.binaries = self.reachable(Path(self.order["binaries"]))
            self.say([None, str(self.folder)])
            while not self.told_to_end(0.2):
                pass
            while (line := sys.stdin.readline()) and os.getppid() == self.order["parent"]:
                try:
                    self.say([None, self._carry_out(*json.loads(line))])
                except Exception as error:  # noqa: BLE001 - our parent is to hear of it
                    self.say([str(error), None])
                while not self.told_to_end(0.2):
                    for server in self.servers.values():
                        server.poll()  # a zombie would pass for a server that runs
        finally:
            for name in self.servers:
                self._stop(name, signal.SIGQUIT)
                self._free_shared_memory(self.folder / name)
            _remove(self.folder)

    def _become_somebody(self) -> None:
        if os.geteuid() == 0:  # PostgreSQL refuses to be root
            import pwd

            nobody = pwd.getpwnam("nobody")
            self.identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        self.give_away(self.folder)

    def _carry_out(self, what: str, name: str, *details: Any) -> Any:
        match what, details:
            case "initdb", []:
                options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]
                self._run("initdb", "-D", name, "--no-sync", *options)
            case "basebackup", [dsn]:
                options = ["--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
                self._run("pg_basebackup", "-D", name, "-d", dsn, *options)
            case "start", [settings]:
                return self._start(name, settings)
            case "stop", [number]:
                self._stop(name, number)
        return None

    def _run(self, program: str, *arguments: str) -> None:
        self.run_to_its_end(str(self.binaries / program), *arguments)

    def _start(self, name: str, settings: dict[str, str]) -> int:
        deadline = time.monotonic() + SECONDS_TO_START
        options = [f"-c{key}={value}" for key, value in settings.items()]
        options.append(f"-cunix_socket_directories={self.folder}")
        log = self.folder / f"{name}.log"
        if name in self.servers:
            self.servers[name].wait(10)
        while time.monotonic() < deadline:
            with log.open("ab") as out:
                command = [str(self.binaries / "postgres"), "-D", name, *options]
                server = self.spawn(*command, stdin=DEVNULL, stdout=out, stderr=out)
            self.servers[name] = server
            while server.poll() is None and time.monotonic() < deadline:
                with suppress(FileNotFoundError):
                    state = (self.folder / name / "postmaster.pid").read_text().split()
                    if state[:1] == [str(server.pid)] and state[-1] in ("ready", "standby"):
                        return server.pid
                time.sleep(0.02)
            time.sleep(0.1)  # processes of the one that was killed are not all gone
        raise EmbeddedPostgresError(f"it did not start; its log:\n{_tail(log)}")

    def _stop(self, name: str, number: int) -> None:
        server = self.servers[name]
        for stop in (number, signal.SIGQUIT, signal.SIGKILL):
            if server.poll() is None:
                server.send_signal(stop)
                with suppress(subprocess.TimeoutExpired):
                    server.wait(10)

    def _free_shared_memory(self, data: Path) -> None:
        """Remove the one segment that a killed server leaves, if it was not started again."""
        with suppress(FileNotFoundError, IndexError):
            segment = (data / "postmaster.pid").read_text().splitlines()[6].split()[1]
            self.run_to_its_end("ipcrm", "-m", segment)


if __name__ == "__main__":
    _ClusterGuardian(json.loads(sys.argv[1])).run()
