"""The soak, for some seconds: that it runs, and finds nothing."""

from __future__ import annotations

import asyncio

from soak import soak


async def test_a_soak_of_some_seconds_finds_nothing() -> None:
    """It does harm all along, and judges what was stored."""
    report = await asyncio.to_thread(soak, 8, tasks=16)

    assert report.violations == []
    assert report.told["acknowledged"] > 300
    assert report.rounds >= 1
    assert len(report.faults) >= 2
    assert len(report.buckets) >= 3
    assert report.grown
