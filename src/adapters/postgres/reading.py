"""How a unit of work on PostgreSQL reads, and that it never waits long once it was cancelled."""

from __future__ import annotations

from functools import partial

import psycopg

from ...domain.errors import (
    ConversationStoreError,
    StoreError,
    StoreUnavailable,
    TransactionAborted,
)
from ...service_layer.retry import Retry, try_again
from ...service_layer.script import Step
from ...service_layer.unit_of_work import AsyncUnitOfWork
from .connections import Connection, Connections, LentConnection, check_usable
from .errors import caused
from .rows import Row
from .statement import Parameters, fetch_rows
from .stream import RowStream, StreamAlone, StreamInside
from .waiting import interruptible


class ReadingUnitOfWork(AsyncUnitOfWork):
    """The reading half of a unit of work: in its open transaction, or each read by itself."""

    def __init__(
        self, connections: Connections, user_id: str | None = None, retry: Retry | None = None
    ) -> None:
        super().__init__(user_id, retry)
        self._connections = connections
        self._connection: Connection | None = None
        """Held while a transaction of the unit is open."""
        self._in_host_transaction = False

    def meaning(self, error: Exception) -> ConversationStoreError | None:
        """Return what an error means to the store; see AsyncUnitOfWork.meaning."""
        return caused(error) if isinstance(error, psycopg.Error) else super().meaning(error)

    # Everything that a unit may wait for is waited for in one of these.
    __aexit__ = interruptible(AsyncUnitOfWork.__aexit__)
    rollback = interruptible(AsyncUnitOfWork.rollback)
    perform = interruptible(AsyncUnitOfWork.perform)

    @interruptible
    async def _send(self, steps: list[Step]) -> None:
        await super()._send(steps)

    @interruptible
    async def fetch(self, text: bytes, parameters: Parameters) -> list[Row]:
        """Read rows: in the open transaction if there is one, else in autocommit."""
        held = self._connection
        if held is not None:
            try:
                check_usable(held)
                return await fetch_rows(held, text, parameters)
            except BaseException as error:
                await self._fail_reading(error)
                raise
        try:
            return await self._fetch_alone(text, parameters)
        except StoreUnavailable as error:
            if not self._may_send_again(error):
                raise
            read_again = partial(self._fetch_alone, text, parameters)
            return await try_again(self._retry, error, read_again)

    async def _fetch_alone(self, text: bytes, parameters: Parameters) -> list[Row]:
        connection = await self._connections.borrow()
        try:
            return await fetch_rows(connection, text, parameters)
        finally:
            await self._connections.give_back(connection)

    @interruptible
    async def stream(self, text: bytes, parameters: Parameters) -> RowStream:
        """Begin to read rows: in the open transaction if there is one, else in one of its own."""
        held, check = self._connection, self.still_open()
        if held is None:
            return await StreamAlone.open(self._connections, text, parameters)
        return await StreamInside.open(held, check, self._fail_reading, text, parameters)

    async def _fail_reading(self, error: BaseException) -> None:
        opened = [block for block in self._blocks if block.opened]
        if self._blocks:
            await self._fail(opened[-1] if opened else self._blocks[0], error)

    def _may_send_again(self, error: StoreError) -> bool:
        if self._in_host_transaction:
            return False
        # A connection that was lent is the only one there is.
        is_lent = isinstance(self._connections, LentConnection)
        return not is_lent or isinstance(error, TransactionAborted)
