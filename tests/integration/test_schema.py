"""What the migrations made, held against what the code says of it."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo
from store_fixtures import open_store, turn

from conversation_store import (
    ConcurrentUpdate,
    ConversationStore,
    Role,
    Status,
    StoreError,
    StoreMisconfigured,
    TransactionAborted,
    append_messages,
    get_conversation,
    start_conversation,
)
from conversation_store.adapters.postgres import row_security, sql_history, sql_reads, sql_removal
from conversation_store.adapters.postgres import sql as sql_writes
from conversation_store.adapters.postgres.errors import (
    CONSTRAINTS,
    ID_KEYS,
    REFUSALS,
    REQUEST_KEY,
    is_contested,
    translate,
)
from conversation_store.adapters.postgres.texts import Texts

Connection = psycopg.AsyncConnection[Any]

SCHEMA = "the_schema"
GLOSSARY = Path(__file__).resolve().parents[2] / "docs" / "glossary.md"
PARTS = {
    *("CONVERSATION", "MESSAGE", "LOGGED", "DRAFTS", "REFUSAL_DETAIL"),
    *("IS_ADDRESSED", "IS_SCOPED", "IS_EXPECTED", "IS_MEANT", "IS_SEEING"),
}
TEMPLATES = {
    name: text
    for module in (sql_writes, sql_history, sql_reads, sql_removal, row_security)
    for name, text in vars(module).items()
    if name.isupper()
    and not name.startswith("_")
    and isinstance(text, str)
    and name not in PARTS  # of others
}


@pytest.fixture
async def store(dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    """Give an empty store in a schema of this module's own."""
    async with open_store(dsn, SCHEMA, migrated) as store:
        yield store


