"""What adapters of agent frameworks have in common: histories, and things that are messages."""

from __future__ import annotations

from typing import Any

import pytest
from store_fixtures import draft

from conversation_store import (
    ConversationStore,
    MessageDraft,
    Role,
    append_messages,
    find_conversation,
    latest_messages,
    messages_after,
    replace_messages,
)
from conversation_store.adapters import pages
from conversation_store.adapters.history import History, stored_item, to_draft

OLD, NEW = 1_500, 1_800


@pytest.fixture
async def history(framework_store: ConversationStore) -> History:
    """Give a history of more than a page in a store of each kind."""
    history = History("s", store=framework_store, user_id="ada", source="test")
    await history.add([draft(f"old {number}") for number in range(OLD)])
    return history


async def conversation_of(store: ConversationStore) -> int:
    """Return the id of the history's conversation."""
    found = await find_conversation(store.unit_of_work(user_id="ada"), session_id="s")
    assert found is not None
    return found.id


def between_pages(monkeypatch: pytest.MonkeyPatch, work: Any) -> None:
    """Have work done after the first page that is read."""
    left = [work]

    def doing(read: Any) -> Any:
        async def read_page(*given: Any, **named: Any) -> Any:
            page = await read(*given, **named)
            if left:
                await left.pop()()
            return page

        return read_page

    monkeypatch.setattr(pages, "messages_after", doing(messages_after))
    monkeypatch.setattr(pages, "latest_messages", doing(latest_messages))


@pytest.mark.parametrize("most", [None, 1_400])
async def test_a_history_that_is_replaced_while_it_is_read(
    history: History, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read is the old one or the new one, not a beginning and another end."""

    async def replace() -> None:
        await history.clear()
        await history.add([draft(f"new {number}") for number in range(NEW)])

    between_pages(monkeypatch, replace)
    read = [message.content for message in await history.read(most)]
    assert read == [f"new {number}" for number in range(NEW)][-(most or NEW) :]


@pytest.mark.parametrize("most", [None, 1_400])
async def test_a_history_that_becomes_short_while_it_is_read(
    framework_store: ConversationStore,
    history: History,
    most: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is read is the short one, or nothing."""
    uow = framework_store.unit_of_work(user_id="ada")
    conversation_id = await conversation_of(framework_store)

    async def replace() -> None:
        await replace_messages(uow, conversation_id=conversation_id, drafts=[draft("new")])

    between_pages(monkeypatch, replace)
    assert [message.content for message in await history.read(most)] == ["new"]
    await history.add([draft("more") for _ in range(OLD)])
    between_pages(monkeypatch, history.clear)
    assert await history.read(most) == []


@pytest.mark.parametrize(("most", "first"), [(None, 0), (1_400, 100)])
async def test_a_history_that_goes_on_while_it_is_read(
    history: History, most: int | None, first: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Additions and a pop behind what was read tear nothing."""

    async def go_on() -> None:
        for _ in range(3):
            await history.pop()
        await history.add([draft(f"new {number}") for number in range(NEW)])

    between_pages(monkeypatch, go_on)
    read = [message.content for message in await history.read(most)]
    old = [f"old {number}" for number in range(OLD)]
    if most is None:
        assert read == [*old[:-3], *(f"new {number}" for number in range(NEW))]
    else:
        assert read == old[first:]


@pytest.mark.parametrize("count", [999, 1_000, 1_001, 1_998, 1_999, 2_000, 2_998])
async def test_histories_about_as_long_as_pages(
    framework_store: ConversationStore, count: int
) -> None:
    """Each message is read once."""
    history = History("long", store=framework_store, user_id="ada", source="test")
    await history.add([draft(str(number)) for number in range(count)])
    expected = [str(number) for number in range(count)]
    for most in (None, count - 1, count, count + 1):
        read = [message.content for message in await history.read(most)]
        assert read == expected[-(most or count) :]


@pytest.mark.parametrize(
    ("content", "metadata"),
    [
        ("no JSON", {"key": None}),
        ("[1]", {"key": None}),
        ("[" * 100_000, {"key": None}),
        ("a text", {"key": "text"}),
    ],
    ids=["text", "list", "deep", "marker"],
)
async def test_messages_of_others_under_the_same_key(
    framework_store: ConversationStore, history: History, content: str, metadata: Any
) -> None:
    """They are no things of a framework; they keep nobody from reading the history."""
    said = MessageDraft(role=Role.USER, content=content, metadata=metadata)
    uow = framework_store.unit_of_work(user_id="ada")
    conversation_id = await conversation_of(framework_store)
    await append_messages(uow, conversation_id=conversation_id, drafts=[said])
    [read] = await history.read(1)
    assert stored_item("key", read) is None


@pytest.mark.parametrize(
    "text", ["\u044f" * 3_000_000, "\ud800" * 600_000], ids=["words", "escapes"]
)
async def test_large_things_in_any_language(history: History, text: str) -> None:
    """10 MB are 10 MB where they can be stored as they are; else they are escaped."""
    item: Any = {"type": "output", "output": text}
    await history.add([to_draft("key", Role.TOOL, text, item)])
    [read] = await history.read(1)
    assert stored_item("key", read) == item
