"""Traps of the driver and the server that were sprung once, each held open by a test."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
import psycopg.waiting
import pytest
from histories import whole_history
from interruption import Moments
from psycopg.pq import PipelineStatus
from server_waits import until_the_server_waits
from store_fixtures import draft, open_store, turn

from conversation_store import (
    CommitOutcomeUnknown,
    ConversationNotFound,
    ConversationRecord,
    ConversationStore,
    NewConversation,
    Outcome,
    Retry,
    Status,
    StoreError,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWorkMisuse,
    append_messages,
    close_conversation,
    get_conversation,
    get_or_start_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    messages_after,
    start_conversation,
    update_conversation,
)
from conversation_store.adapters.postgres.statement import Statement
from conversation_store.adapters.postgres.unit_of_work import PsycopgUnitOfWork

MISSING = 4_000_000_000_000
SENT = 0.5
"""Seconds in which what is to wait for a lock has begun to, on a busy machine as well."""


@pytest.fixture
async def narrow(dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    """Give a store with a single connection, so that what one call leaves behind the next meets."""
    async with open_store(dsn, "operational", migrated, min_size=1, max_size=1) as store:
        yield store


@pytest.fixture
async def once(dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    """Give a store with a single connection that tries nothing again."""
    retry = Retry(attempts=1)
    opened = open_store(dsn, "operational", migrated, min_size=1, max_size=1, retry=retry)
    async with opened as store:
        yield store


async def start(store: ConversationStore) -> int:
    """Start a conversation."""
    conversation, _ = await start_conversation(store.unit_of_work(), user_id="u", session_id="s")
    return conversation.id


async def count(store: ConversationStore, conversation: int) -> int:
    """Return how many messages are stored, having checked that they are what is counted."""
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    positions: list[int] = []
    while True:
        page = await messages_after(
            store.unit_of_work(),
            conversation_id=conversation,
            position=len(positions),
            limit=1000,
        )
        positions += [message.position for message in page]
        if not page:
            break
    assert positions == list(range(1, found.message_count + 1))
    return found.message_count


async def states(dsn: str) -> list[str]:
    """Return the states of the server's connections that are the stores'."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT state FROM pg_stat_activity WHERE application_name = 'conversation-store'"
        )
        return [state for (state,) in await cursor.fetchall()]


async def until_all_are_idle(dsn: str) -> None:
    """Wait until no connection of the stores is at work, or in a transaction, any more."""
    async with asyncio.timeout(10):
        while set(await states(dsn)) != {"idle"}:
            await asyncio.sleep(0.01)


# What the client does wrong -----------------------------------------------------------------------


def unbindable() -> Statement[None]:
    """Return a write whose parameter the driver cannot send."""
    return Statement(b"SELECT %(it)s", lambda _: {"it": object()}, lambda _ids, _rows: None)


@pytest.mark.parametrize("flushed", [False, True])
async def test_an_error_of_the_client_between_writes_stores_nothing(
    narrow: ConversationStore, flushed: bool
) -> None:
    """A pipeline that the client cannot finish is no half unit: BEGIN and COMMIT are literal."""
    conversation = await start(narrow)
    uow = narrow.unit_of_work()
    with pytest.raises(StoreError):
        async with uow:
            uow.messages.append(conversation, turn(1))
            if flushed:
                await uow.conversations.get(conversation)
                uow.messages.append(conversation, turn(2))
            uow.register(unbindable())
            uow.messages.append(conversation, turn(3))
    assert uow.outcome is Outcome.ROLLED_BACK
    assert await count(narrow, conversation) == 0
    await append_messages(narrow.unit_of_work(), conversation_id=conversation, drafts=turn(4))
    assert await count(narrow, conversation) == 2


async def test_every_flush_ends_in_a_sync(narrow: ConversationStore, dsn: str) -> None:
    """Between flushes the server sees an idle transaction, which its timeouts cover."""
    conversation = await start(narrow)
    async with narrow.unit_of_work() as uow:
        uow.messages.append(conversation, turn(1))
        await uow.messages.append(conversation, turn(2))
        assert await states(dsn) == ["idle in transaction"]
    assert await states(dsn) == ["idle"]


