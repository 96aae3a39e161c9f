"""Turns of several units of work, and the one statement that stores them together.

The statement stores those that are beyond doubt, and says which; it has no say about the others.
"""

from __future__ import annotations

import asyncio
import copy
from collections import deque
from typing import Any, Final, TypeAlias

import psycopg
from attrs import define, field

from ...domain.errors import ConversationStoreError
from ...domain.json_object import dump_json
from ...service_layer.outcome import Outcome
from .commit import is_lost, judge_interrupted, outcome_unknown
from .connections import Connection, Connections
from .errors import READ_ONLY
from .parameters import ACCEPTING, array
from .rows import Row
from .statement import Command, Cursor, Parameters, Statement, execute_alone, rows_of
from .texts import Texts
from .waiting import interruptible

MOST_TURNS: Final = 64
"""Turns of one flush."""
MOST_CHARACTERS: Final = 1_000_000
"""Characters of drafts in one flush; a turn that has more goes alone."""

Shareable: TypeAlias = ConversationStoreError | psycopg.Error
"""What several turns may fail with; each then raises an error of its own."""


@define(eq=False)
class Seat:
    """A turn that takes part, from when its unit of work comes until it leaves."""

    statement: Statement[Any]
    parameters: Parameters = field(repr=False)
    conversation_id: int
    number: int
    """Its number among all turns that came."""
    called: asyncio.Future[None] | None = None
    """Done as soon as its unit of work has something to do; None: at once."""
    flush: Flush | None = None
    """The flush that carries it, or carried it."""
    placed: Row | None = None
    """The last position before its messages, and their time, where a flush stored it."""
    error: Shareable | None = None
    """What it failed with together with others; sending it alone would not mend that."""
    is_alone: bool = False
    """Whether its unit of work is to send it, or does."""
    counts: bool = False
    """Whether it is one of the flushes that are away."""
    newest: int = 0
    """The number of the newest turn when it was told to go alone."""
    has_left: bool = False

    def outcome(self) -> Outcome:
        """Return what became of it, for a unit of work that was cancelled while it waited."""
        if self.placed is not None:
            return Outcome.COMMITTED
        return Outcome.ROLLED_BACK if self.flush is None else self.flush.outcome

    def own_error(self, error: Shareable) -> ConversationStoreError:
        """Return what it raises for an error that it shares: no two raise the same object."""
        if isinstance(error, psycopg.Error):
            own: ConversationStoreError = outcome_unknown(error, [self.statement])
            own.__cause__ = error
        else:
            own = copy.copy(error)
            own.__cause__ = error.__cause__
        return own


@define(eq=False)
class Flush:
    """Turns of several units of work, on their way in one statement."""

    seats: list[Seat]
    characters: int = 0
    outcome: Outcome = Outcome.NOT_STARTED
    """Of a turn that it did not place."""
    error: Shareable | None = None
    """Of such a turn, if it is not to be sent alone."""
    task: asyncio.Task[None] | None = None
    newest: int = 0
    """The number of the newest turn when it departed."""

    def fill(self, waiting: deque[Seat]) -> bool:
        """Take the turns of one conversation that fit in; return whether one did."""
        requests: set[str] = set()
        before = len(self.seats)
        while waiting and len(self.seats) < MOST_TURNS:
            seat = waiting[0]
            if seat.called is not None and not seat.called.done():  # not cancelled
                size = len(str(seat.parameters["drafts"]))
                is_full = self.seats and self.characters + size > MOST_CHARACTERS
                request = seat.statement.request_id
                if is_full or request in requests:
                    break  # nobody of this conversation may overtake
                if request is not None:
                    requests.add(request)
                self.characters += size
                self.seats.append(seat)
            waiting.popleft()
        return len(self.seats) > before

    @interruptible
    async def run(self, connections: Connections, texts: Texts) -> None:
        """Store the turns of those who are still there when a connection is."""
        try:
            connection = await connections.borrow()
        except ConversationStoreError as error:
            self.error = error
            return
        try:
            seats = [seat for seat in self.seats if not seat.has_left]
            if seats:
                await self._send(seats, connection, connections, texts)
        finally:
            await connections.give_back(connection)

    async def _send(
        self, seats: list[Seat], connection: Connection, connections: Connections, texts: Texts
    ) -> None:
        command = Command(texts.append_together, _together(seats))
        cursors: list[Cursor] = []
        is_known = True
        # Until the answer was read.
        self.outcome, self.error = Outcome.UNKNOWN, psycopg.OperationalError("interrupted")
        try:
            await execute_alone(connection, cursors, command)
        except psycopg.Error as error:
            is_known = not is_lost(error, connection)
            self.error = error
            if error.sqlstate == READ_ONLY:
                connections.refuse(connection)
        except BaseException:
            is_known = judge_interrupted(cursors, connection) is not Outcome.UNKNOWN
            raise
        finally:
            if is_known:
                for cursor in cursors:  # none, where the statement was refused
                    for number, *placed in await rows_of(cursor):
                        seats[number].placed = tuple(placed)
                self.outcome, self.error = Outcome.ROLLED_BACK, None


def _together(seats: list[Seat]) -> Parameters:
    """Return the parameters of the statement that stores the turns of these seats."""
    turns: list[dict[str, object]] = []
    ids: list[int] = []
    turn_of_each: list[int] = []
    for number, seat in enumerate(seats):
        turns.append(
            {
                "turn": number,
                "before": len(ids),
                "count": len(seat.statement.ids),
                "conversation_id": seat.conversation_id,
                "user_id": seat.parameters["user_id"],
                "request_id": seat.statement.request_id,
                "digest": seat.parameters.get("digest"),
            }
        )
        ids.extend(seat.statement.ids)
        turn_of_each.extend([number] * len(seat.statement.ids))
    # Each turn's drafts are a JSON array already: the arrays become one.
    drafts = ",".join(str(seat.parameters["drafts"])[1:-1] for seat in seats)
    return {
        "turns": dump_json(turns),
        "conversation_ids": array({seat.conversation_id for seat in seats}),
        "accepting": ACCEPTING,
        "drafts": f"[{drafts}]",
        "ids": array(ids),
        "turn_of_each": array(turn_of_each),
    }
