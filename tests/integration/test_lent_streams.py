"""Exports on a connection of the host's that are abandoned, while the host goes on using it."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Final

import psycopg
import pytest
from interruption import Moments
from psycopg import AsyncConnection
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool
from pulse import within
from store_fixtures import draft
from wire_proxy import WireProxy

from conversation_store import (
    ConversationStore,
    StoreUnavailable,
    append_messages,
    export_conversations,
    find_conversation,
    latest_messages,
    start_conversation,
)
from conversation_store.adapters.postgres import stream

Connection = AsyncConnection[Any]
Use = Callable[[ConversationStore, Connection], Awaitable[None]]


@pytest.fixture
async def store(postgres: ConversationStore, monkeypatch: pytest.MonkeyPatch) -> ConversationStore:
    """Give a store with two conversations, each of more than one chunk."""
    monkeypatch.setattr(stream, "CHUNK", 20)
    for session_id in "st":
        await start_conversation(
            postgres.unit_of_work(), user_id="u", session_id=session_id, drafts=[draft("said")] * 50
        )
    return postgres


@pytest.fixture(params=[False, True], ids=["transactional", "autocommit"])
async def lent(request: pytest.FixtureRequest, dsn: str) -> AsyncIterator[Connection]:
    """Give a connection of the host's."""
    async with await AsyncConnection.connect(dsn, autocommit=request.param) as connection:
        yield connection
        assert connection.autocommit is request.param
        assert not connection.closed


async def is_left_alone(connection: Connection) -> None:
    """Assert that what was abandoned on a connection ends soon, and leaves nothing open."""
    async with asyncio.timeout(10):
        while connection.info.transaction_status is not TransactionStatus.IDLE:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
    assert connection.info.transaction_status is TransactionStatus.IDLE


async def said(store: ConversationStore) -> str:
    """Return what was said last."""
    conversation = await find_conversation(store.unit_of_work(), user_id="u", session_id="s")
    assert conversation is not None
    [last] = await latest_messages(store.unit_of_work(), conversation_id=conversation.id, limit=1)
    return last.content


async def append(store: ConversationStore, connection: Connection, *, interactive: bool) -> None:
    """Say something more, as a unit on the connection."""
    conversation = await find_conversation(store.unit_of_work(), user_id="u", session_id="s")
    assert conversation is not None
    uow = store.unit_of_work(connection=connection)
    async with uow:
        await append_messages(uow, conversation_id=conversation.id, drafts=[draft("more")])
        if interactive:
            await uow.connection()
            await asyncio.sleep(0.05)
            await append_messages(uow, conversation_id=conversation.id, drafts=[draft("more")])
    assert await said(store) == "more"


async def _selects(_: ConversationStore, connection: Connection) -> None:
    for _number in range(3):
        await connection.execute("SELECT 1")
    await connection.rollback()


async def _sleeps(_: ConversationStore, connection: Connection) -> None:
    await connection.execute("SELECT pg_sleep(0.1)")
    await connection.commit()


async def _commits(_: ConversationStore, connection: Connection) -> None:
    await connection.commit()
    await connection.execute("SELECT 1")
    await connection.commit()


async def _begins(_: ConversationStore, connection: Connection) -> None:
    async with connection.transaction():
        await connection.execute("SELECT 1")
        await asyncio.sleep(0.05)
        async with connection.transaction():
            await connection.execute("SELECT 1")


async def _pipelines(_: ConversationStore, connection: Connection) -> None:
    async with connection.pipeline():
        await connection.execute("SELECT 1")
        await asyncio.sleep(0.05)
        await connection.execute("SELECT 1")
    await connection.commit()


async def _copies(_: ConversationStore, connection: Connection) -> None:
    text = "COPY (SELECT generate_series(1, 2000)) TO STDOUT"
    count = 0
    async with connection.cursor() as cursor, cursor.copy(text) as copy:
        async for _row in copy.rows():
            if not count:
                await asyncio.sleep(0.05)
            count += 1
    assert count == 2_000
    await connection.commit()


async def _streams(_: ConversationStore, connection: Connection) -> None:
    async with connection.cursor() as cursor:
        async for number, _row in _numbered(cursor.stream("SELECT generate_series(1, 100)")):
            if not number:
                await asyncio.sleep(0.05)
    await connection.commit()


async def _numbered(rows: AsyncIterator[Any]) -> AsyncGenerator[tuple[int, Any]]:
    number = 0
    async for row in rows:
        yield number, row
        number += 1


async def _fails(_: ConversationStore, connection: Connection) -> None:
    with pytest.raises(psycopg.errors.DivisionByZero):
        await connection.execute("SELECT 1 / 0")
    await connection.rollback()
    await connection.execute("SELECT 1")
    await connection.rollback()


async def _appends(store: ConversationStore, connection: Connection) -> None:
    await append(store, connection, interactive=False)


async def _works_on(store: ConversationStore, connection: Connection) -> None:
    await append(store, connection, interactive=True)


async def _exports(store: ConversationStore, connection: Connection) -> None:
    records = [one async for one in export_conversations(store.unit_of_work(connection=connection))]
    assert [len(one["messages"]) for one in records] == [50, 50]


async def _abandons_another(store: ConversationStore, connection: Connection) -> None:
    async for _ in export_conversations(store.unit_of_work(connection=connection)):
        break


HOSTS_OWN: Final = [
    _selects, _sleeps, _commits, _begins, _pipelines, _copies, _streams, _fails,
]  # fmt: skip
UNITS: Final = [_appends, _works_on, _exports, _abandons_another]


def named(use: Use) -> str:
    """Return the name of a use."""
    return use.__name__.strip("_")


