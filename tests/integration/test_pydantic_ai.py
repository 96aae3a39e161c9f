"""Histories and stores of Pydantic AI, used by Pydantic AI itself, with a model that is offline."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from guide_script import queries_of, run_script
from store_fixtures import draft, open_store, stored
from watching import Watcher

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("pydantic_ai", reason="needs the extra pydantic-ai")

from pydantic_ai import Agent
from pydantic_ai.conversation import Conversation as TheirConversation
from pydantic_ai.conversation_store import (
    ConversationConflict,
    ConversationEntry,
    ConversationRecord,
    InMemoryConversationStore,
)
from pydantic_ai.conversation_store import ConversationStore as TheirStore
from pydantic_ai.messages import (
    AudioUrl,
    BinaryContent,
    BinaryImage,
    CachePoint,
    Citation,
    CompactionPart,
    ContentCitationAnchor,
    DocumentUrl,
    FilePart,
    ImageUrl,
    ModelMessage,
    ModelMessagesTypeAdapter,
    ModelRequest,
    ModelRequestAttempt,
    ModelResponse,
    NativeToolCallPart,
    NativeToolReturnPart,
    RetryFeedbackPart,
    RetryInfo,
    SpeechPart,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UploadedFile,
    UserPromptPart,
    VideoUrl,
    WebCitationSource,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.run import AgentRunResult
from pydantic_ai.tools import DeferredToolRequests
from pydantic_ai.usage import RequestUsage, RunUsage, UsageLimits

from conversation_store import (
    ConversationNotAcceptingMessages,
    ConversationStore,
    InvalidConversation,
    InvalidMessage,
    UnitOfWorkMisuse,
    append_messages,
    close_conversation,
    delete_conversation,
    find_conversation,
    list_conversations,
    redact_message,
    update_conversation,
)
from conversation_store.adapters import pydantic_ai_store
from conversation_store.adapters.pydantic_ai import PydanticAIHistory
from conversation_store.adapters.pydantic_ai_store import PydanticAIStore
from conversation_store.adapters.store_thread import StoreThread

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

MESSAGES: list[ModelMessage] = [
    ModelRequest(
        [SystemPromptPart("be kind", timestamp=NOW), UserPromptPart("hi", timestamp=NOW)],
        timestamp=NOW,
        instructions="be brief",
        run_id="r-1",
        conversation_id="c-1",
        metadata={"trace": [1, {"b": None}]},
    ),
    ModelResponse(
        [
            ThinkingPart("think", signature="s==", provider_name="p", provider_details={"a": 1}),
            TextPart(
                "a cat",
                citations=[
                    Citation(
                        sources=[WebCitationSource(url="https://example.org")],
                        anchor=ContentCitationAnchor(start=0, end=3),
                    )
                ],
            ),
            ToolCallPart("weather", {"city": "Üxküll", "days": 2}, "t_1"),
            ToolCallPart("weather", '{"cut', "t_2"),
            NativeToolCallPart("web_search", {"q": "x"}, "t_3", provider_name="p"),
            NativeToolReturnPart("web_search", ["y"], "t_3", timestamp=NOW, provider_name="p"),
            FilePart(BinaryImage(b"\x89PNG\xff", media_type="image/png")),
            CompactionPart("so far", provider_name="p"),
        ],
        usage=RequestUsage(input_tokens=3, output_tokens=4, cost=Decimal("0.000123")),
        model_name="m",
        timestamp=NOW,
        provider_details={"logprob": -0.25},
        finish_reason="tool_call",
        failed_attempts=[
            ModelRequestAttempt(
                model_name="n", outcome="rejected", timestamp=NOW, duration=timedelta(seconds=1.5)
            )
        ],
    ),
    ModelRequest(
        [
            ToolReturnPart("weather", "sunny", "t_1", metadata={"n": 1}, timestamp=NOW),
            ToolReturnPart("weather", "no", "t_2", timestamp=NOW, outcome="retried"),
            UserPromptPart(["look", ImageUrl("https://example.org/a.png")], timestamp=NOW),
        ]
    ),
    ModelRequest(
        [
            UserPromptPart(
                [
                    "what is this?",
                    TextContent("and that?", metadata={"a": 1}),
                    ImageUrl("https://example.org/a.png", vendor_metadata={"detail": "low"}),
                    AudioUrl("https://example.org/a.mp3"),
                    VideoUrl("https://example.org/a.mp4"),
                    DocumentUrl("https://example.org/a.pdf", force_download=True),
                    BinaryContent(bytes(range(256)), media_type="application/pdf"),
                    UploadedFile("f-1", provider_name="openai", media_type="application/pdf"),
                    CachePoint(),
                ],
                timestamp=NOW,
            )
        ]
    ),
    ModelRequest([ToolReturnPart("w", {"degrees": 3, "sky": ["ü"]}, "t_4", timestamp=NOW)]),
    ModelRequest(
        [
            ToolReturnPart(
                "w", ["see", BinaryImage(b"\xff", media_type="image/png")], "t_5", timestamp=NOW
            )
        ]
    ),
    ModelRequest([RetryFeedbackPart("again", retry=RetryInfo(cause="model_retry"), timestamp=NOW)]),
    ModelRequest([SpeechPart(speaker="user", transcript="spoken")]),
    ModelRequest([], state="interrupted"),
    ModelResponse([], timestamp=NOW),
    ModelRequest([UserPromptPart("a\0b \ud800", timestamp=NOW)]),
    ModelRequest([ToolReturnPart("w", {"\0": "\ud800"}, "t_6", timestamp=NOW)]),
    ModelRequest(
        [UserPromptPart([BinaryImage(b"\xff" * 2_000_000, media_type="image/png")], timestamp=NOW)]
    ),
    ModelResponse([ToolCallPart("w", {"n": 10**400, "x": 1e23}, "t_7")], timestamp=NOW),
]
"""Messages of every kind, and what the store cannot hold as it is."""


def asking(text: str) -> ModelRequest:
    """Return what a user says."""
    return ModelRequest([UserPromptPart(text, timestamp=NOW)])


def saying(text: str) -> ModelResponse:
    """Return what a model says."""
    return ModelResponse([TextPart(text)], timestamp=NOW)


def text_of(message: ModelMessage) -> str:
    """Return what a message says last."""
    part: Any = message.parts[-1]
    return str(getattr(part, "content", part))


def answer(messages: list[ModelMessage], _: AgentInfo) -> ModelResponse:
    """Answer what was said last; asked for the weather, call a tool first."""
    part = messages[-1].parts[-1]
    if isinstance(part, ToolReturnPart):
        return saying(f"It is {part.content}.")
    text = text_of(messages[-1])
    if "weather" in text:
        call = ToolCallPart("weather", {"city": "Üxküll"}, f"t_{len(messages)}")
        return ModelResponse([ThinkingPart("look out of the window"), call])
    return saying(f"answer to {text}")


async def answer_in_parts(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
    """Answer what was said last, word by word."""
    for word in text_of(answer(messages, info)).split(" "):
        yield word


def agent() -> Agent[None, str]:
    """Return an agent with a model of its own."""
    model = FunctionModel(answer, stream_function=answer_in_parts)
    made = Agent(model, system_prompt="be kind")

    @made.tool_plain
    def weather(city: str) -> str:
        """Tell the weather."""
        return f"sunny in {city}"

    assert callable(weather)
    return made


@pytest.fixture
def store(framework_store: ConversationStore) -> ConversationStore:
    """Give an empty store of each kind."""
    return framework_store


def history_of(store: Any, session_id: str = "s") -> PydanticAIHistory:
    """Return a history of ada's."""
    return PydanticAIHistory(session_id, store=store, user_id="ada")


