"""Sessions and states that Google ADK stored, moved by the script of examples/moving."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from moving_sources import Ended, database_of_a_peer, rows_of, run, sqlalchemy_url

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("google.adk", reason="needs the extra google-adk")
    pytest.importorskip("asyncpg", reason="needs openai-agents[sqlalchemy]")

from google.adk.events import Event, EventActions
from google.adk.sessions import BaseSessionService, DatabaseSessionService, Session
from google.adk.sessions.migration import migration_runner
from google.adk.sessions.schemas import v0
from google.adk.sessions.sqlite_session_service import SqliteSessionService
from google_adk_events import EVENTS, LARGE, said
from sqlalchemy import create_engine

from conversation_store import ConversationStore, export_conversations
from conversation_store.adapters.google_adk import AdkSessionService

SCRIPT = "from_google_adk.py"


class Name(NamedTuple):
    """Which session."""

    app_name: str
    user_id: str
    session_id: str


@pytest.fixture
def peer(dsn: str) -> Iterator[str]:
    """Give an empty database of the peer's."""
    with database_of_a_peer(dsn) as made:
        yield made


@pytest.fixture(params=["postgres", "sqlite"])
async def service(
    request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[DatabaseSessionService]:
    """Give a service of ADK on an empty database."""
    url = f"sqlite+aiosqlite:///{tmp_path / 'peer.db'}"
    if request.param == "postgres":
        url = sqlalchemy_url(request.getfixturevalue("peer"), "asyncpg")
    async with DatabaseSessionService(url) as made:
        yield made


def url_of(service: DatabaseSessionService) -> str:
    """Return the URL that a service was made with."""
    return service.db_engine.url.render_as_string(hide_password=False)


async def move(source: object, *arguments: object) -> Ended:
    """Run the script, in a thread, for it has an event loop of its own."""
    return await asyncio.to_thread(run, SCRIPT, source, *arguments)


async def start(
    service: BaseSessionService, name: Name, events: Sequence[Event], state: dict[str, Any]
) -> None:
    """Let a service keep a session."""
    session = await service.create_session(**name._asdict(), state=state)
    for event in events:
        await service.append_event(session, event.model_copy(deep=True))


async def given(service: BaseSessionService, names: Sequence[Name]) -> list[Any]:
    """Return what a service gives for sessions: their events, and their state with all shared."""
    found: list[Any] = []
    for name in names:
        session = await service.get_session(**name._asdict())
        assert session is not None
        found.append((session.events, session.state))
    return found


def events_of(dialogue: dict[str, Any]) -> list[Event]:
    """Return a dialogue as events."""
    authors = {"user": "user", "assistant": "agent", "tool": "tool"}
    return [said(each["content"], authors[each["role"]]) for each in dialogue["messages"]]


@pytest.mark.data
async def test_what_the_database_service_stored(
    service: DatabaseSessionService,
    postgres: ConversationStore,
    dsn: str,
    peer: str,
    dialogues: list[dict[str, Any]],
) -> None:
    """Ours gives all events and states as theirs did, and goes on; there nothing has changed."""
    is_postgres = service.db_engine.dialect.name == "postgresql"
    names = [
        Name("a/b %", dialogue["user_id"], dialogue["session_id"]) for dialogue in dialogues[:10]
    ]
    for name, dialogue in zip(names, dialogues, strict=False):
        await start(service, name, events_of(dialogue), {})
    kinds = [event for name, event in EVENTS.items() if name != "hostile" or not is_postgres]
    at_once = [said(f"{number}", timestamp=1_700_000_000.25) for number in range(9)]
    for name, events in (
        (Name("birds", "ada", "every kind"), [*kinds, LARGE]),
        (Name("birds", "ada", "at once"), at_once),
        (Name("birds", "bob/ü", "none"), []),
    ):
        await start(service, name, events, {"plain": [1, {"a": None}], "user:n": 1, "app:x": "y"})
        names.append(name)
    await start(service, Name("birds", "eve", "gone"), [], {"user:kept": {"a": [1.5]}})
    await service.delete_session(app_name="birds", user_id="eve", session_id="gone")
    theirs = await given(service, names)
    before = rows_of(peer)

    moved = await move(url_of(service), "--dsn", dsn)

    assert moved.code == 0, moved.err
    states = 2 + len({name[:2] for name in names}) + 1
    assert moved.out.splitlines()[-1] == (
        f"checked {len(names) + states} sessions: {len(names) + states} the same there and here"
    )
    ours = AdkSessionService(postgres)
    assert await given(ours, names) == theirs
    assert await ours.get_user_state(app_name="birds", user_id="eve") == {"kept": {"a": [1.5]}}
    assert rows_of(peer) == before
    assert bool(before) is is_postgres
    sources = [record async for record in export_conversations(postgres.unit_of_work())]
    assert {record.get("source") for record in sources} == {"google-adk", "google-adk-state"}
    [record] = [each for each in sources if each["session_id"] == "birds/at once"]
    assert {each.get("timestamp") for each in record["messages"]} == {"2023-11-14T22:13:20.250000Z"}

    session = await ours.get_session(**names[0]._asdict())
    assert session is not None
    more = said("and more", actions=EventActions(state_delta={"user:n": 2, "app:x": "z"}))
    await ours.append_event(session, more)
    [(events, state)] = await given(ours, names[:1])
    assert events == [*theirs[0][0], more]
    assert (state["user:n"], state["app:x"]) == (2, "z")


async def test_run_again(
    service: DatabaseSessionService, postgres: ConversationStore, dsn: str
) -> None:
    """What went on there comes, with its states; what went on here stays."""
    names = [
        Name("birds", "ada", "still"),
        Name("birds", "bob", "there"),
        Name("birds", "eve", "here"),
    ]
    for name in names:
        await start(service, name, [EVENTS["question"]], {"a": 1, "user:n": 1})
    assert (await move(url_of(service), "--dsn", dsn)).code == 0
    ours = AdkSessionService(postgres)
    for there, name in ((service, names[1]), (ours, names[2])):
        session = await there.get_session(**name._asdict())
        assert session is not None
        changed = EventActions(state_delta={"a": 2, "user:n": 2})
        await there.append_event(session, said("more", actions=changed))
    expected = [
        *await given(service, names[:2]),
        *await given(ours, names[2:]),
    ]

    again = await move(url_of(service), "--dsn", dsn)

    assert (again.code, again.out.splitlines()) == (
        0,
        [
            "moved 0 sessions with 0 items, and 2 anew that went on there; 5 were here",
            "checked 7 sessions: 5 the same there and here, 2 went on here",
        ],
    )
    assert await given(ours, names) == expected


async def test_a_state_that_began_there_and_here_is_named(
    service: DatabaseSessionService, postgres: ConversationStore, dsn: str
) -> None:
    """Neither is taken for the other."""
    ours = AdkSessionService(postgres)
    await start(service, Name("birds", "ada", "there"), [], {"user:n": 1})
    await start(ours, Name("birds", "ada", "here"), [], {"user:n": 2})

    moved = await move(url_of(service), "--dsn", dsn)

    assert moved.code == 1
    assert "session_id=None) differs there and here" in moved.err
    assert await ours.get_user_state(app_name="birds", user_id="ada") == {"n": 2}


async def test_pickles_are_for_adk_to_bring_up_to_date(
    postgres: ConversationStore, dsn: str, tmp_path: Path
) -> None:
    """The old schema is refused, with what to do; done, all that it gave is moved."""
    old, new = (tmp_path / name for name in ("old.db", "new.db"))
    engine = create_engine(f"sqlite:///{old}")
    v0.Base.metadata.create_all(engine)
    engine.dispose()
    name = Name("birds", "ada", "s")
    async with DatabaseSessionService(f"sqlite+aiosqlite:///{old}") as service:
        changed = EventActions(state_delta={"a": 1, "user:b": 2})
        events = [EVENTS["question"], EVENTS["call"], EVENTS["response"]]
        await start(service, name, [*events, said("so", "agent", actions=changed)], {})
        theirs = await given(service, [name])

    refused = await move(f"sqlite+aiosqlite:///{old}", "--dsn", dsn)

    assert (refused.code, refused.out) == (1, "")
    assert refused.err.startswith("The sessions cannot be read: they are of ADK's schema 0; bring")
    assert "adk migrate session" in refused.err
    assert "\n" not in refused.err

    migration_runner.upgrade(f"sqlite:///{old}", f"sqlite:///{new}")
    moved = await move(f"sqlite+aiosqlite:///{new}", "--dsn", dsn)

    assert moved.code == 0, moved.err
    assert await given(AdkSessionService(postgres), [name]) == theirs


async def test_a_file_of_the_sqlite_service(
    postgres: ConversationStore, dsn: str, tmp_path: Path
) -> None:
    """It has the same tables, so its URL is enough; the file is left as it is."""
    path = tmp_path / "peer.db"
    name = Name("birds", "ada", "s")
    service = SqliteSessionService(str(path))
    kinds = [event for key, event in EVENTS.items() if key != "hostile"]
    await start(service, name, kinds, {"a": 1, "user:b": [None], "app:c": {}})
    theirs = await given(service, [name])
    with closing(sqlite3.connect(path)) as file:
        before = list(file.iterdump())

    moved = await move(f"sqlite+aiosqlite:///{path}", "--dsn", dsn)

    assert moved.code == 0, moved.err
    assert await given(AdkSessionService(postgres), [name]) == theirs
    with closing(sqlite3.connect(path)) as file:
        assert list(file.iterdump()) == before


@pytest.mark.parametrize(
    ("source", "said_first"),
    [
        ("{peer}", 'The sessions cannot be read: relation "app_states" does not exist'),
        ("sqlite+aiosqlite:///no.db", "The sessions cannot be read: there is no file no.db"),
        ("no.db", "The sessions cannot be read: Could not parse"),
    ],
)
def test_what_cannot_be_done_is_one_line(source: str, said_first: str, dsn: str, peer: str) -> None:
    """It says what is wrong, without a traceback."""
    ended = run(SCRIPT, source.format(peer=sqlalchemy_url(peer, "asyncpg")), "--dsn", dsn)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(said_first)
    assert "\n" not in ended.err.strip()


def test_sessions_are_compared_as_a_whole() -> None:
    """What `given` compares has a meaning for these classes: other events are not equal."""
    assert said("a") != said("b")
    assert Session(id="a", app_name="b", user_id="c").events == []
