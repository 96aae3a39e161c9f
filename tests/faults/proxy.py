"""A proxy that does harm: at one message of the protocol, in one direction, in one way.

What hits a connection hits it once; connections that are opened afterwards work. A black hole is
the exception: until it is healed nothing passes, neither on old connections nor on new ones.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from wire_proxy import Message


class Way(StrEnum):
    """Where a message was going."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


class Kind(StrEnum):
    """What happens at a message."""

    RESET = "reset"
    """It is not passed on; both ends meet a reset (RST)."""
    END = "end"
    """It is not passed on; both ends meet an orderly end (FIN)."""
    TRUNCATE = "truncate"
    """Half of it is passed on, then both ends meet an orderly end."""
    HOLE = "black hole"
    """From it on nothing passes; all sockets stay open."""
    LOSE = "lose the reply"
    """It is passed on and carried out; the answer is dropped, then both ends meet a reset."""
    DELAY = "delay"
    """It is passed on later."""
    TERMINATE = "terminate"
    """The server's process is ended by pg_terminate_backend before it is passed on."""
    CANCEL = "cancel"
    """The server's process is told to cancel by pg_cancel_backend before it is passed on."""


SIGNALS: Final = {
    Kind.TERMINATE: "SELECT pg_terminate_backend(%s)",
    Kind.CANCEL: "SELECT pg_cancel_backend(%s)",
}
ENDS: Final = set(Kind) - {Kind.DELAY, Kind.CANCEL}
"""After these the connection is over."""
ANSWERED: Final = {b"S", b"Q"}  # Sync, Query
ANSWERS: Final = {b"Z", b"G"}  # ReadyForQuery; CopyInResponse, after which a Sync is not answered
CHUNK: Final = 65_536
DELAY: Final = 0.01
QUIET: Final = 0.02
"""Seconds in which the server carries out what it does not answer yet."""


@dataclass(frozen=True)
class Fault:
    """One fault: at the message of that number, counted from 0 from when it was armed."""

    way: Way
    number: int
    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind} at message {self.number} {self.way}"


class FaultProxy:
    """A server on 127.0.0.1 that passes everything on to the real one, but for one fault."""

    dsn: str
    """How to connect through the proxy; unencrypted, since it has to read along."""

    def __init__(self, dsn: str, application: str, control: psycopg.AsyncConnection[Any]) -> None:
        self.upstream = conninfo_to_dict(dsn)
        self.seen: dict[Way, list[str]] = {}
        """The kinds of the messages since the proxy was armed; it counts while it is armed."""
        self.fired = False
        self.opening = False
        """Whether the messages that open a connection are counted, instead of those that follow."""
        self.when_dark: Callable[[], None] | None = None
        """Called when a black hole begins."""
        self.light = asyncio.Event()
        """Cleared while there is a black hole."""
        self.light.set()
        self._application = application
        self._control = control
        self._armed = False
        self._fault: Fault | None = None
        self._links: set[_Link] = set()
        self._hit: _Link | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        ours = {"host": "127.0.0.1", "hostaddr": None, "port": port}
        plain = {"sslmode": "disable", "gssencmode": "disable"}
        who = {"application_name": self._application}
        self.dsn = make_conninfo(**{**self.upstream, **ours, **plain, **who})
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        self.heal()
        await self.end_all()
        await self._server.wait_closed()

    def arm(self, fault: Fault | None, *, opening: bool = False) -> None:
        """Count messages from now on, and do harm at the one that the fault names.

        With `opening`, those messages count that open a connection.
        """
        self.seen = {way: [] for way in Way}
        self._fault, self._armed, self.fired = fault, True, False
        self.opening = opening

    def disarm(self) -> None:
        """Do no more harm."""
        self._armed = False

    def darken(self) -> None:
        """Let nothing pass that is new, as long as there is a black hole."""
        self.light.clear()
        if self.when_dark is not None:
            self.when_dark()

    def heal(self) -> None:
        """End a black hole: what is new goes on, what was caught in it meets a reset."""
        for link in self._links:
            if link.in_hole:
                link.end(reset=True)
        self.light.set()

    async def end_all(self) -> None:
        """End all connections that there are."""
        for link in list(self._links):
            link.end(reset=True)
            await link.over.wait()

    async def settled(self) -> None:
        """Wait until both sides know of a connection that was ended."""
        if self._fault is not None and self._fault.kind in ENDS and self._hit is not None:
            await self._hit.over.wait()

    def look_at(self, link: _Link, way: Way, message: Message) -> Fault | None:
        """Count a message; return the fault if it is to happen now."""
        if not self._armed:
            return None
        number = len(self.seen[way])
        self.seen[way].append(message.kind.decode())
        fault = self._fault
        if fault is None or self.fired or (fault.way, fault.number) != (way, number):
            return None
        self.fired, self._hit = True, link
        return fault

    async def signal(self, kind: Kind, pid: int) -> None:
        """Have the server end or cancel one of its processes."""
        await self._control.execute(SIGNALS[kind], [pid])

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        await self.light.wait()
        link = _Link(self, reader, writer)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.remove(link)
            link.over.set()