# A history ----------------------------------------------------------------------------------------


async def test_messages_of_every_kind_come_back_unchanged(store: ConversationStore) -> None:
    """In order; another history of the same session reads them; cleared there are none."""
    history = history_of(store)
    assert await history.load() == []
    await history.clear()
    await history.add([])
    assert await find_conversation(store.unit_of_work(user_id="ada"), session_id="s") is None
    await history.add(MESSAGES)
    await history.add(MESSAGES[:1])
    found = await history_of(store).load()
    for message, expected in zip(found, [*MESSAGES, MESSAGES[0]], strict=True):
        assert message == expected
        assert list(map(type, message.parts)) == list(map(type, expected.parts))
    assert await PydanticAIHistory("s", store=store, user_id="bob").load() == []
    await history.clear()
    assert await history.load() == []


async def test_what_people_read(store: ConversationStore) -> None:
    """The words are the content; the rest is found by its path in the metadata."""
    await history_of(store).add(MESSAGES)
    conversation, messages = await stored(store)
    assert conversation.source == "pydantic-ai"
    assert [(message.role.value, message.content) for message in messages[:12]] == [
        ("user", "hi"),
        (
            "assistant",
            'think\na cat\n{"city": "Üxküll", "days": 2}\n{"cut\n{"q": "x"}\n["y"]\nso far',
        ),
        ("tool", "sunny\nno"),
        ("user", "what is this?\nand that?"),
        ("tool", '{"degrees": 3, "sky": ["ü"]}'),
        ("tool", "see"),
        ("system", "again"),
        ("user", "spoken"),
        ("system", ""),
        ("assistant", ""),
        ("user", messages[10].content),
        ("tool", messages[11].content),
    ]
    metadata: Any = messages[1].metadata
    assert metadata["pydantic_ai"]["parts"][2]["tool_name"] == "weather"


