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
