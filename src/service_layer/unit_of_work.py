"""The unit of work: what is done in it is stored together, or not at all.

This class holds the whole life of blocks, once, for every adapter. Writes are registered and
become a script, `[open] [write] [write] [open] [write] [close] [close]`; an adapter only knows how
to run a script, how to undo back to a block, and how to end.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from ..domain.errors import (
    CommitOutcomeUnknown,
    ConversationStoreError,
    StoreError,
    UnitOfWorkMisuse,
)
from ..domain.repository import ConversationRepository, MessageRepository
from ..domain.scope import Scope
from ..domain.unit import Pending, Write
from .outcome import Outcome
from .retry import Retry, try_again
from .script import (
    Block,
    BlockState,
    CloseBlock,
    OpenBlock,
    RegisteredWrite,
    Step,
    StepFailedError,
    first_block,
    interrupted,
    is_still_to_open,
)

T = TypeVar("T")


class AsyncUnitOfWork(ABC):
    """What is done between entering and leaving is stored together, or not at all.

    `async with uow:` opens a block. Left normally the outermost block commits; left by an
    exception a block discards what was done in it. Blocks nest: an inner one is a savepoint.
    A unit belongs to the task that entered it; after the outermost exit it may be entered again,
    as a new unit. Isolation is READ COMMITTED.

    Errors of writes surface where what is registered is sent: on leaving a block that wrote, at
    the first read after a write, on awaiting a Pending, at `connection()`.
    """

    def __init__(self, scope: Scope | None = None, retry: Retry | None = None) -> None:
        self._scope = scope or Scope()
        self._retry = retry or Retry()
        self._task: asyncio.Task[Any] | None = None
        self._blocks: list[Block] = []
        self._script: list[Step] = []
        self._outcome = Outcome.NOT_STARTED
        self.is_in_host_transaction = False  # which keeps its locks when it ends

    @property
    @abstractmethod
    def conversations(self) -> ConversationRepository:
        """The conversations."""

    @property
    @abstractmethod
    def messages(self) -> MessageRepository:
        """The messages."""

    @property
    def user_id(self) -> str | None:
        """The user that the unit acts for; None: it acts for the application."""
        return self._scope.user_id

    @property
    def outcome(self) -> Outcome:
        """What became of the unit; readable after the outermost exit, cancelled or not."""
        return self._outcome

    def meaning(self, error: Exception) -> ConversationStoreError | None:
        """Return what an error means to the store, the driver's too; None: nothing."""
        return error if isinstance(error, ConversationStoreError) else None

    # Blocks -------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open a block: of a new unit, or inside the current block."""
        if self._blocks:
            self._check_live()
        else:
            self._prepare()
            self._task = asyncio.current_task()
            self._outcome = Outcome.NOT_STARTED
        parent = self._blocks[-1] if self._blocks else None
        block = Block(parent, len(self._blocks))
        self._blocks.append(block)
        self._script.append(OpenBlock(block))
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the innermost block: keep what was done in it, or discard it on an exception."""
        block = self._check_task(leaving=True)
        try:
            if exc is not None:
                if block.state is BlockState.LIVE:
                    await self._discard(block, exc)
            elif block.state is BlockState.FAILED:
                block.check_kept()
            elif block.state is BlockState.LIVE:
                if block.parent is None:
                    await self._finish(block)
                else:
                    await self._close(block, block.parent)
        finally:
            self._blocks.pop()
            if not self._blocks:
                self._script.clear()
                self._task = None

    async def rollback(self) -> None:
        """Discard what was done in the innermost block; it is then left cleanly.

        Until it is left, everything but leaving it is misuse.
        """
        block = self._check_task(leaving=True)
        if block.state is BlockState.LIVE:
            await self._discard(block, None)
        elif block.state is BlockState.FAILED:
            block.state = BlockState.DISCARDED

    # What repositories and Pendings ask -----------------------------------------------------------

    def register(self, write: Write[T]) -> Pending[T]:
        """Take a write into the current block; it is sent at the next flush."""
        block = self._check_live()
        block.wrote = True
        registered = RegisteredWrite(self._settle, block, write)
        self._script.append(registered)
        return registered

    async def before_read(self) -> None:
        """Send what is registered, so that a read sees it."""
        self._check_live()
        await self._flush()

    def still_open(self) -> Callable[[], None]:
        """Return a check that the innermost block that is opened now has not ended since."""
        opened = [block for block in self._blocks if block.opened]

        def check() -> None:
            if not opened:
                return
            self._check_live()
            is_kept = all(block.state is BlockState.LIVE for block in opened)
            if self._blocks[0] is not opened[0] or not is_kept:
                raise UnitOfWorkMisuse(reason="the block in which the export began has ended")

        return check

    def check_import(self) -> None:
        """Refuse an import where there can be none. Errors: UnitOfWorkMisuse."""
        self._scope.check_import()

    async def perform(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do at once, in the current block, what cannot be registered; what fails, fails it."""
        block = self._check_live()
        for around in self._blocks:
            around.wrote = True
        await self._flush(also_blocks=True)
        try:
            return await work()
        except BaseException as error:
            await self._fail(block, error)
            raise

    async def _settle(self, registered: RegisteredWrite[T]) -> T:
        """Return the result of a registered write, sending it first if it was not sent yet."""
        registered.block.check_kept()
        if not registered.sent:
            self._check_live()
            await self._flush()
        return registered.write.result

    @abstractmethod
    async def connection(self) -> Any:
        """Give the psycopg connection, inside the unit's transaction, all registered writes sent.

        For the host's own SQL in the same transaction. The connection is the unit's: do not
        commit, roll back, close or keep it. Only row security limits it to the unit's user. Errors:
        UnitOfWorkMisuse where there is no connection (in memory).
        """

    # Life of a block ------------------------------------------------------------------------------

    def _check_task(self, *, leaving: bool = False) -> Block:
        if not self._blocks:
            reason = "the unit of work is not entered: use it inside `async with uow:`"
            raise UnitOfWorkMisuse(reason=reason)
        # Of a task that is over, another may at least clean up.
        is_orphan = leaving and self._task is not None and self._task.done()
        if asyncio.current_task() is not self._task and not is_orphan:
            reason = "the unit of work belongs to another task: give each task its own"
            raise UnitOfWorkMisuse(reason=reason)
        return self._blocks[-1]

    def _check_live(self) -> Block:
        block = self._check_task()
        if block.state is not BlockState.LIVE:
            reason = f"the block has {block.state.value}: leave it, or call rollback() and leave it"
            if block.state is BlockState.DISCARDED:
                reason = "the block was rolled back: leave it before doing more"
            raise UnitOfWorkMisuse(reason=reason) from block.error
        return block

    async def _flush(self, *, also_blocks: bool = False) -> None:
        """Send what is registered; with `also_blocks` open the blocks even if nothing is."""
        if also_blocks or any(isinstance(step, RegisteredWrite) for step in self._script):
            await self._send(self._take_script())

    def _take_script(self) -> list[Step]:
        steps, self._script = self._script, []
        return steps

    async def _send(self, steps: list[Step]) -> None:
        """Have the adapter run steps in a transaction that stays open; fail what failed."""
        if not steps:
            return
        try:
            await self._give_ids(steps)
            await self._run(steps)
        except StepFailedError as failure:
            await self._fail(failure.block, failure.error)
            error = self._blocks[0].error or failure.error  # the first where all of it is lost
            raise error from error.__cause__
        except BaseException as error:
            await self._fail(first_block(steps), error)
            self._script[:0] = [step for step in steps if is_still_to_open(step)]
            raise

    async def _give_ids(self, steps: list[Step]) -> None:
        for step in steps:
            if isinstance(step, RegisteredWrite):
                write = step.write
                if write.ids_needed and not write.ids:
                    write.ids = await self._draw_ids(write.ids_needed)

    async def _close(self, block: Block, parent: Block) -> None:
        """Leave an inner block that is live."""
        if not block.wrote and not block.opened:
            self._script.pop()  # its OpenBlock: nothing came after it
            return
        parent.wrote = True
        await self._flush()
        # Told with what comes next: until then an interrupted flush can still be undone alone.
        self._script.append(CloseBlock(block))

    async def _finish(self, block: Block) -> None:
        """Leave the outermost block, live: commit."""
        if not block.opened:
            if block.wrote:
                await self._send_whole(block, [*self._take_script(), CloseBlock(block)])
            return
        await self._flush()
        try:
            try:
                await self._commit()
            except CommitOutcomeUnknown as lost:
                await self._find_out(lost, None)
        except BaseException as error:
            self._mark_failed(block, error)
            raise

    async def _send_whole(self, block: Block, steps: list[Step]) -> None:
        """Send a unit of which nothing was sent before: one flush, sent again if given up."""
        try:
            try:
                await self._send_once(steps)
            except StoreError as error:
                if not self._may_send_again(error):
                    raise
                await self._send_again(steps, error)
        except BaseException as error:
            self._mark_failed(block, error)
            raise

    async def _send_once(self, steps: list[Step]) -> None:
        await self._give_ids(steps)
        await self._run_whole(steps)

    async def _send_again(self, steps: list[Step], error: StoreError) -> None:
        if not isinstance(error, CommitOutcomeUnknown):
            try:
                await try_again(self._retry, error, partial(self._send_once, steps))
            except CommitOutcomeUnknown as lost:
                error = lost
            else:
                return
        await self._find_out(error, steps)

    async def _fail(self, block: Block, error: BaseException) -> None:
        self._mark_failed(block, error)
        await self._undo_or_abort(block)

    def _mark_failed(self, block: Block, error: BaseException) -> None:
        """Mark a block and all inside it as failed; what was registered in them is dropped."""
        if self._outcome is Outcome.COMMITTED:
            return  # interrupted when all was stored already
        if isinstance(error, CommitOutcomeUnknown):
            self._outcome = Outcome.UNKNOWN
        elif not isinstance(error, ConversationStoreError):
            error = interrupted(error)
        for inner in self._blocks[block.depth :]:
            inner.state, inner.error = BlockState.FAILED, error
        self._drop_script(block)

    async def _discard(self, block: Block, error: BaseException | None) -> None:
        """Discard a live innermost block."""
        block.state, block.error = BlockState.DISCARDED, error
        self._drop_script(block)
        await self._undo_or_abort(block)

    def _drop_script(self, block: Block) -> None:
        self._script = [step for step in self._script if not step.block.is_within(block)]

    async def _undo_or_abort(self, block: Block) -> None:
        """Undo what was sent of a block; if that fails nothing of the unit can be kept."""
        if not block.opened:
            return
        if block.parent is None:
            await self._abort()
            return
        try:
            await self._undo(block)
        except BaseException as error:
            known = block.error if isinstance(block.error, StoreError | UnitOfWorkMisuse) else error
            self._mark_failed(self._blocks[0], known)
            await self._abort()
            if not isinstance(error, ConversationStoreError):
                raise

    # What an adapter does -------------------------------------------------------------------------

    def _prepare(self) -> None:  # noqa: B027 - most adapters have nothing to check
        """Check that a new unit can begin; sends nothing."""

    def _may_send_again(self, error: StoreError) -> bool:  # noqa: ARG002 - most adapters always may
        """Whether a unit that failed with this error may be sent again by us."""
        return True

    async def _find_out(self, lost: CommitOutcomeUnknown, steps: list[Step] | None) -> None:  # noqa: ARG002
        """Find out what became of a unit whose answer was lost; set the outcome and the results.

        `steps` is the whole unit; None: only its COMMIT was lost. Raises why it is not stored.
        """
        raise lost

    @abstractmethod
    async def _draw_ids(self, count: int) -> Sequence[int]:
        """Give ids that were never given before."""

    @abstractmethod
    async def _run_whole(self, steps: list[Step]) -> None:
        """Carry out a whole unit and commit it; whatever is raised, nothing of it stays open.

        Gives each write its result and sets the outcome. Raises the domain error.
        """

    @abstractmethod
    async def _run(self, steps: list[Step]) -> None:
        """Carry out steps in a transaction that stays open, begun if there is none.

        A CloseBlock may be the first step, of a block that was left before; one that is never
        told ends with the transaction.

        Gives each write its result, also those before one that fails, and sets `opened` on each
        block that it opens. Raises StepFailedError naming the block whose write failed; any other
        exception concerns all blocks that have a part in the steps.
        """

    @abstractmethod
    async def _undo(self, block: Block) -> None:
        """Undo all that was sent since an inner block was opened, and close it."""

    @abstractmethod
    async def _commit(self) -> None:
        """Commit the open transaction and end it, whatever is raised; sets the outcome."""

    @abstractmethod
    async def _abort(self) -> None:
        """Undo the open transaction and end it; sets the outcome."""
