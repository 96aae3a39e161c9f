"""How late an event loop is, so that a promise in seconds can be held to on a busy machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

BEAT: Final = 0.01


class Pulse:
    """Beats while its block lasts, and adds up how late the beats come."""

    def __init__(self) -> None:
        self._late = 0.0
        self._due: float | None = None
        """When the next beat is due."""

    @property
    def late(self) -> float:
        """Seconds by which the loop was late, in all, and is with the beat that is due."""
        if self._due is None:
            return self._late
        return self._late + max(0.0, asyncio.get_running_loop().time() - self._due)

    @asynccontextmanager
    async def beating(self) -> AsyncGenerator[None]:
        """Beat during the block."""
        self._due = asyncio.get_running_loop().time() + BEAT
        task = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            self._due = None

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(BEAT)
            self._late, self._due = self.late, clock() + BEAT


@asynccontextmanager
async def within(seconds: float) -> AsyncGenerator[None]:
    """Check that a block takes so long at most, apart from how late the event loop is."""
    pulse, clock = Pulse(), asyncio.get_running_loop().time
    async with pulse.beating():
        began = clock()
        yield
        took, late = clock() - began, pulse.late
    assert took - late < seconds, f"took {took:.2f} s, {late:.2f} s of them late"
