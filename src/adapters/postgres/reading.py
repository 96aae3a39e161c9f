"""How a unit of work on PostgreSQL reads, and that it never waits long once it was cancelled."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
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
from ...domain.unit import Pending, Write
from ...service_layer.limited import LimitedUnitOfWork
from ...service_layer.retry import Retry, try_again
from ...service_layer.script import RegisteredWrite, Step
from .connections import Connection, Connections, check_usable
from .errors import meaning_of
from .lent import LentConnection
from .nesting import check_user, note_open
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

    # Under row security the user of the unit that was opened last is the server's.

    def register(self, write: Write[T]) -> Pending[T]:
        """Take a write into the current block; see AsyncUnitOfWork."""
        self._check_user()
        return super().register(write)

    async def before_read(self) -> None:
        """Send what is registered, so that a read sees it; see AsyncUnitOfWork."""
        self._check_user()
        await super().before_read()

    async def perform(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do at once what cannot be registered; see AsyncUnitOfWork."""
        self._check_user()
        return await super().perform(work)

    async def _settle(self, registered: RegisteredWrite[T]) -> T:
        registered.block.check_kept()
        if not registered.sent:
            self._check_user()
        return await super()._settle(registered)

    def _check_user(self) -> None:
        """Refuse to go on in a unit that is open while one of another user is, inside."""
        held = self._connection
        if held is not None and self._is_user_set and self._blocks and self._blocks[0].opened:
            check_user(held, self.user_id)

    def _check_use(self) -> None:
        self._check_live()
        self._check_user()

    @property
    def _is_user_set(self) -> bool:
        return self.is_in_host_transaction and self._opening.row_security is not None

    async def _send(self, steps: list[Step]) -> None:
        try:
            await super()._send(steps)
        finally:
            if self._connection is not None and self._is_user_set:
                note_open(self._connection, self.user_id, self._blocks)

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
