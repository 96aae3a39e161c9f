"""What the server gives up is tried again: on another connection, with the same ids, as a whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from store_fixtures import draft, open_store, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConversationStore,
    Message,
    Outcome,
    Retry,
    StoreUnavailable,
    TransactionAborted,
    append_messages,
    get_conversation,
    messages_after,
    start_conversation,
)


@pytest.fixture
async def narrow(dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    """Give a store with a single connection."""
    async with open_store(dsn, "operational", migrated, min_size=1, max_size=1) as store:
        yield store


async def start(store: ConversationStore) -> int:
    """Start a conversation."""
    started, _ = await start_conversation(store.unit_of_work(), user_id="u", session_id="s")
    return started.id


async def contents(store: ConversationStore, conversation: int) -> list[str]:
    """Return what was said in a conversation."""
    messages = await messages_after(store.unit_of_work(), conversation_id=conversation, position=0)
    return [message.content for message in messages]


async def make_read_only(store: ConversationStore) -> int:
    """Make the pool's connection take no writes, as one to a standby; return its process."""
    adapter: Any = store
    async with adapter._adapter._pool.connection() as connection:
        await connection.execute("SET default_transaction_read_only = on")
        process: int = connection.info.backend_pid
    return process


@pytest.mark.parametrize("writes", [1, 2])
async def test_a_connection_that_takes_no_writes_is_not_used_again(
    narrow: ConversationStore, writes: int
) -> None:
    """After a failover it leads to a standby: the next connection may lead to the primary."""
    chat = await start(narrow)
    process = await make_read_only(narrow)
    async with narrow.unit_of_work() as uow:
        for number in range(writes):
            uow.messages.append(chat, [draft(f"{number}")])
    assert await contents(narrow, chat) == [f"{number}" for number in range(writes)]
    adapter: Any = narrow
    async with adapter._adapter._pool.connection() as connection:
        assert connection.info.backend_pid != process


async def test_an_interactive_unit_meets_a_standby(narrow: ConversationStore) -> None:
    """It fails, nothing stored; `run` does it again on another connection."""
    chat = await start(narrow)
    await make_read_only(narrow)
    with pytest.raises(StoreUnavailable) as caught:
        async with narrow.unit_of_work() as uow:
            await uow.messages.append(chat, turn(1))
    assert caught.value.sqlstate == "25006"
    assert uow.outcome is Outcome.ROLLED_BACK
    await make_read_only(narrow)

    async def work(uow: AsyncUnitOfWork) -> list[Message]:
        return await uow.messages.append(chat, turn(2))

    assert [message.position for message in await narrow.run(work)] == [1, 2]


async def test_a_flush_of_many_meets_a_standby(dsn: str, migrated: set[str]) -> None:
    """Each turn of it is stored all the same."""
    opened = open_store(dsn, "operational", migrated, min_size=1, max_size=1, coalesce=True)
    async with opened as store:
        chat = await start(store)
        group: Any = store
        group._adapter._group_commit._go_together = lambda _: True
        await make_read_only(store)
        [message] = await append_messages(
            store.unit_of_work(), conversation_id=chat, drafts=[draft("a")]
        )
        assert message.position == 1


async def test_a_lent_connection_to_a_standby_stays_the_host_s(
    narrow: ConversationStore, dsn: str
) -> None:
    """It is neither closed nor tried again: there is no other."""
    chat = await start(narrow)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(StoreUnavailable) as caught:
            await append_messages(
                narrow.unit_of_work(connection=connection), conversation_id=chat, drafts=turn(1)
            )
        assert caught.value.tried == ()
        found = await get_conversation(
            narrow.unit_of_work(connection=connection), conversation_id=chat
        )
        assert found.message_count == 0


RAISE = "DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{}'; END $$"


@pytest.mark.parametrize("state", ["40001", "40P01"])
async def test_sql_of_the_host_that_is_given_up_is_done_again(
    narrow: ConversationStore, state: str
) -> None:
    """The unit is done again as a whole, the host's statements with it."""
    chat = await start(narrow)
    tries: list[int] = []

    async def work(uow: AsyncUnitOfWork) -> None:
        tries.append(1)
        await uow.messages.append(chat, [draft(f"try {len(tries)}")])
        if len(tries) < 3:
            await (await uow.connection()).execute(RAISE.format(state).encode())

    await narrow.run(work)
    assert await contents(narrow, chat) == ["try 3"]


async def test_sql_of_the_host_that_is_given_up_for_good(dsn: str, migrated: set[str]) -> None:
    """It is the store's error, from the driver's."""
    retry = Retry(attempts=2)
    async with open_store(dsn, "operational", migrated, retry=retry) as store:

        async def work(uow: AsyncUnitOfWork) -> None:
            await (await uow.connection()).execute(RAISE.format("40001").encode())

        with pytest.raises(TransactionAborted) as caught:
            await store.run(work)
        assert isinstance(caught.value.__cause__, psycopg.errors.SerializationFailure)
        assert len(caught.value.tried) == 1


async def test_other_errors_of_the_host_s_sql_go_on_as_they_are(
    narrow: ConversationStore,
) -> None:
    """They are the host's to handle."""

    async def work(uow: AsyncUnitOfWork) -> None:
        await (await uow.connection()).execute("SELECT 1 / 0")

    with pytest.raises(psycopg.errors.DivisionByZero):
        await narrow.run(work)


async def test_a_connection_that_ends_in_the_middle(narrow: ConversationStore, dsn: str) -> None:
    """Before the COMMIT was sent nothing is stored: the unit is done again."""
    chat = await start(narrow)
    tries: list[int] = []

    async def work(uow: AsyncUnitOfWork) -> list[Message]:
        tries.append(1)
        await uow.messages.append(chat, [draft(f"try {len(tries)}")])
        connection = await uow.connection()
        if len(tries) == 1:
            async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as other:
                await other.execute(
                    "SELECT pg_terminate_backend(%s, 5000)", [connection.info.backend_pid]
                )
        return await uow.messages.append(chat, [draft("the rest")])

    await narrow.run(work)
    assert await contents(narrow, chat) == ["try 2", "the rest"]


async def test_a_unit_committed_by_the_host_is_not_done_again(
    narrow: ConversationStore,
) -> None:
    """What may be stored is not stored twice, whatever comes after it."""
    chat = await start(narrow)
    tries: list[int] = []

    async def work(uow: AsyncUnitOfWork) -> None:
        tries.append(1)
        await uow.messages.append(chat, turn(1))
        connection = await uow.connection()
        await connection.execute("COMMIT")
        await connection.execute(RAISE.format("40001").encode())

    with pytest.raises(psycopg.errors.SerializationFailure):
        await narrow.run(work)
    assert len(tries) == 1
    assert await contents(narrow, chat) == ["question 1", "answer 1"]


async def test_what_may_be_stored_is_not_done_again(narrow: ConversationStore) -> None:
    """SQL of the host's that ended the transaction, which it may not, may have stored it."""
    chat = await start(narrow)

    async def work(uow: AsyncUnitOfWork) -> None:
        await uow.messages.append(chat, turn(1))
        await (await uow.connection()).execute("COMMIT")
        raise TransactionAborted(reason="for the test")

    with pytest.raises(TransactionAborted):
        await narrow.run(work)
    assert await contents(narrow, chat) == ["question 1", "answer 1"]
