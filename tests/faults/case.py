"""What a scenario is, and what it is given: a store behind a proxy, and one fault.

A scenario prepares what it needs on a store beside the proxy, then opens `case.played`, in which
the fault happens. It checks what is returned; what is stored the ledger judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ledger import Change, Ledger, Turn
from pulse import Pulse

from conversation_store import (
    AsyncUnitOfWork,
    ConversationStore,
    StoreError,
    start_conversation,
)

from .proxy import Fault, FaultProxy

SCHEMA: Final = "faults"
PATIENCE: Final = 10.0
"""Seconds within which every call ends, where the network loses nothing silently."""
DEADLINE: Final = 0.2
"""Seconds after which a call in a black hole is cancelled."""

STATUS: Final = "SELECT status FROM {conversations} WHERE id = %s"
MARK: Final = "SELECT metadata->>'mark' FROM {conversations} WHERE id = %s"
CONTENT: Final = "SELECT content FROM {messages} WHERE id = %s"
SAYING: Final = "SELECT count(*) FROM {messages} WHERE content = ANY(%s)"
SESSIONS: Final = "SELECT count(*) FROM {conversations} WHERE user_id = %s"


@dataclass
class Case:
    """One run of a scenario."""

    name: str
    store: ConversationStore
    """Behind the proxy."""
    beside: ConversationStore
    """The same store, without a proxy."""
    proxy: FaultProxy
    fault: Fault | None
    ledger: Ledger
    pulse: Pulse
    opening: bool = False
    """Whether the fault comes while a connection is opened."""
    user_id: str | None = None
    """For whom the units act where the stores have row security."""
    overtime: float = 0.0
    """Seconds that a call in a black hole took to end after it was cancelled."""

    @asynccontextmanager
    async def played(
        self,
        *turns: Turn,
        changes: Sequence[Change] = (),
        removes: Sequence[int] = (),
        is_its_own: bool = True,
    ) -> AsyncGenerator[AsyncUnitOfWork]:
        """Give a unit of work, in which the fault happens, unless others do `is_its_own` part."""
        clock = asyncio.get_running_loop().time
        uow = self.store.unit_of_work(user_id=self.user_id)
        deadline = late = 0.0
        if self.opening:
            await self.proxy.end_all()
        try:
            async with asyncio.timeout(PATIENCE) as limit:

                def hurry() -> None:
                    nonlocal deadline, late
                    deadline, late = clock() + DEADLINE, self.pulse.late
                    limit.reschedule(deadline)

                with self.ledger.unit(
                    *turns,
                    changes=changes,
                    removes=removes,
                    uow=uow if is_its_own else None,
                    note=self.name,
                ):
                    self.proxy.when_dark = hurry
                    self.proxy.arm(self.fault, opening=self.opening)
                    yield uow
        finally:
            if deadline:
                self.overtime = clock() - deadline - (self.pulse.late - late)
            self.proxy.disarm()

    async def started(self, user_id: str | None = None) -> tuple[int, Turn]:
        """Start a conversation with a turn, beside the proxy."""
        return await self.start(self.beside, user_id)

    async def start(self, store: ConversationStore, user_id: str | None = None) -> tuple[int, Turn]:
        """Start a conversation with a turn."""
        turn, uow = self.ledger.turn(None), store.unit_of_work(user_id=self.user_id)
        with self.ledger.unit(turn, uow=uow, note=f"beside {self.name}"):
            conversation, messages = await start_conversation(
                uow, user_id=user_id or "u", session_id=turn.contents[0], drafts=turn.drafts()
            )
            turn.placed(messages)
        return conversation.id, turn


Play: TypeAlias = Callable[[Case], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """What is played."""

    name: str
    """That of a service function begins with the function's."""
    play: Play
    coalesce: bool = False
    """Whether it needs a store with group commit."""
    needs_retry: bool = False
    """Whether it succeeds at the second try only."""
    raises_the_drivers: bool = False
    """Whether the host sends SQL itself, and so meets the driver's own errors."""
    may_raise: tuple[type[StoreError], ...] = ()
    """What it may end with for lack of a network, although the store tries units again.

    A unit that is one flush, and a lone read, are tried again by themselves, and a lost answer is
    asked for again. A unit whose transaction is open between flushes is not tried again, but by
    `run`; and there are units that cannot be sent twice.
    """


SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(name: str, **options: Any) -> Callable[[Play], Play]:
    """Enter a scenario."""

    def enter(play: Play) -> Play:
        assert name not in SCENARIOS
        SCENARIOS[name] = Scenario(name, play, **options)
        return play

    return enter
