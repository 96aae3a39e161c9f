"""Savepoints of a unit of work, and what each step of its script is as commands."""

from __future__ import annotations

import itertools
from typing import Any, Final

from ...service_layer.script import Block, CloseBlock, OpenBlock, RegisteredWrite, Step
from .opening import Opening
from .statement import Command, Statement

_numbers: Final = itertools.count(1)
"""Of units inside the host's transactions, in this process."""

TRIAL: Final = b"conversation_store_trial"
"""The savepoint around a write that may have to be sent again by itself."""
_SAVE_TRIAL: Final = Command(b"SAVEPOINT " + TRIAL)
_RELEASE_TRIAL: Final = Command(b"RELEASE " + TRIAL)


class Savepoints:
    """The savepoints of a unit, and what was carried out between them, in one transaction."""

    def __init__(self, *, in_host_transaction: bool, opening: Opening) -> None:
        self._in_host_transaction = in_host_transaction
        self._opening = opening
        # Of several units in one transaction of the host's each has names of its own.
        self._prefix = b"conversation_store"
        if in_host_transaction:
            self._prefix = b"conversation_store_%d" % next(_numbers)
        self._numbers: dict[Block, int] = {}
        self.sent: list[Statement[Any]] = []
        """What was carried out and not undone."""
        self._sent_before: dict[Block, int] = {}
        """How much of that there was when a block was opened."""

    def name(self, block: Block) -> bytes:
        """Return the name of the savepoint of a block that was opened."""
        return b"%s_%d" % (self._prefix, self._numbers[block])

    def commands(self, step: Step) -> list[Command]:
        """Return what is sent for a step; a block is opened by that."""
        block = step.block
        if isinstance(step, RegisteredWrite):
            command = Command.of(statement_of(step))
            return [_SAVE_TRIAL, command, _RELEASE_TRIAL] if has_trial(step) else [command]
        if isinstance(step, OpenBlock):
            block.opened = True
            # A number of its own: of two blocks side by side neither must meet the other's.
            self._numbers[block] = len(self._numbers)
        is_outermost = block.parent is None
        if isinstance(step, OpenBlock):
            if is_outermost and not self._in_host_transaction:
                return self._opening.commands()
            save = Command(b"SAVEPOINT " + self.name(block))
            return [save, *self._opening.for_a_while()] if is_outermost else [save]
        if is_outermost and not self._in_host_transaction:
            return []  # the transaction itself
        release = Command(b"RELEASE " + self.name(block))
        return [*self._opening.restoring(), release] if is_outermost else [release]

    def note(self, step: Step) -> None:
        """Note that a step was carried out."""
        if isinstance(step, RegisteredWrite):
            self.sent.append(statement_of(step))
        elif isinstance(step, OpenBlock):
            self._sent_before[step.block] = len(self.sent)

    def note_undone(self, block: Block) -> None:
        """Note that all was undone since a block was opened."""
        del self.sent[self._sent_before.get(block, len(self.sent)) :]


def statement_of(step: RegisteredWrite[Any]) -> Statement[Any]:
    """Return the statement that a write is on PostgreSQL."""
    statement = step.write
    if not isinstance(statement, Statement):
        raise TypeError(f"not a statement: {type(statement).__name__}")
    return statement


def has_trial(step: Step) -> bool:
    """Whether a write runs in a savepoint of its own, so that it can be sent again by itself."""
    return isinstance(step, RegisteredWrite) and statement_of(step).request_id is not None


def loser(step: Step) -> Block:
    """Return the block that loses something if a step fails: of one that closed, the outer."""
    if isinstance(step, CloseBlock) and step.block.parent is not None:
        return step.block.parent
    return step.block
