"""A proxy between psycopg and the server that understands the protocol well enough to count.

It can also stop to pass anything on without closing anything: a black hole.

It reads whole messages, in both directions, and looks at each before it passes it on
(https://www.postgresql.org/docs/current/protocol-message-formats.html).
"""

from __future__ import annotations

import asyncio
import struct
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter
    from collections.abc import Callable, Iterator

    Look = Callable[["Message"], None]

ANSWERED_BY_READY_FOR_QUERY = {b"Q", b"S", b"F"}  # Query, Sync, FunctionCall
WAITS_FOR_COPY_DATA = {b"G", b"W"}  # CopyInResponse, CopyBothResponse
UNASKED_FOR = {b"A", b"N", b"S"}  # NotificationResponse, NoticeResponse, ParameterStatus


class Message(NamedTuple):
    """One message of the protocol; the one that opens a connection has no kind."""

    kind: bytes
    body: bytes

    @classmethod
    async def read(cls, reader: StreamReader, *, opens: bool = False) -> Self:
        """Read the next message, whole."""
        kind = b"" if opens else await reader.readexactly(1)
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        return cls(kind, await reader.readexactly(length - 4))

    def __bytes__(self) -> bytes:
        return self.kind + struct.pack("!i", len(self.body) + 4) + self.body

    def texts(self) -> list[str]:
        """Return the two zero-terminated texts that the body begins with, or the only one."""
        return [text.decode(errors="replace") for text in self.body.split(b"\0", 2)[:2]]


@dataclass(eq=False)
class WireCount:
    """What clients sent while it was counted, on all connections together.

    A round trip begins when a client sends and is owed nothing, and ends when the server has
    answered all it was asked: a pipeline of any length is one. COPY FROM STDIN is two, its
    statement and its data, for the client waits in between. Opening and closing a connection is
    not counted.
    """

    round_trips: int = 0

    texts: list[str] = field(default_factory=list)
    """The texts of the statements sent for execution, a prepared one each time it was sent."""

    messages: list[str] = field(default_factory=list)
    """The kinds of all messages: 'P' parses a statement, 'B' binds, 'E' executes, 'S' syncs, …"""

    @property
    def statements(self) -> int:
        """How many statements were sent for execution; a simple query counts as one."""
        return len(self.texts)


class WireProxy:
    """A server on 127.0.0.1 that passes everything on to the real one.

        async with WireProxy(dsn) as proxy:
            conn = await psycopg.AsyncConnection.connect(proxy.dsn)
            with proxy.count() as wire:
                ...
            assert wire.round_trips == 1

    It runs in the event loop of the test: a client that blocks the loop would wait for ever.
    """

    dsn: str
    """How to connect through the proxy; unencrypted, since it has to read along."""

    def __init__(self, dsn: str) -> None:
        self.upstream = conninfo_to_dict(dsn)
        self.counts: list[WireCount] = []
        self.connections: set[Connection] = set()
        self.passed = 0
        """How many messages were passed on, in either direction."""
        self.is_black = False
        self._before_black: int | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        ours = {"host": "127.0.0.1", "hostaddr": None, "port": port}
        plain = {"sslmode": "disable", "gssencmode": "disable"}
        self.dsn = make_conninfo(**{**self.upstream, **ours, **plain})
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.restore()
        for connection in list(self.connections):
            connection.cut()
            await connection.ended.wait()
        await self._server.wait_closed()

    def swallow(self, after: int = 0) -> None:
        """Pass nothing on any more, in either direction, after so many messages from now."""
        if after:
            self._before_black = after
            return
        self._before_black, self.is_black = None, True
        for connection in self.connections:
            connection.is_open.clear()

    def restore(self, *, also_old: bool = True) -> None:
        """Pass everything on again, what was held back too; or on new connections only."""
        self._before_black, self.is_black = None, False
        for connection in self.connections:
            if also_old:
                connection.is_open.set()

    def take_note(self) -> None:
        """Count a message that was passed on."""
        self.passed += 1
        if self._before_black is not None:
            self._before_black -= 1
            if self._before_black == 0:
                self.swallow()

    @contextmanager
    def count(self) -> Iterator[WireCount]:
        """Count what is sent during the block."""
        count = WireCount()
        self.counts.append(count)
        try:
            yield count
        finally:
            self.counts.remove(count)

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        connection = Connection(self, reader, writer)
        self.connections.add(connection)
        try:
            await connection.run()
        finally:
            self.connections.remove(connection)
            connection.ended.set()


