"""Migrations: applied once, in order, whole, by whoever comes first."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from importlib import resources
from itertools import chain, count
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row
from store_fixtures import (
    APPLICATION,
    AWKWARD_SCHEMA,
    MAINTENANCE,
    ROLES,
    as_role,
    create_roles,
    turn,
)

from conversation_store import (
    ConversationStore,
    ConversationStoreError,
    DuplicateSession,
    StoreMisconfigured,
    get_conversation,
    start_conversation,
)
from conversation_store.adapters.postgres import migrate as migrations
from conversation_store.adapters.postgres.migrate import Migration, known_migrations

Connection = psycopg.AsyncConnection[Any]

RELEASED = {
    "0001_conversations_and_messages": (
        "d430879c3105608d393125abdf8256509d7a91647b4b2361f543c276ae6b8c43"
    ),
    "0002_functions": "fcce5cb1b46f4f2d5f9575a7cf0cf5d75d3b677814a923b63f88f955e0cf3d20",
}
"""SHA-256 of the files that may be in somebody's database: they are never changed again."""

NAMES = [migration.name for migration in known_migrations()]

MIGRATE = """
import asyncio, json, sys
from conversation_store import ConversationStore

async def main():
    async with ConversationStore.connect(sys.argv[1], min_size=1, max_size=1) as store:
        print(json.dumps(await store.migrate()))

asyncio.run(main())
"""

_number = count(1)


@pytest.fixture
def database(dsn: str) -> Iterator[str]:
    """Give the connection string of an empty database."""
    name = f"empty_{next(_number)}"
    quoted = sql.Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(quoted))
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(quoted))
        yield make_conninfo(dsn, dbname=name)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))


@pytest.fixture
async def conn(database: str) -> AsyncIterator[Connection]:
    """Give a connection of the host's to the empty database, in autocommit."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        yield connection


@pytest.fixture
async def role(dsn: str, database: str) -> AsyncIterator[str]:
    """Give a connection string for the empty database, of a role that may do nothing there."""
    name = f"role_{next(_number)}"
    quoted = sql.Identifier(name)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(quoted))
        yield make_conninfo(database, user=name, password="secret")
        async with await psycopg.AsyncConnection.connect(database) as inside:
            await inside.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(quoted))
        await connection.execute(sql.SQL("DROP ROLE {}").format(quoted))


def role_of(dsn: str) -> str:
    """Return the role of a connection string."""
    return str(psycopg.conninfo.conninfo_to_dict(dsn)["user"])


@asynccontextmanager
async def open_store(dsn: str, schema: str = "operational") -> AsyncIterator[ConversationStore]:
    """Open a store that nobody migrated."""
    async with ConversationStore.connect(dsn, schema=schema, min_size=1, max_size=2) as store:
        yield store


async def migrate(dsn: str, schema: str = "operational", **options: Any) -> list[str]:
    """Migrate over a pool, as a process does that comes and goes."""
    async with open_store(dsn, schema) as store:
        return await store.migrate(**options)


async def value(connection: Connection, query: LiteralString, *parameters: Any) -> Any:
    """Return the one value of a query."""
    cursor = await connection.execute(query, parameters)
    [[one]] = await cursor.fetchall()
    return one


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    """Wait until a condition holds; fail if it does not within half a minute."""
    async with asyncio.timeout(30):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


async def start_process(dsn: str) -> Process:
    """Start a process that migrates."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", MIGRATE, dsn), stdout=PIPE, stderr=PIPE
    )


async def waiting(connection: Connection, event: str) -> int:
    """Return how many backends wait for that kind of lock."""
    found: int = await value(
        connection,
        """SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND wait_event = %s""",
        event,
    )
    return found


async def store_is_there(connection: Connection, schema: str = "operational") -> bool:
    """Return whether any part of the store is in the database."""
    return bool(
        await value(
            connection,
            """SELECT EXISTS (SELECT FROM pg_class AS c JOIN pg_namespace AS n
                ON n.oid = c.relnamespace WHERE n.nspname = %s)""",
            schema,
        )
    )


# Once -------------------------------------------------------------------------------------------


async def test_an_empty_database_gets_all(database: str) -> None:
    """The first call applies every migration, and the store works; the second applies none."""
    async with open_store(database) as store:
        assert await store.migrate() == NAMES
        assert await store.migrate() == []
        conversation, messages = await start_conversation(
            store.unit_of_work(), user_id="u", session_id="s", drafts=turn(1)
        )
        assert len(messages) == 2
        uow = store.unit_of_work()
        assert await get_conversation(uow, conversation_id=conversation.id) == conversation


