"""The composition root: which adapters the service runs with."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

from conversation_store import ConversationRecord, ConversationStore, import_conversations

from .adapters.memory import InMemoryChargeRepository, InMemoryMessageSearch
from .adapters.postgres import PsycopgChargeRepository, PsycopgMessageSearch, migrate
from .adapters.stub_model import StubModel
from .ports import Model
from .service_layer import Chat


def in_memory(store: ConversationStore, model: Model) -> Chat:
    """Return the service on the twin of the store, for tests."""
    charges, search = InMemoryChargeRepository(), InMemoryMessageSearch()
    return Chat(store=store, charges=charges, search=search, model=model)


async def on_postgres(store: ConversationStore, schema: str, model: Model) -> Chat:
    """Return the service on a store in that schema; makes what is missing there."""
    await store.migrate()
    await migrate(store.unit_of_work(), schema)
    charges, search = PsycopgChargeRepository(schema), PsycopgMessageSearch(schema)
    return Chat(store=store, charges=charges, search=search, model=model)


def read_dialogues(file: Path) -> list[ConversationRecord]:
    """Return what a file has to begin with; nothing where there is none."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@asynccontextmanager
async def serving(
    dsn: str, *, dialogues: Path, schema: str = "operational"
) -> AsyncGenerator[Chat]:
    """Open the service as it is served, with dialogues to find in it on the first day."""
    async with ConversationStore.connect(dsn, schema=schema) as store:
        chat = await on_postgres(store, schema, StubModel(pause=0.04))
        records = read_dialogues(dialogues)
        await import_conversations(store.unit_of_work(), records=records, on_duplicate="skip")
        yield chat
