"""Small runs that find what is wrong when a guard is broken, and nothing when none is."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Final, TypeAlias

import psycopg
from ledger import Change, Ledger
from server_waits import is_waiting

from conversation_store import (
    AsyncUnitOfWork,
    ConversationNotFound,
    ConversationStore,
    ConversationStoreError,
    MessageDraft,
    RequestConflict,
    Retry,
    Status,
    StoreError,
    append_messages,
    delete_conversation,
    get_conversation,
    messages_after,
    purge_conversations,
    start_conversation,
)
from conversation_store.adapters.postgres.statement import Statement

from .case import SCHEMA, STATUS
from .matrix import Matrix, prepare
from .proxy import Kind

ONCE: Final = Retry(attempts=1)
MISSING: Final = 4_000_000_000_000
BROKEN: Final = "CONVERSATION_STORE_BROKEN_GUARD"
"""The variable that tells another process which guard to break."""

Finder: TypeAlias = Callable[[str, str, str], Awaitable[list[str]]]
"""Given a server, the SQL of a harm and the name of the broken guard, it lists what it found."""

FINDERS: Final[dict[str, Finder]] = {}


def finder(name: str) -> Callable[[Finder], Finder]:
    """Enter a finder."""

    def enter(find: Finder) -> Finder:
        FINDERS[name] = find
        return find

    return enter


def _matrix(name: str, kind: Kind, scenario: str, retry: Retry | None = None) -> None:
    """Enter the part of the matrix that is one scenario and one kind of fault."""

    async def find(dsn: str, harm: str, _broken: str) -> list[str]:
        retry_or_default = retry or Retry()
        options = {"retry": retry_or_default}
        matrix = Matrix(dsn, options, tries_again=retry_or_default.attempts > 1, harm=harm)
        return (await matrix.play([scenario], [kind])).complaints

    FINDERS[name] = find


_matrix("matrix: a lost reply, tried once", Kind.LOSE, "append_messages", ONCE)
_matrix("matrix: a lost reply, tried again", Kind.LOSE, "append_messages")
_matrix("matrix: a black hole", Kind.HOLE, "append_messages", ONCE)
_matrix("matrix: a server process ended", Kind.TERMINATE, "get_conversation", ONCE)
_matrix("matrix: an inner block rolled back", Kind.DELAY, "an inner block rolled back", ONCE)
_matrix("matrix: a reset in a COMMIT", Kind.RESET, "a read between two writes", ONCE)
_matrix("matrix: a reset in a group commit", Kind.RESET, "appends that travel together", ONCE)
_matrix("matrix: ids that were given before", Kind.RESET, "append_messages with ids given before")


@dataclass
class Bench:
    """A store with one conversation, and what was found."""

    store: ConversationStore
    ledger: Ledger
    conversation_id: int = 0
    found: list[str] = field(default_factory=list)

    def uow(self) -> AsyncUnitOfWork:
        """Return a unit of work."""
        return self.store.unit_of_work()

    async def append(self, uow: AsyncUnitOfWork, request_id: str | None = None) -> None:
        """Append a turn; the ledger notes it."""
        turn = self.ledger.turn(self.conversation_id)
        with self.ledger.unit(turn, uow=uow):
            messages = await append_messages(
                uow,
                conversation_id=self.conversation_id,
                drafts=turn.drafts(),
                request_id=request_id,
            )
            turn.placed(messages)

    @asynccontextmanager
    async def must_succeed(self) -> AsyncGenerator[None]:
        """Note an error as something found."""
        try:
            yield
        except ConversationStoreError as error:
            self.found.append(f"was refused: {error!r}")


@asynccontextmanager
async def _bench(dsn: str, harm: str) -> AsyncGenerator[Bench]:
    await prepare(dsn, harm)
    bench = Bench(ConversationStore.connect(dsn, schema=SCHEMA, min_size=1), Ledger(dsn, SCHEMA))
    async with bench.store as store:
        conversation, _ = await start_conversation(
            store.unit_of_work(), user_id="u", session_id="s"
        )
        bench.conversation_id = conversation.id
        yield bench
        bench.found += bench.ledger.violations()


@finder("ledger: eight writers of one conversation")
async def _eight_writers(dsn: str, harm: str, _broken: str) -> list[str]:
    async with _bench(dsn, harm) as bench:

        async def write() -> None:
            for _ in range(5):
                async with bench.must_succeed():
                    await bench.append(bench.store.unit_of_work())

        await asyncio.gather(*(write() for _ in range(8)))
    return bench.found


@finder("ledger: an error of the client between two writes")
async def _client_error(dsn: str, harm: str, _broken: str) -> list[str]:
    async with _bench(dsn, harm) as bench:
        turn, uow = bench.ledger.turn(bench.conversation_id), bench.store.unit_of_work()
        change = Change(STATUS, (bench.conversation_id,), "active", "closed")
        unsendable = Statement(b"SELECT %(it)s", lambda _: {"it": object()}, lambda _, __: None)
        with suppress(StoreError), bench.ledger.unit(turn, changes=[change], uow=uow):
            async with uow:
                uow.messages.append(bench.conversation_id, turn.drafts())
                uow.register(unsendable)
                uow.conversations.set_status(bench.conversation_id, Status.CLOSED)
    return bench.found


@finder("ledger: one request_id for two turns")
async def _two_requests(dsn: str, harm: str, _broken: str) -> list[str]:
    async with _bench(dsn, harm) as bench:
        await bench.append(bench.store.unit_of_work(), request_id="r")
        with suppress(RequestConflict):
            await bench.append(bench.store.unit_of_work(), request_id="r")
    return bench.found


@finder("ledger: a lent connection after a refusal")
async def _lent_connection(dsn: str, harm: str, _broken: str) -> list[str]:
    async with (
        _bench(dsn, harm) as bench,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
    ):
        turn = bench.ledger.turn(bench.conversation_id)
        uow = bench.store.unit_of_work(connection=connection)
        with suppress(ConversationNotFound, psycopg.Error), bench.ledger.unit(turn, uow=uow):
            async with uow:
                uow.messages.append(bench.conversation_id, turn.drafts())
                uow.messages.append(MISSING, turn.drafts())
        async with bench.must_succeed():
            await bench.append(bench.store.unit_of_work(connection=connection))
    return bench.found


@finder("ledger: an append before a purge")
async def _purge(dsn: str, harm: str, _broken: str) -> list[str]:
    async with _bench(dsn, harm) as bench:
        now = (
            await get_conversation(bench.uow(), conversation_id=bench.conversation_id)
        ).last_activity
        turn, uow = bench.ledger.turn(bench.conversation_id), bench.uow()
        with bench.ledger.unit(turn, uow=uow):
            async with uow:
                turn.placed(await uow.messages.append(bench.conversation_id, turn.drafts()))
                since = now + timedelta(microseconds=1)
                purge = purge_conversations(bench.uow(), inactive_since=since)
                purging = asyncio.create_task(purge)
                assert await is_waiting(bench.store, purging)
        await purging
    return bench.found


@finder("history: an append before a long deletion")
async def _long_deletion(dsn: str, harm: str, _broken: str) -> list[str]:
    async with _bench(dsn, harm) as bench:
        drafts = [MessageDraft(role="user", content="x")] * 1000
        for _ in range(3):
            await append_messages(bench.uow(), conversation_id=bench.conversation_id, drafts=drafts)

        async def trim() -> None:
            async with bench.uow() as uow:
                uow.conversations.remove_part(bench.conversation_id)

        async with bench.uow() as uow:
            await uow.messages.append(bench.conversation_id, drafts[:2])
            trimming = asyncio.create_task(trim())
            assert await is_waiting(bench.store, trimming)
        await trimming
        found = await get_conversation(bench.uow(), conversation_id=bench.conversation_id)
        last = await messages_after(
            bench.uow(), conversation_id=found.id, position=found.message_count - 1
        )
        positions = [message.position for message in last]
        if positions != [found.message_count]:
            bench.found.append(f"a gap: {found.message_count} messages, the last at {positions}")
        await delete_conversation(bench.uow(), conversation_id=found.id)
    return bench.found


@finder("contract: the twin")
async def _twin(_dsn: str, _harm: str, broken: str) -> list[str]:
    tests = Path(__file__).parents[1]
    run = [sys.executable, "-m", "pytest", "-q", "-p", "faults.broken", "-p", "no:randomly"]
    chosen = ["contract/test_unit_of_work.py", "-k", "memory and inner"]
    done = await asyncio.to_thread(
        subprocess.run,
        [*run, *chosen],
        cwd=tests,
        # Options of the run that we are in are not meant for this one.
        env={**os.environ, "PYTEST_ADDOPTS": "", "PYTHONPATH": str(tests), BROKEN: broken},
        capture_output=True,
        text=True,
        check=False,
    )
    return [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