async def test_what_was_applied_is_recorded(database: str, conn: Connection) -> None:
    """Each migration is recorded with its number, name and checksum."""
    await migrate(database)
    cursor = await conn.execute(
        "SELECT number, name, checksum FROM operational.conversation_store_migrations ORDER BY 1"
    )
    assert await cursor.fetchall() == [
        (migration.number, migration.name, migration.checksum) for migration in known_migrations()
    ]


async def test_schemas_live_side_by_side(database: str) -> None:
    """Stores in several schemas of a database, awkward names too, know nothing of each other."""
    for schema in ("one", "two", AWKWARD_SCHEMA, 'a"b', "{schema}", "{}", "\\'", "pg", "x" * 63):
        assert await migrate(database, schema) == NAMES
        assert await migrate(database, schema) == []
        async with open_store(database, schema) as store:
            conversation, _ = await start_conversation(
                store.unit_of_work(), user_id="u", session_id="s", drafts=turn(1)
            )
        assert conversation.id == 1


@pytest.mark.parametrize("schema", ["{messages}", "{refuse}", "{conversations}", "{id_block}"])
async def test_a_schema_named_like_a_placeholder(database: str, schema: str) -> None:
    """Any name serves, those that our own templates use included."""
    assert await migrate(database, schema) == NAMES
    async with open_store(database, schema) as store:
        _, messages = await start_conversation(
            store.unit_of_work(), user_id="u", session_id="s", drafts=turn(1)
        )
    assert len(messages) == 2


# Together ---------------------------------------------------------------------------------------


async def test_ten_processes_at_once(database: str, conn: Connection) -> None:
    """Ten processes that meet on an empty database all succeed; each migration is done once."""
    lock = "hashtextextended('conversation_store operational', 0)"
    await conn.execute(f"SELECT pg_advisory_lock({lock})".encode())
    processes = [await start_process(database) for _ in range(10)]
    try:
        await until(lambda: waiting_for_all(conn, processes))
        await conn.execute(f"SELECT pg_advisory_unlock({lock})".encode())
        ends = await asyncio.gather(*(process.communicate() for process in processes))
    finally:
        await end(*processes)
    assert [process.returncode for process in processes] == [0] * 10, ends
    applied = [json.loads(out) for out, _ in ends]
    assert sorted(chain.from_iterable(applied)) == NAMES
    assert await migrate(database) == []


async def waiting_for_all(connection: Connection, processes: list[Process]) -> bool:
    """Return whether all processes wait for their turn; fail if one ended before."""
    assert all(process.returncode is None for process in processes)
    return await waiting(connection, "advisory") == len(processes)


async def end(*processes: Process) -> None:
    """Leave no process behind."""
    for process in processes:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_a_process_killed_in_the_middle(database: str, conn: Connection) -> None:
    """Nothing stays of a migration whose process was killed in it, and the next one finishes."""
    # A table of that name that is not committed yet stops the process between its two tables.
    await conn.execute("CREATE SCHEMA operational")
    async with await psycopg.AsyncConnection.connect(database) as blocker:
        await blocker.execute("CREATE TABLE operational.ai_messages ()")
        process = await start_process(database)
        try:
            await until(lambda: waiting_for_process(conn, process))
            process.send_signal(signal.SIGKILL)
            assert await process.wait() == -signal.SIGKILL
        finally:
            await end(process)
        successor = asyncio.create_task(migrate(database))
        await until(lambda: waits_for_its_turn(conn))
        await blocker.rollback()
    assert await successor == NAMES
    assert await migrate(database) == []


async def waits_for_its_turn(connection: Connection) -> bool:
    """Return whether a process waits for its turn."""
    return await waiting(connection, "advisory") == 1


async def waiting_for_process(connection: Connection, process: Process) -> bool:
    """Return whether the process waits for a table's name; fail if it ended before."""
    assert process.returncode is None
    return await waiting(connection, "transactionid") == 1


async def test_nothing_stays_of_a_migration_that_failed(database: str, conn: Connection) -> None:
    """A migration that fails in its middle leaves nothing, and succeeds when its cause is gone."""
    await conn.execute("CREATE SCHEMA operational")
    await conn.execute("CREATE TABLE operational.ai_messages ()")
    with pytest.raises(ConversationStoreError) as caught:
        await migrate(database)
    assert isinstance(caught.value.__cause__, psycopg.errors.DuplicateTable)
    assert await value(conn, "SELECT to_regclass('operational.ai_conversations')") is None
    await conn.execute("DROP TABLE operational.ai_messages")
    assert await migrate(database) == NAMES


