"""Guards of the store, and how each is broken: one at a time, while a test runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Final

import psycopg
import pytest

from conversation_store import Outcome, StoreUnavailable
from conversation_store.adapters.memory.unit_of_work import InMemoryUnitOfWork
from conversation_store.adapters.postgres import (
    connections,
    flush,
    inquiry,
    messages,
    opening,
    sql,
    sql_removal,
    statement,
    unit_of_work,
)
from conversation_store.adapters.postgres.rows import to_messages
from conversation_store.domain.message import Turn
from conversation_store.service_layer.script import Block


@dataclass(frozen=True)
class Guard:
    """Something that keeps a promise of the store."""

    name: str
    broken: str
    """How it is broken, in words."""
    finder: str
    """Who finds it."""
    words: str
    """In what words."""
    break_: Callable[[pytest.MonkeyPatch], None] = lambda _: None
    harm: str = ""
    """Or the SQL that breaks it."""


def _returning(value: object) -> Callable[..., Any]:
    return lambda *_, **__: value


async def _do_nothing(*_: object) -> None:
    """Do nothing."""


def _set(module: object, name: str, value: object) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(module, name, value)


def _new_ids(patch: pytest.MonkeyPatch) -> None:
    def with_other_ids(one: statement.Statement[Any]) -> statement.Command:
        one.ids = [id_ + 10**12 for id_ in one.ids]
        return statement.Command.of(one)

    patch.setattr(inquiry, "Command", SimpleNamespace(of=with_other_ids))


def _no_inquiry(patch: pytest.MonkeyPatch) -> None:
    def forget_ids(
        error: psycopg.Error, sent: Sequence[statement.Statement[Any]]
    ) -> StoreUnavailable:
        for one in sent:
            one.ids = ()
        return StoreUnavailable(reason="lost", sqlstate=error.sqlstate)

    patch.setattr(unit_of_work, "outcome_unknown", forget_ids)


def _no_lock(patch: pytest.MonkeyPatch) -> None:
    locked = "message_count - %(count)s AS base"
    counted = (
        "(SELECT count(*) FROM {messages} AS m WHERE m.conversation_id = %(conversation_id)s)"
        " AS base"
    )
    assert locked in sql.APPEND
    patch.setattr(sql, "APPEND", sql.APPEND.replace(locked, counted))


def _no_second_look(patch: pytest.MonkeyPatch) -> None:
    condition = f"AND {sql_removal.IS_MEANT} FOR UPDATE"
    assert condition in sql_removal.REMOVE_PART
    text = sql_removal.REMOVE_PART.replace(condition, "FOR UPDATE")
    patch.setattr(sql_removal, "REMOVE_PART", text)


def _trims_what_it_does_not_see(patch: pytest.MonkeyPatch) -> None:
    judged = "locked.version <> seen.version"
    assert judged in sql_removal.REMOVE_PART
    patch.setattr(sql_removal, "REMOVE_PART", sql_removal.REMOVE_PART.replace(judged, "false"))


def _no_transaction(patch: pytest.MonkeyPatch) -> None:
    for name in ("BEGIN", "COMMIT"):
        patch.setattr(opening, name, statement.Command(b"SELECT"))


def _no_comparison(patch: pytest.MonkeyPatch) -> None:
    look = statement.Look

    def trusting(text: bytes, read: Any, **proves: bool) -> Any:
        def read_all(ids: Sequence[int], rows: list[Any]) -> list[Any]:
            return read(ids, rows) or ([to_messages(rows)] if rows else [])

        return look(text, read_all, **proves)

    patch.setattr(messages, "Look", trusting)


async def _keep(self: InMemoryUnitOfWork, block: Block) -> None:
    layers = self._view.layers
    while len(layers) > block.depth:
        closed = layers.pop()
        layers[-1].absorb(closed)


GUARDS: Final = (
    Guard(
        "a unit is sent again with the same ids",
        "with other ids",
        "matrix: a lost reply, tried again",
        "stored 2 times",
        _new_ids,
    ),
    Guard(
        "the id of a message is unique",
        "the constraint is dropped",
        "matrix: a lost reply, tried again",
        "stored 2 times",
        harm="ALTER TABLE {}.ai_messages DROP CONSTRAINT ai_messages_id_key",
    ),
    Guard(
        "a lost answer is asked for before a unit is tried again",
        "it is tried again at once, as a new unit",
        "matrix: a lost reply, tried again",
        "stored 2 times",
        _no_inquiry,
    ),
    Guard(
        "what is found under the ids of a unit is compared with it",
        "whatever is found counts",
        "matrix: ids that were given before",
        "is not there: acknowledged",
        _no_comparison,
    ),
    Guard(
        "a lost answer is no failure",
        "it is told as StoreUnavailable",
        "matrix: a lost reply, tried once",
        "is there: failed",
        _set(unit_of_work, "is_lost", _returning(False)),
    ),
    Guard(
        "a lost answer to COMMIT is no failure",
        "it is told as StoreUnavailable",
        "matrix: a reset in a COMMIT",
        "is there: failed",
        _set(unit_of_work, "is_lost", _returning(False)),
    ),
    Guard(
        "a lost answer to a group commit is no failure",
        "it is told as StoreUnavailable",
        "matrix: a reset in a group commit",
        "is there: failed",
        _set(flush, "outcome_unknown", _returning(StoreUnavailable(reason="lost"))),
    ),
    Guard(
        "the outcome of a cancelled unit is what the server said",
        "it is always rolled_back",
        "matrix: a black hole",
        "is there: failed",
        _set(unit_of_work, "judge_interrupted", _returning(Outcome.ROLLED_BACK)),
    ),
    Guard(
        "positions are given out under the lock of the conversation",
        "counted before it is locked",
        "ledger: eight writers of one conversation",
        "the position is taken",
        _no_lock,
    ),
    Guard(
        "several writes are one literal BEGIN … COMMIT",
        "the pipeline goes without them",
        "ledger: an error of the client between two writes",
        "in part: failed",
        _no_transaction,
    ),
    Guard(
        "a request_id stands for what was said with it",
        "the digest is the same for all",
        "ledger: one request_id for two turns",
        "is not there: acknowledged",
        _set(Turn, "digest", property(_returning(b"\x01" * 33))),
    ),
    Guard(
        "a connection is given back clean",
        "as it is",
        "ledger: a lent connection after a refusal",
        "was refused: UnitOfWorkMisuse",
        _set(connections, "clean", _do_nothing),
    ),
    Guard(
        "a connection that the server ended is not given out",
        "it is",
        "matrix: a server process ended",
        "the next call failed",
        _set(connections, "was_closed", _returning(False)),
    ),
    Guard(
        "rolling back an inner block undoes it",
        "nothing is sent",
        "matrix: an inner block rolled back",
        "nobody intended",
        _set(unit_of_work.PsycopgUnitOfWork, "_undo", _do_nothing),
    ),
    Guard(
        "the condition of a purge is checked again under the lock",
        "whoever met it before a wait is removed",
        "ledger: an append before a purge",
        "is not there: acknowledged",
        _no_second_look,
    ),
    Guard(
        "a trimmed conversation keeps no gap",
        "what came during a wait is taken for trimmed",
        "history: an append before a long deletion",
        "a gap",
        _trims_what_it_does_not_see,
    ),
    Guard(
        "the same in the twin",
        "the block is kept",
        "contract: the twin",
        "FAILED contract/test_unit_of_work.py::test_rollback_of_an_inner_block_keeps_the_outer",
        _set(InMemoryUnitOfWork, "_undo", _keep),
    ),
)
