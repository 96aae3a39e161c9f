"""With a synchronous replica, what is acknowledged is there: also what was asked for again.

A server process that is ended while its commit waits for the replica has committed here, and
perhaps not there. The store sends the unit again and finds it stored. It may say so only when it
is stored on the replica as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import psycopg
import pytest
from failover import synchronous_pair
from late_proxy import LateProxy
from postgres_cluster import Cluster, Server
from store_fixtures import turn

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    ConversationStore,
    ErasureReceipt,
    Outcome,
    Retry,
    StoreTimeout,
    append_messages,
    close_conversation,
    delete_conversation,
    erase_user,
    get_or_start_conversation,
    start_conversation,
)

WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


class Pair(NamedTuple):
    """A primary, and the replica that it waits for."""

    primary: Server
    replica: Server


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Give a primary with a synchronous replica."""
    with Cluster() as cluster:
        yield Pair(*synchronous_pair(cluster))


@pytest.fixture
async def store(pair: Pair) -> AsyncIterator[ConversationStore]:
    """Give a store on the primary that has drawn its ids."""
    async with ConversationStore.connect(pair.primary.dsn) as store:
        await store.migrate()
        await start_conversation(
            store.unit_of_work(), user_id="first", session_id=uuid4().hex, drafts=turn(0)
        )
        yield store


async def waiting_backend(primary: Server, task: asyncio.Task[Any]) -> int | None:
    """Return a process that waits for the replica; None if the task ends before there is one."""
    async with asyncio.timeout(20):
        while not task.done():
            with primary.connect() as connection:
                if row := connection.execute(WAITING).fetchone():
                    return int(row[0])
            await asyncio.sleep(0.02)
    return None


async def replay(replica: psycopg.Connection[Any]) -> None:
    """Wait until what a replica has by now can be read there; it was acknowledged before that."""
    received = replica.execute("SELECT pg_last_wal_receive_lsn()").fetchone()
    is_read = "SELECT pg_last_wal_replay_lsn() >= %s"
    async with asyncio.timeout(20):
        while replica.execute(is_read, received).fetchone() != (True,):
            await asyncio.sleep(0.02)


Work = Callable[[ConversationStore, int], Awaitable[Any]]
WRITES: dict[str, tuple[Work, str]] = {
    "append": (
        lambda store, id_: append_messages(
            store.unit_of_work(), conversation_id=id_, drafts=turn(1)
        ),
        "SELECT count(*) = 2 FROM operational.ai_messages WHERE conversation_id = %(id)s",
    ),
    "append with request_id": (
        lambda store, id_: append_messages(
            store.unit_of_work(), conversation_id=id_, drafts=turn(1), request_id="r"
        ),
        "SELECT count(*) = 2 FROM operational.ai_messages WHERE conversation_id = %(id)s",
    ),
    "get_or_start": (
        lambda store, _: get_or_start_conversation(
            store.unit_of_work(), user_id="ada", session_id="new"
        ),
        "SELECT count(*) = 1 FROM operational.ai_conversations WHERE session_id = 'new'",
    ),
    "start": (
        lambda store, _: start_conversation(
            store.unit_of_work(), user_id="ada", session_id="other", drafts=turn(1)
        ),
        "SELECT count(*) = 1 FROM operational.ai_conversations WHERE session_id = 'other'",
    ),
    "close": (
        lambda store, id_: close_conversation(store.unit_of_work(), conversation_id=id_),
        "SELECT status = 'closed' FROM operational.ai_conversations WHERE id = %(id)s",
    ),
    "delete": (
        lambda store, id_: delete_conversation(store.unit_of_work(), conversation_id=id_),
        "SELECT count(*) = 0 FROM operational.ai_conversations WHERE id = %(id)s",
    ),
}


async def _went(removal: Awaitable[ErasureReceipt]) -> tuple[int, int]:
    receipt = await removal
    return receipt.conversations, receipt.messages


REQUESTS: dict[str, Callable[[ConversationStore, int], Awaitable[Any]]] = {
    "append": WRITES["append with request_id"][0],
    "start": lambda store, _: start_conversation(
        store.unit_of_work(), user_id="eve", session_id="one", drafts=turn(1), request_id="r"
    ),
    "get_or_start": lambda store, _: get_or_start_conversation(
        store.unit_of_work(), user_id="eve", session_id="two", drafts=turn(1), request_id="r"
    ),
    "delete": lambda store, id_: _went(
        delete_conversation(store.unit_of_work(), conversation_id=id_)
    ),
    "erase": lambda store, _: _went(erase_user(store.unit_of_work(), user_id="eve")),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_repeated_request_is_acknowledged_when_the_replica_has_it(
    pair: Pair, store: ConversationStore, name: str
) -> None:
    """The host gave up waiting for the replica, and sends its request again: it waits again."""
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id="eve", session_id=f"for {name}"
    )

    def send() -> asyncio.Task[Any]:
        return asyncio.ensure_future(REQUESTS[name](store, conversation.id))

    await asyncio.to_thread(pair.replica.stop)
    try:
        first = send()
        given_up = await waiting_backend(pair.primary, first)
        first.cancel()
        await asyncio.wait([first])
        second = send()
        repeated = await waiting_backend(pair.primary, second)
    finally:
        await asyncio.to_thread(pair.replica.start)
    answer = await second
    assert given_up is not None
    assert repeated is not None, "acknowledged, and the replica was away"
    assert answer == await send()