@pytest.mark.data
async def test_hostile_strings(store: ConversationStore, naughty_strings: list[str]) -> None:
    """As what is said, as what a tool is called with, and as names in what it gave."""
    messages: list[ModelMessage] = []
    for text in naughty_strings:
        call = ToolCallPart("w", {text: [text]}, "t")
        messages += [
            asking(text),
            ModelResponse([TextPart(text), call], timestamp=NOW),
            ModelRequest([ToolReturnPart("w", {text: text}, "t", timestamp=NOW)]),
        ]
    await history_of(store).add(messages)
    assert await history_of(store).load() == messages


async def test_what_is_no_json(store: ConversationStore) -> None:
    """Comes back as Pydantic AI reads it from JSON; what has no JSON is refused."""
    history = history_of(store)
    image = BinaryContent(b"\xff", media_type="image/png")
    given: list[ModelMessage] = [
        ModelRequest([UserPromptPart([image], timestamp=NOW)]),
        ModelRequest([ToolReturnPart("w", {"a": (1, b"\xff")}, "t", timestamp=NOW)]),
    ]
    await history.add(given)
    as_json = ModelMessagesTypeAdapter.dump_json(given)
    assert await history.load() == ModelMessagesTypeAdapter.validate_json(as_json)
    with pytest.raises(ValueError, match="serialize"):
        await history.add([ModelRequest([ToolReturnPart("w", object(), "t")])])
    with pytest.raises(InvalidMessage):
        await history.add([asking("x"), asking("x" * 10_000_001)])
    assert len(await history.load()) == 2


async def test_a_limit_begins_where_a_user_speaks(store: ConversationStore) -> None:
    """At most so many; but a turn that is longer is whole, and nothing is without its call."""
    history = history_of(store)
    call: ModelMessage = ModelResponse([ToolCallPart("w", {}, "t")], timestamp=NOW)
    gave: ModelMessage = ModelRequest([ToolReturnPart("w", "x", "t", timestamp=NOW)])
    short: list[ModelMessage] = [asking("one"), saying("two")]
    long: list[ModelMessage] = [asking("three"), *[call, gave] * 9, saying("four")]
    await history.add(short)
    await history.add(short)
    assert await history.load(1) == short
    assert await history.load(2) == short
    assert await history.load(3) == short
    assert await history.load(4) == short * 2
    await history.add(long)
    for limit in (1, 2, 5, 20, 21):
        assert await history.load(limit) == long
    assert await history.load(22) == short + long
    assert await history.load(99) == short * 2 + long
    assert await history.load(0) == []
    await history.clear()
    await history.add([call, gave])
    assert await history.load(1) == [call, gave]


