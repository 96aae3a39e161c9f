"""What the hot operations cost while the tables grow: pages touched, time, bytes per message.

    python -m benchmarks.table_growth            # tables of 10,000 to 5,000,000 messages
    python -m benchmarks.table_growth --quick

Pages are counted by EXPLAIN (ANALYZE, BUFFERS) of the very statements that the service functions
send, on conversations of about 50 messages ("usual") and on the longest of all ("hot"). Times are
those of the service functions, on tables of all sizes in turn, so that what disturbs the machine
disturbs all.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final, get_args

import psycopg

from conversation_store import (
    AsyncUnitOfWork,
    ConversationStore,
    MessageDraft,
    append_messages,
    find_conversation,
    get_conversation,
    get_message,
    latest_messages,
    list_conversations,
    messages_after,
    start_conversation,
)

from .explain import Call, Planning, buffers, command_of, explain
from .seed import LISTED_USER, Seeded, fresh, seed_store
from .table_runs import about, parser_of, server, write

SIZES: Final = ((10_000, 2_000), (100_000, 10_000), (1_000_000, 50_000), (5_000_000, 100_000))
QUICK_SIZES: Final = ((10_000, 2_000), (50_000, 5_000))
USUAL: Final = 50
"""Messages of a conversation of usual length."""
EXPLAINED: Final = 9
"""Of so many conversations the median of the pages is taken."""
TIMED: Final = 300
PAGE: Final = 50
LIST_PAGE: Final = 20
STORAGE: Final = {
    "words alone": {"with_slots": False, "with_requests": False},
    "with slots": {"with_slots": True, "with_requests": False},
    "with slots, half of the turns with a request_id": {"with_slots": True, "with_requests": True},
}
STORAGE_SIZE: Final = (1_000_000, 50_000)
_SIZE_OF: Final = """SELECT relname, relkind::text,
    pg_relation_size(oid) + pg_relation_size(oid, 'fsm') + pg_relation_size(oid, 'vm'),
    CASE WHEN reltoastrelid <> 0 THEN pg_total_relation_size(reltoastrelid) ELSE 0 END
