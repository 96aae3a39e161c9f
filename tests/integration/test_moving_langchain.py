"""Histories that LangChain stored, moved by the script of examples/moving."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from moving_sources import Ended, database_of_a_peer, rows_of, run, sqlalchemy_url

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("langchain_core", reason="needs the extra langchain")
    pytest.importorskip("langchain_postgres", reason="needs langchain-postgres")

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_messages import MESSAGES
from langchain_postgres import PostgresChatMessageHistory

from conversation_store import ConversationStore, export_conversations
from conversation_store.adapters.langchain import LangChainHistory

pytestmark = pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset")

SCRIPT = "from_langchain.py"
NO_JSONB = "a\0b \ud800"
"""What the SDK cannot store in a column of jsonb."""


@pytest.fixture
def peer(dsn: str) -> Iterator[str]:
    """Give an empty database of the peer's."""
    with database_of_a_peer(dsn) as made:
        yield made


async def move(*arguments: object) -> Ended:
    """Run the script, in a thread, for it has an event loop of its own."""
    return await asyncio.to_thread(run, SCRIPT, *arguments)


def messages_of(dialogue: dict[str, Any]) -> list[BaseMessage]:
    """Return a dialogue as messages of LangChain."""
    said: list[BaseMessage] = []
    for number, message in enumerate(dialogue["messages"]):
        if message["role"] == "tool":
            call = {"name": "f", "args": {}, "id": f"c_{number}"}
            said.append(AIMessage("", tool_calls=[call]))
            said.append(ToolMessage(message["content"], tool_call_id=f"c_{number}"))
        elif message["role"] == "user":
            said.append(HumanMessage(message["content"]))
        else:
            said.append(AIMessage(message["content"]))
    return said


async def ours(store: ConversationStore, names: list[str]) -> dict[str, list[BaseMessage]]:
    """Return what histories of ours give."""
    return {
        name: await LangChainHistory(name, store=store, user_id="ada").aget_messages()
        for name in names
    }


@pytest.mark.data
async def test_what_a_history_of_postgresql_stored(
    postgres: ConversationStore,
    dsn: str,
    peer: str,
    dialogues: list[dict[str, Any]],
    naughty_strings: list[str],
) -> None:
    """Ours gives all of it as theirs did, at its times; there nothing has changed."""
    said = {str(uuid.uuid4()): messages_of(dialogue) for dialogue in dialogues[:150]}
    storable = [message for message in MESSAGES if message.content != NO_JSONB]
    said[str(uuid.uuid4())] = storable
    said[str(uuid.uuid4())] = [HumanMessage(text) for text in naughty_strings]
    async with await psycopg.AsyncConnection.connect(peer) as connection:

        def opened(name: str) -> PostgresChatMessageHistory:
            return PostgresChatMessageHistory("chat_history", name, async_connection=connection)

        await PostgresChatMessageHistory.acreate_tables(connection, "chat_history")
        for name, messages in said.items():
            await opened(name).aadd_messages(messages)
        for name in list(said)[::10]:  # so the rows of a session do not lie side by side
            await opened(name).aadd_messages(storable[:2])
        theirs = {name: await opened(name).aget_messages() for name in said}
        before = rows_of(peer)

        moved = await move(peer, "chat_history", "--user-id", "ada", "--dsn", dsn)

        assert moved.code == 0, moved.err
        count = sum(map(len, theirs.values()))
        assert moved.out.splitlines() == [
            f"moved {len(said)} sessions with {count:,} items",
            f"checked {len(said)} sessions: {len(said)} the same there and here",
        ]
        found = await ours(postgres, list(said))
        assert found == theirs
        types = [[type(message) for message in messages] for messages in theirs.values()]
        assert [[type(m) for m in messages] for messages in found.values()] == types
        assert rows_of(peer) == before
        query = "SELECT session_id::text, created_at FROM chat_history ORDER BY session_id, id"
        stored = await (await connection.execute(query)).fetchall()
    exported = [record async for record in export_conversations(postgres.unit_of_work())]
    assert [
        (record["session_id"], datetime.fromisoformat(message.get("timestamp", "")))
        for record in exported
        for message in record["messages"]
    ] == stored
    assert {record.get("source") for record in exported} == {"langchain"}


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_what_a_history_of_the_community_stored(
    kind: str, postgres: ConversationStore, dsn: str, peer: str, tmp_path: Path
) -> None:
    """It has no times, so ours are those of the move; all else is as theirs."""
    if "CONVERSATION_STORE_CI" not in os.environ:
        pytest.importorskip("langchain_community", reason="needs langchain-community")
    from langchain_community.chat_message_histories import SQLChatMessageHistory
    from sqlalchemy import create_engine

    url = f"sqlite:///{tmp_path / 'peer.db'}"
    if kind == "postgres":
        url = sqlalchemy_url(peer, "psycopg")
    engine = create_engine(url)

    def opened(name: str) -> Any:
        return SQLChatMessageHistory(name, connection=engine)

    said = {"s 1": MESSAGES, "s 2": MESSAGES[:2], "s 3": MESSAGES[:1]}
    for name, messages in said.items():
        opened(name).add_messages(messages)
    opened("s 1").add_messages(MESSAGES[:1])
    theirs = {name: opened(name).messages for name in said}
    engine.dispose()

    arguments = (url, "message_store", "--community", "--user-id", "ada", "--dsn", dsn)
    moved = await move(*arguments)

    assert moved.code == 0, moved.err
    assert await ours(postgres, list(said)) == theirs
    assert len(theirs["s 1"]) == len(MESSAGES) + 1


