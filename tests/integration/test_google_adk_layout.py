"""How sessions of Google ADK are laid down in a store."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from typing import Any

import pytest

if "CONVERSATION_STORE_CI" not in os.environ:
    pytest.importorskip("google.adk", reason="needs the extra google-adk")

from google.adk.events import Event
from google_adk_events import EVENTS, LARGE
from pydantic import BaseModel

from conversation_store import InvalidConversation, Message, MessageDraft
from conversation_store.adapters.google_adk_layout import (
    KEY,
    from_event,
    merged_state,
    session_name,
    split_session_name,
    split_state,
    state_name,
    state_of,
    to_event,
    with_state,
)


def stored(draft: MessageDraft) -> Message:
    """Return the message that a draft becomes."""
    return draft.stored(
        message_id=7, conversation_id=1, position=1, timestamp=datetime(2026, 1, 2, tzinfo=UTC)
    )


@pytest.mark.parametrize("event", [*EVENTS.values(), LARGE], ids=[*EVENTS, "large"])
def test_an_event_of_every_kind_comes_back_equal(event: Event) -> None:
    """As the message that it becomes, which holds it as ADK itself writes it."""
    draft = from_event(event)
    assert to_event(stored(draft)) == event
    assert draft.metadata is not None
    item = draft.metadata[KEY]
    written = event.model_dump(mode="json", exclude_none=True)
    assert (json.loads(draft.content) if item is None else item) == written


def test_what_people_read() -> None:
    """Who speaks, and the words: texts, code, what a function was told and what it gave."""
    said = {name: (draft.role.value, draft.content) for name, draft in DRAFTS.items()}
    assert said == {
        "question": ("user", "What is a heron? \u00dc"),
        "answer": ("assistant", "think\na bird"),
        "call": ("assistant", '{"city": "\u00dcxk\u00fcll", "days": null}'),
        "response": ("tool", '{"result": ["sunny", null]}'),
        "code": ("assistant", "print(1)\n1\n"),
        "image": ("user", "what is this?"),
        "error": ("assistant", "no more"),
        "spoken": ("user", "heard"),
        "compaction": ("system", "they spoke of herons"),
        "grounding": ("assistant", "sourced"),
        "state": ("assistant", ""),
        "auth": ("assistant", ""),
        "output": ("assistant", ""),
        "hostile": ("user", DRAFTS["hostile"].content),
    }
    assert DRAFTS["hostile"].metadata == {KEY: None}


DRAFTS = {name: from_event(event) for name, event in EVENTS.items()}


def test_messages_that_were_no_events_are_their_words() -> None:
    """Those of the user are the user's, all others are of an agent called as their role is."""
    for role in ("user", "assistant", "system", "tool"):
        event = to_event(stored(MessageDraft(role=role, content="words", metadata={"m": 1})))
        assert (event.author, event.id) == (role, "7")
        assert event.timestamp == datetime(2026, 1, 2, tzinfo=UTC).timestamp()
        assert event.content is not None
        assert event.content.role == ("user" if role == "user" else "model")
        assert event.content.parts is not None
        assert event.content.parts[0].text == "words"


@pytest.mark.parametrize(
    ("app_name", "session_id", "name"),
    [
        ("weather", "s-1", "weather/s-1"),
        ("weather", "a/b%2F", "weather/a/b%2F"),
        ("a/b", "c", "a%2Fb/c"),
        ("a%2Fb", "c", "a%252Fb/c"),
        ("%", "", "%25/"),
        ("", "x", "/x"),
        ("\u00fc", "\u00df", "\u00fc/\u00df"),
    ],
)
def test_a_name_tells_the_app_and_the_session(app_name: str, session_id: str, name: str) -> None:
    """Both ways; and it is never that of a state."""
    assert session_name(app_name, session_id) == name
    assert split_session_name(name) == (app_name, session_id)
    assert split_session_name(state_name(app_name)) is None


@pytest.mark.parametrize("name", ["s-1", "", "a%20b/c", "%/c", "%2f/c", "%ff/c"])
def test_names_of_others_are_no_sessions(name: str) -> None:
    """A conversation of the host's is not taken for a session, nor is what no app is called."""
    assert split_session_name(name) is None


def test_a_name_has_255_characters_at_most() -> None:
    """One more is refused, and the error says what the name is made of."""
    assert len(session_name("weather", "s" * 247)) == 255
    with pytest.raises(InvalidConversation, match=r"the app's name and the session's id.*not 256"):
        session_name("weather", "s" * 248)
    with pytest.raises(InvalidConversation, match="255"):
        state_name("w" * 250)


class Likes(BaseModel):
    """What a host keeps in a state."""

    bird: str


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"a": 1, "b": [None, {"c": 1.5}], "\u00fc": "\u00df"},
        {"nul": "a\0b \ud800", "large": 10**400, "exact": 1e23, "endless": float("inf")},
        {"json": "x"},
        {"state": {"state": 1}},
    ],
)
def test_a_state_comes_back_equal(state: dict[str, Any]) -> None:
    """Beside what the host keeps in the same metadata, which stays."""
    first = with_state({"title": "Herons"}, {"old": 1})
    metadata = with_state(first, state)
    assert state_of(metadata) == state
    assert metadata["title"] == "Herons"
    plain = with_state(None, state)
    draft = MessageDraft(role="user", content="", metadata=plain)
    assert state_of(draft.metadata) == state


def test_a_conversation_without_state_has_none() -> None:
    """Neither one without metadata nor one with the host's."""
    assert state_of(None) == state_of({"title": "Herons"}) == state_of({KEY: None}) == {}


def test_a_state_is_split_and_merged() -> None:
    """By its prefixes; what is temporary is left out; values become JSON as in ADK."""
    split = split_state(
        {
            "app:a": 1,
            "user:u": Likes(bird="heron"),
            "temp:t": 1,
            "s": datetime(2026, 1, 2, tzinfo=UTC),
            "app:user:x": 2,
        }
    )
    assert (split.app, split.user) == ({"a": 1, "user:x": 2}, {"u": {"bird": "heron"}})
    assert split.session == {"s": "2026-01-02T00:00:00Z"}
    assert merged_state(app=split.app, user=split.user, session=split.session) == {
        "s": "2026-01-02T00:00:00Z",
        "app:a": 1,
        "app:user:x": 2,
        "user:u": {"bird": "heron"},
    }
    assert split_state({"f": split_state}).session["f"].startswith("<function split_state")
    assert split_state(None) == split_state({})
