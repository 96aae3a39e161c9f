"""A store under attack: its rows can be seen past all walls, and set back to what they were."""

from __future__ import annotations

import itertools
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import attrs
import psycopg
import pytest
from psycopg import sql
from store_fixtures import APPLICATION, as_role, open_store_as

from conversation_store import AsyncUnitOfWork, ConversationStore, Retry, erase_user
from conversation_store.domain import unit

from .predicates import texts_of, without_any
from .told import State
from .world import ALICE, BEHIND_POLICIES, MALLORY, Target, settle

ONCE: Final = Retry(attempts=1)
_OPTIONS: Final[dict[str, Any]] = {"retry": ONCE, "min_size": 1, "max_size": 4}
FIRST_ID: Final = 7_000_000_000_001
"""Where ids begin: no position, count or version is as large."""
_BEGIN: Final = datetime(2026, 1, 1, tzinfo=UTC)


class Scene(ABC):
    """A store with what the victim and the attacker have in it."""

    store: ConversationStore
    target: Target
    before: State

    @property
    def victims(self) -> State:
        """Return the rows of the victim."""
        ids = set(self.target.conversations.values())
        return {
            key: row
            for key, row in self.before.items()
            if (row["id"] if key[0] == "conversation" else row["conversation_id"]) in ids
        }

    def unit(self, user_id: str = MALLORY, **options: Any) -> AsyncUnitOfWork:
        """Return a unit of work that acts for a user."""
        return self.store.unit_of_work(user_id=user_id, **options)

    @abstractmethod
    async def state(self) -> State:
        """Return all rows."""

    @abstractmethod
    async def remove_victim(self) -> None:
        """Make it a store in which the victim never was."""

    @abstractmethod
    async def restore(self) -> None:
        """Set all rows back to what they were."""


class TwinScene(Scene):
    """The store in memory."""

    @classmethod
    async def make(cls) -> TwinScene:
        """Return it with the conversations in it."""
        scene = cls()
        await scene.restore()
        return scene

    async def state(self) -> State:
        """Return all that the store holds."""
        rows: State = {}
        database: Any = self.store._adapter._database  # type: ignore[attr-defined]
        for stored in database.conversations.values():
            conversation = stored.conversation
            requests = {name: stored.request(name) for name in stored.requests}
            rows["conversation", conversation.id] = attrs.asdict(conversation) | {
                "requests": {name: repr(kept) for name, kept in requests.items() if kept}
            }
            for message in stored.shown_messages():
                rows["message", message.id] = attrs.asdict(message)
        return rows

    async def remove_victim(self) -> None:
        """Remove the victim as the application."""
        await erase_user(self.store.unit_of_work(), user_id=ALICE)

    async def restore(self) -> None:
        """Make a new store; it gives the same ids and times again."""
        ticks = itertools.count(1)
        self.store = ConversationStore.in_memory(
            clock=lambda: _BEGIN + timedelta(seconds=next(ticks)), retry=ONCE, lock_timeout=0.5
        )
        database: Any = self.store._adapter._database  # type: ignore[attr-defined]
        database._ids = itertools.count(FIRST_ID)
        self.target = await settle(self.store)
        self.before = await self.state()