@pytest.fixture
async def conn(dsn: str, store: ConversationStore) -> AsyncIterator[Connection]:
    """Give a connection that finds the tables without their schema's name; undone at the end."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(sql.SQL("SET search_path TO {}").format(sql.Identifier(SCHEMA)))
        yield connection
        await connection.rollback()


async def rows(connection: Connection, query: LiteralString, *parameters: Any) -> list[Any]:
    """Return the rows of a query."""
    cursor = await connection.execute(query, parameters)
    return await cursor.fetchall()


async def column(connection: Connection, query: LiteralString, *parameters: Any) -> list[Any]:
    """Return the first column of a query."""
    return [row[0] for row in await rows(connection, query, *parameters)]


# Constraints ------------------------------------------------------------------------------------


async def test_no_constraint_is_deferrable(conn: Connection) -> None:
    """A deferred constraint would fail at the COMMIT, where no statement can be told guilty."""
    found = await rows(
        conn,
        """SELECT conname, condeferrable FROM pg_constraint
        WHERE connamespace = %s::regnamespace AND contype <> 'n'""",
        SCHEMA,
    )
    assert len(found) > len(CONSTRAINTS) - 1
    assert [name for name, deferrable in found if deferrable] == []


async def test_every_constraint_has_its_meaning(conn: Connection) -> None:
    """Each constraint and unique index of the two tables is in CONSTRAINTS, and nothing else."""
    found = await column(
        conn,
        # contype 'n': from 18 on, NOT NULL has names too, but errors do not say them.
        """SELECT conname FROM pg_constraint
            WHERE conrelid IN ('ai_conversations'::regclass, 'ai_messages'::regclass)
                AND contype <> 'n'
        UNION SELECT relname FROM pg_index JOIN pg_class ON oid = indexrelid
            WHERE indrelid IN ('ai_conversations'::regclass, 'ai_messages'::regclass)
                AND indisunique""",
    )
    assert set(found) == set(CONSTRAINTS)
    assert len(found) == len(set(found))


CONVERSATION: LiteralString = """INSERT INTO ai_conversations (id, user_id, session_id, status,
    start_time, last_activity, message_count, version) VALUES """
MESSAGE: LiteralString = """INSERT INTO ai_messages (conversation_id, position, id, role, content,
    timestamp, request_id, request_digest) VALUES """

VIOLATIONS: dict[str, LiteralString] = {
    "ai_conversations_pkey": CONVERSATION + "(-1, 'u', 'z', 'active', now(), now(), 0, 1)",
    "ai_conversations_session_key": CONVERSATION + "(-2, 'u', 's', 'active', now(), now(), 0, 1)",
    "ai_conversations_status_check": CONVERSATION + "(-2, 'u', 'z', 'open', now(), now(), 0, 1)",
    "ai_conversations_count_check": CONVERSATION + "(-2, 'u', 'z', 'active', now(), now(), -1, 1)",
    "ai_conversations_version_check": CONVERSATION + "(-2, 'u', 'z', 'active', now(), now(), 0, 0)",
    "ai_conversations_time_check": "UPDATE ai_conversations SET last_activity = '2000-01-01'",
    "ai_messages_pkey": MESSAGE + "(-1, 1, -6, 'user', '', now(), NULL, NULL)",
    "ai_messages_id_key": MESSAGE + "(-1, 2, -5, 'user', '', now(), NULL, NULL)",
    "ai_messages_conversation_fkey": MESSAGE + "(-9, 1, -6, 'user', '', now(), NULL, NULL)",
    "ai_messages_role_check": MESSAGE + "(-1, 2, -6, 'bot', '', now(), NULL, NULL)",
    "ai_messages_position_check": MESSAGE + "(-1, 0, -6, 'user', '', now(), NULL, NULL)",
    REQUEST_KEY: MESSAGE + "(-1, 2, -6, 'user', '', now(), 'r', '')",
}


@pytest.mark.parametrize("name", sorted(CONSTRAINTS))
async def test_a_violated_constraint_is_an_error_of_the_domain(conn: Connection, name: str) -> None:
    """Each constraint, violated by SQL from outside, is translated to what it means."""
    await conn.execute(CONVERSATION + "(-1, 'u', 's', 'active', now(), now(), 1, 2)")
    await conn.execute(MESSAGE + "(-1, 1, -5, 'user', '', now(), 'r', '')")
    with pytest.raises(psycopg.errors.IntegrityError) as violated:
        await conn.execute(VIOLATIONS[name])
    assert violated.value.diag.constraint_name == name
    translated = translate(violated.value)
    assert type(translated) is (
        TransactionAborted if name in (REQUEST_KEY, *ID_KEYS) else StoreError
    )
    assert isinstance(translated, StoreError | TransactionAborted)
    assert translated.reason == CONSTRAINTS[name]
    assert translated.sqlstate == violated.value.sqlstate
    assert translated.retryable is (name in {REQUEST_KEY, *ID_KEYS})
    assert is_contested(violated.value) is (name == REQUEST_KEY)


def test_every_constraint_is_violated_here() -> None:
    """A constraint that is new must be tried too."""
    assert set(VIOLATIONS) == set(CONSTRAINTS)


# Refusals ---------------------------------------------------------------------------------------


def test_every_refusal_has_its_meaning() -> None:
    """The kinds that the statements name are those that errors.py translates."""
    named = set()
    for text in TEMPLATES.values():
        for called in re.findall(r"\{refuse\}\((.*?)json_build_object", text, re.DOTALL):
            named |= set(re.findall(r"(?:^|THEN|ELSE)\s*'(\w+)'", called.strip()))
    assert named == set(REFUSALS)


async def test_a_refusal_is_an_error_of_the_domain(conn: Connection) -> None:
    """The function of the migrations raises what errors.py understands, detail included."""
    detail = '{"conversation_id": 7, "expected_version": 1, "version": 2}'
    with pytest.raises(psycopg.Error) as refused:
        await conn.execute("SELECT refuse('stale', %s)", [detail])
    error = translate(refused.value)
    assert isinstance(error, ConcurrentUpdate)
    assert (error.conversation_id, error.expected_version, error.actual_version) == (7, 1, 2)


# Columns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("constraint", "values"),
    [("ai_conversations_status_check", Status), ("ai_messages_role_check", Role)],
)
async def test_what_a_check_lists_is_what_the_domain_knows(
    conn: Connection, constraint: str, values: Any
) -> None:
    """Statuses and roles are the same in the tables and in the domain."""
    [definition] = await column(
        conn,
        """SELECT pg_get_constraintdef(oid) FROM pg_constraint
        WHERE conname = %s AND connamespace = %s::regnamespace""",
        constraint,
        SCHEMA,
    )
    assert set(re.findall(r"'(\w+)'::text", definition)) == {value.value for value in values}


async def test_keys_are_ordered_by_bytes(conn: Connection) -> None:
    """Text is of collation C wherever it is compared: only the content of messages is not."""
    found = await rows(
        conn,
        """SELECT attrelid::regclass::text, attname, collname
        FROM pg_attribute LEFT JOIN pg_collation ON pg_collation.oid = attcollation
        WHERE attrelid IN ('ai_conversations'::regclass, 'ai_messages'::regclass)
            AND atttypid = 'text'::regtype AND attnum > 0""",
    )
    others = {(table, name) for table, name, collation in found if collation != "C"}
    assert others == {("ai_messages", "content")}
    assert len(found) > 8


async def test_names_are_in_the_glossary(conn: Connection) -> None:
    """Each table, column, sequence and function has its entry in docs/glossary.md."""
    names = await column(
        conn,
        """SELECT relname FROM pg_class
            WHERE relnamespace = %(schema)s::regnamespace AND relkind IN ('r', 'S')
        UNION SELECT attname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
            WHERE relnamespace = %(schema)s::regnamespace AND relkind = 'r' AND attnum > 0
                AND relname <> 'conversation_store_migrations'
        UNION SELECT proname FROM pg_proc WHERE pronamespace = %(schema)s::regnamespace""".replace(
            "%(schema)s", f"'{SCHEMA}'"
        ),
    )
    assert {"ai_conversations", "ai_messages", "ai_ids", "refuse", "position"} <= set(names)
    entries = set(re.findall(r"\*\*(\w+)\*\*", GLOSSARY.read_text("utf-8")))
    assert set(names) - entries == set()


# Statements -------------------------------------------------------------------------------------


@pytest.mark.parametrize("character", ['"', "%", "x"])
def test_statements_stay_short_and_static(character: str) -> None:
    """Each is short enough for psycopg to keep, whatever the schema's name, and says where."""
    composed = {
        name: text for name, text in vars(Texts(character * 63)).items() if isinstance(text, bytes)
    }
    assert {name.upper() for name in composed} == set(TEMPLATES)
    assert {name: len(text) for name, text in composed.items() if len(text) >= 4096} == {}
    for text in composed.values():
        assert not re.search(rb"\{(conversations|messages)(_name)?\}|\{refuse\}", text)
        assert len(set(re.findall(rb"%\((\w+)\)s", text))) <= 50