async def test_reads_hold_nothing(narrow: ConversationStore, dsn: str) -> None:
    """After mere reads a unit holds no connection: the only one serves others."""
    conversation = await start(narrow)
    async with narrow.unit_of_work() as uow:
        await uow.conversations.get(conversation)
        assert await states(dsn) == ["idle"]
        assert await count(narrow, conversation) == 0


# Prepared statements after failures ---------------------------------------------------------------


async def test_all_statements_may_be_prepared_at_once(dsn: str, migrated: set[str]) -> None:
    """Where the host has every statement prepared, those texts are not that hold several.

    They migrate, undo an inner block, and undo a batch of an import that was raced.
    """
    record: ConversationRecord = {"user_id": "u", "session_id": "raced", "messages": []}
    migrated.discard("prepared")
    options: dict[str, Any] = {"min_size": 2, "prepare_threshold": 0}
    async with open_store(dsn, "prepared", migrated, **options) as store:
        conversation = await start(store)
        async with store.unit_of_work() as uow:
            uow.messages.append(conversation, turn(1))
            with pytest.raises(ConversationNotFound):
                await append_messages(uow, conversation_id=MISSING, drafts=turn(2))
        async with store.unit_of_work() as holding:
            await holding.conversations.add(NewConversation(user_id="u", session_id="raced"))
            skipping = asyncio.create_task(
                import_conversations(store.unit_of_work(), records=[record], on_duplicate="skip")
            )
            await asyncio.sleep(0.2)
        assert (await skipping).skipped == 1
        assert await count(store, conversation) == 2


@pytest.mark.parametrize("kind", ["whole", "inner block", "hosts transaction"])
async def test_a_refused_pipeline_does_not_poison_its_connection(
    narrow: ConversationStore, dsn: str, kind: str
) -> None:
    """Refused around the turn at which a statement is prepared, the connection goes on working."""
    conversation = await start(narrow)
    lent = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
    async with lent:

        async def refused(good_first: bool) -> None:
            connection = lent if kind == "hosts transaction" else None
            uow = narrow.unit_of_work(connection=connection)
            order = [conversation, MISSING] if good_first else [MISSING, conversation]
            with pytest.raises(ConversationNotFound):
                async with uow:
                    for target in order:
                        uow.messages.append(target, turn(1))
                        uow.messages.append(target, turn(1), request_id="r")

        async def nested() -> None:
            async with narrow.unit_of_work() as uow:
                uow.messages.append(conversation, [draft("kept")])
                with pytest.raises(ConversationNotFound):
                    async with uow:
                        uow.messages.append(MISSING, turn(1))
                        uow.messages.append(conversation, turn(1), request_id="n")

        kept = 0
        for number in range(24):
            if kind == "whole":
                await refused(number % 3 == 0)
            elif kind == "inner block":
                await nested()
                kept += 1
            else:
                async with lent.transaction():
                    await refused(number % 3 == 0)
            async with narrow.unit_of_work() as uow:
                uow.messages.append(conversation, [draft("a")])
                uow.messages.append(conversation, [draft("b")], request_id=f"ok-{number}")
            kept += 2
    assert await count(narrow, conversation) == kept


async def test_a_refusal_keeps_prepared_statements(narrow: ConversationStore) -> None:
    """An error in autocommit drops no prepared statement, unlike a rollback."""
    conversation = await start(narrow)

    async def prepared() -> int:
        async with narrow.unit_of_work() as uow:
            connection = await uow.connection()
            cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
            [number] = await cursor.fetchone()
        return int(number)

    for number in range(8):
        await append_messages(
            narrow.unit_of_work(), conversation_id=conversation, drafts=turn(number)
        )
    before = await prepared()
    assert before >= 1
    for _ in range(3):
        with pytest.raises(ConversationNotFound):
            await append_messages(narrow.unit_of_work(), conversation_id=MISSING, drafts=turn(1))
    assert await prepared() >= before