async def test_run_again(postgres: ConversationStore, dsn: str, peer: str) -> None:
    """What went on there comes; what went on here stays."""
    names = sorted(str(uuid.uuid4()) for _ in range(3))
    with psycopg.connect(peer) as connection:
        PostgresChatMessageHistory.create_tables(connection, "h")
        opened = {
            name: PostgresChatMessageHistory("h", name, sync_connection=connection)
            for name in names
        }
        for history in opened.values():
            history.add_messages(MESSAGES[:2])
        arguments = (peer, "h", "--user-id", "ada", "--dsn", dsn)
        assert (await move(*arguments)).code == 0
        opened[names[0]].add_messages(MESSAGES[2:4])
        here = LangChainHistory(names[1], store=postgres, user_id="ada")
        await here.aadd_messages(MESSAGES[4:6])

        again = await move(*arguments)

    assert (again.code, again.out.splitlines()) == (
        0,
        [
            "moved 0 sessions with 0 items, and 1 anew that went on there; 2 were here",
            "checked 3 sessions: 2 the same there and here, 1 went on here",
        ],
    )
    assert await ours(postgres, names) == {
        names[0]: MESSAGES[:4],
        names[1]: [*MESSAGES[:2], *MESSAGES[4:6]],
        names[2]: MESSAGES[:2],
    }


async def test_a_message_of_no_known_type(postgres: ConversationStore, dsn: str, peer: str) -> None:
    """Its history is named, without a word of it; the others move."""
    names = sorted(str(uuid.uuid4()) for _ in range(2))
    with psycopg.connect(peer) as connection:
        PostgresChatMessageHistory.create_tables(connection, "h")
        for name in names:
            history = PostgresChatMessageHistory("h", name, sync_connection=connection)
            history.add_messages([HumanMessage("a secret")])
        connection.execute(
            'UPDATE h SET message = \'{"type": "odd", "data": {"content": "a secret"}}\' '
            "WHERE session_id = %s",
            [names[0]],
        )
        connection.commit()

        moved = await move(peer, "h", "--user-id", "ada", "--dsn", dsn)

    assert moved.code == 1
    assert f"{names[0]!r} cannot be moved: an item could not be read: ValueError" in moved.err
    assert "secret" not in moved.err + moved.out
    assert moved.out.startswith("moved 1 session with 1 item\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{peer}", "no"], 'The sessions cannot be read: relation "no" does not exist LINE 1'),
        (["host=127.0.0.1 port=1 password=secret", "h"], "The sessions cannot be read: connection"),
        (["no such thing", "h"], "The sessions cannot be read: the connection string cannot be"),
        (["password=a secret", "h"], "The sessions cannot be read: the connection string cannot"),
        (["postgresql://a:b@secret@127.0.0.1:1/c", "h"], "The sessions cannot be read: the conn"),
        (["--community", "sqlite:///no.db", "h"], "The sessions cannot be read: there is no file"),
        (["--community", "no such thing", "h"], "The sessions cannot be read: Could not parse"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], said: str, dsn: str, peer: str
) -> None:
    """It says what is wrong, without a traceback and without a password."""
    options = [text.format(peer=peer) for text in arguments]
    ended = run(SCRIPT, *options, "--user-id", "ada", "--dsn", dsn)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(said)
    assert "\n" not in ended.err.strip()
    assert "secret" not in ended.err
