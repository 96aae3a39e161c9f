"""How sessions of Google ADK lie in a store, for what reads, writes or moves them.

A session is a conversation of its user: its session_id holds the app and ADK's id of the session
(`session_name`), its source is SOURCE. An event is a message (`from_event`, `to_event`): the words
are the content, the whole event stands in the metadata, under KEY, as ADK itself writes it.

State is `{KEY: {"state": {…}}}` in the metadata of a conversation (`with_state`, `state_of`):

- of a session: of its own conversation;
- `user:` state: of a conversation of that user called `state_name(app_name)`;
- `app:` state: of a conversation of APP_USER with the same name.

The two have the source STATE_SOURCE and no messages, so their last_activity stays as it is: a purge
by time alone takes them, one of SOURCE does not. Keys stand there without `user:` and `app:`, as
ADK keeps them (`split_state`). Other keys of a metadata are the host's, and stay.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, Final
from urllib.parse import unquote

from attrs import field, frozen
from google.adk.events import Event
from google.adk.sessions import State
from google.genai.types import Content, Part
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ..domain.conversation import NewConversation
from ..domain.errors import InvalidConversation, InvalidInput
from ..domain.json_object import JsonObject
from ..domain.message import Message, MessageDraft, Role
from .history import stored_item, to_draft, understood

KEY: Final = "google_adk"
"""The key of a metadata under which an event, or a state, stands."""
SOURCE: Final = "google-adk"
"""The source of a conversation that is a session."""
STATE_SOURCE: Final = "google-adk-state"
"""The source of a conversation that holds the state of a user, or of an app."""
APP_USER: Final = "google-adk-apps"
"""The user whose conversations hold the state of apps; no session can be of this user."""

_MOST_CHARACTERS: Final = 255
_STATE_PREFIX: Final = "google-adk-state:"


# Names ------------------------------------------------------------------------------------------


def session_name(app_name: str, session_id: str) -> str:
    """Return the session_id of the conversation that is a session: the app, `/`, and ADK's id.

    In the app's name `/` is `%2F` and `%` is `%25`, so that `split_session_name` is its inverse.

    Raises: InvalidConversation for more than 255 characters together.
    """
    return _checked(f"{_escaped(app_name)}/{session_id}")


def split_session_name(name: str) -> tuple[str, str] | None:
    """Return the app and ADK's id of a session; None where the name is not one of a session."""
    app_name, slash, session_id = name.partition("/")
    found = unquote(app_name)
    return (found, session_id) if slash and _escaped(found) == app_name else None


def state_name(app_name: str) -> str:
    """Return the session_id of the conversations that hold an app's state and its users'.

    Raises: InvalidConversation for more than 255 characters.
    """
    return _checked(f"{_STATE_PREFIX}{_escaped(app_name)}")


def _escaped(app_name: str) -> str:
    return app_name.replace("%", "%25").replace("/", "%2F")


def _checked(name: str) -> str:
    if len(name) > _MOST_CHARACTERS:
        reason = (
            f"holds the app's name and the session's id, and must be at most {_MOST_CHARACTERS} "
            f"characters, not {len(name)}"
        )
        raise InvalidConversation(field="session_id", reason=reason)
    return name


# States -----------------------------------------------------------------------------------------


def _nothing() -> dict[str, Any]:
    return {}


@frozen(kw_only=True)
class SplitState:
    """A state, or a change of one, by whose it is; keys are without prefix."""

    app: dict[str, Any] = field(factory=_nothing)
    user: dict[str, Any] = field(factory=_nothing)
    session: dict[str, Any] = field(factory=_nothing)


def split_state(state: Mapping[str, Any] | None) -> SplitState:
    """Return a state as JSON, by whose it is; `temp:` keys are left out.

    What JSON does not have is written as ADK's own database service does: dates and models by
    their JSON, all else as its `repr`.
    """
    split = SplitState()
    for key, value in _as_json(dict(state or {})).items():
        if key.startswith(State.APP_PREFIX):
            split.app[key.removeprefix(State.APP_PREFIX)] = value
        elif key.startswith(State.USER_PREFIX):
            split.user[key.removeprefix(State.USER_PREFIX)] = value
        elif not key.startswith(State.TEMP_PREFIX):
            split.session[key] = value
    return split


