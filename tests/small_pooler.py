"""A pooler as small as can be: it lends few connections of the server to many clients.

In transaction mode, as PgBouncer does: a client has a connection from its first message until the
server says that no transaction is open. It loses prepared statements unless it `bears` them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from contextlib import suppress
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import psycopg
from psycopg.conninfo import make_conninfo
from wire_proxy import Message

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

_SSL_OR_GSS = {80877103, 80877104}
_CANCEL = 80877102
_TOLD = ("server_version", "server_encoding", "client_encoding", "standard_conforming_strings")
_TOLD_TOO = ("integer_datetimes", "DateStyle", "TimeZone", "IntervalStyle")


class _Backend(NamedTuple):
    """A connection to the server, whose socket is ours after the driver let us in."""

    opened_by: psycopg.Connection[Any]
    reader: StreamReader
    writer: StreamWriter


class SmallPooler:
    """A pooler on 127.0.0.1; `async with` gives it, and `dsn` is how to connect to it."""

    def __init__(self, dsn: str, size: int, *, sessions: bool = False, bears: bool = False) -> None:
        self._server_dsn, self._size = dsn, size
        self._sessions, self._bears = sessions, bears
        self._free: asyncio.LifoQueue[_Backend] = asyncio.LifoQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._backends: list[_Backend] = []
        self._clients: set[StreamWriter] = set()
        self._ids = count(1_000_000)  # no process has it

    async def __aenter__(self) -> Self:
        for _ in range(self._size):
            opened = psycopg.connect(self._server_dsn, autocommit=True, sslmode="disable")
            streams = await _streams(opened)
            self._backends.append(_Backend(opened, *streams))
            self._free.put_nowait(self._backends[-1])
            told = opened.info.parameter_status
            self._told = {name: told(name) for name in (*_TOLD, *_TOLD_TOO)}
        self._server = await asyncio.start_server(self._begin, "127.0.0.1")
        port = self._server.sockets[0].getsockname()[1]
        self.dsn = make_conninfo(self._server_dsn, host="127.0.0.1", port=port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._clients:  # a task that never began closes nothing
            await _close(writer)
        for backend in self._backends:
            await _close(backend.writer)
            backend.opened_by.close()

    def _begin(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._clients.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)

    async def _serve(self, reader: StreamReader, writer: StreamWriter) -> None:
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                if await self._let_in(reader, writer):
                    await self._pass_on(reader, writer)
        finally:
            await _close(writer)

    async def _let_in(self, reader: StreamReader, writer: StreamWriter) -> bool:
        while True:
            (code,) = struct.unpack_from("!i", (await Message.read(reader, opens=True)).body)
            if code not in _SSL_OR_GSS:
                break
            writer.write(b"N")
        if code == _CANCEL:
            return False
        told = [f"{name}\0{value}\0".encode() for name, value in self._told.items()]
        keys = struct.pack("!ii", next(self._ids), 0)
        answers = [Message(b"R", bytes(4)), *(Message(b"S", each) for each in told)]
        answers += [Message(b"K", keys), Message(b"Z", b"I")]
        writer.write(b"".join(map(bytes, answers)))
        return True

    async def _pass_on(self, reader: StreamReader, writer: StreamWriter) -> None:
        backend: _Backend | None = None
        prepared: dict[bytes, bytes] = {}
        ours = 0  # answers that are not the client's
        try:
            while (message := await Message.read(reader)).kind != b"X":
                backend = backend or await self._free.get()
                if self._bears and message.kind in b"PB":
                    more = _without_name(message, prepared)
                    ours += len(more) - 1
                    backend.writer.write(b"".join(map(bytes, more)))
                else:
                    backend.writer.write(bytes(message))
                if message.kind not in b"QS":
                    continue
                while True:
                    answer = await Message.read(backend.reader)
                    if answer.kind == b"1" and ours:
                        ours -= 1
                        continue
                    writer.write(bytes(answer))
                    if answer.kind == b"Z":
                        break
                if answer.body == b"I" and not self._sessions:
                    self._free.put_nowait(backend)
                    backend = None
        finally:
            if backend is not None:
                backend.writer.write(bytes(Message(b"Q", b"ROLLBACK\0")))
                while (await Message.read(backend.reader)).kind != b"Z":
                    pass
                self._free.put_nowait(backend)


async def _streams(opened: psycopg.Connection[Any]) -> tuple[StreamReader, StreamWriter]:
    """Take over the socket of a connection."""
    taken = socket.socket(fileno=os.dup(opened.fileno()))
    taken.setblocking(False)
    return await asyncio.open_connection(sock=taken)


async def _close(writer: StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError):
        await writer.wait_closed()


def _without_name(message: Message, prepared: dict[bytes, bytes]) -> list[Message]:
    """Return what comes to the same without a statement that stays prepared."""
    if message.kind == b"P":
        name, rest = message.body.split(b"\0", 1)
        prepared[name] = rest
        return [Message(b"P", b"\0" + rest)]
    portal, name, rest = message.body.split(b"\0", 2)
    bound = Message(b"B", portal + b"\0\0" + rest)
    return [Message(b"P", b"\0" + prepared[name]), bound] if name else [message]
