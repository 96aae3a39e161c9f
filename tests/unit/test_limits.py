"""Limits that only large values reach."""

from __future__ import annotations

import re
import tracemalloc
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from store_fixtures import draft

import conversation_store
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


LIMITS = Path(__file__).resolve().parents[2] / "docs" / "limits.md"
ROW = re.compile(
    r"^\| [^|]+ \| (?P<value>[^|]+) \|(?:.*\|)? `(?P<module>[\w.]+)\.(?P<name>\w+)` \|$"
)


def stated_limits() -> dict[str, str]:
    """Return what the document says, by the names of the constants."""
    rows = map(ROW.match, LIMITS.read_text("utf-8").splitlines())
    return {f"{row['module']}.{row['name']}": row["value"] for row in rows if row is not None}


@pytest.mark.parametrize("constant", stated_limits())
def test_the_document_says_what_the_limit_is(constant: str) -> None:
    """Every number of docs/limits.md is that of the code."""
    module, _, name = constant.rpartition(".")
    value = getattr(import_module(f"conversation_store.{module}"), name)
    written = "10**300" if name == "MAX_INTEGER" else f"{value:,}"
    assert written in stated_limits()[constant].split()


def test_the_document_knows_every_limit() -> None:
    """A new limit of what is given has to be stated."""
    root = Path(conversation_store.__file__).parent
    found = {
        f"{'.'.join(path.relative_to(root).with_suffix('').parts)}.{name}"
        for path in root.rglob("*.py")
        for name in re.findall(r"^(MAX_\w+): Final", path.read_text("utf-8"), re.MULTILINE)
    }
    inner = {"domain.imported.MAX_PLAIN_CHARACTERS", "domain.imported.MAX_PLAIN_MESSAGES"}
    inner |= {"service_layer.script.MAX_SENDS"}
    assert len(found) > 10
    assert found - inner <= stated_limits().keys()
