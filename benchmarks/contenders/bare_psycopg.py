"""The limit: the statements of the store, sent by hand, without anything around them.

The same texts and the same tables as ours; rows stay tuples, of the values that the driver makes
of their columns: aware times, and objects where there is JSON. (Ours has times and JSON sent in a
form that is cheaper to read, and makes values of them itself.) Who wrote this by hand would have to
know the statements, the ids and the order of locks. Loading is COPY of tuples that are made while
they are sent.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from psycopg import sql
from psycopg.types.numeric import Int8
from psycopg_pool import AsyncConnectionPool

from conversation_store import ConversationStore
from conversation_store.adapters.postgres.parameters import array
from conversation_store.adapters.postgres.texts import Texts

from .contender import Contender, Handle, Said

SCHEMA: Final = "bare"
_BEYOND: Final = Int8(2**63 - 1)
_PAGE: Final = Int8(1000)
_POSITION, _ROLE, _CONTENT = 2, 3, 4


class BarePsycopgContender(Contender):
    """One statement for each operation, by a cursor of psycopg."""

    name = "bare psycopg"
    package = "psycopg"

    async def open(self, dsn: str, *, connections: int) -> None:
        async with ConversationStore.connect(dsn, schema=SCHEMA) as store:
            await store.migrate()
        self._pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            dsn,
            min_size=connections,
            max_size=connections,
            open=False,
            kwargs={"autocommit": True},
        )
        await self._pool.open(wait=True)
        self._texts = Texts(SCHEMA)
        self._latest, self._list = _of_values(self._texts.latest), _of_values(self._texts.list)
        self._ids = range(0)
        self._drawing = asyncio.Lock()

    async def close(self) -> None:
        await self._pool.close()

    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        conversation_id, message_id = await self._take(2)
        await self._fetch(
            self._texts.start,
            {
                "id": Int8(conversation_id),
                "owner": user_id,
                "session_id": session_id,
                "status": "active",
                "count": Int8(1),
                "rescue_id": None,
                "intent_type": None,
                "source": None,
                "metadata": None,
                "drafts": _drafts([first]),
                "ids": array([message_id]),
            },
        )
        return conversation_id

    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        ids = await self._take(len(turn))
        await self._fetch(
            self._texts.append,
            {
                "conversation_id": Int8(handle),
                "user_id": None,
                "expected_version": None,
                "accepting": "{active}",
                "count": Int8(len(turn)),
                "drafts": _drafts(turn),
                "ids": array(ids),
            },
        )

    async def latest(self, handle: Handle, limit: int) -> Sequence[Any]:
        return await self._page(handle, _BEYOND, Int8(limit))

    async def read_all(self, handle: Handle) -> Sequence[Any]:
        rows = await self._page(handle, _BEYOND, _PAGE)
        while rows[0][_POSITION] is not None and rows[0][_POSITION] > 1:
            rows = await self._page(handle, Int8(rows[0][_POSITION]), _PAGE) + rows
        return rows

    async def list_recent(self, user_id: str, limit: int) -> Sequence[Any]:
        return await self._fetch(
            self._list,
            {
                "owner": user_id,
                "last_activity": "infinity",
                "conversation_id": _BEYOND,
                "limit": Int8(limit),
            },
        )

    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        ids = await self._take(len(conversations) + sum(len(said) for _, _, said in conversations))
        conversation_ids, message_ids = ids[: len(conversations)], iter(ids[len(conversations) :])
        now = datetime.now(UTC)
        schema = sql.Identifier(SCHEMA)
        async with (
            self._pool.connection() as connection,
            connection.transaction(),
            connection.cursor() as cursor,
        ):
            statement = sql.SQL(
                "COPY {}.ai_conversations (id, user_id, session_id, status, start_time,"
                " last_activity, message_count, version) FROM STDIN"
            ).format(schema)
            async with cursor.copy(statement) as copy:
                for id_, (user, session, said) in zip(conversation_ids, conversations, strict=True):
                    await copy.write_row((id_, user, session, "active", now, now, len(said), 1))
            statement = sql.SQL(
                "COPY {}.ai_messages (conversation_id, position, id, role, content, timestamp)"
                " FROM STDIN"
            ).format(schema)
            async with cursor.copy(statement) as copy:
                for id_, (_, _, said) in zip(conversation_ids, conversations, strict=True):
                    for position, (role, content) in enumerate(said, 1):
                        row = (id_, position, next(message_ids), role, content, now)
                        await copy.write_row(row)
        return list(conversation_ids)

    def said(self, messages: Sequence[Any]) -> list[Said]:
        return [(row[_ROLE], row[_CONTENT]) for row in messages]

    async def _page(self, handle: Handle, before: Int8, limit: Int8) -> list[Any]:
        parameters: dict[str, object] = {
            "conversation_id": Int8(handle),
            "user_id": None,
            "before": before,
            "limit": limit,
        }
        return await self._fetch(self._latest, parameters)

    async def _fetch(self, text: bytes, parameters: dict[str, object]) -> list[Any]:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(text, parameters, binary=True)
            rows: list[Any] = await cursor.fetchall()
        return rows

    async def _take(self, count: int) -> range:
        """Take ids of the block that was drawn last, or of one that is drawn now."""
        while len(self._ids) < count:
            async with self._drawing:
                if len(self._ids) < count:
                    await self._draw(count)
        taken, self._ids = self._ids[:count], self._ids[count:]
        return taken

    async def _draw(self, count: int) -> None:
        # One range however many blocks: nobody else draws from this sequence meanwhile.
        blocks = -(-count // 1000)
        rows = await self._fetch(
            self._texts.next_ids, {"sequence": self._texts.sequence, "blocks": Int8(blocks)}
        )
        self._ids = range(rows[0][0], rows[-1][0] + rows[-1][1])


def _of_values(text: bytes) -> bytes:
    """Return a statement of ours that reads columns as they are."""
    for ours in (b" AT TIME ZONE 'UTC'", b"(?<=slots)::text", b"(?<=metadata)::text"):
        text, replaced = re.subn(ours, b"", text)
        assert replaced or b"slots" in ours, f"no {ours!r} in the statement"
    return text


def _drafts(said: Sequence[Said]) -> str:
    return json.dumps([{"role": role, "content": content} for role, content in said])
