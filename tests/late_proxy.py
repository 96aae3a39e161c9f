"""A proxy that loses an answer, or keeps what a client sent until later."""

from __future__ import annotations

import asyncio
import struct
from asyncio import StreamReader, StreamWriter
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from psycopg.conninfo import conninfo_to_dict, make_conninfo
from wire_proxy import ANSWERED_BY_READY_FOR_QUERY, Message

if TYPE_CHECKING:
    from collections.abc import Iterator

READY = b"Z\0\0\0\5I"
"""ReadyForQuery of a server that has no transaction open."""
QUIET = 0.03
"""Seconds without a byte after which a message is taken to be whole."""


class LateProxy:
    """A server on 127.0.0.1 that passes everything on to the real one, until it is told not to.

    What it is told hits one connection, the next that a statement is sent on; others work, also
    those that are opened meanwhile, as a pool does whenever it likes.
    """

    dsn: str
    """How to connect through it."""

    def __init__(self, dsn: str) -> None:
        self.upstream = conninfo_to_dict(dsn)
        self._loses = self._keeps = False
        self._kept: tuple[bytes, StreamReader, StreamWriter] | None = None
        self.kept = asyncio.Event()
        """Set when something was kept, and its client was cut off."""
        self._clients: set[StreamWriter] = set()
        self._owing: set[StreamReader] = set()
        """Of servers that are at work; they are not to notice that nobody waits for it."""
        self._open: set[StreamReader] = set()
        """Of servers that have let their client in."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._servers: list[StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        here = {"host": "127.0.0.1", "hostaddr": None, "port": port}
        plain = {"sslmode": "disable", "gssencmode": "disable"}
        self.dsn = make_conninfo(**{**self.upstream, **here, **plain})
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for server in self._servers:
            server.close()

    def lose(self) -> None:
        """Lose the next answer: what it answers was carried out."""
        self._loses = True

    def keep(self) -> None:
        """Keep what a client sends next, and cut the client off."""
        self._keeps = True

    def cut_off(self) -> None:
        """Cut all clients off; the server does not notice."""
        for client in self._clients:
            client.close()

    async def deliver(self) -> None:
        """Send to the server what was kept, wait until it has answered, and end that connection."""
        assert self._kept is not None
        data, reader, writer = self._kept
        writer.write(data)
        owed = sum(kind in ANSWERED_BY_READY_FOR_QUERY for kind in _kinds(data))
        with suppress(asyncio.IncompleteReadError):  # it ended the connection: that is its answer
            async with asyncio.timeout(10):
                while owed:
                    owed -= (await Message.read(reader)).kind == b"Z"  # ReadyForQuery
        writer.close()
        self._kept = None

    async def forget(self) -> None:
        """End the connection to the server of what was kept, undelivered."""
        assert self._kept is not None
        _, _, writer = self._kept
        writer.close()
        self._kept = None

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._clients.add(writer)
        host, port = str(self.upstream["host"]), self.upstream["port"]
        if host.startswith("/"):
            opened = asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        else:
            opened = asyncio.open_connection(host, int(str(port)))
        server_reader, server_writer = await opened
        self._servers.append(server_writer)
        to_server = asyncio.create_task(self._to_server(reader, server_reader, server_writer))
        to_client = asyncio.create_task(self._to_client(server_reader, writer))
        try:
            await asyncio.wait([to_server, to_client], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._clients.discard(writer)
            self._open.discard(server_reader)
            writer.close()
            is_kept = self._kept is not None and self._kept[2] is server_writer
            for pump in (to_server, to_client):
                pump.cancel()
            await asyncio.gather(to_server, to_client, return_exceptions=True)
            if is_kept:
                self.kept.set()
            elif server_reader not in self._owing:
                server_writer.close()
            self._tasks.discard(task)

    async def _to_server(
        self, reader: StreamReader, server_reader: StreamReader, server_writer: StreamWriter
    ) -> None:
        while data := await reader.read(65_536):
            if self._keeps and server_reader in self._open:
                self._keeps = False
                with suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(QUIET):
                            data += await reader.read(65_536)
                self._kept = data, server_reader, server_writer
                return
            self._owing.add(server_reader)
            server_writer.write(data)

    async def _to_client(self, server_reader: StreamReader, writer: StreamWriter) -> None:
        while data := await server_reader.read(65_536):
            self._owing.discard(server_reader)
            if self._loses and server_reader in self._open:
                self._loses = False
                with suppress(TimeoutError):
                    while True:
                        async with asyncio.timeout(QUIET):
                            if not await server_reader.read(65_536):
                                return
                return
            if data.endswith(READY):
                self._open.add(server_reader)
            writer.write(data)


def _kinds(data: bytes) -> Iterator[bytes]:
    """Give the kinds of the messages that a client sent."""
    while data:
        (length,) = struct.unpack_from("!i", data, 1)
        yield data[:1]
        data = data[1 + length :]
