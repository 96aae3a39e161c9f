"""What the steps of a script are on PostgreSQL."""

from __future__ import annotations

from typing import Any

from ...service_layer.script import Block, CloseBlock, RegisteredWrite, Step
from .statement import Statement


def statement_of(step: RegisteredWrite[Any]) -> Statement[Any]:
    """Return the statement of a registered write."""
    statement = step.write
    if not isinstance(statement, Statement):
        raise TypeError(f"not a statement: {type(statement).__name__}")
    return statement


def loser_of(step: Step) -> Block:
    """Return the block that loses something if a step fails: of one that closed, the outer."""
    if isinstance(step, CloseBlock) and step.block.parent is not None:
        return step.block.parent
    return step.block


def has_trial(step: Step) -> bool:
    """Whether a write runs in a savepoint of its own, so that it can be sent again by itself."""
    return isinstance(step, RegisteredWrite) and statement_of(step).request_id is not None