async def test_the_turn_is_waited_for_longer_than_other_locks(
    database: str, conn: Connection
) -> None:
    """A lock_timeout of the database does not fail a process that waits for its turn."""
    await conn.execute(
        sql.SQL("ALTER DATABASE {} SET lock_timeout = '50ms'").format(
            sql.Identifier(conn.info.dbname)
        )
    )
    async with conn.transaction():
        await conn.execute(
            "SELECT pg_advisory_xact_lock(hashtextextended('conversation_store operational', 0))"
        )
        task = asyncio.create_task(migrate(database))
        await asyncio.wait([task], timeout=0.5)
        assert not task.done()
    assert await task == NAMES


# Refused ----------------------------------------------------------------------------------------


async def test_a_database_newer_than_the_code(database: str, conn: Connection) -> None:
    """A migration that this version does not know is refused, by its name."""
    await migrate(database)
    await conn.execute(
        """INSERT INTO operational.conversation_store_migrations (number, name, checksum)
        VALUES (%s, '9999_of_tomorrow', 'x')""",
        [len(NAMES) + 1],
    )
    with pytest.raises(StoreMisconfigured, match=r"9999_of_tomorrow.*newer"):
        await migrate(database)


async def test_an_applied_file_that_changed(database: str, conn: Connection) -> None:
    """A migration that was applied in another form is refused, by its name."""
    await migrate(database)
    await conn.execute(
        "UPDATE operational.conversation_store_migrations SET checksum = 'x' WHERE number = 1"
    )
    with pytest.raises(StoreMisconfigured, match=NAMES[0]):
        await migrate(database)


async def test_a_role_without_privileges(role: str, conn: Connection) -> None:
    """A role that may not create a schema is told that it lacks a privilege."""
    with pytest.raises(StoreMisconfigured, match="privilege") as caught:
        await migrate(role)
    assert caught.value.sqlstate == "42501"
    assert not await store_is_there(conn)


@pytest.mark.parametrize("granted", ["", "USAGE"])
async def test_a_role_without_privileges_on_the_schema(
    role: str, conn: Connection, granted: str
) -> None:
    """A role that may not create in a schema that is there, or not even look, is told so."""
    await conn.execute("CREATE SCHEMA operational")
    if granted:
        await conn.execute(
            sql.SQL("GRANT USAGE ON SCHEMA operational TO {}").format(sql.Identifier(role_of(role)))
        )
    with pytest.raises(StoreMisconfigured, match="privilege"):
        await migrate(role)


async def test_a_role_that_owns_only_the_schema(role: str, conn: Connection) -> None:
    """Who owns a schema that was made beforehand needs no privilege on the database."""
    await conn.execute(
        sql.SQL("CREATE SCHEMA operational AUTHORIZATION {}").format(sql.Identifier(role_of(role)))
    )
    async with open_store(role) as store:
        assert await store.migrate() == NAMES
        assert await store.migrate() == []
        _, messages = await start_conversation(
            store.unit_of_work(), user_id="u", session_id="s", drafts=turn(1)
        )
    assert len(messages) == 2


@pytest.mark.parametrize(
    "schema", ["", "x" * 64, "ü" * 32, "a\0b", "\ud800"], ids=["empty", "64", "ü", "nul", "lone"]
)
async def test_a_schema_that_cannot_be(dsn: str, schema: str) -> None:
    """A name that PostgreSQL would refuse or cut is refused before anything is sent."""
    with pytest.raises(StoreMisconfigured, match="schema"):
        ConversationStore.connect(dsn, schema=schema)


@pytest.mark.parametrize("id_block", [0, -1, 1_000_001, True, 1.5, "7", None])
async def test_a_block_that_cannot_be(dsn: str, id_block: Any) -> None:
    """A block of ids is an integer of 1 to a million."""
    with pytest.raises(StoreMisconfigured, match="id_block"):
        await migrate(dsn, "no_blocks", id_block=id_block)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        assert not await store_is_there(connection, "no_blocks")


@pytest.mark.parametrize("id_block", [1, 7, 1000, 1_000_000])
async def test_the_block_is_the_increment_of_the_sequence(
    dsn: str, database: str, conn: Connection, id_block: int
) -> None:
    """How many ids are drawn at a time stands in the database, and stays what it was at first."""
    await migrate(database, id_block=id_block)
    await migrate(database, id_block=13)
    query: LiteralString = """SELECT seqincrement FROM pg_sequence
        WHERE seqrelid = 'operational.ai_ids'::regclass"""
    assert await value(conn, query) == id_block


