"""Whether autovacuum keeps up: a long run of writes, watched.

    python -m benchmarks.write_run               # 10 minutes, 16 tasks, 1,000,000 messages before
    python -m benchmarks.write_run --quick       # 20 seconds

Every task appends turns to a few conversations that everybody wants (the hot set) and to all others
(the long tail), starts conversations, lists and reads, through the service functions, on a server
that flushes every commit to disk. Every 5 seconds the tables are looked at.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import psycopg

from conversation_store import (
    ConversationStore,
    append_messages,
    latest_messages,
    list_conversations,
    start_conversation,
)

from .seed import Seeded, fresh, seed_store
from .table_growth import turn
from .table_runs import about, parser_of, server, write

SCHEMA: Final = "written"
TABLES: Final = ("ai_conversations", "ai_messages")
TASKS: Final = 16
HOT: Final = 200
"""So many conversations get half of the appends."""
SIZE: Final = (1_000_000, 50_000)
QUICK_SIZE: Final = (20_000, 2_000)
_STATE: Final = """SELECT s.relname, s.n_live_tup, s.n_dead_tup, s.n_tup_upd, s.n_tup_hot_upd,
    s.autovacuum_count, s.autoanalyze_count,
    pg_relation_size(s.relid), pg_indexes_size(s.relid)
