"""How fast imports and exports are, and in what memory: against bare COPY and a bare cursor.

    python -m benchmarks.copying [--quick] [--out FILE]

Starts a durable server of its own (fsync on, synchronous_commit on) and removes it. All contenders
run on it in rounds of random order; what is reported are medians of the rounds, and the medians of
the ratios within a round. Memory is the most that a process of its own had resident.

- import: `import_conversations` from records that are in memory
- bare COPY: psycopg's COPY of tuples that are ready, into both tables, in one transaction, in the
  binary format (the limit)
- check only: the records are read and found acceptable, and nothing is sent
- export: `export_conversations`, the records are dropped
- bare cursor: psycopg's server-side cursor over the same statement, the rows are dropped
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg

from conversation_store import (
    ConversationStore,
    export_conversations,
    import_conversations,
)
from conversation_store.adapters.postgres.embedded import EmbeddedPostgres
from conversation_store.adapters.postgres.texts import Texts
from conversation_store.domain.record import check_record

from .dialogues import PROJECT
from .machine import machine, occasion
from .markdown import table

SETTINGS: Final = {
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",
}
MESSAGES_A_RECORD: Final = 20
BARE: Final = {
    "ai_conversations": (
        """id, user_id, session_id, status, rescue_id, intent_type, source, metadata, start_time,
        last_activity, message_count, version""",
        ["int8", *["text"] * 7, *["timestamptz"] * 2, *["int8"] * 2],
    ),
    "ai_messages": (
        "conversation_id, position, id, role, content, timestamp, intent_type, slots, metadata",
        [*["int8"] * 3, *["text"] * 2, "timestamptz", *["text"] * 3],
    ),
}
"""Columns and types; JSON goes as text behind the version byte of jsonb's binary format."""

SENTENCE: Final = "a table for two on Friday evening near the station please thank you that is all"
WORDS: Final = SENTENCE.split()


def records(count: int) -> Iterator[Any]:
    """Give task-oriented dialogues: about 100 characters a message, slots in three of four."""
    dice = random.Random(count)
    for number in range(count):
        said: list[Any] = []
        for position in range(MESSAGES_A_RECORD):
            slots = {
                "city": [dice.choice(WORDS)],
                "restaurant_name": [dice.choice(WORDS), dice.choice(WORDS)],
                "time": dice.choice(WORDS),
            }
            said.append(
                {
                    "role": "assistant" if position % 2 else "user",
                    "content": " ".join(dice.choices(WORDS, k=20)),
                    "intent_type": "FindRestaurants" if position % 2 == 0 else None,
                    "slots": slots if dice.random() < 0.75 else None,
                }
            )
        yield {
            "user_id": f"user-{number % 997:04}",
            "session_id": f"session-{number:08}",
            "source": "benchmark",
            "intent_type": "FindRestaurants",
            "metadata": {"lang": "en", "services": ["Restaurants_1", "Weather_1"], "turns": 20},
            "messages": said,
        }


def _jsonb(value: Any) -> str | None:
    dumped = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return None if value is None else "\x01" + dumped


def tuples(given: list[Any]) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of records, ready to be sent."""
    now = datetime.now(UTC)
    conversations: list[tuple[Any, ...]] = []
    messages: list[tuple[Any, ...]] = []
    for number, record in enumerate(given, 1):
        said = record["messages"]
        conversations.append(
            (
                *(number, record["user_id"], record["session_id"], "active", None),
                *(record["intent_type"], record["source"], _jsonb(record["metadata"])),
                *(now, now, len(said), 1),
            )
        )
        messages += [
            (
                *(number, position, len(given) + len(messages) + position, message["role"]),
                *(message["content"], now, message["intent_type"], _jsonb(message["slots"]), None),
            )
            for position, message in enumerate(said, 1)
        ]
    return {"ai_conversations": conversations, "ai_messages": messages}


async def bare_copy(connection: Any, rows: dict[str, list[tuple[Any, ...]]]) -> None:
    """Send rows by COPY, in one transaction."""
    async with connection.transaction():
        for table, (columns, types) in BARE.items():
            text = f"COPY operational.{table} ({columns}) FROM STDIN (FORMAT binary)"
            async with connection.cursor().copy(text.encode()) as copy:
                copy.set_types(types)
                for row in rows[table]:
                    await copy.write_row(row)


async def bare_cursor(connection: Any) -> None:
    """Read what an export reads by psycopg's cursor on the server."""
    async with connection.transaction():
        cursor = psycopg.AsyncServerCursor(connection, "bare")
        cursor.itersize = 1000
        await cursor.execute(Texts("operational").export, binary=True)
        async for _ in cursor:
            pass
        await cursor.close()


async def drain(store: ConversationStore) -> None:
    """Export all and drop it."""
    async for _ in export_conversations(store.unit_of_work()):
        pass


