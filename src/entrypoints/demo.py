"""The demo: the store at work, on a PostgreSQL server that is started for it and removed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from attrs import define, field
from rich import box
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from ..adapters.postgres.embedded import EmbeddedPostgres, EmbeddedPostgresError
from ..bootstrap import ConversationStore
from ..domain.conversation import Conversation
from ..domain.errors import ConversationNotAcceptingMessages
from ..domain.message import Message, MessageDraft, Role
from ..domain.receipt import ImportReceipt
from ..service_layer.conversations import (
    close_conversation,
    list_conversations,
    start_conversation,
)
from ..service_layer.messages import append_messages
from ..service_layer.transfer import export_conversations
from .json_lines import RecordReader, counts, load
from .round_trips import RoundTripCounter
from .show import one_line, print_conversation, print_list
from .terminal import UNREACHABLE, CommandError, Report, run_async

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

_LISTED: Final = 6

_GREETING: Final = [
    MessageDraft(role=Role.SYSTEM, content="You help travellers. Be brief; never guess a time."),
    MessageDraft(
        role=Role.USER,
        content="Salut! I need to be in Zürich on Friday before noon, from Lyon.",
        intent_type="find_train",
        slots={"from": "Lyon", "to": "Zürich", "date": "Friday", "arrive_by": "12:00"},
    ),
    MessageDraft(
        role=Role.ASSISTANT,
        content="Happily. One traveller, and second class?",
        slots={"travellers": 1, "class": 2},
    ),
]
_SEARCH: Final = [
    MessageDraft(
        role=Role.USER,
        content="Two of us, and a bicycle.",
        intent_type="find_train",
        slots={"travellers": 2, "bicycle": True},
    ),
    MessageDraft(
        role=Role.TOOL,
        content='{"call": "search_trains", "found": 2, "best": {"leaves": "06:04", "arrives": '
        '"10:56", "changes": ["Genève"], "bicycle": true, "price_eur": 118.4}}',
        intent_type="search_trains",
        slots={"from": "Lyon", "to": "Zürich", "bicycle": True},
        metadata={"tool_call_id": "call-1", "milliseconds": 84},
    ),
    MessageDraft(
        role=Role.ASSISTANT,
        content="The 06:04 takes bicycles and brings you to Zürich at 10:56, with one change in "
        "Genève. For two it is 118.40 €, the bicycle included. Shall I book it?",
        slots={"leaves": ["06:04"], "arrives": ["10:56"], "price_eur": 118.4},
        metadata={"model": "demo-1", "tokens": 61},
    ),
]
_BOOKING: Final = [
    MessageDraft(
        role=Role.USER,
        content="Six o'clock … all right, book it.",
        intent_type="book_train",
        slots={"leaves": "06:04", "travellers": 2},
    ),
    MessageDraft(
        role=Role.ASSISTANT,
        content="Booked, both of you and the bicycle. Bonne route!",
        metadata={"model": "demo-1", "tokens": 14},
    ),
]
_THANKS: Final = [MessageDraft(role=Role.USER, content="Merci!", intent_type="thank")]
_AFTERWARDS: Final = [MessageDraft(role=Role.USER, content="One more thing …")]


def run_demo(file: str | None, console: Console) -> None:
    """Run the demo, importing the dialogues of `file` first; nothing stays behind."""
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            with _step(console, "started a PostgreSQL server of our own") as step:
                server = stack.enter_context(EmbeddedPostgres(tcp=True))
                step.details.append(f"version {server.version}")
            run_async(_Demo(console).run(server, file))
            console.print()
            with _step(console, "stopped the server and removed its files") as step:
                stack.close()
                step.details.append(f"{time.monotonic() - began:.1f} s in all")
    except EmbeddedPostgresError as error:
        raise CommandError(f"the server of the demo: {error}", UNREACHABLE) from error


@define
class _Step:
    details: list[str] = field(factory=list[str])


@contextmanager
def _step(console: Console, what: str) -> Generator[_Step, None, None]:
    """Say what was done, once it is done, and how long it took."""
    step, began = _Step(), time.monotonic()
    yield step
    mark = "*" if console.options.ascii_only else "✓"
    seconds = f"{time.monotonic() - began:6.2f} s  "
    console.print(Text.assemble((seconds, "dim"), (f"{mark} ", "green"), one_line(what)))
    for detail in step.details:
        console.print(Text(" " * (len(seconds) + 2) + detail, "dim"))


@define
class _Demo:
    console: Console
    user: str = "zoë"
    trips: list[tuple[str, int]] = field(factory=list[tuple[str, int]])

    async def run(self, server: EmbeddedPostgres, file: str | None) -> None:
        async with ConversationStore.connect(server.dsn) as store:
            with _step(self.console, "migrated the empty database") as step:
                step.details += await store.migrate()
            if file is not None:
                await self._import(store, file)
        # The same server, by a way on which round trips are counted.
        async with RoundTripCounter(server.port) as wire:
            dsn = f"{server.dsn} port={wire.port}"
            async with ConversationStore.connect(dsn) as store:
                conversation = await self._play(store, wire)
                await self._look(store, conversation)
        async with ConversationStore.connect(server.dsn) as store:
            await self._count(store)

    async def _import(self, store: ConversationStore, file: str) -> None:
        with _step(self.console, f"imported {Path(file).name}") as step:
            with RecordReader.open(file) as records, Report("imported", records.size) as report:
                users = records.users = Counter()
                imported = await load(store, records, "error", report)
            step.details.append(counts(imported))
        for user, _ in users.most_common(1):  # the new conversation is one more of this user
            self.user = user

    async def _play(self, store: ConversationStore, wire: RoundTripCounter) -> Conversation:
        uow = store.unit_of_work(user_id=self.user)
        with _step(self.console, f"played a new conversation of {self.user}") as step:
            conversation, _ = await self._counted(
                wire,
                "start, with 3 messages",
                start_conversation(
                    uow,
                    session_id="demo-1",
                    drafts=_GREETING,
                    intent_type="find_train",
                    source="demo",
                    metadata={"channel": "terminal"},
                ),
            )
            said: list[list[Message]] = []
            for name, drafts, request_id in (
                ("turn of 3 messages", _SEARCH, "request-1"),
                ("turn of 2 messages", _BOOKING, "request-2"),
                ("the same turn, sent again", _BOOKING, "request-2"),
                ("turn of 1 message", _THANKS, None),
            ):
                turn = append_messages(
                    uow, conversation_id=conversation.id, drafts=drafts, request_id=request_id
                )
                said.append(await self._counted(wire, name, turn))
            times = 1 if said[1] == said[2] else 2
            step.details.append(f"the turn that was sent twice is stored {times} time")
            close = close_conversation(uow, conversation_id=conversation.id)
            closed = await self._counted(wire, "close", close)
            try:
                await append_messages(uow, conversation_id=closed.id, drafts=_AFTERWARDS)
            except ConversationNotAcceptingMessages as error:
                step.details.append(f"a message after the end is refused: {type(error).__name__}")
        return closed

    async def _counted(self, wire: RoundTripCounter, name: str, work: Awaitable[T]) -> T:
        before = wire.count
        result = await work
        self.trips.append((name, wire.count - before))
        return result

    async def _look(self, store: ConversationStore, conversation: Conversation) -> None:
        uow = store.unit_of_work(user_id=self.user)
        self._title(f"conversation-store show {conversation.id}")
        await print_conversation(self.console, uow, conversation)
        self._title(f"conversation-store list {self.user} --limit {_LISTED}")
        print_list(self.console, await list_conversations(uow, limit=_LISTED))

    async def _count(self, store: ConversationStore) -> None:
        self._title("in numbers")
        with _step(self.console, "read everything back, as export does") as step:
            found = ImportReceipt()
            async for record in export_conversations(store.unit_of_work()):
                found += ImportReceipt(conversations=1, messages=len(record["messages"]))
            step.details.append(counts(found))
        self.console.print()
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        table.add_column("sent to the server")
        table.add_column("round trips, counted on the wire", justify="right")
        for name, trips in self.trips:
            table.add_row(Text(name), Text(str(trips), "green" if trips == 1 else "yellow"))
        self.console.print(table)
        hint = "The first write of a process also fetches ids, for hundreds to follow."
        self.console.print(Text(hint, "dim"))

    def _title(self, text: str) -> None:
        self.console.print()
        self.console.print(Rule(Text(one_line(text), "bold"), align="left", style="dim"))
        self.console.print()
