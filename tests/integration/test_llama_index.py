"""Chat stores of LlamaIndex, used by LlamaIndex itself, with a model that answers offline."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from guide_script import functions_of, queries_of, run_script
from store_fixtures import draft, open_store, stored
from watching import Watcher

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("llama_index.core", reason="needs the extra llama-index")

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import (
    AudioBlock,
    CacheControl,
    CachePoint,
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
    VideoBlock,
)
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.memory import ChatMemoryBuffer, ChatSummaryMemoryBuffer, Memory
from llama_index.core.storage.chat_store import SimpleChatStore
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.tools import FunctionTool
from llama_index.core.workflow import Context, HumanResponseEvent, InputRequiredEvent

from conversation_store import (
    ConversationNotAcceptingMessages,
    ConversationStore,
    UnitOfWorkMisuse,
    append_messages,
    close_conversation,
    delete_conversation,
    pop_message,
    redact_message,
    replace_messages,
    update_conversation,
)
from conversation_store.adapters.llama_index import LlamaIndexChatStore, LlamaIndexMemoryStore
from conversation_store.adapters.store_thread import StoreThread

pytestmark = pytest.mark.filterwarnings(  # its agents are looked at attribute by attribute
    "ignore::pydantic.PydanticDeprecatedSince20", "ignore::pydantic.PydanticDeprecatedSince211"
)

ACTIVE, ARCHIVED = MessageStatus.ACTIVE, MessageStatus.ARCHIVED

MESSAGES = [
    ChatMessage("hi"),
    ChatMessage("be kind", role="system", additional_kwargs={"a": [1, {"b": None}]}),
    ChatMessage("be brief", role="developer"),
    ChatMessage(
        blocks=[
            TextBlock(text="what is this?"),
            ImageBlock(url="https://example.org/a.png", detail="low"),
            ImageBlock(image=b"\x89PNG\r\n\x1a\n" + bytes(range(256))),
            AudioBlock(audio=b"RIFF\xff", format="wav"),
            VideoBlock(url="https://example.org/a.mp4", fps=3),
            DocumentBlock(data=b"%PDF-1.7 \xff", title="a.pdf"),
            DocumentBlock(url="https://example.org/b.pdf"),
            DocumentBlock(path="/nowhere/c.pdf"),
            CachePoint(cache_control=CacheControl(type="ephemeral")),
            CitableBlock(title="t", source="s", content=[TextBlock(text="cite me")]),
            CitationBlock(
                cited_content=ImageBlock(image=b"\xff"),
                source="s",
                title="t",
                additional_location_info={"page": 3},
            ),
        ]
    ),
    ChatMessage(
        role="assistant",
        blocks=[
            ThinkingBlock(content="think", num_tokens=3, additional_information={"sign": "x=="}),
            ToolCallBlock(tool_call_id="c_1", tool_name="weather", tool_kwargs={"city": "Üxküll"}),
            ToolCallBlock(tool_name="weather", tool_kwargs='{"cut'),
        ],
    ),
    ChatMessage("sunny", role="tool", additional_kwargs={"tool_call_id": "c_1", "path": "/x"}),
    ChatMessage("out", role="function"),
    ChatMessage("as a model", role="model"),
    ChatMessage("as a bot", role="chatbot"),
    ChatMessage(role="assistant"),
    ChatMessage(""),
    ChatMessage("a\0b \ud800"),
    ChatMessage("large", additional_kwargs={"n": 10**400, "x": "y" * 1_000_000}),
    ChatMessage(blocks=[ImageBlock(image=b"\xff" * 2_000_000)]),
    ChatMessage("exact", additional_kwargs={"n": 1e23, "nan": [float("inf")]}),
]
"""Messages of every kind, and what the store cannot hold as it is."""


def said(*texts: str) -> list[ChatMessage]:
    """Return messages of a user."""
    return [ChatMessage(text) for text in texts]


def texts_of(messages: Sequence[ChatMessage] | None) -> list[str]:
    """Return what messages say."""
    return [str(message.content) for message in messages or []]


@pytest.fixture
def store(framework_store: ConversationStore) -> ConversationStore:
    """Give an empty store of each kind."""
    return framework_store


# Messages -----------------------------------------------------------------------------------------


async def test_messages_of_every_kind_come_back_unchanged(store: ConversationStore) -> None:
    """In order, by both stores; another user has none."""
    chats = LlamaIndexChatStore(store=store, user_id="ada")
    assert await chats.aget_messages("s") == []
    await chats.aset_messages("s", MESSAGES)
    await chats.async_add_message("s", MESSAGES[0])
    again = LlamaIndexMemoryStore(store=store, user_id="ada")
    for found in (await chats.aget_messages("s"), await again.get_messages("s")):
        assert found == [*MESSAGES, MESSAGES[0]]
        assert [m.role for m in found[:-1]] == [m.role for m in MESSAGES]
    assert await LlamaIndexChatStore(store=store, user_id="bob").aget_messages("s") == []


async def test_what_people_read(store: ConversationStore) -> None:
    """The words are the content; the rest is found by its path in the metadata."""
    await LlamaIndexMemoryStore(store=store, user_id="ada").add_messages("s", MESSAGES)
    conversation, messages = await stored(store)
    assert conversation.source == "llama-index"
    assert [(message.role.value, message.content) for message in messages[:11]] == [
        ("user", "hi"),
        ("system", "be kind"),
        ("system", "be brief"),
        ("user", "what is this?\ncite me"),
        ("assistant", "think"),
        ("tool", "sunny"),
        ("tool", "out"),
        ("assistant", "as a model"),
        ("assistant", "as a bot"),
        ("assistant", ""),
        ("user", ""),
    ]
    metadata: Any = messages[4].metadata
    assert metadata["llama_index"]["blocks"][1]["tool_name"] == "weather"


@pytest.mark.data
async def test_hostile_strings(store: ConversationStore, naughty_strings: list[str]) -> None:
    """As what is said, as what a tool is called with, and as names beside it."""
    messages = [
        ChatMessage(
            role="assistant",
            blocks=[TextBlock(text=text), ToolCallBlock(tool_name="w", tool_kwargs={text: [text]})],
            additional_kwargs={text: text},
        )
        for text in naughty_strings
    ]
    chats = LlamaIndexChatStore(store=store, user_id="ada")
    await chats.aset_messages("s", messages)
    assert await chats.aget_messages("s") == messages


async def test_files_that_are_gone(store: ConversationStore, tmp_path: Path) -> None:
    """A history is read where a file that it names is not, or is not any more."""
    file = tmp_path / "a.png"
    file.write_bytes(b"\x89PNG\r\n\x1a\n")
    blocks: list[Any] = [ImageBlock(path=file), DocumentBlock(path=str(file))]
    citable = CitableBlock(title="t", source="s", content=blocks)
    with file.open("rb") as opened:
        message = ChatMessage(blocks=[*blocks, citable, ImageBlock(image=opened)])
        chats = LlamaIndexMemoryStore(store=store, user_id="ada")
        await chats.add_message("s", message)
    file.unlink()
    [found] = await chats.get_messages("s")
    assert found.blocks[:3] == message.blocks[:3]
    assert found.blocks[3] == ImageBlock(image=b"\x89PNG\r\n\x1a\n")


async def test_what_is_no_json(store: ConversationStore) -> None:
    """Comes back as JSON has it: models as objects, bytes as base64."""
    chats = LlamaIndexMemoryStore(store=store, user_id="ada")
    kwargs = {"call": TextBlock(text="x"), "raw": b"\xff", "many": (1, {2})}
    await chats.add_message("s", ChatMessage("x", additional_kwargs=kwargs))
    [found] = await chats.get_messages("s")
    expected = {"call": {"block_type": "text", "text": "x"}, "raw": "/w==", "many": [1, [2]]}
    assert found.additional_kwargs == expected
    with pytest.raises(ValueError, match="serialize"):
        await chats.add_message("s", ChatMessage("x", additional_kwargs={"x": object()}))
    assert await chats.get_messages("s") == [found]


async def test_messages_of_others(store: ConversationStore) -> None:
    """What no chat store stored is its role and its words; so is what was redacted."""
    chats = LlamaIndexMemoryStore(store=store, user_id="ada")
    await chats.add_messages("s", MESSAGES[3:4])
    conversation, [first] = await stored(store)
    uow = store.unit_of_work(user_id="ada")
    others = [draft(role, role) for role in ("user", "assistant", "system", "tool")]
    others += [draft("theirs", metadata={"llama_index": value}) for value in (None, {"x": 1}, [1])]
    await append_messages(uow, conversation_id=conversation.id, drafts=others)
    await redact_message(uow, message_id=first.id)
    assert await chats.get_messages("s") == [
        ChatMessage("[redacted]"),
        ChatMessage("user"),
        ChatMessage("assistant", role="assistant"),
        ChatMessage("system", role="system"),
        ChatMessage("tool", role="assistant"),
        *said(*["theirs"] * 3),
    ]


# A BaseChatStore ----------------------------------------------------------------------------------


async def test_a_chat_store_does_what_the_simple_one_does(store: ConversationStore) -> None:
    """Of the same calls both give the same."""
    simple, ours = SimpleChatStore(), LlamaIndexChatStore(store=store, user_id="ada")
    a, b, c, d = said("a", "b", "c", "d")
    for method, given in (
        ("aget_messages", ()),
        ("adelete_messages", ()),
        ("adelete_message", (0,)),
        ("adelete_last_message", ()),
        ("aset_messages", ([a, b, c],)),
        ("async_add_message", (d,)),
        ("aget_messages", ()),
        ("adelete_message", (4,)),
        ("adelete_message", (1,)),
        ("adelete_message", (-1,)),
        ("aget_messages", ()),
        ("adelete_last_message", ()),
        ("aget_messages", ()),
        ("aset_messages", ([b, c],)),
        ("adelete_messages", ()),
        ("aget_messages", ()),
        ("async_add_message", (d,)),
        ("aget_messages", ()),
    ):
        expected = await getattr(simple, method)("s", *given)
        assert await getattr(ours, method)("s", *given) == expected, (method, given)
    await ours.async_add_message("t", a)
    await ours.aset_messages("empty", [])
    assert await ours.aget_keys() == ["t", "s"]
    assert LlamaIndexChatStore.class_name() == "LlamaIndexChatStore"


async def test_long_chats(store: ConversationStore) -> None:
    """More than one call of the store may hold: set, read, and one taken out of the middle."""
    chats = LlamaIndexChatStore(store=store, user_id="ada")
    texts = [str(number) for number in range(2_300)]
    await chats.aset_messages("s", said(*texts))
    assert texts_of(await chats.aget_messages("s")) == texts
    assert await chats.adelete_message("s", 1_100) == ChatMessage("1100")
    del texts[1_100]
    assert texts_of(await chats.aget_messages("s")) == texts
    await chats.aset_messages("s", said("new"))
    assert texts_of(await chats.aget_messages("s")) == ["new"]


async def test_chats_that_are_closed_or_deleted(store: ConversationStore) -> None:
    """Closed it takes nothing and gives nothing away; deleted it begins anew."""
    chats = LlamaIndexChatStore(store=store, user_id="ada")
    memories = LlamaIndexMemoryStore(store=store, user_id="ada")
    await chats.aset_messages("s", said("a", "b"))
    conversation, _ = await stored(store)
    uow = store.unit_of_work(user_id="ada")
    await close_conversation(uow, conversation_id=conversation.id)
    for call in (
        chats.async_add_message("s", MESSAGES[0]),
        chats.aset_messages("s", []),
        chats.adelete_message("s", 0),
        chats.adelete_last_message("s"),
        memories.set_messages("s", MESSAGES[:1]),
        memories.delete_oldest_messages("s", 1),
    ):
        with pytest.raises(ConversationNotAcceptingMessages):
            await call
    assert texts_of(await chats.aget_messages("s")) == ["a", "b"]
    await delete_conversation(uow, conversation_id=conversation.id)
    assert await chats.aget_messages("s") == []
    await chats.aset_messages("s", said("c"))
    assert texts_of(await memories.get_messages("s")) == ["c"]


async def test_what_is_taken_out_takes_nothing_else_with_it(store: ConversationStore) -> None:
    """Sixteen add while others take out of the middle: each is there once, or was taken once."""
    chats = LlamaIndexChatStore(store=store, user_id="ada")
    await chats.aset_messages("s", said(*(f"x/{number}" for number in range(8))))

    async def add(number: int) -> None:
        for part in range(3):
            await chats.async_add_message("s", ChatMessage(f"{number}/{part}"))

    async def take() -> ChatMessage | None:
        return await chats.adelete_message("s", 1)

    ends = await asyncio.gather(*map(add, range(16)), *(take() for _ in range(4)))
    taken = texts_of([end for end in ends if end is not None])
    there = texts_of(await chats.aget_messages("s"))
    added = [f"{number}/{part}" for number in range(16) for part in range(3)]
    assert len(taken) == 4
    assert sorted([*taken, *there]) == sorted([*(f"x/{number}" for number in range(8)), *added])
    for number in range(16):
        mine = [text for text in there if text.startswith(f"{number}/")]
        assert mine == sorted(mine)


# A store of a Memory ------------------------------------------------------------------------------


async def test_active_and_archived(store: ConversationStore) -> None:
    """The oldest are archived, in order, and each status is read, counted and taken by itself."""
    chats = LlamaIndexMemoryStore(store=store, user_id="ada")
    assert await chats.archive_oldest_messages("s", 3) == []
    assert await chats.delete_oldest_messages("s", 3) == []
    assert await chats.count_messages("s") == 0
    await chats.add_messages("s", said(*"abcdef"))
    assert texts_of(await chats.archive_oldest_messages("s", 2)) == ["a", "b"]
    await chats.add_message("s", ChatMessage("g"), ARCHIVED)
    await chats.add_message("s", ChatMessage("h"))
    assert texts_of(await chats.get_messages("s")) == [*"cdefh"]
    assert texts_of(await chats.get_messages("s", ARCHIVED)) == [*"abg"]
    assert texts_of(await chats.get_messages("s", None)) == [*"abcdefgh"]
    assert texts_of(await chats.get_messages("s", ACTIVE, 2, 1)) == [*"de"]
    assert texts_of(await chats.get_messages("s", None, limit=0)) == []
    assert [await chats.count_messages("s", one) for one in (ACTIVE, ARCHIVED, None)] == [5, 3, 8]
    assert await chats.archive_oldest_messages("s", 0) == []
    assert texts_of(await chats.delete_oldest_messages("s", 2)) == ["c", "d"]
    assert texts_of(await chats.get_messages("s", ARCHIVED)) == [*"abg"]
    assert texts_of(await chats.archive_oldest_messages("s", 9)) == [*"efh"]
    assert await chats.get_messages("s") == []
    await chats.add_messages("s", said("i", "j"))
    _, messages = await stored(store)
    assert await chats.delete_message("s", messages[0].id) == ChatMessage("a")
    assert await chats.delete_message("s", messages[0].id) is None
    assert texts_of(await chats.get_messages("s")) == ["i", "j"]
    assert texts_of(await chats.get_messages("s", None)) == [*"befghij"]
    await chats.delete_messages("s", ARCHIVED)
    assert texts_of(await chats.get_messages("s", None)) == ["i", "j"]
    assert (await stored(store))[0].metadata is None
    await chats.archive_oldest_messages("s", 1)
    await chats.delete_messages("s", ACTIVE)
    assert texts_of(await chats.get_messages("s", None)) == ["i"]
    assert await chats.get_messages("s") == []
    assert await chats.get_keys() == ["s"]
    await chats.set_messages("s", said("k"))
    assert texts_of(await chats.get_messages("s")) == ["k"]
    await chats.set_messages("s", said("l"), ARCHIVED)
    assert texts_of(await chats.get_messages("s", ARCHIVED)) == ["l"]
    await chats.delete_messages("s")
    assert await chats.get_messages("s", None) == []
    assert await chats.get_keys() == []
    await chats.set_messages("t", said("m"))
    assert texts_of(await chats.get_messages("t")) == ["m"]
    assert LlamaIndexMemoryStore.class_name() == "LlamaIndexMemoryStore"


async def test_others_change_what_is_archived(store: ConversationStore) -> None:
    """Whoever replaces or pops archived messages makes active what is there; metadata stays."""
    chats = LlamaIndexMemoryStore(store=store, user_id="ada")
    uow = store.unit_of_work(user_id="ada")
    await chats.add_messages("s", said(*"abc"))
    conversation, _ = await stored(store)
    await update_conversation(uow, conversation_id=conversation.id, metadata={"ours": 1})
    await chats.archive_oldest_messages("s", 3)
    conversation, messages = await stored(store)
    archived = {"position": 3, "message_id": messages[2].id}
    assert conversation.metadata == {"ours": 1, "llama_index": {"archived": archived}}
    await pop_message(uow, conversation_id=conversation.id)
    await chats.add_message("s", ChatMessage("d"))
    assert texts_of(await chats.get_messages("s")) == [*"abd"]
    assert await chats.get_messages("s", ARCHIVED) == []
    others = [draft(text) for text in "wxyz"]
    await replace_messages(uow, conversation_id=conversation.id, drafts=others)
    assert texts_of(await chats.get_messages("s")) == [*"wxyz"]
    await chats.add_message("s", ChatMessage("e"), ARCHIVED)
    assert texts_of(await chats.delete_oldest_messages("s", 1)) == ["w"]
    assert (await stored(store))[0].metadata == {"ours": 1}
    assert texts_of(await chats.get_messages("s")) == [*"xyz"]
    for theirs in (1, {}, {"archived": 1}, {"archived": {"position": "?", "message_id": 1}}):
        metadata = {"llama_index": theirs}
        await update_conversation(uow, conversation_id=conversation.id, metadata=metadata)
        assert texts_of(await chats.get_messages("s")) == [*"xyz"]
    await chats.archive_oldest_messages("s", 1)
    assert texts_of(await chats.get_messages("s")) == [*"yz"]


async def test_archiving_by_many(store: ConversationStore) -> None:
    """While others add, each archives others, the oldest; none of them twice."""
    chats = LlamaIndexMemoryStore(store=store, user_id="ada")
    await chats.add_messages("s", said(*(f"{number:02}" for number in range(30))))

    async def add(number: int) -> None:
        for part in range(3):
            await chats.add_message("s", ChatMessage(f"x {number}/{part}"))

    archived: list[str] = []

    async def archive() -> None:
        for _ in range(3):
            archived.extend(texts_of(await chats.archive_oldest_messages("s", 1)))

    await asyncio.gather(*map(add, range(8)), *(archive() for _ in range(8)))
    oldest = [f"{number:02}" for number in range(24)]
    assert sorted(archived) == oldest == texts_of(await chats.get_messages("s", ARCHIVED))
    assert await chats.count_messages("s") == 6 + 24


async def test_reading_beside_what_stores_anew(store: ConversationStore) -> None:
    """No reader takes archived messages for active ones while others are taken away."""
    chats = LlamaIndexMemoryStore(store=store, user_id="ada")
    await chats.add_messages("s", said(*map(str, range(40))))
    await chats.archive_oldest_messages("s", 30)

    async def read() -> None:
        while len(seen) < 10:
            texts = texts_of(await chats.get_messages("s"))
            assert texts == [str(number) for number in range(40 - len(texts), 40)]
            assert len(texts) <= 10
            await asyncio.sleep(0)

    seen: list[ChatMessage] = []

    async def take() -> None:
        while len(seen) < 10:
            seen.extend(await chats.delete_oldest_messages("s", 1))

    await asyncio.gather(read(), read(), take())
    assert await chats.count_messages("s", ARCHIVED) == 30


# Run by LlamaIndex --------------------------------------------------------------------------------


def answer(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
    """Answer what was said last; asked for the weather, call a tool first."""
    last = messages[-1]
    if last.role is MessageRole.TOOL:
        return ChatMessage(f"It is {last.content}.", role="assistant")
    if "weather" in str(last.content):
        call = ToolCallBlock(
            tool_call_id=f"c_{len(messages)}", tool_name="weather", tool_kwargs={"city": "Üxküll"}
        )
        think = ThinkingBlock(content="look out of the window")
        return ChatMessage(role="assistant", blocks=[think, call])
    return ChatMessage(f"answer to {last.content}", role="assistant")


def model() -> MockFunctionCallingLLM:
    """Return a model that answers offline."""
    return MockFunctionCallingLLM(response_generator=answer)


def weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


def memory_of(store: Any, **values: Any) -> Memory:
    """Return a memory of ada's."""
    chats = LlamaIndexMemoryStore(store=store, user_id="ada")
    return Memory.from_defaults(session_id="s", chat_store=chats, **values)


