"""The session service of Google ADK, used by ADK's runner, with a model that answers offline."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from guide_script import GUIDES, run_script
from psycopg.conninfo import make_conninfo
from store_fixtures import open_store

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("google.adk", reason="needs the extra google-adk")

from google.adk import Agent, Runner
from google.adk.agents import ParallelAgent, RunConfig
from google.adk.agents._streaming_mode import StreamingMode
from google.adk.apps import App
from google.adk.apps.app import EventsCompactionConfig
from google.adk.apps.base_events_summarizer import BaseEventsSummarizer
from google.adk.errors import StaleSessionError
from google.adk.events import Event, EventActions
from google.adk.events.event_actions import EventCompaction
from google.adk.models import BaseLlm
from google.adk.models.llm_request import LlmRequest
from google.adk.models.llm_response import LlmResponse
from google.adk.sessions import Session
from google.adk.tools.tool_context import ToolContext
from google.genai import types

from conversation_store import ConversationStore
from conversation_store.adapters.google_adk import AdkSessionService

pytestmark = [
    pytest.mark.filterwarnings("ignore:ParallelAgent is deprecated"),
    pytest.mark.filterwarnings("ignore:.EXPERIMENTAL."),
]

RUNNERS = 16
BLOCKS = r"(?ms)^```(?:python|sql)\n(.*?)^```$"


@pytest.fixture(params=["memory", "postgres"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ConversationStore]:
    """Give an empty store of each kind; without row security, for apps have state."""
    if request.param == "memory":
        async with ConversationStore.in_memory() as opened:
            yield opened
        return
    dsn, migrated = (request.getfixturevalue(name) for name in ("dsn", "migrated"))
    # All sixteen wait for one row, one after the other: on a busy machine for some seconds.
    through = make_conninfo(dsn, options="-c lock_timeout=30s")
    async with open_store(dsn, "operational", migrated, through=through) as opened:
        yield opened


class Model(BaseLlm):
    """Answers with how many texts it was shown; asked to note something it calls a tool first."""

    async def generate_content_async(
        self, llm_request: LlmRequest, stream: bool = False
    ) -> AsyncGenerator[LlmResponse]:
        """Answer."""
        await asyncio.sleep(0)
        parts = [part for content in llm_request.contents for part in content.parts or []]
        last = parts[-1]
        if last.text is not None and last.text.startswith("note "):
            call = types.Part.from_function_call(name="note", args={"text": last.text[5:]})
            yield LlmResponse(content=types.Content(role="model", parts=[call]))
            return
        answer = of_model(str(sum(part.text is not None for part in parts)))
        if stream:
            yield LlmResponse(content=answer, partial=True)
        yield LlmResponse(content=answer)


def of_model(text: str) -> types.Content:
    """Return what a model says."""
    return types.Content(role="model", parts=[types.Part(text=text)])


def note(text: str, tool_context: ToolContext) -> dict[str, Any]:
    """Keep a text in states of all kinds."""
    for scope in ("", "user:", "app:", "temp:"):
        tool_context.state[f"{scope}{text}"] = [text]
    return {"noted": text}


def agent(**values: Any) -> Agent:
    """Return an agent that can take notes."""
    return Agent(name="guide", model=Model(model="stub"), tools=[note], **values)


def runner(store: ConversationStore, root: Any, **values: Any) -> Runner:
    """Return a runner of an app, which keeps its sessions in a store."""
    app = App(name="birds", root_agent=root, **values)
    return Runner(app=app, session_service=AdkSessionService(store), auto_create_session=True)


async def ask(running: Runner, text: str, session_id: str = "s", **values: Any) -> list[Event]:
    """Run a turn, and return its events."""
    message = types.UserContent(text)
    events = running.run_async(user_id="ada", session_id=session_id, new_message=message, **values)
    return [event async for event in events]


async def got(store: ConversationStore, session_id: str = "s") -> Session:
    """Return a session that is there, read by a service of its own."""
    session = await AdkSessionService(store).get_session(
        app_name="birds", user_id="ada", session_id=session_id
    )
    assert session is not None
    return session


def words(session: Session) -> list[str]:
    """Return what was said in a session: texts, calls and answers of tools."""
    parts = [
        part for event in session.events if event.content for part in event.content.parts or []
    ]
    return [
        part.text or json.dumps((part.function_call and part.function_call.args) or "response")
        for part in parts
    ]


async def test_a_turn_with_a_tool(store: ConversationStore) -> None:
    """Question, call, response and answer are stored with the states that they set; partly not."""
    running = runner(store, agent(output_key="user:last"))
    await ask(running, "hello")
    events = await ask(
        running, "note heron", run_config=RunConfig(streaming_mode=StreamingMode.SSE)
    )
    assert [event.partial for event in events] == [None, None, True, None]
    session = await got(store)
    assert words(session) == [
        "hello",
        "1",
        "note heron",
        '{"text": "heron"}',
        '"response"',
        "3",
    ]
    assert [event for event in events if not event.partial] == session.events[-3:]
    assert session.state == {
        "heron": ["heron"],
        "user:heron": ["heron"],
        "app:heron": ["heron"],
        "user:last": "3",
    }
    await ask(running, "hello", "other")
    other = await got(store, "other")
    assert other.state == {
        "user:heron": ["heron"],
        "app:heron": ["heron"],
        "user:last": "1",
    }


async def test_agents_that_work_side_by_side(store: ConversationStore) -> None:
    """They share a session object, and none of them is refused."""
    agents = [
        Agent(name=f"a{number}", model=Model(model="stub"), output_key=f"app:{number}")
        for number in range(8)
    ]
    await ask(runner(store, ParallelAgent(name="all", sub_agents=[*agents])), "hello")
    session = await got(store)
    assert sorted(event.author for event in session.events) == sorted(
        ["user", *(each.name for each in agents)]
    )
    assert session.state == {f"app:{number}": "1" for number in range(8)}


class Summarizer(BaseEventsSummarizer):
    """Sums up without a model."""

    async def maybe_summarize_events(self, *, events: list[Event]) -> Event | None:
        """Say how many there were."""
        compaction = EventCompaction(
            start_timestamp=events[0].timestamp,
            end_timestamp=events[-1].timestamp,
            compacted_content=of_model(f"{len(events)} events"),
        )
        return Event(author="user", actions=EventActions(compaction=compaction))


async def test_what_was_said_is_summed_up_and_taken_back(store: ConversationStore) -> None:
    """A summary is an event as others are; so is the rewinding of a turn."""
    config = EventsCompactionConfig(summarizer=Summarizer(), compaction_interval=2, overlap_size=0)
    running = runner(store, agent(), events_compaction_config=config)
    await ask(running, "one")
    await ask(running, "two")
    [answer] = await ask(running, "three")
    session = await got(store)
    summary = session.events[4].actions.compaction
    assert summary is not None
    assert summary.compacted_content == of_model("4 events")
    assert words(session) == ["one", "1", "two", "3", "three", "2"]
    await running.rewind_async(
        user_id="ada", session_id="s", rewind_before_invocation_id=answer.invocation_id
    )
    await ask(runner(store, agent()), "four")
    session = await got(store)
    assert len(session.events) == 10
    assert session.events[-1].content == of_model("2")


# Many at once -----------------------------------------------------------------------------------


async def test_sixteen_sessions_that_share_state(store: ConversationStore) -> None:
    """Of one user, in one app: no turn is refused, and no key of a state is lost."""

    async def work(number: int) -> None:
        running = runner(store, agent(output_key=f"user:last{number}"))
        for turn in range(3):
            await ask(running, f"note {number}-{turn}", f"s{number}")

    await asyncio.gather(*map(work, range(RUNNERS)))
    notes = [f"{number}-{turn}" for number in range(RUNNERS) for turn in range(3)]
    shared = {f"{scope}:{each}": [each] for scope in ("user", "app") for each in notes}
    for number in range(RUNNERS):
        session = await got(store, f"s{number}")
        assert [text for text in words(session) if text.startswith("note")] == [
            f"note {number}-{turn}" for turn in range(3)
        ]
        assert len({event.id for event in session.events}) == len(session.events) == 12
        mine = {f"{number}-{turn}": [f"{number}-{turn}"] for turn in range(3)}
        last = {f"user:last{each}": "5" for each in range(RUNNERS)}
        assert session.state == shared | mine | last


class Counting(AdkSessionService):
    """Counts what it refuses."""

    refused = 0

    async def append_event(self, session: Session, event: Event) -> Event:
        """Append."""
        try:
            return await super().append_event(session, event)
        except StaleSessionError:
            self.refused += 1
            raise


def insist() -> Any:
    """Return the function of the guide that goes on with a turn that was refused."""
    source = (GUIDES / "google-adk.md").read_text("utf-8")
    [block] = [each for each in re.findall(BLOCKS, source) if "def insist" in each]
    names: dict[str, Any] = {}
    exec(block, names)  # noqa: S102 - it is a document of ours
    return names["insist"]


async def test_sixteen_runners_on_one_session(store: ConversationStore) -> None:
    """The stale ones are refused and go again: nothing is lost, doubled or reordered.

    Each answer says how many texts the model was shown, so it tells that it stands where it was
    given: nobody came between.
    """
    service = Counting(store)
    await service.create_session(app_name="birds", user_id="ada", session_id="s")
    run = insist()

    async def work(number: int) -> None:
        root = agent(output_key=f"last{number}")
        running = Runner(app_name="birds", agent=root, session_service=service)
        question = types.UserContent(f"question {number}")
        async for event in run(running, question, user_id="ada", session_id="s"):
            assert event.invocation_id

    await asyncio.gather(*map(work, range(RUNNERS)))
    session = await got(store)
    said = [
        (event.author, event.invocation_id, event.content.parts[0].text or "")
        for event in session.events
        if event.content and event.content.parts
    ]
    assert service.refused > 0
    assert len(said) == len(session.events) == 2 * RUNNERS
    questions = {turn: text for author, turn, text in said if author == "user"}
    answers = {turn: text for author, turn, text in said if author == "guide"}
    assert sorted(questions.values()) == sorted(f"question {number}" for number in range(RUNNERS))
    assert questions.keys() == answers.keys()
    for position, (author, turn, text) in enumerate(said):
        if author == "guide":
            assert text == str(position)
            assert turn in {asked for _, asked, _ in said[:position]}
    assert sorted(session.state.values(), key=int) == sorted(answers.values(), key=int)


async def test_the_queries_of_the_guide(dsn: str, migrated: set[str]) -> None:
    """They find which functions were called, and what users are called."""
    async with open_store(dsn, "operational", migrated) as store:
        await ask(runner(store, agent()), "note name")
    source = (GUIDES / "google-adk.md").read_text("utf-8")
    [block] = [each for each in re.findall(BLOCKS, source) if each.startswith("SELECT")]
    calls, users = block.split(";\n")[:2]
    with psycopg.connect(dsn) as connection:
        assert connection.execute(calls).fetchall() == [("note", 1)]
        assert connection.execute(users).fetchall() == [("ada", '["name"]')]


SERVED = """
import sys
from google.adk.cli.fast_api import get_fast_api_app
from starlette.testclient import TestClient

