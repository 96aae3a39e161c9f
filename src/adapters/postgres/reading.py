"""How a unit of work on PostgreSQL reads, and that it never waits long once it was cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Coroutine
from functools import partial
from typing import Any, Self, TypeVar

import psycopg
from attrs import evolve

from ...domain.errors import (
    ConversationStoreError,
    StoreError,
    StoreUnavailable,
    TransactionAborted,
)
from ...domain.scope import Scope
from ...service_layer.limited import LimitedUnitOfWork
from ...service_layer.retry import Retry, try_again
from .connections import Connection, Connections, check_usable
from .errors import meaning_of
from .lent import LentConnection
from .opening import Opening
from .rows import Row
from .statement import BEGIN, Command, Parameters, fetch_among, fetch_rows
from .stream import LimitedStream, RowStream, ServerCursor, StreamAlone, StreamInside
from .waiting import interruptibly

T = TypeVar("T")


class ReadingUnitOfWork(LimitedUnitOfWork):
    """The reading half of a unit of work: in its open transaction, or each read by itself."""

    def __init__(
        self,
        connections: Connections,
        scope: Scope,
        opening: Opening,
        retry: Retry | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(scope, retry, timeout)
        self._connections = connections
        self._opening = opening
        self._connection: Connection | None = None
        """Held while a transaction of the unit is open."""

    async def __aenter__(self) -> Self:
        """Open a block; see AsyncUnitOfWork."""
        if not self._blocks and isinstance(self._connections, LentConnection):
            await self._connections.settle()
        return await super().__aenter__()

    def _prepare(self) -> None:
        super()._prepare()
        if self._limit is not None:
            self._opening = evolve(self._opening, limit=self._limit)

    def meaning(self, error: Exception) -> ConversationStoreError | None:
        """Return what an error means to the store; see AsyncUnitOfWork.meaning.

        The driver's are those of SQL of the host's here, and stay as they are.
        """
        return meaning_of(error) if isinstance(error, psycopg.Error) else super().meaning(error)

    def _wait(self, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
        return interruptibly(work)

    async def fetch(self, text: bytes, parameters: Parameters) -> list[Row]:
        """Read rows: in the open transaction if there is one, else in autocommit."""
        return await self._in_time(self._fetch(text, parameters))

    async def _fetch(self, text: bytes, parameters: Parameters) -> list[Row]:
        held = self._connection
        if held is not None:
            try:
                check_usable(held)
                return await self._fetch_inside(held, text, parameters)
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

    async def _fetch_inside(
        self, held: Connection, text: bytes, parameters: Parameters
    ) -> list[Row]:
        opening = self._opening
        if opening.is_empty or any(block.opened for block in self._blocks):
            return await fetch_rows(held, text, parameters)
        # In the host's transaction, where the unit itself has sent nothing yet.
        read = Command(text, parameters)
        return await fetch_among(held, [*opening.for_a_while(), read, *opening.restoring()], read)

    async def _fetch_alone(self, text: bytes, parameters: Parameters) -> list[Row]:
        connection = await self._connections.borrow()
        try:
            if self._opening.is_empty:
                return await fetch_rows(connection, text, parameters)
            read = Command(text, parameters)
            return await fetch_among(connection, self._opening.reading(read), read)
        finally:
            await self._connections.give_back(connection)

    async def stream(self, text: bytes, parameters: Parameters) -> RowStream:
        """Begin to read rows: in the open transaction if there is one, else in one of its own."""
        stream = await self._in_time(self._stream(text, parameters))
        return stream if self._limit is None else LimitedStream(stream, self._limit)

    async def _stream(self, text: bytes, parameters: Parameters) -> RowStream:
        held, check = self._connection, self.still_open()
        if held is None:
            before = [BEGIN, *self._opening.commands()]
            return await StreamAlone.open(self._connections, before, text, parameters)
        # Whoever is set when a chunk is read counts, and a unit inside this one may set another.
        cursor = ServerCursor(held, self._opening.unlimited)
        return await StreamInside.open(cursor, check, self._fail_reading, text, parameters)

    async def _fail_reading(self, error: BaseException) -> None:
        opened = [block for block in self._blocks if block.opened]
        if self._blocks:
            await self._fail(opened[-1] if opened else self._blocks[0], error)

    def _may_send_again(self, error: StoreError) -> bool:
        if self.is_in_host_transaction:
            return False
        # A connection that was lent is the only one there is.
        is_lent = isinstance(self._connections, LentConnection)
        return not is_lent or isinstance(error, TransactionAborted)
