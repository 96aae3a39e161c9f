"""What the proxy of the tests counts, shown on psycopg whose traffic is known."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import generators
from server_waits import until_the_server_waits
from wire_proxy import WireProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Connection = psycopg.AsyncConnection[tuple[Any, ...]]


@pytest.fixture
async def proxy(dsn: str) -> AsyncIterator[WireProxy]:
    """Give a proxy in front of the server."""
    async with WireProxy(dsn) as proxy:
        yield proxy


@pytest.fixture
async def conn(proxy: WireProxy) -> AsyncIterator[Connection]:
    """Give a connection through the proxy, in autocommit."""
    conn = await psycopg.AsyncConnection.connect(proxy.dsn, autocommit=True)
    async with conn:
        yield conn


async def test_one_statement_is_one_round_trip(proxy: WireProxy, conn: Connection) -> None:
    """A statement in autocommit is one round trip, with parameters or without."""
    with proxy.count() as wire:
        await conn.execute("SELECT 1")
    assert (wire.round_trips, wire.statements, wire.texts) == (1, 1, ["SELECT 1"])
    with proxy.count() as wire:
        cursor = await conn.execute("SELECT %s::int", [7])
    assert await cursor.fetchone() == (7,)
    assert (wire.round_trips, wire.statements, wire.texts) == (1, 1, ["SELECT $1::int"])
    assert wire.messages == ["P", "B", "D", "E", "S"]


async def test_a_pipeline_is_one_round_trip(proxy: WireProxy, conn: Connection) -> None:
    """BEGIN, statements and COMMIT in one pipeline are one round trip of n + 2 statements."""
    with proxy.count() as wire:
        async with conn.pipeline():
            for text in ("BEGIN", "SELECT 1", "SELECT 2", "COMMIT"):
                await conn.execute(text)
    assert wire.texts == ["BEGIN", "SELECT 1", "SELECT 2", "COMMIT"]
    assert (wire.round_trips, wire.statements) == (1, 4)


async def test_a_long_pipeline_is_one_round_trip(proxy: WireProxy, conn: Connection) -> None:
    """Answers that the server sends before it has read the whole pipeline start nothing new."""
    with proxy.count() as wire:
        async with conn.pipeline():
            for _ in range(200):
                await conn.execute("SELECT repeat('x', 2000), %s::text", ["y" * 2000])
    assert (wire.round_trips, wire.statements) == (1, 200)


async def test_reading_inside_a_pipeline_is_a_round_trip(
    proxy: WireProxy, conn: Connection
) -> None:
    """Waiting for a result in the middle of a pipeline costs a round trip of its own."""
    with proxy.count() as wire:
        async with conn.pipeline():
            cursor = await conn.execute("SELECT 1")
            await cursor.fetchone()
            await conn.execute("SELECT 2")
    assert (wire.round_trips, wire.statements) == (2, 2)


async def test_a_transaction_block_is_three_round_trips(proxy: WireProxy, conn: Connection) -> None:
    """BEGIN, the statement and COMMIT of `conn.transaction()` each wait for their answer."""
    with proxy.count() as wire:
        async with conn.transaction():
            await conn.execute("SELECT 1")
    assert wire.texts == ["BEGIN", "SELECT 1", "COMMIT"]
    assert (wire.round_trips, wire.statements) == (3, 3)


async def test_prepared_statements_keep_their_text(proxy: WireProxy, conn: Connection) -> None:
    """A prepared statement is counted, and known by its text, each time that it is executed."""
    await conn.execute("SELECT %s::int", [0], prepare=True)
    with proxy.count() as wire:
        for number in (1, 2, 3):
            await conn.execute("SELECT %s::int", [number], prepare=True)
    assert wire.texts == ["SELECT $1::int"] * 3
    assert (wire.round_trips, wire.messages.count("P")) == (3, 0)


async def test_a_failed_statement_is_one_round_trip(proxy: WireProxy, conn: Connection) -> None:
    """An error ends its round trip like any other answer."""
    with proxy.count() as wire:
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1 / %s", [0])
        await conn.execute("SELECT 1")
    assert (wire.round_trips, wire.statements) == (2, 2)


async def test_copy_in_is_two_round_trips(proxy: WireProxy, conn: Connection) -> None:
    """COPY FROM STDIN waits once for leave to send, and once for the end, whatever is sent."""
    await conn.execute("CREATE TEMPORARY TABLE copied (n int)")
    with proxy.count() as wire:
        async with conn.cursor() as cursor, cursor.copy("COPY copied FROM STDIN") as copy:
            for number in range(20_000):
                await copy.write_row([number])
    assert (wire.round_trips, wire.statements) == (2, 1)
    assert "d" in wire.messages
    with proxy.count() as wire:
        cursor = await conn.execute("SELECT count(*) FROM copied")
    assert await cursor.fetchone() == (20_000,)
    assert wire.round_trips == 1


async def test_copy_in_by_the_extended_protocol(proxy: WireProxy, conn: Connection) -> None:
    """The Sync that the server skips while it waits for data is not waited for here either."""
    await conn.execute("CREATE TEMPORARY TABLE copied (n int)")
    with proxy.count() as wire:
        conn.pgconn.send_query_params(b"COPY copied FROM STDIN", [])
        await conn.wait(generators.execute(conn.pgconn))
        await conn.wait(generators.copy_to(conn.pgconn, b"1\n", True))
        await conn.wait(generators.copy_end(conn.pgconn, None))
        cursor = await conn.execute("SELECT n FROM copied")
    assert await cursor.fetchone() == (1,)
    assert wire.messages[:5] == ["P", "B", "D", "E", "S"]
    assert (wire.round_trips, wire.statements) == (3, 2)


async def test_copy_out_is_one_round_trip(proxy: WireProxy, conn: Connection) -> None:
    """COPY TO STDOUT is asked for once and answered once."""
    with proxy.count() as wire:
        async with conn.cursor() as cursor:
            query = "COPY (SELECT generate_series(1, 20000)) TO STDOUT"
            async with cursor.copy(query) as copy:
                rows = [row async for row in copy.rows()]
    assert len(rows) == 20_000
    assert (wire.round_trips, wire.statements) == (1, 1)


async def test_opening_and_closing_are_not_counted(proxy: WireProxy) -> None:
    """A connection that is opened and closed leaves every count at nothing."""
    with proxy.count() as wire:
        async with await psycopg.AsyncConnection.connect(proxy.dsn, autocommit=True):
            pass
    assert (wire.round_trips, wire.statements, wire.messages) == (0, 0, [])


async def test_only_the_block_is_counted(proxy: WireProxy, conn: Connection) -> None:
    """Counts may be nested, and each counts its own block only."""
    with proxy.count() as outer:
        await conn.execute("SELECT 1")
        with proxy.count() as inner:
            await conn.execute("SELECT 2")
        await conn.execute("SELECT 3")
    await conn.execute("SELECT 4")
    assert (outer.round_trips, inner.texts) == (3, ["SELECT 2"])


async def test_notices_are_not_answers(proxy: WireProxy, conn: Connection) -> None:
    """What the server says unasked, such as a notification, is passed on and changes no count."""
    await conn.execute("LISTEN news")
    with proxy.count() as wire:
        await conn.execute("NOTIFY news, 'hello'")
        await conn.execute("DO $$ BEGIN RAISE NOTICE 'hello'; END $$")
    assert (wire.round_trips, wire.statements) == (2, 2)
    assert [notify.payload async for notify in conn.notifies(timeout=5, stop_after=1)] == ["hello"]


async def test_large_values_pass_unchanged(conn: Connection) -> None:
    """Ten megabytes go through, there and back."""
    text = "ä" * 5_000_000
    cursor = await conn.execute("SELECT %s::text", [text])
    assert await cursor.fetchone() == (text,)


async def test_cancelling_goes_through(conn: Connection, dsn: str) -> None:
    """A request to cancel reaches the server, on the connection of its own that it comes by."""
    sleeping = asyncio.create_task(conn.execute("SELECT pg_sleep(60)"))
    await until_the_server_waits(dsn)
    await conn.cancel_safe()
    with pytest.raises(psycopg.errors.QueryCanceled):
        await sleeping


async def test_blocking_clients_work_from_a_thread(proxy: WireProxy) -> None:
    """A synchronous client is counted too, as long as it leaves the loop alone."""

    def ask() -> tuple[Any, ...] | None:
        with psycopg.connect(proxy.dsn, autocommit=True) as conn:
            return conn.execute("SELECT 1").fetchone()

    with proxy.count() as wire:
        assert await asyncio.to_thread(ask) == (1,)
    assert wire.round_trips == 1


async def test_the_end_of_the_proxy_cuts_what_is_open(dsn: str) -> None:
    """Leaving the block of the proxy ends the connections that go through it."""
    async with WireProxy(dsn) as proxy:
        conn = await psycopg.AsyncConnection.connect(proxy.dsn, autocommit=True)
    with pytest.raises(psycopg.OperationalError):
        await conn.execute("SELECT 1")
    await conn.close()


async def test_a_server_that_is_not_there(unused_tcp_port: int) -> None:
    """Without a server behind the proxy the client is turned away, not left waiting."""
    async with WireProxy(f"host=127.0.0.1 port={unused_tcp_port} user=postgres") as proxy:
        with pytest.raises(psycopg.OperationalError):
            await psycopg.AsyncConnection.connect(proxy.dsn)
