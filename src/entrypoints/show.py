"""How conversations look on a terminal.

What was stored is shown as text and nothing else: no markup is read in it. Control characters,
which could command the terminal, are spelled out, and so is what would show the rest of a line in
another order, whoever's words that is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from typing import Final, cast

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..domain.conversation import Conversation, Status
from ..domain.json_object import JsonObject
from ..domain.message import Message, Role
from ..domain.page import MAX_LIMIT, ConversationPage
from ..service_layer.messages import messages_after
from ..service_layer.unit_of_work import AsyncUnitOfWork

_WIDEST: Final = 100
"""Lines that are longer are hard to read, however wide the terminal is."""
_TWO_COLUMNS: Final = 72
"""So wide a head of a conversation has room for two columns, and for names in the first."""
_ROLE_WIDTH: Final = max(len(role) for role in Role)
_NAME_WIDTH: Final = len("metadata")
_MOST_OF_A_TOOL: Final = 240
_MOST_OF_METADATA: Final = 160

_ROLE_STYLES: Final = {
    Role.USER: "bold cyan",
    Role.ASSISTANT: "bold green",
    Role.SYSTEM: "bold yellow",
    Role.TOOL: "magenta",
}
_STATUS_STYLES: Final = {
    Status.ACTIVE: "bold green",
    Status.CLOSED: "bold red",
    Status.ARCHIVED: "bold bright_black",
}
_CONTROLS: Final = {
    code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"
} | {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}


def new_console() -> Console:
    """Return a console on standard output that takes text as it is."""
    console = Console(highlight=False, markup=False, emoji=False)
    console.width = min(console.width, _WIDEST)
    return console


def harmless(text: str) -> str:
    """Return text with what is no text spelled out, but for line ends and tabs."""
    return text.replace("\r\n", "\n").translate(_CONTROLS)


def as_escapes() -> dict[int, str]:
    """Return what JSON has in the place of what `harmless` spells out, for str.translate."""
    return {code: f"\\u{code:04x}" for code in _CONTROLS}


def one_line(text: str, most: int | None = None) -> str:
    """Return text as one harmless line, shortened to `most` characters."""
    line = harmless(" ".join(text.split()))
    return line if most is None or len(line) <= most else line[: most - 4] + " ..."


# A conversation ---------------------------------------------------------------------------------


async def print_conversation(
    console: Console, uow: AsyncUnitOfWork, conversation: Conversation, last: int | None = None
) -> None:
    """Print a conversation with its messages, or its newest `last` ones."""
    console.print(_header(conversation, is_narrow=console.width < _TWO_COLUMNS))
    position = 0 if last is None else max(0, conversation.message_count - last)
    if position:
        console.print(Text(f"{position:,} earlier messages are not shown", "dim", justify="center"))
    shown: date | None = conversation.start_time.date()
    while position < conversation.message_count:
        page = await messages_after(
            uow,
            conversation_id=conversation.id,
            position=position,
            limit=min(MAX_LIMIT, conversation.message_count - position),
        )
        if not page:  # they were taken away since the conversation was read
            break
        position = page[-1].position
        for message in page:
            if message.timestamp.date() != shown:
                shown = message.timestamp.date()
                console.print(Rule(f"{shown:%Y-%m-%d}", style="dim"))
            console.print(_message_row(console, message, len(str(conversation.message_count))))


def _header(conversation: Conversation, *, is_narrow: bool) -> Panel:
    title = Text.assemble(
        (f" conversation {conversation.id} ", "bold"),
        (f"{conversation.status} ", _STATUS_STYLES[conversation.status]),
    )
    left = [("user", conversation.user_id), ("session", conversation.session_id)]
    for name, value in (
        ("intent", conversation.intent_type),
        ("rescue", conversation.rescue_id),
        ("source", conversation.source),
    ):
        if value is not None:
            left.append((name, value))
    right = [
        ("started", _moment(conversation.start_time)),
        ("last activity", _moment(conversation.last_activity)),
        ("messages", f"{conversation.message_count:,}  (version {conversation.version:,})"),
    ]
    columns = Table.grid(expand=True, padding=(0, 2, 0, 0))
    columns.add_column(ratio=1)
    columns.add_column()
    columns.add_row(_named(left), _named(right))
    body: list[RenderableType] = [_named([*left, *right]) if is_narrow else columns]
    if conversation.metadata:
        body.append(_named([("metadata", _compact(conversation.metadata, _MOST_OF_METADATA))]))
    return Panel(Group(*body), title=title, title_align="left", border_style="dim", padding=(0, 1))


def _named(pairs: Sequence[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True, min_width=_NAME_WIDTH)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(Text(name), Text(one_line(value)))
    return grid


def _message_row(console: Console, message: Message, position_width: int) -> Table:
    row = Table.grid(expand=True, padding=(0, 2, 0, 0))
    row.add_column(width=position_width + 1, justify="right")
    row.add_column(width=_ROLE_WIDTH)
    row.add_column(ratio=1, overflow="fold")
    row.add_column(justify="right", no_wrap=True)
    if message.role in (Role.USER, Role.SYSTEM) or message.position == 1:
        row.add_row()  # a turn begins: give it room
    row.add_row(
        Text(str(message.position), "dim"),
        Text(message.role, _ROLE_STYLES[message.role]),
        Group(*_said(console, message)),
        Text(f"{message.timestamp.astimezone(UTC):%H:%M:%S}", "dim"),
    )
    return row


def _said(console: Console, message: Message) -> Iterator[Text]:
    if message.role is Role.TOOL:
        yield Text(one_line(message.content, _MOST_OF_A_TOOL), "dim", overflow="fold")
    elif message.content:
        style = "italic" if message.role is Role.SYSTEM else ""
        yield Text(harmless(message.content), style, overflow="fold")
    else:
        yield Text("(no words)", "dim italic")
    understood = _understood(message, " | " if console.options.ascii_only else " · ")
    if understood:
        yield understood


def _understood(message: Message, separator: str) -> Text:
    """Return the intent and the slots of a message; empty if it has neither."""
    parts: list[Text] = []
    if message.intent_type is not None:
        parts.append(Text(one_line(message.intent_type), "italic magenta"))
    for slot, value in (message.slots or {}).items():
        parts.append(Text.assemble((f"{one_line(slot)}: ", "dim"), (_value(value), "blue")))
    return Text(separator, "dim", overflow="fold").join(parts)


def _value(value: object) -> str:
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, list) and value:
        items = cast("list[object]", value)
        return " / ".join(_value(item) for item in items)
    return one_line(json.dumps(value, ensure_ascii=False))


def _compact(value: JsonObject, most: int) -> str:
    return one_line(json.dumps(value, ensure_ascii=False), most)


def _moment(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


# A list of conversations ------------------------------------------------------------------------


def print_list(console: Console, page: ConversationPage) -> None:
    """Print a page of a user's conversations as a table."""
    if not page.conversations:
        console.print(Text("no conversations", "dim"))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("id", justify="right", no_wrap=True)
    table.add_column("session", overflow="fold")
    table.add_column("status", no_wrap=True)
    table.add_column("intent", overflow="fold")
    table.add_column("messages", justify="right", no_wrap=True)
    table.add_column("last activity (UTC)", no_wrap=True)
    for conversation in page.conversations:
        table.add_row(
            Text(str(conversation.id), "dim"),
            Text(one_line(conversation.session_id)),
            Text(conversation.status, _STATUS_STYLES[conversation.status]),
            Text(one_line(conversation.intent_type or ""), "magenta"),
            Text(f"{conversation.message_count:,}"),
            Text(_moment(conversation.last_activity).removesuffix(" UTC"), "dim"),
        )
    console.print(table)
    if page.next_cursor is not None:
        console.print(Text("there are more: --limit shows up to 1,000", "dim"))
