"""Sessions that the OpenAI Agents SDK stored, moved by the script of examples/moving."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from moving_sources import SCRIPTS, Ended, database_of_a_peer, rows_of, run, sqlalchemy_url

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("agents", reason="needs the extra openai-agents")
    pytest.importorskip("asyncpg", reason="needs openai-agents[sqlalchemy]")

import moving
from agents import Agent, Runner, SQLiteSession, function_tool, set_tracing_disabled
from agents.extensions.memory import AdvancedSQLiteSession, AsyncSQLiteSession, SQLAlchemySession
from agents_items import ITEMS
from agents_stub import Stub
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from conversation_store import (
    ConversationStore,
    export_conversations,
    find_conversation,
    messages_after,
)
from conversation_store.adapters.openai_agents import AgentsSession

set_tracing_disabled(True)

SCRIPT = "from_openai_agents.py"
COMPARE = moving.Move._compare
OpenSession = Callable[[str], Any]


@pytest.fixture
def peer(dsn: str) -> Iterator[str]:
    """Give an empty database of the peer's."""
    with database_of_a_peer(dsn) as made:
        yield made


@function_tool
def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


async def move(source: object, *arguments: object) -> Ended:
    """Run the script, in a thread, for it has an event loop of its own."""
    return await asyncio.to_thread(run, SCRIPT, source, *arguments)


def items_of(dialogue: dict[str, Any]) -> list[Any]:
    """Return a dialogue as items; what a tool gave is the output of a call."""
    items: list[Any] = []
    for number, message in enumerate(dialogue["messages"]):
        if message["role"] == "tool":
            call = {"call_id": f"c_{number}", "name": "f", "arguments": "{}"}
            items.append({"type": "function_call", **call})
            output = {"call_id": f"c_{number}", "output": message["content"]}
            items.append({"type": "function_call_output", **output})
        else:
            items.append({"role": message["role"], "content": message["content"]})
    return items


async def fill(
    opened: OpenSession, dialogues: Sequence[dict[str, Any]], strings: Sequence[str]
) -> list[str]:
    """Let sessions of the SDK store items of all kinds; return their names."""
    names = [dialogue["session_id"] for dialogue in dialogues]
    for dialogue in dialogues:
        await opened(dialogue["session_id"]).add_items(items_of(dialogue))
    await opened("every kind").add_items(ITEMS)
    await opened(strings[-1]).add_items([{"role": "user", "content": text} for text in strings])
    agent: Agent[Any] = Agent(name="a", model=Stub(), tools=[weather])
    for question in ("How is the weather?", "And what is a heron?"):
        await Runner.run(agent, question, session=opened("run"))

    async def write(number: int) -> None:
        for part in range(3):
            await opened("many").add_items(
                [{"role": "user", "content": f"{number}/{part}/{n}"} for n in range(3)]
            )

    await asyncio.gather(*map(write, range(5)))
    popped = opened("popped")
    await popped.add_items(ITEMS[:3])
    await popped.pop_item()
    return [*names, "every kind", strings[-1], "run", "many", "popped"]


async def given(opened: OpenSession, names: Sequence[str]) -> dict[str, list[Any]]:
    """Return what sessions give."""
    return {name: list(await opened(name).get_items()) for name in names}


def ours(store: ConversationStore, user_id: str = "ada") -> OpenSession:
    """Return how a session of ours is made."""
    return lambda name: AgentsSession(name, store=store, user_id=user_id)


def of_engine(engine: AsyncEngine) -> OpenSession:
    """Return how a SQLAlchemySession is made."""
    return lambda name: SQLAlchemySession(name, engine=engine, create_tables=True)


