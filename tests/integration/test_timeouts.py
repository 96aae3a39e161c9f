"""The timeout of a unit of work on PostgreSQL: the server's own limit, and a lost network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool
from pulse import within
from server_waits import until_the_server_waits
from store_fixtures import open_store, turn
from wire_proxy import WireProxy
from wired_store import SERVICE_FUNCTIONS, Wired, wired_store

from conversation_store import (
    CommitOutcomeUnknown,
    ConversationNotFound,
    ConversationStore,
    Outcome,
    StoreTimeout,
    append_messages,
    export_conversations,
    get_conversation,
    latest_messages,
    start_conversation,
)

SOON = 0.2
ENOUGH = 1.0
"""Seconds in which a busy machine, too, has sent what is then not answered in time."""
PROMISED = 0.5


@pytest.fixture
async def wired(dsn: str, migrated: set[str]) -> AsyncIterator[Wired]:
    """Give a store behind the proxy: one connection, its first block of ids drawn."""
    async with wired_store(f"{dsn} application_name=timeouts", migrated) as wired:
        try:
            yield wired
        finally:
            wired.proxy.restore()


async def shown(connection: psycopg.AsyncConnection[Any]) -> str:
    """Return the limit that holds on a connection."""
    [(setting,)] = await (await connection.execute("SHOW statement_timeout")).fetchall()
    return str(setting)


@asynccontextmanager
async def locked(dsn: str, conversation: int) -> AsyncIterator[None]:
    """Hold a conversation as a host's transaction may."""
    async with await psycopg.AsyncConnection.connect(dsn) as host:
        await host.execute(
            "SELECT FROM operational.ai_conversations WHERE id = %s FOR UPDATE", [conversation]
        )
        yield
        await host.rollback()


# What is sent -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SERVICE_FUNCTIONS)
async def test_a_service_function_with_a_timeout_is_one_round_trip(wired: Wired, name: str) -> None:
    """BEGIN, the limit, the statement, COMMIT: one pipeline."""
    if name == "append_messages, replay":
        await SERVICE_FUNCTIONS[name](wired, wired.store.unit_of_work())
    with wired.proxy.count() as wire:
        await SERVICE_FUNCTIONS[name](wired, wired.store.unit_of_work(timeout=5))
    assert (wire.round_trips, wire.statements) == (1, 4), wire.texts
    assert wire.texts[0].startswith("BEGIN")
    assert "set_config('statement_timeout'" in wire.texts[1]
    assert wire.texts[-1] == "COMMIT"


@pytest.mark.parametrize("limit", [None, 5])
async def test_a_unit_of_several_flushes_takes_no_more_round_trips(
    wired: Wired, limit: float | None
) -> None:
    """The limit travels with the first write."""
    with wired.proxy.count() as wire:
        async with wired.store.unit_of_work(timeout=limit) as uow:
            await append_messages(uow, conversation_id=wired.conversation, drafts=turn(1))
            await latest_messages(uow, conversation_id=wired.conversation)
            uow.messages.append(wired.conversation, turn(2))
            uow.messages.append(wired.conversation, turn(3))
    assert wire.round_trips == 5
    assert sum("set_config" in text for text in wire.texts) == (limit is not None)


async def test_an_export_with_a_timeout_takes_no_more_round_trips(wired: Wired) -> None:
    """The limit travels with the cursor."""
    counts = []
    for limit in (None, 5):
        with wired.proxy.count() as wire:
            async for _ in export_conversations(wired.store.unit_of_work(timeout=limit)):
                pass
        counts.append(wire.round_trips)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("in_transaction", [False, True])
async def test_inside_the_hosts_transaction_it_is_one_round_trip_too(
    wired: Wired, in_transaction: bool
) -> None:
    """A write is SAVEPOINT, limit, statement, restored limit, RELEASE; a read has no savepoint."""
    dsn, text = wired.proxy.dsn, "BEGIN" if in_transaction else "SELECT 1"
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as lent:
        await lent.execute(text)
        uow = wired.store.unit_of_work(connection=lent, timeout=5)
        with wired.proxy.count() as wire:
            await append_messages(uow, conversation_id=wired.conversation, drafts=turn(1))
        assert (wire.round_trips, wire.statements) == (1, 5 if in_transaction else 4)
        with wired.proxy.count() as wire:
            await latest_messages(uow, conversation_id=wired.conversation)
        assert (wire.round_trips, wire.statements) == (1, 3 if in_transaction else 4)


