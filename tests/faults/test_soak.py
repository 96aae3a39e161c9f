"""The soak, for some seconds: that it runs, and finds nothing."""

from __future__ import annotations

import asyncio

from soak import Report, soak


async def test_a_soak_of_some_seconds_finds_nothing() -> None:
    """It does harm all along, and judges what was stored."""
    report = await asyncio.to_thread(soak, 8, tasks=16)

    assert report.violations == []
    assert report.told["acknowledged"] > 300
    assert report.rounds >= 1
    assert len(report.faults) >= 2
    assert len(report.buckets) >= 3
    assert report.grown


def test_what_grows_is_a_violation() -> None:
    """The median of the last fifth of the samples is held against that of the second."""
    report = Report(seconds=600, tasks=1)
    for second in range(600):
        steady = {"objects": 40_000.0, "files": 60.0, "tasks": 90.0, "pooled": 16.0}
        report.samples.append({"at": second, "rss_mb": 50 + second / 30} | steady)

    report.judge_growth()

    assert report.violations == ["rss_mb grew from 55.9833 to 67.9833"]