# In the host's transaction, and by the host's tools ---------------------------------------------


async def test_undone_with_the_hosts_transaction(database: str, conn: Connection) -> None:
    """What was migrated in a transaction of the host's vanishes with it."""
    async with open_store(database) as store:
        async with conn.transaction(force_rollback=True):
            assert await store.migrate(connection=conn) == NAMES
            assert await store_is_there(conn)
        assert not await store_is_there(conn)
        assert await store.migrate() == NAMES


@pytest.mark.parametrize("autocommit", [True, False])
async def test_committed_with_the_hosts_transaction(
    database: str, conn: Connection, autocommit: bool
) -> None:
    """What was migrated in a transaction of the host's is there once that commits."""
    await conn.set_autocommit(autocommit)
    conn.row_factory = dict_row
    async with open_store(database) as store:
        async with conn.transaction():
            await conn.execute("SET LOCAL lock_timeout = '1234ms'")
            assert await store.migrate(connection=conn) == NAMES
            cursor = await conn.execute("SHOW lock_timeout")
            assert await cursor.fetchone() == {"lock_timeout": "1234ms"}
        assert await store.migrate() == []


async def test_on_an_idle_connection_of_the_hosts(database: str, conn: Connection) -> None:
    """On a connection without a transaction, migrations commit, and its settings stay."""
    await conn.execute("SET lock_timeout = '1234ms'")
    async with open_store(database) as store:
        assert await store.migrate(connection=conn) == NAMES
        assert await store.migrate() == []
    assert await value(conn, "SHOW lock_timeout") == "1234ms"
    assert conn.autocommit


async def test_a_refusal_leaves_the_hosts_transaction_usable(
    database: str, conn: Connection
) -> None:
    """A migration that is refused undoes itself alone."""
    await migrate(database)
    async with open_store(database) as store, conn.transaction():
        await conn.execute("CREATE TABLE mine ()")
        await conn.execute("UPDATE operational.conversation_store_migrations SET checksum = 'x'")
        with pytest.raises(StoreMisconfigured):
            await store.migrate(connection=conn)
        assert await value(conn, "SELECT count(*) FROM mine") == 0


@pytest.mark.parametrize("options", [{}, {"row_security": True, **ROLES}], ids=["plain", "all"])
@pytest.mark.parametrize("schema", ["operational", AWKWARD_SCHEMA])
async def test_the_sql_for_the_hosts_tool(
    dsn: str, database: str, conn: Connection, schema: str, options: dict[str, Any]
) -> None:
    """The printed SQL makes what `migrate` makes, and leaves nothing for it to do."""
    create_roles(dsn)
    values = {"id_block": 77} | options
    text = ConversationStore.migration_sql(schema=schema, **values)
    await conn.execute(text.encode())
    printed = await catalog(conn, schema)
    assert await migrate(database, schema, **options) == []
    assert await catalog(conn, schema) == printed
    await conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    applied = [*NAMES, "row_security"] if options else NAMES
    assert await migrate(database, schema, **values) == applied
    assert await catalog(conn, schema) == printed
    nothing = set() if options else {"policies"}
    assert {key for key, rows in printed.items() if not rows} == nothing


async def test_the_sql_for_the_hosts_tool_is_one_transaction(
    database: str, conn: Connection
) -> None:
    """The printed SQL can be undone as a whole."""
    async with conn.transaction(force_rollback=True):
        await conn.execute(ConversationStore.migration_sql().encode())
        assert await store_is_there(conn)
    assert not await store_is_there(conn)


