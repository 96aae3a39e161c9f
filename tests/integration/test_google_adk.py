"""The session service of Google ADK, asked the same as ADK's own, and read as people do."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attrs import evolve
from late_proxy import LateProxy
from store_fixtures import APPLICATION, draft, open_store, open_store_as
from wired_store import wired_store

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("google.adk", reason="needs the extra google-adk")

from google.adk.errors import StaleSessionError
from google.adk.errors.already_exists_error import AlreadyExistsError
from google.adk.errors.session_not_found_error import SessionNotFoundError
from google.adk.events import Event, EventActions
from google.adk.sessions import (
    BaseSessionService,
    DatabaseSessionService,
    InMemorySessionService,
    Session,
)
from google.adk.sessions.base_session_service import GetSessionConfig
from google.genai import types
from google_adk_events import EVENTS, LARGE, said

from conversation_store import (
    ConversationNotAcceptingMessages,
    ConversationStore,
    InvalidConversation,
    InvalidMessage,
    StoreClosed,
    UnitOfWorkMisuse,
    append_messages,
    close_conversation,
    delete_conversation,
    erase_user,
    export_conversations,
    find_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    purge_conversations,
    replace_messages,
    update_conversation,
)
from conversation_store.adapters import pages
from conversation_store.adapters.google_adk import AdkSessionService
from conversation_store.adapters.google_adk_layout import SOURCE, from_event
from conversation_store.adapters.store_thread import StoreThread

BIRDS: Any = {"app_name": "birds", "user_id": "ada"}


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ConversationStore]:
    """Give an empty store of each kind; without row security, for apps have state."""
    async with opened(request, request.param) as store:
        yield store


@asynccontextmanager
async def opened(request: pytest.FixtureRequest, kind: str) -> AsyncIterator[ConversationStore]:
    """Open an empty store."""
    if kind == "memory":
        async with ConversationStore.in_memory() as store:
            yield store
    else:
        dsn, migrated = (request.getfixturevalue(name) for name in ("dsn", "migrated"))
        async with open_store(dsn, "operational", migrated) as store:
            yield store


async def got(service: BaseSessionService, session_id: str = "s", **config: Any) -> Session:
    """Return a session that is there."""
    session = await service.get_session(
        **BIRDS, session_id=session_id, config=GetSessionConfig(**config)
    )
    assert session is not None
    return session


# The same as ADK's own ------------------------------------------------------------------------


class Played:
    """A session service to which a sequence of calls is played, and what it answered."""

    def __init__(self, service: BaseSessionService) -> None:
        self.service = service
        self.held: dict[int, Session] = {}

    async def play(self, call: tuple[Any, ...]) -> Any:
        """Do a call, and return its answer, or the class of its error."""
        kind, *values = call
        try:
            return await getattr(self, kind)(*values)
        except (AlreadyExistsError, SessionNotFoundError, StaleSessionError) as error:
            return type(error).__name__

    async def create(self, names: Any, session_id: str, state: Any, hold: int) -> Any:
        """Start a session and hold it."""
        session = await self.service.create_session(
            **names, session_id=session_id, state=deepcopy(state)
        )
        self.held[hold] = session
        return shown(session)

    async def get(self, names: Any, session_id: str, config: Any, hold: int) -> Any:
        """Read a session and hold it."""
        found = await self.service.get_session(
            **names, session_id=session_id, config=config and GetSessionConfig(**config)
        )
        if found is not None and config is None:
            self.held[hold] = found
        return found and shown(found)

    async def append(self, hold: int, event: Event) -> Any:
        """Append to a session that is held, whether it is stale or not."""
        session = self.held.get(hold)
        if session is None:
            return "nothing held"
        stored = await self.service.append_event(session, event.model_copy(deep=True))
        return stored.model_dump(), shown(session)

    async def append_fresh(self, names: Any, session_id: str, event: Event) -> Any:
        """Append to a session that was just read."""
        session = await self.service.get_session(**names, session_id=session_id)
        if session is None:
            return None
        stored = await self.service.append_event(session, event.model_copy(deep=True))
        return stored.model_dump(), shown(session)

    async def delete(self, names: Any, session_id: str) -> None:
        """Remove a session."""
        await self.service.delete_session(**names, session_id=session_id)

    async def list(self, names: Any, all_users: bool) -> Any:
        """List sessions."""
        user_id = None if all_users else names["user_id"]
        listed = await self.service.list_sessions(app_name=names["app_name"], user_id=user_id)
        return sorted((shown(session) for session in listed.sessions), key=str)

    async def user_state(self, names: Any) -> Any:
        """Read the state of a user."""
        return await self.service.get_user_state(**names)


def shown(session: Session) -> Any:
    """Return what is compared of a session: all but the time, which is of another clock."""
    return session.model_dump(exclude={"last_update_time"})


class Generator:
    """Makes calls that meet each other: few names, keys of all scopes, sessions that are stale."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.number = 0

    def calls(self, length: int, *, stale: bool = True) -> list[tuple[Any, ...]]:
        """Return calls; without stale ones, whoever appends has read before."""
        weights = {self.create: 5, self.get: 8, self.append: 12 * stale, self.append_fresh: 8}
        weights |= {self.delete: 1, self.list: 2, self.user_state: 3}
        kinds = self.chance.choices(list(weights), weights=list(weights.values()), k=length)
        return [(kind.__name__, *kind()) for kind in kinds]

    def create(self) -> tuple[Any, ...]:
        """Return what is said of a session that is created."""
        return self.names(), self.chance.choice("st"), self.state(), self.chance.randrange(4)

    def get(self) -> tuple[Any, ...]:
        """Return what is said of a session that is read."""
        configs: list[Any] = [None, None, None]
        configs += [{"num_recent_events": most} for most in (0, 1, 2, 99)]
        configs += [{"after_timestamp": float(self.number - 20)}]
        configs += [{"after_timestamp": 0.0, "num_recent_events": 2}]
        config = self.chance.choice(configs)
        return self.names(), self.chance.choice("st"), config, self.chance.randrange(4)

    def append(self) -> tuple[Any, ...]:
        """Return what is said of an event for a session that is held."""
        return self.chance.randrange(4), self.event()

    def append_fresh(self) -> tuple[Any, ...]:
        """Return what is said of an event for a session that is read for it."""
        return self.names(), self.chance.choice("st"), self.event()

    def delete(self) -> tuple[Any, ...]:
        """Return what is said of a session that is deleted."""
        return self.names(), self.chance.choice("st")

    def list(self) -> tuple[Any, ...]:
        """Return whose sessions are listed."""
        return self.names(), self.chance.random() < 0.5

    def user_state(self) -> tuple[Any, ...]:
        """Return whose state is read."""
        return (self.names(),)

    def names(self) -> Any:
        """Return an app and a user; mostly the same."""
        return {"app_name": self.chance.choice("AAAB"), "user_id": self.chance.choice("uuuv")}

    def state(self) -> dict[str, Any]:
        """Return a state, or a change of one."""
        values = [1, None, "text \u00dc", {"n": [1, {"m": None}]}, [], True, 1.5, ["user:x"]]
        keys = [
            self.chance.choice(["", "user:", "app:", "temp:"]) + self.chance.choice("xyz")
            for _ in range(self.chance.randrange(4))
        ]
        return {key: self.chance.choice(values) for key in keys}

    def event(self) -> Event:
        """Return an event, later than those before."""
        self.number += 1
        if self.chance.random() < 0.3:
            event = EVENTS[self.chance.choice(sorted(EVENTS.keys() - {"hostile"}))]
        else:
            event = said(f"words {self.number}", self.chance.choice(["user", "agent"]))
        made = event.model_copy(deep=True)
        made.id, made.timestamp = f"e-{self.number}", float(self.number)
        made.partial = self.chance.random() < 0.1 or None
        made.actions.state_delta = self.state()
        return made