async def test_histories_that_are_closed_or_deleted(store: ConversationStore) -> None:
    """Closed it takes nothing; deleted it begins anew."""
    history, uow = history_of(store), store.unit_of_work(user_id="ada")
    await history.add(MESSAGES[:2])
    conversation, _ = await stored(store)
    await close_conversation(uow, conversation_id=conversation.id)
    for work in (history.add(MESSAGES), history.clear()):
        with pytest.raises(ConversationNotAcceptingMessages):
            await work
    assert await history.load() == MESSAGES[:2]
    await delete_conversation(uow, conversation_id=conversation.id)
    assert await history.load() == []
    await history.add(MESSAGES[2:3])
    assert await history.load() == MESSAGES[2:3]


async def test_messages_of_others(store: ConversationStore) -> None:
    """What no history stored is its role and its words; so is what was redacted."""
    history, uow = history_of(store), store.unit_of_work(user_id="ada")
    await history.add(MESSAGES[:1])
    conversation, [first] = await stored(store)
    others = [draft(role, role) for role in ("user", "assistant", "system", "tool")]
    others += [draft("theirs", metadata={"pydantic_ai": value}) for value in (None, {"x": 1}, [1])]
    await append_messages(uow, conversation_id=conversation.id, drafts=others)
    await redact_message(uow, message_id=first.id)
    found = await history.load()
    kinds = [type(message.parts[0]) for message in found]
    assert kinds[:5] == [UserPromptPart, UserPromptPart, TextPart, SystemPromptPart, TextPart]
    words = ["[redacted]", "user", "assistant", "system", "tool", *["theirs"] * 3]
    assert list(map(text_of, found)) == words


async def test_runs(store: ConversationStore) -> None:
    """A run is shown what the runs before said: thoughts, calls and what they gave, too."""
    history = history_of(store)
    first = await agent().run("the weather?", message_history=await history.load())
    assert first.output == "It is sunny in Üxküll."
    await history.add(first.new_messages())
    assert await history_of(store).load() == first.all_messages()
    async with agent().run_stream("and now?", message_history=await history.load()) as streamed:
        assert await streamed.get_output() == "answertoandnow?"
        await history.add(streamed.new_messages())
    assert await history.load() == streamed.all_messages()
    _, messages = await stored(store)
    roles = [message.role.value for message in messages]
    assert roles == ["user", "assistant", "tool", "assistant", "user", "assistant"]


@pytest.mark.parametrize(("kind", "stores"), [("memory", 1), ("postgres", 1), ("postgres", 4)])
async def test_sixteen_runs_at_once(
    kind: str, stores: int, request: pytest.FixtureRequest, dsn: str, migrated: set[str]
) -> None:
    """On one session that none has met: nothing is lost, doubled, torn, or in another order.

    On PostgreSQL also where they share no store.
    """
    async with AsyncExitStack() as stack:
        if kind == "memory":
            opened = [await stack.enter_async_context(ConversationStore.in_memory())]
        else:
            opened = [
                await stack.enter_async_context(
                    open_store(dsn, "operational", migrated, max_size=4)
                )
                for _ in range(stores)
            ]

        async def work(number: int) -> None:
            history = history_of(opened[number % len(opened)])
            for part in range(3):
                asked = f"weather {number}/{part}"
                result = await agent().run(asked, message_history=await history.load())
                await history.add(result.new_messages())

        await asyncio.gather(*map(work, range(16)))
        _, messages = await stored(opened[0])
        assert [message.position for message in messages] == list(range(1, 16 * 3 * 4 + 1))
        asked = [message.content for message in messages[::4]]
        assert sorted(asked) == sorted(
            f"weather {n}/{part}" for n in range(16) for part in range(3)
        )
        for number in range(16):
            mine = [text for text in asked if text.startswith(f"weather {number}/")]
            assert mine == [f"weather {number}/{part}" for part in range(3)]
        found = await history_of(opened[0]).load()
        for first in range(0, len(found), 4):
            turn = found[first : first + 4]
            assert len({message.run_id for message in turn}) == 1
            assert text_of(turn[3]) == "It is sunny in Üxküll."