CATALOG: dict[str, LiteralString] = {
    "columns": """SELECT table_name, column_name, ordinal_position, column_default, is_nullable,
            data_type, collation_name FROM information_schema.columns
        WHERE table_schema = %(schema)s""",
    "constraints": """SELECT conrelid::regclass::text, conname, contype, condeferrable,
            pg_get_constraintdef(oid) FROM pg_constraint
        WHERE connamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)""",
    "indexes": """SELECT tablename, indexname, indexdef FROM pg_indexes
        WHERE schemaname = %(schema)s""",
    "functions": """SELECT proname, pg_get_functiondef(oid) FROM pg_proc
        WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)""",
    "sequences": """SELECT sequencename, data_type, start_value, min_value, max_value,
            increment_by, cycle, cache_size, last_value FROM pg_sequences
        WHERE schemaname = %(schema)s""",
    "policies": """SELECT tablename, policyname, permissive, roles, cmd, qual, with_check,
            obj_description(p.oid, 'pg_policy')
        FROM pg_policies JOIN pg_policy AS p ON polname = policyname
            AND polrelid = format('%%I.%%I', schemaname, tablename)::regclass
        WHERE schemaname = %(schema)s""",
    "privileges": """SELECT relname, relrowsecurity, relforcerowsecurity, relacl::text,
            (SELECT string_agg(attname || attacl::text, ' ' ORDER BY attnum) FROM pg_attribute
                WHERE attrelid = c.oid) FROM pg_class AS c
            WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
        UNION ALL SELECT proname, NULL, NULL, proacl::text, proconfig::text FROM pg_proc
            WHERE pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)
        UNION ALL SELECT NULL, NULL, NULL, nspacl::text, NULL FROM pg_namespace
            WHERE nspname = %(schema)s""",
    "comments": """SELECT relname, description FROM pg_class JOIN pg_description
            ON objoid = pg_class.oid AND classoid = 'pg_class'::regclass
        WHERE relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %(schema)s)""",
}


async def catalog(connection: Connection, schema: str) -> dict[str, list[Any]]:
    """Return all that the database knows of a schema, without what differs at each making."""
    found: dict[str, list[Any]] = {}
    for kind, query in CATALOG.items():
        cursor = await connection.execute(query, {"schema": schema})
        found[kind] = sorted(await cursor.fetchall(), key=repr)
    records = sql.Identifier(schema, "conversation_store_migrations")
    cursor = await connection.execute(
        sql.SQL("SELECT number, name, checksum FROM {} ORDER BY number").format(records)
    )
    found["migrations"] = await cursor.fetchall()
    return found


# Row security and roles -------------------------------------------------------------------------


NewRole = Callable[..., Awaitable[str]]


@pytest.fixture
async def new_role(dsn: str, database: str) -> AsyncIterator[NewRole]:
    """Give a way to create roles that are gone after the test."""
    made: list[sql.Identifier] = []
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:

        async def create(name: str, options: LiteralString = "LOGIN") -> str:
            text = sql.SQL("CREATE ROLE {} PASSWORD 'secret' {}")
            await connection.execute(text.format(sql.Identifier(name), sql.SQL(options)))
            made.append(sql.Identifier(name))
            return name

        yield create
        async with await psycopg.AsyncConnection.connect(database) as inside:
            for quoted in made:
                await inside.execute(sql.SQL("DROP OWNED BY {} CASCADE").format(quoted))
        for quoted in reversed(made):
            await connection.execute(sql.SQL("DROP ROLE {}").format(quoted))


@pytest.fixture
def roles(dsn: str) -> dict[str, Any]:
    """Give the roles of the tests, as `migrate` is told them."""
    create_roles(dsn)
    return ROLES


async def works_as(database: str, role: str) -> bool:
    """Return whether a role can do what the application does; conversations are new each time."""
    async with open_store(as_role(database, role)) as store:
        conversation, _ = await start_conversation(
            store.unit_of_work(), user_id="u", session_id=role, drafts=turn(1)
        )
        with pytest.raises(DuplicateSession):
            await start_conversation(store.unit_of_work(), user_id="u", session_id=role)
        uow = store.unit_of_work()
        return await get_conversation(uow, conversation_id=conversation.id) == conversation


async def privileges(connection: Connection) -> Any:
    """Return what the database says of privileges and policies."""
    found = await catalog(connection, "operational")
    return found["privileges"], found["policies"]


async def test_roles_are_granted_to_again(
    database: str, conn: Connection, roles: dict[str, Any]
) -> None:
    """Naming the same roles again changes nothing, but takes away what was granted meanwhile."""
    await migrate(database, **roles)
    granted = await privileges(conn)
    await conn.execute("DROP SCHEMA operational CASCADE")
    for kind in ("TABLES", "SEQUENCES", "FUNCTIONS"):
        by_default = sql.SQL("ALTER DEFAULT PRIVILEGES GRANT ALL ON {} TO PUBLIC, {}")
        await conn.execute(by_default.format(sql.SQL(kind), sql.Identifier(APPLICATION)))
    await migrate(database, **roles)
    assert await privileges(conn) == granted
    assert await migrate(database, **roles) == []
    assert await privileges(conn) == granted
    quoted = sql.Identifier(APPLICATION)
    for text in (
        "GRANT ALL ON ALL TABLES IN SCHEMA operational TO {}",
        "GRANT UPDATE (user_id) ON operational.ai_conversations TO {} WITH GRANT OPTION",
        "SET ROLE {}",
        'GRANT UPDATE (user_id) ON operational.ai_conversations TO "chat reader"',
        "RESET ROLE",
        "GRANT ALL ON SCHEMA operational TO {}",
        "GRANT ALL ON SEQUENCE operational.ai_ids TO PUBLIC, {}",
        "GRANT ALL ON ALL TABLES IN SCHEMA operational TO PUBLIC, {}",
        "GRANT ALL ON ALL FUNCTIONS IN SCHEMA operational TO PUBLIC",
        "GRANT CREATE ON SCHEMA operational TO PUBLIC",
    ):
        await conn.execute(sql.SQL(text).format(quoted))
    assert await privileges(conn) != granted
    assert await migrate(database, **roles) == []
    assert await privileges(conn) == granted
    assert await works_as(database, APPLICATION)