async def test_a_refused_pipeline_logs_nothing(
    narrow: ConversationStore, caplog: pytest.LogCaptureFixture
) -> None:
    """A refusal is an answer: no warning of the driver's reaches the host's log."""
    conversation = await start(narrow)
    caplog.clear()
    with pytest.raises(ConversationNotFound):
        async with narrow.unit_of_work() as uow:
            uow.messages.append(conversation, turn(1))
            uow.messages.append(MISSING, turn(1))
            uow.messages.append(conversation, turn(1))
    async with narrow.unit_of_work() as uow:
        with pytest.raises(ConversationNotFound):
            async with uow:
                uow.messages.append(MISSING, turn(1))
    assert [record for record in caplog.records if record.levelname != "INFO"] == []


# Cancellation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one write", "several writes", "nested", "request"])
async def test_cancelled_at_any_time_a_unit_is_whole_or_absent_and_says_which(
    postgres: ConversationStore, dsn: str, kind: str
) -> None:
    """200 units cancelled at random times: outcome and store agree, and the pool is healthy."""
    conversation = await start(postgres)
    moments = Moments(kind)
    kept = 0
    ends: list[Outcome] = []

    async def unit(uow: Any, number: int) -> None:
        async with uow:
            if kind == "nested":
                await append_messages(
                    uow, conversation_id=conversation, drafts=[draft(f"{number}/0")]
                )
                await append_messages(
                    uow, conversation_id=conversation, drafts=[draft(f"{number}/1")]
                )
                return
            request_id = f"r-{number}" if kind == "request" else None
            uow.messages.append(
                conversation, [draft(f"{number}/0"), draft(f"{number}/1")], request_id=request_id
            )
            if kind == "several writes":
                uow.messages.append(conversation, [draft(f"{number}/2"), draft(f"{number}/3")])

    async def one(number: int) -> None:
        nonlocal kept
        uow = postgres.unit_of_work()
        task = asyncio.create_task(unit(uow, number))
        await asyncio.sleep(moments.draw())
        moments.tell(had_ended=task.done())
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        else:
            assert uow.outcome is Outcome.COMMITTED
        ends.append(uow.outcome)
        if uow.outcome is Outcome.COMMITTED:
            kept += 1
        stored = {
            m.content
            for m in await latest_messages(
                postgres.unit_of_work(), conversation_id=conversation, limit=1000
            )
            if m.content.startswith(f"{number}/")
        }
        if uow.outcome is not Outcome.UNKNOWN:
            whole = 4 if kind == "several writes" else 2
            assert len(stored) == (whole if uow.outcome is Outcome.COMMITTED else 0)

    for first in range(0, 200, 4):
        await asyncio.gather(*(one(number) for number in range(first, first + 4)))
    assert ends.count(Outcome.UNKNOWN) <= 2
    assert moments.in_time
    assert moments.too_late
    assert kept > 0
    assert kept < 200 or kind in {"one write", "request"}  # one statement on its way is waited for
    await count(postgres, conversation)
    await until_all_are_idle(dsn)


async def test_a_timeout_in_an_inner_flush_undoes_only_that(
    postgres: ConversationStore, dsn: str
) -> None:
    """An inner block whose write waits for a lock too long is undone; the outer commits."""
    conversation = await start(postgres)
    other, _ = await start_conversation(postgres.unit_of_work(), user_id="u", session_id="other")
    async with await psycopg.AsyncConnection.connect(dsn) as blocker:
        await blocker.execute(
            "SELECT FROM operational.ai_conversations WHERE id = %s FOR UPDATE", (other.id,)
        )
        async with postgres.unit_of_work() as uow:
            await append_messages(uow, conversation_id=conversation, drafts=[draft("kept")])
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(SENT):
                    await append_messages(uow, conversation_id=other.id, drafts=turn(1))
            await append_messages(uow, conversation_id=conversation, drafts=[draft("too")])
        await blocker.rollback()
    assert await count(postgres, conversation) == 2
    assert await count(postgres, other.id) == 0


async def test_cancelled_while_it_waits_for_a_connection_nothing_is_stored(
    narrow: ConversationStore,
) -> None:
    """A unit that never got a connection has not started."""
    conversation = await start(narrow)
    uow = narrow.unit_of_work()
    async with narrow.unit_of_work() as holder:
        await holder.messages.append(conversation, turn(1))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await append_messages(uow, conversation_id=conversation, drafts=turn(2))
    assert uow.outcome is Outcome.NOT_STARTED
    assert await count(narrow, conversation) == 2


