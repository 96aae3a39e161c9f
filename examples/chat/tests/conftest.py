"""The service with a model that does as it is told, on the twin and on PostgreSQL."""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator

import httpx
import pytest
from service_under_test import ScriptedModel, client_of

from chat.bootstrap import in_memory, on_postgres
from chat.service_layer import Chat
from conversation_store import ConversationStore


@pytest.fixture
def user() -> str:
    """Give a user whom no other test knows."""
    return f"renée-{secrets.token_hex(4)}"


@pytest.fixture
def model() -> ScriptedModel:
    """Give the model."""
    return ScriptedModel()


@pytest.fixture(params=["memory", "postgres"])
def where(request: pytest.FixtureRequest) -> tuple[ConversationStore, str | None]:
    """Give a store, and its schema if it is on PostgreSQL."""
    if request.param == "memory":
        return request.getfixturevalue("conversation_store"), None
    schema: str = request.getfixturevalue("conversation_store_schema")
    return request.getfixturevalue("conversation_store_on_server"), schema


@pytest.fixture
async def chat(where: tuple[ConversationStore, str | None], model: ScriptedModel) -> Chat:
    """Give the service."""
    store, schema = where
    return in_memory(store, model) if schema is None else await on_postgres(store, schema, model)


@pytest.fixture
async def client(chat: Chat, user: str) -> AsyncGenerator[httpx.AsyncClient]:
    """Give a client of the HTTP API, for the user."""
    async with client_of(chat, user) as client:
        yield client
