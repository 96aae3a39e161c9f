"""Histories of LangChain, used by LangChain itself, with a model that answers offline."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest
from guide_script import functions_of, run_script
from store_fixtures import draft, open_store

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("langchain_core", reason="needs the extra langchain")

from langchain_core.messages import (
    AIMessage,
    HumanMessage,
    SystemMessage,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_messages import MESSAGES

from conversation_store import (
    ConversationNotAcceptingMessages,
    ConversationStore,
    UnitOfWorkMisuse,
    append_messages,
    close_conversation,
    find_conversation,
    latest_messages,
)
from conversation_store.adapters.langchain import LangChainHistory
from conversation_store.adapters.store_thread import StoreThread

pytestmark = pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")


def answer(given: Any) -> AIMessage:
    """Answer as a model would: with how many messages it was shown, and the last."""
    said = given.to_messages()
    return AIMessage(f"{len(said)}: {said[-1].content}")


def chain(store: Any) -> RunnableWithMessageHistory:
    """Return a chain that keeps its history in a store."""
    prompt = ChatPromptTemplate.from_messages(
        [MessagesPlaceholder("history"), ("human", "{question}")]
    )
    return RunnableWithMessageHistory(
        prompt | RunnableLambda(answer),
        lambda session_id: LangChainHistory(session_id, store=store, user_id="ada"),
        input_messages_key="question",
        history_messages_key="history",
    )


def session(name: str) -> Any:
    """Return the configuration that names a session."""
    return {"configurable": {"session_id": name}}


@pytest.fixture
def store(framework_store: ConversationStore) -> ConversationStore:
    """Give an empty store of each kind."""
    return framework_store


async def test_messages_of_every_kind_come_back_unchanged(store: ConversationStore) -> None:
    """In order; another history of the same session reads them; cleared there are none."""
    history = LangChainHistory("s", store=store, user_id="ada")
    assert await history.aget_messages() == []
    await history.aclear()
    await history.aadd_messages([])
    assert await find_conversation(store.unit_of_work(user_id="ada"), session_id="s") is None
    await history.aadd_messages(MESSAGES)
    await history.aadd_messages(MESSAGES[:1])
    found = await LangChainHistory("s", store=store, user_id="ada").aget_messages()
    assert found == [*MESSAGES, MESSAGES[0]]
    assert [type(message) for message in found[:-1]] == [type(message) for message in MESSAGES]
    assert await LangChainHistory("s", store=store, user_id="bob").aget_messages() == []
    await history.aclear()
    assert await history.aget_messages() == []


async def test_what_people_read(store: ConversationStore) -> None:
    """The words are the content; the rest is found by its path in the metadata."""
    await LangChainHistory("s", store=store, user_id="ada").aadd_messages(MESSAGES)
    uow = store.unit_of_work(user_id="ada")
    found = await find_conversation(uow, session_id="s")
    assert found is not None
    assert found.source == "langchain"
    stored = await latest_messages(uow, conversation_id=found.id)
    assert [(message.role.value, message.content) for message in stored[:11]] == [
        ("system", "be kind"),
        ("user", "hi"),
        ("user", "what is this?"),
        ("assistant", ""),
        ("tool", "sunny"),
        ("tool", "two"),
        ("assistant", "a cat"),
        ("assistant", "half"),
        ("tool", "out"),
        ("assistant", "so says the critic"),
        ("assistant", ""),
    ]
    metadata: Any = stored[3].metadata
    assert metadata["langchain"]["data"]["tool_calls"][0]["name"] == "weather"


async def test_messages_of_others(store: ConversationStore) -> None:
    """What no history stored is its role and its words; a closed conversation takes nothing."""
    history = LangChainHistory("s", store=store, user_id="ada")
    await history.aadd_messages(MESSAGES[:1])
    uow = store.unit_of_work(user_id="ada")
    found = await find_conversation(uow, session_id="s")
    assert found is not None
    said = [
        draft(role, role, metadata={"m": 1}) for role in ("user", "assistant", "system", "tool")
    ]
    said.append(draft("our own key", metadata={"langchain": {"chain": "c"}}))
    await append_messages(uow, conversation_id=found.id, drafts=said)
    assert (await history.aget_messages())[1:] == [
        HumanMessage("user"),
        AIMessage("assistant"),
        SystemMessage("system"),
        AIMessage("tool"),
        HumanMessage("our own key"),
    ]
    await close_conversation(uow, conversation_id=found.id)
    with pytest.raises(ConversationNotAcceptingMessages):
        await history.aadd_messages(MESSAGES)


async def test_a_chain(store: ConversationStore) -> None:
    """Each call is shown what was said before; sessions are apart."""
    talk = chain(store)
    for number, text in enumerate(("one", "two", "three")):
        said = await talk.ainvoke({"question": text}, session("s"))
        assert said.content == f"{2 * number + 1}: {text}"
    other = await talk.ainvoke({"question": "one"}, session("other"))
    assert other.content == "1: one"
    parts = [part.content async for part in talk.astream({"question": "four"}, session("s"))]
    assert "".join(parts) == "7: four"
    history = LangChainHistory("s", store=store, user_id="ada")
    assert len(await history.aget_messages()) == 8


async def test_sixteen_chains_at_once(store: ConversationStore) -> None:
    """On one session that none of them has met: nothing is lost, doubled or torn."""
    talk = chain(store)

    async def work(number: int) -> None:
        for part in range(3):
            await talk.ainvoke({"question": f"{number}/{part}"}, session("s"))

    await asyncio.gather(*map(work, range(16)))
    history = LangChainHistory("s", store=store, user_id="ada")
    said = [str(message.content) for message in await history.aget_messages()]
    questions, answers = said[::2], said[1::2]
    assert [text.split(": ")[1] for text in answers] == questions
    assert sorted(questions) == sorted(f"{n}/{part}" for n in range(16) for part in range(3))
    for number in range(16):
        mine = [text for text in questions if text.startswith(f"{number}/")]
        assert mine == [f"{number}/{part}" for part in range(3)]


async def test_chains_that_give_the_history_no_key(store: ConversationStore) -> None:
    """LangChain leaves out as many messages of what was asked as are there when a chain ends.

    So of two that run at once the later stores an answer without its question; the guide says so.
    """
    both_read, one_is_stored = asyncio.Barrier(2), asyncio.Event()

    async def model(given: Any) -> AIMessage:
        await both_read.wait()
        if given[-1].content == "two":
            await one_is_stored.wait()
        return AIMessage(f"answer to {given[-1].content}")

    talk = RunnableWithMessageHistory(
        RunnableLambda(model),
        lambda session_id: LangChainHistory(session_id, store=store, user_id="ada"),
    )
    two = asyncio.create_task(talk.ainvoke([HumanMessage("two")], session("s")))
    await talk.ainvoke([HumanMessage("one")], session("s"))
    one_is_stored.set()
    await two
    history = LangChainHistory("s", store=store, user_id="ada")
    said = [message.content for message in await history.aget_messages()]
    assert said == ["one", "answer to one", "answer to two"]


async def test_what_a_chain_cannot_store(
    store: ConversationStore, caplog: pytest.LogCaptureFixture
) -> None:
    """LangChain says it in its log alone; calls of one's own raise it, as the guide says."""
    talk, uow = chain(store), store.unit_of_work(user_id="ada")
    await talk.ainvoke({"question": "one"}, session("s"))
    found = await find_conversation(uow, session_id="s")
    assert found is not None
    await close_conversation(uow, conversation_id=found.id)
    said = await talk.ainvoke({"question": "two"}, session("s"))
    assert said.content == "3: two"
    assert "ConversationNotAcceptingMessages" in caplog.text
    history = LangChainHistory("s", store=store, user_id="ada")
    assert len(await history.aget_messages()) == 2
    with pytest.raises(ConversationNotAcceptingMessages):
        await history.aadd_messages([HumanMessage("two"), said])