@pytest.mark.parametrize("use", [*HOSTS_OWN, *UNITS], ids=named)
async def test_the_host_goes_on_at_once(
    store: ConversationStore, lent: Connection, use: Use
) -> None:
    """After a break its connection is as it was, whatever it does next; without waiting a turn."""
    for _ in range(3):
        async for _record in export_conversations(store.unit_of_work(connection=lent)):
            break
        await use(store, lent)
        await is_left_alone(lent)


@pytest.mark.parametrize("use", HOSTS_OWN, ids=named)
async def test_an_export_that_is_closed_later(
    store: ConversationStore, lent: Connection, use: Use
) -> None:
    """Closed by the event loop while the host is at work, it waits for its turn."""

    async def wrapped() -> AsyncGenerator[Any]:
        async for record in export_conversations(store.unit_of_work(connection=lent)):
            yield record

    for _ in range(3):
        async for _record in wrapped():
            break
        await use(store, lent)
        await is_left_alone(lent)


async def test_an_export_that_is_collected_inside_the_hosts_transaction(
    store: ConversationStore, lent: Connection, dsn: str
) -> None:
    """What the host began inside ends first, and is stored."""
    await lent.execute("CREATE TABLE IF NOT EXISTS host_notes (what text)")
    await lent.commit()
    records: list[Any] = [export_conversations(store.unit_of_work(connection=lent))]
    records.append(records)  # which only the garbage collector ends
    await anext(records[0])
    async with lent.transaction():
        await lent.execute("INSERT INTO host_notes VALUES ('one')")
        del records
        gc.collect()
        await asyncio.sleep(0.1)
        await lent.execute("INSERT INTO host_notes VALUES ('two')")
    await is_left_alone(lent)
    async with await AsyncConnection.connect(dsn, autocommit=True) as other:
        cursor = await other.execute("SELECT what FROM host_notes")
        assert await cursor.fetchall() == [("one",), ("two",)]
        await other.execute("DROP TABLE host_notes")


async def test_an_export_that_is_closed_inside_the_hosts_transaction(
    store: ConversationStore, lent: Connection
) -> None:
    """Closing it does not wait for what the same task is to end."""
    async with within(1):
        records = export_conversations(store.unit_of_work(connection=lent))
        await anext(records)
        async with lent.transaction():
            await records.aclose()
            await lent.execute("SELECT 1")
    await is_left_alone(lent)


async def test_an_export_that_is_closed_when_another_was_begun(
    store: ConversationStore, lent: Connection
) -> None:
    """Where the host has ended the transaction of the one, the other has one of its own."""
    one = export_conversations(store.unit_of_work(connection=lent))
    await anext(one)
    await lent.commit()
    async with aclosing(export_conversations(store.unit_of_work(connection=lent))) as other:
        await anext(other)
        await one.aclose()
        await asyncio.sleep(0.05)
        assert [len(record["messages"]) async for record in other] == [50]
    await is_left_alone(lent)


async def test_an_export_that_is_closed_in_order(
    store: ConversationStore, lent: Connection
) -> None:
    """With aclosing nothing is left to wait for."""
    uow = store.unit_of_work(connection=lent)
    async with aclosing(export_conversations(uow)) as records:
        async for _ in records:
            break
    assert lent.info.transaction_status is TransactionStatus.IDLE


@pytest.mark.parametrize("how", ["cancelled", "closed"])
async def test_an_export_that_cannot_be_ended(store: ConversationStore, dsn: str, how: str) -> None:
    """Where the server does not answer, its connection is ended in time; the host learns of it."""
    async with (
        WireProxy(dsn) as proxy,
        await AsyncConnection.connect(proxy.dsn) as lent,
    ):
        records = export_conversations(store.unit_of_work(connection=lent))
        await anext(records)
        proxy.swallow()
        async with within(4 if how == "closed" else 1):
            if how == "closed":
                with pytest.raises(StoreUnavailable):
                    await records.aclose()
            else:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.05):
                        [_ async for _ in records]
        with pytest.raises(psycopg.OperationalError):
            await lent.execute("SELECT 1")
        proxy.restore()


async def test_who_reads_and_waits_is_cancelled(store: ConversationStore, dsn: str) -> None:
    """However often, and whenever: who is given the connection next can use it."""
    moments = Moments("who reads and waits")
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:

        async def read_a_little() -> None:
            async with pool.connection() as connection:
                async for _ in export_conversations(store.unit_of_work(connection=connection)):
                    break
                await connection.execute("SELECT 1")

        for _ in range(60):
            task = asyncio.create_task(read_a_little())
            await asyncio.sleep(moments.draw())
            moments.tell(had_ended=task.done())
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or task.exception() is None
        async with pool.connection() as connection:
            await is_left_alone(connection)
            assert not connection.autocommit


async def test_on_our_own_pool_an_abandoned_export_gives_its_connection_back(
    dsn: str, store: ConversationStore
) -> None:
    """Clean, by another task than the one that read it."""
    uow = store.unit_of_work()
    for _ in range(20):  # more than there are connections
        async for _record in export_conversations(uow):
            break
        assert await find_conversation(uow, user_id="u", session_id="s") is not None
    async with await AsyncConnection.connect(dsn, autocommit=True) as connection:
        async with asyncio.timeout(10):
            while await _in_transaction(connection):
                await asyncio.sleep(0.01)


async def _in_transaction(connection: Connection) -> bool:
    cursor = await connection.execute(
        "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction'"
        " AND datname = current_database() AND query LIKE '%conversation_store_%'"
    )
    return await cursor.fetchone() is not None