@pytest.mark.data
async def test_what_a_sqlalchemy_session_stored_on_postgresql(
    postgres: ConversationStore,
    dsn: str,
    peer: str,
    dialogues: list[dict[str, Any]],
    naughty_strings: list[str],
) -> None:
    """Ours gives all of it as theirs did, at its times; there nothing has changed."""
    url = sqlalchemy_url(peer, "asyncpg")
    engine = create_async_engine(url)
    opened = of_engine(engine)
    names = await fill(opened, dialogues[:150], naughty_strings)
    theirs = await given(opened, names)
    before = rows_of(peer)

    moved = await move(url, "--user-id", "ada", "--dsn", dsn)

    assert moved.code == 0, moved.err
    assert moved.out.splitlines() == [
        f"moved {len(names)} sessions with {sum(map(len, theirs.values())):,} items",
        f"checked {len(names)} sessions: {len(names)} the same there and here",
    ]
    assert await given(ours(postgres), names) == theirs
    assert rows_of(peer) == before
    await engine.dispose()
    with psycopg.connect(peer) as connection:
        stored = connection.execute(
            "SELECT session_id, created_at::timestamptz FROM agent_messages "
            'ORDER BY session_id COLLATE "C", created_at, id'
        ).fetchall()
    exported = [record async for record in export_conversations(postgres.unit_of_work())]
    assert [
        (record["session_id"], datetime.fromisoformat(message.get("timestamp", "")))
        for record in exported
        for message in record["messages"]
    ] == stored
    assert {record.get("source") for record in exported} == {"openai-agents"}


KINDS: dict[str, Callable[[str, Path], Any]] = {
    "SQLiteSession": SQLiteSession,
    "AsyncSQLiteSession": AsyncSQLiteSession,
    "AdvancedSQLiteSession": lambda name, path: AdvancedSQLiteSession(
        session_id=name, db_path=path, create_tables=True
    ),
}


@pytest.mark.data
@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_session_stored_in_a_file(
    kind: str, postgres: ConversationStore, dsn: str, tmp_path: Path, naughty_strings: list[str]
) -> None:
    """Each kind of session of a file of SQLite is read as itself."""
    path = tmp_path / "of a peer?.db"
    sessions: dict[str, Any] = {}

    def opened(name: str) -> Any:
        if name not in sessions:
            sessions[name] = KINDS[kind](name, path)
        return sessions[name]

    names = await fill(opened, [], naughty_strings)
    theirs = await given(opened, names)
    for session in sessions.values():
        closed = session.close()
        if closed is not None:
            await closed
    with closing(sqlite3.connect(path)) as file:
        before = list(file.iterdump())

    moved = await move(path, "--user-id", "ada", "--dsn", dsn)

    assert moved.code == 0, moved.err
    assert await given(ours(postgres), names) == theirs
    with closing(sqlite3.connect(path)) as file:
        assert list(file.iterdump()) == before


async def test_what_a_sqlalchemy_session_stored_in_a_file(
    postgres: ConversationStore, dsn: str, tmp_path: Path
) -> None:
    """Its order is that of its times; what lies before the item before it takes that one's."""
    path = tmp_path / "peer.db"
    url = f"sqlite+aiosqlite:///{path}"
    engine = create_async_engine(url)
    opened = of_engine(engine)
    await opened("s").add_items(ITEMS)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE agent_messages SET created_at = '2020-01-01 10:00:00' WHERE id = 3")
        file.execute("UPDATE agent_messages SET message_data = '{' WHERE id = 5")
    theirs = await given(opened, ["s"])
    await engine.dispose()
    assert theirs["s"] == [ITEMS[2], *ITEMS[:2], ITEMS[3], *ITEMS[5:]]

    moved = await move(url, "--user-id", "ada", "--dsn", dsn)

    assert (moved.code, moved.out.splitlines()[1]) == (
        0,
        "note: 1 item passed over, as the framework does",
    )
    assert await given(ours(postgres), ["s"]) == theirs
    [first] = await _messages(postgres, "s", 1)
    assert first.timestamp == datetime(2020, 1, 1, 10, tzinfo=UTC)


