"""Ids before the write: blocks of them, drawn from the sequence ahead of need (HiLo).

The block is the sequence's own INCREMENT, so that all processes agree on it. An id that was drawn
and not used is lost, which costs nothing; none is ever given twice.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from psycopg.types.numeric import Int8

from .connections import Connection
from .statement import fetch_rows
from .texts import Texts

DRAWING: Final = 10.0
"""Seconds in which the sequence has to answer, for nobody may be there to lose patience."""
REFILL_BELOW: Final = 0.25
"""A new block is drawn in the background when less than this part of a block is left."""

DrawBlocks = Callable[[int], Awaitable[list[range]]]


class IdSource:
    """Gives ids of blocks that were drawn; draws the next one before the last runs out."""

    def __init__(self, draw_blocks: DrawBlocks) -> None:
        self._draw_blocks = draw_blocks
        self._ranges: deque[range] = deque()
        self._left = 0
        self._block_size = 0
        self._refill: asyncio.Task[None] | None = None
        self._waiting = 0
        """How many wait for it."""
        self._process = os.getpid()

    async def take(self, count: int, draw_blocks: DrawBlocks | None = None) -> list[int]:
        """Give `count` ids. Errors: those of drawing.

        `draw_blocks` draws when none is left: a unit that holds a connection lends it for that, so
        that it never waits for a second one. The sequence takes no part in transactions, so a
        block drawn so survives a rollback.
        """
        while not self.has(count):
            # How large a block is, only the first one tells.
            blocks = -(-(count - self._left) // self._block_size) if self._block_size else 1
            if draw_blocks is None:
                await self._await_refill(blocks)
            else:
                self._add(await draw_blocks(blocks))
        return self.pop(count)

    def has(self, count: int) -> bool:
        """Whether `count` ids can be had without drawing."""
        if self._process != os.getpid():  # a fork: these ids are the parent's
            self.forget()
            self._refill, self._waiting, self._process = None, 0, os.getpid()
        return self._left >= count

    def forget(self) -> None:
        """Give none of the ids that were drawn: one of them was used already."""
        self._ranges.clear()
        self._left = 0

    async def close(self) -> None:
        """Stop drawing."""
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.wait([self._refill])
            self._refill = None  # cancelled before it began, it could not say so itself

    def _add(self, blocks: list[range]) -> None:
        self._ranges.extend(blocks)
        self._left += sum(map(len, blocks))
        self._block_size = len(blocks[0])

    def pop(self, count: int) -> list[int]:
        """Give `count` ids that it has; in the background draw more if few are left."""
        self._left -= count
        if self._left < self._block_size * REFILL_BELOW:
            self._start_refill(1)
        ids: list[int] = []
        while len(ids) < count:
            block = self._ranges.popleft()
            wanted = count - len(ids)
            ids.extend(block[:wanted])
            if len(block) > wanted:
                self._ranges.appendleft(block[wanted:])
        return ids

    def _start_refill(self, blocks: int) -> asyncio.Task[None]:
        """Return the task that draws: there is never more than one."""
        if self._refill is None:
            self._refill = asyncio.create_task(self._draw(blocks))
            # Nobody may be waiting: whoever needs an id next meets the error itself.
            self._refill.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._refill

    async def _await_refill(self, blocks: int) -> None:
        """Wait for more ids; whoever is cancelled as the last one takes the draw along.

        It may never be answered, and who comes next would wait for it.
        """
        refill = self._start_refill(blocks)
        self._waiting += 1
        try:
            await asyncio.shield(refill)
        finally:
            self._waiting -= 1
            if not self._waiting and not refill.done():
                self._refill = None
                refill.cancel()

    async def _draw(self, blocks: int) -> None:
        try:
            self._add(await self._draw_blocks(blocks))
        finally:
            if self._refill is asyncio.current_task():
                self._refill = None


async def draw_blocks(connection: Connection, texts: Texts, blocks: int) -> list[range]:
    """Draw blocks of ids from the sequence: 1 round trip."""
    parameters = {"sequence": texts.sequence, "blocks": Int8(blocks)}
    rows = await fetch_rows(connection, texts.next_ids, parameters)
    return [range(first, first + increment) for first, increment in rows]
