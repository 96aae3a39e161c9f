"""LangChain: PostgresChatMessageHistory, on a connection that a pool lends for each call."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_postgres import PostgresChatMessageHistory
from psycopg_pool import AsyncConnectionPool

from .contender import CannotDoError, Contender, Handle, Said
from .peers import each_at_once, make_schema

_TABLE = "chat_history"
_KINDS = {"user": HumanMessage, "assistant": AIMessage, "system": SystemMessage}
_ROLES = {"human": "user", "ai": "assistant", "system": "system"}


class LangChainContender(Contender):
    """Its handle is the session's id, which has to be a UUID."""

    name = "LangChain"
    package = "langchain-postgres"

    async def open(self, dsn: str, *, connections: int) -> None:
        schema = "langchain_history"
        await make_schema(dsn, schema)
        self._connections = connections
        self._pool = AsyncConnectionPool(
            dsn,
            min_size=connections,
            max_size=connections,
            kwargs={"options": f"-c search_path={schema}"},
            open=False,
        )
        await self._pool.open(wait=True)
        async with self._pool.connection() as connection:
            await PostgresChatMessageHistory.acreate_tables(connection, _TABLE)

    async def close(self) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def _history(self, session_id: str) -> AsyncIterator[PostgresChatMessageHistory]:
        async with self._pool.connection() as connection:
            yield PostgresChatMessageHistory(_TABLE, session_id, async_connection=connection)

    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        handle = _uuid_of(user_id, session_id)
        await self.append_turn(handle, [first])
        return handle

    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        async with self._history(handle) as history:
            await history.aadd_messages(_messages(turn))

    async def latest(self, handle: Handle, limit: int) -> Sequence[Any]:
        return (await self.read_all(handle))[-limit:]

    async def read_all(self, handle: Handle) -> Sequence[Any]:
        async with self._history(handle) as history:
            messages: Sequence[Any] = await history.aget_messages()
            return messages

    async def list_recent(self, user_id: str, limit: int) -> Sequence[Any]:
        raise CannotDoError("no conversations, only messages")

    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        async def store(conversation: tuple[str, str, Sequence[Said]]) -> None:
            user_id, session_id, said = conversation
            await self.append_turn(_uuid_of(user_id, session_id), said)

        await each_at_once(conversations, store, tasks=self._connections)
        return [_uuid_of(user_id, session_id) for user_id, session_id, _ in conversations]

    def said(self, messages: Sequence[Any]) -> list[Said]:
        return [(_ROLES[message.type], message.content) for message in messages]


def _uuid_of(user_id: str, session_id: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"{user_id}/{session_id}"))


def _messages(said: Sequence[Said]) -> list[BaseMessage]:
    return [_KINDS[role](content=content) for role, content in said]