async def test_calls_that_are_not_async_need_a_thread(store: ConversationStore) -> None:
    """They would hold the event loop that they wait for: that is misuse, and says so."""
    history = history_of(store)
    for call in (history.load_sync, history.clear_sync, lambda: history.add_sync(MESSAGES)):
        with pytest.raises(UnitOfWorkMisuse, match="StoreThread"):
            call()


@pytest.mark.usefixtures("postgres")
def test_without_an_event_loop(dsn: str) -> None:
    """A store in a thread of its own serves run_sync, and event loops beside it."""
    with StoreThread(ConversationStore.connect(dsn, min_size=1, max_size=4)) as thread:
        history = history_of(thread)

        async def ask(text: str) -> None:
            result = await agent().run(text, message_history=await history.load())
            await history.add(result.new_messages())

        async def save() -> list[str]:
            theirs = PydanticAIStore(store=thread, user_id="ada")
            await theirs.save(TheirConversation(conversation_id="t", messages=MESSAGES[:2]))
            return [record.conversation_id for record in await theirs.list_conversations()]

        asyncio.run(ask("one"))
        asyncio.run(ask("two"))
        said = list(map(text_of, history.load_sync()))
        assert said == ["one", "answer to one", "two", "answer to two"]
        assert list(map(text_of, history.load_sync(2))) == said[2:]
        history.clear_sync()
        history.add_sync(MESSAGES)
        assert history.load_sync() == MESSAGES
        assert asyncio.run(save()) == ["t"]


# Their port ---------------------------------------------------------------------------------------


async def begin(theirs: TheirStore, seen: list[Any]) -> AgentRunResult[str]:
    """Save a conversation of two messages, and a run; load them."""
    assert await theirs.load("c") is None
    made = TheirConversation(conversation_id="c", messages=[asking("one"), saying("two")])
    made.usage = RunUsage(requests=1, input_tokens=3, details={"x": 1})
    entries = await theirs.save(made, scope="room")
    seen.append([entry.message for entry in entries])
    assert await theirs.save(made) == []
    result = await agent().run("the weather?", conversation=made)
    saved = await theirs.save(result)
    assert [entry.message for entry in saved] == result.new_messages()
    assert saved[0].parent_id == entries[1].id
    loaded = await theirs.load("c", limit=3)
    assert loaded is not None
    seen.append([loaded.usage.requests, list(map(text_of, loaded.messages))])
    assert await theirs.load("c", limit=0) is not None
    assert await theirs.load("c", scope="other") is None
    return result


async def branch_and_fork(
    theirs: TheirStore, seen: list[Any], result: AgentRunResult[str]
) -> TheirConversation:
    """Go back to an earlier message and on from there, copy it twice, and come back."""
    branched = await theirs.branch("c", at=2, expected_revision=result.conversation.revision)
    seen.append(list(map(text_of, branched.messages)))
    branched.messages += [asking("five"), saying("six")]
    await theirs.save(branched)
    record = await theirs.read_record("c")
    assert record is not None
    [left] = record.branches
    assert (await theirs.read_entry(left)).message == result.all_messages()[-1]
    seen.append([len(await theirs.read_history(left)), len(await theirs.read_history(None))])
    entries = await theirs.load_entries("c")
    assert entries is not None
    forked = await theirs.fork("c", new_conversation_id="d", scope="hall")
    seen.append(list(map(text_of, forked.messages)))
    forked.messages.append(asking("seven"))
    await theirs.save(forked)
    early = await theirs.fork("c", from_entry=entries[0].id, new_conversation_id="e")
    seen.append([list(map(text_of, early.messages)), early.usage.requests])
    fork = await theirs.load_entries("d")
    assert fork is not None
    assert [entry.id for entry in fork[:4]] == [entry.id for entry in entries]
    back = await theirs.branch("c", from_entry=left, expected_revision=branched.revision)
    assert back.messages == result.all_messages()
    return back