async def measure(dsn: str, count: int, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds, of the clock and of the client's CPU, of each round of each contender."""
    given = list(records(count))
    rows = tuples(given)
    gc.collect()
    gc.freeze()  # what is ready is not part of what is measured
    seconds: dict[str, list[tuple[float, float]]] = {}
    async with (
        ConversationStore.connect(dsn) as store,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
    ):

        async def import_all() -> None:
            await import_conversations(store.unit_of_work(), records=given)

        async def check() -> None:
            for number, record in enumerate(given, 1):
                check_record(record, number)

        writing: dict[str, Callable[[], Awaitable[None]]] = {
            "import": import_all,
            "bare COPY": lambda: bare_copy(connection, rows),
            "check only": check,
        }
        reading: dict[str, Callable[[], Awaitable[None]]] = {
            "export": lambda: drain(store),
            "bare cursor": lambda: bare_cursor(connection),
        }
        for _ in range(rounds):
            for contenders in (writing, reading):
                for name in random.sample(sorted(contenders), len(contenders)):
                    if contenders is writing:
                        await connection.execute("TRUNCATE operational.ai_conversations CASCADE")
                        await connection.execute("CHECKPOINT")
                    began, used = time.perf_counter(), time.process_time()
                    await contenders[name]()
                    lasted = time.perf_counter() - began
                    seconds.setdefault(name, []).append((lasted, time.process_time() - used))
                if contenders is writing:
                    await connection.execute("TRUNCATE operational.ai_conversations CASCADE")
                    await import_all()
                    await connection.execute("VACUUM ANALYZE")
    return seconds


async def migrate(dsn: str) -> None:
    """Make the tables."""
    async with ConversationStore.connect(dsn) as store:
        await store.migrate()


async def grow(dsn: str, what: str, count: int) -> None:
    """Import, or export, so many conversations in this process, and print its peak of memory."""
    async with ConversationStore.connect(dsn, min_size=1) as store:
        if what == "import":
            await import_conversations(store.unit_of_work(), records=records(count))
        else:
            await drain(store)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def peaks(dsn: str, count: int) -> dict[str, dict[str, int]]:
    """Return the peaks in KB of importing and exporting so many conversations, and ten times more.

    Measured before anything else: a process begins with the peak of the one that started it.
    """
    found: dict[str, dict[str, int]] = {"import": {}, "export": {}}
    for name, size in (("N", count), ("10N", 10 * count)):
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("TRUNCATE operational.ai_conversations CASCADE")
        for what in ("import", "export"):
            command = [sys.executable, "-m", "benchmarks.copying", "--grow", what]
            out = subprocess.check_output([*command, str(size), dsn], text=True)
            found[what][name] = int(out)
    return found


def median_ratio(
    seconds: dict[str, list[tuple[float, float]]], ours: str, limit: str
) -> dict[str, float]:
    """Return our rate as a part of the limit's: the median of the rounds, the least, the most."""
    pairs = zip(seconds[ours], seconds[limit], strict=True)
    ratios = [theirs / mine for (mine, _), (theirs, _) in pairs]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def report(count: int, seconds: dict[str, list[tuple[float, float]]], memory: Any) -> Any:
    """Print the results and return them."""
    messages = count * MESSAGES_A_RECORD
    result: dict[str, Any] = {
        **occasion(0),
        "machine": machine(),
        "messages": messages,
        "rounds": len(seconds["import"]),
        "contenders": {},
        "ratios": {
            "import / bare COPY": median_ratio(seconds, "import", "bare COPY"),
            "export / bare cursor": median_ratio(seconds, "export", "bare cursor"),
        },
        "peak_kb": memory,
    }
    print(f"{'':14} {'messages/s':>12} {'client CPU, µs a message':>26}")
    for name, rounds in seconds.items():
        rate = messages / statistics.median(lasted for lasted, _ in rounds)
        cpu = statistics.median(used for _, used in rounds) / messages * 1e6
        result["contenders"][name] = {"messages_per_second": rate, "client_cpu_us": cpu}
        print(f"{name:14} {rate:12,.0f} {cpu:26.2f}")
    for name, ratio in result["ratios"].items():
        print(f"{name}: {ratio['median']:.2f} ({ratio['least']:.2f} … {ratio['most']:.2f})")
    for what, sizes in memory.items():
        once, ten_times = sizes["N"], sizes["10N"]
        ratio = ten_times / once
        print(f"peak of {what}: {once:,} KB; of ten times as much: {ten_times:,} KB ({ratio:.2f})")
    return result


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer messages and rounds")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks/results/copying.json")
    parser.add_argument("--grow", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.grow:
        what, count, dsn = arguments.grow
        asyncio.run(grow(dsn, what, int(count)))
        return
    count, rounds, memory_count = (1_000, 3, 400) if arguments.quick else (10_000, 9, 4_000)
    with EmbeddedPostgres(settings=SETTINGS) as server:
        asyncio.run(migrate(server.dsn))
        memory = peaks(server.dsn, memory_count)
        seconds = asyncio.run(measure(server.dsn, count, rounds))
    result = report(count, seconds, memory)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def text(results: dict[str, Any]) -> str:
    """Make the chapter."""
    contenders, ratios = results["contenders"], results["ratios"]
    rows = [
        [name, f"{each['messages_per_second']:,.0f}", f"{each['client_cpu_us']:.1f}"]
        for name, each in contenders.items()
    ]
    peaks_of = [
        [what, *(f"{sizes[size] / 1024:.0f}" for size in ("N", "10N"))]
        for what, sizes in results["peak_kb"].items()
    ]
    parts = [
        "## Imports and exports",
        (
            f"{results['messages']:,} messages in conversations of {MESSAGES_A_RECORD}, three of"
            f" four with slots; medians of {results['rounds']} rounds. *bare COPY* sends tuples"
            " that are ready, unchecked, into both tables in one transaction. *check only* reads"
            " the records and sends nothing. *bare cursor* reads the same rows and drops them."
        ),
        table(["", "messages/s", "client CPU µs a message"], rows),
        *(
            f"- {name}: {ratio['median']:.2f} of the rate ({ratio['least']:.2f} …"
            f" {ratio['most']:.2f})"
            for name, ratio in ratios.items()
        ),
        "The most memory that a process had, in MB, for a stream and for one ten times as long:",
        table(["", "N", "10 N"], peaks_of),
        (
            f"Measured on {results['date']}, Python {results['machine']['python']}, commit"
            f" `{results['commit']}`."
        ),
    ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main()
