"""Move chat histories of LangChain into a store.

    cd examples/moving
    python from_langchain.py "host=db dbname=chat" chat_history --users users.csv
    python from_langchain.py --community sqlite:///chat.db message_store --user-id ada

The source is that of langchain_postgres.PostgresChatMessageHistory: what its connection was made
with, and its table. With --community it is that of SQLChatMessageHistory of langchain_community: a
URL of SQLAlchemy without an async driver, and its table. See docs/moving/langchain.md.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from langchain_core.messages import messages_from_dict
from moving import Peer, Row, Told, Users, existing, libpq_of, main, parser, record_of, url_of
from psycopg import AsyncConnection
from psycopg.sql import SQL, Identifier
from sqlalchemy import Engine, column, create_engine, select, table
from sqlalchemy.exc import SQLAlchemyError

from conversation_store import ConversationRecord, ConversationStore, MessageDraft
from conversation_store.adapters.langchain import SOURCE, LangChainHistory, from_message


class Table:
    """What the tables of both kinds of histories have in common."""

    def __init__(self, options: Namespace) -> None:
        self.table: str = options.table
        self.users = Users(options)
        self.notes: Counter[str] = Counter()

    def begun(self, first: Row) -> ConversationRecord:
        """Return the record of a history, yet without messages."""
        return record_of(first.key, self.users[first.key], SOURCE)

    def draft(self, data: str) -> MessageDraft:
        """Return the message that one of LangChain becomes."""
        [message] = messages_from_dict([json.loads(data)])
        return from_message(message)

    async def ours(self, store: ConversationStore, record: ConversationRecord) -> Told:
        """Read a history of ours."""
        history = LangChainHistory(record["session_id"], store=store, user_id=record["user_id"])
        return Told(await history.aget_messages())


class OfPostgres(Table):
    """The table of langchain_postgres.PostgresChatMessageHistory."""

    def __init__(
        self, options: Namespace, streams: AsyncConnection[Any], reads: AsyncConnection[Any]
    ) -> None:
        super().__init__(options)
        self.streams = streams
        self.reads = reads

    async def rows(self) -> AsyncIterator[Row]:
        """Read all messages, in the order in which the history gives them."""
        query = SQL(
            "SELECT session_id::text, message::text, created_at FROM {} ORDER BY session_id, id"
        ).format(Identifier(self.table))
        async with self.streams.transaction(), self.streams.cursor("all of them") as cursor:
            cursor.itersize = 1000
            await cursor.execute(query)
            async for session_id, data, at in cursor:
                yield Row(session_id, data, at)

    async def theirs(self, key: str) -> Told:
        """Read a history of theirs."""
        from langchain_postgres import PostgresChatMessageHistory

        history = PostgresChatMessageHistory(self.table, key, async_connection=self.reads)
        return Told(await history.aget_messages())


class OfCommunity(Table):
    """The table of SQLChatMessageHistory of langchain_community, which knows no times."""

    def __init__(self, options: Namespace, engine: Engine) -> None:
        super().__init__(options)
        self.engine = engine

    async def rows(self) -> AsyncIterator[Row]:
        """Read all messages, in the order in which the history gives them."""
        found = table(self.table, *map(column, ("id", "session_id", "message")))
        query = select(found.c.session_id, found.c.message).order_by(found.c.session_id, found.c.id)
        with self.engine.connect().execution_options(stream_results=True) as connection:
            for session_id, data in connection.execute(query):
                yield Row(session_id, data)

    async def theirs(self, key: str) -> Told:
        """Read a history of theirs."""
        from langchain_community.chat_message_histories import SQLChatMessageHistory

        return Told(SQLChatMessageHistory(key, self.table, connection=self.engine).messages)


@asynccontextmanager
async def opened(options: Namespace) -> AsyncGenerator[Peer]:
    """Open what the source names, to read only."""
    if options.community:
        url = url_of(options.source)
        if url.get_backend_name() == "sqlite":
            existing(url.database)
        engine = create_engine(url).execution_options(postgresql_readonly=True)
        try:
            yield OfCommunity(options, engine)
        finally:
            engine.dispose()
        return
    source = libpq_of(options.source)
    async with (
        await AsyncConnection.connect(source) as streams,
        await AsyncConnection.connect(source, autocommit=True) as reads,
    ):
        await streams.set_read_only(True)
        yield OfPostgres(options, streams, reads)


if __name__ == "__main__":
    arguments = parser("Move chat histories of LangChain into a store.")
    arguments.add_argument("source", help="how to connect to the database of the histories")
    arguments.add_argument("table", help="their table")
    arguments.add_argument(
        "--community", action="store_true", help="they are of SQLChatMessageHistory"
    )
    given = arguments.parse_args()
    main(given, lambda: opened(given), [SQLAlchemyError])