async def test_an_agent(store: ConversationStore) -> None:
    """Its calls and what they gave are there; another memory shows them to its next run."""
    agent = FunctionAgent(tools=[weather], llm=model(), streaming=False)
    said_first = await agent.run("the weather?", memory=memory_of(store))
    assert str(said_first) == "It is sunny in Üxküll."
    _, messages = await stored(store)
    assert [message.role.value for message in messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    history = await memory_of(store).aget()
    assert isinstance(history[1].blocks[1], ToolCallBlock)
    shown: list[int] = []

    def count(messages: Sequence[ChatMessage], **_: Any) -> ChatMessage:
        shown.append(len(messages))
        return answer(messages)

    counted = MockFunctionCallingLLM(response_generator=count)
    second = FunctionAgent(tools=[weather], llm=counted, streaming=False)
    await second.run("and now?", memory=memory_of(store))
    assert shown == [5]
    assert len(await memory_of(store).aget_all()) == 6


async def confirmed(ctx: Context, city: str) -> str:
    """Ask a person."""
    answered = await ctx.wait_for_event(
        HumanResponseEvent,
        waiter_event=InputRequiredEvent.model_validate({"prefix": "sure?"}),
        waiter_id="w",
    )
    return f"{answered.response} in {city}"


confirmed.__annotations__["ctx"] = Context  # LlamaIndex does not look up what a name means


async def written_down(agent: FunctionAgent, memory: Memory) -> dict[str, Any]:
    """Run an agent until it waits for a person, and return its context as JSON has it."""
    running = agent.run("the weather?", memory=memory)
    async for event in running.stream_events():
        if isinstance(event, InputRequiredEvent):
            break
    context: dict[str, Any] = json.loads(json.dumps(running.ctx.to_dict()))
    await running.cancel_run()
    return context


@pytest.mark.filterwarnings("ignore:Skipping serialization of known unserializable key")
async def test_an_agent_that_goes_on_later(store: ConversationStore) -> None:
    """Its context does not hold the memory; given again as the guide says, the turn is stored."""
    names: dict[str, Any] = {}
    exec("\n".join(functions_of("llama-index.md")), names)  # noqa: S102 - it is a document of ours
    ask = FunctionTool.from_defaults(async_fn=confirmed, name="weather")
    agent = FunctionAgent(tools=[ask], llm=model(), streaming=False)
    context = await written_down(agent, memory_of(store))
    assert texts_of(await memory_of(store).aget_all()) == ["the weather?"]
    with pytest.raises(ValueError, match="memory"):
        await lost(agent, context)
    said_last = await names["go_on"](agent, context, memory_of(store), "rain")
    assert str(said_last) == "It is rain in Üxküll."
    roles = [message.role.value for message in await memory_of(store).aget_all()]
    assert roles == ["user", "assistant", "tool", "assistant"]


async def lost(agent: FunctionAgent, context: dict[str, Any]) -> None:
    """Go on without the memory."""
    running = agent.run(ctx=Context.from_dict(agent, context))
    assert running.ctx is not None
    running.ctx.send_event(HumanResponseEvent.model_validate({"response": "rain"}))
    await running


async def test_a_memory_that_overflows(store: ConversationStore) -> None:
    """What it has no room for is archived, and stays; reset takes all."""
    memory = memory_of(store, token_limit=30, token_flush_size=8, chat_history_token_ratio=0.5)
    for number in range(12):
        await memory.aput_messages(
            [ChatMessage(f"ask {number}"), ChatMessage(f"say {number}", role="assistant")]
        )
    active = texts_of(await memory.aget())
    archived = texts_of(await memory.aget_all(status=ARCHIVED))
    assert archived
    assert active
    everything = [f"{word} {number}" for number in range(12) for word in ("ask", "say")]
    assert [*archived, *active] == everything == texts_of(await memory.aget_all())
    await memory.areset()
    assert await memory.aget_all() == []


@pytest.mark.parametrize(("kind", "stores"), [("memory", 1), ("postgres", 1), ("postgres", 4)])
async def test_sixteen_chat_engines_at_once(
    kind: str, stores: int, request: pytest.FixtureRequest, dsn: str, migrated: set[str]
) -> None:
    """On one session that none has met: nothing is lost, doubled, or in another order.

    On PostgreSQL also where they share no store. One of the memories archives meanwhile.
    """
    async with AsyncExitStack() as stack:
        if kind == "memory":
            opened = [await stack.enter_async_context(ConversationStore.in_memory())]
        else:
            request.getfixturevalue("server")
            opened = [
                await stack.enter_async_context(
                    open_store(dsn, "operational", migrated, max_size=4)
                )
                for _ in range(stores)
            ]

        async def work(number: int) -> None:
            limit = 300 if number == 15 else 30_000
            memory = memory_of(opened[number % len(opened)], token_limit=limit)
            engine = SimpleChatEngine.from_defaults(llm=model(), memory=memory)
            for part in range(3):
                await engine.achat(f"{number}/{part}")
                both = [f"{number}/{part} {name}" for name in ("first", "second")]
                await memory.aput_messages(said(*both))

        await asyncio.gather(*map(work, range(16)))
        _, messages = await stored(opened[0])
        assert [message.position for message in messages] == list(range(1, 16 * 12 + 1))
        texts = texts_of(await memory_of(opened[0]).aget_all())
        assert texts == [message.content for message in messages]
        for number in range(16):
            mine = [
                text for text in texts if text.removeprefix("answer to ").startswith(f"{number}/")
            ]
            # Another may have spoken since the question: the answer is to what was said last.
            assert [text for text in mine if not text.startswith("answer")] == [
                text
                for part in range(3)
                for text in (
                    f"{number}/{part}",
                    f"{number}/{part} first",
                    f"{number}/{part} second",
                )
            ]
        assert sum(text.startswith("answer") for text in texts) == 16 * 3
        for place, text in enumerate(texts):
            if text.endswith(" first"):
                assert texts[place + 1] == text.replace("first", "second")
        archived = texts_of(await memory_of(opened[0]).aget_all(status=ARCHIVED))
        active = texts_of(await memory_of(opened[0]).aget_all(status=ACTIVE))
        assert archived
        assert [*archived, *active] == texts


# Other event loops --------------------------------------------------------------------------------


async def test_calls_that_are_not_async_need_a_thread(store: ConversationStore) -> None:
    """They would hold the event loop that they wait for: that is misuse, and says so."""
    chats = LlamaIndexChatStore(store=store, user_id="ada")
    for call in (
        lambda: chats.get_messages("s"),
        lambda: chats.set_messages("s", MESSAGES),
        lambda: chats.add_message("s", MESSAGES[0]),
        lambda: chats.delete_messages("s"),
        lambda: chats.delete_message("s", 0),
        lambda: chats.delete_last_message("s"),
        chats.get_keys,
    ):
        with pytest.raises(UnitOfWorkMisuse, match="StoreThread"):
            call()


async def test_another_event_loop_needs_a_thread(store: ConversationStore) -> None:
    """A Memory makes one for calls that are not async; it would wait for this one for ever."""
    memory = memory_of(store)
    await memory.aput(ChatMessage("one"))
    for call in (
        lambda: memory.put(ChatMessage("two")),
        memory.get,
        lambda: memory_of(store, chat_history=said("two")),
    ):
        with pytest.raises(UnitOfWorkMisuse, match="StoreThread"):
            call()
        with pytest.raises(UnitOfWorkMisuse, match="StoreThread"):
            await asyncio.to_thread(call)
    assert texts_of(await memory.aget_all()) == ["one"]


@pytest.mark.usefixtures("postgres")
def test_without_an_event_loop(dsn: str) -> None:
    """A store in a thread of its own serves memories of each kind, and event loops beside them."""
    with StoreThread(ConversationStore.connect(dsn, min_size=1, max_size=4)) as thread:
        chats = LlamaIndexChatStore(store=thread, user_id="ada")
        buffer = ChatMemoryBuffer.from_defaults(chat_store=chats, chat_store_key="b")
        engine = SimpleChatEngine.from_defaults(llm=model(), memory=buffer)
        assert str(engine.chat("one")) == "answer to one"
        assert str(asyncio.run(engine.achat("two"))) == "answer to two"
        assert texts_of(buffer.get()) == ["one", "answer to one", "two", "answer to two"]
        assert chats.delete_last_message("b") == ChatMessage("answer to two", role="assistant")
        assert texts_of(chats.delete_messages("b")) == ["one", "answer to one", "two"]

        summary = ChatSummaryMemoryBuffer.from_defaults(
            chat_store=chats, chat_store_key="c", llm=model(), token_limit=4
        )
        for text in ("one two three", "four five six"):
            summary.put(ChatMessage(text))
        assert summary.get()[-1].content == "four five six"
        assert len(chats.get_messages("c")) == 2
        assert chats.get_messages("c")[0].role is MessageRole.SYSTEM
        assert chats.delete_message("c", 0) is not None
        chats.add_message("c", MESSAGES[3])
        assert chats.get_messages("c")[1] == MESSAGES[3]
        assert sorted(chats.get_keys()) == ["c"]

        memory = memory_of(thread)
        talk = SimpleChatEngine.from_defaults(llm=model(), memory=memory)
        assert str(talk.chat("one")) == "answer to one"
        assert texts_of(memory.get_all()) == ["one", "answer to one"]
        memory.set(MESSAGES)
        assert memory.get_all() == MESSAGES


# What goes over the wire --------------------------------------------------------------------------


async def test_round_trips(dsn: str, migrated: set[str]) -> None:
    """Each call costs what the guide says."""
    watcher = Watcher()
    async with open_store(dsn, "operational", migrated, observer=watcher) as store:
        chats = LlamaIndexChatStore(store=store, user_id="ada")
        memories = LlamaIndexMemoryStore(store=store, user_id="ada")
        await memories.add_messages("s", said(*"abc"))
        await chats.aget_messages("s")
        calls: list[tuple[Any, int]] = [
            (chats.async_add_message("s", MESSAGES[0]), 1),
            (chats.aget_messages("s"), 1),
            (chats.aset_messages("s", said(*"abcdef")), 1),
            (chats.adelete_last_message("s"), 1),
            (chats.adelete_message("s", 1), 3),
            (chats.adelete_messages("s"), 3),
            (chats.aget_keys(), 1),
            (memories.add_messages("s", said(*"abcdef")), 1),
            (memories.get_messages("s"), 2),
            (memories.get_messages("s", None), 1),
            (memories.archive_oldest_messages("s", 2), 3),
            (memories.get_messages("s"), 2),
            (memories.delete_oldest_messages("s", 1), 6),
            (memories.set_messages("s", said("x")), 2),
            (memories.delete_messages("s"), 2),
        ]
        for call, trips in calls:
            watcher.forget()
            name: str = call.__qualname__
            await call
            assert (name, watcher.total().round_trips) == (name, trips)


async def test_the_queries_of_the_guide(postgres: ConversationStore, dsn: str) -> None:
    """They count the calls of tools, and show the active messages of a session."""
    chats = LlamaIndexMemoryStore(store=postgres, user_id="ada")
    await chats.add_messages("s-1", MESSAGES[:6])
    await chats.archive_oldest_messages("s-1", 4)
    await chats.add_message("s-1", ChatMessage("archived"), ARCHIVED)
    calls, active = queries_of("llama-index.md")
    with psycopg.connect(dsn) as connection:
        assert connection.execute(calls).fetchall() == [("weather", 2)]
        shown = connection.execute(active).fetchall()
    assert shown == [(5, "assistant", "think"), (6, "tool", "sunny")]


@pytest.mark.usefixtures("postgres")
def test_the_script_of_the_guide(dsn: str) -> None:
    """Run again, in another process, it shows the history of the first time, and goes on."""
    first = run_script("llama-index.md", dsn)
    assert first == "user: What is a heron?\nassistant: A bird that stands still.\n"
    assert run_script("llama-index.md", dsn) == first * 2
