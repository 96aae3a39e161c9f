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

REFILL_BELOW: Final = 0.25
"""A new block is drawn in the background when less than this part of a block is left."""

DrawBlock = Callable[[], Awaitable[range]]


class IdSource:
    """Gives ids of blocks that were drawn; draws the next one before the last runs out."""

    def __init__(self, draw_block: DrawBlock) -> None:
        self._draw_block = draw_block
        self._ranges: deque[range] = deque()
        self._left = 0
        self._block_size = 0
        self._refill: asyncio.Task[None] | None = None
        self._process = os.getpid()

    async def take(self, count: int, draw_block: DrawBlock | None = None) -> list[int]:
        """Give `count` ids. Errors: those of drawing a block.

        `draw_block` draws when none is left: a unit that holds a connection lends it for that, so
        that it never waits for a second one. The sequence takes no part in transactions, so a
        block drawn so survives a rollback.
        """
        if self._process != os.getpid():  # a fork: these ids are the parent's
            self._ranges.clear()
            self._left, self._refill, self._process = 0, None, os.getpid()
        while self._left < count:
            if draw_block is None:
                await asyncio.shield(self._start_refill())
            else:
                self._add(await draw_block())
        ids = self._pop(count)
        if self._left < self._block_size * REFILL_BELOW:
            self._start_refill()
        return ids

    async def close(self) -> None:
        """Stop drawing."""
        if self._refill is not None:
            self._refill.cancel()
            await asyncio.wait([self._refill])

    def _add(self, block: range) -> None:
        self._ranges.append(block)
        self._left += len(block)
        self._block_size = len(block)

    def _pop(self, count: int) -> list[int]:
        self._left -= count
        ids: list[int] = []
        while len(ids) < count:
            block = self._ranges.popleft()
            wanted = count - len(ids)
            ids.extend(block[:wanted])
            if len(block) > wanted:
                self._ranges.appendleft(block[wanted:])
        return ids

    def _start_refill(self) -> asyncio.Task[None]:
        """Return the task that draws a block: there is never more than one."""
        if self._refill is None:
            self._refill = asyncio.create_task(self._draw_ahead())
            # Nobody may be waiting: whoever needs an id next meets the error itself.
            self._refill.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._refill

    async def _draw_ahead(self) -> None:
        try:
            self._add(await self._draw_block())
        finally:
            self._refill = None
