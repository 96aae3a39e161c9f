"""The unit of work in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from ...domain.errors import ConversationStoreError, UnitOfWorkMisuse
from ...domain.scope import Scope
from ...service_layer.limited import LimitedUnitOfWork
from ...service_layer.outcome import Outcome
from ...service_layer.retry import Retry
from ...service_layer.script import (
    Block,
    CloseBlock,
    OpenBlock,
    RegisteredWrite,
    Step,
    StepFailedError,
)
from .change import Change
from .conversations import InMemoryConversationRepository
from .database import Database, Layer, View
from .messages import InMemoryMessageRepository


class InMemoryUnitOfWork(LimitedUnitOfWork):
    """A unit of work in memory, with the contract of the one on PostgreSQL."""

    def __init__(
        self,
        database: Database,
        scope: Scope | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(scope, retry, timeout)
        self._view = View(database)

    @property
    def conversations(self) -> InMemoryConversationRepository:
        """The conversations."""
        return InMemoryConversationRepository(self, self._view)

    @property
    def messages(self) -> InMemoryMessageRepository:
        """The messages."""
        return InMemoryMessageRepository(self, self._view)

    async def connection(self) -> NoReturn:
        """Refuse: a unit in memory has no connection."""
        self._check_live()
        raise UnitOfWorkMisuse(
            reason="a unit of work in memory has no connection: "
            "put what uses one behind a port of your own and give your tests a twin of it"
        )

    async def _draw_ids(self, count: int) -> Sequence[int]:
        return self._view.database.draw_ids(count)

    async def _run_whole(self, steps: list[Step]) -> None:
        try:
            await self._run(steps[:-1])
        except StepFailedError as failure:
            await self._abort()
            raise failure.error from None
        except BaseException:
            await self._abort()
            raise
        await self._commit()

    async def _run(self, steps: list[Step]) -> None:
        view = self._view
        for step in steps:
            if isinstance(step, OpenBlock):
                view.layers.append(Layer())
                step.block.opened = True
            elif isinstance(step, CloseBlock):
                closed = view.layers.pop()
                view.layers[-1].absorb(closed)
            else:
                await self._carry_out(step)

    async def _carry_out(self, step: RegisteredWrite[Any]) -> None:
        change = step.write
        if not isinstance(change, Change):
            raise TypeError(f"not a change: {type(change).__name__}")
        try:
            step.carried_out(await change.apply(change.ids))
        except ConversationStoreError as error:
            raise StepFailedError(step.block, error) from error

    async def _undo(self, block: Block) -> None:
        while len(self._view.layers) > block.depth:
            self._view.release(self._view.layers.pop())

    async def _commit(self) -> None:
        layer = self._view.layers[0]
        for above in self._view.layers[1:]:
            layer.absorb(above)
        self._view.layers.clear()
        self._view.database.commit(layer)
        self._view.release(layer)
        self._outcome = Outcome.COMMITTED

    async def _abort(self) -> None:
        await self._undo(self._blocks[0])
        self._outcome = Outcome.ROLLED_BACK
