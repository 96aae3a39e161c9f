"""A network between client and server: a relay in a process of its own that makes them wait.

Each direction takes half of the delay, whatever the size of what is sent. It can also count the
round trips of all clients. This file is run as a script: it needs the standard library only.

It runs on `select`, not on `epoll`: asyncio rounds the waits of `epoll` up to whole milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import selectors
import struct
import sys
from collections import deque
from collections.abc import Callable
from subprocess import PIPE, Popen
from typing import IO, Any, Final, Self, cast

_ANSWERED_BY_READY_FOR_QUERY: Final = {b"Q", b"S", b"F"}  # Query, Sync, FunctionCall
_ASKS_FOR_COPY_DATA: Final = {b"G", b"W"}  # CopyInResponse, CopyBothResponse
_UNASKED_FOR: Final = {b"A", b"N", b"S"}  # notifications, notices, parameters
_FLUSH, _READY_FOR_QUERY, _TERMINATE = b"H", b"Z", b"X"
_MAY_I_ENCRYPT: Final = {struct.pack("!ii", 8, code) for code in (80877103, 80877104)}


class DelayingProxy:
    """A server on 127.0.0.1 that passes everything on to the real one, later.

    with DelayingProxy(host, port) as proxy:
        proxy.delay(0.001)
        connect("127.0.0.1", proxy.port)
    """

    port: int

    def __init__(self, host: str, port: int) -> None:
        self._upstream = host, port

    def __enter__(self) -> Self:
        command = [sys.executable, "-I", __file__, *map(str, self._upstream)]
        self._process = Popen(command, stdin=PIPE, stdout=PIPE)
        self.port = self._hear()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.communicate()  # the end of its input ends it

    def delay(self, seconds: float) -> None:
        """Make each round trip so much longer, and count no more."""
        self._tell(["delay", seconds])

    def count(self) -> None:
        """Count from now on, from zero, on the connections there are; all must be at rest."""
        self._tell(["count"])

    def round_trips(self) -> int:
        """Return how many round trips there were since `count`, and go on counting.

        A round trip begins when a client sends and is owed nothing, and ends when the server has
        answered all it was asked. COPY FROM STDIN is two: its statement, and its data.
        """
        return self._tell(["round_trips"])

    def _tell(self, order: list[Any]) -> int:
        say_to = cast("IO[bytes]", self._process.stdin)
        say_to.write(json.dumps(order).encode() + b"\n")
        say_to.flush()
        return self._hear()

    def _hear(self) -> int:
        answer = cast("IO[bytes]", self._process.stdout).readline()
        assert answer, "the proxy ended"
        return int(answer)


# The process of its own --------------------------------------------------------------------------


class _Trips:
    """Reads along on one connection, and says when a round trip begins."""

    def __init__(self) -> None:
        self._rests = {True: bytearray(), False: bytearray()}  # what is less than a message
        self._at_rest = True
        self._owed = 0  # so many ReadyForQuery
        self._flushed = False

    def begun_by(self, data: bytes, *, from_client: bool) -> int:
        """Take what one side sent; return how many round trips it begins."""
        rest = self._rests[from_client]
        rest += data
        begun = at = 0
        while len(rest) >= at + 5:
            (length,) = struct.unpack_from("!i", rest, at + 1)
            if len(rest) <= at + length:
                break
            kind = bytes(rest[at : at + 1])
            at += 1 + length
            if from_client:
                begun += self._asked(kind)
            else:
                self._answered(kind)
        del rest[:at]
        return begun

    def _asked(self, kind: bytes) -> bool:
        if kind == _TERMINATE:
            return False
        begins, self._at_rest = self._at_rest, False
        self._owed += kind in _ANSWERED_BY_READY_FOR_QUERY
        self._flushed = kind == _FLUSH or (self._flushed and not begins)
        return begins

    def _answered(self, kind: bytes) -> None:
        if kind == _READY_FOR_QUERY:
            self._owed = max(0, self._owed - 1)
            self._at_rest = self._owed == 0
        elif kind in _ASKS_FOR_COPY_DATA:
            self._owed = 0  # a Sync sent with the statement is skipped; another follows the data
            self._at_rest = True
        elif self._flushed and self._owed == 0 and kind not in _UNASKED_FOR:
            self._at_rest = True


class _Side(asyncio.Protocol):
    """One side of a connection: what it says goes to the other side, when it is time."""

    transport: asyncio.Transport
    other: _Side | None = None

    def __init__(self, connection: _Connection, opened: _Opened | None = None) -> None:
        self._connection = connection
        self._opened = opened
        self._on_its_way: deque[bytes] = deque()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._opened is not None:
            self._opened(self)

    def data_received(self, data: bytes) -> None:
        if data in _MAY_I_ENCRYPT:
            self.transport.write(b"N")
            return
        self._connection.look_at(data, from_client=self._opened is not None)
        self._on_its_way.append(data)
        if one_way := self._connection.relay.one_way:
            asyncio.get_running_loop().call_later(one_way, self.pass_on)
        else:
            self.pass_on()

    def meet(self, other: _Side) -> None:
        """Take the other side, and give it what was said before it was there."""
        self.other = other
        while self._on_its_way:
            self.pass_on()

    def pass_on(self) -> None:
        """Give the other side what has waited longest, once the other side is there."""
        if self.other is not None and self._on_its_way:
            self.other.transport.write(self._on_its_way.popleft())

    def connection_lost(self, exc: Exception | None) -> None:
        while self.other is not None and self._on_its_way:
            self.pass_on()
        if self.other is not None:
            self.other.transport.close()


_Opened = Callable[[_Side], None]


class _Connection:
    """What both sides of a connection share."""

    def __init__(self, relay: _Relay) -> None:
        self.relay = relay
        self.trips: _Trips | None = None
        """None: it is not counted."""

    def look_at(self, data: bytes, *, from_client: bool) -> None:
        """Count what begins with what one side sent, where it is counted."""
        if self.trips is not None:
            self.relay.trips += self.trips.begun_by(data, from_client=from_client)


class _Relay:
    """All connections, and what holds for all of them."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = host, port
        self._connections: list[_Connection] = []
        self._connecting: set[asyncio.Task[None]] = set()
        self.one_way = 0.0
        self.trips = 0

    async def run(self) -> None:
        """Listen, say where, and do what is ordered until there are no more orders."""
        loop = asyncio.get_running_loop()
        server = await loop.create_server(self._client, "127.0.0.1", 0)
        self._say(server.sockets[0].getsockname()[1])
        orders = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
        while order := await orders.readline():
            match json.loads(order):
                case ["delay", seconds]:
                    self.one_way = seconds / 2
                    for connection in self._connections:
                        connection.trips = None
                case ["count"]:
                    self.trips = 0
                    for connection in self._connections:
                        connection.trips = _Trips()
            self._say(self.trips)
        server.close()

    @staticmethod
    def _say(number: int) -> None:
        print(number, flush=True)

    def _client(self) -> _Side:
        connection = _Connection(self)
        self._connections.append(connection)
        return _Side(connection, opened=lambda side: self._reach_server(side, connection))

    def _reach_server(self, client: _Side, connection: _Connection) -> None:
        task = asyncio.create_task(self._connect(client, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, client: _Side, connection: _Connection) -> None:
        loop = asyncio.get_running_loop()
        server = _Side(connection)
        server.other = client
        host, port = self._upstream
        if host.startswith("/"):
            await loop.create_unix_connection(lambda: server, f"{host}/.s.PGSQL.{port}")
        else:
            await loop.create_connection(lambda: server, host, port)
        client.meet(server)


if __name__ == "__main__":
    with asyncio.Runner(
        loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())
    ) as runner:
        runner.run(_Relay(sys.argv[1], int(sys.argv[2])).run())
