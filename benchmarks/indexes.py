"""The price of the index on last_activity, weighed against other ways to list conversations.

    python -m benchmarks.indexes

Every layout (layouts.py) is a schema of its own with the same seeded rows. All get the same
appends, in slices that take turns: conversations are picked up at random and go on for ten turns,
256 at a time. The statement is the store's own. Vacuum runs after every 20,000 appends, where
autovacuum would come by at its default settings, and at no other time.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import psycopg
from psycopg.types.numeric import Int8

from conversation_store import ConversationStore, append_messages
from conversation_store.adapters.postgres.parameters import drafts_text
from conversation_store.adapters.postgres.texts import Texts

from .explain import EXPLAIN, buffers, total
from .layouts import LAYOUTS, Layout
from .seed import LISTED_USER, Seeded, fresh, seed_store
from .table_growth import turn
from .table_runs import about, parser_of, server, write

Connection = psycopg.Connection[Any]

GOING: Final = 256
TURNS: Final = 10
LIST_PAGE: Final = 20
FAR_ID: Final = 1 << 40
"""Ids of the appended messages begin here, above all that were seeded."""
TABLE: Final = "ai_conversations"
DURABLE: Final = {"today", "no_status", "none_90", "hour_90"}
"""Layouts that are appended to with waiting for the disk, too."""


@dataclass(frozen=True)
class Size:
    """How large the measurement is."""

    messages: int
    conversations: int
    appends: int
    between_vacuums: int
    slice: int
    alone: int
    """Durable appends of one task on each layout."""
    together: int
    """Durable appends of 16 tasks on each layout."""


FULL: Final = Size(1_000_000, 100_000, 100_000, 20_000, 1_000, 2_000, 6_400)
QUICK: Final = Size(20_000, 4_000, 800, 400, 100, 5, 16)


@dataclass
class Trial:
    """One layout while it is measured."""

    layout: Layout
    schema: str
    seconds: list[float] = field(default_factory=list)
    """Of each append, commits not waited for."""
    medians: list[float] = field(default_factory=list)
    """Of each slice of them."""
    wal: int = 0
    alone: list[float] = field(default_factory=list)
    """Medians of blocks of durable appends by one task, together: by 16."""
    together: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)


def conversations_in_turn(seeded: Seeded, active: Sequence[int]) -> Iterator[int]:
    """Give the conversation of each append: some go on for some turns, then others do."""
    chance = random.Random(seeded.messages)
    going = [[chance.choice(active), chance.randint(1, TURNS)] for _ in range(GOING)]
    while True:
        for one in going:
            yield one[0]
            one[1] -= 1
            if one[1] == 0:
                one[:] = [chance.choice(active), TURNS]


def users_to_list(connection: Connection, schema: str, seeded: Seeded) -> dict[str, str]:
    """Return users of about 20, of 1,000 and of the most conversations."""
    few = connection.execute(
        f"""SELECT user_id FROM {schema}.{TABLE}
        GROUP BY user_id ORDER BY abs(count(*) - 20), user_id LIMIT 1""".encode()
    ).fetchall()
    names = {"20": few[0][0], "1000": LISTED_USER}
    if seeded.largest_user != LISTED_USER:
        names[str(seeded.most_conversations)] = seeded.largest_user
    return names


def check_lists(connection: Connection, trials: Sequence[Trial], users: Mapping[str, str]) -> None:
    """Check that all layouts give the same lists."""
    for user_id in users.values():
        for status in (None, "archived"):
            lists = {
                tuple(
                    row[0]
                    for row in connection.execute(
                        trial.layout.list_text(trial.schema, status=status is not None),
                        _listing(user_id, status),
                    ).fetchall()
                )
                for trial in trials
            }
            assert len(lists) == 1, (user_id, status, lists)


def _listing(user_id: str, status: str | None) -> dict[str, object]:
    parameters: dict[str, object] = {
        "owner": user_id,
        "last_activity": "infinity",
        "conversation_id": Int8((1 << 63) - 1),
        "limit": Int8(LIST_PAGE),
    }
    return parameters if status is None else parameters | {"status": status}


def list_costs(connection: Connection, trial: Trial, users: Mapping[str, str]) -> dict[str, Any]:
    """Return pages and milliseconds of listing, the first time and then again."""
    costs: dict[str, Any] = {}
    for size, user_id in users.items():
        for status in (None, "archived"):
            parameters = _listing(user_id, status)
            text = trial.layout.list_text(trial.schema, status=status is not None)
            pages = [_pages(connection, text, parameters) for _ in range(2)]
            seconds = [_seconds(connection, text, parameters) for _ in range(15)]
            costs[f"{size} {status or 'all'}"] = {
                "first_buffers": pages[0],
                "buffers": pages[1],
                "p50_ms": round(1000 * statistics.median(seconds), 3),
            }
    return costs


def _pages(connection: Connection, text: bytes, parameters: Mapping[str, object]) -> int:
    [[explained]] = connection.execute(EXPLAIN + text, parameters).fetchall()
    return buffers(explained[0]["Plan"])


def _seconds(connection: Connection, text: bytes, parameters: Mapping[str, object]) -> float:
    begun = time.perf_counter()
    connection.execute(text, parameters, binary=True).fetchall()
    return time.perf_counter() - begun


def append_all(
    connection: Connection, trials: Sequence[Trial], size: Size, order: Iterator[int]
) -> None:
    """Append to all layouts in slices that take turns, and vacuum now and then."""
    chance = random.Random(2)
    ids = count(FAR_ID, 2)
    drafts = drafts_text(turn())
    connection.execute("SET synchronous_commit = off")  # what the disk takes is the same for all
    connection.execute("CHECKPOINT")
    for done in range(0, size.appends, size.slice):
        if done and done % size.between_vacuums == 0:
            for trial in trials:
                connection.execute(f"VACUUM {trial.schema}.{TABLE}".encode())
        work = [next(order) for _ in range(size.slice)]
        shuffled = list(trials)
        chance.shuffle(shuffled)
        for trial in shuffled:
            text = Texts(trial.schema).append
            before = _wal(connection)
            taken = [_seconds(connection, text, _append(here, drafts, next(ids))) for here in work]
            trial.wal += _wal(connection) - before
            trial.seconds += taken
            trial.medians.append(statistics.median(taken))
    connection.execute("SET synchronous_commit = on")


def _append(conversation_id: int, drafts: str, first_id: int) -> dict[str, object]:
    return {
        "conversation_id": Int8(conversation_id),
        "user_id": None,
        "expected_version": None,
        "accepting": "{active}",
        "count": Int8(2),
        "drafts": drafts,
        "ids": f"{{{first_id},{first_id + 1}}}",
    }


def _wal(connection: Connection) -> int:
    [[position]] = connection.execute(
        "SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint"
    ).fetchall()
    at: int = position
    return at


def log_of_one(connection: Connection, trial: Trial, conversations: Sequence[int]) -> Any:
    """Return the records and bytes that one append logs, page images left out."""
    drafts = drafts_text(turn())
    found: list[tuple[int, int]] = []
    ids = count(2 * FAR_ID, 2)
    for here in conversations:
        for _ in range(3):  # after the first its pages are in the log
            [[explained]] = connection.execute(
                EXPLAIN + Texts(trial.schema).append, _append(here, drafts, next(ids))
            ).fetchall()
            plan = explained[0]["Plan"]
            if total(plan, "WAL FPI") == 0:
                found.append((total(plan, "WAL Records"), total(plan, "WAL Bytes")))
    return {
        "records": statistics.median(records for records, _ in found),
        "bytes": statistics.median(size for _, size in found),
    }


async def append_durably(
    dsn: str, trials: Sequence[Trial], size: Size, order: Iterator[int]
) -> None:
    """Append through the service function and wait for the disk: one task, then 16."""
    chance = random.Random(4)
    async with AsyncExitStack() as stack:
        stores = {
            trial.schema: await stack.enter_async_context(
                ConversationStore.connect(dsn, schema=trial.schema, min_size=16, max_size=16)
            )
            for trial in trials
        }

        async def one_task(trial: Trial, work: Sequence[int], into: list[float]) -> None:
            for here in work:
                begun = time.perf_counter()
                uow = stores[trial.schema].unit_of_work()
                await append_messages(uow, conversation_id=here, drafts=turn())
                into.append(time.perf_counter() - begun)

        for tasks, appends, each in ((1, size.alone, 25), (16, size.together, 10)):
            for _ in range(max(1, appends // (tasks * each))):
                work = [[next(order) for _ in range(min(each, appends))] for _ in range(tasks)]
                for trial in chance.sample(trials, len(trials)):
                    taken: list[float] = []
                    begun = time.perf_counter()
                    await asyncio.gather(*(one_task(trial, part, taken) for part in work))
                    into = trial.alone if tasks == 1 else trial.together
                    into.append(statistics.median(taken))
                    if tasks > 1:
                        trial.rates.append(sum(map(len, work)) / (time.perf_counter() - begun))


def sizes(connection: Connection, trial: Trial) -> dict[str, int]:
    """Return the bytes of the conversations and of their indexes."""
    name = f"{trial.schema}.{TABLE}"
    [[rows, indexes]] = connection.execute(
        "SELECT pg_relation_size(%s), pg_indexes_size(%s)", [name, name]
    ).fetchall()
    return {"rows": rows, "indexes": indexes}


def hot_share(connection: Connection, trial: Trial) -> float:
    """Return which part of the updates wrote no index."""
    connection.execute("SELECT pg_stat_force_next_flush()")
    [[updated, hot]] = connection.execute(
        """SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables
        WHERE schemaname = %s AND relname = %s""",
        [trial.schema, TABLE],
    ).fetchall()
    share: float = round(hot / updated, 3)
    return share


def measured(dsn: str, size: Size, layouts: Sequence[Layout]) -> dict[str, Any]:
    """Measure all layouts."""
    trials = [Trial(layout, f"layout_{layout.name}") for layout in layouts]
    with psycopg.connect(dsn, autocommit=True) as connection:
        [*_, seeded] = [_laid_out(connection, dsn, trial, size) for trial in trials]
        active = [
            row[0]
            for row in connection.execute(
                f"SELECT id FROM {trials[0].schema}.{TABLE} WHERE status = 'active'".encode()
            ).fetchall()
        ]
        order = conversations_in_turn(seeded, active)
        users = users_to_list(connection, trials[0].schema, seeded)
        check_lists(connection, trials, users)
        for trial in trials:
            trial.found["size_seeded"] = sizes(connection, trial)
            trial.found["list_seeded"] = list_costs(connection, trial, users)
        append_all(connection, trials, size, order)
        for trial in trials:
            trial.found["hot_share"] = hot_share(connection, trial)
            trial.found["size_after"] = sizes(connection, trial)
            trial.found["list_before_vacuum"] = list_costs(connection, trial, users)
            connection.execute(f"VACUUM {trial.schema}.{TABLE}".encode())
            trial.found["list_after_vacuum"] = list_costs(connection, trial, users)
            trial.found["log_of_an_append"] = log_of_one(connection, trial, active[:15])
    durable = [trial for trial in trials if trial.layout.name in DURABLE]
    asyncio.run(append_durably(dsn, durable, size, order))
    return {
        "messages": seeded.messages,
        "conversations": seeded.conversations,
        "appends": size.appends,
        "between_vacuums": size.between_vacuums,
        "layouts": [_summary(trial, trials[0]) for trial in trials],
    }


def _laid_out(connection: Connection, dsn: str, trial: Trial, size: Size) -> Seeded:
    """Make the tables of a layout and fill them; no autovacuum comes by."""
    asyncio.run(fresh(dsn, trial.schema))
    if trial.layout.ddl:
        connection.execute(trial.layout.ddl_in(trial.schema).encode())
    for table in (TABLE, "ai_messages"):
        off = f"ALTER TABLE {trial.schema}.{table} SET (autovacuum_enabled = off)"
        connection.execute(off.encode())
    return seed_store(dsn, trial.schema, messages=size.messages, conversations=size.conversations)


def _summary(trial: Trial, first: Trial) -> dict[str, Any]:
    def ratio(mine: Sequence[float], its: Sequence[float]) -> float:
        return round(statistics.median(a / b for a, b in zip(mine, its, strict=True)), 3)

    def durable() -> dict[str, float]:
        return {
            "alone_p50_ms": round(1000 * statistics.median(trial.alone), 3),
            "alone_ratio": ratio(trial.alone, first.alone),
            "16_tasks_p50_ms": round(1000 * statistics.median(trial.together), 3),
            "16_tasks_ratio": ratio(trial.together, first.together),
            "16_tasks_rate_ratio": ratio(trial.rates, first.rates),
        }

    return {
        "name": trial.layout.name,
        "says": trial.layout.says,
        "append_p50_ms": round(1000 * statistics.median(trial.seconds), 3),
        "append_ratio": ratio(trial.medians, first.medians),
        "wal_bytes_per_append": round(trial.wal / len(trial.seconds)),
        **trial.found,
        **({"durable": durable()} if trial.alone else {}),
    }


def main() -> None:
    """Measure, and keep the result."""
    given = parser_of("indexes", "The price of the index on last_activity.").parse_args()
    with server(given.dsn) as dsn:
        result = {
            "about": about(dsn, given.note),
            **measured(dsn, QUICK if given.quick else FULL, LAYOUTS),
        }
    write(given.out, result)


if __name__ == "__main__":
    main()