async def compare(ours: Played, peer: Played, calls: list[tuple[Any, ...]]) -> set[str]:
    """Play the same calls to both, compare the answers, and return the kinds of them."""
    kinds = set()
    for number, call in enumerate(calls):
        answer = await ours.play(call)
        assert answer == await peer.play(call), (number, call)
        kinds.add(answer if isinstance(answer, str) else call[0])
    return kinds


@pytest.mark.parametrize("kind", ["memory", "postgres"])
@pytest.mark.parametrize("seed", range(4))
async def test_it_answers_as_the_database_service(
    request: pytest.FixtureRequest, kind: str, seed: int
) -> None:
    """To the same calls: sessions, states, events, and refusals of what is stale or gone."""
    calls = Generator(seed).calls(150)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened(request, kind))
        peer = await stack.enter_async_context(
            DatabaseSessionService("sqlite+aiosqlite:///:memory:")
        )
        kinds = await compare(Played(AdkSessionService(store)), Played(peer), calls)
    assert kinds >= {"create", "get", "append", "append_fresh", "delete", "list", "user_state"}
    assert kinds >= {"AlreadyExistsError", "StaleSessionError"}


@pytest.mark.parametrize("seed", range(4))
async def test_it_answers_as_the_service_in_memory(store: ConversationStore, seed: int) -> None:
    """To the same calls, but for stale sessions, which that one does not refuse."""
    calls = Generator(seed).calls(150, stale=False)
    kinds = await compare(Played(AdkSessionService(store)), Played(InMemorySessionService()), calls)
    assert kinds >= {"create", "get", "append_fresh", "delete", "list", "AlreadyExistsError"}


# What is stored ---------------------------------------------------------------------------------


