"""How tests open a store on the server, and small things that many of them say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from conversation_store import (
    Conversation,
    ConversationStore,
    Message,
    MessageDraft,
    find_conversation,
    messages_after,
)


def draft(content: str, role: str = "user", **values: Any) -> MessageDraft:
    """Return a draft."""
    return MessageDraft(role=role, content=content, **values)


def turn(number: int) -> list[MessageDraft]:
    """Return a question and its answer."""
    return [draft(f"question {number}"), draft(f"answer {number}", "assistant")]


async def stored(
    store: ConversationStore, session_id: str = "s"
) -> tuple[Conversation, list[Message]]:
    """Return a conversation of ada's, with its messages: at most 1,000."""
    uow = store.unit_of_work(user_id="ada")
    found = await find_conversation(uow, session_id=session_id)
    assert found is not None
    return found, await messages_after(uow, conversation_id=found.id, position=0, limit=1000)


def _fresh(dsn: str, schema: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
        )


def empty(dsn: str, schema: str) -> None:
    """Remove all rows of a schema's store; ids go on."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("TRUNCATE {}, {}").format(
                sql.Identifier(schema, "ai_conversations"),
                sql.Identifier(schema, "ai_messages"),
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


APPLICATION = 'Chat "application"; --ü'
READER = "chat reader"
MAINTENANCE = "chat maintenance"
ROLES: dict[str, Any] = {
    "application_role": APPLICATION,
    "read_only_role": READER,
    "maintenance_role": MAINTENANCE,
}
"""The roles of the tests, as `migrate` is told them."""


def create_roles(dsn: str) -> None:
    """Create the roles of the tests, where they are not there yet: all databases share them."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        there = {name for (name,) in connection.execute("SELECT rolname FROM pg_roles")}
        for name in set(ROLES.values()) - there:
            bypasses = sql.SQL("BYPASSRLS" if name == MAINTENANCE else "NOBYPASSRLS")
            connection.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret' {}").format(
                    sql.Identifier(name), bypasses
                )
            )


def as_role(dsn: str, role: str) -> str:
    """Return a connection string for the same database, as a role of the tests."""
    return make_conninfo(dsn, user=role, password="secret")


@asynccontextmanager
async def open_store_as(
    role: str,
    dsn: str,
    schema: str,
    migrated: set[str],
    *,
    policies: bool = False,
    **options: Any,
) -> AsyncIterator[ConversationStore]:
    """Open a store as a role of the tests; its owner, of `dsn`, migrates and empties it.

    `policies` says whether the schema has row security, so it has to be the same at each use of
    a schema. Options are those of `connect`; where there are policies, `row_security=True` is
    what makes a store set the user.
    """
    key = f"{schema} with roles"
    if key not in migrated:
        create_roles(dsn)
        if schema not in migrated:
            _fresh(dsn, schema)
        async with ConversationStore.connect(dsn, schema=schema, min_size=1) as owner:
            await owner.migrate(row_security=policies, **ROLES)
        migrated |= {schema, key}
    empty(dsn, schema)
    values = {"min_size": 1, "max_size": 20} | options
    async with ConversationStore.connect(as_role(dsn, role), schema=schema, **values) as store:
        yield store