# Busy conversations -------------------------------------------------------------------------------


async def test_a_busy_conversation_can_be_closed_and_labelled(
    postgres: ConversationStore,
) -> None:
    """Changes are guarded by what they decide upon, not by a version that every append moves."""
    conversation = await start(postgres)
    busy = True

    async def write() -> None:
        while busy:
            await append_messages(
                postgres.unit_of_work(), conversation_id=conversation, drafts=turn(1)
            )

    writers = [asyncio.create_task(write()) for _ in range(8)]
    for number in range(100):
        await update_conversation(
            postgres.unit_of_work(),
            conversation_id=conversation,
            metadata={"n": number},
        )
    busy = False
    await asyncio.gather(*writers)
    found = await get_conversation(postgres.unit_of_work(), conversation_id=conversation)
    assert found.metadata == {"n": 99}
    await count(postgres, conversation)


async def test_a_conversation_that_moved_is_on_a_fresh_first_page(
    postgres: ConversationStore,
) -> None:
    """One that becomes active while its list is paged may be missed, and is then on top."""
    ids = []
    for number in range(4):
        conversation, _ = await start_conversation(
            postgres.unit_of_work(), user_id="u", session_id=f"s-{number}"
        )
        ids.append(conversation.id)
    uow = postgres.unit_of_work()
    first = await list_conversations(uow, user_id="u", limit=2)
    await append_messages(uow, conversation_id=ids[0], drafts=turn(1))
    rest = await list_conversations(uow, user_id="u", limit=2, after=first.next_cursor)
    seen = [c.id for c in first.conversations + rest.conversations]
    assert len(seen) == len(set(seen)) == 3
    fresh = await list_conversations(uow, user_id="u", limit=2)
    assert fresh.conversations[0].id == ids[0]


async def test_get_or_start_always_gives_a_row(postgres: ConversationStore) -> None:
    """In a race of 16 nobody gets nothing, over 60 rounds."""
    for number in range(60):
        ends = await asyncio.gather(
            *(
                get_or_start_conversation(
                    postgres.unit_of_work(), user_id="u", session_id=f"s-{number}"
                )
                for _ in range(16)
            )
        )
        assert sum(created for _, created in ends) == 1


# Lost connections ---------------------------------------------------------------------------------


async def terminate(dsn: str) -> None:
    """End the stores' connections on the server, and see them go."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'conversation-store'"
        )


async def test_connections_that_the_server_ended_while_idle_are_not_used(
    dsn: str, migrated: set[str]
) -> None:
    """After a restart, or a pooler's cut, the first calls work: nothing is sent on a dead one."""
    options: dict[str, Any] = {"min_size": 4, "max_size": 4}
    async with open_store(dsn, "operational", migrated, **options) as store:
        conversation = await start(store)
        for number in range(3):
            await terminate(dsn)
            await asyncio.gather(
                *(
                    append_messages(
                        store.unit_of_work(), conversation_id=conversation, drafts=turn(number)
                    )
                    for _ in range(6)
                )
            )
            await get_conversation(store.unit_of_work(), conversation_id=conversation)
        assert await count(store, conversation) == 36


@asynccontextmanager
async def locked(dsn: str, conversation: int) -> AsyncIterator[None]:
    """Hold the lock of a conversation."""
    async with await psycopg.AsyncConnection.connect(dsn) as blocker:
        await blocker.execute(
            "SELECT FROM operational.ai_conversations WHERE id = %s FOR UPDATE", (conversation,)
        )
        yield
        await blocker.rollback()


async def lost_while_it_waits(dsn: str, conversation: int, unit: Any) -> Any:
    """Return how a unit ends whose connection is lost while it waits for a lock."""
    async with locked(dsn, conversation):
        task = asyncio.create_task(unit)
        await until_the_server_waits(dsn)
        await terminate(dsn)
        ends = await asyncio.gather(task, return_exceptions=True)
    return ends[0]


