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
from store_fixtures import AWKWARD_SCHEMA, turn

from conversation_store import (
    ConversationStore,
    ConversationStoreError,
    StoreMisconfigured,
    get_conversation,
    start_conversation,
)
from conversation_store.adapters.postgres.migrate import known_migrations

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


@pytest.mark.parametrize("schema", ["operational", AWKWARD_SCHEMA])
async def test_the_sql_for_the_hosts_tool(
    dsn: str, database: str, conn: Connection, schema: str
) -> None:
    """The printed SQL makes what `migrate` makes, and leaves nothing for it to do."""
    await conn.execute(ConversationStore.migration_sql(schema=schema, id_block=77).encode())
    printed = await catalog(conn, schema)
    assert await migrate(database, schema) == []
    assert await catalog(conn, schema) == printed
    await conn.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(schema)))
    assert await migrate(database, schema, id_block=77) == NAMES
    assert await catalog(conn, schema) == printed
    assert {key: len(rows) for key, rows in printed.items() if not rows} == {}


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
