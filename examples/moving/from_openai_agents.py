"""Move sessions of the OpenAI Agents SDK into a store.

    cd examples/moving
    python from_openai_agents.py postgresql+asyncpg://host/database --user-id ada
    python from_openai_agents.py conversations.db --users users.csv

The source is what the sessions were made with: the URL of a SQLAlchemySession, or the db_path of a
SQLiteSession, AsyncSQLiteSession or AdvancedSQLiteSession. See docs/moving/openai-agents.md.
"""

from __future__ import annotations

import json
import sqlite3
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from agents import SQLiteSession
from agents.extensions.memory import AdvancedSQLiteSession, SQLAlchemySession
from moving import Peer, Row, Told, Users, existing, main, parser, record_of, url_of, utc
from sqlalchemy import TIMESTAMP, cast, column, select, table
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from conversation_store import ConversationRecord, ConversationStore, MessageDraft
from conversation_store.adapters.openai_agents import SOURCE, AgentsSession, from_item


class Tables:
    """What the tables of all kinds of sessions have in common."""

    def __init__(self, options: Namespace) -> None:
        self.users = Users(options)
        self.tables: dict[str, Any] = {
            "sessions_table": options.sessions_table,
            "messages_table": options.messages_table,
        }
        self.notes: Counter[str] = Counter()

    def begun(self, first: Row) -> ConversationRecord:
        """Return the record of a session, yet without items."""
        return record_of(first.key, self.users[first.key], SOURCE)

    def draft(self, data: str) -> MessageDraft | None:
        """Return the message of an item; what is no JSON the SDK passes over."""
        try:
            item = json.loads(data)
        except json.JSONDecodeError:
            return None
        return from_item(item)

    async def ours(self, store: ConversationStore, record: ConversationRecord) -> Told:
        """Read a session of ours."""
        session = AgentsSession(record["session_id"], store=store, user_id=record["user_id"])
        return Told(list(await session.get_items()))


class OfSQLAlchemy(Tables):
    """The tables of SQLAlchemySession."""

    def __init__(self, options: Namespace, engine: AsyncEngine) -> None:
        super().__init__(options)
        self.engine = engine

    async def rows(self) -> AsyncIterator[Row]:
        """Read all items, in the order in which the session gives them."""
        s = table(self.tables["sessions_table"], *_columns("session_id created_at updated_at"))
        m = table(self.tables["messages_table"], *_columns("session_id created_at id message_data"))
        times: list[Any] = [m.c.created_at, s.c.created_at, s.c.updated_at]
        if self.engine.dialect.name == "postgresql":  # it holds local times of its TimeZone
            times = [cast(time, TIMESTAMP(timezone=True)) for time in times]
        query = (
            select(m.c.session_id, m.c.message_data, *times)
            .join_from(m, s, m.c.session_id == s.c.session_id, isouter=True)
            .order_by(m.c.session_id, m.c.created_at, m.c.id)
        )
        async with self.engine.connect() as connection, connection.stream(query) as found:
            async for session_id, data, at, began, ended in found:
                yield Row(session_id, data, utc(at), utc(began), utc(ended))

    async def theirs(self, key: Any) -> Told:
        """Read a session of theirs."""
        session = SQLAlchemySession(key, engine=self.engine, **self.tables)
        return Told(list(await session.get_items()))


class OfSQLite(Tables):
    """The tables of SQLiteSession, AsyncSQLiteSession and AdvancedSQLiteSession (with branches)."""

    def __init__(self, options: Namespace, path: Path) -> None:
        super().__init__(options)
        self.path = path
        self.has_branches = False

    def begun(self, first: Row) -> ConversationRecord:
        """Return the record of a branch, yet without items; another than main is in the name."""
        session_id, branch = first.key
        name = session_id if branch == "main" else f"{session_id}/{branch}"
        return record_of(name, self.users[session_id], SOURCE)

    async def rows(self) -> AsyncIterator[Row]:
        """Read all items, in the order in which the session gives them."""
        uri = f"{self.path.resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True)) as db:
            found = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_structure'")
            self.has_branches = found.fetchone() is not None
            branch, order, join = "'main'", "m.id", ""
            if self.has_branches:
                branch, order = "b.branch_id", "b.branch_id, b.sequence_number"
                join = "LEFT JOIN message_structure b ON b.message_id = m.id"
            for session_id, of, data, at, began, ended in db.execute(
                f"SELECT m.session_id, {branch}, CAST(m.message_data AS TEXT), m.created_at, "
                f"s.created_at, s.updated_at FROM {self.tables['messages_table']} m {join} "
                f"LEFT JOIN {self.tables['sessions_table']} s ON s.session_id = m.session_id "
                f"ORDER BY m.session_id, {order}"
            ):
                if of is None:
                    self.notes["of no branch, which an AdvancedSQLiteSession does not give"] += 1
                else:
                    yield Row((session_id, of), data, utc(at), utc(began), utc(ended))

    async def theirs(self, key: Any) -> Told:
        """Read a session of theirs."""
        session_id, branch = key
        if self.has_branches:
            advanced = AdvancedSQLiteSession(
                session_id=session_id, db_path=self.path, **self.tables
            )
            with closing(advanced):
                return Told(list(await advanced.get_items(branch_id=branch)))
        with closing(SQLiteSession(session_id, self.path, **self.tables)) as session:
            return Told(list(await session.get_items()))


def _columns(names: str) -> list[Any]:
    return list(map(column, names.split()))


@asynccontextmanager
async def opened(options: Namespace) -> AsyncGenerator[Peer]:
    """Open what the source names, to read only."""
    if "://" not in options.source:
        yield OfSQLite(options, existing(options.source))
        return
    url = url_of(options.source)
    if url.get_backend_name() == "sqlite":
        existing(url.database)
    engine = create_async_engine(url).execution_options(postgresql_readonly=True)
    try:
        yield OfSQLAlchemy(options, engine)
    finally:
        await engine.dispose()


if __name__ == "__main__":
    arguments = parser("Move sessions of the OpenAI Agents SDK into a store.")
    arguments.add_argument("source", help="the URL, or the path of the file, of the sessions")
    arguments.add_argument("--sessions-table", default="agent_sessions")
    arguments.add_argument("--messages-table", default="agent_messages")
    given = arguments.parse_args()
    main(given, lambda: opened(given), [SQLAlchemyError])
