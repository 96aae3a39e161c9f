"""Move sessions and states of Google ADK into a store.

    cd examples/moving
    python from_google_adk.py postgresql+asyncpg://host/database

The source is the URL that DatabaseSessionService was made with. See docs/moving/google-adk.md.
"""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, NamedTuple

from google.adk.sessions import DatabaseSessionService, Session, State
from google.adk.sessions.migration._schema_check_utils import (
    LATEST_SCHEMA_VERSION,
    get_db_schema_version_from_connection,
)
from google.adk.sessions.schemas.v1 import (
    StorageAppState,
    StorageEvent,
    StorageSession,
    StorageUserState,
)
from moving import Peer, Row, Told, UnreadableError, existing, main, parser, url_of, utc
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from conversation_store import (
    ConversationRecord,
    ConversationStore,
    MessageDraft,
    find_conversation,
)
from conversation_store.adapters.google_adk import AdkSessionService
from conversation_store.adapters.google_adk_layout import (
    APP_USER,
    SOURCE,
    STATE_SOURCE,
    from_event,
    session_name,
    split_session_name,
    state_name,
    state_of,
    with_state,
)
from conversation_store.adapters.google_adk_sessions import check_user

OLD = (
    "they are of ADK's schema {}; bring them to the present one, in a new database, and move them "
    "from there: adk migrate session --source_db_url … --dest_db_url …"
)
EVENTS = (
    select(StorageSession.app_name, StorageSession.user_id, StorageSession.id)
    .add_columns(StorageSession.state, StorageSession.create_time, StorageEvent.id)
    .add_columns(StorageEvent.invocation_id, StorageEvent.timestamp, StorageEvent.event_data)
    .outerjoin(StorageSession.storage_events)
    .order_by(StorageSession.app_name, StorageSession.user_id, StorageSession.id)
    .order_by(StorageEvent.timestamp, StorageEvent.id)
)


class Key(NamedTuple):
    """A session; without an id the state of a user, without a user that of an app."""

    app_name: str
    user_id: str | None = None
    session_id: str | None = None


class Service(DatabaseSessionService):
    """The service, as one that adds no table and no index to what is there."""

    async def prepare_tables(self) -> None:
        """Take the tables as they are."""
        self._db_schema_version = LATEST_SCHEMA_VERSION


class Tables:
    """The tables of DatabaseSessionService."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.service = Service(db_engine=engine)
        self.notes: Counter[str] = Counter()

    async def rows(self) -> AsyncIterator[Row]:
        """Read all states, then all events, in the order in which the service gives them."""
        async with self.engine.connect() as connection:
            version = await connection.run_sync(get_db_schema_version_from_connection)
            if version != LATEST_SCHEMA_VERSION:
                raise UnreadableError(OLD.format(version))
            for query in (
                select(StorageAppState.app_name, StorageAppState.state),
                select(StorageUserState.app_name, StorageUserState.user_id, StorageUserState.state),
            ):
                async with connection.stream(query) as states:
                    async for *names, state in states:
                        yield Row(Key(*names), None, state=state)
            async with connection.stream(EVENTS) as events:
                async for *names, state, began, event_id, invocation_id, at, data in events:
                    key = Key(*names)
                    if event_id is None:
                        yield Row(key, None, began=utc(began), state=state)
                        continue
                    time = utc(at)
                    stored = {"id": event_id, "invocation_id": invocation_id, "event_data": data}
                    text = json.dumps({**stored, "timestamp": time and time.isoformat()})
                    yield Row(key, text, time, began=utc(began), state=state)

    def begun(self, first: Row) -> ConversationRecord:
        """Return the record of a session, yet without events, or that of a state."""
        app_name, user_id, session_id = first.key
        return {
            "user_id": APP_USER if user_id is None else check_user(user_id),
            "session_id": state_name(app_name)
            if session_id is None
            else session_name(app_name, session_id),
            "source": STATE_SOURCE if session_id is None else SOURCE,
            "metadata": with_state(None, first.state or {}),
            "messages": [],
        }

    def draft(self, data: str) -> MessageDraft:
        """Return the message that an event becomes."""
        stored: dict[str, Any] = json.loads(data)
        time = datetime.fromisoformat(stored.pop("timestamp"))
        return from_event(StorageEvent(**stored, timestamp=time).to_event())

    async def theirs(self, key: Key) -> Told:
        """Read a session, or a state, as the service does."""
        app_name, user_id, session_id = key
        if user_id is None:  # for which the service has no call
            query = select(StorageAppState.state).where(StorageAppState.app_name == app_name)
            async with self.engine.connect() as connection:
                return Told([], await connection.scalar(query))
        if session_id is None:
            return Told([], await self.service.get_user_state(app_name=app_name, user_id=user_id))
        return _told(
            await self.service.get_session(
                app_name=app_name, user_id=user_id, session_id=session_id
            )
        )

    async def ours(self, store: ConversationStore, record: ConversationRecord) -> Told:
        """Read its conversation, as the session or the state that it is."""
        user_id, name = record["user_id"], record["session_id"]
        names = split_session_name(name)
        if names is None:
            found = await find_conversation(store.unit_of_work(user_id=user_id), session_id=name)
            return Told([], state_of(found.metadata if found else None))
        return _told(
            await AdkSessionService(store).get_session(
                app_name=names[0], user_id=user_id, session_id=names[1]
            )
        )


def _told(session: Session | None) -> Told:
    """Return the events and the state of a session, without that which it shares with others."""
    if session is None:
        return Told([])
    shared = (State.APP_PREFIX, State.USER_PREFIX)
    own = {key: value for key, value in session.state.items() if not key.startswith(shared)}
    return Told(session.events, own)


@asynccontextmanager
async def opened(options: Namespace) -> AsyncGenerator[Peer]:
    """Open what the source names."""
    url = url_of(options.source)
    if url.get_backend_name() == "sqlite":
        existing(url.database)
    engine = create_async_engine(url).execution_options(postgresql_readonly=True)
    try:
        yield Tables(engine)
    finally:
        await engine.dispose()


if __name__ == "__main__":
    logging.getLogger("google_adk").setLevel(logging.CRITICAL)  # what it says, is said here
    arguments = parser("Move sessions and states of Google ADK into a store.", has_users=True)
    arguments.add_argument("source", help="the URL that DatabaseSessionService was made with")
    given = arguments.parse_args()
    main(given, lambda: opened(given), [SQLAlchemyError])
