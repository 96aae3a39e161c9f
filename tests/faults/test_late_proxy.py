"""What the proxy hits that loses answers and keeps statements, and what it does not."""

from __future__ import annotations

import psycopg
import pytest
from late_proxy import LateProxy


@pytest.mark.parametrize("way", ["lose", "keep"])
async def test_a_connection_that_is_opened_meanwhile_is_not_hit(dsn: str, way: str) -> None:
    """A pool opens one whenever it likes: what is lost or kept is a statement."""
    connect = psycopg.AsyncConnection.connect
    async with LateProxy(dsn) as proxy, await connect(proxy.dsn, autocommit=True) as used:
        getattr(proxy, way)()
        async with await connect(proxy.dsn, autocommit=True) as other:
            with pytest.raises(psycopg.OperationalError):
                await used.execute("SELECT 1")
            await other.execute("SELECT 1")
        if way == "keep":
            await proxy.forget()


async def test_what_is_delivered_late_was_carried_out(dsn: str) -> None:
    """However long the server takes: who delivered it may look for it."""
    connect = psycopg.AsyncConnection.connect
    slowly = "INSERT INTO delivered SELECT %s::int FROM pg_sleep(0.2)"
    async with LateProxy(dsn) as proxy, await connect(dsn, autocommit=True) as beside:
        await beside.execute("CREATE TABLE delivered (number int)")
        async with await connect(proxy.dsn, autocommit=True) as used:
            proxy.keep()
            with pytest.raises(psycopg.OperationalError):
                await used.execute(slowly, [7])
        await proxy.deliver()
        cursor = await beside.execute("SELECT number FROM delivered")
        assert await cursor.fetchall() == [(7,)]
        await beside.execute("DROP TABLE delivered")