async def test_events_of_every_kind_come_back_unchanged(store: ConversationStore) -> None:
    """In order, in another service; parts of an answer are not stored, `temp:` is not either."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s", state={"temp:a": 1, "b": 2})
    assert session.state == {"b": 2}
    events = [event.model_copy(deep=True) for event in [*EVENTS.values(), LARGE]]
    for event in events:
        await service.append_event(session, event)
    part = said("half", "agent", partial=True)
    assert await service.append_event(session, part) is part
    temporary = Event(actions=EventActions(state_delta={"temp:t": 1, "kept": 2}))
    await service.append_event(session, temporary)
    assert session.state["temp:t"] == 1
    assert session.events == [*events, temporary]
    found = await got(AdkSessionService(store))
    assert found.events == session.events
    assert found.events[-1].actions.state_delta == {"kept": 2}
    assert found.state == {
        "a": None,
        "user:b": [1, {"c": None}],
        "app:d": 1.5,
        "b": 2,
        "e": {},
        "kept": 2,
    }
    assert found.last_update_time == session.last_update_time


async def test_where_it_lies(store: ConversationStore) -> None:
    """A session is a conversation, an event a message; states are in metadata."""
    service = AdkSessionService(store)
    session = await service.create_session(
        **BIRDS, session_id="s", state={"a": 1, "user:b": 2, "app:c": 3}
    )
    await service.append_event(session, said("hello"))
    found = await list_conversations(store.unit_of_work(user_id="ada"))
    said_of = [
        (each.session_id, each.source, each.metadata, each.message_count)
        for each in sorted(found.conversations, key=lambda each: each.session_id)
    ]
    assert said_of == [
        ("birds/s", "google-adk", {"google_adk": {"state": {"a": 1}}}, 1),
        (
            "google-adk-state:birds",
            "google-adk-state",
            {"google_adk": {"state": {"b": 2}}},
            0,
        ),
    ]
    apps = await list_conversations(store.unit_of_work(user_id="google-adk-apps"))
    assert [(each.session_id, each.metadata) for each in apps.conversations] == [
        ("google-adk-state:birds", {"google_adk": {"state": {"c": 3}}})
    ]


async def test_state_of_any_kind(store: ConversationStore) -> None:
    """What JSON does not have becomes text, what the store does not have is kept all the same."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s")
    hostile = {"a": "nul \0 \ud800", "user:b": 10**400, "app:c": float("inf"), "d": 1e23}
    await service.append_event(session, Event(actions=EventActions(state_delta=hostile)))
    found = await got(service)
    assert found.state == hostile
    await service.append_event(found, Event(actions=EventActions(state_delta={"a": EVENTS})))
    assert (await got(service)).state["a"]["question"]["author"] == "user"
    found = await got(service)
    found.state["d"] = found.state["user:b"] = "set beside the events"
    await service.append_event(found, said("hello"))
    assert (await got(service)).state["d"] == 1e23


async def test_what_is_read_is_a_copy(store: ConversationStore) -> None:
    """Who changes it in place changes nothing that is stored, then or later."""
    service = AdkSessionService(store)
    given = {"list": [1], "user:list": [1], "app:list": [1]}
    session = await service.create_session(**BIRDS, session_id="s", state=given)
    session.state["list"].append(2)
    session.state["user:list"].append(2)
    session.state["app:list"].append(2)
    delta = {"other": 1, "user:other": 1, "app:other": 1}
    await service.append_event(session, Event(actions=EventActions(state_delta=delta)))
    found = await got(service)
    assert found.state == given | delta == {"list": [1], "user:list": [1], "app:list": [1]} | delta


async def test_what_the_host_does_with_a_session(store: ConversationStore) -> None:
    """Its metadata stays, its messages are shown; one that it closed takes nothing."""
    service = AdkSessionService(store)
    await service.create_session(**BIRDS, session_id="s", state={"a": 1})
    uow = store.unit_of_work(user_id="ada")
    chat = await find_conversation(uow, session_id="birds/s")
    assert chat is not None
    titled = {**(chat.metadata or {}), "title": "Herons"}
    await update_conversation(uow, conversation_id=chat.id, metadata=titled)
    await append_messages(uow, conversation_id=chat.id, drafts=[draft("hi"), draft("ho", "tool")])
    session = await got(service)
    assert [event.author for event in session.events] == ["user", "tool"]
    await service.append_event(session, Event(actions=EventActions(state_delta={"b": 2})))
    chat = await find_conversation(uow, session_id="birds/s")
    assert chat is not None
    assert chat.metadata == {"google_adk": {"state": {"a": 1, "b": 2}}, "title": "Herons"}
    await close_conversation(uow, conversation_id=chat.id)
    with pytest.raises(ConversationNotAcceptingMessages):
        await service.append_event(await got(service), said("hello"))


