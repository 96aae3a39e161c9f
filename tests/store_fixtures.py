"""How tests open a store on the server, and small things that many of them say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg

from conversation_store import ConversationStore, MessageDraft


def draft(content: str, role: str = "user", **values: Any) -> MessageDraft:
    """Return a draft."""
    return MessageDraft(role=role, content=content, **values)


def turn(number: int) -> list[MessageDraft]:
    """Return a question and its answer."""
    return [draft(f"question {number}"), draft(f"answer {number}", "assistant")]


def _fresh(dsn: str, schema: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            psycopg.sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(
                psycopg.sql.Identifier(schema)
            )
        )


def empty(dsn: str, schema: str) -> None:
    """Remove all rows of a schema's store; ids go on."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            psycopg.sql.SQL("TRUNCATE {}, {}").format(
                psycopg.sql.Identifier(schema, "ai_conversations"),
                psycopg.sql.Identifier(schema, "ai_messages"),
            )
        )


AWKWARD_SCHEMA = 'Select "from" 100%s; --ü'


@asynccontextmanager
async def open_store(
    dsn: str,
    schema: str,
    migrated: set[str],
    *,
    through: str | None = None,
    **options: Any,
) -> AsyncIterator[ConversationStore]:
    """Open a store in a schema that is migrated on first use, and empty.

    `through` is where the store connects, if that is not the server itself.
    """
    values = {"min_size": 1, "max_size": 20} | options
    async with ConversationStore.connect(through or dsn, schema=schema, **values) as store:
        if schema in migrated:
            empty(dsn, schema)
        else:
            _fresh(dsn, schema)
            await store.migrate()
            migrated.add(schema)
        yield store
