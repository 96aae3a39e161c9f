"""Rule 9: the host's pool, connection and tables, and what is left of them as they were."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from patience import LONG
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool
from server_waits import until_the_server_waits
from store_fixtures import draft, turn

from conversation_store import (
    ConversationNotFound,
    ConversationStore,
    Outcome,
    StoreClosed,
    StoreError,
    StoreUnavailable,
    UnitOfWorkMisuse,
    append_messages,
    erase_user,
    find_conversation,
    get_conversation,
    latest_messages,
    start_conversation,
)
from conversation_store.adapters.postgres import commit


class HostError(Exception):
    """An error of the host's own."""


@pytest.fixture
async def orders(dsn: str) -> AsyncIterator[None]:
    """Give the host a table of its own."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("CREATE TABLE host_orders (number int UNIQUE, what text)")
        yield
        await connection.execute("DROP TABLE host_orders")


async def ordered(dsn: str) -> list[Any]:
    """Return what is in the host's table."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute("SELECT what FROM host_orders ORDER BY number")
        return [what for (what,) in await cursor.fetchall()]


async def exists(store: ConversationStore, session: str) -> bool:
    """Return whether the session is stored."""
    found = await find_conversation(store.unit_of_work(), user_id="u", session_id=session)
    return found is not None