class _Cutter:
    """Cuts what comes into whole messages."""

    def __init__(self, *, opens: bool) -> None:
        self._opens = opens
        self._rest = b""

    def cut(self, data: bytes) -> Iterator[Message]:
        """Give the messages that are whole now; the first one that opens has no kind."""
        self._rest += data
        while True:
            kind = 0 if self._opens else 1
            if len(self._rest) < kind + 4:
                return
            (length,) = struct.unpack_from("!i", self._rest, kind)
            if len(self._rest) < kind + length:
                return
            whole, self._rest = self._rest[: kind + length], self._rest[kind + length :]
            self._opens = False
            yield Message(whole[:kind], whole[kind + 4 :])


class _Link:
    """One connection of a client, and ours to the server for it."""

    def __init__(self, proxy: FaultProxy, reader: StreamReader, writer: StreamWriter) -> None:
        self.over = asyncio.Event()
        self.in_hole = False
        self._proxy = proxy
        self._client = reader, writer
        self._to_server: StreamWriter | None = None
        self._is_open = False
        self._pid = 0
        self._to_pass = dict.fromkeys(Way, b"")
        self._mute = False
        self._answered = asyncio.Event()
        self._server_left = asyncio.Event()
        self._ended = asyncio.Event()

    async def run(self) -> None:
        """Pass on what either side sends, until one of them ends."""
        from_client, to_client = self._client
        try:
            from_server, self._to_server = await self._reach_server()
        except OSError:
            self.end(reset=True)
            return
        async with asyncio.TaskGroup() as pumps:
            pumps.create_task(self._pump(Way.TO_SERVER, from_client, self._to_server))
            pumps.create_task(self._pump(Way.TO_CLIENT, from_server, to_client))

    async def _reach_server(self) -> tuple[StreamReader, StreamWriter]:
        upstream = self._proxy.upstream
        host, port = str(upstream.get("host") or "127.0.0.1"), upstream.get("port") or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))

    def end(self, *, reset: bool) -> None:
        """End both sides, with a reset or in order."""
        self._ended.set()
        for writer in (self._client[1], self._to_server):
            if writer is None:
                continue
            if not reset:
                writer.close()
                continue
            end: Any = writer.get_extra_info("socket")
            if end is not None and end.family == socket.AF_INET and not writer.is_closing():
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _pump(self, way: Way, reader: StreamReader, writer: StreamWriter) -> None:
        cutter = _Cutter(opens=way is Way.TO_SERVER)
        with suppress(OSError):
            while data := await reader.read(CHUNK):
                for message in cutter.cut(data):
                    if self.in_hole:
                        await self._ended.wait()
                    await self._pass_on(way, message, writer)
                writer.write(self._taken(way))
                await writer.drain()
        if way is Way.TO_CLIENT:
            self._server_left.set()
        writer.close()

    async def _pass_on(self, way: Way, message: Message, writer: StreamWriter) -> None:
        """Take a message, to be written with what else is there; or do harm."""
        passes = True
        if self._opens_or_closes(way, message) is self._proxy.opening:
            fault = self._proxy.look_at(self, way, message)
            if fault is not None:
                writer.write(self._taken(way))
                passes = await self._suffer(fault, message, writer)
        if way is Way.TO_CLIENT and message.kind in ANSWERS:
            self._answered.set()
        if passes and not (self._mute and way is Way.TO_CLIENT):
            self._to_pass[way] += bytes(message)

    def _taken(self, way: Way) -> bytes:
        taken, self._to_pass[way] = self._to_pass[way], b""
        return taken

    def _opens_or_closes(self, way: Way, message: Message) -> bool:
        """Whether a message is one of those that open a connection, or close it."""
        if way is Way.TO_CLIENT and not self._is_open:
            if message.kind == b"K":  # BackendKeyData
                (self._pid,) = struct.unpack_from("!i", message.body)
            self._is_open = message.kind == b"Z"  # ReadyForQuery
            return True
        return not self._is_open or message.kind == b"X"  # Terminate

    async def _suffer(self, fault: Fault, message: Message, writer: StreamWriter) -> bool:
        """Do the harm; return whether the message is then passed on."""
        match fault.kind:
            case Kind.RESET | Kind.END:
                self.end(reset=fault.kind is Kind.RESET)
            case Kind.TRUNCATE:
                writer.write(bytes(message)[: (len(message.body) + 5) // 2])
                await writer.drain()
                self.end(reset=False)
            case Kind.HOLE:
                self.in_hole = True
                self._proxy.darken()
                await self._ended.wait()
            case Kind.LOSE:
                self._mute = True
                self._answered.clear()
                writer.write(bytes(message))
                await writer.drain()
                with suppress(TimeoutError):
                    async with asyncio.timeout(5 if message.kind in ANSWERED else QUIET):
                        await self._answered.wait()
                self.end(reset=True)
            case Kind.DELAY:
                await asyncio.sleep(DELAY)
                return True
            case Kind.TERMINATE | Kind.CANCEL:
                await self._proxy.signal(fault.kind, self._pid)
                if fault.kind is Kind.TERMINATE and fault.way is Way.TO_SERVER:
                    await self._server_left.wait()
                return True
        return False
