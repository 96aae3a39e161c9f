"""A primary goes and its replica takes over, while many tasks write."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import NamedTuple
from uuid import uuid4

import pytest
from failover import fail_over
from histories import whole_history
from postgres_cluster import Cluster, Server
from psycopg.conninfo import conninfo_to_dict
from store_fixtures import turn
from wire_proxy import WireProxy

from conversation_store import (
    ConversationRecord,
    ConversationStore,
    ConversationStoreError,
    Message,
    Retry,
    StoreUnavailable,
    append_messages,
    close_conversation,
    get_conversation,
    import_conversations,
    start_conversation,
)

ID_BLOCK = 4
LOGGED_AHEAD = 32
"""Values of a sequence that PostgreSQL notes at a time in its log, ahead of their use."""


class Pair(NamedTuple):
    """A primary, and a replica that it does not wait for."""

    primary: Server
    replica: Server

    def catch_up(self) -> bool:
        """Return whether the replica has all that the primary has."""
        with self.primary.connect() as connection:
            row = connection.execute(
                "SELECT replay_lsn = pg_current_wal_lsn() FROM pg_stat_replication"
            ).fetchone()
            return row == (True,)


@pytest.fixture(scope="module")
def standby() -> Iterator[Pair]:
    """Give a primary with an asynchronous replica; both go on to run."""
    with a_pair() as pair:
        yield pair


@contextmanager
def a_pair() -> Iterator[Pair]:
    """Start a primary with an asynchronous replica."""
    with Cluster() as cluster:
        primary = cluster.new_server()
        primary.start()
        replica = cluster.replica_of(primary)
        replica.start()
        yield Pair(primary, replica)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the condition."""
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.02)


async def new_conversation(store: ConversationStore) -> int:
    """Migrate, and start a conversation."""
    await store.migrate(id_block=ID_BLOCK)
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id="ada", session_id=uuid4().hex, drafts=turn(0)
    )
    return conversation.id


async def append(store: ConversationStore, conversation_id: int, number: int) -> list[Message]:
    """Append the turn of this number."""
    return await append_messages(
        store.unit_of_work(), conversation_id=conversation_id, drafts=turn(number)
    )


async def test_failing_over_to_a_synchronous_replica_loses_and_doubles_nothing() -> None:
    """Every unit that was acknowledged before the kill is on the replica, once."""
    run = await fail_over(1)

    assert run.violations == []
    assert run.after >= 200


async def test_a_standby_serves_reads_and_refuses_writes(standby: Pair) -> None:
    """The refusal is StoreUnavailable, whether ids are there already or not."""
    async with ConversationStore.connect(standby.primary.dsn) as store:
        conversation_id = await new_conversation(store)
    await until(standby.catch_up)

    once = Retry(attempts=1)
    async with ConversationStore.connect(standby.replica.dsn, retry=once) as store:
        found = await get_conversation(store.unit_of_work(), conversation_id=conversation_id)
        with pytest.raises(StoreUnavailable) as no_ids:
            await append(store, conversation_id, 1)
        with pytest.raises(StoreUnavailable) as refused:
            await close_conversation(store.unit_of_work(), conversation_id=conversation_id)

    assert found.message_count == 2
    assert [no_ids.value.sqlstate, refused.value.sqlstate] == ["25006", "25006"]


async def read_and_append(store: ConversationStore, conversation_id: int) -> None:
    """Write in a transaction that stays open."""
    async with store.unit_of_work() as uow:
        uow.messages.append(conversation_id, turn(2))
        await uow.conversations.get(conversation_id)


async def bring_in(store: ConversationStore, conversation_id: int) -> None:
    """Import a conversation."""
    record: ConversationRecord = {"user_id": "ada", "session_id": uuid4().hex, "messages": []}
    await import_conversations(store.unit_of_work(), records=[record])