class PostgresScene(Scene):
    """A store on the server, in a schema of its own."""

    def __init__(
        self,
        store: ConversationStore,
        together: ConversationStore | None,
        dsn: str,
        schema: str,
    ) -> None:
        self.store = store
        self.together = together
        """The same with group commit, if it may have that."""
        self.attacker_dsn = as_role(dsn, APPLICATION)
        """Where the attacker's host connects to."""
        self.schema = schema
        self._sequence = sql.Identifier(schema, "ai_ids")
        self._tables = {
            "conversation": sql.Identifier(schema, "ai_conversations"),
            "message": sql.Identifier(schema, "ai_messages"),
        }
        self._look = " UNION ALL ".join(
            f"SELECT '{name}', to_jsonb(r)::text FROM {table.as_string()} AS r"
            for name, table in self._tables.items()
        )
        self._beside = psycopg.connect(dsn, autocommit=True)

    async def begin(self, owner: ConversationStore) -> None:
        """Store what is attacked."""
        self._beside.execute(
            sql.SQL("ALTER SEQUENCE {} RESTART {}").format(self._sequence, FIRST_ID)
        )
        self.target = await settle(owner)
        self.before = await self.state()
        for name, table in self._tables.items():
            self._beside.execute(
                sql.SQL("CREATE TEMPORARY TABLE {} AS TABLE {}").format(
                    sql.Identifier(f"kept_{name}"), table
                )
            )

    async def state(self) -> State:
        """Return all rows of both tables."""
        rows = [(name, json.loads(row)) for name, row in self._beside.execute(self._look)]
        return {(name, row["id"]): row for name, row in rows}

    async def remove_victim(self) -> None:
        """Remove the rows."""
        self._beside.execute(
            sql.SQL("DELETE FROM {} WHERE user_id = {}").format(self._tables["conversation"], ALICE)
        )

    async def restore(self) -> None:
        """Remove all and put it back."""
        statements = [sql.SQL("DELETE FROM {}").format(self._tables["conversation"])]
        statements += [
            sql.SQL("INSERT INTO {} TABLE {}").format(table, sql.Identifier(f"kept_{name}"))
            for name, table in self._tables.items()
        ]
        with self._beside.transaction():
            for statement in statements:
                self._beside.execute(statement)

    def execute(self, text: str) -> list[Any]:
        """Do something in the schema as who may do all."""
        self._beside.execute(
            sql.SQL("SET search_path = {}, pg_catalog").format(sql.Identifier(self.schema))
        )
        cursor = self._beside.execute(text)
        return cursor.fetchall() if cursor.description else []

    def close(self) -> None:
        """Let go of the connection."""
        self._beside.close()


@asynccontextmanager
async def first_wall(dsn: str, migrated: set[str]) -> AsyncIterator[PostgresScene]:
    """Give a store where nothing but the predicates of the statements keeps users apart."""
    schema = "attacks"
    async with (
        open_store_as(APPLICATION, dsn, schema, migrated, **_OPTIONS) as store,
        ConversationStore.connect(
            as_role(dsn, APPLICATION), schema=schema, coalesce=True, **_OPTIONS
        ) as together,
    ):
        together._adapter._group_commit._go_together = lambda _: True  # type: ignore[attr-defined]
        async with _scene(PostgresScene(store, together, dsn, schema), store) as scene:
            yield scene


@asynccontextmanager
async def both_walls(dsn: str, migrated: set[str]) -> AsyncIterator[PostgresScene]:
    """Give a store where the policies of row security keep users apart as well."""
    schema = BEHIND_POLICIES
    async with (
        open_store_as(
            APPLICATION, dsn, schema, migrated, policies=True, row_security=True, **_OPTIONS
        ) as store,
        ConversationStore.connect(dsn, schema=schema, **_OPTIONS) as owner,
        _scene(PostgresScene(store, None, dsn, schema), owner) as scene,
    ):
        yield scene


@asynccontextmanager
async def second_wall(
    dsn: str, migrated: set[str], monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PostgresScene]:
    """Give a store where nothing but the policies keeps users apart.

    Its statements have no predicates, and whoever may be named to a unit of work may be named.
    """

    def named(self: unit.Repository, user_id: str | None) -> str:
        return user_id or self._unit.user_id or ""

    monkeypatch.setattr(unit.Repository, "_owner", named)
    async with both_walls(dsn, migrated) as scene:
        texts: Any = scene.store._adapter._texts  # type: ignore[attr-defined]
        for name, text in texts_of(texts).items():
            setattr(texts, name, without_any(text))
        yield scene


@asynccontextmanager
async def _scene(scene: PostgresScene, owner: ConversationStore) -> AsyncIterator[PostgresScene]:
    try:
        await scene.begin(owner)
        yield scene
    finally:
        scene.close()
