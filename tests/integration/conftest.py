"""What several of these modules use."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from store_fixtures import open_store

from conversation_store import ConversationStore


@pytest.fixture(params=["memory", "postgres"])
async def framework_store(request: pytest.FixtureRequest) -> AsyncIterator[ConversationStore]:
    """Give an empty store of each kind, as agent frameworks are tried on."""
    if request.param == "memory":
        async with ConversationStore.in_memory(row_security=True) as opened:
            yield opened
        return
    dsn, migrated = (request.getfixturevalue(name) for name in ("dsn", "migrated"))
    async with open_store(dsn, "operational", migrated) as opened:
        yield opened