async def test_a_clock_that_went_back(
    postgres: ConversationStore, dsn: str, tmp_path: Path
) -> None:
    """A SQLiteSession orders by id, so that is kept; a time does not go back, and that is told."""
    path = tmp_path / "peer.db"
    with closing(SQLiteSession("s", path)) as session:
        await session.add_items(ITEMS[:4])
    with closing(sqlite3.connect(path)) as file, file:
        for row, time in enumerate(("10:00:00", "09:00:00", "11:00:00", "10:30:00"), 1):
            changed = f"2020-01-01 {time}"
            file.execute("UPDATE agent_messages SET created_at = ? WHERE id = ?", (changed, row))
        file.execute("UPDATE agent_sessions SET created_at = '2020-01-01 09:30:00'")
        file.execute("UPDATE agent_sessions SET updated_at = '2020-01-01 12:00:00'")

    moved = await move(path, "--user-id", "ada", "--dsn", dsn)

    assert moved.code == 0
    assert moved.out.splitlines()[1] == (
        "note: 2 items with the time of the one before it, later than its own"
    )
    assert await given(ours(postgres), ["s"]) == {"s": ITEMS[:4]}
    times = [message.timestamp.hour for message in await _messages(postgres, "s", 4)]
    assert times == [10, 10, 11, 11]
    [record] = [record async for record in export_conversations(postgres.unit_of_work())]
    assert record.get("start_time") == "2020-01-01T09:30:00.000000Z"
    assert record.get("last_activity") == "2020-01-01T12:00:00.000000Z"
    assert record.get("metadata") == {"moved_from": "openai-agents"}


async def test_rows_that_others_wrote(
    postgres: ConversationStore, dsn: str, tmp_path: Path
) -> None:
    """What the SDK reads all the same is moved: a BLOB of JSON, and what is beside no time."""
    path = tmp_path / "peer.db"
    for name in ("s", "t"):
        with closing(SQLiteSession(name, path)) as session:
            await session.add_items(ITEMS[:4])
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE agent_messages SET message_data = CAST(message_data AS BLOB)")
        for row, time in enumerate(("2020-01-01 10:00:00", "yesterday", 1577872800), 1):
            file.execute("UPDATE agent_messages SET created_at = ? WHERE id = ?", (time, row))
    with closing(SQLiteSession("s", path)) as session:
        assert await session.get_items() == ITEMS[:4]

    moved = await move(path, "--user-id", "ada", "--dsn", dsn)

    assert moved.code == 0, moved.err
    assert await given(ours(postgres), ["s", "t"]) == {"s": ITEMS[:4], "t": ITEMS[:4]}


async def test_branches(postgres: ConversationStore, dsn: str, tmp_path: Path) -> None:
    """Each branch is a session; what is of no branch is not given there, and told of."""
    path = tmp_path / "peer.db"
    with closing(KINDS["AdvancedSQLiteSession"]("s", path)) as session:
        await session.add_items(
            [{"role": role, "content": f"{n}"} for n in range(3) for role in ("user", "assistant")]
        )
        await session.create_branch_from_turn(2, "other")
        await session.add_items([{"role": "user", "content": "another way"}])
        theirs = {
            "s": await session.get_items(branch_id="main"),
            "s/other": await session.get_items(branch_id="other"),
        }
    with closing(SQLiteSession("s", path)) as plain:
        await plain.add_items(ITEMS[:2])

    moved = await move(path, "--user-id", "ada", "--dsn", dsn)

    assert moved.code == 0, moved.err
    assert moved.out.splitlines()[1].startswith("note: 2 items of no branch")
    assert await given(ours(postgres), ["s", "s/other"]) == theirs
    assert [len(items) for items in theirs.values()] == [6, 3]