@pytest.mark.parametrize("writes", [1, 3])
async def test_a_unit_lost_while_it_is_committed_is_unknown(
    once: ConversationStore, dsn: str, writes: int
) -> None:
    """CommitOutcomeUnknown names the conversation, the messages and the request."""
    conversation = await start(once)
    uow = once.unit_of_work()

    async def unit() -> None:
        async with uow:
            for number in range(writes):
                uow.messages.append(conversation, turn(1), request_id=f"r-{number}")

    error = await lost_while_it_waits(dsn, conversation, unit())
    assert isinstance(error, CommitOutcomeUnknown)
    assert uow.outcome is Outcome.UNKNOWN
    assert error.conversation_ids == (conversation,) * writes
    assert error.request_ids == tuple(f"r-{number}" for number in range(writes))
    assert len(set(error.message_ids)) == 2 * writes
    await unit()
    assert await count(once, conversation) == 2 * writes


async def test_an_unknown_start_names_its_ids(once: ConversationStore, dsn: str) -> None:
    """The ids of what would have been started are in the error."""
    conversation = await start(once)

    async def unit() -> None:
        async with once.unit_of_work() as uow:
            uow.conversations.add(NewConversation(user_id="u", session_id="new"), turn(1))
            uow.conversations.set_status(conversation, Status.CLOSED)

    error = await lost_while_it_waits(dsn, conversation, unit())
    assert isinstance(error, CommitOutcomeUnknown)
    assert len(error.conversation_ids) == 2
    assert conversation in error.conversation_ids
    assert len(error.message_ids) == 2


async def test_a_read_that_is_lost_is_unavailable_and_the_pool_recovers(
    once: ConversationStore, dsn: str
) -> None:
    """StoreUnavailable, retryable; the next call has a new connection."""
    conversation = await start(once)

    async def read() -> None:
        async with once.unit_of_work() as uow, asyncio.timeout(5):
            cast_away: Any = uow
            await cast_away.fetch(b"SELECT pg_sleep(3)", {})

    error = await lost_while_it_waits(dsn, conversation, read())
    assert isinstance(error, StoreUnavailable)
    assert error.retryable
    assert await count(once, conversation) == 0


async def test_a_connection_lost_before_the_commit_stores_nothing(
    narrow: ConversationStore, dsn: str
) -> None:
    """In the middle of an interactive unit the loss is known: StoreUnavailable, rolled back."""
    conversation = await start(narrow)
    uow = narrow.unit_of_work()
    with pytest.raises(StoreUnavailable) as caught:
        async with uow:
            await uow.messages.append(conversation, turn(1))
            await terminate(dsn)
            await uow.messages.append(conversation, turn(2))
    assert not isinstance(caught.value, CommitOutcomeUnknown)
    assert uow.outcome is Outcome.ROLLED_BACK
    assert await count(narrow, conversation) == 0


async def test_a_connection_lost_at_the_commit_is_unknown(
    once: ConversationStore, dsn: str
) -> None:
    """Lost between the last flush and the COMMIT, the outcome is not guessed, and ids are named."""
    conversation = await start(once)
    uow = once.unit_of_work()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        async with uow:
            messages = await uow.messages.append(conversation, turn(1), request_id="r")
            await terminate(dsn)
    assert uow.outcome is Outcome.UNKNOWN
    assert caught.value.conversation_ids == (conversation,)
    assert caught.value.message_ids == tuple(message.id for message in messages)
    assert caught.value.request_ids == ("r",)
    assert await count(once, conversation) == 0


async def test_a_statement_timeout_is_a_store_timeout(narrow: ConversationStore, dsn: str) -> None:
    """What the server gave up for its time is StoreTimeout, and the connection is good again."""
    conversation = await start(narrow)
    async with await psycopg.AsyncConnection.connect(dsn) as blocker:
        await blocker.execute(
            "SELECT FROM operational.ai_conversations WHERE id = %s FOR UPDATE", (conversation,)
        )
        with pytest.raises(StoreTimeout) as caught:
            async with narrow.unit_of_work() as uow:
                connection = await uow.connection()
                await connection.execute("SET LOCAL statement_timeout = '50ms'")
                await uow.messages.append(conversation, turn(1))
        assert caught.value.sqlstate == "57014"
        await blocker.rollback()
    await close_conversation(narrow.unit_of_work(), conversation_id=conversation)


