"""Messages of LangChain."""

from __future__ import annotations

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)

CALL = {"name": "weather", "args": {"city": "\u00dcxk\u00fcll", "days": 2}, "id": "c_1"}

MESSAGES: list[BaseMessage] = [
    SystemMessage("be kind"),
    HumanMessage("hi", name="Ada", id="m-1", additional_kwargs={"a": [1, {"b": None}]}),
    HumanMessage(
        [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        ]
    ),
    AIMessage(
        "",
        tool_calls=[CALL],
        invalid_tool_calls=[{"name": "f", "args": "{", "id": "c_2", "error": "bad"}],
        usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        response_metadata={"model": "m", "logprob": -0.25},
    ),
    ToolMessage("sunny", tool_call_id="c_1", artifact={"n": 1}, status="error"),
    ToolMessage([{"type": "text", "text": "two"}], tool_call_id="c_2"),
    AIMessage([{"type": "reasoning", "reasoning": "think"}, {"type": "text", "text": "a cat"}]),
    AIMessageChunk(content="half", id="r-1"),
    FunctionMessage(content="out", name="f"),
    ChatMessage(content="so says the critic", role="critic"),
    RemoveMessage(id="m-1"),
    HumanMessage("a\0b \ud800"),
    HumanMessage("large", additional_kwargs={"n": 10**400, "x": "y" * 1_000_000}),
    HumanMessage("exact", additional_kwargs={"n": 1e23}),
]
"""Messages of every kind, and what the store cannot hold as it is."""