def merged_state(
    *, app: Mapping[str, Any], user: Mapping[str, Any], session: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the state that an agent sees: all three, with their prefixes."""
    return {
        **session,
        **{State.APP_PREFIX + key: value for key, value in app.items()},
        **{State.USER_PREFIX + key: value for key, value in user.items()},
    }


def with_state(metadata: JsonObject | None, state: Mapping[str, Any]) -> JsonObject:
    """Return a conversation's metadata with this state in the place of the one that was there.

    A state with something in it that a metadata cannot hold, a character or a number, is
    `{KEY: {"json": text}}`. Either way a conversation takes about 1 MB of it.
    """
    others = {} if metadata is None else metadata
    plain = {**others, KEY: {"state": dict(state)}}
    try:
        kept = NewConversation(user_id="-", session_id="-", metadata=plain).metadata
    except InvalidInput:
        kept = None
    # ASCII, so it can be stored whatever it holds.
    return plain if kept == plain else {**others, KEY: {"json": json.dumps(state)}}


def state_of(metadata: JsonObject | None) -> dict[str, Any]:
    """Return a copy of the state that a conversation's metadata holds; empty where it has none."""
    held: Any = (metadata or {}).get(KEY) or {}
    state: dict[str, Any] = json.loads(held["json"]) if "json" in held else held.get("state", {})
    return deepcopy(state)


def _as_json(state: dict[str, Any]) -> dict[str, Any]:
    try:
        known: dict[str, Any] = to_jsonable_python(state)
    except PydanticSerializationError:
        known = to_jsonable_python(state, serialize_unknown=True)
    return known


# Events -----------------------------------------------------------------------------------------


def from_event(event: Event) -> MessageDraft:
    """Return the message that an event becomes.

    Its role is `user` where the user is the author, `tool` where it holds a function's response,
    `system` for a summary of what was said (compaction), else `assistant`.

    Raises: InvalidMessage for one of more than 10 MB; PydanticSerializationError for one that is
    no JSON.
    """
    item = event.model_dump(exclude_none=True, mode="json")  # as ADK's own database service does
    compaction = item["actions"].get("compaction")
    content = compaction["compacted_content"] if compaction else item.get("content", {})
    parts: list[JsonObject] = content.get("parts") or []
    if compaction:
        role = Role.SYSTEM
    elif any("function_response" in part for part in parts):
        role = Role.TOOL
    else:
        role = Role.USER if event.author == "user" else Role.ASSISTANT
    said = [_words_of(part) for part in parts] or [_words_beside_content(event)]
    return to_draft(KEY, role, [*said], item)


def to_event(message: Message) -> Event:
    """Return the event that a message is; one that was not stored as one is its words."""
    item = stored_item(KEY, message)
    if item is not None:
        return understood(Event.model_validate, item, message)
    of_user = message.role is Role.USER
    words = Content(role="user" if of_user else "model", parts=[Part(text=message.content)])
    return Event(
        id=str(message.id),
        author=message.role.value,
        content=words,
        timestamp=message.timestamp.timestamp(),
    )


def _words_of(part: JsonObject) -> str:
    """Return what a part of a content says: its text, its code, or what a function is told."""
    if "function_call" in part:
        return _dumped(part["function_call"].get("args"))
    if "function_response" in part:
        return _dumped(part["function_response"].get("response"))
    if "executable_code" in part:
        return str(part["executable_code"].get("code", ""))
    if "code_execution_result" in part:
        return str(part["code_execution_result"].get("output", ""))
    return str(part.get("text", ""))


def _words_beside_content(event: Event) -> str:
    spoken = event.input_transcription or event.output_transcription
    return (spoken and spoken.text) or event.error_message or ""


def _dumped(value: object) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)