async def test_a_turn_with_a_timeout_does_not_share_a_statement(
    dsn: str, migrated: set[str]
) -> None:
    """With group commit it goes alone: others' turns would hold it up beyond its time."""
    async with (
        WireProxy(dsn) as proxy,
        open_store(dsn, "operational", migrated, through=proxy.dsn, coalesce=True) as store,
    ):
        chats = [
            (await start_conversation(store.unit_of_work(), user_id="u", session_id=str(n)))[0].id
            for n in range(6)
        ]
        with proxy.count() as wire:
            await asyncio.gather(
                *(
                    append_messages(
                        store.unit_of_work(timeout=5), conversation_id=chat, drafts=turn(1)
                    )
                    for chat in chats
                )
            )
        assert wire.texts.count("COMMIT") == 6


# The server's limit -------------------------------------------------------------------------------


async def test_the_limit_is_of_the_transaction_and_never_longer_than_others(
    postgres: ConversationStore, dsn: str
) -> None:
    """It is the rest of the timeout and the grace; what the session has set already may be less."""
    async with postgres.unit_of_work(timeout=50) as uow:
        connection = await uow.connection()
        assert 49_000 < int((await shown(connection)).removesuffix("ms")) <= 50_250
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as lent:
        for others in ("0", "1min", "1h", "1d", "1500ms", "2s"):
            await lent.execute(f"SET statement_timeout = '{others}'".encode())
            async with postgres.unit_of_work(connection=lent, timeout=10) as uow:
                limit = await shown(await uow.connection())
                if others in ("1500ms", "2s"):
                    assert limit == others
                else:
                    assert 9_000 < int(limit.removesuffix("ms")) <= 10_250
            assert await shown(lent) == others


@pytest.mark.parametrize("how", ["kept", "refused", "rolled back", "read", "late"])
async def test_the_hosts_transaction_has_its_own_limit_back(
    postgres: ConversationStore, dsn: str, how: str
) -> None:
    """Whatever became of the unit; also where two of them nest."""
    conversation, _ = await start_conversation(postgres.unit_of_work(), user_id="u", session_id="s")
    async with await psycopg.AsyncConnection.connect(dsn) as lent:
        await lent.execute("SET LOCAL statement_timeout = '7s'")
        outer = postgres.unit_of_work(connection=lent, timeout=5)
        inner = postgres.unit_of_work(connection=lent, timeout=0.1 if how == "late" else 3)
        async with outer:
            await append_messages(outer, conversation_id=conversation.id, drafts=turn(1))
            outside = await shown(lent)
            assert outside.startswith(("5", "4"))
            if how == "read":
                await latest_messages(inner, conversation_id=conversation.id)
            elif how == "refused":
                with pytest.raises(ConversationNotFound):
                    await append_messages(inner, conversation_id=404, drafts=turn(2))
            elif how == "late":
                with pytest.raises(StoreTimeout):
                    async with inner:
                        await (await inner.connection()).execute("SELECT pg_sleep(0.15)")
            else:
                async with inner:
                    await append_messages(inner, conversation_id=conversation.id, drafts=turn(2))
                    assert (await shown(lent)).startswith(("3", "2"))
                    if how == "rolled back":
                        await inner.rollback()
            assert await shown(lent) == outside
        assert await shown(lent) == "7s"
        await lent.rollback()
        assert await shown(lent) == "0"


async def test_the_server_ends_what_nobody_waits_for_any_more(wired: Wired, dsn: str) -> None:
    """Also where no word gets through to it: the statement waits no longer than its limit."""
    uow = wired.store.unit_of_work(timeout=ENOUGH)
    async with (
        locked(dsn, wired.conversation),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watch,
    ):
        call = asyncio.create_task(
            append_messages(uow, conversation_id=wired.conversation, drafts=turn(1))
        )
        await until_the_server_waits(dsn)
        wired.proxy.swallow()
        async with within(ENOUGH + PROMISED):
            with pytest.raises(CommitOutcomeUnknown):
                await call

        async def waits() -> bool:
            cursor = await watch.execute(
                "SELECT FROM pg_stat_activity"
                " WHERE application_name = 'timeouts' AND state = 'active'"
            )
            return cursor.rowcount > 0

        async with asyncio.timeout(5):
            while await waits():
                await asyncio.sleep(0.02)
    wired.proxy.restore()
    found = await get_conversation(wired.store.unit_of_work(), conversation_id=wired.conversation)
    assert found.message_count == 1


