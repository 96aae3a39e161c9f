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
        self.late = 0.0
        """Seconds by which the loop was late, in all."""

    @asynccontextmanager
    async def beating(self) -> AsyncGenerator[None]:
        """Beat during the block."""
        task = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _beat(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + BEAT
            await asyncio.sleep(BEAT)
            self.late += max(0.0, clock() - due)


@asynccontextmanager
async def within(seconds: float) -> AsyncGenerator[None]:
    """Check that a block takes so long at most, apart from how late the event loop is."""
    pulse, clock = Pulse(), asyncio.get_running_loop().time
    async with pulse.beating():
        began = clock()
        yield
        took = clock() - began
    assert took - pulse.late < seconds, f"took {took:.2f} s, {pulse.late:.2f} s of them late"
