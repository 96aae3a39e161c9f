"""Sessions of Google ADK, read from a store and written to it; in the event loop of the store."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from datetime import datetime
from typing import Any, Final
from uuid import uuid4
from weakref import WeakKeyDictionary

from attrs import evolve, frozen
from google.adk.errors import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event
from google.adk.sessions import Session
from google.adk.sessions.base_session_service import GetSessionConfig
from pydantic import PrivateAttr

from ..domain.conversation import Conversation, ConversationChanges, NewConversation
from ..domain.errors import (
    ConcurrentUpdate,
    ConversationNotFound,
    DuplicateSession,
    InvalidConversation,
)
from ..domain.message import Message
from ..domain.unit import Pending
from ..service_layer.conversations import find_conversation
from ..service_layer.removal import delete_conversation
from ..service_layer.transfer import export_conversations
from ..service_layer.unit_of_work import AsyncUnitOfWork
from .google_adk_layout import (
    APP_USER,
    SOURCE,
    from_event,
    merged_state,
    session_name,
    split_session_name,
    split_state,
    state_name,
    state_of,
    to_event,
    with_state,
)
from .google_adk_states import Shared, SharedState, read_shared, write_shared
from .pages import all_conversations, newest
from .store_thread import Store

_STALE: Final = (
    "the session was changed in the store since it was read: get it again, and append to that"
)


def check_user(user_id: str) -> str:
    """Return a user that may have sessions. Raises: InvalidConversation."""
    if user_id == APP_USER:
        raise InvalidConversation(field="user_id", reason="is the one that holds the state of apps")
    return user_id


@frozen
class SessionName:
    """Which session. Raises: InvalidConversation for one that there cannot be."""

    app_name: str
    user_id: str
    session_id: str
    """ADK's."""

    def __attrs_post_init__(self) -> None:
        """Check it."""
        check_user(self.user_id)

    @property
    def in_store(self) -> str:
        """The session_id of the conversation."""
        return session_name(self.app_name, self.session_id)

    async def find(self, store: Store) -> Conversation | None:
        """Return its conversation. Round trips: 1."""
        unit = store.unit_of_work(user_id=self.user_id)
        return await find_conversation(unit, session_id=self.in_store)

    def not_found(self) -> SessionNotFoundError:
        """Return the error that says that there is none."""
        return SessionNotFoundError(f"Session {self.session_id} not found.")


@frozen(kw_only=True)
class AsRead:
    """What a session was in the store when it was read, or last written."""

    conversation: Conversation
    shared: Shared
    store: str
    """The name of the store; in another one the same id is another conversation's."""

    def is_of(self, store: Store, name: SessionName) -> bool:
        """Whether it is that session there, and not what a copy of another one has kept."""
        found = self.conversation.user_id, self.conversation.session_id
        return (self.store, *found) == (_name_of(store), name.user_id, name.in_store)


_names: WeakKeyDictionary[Store, str] = WeakKeyDictionary()


def _name_of(store: Store) -> str:
    """Return a name that only this store has; copies of sessions hold it, not the store."""
    return _names.setdefault(store, str(uuid4()))


class StoredSession(Session):
    """A session that knows at which version it was read; copies of it know, too."""

    _as_read: AsRead | None = PrivateAttr(default=None)

    @property
    def as_read(self) -> AsRead | None:
        """What it was in the store; None where that is not known."""
        return self._as_read

    @as_read.setter
    def as_read(self, value: AsRead) -> None:
        self._as_read = value


async def create(store: Store, name: SessionName, state: dict[str, Any] | None) -> StoredSession:
    """Start a session. Raises: AlreadyExistsError. Round trips: 3."""
    given = split_state(state)
    new = NewConversation(
        user_id=name.user_id,
        session_id=name.in_store,
        source=SOURCE,
        metadata=with_state(None, given.session),
    )
    shared = await read_shared(store, name.app_name, name.user_id)
    try:
        started, shared = await write_shared(
            store, shared, given, lambda uow: uow.conversations.add(new), about=new.session_id
        )
    except DuplicateSession as error:
        raise AlreadyExistsError(f"Session with id {name.session_id} already exists.") from error
    conversation, _ = await started
    return _session(name, _as_read(store, conversation, shared))


async def get(store: Store, name: SessionName, config: GetSessionConfig) -> StoredSession | None:
    """Return a session. Round trips: 3, and 1 for every 1,000 events."""
    found = await name.find(store)
    if found is None:
        return None
    try:
        events = await _events(store, found, config)
    except ConversationNotFound:  # deleted since it was found
        return None
    shared = await read_shared(store, name.app_name, name.user_id)
    return _session(name, _as_read(store, found, shared), events)


async def list_of_user(store: Store, app_name: str, user_id: str) -> list[Session]:
    """Return the sessions of a user. Round trips: 1, and those of `all_conversations`."""
    found = await all_conversations(lambda: store.unit_of_work(user_id=user_id))
    of_user = SharedState(owner=user_id, name=state_name(app_name))
    for each in found:
        if each.session_id == of_user.name:
            of_user = evolve(of_user, conversation=each)
    of_app = await SharedState(owner=APP_USER, name=of_user.name).read(store)
    return _ordered(
        _session(name, _as_read(store, each, (of_app, of_user)))
        for each in found
        if (name := _name_in(app_name, user_id, each.session_id)) is not None
    )


