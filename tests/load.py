"""Many tasks that write through stores, each of their units noted in a ledger.

    async with Load([store], ledger) as load:
        await load.acknowledge(200)     # until so many more units were acknowledged
        server.kill()
        ...
        await load.acknowledge(200)
    assert load.surprises == []

Each task lives through conversations of its own: it starts one, says something in it and in those
that all share, reads what it said, and brings it to some end. What a fault may do to a unit is a
typed error, which the ledger notes; every other error, and every wrong answer, is a surprise.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Self, TypeVar

from ledger import Change, Ledger, Turn

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    Conversation,
    ConversationStore,
    Message,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    get_conversation,
    latest_messages,
    reopen_conversation,
    start_conversation,
    update_conversation,
)

T = TypeVar("T")
Work = Callable[[AsyncUnitOfWork], Awaitable[T]]

OF_A_FAULT: Final = (TransactionAborted, StoreUnavailable, StoreTimeout, CommitOutcomeUnknown)
STATUS: Final = "SELECT status FROM {conversations} WHERE id = %s"
RESCUE: Final = "SELECT rescue_id FROM {conversations} WHERE id = %s"
SESSION: Final = 50
"""Characters of a content that are unique."""
PAUSE: Final = 0.02
"""Seconds that a task waits after an error, so that a server that is away costs no CPU."""


class Load:
    """Tasks that write until the block is left."""

    def __init__(
        self,
        stores: Sequence[ConversationStore],
        ledger: Ledger,
        *,
        tasks: int = 16,
        shared: int = 3,
        padding: int = 0,
        seed: int = 0,
        writer: type[Writer] | None = None,
    ) -> None:
        self.ledger = ledger
        self.padding = padding
        """Bytes that make each message longer."""
        self.told: Counter[str] = Counter()
        """How units ended: 'acknowledged', or the name of the error."""
        self.sqlstates: Counter[str | None] = Counter()
        """Of those errors."""
        self.acknowledged_at = 0.0
        """When the last unit was acknowledged, on the monotonic clock."""
        self.surprises: list[str] = []
        self.shared: list[int] = []
        """Conversations that all tasks append to."""
        self.stores = stores
        kind = writer or Writer
        self._writers = [kind(self, stores[n % len(stores)], n, seed) for n in range(tasks)]
        self._tasks: list[asyncio.Task[None]] = []
        self._wanted = shared
        self._ends = asyncio.Event()

    async def __aenter__(self) -> Self:
        for _ in range(self._wanted):
            turn = self.turn(None)
            with self.ledger.unit(turn):
                conversation, messages = await start_conversation(
                    self.stores[0].unit_of_work(),
                    user_id="all",
                    session_id=turn.contents[0][:SESSION],
                    drafts=turn.drafts(),
                )
                turn.placed(messages)
            self.shared.append(conversation.id)
        self._tasks = [asyncio.create_task(writer.run()) for writer in self._writers]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._ends.set()
        async with asyncio.timeout(60):
            await asyncio.gather(*self._tasks)

    @property
    def ends(self) -> bool:
        """Whether the tasks are to come to an end."""
        return self._ends.is_set()

    async def acknowledge(self, units: int, *, within: float = 60) -> None:
        """Wait until so many more units were acknowledged."""
        wanted = self.told["acknowledged"] + units
        async with asyncio.timeout(within):
            while self.told["acknowledged"] < wanted:
                await asyncio.sleep(0.01)

    def turn(self, conversation_id: int | None) -> Turn:
        """Make up a turn."""
        turn = self.ledger.turn(conversation_id)
        if self.padding:
            turn.contents = tuple(f"{c} {secrets.token_hex(self.padding)}" for c in turn.contents)
        return turn

    def note(self, error: StoreError | None, began: float) -> None:
        """Count how a unit ended that began at this time of the monotonic clock."""
        if error is None:
            self.acknowledged_at = time.monotonic()
            self.told["acknowledged"] += 1
        else:
            self.told[type(error).__name__] += 1
            self.sqlstates[error.sqlstate] += 1

    def is_true(self, fact: bool, what: str) -> None:
        """Note a surprise if something is not as it has to be."""
        if not fact:
            self.surprises.append(what)


class Writer:
    """One task: conversation after conversation, from its start to its end."""

    def __init__(self, load: Load, store: ConversationStore, number: int, seed: int) -> None:
        self.load = load
        self.store = store
        self.random = random.Random(f"{seed}-{number}")
        self.user_id = f"user-{number}"
        self._requests = itertools.count(1)

    async def run(self) -> None:
        """Live through conversations until the load ends; what is unforeseen is a surprise."""
        while not self.load.ends:
            try:
                await self.live()
            except Exception as error:  # noqa: BLE001 - any that is not of a fault
                self.load.surprises.append(f"{type(error).__name__}: {error}")
                return

    async def live(self) -> None:
        """Start a conversation, say something, and bring it to some end."""
        conversation_id = await self.start()
        if conversation_id is None:
            return
        for _ in range(self.random.randint(2, 6)):
            where = self.random.choice([conversation_id, *self.load.shared])
            await self.random.choice((self.append, self.request, self.talk))(where)
            if self.load.ends:
                return
        await self.random.choice((self.close, self.come_back, self.update, self.delete))(
            conversation_id
        )

    # What is done in a conversation ---------------------------------------------------------------

    async def start(self) -> int | None:
        """Start a conversation with a turn; None if that is not known to have gone well."""
        turn = self.load.turn(None)

        async def work(uow: AsyncUnitOfWork) -> int:
            conversation, messages = await start_conversation(
                uow,
                user_id=self.user_id,
                session_id=turn.contents[0][:SESSION],
                drafts=turn.drafts(),
            )
            turn.placed(messages)
            return conversation.id

        return await self.unit(work, turn)

    async def append(self, conversation_id: int) -> None:
        """Append a turn, and read it."""
        turn = self.load.turn(conversation_id)

        async def work(uow: AsyncUnitOfWork) -> list[Message]:
            messages = await append_messages(
                uow, conversation_id=conversation_id, drafts=turn.drafts()
            )
            turn.placed(messages)
            return messages

        messages = await self.unit(work, turn)
        if messages is not None and self.random.random() < 0.3:
            await self.read(conversation_id, messages)

    async def request(self, conversation_id: int) -> None:
        """Append a turn with a request_id, again and again until it is known to be stored."""
        turn = self.load.turn(conversation_id)
        request_id = f"{self.user_id}-{next(self._requests)}"
        unknown: CommitOutcomeUnknown | None = None

        async def work(uow: AsyncUnitOfWork) -> None:
            nonlocal unknown
            while True:
                try:
                    messages = await append_messages(
                        uow,
                        conversation_id=conversation_id,
                        drafts=turn.drafts(),
                        request_id=request_id,
                    )
                except CommitOutcomeUnknown as error:
                    unknown = error
                except asyncio.CancelledError:
                    if unknown is None:
                        raise
                    raise unknown from None  # the last try alone says nothing of the one before
                except OF_A_FAULT:
                    if unknown is not None and self.load.ends:
                        raise unknown from None
                    if unknown is None:
                        raise
                else:
                    turn.placed(messages)
                    return
                await asyncio.sleep(PAUSE)

        await self.unit(work, turn)

    async def talk(self, conversation_id: int) -> None:
        """Append two turns in one unit, reading in between: its transaction stays open."""
        first, second = (self.load.turn(conversation_id) for _ in range(2))

        async def work(uow: AsyncUnitOfWork) -> None:
            async with uow:
                messages = await append_messages(
                    uow, conversation_id=conversation_id, drafts=first.drafts()
                )
                first.placed(messages)
                await self._check_read(uow, conversation_id, messages)
                second.placed(
                    await append_messages(
                        uow, conversation_id=conversation_id, drafts=second.drafts()
                    )
                )

        await self.unit(work, first, second)

    async def close(self, conversation_id: int) -> None:
        """Close it; or say a last word and close it, in one unit."""
        turns = [self.load.turn(conversation_id)] if self.random.random() < 0.5 else []

        async def work(uow: AsyncUnitOfWork) -> None:
            async with uow:
                said = [uow.messages.append(conversation_id, turn.drafts()) for turn in turns]
                await close_conversation(uow, conversation_id=conversation_id)
            for turn, pending in zip(turns, said, strict=True):
                turn.placed(await pending)

        change = Change(STATUS, (conversation_id,), "active", "closed")
        await self.unit(work, *turns, changes=[change])

    async def come_back(self, conversation_id: int) -> None:
        """Put it away and fetch it back; only the last step is for the ledger to judge."""

        async def put_away(uow: AsyncUnitOfWork) -> Conversation:
            return await archive_conversation(uow, conversation_id=conversation_id)

        if await self.call(put_away) is None:
            return

        async def work(uow: AsyncUnitOfWork) -> None:
            async with uow:
                await close_conversation(uow, conversation_id=conversation_id)
                await reopen_conversation(uow, conversation_id=conversation_id)

        await self.unit(work, changes=[Change(STATUS, (conversation_id,), "archived", "active")])

    async def update(self, conversation_id: int) -> None:
        """Set a column."""

        async def work(uow: AsyncUnitOfWork) -> None:
            await update_conversation(uow, conversation_id=conversation_id, rescue_id="case")

        await self.unit(work, changes=[Change(RESCUE, (conversation_id,), None, "case")])

    async def delete(self, conversation_id: int) -> None:
        """Remove it."""

        async def work(uow: AsyncUnitOfWork) -> None:
            await delete_conversation(uow, conversation_id=conversation_id)

        await self.unit(work, removes=[conversation_id])

    async def read(self, conversation_id: int, messages: list[Message]) -> None:
        """Look whether what was acknowledged is there."""

        async def work(uow: AsyncUnitOfWork) -> None:
            await self._check_read(uow, conversation_id, messages)
            found = await get_conversation(uow, conversation_id=conversation_id)
            is_counted = found.message_count >= messages[-1].position
            self.load.is_true(is_counted, f"counts {found.message_count}, has {messages[-1]}")

        await self.call(work)

    async def _check_read(
        self, uow: AsyncUnitOfWork, conversation_id: int, messages: list[Message]
    ) -> None:
        page = await latest_messages(uow, conversation_id=conversation_id, limit=100)
        positions = [message.position for message in page]
        is_whole = not page or positions == list(range(positions[0], positions[0] + len(page)))
        self.load.is_true(is_whole, f"a page of conversation {conversation_id} has {positions}")
        newer = [message for message in page if message.position > messages[0].position]
        is_there = len(newer) >= 100 - len(messages) or all(m in page for m in messages)
        self.load.is_true(is_there, f"acknowledged and not read: {messages}")

    # How ------------------------------------------------------------------------------------------

    async def unit(
        self,
        work: Work[T],
        *turns: Turn,
        changes: Sequence[Change] = (),
        removes: Sequence[int] = (),
    ) -> T | None:
        """Do something that the ledger is to judge; return its result, None after a fault."""

        async def noted(uow: AsyncUnitOfWork) -> T:
            with self.load.ledger.unit(*turns, changes=changes, removes=removes, uow=uow):
                return await work(uow)

        return await self.call(noted)

    def new_unit(self) -> AsyncUnitOfWork:
        """Take a unit of work."""
        return self.store.unit_of_work()

    async def call(self, work: Work[T]) -> T | None:
        """Do something in a unit of work; return its result, None after a fault."""
        began = time.monotonic()
        try:
            result = await work(self.new_unit())
        except OF_A_FAULT as error:
            self.load.note(error, began)
            await asyncio.sleep(PAUSE)
            return None
        self.load.note(None, began)
        return result