WRITES: dict[str, Callable[[ConversationStore, int], Awaitable[object]]] = {
    "append": lambda store, id_: append(store, id_, 2),
    "close": lambda store, id_: close_conversation(store.unit_of_work(), conversation_id=id_),
    "read and append": read_and_append,
    "import": bring_in,
}


@pytest.mark.parametrize("has_ids", [False, True])
@pytest.mark.parametrize("name", WRITES)
async def test_connections_to_a_standby_are_not_kept(
    standby: Pair, name: str, has_ids: bool
) -> None:
    """An address leads to a standby, and then to the primary: writes get there soon."""
    once = Retry(attempts=1)
    async with (
        WireProxy(standby.primary.dsn) as address,
        ConversationStore.connect(address.dsn, min_size=1, max_size=2, retry=once) as store,
    ):
        conversation_id = await new_conversation(store)
        await until(standby.catch_up)
        if not has_ids:
            store._adapter._ids.forget()  # type: ignore[attr-defined]
        pool = store._adapter._pool  # type: ignore[attr-defined]
        address.upstream = conninfo_to_dict(standby.replica.dsn)
        for connection in list(address.connections):
            connection.cut()
            await connection.ended.wait()
        made = pool.get_stats()["connections_num"]
        refused = 0
        async with asyncio.timeout(20):
            while True:
                try:
                    await WRITES[name](store, conversation_id)
                    break
                except StoreUnavailable as error:
                    refused += error.sqlstate == "25006"
                if refused == 3:
                    address.upstream = conninfo_to_dict(standby.primary.dsn)
                await asyncio.sleep(0.02)

        assert refused >= 3
        assert pool.get_stats()["connections_num"] - made >= refused


async def test_what_failing_over_to_an_asynchronous_replica_does_not_promise() -> None:
    """Acknowledged turns may be lost. But none is doubled, and none is taken for another.

    The new primary gives ids again that the store holds, even those of a unit whose answer was
    lost with the old one, and another writer has used them in the same conversation.
    """
    async with AsyncExitStack() as stack:
        pair = stack.enter_context(a_pair())
        address = await stack.enter_async_context(WireProxy(pair.primary.dsn))
        store = await stack.enter_async_context(ConversationStore.connect(address.dsn))
        conversation_id = await new_conversation(store)
        await until(pair.catch_up)
        await asyncio.to_thread(pair.replica.stop)

        acknowledged: list[Message] = []
        for number in range(1, LOGGED_AHEAD * ID_BLOCK):
            acknowledged += await append(store, conversation_id, number)
        newest = acknowledged[-1].id
        blocker, watcher = pair.primary.connect(), pair.primary.connect()
        blocker.execute("BEGIN; LOCK operational.ai_conversations")
        unanswered = asyncio.create_task(append(store, conversation_id, 10_000))
        waiting = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        await until(lambda: watcher.execute(waiting).fetchone() is not None)
        await asyncio.to_thread(pair.primary.kill)
        blocker.close()
        watcher.close()
        await asyncio.to_thread(pair.replica.start)
        await asyncio.to_thread(pair.replica.promote)

        told: list[Message] = []
        async with ConversationStore.connect(pair.replica.dsn) as other:
            while not told or told[-1].id <= newest + ID_BLOCK:
                told += await append(other, conversation_id, 20_000 + len(told))
        given_again = {message.id for message in told} & {newest + 1, newest + 2}
        address.upstream = conninfo_to_dict(pair.replica.dsn)
        try:
            told += await unanswered
        except ConversationStoreError as error:
            assert error.retryable
        for number in range(30_000, 30_005):
            told += await append(store, conversation_id, number)
        history = await whole_history(store, conversation_id)

    assert len(given_again) == 2
    lost = {message.content for message in acknowledged}
    assert not lost & {message.content for message in history}
    assert history[2:] == told
    assert [message.position for message in history] == list(range(1, len(history) + 1))
    assert len({message.content for message in history}) == len(history)