@pytest.fixture
async def lent(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Give a connection as psycopg makes it: no autocommit, and rows as the host likes them."""
    connection = await psycopg.AsyncConnection.connect(dsn, row_factory=dict_row)
    async with connection:
        yield connection


# The host's tables in our unit --------------------------------------------------------------------


@pytest.mark.usefixtures("orders")
async def test_the_hosts_table_commits_with_the_unit(postgres: ConversationStore, dsn: str) -> None:
    """What the host writes on uow.connection() is stored with the turn."""
    async with postgres.unit_of_work() as uow:
        conversation, _ = await start_conversation(uow, user_id="u", session_id="s")
        connection = await uow.connection()
        await connection.execute("INSERT INTO host_orders VALUES (1, 'tea')")
        await append_messages(uow, conversation_id=conversation.id, drafts=turn(1))
    assert uow.outcome is Outcome.COMMITTED
    assert await ordered(dsn) == ["tea"]
    assert await exists(postgres, "s")


@pytest.mark.usefixtures("orders")
@pytest.mark.parametrize("how", ["exception", "rollback", "refusal", "host's SQL"])
async def test_the_hosts_table_vanishes_with_the_unit(
    postgres: ConversationStore, dsn: str, how: str
) -> None:
    """Neither is stored, whoever was at fault."""
    expected = {
        "exception": HostError,
        "refusal": ConversationNotFound,
        "host's SQL": psycopg.errors.UniqueViolation,
    }.get(how)

    async def unit() -> None:
        async with postgres.unit_of_work() as uow:
            await start_conversation(uow, user_id="u", session_id="s")
            connection = await uow.connection()
            await connection.execute("INSERT INTO host_orders VALUES (1, 'tea')")
            if how == "exception":
                raise HostError
            if how == "rollback":
                await uow.rollback()
            elif how == "refusal":
                uow.messages.append(4_000_000_000, turn(1))
            else:
                await connection.execute("INSERT INTO host_orders VALUES (1, 'again')")

    if expected is None:
        await unit()
    else:
        with pytest.raises(expected):
            await unit()
    assert await ordered(dsn) == []
    assert not await exists(postgres, "s")


@pytest.mark.usefixtures("orders")
async def test_a_failure_of_the_hosts_sql_in_an_inner_block_can_be_caught(
    postgres: ConversationStore, dsn: str
) -> None:
    """The inner block is a savepoint for the host's SQL, too."""
    async with postgres.unit_of_work() as uow:
        connection = await uow.connection()
        await connection.execute("INSERT INTO host_orders VALUES (1, 'tea')")
        for _ in range(2):
            with pytest.raises(psycopg.errors.UniqueViolation):
                async with uow:
                    inner = await uow.connection()
                    assert inner is connection
                    await connection.execute("INSERT INTO host_orders VALUES (2, 'gone')")
                    await connection.execute("INSERT INTO host_orders VALUES (1, 'again')")
        await start_conversation(uow, user_id="u", session_id="s")
        await connection.execute("INSERT INTO host_orders VALUES (3, 'milk')")
    assert await ordered(dsn) == ["tea", "milk"]
    assert await exists(postgres, "s")


@pytest.mark.usefixtures("orders")
async def test_a_failure_of_the_hosts_sql_that_was_swallowed_is_told(
    postgres: ConversationStore, dsn: str
) -> None:
    """The server would roll back silently on COMMIT; the unit says so instead."""
    uow = postgres.unit_of_work()
    with pytest.raises(UnitOfWorkMisuse, match="swallowed"):
        async with uow:
            await start_conversation(uow, user_id="u", session_id="s")
            connection = await uow.connection()
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1/0")
    assert uow.outcome is Outcome.ROLLED_BACK
    assert not await exists(postgres, "s")
    with pytest.raises(UnitOfWorkMisuse, match="swallowed"):
        async with uow:
            connection = await uow.connection()
            with pytest.raises(psycopg.errors.DivisionByZero):
                await connection.execute("SELECT 1/0")
            await start_conversation(uow, user_id="u", session_id="s")
    assert not await exists(postgres, "s")


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_transaction_that_the_host_ended_is_told(
    postgres: ConversationStore, end: str
) -> None:
    """A literal COMMIT or ROLLBACK of the host's breaks the unit, which does not hide it."""
    uow = postgres.unit_of_work()
    with pytest.raises(UnitOfWorkMisuse, match="ended"):
        async with uow:
            connection = await uow.connection()
            await connection.execute(end)
    assert uow.outcome is Outcome.UNKNOWN
    conversation, _ = await start_conversation(postgres.unit_of_work(), user_id="u", session_id="s")
    assert conversation.version == 1


async def leave_copy_open(connection: Any) -> None:
    """Begin a COPY that nobody ends."""
    copy = connection.cursor().copy("COPY (SELECT generate_series(1, 100000)) TO STDOUT")
    await copy.__aenter__()


async def leave_pipeline_open(connection: Any) -> None:
    """Enter a pipeline that nobody leaves."""
    await connection.pipeline().__aenter__()


@pytest.mark.parametrize("how", ["closed", "pipeline", "COPY"])
@pytest.mark.parametrize("then", ["nothing", "write", "read", "inner block"])
async def test_a_connection_that_the_host_left_in_the_middle_of_something_is_told(
    postgres: ConversationStore, how: str, then: str
) -> None:
    """Nothing is stored, nothing hangs, and the pool serves the next call."""
    uow = postgres.unit_of_work()
    async with asyncio.timeout(10):
        with pytest.raises((UnitOfWorkMisuse, StoreUnavailable)):
            async with uow:
                conversation, _ = await start_conversation(uow, user_id="u", session_id="s")
                connection = await uow.connection()
                if how == "closed":
                    await connection.close()
                else:
                    await (leave_pipeline_open if how == "pipeline" else leave_copy_open)(
                        connection
                    )
                if then == "write":
                    uow.messages.append(conversation.id, turn(1))
                elif then == "read":
                    await uow.conversations.get(conversation.id)
                elif then == "inner block":
                    await append_messages(uow, conversation_id=conversation.id, drafts=turn(1))
        assert uow.outcome is Outcome.ROLLED_BACK
        assert not await exists(postgres, "s")
        for number in range(25):
            await start_conversation(
                postgres.unit_of_work(), user_id="u", session_id=f"next-{number}"
            )


async def test_a_host_that_committed_and_failed_is_not_told_that_nothing_is_stored(
    postgres: ConversationStore,
) -> None:
    """After a literal COMMIT of the host's the outcome is unknown, whatever comes then."""
    uow = postgres.unit_of_work()
    with pytest.raises(HostError):
        async with uow:
            await start_conversation(uow, user_id="u", session_id="s")
            connection = await uow.connection()
            await connection.execute("COMMIT")
            raise HostError
    assert uow.outcome is Outcome.UNKNOWN


# Our unit in the host's transaction ---------------------------------------------------------------


@pytest.mark.usefixtures("orders")
@pytest.mark.parametrize("keep", [True, False])
async def test_the_unit_is_a_savepoint_of_the_hosts_transaction(
    postgres: ConversationStore, dsn: str, lent: Any, keep: bool
) -> None:
    """The host commits both, or neither."""
    uow = postgres.unit_of_work(connection=lent)
    async with lent.transaction(force_rollback=not keep):
        await lent.execute("INSERT INTO host_orders VALUES (1, 'tea')")
        await start_conversation(uow, user_id="u", session_id="s", drafts=turn(1))
        async with uow:
            found = await uow.conversations.find("s", "u")
            assert found is not None
            uow.messages.append(found.id, turn(2))
        assert lent.pgconn.transaction_status == TransactionStatus.INTRANS
        assert not await exists(postgres, "s")
    assert await ordered(dsn) == (["tea"] if keep else [])
    assert await exists(postgres, "s") is keep
    if keep:
        conversation = await find_conversation(uow, user_id="u", session_id="s")
        assert conversation is not None
        assert conversation.message_count == 4


@pytest.mark.usefixtures("orders")
@pytest.mark.parametrize("interactive", [False, True])
async def test_a_unit_that_fails_leaves_the_hosts_transaction_usable(
    postgres: ConversationStore, dsn: str, lent: Any, interactive: bool
) -> None:
    """Only the unit is undone; the host goes on and commits."""
    uow = postgres.unit_of_work(connection=lent)
    async with lent.transaction():
        await lent.execute("INSERT INTO host_orders VALUES (1, 'tea')")
        with pytest.raises(ConversationNotFound):
            async with uow:
                started = uow.conversations.add(new("gone"))
                if interactive:
                    await started
                uow.messages.append(4_000_000_000, turn(1))
        assert uow.outcome is Outcome.ROLLED_BACK
        with pytest.raises(HostError):
            async with uow:
                await uow.conversations.add(new("gone"))
                raise HostError
        await start_conversation(uow, user_id="u", session_id="s")
    assert await ordered(dsn) == ["tea"]
    assert await exists(postgres, "s")
    assert not await exists(postgres, "gone")


def new(session: str) -> Any:
    """Return a conversation to be added."""
    from conversation_store.domain.conversation import NewConversation

    return NewConversation(user_id="u", session_id=session)


@pytest.mark.parametrize("autocommit", [True, False])
async def test_an_idle_connection_gets_a_transaction_of_the_units_own(
    postgres: ConversationStore, lent: Any, autocommit: bool
) -> None:
    """It is committed by the unit, and the connection is idle and as it was afterwards."""
    await lent.set_autocommit(autocommit)
    uow = postgres.unit_of_work(connection=lent)
    conversation, _ = await start_conversation(uow, user_id="u", session_id="s")
    async with uow:
        uow.messages.append(conversation.id, turn(1))
        assert len(await uow.messages.latest(conversation.id)) == 2
        uow.messages.append(conversation.id, turn(2))
    assert lent.pgconn.transaction_status == TransactionStatus.IDLE
    assert lent.autocommit is autocommit
    assert lent.isolation_level is None
    assert lent.row_factory is dict_row
    found = await get_conversation(postgres.unit_of_work(), conversation_id=conversation.id)
    assert found.message_count == 4
    with pytest.raises(ConversationNotFound):
        await append_messages(uow, conversation_id=4_000_000_000, drafts=turn(1))
    assert lent.pgconn.transaction_status == TransactionStatus.IDLE
    assert not lent.closed


async def test_a_connection_that_cannot_be_used_is_refused(
    postgres: ConversationStore, lent: Any
) -> None:
    """In a failed transaction, in pipeline mode, or closed: UnitOfWorkMisuse, untouched."""
    uow = postgres.unit_of_work(connection=lent)
    with pytest.raises(psycopg.errors.DivisionByZero):
        await lent.execute("SELECT 1/0")
    with pytest.raises(UnitOfWorkMisuse, match="failed transaction"):
        await find_conversation(uow, user_id="u", session_id="s")
    await lent.rollback()
    async with lent.pipeline():
        with pytest.raises(UnitOfWorkMisuse, match="pipeline"):
            await find_conversation(uow, user_id="u", session_id="s")
    assert await find_conversation(uow, user_id="u", session_id="s") is None
    await lent.close()
    with pytest.raises(UnitOfWorkMisuse, match="closed"):
        await find_conversation(uow, user_id="u", session_id="s")


async def test_the_session_of_the_host_does_not_matter(
    postgres: ConversationStore, lent: Any
) -> None:
    """Time zone, date style and search path of the host's session change no result."""
    for setting in (
        "timezone = 'Asia/Kolkata'",
        "datestyle = 'German, DMY'",
        "intervalstyle = 'iso_8601'",
        "search_path = ''",
        "standard_conforming_strings = off",
        "extra_float_digits = 0",
        "bytea_output = 'escape'",
    ):
        await lent.execute(f"SET {setting}")
    await lent.commit()
    uow = postgres.unit_of_work(connection=lent)
    async with lent.transaction():
        conversation, messages = await start_conversation(
            uow,
            user_id="u",
            session_id="s\\'",
            drafts=[draft("a\\b'c", slots={"x": 0.1 + 0.2})],
            request_id="first",
        )
        assert (conversation, messages) == await start_conversation(
            uow,
            user_id="u",
            session_id="s\\'",
            drafts=[draft("a\\b'c", slots={"x": 0.1 + 0.2})],
            request_id="first",
        )
        again = await append_messages(
            uow, conversation_id=conversation.id, drafts=turn(1), request_id="r"
        )
        assert (
            await append_messages(
                uow, conversation_id=conversation.id, drafts=turn(1), request_id="r"
            )
            == again
        )
    stored = await latest_messages(postgres.unit_of_work(), conversation_id=conversation.id)
    assert stored == messages + again


@pytest.mark.parametrize("keep", [True, False])
async def test_a_start_with_a_request_waits_inside_the_transaction_of_the_host(
    postgres: ConversationStore, lent: Any, keep: bool
) -> None:
    """It is sent again there by itself: what the host did before stays as it was."""
    given: dict[str, Any] = {"user_id": "u", "session_id": "s", "drafts": turn(1)}
    async with lent.transaction():
        uow = postgres.unit_of_work(connection=lent)
        await start_conversation(uow, user_id="v", session_id="before", drafts=turn(2))
        async with postgres.unit_of_work() as other:
            first = await start_conversation(other, request_id="r", **given)
            waiting = asyncio.create_task(
                start_conversation(postgres.unit_of_work(connection=lent), request_id="r", **given)
            )
            await asyncio.wait([waiting], timeout=0.1)
            assert not waiting.done()
            if not keep:
                await other.rollback()
        conversation, messages = await waiting
        assert ((conversation, messages) == first) is keep
    uow = postgres.unit_of_work()
    assert await latest_messages(uow, conversation_id=conversation.id) == messages
    assert await find_conversation(uow, user_id="v", session_id="before") is not None


async def test_two_units_that_overlap_on_one_transaction_are_told(
    postgres: ConversationStore, lent: Any
) -> None:
    """Savepoints must nest: where units overlap, nothing is said to be stored that is not."""
    async with lent.transaction(force_rollback=True):
        a = postgres.unit_of_work(connection=lent)
        b = postgres.unit_of_work(connection=lent)
        await a.__aenter__()
        await a.conversations.add(new("a"))
        await b.__aenter__()
        await b.conversations.add(new("b"))
        await a.__aexit__(HostError, HostError(), None)
        with pytest.raises(UnitOfWorkMisuse, match="overlap"):
            await b.__aexit__(None, None, None)
        assert (a.outcome, b.outcome) == (Outcome.ROLLED_BACK, Outcome.ROLLED_BACK)
    assert not await exists(postgres, "a")
    assert not await exists(postgres, "b")


async def test_a_transaction_that_begins_on_a_lent_connection_inside_a_unit_is_refused(
    postgres: ConversationStore, lent: Any
) -> None:
    """The unit does not end what it did not begin."""
    await lent.set_autocommit(True)
    uow = postgres.unit_of_work(connection=lent)
    with pytest.raises(UnitOfWorkMisuse, match="begun"):
        async with uow:
            await lent.execute("BEGIN")
            uow.conversations.add(new("s"))
    assert lent.pgconn.transaction_status == TransactionStatus.INTRANS
    await lent.execute("ROLLBACK")
    assert not await exists(postgres, "s")


async def test_one_unit_serves_in_and_out_of_a_transaction(
    postgres: ConversationStore, lent: Any
) -> None:
    """Entered inside a transaction of the host's, then idle, it looks anew each time."""
    uow = postgres.unit_of_work(connection=lent)
    for number in range(3):
        async with lent.transaction(), uow:
            pass
        assert await find_conversation(uow, user_id="u", session_id=f"s-{number}") is None
        assert lent.pgconn.transaction_status == TransactionStatus.IDLE
        await start_conversation(uow, user_id="u", session_id=f"s-{number}")
        assert lent.pgconn.transaction_status == TransactionStatus.IDLE
        async with lent.transaction(force_rollback=True):
            await start_conversation(uow, user_id="u", session_id=f"gone-{number}")
        assert not await exists(postgres, f"gone-{number}")
        assert await exists(postgres, f"s-{number}")


# The host's pool ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("postgres")
async def test_a_pool_that_was_lent_is_given_back_as_it_was(dsn: str) -> None:
    """Connections keep autocommit and isolation; the pool is not closed by the store."""
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=1, open=False, kwargs={"row_factory": dict_row}
    ) as pool:
        async with ConversationStore.from_pool(pool) as store:
            conversation, _ = await start_conversation(
                store.unit_of_work(), user_id="u", session_id="s"
            )
            async with store.unit_of_work() as uow:
                await uow.messages.append(conversation.id, turn(1))
                assert (await uow.conversations.get(conversation.id)).message_count == 2
            async with pool.connection() as connection:
                assert not connection.autocommit
                assert connection.isolation_level is None
                cursor = await connection.execute("SELECT 1 AS one")
                row: Any = await cursor.fetchone()
                assert row == {"one": 1}
                assert connection.pgconn.transaction_status == TransactionStatus.INTRANS
            with pytest.raises(ConversationNotFound):
                await append_messages(
                    store.unit_of_work(), conversation_id=4_000_000_000, drafts=turn(1)
                )
        async with pool.connection() as connection:
            assert not connection.autocommit
    with pytest.raises(StoreClosed, match="closed"):
        await find_conversation(store.unit_of_work(), user_id="u", session_id="s")


