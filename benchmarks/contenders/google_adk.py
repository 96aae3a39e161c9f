"""Google ADK: DatabaseSessionService, with an event for each message."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.adk.errors import StaleSessionError
from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService, Session
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types

from .contender import Contender, Handle, Said
from .peers import connect_all, each_at_once, engine_options, make_schema, sqlalchemy_url

_APP = "benchmark"


@dataclass
class _Conversation:
    """A session as this process last saw it, without its events."""

    last_seen: Session


class GoogleADKContender(Contender):
    """Each call works on a Session object of its own, like each request of a host.

    So an append may find that another writer was faster. It then does as it is told: it reads the
    session anew and tries again, and `rereads` counts how often. The service is given a URL, as its
    documentation shows; it then tests a connection before each use.
    """

    name = "Google ADK"
    package = "google-adk"

    _service: DatabaseSessionService

    def __init__(self) -> None:
        self.rereads = 0

    async def open(self, dsn: str, *, connections: int) -> None:
        schema = "google_adk"
        await make_schema(dsn, schema)
        self._connections = connections
        url = sqlalchemy_url(dsn, "asyncpg")
        self._service = DatabaseSessionService(url, **engine_options(connections, schema))
        await self._service.prepare_tables()
        await connect_all(self._service.db_engine, connections)

    async def close(self) -> None:
        await self._service.close()

    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        session = await self._service.create_session(
            app_name=_APP, user_id=user_id, session_id=session_id
        )
        handle = _Conversation(session)
        await self.append_turn(handle, [first])
        return handle

    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        session = handle.last_seen.model_copy(update={"events": []})
        invocation = str(uuid.uuid4())
        for said in turn:
            session = await self._append(session, _event(invocation, said))
        session.events.clear()
        handle.last_seen = session

    async def _append(self, session: Session, event: Event) -> Session:
        while True:
            try:
                await self._service.append_event(session, event)
            except StaleSessionError:
                self.rereads += 1
                session = await self._read(session, events=0)
            else:
                return session

    async def _read(self, session: Session, *, events: int | None = None) -> Session:
        found: Session | None = await self._service.get_session(
            app_name=_APP,
            user_id=session.user_id,
            session_id=session.id,
            config=GetSessionConfig(num_recent_events=events),
        )
        assert found is not None
        return found

    async def latest(self, handle: Handle, limit: int) -> Sequence[Any]:
        events: Sequence[Any] = (await self._read(handle.last_seen, events=limit)).events
        return events

    async def read_all(self, handle: Handle) -> Sequence[Any]:
        events: Sequence[Any] = (await self._read(handle.last_seen)).events
        return events

    async def list_recent(self, user_id: str, limit: int) -> Sequence[Any]:
        found = await self._service.list_sessions(app_name=_APP, user_id=user_id)
        return list(reversed(found.sessions[-limit:]))

    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        handles: dict[tuple[str, str], Handle] = {}

        async def store(conversation: tuple[str, str, Sequence[Said]]) -> None:
            user_id, session_id, said = conversation
            handle = await self.start(user_id, session_id, said[0])
            await self.append_turn(handle, said[1:])
            handles[user_id, session_id] = handle

        await each_at_once(conversations, store, tasks=self._connections)
        return [handles[user_id, session_id] for user_id, session_id, _ in conversations]

    def said(self, messages: Sequence[Any]) -> list[Said]:
        return [(event.author, event.content.parts[0].text) for event in messages]


def _event(invocation: str, said: Said) -> Event:
    author, text = said  # an agent is the author of what it says, by its name: "assistant"
    role = "user" if author == "user" else "model"
    content = types.Content(role=role, parts=[types.Part(text=text)])
    return Event(invocation_id=invocation, author=author, content=content)
