"""What agent frameworks keep of users stays apart, is not told, and goes with them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, NamedTuple
from unicodedata import normalize

import psycopg
import pytest
from listening import MARK, listening, secret
from psycopg import sql
from store_fixtures import APPLICATION, draft, open_store_as

if "CONVERSATION_STORE_CI" not in os.environ:
    for needed in ("agents", "google.adk", "langchain_core", "llama_index.core", "pydantic_ai"):
        pytest.importorskip(needed, reason="needs the extras of all frameworks")

from agents.items import TResponseInputItem
from google.adk.events import EventActions
from google.adk.sessions.base_session_service import GetSessionConfig
from google_adk_events import said
from langchain_core.messages import HumanMessage
from llama_index.core.base.llms.types import ChatMessage
from pydantic_ai.conversation import Conversation
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from conversation_store import (
    ConversationStore,
    StoreMisconfigured,
    append_messages,
    erase_user,
    find_conversation,
    get_or_start_conversation,
    update_conversation,
)
from conversation_store.adapters.google_adk import AdkSessionService
from conversation_store.adapters.langchain import LangChainHistory
from conversation_store.adapters.llama_index import LlamaIndexChatStore, LlamaIndexMemoryStore
from conversation_store.adapters.openai_agents import AgentsSession
from conversation_store.adapters.pydantic_ai import PydanticAIHistory
from conversation_store.adapters.pydantic_ai_store import PydanticAIStore

SCHEMA = "frameworks apart"
USERS = ["ada", "Ada", "ada ", "\u0430da", "ada/b", "ada%"]
USERS += [normalize(form, "zoë") for form in ("NFC", "NFD")]
NAMES = ["s", "S", "b/s", "%2F", "google-adk-state:birds", "google-adk-apps"]


class Kept(NamedTuple):
    """What a framework keeps of one session of one user."""

    say: Callable[[str], Any]
    read: Callable[[], Any]
    clear: Callable[[], Any]


def agents(store: ConversationStore, user_id: str, name: str) -> Kept:
    """Keep items of the OpenAI Agents SDK."""
    session = AgentsSession(name, store=store, user_id=user_id)

    async def say(text: str) -> None:
        item: TResponseInputItem = {"role": "user", "content": text}
        await session.add_items([item])

    async def read() -> list[Any]:
        items: Sequence[Any] = await session.get_items()
        return [item["content"] for item in items]

    return Kept(say, read, session.clear_session)


def langchain(store: ConversationStore, user_id: str, name: str) -> Kept:
    """Keep messages of LangChain."""
    history = LangChainHistory(name, store=store, user_id=user_id)

    async def read() -> list[Any]:
        return [message.content for message in await history.aget_messages()]

    return Kept(lambda text: history.aadd_messages([HumanMessage(text)]), read, history.aclear)


def memory_store(store: ConversationStore, user_id: str, name: str) -> Kept:
    """Keep messages of a Memory of LlamaIndex."""
    chats = LlamaIndexMemoryStore(store=store, user_id=user_id)

    async def read() -> list[Any]:
        assert set(await chats.get_keys()) <= set(NAMES)
        return [message.content for message in await chats.get_messages(name)]

    return Kept(
        lambda text: chats.add_message(name, ChatMessage(text)),
        read,
        lambda: chats.delete_messages(name),
    )


def chat_store(store: ConversationStore, user_id: str, name: str) -> Kept:
    """Keep messages of another memory of LlamaIndex."""
    chats = LlamaIndexChatStore(store=store, user_id=user_id)

    async def read() -> list[Any]:
        return [message.content for message in await chats.aget_messages(name)]

    return Kept(
        lambda text: chats.async_add_message(name, ChatMessage(text)),
        read,
        lambda: chats.adelete_messages(name),
    )


def _prompt(text: str) -> ModelMessage:
    return ModelRequest([UserPromptPart(text)])


def _words(messages: Sequence[Any]) -> list[Any]:
    return [part.content for message in messages for part in message.parts]


def pydantic_ai(store: ConversationStore, user_id: str, name: str) -> Kept:
    """Keep messages of Pydantic AI."""
    history = PydanticAIHistory(name, store=store, user_id=user_id)

    async def read() -> list[Any]:
        return _words(await history.load())

    return Kept(lambda text: history.add([_prompt(text)]), read, history.clear)


def pydantic_ai_store(store: ConversationStore, user_id: str, name: str) -> Kept:
    """Keep conversations of Pydantic AI."""
    chats = PydanticAIStore(store=store, user_id=user_id)

    async def say(text: str) -> None:
        await chats.save(Conversation(conversation_id=name, messages=[_prompt(text)]))

    async def read() -> list[Any]:
        found = await chats.load(name)
        return [] if found is None else _words(found.messages)

    return Kept(say, read, lambda: chats.delete(name))


def google_adk(store: ConversationStore, user_id: str, name: str) -> Kept:
    """Keep sessions of Google ADK, and the state of the user."""
    service = AdkSessionService(store)
    names: Any = {"app_name": "birds", "user_id": user_id, "session_id": name}

    async def say(text: str) -> None:
        session = await service.create_session(**names)
        delta = {"said": text, "user:said": user_id}
        await service.append_event(session, said(text, actions=EventActions(state_delta=delta)))

    async def read() -> list[Any]:
        found = await service.get_session(**names, config=GetSessionConfig())
        if found is None:
            return []
        events: list[Any] = [*found.events]
        assert found.state == {"said": events[0].content.parts[0].text, "user:said": user_id}
        return [event.content.parts[0].text for event in events]

    return Kept(say, read, lambda: service.delete_session(**names))


FRAMEWORKS = [
    agents,
    langchain,
    memory_store,
    chat_store,
    pydantic_ai,
    pydantic_ai_store,
    google_adk,
]


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ConversationStore]:
    """Give an empty store with row security of each kind, opened as the application's role."""
    if request.param == "memory":
        async with ConversationStore.in_memory(row_security=True) as opened:
            yield opened
        return
    dsn, migrated = (request.getfixturevalue(name) for name in ("dsn", "migrated"))
    options: Any = {"policies": True, "row_security": True}
    async with open_store_as(APPLICATION, dsn, SCHEMA, migrated, **options) as opened:
        yield opened