async def test_hostile_strings(store: ConversationStore, naughty_strings: list[str]) -> None:
    """As words, as keys and values of all states, and as names of apps and sessions."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s")
    strings = [*naughty_strings, "\0"]
    delta: dict[str, Any] = {
        scope + text: text for text in strings for scope in ("", "user:", "app:")
    }
    delta["surrogates"] = ["\ud800", {"in": "\udfff"}]
    event = Event(
        author="user",
        content=types.Content(parts=[types.Part(text=text) for text in [*strings, "\udfff"]]),
        actions=EventActions(state_delta=delta),
    )
    await service.append_event(session, event)
    found = await got(service)
    assert found.events == [event]
    kept = {key: value for key, value in delta.items() if not key.startswith("temp:")}
    assert found.state == kept
    assert len(kept) == len(delta) > 1_500
    for text in {text[:100] for text in naughty_strings[::8] if text}:
        names: Any = {"app_name": text, "user_id": text, "session_id": text}
        await service.create_session(**names)
        listed = await service.list_sessions(app_name=text, user_id=text)
        assert [(each.app_name, each.id) for each in listed.sessions] == [(text, text)]


async def test_sessions_move_with_an_export(store: ConversationStore) -> None:
    """Their records hold all of them: another store gives the same."""
    service = AdkSessionService(store)
    given = {"a": 1, "user:b": 2, "app:c": 3}
    session = await service.create_session(**BIRDS, session_id="s", state=given)
    for event in EVENTS.values():
        await service.append_event(session, event.model_copy(deep=True))
    async with ConversationStore.in_memory() as other:
        records = export_conversations(store.unit_of_work())
        await import_conversations(other.unit_of_work(), records=records)
        there = AdkSessionService(other)
        assert (await got(there)).model_dump() == (await got(service)).model_dump()
        for user_id in ("ada", None):
            names: Any = {"app_name": "birds", "user_id": user_id}
            listed = await there.list_sessions(**names)
            assert listed.model_dump() == (await service.list_sessions(**names)).model_dump()


# Names ------------------------------------------------------------------------------------------


async def test_apps_and_users_are_apart(store: ConversationStore) -> None:
    """Sessions of the same id are of one app and user each, whatever these are called."""
    service = AdkSessionService(store)
    names = [("a", "u"), ("a/b", "u"), ("a", "v"), ("%", "u")]
    for number, (app_name, user_id) in enumerate(names):
        await service.create_session(
            app_name=app_name, user_id=user_id, session_id="b/c", state={"n": number, "user:n": 1}
        )
    await service.create_session(app_name="a", user_id="u", session_id="c")
    for number, (app_name, user_id) in enumerate(names):
        found = await service.get_session(app_name=app_name, user_id=user_id, session_id="b/c")
        assert found is not None
        assert (found.app_name, found.user_id, found.id) == (app_name, user_id, "b/c")
        assert found.state["n"] == number
    listed = await service.list_sessions(app_name="a", user_id="u")
    assert [session.id for session in listed.sessions] == ["b/c", "c"]
    listed = await service.list_sessions(app_name="a")
    assert [(session.user_id, session.id) for session in listed.sessions] == [
        ("u", "b/c"),
        ("v", "b/c"),
        ("u", "c"),
    ]
    fresh = [await service.create_session(app_name="a", user_id="w") for _ in range(2)]
    assert len({session.id for session in fresh}) == 2


async def test_the_last_to_be_active_is_listed_last(store: ConversationStore) -> None:
    """By the store's clock; a session that was listed can be gone on with."""
    service = AdkSessionService(store)
    for name in ("one", "two", "three"):
        await service.create_session(**BIRDS, session_id=name)
    listed = (await service.list_sessions(**BIRDS)).sessions
    assert [session.id for session in listed] == ["one", "two", "three"]
    await service.append_event(listed[0], said("hello"))
    for user_id in ("ada", None):
        listed = (await service.list_sessions(app_name="birds", user_id=user_id)).sessions
        assert [session.id for session in listed] == ["two", "three", "one"]
        times = [session.last_update_time for session in listed]
        assert times == sorted(times)


async def test_names_that_cannot_be(store: ConversationStore) -> None:
    """Too long ones, and the user who holds the state of apps; nothing is stored."""
    service = AdkSessionService(store)
    await service.create_session(app_name="a", user_id="u", session_id="s" * 253)
    with pytest.raises(InvalidConversation, match="at most 255 characters, not 256"):
        await service.create_session(app_name="a", user_id="u", session_id="s" * 254)
    names: Any = {"app_name": "a", "user_id": "google-adk-apps"}
    for call in (
        lambda: service.create_session(**names),
        lambda: service.get_session(**names, session_id="s"),
        lambda: service.delete_session(**names, session_id="s"),
        lambda: service.list_sessions(**names),
        lambda: service.get_user_state(**names),
        lambda: service.append_event(Session(**names, id="s"), said("hello")),
    ):
        with pytest.raises(InvalidConversation, match="holds the state of apps"):
            await call()


# Who was faster ---------------------------------------------------------------------------------


