"""The picture of a soak: latency, errors and what must not grow, over time, with the faults."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any, Final

from .drawing import COLOURS, INK, axes_on_card

RESULTS: Final = Path(__file__).parent / "results" / "soak.json"
PICTURE: Final = Path(__file__).resolve().parents[1] / "docs" / "images" / "soak.svg"

FAULTS: Final = {
    "cut": "connection cut",
    "lose": "answer lost",
    "slow": "messages held up",
    "hole": "black hole",
    "terminate": "server processes ended",
    "crash": "server process kill -9",
    "restart": "server kill -9 and restart",
}
GAP: Final = 5.0
"""Seconds without an entry that break a line: between two rounds of load."""
ENDS: Final = ("StoreUnavailable", "StoreTimeout", "TransactionAborted", "CommitOutcomeUnknown")
SAMPLES: Final = {
    "rss_mb": ("memory, MB", 1),
    "objects": ("thousand objects", 1000),
    "files": ("open files and sockets", 1),
    "tasks": ("asyncio tasks", 1),
    "pooled": ("connections", 1),
}
"""Label, and what is one on the axis."""


def draw(report: dict[str, Any], out: Path) -> None:
    """Draw a report of tests/soak.py."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with axes_on_card(out, rows=4, columns=1, size=(11, 11), share_x=True) as axes:
        latency, faults, ends, samples = axes
        _draw_latency(latency, report)
        _draw_faults(faults, report["faults"])
        _draw_ends(ends, report["buckets"])
        _draw_samples(samples, report["samples"])
        samples.set_xlabel("minutes")
        samples.set_xlim(0, report["seconds"] / 60)


def _minutes(entries: Sequence[dict[str, Any]]) -> list[float]:
    return [entry["at"] / 60 for entry in entries]


def _line(axes: Any, entries: Sequence[dict[str, Any]], name: str, one: float, **how: Any) -> None:
    """Draw a line that is broken where there was no load."""
    x, y = list[float](), list[float]()
    for entry in entries:
        at = entry["at"] / 60
        if x and at - x[-1] > GAP / 60:
            x.append(at)
            y.append(nan)
        x.append(at)
        y.append(entry[name] / one)
    axes.plot(x, y, linewidth=1.3, **how)


def _draw_latency(axes: Any, report: dict[str, Any]) -> None:
    timed = [bucket for bucket in report["buckets"] if "p50_ms" in bucket]
    units = sum(bucket["units"] for bucket in timed)
    count = f"{units:,}".replace(",", " ")
    axes.set_title(f"Latency of {count} calls by {report['tasks']} tasks, ms")
    for name, colour in (("p99_ms", COLOURS[1]), ("p50_ms", COLOURS[0])):
        _line(axes, timed, name, 1, color=colour, label=name[:3])
    axes.set_yscale("log")
    axes.set_ylim(top=4 * max(bucket["p99_ms"] for bucket in timed))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(loc="upper right", ncols=2)


def _draw_faults(axes: Any, faults: Sequence[tuple[float, str]]) -> None:
    axes.set_title(f"{len(faults)} faults")
    names = list(reversed(FAULTS))
    for row, name in enumerate(names):
        times = [at / 60 for at, kind in faults if kind == name]
        axes.eventplot(times, lineoffsets=row, linelengths=0.7, linewidths=1.6, colors=INK)
    axes.set_yticks(range(len(names)), [FAULTS[name] for name in names])
    axes.grid(visible=False)


def _draw_ends(axes: Any, buckets: Sequence[dict[str, Any]]) -> None:
    axes.set_title("Calls that ended otherwise, in 2 s")
    below = [0.0] * len(buckets)
    for number, name in enumerate((*ENDS, "cancelled")):
        counts = [bucket["errors"].get(name, 0) for bucket in buckets]
        if any(counts):
            colour = COLOURS[number] if name != "cancelled" else "#b5b1a7"
            axes.bar(_minutes(buckets), counts, 2 / 60, below, color=colour, label=name)
            below = [low + count for low, count in zip(below, counts, strict=True)]
    axes.legend(loc="upper right", ncols=3)
    axes.set_ylim(0, max(below, default=1) * 1.3 + 1)


def _draw_samples(axes: Any, samples: Sequence[dict[str, float]]) -> None:
    axes.set_title("What must not grow")
    for number, (name, (label, one)) in enumerate(SAMPLES.items()):
        _line(axes, samples, name, one, color=COLOURS[number], label=label)
    axes.set_ylim(0, 1.3 * max(sample["tasks"] for sample in samples))
    axes.legend(loc="upper right", ncols=5)


def main() -> None:
    """Draw the soak that ran last."""
    draw(json.loads(RESULTS.read_text()), PICTURE)


if __name__ == "__main__":
    main()