@pytest.mark.usefixtures("postgres")
async def test_a_pool_of_one_connection_is_enough(dsn: str) -> None:
    """An interactive unit never waits for a second connection, not even for ids."""
    async with (
        AsyncConnectionPool(dsn, min_size=1, max_size=1, timeout=2, open=False) as pool,
        ConversationStore.from_pool(pool) as store,
        store.unit_of_work() as uow,
    ):
        started, _ = await start_conversation(uow, user_id="u", session_id="s")
        for number in range(3):
            drafts = [draft(str(n)) for n in range(700)]
            messages = await append_messages(uow, conversation_id=started.id, drafts=drafts)
            assert messages[-1].position == 700 * (number + 1)


async def test_ping(postgres: ConversationStore) -> None:
    """A store that answers is pinged without an error."""
    await postgres.ping()


async def test_isolation_is_read_committed_whatever_the_database_says(
    dsn: str, postgres: ConversationStore
) -> None:
    """A database that defaults to SERIALIZABLE changes nothing for units of several statements."""
    async with AsyncConnectionPool(
        dsn,
        min_size=1,
        max_size=1,
        open=False,
        kwargs={"options": "-c default_transaction_isolation=serializable"},
    ) as pool:
        store = ConversationStore.from_pool(pool)
        async with store.unit_of_work() as uow:
            connection = await uow.connection()
            cursor = await connection.execute("SHOW transaction_isolation")
            assert await cursor.fetchone() == ("read committed",)