class Connection:
    """One connection of a client, and ours to the server for it."""

    def __init__(self, proxy: WireProxy, reader: StreamReader, writer: StreamWriter) -> None:
        self.proxy = proxy
        self.client = reader, writer
        self.ended = asyncio.Event()
        self.is_open = asyncio.Event()
        """Clear: it passes nothing on."""
        if not proxy.is_black:
            self.is_open.set()
        self._opened = False
        self._at_rest = True  # the client is owed nothing: what it sends next is a new round trip
        self._owed = 0  # so many ReadyForQuery
        self._flushed = False
        self._prepared: dict[str, str] = {}  # texts by the name of the prepared statement
        self._portals: dict[str, str] = {}  # texts by the name of the portal

    async def run(self) -> None:
        """Pass on what either side sends, until one of them ends."""
        from_client, to_client = self.client
        try:
            from_server, to_server = await self._reach_server()
        except OSError:
            self.cut()
            return
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._pump(from_client, to_server, self.sent_by_client))
            pumps.create_task(self._pump(from_server, to_client, self.sent_by_server))

    async def _reach_server(self) -> tuple[StreamReader, StreamWriter]:
        upstream = self.proxy.upstream
        host, port = str(upstream.get("host") or "127.0.0.1"), upstream.get("port") or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))

    def is_left(self) -> bool:
        """Whether the client has gone, which the server may not know yet."""
        return self.client[0].at_eof()

    def cut(self) -> None:
        """End the connection without a word; the other side is ended by its pump."""
        self.client[1].transport.abort()

    async def _pump(self, reader: StreamReader, writer: StreamWriter, look_at: Look) -> None:
        opens = reader is self.client[0]
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                message = await Message.read(reader, opens=opens)
                opens = False
                await self.is_open.wait()
                look_at(message)
                writer.write(bytes(message))
                await writer.drain()
                self.proxy.take_note()
        await self.is_open.wait()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    def sent_by_client(self, message: Message) -> None:
        """Count a message of the client, and remember which statement a name stands for."""
        if not self._opened or message.kind == b"X":  # Terminate
            return
        begins, self._at_rest = self._at_rest, False
        self._owed += message.kind in ANSWERED_BY_READY_FOR_QUERY
        self._flushed = message.kind == b"H" or (self._flushed and not begins)  # Flush
        executed = self._executed(message)
        for count in self.proxy.counts:
            count.round_trips += begins
            count.messages.append(message.kind.decode())
            count.texts += executed

    def _executed(self, message: Message) -> list[str]:
        match message.kind, message.texts():
            case b"P", [name, text]:  # Parse
                self._prepared[name] = text
            case b"B", [portal, name]:  # Bind
                self._portals[portal] = self._prepared.get(name, "")
            case b"E", [portal, *_]:  # Execute
                return [self._portals.get(portal, "")]
            case b"Q", [text, *_]:  # Query
                return [text]
        return []

    def sent_by_server(self, message: Message) -> None:
        """Note whether the client has now been answered all that it asked."""
        if message.kind == b"Z":  # ReadyForQuery
            self._opened = True
            self._owed = max(0, self._owed - 1)
            self._at_rest = self._owed == 0
        elif message.kind in WAITS_FOR_COPY_DATA:
            self._owed = 0  # a Sync sent with the statement is skipped; another follows the data
            self._at_rest = True
        elif self._flushed and self._owed == 0 and message.kind not in UNASKED_FOR:
            self._at_rest = True
