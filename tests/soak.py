"""A mixed load for minutes, with faults all along: nothing is lost or doubled, and nothing grows.

    python tests/soak.py --minutes 10 --out soak.json

The load comes in rounds. After each the ledger judges what is stored, all of it is erased, and a
new ledger begins, so that neither the ledger nor the tables grow. Ends with 1 if there was a
violation, or if memory, connections, open files or tasks grew.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import json
import logging
import multiprocessing
import os
import platform
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, Final

import psycopg
from faults.proxy import FaultProxy
from ledger import APPLICATION, Ledger, left_in_transaction
from postgres_cluster import Cluster, Server
from soak_faults import Faults
from soak_load import Meter, SoakLoad, judge

from conversation_store import ConversationStore, erase_user

ROUND: Final = 20.0
"""Seconds of load between two judgements, at most."""
MOST_UNITS: Final = 5_000
"""Units between two judgements: what the ledger holds of them is memory, too."""
PAUSE: Final = 2.0
"""Seconds between two faults, on average."""
TASKS: Final = 24
MOST_CONNECTIONS: Final = 8
"""Of each of the two stores."""
MAY_GROW: Final = {
    "rss_mb": (1.10, 4),
    "objects": (1.02, 500),
    "files": (1.0, 6),
    "tasks": (1.0, 6),
    "pooled": (1.0, 2),
}
"""By which factor, and by how much more, the median of the last fifth of the samples may lie above
the one of the second fifth. The first fifth is for caches to fill."""
LONG_ENOUGH: Final = 120.0
"""Seconds from which on that is asked for."""


@dataclass
class Report:
    """What happened."""

    seconds: float
    tasks: int
    rounds: int = 0
    told: dict[str, int] = field(default_factory=dict)
    """How many units ended how."""
    latest_cancelled_s: float = 0.0
    """How long a cancelled call took to end, at most."""
    violations: list[str] = field(default_factory=list)
    grown: dict[str, list[float]] = field(default_factory=dict)
    """Of each thing that is sampled: the medians of the second and of the last fifth."""
    faults: list[tuple[float, str]] = field(default_factory=list)
    buckets: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, float]] = field(default_factory=list)
    python: str = platform.python_version()
    psycopg: str = psycopg.__version__
    cpus: int | None = os.cpu_count()
    postgres: str = ""

    def judge_growth(self) -> None:
        """Add what grew to the violations."""
        fifth = len(self.samples) // 5
        if not fifth:
            return
        for name, (factor, more) in MAY_GROW.items():
            values = [sample[name] for sample in self.samples]
            early, late = median(values[fifth : 2 * fifth]), median(values[-fifth:])
            self.grown[name] = [early, late]
            if self.seconds >= LONG_ENOUGH and late > early * factor + more:
                self.violations.append(f"{name} grew from {early:g} to {late:g}")

    def __str__(self) -> str:
        kinds = Counter(name for _, name in self.faults)
        told = ", ".join(f"{count} {how}" for how, count in sorted(self.told.items()))
        grown = "; ".join(f"{name} {a:g} -> {b:g}" for name, (a, b) in self.grown.items())
        return (
            f"{self.rounds} rounds in {self.seconds:.0f} s, {self.tasks} tasks: {told}\n"
            f"{len(self.faults)} faults: {dict(kinds)}\n"
            f"cancelled calls ended within {self.latest_cancelled_s:.2f} s\n"
            f"second fifth -> last fifth: {grown}\n"
            f"violations: {self.violations or 'none'}"
        )


class Soak:
    """One run."""

    def __init__(self, server: Server, seconds: float, tasks: int, seed: int) -> None:
        self.report = Report(seconds, tasks)
        self.server = server
        self.seed = seed
        self.meter = Meter()
        self.told: Counter[str] = Counter()
        self._is_loaded = False
        self._objects = 0
        self._judge = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))

    async def run(self) -> Report:
        """Load and harm, round after round, until the time is over."""
        async with self._stores() as (stores, proxy):
            with self._judge:
                await self._play(stores, Faults(self.server, proxy, self.meter, self.seed))
        self.meter.turn_over()
        self.report.buckets = self.meter.buckets
        self.report.told = dict(self.told)
        self.report.latest_cancelled_s = round(self.meter.latest_cancelled, 3)
        self.report.judge_growth()
        return self.report

    async def _play(self, stores: Sequence[ConversationStore], faults: Faults) -> None:
        harming = asyncio.create_task(faults.run(PAUSE))
        sampling = asyncio.create_task(self._sample(stores))
        try:
            while self.meter.now < self.report.seconds and not self.report.violations:
                await self._round(stores, faults)
                for task in (harming, sampling):
                    if task.done():
                        task.result()
        finally:
            for task in (harming, sampling):
                task.cancel()
            await asyncio.wait([harming, sampling])
            self.report.faults = faults.marks

    @asynccontextmanager
    async def _stores(self) -> AsyncIterator[tuple[list[ConversationStore], FaultProxy]]:
        with self.server.connect() as connection:
            row = connection.execute("SHOW server_version").fetchone()
            self.report.postgres = str(row and row[0])
        control = await psycopg.AsyncConnection.connect(self.server.dsn)
        await control.close()  # the processes of the server are ended by other means
        most = MOST_CONNECTIONS
        async with (
            FaultProxy(self.server.dsn, APPLICATION, control) as proxy,
            ConversationStore.connect(proxy.dsn, max_size=most) as plain,
            ConversationStore.connect(proxy.dsn, max_size=most, coalesce=True) as coalescing,
        ):
            await plain.migrate()
            self._objects = collect()
            yield [plain, coalescing], proxy

    async def _round(self, stores: Sequence[ConversationStore], faults: Faults) -> None:
        ledger = Ledger(self.server.dsn)
        left = self.report.seconds - self.meter.now
        load = SoakLoad(
            stores, ledger, self.meter, tasks=self.report.tasks, seed=self.seed + self.report.rounds
        )
        async with faults.paused():
            await load.__aenter__()
        self._is_loaded = True
        try:
            with suppress(TimeoutError):
                await load.acknowledge(MOST_UNITS, within=max(1.0, min(ROUND, left)))
        finally:
            self._is_loaded = False
            await load.__aexit__()
        async with faults.paused():
            await self._quiet()
            judging = asyncio.get_running_loop().run_in_executor(
                self._judge, judge, self.server.dsn, ledger.units
            )
            found = [*load.surprises, *await judging]
            found += map(str, await left_in_transaction(self.server.dsn))
            for user_id in await self._users():
                await erase_user(stores[0].unit_of_work(), user_id=user_id)
        self.told.update(load.told)
        self.report.rounds += 1
        self.report.violations += found
        del ledger, load
        self._objects = collect()

    async def _quiet(self) -> None:
        """Wait until the server has ended all that it was still at work on."""
        query = (
            "SELECT 1 FROM pg_stat_activity WHERE application_name = %s AND state <> 'idle'"
            " AND state NOT LIKE 'idle in transaction%%'"
        )
        async with asyncio.timeout(30):
            while await self._rows(query, [APPLICATION]):
                await asyncio.sleep(0.05)

    async def _users(self) -> list[str]:
        query = "SELECT DISTINCT user_id FROM operational.ai_conversations"
        return [row[0] for row in await self._rows(query, [])]

    async def _rows(self, query: str, parameters: list[Any]) -> list[Any]:
        def fetch() -> list[Any]:
            with self.server.connect() as connection:
                return connection.execute(query.encode(), parameters).fetchall()

        return await asyncio.to_thread(fetch)

    async def _sample(self, stores: Sequence[ConversationStore]) -> None:
        """Note once a second what must not grow, while there is load."""
        pools = [store._adapter._pool for store in stores]  # type: ignore[attr-defined]
        while True:
            await asyncio.sleep(1)
            self.meter.turn_over()
            sample = {
                "at": round(self.meter.now, 1),
                "rss_mb": round(resident_megabytes(), 1),
                "objects": self._objects,
                "files": open_files(),
                "tasks": len(asyncio.all_tasks()),
                "pooled": sum(pool.get_stats()["pool_size"] for pool in pools),
            }
            if self._is_loaded:
                self.report.samples.append(sample)


def collect() -> int:
    """Give back what is free; return how many objects are left that the collector knows."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    return len(gc.get_objects())


def open_files() -> int:
    """Return how many files and sockets this process has open."""
    return sum(1 for _ in Path("/dev/fd").iterdir())


def resident_megabytes() -> float:
    """Return the memory that this process holds; where that is not told, the most it ever held."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS tells it in bytes


def soak(seconds: float, *, tasks: int = TASKS, seed: int = 0) -> Report:
    """Run a soak against a durable server of its own."""
    with Cluster() as cluster:
        server = cluster.new_server()
        server.start()
        return asyncio.run(Soak(server, seconds, tasks, seed).run())


def main() -> None:
    """Run a soak, write down what happened, and say it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, help="where to write what happened, as JSON")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # its pool tells of each connection
    report = soak(arguments.minutes * 60, seed=arguments.seed)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(asdict(report), indent=None) + "\n")
    print(report)
    sys.exit(1 if report.violations else 0)


if __name__ == "__main__":
    main()