async def test_who_was_granted_to_by_hand_goes_on(
    database: str, conn: Connection, new_role: NewRole
) -> None:
    """Where no role is named, nobody loses anything: functions stay everybody's."""
    role = await new_role("by hand")
    await migrate(database)
    for text in (
        "GRANT USAGE ON SCHEMA operational TO {}",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON operational.ai_conversations TO {}",
        "GRANT SELECT, INSERT ON operational.ai_messages TO {}",
        "GRANT USAGE ON SEQUENCE operational.ai_ids TO {}",
    ):
        await conn.execute(sql.SQL(text).format(sql.Identifier(role)))
    assert await migrate(database, row_security=False) == []
    assert await works_as(database, role)


async def test_many_at_once_with_roles(database: str, roles: dict[str, Any]) -> None:
    """Who migrates at the same time, roles and row security included, takes turns."""
    done = await asyncio.gather(
        *(migrate(database, row_security=True, **roles) for _ in range(8)),
        *(migrate(database, **roles) for _ in range(4)),
    )
    assert sorted(chain.from_iterable(done)) == [*NAMES, "row_security"]


async def test_a_role_that_is_missing(
    database: str, conn: Connection, roles: dict[str, Any]
) -> None:
    """A role that does not exist is named, with its keyword, and nothing is done."""
    for keyword in ROLES:
        with pytest.raises(StoreMisconfigured, match=keyword) as caught:
            await migrate(database, **(roles | {keyword: 'no "such" role'}))
        assert 'no "such" role' in str(caught.value)
        assert not await store_is_there(conn)


@pytest.mark.parametrize("name", ["", "x" * 64, "public", "none", "a\0b", "\ud800", 5, b"x"])
async def test_a_role_that_cannot_be(dsn: str, name: Any) -> None:
    """A name that no role can have is refused before anything is sent, or printed."""
    for keyword in ROLES:
        with pytest.raises(StoreMisconfigured, match=keyword):
            ConversationStore.migration_sql(**{keyword: name})
    with pytest.raises(StoreMisconfigured, match="read_only_role"):
        await migrate(dsn, "no_roles", read_only_role=name)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        assert not await store_is_there(connection, "no_roles")


async def test_one_role_for_two_things() -> None:
    """What the application may do and what who reads may do is not the same role's."""
    with pytest.raises(StoreMisconfigured, match="application_role, read_only_role"):
        ConversationStore.migration_sql(application_role="chat", read_only_role="chat")


async def test_roles_that_grants_do_not_bind(
    database: str, conn: Connection, new_role: NewRole
) -> None:
    """A superuser, the owner, and their members are refused, and who bypasses row security."""
    owner = conn.info.user
    boss = await new_role("boss", "SUPERUSER")
    free = await new_role("free", "BYPASSRLS")
    member = await new_role("member")
    friend = await new_role("friend")
    helper = await new_role("helper")
    maker = await new_role("maker", "CREATEROLE")
    unbound = [owner, boss, member, helper]
    if conn.info.server_version < 160000:
        unbound.append(maker)
    await conn.execute("GRANT boss TO helper")
    await conn.execute(sql.SQL("GRANT {} TO member").format(sql.Identifier(owner)))
    await conn.execute("GRANT free TO friend")
    for when in ("before the tables are there", "after"):
        for keyword in ROLES:
            for name in unbound:
                with pytest.raises(StoreMisconfigured, match=f"{keyword}.*{name}.*superuser"):
                    await migrate(database, **{keyword: name})
        for keyword in ("application_role", "read_only_role"):
            for name in (free, friend):
                with pytest.raises(StoreMisconfigured, match=f"{keyword}.*{name}.*NOBYPASSRLS"):
                    await migrate(database, **{keyword: name})
        with pytest.raises(StoreMisconfigured, match=r"maintenance_role.*friend.* BYPASSRLS"):
            await migrate(database, maintenance_role=friend)
        assert await store_is_there(conn) == (when == "after")
        assert await migrate(database, maintenance_role=free) == (NAMES if when != "after" else [])
    await conn.execute("ALTER SCHEMA operational OWNER TO friend")
    with pytest.raises(StoreMisconfigured, match=r"application_role.*friend.*own the schema"):
        await migrate(database, application_role=friend)


