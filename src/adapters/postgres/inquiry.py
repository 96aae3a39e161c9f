"""What became of a unit of work whose answer was lost: asked by sending the unit once more.

Looking for its ids proves nothing while the old connection may still be at work. Sent again with
the same ids the unit either is stored now, once, because ids are unique; or the server refuses it,
which it does only when the old one has ended, and then its ids tell whose doing that is. Decision
0018 has the proof, and what remains open.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from copy import copy
from typing import Any, Final

import psycopg
from attrs import define, field

from ...domain.errors import (
    CommitOutcomeUnknown,
    Conflict,
    ConversationStoreError,
    NotFound,
    RuleViolation,
    StoreClosed,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
)
from ...service_layer.outcome import Outcome
from ...service_layer.retry import GIVEN_UP, Retry, try_again
from .commit import is_lost
from .connections import Connection, Connections, clean
from .errors import UNIQUE, caused, is_id_taken, translate
from .opening import Opening
from .sql import LOGGED
from .statement import (
    BEGIN,
    COMMIT,
    Command,
    CommandFailedError,
    Cursor,
    Statement,
    execute_together,
    fetch_among,
)
from .tallying import note_sent

_WORTH_ASKING_AGAIN: Final = (*GIVEN_UP, StoreTimeout, CommitOutcomeUnknown)

_RECORD: Final = Command(LOGGED.encode())
"""Writes a log record, so that the answer waits for the synchronous standbys.

A statement that finds its work done writes nothing, and what it finds may not have reached them.
"""


@define(eq=False)
class Inquiry:
    """The question what became of one unit, and how far it got."""

    connections: Connections
    opening: Opening
    """The unit's, whose limit may be over and does not hold here."""
    statements: Sequence[Statement[Any]]
    """All that the unit sent and did not undo."""
    keep: bool
    """Whether it is to be stored now if it was not; else it is tried and undone."""
    outcome: Outcome = field(init=False, default=Outcome.UNKNOWN)
    results: list[Any] = field(init=False, factory=list[Any])
    """Of each statement, once the outcome is COMMITTED and the unit was one flush."""

    def __attrs_post_init__(self) -> None:
        """Go on without the unit's limit."""
        self.opening = self.opening.unlimited

    def can_tell(self) -> bool:
        """Whether sending the statements again is safe, and tells something."""
        looks = [statement.look() for statement in self.statements if statement.look is not None]
        if len(looks) < len(self.statements):
            return False  # an erasure takes along what came since, an import is a COPY
        removed: set[int | None] = set()
        for statement, look in zip(reversed(self.statements), reversed(looks), strict=True):
            if look.proves_stored and statement.home not in removed:
                return True  # the ids that it inserts keep all the rest from being done twice
            if statement.is_removal:
                removed.add(statement.conversation_id)
        return self.keep and all(statement.is_repeatable for statement in self.statements)

    async def run(self, retry: Retry, lost: CommitOutcomeUnknown) -> ConversationStoreError | None:
        """Ask until there is an answer: None if the unit is stored, or the error it ended with.

        Where the server gives no answer in time that error is a CommitOutcomeUnknown.
        """
        end = asyncio.get_running_loop().time() + retry.deadline

        async def ask() -> ConversationStoreError | None:
            try:
                async with asyncio.timeout_at(end):
                    return await self._ask(lost)
            except TimeoutError as error:
                if self.outcome is Outcome.COMMITTED:
                    return None
                raise StoreTimeout(reason="the server did not answer in time") from error

        def is_worth(error: ConversationStoreError) -> bool:
            return isinstance(error, _WORTH_ASKING_AGAIN) and not isinstance(error, StoreClosed)

        try:
            return await try_again(retry, lost, ask, is_worth)
        except ConversationStoreError as last:
            if last is lost:
                return lost
            told = copy(lost)
            told.tried = (*last.tried, last)
            told.__cause__ = last
            return told

    async def _ask(self, lost: CommitOutcomeUnknown) -> ConversationStoreError | None:
        async with self.connections.borrowed() as connection:
            refusal = await (self._store(connection) if self.keep else self._try(connection))
            if refusal is None or self.outcome is Outcome.ROLLED_BACK:
                return refusal
            await clean(connection)
            is_of_data = isinstance(refusal, NotFound | Conflict | RuleViolation)
            is_in_the_way = isinstance(refusal, StoreError) and refusal.sqlstate == UNIQUE
            if is_of_data or is_in_the_way:
                self.outcome = await self._look(connection)
            if self.outcome is Outcome.UNKNOWN:
                told = copy(lost)
                told.__cause__ = refusal
                if is_in_the_way:
                    # Of a get_or_start that waited for itself: a new snapshot has what it lacked.
                    raise told
                return told
            return None if self.outcome is Outcome.COMMITTED else refusal

    async def _store(self, connection: Connection) -> ConversationStoreError | None:
        """Send the unit again; return why it was refused, if it was."""
        before = [BEGIN, *self.opening.commands()]
        commands = [*before, *(Command.of(s) for s in self.statements), _RECORD, COMMIT]
        cursors: list[Cursor] = []
        try:
            await execute_together(connection, cursors, commands)
        except CommandFailedError as failure:
            return self._refusal(failure, connection)
        # An interruption leaves it unknown, whatever the server answered: cancelled while it waits
        # for the synchronous standbys, it stores the unit here alone and reports success.
        answers = zip(self.statements, cursors[len(before) :], strict=False)
        self.results = [await statement.result_of(cursor) for statement, cursor in answers]
        self.outcome = Outcome.COMMITTED
        return None

    async def _try(self, connection: Connection) -> ConversationStoreError | None:
        """Do what the unit did and undo it: what it inserted waits for the old transaction's end.

        So if nothing stands in the way, that transaction has ended and left nothing.
        """
        try:
            commands = [*self.opening.commands(), *(Command.of(s) for s in self.statements)]
            note_sent(connection, 2, round_trips=2)  # BEGIN and ROLLBACK
            async with connection.transaction(force_rollback=True):
                await execute_together(connection, [], commands)
        except CommandFailedError as failure:
            return self._refusal(failure, connection)
        except psycopg.Error as error:
            raise translate(error) from error
        self.outcome = Outcome.ROLLED_BACK
        return StoreUnavailable(reason="the connection was lost before the unit was committed")

    def _refusal(
        self, failure: CommandFailedError, connection: Connection
    ) -> ConversationStoreError:
        error = caused(failure.error)
        if is_lost(failure.error, connection):
            raise StoreUnavailable(reason="the connection was lost again") from failure.error
        if isinstance(error, _WORTH_ASKING_AGAIN) and not is_id_taken(failure.error):
            raise error from failure.error
        return error

    async def _look(self, connection: Connection) -> Outcome:
        """Tell by what each statement left whether the unit itself stood in its own way."""
        results: list[Any] = []
        is_stored = is_absent = False
        for statement in self.statements:
            if statement.look is None:
                return Outcome.UNKNOWN
            look = statement.look()
            read = Command(look.text, statement.bind(statement.ids))
            rows = await fetch_among(connection, self.opening.reading(read), read)
            found = look.read(statement.ids, rows)
            results.append(found)
            is_stored = is_stored or (look.proves_stored and bool(found))
            is_absent = is_absent or (look.proves_absent and found == [])
        if is_stored and (all(results) or not self.keep):
            self.results = [found[0] for found in results if found]
            return Outcome.COMMITTED
        # A conversation that is gone does not tell: where all are, nothing of the unit is there.
        is_absent = is_absent or all(found is None for found in results)
        return Outcome.ROLLED_BACK if is_absent and not is_stored else Outcome.UNKNOWN