FROM pg_class WHERE relnamespace = %s::regnamespace
    AND (relname LIKE 'ai_messages%%' OR relname LIKE 'ai_conversations%%')"""

_new: Final = count(1)


def turn() -> list[MessageDraft]:
    """Return a question and its answer."""
    return [
        MessageDraft(role="user", content="Is there a quiet place for four in Ghent, at eight?"),
        MessageDraft(role="assistant", content="There is a corner table at a quarter past eight."),
    ]


@dataclass(frozen=True)
class Target:
    """A conversation that operations are tried on."""

    conversation_id: int
    user_id: str
    session_id: str
    messages: int
    message_id: int
    """One of its messages, in its middle."""


def operations(target: Target) -> dict[str, Call]:
    """Return the hot operations on a conversation."""
    here = target.conversation_id

    async def append(uow: AsyncUnitOfWork) -> None:
        await append_messages(uow, conversation_id=here, drafts=turn())

    async def append_request(uow: AsyncUnitOfWork) -> None:
        request_id = f"grown-{next(_new)}"
        await append_messages(uow, conversation_id=here, drafts=turn(), request_id=request_id)

    async def start(uow: AsyncUnitOfWork) -> None:
        session_id = f"grown-{next(_new)}"
        await start_conversation(
            uow, user_id=target.user_id, session_id=session_id, drafts=turn()[:1]
        )

    async def get(uow: AsyncUnitOfWork) -> None:
        await get_conversation(uow, conversation_id=here)

    async def find(uow: AsyncUnitOfWork) -> None:
        await find_conversation(uow, user_id=target.user_id, session_id=target.session_id)

    async def latest(uow: AsyncUnitOfWork) -> None:
        await latest_messages(uow, conversation_id=here, limit=PAGE)

    async def after(uow: AsyncUnitOfWork) -> None:
        position = target.messages // 2
        await messages_after(uow, conversation_id=here, position=position, limit=PAGE)

    async def listed(uow: AsyncUnitOfWork) -> None:
        await list_conversations(uow, user_id=LISTED_USER, limit=LIST_PAGE)

    async def message(uow: AsyncUnitOfWork) -> None:
        await get_message(uow, message_id=target.message_id)

    return {
        "append": append,
        "append with request_id": append_request,
        "start": start,
        "get": get,
        "find": find,
        f"latest {PAGE}": latest,
        f"{PAGE} after": after,
        f"list {LIST_PAGE} of 1,000": listed,
        "get_message": message,
    }


def targets(dsn: str, schema: str) -> dict[str, list[Target]]:
    """Return the longest conversation, and some of usual length, the same in every table."""
    query = f"""SELECT c.id, c.user_id, c.session_id, c.message_count, m.id
        FROM {schema}.ai_conversations AS c JOIN {schema}.ai_messages AS m
            ON m.conversation_id = c.id AND m.position = (c.message_count + 1) / 2
        WHERE c.status = 'active' """
    with psycopg.connect(dsn) as connection:
        longest = connection.execute(
            (query + "ORDER BY c.message_count DESC LIMIT 1").encode()
        ).fetchall()
        usual = connection.execute(
            (query + "ORDER BY abs(c.message_count - %s), c.id LIMIT %s").encode(),
            [USUAL, EXPLAINED],
        ).fetchall()
    return {
        "usual": [Target(*row) for row in usual],
        "hot": [Target(*longest[0])] * EXPLAINED,
    }


async def pages(dsn: str, store: ConversationStore, on: list[Target]) -> dict[str, Any]:
    """Return the median number of pages that each operation touches, by way of planning."""
    touched: dict[str, dict[Planning, list[int]]] = {}
    for target in on:
        for name, call in operations(target).items():
            command = await command_of(store, call)
            for planning in get_args(Planning):
                found = touched.setdefault(name, {}).setdefault(planning, [])
                found.append(buffers(await explain(dsn, command, planning)))
    return {
        name: {planning: statistics.median(found) for planning, found in by_planning.items()}
        for name, by_planning in touched.items()
    }


async def times(
    stores: Mapping[str, ConversationStore], on: Mapping[str, list[Target]], rounds: int
) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of each operation on each table."""
    taken: dict[tuple[str, str], list[float]] = {}
    chance = random.Random(1)
    for number in range(rounds):
        tries = [
            (schema, name, call)
            for schema in stores
            for name, call in operations(on[schema][number % EXPLAINED]).items()
        ]
        chance.shuffle(tries)
        for schema, name, call in tries:
            uow = stores[schema].unit_of_work()
            begun = time.perf_counter()
            await call(uow)
            taken.setdefault((schema, name), []).append(time.perf_counter() - begun)
    return {
        schema: {
            name: round(1000 * statistics.median(taken[schema, name]), 3)
            for name in operations(on[schema][0])
        }
        for schema in stores
    }


def storage(dsn: str, schema: str, messages: int) -> dict[str, float]:
    """Return how many bytes each part of the tables takes, by message."""
    parts: dict[str, float] = {}
    with psycopg.connect(dsn) as connection:
        for name, kind, size, toast in connection.execute(_SIZE_OF, [schema]).fetchall():
            parts[name if kind == "i" else f"{name} (rows)"] = size / messages
            if kind == "r":
                parts[f"{name} (toast)"] = toast / messages
    parts = {name: round(size, 1) for name, size in sorted(parts.items())}
    return parts | {"all": round(sum(parts.values()), 1)}


