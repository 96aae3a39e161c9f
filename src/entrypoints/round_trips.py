"""How often a client waited for its server: counted on the way between them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Any, Self


class RoundTripCounter:
    """A relay in front of a server on 127.0.0.1 that passes on bytes and counts round trips.

    A round trip begins when the client speaks after the server had the last word. It reads no
    messages, so the count holds for what is sent in one piece, as a turn is, and not for floods
    that the server begins to answer before they end.
    """

    count: int
    """Round trips since it was entered, of all connections together."""
    port: int
    """Where it listens, on 127.0.0.1."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._relays: set[asyncio.Task[Any] | None] = set()

    async def __aenter__(self) -> Self:
        self.count = 0
        self._listener = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._listener.close()
        await asyncio.gather(*(relay for relay in self._relays if relay), return_exceptions=True)
        await self._listener.wait_closed()

    async def _relay(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._relays.add(asyncio.current_task())
        server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        client_is_owed = False

        async def pass_on(
            source: asyncio.StreamReader, target: asyncio.StreamWriter, *, asks: bool
        ) -> None:
            nonlocal client_is_owed
            with suppress(ConnectionError):
                while heard := await source.read(65536):
                    self.count += asks and not client_is_owed
                    client_is_owed = asks
                    target.write(heard)
                    await target.drain()
            target.close()
            with suppress(ConnectionError):
                await target.wait_closed()

        await asyncio.gather(
            pass_on(client, to_server, asks=True), pass_on(server, to_client, asks=False)
        )