# COMMIT itself ------------------------------------------------------------------------------------


@pytest.fixture
async def clerk(dsn: str) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Give the host a table whose rows wait at COMMIT for a lock that this can hold; -1 fails."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("CREATE TABLE orders (number int)")
        await connection.execute(
            "CREATE FUNCTION take_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.number < 0 THEN RAISE EXCEPTION 'no'; END IF; "
            "PERFORM pg_advisory_xact_lock(NEW.number); RETURN NULL; END $$"
        )
        await connection.execute(
            "CREATE CONSTRAINT TRIGGER take_order AFTER INSERT ON orders "
            "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION take_order()"
        )
        yield connection
        await connection.execute("DROP TABLE orders")
        await connection.execute("DROP FUNCTION take_order")


async def commit_an_order(uow: Any, number: int) -> None:
    """Run a unit whose COMMIT waits for the lock of this number."""
    async with uow:
        await start_conversation(uow, user_id="u", session_id="s")
        connection = await uow.connection()
        await connection.execute("INSERT INTO orders VALUES (%s)", (number,))


@pytest.mark.parametrize("outcome", [Outcome.COMMITTED, Outcome.UNKNOWN])
async def test_cancelled_while_it_commits_a_unit_waits_a_moment_to_know(
    postgres: ConversationStore,
    clerk: psycopg.AsyncConnection[Any],
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    outcome: Outcome,
) -> None:
    """In a moment the end of the COMMIT is learnt; then it is unknown, and cut off."""
    if outcome is Outcome.COMMITTED:
        monkeypatch.setattr(commit, "COMMIT_GRACE", LONG)  # a moment of a busy machine
    uow = postgres.unit_of_work()
    await clerk.execute("SELECT pg_advisory_lock(1)")
    committing = asyncio.create_task(commit_an_order(uow, 1))
    await until_the_server_waits(dsn)
    committing.cancel()
    if outcome is Outcome.COMMITTED:
        await clerk.execute("SELECT pg_advisory_unlock(1)")
    with pytest.raises(asyncio.CancelledError):
        await committing
    assert uow.outcome is outcome
    assert await exists(postgres, "s") is (outcome is Outcome.COMMITTED)
    await postgres.ping()


