"""Sessions of the OpenAI Agents SDK: run by the SDK itself, with a model that answers offline."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from guide_script import functions_of, run_script
from store_fixtures import draft, open_store, stored

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("agents", reason="needs the extra openai-agents")

from agents import (
    Agent,
    RunConfig,
    Runner,
    RunState,
    SessionSettings,
    function_tool,
    set_tracing_disabled,
)
from agents.extensions.memory import EncryptedSession
from agents.memory import OpenAIResponsesCompactionSession, Session, SQLiteSession
from agents_items import ITEMS
from agents_stub import Stub, say
from openai import APIError

from conversation_store import (
    ConversationNotAcceptingMessages,
    ConversationStore,
    InvalidMessage,
    StoreClosed,
    UnitOfWorkMisuse,
    append_messages,
    close_conversation,
    delete_conversation,
    find_conversation,
    latest_messages,
    redact_message,
)
from conversation_store.adapters.openai_agents import AgentsSession
from conversation_store.adapters.store_thread import StoreThread

set_tracing_disabled(True)


def tell_weather(city: str) -> str:
    """Tell the weather."""
    return f"sunny in {city}"


weather = function_tool(tell_weather, name_override="weather")


def agent() -> Agent[Any]:
    """Return an agent with a model of its own."""
    return Agent(name="a", model=Stub(), tools=[weather])


@pytest.fixture
def store(framework_store: ConversationStore) -> ConversationStore:
    """Give an empty store of each kind."""
    return framework_store


def session_of(store: ConversationStore, session_id: str = "s", **values: Any) -> AgentsSession:
    """Return a session of ada's."""
    return AgentsSession(session_id, store=store, user_id="ada", **values)


async def test_it_is_a_session(store: ConversationStore) -> None:
    """As the SDK checks it."""
    assert isinstance(session_of(store), Session)


async def test_items_of_every_kind_come_back_unchanged(store: ConversationStore) -> None:
    """Together, alone, and by popping, in order; another session of the same name reads them."""
    session = session_of(store)
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.clear_session()
    await session.add_items([])
    assert await find_conversation(store.unit_of_work(user_id="ada"), session_id="s") is None
    await session.add_items(ITEMS)
    await session.add_items(ITEMS[:1])
    assert await session_of(store).get_items() == [*ITEMS, ITEMS[0]]
    assert await session.pop_item() == ITEMS[0]
    assert [await session.pop_item() for _ in ITEMS] == ITEMS[::-1]
    assert await session.pop_item() is None
    assert await session.get_items() == []


async def test_what_people_read(store: ConversationStore) -> None:
    """The words are the content; who called a tool is the assistant, what it gave is a tool's."""
    await session_of(store).add_items(ITEMS)
    uow = store.unit_of_work(user_id="ada")
    found = await find_conversation(uow, session_id="s")
    assert found is not None
    assert found.source == "openai-agents"
    messages = await latest_messages(uow, conversation_id=found.id)
    said = [(message.role.value, message.content) for message in messages[:12]]
    assert said == [
        ("user", "hi"),
        ("assistant", ""),
        ("system", "be kind"),
        ("user", "typed"),
        ("user", "what is this?"),
        ("assistant", "a cat"),
        ("assistant", "no"),
        ("assistant", "think"),
        ("assistant", '{"a": 1}'),
        ("tool", "1.50"),
        ("tool", "two"),
        ("tool", ""),
    ]
    assert [message.metadata for message in messages[:2]] == [None, None]
    assert messages[8].metadata == {"openai_agents": ITEMS[8]}


async def test_a_limit(store: ConversationStore) -> None:
    """That of the call, that of the settings, or none; the newest, oldest first."""
    items: list[Any] = [{"role": "user", "content": str(number)} for number in range(2_500)]
    session = session_of(store, session_settings=SessionSettings(limit=3))
    await session.add_items(items)
    assert await session.get_items() == items[-3:]
    assert await session_of(store, session_settings={"limit": 2}).get_items() == items[-2:]
    for limit in (1, 1_000, 1_001, 2_499, 2_500, 9_999):
        assert await session.get_items(limit) == items[-limit:]
    assert await session.get_items(0) == []
    assert await session_of(store).get_items() == items


