"""How messages could be laid out: the order of columns, and the indexes that they need.

    python -m benchmarks.storage

The same seeded messages are copied, in the order of their ids, into tables whose columns are in
another order, and under other indexes.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

import psycopg

from .explain import EXPLAIN, buffers
from .seed import Seeded, fresh, seed_store
from .table_runs import about, parser_of, server, write

SCHEMA: Final = "stored"
SIZE: Final = (1_000_000, 50_000)
QUICK_SIZE: Final = (10_000, 2_000)
PAGE: Final = 50

_TODAY: Final = (
    "conversation_id",
    "position",
    "id",
    "role",
    "content",
    "timestamp",
    "intent_type",
    "slots",
    "metadata",
    "request_id",
    "request_digest",
)
_FIXED: Final = ("conversation_id", "position", "id", "timestamp")
_FIXED_FIRST: Final = (*_FIXED, *(name for name in _TODAY if name not in _FIXED))
ORDERS: Final = {"today": _TODAY, "fixed widths first": _FIXED_FIRST}
INDEXES: Final = {
    "ai_messages_pkey (conversation_id, position), packed": "(conversation_id, position)",
    "ai_messages_id_key (id), packed": "(id)",
    "ai_messages_request_key (conversation_id, request_id) where digested, packed": (
        "(conversation_id, request_id) WHERE request_digest IS NOT NULL"
    ),
    "BRIN (conversation_id)": "USING brin (conversation_id)",
    "BRIN (conversation_id), 16 pages a range": (
        "USING brin (conversation_id) WITH (pages_per_range = 16)"
    ),
}

Connection = psycopg.Connection[Any]


def bytes_of(connection: Connection, name: str) -> int:
    """Return the size of a table's rows or of an index."""
    [[size]] = connection.execute(
        "SELECT pg_relation_size(%s::regclass)", [f"{SCHEMA}.{name}"]
    ).fetchall()
    found: int = size
    return found


def orders(connection: Connection, messages: int) -> dict[str, float]:
    """Return the bytes of a message's row, by the order of columns."""
    found: dict[str, float] = {}
    for number, (name, columns) in enumerate(ORDERS.items()):
        connection.execute(
            f"""CREATE TABLE {SCHEMA}.ordered_{number} AS
            SELECT {", ".join(columns)} FROM {SCHEMA}.ai_messages ORDER BY id""".encode()
        )
        found[name] = round(bytes_of(connection, f"ordered_{number}") / messages, 2)
    return found


def indexes(connection: Connection, messages: int, conversations: dict[str, int]) -> dict[str, Any]:
    """Return the bytes of each index by message, as it grew and built anew; and BRIN's reads."""
    grown = {
        name: {"bytes": round(bytes_of(connection, name) / messages, 2)}
        for name in ("ai_messages_pkey", "ai_messages_id_key", "ai_messages_request_key")
    }
    found: dict[str, Any] = {"grown": grown, "built": {}}
    for name, definition in INDEXES.items():
        connection.execute(f"CREATE INDEX tried ON {SCHEMA}.ordered_0 {definition}".encode())
        connection.execute(f"VACUUM (ANALYZE) {SCHEMA}.ordered_0".encode())
        built: dict[str, Any] = {"bytes": round(bytes_of(connection, "tried") / messages, 2)}
        if name.startswith(("ai_messages_pkey", "BRIN")):
            built[f"buffers_of_latest_{PAGE}"] = {
                kind: _latest(connection, here) for kind, here in conversations.items()
            }
        found["built"][name] = built
        connection.execute(f"DROP INDEX {SCHEMA}.tried".encode())
    return found


def _latest(connection: Connection, conversation_id: int) -> int:
    [[explained]] = connection.execute(
        EXPLAIN
        + f"""SELECT * FROM {SCHEMA}.ordered_0 WHERE conversation_id = {conversation_id:d}
        ORDER BY position DESC LIMIT {PAGE}""".encode()
    ).fetchall()
    return buffers(explained[0]["Plan"])


def measured(dsn: str, size: tuple[int, int]) -> dict[str, Any]:
    """Seed, and try all ways."""
    asyncio.run(fresh(dsn, SCHEMA))
    seeded: Seeded = seed_store(dsn, SCHEMA, messages=size[0], conversations=size[1])
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET enable_seqscan = off")
        return {
            "messages": seeded.messages,
            "content": seeded.mean_content,
            "bytes_of_a_row": orders(connection, seeded.messages),
            "indexes": indexes(
                connection,
                seeded.messages,
                {"usual": seeded.median_conversation, "hot": seeded.longest_conversation},
            ),
        }


def main() -> None:
    """Measure, and keep the result."""
    given = parser_of("storage", "How messages could be laid out.").parse_args()
    with server(given.dsn) as dsn:
        result = {
            "about": about(dsn, given.note),
            **measured(dsn, QUICK_SIZE if given.quick else SIZE),
        }
    write(given.out, result)


if __name__ == "__main__":
    main()