@pytest.mark.usefixtures("clerk")
async def test_a_commit_that_the_server_refuses_stores_nothing(
    postgres: ConversationStore,
) -> None:
    """An error of a deferred constraint of the host's comes with the COMMIT: rolled back."""
    uow = postgres.unit_of_work()
    with pytest.raises(StoreError) as caught:
        await commit_an_order(uow, -1)
    assert caught.value.sqlstate == "P0001"
    assert uow.outcome is Outcome.ROLLED_BACK
    assert not await exists(postgres, "s")


@pytest.mark.parametrize("is_in_transaction", [False, True])
async def test_an_erasure_in_the_hosts_transaction_does_not_pause(
    postgres: ConversationStore,
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    *,
    is_in_transaction: bool,
) -> None:
    """All that it removed would be locked for as long."""
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr("conversation_store.adapters.postgres.removal.BATCH_CONVERSATIONS", 1)
    for session in ("s-1", "s-2"):
        await start_conversation(postgres.unit_of_work(), user_id="u", session_id=session)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        if is_in_transaction:
            await connection.execute("BEGIN")
        monkeypatch.setattr("conversation_store.service_layer.removal.asyncio.sleep", pause)
        await erase_user(postgres.unit_of_work(connection=connection), user_id="u")
        monkeypatch.undo()
    assert bool(pauses) is not is_in_transaction


@pytest.mark.usefixtures("postgres")
async def test_a_pool_that_takes_closed_connections_back_meets_no_closed_one(dsn: str) -> None:
    """Where close() would give back, a connection that cannot be used any more is cut."""
    async with AsyncConnectionPool(
        dsn, min_size=1, max_size=1, open=False, timeout=5, close_returns=True
    ) as pool:
        store = ConversationStore.from_pool(pool)
        uow = store.unit_of_work()
        with pytest.raises(UnitOfWorkMisuse, match="pipeline"):
            async with uow:
                await start_conversation(uow, user_id="u", session_id="s")
                await leave_pipeline_open(await uow.connection())
        await start_conversation(uow, user_id="u", session_id="s")
