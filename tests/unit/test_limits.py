"""Limits that only large values reach."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from store_fixtures import draft

from conversation_store import (
    ConversationStore,
    InvalidMessage,
    InvalidRecord,
    MessageDraft,
    append_messages,
    import_conversations,
)
from conversation_store.domain import imported, message, record


async def test_a_turn_is_limited_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of one call hold at most so many bytes together, counted as UTF-8."""
    monkeypatch.setattr(message, "MAX_TURN_BYTES", 100)
    store = ConversationStore.in_memory()
    for fits, drafts in (
        (True, [draft("x" * 50), draft("é" * 25)]),
        (False, [draft("x" * 50), draft("é" * 26)]),
        (False, [draft("x" * 101)]),
    ):
        call = append_messages(store.unit_of_work(), conversation_id=1, drafts=drafts)
        with pytest.raises(InvalidMessage if not fits else Exception) as caught:
            await call
        assert isinstance(caught.value, InvalidMessage) is not fits


async def test_a_record_is_limited_as_a_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The messages of one record hold at most so many bytes together."""
    monkeypatch.setattr(record, "MAX_RECORD_BYTES", 100)
    monkeypatch.setattr(imported, "MAX_PLAIN_CHARACTERS", 25)
    store = ConversationStore.in_memory()

    def large(content: str) -> Any:
        said = [{"role": "user", "content": content}] * 2
        return {"user_id": "u", "session_id": content, "messages": said}

    receipt = await import_conversations(store.unit_of_work(), records=[large("é" * 25)])
    assert receipt.messages == 2
    with pytest.raises(InvalidRecord) as caught:
        await import_conversations(store.unit_of_work(), records=[large("é" * 26)])
    assert caught.value.field == "messages"


def test_a_huge_object_is_refused_without_a_huge_copy() -> None:
    """Refusing nested or large input takes memory in proportion to it, not more."""
    deep: Any = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(InvalidMessage, match="nests deeper"):
        draft("x", slots=deep)
    wide = {str(number): number for number in range(200_000)}
    tracemalloc.start()
    with pytest.raises(InvalidMessage, match="at most 1000000 bytes"):
        draft("x", slots=wide)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000_000


def test_every_message_of_a_process_is_its_own() -> None:
    """Drafts are values: equal when they say the same, and usable as keys."""
    one, other = draft("x", slots={"a": 1}), draft("x", slots={"a": 1})
    assert one == other
    assert len({one, other}) == 1
    assert isinstance(one, MessageDraft)
