"""Row security: the server itself sees to it that a unit of work meets no row of others.

The store connects as the application role, which the policies bind. Where it matters the first
wall, the predicate in the statements, is taken away, so that what holds is the second alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from faults.test_lost_answers import BY_VERSION, WRITES
from late_proxy import LateProxy
from psycopg import sql
from psycopg.conninfo import make_conninfo
from store_fixtures import APPLICATION, MAINTENANCE, READER, as_role, draft, open_store_as, turn
from wire_proxy import WireProxy
from wired_store import SERVICE_FUNCTIONS, Wired

from conversation_store import (
    AsyncUnitOfWork,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStore,
    MessageNotFound,
    Outcome,
    Status,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    UnitOfWorkMisuse,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    erase_user,
    export_conversations,
    find_conversation,
    get_conversation,
    get_message,
    get_or_start_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    messages_after,
    purge_conversations,
    start_conversation,
    update_conversation,
)
from conversation_store.adapters.postgres import stream
from conversation_store.domain.scope import Scope

SCHEMA = "row security"
ALWAYS = datetime(2100, 1, 1, tzinfo=UTC)
"""When all has been inactive for long."""
STORED = {
    "replace": 2,
    "replace, at a version": 2,
    "start, silent": 2,
    "get or start, there": 2,
    "get or start, with a request, there": 2,
    "close": 2,
    "reopen": 2,
    "archive": 2,
    BY_VERSION: 2,
    "delete": 0,
}
"""How many messages there are after a write, where it is not the two of before and two more."""
READS = {
    "get_conversation",
    "find_conversation",
    "list_conversations",
    "list_conversations, of a status",
    "get_message",
    "latest_messages",
    "messages_after",
    "purge_conversations, a dry run",
}
"""Those of the service functions."""
NOBODY = (None, "")
"""What the setting holds where no user is set."""


def store_as(role: str, dsn: str, **options: Any) -> ConversationStore:
    """Return a store with row security that connects as a role."""
    values = {"min_size": 1, "max_size": 1, "row_security": True} | options
    return ConversationStore.connect(as_role(dsn, role), schema=SCHEMA, **values)


@pytest.fixture
async def store(dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    """Give an empty store with row security, of one connection."""
    options: dict[str, Any] = {"policies": True, "row_security": True, "max_size": 1}
    async with open_store_as(APPLICATION, dsn, SCHEMA, migrated, **options) as opened:
        yield opened


async def started(store: ConversationStore, user_id: str, session_id: str = "s") -> tuple[int, int]:
    """Start a conversation; return its id and that of its first message."""
    conversation, messages = await start_conversation(
        store.unit_of_work(user_id=user_id), user_id=user_id, session_id=session_id, drafts=turn(1)
    )
    return conversation.id, messages[0].id


@pytest.fixture
async def theirs(store: ConversationStore) -> tuple[int, int]:
    """Give the ids of a conversation of another user, and of its first message."""
    return await started(store, "them")


def unguarded(store: ConversationStore) -> AsyncUnitOfWork:
    """Return a unit of mine whose statements name no user: the policies alone are left."""
    uow: Any = store.unit_of_work(user_id="me")
    uow._scope = Scope()
    return uow  # type: ignore[no-any-return]


@asynccontextmanager
async def raw(dsn: str, role: str = APPLICATION) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    """Connect without a store."""
    async with await psycopg.AsyncConnection.connect(as_role(dsn, role)) as connection:
        await connection.execute(sql.SQL("SET search_path = {}").format(sql.Identifier(SCHEMA)))
        await connection.commit()
        yield connection
        await connection.rollback()


async def seen(connection: psycopg.AsyncConnection[Any]) -> tuple[Any, int, int]:
    """Return for whom a connection acts, and how many rows it sees."""
    query = sql.SQL(
        "SELECT current_setting('conversation_store.user_id', true), (SELECT count(*) FROM {}),"
        " (SELECT count(*) FROM {})"
    )
    names = (sql.Identifier(SCHEMA, name) for name in ("ai_conversations", "ai_messages"))
    row: Any = await (await connection.execute(query.format(*names))).fetchone()
    return row  # type: ignore[no-any-return]


async def left(store: ConversationStore) -> tuple[bool, int, int]:
    """Return whether the pooled connection acts for nobody, and how many rows it sees."""
    adapter: Any = store._adapter
    async with adapter._connections.borrowed() as connection:
        user_id, conversations, messages = await seen(connection)
    return user_id in NOBODY, conversations, messages


# What is refused --------------------------------------------------------------------------------


@pytest.fixture(params=["memory", "postgres"])
def refusing(request: pytest.FixtureRequest) -> ConversationStore:
    """Give a store of each kind with row security."""
    if request.param == "memory":
        return ConversationStore.in_memory(row_security=True)
    store: ConversationStore = request.getfixturevalue("store")
    return store


async def test_a_unit_of_everybody_is_refused(refusing: ConversationStore) -> None:
    """A unit of work has to say for whom it acts."""

    async def work(_: AsyncUnitOfWork) -> None:
        pass

    with pytest.raises(UnitOfWorkMisuse, match="name the user_id"):
        refusing.unit_of_work()
    with pytest.raises(UnitOfWorkMisuse, match="name the user_id"):
        await refusing.run(work)
    await refusing.run(work, user_id="me")


@pytest.mark.parametrize("user_id", ["me", "them"])
async def test_an_import_is_refused(refusing: ConversationStore, user_id: str) -> None:
    """COPY knows no policies; a unit can go on without it."""
    records: Any = [{"user_id": user_id, "session_id": "s", "messages": []}]
    uow = refusing.unit_of_work(user_id="me")
    with pytest.raises(UnitOfWorkMisuse, match="maintenance role"):
        await import_conversations(uow, records=records)
    async with uow:
        with pytest.raises(UnitOfWorkMisuse, match="maintenance role"):
            await uow.conversations.add_imported([], "error")
        await start_conversation(uow, user_id="me", session_id="s")
    assert uow.outcome is Outcome.COMMITTED


async def test_coalescing_is_refused() -> None:
    """Turns of several users would be stored by one statement."""
    with pytest.raises(StoreMisconfigured, match="coalesce"):
        ConversationStore.connect("dbname=x", coalesce=True, row_security=True)


async def _twice(uow: AsyncUnitOfWork, conversation_id: int) -> None:
    async with uow:
        uow.messages.append(conversation_id, turn(1))
        uow.messages.append(conversation_id, turn(1))


async def _connected(uow: AsyncUnitOfWork, _: int) -> None:
    async with uow:
        await uow.connection()


ATTEMPTS: dict[str, Callable[[AsyncUnitOfWork, int], Awaitable[Any]]] = {
    "read": lambda uow, i: get_conversation(uow, conversation_id=i),
    "write": lambda uow, i: append_messages(uow, conversation_id=i, drafts=turn(1)),
    "start": lambda uow, _: start_conversation(uow, user_id="me", session_id="x"),
    "export": lambda uow, _: anext(export_conversations(uow)),
    "several writes": _twice,
    "connection": _connected,
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
@pytest.mark.parametrize("role", ["superuser", "BYPASSRLS"])
@pytest.mark.parametrize("place", ["pool", "host's transaction"])
async def test_a_role_that_bypasses_row_security_is_refused(
    store: ConversationStore, dsn: str, attempt: str, role: str, place: str
) -> None:
    """Whatever the unit begins with, nothing is read or stored, and the error says what to do."""
    mine, _ = await started(store, "me")
    dsn = dsn if role == "superuser" else as_role(dsn, MAINTENANCE)
    options: dict[str, Any] = {"min_size": 1, "max_size": 1, "row_security": True}
    async with (
        ConversationStore.connect(dsn, schema=SCHEMA, **options) as other,
        await psycopg.AsyncConnection.connect(dsn) as connection,
        connection.transaction(force_rollback=True),
    ):
        lent: dict[str, Any] = {} if place == "pool" else {"connection": connection}
        with pytest.raises(StoreMisconfigured, match="BYPASSRLS") as caught:
            await ATTEMPTS[attempt](other.unit_of_work(user_id="me", **lent), mine)
        assert "migrate(row_security=True)" in str(caught.value)
    found = await get_conversation(store.unit_of_work(user_id="me"), conversation_id=mine)
    assert found.message_count == 2


async def test_a_role_that_wants_row_security_off(store: ConversationStore, dsn: str) -> None:
    """With that setting the server refuses what a policy would touch; the error says so."""
    mine, _ = await started(store, "me")
    async with store_as(APPLICATION, make_conninfo(dsn, options="-c row_security=off")) as other:
        with pytest.raises(StoreMisconfigured, match="setting row_security is off"):
            await get_conversation(other.unit_of_work(user_id="me"), conversation_id=mine)


async def test_it_works_again_where_row_security_was_off(
    store: ConversationStore, dsn: str
) -> None:
    """Refused at the turn at which statements are prepared, a connection is as good as new."""
    mine, _ = await started(store, "me")
    table = sql.Identifier(SCHEMA, "ai_messages")
    switch = sql.SQL("ALTER TABLE {} {} ROW LEVEL SECURITY")

    async def call() -> None:
        uow = store.unit_of_work(user_id="me")
        await append_messages(uow, conversation_id=mine, drafts=turn(1))
        await latest_messages(uow, conversation_id=mine)

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as owner:
        for before in range(7):
            for _ in range(before):
                await call()
            await owner.execute(switch.format(table, sql.SQL("DISABLE")))
            try:
                for _ in range(2):
                    with pytest.raises(StoreMisconfigured, match="switched on"):
                        await call()
            finally:
                await owner.execute(switch.format(table, sql.SQL("ENABLE")))
    await call()


async def test_a_reader_reads(store: ConversationStore, dsn: str) -> None:
    """The read-only role sees what the user has, and stores nothing."""
    mine, message = await started(store, "me")
    async with store_as(READER, dsn) as reader:
        uow = reader.unit_of_work(user_id="me")
        assert len(await latest_messages(uow, conversation_id=mine)) == 2
        assert (await get_message(uow, message_id=message)).conversation_id == mine
        assert len([record async for record in export_conversations(uow)]) == 1
        with pytest.raises(StoreMisconfigured, match="privilege"):
            await update_conversation(uow, conversation_id=mine, rescue_id="x")


# Each wall alone --------------------------------------------------------------------------------


GUARDED: dict[str, Callable[[AsyncUnitOfWork, int], Awaitable[Any]]] = {
    "get": lambda uow, i: get_conversation(uow, conversation_id=i),
    "append": lambda uow, i: append_messages(uow, conversation_id=i, drafts=turn(2)),
    "append a request": lambda uow, i: append_messages(
        uow, conversation_id=i, drafts=turn(2), request_id="r"
    ),
    "latest": lambda uow, i: latest_messages(uow, conversation_id=i),
    "after": lambda uow, i: messages_after(uow, conversation_id=i, position=0),
    "update": lambda uow, i: update_conversation(uow, conversation_id=i, rescue_id="x"),
    "close": lambda uow, i: close_conversation(uow, conversation_id=i),
    "archive": lambda uow, i: archive_conversation(uow, conversation_id=i),
}


@pytest.mark.parametrize("name", GUARDED)
async def test_the_policies_alone_hide_a_conversation(
    store: ConversationStore, theirs: tuple[int, int], name: str
) -> None:
    """Without the predicate, too, what is another's does not exist."""
    with pytest.raises(ConversationNotFound):
        await GUARDED[name](unguarded(store), theirs[0])
    uow = store.unit_of_work(user_id="them")
    found = await get_conversation(uow, conversation_id=theirs[0])
    assert (found.version, found.message_count, found.status) == (1, 2, "active")


