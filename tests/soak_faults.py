"""The faults of a soak: one after the other, as long as it lasts, at random."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from faults.proxy import Fault, FaultProxy, Kind, Way
from ledger import APPLICATION
from postgres_cluster import Server
from soak_load import Meter

CUTS: Final = (Kind.RESET, Kind.END, Kind.TRUNCATE)
MESSAGES: Final = 40
"""A fault of the network hits one of so many messages, of whichever connection."""
TERMINATE: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE application_name = %s ORDER BY random() LIMIT 3
"""


class Faults:
    """What happens to the network and to the server; each thing at a time."""

    def __init__(self, server: Server, proxy: FaultProxy, meter: Meter, seed: int) -> None:
        self.marks: list[tuple[float, str]] = []
        """When which fault began."""
        self._server = server
        self._proxy = proxy
        self._meter = meter
        self._random = random.Random(seed)
        self._one_at_a_time = asyncio.Lock()
        self._often = (self.cut, self.lose, self.slow, self.hole, self.terminate)
        self._seldom = (self.restart, self.crash)

    async def run(self, pause: float) -> None:
        """Do harm, with pauses of that length on average, until cancelled."""
        while True:
            kinds = [*self._often, *self._often, *self._seldom]
            self._random.shuffle(kinds)
            for harm in kinds:
                await asyncio.sleep(self._random.uniform(0.5, 1.5) * pause)
                async with self._one_at_a_time:
                    self.marks.append((round(self._meter.now, 1), harm.__name__))
                    await harm()

    @asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Do no harm for as long as the block lasts."""
        async with self._one_at_a_time:
            yield

    async def cut(self) -> None:
        """Cut a connection, at some message."""
        await self._at_a_message(self._random.choice(CUTS))

    async def lose(self) -> None:
        """Lose an answer, and the connection with it."""
        await self._at_a_message(Kind.LOSE)

    async def slow(self) -> None:
        """Hold up messages for a while."""
        until = self._meter.now + 1.0
        while self._meter.now < until:
            await self._at_a_message(Kind.DELAY)

    async def hole(self) -> None:
        """Let nothing through for a while."""
        await self._at_a_message(Kind.HOLE)
        await asyncio.sleep(self._random.uniform(0.2, 1.5))
        self._proxy.heal()

    async def terminate(self) -> None:
        """Have the server end some of its processes."""
        await asyncio.to_thread(self._terminate)

    async def crash(self) -> None:
        """`kill -9` a process of the server: it throws all out and recovers."""
        await asyncio.to_thread(self._server.kill_backend, APPLICATION)
        await asyncio.sleep(0.5)  # until it has noticed
        await asyncio.to_thread(self._server.wait_until_up)

    async def restart(self) -> None:
        """`kill -9` the whole server, and start it again."""
        await asyncio.to_thread(self._server.kill)
        await asyncio.to_thread(self._server.start)

    async def _at_a_message(self, kind: Kind) -> None:
        way = self._random.choice([Way.TO_SERVER] if kind is Kind.LOSE else list(Way))
        self._proxy.arm(Fault(way, self._random.randrange(MESSAGES), kind))
        for _ in range(50):
            if self._proxy.fired:
                break
            await asyncio.sleep(0.01)
        self._proxy.disarm()

    def _terminate(self) -> None:
        with self._server.connect() as connection:
            connection.execute(TERMINATE, [APPLICATION])
