"""Group commit: turns that wait at the same time are stored by one statement.

Who finds nobody before them goes at once, as without group commit. While a flush is away the next
turns gather, and then travel together: one round trip and one flush to disk carry many turns. What
keeps each of them as safe as alone:

- The statement stores only the turns that are beyond doubt. Any other, whatever the reason, is
  sent alone by its own unit of work, and gets there the answer or the error that is its own. If
  the server refuses the statement as a whole, that goes for all of its turns.
- It locks conversations in the order of their ids and passes over those that others have locked:
  it waits for nobody, so it cannot deadlock, and one locked conversation holds up no other.
- Of one conversation one flush at a time is away, and its turns keep the order they came in.
- If one waited in vain, for a connection or for its conversation's lock, those behind it who were
  there all that time fail too, as they would have alone: otherwise the waits would add up.
- It runs in a task of its own: a unit of work that is cancelled takes no other along.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from itertools import chain
from typing import Any, Final

from ...domain.errors import StoreTimeout
from ...service_layer.outcome import Outcome
from .commit import COMMIT_GRACE, await_commit
from .connections import Connections
from .flush import MOST_TURNS, Flush, Seat, Shareable
from .statement import Statement
from .texts import Texts

MOST_AWAY: Final = 2
"""Flushes that are away at a time: the server works on one while the next is put together."""
PATIENCE: Final = 0.01
"""Seconds that others wait for turns that were sent alone: those may wait for a lock."""
WAITED_IN_VAIN: Final = (None, "55P03")
"""SQLSTATEs of a wait that was not the turn's own fault: for a connection (none), for a lock."""