async def list_of_all(store: Store, app_name: str) -> list[Session]:
    """Return the sessions of all users. Round trips: of an export of the store."""
    found: list[tuple[SessionName, dict[str, Any], str]] = []
    shared: dict[str, dict[str, Any]] = {}
    async with aclosing(export_conversations(store.unit_of_work())) as records:
        async for record in records:
            user_id, state = record["user_id"], state_of(record.get("metadata"))
            if record["session_id"] == state_name(app_name):
                shared[user_id] = state
            elif (name := _name_in(app_name, user_id, record["session_id"])) is not None:
                found.append((name, state, record.get("last_activity", "")))
    return _ordered(
        Session(
            app_name=app_name,
            user_id=name.user_id,
            id=name.session_id,
            state=merged_state(
                app=shared.get(APP_USER, {}), user=shared.get(name.user_id, {}), session=state
            ),
            last_update_time=datetime.fromisoformat(last_activity).timestamp(),
        )
        for name, state, last_activity in found
    )


async def delete(store: Store, name: SessionName) -> None:
    """Remove a session, if there is one. Round trips: 1, and 1 for every 2,000 events."""
    found = await name.find(store)
    if found is not None:
        unit = store.unit_of_work(user_id=name.user_id)
        await delete_conversation(unit, conversation_id=found.id)


async def append(store: Store, name: SessionName, session: Session, event: Event) -> AsRead:
    """Store an event, and what it changes; return what its session is then.

    Raises: StaleSessionError, SessionNotFoundError.

    Round trips: 1; at most 7 more where shared state that changes is not as it was read, and 4 for
    a session that does not know as what it was read.
    """
    as_read = session.as_read if isinstance(session, StoredSession) else None
    if as_read is None or not as_read.is_of(store, name):
        as_read = await _meet(store, name, session)
    try:
        return await _append(store, as_read, event)
    except ConversationNotFound as error:
        if await name.find(store) is None:
            raise name.not_found() from error
        raise StaleSessionError(_STALE) from error  # deleted, and created anew
    except ConcurrentUpdate as error:
        raise StaleSessionError(_STALE) from error


async def _append(store: Store, as_read: AsRead, event: Event) -> AsRead:
    conversation = as_read.conversation
    draft = from_event(event)
    change = split_state(event.actions.state_delta)

    def own(uow: AsyncUnitOfWork) -> tuple[Pending[list[Message]], Pending[Conversation] | None]:
        appended = uow.messages.append(
            conversation.id, [draft], expected_version=conversation.version
        )
        if not change.session:
            return appended, None
        state = state_of(conversation.metadata) | change.session
        return appended, uow.conversations.update(
            conversation.id,
            ConversationChanges(metadata=with_state(conversation.metadata, state)),
            expected_version=conversation.version + 1,
        )

    (appended, updated), shared = await write_shared(
        store, as_read.shared, change, own, about=conversation.id
    )
    if updated is not None:
        return evolve(as_read, conversation=await updated, shared=shared)
    [message] = await appended
    conversation = evolve(
        conversation,
        version=conversation.version + 1,
        message_count=message.position,
        last_activity=message.timestamp,
    )
    return evolve(as_read, conversation=conversation, shared=shared)


async def _meet(store: Store, name: SessionName, session: Session) -> AsRead:
    """Return what a session is in the store, if its last event is the last one there."""
    found = await name.find(store)
    if found is None:
        raise name.not_found()
    last = await _newest(store, found, 1)
    if [to_event(each).id for each in last] != [each.id for each in session.events[-1:]]:
        raise StaleSessionError(_STALE)
    shared = await read_shared(store, name.app_name, name.user_id)
    return _as_read(store, found, shared)


async def _events(
    store: Store, conversation: Conversation, config: GetSessionConfig
) -> list[Event]:
    most, after = config.num_recent_events, config.after_timestamp
    if most == 0:
        return []
    wanted = conversation.message_count if most is None or after is not None else most
    events = list(map(to_event, await _newest(store, conversation, wanted)))
    if after is not None:
        events = [event for event in events if event.timestamp >= after]
    return events if most is None else events[-most:]


async def _newest(store: Store, conversation: Conversation, most: int) -> list[Message]:
    """Return the newest messages that a conversation had when it was read, oldest first."""
    if not conversation.message_count:
        return []
    return await newest(
        lambda: store.unit_of_work(user_id=conversation.user_id),
        conversation.id,
        most,
        before=conversation.message_count + 1,
    )


def _name_in(app_name: str, user_id: str, in_store: str) -> SessionName | None:
    """Return which session of an app a conversation is; None where it is none."""
    found = split_session_name(in_store)
    if found is None or found[0] != app_name or user_id == APP_USER:
        return None
    return SessionName(app_name, user_id, found[1])


def _as_read(store: Store, conversation: Conversation, shared: Shared) -> AsRead:
    return AsRead(conversation=conversation, shared=shared, store=_name_of(store))


def _session(name: SessionName, as_read: AsRead, events: Iterable[Event] = ()) -> StoredSession:
    of_app, of_user = as_read.shared
    session = StoredSession(
        app_name=name.app_name,
        user_id=name.user_id,
        id=name.session_id,
        state=merged_state(
            app=of_app.values,
            user=of_user.values,
            session=state_of(as_read.conversation.metadata),
        ),
        events=list(events),
        last_update_time=as_read.conversation.last_activity.timestamp(),
    )
    session.as_read = as_read
    return session


def _ordered(sessions: Iterable[Session]) -> list[Session]:
    return sorted(sessions, key=lambda each: (each.last_update_time, each.user_id, each.id))