async def test_the_policies_alone_hide_all_else(
    store: ConversationStore, theirs: tuple[int, int]
) -> None:
    """Nothing of another is found, listed, exported, erased or removed, nor started for him."""
    conversation_id, message_id = theirs
    uow = unguarded(store)
    with pytest.raises(MessageNotFound):
        await get_message(uow, message_id=message_id)
    assert await find_conversation(uow, user_id="them", session_id="s") is None
    assert (await list_conversations(uow, user_id="them")).conversations == []
    for user_id in ("them", None):
        assert [record async for record in export_conversations(uow, user_id=user_id)] == []
    await erase_user(uow, user_id="them")
    await delete_conversation(uow, conversation_id=conversation_id)
    starts: list[Any] = [start_conversation, get_or_start_conversation]
    for start in starts:
        for request_id in (None, "r"):
            # The same where the session is there as where it is not: not even that is told.
            for session_id in ("s", "new"):
                with pytest.raises(StoreMisconfigured, match="would belong to another user"):
                    await start(
                        uow,
                        user_id="them",
                        session_id=session_id,
                        drafts=turn(1),
                        request_id=request_id,
                    )
    said = await latest_messages(
        store.unit_of_work(user_id="them"), conversation_id=conversation_id
    )
    assert len(said) == 2


