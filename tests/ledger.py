"""The judge that stands outside: what writers intended and were told, against what is stored.

    ledger = Ledger(dsn)
    turn = ledger.turn(conversation_id)              # two contents that are unique in the store
    uow = store.unit_of_work()
    with ledger.unit(turn, uow=uow):                 # notes how it ends; errors go on
        messages = await append_messages(
            uow, conversation_id=conversation_id, drafts=turn.drafts()
        )
        turn.placed(messages)
    ...
    assert ledger.violations() == []

A unit is what is stored together or not at all. It is *acknowledged* when the block was left,
*failed* by an error that says so, *unknown* by CommitOutcomeUnknown, and for a unit that was
cancelled its outcome decides. What was never told, by a process that was killed, is unknown.

Every message of the store has to be in the ledger; one that was redacted counts as what it said
when it was acknowledged. Units can be pickled: ledgers of several
processes are joined by `ledger.units += others.units`.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import psycopg
from psycopg import sql

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    ConversationStoreError,
    Message,
    MessageDraft,
    Outcome,
)
from conversation_store.domain.message import REDACTED_CONTENT

APPLICATION = "conversation-store"
"""What pg_stat_activity calls the connections of a store's own pool, or how it begins."""


class Told(StrEnum):
    """What the writer of a unit was told."""

    ACKNOWLEDGED = "acknowledged"
    FAILED = "failed"
    UNKNOWN = "unknown"


OF_OUTCOME = {
    Outcome.COMMITTED: Told.ACKNOWLEDGED,
    Outcome.ROLLED_BACK: Told.FAILED,
    Outcome.NOT_STARTED: Told.FAILED,
    Outcome.UNKNOWN: Told.UNKNOWN,
}


@dataclass(eq=False)
class Turn:
    """Messages that are to be stored side by side."""

    conversation_id: int | None
    """None: in a conversation that the unit starts."""
    contents: tuple[str, ...]
    """Each unique in the store."""
    told: list[tuple[int, int, int]] | None = None
    """(conversation_id, position, id) of each message, as acknowledged."""

    def drafts(self) -> list[MessageDraft]:
        """Return what to append."""
        return [MessageDraft(role="user", content=content) for content in self.contents]

    def placed(self, messages: Sequence[Message]) -> None:
        """Note the messages that the store returned."""
        self.told = [(m.conversation_id, m.position, m.id) for m in messages]


@dataclass(eq=False)
class Change:
    """Something else that a unit changes, seen by a query that gives one value."""

    query: str
    """With {conversations} and {messages} for the tables."""
    parameters: tuple[Any, ...]
    before: object
    after: object


@dataclass(eq=False)
class Unit:
    """What is stored together or not at all."""

    turns: tuple[Turn, ...]
    changes: tuple[Change, ...] = ()
    removes: tuple[int, ...] = ()
    """The conversations that it removes."""
    note: str = ""
    """What to call it in a report."""
    told: Told = Told.UNKNOWN
    error: str = ""

    def end(self, error: BaseException | None, outcome: Outcome | None) -> None:
        """Note how it ended for its writer."""
        if error is not None:
            self.error = f"{type(error).__name__}: {error}"
        if error is None:
            self.told = Told.ACKNOWLEDGED
        elif isinstance(error, CommitOutcomeUnknown):
            self.told = Told.UNKNOWN
        elif isinstance(error, ConversationStoreError):
            self.told = Told.FAILED
        elif outcome is not None:
            self.told = OF_OUTCOME[outcome]

    def __str__(self) -> str:
        name = self.note or [turn.contents[0] for turn in self.turns] or self.removes
        return f"{self.told} unit {name} {self.error}".rstrip()


class Row(NamedTuple):
    """A message as it is stored."""

    conversation_id: int
    position: int
    id: int
    content: str


class Ledger:
    """What was intended and told, in one schema of one server."""

    def __init__(self, dsn: str, schema: str = "operational") -> None:
        self.units: list[Unit] = []
        self._dsn = dsn
        self._schema = schema
        self._name = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    def turn(self, conversation_id: int | None, size: int = 2) -> Turn:
        """Make up a turn that is unlike any other."""
        name = f"{self._name}-{next(self._numbers)}"
        return Turn(conversation_id, tuple(f"{name}/{part}" for part in range(size)))

    @contextmanager
    def unit(
        self,
        *turns: Turn,
        changes: Sequence[Change] = (),
        removes: Sequence[int] = (),
        uow: AsyncUnitOfWork | None = None,
        note: str = "",
    ) -> Iterator[Unit]:
        """Note what is intended before the block, and after it how it ended.

        Without `uow` a unit that is cancelled is unknown.
        """
        unit = Unit(turns, tuple(changes), tuple(removes), note)
        self.units.append(unit)
        try:
            yield unit
        except BaseException as error:
            unit.end(error, None if uow is None else uow.outcome)
            raise
        unit.end(None, None)

    def violations(self) -> list[str]:
        """Read the tables and list what contradicts the ledger; empty: nothing does."""
        with psycopg.connect(self._dsn) as connection:
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            return _Judgement(connection, self._schema, self.units).violations()


