"""The reader for the terminal, as keys and the screen."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest
from store_fixtures import draft
from textual.widgets import DataTable, Input, RichLog

from conversation_store import (
    ConversationStore,
    StoreUnavailable,
    delete_conversation,
    find_conversation,
    replace_messages,
    start_conversation,
)
from conversation_store.entrypoints import browse
from conversation_store.entrypoints.browse import Browser

SIZE = (120, 30)


async def filled(store: ConversationStore) -> ConversationStore:
    """Give two conversations to ada, and one to somebody else."""
    for user, session, said in (
        ("ada", "first", "Where is the Ärmelkanal?"),
        ("ada", "second", "[bold]Good morning\x1b[2J"),
        ("eve", "secret", "Where is the key?"),
    ):
        uow = store.unit_of_work(user_id=user)
        drafts = [draft(said), draft("Wait.", "assistant")]
        await start_conversation(uow, session_id=session, drafts=drafts)
    return store


def sessions(app: Browser) -> list[str]:
    """Return the sessions on the screen."""
    table: DataTable[Any] = app.query_one(DataTable)
    return [str(table.get_row_at(row)[0]) for row in range(table.row_count)]


def messages(app: Browser) -> str:
    """Return what stands beside them."""
    return "\n".join(line.text for line in app.query_one(RichLog).lines)


async def until_quiet(app: Browser, pilot: Any) -> None:
    """Wait for what goes on in the background."""
    for _ in range(3):
        await pilot.pause()
        await app.workers.wait_for_complete()
    await pilot.pause()


async def test_a_user_is_read() -> None:
    """Conversations of that user alone, the last first; what was said, as it was said."""
    app = Browser(await filled(ConversationStore.in_memory()), "ada")
    async with app.run_test(size=SIZE) as pilot:
        await until_quiet(app, pilot)
        assert sessions(app) == ["second", "first"]
        assert app.sub_title == "ada: 2 conversations"
        assert r"[bold]Good morning\x1b[2J" in messages(app)
        await pilot.press("down")
        await until_quiet(app, pilot)
        assert "Where is the Ärmelkanal?" in messages(app)
        await pilot.press("q")
    assert app.error is None


async def test_what_was_said_is_sought() -> None:
    """In all messages of the user, whatever the case; Escape shows all conversations again."""
    app = Browser(await filled(ConversationStore.in_memory()), "ada")
    async with app.run_test(size=SIZE) as pilot:
        await until_quiet(app, pilot)
        await pilot.press("slash", *"WHERE", "enter")
        await until_quiet(app, pilot)
        assert sessions(app) == ["first"]
        assert "Ärmelkanal" in messages(app)
        assert app.sub_title == "ada: 1 conversation in which this was said"
        await pilot.press("escape")
        await until_quiet(app, pilot)
        assert sessions(app) == ["second", "first"]
        assert not app.query_one(Input).display


async def test_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page is added; a search ends when it has found enough."""
    monkeypatch.setattr(browse, "_PAGE", 1)
    monkeypatch.setattr(browse, "_MOST_FOUND", 1)
    app = Browser(await filled(ConversationStore.in_memory()), "ada")
    async with app.run_test(size=SIZE) as pilot:
        await until_quiet(app, pilot)
        assert sessions(app) == ["second"]
        assert app.sub_title == "ada: 1 conversation, and more: m"
        await pilot.press("m", "m")
        await until_quiet(app, pilot)
        assert sessions(app) == ["second", "first"]
        await pilot.press("m", "slash", *"wait", "enter")
        await until_quiet(app, pilot)
        assert len(sessions(app)) == 1


async def test_what_changed_since_it_was_listed() -> None:
    """A conversation that was cleared, or deleted, is shown as that."""
    store = await filled(ConversationStore.in_memory())
    app = Browser(store, "ada")
    uow = store.unit_of_work(user_id="ada")
    ids = {}
    for session in ("first", "second"):
        found = await find_conversation(uow, session_id=session)
        assert found is not None
        ids[session] = found.id
    async with app.run_test(size=SIZE) as pilot:
        await until_quiet(app, pilot)
        await replace_messages(uow, conversation_id=ids["first"], drafts=[])
        await delete_conversation(uow, conversation_id=ids["second"])
        await pilot.press("down")
        await until_quiet(app, pilot)
        assert re.search(r"session +first", messages(app))
        assert "Where" not in messages(app)
        await pilot.press("up")
        await until_quiet(app, pilot)
        assert "It was deleted since it was listed." in messages(app)
        assert app.is_running
    assert app.error is None


async def test_a_row_that_is_gone_when_the_cursor_is_told() -> None:
    """The list may be made anew in between; that is no failure."""
    app = Browser(await filled(ConversationStore.in_memory()), "ada")
    async with app.run_test(size=SIZE) as pilot:
        await until_quiet(app, pilot)
        table: DataTable[Any] = app.query_one(DataTable)
        [key, *_] = table.rows
        app.action_search()
        await pilot.press(*"nothing", "enter")
        await until_quiet(app, pilot)
        assert sessions(app) == []
        table.post_message(DataTable.RowHighlighted(table, 0, key))
        await until_quiet(app, pilot)
        assert app.is_running


async def test_a_failure_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever started it is told why."""

    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable(reason="gone")

    monkeypatch.setattr(browse, "list_conversations", fail)
    app = Browser(ConversationStore.in_memory(), "ada")
    async with app.run_test(size=SIZE) as pilot:
        await until_quiet(app, pilot)
    assert isinstance(app.error, StoreUnavailable)


def test_without_its_extra_it_says_what_to_install() -> None:
    """One line, and exit code 2."""
    code = (
        "import sys; sys.modules['textual'] = sys.modules['textual.app'] = None\n"
        "from conversation_store.__main__ import main\n"
        "sys.argv[1:] = ['browse', 'ada', '--dsn', 'host=127.0.0.1 port=1']; sys.exit(main())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 2
    assert b"pip install 'conversation-store[browse]'" in result.stderr
