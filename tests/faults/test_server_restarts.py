"""The server is killed with -9 and started again on its data, while many tasks write.

Nothing that was acknowledged may be missing or be there twice, nothing that failed may be there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack

import pytest
from ledger import APPLICATION, Ledger, left_in_transaction
from load import Load
from postgres_cluster import Cluster, Server

from conversation_store import ConversationStore


@pytest.fixture(scope="module")
def durable_server() -> Iterator[Server]:
    """Give a server of our own, with durable commits."""
    with Cluster() as cluster:
        server = cluster.new_server()
        server.start()
        yield server


def the_whole_server(server: Server) -> None:
    """End all its processes at once, and start it again."""
    server.kill()
    server.start()


def the_postmaster(server: Server) -> None:
    """End the postmaster alone, and start it again when the others have noticed."""
    server.kill_postmaster()
    server.start()


def one_backend(server: Server) -> None:
    """End a process that serves us: the server throws all others out, and recovers by itself."""
    server.kill_backend(APPLICATION)


@pytest.mark.parametrize("killed", [the_whole_server, the_postmaster, one_backend])
async def test_a_server_that_is_killed_and_comes_back_loses_and_doubles_nothing(
    durable_server: Server, killed: Callable[[Server], None]
) -> None:
    """16 tasks of two stores write, one of them with group commit; twice the server is killed."""
    schema = killed.__name__
    ledger = Ledger(durable_server.dsn, schema)
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(
                ConversationStore.connect(durable_server.dsn, schema=schema, coalesce=coalesce)
            )
            for coalesce in (False, True)
        ]
        await stores[0].migrate()
        async with Load(stores, ledger) as load:
            for _ in range(2):
                await load.acknowledge(200)
                await asyncio.to_thread(killed, durable_server)
                await load.acknowledge(100)

        assert load.surprises == []
        assert await left_in_transaction(durable_server.dsn) == []
        for store in stores:
            await store.ping()
    assert ledger.violations() == []