# What is waited for -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["append_messages", "get_message", "start_conversation"])
async def test_in_a_black_hole_the_unit_ends_in_time(wired: Wired, name: str) -> None:
    """What left may be stored, what was only read is not in doubt."""
    uow = wired.store.unit_of_work(timeout=SOON)
    wired.proxy.swallow()
    async with within(SOON + PROMISED):
        with pytest.raises((StoreTimeout, CommitOutcomeUnknown)) as caught:
            await SERVICE_FUNCTIONS[name](wired, uow)
    is_read = name == "get_message"
    assert isinstance(caught.value, StoreTimeout if is_read else CommitOutcomeUnknown)
    assert uow.outcome is (Outcome.NOT_STARTED if is_read else Outcome.UNKNOWN)
    if isinstance(caught.value, CommitOutcomeUnknown):
        assert len(caught.value.message_ids) == 2
        assert "timeout of 0.2 s" in caught.value.reason
    wired.proxy.restore()
    await wired.store.ping()


async def test_an_interactive_unit_names_what_it_may_have_stored(wired: Wired) -> None:
    """Its COMMIT left, and nothing came back."""
    uow = wired.store.unit_of_work(timeout=ENOUGH)
    with pytest.raises(CommitOutcomeUnknown) as caught:
        async with uow:
            await append_messages(
                uow, conversation_id=wired.conversation, drafts=turn(1), request_id="r"
            )
            wired.proxy.swallow()
    assert caught.value.conversation_ids == (wired.conversation,)
    assert caught.value.request_ids == ("r",)
    assert uow.outcome is Outcome.UNKNOWN
    wired.proxy.restore()


async def test_all_tries_together_have_that_time(dsn: str, migrated: set[str]) -> None:
    """A connection that breaks at each try is tried again until the time is over."""
    async with open_store(dsn, "operational", migrated) as opened:
        chat, _ = await start_conversation(opened.unit_of_work(), user_id="u", session_id="s")
    async with (
        WireProxy(dsn) as proxy,
        ConversationStore.connect(proxy.dsn, max_size=2) as store,
    ):
        for connection in proxy.connections:
            connection.cut()
        proxy._server.close()  # whoever comes is refused
        uow = store.unit_of_work(timeout=SOON)
        async with within(SOON + PROMISED):
            with pytest.raises(StoreTimeout) as caught:
                await append_messages(uow, conversation_id=chat.id, drafts=turn(1))
    assert "timeout of 0.2 s" in caught.value.reason
    assert uow.outcome in (Outcome.NOT_STARTED, Outcome.ROLLED_BACK)


async def test_a_wait_for_a_connection_ends_in_time_and_says_so(
    dsn: str, migrated: set[str]
) -> None:
    """By the unit's own timeout, or by the pool's, which tells how many waited."""
    async with open_store(dsn, "operational", migrated, min_size=1, max_size=1, timeout=1) as store:
        chat, _ = await start_conversation(store.unit_of_work(), user_id="u", session_id="s")

        async def append(limit: float | None) -> BaseException:
            uow = store.unit_of_work(timeout=limit)
            with pytest.raises(StoreTimeout) as caught:
                await append_messages(uow, conversation_id=chat.id, drafts=turn(1))
            assert uow.outcome is Outcome.NOT_STARTED
            return caught.value

        async with store.unit_of_work() as holder:
            await append_messages(holder, conversation_id=chat.id, drafts=turn(1))
            own, *pools = await asyncio.gather(append(0.1), *(append(None) for _ in range(3)))
        assert "within its timeout of 0.1 s" in str(own)
        said = sorted(str(error) for error in pools)
        assert said == [
            f"no connection was free within 1 s (pool of 1, {waiting} more waiting)"
            for waiting in range(3)
        ]


@pytest.mark.usefixtures("postgres")
async def test_a_pool_that_lets_nobody_wait_says_so(dsn: str) -> None:
    """A pool of the host's with a limit to its queue."""
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=1, max_waiting=1, open=False, timeout=0.2
    ) as pool:
        store = ConversationStore.from_pool(pool)
        async with pool.connection():
            ends = await asyncio.gather(*(store.ping() for _ in range(3)), return_exceptions=True)
    assert {type(end) for end in ends} == {StoreTimeout}