async def test_a_stale_writer_is_refused_and_goes_again(store: ConversationStore) -> None:
    """Nothing of its event is stored; the session read again takes it; copies are as stale."""
    service = AdkSessionService(store)
    await service.create_session(**BIRDS, session_id="s", state={"a": 1, "user:a": 1, "app:a": 1})
    first, second = await got(service), await got(service)
    copies = [second.model_copy(), deepcopy(second), second.model_copy(update={"events": []})]
    await service.append_event(first, said("first"))
    delta = {"a": 2, "user:a": 2, "app:a": 2, "user:b": 2}
    event = said("second", actions=EventActions(state_delta=delta))
    for stale in (second, *copies):
        with pytest.raises(StaleSessionError, match="get it again"):
            await service.append_event(stale, event)
        assert stale.events == []
    found = await got(service)
    assert [each.content for each in found.events] == [first.events[0].content]
    assert found.state == {"a": 1, "user:a": 1, "app:a": 1}
    await service.append_event(found, event)
    await service.append_event(found, said("third"))
    assert (await got(service)).state == delta
    copy = found.model_copy()
    await service.append_event(copy, said("fourth"))
    assert len((await got(service)).events) == 4


async def test_a_copy_by_another_name_is_another_session(store: ConversationStore) -> None:
    """What is appended to it is not stored in the session that it was copied from."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s", state={"user:pin": 1})
    others: list[dict[str, str]] = [{"user_id": "bob"}, {"app_name": "trees"}, {"id": "t"}]
    event = said("not ada's", actions=EventActions(state_delta={"user:pin": 2}))
    for names in others:
        copy = session.model_copy(update=names, deep=True)
        with pytest.raises(SessionNotFoundError):
            await service.append_event(copy, event)
        await service.create_session(**(BIRDS | {"session_id": "s"} | _as_given(names)))
        await service.append_event(copy, said("their own"))
        found = await service.get_session(
            app_name=copy.app_name, user_id=copy.user_id, session_id=copy.id
        )
        assert found is not None
        assert [each.content for each in found.events] == [said("their own").content]
    found = await got(service)
    assert (found.events, found.state) == ([], {"user:pin": 1})


async def test_a_session_of_another_store_is_another_session(store: ConversationStore) -> None:
    """There its conversation's id may be that of any user."""
    elsewhere = AdkSessionService(ConversationStore.in_memory())
    service = AdkSessionService(store)
    bobs: Any = await service.create_session(app_name="birds", user_id="bob", session_id="t")
    adas: Any = await elsewhere.create_session(**BIRDS)
    same_id = evolve(adas.as_read.conversation, id=bobs.as_read.conversation.id)
    adas.as_read = evolve(adas.as_read, conversation=same_id)
    event = said("ada's", actions=EventActions(state_delta={"app:n": 1}))
    with pytest.raises(SessionNotFoundError):
        await service.append_event(adas, event)
    found = await service.get_session(app_name="birds", user_id="bob", session_id="t")
    assert found == bobs


def _as_given(names: dict[str, str]) -> dict[str, str]:
    return {{"id": "session_id"}.get(name, name): value for name, value in names.items()}


async def test_a_session_object_that_many_share(store: ConversationStore) -> None:
    """They take turns, so that none of them is refused."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s")
    events = [
        said(str(number), actions=EventActions(state_delta={f"n{number}": number}))
        for number in range(16)
    ]
    await asyncio.gather(*(service.append_event(session, event) for event in events))
    found = await got(service)
    assert sorted(event.id for event in found.events) == sorted(event.id for event in events)
    assert found.events == session.events
    assert found.state == session.state == {f"n{number}": number for number in range(16)}


async def test_an_event_is_not_stored_twice(store: ConversationStore) -> None:
    """Where the session holds it already; another one with the same id is another event."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s")
    event = said("hello", id="e")
    await service.append_event(session, event)
    await service.append_event(session, event.model_copy(deep=True))
    assert len((await got(service)).events) == 1
    await service.append_event(session, said("other", id="e"))
    assert len((await got(service)).events) == 2
    temporary = Event(actions=EventActions(state_delta={"temp:t": 1, "kept": 2}))
    sent_again = temporary.model_copy(deep=True)
    await service.append_event(session, temporary)
    await service.append_event(session, sent_again)
    assert len((await got(service)).events) == 3