async def test_calls_that_are_not_async_need_a_thread(store: ConversationStore) -> None:
    """They would hold the event loop that they wait for: that is misuse, and says so."""
    history = LangChainHistory("s", store=store, user_id="ada")
    for call in (
        lambda: history.messages,
        history.clear,
        lambda: history.add_messages(MESSAGES),
        lambda: setattr(history, "messages", MESSAGES),
    ):
        with pytest.raises(UnitOfWorkMisuse, match="StoreThread"):
            call()


def test_a_chain_without_an_event_loop(dsn: str, migrated: set[str]) -> None:
    """A store in a thread of its own serves it, and event loops at the same time."""

    async def prepare() -> None:
        async with open_store(dsn, "operational", migrated):
            pass

    asyncio.run(prepare())
    with StoreThread(ConversationStore.connect(dsn, min_size=1, max_size=4)) as thread:
        talk = chain(thread)
        assert talk.invoke({"question": "one"}, session("s")).content == "1: one"
        again = asyncio.run(talk.ainvoke({"question": "two"}, session("s")))
        assert again.content == "3: two"
        history = LangChainHistory("s", store=thread, user_id="ada")
        assert len(history.messages) == 4
        history.clear()
        history.add_messages(MESSAGES)
        assert history.messages == MESSAGES
        history.messages = MESSAGES[-2:]
        assert history.messages == MESSAGES[-2:]
        history.messages = []
        assert history.messages == []


async def test_the_functions_of_the_guide(store: ConversationStore) -> None:
    """A chain serves several users, each with sessions of their own; a turn is added by calls."""
    names: dict[str, Any] = {}
    exec("\n".join(functions_of("langchain.md")), names)  # noqa: S102 - it is a document of ours
    prompt = ChatPromptTemplate([MessagesPlaceholder("history"), ("human", "{question}")])
    talk = names["chain_of_all"](prompt | RunnableLambda(answer), store)
    for user_id, expected in (("ada", "1: hi"), ("bob", "1: hi"), ("ada", "3: hi")):
        config: Any = {"configurable": {"user_id": user_id, "session_id": "s"}}
        said = await talk.ainvoke({"question": "hi"}, config)
        assert said.content == expected
    history = LangChainHistory("s", store=store, user_id="bob")
    model: Any = RunnableLambda(lambda given: AIMessage(f"shown {len(given)}"))
    said = await names["turn"](model, history, "and now?")
    assert said.content == "shown 3"
    assert (await history.aget_messages())[2:] == [HumanMessage("and now?"), said]


@pytest.mark.usefixtures("postgres")
def test_the_script_of_the_guide(dsn: str) -> None:
    """Run again, in another process, it shows the history of the first time, and goes on."""
    first = run_script("langchain.md", dsn)
    assert first == "human: What is a heron?\nai: A bird that stands still.\n"
    assert run_script("langchain.md", dsn) == first * 2
