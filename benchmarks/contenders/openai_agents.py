"""OpenAI Agents SDK: SQLAlchemySession, one object for each conversation, on one engine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from agents import set_tracing_disabled
from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .contender import CannotDoError, Contender, Handle, Said
from .peers import connect_all, each_at_once, engine_options, make_schema, sqlalchemy_url


class OpenAIAgentsContender(Contender):
    """Its handle is the session's id; the object of a session that is in use is kept."""

    name = "OpenAI Agents"
    package = "openai-agents"

    _engine: AsyncEngine

    def __init__(self) -> None:
        self._sessions: dict[str, SQLAlchemySession] = {}

    async def open(self, dsn: str, *, connections: int) -> None:
        set_tracing_disabled(disabled=True)  # it would send traces to its maker
        schema = "openai_agents"
        await make_schema(dsn, schema)
        self._connections = connections
        url = sqlalchemy_url(dsn, "asyncpg")
        self._engine = create_async_engine(url, **engine_options(connections, schema))
        first = SQLAlchemySession(
            "the one that makes the tables", engine=self._engine, create_tables=True
        )
        await first.get_items()
        await connect_all(self._engine, connections)

    async def close(self) -> None:
        self._sessions.clear()
        await self._engine.dispose()

    def _session(self, session_id: str) -> SQLAlchemySession:
        if session_id not in self._sessions:
            self._sessions[session_id] = SQLAlchemySession(session_id, engine=self._engine)
        return self._sessions[session_id]

    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        handle = f"{user_id}/{session_id}"
        await self._session(handle).add_items(_items([first]))
        return handle

    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        await self._session(handle).add_items(_items(turn))

    async def latest(self, handle: Handle, limit: int) -> Sequence[Any]:
        items: Sequence[Any] = await self._session(handle).get_items(limit)
        return items

    async def read_all(self, handle: Handle) -> Sequence[Any]:
        items: Sequence[Any] = await self._session(handle).get_items()
        return items

    async def list_recent(self, user_id: str, limit: int) -> Sequence[Any]:
        raise CannotDoError("no list of sessions")

    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        async def store(conversation: tuple[str, str, Sequence[Said]]) -> None:
            user_id, session_id, said = conversation
            session = SQLAlchemySession(f"{user_id}/{session_id}", engine=self._engine)
            await session.add_items(_items(said))

        await each_at_once(conversations, store, tasks=self._connections)
        return [f"{user_id}/{session_id}" for user_id, session_id, _ in conversations]

    def said(self, messages: Sequence[Any]) -> list[Said]:
        return [(item["role"], item["content"]) for item in messages]


def _items(said: Sequence[Said]) -> list[Any]:
    return [{"role": role, "content": content} for role, content in said]
