"""LlamaIndex: PostgresChatStore, which keeps each conversation in one row as an array."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.storage.chat_store.postgres import PostgresChatStore
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

from .contender import CannotDoError, Contender, Handle, Said
from .peers import connect_all, each_at_once, engine_options, sqlalchemy_url


class LlamaIndexContender(Contender):
    """Its handle is a key of the store."""

    name = "LlamaIndex"
    package = "llama-index-storage-chat-store-postgres"

    _engine: AsyncEngine
    _store: PostgresChatStore

    async def open(self, dsn: str, *, connections: int) -> None:
        self._connections = connections
        schema = "llama_index_store"
        url = sqlalchemy_url(dsn, "asyncpg")
        self._engine = create_async_engine(url, **engine_options(connections, schema))
        makes_the_table = create_engine(sqlalchemy_url(dsn, "psycopg"))
        self._store = await asyncio.to_thread(  # its constructor blocks: it makes the table
            PostgresChatStore,
            session=sessionmaker(makes_the_table),
            async_session=async_sessionmaker(self._engine),
            table_name="chat_store",
            schema_name=schema,
        )
        makes_the_table.dispose()
        await connect_all(self._engine, connections)

    async def close(self) -> None:
        await self._engine.dispose()

    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        handle = f"{user_id}/{session_id}"
        await self._store.async_add_message(handle, _message(first))
        return handle

    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        for said in turn:
            await self._store.async_add_message(handle, _message(said))

    async def latest(self, handle: Handle, limit: int) -> Sequence[Any]:
        return (await self.read_all(handle))[-limit:]

    async def read_all(self, handle: Handle) -> Sequence[Any]:
        messages: Sequence[Any] = await self._store.aget_messages(handle)
        return messages

    async def list_recent(self, user_id: str, limit: int) -> Sequence[Any]:
        raise CannotDoError("no conversations of a user, only all keys")

    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        async def store(conversation: tuple[str, str, Sequence[Said]]) -> None:
            user_id, session_id, said = conversation
            await self._store.aset_messages(
                f"{user_id}/{session_id}", [_message(one) for one in said]
            )

        await each_at_once(conversations, store, tasks=self._connections)
        return [f"{user_id}/{session_id}" for user_id, session_id, _ in conversations]

    def said(self, messages: Sequence[Any]) -> list[Said]:
        return [(message.role.value, message.content) for message in messages]


def _message(said: Said) -> ChatMessage:
    role, content = said
    return ChatMessage(role=role, content=content)