async def test_sessions_that_the_service_did_not_give(store: ConversationStore) -> None:
    """Their last event tells whether they are stale."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s", state={"a": 1})
    plain = Session.model_validate(session.model_dump())
    await service.append_event(plain, said("one"))
    await service.append_event(plain, said("two", actions=EventActions(state_delta={"b": 2})))
    with pytest.raises(StaleSessionError):
        await service.append_event(Session(**BIRDS, id="s"), said("three"))
    found = await got(service)
    assert found.events == plain.events
    assert found.state == {"a": 1, "b": 2}
    with pytest.raises(SessionNotFoundError, match="Session other not found"):
        await service.append_event(Session(**BIRDS, id="other"), said("one"))


async def test_state_that_sessions_share_is_merged(store: ConversationStore) -> None:
    """Sessions that do not know of each other's changes keep them, whoever began the state."""
    service = AdkSessionService(store)
    sessions = [await service.create_session(**BIRDS, session_id=str(n)) for n in range(3)]
    for turn in range(2):
        for number, session in enumerate(sessions):
            delta = {f"{scope}:{turn}{number}": number for scope in ("user", "app")}
            await service.append_event(
                session, Event(actions=EventActions(state_delta=delta | {"user:same": number}))
            )
    found = await got(service, "0")
    expected = {f"{s}:{turn}{n}": n for s in ("user", "app") for turn in range(2) for n in range(3)}
    assert found.state == expected | {"user:same": 2}
    assert await service.get_user_state(**BIRDS) == {
        key.removeprefix("user:"): value
        for key, value in found.state.items()
        if key.startswith("user:")
    }


async def test_state_that_was_removed_begins_anew(store: ConversationStore) -> None:
    """A session that still knows it stores what it changes, and does not bring the rest back."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s", state={"user:old": 1})
    uow = store.unit_of_work(user_id="ada")
    state = await find_conversation(uow, session_id="google-adk-state:birds")
    assert state is not None
    await delete_conversation(uow, conversation_id=state.id)
    await service.append_event(session, Event(actions=EventActions(state_delta={"user:new": 2})))
    assert (await got(service)).state == {"user:new": 2}


async def test_sessions_that_are_gone(store: ConversationStore) -> None:
    """Deleted, nothing but shared state is left; created anew it is another one."""
    service = AdkSessionService(store)
    await service.delete_session(**BIRDS, session_id="s")
    session = await service.create_session(**BIRDS, session_id="s", state={"a": 1, "user:a": 1})
    await service.append_event(session, said("hello"))
    await service.delete_session(**BIRDS, session_id="s")
    assert await service.get_session(**BIRDS, session_id="s") is None
    with pytest.raises(SessionNotFoundError):
        await service.append_event(session, said("more"))
    again = await service.create_session(**BIRDS, session_id="s")
    assert (again.state, again.events) == ({"user:a": 1}, [])
    with pytest.raises(StaleSessionError):
        await service.append_event(session, said("more"))
    with pytest.raises(AlreadyExistsError, match="Session with id s already exists"):
        await service.create_session(**BIRDS, session_id="s", state={"user:a": 2})
    assert await service.get_user_state(**BIRDS) == {"a": 1}
    await erase_user(store.unit_of_work(user_id="ada"), user_id="ada")
    assert await service.get_user_state(**BIRDS) == {}


async def test_a_purge_of_sessions_leaves_the_states(store: ConversationStore) -> None:
    """A state gets no messages, so by time alone it goes, too, however lately it was set."""
    service = AdkSessionService(store)
    uow = store.unit_of_work()
    state = {"user:a": 1, "app:a": 1}
    await service.create_session(**BIRDS, session_id="old", state=state)
    between = datetime.now(UTC)
    new = await service.create_session(**BIRDS, session_id="new")
    await service.append_event(new, said("hello"))
    await purge_conversations(uow, inactive_since=between, source=SOURCE)
    assert await service.get_session(**BIRDS, session_id="old") is None
    assert (await got(service, "new")).state == state
    later = datetime.now(UTC) + timedelta(days=1)
    await purge_conversations(uow, inactive_since=later, source=SOURCE)
    assert await service.get_session(**BIRDS, session_id="new") is None
    assert await service.get_user_state(**BIRDS) == {"a": 1}
    await purge_conversations(uow, inactive_since=later)
    assert await service.get_user_state(**BIRDS) == {}


# Limits -----------------------------------------------------------------------------------------


async def test_more_than_a_store_takes(store: ConversationStore) -> None:
    """1 MB of state, 10 MB of an event; nothing is stored of what comes with it."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s", state={"user:a": "x" * 600_000})
    for key in ("user:b", "b"):
        delta = {key: "x" * 1_000_000}
        with pytest.raises((InvalidConversation, InvalidMessage)):
            await service.append_event(session, Event(actions=EventActions(state_delta=delta)))
    large = said("x" * 10_000_001)
    with pytest.raises(InvalidMessage, match="content"):
        await service.append_event(session, large)
    found = await got(service)
    assert (found.events, list(found.state)) == ([], ["user:a"])
    await service.append_event(session, said("small"))