async def rewrite(theirs: TheirStore, seen: list[Any], back: TheirConversation) -> None:
    """Put another message in the place of one; then save what is stale in every way."""
    back.messages[0] = asking("rewritten")
    back.deferred_tool_requests = DeferredToolRequests(
        approvals=[ToolCallPart("w", {"a": "\0"}, "t")], metadata={"t": {"n": 1e23}}
    )
    await theirs.save(back)
    again = await theirs.load("c")
    assert again is not None
    seen.append([list(map(text_of, again.messages)), again.deferred_tool_requests])
    stale = replace(again, messages=[*again.messages, asking("stale")])
    again.messages.append(asking("newer"))
    await theirs.save(again)
    lost = ConversationRecord(conversation_id="f", head_id="none")
    for work in (
        theirs.save(stale),
        theirs.save(TheirConversation(conversation_id="c", messages=[])),
        theirs.save(again, scope="other"),
        theirs.branch("c", at=0, expected_revision=stale.revision),
        theirs.fork("c", new_conversation_id="d"),
        theirs.delete_record("c", expected_revision="none"),
        theirs.delete_record("x", expected_revision="none"),
        theirs.write_record(lost, expected_revision=None),
        theirs.write_record(replace(lost, head_id=None), expected_revision="none"),
    ):
        with pytest.raises(ConversationConflict):
            await work
    with pytest.raises(LookupError):
        await theirs.read_entry("none")


async def play(theirs: TheirStore) -> list[Any]:
    """Do all that a store of theirs can do, and return what was seen."""
    seen: list[Any] = []
    result = await begin(theirs, seen)
    await rewrite(theirs, seen, await branch_and_fork(theirs, seen, result))
    listed = await theirs.list_conversations()
    seen.append([[one.conversation_id, one.scope, one.forked_from] for one in listed])
    seen.append([one.conversation_id for one in await theirs.list_conversations(scope="hall")])
    seen.append([one.conversation_id for one in await theirs.list_conversations(limit=1)])
    await theirs.delete("c", scope="other")
    await theirs.delete("c")
    assert await theirs.load("c") is None
    rest = await theirs.load("d")
    assert rest is not None
    seen.append(list(map(text_of, rest.messages)))
    return seen


async def test_it_does_what_theirs_in_memory_does(store: ConversationStore) -> None:
    """Of the same calls both give the same: saves, branches, forks, conflicts, lists, deletions."""
    assert await play(PydanticAIStore(store=store, user_id="ada")) == await play(
        InMemoryConversationStore()
    )
    assert await find_conversation(store.unit_of_work(user_id="ada"), session_id="c") is None


async def test_entries_that_another_process_stored(store: ConversationStore) -> None:
    """Are found by their ids, wherever they stand; of other users there are none."""
    first = PydanticAIStore(store=store, user_id="ada")
    ids: list[str] = []
    for name in ("c", "d"):
        made = TheirConversation(conversation_id=name, messages=list(MESSAGES))
        entries = await first.save(made)
        ids += [entry.id for entry in entries]
    second = PydanticAIStore(store=store, user_id="ada")
    for entry_id, message in zip(ids[::5], [*MESSAGES, *MESSAGES][::5], strict=True):
        assert (await second.read_entry(entry_id)).message == message
    assert [entry.id for entry in await second.read_history(ids[2])] == ids[:3]
    with pytest.raises(LookupError):
        await PydanticAIStore(store=store, user_id="bob").read_entry(ids[0])
    loaded = await second.load("c")
    assert loaded is not None
    assert loaded.messages == MESSAGES
    assert await history_of(store, "c").load() == MESSAGES