async def test_roles_with_awkward_names(database: str, new_role: NewRole) -> None:
    """A role may have any name that PostgreSQL lets it have."""
    for name in ('a"b', "Select", "{schema}", "{role}", "100%s", "\\'; --", "ü" * 31, "user"):
        await migrate(database, application_role=await new_role(name))
        assert await works_as(database, name)


async def test_the_owner_needs_no_attribute(
    role: str, conn: Connection, roles: dict[str, Any]
) -> None:
    """Who owns the schema and migrates can switch on row security and grant; nobody else can."""
    await conn.execute(
        sql.SQL("CREATE SCHEMA operational AUTHORIZATION {}").format(sql.Identifier(role_of(role)))
    )
    assert await migrate(role, row_security=True, **roles) == [*NAMES, "row_security"]
    assert await migrate(role, row_security=True, **roles) == []
    assert await works_as(role, MAINTENANCE)
    async with await psycopg.AsyncConnection.connect(role) as connection:
        assert await value(connection, "SELECT count(*) FROM operational.ai_messages") == 0


async def test_who_is_not_the_owner_grants_nothing(
    role: str, conn: Connection, roles: dict[str, Any]
) -> None:
    """A GRANT by another is a mere warning of the server's: it is refused instead."""
    await migrate(conn_dsn(conn), **roles)
    granted = await privileges(conn)
    for text in (
        "GRANT ALL ON SCHEMA operational TO {}",
        "GRANT ALL ON ALL TABLES IN SCHEMA operational TO {}",
        "GRANT ALL ON ALL FUNCTIONS IN SCHEMA operational TO {}",
    ):
        await conn.execute(sql.SQL(text).format(sql.Identifier(role_of(role))))
    with pytest.raises(StoreMisconfigured, match="owner") as caught:
        await migrate(role, **roles)
    assert caught.value.sqlstate == "42501"
    with pytest.raises(StoreMisconfigured) as caught:
        await migrate(role, row_security=True)
    assert caught.value.sqlstate == "42501"
    await conn.execute(sql.SQL("DROP OWNED BY {}").format(sql.Identifier(role_of(role))))
    assert await privileges(conn) == granted


def conn_dsn(connection: Connection) -> str:
    """Return how to connect as that connection does."""
    return make_conninfo(connection.info.dsn, password=connection.info.password or None)


async def test_row_security_is_switched_on_once(
    database: str, conn: Connection, roles: dict[str, Any]
) -> None:
    """The second time waits for nobody who works; not to ask for it switches nothing off."""
    assert await migrate(database, row_security=True, **roles) == [*NAMES, "row_security"]
    before = await privileges(conn)
    async with await psycopg.AsyncConnection.connect(database) as reader:
        await reader.execute(
            "LOCK operational.ai_conversations, operational.ai_messages IN EXCLUSIVE MODE"
        )
        async with asyncio.timeout(10):
            assert await migrate(database, row_security=True, **roles) == []
            assert await migrate(database) == []
    assert await privileges(conn) == before


OTHER_FORMS: list[LiteralString] = [
    "ALTER TABLE operational.ai_messages DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE operational.ai_conversations NO FORCE ROW LEVEL SECURITY",
    "DROP POLICY ai_messages_user ON operational.ai_messages",
    "ALTER POLICY ai_messages_user ON operational.ai_messages USING (true)",
    "COMMENT ON POLICY ai_messages_user ON operational.ai_messages IS 'an earlier form'",
]


async def test_row_security_in_another_form(database: str, conn: Connection) -> None:
    """Where it is not on in this form, on both tables, it is brought to it."""
    await migrate(database, row_security=True)
    before = await privileges(conn)
    for statement in OTHER_FORMS:
        await conn.execute(statement)
        assert await migrate(database) == []
        assert await migrate(database, row_security=True) == ["row_security"]
        assert await privileges(conn) == before


async def secured(connection: Connection) -> int:
    """Return how many tables have row security that binds their owner, too."""
    return int(
        await value(
            connection,
            """SELECT count(*) FROM pg_class WHERE relnamespace = 'operational'::regnamespace
            AND relrowsecurity AND relforcerowsecurity""",
        )
    )