async def test_pool_exhaustion_says_how_many_wait(dsn: str, migrated: set[str]) -> None:
    """No free connection in time is StoreTimeout naming the pool's size and its queue."""
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "timeout": 1}
    async with open_store(dsn, "operational", migrated, **options) as store:
        conversation = await start(store)
        async with store.unit_of_work() as uow:
            await uow.messages.append(conversation, turn(1))
            others = await asyncio.gather(
                *(
                    get_conversation(store.unit_of_work(), conversation_id=conversation)
                    for _ in range(3)
                ),
                return_exceptions=True,
            )
        assert all(isinstance(other, StoreTimeout) for other in others)
        assert "pool of 1" in str(others[0])
        assert "waiting" in str(others[0])
        assert await count(store, conversation) == 2


async def test_a_server_that_is_not_there_is_unavailable_at_once() -> None:
    """Opening says so without waiting for the pool's timeout."""
    store = ConversationStore.connect("host=127.0.0.1 port=1 user=x dbname=x connect_timeout=5")
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            async with store:
                pass


# Trouble before anything was sent -----------------------------------------------------------------


async def test_an_inner_block_that_got_no_connection_leaves_the_outer_whole(
    dsn: str, migrated: set[str]
) -> None:
    """What the outer block does afterwards is stored, and its transaction ends."""
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "timeout": 1}
    async with open_store(dsn, "operational", migrated, **options) as store:
        conversation = await start(store)
        async with store.unit_of_work() as uow:
            async with store.unit_of_work() as holder:
                await holder.messages.append(conversation, [draft("1")])
                with pytest.raises(StoreTimeout):
                    await append_messages(uow, conversation_id=conversation, drafts=[draft("no")])
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.02):
                        await append_messages(
                            uow, conversation_id=conversation, drafts=[draft("no")]
                        )
            await append_messages(uow, conversation_id=conversation, drafts=[draft("2")])
        assert uow.outcome is Outcome.COMMITTED
        stored = await latest_messages(store.unit_of_work(), conversation_id=conversation)
        assert [message.content for message in stored] == ["1", "2"]
        assert await states(dsn) == ["idle"]