async def test_run_again(postgres: ConversationStore, dsn: str, tmp_path: Path) -> None:
    """What went on there comes, what went on here stays, and what did both is named."""
    path = tmp_path / "peer.db"
    names = ("still", "there", "here", "both", "closed")
    one, two, three = _said("one"), _said("two"), _said("three")
    for name in names:
        with closing(SQLiteSession(name, path)) as session:
            await session.add_items(one)
    first = await move(path, "--user-id", "ada", "--dsn", dsn)
    assert (first.code, first.out.splitlines()[0]) == (0, "moved 5 sessions with 5 items")
    for name in ("there", "both", "new"):
        with closing(SQLiteSession(name, path)) as session:
            await session.add_items(two)
    for name in ("here", "both"):
        await ours(postgres)(name).add_items(three)

    checked = await move(path, "--user-id", "ada", "--dsn", dsn, "--check")

    assert checked.code == 1
    assert checked.out == (
        "checked 6 sessions: 2 the same there and here, 1 went on here, 3 NOT, named above\n"
    )
    assert [line.split(" since")[0].strip() for line in checked.err.splitlines()] == [
        "('both', 'main') differs there and here, and not for one went on: left as it is",
        "('new', 'main') is not here",
        "('there', 'main') went on there",
    ]

    again = await move(path, "--user-id", "ada", "--dsn", dsn)

    assert again.code == 1
    assert again.out.splitlines() == [
        "moved 1 session with 1 item, and 1 anew that went on there; 3 were here",
        "checked 6 sessions: 4 the same there and here, 1 went on here, 1 NOT, named above",
    ]
    assert await given(ours(postgres), ["still", "there", "here", "both", "new"]) == {
        "still": one,
        "there": one + two,
        "here": one + three,
        "both": one + three,
        "new": two,
    }


