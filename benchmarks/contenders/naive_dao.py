"""A data access object as psycopg's own patterns suggest it: plain, typed, and correct at a glance.

One method for each operation, `pool.connection()`, `conn.transaction()` where there are several
statements, `class_row` for typed results, ids from the server.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, TypedDict

import psycopg
from psycopg.rows import class_row
from psycopg_pool import AsyncConnectionPool

from .contender import Contender, Handle, Said

_BATCH: Final = 100  # conversations that are loaded in one transaction

_SCHEMA: Final = """
CREATE SCHEMA IF NOT EXISTS naive;
CREATE TABLE IF NOT EXISTS naive.ai_conversations (
    id bigserial PRIMARY KEY,
    user_id text NOT NULL,
    session_id text NOT NULL,
    status text NOT NULL DEFAULT 'active',
    start_time timestamptz NOT NULL DEFAULT now(),
    last_activity timestamptz NOT NULL DEFAULT now(),
    metadata jsonb,
    UNIQUE (user_id, session_id)
);
CREATE INDEX IF NOT EXISTS ai_conversations_recent
    ON naive.ai_conversations (user_id, last_activity DESC);
CREATE TABLE IF NOT EXISTS naive.ai_messages (
    id bigserial PRIMARY KEY,
    conversation_id bigint NOT NULL REFERENCES naive.ai_conversations (id) ON DELETE CASCADE,
    role text NOT NULL,
    content text NOT NULL,
    timestamp timestamptz NOT NULL DEFAULT now(),
    slots jsonb
);
CREATE INDEX IF NOT EXISTS ai_messages_conversation
    ON naive.ai_messages (conversation_id, id);
"""


class ConversationRow(TypedDict):
    """A row of naive.ai_conversations."""

    id: int
    user_id: str
    session_id: str
    status: str
    start_time: datetime
    last_activity: datetime
    metadata: dict[str, Any] | None


class MessageRow(TypedDict):
    """A row of naive.ai_messages."""

    id: int
    conversation_id: int
    role: str
    content: str
    timestamp: datetime
    slots: dict[str, Any] | None


_INSERT_CONVERSATION: Final = """
INSERT INTO naive.ai_conversations (user_id, session_id) VALUES (%s, %s) RETURNING id
"""
_INSERT_MESSAGE: Final = """
INSERT INTO naive.ai_messages (conversation_id, role, content) VALUES (%s, %s, %s) RETURNING id
"""
_LOAD_MESSAGE: Final = """
INSERT INTO naive.ai_messages (conversation_id, role, content) VALUES (%s, %s, %s)
"""
_TOUCH: Final = "UPDATE naive.ai_conversations SET last_activity = now() WHERE id = %s"
_LATEST: Final = """
SELECT * FROM naive.ai_messages WHERE conversation_id = %s ORDER BY id DESC LIMIT %s
"""
_ALL: Final = "SELECT * FROM naive.ai_messages WHERE conversation_id = %s ORDER BY id"
_RECENT: Final = """
SELECT * FROM naive.ai_conversations WHERE user_id = %s ORDER BY last_activity DESC LIMIT %s
"""


class NaiveDaoContender(Contender):
    """Several statements in a transaction for each write, one in a transaction for each read."""

    name = "hand-written DAO"
    package = "psycopg"

    async def open(self, dsn: str, *, connections: int) -> None:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await connection.execute("SET client_min_messages = warning")
            await connection.execute(_SCHEMA)
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            dsn, min_size=connections, max_size=connections, open=False
        )
        await self._pool.open(wait=True)

    async def close(self) -> None:
        await self._pool.close()

    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        async with self._pool.connection() as connection, connection.transaction():
            async with connection.cursor() as cursor:
                await cursor.execute(_INSERT_CONVERSATION, (user_id, session_id))
                (conversation_id,) = await cursor.fetchone() or (None,)
            async with connection.cursor() as cursor:
                await cursor.execute(_INSERT_MESSAGE, (conversation_id, *first))
        return conversation_id

    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        async with self._pool.connection() as connection, connection.transaction():
            for said in turn:
                async with connection.cursor() as cursor:
                    await cursor.execute(_INSERT_MESSAGE, (handle, *said))
            await connection.execute(_TOUCH, (handle,))

    async def latest(self, handle: Handle, limit: int) -> Sequence[MessageRow]:
        async with (
            self._pool.connection() as connection,
            connection.cursor(row_factory=class_row(MessageRow)) as cursor,
        ):
            await cursor.execute(_LATEST, (handle, limit))
            newest_first: list[MessageRow] = await cursor.fetchall()
        return newest_first[::-1]

    async def read_all(self, handle: Handle) -> Sequence[MessageRow]:
        async with (
            self._pool.connection() as connection,
            connection.cursor(row_factory=class_row(MessageRow)) as cursor,
        ):
            await cursor.execute(_ALL, (handle,))
            rows: list[MessageRow] = await cursor.fetchall()
        return rows

    async def list_recent(self, user_id: str, limit: int) -> Sequence[ConversationRow]:
        async with (
            self._pool.connection() as connection,
            connection.cursor(row_factory=class_row(ConversationRow)) as cursor,
        ):
            await cursor.execute(_RECENT, (user_id, limit))
            rows: list[ConversationRow] = await cursor.fetchall()
        return rows

    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        handles: list[Handle] = []
        for first in range(0, len(conversations), _BATCH):
            batch = conversations[first : first + _BATCH]
            async with (
                self._pool.connection() as connection,
                connection.transaction(),
                connection.cursor() as cursor,
            ):
                owners = [(user_id, session_id) for user_id, session_id, _ in batch]
                await cursor.executemany(_INSERT_CONVERSATION, owners, returning=True)
                ids = [row[0] async for result in cursor.results() async for row in result]
                await cursor.executemany(
                    _LOAD_MESSAGE,
                    [
                        (conversation_id, role, content)
                        for conversation_id, (_, _, said) in zip(ids, batch, strict=True)
                        for role, content in said
                    ],
                )
            handles += ids
        return handles

    def said(self, messages: Sequence[Any]) -> list[Said]:
        return [(message["role"], message["content"]) for message in messages]
