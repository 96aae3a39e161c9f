"""Events of Google ADK, of every kind."""

from __future__ import annotations

from typing import Any

from google.adk.auth.auth_credential import AuthCredential, AuthCredentialTypes
from google.adk.auth.auth_schemes import AuthSchemeType
from google.adk.auth.auth_tool import AuthConfig
from google.adk.events import Event, EventActions
from google.adk.events.event import NodeInfo
from google.adk.events.event_actions import EventCompaction
from google.adk.tools.tool_confirmation import ToolConfirmation
from google.genai import types

CALL = types.FunctionCall(id="c_1", name="weather", args={"city": "\u00dcxk\u00fcll", "days": None})

_OAUTH = AuthConfig(
    credential_key="key",
    auth_scheme={
        "type": AuthSchemeType.oauth2,
        "flows": {"clientCredentials": {"tokenUrl": "https://example.org/t", "scopes": {"a": "b"}}},
    },
    raw_auth_credential=AuthCredential(
        auth_type=AuthCredentialTypes.API_KEY, api_key="not a secret"
    ),
)


def content(*parts: types.Part, role: str = "model") -> types.Content:
    """Return a content of these parts."""
    return types.Content(role=role, parts=list(parts))


def said(text: str, author: str = "user", **values: Any) -> Event:
    """Return an event that is words."""
    role = "user" if author == "user" else "model"
    return Event(author=author, content=content(types.Part(text=text), role=role), **values)


EVENTS: dict[str, Event] = {
    "question": said("What is a heron? \u00dc", invocation_id="i-1"),
    "answer": Event(
        author="agent",
        invocation_id="i-1",
        branch="root.agent",
        turn_complete=True,
        finish_reason=types.FinishReason.STOP,
        model_version="stub-1",
        avg_logprobs=-0.25,
        content=content(
            types.Part(text="think", thought=True, thought_signature=b"\x00\xff+/"),
            types.Part(text="a bird"),
        ),
        usage_metadata=types.GenerateContentResponseUsageMetadata(total_token_count=7),
    ),
    "call": Event(
        author="agent",
        long_running_tool_ids={"c_1", "c_2"},
        content=content(types.Part(function_call=CALL)),
    ),
    "response": Event(
        author="agent",
        content=content(
            types.Part(
                function_response=types.FunctionResponse(
                    id="c_1", name="weather", response={"result": ["sunny", None]}
                )
            ),
            role="user",
        ),
        actions=EventActions(skip_summarization=True, artifact_delta={"map.png": 2}),
    ),
    "code": Event(
        author="agent",
        content=content(
            types.Part(
                executable_code=types.ExecutableCode(
                    code="print(1)", language=types.Language.PYTHON
                )
            ),
            types.Part(
                code_execution_result=types.CodeExecutionResult(
                    outcome=types.Outcome.OUTCOME_OK, output="1\n"
                )
            ),
        ),
    ),
    "image": Event(
        author="user",
        content=content(
            types.Part(inline_data=types.Blob(mime_type="image/png", data=b"\x89PNG\x00\xff\xfe")),
            types.Part(file_data=types.FileData(file_uri="gs://b/a.pdf", mime_type="a/pdf")),
            types.Part(text="what is this?"),
            role="user",
        ),
    ),
    "error": Event(author="agent", error_code="RESOURCE_EXHAUSTED", error_message="no more"),
    "spoken": Event(
        author="user",
        interrupted=True,
        input_transcription=types.Transcription(text="heard", finished=True),
    ),
    "compaction": Event(
        author="user",
        actions=EventActions(
            compaction=EventCompaction(
                start_timestamp=1.5,
                end_timestamp=2.25,
                compacted_content=content(types.Part(text="they spoke of herons")),
            )
        ),
    ),
    "grounding": said(
        "sourced",
        "agent",
        grounding_metadata=types.GroundingMetadata(web_search_queries=["heron"]),
        custom_metadata={"score": 0.5, "none": None, "nested": [{"a": []}]},
        citation_metadata=types.CitationMetadata(citations=[types.Citation(uri="https://e.org")]),
    ),
    "state": Event(
        author="agent",
        actions=EventActions(
            state_delta={"a": None, "user:b": [1, {"c": None}], "app:d": 1.5, "e": {}},
            transfer_to_agent="other",
            escalate=True,
            end_of_agent=True,
            agent_state={"step": 1, "none": None},
            rewind_before_invocation_id="i-0",
            route=["left", 1, True],
        ),
    ),
    "auth": Event.model_validate(  # once read by ADK it stays the same; before, it does not
        Event(
            author="agent",
            actions=EventActions(
                requested_auth_configs={"c_1": _OAUTH},
                requested_tool_confirmations={"c_1": ToolConfirmation(hint="?", confirmed=False)},
            ),
        ).model_dump(mode="json", exclude_none=True)
    ),
    "output": Event(
        author="node",
        output={"n": [1, None]},
        node_info=NodeInfo(path="wf/a@1", output_for=["wf"], message_as_output=True),
        isolation_scope="c_1",
    ),
    "hostile": said(
        "a\0b \ud800", custom_metadata={"n": 10**400, "exact": 1e23, "deep": [[[]]], "k\0": 1}
    ),
}
"""Events of every kind, and what the store cannot hold as it is."""

LARGE = Event(
    author="agent",
    content=content(
        types.Part(inline_data=types.Blob(mime_type="image/png", data=bytes(range(256)) * 4_000))
    ),
)
"""One with an image that no metadata can hold."""
