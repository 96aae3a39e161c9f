"""Chats that LlamaIndex stored, moved by the script of examples/moving."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moving_sources import Ended, database_of_a_peer, rows_of, run, sqlalchemy_url

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("llama_index.core", reason="needs the extra llama-index")
    reason = "needs llama-index-storage-chat-store-postgres"
    pytest.importorskip("llama_index.storage.chat_store.postgres", reason=reason)

from llama_index.core.base.llms.types import (
    ChatMessage,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.storage.chat_store.sql import SQLAlchemyChatStore
from llama_index.storage.chat_store.postgres import PostgresChatStore
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker

from conversation_store import ConversationStore
from conversation_store.adapters.llama_index import LlamaIndexMemoryStore

SCRIPT = "from_llama_index.py"

MESSAGES = [
    ChatMessage("be kind", role=MessageRole.SYSTEM),
    ChatMessage("hi \u00fc", role=MessageRole.USER, additional_kwargs={"a": [1, {"b": None}]}),
    ChatMessage(
        role=MessageRole.USER,
        blocks=[
            TextBlock(text="what is this?"),
            ImageBlock(image=b"\x89PNG\xff", image_mimetype="image/png"),
            ImageBlock(url="https://example.org/a.png"),
        ],
    ),
    ChatMessage(
        role=MessageRole.ASSISTANT,
        blocks=[
            ThinkingBlock(content="look out of the window"),
            ToolCallBlock(tool_call_id="c_1", tool_name="weather", tool_kwargs={"days": 2}),
        ],
    ),
    ChatMessage("sunny", role=MessageRole.TOOL, additional_kwargs={"tool_call_id": "c_1"}),
    ChatMessage("", role=MessageRole.ASSISTANT),
    ChatMessage("x" * 2_000_000, role=MessageRole.USER),
]
"""Messages of many kinds."""


@pytest.fixture
def peer(dsn: str) -> Iterator[str]:
    """Give an empty database of the peer's."""
    with database_of_a_peer(dsn) as made:
        yield made


async def move(*arguments: object) -> Ended:
    """Run the script, in a thread, for it has an event loop of its own."""
    return await asyncio.to_thread(run, SCRIPT, *arguments)


def messages_of(dialogue: dict[str, Any]) -> list[ChatMessage]:
    """Return a dialogue as messages of LlamaIndex."""
    return [ChatMessage(each["content"], role=each["role"]) for each in dialogue["messages"]]


async def given(chats: Any, keys: list[str]) -> list[Any]:
    """Return what a chat store gives: all messages, the active ones, and the archived ones."""
    states = (None, MessageStatus.ACTIVE, MessageStatus.ARCHIVED)
    return [await chats.get_messages(key, state) for key in keys for state in states]


@pytest.fixture
def said(
    dialogues: list[dict[str, Any]], naughty_strings: list[str]
) -> dict[str, list[ChatMessage]]:
    """Give what is said in chats, by key."""
    return {
        **{dialogue["session_id"]: messages_of(dialogue) for dialogue in dialogues[:30]},
        "every kind": MESSAGES,
        "hostile": [ChatMessage(text, role=MessageRole.USER) for text in naughty_strings],
    }


@pytest.fixture(params=["postgres", "sqlite"])
def url(request: pytest.FixtureRequest, peer: str, tmp_path: Path) -> str:
    """Give the URL of an empty database."""
    if request.param == "postgres":
        return sqlalchemy_url(peer, "asyncpg")
    return f"sqlite+aiosqlite:///{tmp_path / 'peer.db'}"


@pytest.mark.data
async def test_what_the_sqlalchemy_store_stored(
    url: str,
    postgres: ConversationStore,
    dsn: str,
    peer: str,
    said: dict[str, list[ChatMessage]],
) -> None:
    """Ours gives all of it as theirs did, archived or not; there nothing has changed."""
    engine = create_async_engine(url)
    theirs = SQLAlchemyChatStore("chats", async_engine=engine)
    for key, messages in said.items():
        await theirs.add_messages(key, messages)
    await theirs.archive_oldest_messages("every kind", 2)
    await theirs.add_message("every kind", MESSAGES[0])
    expected = await given(theirs, list(said))
    before = rows_of(peer)

    moved = await move(url, "chats", "--user-id", "ada", "--dsn", dsn)

    assert moved.code == 0, moved.err
    ours = LlamaIndexMemoryStore(store=postgres, user_id="ada")
    assert await given(ours, list(said)) == expected
    assert rows_of(peer) == before

    await theirs.archive_oldest_messages("every kind", 1)
    await theirs.add_message("hostile", MESSAGES[0])
    expected = await given(theirs, list(said))
    again = await move(url, "chats", "--user-id", "ada", "--dsn", dsn)
    await engine.dispose()
    assert again.code == 0, again.err
    assert again.out.startswith("moved 0 sessions with 0 items, and 2 anew that went on there")
    assert await given(ours, list(said)) == expected


@pytest.mark.parametrize("prefix", ["", "data_"])
async def test_what_the_postgres_store_stored(
    prefix: str, postgres: ConversationStore, dsn: str, peer: str
) -> None:
    """It has no times, so ours are those of the move; all else is as theirs."""
    engine = create_engine(sqlalchemy_url(peer, "psycopg"))
    sessions: Any = sessionmaker(engine)
    old = PostgresChatStore(sessions, sessions, f"{prefix}chats")
    said = {"s 1": MESSAGES, "s 2": MESSAGES[1:2]}
    for key, messages in said.items():
        old.set_messages(key, messages)
    old.add_message("s 1", MESSAGES[0])
    theirs = PostgresChatStore(sessions, sessions, "chats")
    expected = {key: theirs.get_messages(key) for key in said}
    assert len(expected["s 1"]) == len(MESSAGES) + 1
    engine.dispose()
    before = rows_of(peer)

    source = sqlalchemy_url(peer, "asyncpg")
    arguments = ("--postgres-chat-store", source, "chats", "--user-id", "ada", "--dsn", dsn)
    moved = await move(*arguments)

    assert moved.code == 0, moved.err
    ours = LlamaIndexMemoryStore(store=postgres, user_id="ada")
    assert {key: await ours.get_messages(key) for key in said} == expected
    assert rows_of(peer) == before


@pytest.mark.parametrize(
    ("arguments", "said_first"),
    [
        (["{peer}", "no"], 'The sessions cannot be read: relation "no" does not exist'),
        (["--postgres-chat-store", "{peer}", "no"], "The sessions cannot be read: relation"),
        (["sqlite+aiosqlite:///no.db", "h"], "The sessions cannot be read: there is no file no.db"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str], said_first: str, dsn: str, peer: str
) -> None:
    """It says what is wrong, without a traceback."""
    options = [text.format(peer=sqlalchemy_url(peer, "asyncpg")) for text in arguments]
    ended = run(SCRIPT, *options, "--user-id", "ada", "--dsn", dsn)
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(said_first)
    assert "\n" not in ended.err.strip()
