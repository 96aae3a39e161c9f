"""A server that speaks TLS to its clients, and passes on what they say to one that does not.

The server of the tests may be built without TLS. It is also what a man in the middle would be, with
a certificate of his own.
"""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from psycopg.conninfo import conninfo_to_dict

if TYPE_CHECKING:
    from asyncio import StreamReader, StreamWriter

_SSL_REQUEST = bytes.fromhex("0000000804d2162f")


class TlsProxy:
    """A server on 127.0.0.1 with a certificate."""

    port: int

    def __init__(self, dsn: str, certificate: Path, key: Path) -> None:
        self.upstream = conninfo_to_dict(dsn)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate, key)
        self._tasks: set[asyncio.Task[None]] = set()
        self._clients: set[StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        for client in self._clients:
            client.transport.abort()
        await asyncio.gather(*self._tasks)

    async def _accept(self, reader: StreamReader, writer: StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._clients.add(writer)
        to_server = None
        # A client that does not trust us, or has enough, goes.
        with suppress(ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            try:
                from_server, to_server = await self._reach_server()
                first = await reader.readexactly(8)
                if first == _SSL_REQUEST:
                    writer.write(b"S")
                    await writer.drain()
                    await writer.start_tls(self._context)
                else:
                    to_server.write(first)
                async with asyncio.TaskGroup() as pumps:
                    pumps.create_task(_pump(reader, to_server))
                    pumps.create_task(_pump(from_server, writer))
            finally:
                self._clients.discard(writer)
                for end in (writer, to_server):
                    if end is not None:
                        end.transport.abort()

    async def _reach_server(self) -> tuple[StreamReader, StreamWriter]:
        host = str(self.upstream.get("host") or "127.0.0.1")
        port = self.upstream.get("port") or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))


async def _pump(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.transport.abort()