async def test_a_connection_lost_while_a_refusal_is_undone_is_no_refusal(
    narrow: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An inner block is refused, and cannot be undone: the whole unit is lost, and says why."""
    conversation, _ = await start_conversation(
        narrow.unit_of_work(), user_id="ada", session_id="s-1"
    )
    undo = PsycopgUnitOfWork._undo_to

    async def lost(uow: PsycopgUnitOfWork, *args: Any, **values: Any) -> None:
        uow._held().pgconn.finish()
        await undo(uow, *args, **values)

    monkeypatch.setattr(PsycopgUnitOfWork, "_undo_to", lost)
    uow = narrow.unit_of_work()
    with pytest.raises(StoreUnavailable):
        async with uow:
            await append_messages(uow, conversation_id=conversation.id, drafts=turn(1))
            with suppress(ConversationNotFound):
                await close_conversation(uow, conversation_id=MISSING)

    assert uow.outcome is Outcome.ROLLED_BACK
    assert await whole_history(narrow, conversation.id) == []


async def test_inner_blocks_that_ran_out_of_time_at_any_moment_leave_the_outer_whole(
    postgres: ConversationStore, dsn: str
) -> None:
    """Timeouts at random moments of an inner flush undo that, or, where it cannot be told, all."""
    conversation = await start(postgres)
    moments = Moments("inner blocks")
    expected: list[str] = []
    aborted = 0
    for number in range(150):
        unit = [f"{number} a"]
        uow = postgres.unit_of_work()
        try:
            async with uow:
                await append_messages(
                    uow, conversation_id=conversation, drafts=[draft(f"{number} a")]
                )
                with suppress(TimeoutError):
                    async with asyncio.timeout(moments.draw()):
                        await append_messages(
                            uow, conversation_id=conversation, drafts=[draft(f"{number} b")]
                        )
                        unit.append(f"{number} b")
                moments.tell(had_ended=len(unit) == 2)
                await append_messages(
                    uow, conversation_id=conversation, drafts=[draft(f"{number} c")]
                )
                unit.append(f"{number} c")
        except (TransactionAborted, UnitOfWorkMisuse) as error:
            aborted += 1  # the server had not made the savepoint when it was told to cancel
            told = error if isinstance(error, TransactionAborted) else error.__cause__
            assert "interrupted while it was sent" in str(told)
            assert uow.outcome is Outcome.ROLLED_BACK
        else:
            assert uow.outcome is Outcome.COMMITTED
            expected += unit
    stored = await whole_history(postgres, conversation)
    assert [message.content for message in stored] == expected
    assert 0 < sum(text.endswith("b") for text in expected) < 150
    assert aborted <= moments.in_time / 3  # a busy server aborts some more of them than an idle one
    await until_all_are_idle(dsn)


@pytest.mark.parametrize("where", ["pool", "host's transaction", "idle lent connection"])
async def test_interrupted_at_every_turn_of_a_busy_loop(
    narrow: ConversationStore, dsn: str, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Interrupted after 0, 1, 2 … turns of the loop, an inner flush is undone, or all with it."""
    conversation = await start(narrow)
    monkeypatch.setattr(psycopg.waiting, "MAX_BUSY_TIME", 0, raising=False)  # give way at once

    async def interrupt(task: Any, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()

    async def unit(uow: Any, turns: int) -> None:
        async with uow:
            await append_messages(uow, conversation_id=conversation, drafts=[draft(f"{turns} a")])
            inner = asyncio.current_task()
            assert inner is not None
            interruption = asyncio.create_task(interrupt(inner, turns))
            try:
                await append_messages(
                    uow, conversation_id=conversation, drafts=[draft(f"{turns} b")]
                )
                await interruption
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                inner.uncancel()

    async def run(turns: int) -> Outcome:
        if where == "pool":
            uow = narrow.unit_of_work()
            with suppress(TransactionAborted, UnitOfWorkMisuse):
                await unit(uow, turns)
            return uow.outcome
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as lent:
            uow = narrow.unit_of_work(connection=lent)
            if where == "idle lent connection":
                with suppress(TransactionAborted, UnitOfWorkMisuse):
                    await unit(uow, turns)
            else:
                with suppress(psycopg.Error):
                    async with lent.transaction():
                        with suppress(TransactionAborted, UnitOfWorkMisuse):
                            await unit(uow, turns)
            assert lent.pgconn.pipeline_status == PipelineStatus.OFF
            return uow.outcome

    for turns in range(24):
        outcome = await run(turns)
        stored = {
            message.content.split()[1]
            for message in await whole_history(narrow, conversation)
            if message.content.startswith(f"{turns} ")
        }
        assert outcome is not Outcome.UNKNOWN
        assert ("a" in stored) is (outcome is Outcome.COMMITTED), turns
        assert "b" not in stored or "a" in stored


async def test_cancelled_twice_no_connection_is_lost(dsn: str, migrated: set[str]) -> None:
    """Cancelled again while they clean up, units give every connection back, clean or replaced."""
    options: dict[str, Any] = {"min_size": 3, "max_size": 3}
    async with open_store(dsn, "operational", migrated, **options) as store:
        conversation = await start(store)
        dice = random.Random(11)
        moments = Moments("cancelled twice")

        async def unit(kind: int) -> None:
            async with store.unit_of_work() as uow:
                uow.messages.append(conversation, turn(1))
                if kind:
                    uow.messages.append(conversation, turn(2))
                if kind == 2:
                    await uow.conversations.get(conversation)
                    uow.messages.append(conversation, turn(3))

        async def one(number: int) -> None:
            task = asyncio.create_task(unit(number % 3))
            await asyncio.sleep(moments.draw())
            moments.tell(had_ended=task.done())
            for _ in range(dice.randrange(1, 4)):
                task.cancel()
                await asyncio.sleep(dice.random() * 0.001)
            with suppress(asyncio.CancelledError):
                await task

        for first in range(0, 300, 6):
            await asyncio.gather(*(one(number) for number in range(first, first + 6)))
        async with asyncio.timeout(10):
            units = [store.unit_of_work() for _ in range(3)]
            async with units[0] as a, units[1] as b, units[2] as c:
                for each in (a, b, c):
                    await each.connection()
        await count(store, conversation)
        await until_all_are_idle(dsn)
