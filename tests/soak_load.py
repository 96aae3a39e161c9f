"""The load of a soak: every service function, in every manner, some of it cancelled at random."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from statistics import quantiles
from typing import Any, Final, TypeVar

from ledger import Change, Ledger, Told, Turn, Unit
from load import SESSION, Load, Work, Writer

from conversation_store import (
    AsyncUnitOfWork,
    Conversation,
    ConversationNotFound,
    ConversationRecord,
    ConversationStore,
    Message,
    StoreError,
    append_messages,
    archive_conversation,
    erase_user,
    export_conversations,
    find_conversation,
    get_message,
    get_or_start_conversation,
    import_conversations,
    list_conversations,
    messages_after,
    pop_message,
    purge_conversations,
    redact_message,
    replace_messages,
    start_conversation,
)

T = TypeVar("T")

FUTURE: Final = datetime(2100, 1, 1, tzinfo=UTC)
CANCELLED: Final = 0.05
"""The part of the calls that are cancelled, if they last so long."""
PATIENCE: Final = 0.01
"""Seconds after which they are, on average."""
LIMITED: Final = 0.1
"""The part of the units that are given a timeout."""
TIMEOUTS: Final = (0.05, 0.5, 5.0)
SAYING: Final = "SELECT count(*) FROM {messages} WHERE content = ANY(%s)"
CONTENT: Final = "SELECT content FROM {messages} WHERE id = %s"
BUCKET: Final = 2.0
"""Seconds whose latencies are told together."""


def judge(dsn: str, units: list[Unit]) -> list[str]:
    """Judge what became of units; in a process of its own, whose memory nobody measures."""
    ledger = Ledger(dsn)
    ledger.units = units
    return ledger.violations()


class Meter:
    """Latencies and errors over time; what is over is kept as a few numbers."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.buckets: list[dict[str, Any]] = []
        self._seconds: list[float] = []
        self._errors: dict[str, int] = {}
        self._start = 0.0
        self.latest_cancelled = 0.0
        """Seconds that a cancelled call took to end, at most."""

    @property
    def now(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.began

    def note(self, error: str | None, seconds: float) -> None:
        """Count how a unit ended, and how long it took if it ended well."""
        self.turn_over()
        if error is None:
            self._seconds.append(seconds)
        else:
            self._errors[error] = self._errors.get(error, 0) + 1

    def turn_over(self) -> None:
        """Begin a new bucket if it is time."""
        if self.now < self._start + BUCKET:
            return
        if self._seconds or self._errors:
            bucket: dict[str, Any] = {"at": round(self._start, 1), "units": len(self._seconds)}
            if len(self._seconds) > 1:
                percentiles = quantiles(self._seconds, n=100, method="inclusive")
                bucket["p50_ms"] = round(percentiles[49] * 1e3, 2)
                bucket["p99_ms"] = round(percentiles[98] * 1e3, 2)
            self.buckets.append(bucket | {"errors": self._errors})
        self._seconds, self._errors = [], {}
        self._start = self.now // BUCKET * BUCKET


class SoakLoad(Load):
    """A load whose units are measured."""

    def __init__(
        self,
        stores: Sequence[ConversationStore],
        ledger: Ledger,
        meter: Meter,
        *,
        tasks: int,
        seed: int,
    ) -> None:
        self.meter = meter
        super().__init__(stores, ledger, tasks=tasks, seed=seed, writer=SoakWriter)

    def note(self, error: StoreError | None, began: float) -> None:
        """Count how a unit ended."""
        super().note(error, began)
        name = None if error is None else type(error).__name__
        self.meter.note(name, time.monotonic() - began)

    def note_cancelled(self, seconds: float) -> None:
        """Count a unit that was cancelled, and how long it took to end."""
        self.told["cancelled"] += 1
        self.meter.note("cancelled", 0)
        self.meter.latest_cancelled = max(self.meter.latest_cancelled, seconds)


class SoakWriter(Writer):
    """A task that also does what is done less often, and that is impatient at times."""

    async def live(self) -> None:
        """Live through a conversation, then do some of the rest."""
        await super().live()
        rest = [self.get_or_start, self.start_by_request, self.bring_in, self.take_out]
        rest += [
            self.forget,
            self.redact,
            self.take_back,
            self.nest,
            self.hand_over,
            self.look_around,
        ]
        for each in self.random.sample(rest, 3):
            if not self.load.ends:
                await each()

    def new_unit(self) -> AsyncUnitOfWork:
        """Take a unit of work, at times one that has little time."""
        timeout = self.random.choice(TIMEOUTS) if self.random.random() < LIMITED else None
        return self.store.unit_of_work(timeout=timeout)

    async def call(self, work: Work[T]) -> T | None:
        """Do something in a unit of work; at times cancel it."""
        if self.random.random() > CANCELLED:
            return await super().call(work)
        patience = self.random.expovariate(1 / PATIENCE)
        calling = asyncio.create_task(super().call(work))
        await asyncio.wait([calling], timeout=patience)
        cancelled_at = time.monotonic()
        calling.cancel()
        await asyncio.wait([calling])
        if not calling.cancelled():
            return calling.result()
        assert isinstance(self.load, SoakLoad)
        self.load.note_cancelled(time.monotonic() - cancelled_at)
        return None

    async def get_or_start(self) -> None:
        """Get a conversation that is not there, twice."""
        turn = self.load.turn(None)

        async def work(uow: AsyncUnitOfWork) -> Conversation:
            conversation, _ = await get_or_start_conversation(
                uow,
                user_id=self.user_id,
                session_id=turn.contents[0][:SESSION],
                drafts=turn.drafts(),
            )
            return conversation

        first = await self.unit(work, turn)
        if first is not None:
            second = await self.call(work)
            is_same = second is None or second.id == first.id
            self.load.is_true(is_same, f"got {second}, was {first}")

    async def start_by_request(self) -> None:
        """Start a conversation by a request; then send the request again."""
        turn = self.load.turn(None)
        session_id = turn.contents[0][:SESSION]

        async def work(uow: AsyncUnitOfWork) -> list[Message]:
            _, messages = await start_conversation(
                uow,
                user_id=self.user_id,
                session_id=session_id,
                drafts=turn.drafts(),
                request_id=session_id,
            )
            turn.placed(messages)
            return messages

        first = await self.unit(work, turn)
        if first is not None:
            second = await self.call(work)
            self.load.is_true(second in (None, first), f"sent again: {second}, was {first}")

    async def bring_in(self) -> None:
        """Import a few conversations, by one batch."""
        turns = [self.load.turn(None) for _ in range(3)]
        records: list[ConversationRecord] = [
            {
                "user_id": f"{self.user_id}-imported",
                "session_id": turn.contents[0][:SESSION],
                "messages": [{"role": "user", "content": content} for content in turn.contents],
            }
            for turn in turns
        ]

        async def work(uow: AsyncUnitOfWork) -> None:
            receipt = await import_conversations(uow, records=records)
            self.load.is_true(receipt.conversations == len(turns), f"imported {receipt}")

        await self.unit(work, *turns)

    async def take_out(self) -> None:
        """Export what was imported: each conversation is whole."""

        async def work(uow: AsyncUnitOfWork) -> None:
            async with aclosing(
                export_conversations(uow, user_id=f"{self.user_id}-imported")
            ) as records:
                async for record in records:
                    self.load.is_true(len(record["messages"]) == 2, f"exported {record}")

        await self.call(work)

    async def forget(self) -> None:
        """Start a conversation of a user of its own; erase the user, or purge what there is."""
        turn = self.load.turn(None)
        user_id = turn.contents[0][:SESSION]

        async def start(uow: AsyncUnitOfWork) -> int:
            conversation, messages = await start_conversation(
                uow, session_id="one", drafts=turn.drafts()
            )
            turn.placed(messages)
            return conversation.id

        async def erase(uow: AsyncUnitOfWork) -> None:
            await erase_user(uow, user_id=user_id)

        async def purge(uow: AsyncUnitOfWork) -> None:
            await purge_conversations(uow, inactive_since=FUTURE, user_id=user_id)

        conversation_id = await self.scoped(start, turn, user_id=user_id)
        if conversation_id is not None:
            await self.unit(self.random.choice([erase, purge]), removes=[conversation_id])

    async def redact(self) -> None:
        """Start a conversation and redact a message of it; the others stay."""
        turn = self.load.turn(None)
        session_id = turn.contents[0][:SESSION]

        async def start(uow: AsyncUnitOfWork) -> list[Message]:
            _, messages = await start_conversation(
                uow, user_id=self.user_id, session_id=session_id, drafts=turn.drafts()
            )
            turn.placed(messages)
            return messages

        messages = await self.unit(start, turn)
        if messages is None:
            return
        first, *others = messages
        change = Change(CONTENT, (first.id,), first.content, "[redacted]")

        async def redact(uow: AsyncUnitOfWork) -> None:
            redacted = await redact_message(uow, message_id=first.id)
            self.load.is_true(redacted.is_redacted, f"redacted {redacted}")

        async def read(uow: AsyncUnitOfWork) -> list[Message]:
            return await messages_after(uow, conversation_id=first.conversation_id, position=1)

        await self.unit(redact, changes=[change])
        rest = await self.call(read)
        self.load.is_true(rest in (None, others), f"beside a redacted one: {rest}, was {others}")

    async def take_back(self) -> None:
        """Start a conversation and append to it; pop that, then replace what is left."""
        turn, extra = self.load.turn(None), self.load.ledger.turn(None, size=1)

        async def start(uow: AsyncUnitOfWork) -> int:
            conversation, _ = await start_conversation(
                uow,
                user_id=self.user_id,
                session_id=turn.contents[0][:SESSION],
                drafts=turn.drafts(),
            )
            return conversation.id

        chat = await self.unit(start, turn)
        if chat is None:
            return

        async def append(uow: AsyncUnitOfWork) -> list[Message]:
            return await append_messages(uow, conversation_id=chat, drafts=extra.drafts())

        async def pop(uow: AsyncUnitOfWork) -> Message | None:
            return await pop_message(uow, conversation_id=chat)

        async def replace(uow: AsyncUnitOfWork) -> list[Message]:
            return await replace_messages(uow, conversation_id=chat, drafts=now.drafts())

        added = await self.unit(append, extra)
        if added is None:
            return
        self._may_be_gone(turn, extra)
        popped = await self.unit(pop, changes=[Change(SAYING, (list(extra.contents),), 1, 0)])
        if popped is None:
            return
        self.load.is_true([popped] == added, f"popped {popped}, appended {added}")
        now = self.load.turn(chat)
        replaced = await self.unit(
            replace, now, changes=[Change(SAYING, (list(turn.contents),), len(turn.contents), 0)]
        )
        positions = [message.position for message in replaced or []]
        is_whole = replaced is None or positions == list(range(1, len(now.contents) + 1))
        self.load.is_true(is_whole, f"replaced by {replaced}")

    def _may_be_gone(self, *turns: Turn) -> None:
        """Have the ledger ask no more for turns that are taken back from now on."""
        left = set(turns)
        for unit in reversed(self.load.ledger.units):
            if left & set(unit.turns):
                unit.told = Told.UNKNOWN
                left -= set(unit.turns)
            if not left:
                return

    async def scoped(self, work: Work[T], turn: Turn, *, user_id: str) -> T | None:
        """Do something in a unit that acts for one user."""

        async def noted(_: AsyncUnitOfWork) -> T:
            uow = self.store.unit_of_work(user_id=user_id)
            with self.load.ledger.unit(turn, uow=uow):
                return await work(uow)

        return await self.call(noted)

    async def nest(self) -> None:
        """Append in a block whose inner block is refused: only that is undone."""
        conversation_id = self.random.choice(self.load.shared)
        turn = self.load.turn(conversation_id)

        async def work(uow: AsyncUnitOfWork) -> None:
            async with uow:
                turn.placed(
                    await append_messages(
                        uow, conversation_id=conversation_id, drafts=turn.drafts()
                    )
                )
                with suppress(ConversationNotFound):
                    await archive_conversation(uow, conversation_id=-1)

        await self.unit(work, turn)

    async def hand_over(self) -> None:
        """Have the store run a unit that reads and then writes."""
        conversation_id = self.random.choice(self.load.shared)
        turn = self.load.turn(conversation_id)

        async def once(uow: AsyncUnitOfWork) -> Any:
            appended = uow.messages.append(conversation_id, turn.drafts())
            await uow.conversations.get(conversation_id)
            return appended

        async def work(_: AsyncUnitOfWork) -> None:
            with self.load.ledger.unit(turn):
                turn.placed(await (await self.store.run(once)))

        await self.call(work)

    async def look_around(self) -> None:
        """Read in every way; pages of messages have no gap."""
        conversation_id = self.random.choice(self.load.shared)

        async def work(uow: AsyncUnitOfWork) -> None:
            messages = await messages_after(uow, conversation_id=conversation_id, position=3)
            positions = [message.position for message in messages]
            is_whole = positions == list(range(4, 4 + len(positions)))
            self.load.is_true(is_whole, f"after 3 come {positions}")
            for message in messages[:1]:
                again = await get_message(uow, message_id=message.id)
                self.load.is_true(again == message, f"read {again}, was {message}")
            page = await list_conversations(uow, user_id=self.user_id, limit=5)
            for conversation in page.conversations[:1]:
                await find_conversation(
                    uow, user_id=self.user_id, session_id=conversation.session_id
                )

        await self.call(work)
