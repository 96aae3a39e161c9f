"""The unit of work on PostgreSQL: how scripts reach the server.

| what the unit did | what is sent |
|---|---|
| one write | that statement alone, in autocommit: one round trip |
| several writes, or one | one pipeline of a literal BEGIN … COMMIT: one round trip |
| with a timeout or row security | |
| reads before any write | each alone, in autocommit |
| anything between | the unit wraps conn.transaction(); each flush is one pipeline in it, |
| | inner blocks as SAVEPOINT … RELEASE |
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import psycopg
from psycopg import AsyncTransaction
from psycopg.pq import TransactionStatus

from ...domain.errors import (
    CommitOutcomeUnknown,
    ConversationStoreError,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    UnitOfWorkMisuse,
)
from ...domain.scope import Scope
from ...service_layer.outcome import Outcome
from ...service_layer.retry import Retry
from ...service_layer.script import (
    MAX_SENDS,
    Block,
    CloseBlock,
    OpenBlock,
    RegisteredWrite,
    Step,
    StepFailedError,
)
from .bulk import OpenTransaction
from .commit import await_commit, begin_commit, is_lost, judge_interrupted, outcome_unknown
from .connections import (
    Connection,
    Connections,
    check_transaction,
    check_usable,
    cut,
    is_idle,
    is_usable,
)
from .conversations import PsycopgConversationRepository
from .errors import READ_ONLY, UNIQUE, caused, is_contested, is_id_taken, translate
from .group_commit import GroupCommit
from .ids import IdSource, draw_blocks
from .inquiry import Inquiry
from .lent import LentConnection
from .messages import PsycopgMessageRepository
from .opening import opening_of
from .reading import ReadingUnitOfWork
from .savepoints import TRIAL, Savepoints, has_trial, loser, statement_of
from .statement import (
    COMMIT,
    Command,
    CommandFailedError,
    Cursor,
    Statement,
    execute_together,
    new_cursor,
)
from .texts import Texts
from .waiting import in_time, patience


class PsycopgUnitOfWork(ReadingUnitOfWork):
    """A unit of work on PostgreSQL."""

    def __init__(
        self,
        connections: Connections,
        texts: Texts,
        ids: IdSource,
        scope: Scope,
        *,
        group_commit: GroupCommit | None = None,
        retry: Retry | None = None,
        timeout: float | None = None,
    ) -> None:
        super().__init__(connections, scope, opening_of(scope, texts), retry, timeout)
        self._group_commit = group_commit
        self._texts = texts
        self._ids = ids
        self._transaction: AbstractAsyncContextManager[AsyncTransaction] | None = None
        """Ours, unless the unit is inside the host's."""
        self._sent: Sequence[Statement[Any]] = ()
        """What a unit was made of that was interrupted; kept of each, it would be a cycle."""
        self._savepoints: Savepoints
        """Of the open transaction, or of the last one."""
        self._has_foreign_sql: bool
        """Whether the host may have sent SQL of its own in it."""

    # Repositories are made when they are asked for: kept, each would be a cycle with its unit.

    @property
    def conversations(self) -> PsycopgConversationRepository:
        """The conversations."""
        return PsycopgConversationRepository(self, self._texts)

    @property
    def messages(self) -> PsycopgMessageRepository:
        """The messages."""
        return PsycopgMessageRepository(self, self._texts)

    async def connection(self) -> Connection:
        """Give the connection inside the unit's transaction; see AsyncUnitOfWork.connection."""
        self._check_use()
        for block in self._blocks:
            block.wrote = True
        await self._flush(also_blocks=True)
        self._has_foreign_sql = True
        return self._held()

    def transaction(self) -> OpenTransaction:
        """Give what is needed of the transaction that is open."""
        return OpenTransaction(self._held(), self._draw_ids, self._savepoints.sent)

    # What AsyncUnitOfWork asks of an adapter ------------------------------------------------------

    def _prepare(self) -> None:
        super()._prepare()
        self._connection = None  # of a unit that did nothing in a transaction of the host's
        if isinstance(self._connections, LentConnection):
            self.is_in_host_transaction = self._connections.check()
            if self.is_in_host_transaction:
                self._connection = self._connections.connection
                self._savepoints = Savepoints(in_host_transaction=True, opening=self._opening)

    async def _find_out(self, lost: CommitOutcomeUnknown, steps: list[Step] | None) -> None:
        writes = [step for step in steps or () if isinstance(step, RegisteredWrite)]
        statements = (
            self._savepoints.sent if steps is None else [statement_of(step) for step in writes]
        )
        inquiry = Inquiry(self._connections, self._opening, statements, keep=steps is not None)
        is_ours_alone = steps is not None or not self._has_foreign_sql
        if not (is_ours_alone and self._may_send_again(lost) and inquiry.can_tell()):
            raise lost
        try:
            error = await inquiry.run(self._retry, lost)
        finally:
            self._outcome, self._sent = inquiry.outcome, statements
            for step, result in zip(writes, inquiry.results, strict=False):
                step.carried_out(result)
        if isinstance(error, StoreError) and error.sqlstate == UNIQUE:
            self._ids.forget()
        if error is not None:
            raise error

    def _in_question(self, reason: str) -> CommitOutcomeUnknown:
        return outcome_unknown(reason, self._sent)

    async def _draw_ids(self, count: int) -> Sequence[int]:
        if self._ids.has(count):
            return self._ids.pop(count)
        held = self._connection
        if held is None:
            return await self._ids.take(count)
        return await self._ids.take(count, lambda blocks: draw_blocks(held, self._texts, blocks))

    async def _run_whole(self, steps: list[Step]) -> None:
        if self.is_in_host_transaction:
            await self._run_whole_in_host_transaction(steps)
            return
        writes = [step for step in steps if isinstance(step, RegisteredWrite)]
        group = self._group_commit
        goes_alone = len(writes) > 1 or not statement_of(writes[0]).read_placed
        if group is None or goes_alone or self._limit is not None:
            await self._send_alone(writes)
        else:
            await self._send_with_others(group, writes[0])

    async def _send_with_others(self, group: GroupCommit, step: RegisteredWrite[Any]) -> None:
        statement = statement_of(step)
        seat = group.enter(statement)
        try:
            if not await group.is_placed(seat):
                await self._send_alone([step])
        except BaseException as error:
            if not seat.is_alone:
                self._outcome = seat.outcome()
            elif isinstance(error, StoreTimeout):
                group.time_out(seat, error)
            raise
        finally:
            if seat.placed is not None and statement.read_placed is not None:
                self._outcome = Outcome.COMMITTED
                step.carried_out(statement.read_placed(statement.ids, [seat.placed]))
            group.leave(seat)

    async def _send_alone(self, writes: list[RegisteredWrite[Any]]) -> None:
        statements = [statement_of(step) for step in writes]
        connection = await self._connections.borrow()
        commands: list[Command] = []
        cursors: list[Cursor] = []
        try:
            commands += self._opening.script([Command.of(one) for one in statements])
            await execute_together(connection, cursors, commands)
            self._outcome = Outcome.COMMITTED
        except CommandFailedError as failure:
            raise self._judge(failure.error, connection, statements) from failure.error
        except BaseException:
            self._outcome, self._sent = judge_interrupted(cursors, connection), statements
            raise
        finally:
            try:
                if self._outcome is Outcome.COMMITTED:
                    first = len(commands) - len(writes) - (commands[-1] is COMMIT)
                    for step, cursor in zip(writes, cursors[first:], strict=False):
                        step.carried_out(await statement_of(step).result_of(cursor))
            finally:
                await self._connections.give_back(connection)

    async def _run_whole_in_host_transaction(self, steps: list[Step]) -> None:
        outermost = self._blocks[0]
        try:
            await self._run(steps)
        except StepFailedError as failure:
            await self._undo_or_abort(outermost)
            raise failure.error from failure.error.__cause__
        except BaseException:
            await self._undo_or_abort(outermost)
            raise
        await self._end(Outcome.COMMITTED)

    async def _run(self, steps: list[Step]) -> None:
        if self._connection is None:
            await self._begin()
        connection = self._held()
        check_usable(connection)
        script = [(step, command) for step in steps for command in self._savepoints.commands(step)]
        sends = 1
        while script:
            cursors: list[Cursor] = []
            try:
                await execute_together(connection, cursors, [command for _, command in script])
            except CommandFailedError as failure:
                step, _ = script[failure.index]
                self._learn(failure.error, connection)
                await self._take_results(script[: failure.index], cursors)
                if not is_contested(failure.error) or sends == MAX_SENDS or not has_trial(step):
                    raise StepFailedError(loser(step), caused(failure.error)) from failure.error
                # Before the contested write all went well: go on from it, with a new snapshot.
                await self._undo_to(TRIAL, keep=True)
                script = script[failure.index :]
                sends += 1
            else:
                await self._take_results(script, cursors)
                return

    async def _undo(self, block: Block) -> None:
        self._savepoints.note_undone(block)
        await self._undo_to(self._savepoints.name(block))

    async def _commit(self) -> None:
        connection = self._held()
        transaction = self._transaction
        try:
            check_transaction(connection)
        except BaseException:
            await self._abort()
            raise
        if transaction is None:
            await self._run_whole_in_host_transaction([CloseBlock(self._blocks[0])])
            return
        outcome = Outcome.UNKNOWN
        task = begin_commit(transaction)
        try:
            await asyncio.shield(task)
            outcome = Outcome.COMMITTED
        except psycopg.Error as error:
            judged = self._judge(error, connection, self._savepoints.sent)
            outcome = self._outcome
            raise judged from error
        except BaseException:
            outcome, self._sent = await await_commit(task), self._savepoints.sent
            raise
        finally:
            await self._end(outcome)

    async def _abort(self) -> None:
        connection = self._held()
        outcome = Outcome.ROLLED_BACK
        if self._outcome is Outcome.UNKNOWN or is_idle(connection):
            outcome = Outcome.UNKNOWN  # the host ended the transaction, in whatever way
        try:
            if self._transaction is None:
                outcome = await self._undo_in_host_transaction(connection)
            elif is_usable(connection):
                rollback = self._transaction.__aexit__(psycopg.Rollback, psycopg.Rollback(), None)
                await in_time(rollback, self._patience())
            else:
                cut(connection)
        except psycopg.Error:
            cut(connection)
        finally:
            await self._end(outcome)

    async def _undo_in_host_transaction(self, connection: Connection) -> Outcome:
        """Undo the unit; where that fails, the host's transaction is to fail with it."""
        try:
            await self._undo_to(self._savepoints.name(self._blocks[0]))
        except ConversationStoreError:
            if connection.pgconn.transaction_status == TransactionStatus.INTRANS:
                return Outcome.UNKNOWN  # it is the host's to roll back
        return Outcome.ROLLED_BACK

    # The transaction ------------------------------------------------------------------------------

    async def _begin(self) -> None:
        connection = await self._connections.borrow()
        transaction = connection.transaction()
        try:
            await transaction.__aenter__()
        except psycopg.Error as error:
            await self._connections.give_back(connection)
            raise translate(error) from error
        except BaseException:
            await self._connections.give_back(connection)
            raise
        self._connection, self._transaction = connection, transaction
        self._savepoints = Savepoints(in_host_transaction=False, opening=self._opening)
        self._has_foreign_sql = False

    async def _end(self, outcome: Outcome) -> None:
        connection = self._held()
        error = self._blocks[0].error
        if isinstance(error, StoreUnavailable) and error.sqlstate == READ_ONLY:
            self._connections.refuse(connection)
        self._outcome = outcome
        self._connection = self._transaction = None
        if not self.is_in_host_transaction:
            await self._connections.give_back(connection)

    def _held(self) -> Connection:
        if self._connection is None:
            raise UnitOfWorkMisuse(reason="the unit of work has no open transaction")
        return self._connection

    async def _undo_to(self, savepoint: bytes, *, keep: bool = False) -> None:
        """Roll back to a savepoint and release it, or go on from it where it is kept.

        As one text of several statements, which psycopg never keeps prepared: after a lone
        ROLLBACK TO it would go on to believe in statements that the failed pipeline never
        prepared.
        """
        connection = self._held()
        check_usable(connection)
        commands = [b"ROLLBACK TO SAVEPOINT " + savepoint, b"RELEASE SAVEPOINT " + savepoint]
        if keep:
            commands.append(b"SAVEPOINT " + savepoint)
        try:
            text = b"; ".join(commands)
            undoing = new_cursor(connection).execute(text, prepare=False)
            await in_time(undoing, self._patience())
        except psycopg.Error as error:
            raise translate(error) from error

    def _patience(self) -> float:
        return patience(None if self._limit is None else self._limit.left())

    async def _take_results(
        self, script: list[tuple[Step, Command]], cursors: list[Cursor]
    ) -> None:
        for (step, command), cursor in zip(script, cursors, strict=False):
            if isinstance(step, RegisteredWrite) and command.parameters is not None:
                step.carried_out(await statement_of(step).result_of(cursor))
                self._savepoints.note(step)
            elif isinstance(step, OpenBlock):
                self._savepoints.note(step)

    def _judge(
        self, error: psycopg.Error, connection: Connection, sent: list[Statement[Any]]
    ) -> ConversationStoreError:
        """Return what it means that a unit failed while it was committed; set the outcome."""
        lost = is_lost(error, connection)
        self._learn(error, connection)
        self._outcome = Outcome.UNKNOWN if lost else Outcome.ROLLED_BACK
        if is_id_taken(error):
            for statement in sent:
                statement.ids = ()  # others are drawn when it is sent again
        return outcome_unknown(error, sent) if lost else translate(error)

    def _learn(self, error: psycopg.Error, connection: Connection) -> None:
        """Learn from an error what not to use again."""
        if error.sqlstate == READ_ONLY:
            self._connections.refuse(connection)
        if is_id_taken(error):
            self._ids.forget()