class _Judgement:
    """The ledger's units, held against one snapshot of the tables."""

    def __init__(
        self, connection: psycopg.Connection[Any], schema: str, units: Sequence[Unit]
    ) -> None:
        self._connection = connection
        self._tables = {
            "conversations": sql.Identifier(schema, "ai_conversations"),
            "messages": sql.Identifier(schema, "ai_messages"),
        }
        self._units = units
        self._found: list[str] = []
        self._counts: dict[int, int] = dict(
            self._rows("SELECT id, message_count FROM {conversations}")
        )
        self._by_content: dict[str, list[Row]] = defaultdict(list)
        self._by_conversation: dict[int, list[int]] = defaultdict(list)
        query = "SELECT conversation_id, position, id, content FROM {messages} ORDER BY 1, 2"
        said = {
            place[2]: content
            for turn in (turn for unit in units for turn in unit.turns)
            for place, content in zip(turn.told or (), turn.contents, strict=False)
        }
        for stored in map(Row._make, self._rows(query)):
            is_redacted = stored.content == REDACTED_CONTENT and stored.id in said
            row = stored._replace(content=said[stored.id]) if is_redacted else stored
            self._by_content[row.content].append(row)
            self._by_conversation[row.conversation_id].append(row.position)
        self._gone = {id_ for id_ in self._removed(*Told) if id_ not in self._counts}
        self._may_be_gone = self._removed(Told.ACKNOWLEDGED, Told.UNKNOWN)

    def violations(self) -> list[str]:
        """List them."""
        self._judge_tables()
        for unit in self._units:
            self._judge(unit)
        return self._found

    def _rows(self, query: str, parameters: Sequence[Any] = ()) -> list[Any]:
        text = sql.SQL(query).format(**self._tables)
        return self._connection.execute(text, parameters).fetchall()

    def _removed(self, *told: Told) -> set[int]:
        return {id_ for unit in self._units if unit.told in told for id_ in unit.removes}

    def _judge_tables(self) -> None:
        intended = {content for u in self._units for turn in u.turns for content in turn.contents}
        for content, rows in self._by_content.items():
            if content not in intended:
                self._found.append(f"nobody intended the message {rows[0]}")
            if len(rows) > 1:
                self._found.append(f"stored {len(rows)} times: {rows}")
        for conversation_id, count in self._counts.items():
            positions = self._by_conversation[conversation_id]
            if positions != list(range(1, len(positions) + 1)):
                self._found.append(f"conversation {conversation_id} has positions {positions}")
            if count != len(positions):
                self._found.append(
                    f"conversation {conversation_id} counts {count} messages, has {len(positions)}"
                )
        for conversation_id in self._by_conversation.keys() - self._counts.keys():
            self._found.append(f"conversation {conversation_id} is missing, has messages")

    def _judge(self, unit: Unit) -> None:
        if unit.told is Told.ACKNOWLEDGED:
            for turn in unit.turns:
                self._judge_acknowledged(unit, turn)
        # What the unit stored and another removed since, says nothing of it.
        parts = [*self._parts(unit)]
        stored = {is_stored for is_stored, _ in parts}
        told = " ".join(text for _, text in parts)
        if len(stored) > 1:
            self._found.append(f"in part: {unit}: {told}")
        elif unit.told is Told.FAILED and True in stored:
            self._found.append(f"is there: {unit}: {told}")
        elif unit.told is Told.ACKNOWLEDGED and False in stored:
            self._found.append(f"is not there: {unit}: {told}")

    def _judge_acknowledged(self, unit: Unit, turn: Turn) -> None:
        if not turn.told or turn.told[0][0] in self._gone:
            return
        rows = [tuple(row[:3]) for content in turn.contents for row in self._by_content[content]]
        if rows != turn.told:
            self._found.append(f"not where it was told: {unit}: told {turn.told}, is {rows}")

    def _parts(self, unit: Unit) -> Iterator[tuple[bool, str]]:
        """Give for each part of a unit whether it is stored, and in words what is."""
        for turn in unit.turns:
            if turn.conversation_id in self._gone or (turn.told and turn.told[0][0] in self._gone):
                continue
            rows = [row for content in turn.contents for row in self._by_content[content][:1]]
            first = rows[0] if rows else None
            is_whole = len(rows) == len(turn.contents) and all(
                (row.conversation_id, row.position) == (first.conversation_id, first.position + n)
                for n, row in enumerate(rows)
                if first is not None
            )
            is_elsewhere = first is not None and turn.conversation_id not in (
                None,
                first.conversation_id,
            )
            if (rows and not is_whole) or is_elsewhere:
                self._found.append(f"torn: {unit}: {rows}")
            yield bool(rows), f"{len(rows)} of {len(turn.contents)} messages."
        for change in unit.changes:
            [[value]] = self._rows(change.query, change.parameters)
            if value not in (change.before, change.after):
                self._found.append(f"neither before nor after: {unit}: {change}: {value!r}")
            yield value == change.after, f"{change.query} gives {value!r}."
        for conversation_id in unit.removes:
            is_gone = conversation_id not in self._counts
            if unit.told is not Told.FAILED or conversation_id not in self._may_be_gone:
                where = "gone" if is_gone else "there"
                yield is_gone, f"conversation {conversation_id} is {where}."


class OpenTransaction(NamedTuple):
    """A connection of a store that idles in a transaction."""

    pid: int
    state: str
    query: str


async def left_in_transaction(
    dsn: str, *, application: str = APPLICATION, wait: float = 5.0
) -> list[OpenTransaction]:
    """Return the stores' connections that idle in a transaction, and still do after a while."""
    query = (
        "SELECT pid, state, query FROM pg_stat_activity WHERE starts_with(application_name, %s)"
        " AND datname = current_database() AND starts_with(state, 'idle in transaction')"
    )
    loop = asyncio.get_running_loop()
    end = loop.time() + wait
    while True:
        with psycopg.connect(dsn, autocommit=True) as connection:
            rows = connection.execute(query, [application]).fetchall()
        if not rows or loop.time() > end:
            return [OpenTransaction._make(row) for row in rows]
        await asyncio.sleep(0.05)