class GroupCommit:
    """Joins the turns of the concurrent units of work of one store."""

    def __init__(self, connections: Connections, texts: Texts) -> None:
        self._connections = connections
        self._texts = texts
        self._waiting: dict[int, deque[Seat]] = {}
        """The turns that wait, by conversation; those and these in the order they came."""
        self._alone: set[Seat] = set()
        """Turns that are sent alone and count."""
        self._away = 0
        """How many flushes are away."""
        self._occupied: Counter[int] = Counter()
        """Conversations of which turns are away, and how many."""
        self._newest = 0
        """The number of the turn that came last."""
        self._is_crowded = False
        """Whether the last flush carried several turns: then their tasks may send more at once."""
        self._is_due = False
        """Whether the next flush is about to be put together."""
        self._patience: asyncio.TimerHandle | None = None

    def enter(self, statement: Statement[Any]) -> Seat:
        """Take a turn in; whoever entered has to leave."""
        self._newest += 1
        parameters = statement.bind(statement.ids)
        seat = Seat(statement, parameters, statement.conversation_id or 0, self._newest)
        is_behind = self._away or self._is_crowded or seat.conversation_id in self._occupied
        if is_behind or self._waiting:
            seat.called = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(seat.conversation_id, deque()).append(seat)
            self._call()
        else:
            self._depart(Flush([seat]))
        return seat

    async def is_placed(self, seat: Seat) -> bool:
        """Return whether a turn was stored by a flush; if not, it is to be sent alone now.

        Raises the turn's own error where others failed with it. Cancelled, it waits a moment to
        learn what became of the turn.
        """
        if seat.called is not None:
            try:
                await seat.called
            except asyncio.CancelledError:
                if seat.flush is not None and seat.called.cancelled():
                    await self._await_last_word(seat, seat.flush)
                raise
        if seat.error is not None:
            raise seat.own_error(seat.error)
        return seat.placed is not None

    def leave(self, seat: Seat) -> None:
        """Let a turn go, whatever became of it."""
        seat.has_left = True
        if seat.is_alone:
            self._land(seat)
            if seat.counts:
                self._alone.discard(seat)
                self._away -= 1
                self._is_crowded = False
        elif seat.flush is None:
            self._forget(seat)
        self._call()

    def time_out(self, seat: Seat, error: StoreTimeout) -> None:
        """Let a turn that was sent alone tell those behind it that it waited in vain."""
        if error.sqlstate in WAITED_IN_VAIN:
            self._give_up(self._waiting.get(seat.conversation_id, ()), seat.newest, error)

    # Flushes --------------------------------------------------------------------------------------

    def _call(self) -> None:
        """Put the next flush together as soon as all that can run now has run."""
        if not self._waiting or self._is_due:
            return
        if self._away < MOST_AWAY:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._dispatch)
        else:
            self._be_patient()

    def _be_patient(self) -> None:
        """Wait a moment for turns that were sent alone: mostly they are back by then."""
        if self._alone and self._patience is None:
            loop = asyncio.get_running_loop()
            self._patience = loop.call_later(PATIENCE, self._stop_counting)

    def _stop_counting(self) -> None:
        """Go on without the turns that were sent alone and are not back."""
        self._patience = None
        for seat in self._alone:
            seat.counts = False
        self._away -= len(self._alone)
        self._alone.clear()
        self._call()

    def _dispatch(self) -> None:
        self._is_due = False
        while self._away < MOST_AWAY:
            flush = self._choose()
            if not flush.seats:
                return  # all that wait, wait for a turn of their conversation, whose end calls them
            self._depart(flush)
        if self._waiting:
            self._be_patient()

    def _choose(self) -> Flush:
        """Take the next flush out of those who wait, in the order they came."""
        flush = Flush([])
        served: list[int] = []
        for conversation_id, waiting in self._waiting.items():
            if len(flush.seats) == MOST_TURNS:
                break
            if conversation_id not in self._occupied and flush.fill(waiting):
                served.append(conversation_id)
        for conversation_id in served:  # who has more to send comes again after the others
            if waiting := self._waiting.pop(conversation_id):
                self._waiting[conversation_id] = waiting
        return flush

    def _forget(self, seat: Seat) -> None:
        """Remove a turn that does not wait any more."""
        waiting = self._waiting.get(seat.conversation_id)
        if waiting is None:
            return
        with suppress(ValueError):
            waiting.remove(seat)
        if not waiting:
            del self._waiting[seat.conversation_id]

    def _depart(self, flush: Flush) -> None:
        self._away += 1
        for seat in flush.seats:
            self._occupied[seat.conversation_id] += 1
        if not self._go_together(flush.seats):
            [seat] = flush.seats
            seat.counts = True
            self._alone.add(seat)
            self._send_yourself(seat)
            return
        flush.newest = self._newest
        for seat in flush.seats:
            seat.flush = flush
            seat.called = seat.called or asyncio.get_running_loop().create_future()
        flush.task = asyncio.create_task(flush.run(self._connections, self._texts))
        # By a callback: a task that is cancelled before it began runs nothing of its own.
        flush.task.add_done_callback(lambda _: self._arrive(flush))

    def _send_yourself(self, seat: Seat) -> None:
        seat.is_alone = True
        seat.newest = self._newest
        _wake(seat)

    def _go_together(self, seats: list[Seat]) -> bool:
        """Whether these are worth the statement for many; one turn has a shorter one."""
        return len(seats) > 1

    def _land(self, seat: Seat) -> None:
        self._occupied[seat.conversation_id] -= 1
        if not self._occupied[seat.conversation_id]:
            del self._occupied[seat.conversation_id]

    def _arrive(self, flush: Flush) -> None:
        """Tell the turns of a flush that ended; of those not placed, one a conversation goes on."""
        self._away -= 1
        self._is_crowded = True
        alone: dict[int, list[Seat]] = {}
        for seat in flush.seats:
            if seat.placed is not None or flush.error is not None or seat.has_left:
                seat.error = None if seat.placed else flush.error
                self._land(seat)
                _wake(seat)
            elif seat.conversation_id not in alone:
                alone[seat.conversation_id] = []
                self._send_yourself(seat)
            else:
                self._land(seat)
                seat.flush = None
                alone[seat.conversation_id].append(seat)
        for conversation_id, others in alone.items():
            if others:
                waiting = self._waiting.setdefault(conversation_id, deque())
                waiting.extendleft(reversed(others))
        flush.seats = []  # or each flush would be a cycle, which only the garbage collector ends
        if flush.outcome is Outcome.NOT_STARTED and flush.error is not None:
            self._give_up(chain.from_iterable(self._waiting.values()), flush.newest, flush.error)
        self._call()

    def _give_up(self, waiting: Iterable[Seat], newest: int, error: Shareable) -> None:
        """Fail those who waited all the time that another one waited in vain."""
        for seat in waiting:
            if seat.number <= newest:
                seat.error = error
                _wake(seat)

    async def _await_last_word(self, seat: Seat, flush: Flush) -> None:
        """Wait a moment for a flush; end it where nobody waits for it any more."""
        seat.has_left = True
        if flush.task is None or flush.task.done():
            return
        is_deserted = all(other.has_left for other in flush.seats)
        if flush.outcome is Outcome.NOT_STARTED:  # it waits for a connection, and goes without it
            if is_deserted:
                flush.task.cancel()
        elif is_deserted:
            await await_commit(flush.task)
        else:
            seat.called = asyncio.get_running_loop().create_future()
            await asyncio.wait([seat.called], timeout=COMMIT_GRACE)


def _wake(seat: Seat) -> None:
    if seat.called is not None and not seat.called.done():
        seat.called.set_result(None)
