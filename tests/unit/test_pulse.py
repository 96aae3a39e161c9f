"""What is held to a time answers for its own waits, and not for a loop that was late."""

from __future__ import annotations

import asyncio
import time

import pytest
from pulse import within


@pytest.mark.parametrize("turns", [0, 1])
async def test_a_loop_that_is_late_is_no_wait(turns: int) -> None:
    """Also where it is late at the very end, or from the beginning on: no beat has told of it."""
    async with within(0.1):
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.3)  # noqa: ASYNC251 - as a machine that is busy with others
    async with within(0.1):
        time.sleep(0.3)  # noqa: ASYNC251
        for _ in range(turns):
            await asyncio.sleep(0)


async def test_a_wait_is_one() -> None:
    """It is not taken for a loop that is late."""
    with pytest.raises(AssertionError, match="took"):
        async with within(0.1):
            await asyncio.sleep(0.2)