app = get_fast_api_app(agents_dir=sys.argv[1], session_service_uri="conversations://", web=False)
with TestClient(app) as client:
    sessions = "/apps/birds/users/ada/sessions"
    print(client.post(f"{sessions}/s", json={}).status_code)
    print(client.post(sessions, json={"session_id": "s"}).status_code)
    names = {"app_name": "birds", "user_id": "ada", "session_id": "s"}
    question = {"role": "user", "parts": [{"text": "What is a heron?"}]}
    [answer] = client.post("/run", json=names | {"new_message": question}).json()
    print(answer["content"]["parts"][0]["text"])
    print(client.patch(f"{sessions}/s", json={"state_delta": {"a": 1}}).json()["state"])
    print([session["id"] for session in client.get(sessions).json()])
"""
AGENT = """
from google.adk import Agent
from google.adk.models import BaseLlm, LlmResponse
from google.genai.types import ModelContent

class Model(BaseLlm):
    async def generate_content_async(self, llm_request, stream=False):
        yield LlmResponse(content=ModelContent("A bird that stands still."))

root_agent = Agent(name="guide", model=Model(model="stub"))
"""


async def test_under_the_server_of_adk(dsn: str, migrated: set[str], tmp_path: Path) -> None:
    """It finds the service by the file that the guide shows, and the process ends by itself."""
    source = (GUIDES / "google-adk.md").read_text("utf-8")
    [services] = [each for each in re.findall(BLOCKS, source) if "get_service_registry" in each]
    (tmp_path / "services.py").write_text(services)
    (tmp_path / "birds").mkdir()
    (tmp_path / "birds" / "__init__.py").write_text("from . import agent\n")
    (tmp_path / "birds" / "agent.py").write_text(AGENT)
    async with open_store(dsn, "operational", migrated) as store:
        path = os.pathsep.join(filter(None, sys.path))
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", SERVED, str(tmp_path)),
            env=os.environ | {"CONVERSATION_STORE_DSN": dsn, "PYTHONPATH": path},
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await server.communicate()
        assert server.returncode == 0
        assert told.decode().splitlines() == [
            "200",
            "409",
            "A bird that stands still.",
            "{'a': 1}",
            "['s']",
        ]
        assert words(await got(store)) == ["What is a heron?", "A bird that stands still."]


def test_the_script_of_the_guide(dsn: str, migrated: set[str]) -> None:
    """As it stands; another process shows the same history and goes on with it."""

    async def prepare() -> None:
        async with open_store(dsn, "operational", migrated):
            pass

    asyncio.run(prepare())
    turn = "user: What is a heron?\nguide: A bird that stands still.\n"
    assert run_script("google-adk.md", dsn) == turn
    assert run_script("google-adk.md", dsn) == turn * 2
