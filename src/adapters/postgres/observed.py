"""The unit of work on PostgreSQL where an observer is told what it does."""

from __future__ import annotations

import asyncio
from typing import Any

from attrs import define

from ...domain.errors import CommitOutcomeUnknown
from ...domain.scope import Scope
from ...service_layer.observed import ObservedUnitOfWork
from ...service_layer.observer import Observer, Tally
from ...service_layer.retry import Retry
from ...service_layer.script import RegisteredWrite, Step
from .connections import Connection, Connections, is_usable
from .group_commit import GroupCommit
from .ids import IdSource
from .lent import LentConnection
from .rows import Row
from .statement import Parameters
from .stream import RowStream
from .tallying import count_for, counting_for, stop_counting
from .texts import Texts
from .unit_of_work import PsycopgUnitOfWork


class CountedConnections(Connections):
    """The connections of a pool for one unit: what is sent on them is counted for it."""

    def __init__(self, connections: Connections, observer: Observer, tally: Tally) -> None:
        super().__init__()
        self._connections = connections
        self._observer = observer
        self._tally = tally

    def refuse(self, connection: Connection) -> None:
        """Learn that a connection leads to a server that takes no writes, a standby."""
        self._connections.refuse(connection)

    async def _take(self) -> Connection:
        time = asyncio.get_running_loop().time
        began = time()
        try:
            connection = await self._connections.borrow()
        finally:
            seconds = time() - began
            self._tally.waited += seconds
            self._observer.waited(seconds)
        count_for(connection, self._tally)
        return connection

    async def _put(self, connection: Connection) -> None:
        stop_counting(connection, self._tally)
        await self._connections.give_back(connection)


class CountedLentConnection(LentConnection):
    """A connection of the host's for one unit: what that sends on it is counted for it."""

    def __init__(self, connection: Connection, tally: Tally) -> None:
        super().__init__(connection)
        self._tally = tally

    async def _take(self) -> Connection:
        connection = await super()._take()
        count_for(connection, self._tally)
        return connection

    async def end_reading(self, connection: Connection, cursor: bytes) -> None:
        """End the transaction of a cursor; see LentConnection.end_reading.

        What is sent only when the host has ended what it began inside is counted for nobody.
        """
        stop_counting(connection, self._tally)
        with counting_for(connection, self._tally):
            await super().end_reading(connection, cursor)

    async def _put(self, connection: Connection) -> None:
        stop_counting(connection, self._tally)
        await super()._put(connection)


@define(eq=False)
class CountedStream:
    """A stream in a transaction of the host's: the unit may have been left when it is read."""

    stream: RowStream
    connection: Connection
    tally: Tally

    async def next_chunk(self) -> list[Row]:
        """Read the next rows."""
        with counting_for(self.connection, self.tally):
            return await self.stream.next_chunk()

    async def close(self) -> None:
        """Give back what the stream holds."""
        await self.stream.close()


class ObservedPsycopgUnitOfWork(ObservedUnitOfWork, PsycopgUnitOfWork):
    """A unit of work on PostgreSQL that tells an observer what it does."""

    def __init__(
        self,
        observer: Observer,
        connections: Connections,
        texts: Texts,
        ids: IdSource,
        scope: Scope,
        *,
        group_commit: GroupCommit | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
    ) -> None:
        self.observer, self.tally = observer, Tally()
        counted: Connections
        if isinstance(connections, LentConnection):
            counted = CountedLentConnection(connections.connection, self.tally)
        else:
            counted = CountedConnections(connections, observer, self.tally)
        super().__init__(
            counted, texts, ids, scope, group_commit=group_commit, retry=retry, timeout=timeout
        )
        self._lent: Connection
        """That of the host's whose transaction it is in."""
        self._around: Tally | None
        """For whom that was counted before: a unit around this one."""
        self._reads = 0
        """How often a read was sent."""

    def _prepare(self) -> None:
        super()._prepare()
        if self.is_in_host_transaction:
            self._lent = self._held()
            self._around = count_for(self._lent, self.tally)

    def _tell_end(self, error: BaseException | None) -> None:
        if self._watch is not None and not self._blocks and self.is_in_host_transaction:
            count_for(self._lent, self._around)
        super()._tell_end(error)

    # What is sent by other ways than those that count by themselves -------------------------------

    async def _begin(self) -> None:
        await super()._begin()
        self.tally.note_sent()

    async def _commit(self) -> None:
        if self._transaction is not None and is_usable(self._held()):
            self.tally.note_sent()
        await super()._commit()

    async def _abort(self) -> None:
        if self._transaction is not None and is_usable(self._held()):
            self.tally.note_sent()
        await super()._abort()

    async def _undo_to(self, savepoint: bytes, *, keep: bool = False) -> None:
        self.tally.note_sent()
        await super()._undo_to(savepoint, keep=keep)

    async def _send_with_others(self, group: GroupCommit, step: RegisteredWrite[Any]) -> None:
        trips = self.tally.round_trips
        try:
            await super()._send_with_others(group, step)
        finally:
            if step.sent and self.tally.round_trips == trips:
                self.tally.note_sent(rows=1)  # of the one statement that it shared

    async def _stream(self, text: bytes, parameters: Parameters) -> RowStream:
        stream = await super()._stream(text, parameters)
        is_lent = self.is_in_host_transaction
        return CountedStream(stream, self._lent, self.tally) if is_lent else stream

    # What is tried again --------------------------------------------------------------------------

    async def _fetch(self, text: bytes, parameters: Parameters) -> list[Row]:
        self._reads = 0
        return await super()._fetch(text, parameters)

    async def _fetch_alone(self, text: bytes, parameters: Parameters) -> list[Row]:
        self.tally.retries += self._reads > 0
        self._reads += 1
        return await super()._fetch_alone(text, parameters)

    async def _find_out(self, lost: CommitOutcomeUnknown, steps: list[Step] | None) -> None:
        self.tally.retries += 1
        await super()._find_out(lost, steps)
