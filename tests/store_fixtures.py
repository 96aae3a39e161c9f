"""How tests open a store on the server, and small things that many of them say."""

from __future__ import annotations

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


class open_store:  # noqa: N801 - reads as a function
    """Open a store in a schema that is migrated on first use, and empty."""

    def __init__(
        self,
        dsn: str,
        schema: str,
        migrated: set[str],
        *,
        through: str | None = None,
        **options: Any,
    ) -> None:
        self._dsn, self._schema, self._migrated = dsn, schema, migrated
        self._store = ConversationStore.connect(
            through or dsn, schema=schema, **({"min_size": 1, "max_size": 20} | options)
        )

    async def __aenter__(self) -> ConversationStore:
        store = await self._store.__aenter__()
        if self._schema in self._migrated:
            empty(self._dsn, self._schema)
        else:
            _fresh(self._dsn, self._schema)
            await store.migrate()
            self._migrated.add(self._schema)
        return store

    async def __aexit__(self, *error: Any) -> None:
        await self._store.__aexit__(*error)