@pytest.mark.parametrize("keep", FRAMEWORKS, ids=lambda keep: keep.__name__)
async def test_users_who_are_called_alike(
    keep: Callable[[ConversationStore, str, str], Kept],
    store: ConversationStore,
    request: pytest.FixtureRequest,
) -> None:
    """Each reads and clears what is his own alone, and leaves nothing in any table."""
    kept = {(user, name): keep(store, user, name) for user in USERS for name in NAMES}
    for place, one in enumerate(kept.values()):
        assert await one.read() == []
        await one.say(f"said in place {place}")
    for place, one in enumerate(kept.values()):
        assert await one.read() == [f"said in place {place}"]
    for name in NAMES:
        await kept["ada", name].clear()
    for place, ((user, _), one) in enumerate(kept.items()):
        assert await one.read() == ([] if user == "ada" else [f"said in place {place}"])
    for user in USERS:
        await erase_user(store.unit_of_work(user_id=user))
        assert [user for (user, _), one in kept.items() if await one.read()] == [
            left for left in USERS[USERS.index(user) + 1 :] for _ in NAMES
        ]
    if "postgres" in request.node.name:
        with psycopg.connect(request.getfixturevalue("dsn")) as connection:
            for table in ("ai_conversations", "ai_messages"):
                rows = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(SCHEMA, table))
                assert connection.execute(rows).fetchone() == (0,)


def _llama(role: str, blocks: list[Any]) -> dict[str, Any]:
    return {"role": role, "blocks": blocks, "additional_kwargs": {}}


UNREADABLE: list[Any] = [
    (langchain, "s", {"langchain": {"type": secret("type"), "data": {}}}),
    (langchain, "s", {"langchain": {"type": "human", "data": {"content": {secret("key"): 1}}}}),
    (memory_store, "s", {"llama_index": _llama("user", [{"block_type": secret("type")}])}),
    (chat_store, "s", {"llama_index": _llama(secret("role"), [])}),
    (pydantic_ai, "s", {"pydantic_ai": {"kind": "request", "parts": [{"part_kind": MARK}]}}),
    (google_adk, "birds/s", {"google_adk": {"content": {"parts": [{"newer": secret("part")}]}}}),
]


@pytest.mark.parametrize(("keep", "name", "metadata"), UNREADABLE)
async def test_what_a_framework_cannot_read_is_not_told(
    keep: Callable[[ConversationStore, str, str], Kept],
    name: str,
    metadata: Any,
    framework_store: ConversationStore,
) -> None:
    """As what a newer version of it stored: the message is named, and nothing in it quoted."""
    uow = framework_store.unit_of_work(user_id="ada")
    started, _ = await get_or_start_conversation(uow, session_id=name)
    drafts = [draft(secret("content"), metadata=metadata)]
    [message] = await append_messages(uow, conversation_id=started.id, drafts=drafts)
    with listening() as ear:
        error = await ear.outcome(keep(framework_store, "ada", "s").read())
    assert isinstance(error, StoreMisconfigured)
    assert f"message {message.id}:" in str(error)


async def test_a_record_that_pydantic_ai_cannot_read_is_not_told(
    framework_store: ConversationStore,
) -> None:
    """The conversation is named, and nothing in it quoted."""
    await pydantic_ai_store(framework_store, "ada", "s").say("hello")
    uow = framework_store.unit_of_work(user_id="ada")
    found = await find_conversation(uow, session_id="s")
    assert found is not None
    metadata = {"pydantic_ai": {"conversation_id": [secret("record")]}}
    await update_conversation(uow, conversation_id=found.id, metadata=metadata)
    with listening() as ear:
        error = await ear.outcome(pydantic_ai_store(framework_store, "ada", "s").read())
    assert isinstance(error, StoreMisconfigured)
    assert f"conversation {found.id}:" in str(error)