async def test_entries_that_are_gone(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Are not found, and said to be lost; the conversation can be deleted all the same."""
    monkeypatch.setattr(pydantic_ai_store, "_MOST_MET", 1)
    theirs = PydanticAIStore(store=store, user_id="ada")
    for name in ("s", "t"):
        await theirs.save(TheirConversation(conversation_id=name, messages=MESSAGES[:2]))
    await history_of(store).clear()
    with pytest.raises(LookupError):
        await theirs.load("s")
    await theirs.delete("s")
    loaded = await theirs.load("t")
    assert loaded is not None
    assert loaded.messages == MESSAGES[:2]


async def test_a_record_that_a_metadata_cannot_hold(store: ConversationStore) -> None:
    """Comes back equal."""
    theirs = PydanticAIStore(store=store, user_id="ada")
    for value in (1e23, "\ud800", 10**400):
        asked = DeferredToolRequests(
            calls=[ToolCallPart("w", {}, "t")], metadata={"t": {"n": value}}
        )
        made = TheirConversation(conversation_id=repr(value)[:9], deferred_tool_requests=asked)
        await theirs.save(made)
        loaded = await theirs.load(made.conversation_id)
        assert loaded is not None
        assert loaded.deferred_tool_requests == asked


async def test_what_it_takes(store: ConversationStore) -> None:
    """What is more than the guide says is refused, and leaves no conversation behind."""
    theirs = PydanticAIStore(store=store, user_id="ada")
    asked = DeferredToolRequests(approvals=[ToolCallPart("w", {"a": "x" * 1_000_000}, "t")])
    too_large = TheirConversation(conversation_id="s", deferred_tool_requests=asked)
    for made in (too_large, *(TheirConversation(conversation_id=name) for name in ("", "s" * 256))):
        with pytest.raises(InvalidConversation):
            await theirs.save(made)
    with pytest.raises(InvalidMessage):
        await theirs.save(TheirConversation(messages=[asking("x" * 10_000_001)]))
    page = await list_conversations(store.unit_of_work(user_id="ada"))
    assert page.conversations == []


async def test_what_others_do_to_its_conversations(store: ConversationStore) -> None:
    """What was redacted is a tombstone in the history; metadata and messages of others stay."""
    theirs, uow = PydanticAIStore(store=store, user_id="ada"), store.unit_of_work(user_id="ada")
    made = TheirConversation(conversation_id="s")
    for text in ("one", "two", "three", "four"):
        made.messages += [asking(text), saying(f"answer to {text}")]
        await theirs.save(made)
    conversation, messages = await stored(store)
    metadata: Any = conversation.metadata
    for place in (0, 3, 4, 7):
        await redact_message(uow, message_id=messages[place].id)
    said = [
        *("[redacted]", "answer to one", "two", "[redacted]"),
        *("[redacted]", "answer to three", "four", "[redacted]"),
    ]
    loaded = await theirs.load("s")
    assert loaded is not None
    assert list(map(text_of, loaded.messages)) == said
    window = await PydanticAIStore(store=store, user_id="ada").load("s", limit=2)
    assert window is not None
    assert list(map(text_of, window.messages)) == said[-2:]
    await theirs.fork("s", new_conversation_id="t")
    forked = await PydanticAIStore(store=store, user_id="ada").load("t")
    assert forked is not None
    assert list(map(text_of, forked.messages)) == said
    await update_conversation(
        uow, conversation_id=conversation.id, metadata={**metadata, "ours": 1}
    )
    await append_messages(uow, conversation_id=conversation.id, drafts=[draft("of another")])
    loaded.messages.append(asking("five"))
    await theirs.save(loaded)
    conversation, messages = await stored(store)
    assert conversation.metadata is not None
    assert conversation.metadata["ours"] == 1
    assert [message.content for message in messages[-2:]] == ["of another", "five"]
    await close_conversation(uow, conversation_id=conversation.id)
    loaded.messages.append(asking("six"))
    with pytest.raises(ConversationNotAcceptingMessages):
        await theirs.save(loaded)


async def test_long_conversations(store: ConversationStore) -> None:
    """More entries than one call of the store may hold: saved, forked, and read from the end."""
    theirs = PydanticAIStore(store=store, user_id="ada")
    made = TheirConversation(
        conversation_id="c", messages=[asking(str(number)) for number in range(2_100)]
    )
    await theirs.save(made)
    forked = await theirs.fork("c", new_conversation_id="d")
    assert forked.messages == made.messages
    for limit in (1, 1_001, 2_100, 9_999):
        loaded = await theirs.load("d", limit=limit)
        assert loaded is not None
        assert loaded.messages == made.messages[-limit:]


async def test_sixteen_savers_at_once(store: ConversationStore) -> None:
    """Each who meets a conflict runs again: every turn is there once, whole, in order."""

    async def work(number: int) -> int:
        theirs, conflicts = PydanticAIStore(store=store, user_id="ada"), 0
        while True:
            loaded = await theirs.load("s") or TheirConversation(conversation_id="s")
            result = await agent().run(
                f"weather {number}",
                conversation=loaded,
                usage_limits=UsageLimits(request_limit=None),
            )
            try:
                await theirs.save(result)
            except ConversationConflict:
                conflicts += 1
            else:
                return conflicts

    conflicts = await asyncio.gather(*map(work, range(16)))
    assert sum(conflicts) > 0
    _, messages = await stored(store)
    assert [message.position for message in messages] == list(range(1, 16 * 4 + 1))
    asked = [message.content for message in messages[::4]]
    assert sorted(asked) == sorted(f"weather {number}" for number in range(16))
    loaded = await PydanticAIStore(store=store, user_id="ada").load("s")
    assert loaded is not None
    for first in range(0, 16 * 4, 4):
        assert len({message.run_id for message in loaded.messages[first : first + 4]}) == 1
    assert loaded.usage.requests == 16 * 2


# What goes over the wire --------------------------------------------------------------------------


async def test_round_trips(dsn: str, migrated: set[str]) -> None:
    """Each call costs what the guide says."""
    watcher = Watcher()
    async with open_store(dsn, "operational", migrated, observer=watcher) as store:
        history, theirs = history_of(store), PydanticAIStore(store=store, user_id="ada")
        made = TheirConversation(conversation_id="c", messages=MESSAGES[:2])
        await history.add(MESSAGES[:4])
        await theirs.save(made)

        async def cost(work: Callable[[], Coroutine[Any, Any, object]]) -> int:
            watcher.forget()
            await work()
            return watcher.total().round_trips

        async def save() -> Sequence[ConversationEntry]:
            made.messages.append(MESSAGES[2])
            return await theirs.save(made)

        assert await cost(history.load) == 1
        assert await cost(lambda: history.load(2)) == 1
        assert await cost(lambda: history.add(MESSAGES[:4])) == 1
        assert await cost(history.clear) == 1
        assert await cost(lambda: theirs.load("c")) == 2
        assert await cost(save) == 3
        assert await cost(lambda: theirs.fork("c", new_conversation_id="d")) == 5
        revision = made.revision
        assert await cost(lambda: theirs.branch("c", at=1, expected_revision=revision)) == 4
        assert await cost(theirs.list_conversations) == 1
        assert await cost(lambda: theirs.delete("c")) == 3


async def test_the_queries_of_the_guide(postgres: ConversationStore, dsn: str) -> None:
    """They count the calls of tools, and show which sessions have which records."""
    await history_of(postgres).add(MESSAGES)
    theirs = PydanticAIStore(store=postgres, user_id="ada")
    made = TheirConversation(conversation_id="c", messages=MESSAGES[:2])
    made.usage = RunUsage(requests=2)
    await theirs.save(made, scope="room")
    calls, records = queries_of("pydantic-ai.md")
    with psycopg.connect(dsn) as connection:
        assert connection.execute(calls).fetchall() == [("weather", 4)]
        assert connection.execute(records).fetchall() == [("c", "room", 2)]


@pytest.mark.usefixtures("postgres")
def test_the_script_of_the_guide(dsn: str) -> None:
    """Run again, in another process, it shows the history of the first time, and goes on."""
    first = run_script("pydantic-ai.md", dsn)
    assert first == "user-prompt: What is a heron?\ntext: A bird that stands still.\n"
    assert run_script("pydantic-ai.md", dsn) == first * 2