async def test_row_security_and_roles_in_the_hosts_transaction(
    database: str, conn: Connection, roles: dict[str, Any]
) -> None:
    """They vanish and commit with it; a refusal leaves it usable."""
    async with open_store(database) as store:
        await store.migrate()
        before = await privileges(conn)
        async with conn.transaction(force_rollback=True):
            applied = await store.migrate(connection=conn, row_security=True, **roles)
            assert applied == ["row_security"]
            assert await secured(conn) == 2
        assert await privileges(conn) == before
        assert await secured(conn) == 0
        async with conn.transaction():
            await conn.execute("SET LOCAL lock_timeout = '1234ms'")
            with pytest.raises(StoreMisconfigured):
                await store.migrate(connection=conn, application_role="no such role")
            assert await store.migrate(connection=conn, row_security=True) == ["row_security"]
            assert await value(conn, "SHOW lock_timeout") == "1234ms"
        assert await store.migrate(row_security=True) == []


CHANGES_ROWS = "UPDATE {schema}.ai_messages SET content = 'changed'"
LIFTED = "ALTER TABLE {schema}.ai_messages NO FORCE ROW LEVEL SECURITY"
FORCED = "ALTER TABLE {schema}.ai_messages FORCE ROW LEVEL SECURITY"


async def test_a_migration_that_changes_rows_under_row_security(
    role: str, conn: Connection, roles: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forced, it hides all rows from the owner: refused, not done to none of them."""
    await conn.execute(
        sql.SQL("CREATE SCHEMA operational AUTHORIZATION {}").format(sql.Identifier(role_of(role)))
    )
    await migrate(role, row_security=True, **roles)
    assert await works_as(role, MAINTENANCE)
    known, number = known_migrations(), len(NAMES) + 1

    def add(text: str) -> None:
        later = [*known, Migration(number, f"{number:04}_later", text)]
        monkeypatch.setattr(migrations, "known_migrations", lambda: later)

    add(CHANGES_ROWS)
    with pytest.raises(StoreMisconfigured) as caught:
        await migrate(role)
    assert caught.value.sqlstate == "42501"
    add(f"{LIFTED}; {CHANGES_ROWS}; {FORCED}")
    async with await psycopg.AsyncConnection.connect(role) as connection:
        async with open_store(role) as store:
            assert await store.migrate(connection=connection) == [f"{number:04}_later"]
        assert await value(connection, "SELECT count(*) FROM operational.ai_messages") == 0
    contents = "SELECT array_agg(DISTINCT content) FROM operational.ai_messages"
    assert await value(conn, contents) == ["changed"]


@pytest.mark.parametrize("setting", ["on", "off"])
async def test_row_security_of_the_hosts_transaction_is_set_back(
    database: str, conn: Connection, roles: dict[str, Any], setting: LiteralString
) -> None:
    """Whether migrating was done or refused."""
    async with open_store(database) as store, conn.transaction():
        await conn.execute(f"SET LOCAL row_security = {setting}")
        await store.migrate(connection=conn, row_security=True, **roles)
        assert await value(conn, "SHOW row_security") == setting
        with pytest.raises(StoreMisconfigured):
            await store.migrate(connection=conn, application_role="no such role")
        assert await value(conn, "SHOW row_security") == setting


# Files ------------------------------------------------------------------------------------------


def test_the_files_are_numbered_without_gaps() -> None:
    """Files are named NNNN_name.sql, from 0001 on; only row security, which is optional, is not."""
    folder = resources.files("conversation_store.adapters.postgres") / "migrations"
    names = sorted(file.name for file in folder.iterdir())
    assert names.pop() == "row_security.sql"
    assert names == [f"{name}.sql" for name in NAMES]
    assert all(re.fullmatch(r"\d{4}_[a-z0-9_]+\.sql", name) for name in names)
    assert [int(name[:4]) for name in names] == list(range(1, len(names) + 1))
    assert [migration.number for migration in known_migrations()] == list(range(1, len(names) + 1))


def test_released_files_are_never_changed() -> None:
    """What may be in somebody's database stays as it was: a change is a new file."""
    folder = resources.files("conversation_store.adapters.postgres") / "migrations"
    for name, checksum in RELEASED.items():
        text = (folder / f"{name}.sql").read_bytes()
        assert hashlib.sha256(text).hexdigest() == checksum, name
    assert list(RELEASED) == NAMES, "pin the checksum of the new file"