async def test_a_move_that_was_stopped_is_gone_on_with(
    postgres: ConversationStore, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was moved stays; run again, the rest comes, and nothing twice."""
    path = tmp_path / "peer.db"
    names = [f"{number:02}" for number in range(25)]
    for name in names:
        with closing(SQLiteSession(name, path)) as session:
            await session.add_items(ITEMS[:2])
    monkeypatch.setattr("conversation_store.service_layer.transfer.BATCH_CONVERSATIONS", 10)
    compared = 0

    async def compare(move: moving.Move, session: moving.Session) -> Any:
        nonlocal compared
        compared += 1
        if compared == 24:
            raise KeyboardInterrupt
        return await COMPARE(move, session)

    with monkeypatch.context() as patched:
        patched.setattr(moving.Move, "_compare", compare)
        stopped = await move(path, "--user-id", "ada", "--dsn", dsn)
    assert (stopped.code, stopped.out) == (1, "")
    assert stopped.err.endswith("Stopped. What was moved stays; run this again to go on.")
    stored = [record async for record in export_conversations(postgres.unit_of_work())]
    assert len(stored) in {10, 20}

    again = await move(path, "--user-id", "ada", "--dsn", dsn)

    rest = 2 * (25 - len(stored))
    assert (again.code, again.out.splitlines()) == (
        0,
        [
            f"moved {25 - len(stored)} sessions with {rest} items; {len(stored)} were here",
            "checked 25 sessions: 25 the same there and here",
        ],
    )
    assert await given(ours(postgres), names) == dict.fromkeys(names, ITEMS[:2])


async def test_users_of_a_file(
    postgres: ConversationStore, dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says who has which session; one that is nobody's, or unfit, is named, the others move."""
    path = tmp_path / "peer.db"
    for name in ("ada's", "bob's", "nobody's", "x" * 256, "odd", "large"):
        with closing(SQLiteSession(name, path)) as session:
            await session.add_items(ITEMS[:2])
    monkeypatch.setattr(moving, "LARGEST", 11_000_000)
    large: list[Any] = [{"role": "user", "content": "x" * 10_000_001}]
    for name, times in (("large", 1), ("huge", 2)):
        with closing(SQLiteSession(name, path)) as session:
            await session.add_items(large * times)
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE agent_messages SET message_data = '[1]' WHERE session_id = 'odd'")
    users = tmp_path / "users.csv"
    lines = ("ada's,ada", "bob's,bob", f"{'x' * 256},a", "odd,b", "large,b", "huge,b")
    users.write_text("\n".join((*lines, "session_id,user_id")), "utf-8-sig")  # as spreadsheets do

    moved = await move(path, "--users", users, "--dsn", dsn)

    assert moved.code == 1
    assert moved.out.splitlines() == [
        "moved 2 sessions with 4 items",
        "checked 7 sessions: 2 the same there and here, 5 NOT, named above",
    ]
    assert [line.split("cannot be moved: ")[1] for line in moved.err.splitlines()[1:]] == [
        "it has more than 11 MB",
        "content: must be at most 10000000 bytes of UTF-8, not 10000001",
        "no user is named for it",
        "an item could not be read: AttributeError",
        "session_id: must have 1..255 characters, not 256",
    ]
    assert await given(ours(postgres, "bob"), ["bob's"]) == {"bob's": ITEMS[:2]}


def test_it_runs_in_a_checkout(dsn: str, migrated: set[str], tmp_path: Path, peer: str) -> None:
    """As the guide says, as a process of its own."""
    done = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "no.db", "--user-id", "ada", "--dsn", dsn],
        check=False,
        cwd=SCRIPTS,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"The sessions cannot be read: there is no file {tmp_path / 'no.db'}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["no.db", "--user-id", "ada"], "The sessions cannot be read: there is no file no.db"),
        (
            ["sqlite+aiosqlite:///no.db", "--user-id", "ada"],
            "The sessions cannot be read: there is no file no.db",
        ),
        (
            ["host=h password=secret", "--user-id", "ada"],
            "The sessions cannot be read: there is no such file",
        ),
        (
            ["{peer}", "--user-id", "ada"],
            'The sessions cannot be read: relation "agent_messages" does not exist',
        ),
        (
            ["postgresql+asyncpg://a:secret@127.0.0.1:1/b", "--user-id", "ada"],
            "The sessions cannot be read: [Errno 111] Connect call failed ('127.0.0.1', 1)",
        ),
        (
            ["postgresql+asyncpg://a:b@c:secret@127.0.0.1:1/b", "--user-id", "ada"],
            "The sessions cannot be read: the URL has no number for a port, or more than one @",
        ),
        (
            ["postgresql+asyncpg://a:b@secret@127.0.0.1:1/b", "--user-id", "ada"],
            "The sessions cannot be read: the URL has no number for a port, or more than one @",
        ),
        (["{peer}", "--user-id", "ada", "--dsn", "port=1 host=127.0.0.1"], "the server cannot be"),
        (["{peer}", "--users", "no.csv"], "The sessions cannot be read: [Errno 2] No such file"),
        (["{peer}", "--users", "{latin}"], "The sessions cannot be read: 'utf-8' codec can't"),
        (["{file}", "--user-id", "ada", "--schema", "no"], "a table is missing: run"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], said: str, dsn: str, peer: str, tmp_path: Path
) -> None:
    """It says what is wrong, without a traceback and without a password."""
    file = tmp_path / "peer.db"
    with closing(SQLiteSession("s", file)) as session:
        asyncio.run(session.add_items(ITEMS[:1]))
    url = sqlalchemy_url(peer, "asyncpg")
    (latin := tmp_path / "latin.csv").write_text("café,ada", "latin-1")
    options = [text.format(peer=url, file=file, latin=latin) for text in arguments]
    ended = run(SCRIPT, *options, *([] if "--dsn" in options else ["--dsn", dsn]))
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(said)
    assert "\n" not in ended.err.strip()
    assert "secret" not in ended.err


def _said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


async def _messages(store: ConversationStore, session_id: str, limit: int) -> list[Any]:
    uow = store.unit_of_work(user_id="ada")
    found = await find_conversation(uow, session_id=session_id)
    assert found is not None
    return await messages_after(uow, conversation_id=found.id, position=0, limit=limit)