@pytest.mark.parametrize("user_id", [None, ""])
@pytest.mark.parametrize("role", [APPLICATION, READER])
async def test_who_sets_no_user_sees_nothing(
    dsn: str, theirs: tuple[int, int], role: str, user_id: str | None
) -> None:
    """Unset, or empty as it is once it was set, the setting shows no row."""
    del theirs
    async with raw(dsn, role) as connection:
        if user_id is not None:
            await connection.execute("SELECT set_config('conversation_store.user_id', '', false)")
        assert await seen(connection) == (user_id, 0, 0)


WRONG: dict[str, str] = {
    "insert a conversation": """INSERT INTO ai_conversations (id, user_id, session_id, status,
        start_time, last_activity, message_count, version)
        VALUES (-1, 'them', 'new', 'active', now(), now(), 0, 1)""",
    "insert a conversation that is there": """INSERT INTO ai_conversations (id, user_id, session_id,
        status, start_time, last_activity, message_count, version)
        VALUES (-1, 'them', 's', 'active', now(), now(), 0, 1)""",
    "insert a message": """INSERT INTO ai_messages (conversation_id, position, id, role, content,
        timestamp) VALUES (%(theirs)s, 3, -1, 'user', 'x', now())""",
    "insert a message at a position that is taken": """INSERT INTO ai_messages (conversation_id,
        position, id, role, content, timestamp) VALUES (%(theirs)s, 1, -1, 'user', 'x', now())""",
    "move a conversation": "UPDATE ai_conversations SET user_id = 'them' WHERE id = %(mine)s",
    "move a message": """UPDATE ai_messages SET conversation_id = %(theirs)s, position = 3
        WHERE conversation_id = %(mine)s AND position = 1""",
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_hosts_sql_is_bound_too(
    store: ConversationStore, dsn: str, theirs: tuple[int, int], name: str
) -> None:
    """Nothing is given to another user, and what is there already is not told either."""
    mine, _ = await started(store, "me")
    everything = sql.Identifier("row security tester")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as owner:
        with suppress(psycopg.errors.DuplicateObject):
            await owner.execute(
                sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(everything)
            )
        for granted in (
            "USAGE ON SCHEMA {}",
            "ALL ON ALL TABLES IN SCHEMA {}",
            "EXECUTE ON ALL FUNCTIONS IN SCHEMA {}",
        ):
            await owner.execute(
                sql.SQL(f"GRANT {granted} TO {{}}").format(sql.Identifier(SCHEMA), everything)
            )
    async with store_as("row security tester", dsn) as other:
        uow = other.unit_of_work(user_id="me")
        with pytest.raises(psycopg.errors.InsufficientPrivilege) as caught:
            async with uow:
                connection = await uow.connection()
                await connection.execute(
                    sql.SQL("SET LOCAL search_path = {}").format(sql.Identifier(SCHEMA))
                )
                await connection.execute(WRONG[name], {"theirs": theirs[0], "mine": mine})
        assert uow.outcome is Outcome.ROLLED_BACK
        assert "would belong to another user" in str(uow.meaning(caught.value))


# Nothing leaks ----------------------------------------------------------------------------------


async def _commits(uow: AsyncUnitOfWork, mine: int) -> None:
    await append_messages(uow, conversation_id=mine, drafts=turn(1))


async def _is_interactive(uow: AsyncUnitOfWork, mine: int) -> None:
    async with uow:
        written = uow.messages.append(mine, turn(1))
        assert len(await uow.messages.latest(mine)) == 4
        async with uow:
            uow.messages.append(mine, turn(2))
            await uow.messages.latest(mine)
            await uow.rollback()
        assert len(await uow.messages.latest(mine)) == 4
        await uow.connection()
    assert len(await written) == 2


async def _rolls_back(uow: AsyncUnitOfWork, mine: int) -> None:
    async with uow:
        await append_messages(uow, conversation_id=mine, drafts=turn(1))
        await uow.rollback()


async def _fails(uow: AsyncUnitOfWork, mine: int) -> None:
    await close_conversation(uow, conversation_id=mine)
    with pytest.raises(ConversationNotAcceptingMessages):
        await append_messages(uow, conversation_id=mine, drafts=turn(1))
    with pytest.raises(ConversationNotAcceptingMessages):
        await _twice(uow, mine)


async def _reads(uow: AsyncUnitOfWork, mine: int) -> None:
    await latest_messages(uow, conversation_id=mine)
    async with uow:
        await uow.messages.latest(mine)
        await uow.conversations.get(mine)


async def _exports(uow: AsyncUnitOfWork, _: int) -> None:
    records = export_conversations(uow)
    await anext(records)
    await records.aclose()


UNITS = [_commits, _twice, _is_interactive, _rolls_back, _fails, _reads, _exports]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("seconds", [None, 60.0], ids=["", "timeout"])
async def test_the_next_user_of_a_connection_is_nobody(
    store: ConversationStore, theirs: tuple[int, int], unit: Any, seconds: float | None
) -> None:
    """However a unit ends, its connection then acts for nobody and sees nothing."""
    del theirs
    mine, _ = await started(store, "me")
    await unit(store.unit_of_work(user_id="me", timeout=seconds), mine)
    assert await left(store) == (True, 0, 0)


@pytest.mark.parametrize("unit", [_commits, _twice, _is_interactive])
@pytest.mark.parametrize("how", ["cancelled", "timed out"])
async def test_nothing_leaks_of_a_unit_that_was_interrupted(
    store: ConversationStore, dsn: str, unit: Any, how: str
) -> None:
    """Interrupted while it waits for a lock, a unit leaves nothing, and the next one works."""
    mine, _ = await started(store, "me")
    timeout = 0.15 if how == "timed out" else None
    async with raw(dsn, APPLICATION) as blocker:
        await blocker.execute("SELECT set_config('conversation_store.user_id', 'me', true)")
        await blocker.execute("SELECT FROM ai_conversations WHERE id = %s FOR UPDATE", [mine])
        for _ in range(3):
            uow = store.unit_of_work(user_id="me", timeout=timeout)
            task = asyncio.create_task(unit(uow, mine))
            await asyncio.sleep(0.1)
            if how == "cancelled":
                task.cancel()
            with pytest.raises((asyncio.CancelledError, StoreTimeout)):
                await task
            assert await left(store) == (True, 0, 0)
    await unit(store.unit_of_work(user_id="me"), mine)


async def test_prepared_statements_serve_one_user_after_the_other(
    store: ConversationStore,
) -> None:
    """Prepared or not, on one connection, each sees what is his and nothing else."""
    users = {user_id: (await started(store, user_id))[0] for user_id in ("a", "b")}
    for number in range(12):
        for user_id, conversation_id in users.items():
            uow = store.unit_of_work(user_id=user_id)
            await append_messages(uow, conversation_id=conversation_id, drafts=[draft(user_id)])
            uow._scope = Scope()
            said = await latest_messages(uow, conversation_id=conversation_id, limit=1)
            assert (said[0].content, said[0].position) == (user_id, number + 3)
            [other] = [one for one in users.values() if one != conversation_id]
            with pytest.raises(ConversationNotFound):
                await latest_messages(uow, conversation_id=other, limit=1)
            records = [record async for record in export_conversations(uow)]
            assert [record["user_id"] for record in records] == [user_id]


# On the host's connection -----------------------------------------------------------------------


@pytest.mark.parametrize("before", [None, "host"])
@pytest.mark.parametrize("unit", UNITS)
async def test_a_hosts_transaction_is_as_it_was(
    store: ConversationStore, dsn: str, before: str | None, unit: Any
) -> None:
    """After each unit the host's own SQL acts for whom it acted before; then that ends too."""
    mine, _ = await started(store, "me")
    await started(store, "host")
    expected = ("host", 1, 2) if before else ("", 0, 0)
    async with raw(dsn) as connection:
        async with connection.transaction():
            if before:
                await connection.execute(
                    "SELECT set_config('conversation_store.user_id', %s, true)", [before]
                )
            await unit(store.unit_of_work(user_id="me", connection=connection), mine)
            assert await seen(connection) == expected
            limited = store.unit_of_work(user_id="me", connection=connection, timeout=60)
            await latest_messages(limited, conversation_id=mine)
            assert await seen(connection) == expected
        assert await seen(connection) == ("", 0, 0)


async def test_units_of_two_users_nest_in_a_hosts_transaction(
    store: ConversationStore, dsn: str
) -> None:
    """Each sets its user and sets back that of the one around it, whatever the names are."""
    users = ['"', "a b,\\ü'"]
    chats = [(await started(store, user_id))[0] for user_id in users]
    async with raw(dsn) as connection, connection.transaction():
        outer, inner = (
            store.unit_of_work(user_id=user_id, connection=connection) for user_id in users
        )
        async with outer:
            await append_messages(outer, conversation_id=chats[0], drafts=turn(1))
            await append_messages(inner, conversation_id=chats[1], drafts=turn(1))
            with pytest.raises(ConversationNotFound):
                await append_messages(inner, conversation_id=chats[0], drafts=turn(1))
            assert (await seen(connection))[0] == users[0]
            await append_messages(outer, conversation_id=chats[0], drafts=turn(1))
            await append_messages(inner, conversation_id=chats[1], drafts=turn(1))
        assert await seen(connection) == ("", 0, 0)


@pytest.mark.parametrize("in_a_block", [False, True])
async def test_an_export_in_a_hosts_transaction(
    store: ConversationStore, dsn: str, monkeypatch: pytest.MonkeyPatch, *, in_a_block: bool
) -> None:
    """Each chunk is read for the unit's user, and what the host does in between for its own."""
    monkeypatch.setattr(stream, "CHUNK", 2)
    await started(store, "host")
    for number in range(5):
        await started(store, "me", f"s-{number}")
    async with raw(dsn) as connection, connection.transaction():
        await connection.execute("SELECT set_config('conversation_store.user_id', 'host', true)")
        uow: Any = store.unit_of_work(user_id="me", connection=connection)
        uow._scope = Scope()
        if in_a_block:
            async with uow:
                await start_conversation(uow, user_id="me", session_id="s-5", drafts=turn(1))
                records = [record async for record in export_conversations(uow)]
            assert len(records) == 6
        else:
            records = []
            async for record in export_conversations(uow):
                records.append(record)
                assert await seen(connection) == ("host", 1, 2)
            assert len(records) == 5
        assert {record["user_id"] for record in records} == {"me"}
        assert await seen(connection) == ("host", 1, 2)


async def _export(uow: AsyncUnitOfWork, **values: Any) -> None:
    assert [record async for record in export_conversations(uow, **values)] == []


@pytest.mark.parametrize(
    "work",
    [
        lambda uow, _: erase_user(uow, user_id="me"),
        lambda uow, _: purge_conversations(uow, inactive_since=ALWAYS),
        lambda uow, _: purge_conversations(uow, inactive_since=ALWAYS, user_id="me"),
        lambda uow, _: purge_conversations(uow, inactive_since=ALWAYS, dry_run=True),
        lambda uow, _: purge_conversations(uow, inactive_since=ALWAYS, user_id="me", dry_run=True),
        lambda uow, chat: delete_conversation(uow, conversation_id=chat),
        lambda uow, _: _export(uow),
        lambda uow, _: _export(uow, user_id="me"),
    ],
)
async def test_who_sees_nothing_is_not_told_of_success(
    store: ConversationStore, dsn: str, work: Any
) -> None:
    """A store that forgot to say that there is row security removes and exports nothing."""
    mine, _ = await started(store, "me")
    async with store_as(APPLICATION, dsn, row_security=False) as forgetful:
        for user_id in (None, "me"):
            with pytest.raises(StoreMisconfigured, match="row_security=True"):
                await work(forgetful.unit_of_work(user_id=user_id), mine)


async def test_an_export_goes_on_while_a_unit_of_another_is_open_inside(
    store: ConversationStore, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose rows a chunk has is judged when it is read; no record loses its messages by that."""
    monkeypatch.setattr(stream, "CHUNK", 20)
    uow = store.unit_of_work(user_id="me")
    for number in range(3):
        await start_conversation(uow, session_id=f"s-{number}", drafts=turn(1) * 30)
    async with raw(dsn) as connection, connection.transaction():
        await connection.execute("SET LOCAL enable_sort = off")  # it would read all at once
        outer = store.unit_of_work(user_id="me", connection=connection)
        inner = store.unit_of_work(user_id="other", connection=connection)
        async with outer:
            await outer.connection()
            records = export_conversations(outer)
            exported = [await anext(records)]
            async with inner:
                await inner.connection()
                exported += [record async for record in records]
    assert [len(record["messages"]) for record in exported] == [60, 60, 60]


USES_OF_AN_OUTER_UNIT: dict[str, Any] = {
    "read": lambda uow, chat: get_conversation(uow, conversation_id=chat),
    "list": lambda uow, _: list_conversations(uow),
    "append": lambda uow, chat: append_messages(uow, conversation_id=chat, drafts=turn(1)),
    "erase": lambda uow, _: erase_user(uow),
    "export": lambda uow, _: anext(export_conversations(uow)),
    "connection": lambda uow, _: uow.connection(),
}


@pytest.mark.parametrize("use", USES_OF_AN_OUTER_UNIT)
async def test_an_outer_unit_waits_until_the_one_of_another_inside_is_left(
    store: ConversationStore, dsn: str, use: str
) -> None:
    """The server knows one user at a time, so it would find nothing, and be told of success."""
    mine, _ = await started(store, "me")
    other, _ = await started(store, "other")
    async with raw(dsn) as connection, connection.transaction():
        outer = store.unit_of_work(user_id="me", connection=connection)
        inner = store.unit_of_work(user_id="other", connection=connection)
        async with outer:
            await outer.connection()
            late = outer.messages.append(mine, turn(2))
            async with inner:
                await append_messages(inner, conversation_id=other, drafts=turn(1))
                await inner.connection()
                with pytest.raises(UnitOfWorkMisuse, match="of another user"):
                    await USES_OF_AN_OUTER_UNIT[use](outer, mine)
                with pytest.raises(UnitOfWorkMisuse, match="of another user"):
                    await late
                await append_messages(inner, conversation_id=other, drafts=turn(1))
            assert inner.outcome is Outcome.COMMITTED
            await USES_OF_AN_OUTER_UNIT["append"](outer, mine)
            assert len(await late) == 2
        assert outer.outcome is Outcome.COMMITTED


@pytest.mark.parametrize("ends", ["rolled back", "failed"])
async def test_an_outer_unit_goes_on_after_one_of_another_was_undone(
    store: ConversationStore, dsn: str, ends: str
) -> None:
    """With what it did the server forgets its user, too; one for the same user is in no way."""
    mine, _ = await started(store, "me")
    async with raw(dsn) as connection, connection.transaction():
        outer = store.unit_of_work(user_id="me", connection=connection)
        async with outer:
            await outer.connection()
            async with store.unit_of_work(user_id="me", connection=connection) as same:
                await same.connection()
                assert (await get_conversation(outer, conversation_id=mine)).id == mine
            inner = store.unit_of_work(user_id="other", connection=connection)
            async with inner:
                await inner.connection()
                if ends == "rolled back":
                    await inner.rollback()
                else:
                    late = inner.messages.append(mine, turn(1))
                    with pytest.raises(ConversationNotFound):
                        await late
                    await inner.rollback()
                assert (await get_conversation(outer, conversation_id=mine)).id == mine
        assert outer.outcome is Outcome.COMMITTED


async def test_an_idle_connection_of_the_hosts(store: ConversationStore, dsn: str) -> None:
    """Outside of a transaction the unit's is its own, and what the session had set holds again."""
    mine, _ = await started(store, "me")
    await started(store, "host")
    async with raw(dsn) as connection:
        await connection.execute("SELECT set_config('conversation_store.user_id', 'host', false)")
        await connection.commit()
        for unit in (_commits, _reads, _twice):
            await unit(store.unit_of_work(user_id="me", connection=connection), mine)
            assert await seen(connection) == ("host", 1, 2)
            await connection.rollback()


# On the wire ------------------------------------------------------------------------------------


@pytest.fixture
async def wired(store: ConversationStore, dsn: str) -> AsyncIterator[Wired]:
    """Give a store behind the counting proxy, with ids drawn and a conversation in it."""
    chat, message = await started(store, "u")
    async with WireProxy(dsn) as proxy, store_as(APPLICATION, proxy.dsn) as wired:
        await started(wired, "u", "ids are drawn")
        yield Wired(wired, proxy, chat, message)


@pytest.mark.parametrize("name", SERVICE_FUNCTIONS)
async def test_a_service_function_is_one_round_trip(wired: Wired, name: str) -> None:
    """Its scope goes with it in 1 round trip: 2 statements of a read, 4 of a write."""
    uow = wired.store.unit_of_work(user_id="u")
    if name.endswith(", replay"):
        await SERVICE_FUNCTIONS[name](wired, uow)
    with wired.proxy.count() as wire:
        await SERVICE_FUNCTIONS[name](wired, uow)
    assert (wire.round_trips, wire.statements) == (1, 2 if name in READS else 4), wire.texts
    assert wire.messages.count("S") == 1


async def test_a_refusal_is_rolled_back(wired: Wired) -> None:
    """As of several writes: COMMIT is not reached. What was prepared is forgotten, in a trip."""
    uow = wired.store.unit_of_work(user_id="u")
    for _ in range(8):
        await append_messages(uow, conversation_id=wired.conversation, drafts=turn(1))
    for round_trips in (3, 2):
        with wired.proxy.count() as wire, pytest.raises(ConversationNotFound):
            await append_messages(uow, conversation_id=4_000_000_000, drafts=turn(1))
        assert wire.round_trips == round_trips, wire.texts
    with wired.proxy.count() as wire:
        await append_messages(uow, conversation_id=wired.conversation, drafts=turn(1))
    assert (wire.round_trips, wire.statements) == (1, 4)


# When the commit fails ----------------------------------------------------------------------------


@pytest.fixture
async def judge(store: ConversationStore, dsn: str) -> AsyncIterator[None]:
    """Let a deferred trigger of the host's refuse the content "bad", after a third of a second."""
    body = "BEGIN PERFORM pg_sleep(0.3); RAISE 'the host says no'; END"
    table = sql.Identifier(SCHEMA, "ai_messages")
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as owner:
        await owner.execute(
            sql.SQL(
                "CREATE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql AS {};"
                "CREATE CONSTRAINT TRIGGER judged AFTER INSERT ON {} DEFERRABLE INITIALLY DEFERRED"
                " FOR EACH ROW WHEN (NEW.content = 'bad') EXECUTE FUNCTION {}()"
            ).format(sql.Identifier(SCHEMA, "judge"), body, table, sql.Identifier(SCHEMA, "judge"))
        )
        yield
        drop = "DROP TRIGGER judged ON {}; DROP FUNCTION {}()"
        await owner.execute(sql.SQL(drop).format(table, sql.Identifier(SCHEMA, "judge")))


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize("writes", [1, 2])
async def test_a_commit_that_the_server_refuses_stores_nothing(
    store: ConversationStore, writes: int
) -> None:
    """An error of a deferred constraint of the host's is told as without row security."""
    mine, _ = await started(store, "me")
    uow = store.unit_of_work(user_id="me")
    with pytest.raises(StoreError) as caught:
        async with uow:
            for _ in range(writes):
                uow.messages.append(mine, [draft("bad")])
    assert (type(caught.value), caught.value.sqlstate) == (StoreError, "P0001")
    assert uow.outcome is Outcome.ROLLED_BACK
    await append_messages(uow, conversation_id=mine, drafts=turn(1))
    assert (await get_conversation(uow, conversation_id=mine)).message_count == 4


@pytest.mark.usefixtures("judge")
@pytest.mark.parametrize("seconds", [0.05, 0.2, 0.29])
async def test_a_write_that_is_cancelled_while_its_commit_fails(
    store: ConversationStore, seconds: float
) -> None:
    """It is never told as stored."""
    mine, _ = await started(store, "me")
    uow = store.unit_of_work(user_id="me")
    with pytest.raises((TimeoutError, StoreError)):
        async with asyncio.timeout(seconds):
            await append_messages(uow, conversation_id=mine, drafts=[draft("bad")])
    assert uow.outcome in {Outcome.ROLLED_BACK, Outcome.UNKNOWN}
    assert (await get_conversation(uow, conversation_id=mine)).message_count == 2


async def test_units_of_several_things_cost_no_trip_more(wired: Wired, dsn: str) -> None:
    """Several writes, an open transaction, an export and a host's transaction: as without."""
    chat, uow = wired.conversation, wired.store.unit_of_work(user_id="u")
    with wired.proxy.count() as wire:
        await _twice(uow, chat)
    assert (wire.round_trips, wire.statements) == (1, 5)
    with wired.proxy.count() as wire:
        async with uow:
            uow.messages.append(chat, turn(1))
            await uow.messages.latest(chat)
            uow.conversations.set_status(chat, Status.CLOSED)
    assert (wire.round_trips, wire.statements) == (5, 6)
    with wired.proxy.count() as wire:
        assert len([record async for record in export_conversations(uow)]) == 2
    assert (wire.round_trips, wire.statements) == (3, 5)
    connection = await psycopg.AsyncConnection.connect(as_role(wired.proxy.dsn, APPLICATION))
    async with connection, connection.transaction():
        uow = wired.store.unit_of_work(user_id="u", connection=connection)
        with wired.proxy.count() as wire:
            await latest_messages(uow, conversation_id=chat)
        assert (wire.round_trips, wire.statements) == (1, 3)
        with wired.proxy.count() as wire:
            await update_conversation(uow, conversation_id=chat, rescue_id="r")
        assert (wire.round_trips, wire.statements) == (1, 5)


# What was lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["lose", "keep"])
async def test_a_lost_answer_is_asked_for(store: ConversationStore, dsn: str, way: str) -> None:
    """What is sent again, and what is looked at, has its scope before it."""
    mine = store.unit_of_work(user_id="u")
    async with LateProxy(dsn) as proxy, store_as(APPLICATION, proxy.dsn, max_size=4) as lossy:
        for name in WRITES:
            if name == BY_VERSION and way == "lose":
                continue  # it stands in its own way, whatever the scope
            await erase_user(mine)
            chat, _ = await started(lossy, "u")
            uow = lossy.unit_of_work(user_id="u")
            getattr(proxy, way)()
            await WRITES[name](uow, chat)
            assert uow.outcome is Outcome.COMMITTED, name
            records = [record async for record in export_conversations(mine)]
            assert sum(len(record["messages"]) for record in records) == STORED.get(name, 4), name


async def test_a_lost_commit_is_asked_for(store: ConversationStore, dsn: str) -> None:
    """A unit of several flushes is tried and undone in the scope it had."""
    mine, _ = await started(store, "u")
    async with LateProxy(dsn) as proxy, store_as(APPLICATION, proxy.dsn, max_size=4) as lossy:
        await started(lossy, "u", "ids are drawn")
        uow = lossy.unit_of_work(user_id="u")
        async with uow:
            await uow.messages.append(mine, turn(1))
            proxy.lose()
        assert uow.outcome is Outcome.COMMITTED
    found = await get_conversation(store.unit_of_work(user_id="u"), conversation_id=mine)
    assert (found.message_count, found.version) == (4, 2)


async def test_a_commit_that_never_arrives(store: ConversationStore, dsn: str) -> None:
    """What the question tries in its scope waits for the old transaction, and finds it gone."""
    mine, _ = await started(store, "u")
    async with LateProxy(dsn) as proxy, store_as(APPLICATION, proxy.dsn, max_size=4) as lossy:
        await started(lossy, "u", "ids are drawn")
        uow = lossy.unit_of_work(user_id="u")

        async def unit() -> None:
            async with uow:
                await uow.messages.append(mine, turn(1))
                proxy.keep()

        ending = asyncio.ensure_future(unit())
        await proxy.kept.wait()
        await asyncio.sleep(0.1)
        assert not ending.done()
        await proxy.forget()
        with pytest.raises(StoreUnavailable):
            await ending
        assert uow.outcome is Outcome.ROLLED_BACK
    found = await get_conversation(store.unit_of_work(user_id="u"), conversation_id=mine)
    assert (found.message_count, found.version) == (2, 1)
