"""The script of a unit of work: what was registered, in which block, in the order it happened."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from enum import Enum
from typing import Any, Final, Generic, TypeAlias, TypeVar

from attrs import define, field

from ..domain.errors import ConversationStoreError, TransactionAborted, UnitOfWorkMisuse
from ..domain.unit import Write

T = TypeVar("T")

MAX_SENDS: Final = 3
"""How often a write that met another at work is sent within an open transaction."""


class BlockState(Enum):
    """What became of a block."""

    LIVE = "live"
    """It works, or was left normally."""
    FAILED = "failed"
    """A flush failed; leaving the block normally raises the error again."""
    DISCARDED = "discarded"
    """It was rolled back on purpose, or left by an exception."""


@define(eq=False)
class Block:
    """One `async with` of a unit of work; an inner one is a savepoint of the one around it."""

    parent: Block | None
    depth: int
    """0 is the outermost."""
    state: BlockState = BlockState.LIVE
    error: BaseException | None = None
    """Why it failed, or the exception that left it."""
    wrote: bool = False
    """Whether it, or a block inside it, registered a write or gave the connection away."""
    opened: bool = False
    """Whether the adapter was told of it."""

    def is_within(self, other: Block) -> bool:
        """Whether this is another block or one inside it."""
        block: Block | None = self
        while block is not None and block is not other:
            block = block.parent
        return block is other

    def check_kept(self) -> None:
        """Raise the error of this block, or of one around it, that is not live."""
        block: Block | None = self
        while block is not None:
            if block.state is BlockState.FAILED and block.error is not None:
                raise block.error
            if block.state is BlockState.DISCARDED:
                reason = "the write was discarded with its block and has no result"
                raise UnitOfWorkMisuse(reason=reason) from block.error
            block = block.parent


@define(eq=False)
class OpenBlock:
    """Here a block begins."""

    block: Block


@define(eq=False)
class CloseBlock:
    """Here an inner block ends well, or the outermost one does."""

    block: Block


@define(eq=False)
class RegisteredWrite(Generic[T]):
    """A write in its block; the Pending that the caller holds."""

    settle: Callable[[RegisteredWrite[T]], Coroutine[Any, Any, T]] = field(repr=False)
    """How its unit of work gives its result."""
    block: Block = field(repr=False)
    write: Write[T] = field(repr=False)
    sent: bool = False
    """Whether it was carried out and has its result."""

    def carried_out(self, result: T) -> None:
        """Take the result; said by the adapter, also where a later write of the script fails."""
        self.write.result = result
        self.sent = True

    def __await__(self) -> Generator[Any, Any, T]:
        """Give the result of the write, sending what is registered if need be."""
        return self.settle(self).__await__()


Step: TypeAlias = OpenBlock | CloseBlock | RegisteredWrite[Any]


class StepFailedError(Exception):
    """An adapter's word to the unit of work: this block's write failed, with this error.

    The adapter has undone nothing yet; the unit of work says what to undo.
    """

    def __init__(self, block: Block, error: ConversationStoreError) -> None:
        super().__init__(error)
        self.block = block
        self.error = error


def first_block(steps: list[Step]) -> Block:
    """Return the outermost block that loses something if these steps are lost."""
    writes = [step.block for step in steps if isinstance(step, RegisteredWrite)]
    opened = [step.block for step in steps if isinstance(step, OpenBlock)]
    around = [step.block.parent or step.block for step in steps]  # of blocks that are closed
    return min(writes or opened or around, key=lambda block: block.depth)


def is_still_to_open(step: Step) -> bool:
    """Whether a block goes on of which the adapter was not told, because it never got so far."""
    block = step.block
    return isinstance(step, OpenBlock) and not block.opened and block.state is BlockState.LIVE


def interrupted(error: BaseException) -> TransactionAborted:
    """Return the error of a block whose flush was interrupted by this one."""
    reason = f"the unit of work was interrupted while it was sent ({type(error).__name__})"
    aborted = TransactionAborted(reason=reason)
    aborted.__cause__ = error
    return aborted


def was_interrupted(error: BaseException | None) -> bool:
    """Whether this is the error of a block whose flush was interrupted by a cancellation."""
    return error is not None and isinstance(error.__cause__, asyncio.CancelledError)
