"""A reader for the terminal: a user's conversations, what was said in them, and search.

Needs the extra `browse`. It reads, and by service functions alone.
"""

from __future__ import annotations

import io
from collections.abc import Coroutine, Sequence
from contextlib import aclosing
from datetime import UTC
from typing import Any, ClassVar, Final

from rich.console import Console
from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.widgets import DataTable, Footer, Header, Input, RichLog

from ..bootstrap import ConversationStore
from ..domain.conversation import Conversation
from ..domain.errors import ConversationNotFound, ConversationStoreError
from ..service_layer.conversations import find_conversation, list_conversations
from ..service_layer.transfer import export_conversations
from .show import one_line, print_conversation
from .terminal import counted

_PAGE: Final = 100
_MOST_MESSAGES: Final = 500
_MOST_FOUND: Final = 100
_NARROWEST: Final = 20


class Browser(App[None]):
    """The conversations of a user on the left, the messages of one on the right."""

    TITLE = "conversation-store"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    DataTable { width: 2fr; }
    RichLog { width: 3fr; border-left: solid $primary; padding: 0 1; scrollbar-gutter: stable; }
    Input { display: none; }
    """
    BINDINGS: ClassVar = [
        Binding("q", "quit", "Quit"),
        Binding("slash", "search", "Search", key_display="/"),
        Binding("escape", "list", "All"),
        Binding("m", "more", "More"),
    ]

    def __init__(self, store: ConversationStore, user_id: str) -> None:
        super().__init__()
        self._store = store
        self._user_id = user_id
        self._shown: dict[str, Conversation] = {}
        self._next: str | None = None
        self._table: DataTable[Text] = DataTable(cursor_type="row")
        self._messages = RichLog(wrap=True)
        self._sought = Input(placeholder="what was said; Enter seeks it, Escape shows all again")
        self.error: ConversationStoreError | None = None
        """What ended the reader, if anything did."""

    def compose(self) -> ComposeResult:
        """Say what is on the screen."""
        yield Header()
        with Horizontal():
            yield self._table
            yield self._messages
        yield self._sought
        yield Footer()

    def on_mount(self) -> None:
        """Begin with the first page."""
        self._table.add_columns("session", "messages", "last activity (UTC)")
        self._table.focus()
        self.action_list()

    def action_list(self) -> None:
        """Show all conversations, the most recent activity first."""
        self._sought.display = False
        self._table.focus()
        self._do("list", self._list(None))

    def action_more(self) -> None:
        """Show the next page, too."""
        if self._next is not None:
            self._do("list", self._list(self._next))

    def action_search(self) -> None:
        """Ask what to seek."""
        self._sought.display = True
        self._sought.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Seek it."""
        if event.value:
            self._do("list", self._seek(event.value.casefold()))

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        """Show the messages of the conversation that the cursor is on."""
        shown = self._shown.get(event.row_key.value or "")
        if shown is not None:  # else the list was made anew since
            self._do("show", self._show(shown))

    def _do(self, group: str, work: Coroutine[Any, Any, None]) -> None:
        """Do work in the background, in place of what was done in its group."""

        async def do() -> None:
            try:
                await work
            except ConversationStoreError as error:
                self.error = error
                self.exit()

        self.run_worker(do(), group=group, exclusive=True)

    async def _list(self, after: str | None) -> None:
        page = await list_conversations(
            self._store.unit_of_work(user_id=self._user_id), limit=_PAGE, after=after
        )
        self._next = page.next_cursor
        if after is None:
            self._clear()
        self._add(page.conversations)
        more = "" if self._next is None else ", and more: m"
        self._tell(f"{counted(len(self._shown), 'conversation')}{more}")

    async def _seek(self, text: str) -> None:
        """Look through everything that was said, and show where it was."""
        self._next = None
        self._clear()
        uow = self._store.unit_of_work(user_id=self._user_id)
        async with aclosing(export_conversations(uow)) as records:
            async for record in records:
                if any(text in message["content"].casefold() for message in record["messages"]):
                    found = await find_conversation(
                        self._store.unit_of_work(user_id=self._user_id),
                        session_id=record["session_id"],
                    )
                    self._add([] if found is None else [found])
                if len(self._shown) == _MOST_FOUND:
                    break
        self._tell(f"{counted(len(self._shown), 'conversation')} in which this was said")
        self._table.focus()

    async def _show(self, conversation: Conversation) -> None:
        width = max(_NARROWEST, self._messages.scrollable_content_region.width)
        page = io.StringIO()
        console = Console(
            file=page, width=width, force_terminal=True, highlight=False, markup=False, emoji=False
        )
        uow = self._store.unit_of_work(user_id=self._user_id)
        try:
            await print_conversation(console, uow, conversation, _MOST_MESSAGES)
        except ConversationNotFound:
            console.print("It was deleted since it was listed.")
        self._messages.clear().write(Text.from_ansi(page.getvalue()))

    def _clear(self) -> None:
        self._shown.clear()
        self._table.clear()
        self._messages.clear()

    def _add(self, conversations: Sequence[Conversation]) -> None:
        for conversation in conversations:
            key = str(conversation.id)
            if key in self._shown:  # it moved while pages were read
                continue
            self._shown[key] = conversation
            self._table.add_row(
                Text(one_line(conversation.session_id)),
                Text(f"{conversation.message_count:,}", justify="right"),
                Text(f"{conversation.last_activity.astimezone(UTC):%Y-%m-%d %H:%M}", "dim"),
                key=key,
            )

    def _tell(self, what: str) -> None:
        self.sub_title = f"{one_line(self._user_id)}: {what}"
