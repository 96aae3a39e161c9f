"""Move chats of LlamaIndex into a store.

    cd examples/moving
    python from_llama_index.py postgresql+asyncpg://host/database chats --user-id ada
    python from_llama_index.py --postgres-chat-store postgresql://host/db chatstore --user-id ada

The source is the URL and the table that a SQLAlchemyChatStore was made with; with
--postgres-chat-store those of a PostgresChatStore. See docs/moving/llama-index.md.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from llama_index.core.llms import ChatMessage
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from moving import Peer, Row, Told, Users, existing, main, parser, record_of, url_of
from sqlalchemy import (
    Engine,
    Text,
    cast,
    column,
    create_engine,
    func,
    inspect,
    select,
    table,
    true,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import sessionmaker

from conversation_store import ConversationRecord, ConversationStore, MessageDraft
from conversation_store.adapters.llama_index import LlamaIndexMemoryStore
from conversation_store.adapters.llama_index_chats import SOURCE, from_chat_message

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class Table:
    """What the tables of both kinds of stores have in common."""

    def __init__(self, options: Namespace) -> None:
        self.name: str = options.table
        self.schema: str | None = options.source_schema
        self.users = Users(options)
        self.notes: Counter[str] = Counter()

    def begun(self, first: Row) -> ConversationRecord:
        """Return the record of a chat, yet without messages."""
        return record_of(first.key, self.users[first.key], SOURCE)

    def draft(self, data: str) -> MessageDraft:
        """Return the message that one of LlamaIndex becomes."""
        status, item = json.loads(data)
        return from_chat_message(ChatMessage.model_validate(item), MessageStatus(status))

    async def ours(self, store: ConversationStore, record: ConversationRecord) -> Told:
        """Read a chat of ours."""
        chats = LlamaIndexMemoryStore(store=store, user_id=record["user_id"])
        return await _told(chats, record["session_id"])


class OfSQLAlchemy(Table):
    """The table of SQLAlchemyChatStore."""

    def __init__(self, options: Namespace, engine: AsyncEngine) -> None:
        super().__init__(options)
        self.engine = engine
        self.chats = SQLAlchemyChatStore(self.name, async_engine=engine, db_schema=self.schema)

    async def rows(self) -> AsyncIterator[Row]:
        """Read all messages, in the order in which the store gives them."""
        names = ("id", "key", "timestamp", "status", "data")
        found = table(self.name, *map(column, names), schema=self.schema).c
        query = select(found.key, found.timestamp, found.status, cast(found.data, Text)).order_by(
            found.key, found.timestamp, found.id
        )
        async with self.engine.connect() as connection, connection.stream(query) as rows:
            async for key, nanoseconds, status, data in rows:
                at = BEGINNING + timedelta(microseconds=nanoseconds // 1000)
                yield Row(key, f"[{json.dumps(status)}, {data}]", at)

    async def theirs(self, key: str) -> Told:
        """Read a chat of theirs."""
        return await _told(self.chats, key)


class OfPostgres(Table):
    """The table of PostgresChatStore, which knows no times: a row holds a whole chat."""

    def __init__(self, options: Namespace, engine: Engine) -> None:
        super().__init__(options)
        self.engine = engine

    async def rows(self) -> AsyncIterator[Row]:
        """Read all messages, in the order in which the store gives them."""
        schema = self.schema or "public"
        name = self.name.lower()
        if inspect(self.engine).has_table(f"data_{name}", schema):  # as it was named once
            name = f"data_{name}"
        chats = table(name, column("key"), column("value"), schema=schema)
        unnested = func.unnest(chats.c.value)
        said = unnested.table_valued("data", with_ordinality="place", name="said").render_derived()
        query = (
            select(chats.c.key, cast(said.c.data, Text))
            .join_from(chats, said, true())
            .order_by(chats.c.key, said.c.place)
        )
        with self.engine.connect().execution_options(stream_results=True) as connection:
            for key, data in connection.execute(query):
                yield Row(key, f'["active", {data}]')

    async def theirs(self, key: str) -> Told:
        """Read a chat of theirs."""
        from llama_index.storage.chat_store.postgres import PostgresChatStore

        session: Any = sessionmaker(self.engine)
        name, schema = self.name, self.schema or "public"
        items = PostgresChatStore(session, session, name, schema).get_messages(key)
        return Told(items, items)


async def _told(chats: AsyncDBChatStore, key: str) -> Told:
    """Return all messages of a chat, and those that are not archived."""
    return Told(await chats.get_messages(key, None), await chats.get_messages(key))


@asynccontextmanager
async def opened(options: Namespace) -> AsyncGenerator[Peer]:
    """Open what the source names."""
    url = url_of(options.source)
    if options.postgres_chat_store:
        engine = create_engine(url.set(drivername="postgresql+psycopg"))
        try:
            yield OfPostgres(options, engine)
        finally:
            engine.dispose()
        return
    if url.get_backend_name() == "sqlite":
        existing(url.database)
    asynchronous = create_async_engine(url)
    try:
        yield OfSQLAlchemy(options, asynchronous)
    finally:
        await asynchronous.dispose()


if __name__ == "__main__":
    arguments = parser("Move chats of LlamaIndex into a store.")
    arguments.add_argument("source", help="the URL of the database of the chats")
    arguments.add_argument("table", help="their table")
    arguments.add_argument("--source-schema", help="the schema of their table")
    arguments.add_argument(
        "--postgres-chat-store", action="store_true", help="they are of PostgresChatStore"
    )
    given = arguments.parse_args()
    main(given, lambda: opened(given), [SQLAlchemyError])
