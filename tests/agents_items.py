"""Items of the OpenAI Agents SDK."""

from __future__ import annotations

import json
from typing import Any

ITEMS: list[Any] = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": ""},
    {"role": "developer", "content": "be kind"},
    {"role": "user", "content": "typed", "type": "message"},
    {
        "role": "user",
        "content": [
            {"type": "input_text", "text": "what is this?"},
            {"type": "input_image", "image_url": "https://example.org/a.png", "detail": "auto"},
            {"type": "input_image", "file_id": "file_1", "detail": "low"},
            {"type": "input_file", "file_id": "file_2"},
        ],
    },
    {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "status": "completed",
        "content": [{"type": "output_text", "text": "a cat", "annotations": [], "logprobs": []}],
    },
    {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
    {
        "type": "reasoning",
        "id": "rs_1",
        "summary": [{"type": "summary_text", "text": "think"}],
        "encrypted_content": "b64==",
    },
    {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "c_1",
        "name": "f",
        "arguments": '{"a": 1}',
        "status": "completed",
    },
    {"type": "function_call_output", "call_id": "c_1", "output": "1.50"},
    {
        "type": "function_call_output",
        "call_id": "c_2",
        "output": [{"type": "input_text", "text": "two"}, {"type": "input_image", "file_id": "f"}],
    },
    {"type": "computer_call_output", "call_id": "c", "output": {"type": "computer_screenshot"}},
    {"type": "web_search_call", "id": "ws", "status": "completed", "action": {"query": "q"}},
    {"type": "mcp_call", "id": "m", "name": "n", "arguments": "{}", "output": None},
    {"type": "item_reference", "id": "x"},
    {"type": "compaction", "encrypted_content": "z" * 100},
    {"role": "user", "content": "a\0b \ud800 ü\u2028"},
    {"type": "function_call_output", "call_id": "c", "output": "\0"},
    {"role": "user", "content": [{"type": "input_image", "image_url": "data:" + "x" * 2_000_000}]},
    {"type": "unknown", "n": [1, 1.0, 1e23, True, None], "more": {"b": 1, "a": {}}},
    {"type": "large", "n": 10**400},
    {"type": "deep", "deep": json.loads("[" * 90 + "]" * 90)},
    {"role": "critic", "content": "no such role"},
]
"""Items of every kind, and what the store cannot hold as it is."""