@pytest.mark.parametrize("name", WRITES)
async def test_what_is_asked_for_again_is_acknowledged_when_the_replica_has_it(
    pair: Pair, store: ConversationStore, name: str
) -> None:
    """The replica is away; the process that waits for it is ended; the answer comes with it."""
    write, is_stored = WRITES[name]
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id="ada", session_id=name, drafts=[]
    )
    await asyncio.to_thread(pair.replica.stop)
    try:
        task = asyncio.ensure_future(write(store, conversation.id))
        first = await waiting_backend(pair.primary, task)
        with pair.primary.connect() as connection:
            connection.execute("SELECT pg_terminate_backend(%s)", [first])
            while connection.execute(f"{WAITING} AND pid = %s", [first]).fetchone():
                await asyncio.sleep(0.02)
        second = await waiting_backend(pair.primary, task)
    finally:
        await asyncio.to_thread(pair.replica.start)
    await task

    assert first is not None
    assert second is not None, "acknowledged, and the replica was away"
    with pair.replica.connect() as connection:
        await replay(connection)
        assert connection.execute(is_stored, {"id": conversation.id}).fetchone() == (True,)


async def test_what_the_replica_lacks_at_the_deadline_is_unknown(pair: Pair) -> None:
    """A commit that is cancelled while it waits for the replica is reported as a success."""
    retry = Retry(deadline=1.0)
    async with (
        LateProxy(pair.primary.dsn) as proxy,
        ConversationStore.connect(proxy.dsn, retry=retry) as store,
    ):
        await store.migrate()
        conversation, _ = await start_conversation(
            store.unit_of_work(), user_id="ada", session_id="deadline"
        )
        uow = store.unit_of_work()
        await asyncio.to_thread(pair.replica.stop)
        try:
            proxy.keep()
            with pytest.raises(CommitOutcomeUnknown) as caught:
                await append_messages(uow, conversation_id=conversation.id, drafts=turn(1))
            await proxy.forget()
        finally:
            await asyncio.to_thread(pair.replica.start)
    assert isinstance(caught.value.tried[-1], StoreTimeout)
    assert uow.outcome is Outcome.UNKNOWN


async def one_write(uow: AsyncUnitOfWork, conversation_id: int) -> None:
    """Send one statement."""
    await append_messages(uow, conversation_id=conversation_id, drafts=turn(1))


async def two_writes(uow: AsyncUnitOfWork, conversation_id: int) -> None:
    """Send a transaction in one flush."""
    async with uow:
        for number in range(2):
            uow.messages.append(conversation_id, turn(number))


async def a_read_and_a_write(uow: AsyncUnitOfWork, conversation_id: int) -> None:
    """Send a COMMIT by itself."""
    async with uow:
        uow.messages.append(conversation_id, turn(1))
        await uow.conversations.get(conversation_id)


@pytest.mark.parametrize("write", [one_write, two_writes, a_read_and_a_write])
@pytest.mark.parametrize("together", [False, True])
async def test_what_is_cancelled_while_it_waits_for_the_replica_is_unknown(
    pair: Pair,
    write: Callable[[AsyncUnitOfWork, int], Coroutine[Any, Any, None]],
    together: bool,
) -> None:
    """The server then says that it is committed, and warns: here, and perhaps not there."""
    async with ConversationStore.connect(pair.primary.dsn, coalesce=together) as store:
        await store.migrate()
        started = [
            await start_conversation(
                store.unit_of_work(), user_id="cancelled", session_id=uuid4().hex, drafts=[]
            )
            for _ in range(4)
        ]
        await asyncio.to_thread(pair.replica.stop)
        try:
            units = [store.unit_of_work() for _ in started]
            tasks = [
                asyncio.create_task(write(uow, conversation.id))
                for uow, (conversation, _) in zip(units, started, strict=True)
            ]
            assert await waiting_backend(pair.primary, tasks[0]) is not None
            await asyncio.sleep(0.2)  # the others wait too
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        finally:
            await asyncio.to_thread(pair.replica.start)

    assert all(task.cancelled() for task in tasks)
    assert Outcome.COMMITTED not in {uow.outcome for uow in units}
    assert units[0].outcome is Outcome.UNKNOWN
