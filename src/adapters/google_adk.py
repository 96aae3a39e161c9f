"""A session service of Google ADK that keeps sessions as conversations of a store.

    runner = Runner(app_name="birds", agent=agent, session_service=AdkSessionService(store))

How sessions, events and states lie in the store: see google_adk_layout, and
docs/how-to/google-adk.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4
from weakref import WeakValueDictionary

from .extra import Extra

with Extra("google-adk"):
    from google.adk.events import Event
    from google.adk.sessions import BaseSessionService, Session
    from google.adk.sessions.base_session_service import GetSessionConfig, ListSessionsResponse

from . import google_adk_sessions as sessions
from .google_adk_layout import state_name
from .google_adk_sessions import SessionName, StoredSession, check_user
from .google_adk_states import SharedState
from .store_thread import Store, StoreThread, check_loop

T = TypeVar("T")

_Turn: TypeAlias = tuple[asyncio.AbstractEventLoop, SessionName]


class AdkSessionService(BaseSessionService):
    """Keeps sessions, their events and all states of ADK in a store.

    It does what ADK's DatabaseSessionService does, with two differences: events are given in the
    order in which they were appended, and `last_update_time` is the store's clock. Nothing is lost
    or doubled, whoever works on a session: a writer whose session was changed since it was read is
    refused, and nothing of its event is stored; state that sessions share is merged key by key.

    Not every store can do all: one with row security takes no `app:` state and lists no sessions
    of all users; see docs/how-to/google-adk.md.
    """

    def __init__(self, store: Store | StoreThread) -> None:
        """Make a service; nothing is sent.

        Args:
            store: an open store, for use in the event loop in which it was opened; or a
                StoreThread, for use from any event loop.
        """
        self._where = store
        self._turns: WeakValueDictionary[_Turn, asyncio.Lock] = WeakValueDictionary()

    async def create_session(
        self,
        *,
        app_name: str,
        user_id: str,
        state: dict[str, Any] | None = None,
        session_id: str | None = None,
    ) -> Session:
        """Start a session; its state, and what of it is the user's and the app's, are stored.

        Raises: AlreadyExistsError where the user has a session of this id in this app;
        InvalidConversation for names that cannot be stored (app and session_id come to at most 254
        characters) or more than about 1 MB of state; UnitOfWorkMisuse for `app:` state under row
        security.

        Round trips: 3; at most 7 more where others change `user:` or `app:` state at this moment.
        """
        name = SessionName(app_name, user_id, str(uuid4()) if session_id is None else session_id)
        return await self._do(lambda store: sessions.create(store, name, state))

    async def get_session(
        self,
        *,
        app_name: str,
        user_id: str,
        session_id: str,
        config: GetSessionConfig | None = None,
    ) -> Session | None:
        """Return a session, or None; with `after_timestamp` its events are all read, and sifted.

        Round trips: 3, and 1 for every 1,000 events; 1 where there is no such session.
        """
        name = SessionName(app_name, user_id, session_id)
        return await self._do(lambda store: sessions.get(store, name, config or GetSessionConfig()))

    async def list_sessions(
        self, *, app_name: str, user_id: str | None = None
    ) -> ListSessionsResponse:
        """Return sessions with their states and without events, the last to be active last.

        Without a user it reads the whole store, with all its messages, and is a task for
        maintenance; raises UnitOfWorkMisuse under row security. Its sessions do not know at which
        version they were read: get one before you append to it, else it is stale.

        Round trips: 2; 1 more for each further 1,000 conversations of the user, of other apps too,
        and 1 more for these; without a user as `export_conversations`.
        """
        if user_id is None:
            found = await self._do(lambda store: sessions.list_of_all(store, app_name))
        else:
            owner = check_user(user_id)
            found = await self._do(lambda store: sessions.list_of_user(store, app_name, owner))
        return ListSessionsResponse(sessions=found)

    async def delete_session(self, *, app_name: str, user_id: str, session_id: str) -> None:
        """Remove a session with its events; one that is gone is success.

        State of the user and of the app stays.

        Round trips: 1, and 1 for every 2,000 events.
        """
        name = SessionName(app_name, user_id, session_id)
        await self._do(lambda store: sessions.delete(store, name))

    async def get_user_state(self, *, app_name: str, user_id: str) -> dict[str, Any]:
        """Return the state of a user in an app, its keys without `user:`. Round trips: 1."""
        state = SharedState(owner=check_user(user_id), name=state_name(app_name))
        return (await self._do(state.read)).values

    async def append_event(self, session: Session, event: Event) -> Event:
        """Store an event and what it changes of the states, all of it or nothing.

        A partial event is not stored, nor is one that the session holds already. `temp:` state
        is set in the session alone.

        Raises: StaleSessionError where the session was changed since it was read: get it again,
        and append to that; SessionNotFoundError; ConversationNotAcceptingMessages where the
        conversation was closed or archived; InvalidMessage for an event of more than 10 MB;
        InvalidConversation for more than about 1 MB of state; UnitOfWorkMisuse for `app:` state
        under row security.

        Round trips: 1; at most 7 more where `user:` or `app:` state that it changes was changed by
        others since it was read; 4 more for a session that this service did not give.
        """
        if event.partial:
            return event
        name = SessionName(session.app_name, session.user_id, session.id)
        # Tasks that share a session object take turns, else they would refuse each other.
        turn = (asyncio.get_running_loop(), name)
        async with self._turns.setdefault(turn, asyncio.Lock()):
            self._apply_temp_state(session, event)
            event = self._trim_temp_delta_state(event)
            if any(known == event for known in session.events if known.id == event.id):
                return event
            written = await self._do(lambda store: sessions.append(store, name, session, event))
            if isinstance(session, StoredSession):
                session.as_read = written
            session.last_update_time = written.conversation.last_activity.timestamp()
            return self._commit_event_to_session(session, event)

    async def _do(self, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Do work in the event loop of the store."""
        if isinstance(self._where, StoreThread):
            return await self._where.do(work(self._where.store))
        check_loop(self._where)
        return await work(self._where)