async def test_items_too_large_store_none(store: ConversationStore) -> None:
    """All of one call, or none."""
    session = session_of(store)
    with pytest.raises(InvalidMessage):
        await session.add_items([*ITEMS[:2], {"role": "user", "content": "x" * 10_000_001}])
    assert await session.get_items() == []


async def test_a_session_that_is_closed_or_deleted(store: ConversationStore) -> None:
    """Closed it takes nothing; deleted it begins anew; another user's does not exist."""
    session, uow = session_of(store), store.unit_of_work(user_id="ada")
    await session.add_items(ITEMS[:2])
    await AgentsSession("s", store=store, user_id="bob").clear_session()
    found = await find_conversation(uow, session_id="s")
    assert found is not None
    await close_conversation(uow, conversation_id=found.id)
    for call in (session.add_items(ITEMS), session.pop_item(), session.clear_session()):
        with pytest.raises(ConversationNotAcceptingMessages):
            await call
    assert await session.get_items() == ITEMS[:2]
    await delete_conversation(uow, conversation_id=found.id)
    assert await session.get_items() == []
    assert await session.pop_item() is None
    await session.add_items(ITEMS[2:3])
    assert await session.get_items() == ITEMS[2:3]


async def test_messages_of_others(store: ConversationStore) -> None:
    """What no session stored is its role and its words; so is what was redacted."""
    session, uow = session_of(store), store.unit_of_work(user_id="ada")
    await session.add_items(ITEMS[4:5])
    found = await find_conversation(uow, session_id="s")
    assert found is not None
    said = [draft("a", "system"), draft("b", "tool", slots={"x": 1}, metadata={"m": 1})]
    await append_messages(uow, conversation_id=found.id, drafts=said)
    expected: list[Any] = [
        {"role": "system", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert await session.get_items() == [ITEMS[4], *expected]
    [first, *_] = await latest_messages(uow, conversation_id=found.id)
    await redact_message(uow, message_id=first.id)
    assert await session.get_items() == [{"role": "user", "content": "[redacted]"}, *expected]


# Run by the SDK ---------------------------------------------------------------------------------


async def test_a_run_and_the_next(store: ConversationStore) -> None:
    """The second run is shown what the first said: reasoning, calls and outputs, too."""
    session, first = session_of(store), agent()
    result = await Runner.run(first, "the weather?", session=session)
    assert result.final_output == "It is sunny in Üxküll."
    kinds = [item.get("type", item.get("role")) for item in await session.get_items()]
    assert kinds == ["user", "reasoning", "function_call", "function_call_output", "message"]
    second = agent()
    await Runner.run(second, "and now?", session=session_of(store))
    assert isinstance(second.model, Stub)
    assert second.model.seen[0][:-1] == (await session.get_items())[:5]
    third = agent()
    settings = RunConfig(session_settings=SessionSettings(limit=1))
    await Runner.run(third, "hm?", session=session, run_config=settings)
    assert isinstance(third.model, Stub)
    assert len(third.model.seen[0]) == 2


async def test_a_streamed_run(store: ConversationStore) -> None:
    """Its items are there when the stream has ended."""
    session = session_of(store)
    streamed = Runner.run_streamed(agent(), "the weather?", session=session)
    async for _ in streamed.stream_events():
        pass
    assert streamed.final_output == "It is sunny in Üxküll."
    assert len(await session.get_items()) == 5


class Failing(Stub):
    """Fails the first time, and then answers."""

    async def get_response(self, *given: Any, **named: Any) -> Any:
        """Answer."""
        if not self.seen:
            self.seen.append([])
            raise APIError("busy", cast("Any", None), body=None)
        return await super().get_response(*given, **named)


async def test_a_run_that_failed(store: ConversationStore) -> None:
    """Goes on as the guide shows it, and its question is there once."""
    names: dict[str, Any] = {}
    exec("\n".join(functions_of("openai-agents.md")), names)  # noqa: S102 - it is a document of ours
    session = session_of(store)
    result = await names["insist"](Agent(name="a", model=Failing()), "why?", session)
    assert result.final_output == "answer to why?"
    said = [_text(item) for item in await session.get_items()]
    assert said == ["why?", "answer to why?"]


async def test_a_run_that_waits_for_an_approval(store: ConversationStore) -> None:
    """Is resumed in another process: its question, call, output and answer are there once."""
    careful = function_tool(tell_weather, name_override="weather", needs_approval=True)
    first = Agent(name="a", model=Stub(), tools=[careful])
    waiting = await Runner.run(first, "the weather?", session=session_of(store))
    state = await RunState.from_string(first, waiting.to_state().to_string())
    [asked] = state.get_interruptions()
    state.approve(asked)
    result = await Runner.run(first, state, session=session_of(store))
    assert result.final_output == "It is sunny in Üxküll."
    kinds = [item.get("type", item.get("role")) for item in await session_of(store).get_items()]
    assert kinds == ["user", "reasoning", "function_call", "function_call_output", "message"]


async def test_sixteen_runs_at_once(store: ConversationStore) -> None:
    """On one session that none of them has met: nothing is lost, doubled or torn."""
    await say([session_of(store) for _ in range(4)], range(16))
    check_said([_text(item) for item in await session_of(store).get_items()])


RUNS = """
import asyncio, sys
import agents, agents_stub
from conversation_store import ConversationStore
from conversation_store.adapters.openai_agents import AgentsSession

async def main(dsn, first):
    async with ConversationStore.connect(dsn, min_size=1, max_size=4) as store:
        session = AgentsSession("s", store=store, user_id="ada")
        await agents_stub.say([session], range(first, first + 4))

agents.set_tracing_disabled(True)
asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""


async def test_sixteen_runs_in_four_processes(postgres: ConversationStore, dsn: str) -> None:
    """The same, where the runs know nothing of each other."""
    path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", RUNS, dsn, str(first)), env=os.environ | {"PYTHONPATH": path}
        )
        for first in range(0, 16, 4)
    ]
    assert [await process.wait() for process in processes] == [0, 0, 0, 0]
    check_said([_text(item) for item in await session_of(postgres).get_items()])


def check_said(said: list[str]) -> None:
    """See that each of sixteen runs said its three things in order, and got its answers."""
    expected = {f"{number}/{part}" for number in range(16) for part in range(3)}
    assert sorted(said) == sorted([*expected, *(f"answer to {text}" for text in expected)])
    for number in range(16):
        mine = [text for text in said if text.removeprefix("answer to ").startswith(f"{number}/")]
        assert mine == [
            text for part in range(3) for text in (f"{number}/{part}", f"answer to {number}/{part}")
        ]


def _text(item: Any) -> str:
    content = item["content"]
    return content if isinstance(content, str) else str(content[0]["text"])


async def test_pops_beside_additions(store: ConversationStore) -> None:
    """Each item is popped once, or is there."""
    session = session_of(store)
    added: list[Any] = [{"role": "user", "content": str(number)} for number in range(40)]
    await session.add_items(added[:20])
    calls: list[Any] = [session.add_items([item]) for item in added[20:]]
    calls += [session.pop_item() for _ in range(10)]
    ends = await asyncio.gather(*calls, return_exceptions=True)
    popped = [end for end in ends if isinstance(end, dict)]
    there = await session.get_items()
    assert sorted(_text(item) for item in (*popped, *there)) == sorted(map(_text, added))


# Compacted by the SDK -----------------------------------------------------------------------------


class Compacting:
    """Stands for OpenAI's compaction of a history; meanwhile something happens."""

    def __init__(self, meanwhile: Callable[[], Awaitable[object]], **more: Any) -> None:
        self.responses = self
        self.meanwhile = meanwhile
        self.summary = {"type": "compaction", "encrypted_content": "z", **more}

    async def compact(self, **_: Any) -> Any:
        """Answer."""
        await self.meanwhile()
        return SimpleNamespace(output=[self.summary], usage=None)


def compacted(session: Session, client: Compacting) -> OpenAIResponsesCompactionSession:
    """Return a session that is compacted from the third item on."""
    return OpenAIResponsesCompactionSession(
        "s",
        session,
        client=cast("Any", client),
        compaction_mode="input",
        should_trigger_compaction=lambda given: len(given["session_items"]) > 2,
    )


async def nothing() -> None:
    """Do nothing."""


async def ask(session: Session, *questions: str, **values: Any) -> None:
    """Run a turn for each question."""
    for question in questions:
        await Runner.run(Agent(name="a", model=Stub("r_1")), question, session=session, **values)


async def test_a_session_that_is_compacted(store: ConversationStore) -> None:
    """A summary takes the place of what the model was shown, and the session goes on with it."""
    session, client = session_of(store), Compacting(nothing)
    await ask(compacted(session, client), "one", "two")
    assert await session.get_items() == [client.summary]
    await ask(compacted(session_of(store), client), "three")
    assert await session.get_items() == [client.summary]


@pytest.mark.parametrize("kind", ["ours", "theirs"])
async def test_older_items_than_the_model_was_shown(
    store: ConversationStore, kind: str, tmp_path: Path
) -> None:
    """Stay as they are: the SDK replaces what it showed alone, as in its own sessions."""
    session: Session = session_of(store)
    if kind == "theirs":
        session = SQLiteSession("s", tmp_path / "sessions.db")
    older: list[Any] = [{"role": "user", "content": str(number)} for number in range(9)]
    await session.add_items(older)
    client = Compacting(nothing)
    run_config = RunConfig(session_settings=SessionSettings(limit=3))
    await ask(compacted(session, client), "ten", run_config=run_config)
    assert await session.get_items() == [*older[:-3], client.summary]


async def test_what_others_add_while_a_session_is_compacted(store: ConversationStore) -> None:
    """Is not lost: nothing is replaced then."""
    session, other = session_of(store), session_of(store)
    await ask(session, "one")
    before = await session.get_items()
    await ask(compacted(session, Compacting(lambda: other.add_items(ITEMS[:2]))), "two")
    found = await session.get_items()
    assert found[:2] == before
    assert found[4:] == ITEMS[:2]
    assert len(found) == 6


async def test_a_compaction_that_cannot_be_stored(store: ConversationStore) -> None:
    """Leaves each message where it is; it is one step, so no process ends between two."""
    session = session_of(store)
    await session.add_items(ITEMS[:3])
    _, before = await stored(store)
    with pytest.raises(InvalidMessage):
        await compacted(session, Compacting(nothing, more="x" * 10_000_001)).run_compaction()
    assert (await stored(store))[1] == before
    await compacted(session, Compacting(nothing)).run_compaction({"force": True})
    assert len(await session.get_items()) == 1


async def test_an_encrypted_session_that_is_compacted(store: ConversationStore) -> None:
    """A summary is encrypted, too; it takes with it what expired before."""
    plain, client = session_of(store), Compacting(nothing)
    session = EncryptedSession("s", compacted(plain, client), encryption_key="k" * 32, ttl=600)
    old: Any = session._wrap(ITEMS[0])
    payload = json.dumps(ITEMS[0]).encode()
    old["payload"] = session.cipher.encrypt_at_time(payload, int(time.time()) - 1000).decode()
    await plain.add_items([old] * 5)
    await ask(session, "one", "two")
    assert await session.get_items() == [client.summary]
    _, messages = await stored(store)
    [metadata] = [message.metadata for message in messages]
    assert metadata is not None
    assert metadata["openai_agents"].keys() == old.keys()


class Upper(AgentsSession):
    """Gives words in another form than it stores them in."""

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """Return the items, in capitals."""
        items: list[Any] = [*await super().get_items(limit)]
        return [item | {"content": item["content"].upper()} for item in items]


async def test_sessions_with_ways_of_their_own(store: ConversationStore) -> None:
    """Are compacted by these alone."""
    session = Upper("s", store=store, user_id="ada")
    assert await session._get_compaction_snapshot(9) is None
    assert not await session._atomic_replace_items([])
    assert await session_of(store)._get_compaction_snapshot(9) is None


# Other event loops ------------------------------------------------------------------------------


def test_run_sync_and_several_loops(dsn: str, migrated: set[str]) -> None:
    """A store in a thread of its own serves each loop, one after the other and at once."""

    async def prepare() -> None:
        async with open_store(dsn, "operational", migrated):
            pass

    asyncio.run(prepare())
    with StoreThread(ConversationStore.connect(dsn, min_size=1, max_size=4)) as thread:
        session = AgentsSession("s", store=thread, user_id="ada")
        with closing(asyncio.new_event_loop()) as loop:
            asyncio.set_event_loop(loop)  # run_sync takes this one
            Runner.run_sync(agent(), "one", session=session)
            asyncio.set_event_loop(None)
        asyncio.run(_run(session, "two"))

        async def many() -> None:
            await asyncio.gather(
                *(asyncio.to_thread(asyncio.run, _run(session, f"three {n}")) for n in range(4))
            )

        asyncio.run(many())
        said = [_text(item) for item in asyncio.run(_items(session))]
        assert said[:4] == ["one", "answer to one", "two", "answer to two"]
        assert len(said) == 12
    with pytest.raises(StoreClosed):
        asyncio.run(_items(session))


async def test_another_event_loop_needs_a_thread(store: ConversationStore) -> None:
    """As long as the first is there; then the next may use what is left of the store."""
    session = session_of(store)
    with closing(asyncio.new_event_loop()) as other:
        await asyncio.to_thread(other.run_until_complete, session.add_items(ITEMS[:1]))
        with pytest.raises(UnitOfWorkMisuse, match="StoreThread"):
            await session.get_items()
    assert await session.get_items() == ITEMS[:1]
    with pytest.raises(UnitOfWorkMisuse, match="StoreThread"):
        await asyncio.to_thread(asyncio.run, _items(session))


async def _run(session: Session, text: str) -> None:
    await Runner.run(agent(), text, session=session)


async def _items(session: Session) -> list[Any]:
    return [*await session.get_items()]


def test_a_thread_whose_store_cannot_be_opened() -> None:
    """It ends, and the error is told."""

    @asynccontextmanager
    async def closed() -> AsyncIterator[ConversationStore]:
        raise LookupError
        yield ConversationStore.in_memory()

    before = threading.active_count()
    with pytest.raises(LookupError), StoreThread(closed()):
        pass
    assert threading.active_count() == before


def test_the_package_does_not_import_it() -> None:
    """Whoever does not ask for it needs no SDK, and does not wait for it."""
    code = "import conversation_store, sys; sys.exit('agents' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.usefixtures("postgres")
def test_the_script_of_the_guide(dsn: str) -> None:
    """Run again, in another process, it shows the history of the first time, and goes on."""
    prelude = (
        "import agents, agents_stub, functools\n"
        "agents.set_tracing_disabled(True)\n"
        "agents.Agent = functools.partial(agents.Agent, model=agents_stub.Stub())\n"
    )
    first = run_script("openai-agents.md", dsn, prelude=prelude)
    assert "answer to What is a heron?" in first
    assert "answer to Where does it live?" in first
    second = run_script("openai-agents.md", dsn, prelude=prelude)
    assert second == first * 2