async def measured(dsn: str, sizes: tuple[tuple[int, int], ...], rounds: int) -> dict[str, Any]:
    """Seed tables of all sizes, and measure on them."""
    seeded: dict[str, Seeded] = {}
    for messages, conversations in sizes:
        schema = f"grown_{messages}"
        await fresh(dsn, schema)
        seeded[schema] = seed_store(dsn, schema, messages=messages, conversations=conversations)
        print(schema, seeded[schema].seconds, "s")
    on = {schema: targets(dsn, schema) for schema in seeded}
    kept = {schema: storage(dsn, schema, each.messages) for schema, each in seeded.items()}
    async with AsyncExitStack() as stack:
        stores = {
            schema: await stack.enter_async_context(
                ConversationStore.connect(dsn, schema=schema, min_size=2, max_size=2)
            )
            for schema in seeded
        }
        met = {
            schema: {kind: await pages(dsn, stores[schema], found) for kind, found in each.items()}
            for schema, each in on.items()
        }
        took = {
            kind: await times(stores, {schema: each[kind] for schema, each in on.items()}, rounds)
            for kind in ("usual", "hot")
        }
    return {
        "tables": [
            {
                **asdict(each),
                "bytes_per_message": kept[schema],
                "on": {
                    kind: {
                        "messages": statistics.median(target.messages for target in found),
                        "buffers": met[schema][kind],
                        "p50_ms": took[kind][schema],
                    }
                    for kind, found in on[schema].items()
                },
            }
            for schema, each in seeded.items()
        ],
    }


async def storage_by_content(dsn: str, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Return the bytes per message of tables that hold more and more beside the words."""
    messages, conversations = size
    kept: dict[str, dict[str, float]] = {}
    for number, (name, options) in enumerate(STORAGE.items()):
        schema = f"stored_{number}"
        await fresh(dsn, schema)
        seeded = seed_store(dsn, schema, messages=messages, conversations=conversations, **options)
        kept[name] = {"content": seeded.mean_content} | storage(dsn, schema, seeded.messages)
    return kept


def plot(result: Mapping[str, Any], out: Path) -> None:
    """Draw pages and times over the size of the table."""
    from .drawing import axes_on_card, lines

    sizes = [table["messages"] for table in result["tables"]]
    panels = (
        ("usual", "buffers", "Pages touched, conversation of 50 messages"),
        ("hot", "buffers", "Pages touched, longest conversation"),
        ("hot", "p50_ms", "p50 of the call in ms, longest conversation"),
    )
    with axes_on_card(out, rows=1, columns=3, size=(13, 4.4)) as all_axes:
        for axes, (kind, measure, title) in zip(all_axes, panels, strict=True):
            lines(axes, sizes, dict(_series(result, measure, kind)), title)
            axes.set_xscale("log")
            axes.set_xticks(sizes, [_short(size) for size in sizes])
            axes.minorticks_off()
            axes.set_xlabel("messages in the table")
            axes.set_ylim(bottom=0)
        handles, names = all_axes[0].get_legend_handles_labels()
        all_axes[0].figure.legend(handles, names, loc="outside lower center", ncols=5)


def _short(number: int) -> str:
    million = 1_000_000
    return f"{number / million:g}M" if number >= million else f"{number / 1000:g}k"


def _series(result: Mapping[str, Any], measure: str, kind: str) -> Iterator[tuple[str, list[Any]]]:
    for name in result["tables"][0]["on"][kind]["buffers"]:
        found = [table["on"][kind][measure][name] for table in result["tables"]]
        yield name, [max(each.values()) if isinstance(each, dict) else each for each in found]


def main() -> None:
    """Measure, and keep the result and its plot."""
    given = parser_of("table_growth", "What operations cost while the tables grow.").parse_args()
    sizes: tuple[tuple[int, int], ...] = SIZES
    size, rounds = STORAGE_SIZE, TIMED
    if given.quick:
        sizes, size, rounds = QUICK_SIZES, QUICK_SIZES[0], 5
    with server(given.dsn) as dsn:
        result = {
            "about": about(dsn, given.note),
            **asyncio.run(measured(dsn, sizes, rounds)),
            "storage": asyncio.run(storage_by_content(dsn, size)),
        }
    write(given.out, result)
    if not given.quick:
        plot(result, given.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()