async def test_long_sessions(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All events, the newest of them, those from a time on: they are read page by page."""
    monkeypatch.setattr(pages, "MAX_LIMIT", 10)
    service = AdkSessionService(store)
    await service.create_session(**BIRDS, session_id="s")
    uow = store.unit_of_work(user_id="ada")
    chat = await find_conversation(uow, session_id="birds/s")
    assert chat is not None
    events = [said(str(number), timestamp=float(number)) for number in range(25)]
    drafts = [from_event(event) for event in events]
    await append_messages(uow, conversation_id=chat.id, drafts=drafts)
    assert (await got(service)).events == events
    for most in (0, 1, 9, 10, 11, 20, 25, 99):
        found = (await got(service, num_recent_events=most)).events
        assert found == events[max(0, len(events) - most) :]
    assert (await got(service, after_timestamp=15.0)).events == events[15:]
    assert (await got(service, after_timestamp=9e9)).events == []
    found = (await got(service, after_timestamp=5.0, num_recent_events=3)).events
    assert found == events[-3:]


async def test_long_lists(store: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are read page by page; what is of other apps is left out."""
    monkeypatch.setattr(pages, "MAX_LIMIT", 2)
    service = AdkSessionService(store)
    for number in range(7):
        name = ("birds", "trees")[number % 2]
        await service.create_session(app_name=name, user_id="ada", session_id=str(number))
    listed = await service.list_sessions(**BIRDS)
    assert [session.id for session in listed.sessions] == ["0", "2", "4", "6"]


async def test_sessions_that_are_active_while_they_are_listed(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They move to the front of the list, so are on no page that is still to come; none is lost."""
    monkeypatch.setattr(pages, "MAX_LIMIT", 2)
    service = AdkSessionService(store)
    for number in range(7):
        await service.create_session(**BIRDS, session_id=str(number))
    oldest_first = iter("012")

    async def others_go_on(*args: Any, **values: Any) -> Any:
        page = await list_conversations(*args, **values)
        if active := next(oldest_first, None):
            await service.append_event(await got(service, active), said("hello"))
        return page

    monkeypatch.setattr(pages, "list_conversations", others_go_on)
    listed = await service.list_sessions(**BIRDS)
    assert sorted(session.id for session in listed.sessions) == list("0123456")


async def test_a_session_that_others_replace_while_it_is_read(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events are those of one moment."""
    monkeypatch.setattr(pages, "MAX_LIMIT", 10)
    service = AdkSessionService(store)
    await service.create_session(**BIRDS, session_id="s")
    uow = store.unit_of_work(user_id="ada")
    chat = await find_conversation(uow, session_id="birds/s")
    assert chat is not None
    drafts = [from_event(said(str(number))) for number in range(25)]
    await append_messages(uow, conversation_id=chat.id, drafts=drafts)
    others = [from_event(said(f"other {number}")) for number in range(25)]
    replacing = iter([others])

    async def others_replace(*args: Any, **values: Any) -> Any:
        page = await latest_messages(*args, **values)
        if drafts := next(replacing, None):
            uow = store.unit_of_work(user_id="ada")
            await replace_messages(uow, conversation_id=chat.id, drafts=drafts)
        return page

    monkeypatch.setattr(pages, "latest_messages", others_replace)
    found = await got(service)
    assert [from_event(event).content for event in found.events] == [
        draft.content for draft in others
    ]


async def test_a_session_that_goes_while_it_is_read(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there, then."""
    service = AdkSessionService(store)
    session = await service.create_session(**BIRDS, session_id="s")
    await service.append_event(session, said("hello"))

    async def too_late(*args: Any, **values: Any) -> Any:
        await service.delete_session(**BIRDS, session_id="s")
        return await latest_messages(*args, **values)

    monkeypatch.setattr(pages, "latest_messages", too_late)
    assert await service.get_session(**BIRDS, session_id="s") is None


# Other stores -----------------------------------------------------------------------------------


async def test_row_security_keeps_apps_from_having_state(dsn: str, migrated: set[str]) -> None:
    """A unit of work acts for one user then; all that is a user's own works."""
    options: Any = {"policies": True, "row_security": True}
    on_server = open_store_as(APPLICATION, dsn, "adk row security", migrated, **options)
    for opening in (ConversationStore.in_memory(row_security=True), on_server):
        async with opening as store:
            service = AdkSessionService(store)
            session = await service.create_session(**BIRDS, session_id="s", state={"user:a": 1})
            await service.append_event(
                session, Event(actions=EventActions(state_delta={"a": 1, "user:b": 2}))
            )
            other = await service.create_session(**BIRDS, session_id="t")
            with pytest.raises(UnitOfWorkMisuse, match="row security"):
                await service.append_event(
                    other, Event(actions=EventActions(state_delta={"app:a": 1}))
                )
            with pytest.raises(UnitOfWorkMisuse, match="row security"):
                await service.create_session(**BIRDS, state={"app:a": 1})
            with pytest.raises(UnitOfWorkMisuse, match="row security"):
                await service.list_sessions(app_name="birds")
            assert (await got(service)).state == {"a": 1, "user:a": 1, "user:b": 2}
            assert len((await service.list_sessions(**BIRDS)).sessions) == 2


async def test_another_event_loop_needs_a_thread(store: ConversationStore) -> None:
    """Such as the one that a runner makes for a call that is not async."""
    service = AdkSessionService(store)
    await service.create_session(**BIRDS, session_id="s")
    for call in (service.get_session(**BIRDS, session_id="s"), service.list_sessions(**BIRDS)):
        with pytest.raises(UnitOfWorkMisuse, match="StoreThread"):
            await asyncio.to_thread(asyncio.run, call)


def test_several_event_loops(dsn: str, migrated: set[str]) -> None:
    """A store in a thread of its own serves them all, one after the other and at once."""

    async def prepare() -> None:
        async with open_store(dsn, "operational", migrated):
            pass

    asyncio.run(prepare())
    thread = StoreThread(ConversationStore.connect(dsn, min_size=1, max_size=4))
    service = AdkSessionService(thread)
    with pytest.raises(StoreClosed, match="not entered"):
        asyncio.run(service.get_user_state(**BIRDS))
    with thread:
        session = asyncio.run(service.create_session(**BIRDS, session_id="s"))
        for text in ("one", "two"):
            asyncio.run(service.append_event(session, said(text)))
        assert asyncio.run(got(service)).events == session.events

        async def talk(name: str) -> list[Event]:
            session = await service.create_session(**BIRDS, session_id=name)
            await asyncio.gather(*(service.append_event(session, said(str(n))) for n in range(4)))
            assert (await got(service, name)).events == session.events
            return session.events

        with ThreadPoolExecutor() as pool:
            work = [talk(str(number)) for number in range(8)]
            assert [len(events) for events in pool.map(asyncio.run, work)] == [4] * 8
    with pytest.raises(StoreClosed):
        asyncio.run(service.get_user_state(**BIRDS))


@pytest.mark.parametrize("way", ["lose", "keep"])
@pytest.mark.parametrize("keys", [[], ["a"], ["user:a"], ["a", "user:a", "app:a"]], ids=str)
async def test_an_answer_that_was_lost(
    dsn: str, migrated: set[str], way: str, keys: list[str]
) -> None:
    """The event is stored once, with what it changes, and the session can be gone on with."""
    async with open_store(dsn, "operational", migrated) as direct, LateProxy(dsn) as proxy:
        options: Any = {"min_size": 1, "max_size": 4}
        async with ConversationStore.connect(proxy.dsn, **options) as store:
            service = AdkSessionService(store)
            given = {"user:z": 1, "app:z": 1}
            session = await service.create_session(**BIRDS, session_id="s", state=given)
            delta = dict.fromkeys(keys, 1)
            getattr(proxy, way)()
            await service.append_event(
                session, said("one", actions=EventActions(state_delta=delta))
            )
            if way == "keep":
                await proxy.deliver()
            await service.append_event(session, said("two"))
        found = await got(AdkSessionService(direct))
        assert found.events == session.events
        assert len(found.events) == 2
        assert found.state == given | delta


# Round trips ------------------------------------------------------------------------------------


async def test_round_trips(dsn: str, migrated: set[str]) -> None:
    """As the docstrings say them, counted between the driver and the server."""
    # To prepare a statement, or to forget those that were, is a trip of its own, now and then.
    async with wired_store(dsn, migrated, prepare_threshold=None) as wired:
        service = AdkSessionService(wired.store)

        async def trips(work: Awaitable[Any]) -> int:
            with wired.proxy.count() as wire:
                await work
            return wire.round_trips

        def event(*keys: str) -> Event:
            return said("hello", actions=EventActions(state_delta=dict.fromkeys(keys, 1)))

        everything = event("a", "user:a", "app:a")
        assert await trips(service.get_session(**BIRDS, session_id="s")) == 1
        assert await trips(service.create_session(**BIRDS, session_id="s", state={"app:b": 1})) == 3
        session = await got(service)
        assert await trips(service.append_event(session, event())) == 1
        assert await trips(service.append_event(session, event("a"))) == 1
        assert await trips(service.append_event(session, everything)) == 1
        assert await trips(service.get_session(**BIRDS, session_id="s")) == 4
        assert await trips(service.list_sessions(**BIRDS)) == 2
        assert await trips(service.get_user_state(**BIRDS)) == 1
        other = await service.create_session(**BIRDS, session_id="t")
        await service.append_event(session, event("user:b", "app:b"))
        assert await trips(service.append_event(other, event("user:c", "app:c"))) == 7
        assert await trips(service.append_event(other, event("user:d", "app:d"))) == 1
        assert await trips(service.append_event(other, event("a", "temp:a"))) == 1
        plain = Session.model_validate((await got(service)).model_dump())
        assert await trips(service.append_event(plain, event("a"))) == 5
        assert await trips(service.delete_session(**BIRDS, session_id="s")) == 2
        assert await trips(service.delete_session(**BIRDS, session_id="s")) == 1