FROM pg_stat_user_tables AS s WHERE s.schemaname = %s AND s.relname = ANY(%s)"""
_INDEXES: Final = """SELECT indexrelname, pg_relation_size(indexrelid)
FROM pg_stat_user_indexes WHERE schemaname = %s AND relname = ANY(%s)"""
_STATE_NAMES: Final = (
    "live",
    "dead",
    "updates",
    "hot_updates",
    "autovacuums",
    "autoanalyzes",
    "bytes_of_rows",
    "bytes_of_indexes",
)

Operation = Callable[[], Awaitable[Any]]


@dataclass
class Load:
    """What the tasks do, and how long it takes."""

    store: ConversationStore
    conversations: Sequence[tuple[int, str]]
    """Those that accept messages, with their users."""
    chance: random.Random = field(default_factory=lambda: random.Random(3))
    numbers: count[int] = field(default_factory=count)
    seconds: dict[str, list[float]] = field(default_factory=dict)
    """By operation, since the last sample."""
    done: Counter[str] = field(default_factory=Counter)

    def _conversation(self) -> tuple[int, str]:
        hot = self.chance.random() < 0.5
        return self.chance.choice(self.conversations[:HOT] if hot else self.conversations)

    async def append(self) -> None:
        """Append a turn."""
        here, _ = self._conversation()
        await append_messages(self.store.unit_of_work(), conversation_id=here, drafts=turn())

    async def start(self) -> None:
        """Start a conversation of a user who has others."""
        _, user_id = self._conversation()
        await start_conversation(
            self.store.unit_of_work(),
            user_id=user_id,
            session_id=f"written-{next(self.numbers)}",
            drafts=turn()[:1],
        )

    async def read(self) -> None:
        """Read the newest messages."""
        here, _ = self._conversation()
        await latest_messages(self.store.unit_of_work(), conversation_id=here, limit=50)

    async def list(self) -> None:
        """List a user's conversations."""
        _, user_id = self._conversation()
        await list_conversations(self.store.unit_of_work(), user_id=user_id, limit=20)

    async def task(self, until: float) -> None:
        """Do one thing after the other."""
        operations = (self.append, self.start, self.read, self.list)
        while time.monotonic() < until:
            (operation,) = self.chance.choices(operations, (70, 5, 15, 10))
            begun = time.perf_counter()
            await operation()
            self.seconds.setdefault(operation.__name__, []).append(time.perf_counter() - begun)
            self.done[operation.__name__] += 1


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return the median and the 99th percentile."""
    ordered = sorted(seconds)
    return {
        "p50_ms": round(1000 * statistics.median(ordered), 3),
        "p99_ms": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)], 3),
    }


async def samples(
    dsn: str, load: Load, seeded: Seeded, seconds: float, every: float
) -> list[dict[str, Any]]:
    """Look at the tables and at the latencies until the time is over."""
    taken: list[dict[str, Any]] = []
    begun = time.monotonic()
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for number in range(1, round(seconds / every) + 1):
            await asyncio.sleep(max(0.0, begun + number * every - time.monotonic()))
            recent, load.seconds = load.seconds, {}
            cursor = await connection.execute(_STATE, [SCHEMA, list(TABLES)])
            tables = {
                name: dict(zip(_STATE_NAMES, values, strict=True))
                for name, *values in await cursor.fetchall()
            }
            cursor = await connection.execute(_INDEXES, [SCHEMA, list(TABLES)])
            indexes: dict[str, int] = dict(await cursor.fetchall())
            done = load.done
            tables["ai_conversations"]["rows"] = seeded.conversations + done["start"]
            tables["ai_messages"]["rows"] = seeded.messages + 2 * done["append"] + done["start"]
            taken.append(
                {
                    "second": round(time.monotonic() - begun, 1),
                    "operations_per_second": round(sum(map(len, recent.values())) / every),
                    "append": milliseconds(recent["append"]),
                    "list": milliseconds(recent["list"]),
                    "tables": tables,
                    "bytes_of_indexes": indexes,
                }
            )
    return taken


async def measured(dsn: str, size: tuple[int, int], seconds: float, every: float) -> dict[str, Any]:
    """Seed, write for some time, and say what became of the tables."""
    messages, conversations = size
    await fresh(dsn, SCHEMA)
    seeded = seed_store(dsn, SCHEMA, messages=messages, conversations=conversations)
    with psycopg.connect(dsn) as connection:
        active = connection.execute(
            f"SELECT id, user_id FROM {SCHEMA}.ai_conversations WHERE status = 'active'".encode()
        ).fetchall()
    random.Random(2).shuffle(active)
    async with ConversationStore.connect(
        dsn, schema=SCHEMA, min_size=TASKS, max_size=TASKS
    ) as store:
        load = Load(store, active)
        until = time.monotonic() + seconds
        writing = asyncio.gather(*(load.task(until) for _ in range(TASKS)))
        taken = await samples(dsn, load, seeded, seconds, every)
        await writing
    return {
        "seeded_messages": seeded.messages,
        "seeded_conversations": seeded.conversations,
        "tasks": TASKS,
        "hot_conversations": HOT,
        "seconds": seconds,
        "done": dict(load.done),
        "samples": taken,
        "summary": summary(taken),
    }


def summary(taken: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compare the second fifth of the run with the last, and find the most."""
    part = max(1, len(taken) // 5)
    early, late = taken[part : 2 * part], taken[-part:]

    def compared(of: Callable[[Mapping[str, Any]], float]) -> dict[str, float]:
        return {
            "early": round(statistics.median(map(of, early)), 3),
            "late": round(statistics.median(map(of, late)), 3),
        }

    found: dict[str, Any] = {
        "append_p50_ms": compared(lambda sample: sample["append"]["p50_ms"]),
        "append_p99_ms": compared(lambda sample: sample["append"]["p99_ms"]),
        "list_p50_ms": compared(lambda sample: sample["list"]["p50_ms"]),
        "operations_per_second": compared(lambda sample: sample["operations_per_second"]),
    }
    for table in TABLES:
        states = [sample["tables"][table] for sample in taken]
        first, last = states[0], states[-1]
        updates = last["updates"] - first["updates"]
        found[table] = {
            "most_dead": max(state["dead"] for state in states),
            "most_dead_late": max(sample["tables"][table]["dead"] for sample in late),
            "updates": last["updates"],
            "hot_share": round((last["hot_updates"] - first["hot_updates"]) / updates, 3)
            if updates
            else None,
            "autovacuums": last["autovacuums"],
            "bytes_per_row": {
                name: round((state["bytes_of_rows"] + state["bytes_of_indexes"]) / state["rows"], 1)
                for name, state in (
                    ("first", first),
                    ("early", early[-1]["tables"][table]),
                    ("last", last),
                )
            },
        }
    return found


def plot(result: Mapping[str, Any], out: Path) -> None:
    """Draw latencies, dead rows with the passes of autovacuum, and sizes, over time."""
    from .drawing import FAINT, axes_on_card, lines

    taken = result["samples"]
    minutes = [sample["second"] / 60 for sample in taken]

    def of(table: str, *names: str) -> list[float]:
        return [sum(sample["tables"][table][name] for name in names) for sample in taken]

    with axes_on_card(out, rows=4, columns=1, size=(9, 9.5), share_x=True) as all_axes:
        times, dead, size, by_row = all_axes
        latencies = {
            name: [sample["append"][f"{name}_ms"] for sample in taken] for name in ("p50", "p99")
        }
        lines(times, minutes, latencies, f"An append, {result['tasks']} tasks [ms]")
        dead_rows = {"dead rows": [n / 1000 for n in of("ai_conversations", "dead")]}
        lines(dead, minutes, dead_rows, "Dead rows of ai_conversations [thousands]")
        passes = of("ai_conversations", "autovacuums")
        ends = [
            minute
            for minute, before, now in zip(minutes[1:], passes, passes[1:], strict=False)
            if now > before
        ]
        for number, minute in enumerate(ends):
            label = None if number else "autovacuum ended"
            dead.axvline(minute, color=FAINT, linewidth=4, zorder=0, label=label)
        sizes = {
            what: [n / 1e6 for n in of("ai_conversations", f"bytes_of_{what}")]
            for what in ("rows", "indexes")
        }
        lines(size, minutes, sizes, "Size of ai_conversations [MB]")
        shares = {
            table: [
                both / rows
                for both, rows in zip(
                    of(table, "bytes_of_rows", "bytes_of_indexes"), of(table, "rows"), strict=True
                )
            ]
            for table in TABLES
        }
        lines(by_row, minutes, shares, "Bytes by row that is alive, indexes included")
        by_row.set_xlabel("minutes")
        for axes in all_axes:
            for line in axes.get_lines():
                line.set_marker("")
            axes.set_ylim(bottom=0)
            axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def main() -> None:
    """Run, and keep the result and its plot."""
    parser = parser_of("write_run", "A long run of writes, and whether autovacuum keeps up.")
    parser.add_argument("--minutes", type=float, help="10; a third of one with --quick")
    parser.add_argument("--naptime", default="1min", help="autovacuum_naptime of our own server")
    given = parser.parse_args()
    size = QUICK_SIZE if given.quick else SIZE
    seconds = 60 * (given.minutes or (1 / 3 if given.quick else 10))
    every = seconds / 10 if given.quick else 5.0
    with server(given.dsn, {"autovacuum_naptime": given.naptime}) as dsn:
        result = {
            "about": about(dsn, given.note),
            **asyncio.run(measured(dsn, size, seconds, every)),
        }
    write(given.out, result)
    if not given.quick:
        plot(result, given.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
