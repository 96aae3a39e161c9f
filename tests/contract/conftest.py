"""The stores that the contract is proven on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from store_fixtures import (
    APPLICATION,
    AWKWARD_SCHEMA,
    MAINTENANCE,
    as_role,
    open_store,
    open_store_as,
)
from watching import Watcher

from conversation_store import AsyncUnitOfWork, ConversationStore

POSTGRES = ["application_role", "always_coalescing"]
"""The kinds of store that have a pool on the server."""


class LentStore:
    """A store whose units of work are all inside one transaction of the host's."""

    def __init__(self, store: ConversationStore, connection: psycopg.AsyncConnection[Any]) -> None:
        self._store = store
        self.connection = connection

    def unit_of_work(
        self, *, user_id: str | None = None, timeout: float | None = None
    ) -> AsyncUnitOfWork:
        """Return a unit of work on the host's connection."""
        return self._store.unit_of_work(
            user_id=user_id, connection=self.connection, timeout=timeout
        )


@asynccontextmanager
async def _lent(dsn: str, migrated: set[str]) -> AsyncIterator[LentStore]:
    async with open_store(dsn, "operational", migrated) as store:
        connection = await psycopg.AsyncConnection.connect(dsn)
        async with connection, connection.transaction(force_rollback=True):
            yield LentStore(store, connection)
            # Whatever a unit met, the host's own transaction is as good as before.
            await connection.execute("SELECT 1")


@asynccontextmanager
async def _pooled(kind: str, dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    if kind == "application_role":  # in a schema with an awkward name, and watched
        options: dict[str, Any] = {"observer": Watcher()}
        async with open_store_as(APPLICATION, dsn, AWKWARD_SCHEMA, migrated, **options) as store:
            yield store
        return
    async with open_store(dsn, "operational", migrated, coalesce="coalescing" in kind) as store:
        if kind == "always_coalescing":  # a turn that comes alone, too, goes the way of many
            store._adapter._group_commit._go_together = lambda _: True  # type: ignore[attr-defined]
        yield store


class SecuredStore:
    """A store with row security, and one of the maintenance role for units of everybody."""

    def __init__(self, store: ConversationStore, maintenance: ConversationStore) -> None:
        self._store = store
        self._maintenance = maintenance

    def unit_of_work(
        self, *, user_id: str | None = None, timeout: float | None = None
    ) -> AsyncUnitOfWork:
        """Return a unit of work of the store that can have it."""
        store = self._maintenance if user_id is None else self._store
        return store.unit_of_work(user_id=user_id, timeout=timeout)


@asynccontextmanager
async def _secured(dsn: str, migrated: set[str]) -> AsyncIterator[SecuredStore]:
    schema, options = "secured contract", {"policies": True, "row_security": True}
    async with (
        open_store_as(APPLICATION, dsn, schema, migrated, **options) as store,
        ConversationStore.connect(as_role(dsn, MAINTENANCE), schema=schema, min_size=1) as whole,
    ):
        yield SecuredStore(store, whole)


KINDS = ["memory", *POSTGRES, "lent_connection"]
"""The kinds of store that all of the contract is proven on; that of scopes also on "secured"."""


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Give an empty store of each kind."""
    if request.param == "memory":
        yield ConversationStore.in_memory()
        return
    dsn = request.getfixturevalue("dsn")
    migrated = request.getfixturevalue("migrated")
    if request.param == "lent_connection":
        async with _lent(dsn, migrated) as lent:
            yield lent
        return
    if request.param == "secured":
        async with _secured(dsn, migrated) as secured:
            yield secured
        return
    async with _pooled(request.param, dsn, migrated) as opened:
        yield opened


# Coalescing as it is comes into play where several units of work write at a time.
@pytest.fixture(params=["memory", *POSTGRES, "coalescing"])
async def shared_store(request: pytest.FixtureRequest) -> AsyncIterator[ConversationStore]:
    """Give an empty store of each kind that several units of work use at a time."""
    if request.param == "memory":
        async with ConversationStore.in_memory(lock_timeout=2.0) as opened:
            yield opened
        return
    dsn = request.getfixturevalue("dsn")
    migrated = request.getfixturevalue("migrated")
    async with _pooled(request.param, dsn, migrated) as opened:
        yield opened