# What is missing --------------------------------------------------------------------------------


async def _use(dsn: str, schema: str) -> None:
    async with ConversationStore.connect(dsn, schema=schema, min_size=1, max_size=2) as store:
        await start_conversation(store.unit_of_work(), user_id="u", session_id="s", drafts=turn(1))


async def _read(dsn: str, schema: str) -> None:
    async with ConversationStore.connect(dsn, schema=schema, min_size=1, max_size=2) as store:
        await get_conversation(store.unit_of_work(), conversation_id=1)


@pytest.mark.parametrize("use", [_use, _read])
@pytest.mark.parametrize("schema", ["no_such_schema", "an_empty_schema"])
async def test_what_was_never_migrated(dsn: str, use: Any, schema: str) -> None:
    """Without the schema, or without its tables, the store says what to run."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute("CREATE SCHEMA IF NOT EXISTS an_empty_schema")
    with pytest.raises(StoreMisconfigured, match="migrate") as caught:
        await use(dsn, schema)
    assert caught.value.sqlstate in {"42P01", "3F000"}
    assert not caught.value.retryable


LACKS: dict[str, LiteralString] = {
    "schema": "REVOKE USAGE ON SCHEMA {schema} FROM {role}",
    "sequence": "REVOKE USAGE ON SEQUENCE {schema}.ai_ids FROM {role}",
    "conversations": "REVOKE INSERT ON {schema}.ai_conversations FROM {role}",
    "messages": "REVOKE INSERT ON {schema}.ai_messages FROM {role}",
    "nothing": "SELECT",
}


@pytest.mark.parametrize("lacks", sorted(LACKS))
async def test_a_role_that_lacks_a_privilege(
    dsn: str, store: ConversationStore, lacks: str
) -> None:
    """A role with USAGE, and the four verbs on the tables, is enough; with less it is told so."""
    role = f"lacks_{lacks}"

    def filled(text: LiteralString) -> sql.Composed:
        return sql.SQL(text).format(role=sql.Identifier(role), schema=sql.Identifier(SCHEMA))

    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
        await admin.execute(filled("CREATE ROLE {role} LOGIN PASSWORD 'secret'"))
        try:
            for grant in (
                "GRANT USAGE ON SCHEMA {schema} TO {role}",
                "GRANT USAGE ON SEQUENCE {schema}.ai_ids TO {role}",
                """GRANT SELECT, INSERT, UPDATE, DELETE
                ON {schema}.ai_conversations, {schema}.ai_messages TO {role}""",
                LACKS[lacks],
            ):
                await admin.execute(filled(grant))
            theirs = make_conninfo(dsn, user=role, password="secret")
            if lacks == "nothing":
                async with ConversationStore.connect(theirs, schema=SCHEMA, min_size=1) as used:
                    conversation, _ = await start_conversation(
                        used.unit_of_work(), user_id="u", session_id="s"
                    )
                    uow = used.unit_of_work()
                    await append_messages(
                        uow, conversation_id=conversation.id, drafts=turn(1), request_id="r"
                    )
            else:
                with pytest.raises(StoreMisconfigured, match="privilege") as caught:
                    await _use(theirs, SCHEMA)
                assert caught.value.sqlstate == "42501"
        finally:
            await admin.execute(filled("DROP OWNED BY {role}"))
            await admin.execute(filled("DROP ROLE {role}"))
