"""A model for the OpenAI Agents SDK that answers offline."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from agents import Agent, Runner
from agents.items import ModelResponse
from agents.memory import Session
from agents.models.interface import Model
from agents.usage import Usage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseReasoningItem,
)
from openai.types.responses.response_reasoning_item import Summary


class Stub(Model):
    """Answers with what it was told last; asked for the weather it calls a tool first."""

    def __init__(self, response_id: str | None = None) -> None:
        self.seen: list[list[Any]] = []
        self.response_id = response_id

    def output(self, asked: Any) -> list[Any]:
        """Return the items of an answer."""
        items = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        self.seen.append(items)
        last = items[-1]
        if last.get("type") == "function_call_output":
            return [_say(f"It is {last['output']}.")]
        if "weather" in str(last.get("content")):
            return [
                ResponseReasoningItem(
                    id="rs_1",
                    type="reasoning",
                    summary=[Summary(type="summary_text", text="look out of the window")],
                    encrypted_content="b64==",
                ),
                ResponseFunctionToolCall(
                    id="fc_1",
                    call_id=f"call_{len(items)}",
                    name="weather",
                    arguments='{"city": "Üxküll"}',
                    type="function_call",
                ),
            ]
        return [_say(f"answer to {last['content']}")]

    async def get_response(self, *given: Any, **named: Any) -> ModelResponse:
        """Answer."""
        asked = named.get("input") or given[1]
        return ModelResponse(output=self.output(asked), usage=Usage(), response_id=self.response_id)

    async def stream_response(self, *given: Any, **named: Any) -> Any:
        """Answer in one event."""
        asked = named.get("input") or given[1]
        response = Response(
            id="r",
            created_at=0,
            model="stub",
            object="response",
            output=self.output(asked),
            tool_choice="auto",
            tools=[],
            parallel_tool_calls=False,
        )
        yield ResponseCompletedEvent(
            response=response, type="response.completed", sequence_number=0
        )


def _say(text: str) -> ResponseOutputMessage:
    said = ResponseOutputText(text=text, type="output_text", annotations=[])
    return ResponseOutputMessage(
        id="msg_1", content=[said], role="assistant", status="completed", type="message"
    )


async def say(sessions: Iterable[Session], numbers: Iterable[int]) -> None:
    """Let a run for each number, all at once, say three things, on one of the sessions."""
    given = list(sessions)

    async def work(number: int) -> None:
        agent = Agent(name="a", model=Stub())
        for part in range(3):
            session = given[number % len(given)]
            await Runner.run(agent, f"{number}/{part}", session=session)

    await asyncio.gather(*map(work, numbers))
