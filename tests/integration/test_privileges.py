"""What each role may do, to the last privilege, and that all else is denied.

The schema has row security. Statements are sent as a role could send them whose application was
taken over: by hand, past the store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from attrs import frozen
from psycopg import sql
from store_fixtures import (
    APPLICATION,
    MAINTENANCE,
    READER,
    ROLES,
    as_role,
    create_roles,
    draft,
    open_store_as,
)
from wired_store import SERVICE_FUNCTIONS, Wired, service_functions

from conversation_store import (
    ConversationStore,
    StoreMisconfigured,
    export_conversations,
    import_conversations,
    start_conversation,
)

Connection = psycopg.Connection[Any]

SCHEMA = "privileges"
DENIED = "42501"
EVERYBODY = tuple(ROLES.values())


@pytest.fixture(scope="module")
def owner(dsn: str) -> Iterator[Connection]:
    """Give a connection of the owner, who has migrated and put one conversation there."""
    create_roles(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(SCHEMA))
        )
        printed = ConversationStore.migration_sql(schema=SCHEMA, row_security=True, **ROLES)
        with connection.transaction():
            connection.execute(printed.encode())
        connection.execute(
            """INSERT INTO privileges.ai_conversations (id, user_id, session_id, status, start_time,
                last_activity, message_count, version)
            VALUES (-1, 'u', 's', 'active', now(), now(), 1, 1)"""
        )
        connection.execute(
            """INSERT INTO privileges.ai_messages (conversation_id, position, id, role, content,
                timestamp) VALUES (-1, 1, -2, 'user', 'hello', now())"""
        )
        yield connection


@pytest.fixture(scope="module")
def roles(dsn: str, owner: Connection) -> Iterator[dict[str, Connection]]:
    """Give a connection of each role."""
    connections = {role: psycopg.connect(as_role(dsn, role), autocommit=True) for role in EVERYBODY}
    yield connections
    for connection in connections.values():
        connection.close()


def attempt(connection: Connection, statements: str) -> str | None:
    """Send statements and undo them; return the SQLSTATE that they ended with, if any."""
    try:
        with connection.transaction(force_rollback=True):
            connection.execute("SET LOCAL conversation_store.user_id = 'u'")
            connection.execute(statements.encode())
    except psycopg.Error as error:
        return error.sqlstate
    return None


# Denied -----------------------------------------------------------------------------------------


@frozen
class Attempt:
    """Something that roles must not be able to do."""

    statements: str
    """{owner}, {role}: the names of the owner and of the role that tries."""
    denied: tuple[str, ...] = EVERYBODY


FORBIDDEN = [
    # New things in the schema, and in the database.
    "CREATE TABLE privileges.mine ()",
    "CREATE TABLE privileges.mine AS SELECT * FROM privileges.ai_messages",
    "CREATE VIEW privileges.mine AS SELECT 1",
    "CREATE MATERIALIZED VIEW privileges.mine AS SELECT 1",
    "CREATE SEQUENCE privileges.mine",
    "CREATE TYPE privileges.mine AS ENUM ()",
    "CREATE DOMAIN privileges.mine AS text",
    "CREATE FUNCTION privileges.mine() RETURNS integer LANGUAGE sql RETURN 1",
    "CREATE FUNCTION privileges.refuse(text, text) RETURNS boolean LANGUAGE sql RETURN true",
    "CREATE OPERATOR privileges.=== (FUNCTION = texteq, LEFTARG = text, RIGHTARG = text)",
    'CREATE COLLATION privileges.mine FROM "C"',
    "CREATE STATISTICS privileges.mine ON id, status FROM privileges.ai_conversations",
    "CREATE INDEX ON privileges.ai_messages (content)",
    """CREATE TRIGGER mine BEFORE UPDATE ON privileges.ai_messages FOR EACH ROW
        EXECUTE FUNCTION suppress_redundant_updates_trigger()""",
    "CREATE RULE mine AS ON UPDATE TO privileges.ai_messages DO INSTEAD NOTHING",
    "CREATE AGGREGATE privileges.mine (text) (SFUNC = textcat, STYPE = text)",
    "CREATE TEXT SEARCH CONFIGURATION privileges.mine (COPY = simple)",
    "SELECT * INTO privileges.mine FROM privileges.ai_messages",
    "CREATE TEMP TABLE mine () INHERITS (privileges.ai_messages)",
    "CREATE TABLE public.mine ()",
    "CREATE SCHEMA mine",
    "CREATE PUBLICATION mine",
    "CREATE FOREIGN DATA WRAPPER mine",
    "CREATE ROLE mine",
    # The tables, their policies, the sequence and the functions as they are.
    "ALTER TABLE privileges.ai_messages ADD COLUMN mine text",
    "ALTER TABLE privileges.ai_messages DROP COLUMN slots",
    "ALTER TABLE privileges.ai_messages ALTER COLUMN content TYPE varchar",
    "ALTER TABLE privileges.ai_messages ALTER COLUMN content SET DEFAULT 'x'",
    "ALTER TABLE privileges.ai_messages DROP CONSTRAINT ai_messages_conversation_fkey",
    "ALTER TABLE privileges.ai_messages ADD CONSTRAINT mine CHECK (position > 0)",
    "ALTER TABLE privileges.ai_messages DISABLE TRIGGER ALL",
    "ALTER TABLE privileges.ai_messages DISABLE ROW LEVEL SECURITY",
    "ALTER TABLE privileges.ai_messages NO FORCE ROW LEVEL SECURITY",
    "ALTER TABLE privileges.ai_messages RENAME TO mine",
    "ALTER TABLE privileges.ai_messages SET SCHEMA public",
    "ALTER TABLE privileges.ai_messages SET (autovacuum_enabled = false)",
    "ALTER TABLE privileges.ai_messages OWNER TO {role}",
    "ALTER POLICY ai_messages_user ON privileges.ai_messages USING (true)",
    "DROP POLICY ai_messages_user ON privileges.ai_messages",
    "CREATE POLICY mine ON privileges.ai_messages USING (true)",
    "COMMENT ON POLICY ai_messages_user ON privileges.ai_messages IS NULL",
    "COMMENT ON TABLE privileges.ai_messages IS NULL",
    "TRUNCATE privileges.ai_messages",
    "TRUNCATE privileges.ai_conversations CASCADE",
    "DROP TABLE privileges.ai_messages",
    "DROP INDEX privileges.ai_messages_request_key",
    "ALTER INDEX privileges.ai_messages_request_key RENAME TO mine",
    "REINDEX TABLE privileges.ai_messages",
    "CLUSTER privileges.ai_messages USING ai_messages_pkey",
    "ALTER SEQUENCE privileges.ai_ids RESTART",
    "ALTER SEQUENCE privileges.ai_ids INCREMENT BY 1",
    "DROP SEQUENCE privileges.ai_ids",
    "SELECT setval('privileges.ai_ids', 1)",
    "SELECT last_value FROM privileges.ai_ids",
    """CREATE OR REPLACE FUNCTION privileges.refuse(kind text, detail json) RETURNS boolean
        LANGUAGE sql RETURN true""",
    """CREATE OR REPLACE FUNCTION privileges.is_own(conversation_id bigint) RETURNS boolean
        LANGUAGE sql RETURN true""",
    "ALTER FUNCTION privileges.is_own(bigint) SECURITY DEFINER",
    "ALTER FUNCTION privileges.is_own(bigint) RESET search_path",
    "DROP FUNCTION privileges.refuse(text, json)",
    "ALTER SCHEMA privileges RENAME TO mine",
    "ALTER SCHEMA privileges OWNER TO {role}",
    "DROP SCHEMA privileges CASCADE",
    # What the store keeps of itself.
    "SELECT FROM privileges.conversation_store_migrations",
    "INSERT INTO privileges.conversation_store_migrations VALUES (9, '0009_mine', 'x')",
    "UPDATE privileges.conversation_store_migrations SET checksum = 'x'",
    "DELETE FROM privileges.conversation_store_migrations",
    "LOCK TABLE privileges.conversation_store_migrations IN ACCESS SHARE MODE",
    # Privileges, and other roles.
    "GRANT {owner} TO {role}",
    "GRANT pg_read_all_data TO {role}",
    "SET ROLE {owner}",
    "SET SESSION AUTHORIZATION {owner}",
    "ALTER ROLE {role} SUPERUSER",
    "ALTER ROLE {role} CREATEROLE",
    "ALTER ROLE {role} REPLICATION",
    "ALTER ROLE {role} BYPASSRLS",
    "ALTER ROLE {owner} PASSWORD 'x'",
    "ALTER ROLE {owner} SET search_path = mine",
    "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} GRANT ALL ON TABLES TO PUBLIC",
    "GRANT ALL ON privileges.conversation_store_migrations TO PUBLIC",
    "DROP OWNED BY {role}; DROP ROLE {role}",
    "SET session_replication_role = replica",
    "SET log_statement = 'all'",
    # The server's files, programs and secrets.
    "COPY privileges.ai_messages TO PROGRAM 'cat >/dev/null'",
    "CREATE TEMP TABLE mine (line text); COPY mine FROM PROGRAM 'true'",
    "CREATE TEMP TABLE mine (line text); COPY mine FROM '/dev/null'",
    "COPY (SELECT 1) TO '/dev/null'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT pg_ls_dir('.')",
    "CHECKPOINT",
    "SELECT pg_stat_reset()",
    "SELECT lo_import('/dev/null')",
    "SELECT rolpassword FROM pg_authid",
    "SELECT stavalues1 FROM pg_statistic",
]
"""Denied to every role."""

OF_SOME = [
    # A role that reads writes nothing, and locks nothing.
    Attempt("DELETE FROM privileges.ai_conversations", (READER,)),
    Attempt("DELETE FROM privileges.ai_messages", (READER,)),
    Attempt(
        "INSERT INTO privileges.ai_conversations VALUES"
        " (-9, 'u', 't', 'active', NULL, NULL, NULL, NULL, now(), now(), 0, 1)",
        (READER,),
    ),
    Attempt("INSERT INTO privileges.ai_messages VALUES (-1, 2, -9, 'user', 'x', now())", (READER,)),
    Attempt("SELECT FROM privileges.ai_conversations FOR KEY SHARE", (READER,)),
    Attempt("SELECT FROM privileges.ai_messages FOR UPDATE", (READER,)),
    Attempt("LOCK TABLE privileges.ai_messages IN ROW EXCLUSIVE MODE", (READER,)),
    Attempt("LOCK TABLE privileges.ai_messages IN ACCESS EXCLUSIVE MODE", (READER,)),
    Attempt("SELECT nextval('privileges.ai_ids')", (READER,)),
    Attempt("SELECT privileges.is_own(-1)", (READER,)),
    # Only the maintenance role is above row security.
    Attempt("SET row_security = off; SELECT FROM privileges.ai_messages", (APPLICATION, READER)),
    Attempt(
        "INSERT INTO privileges.ai_conversations VALUES"
        " (-9, 'v', 't', 'active', NULL, NULL, NULL, NULL, now(), now(), 0, 1)",
        (APPLICATION, READER),
    ),
]

_WORK = [
    "USAGE privileges",
    "USAGE ai_ids",
    "EXECUTE refuse",
    "EXECUTE is_own",
    *("SELECT ai_conversations", "INSERT ai_conversations", "DELETE ai_conversations"),
    "UPDATE ai_conversations.status",
    "UPDATE ai_conversations.rescue_id",
    "UPDATE ai_conversations.intent_type",
    "UPDATE ai_conversations.metadata",
    "UPDATE ai_conversations.last_activity",
    "UPDATE ai_conversations.message_count",
    "UPDATE ai_conversations.version",
    *("SELECT ai_messages", "INSERT ai_messages", "DELETE ai_messages"),
    "UPDATE ai_messages.content",
    "UPDATE ai_messages.intent_type",
    "UPDATE ai_messages.slots",
    "UPDATE ai_messages.metadata",
    "UPDATE ai_messages.request_digest",
]
_READ = ["USAGE privileges", "SELECT ai_conversations", "SELECT ai_messages", "EXECUTE refuse"]

HELD = {APPLICATION: _WORK, READER: _READ, MAINTENANCE: _WORK}
"""All that each role may do, as `held` says it."""


@pytest.mark.parametrize("statements", FORBIDDEN)
def test_denied_to_every_role(
    owner: Connection, roles: dict[str, Connection], statements: str
) -> None:
    """What no role may do is denied to each, and to each for want of a privilege."""
    check_denied(owner, roles, Attempt(statements))


@pytest.mark.parametrize("tried", OF_SOME, ids=lambda tried: tried.statements[:60])
def test_denied_to_some_roles(
    owner: Connection, roles: dict[str, Connection], tried: Attempt
) -> None:
    """What one role may do is denied to the others."""
    check_denied(owner, roles, tried)
    others = set(EVERYBODY) - set(tried.denied)
    for role in others:
        assert attempt(roles[role], filled(tried.statements, owner, role)) != DENIED


def test_what_others_have_is_not_known_by_a_conflict(roles: dict[str, Connection]) -> None:
    """Another user's session_id, taken or free, is refused alike, and by row security."""
    for session_id in ("s", "free"):
        with (
            pytest.raises(psycopg.errors.InsufficientPrivilege, match="row-level security"),
            roles[APPLICATION].transaction(),
        ):
            roles[APPLICATION].execute("SET LOCAL conversation_store.user_id = 'v'")
            roles[APPLICATION].execute(
                """INSERT INTO privileges.ai_conversations (id, user_id, session_id, status,
                    start_time, last_activity, message_count, version)
                VALUES (-9, 'u', %s, 'active', now(), now(), 0, 1)""",
                [session_id],
            )


def test_a_function_is_not_fooled_by_tables_of_the_same_name(
    roles: dict[str, Connection],
) -> None:
    """What a role puts before ours, among its temporary tables, is not what `is_own` looks at."""
    connection = roles[APPLICATION]
    with connection.transaction(force_rollback=True):
        connection.execute("CREATE TEMP TABLE ai_conversations (id bigint, user_id text)")
        connection.execute("INSERT INTO pg_temp.ai_conversations VALUES (-1, 'v')")
        connection.execute("SET LOCAL search_path = pg_temp, privileges, pg_catalog")
        for user, expected in (("v", False), ("u", True), ("", False)):
            connection.execute("SELECT set_config('conversation_store.user_id', %s, true)", [user])
            found = connection.execute("SELECT privileges.is_own(-1)").fetchone()
            assert found == (expected,), user


def test_columns_that_are_never_updated(owner: Connection, roles: dict[str, Connection]) -> None:
    """A row stays whose it is and where it stands: only listed columns can be updated."""
    found = owner.execute(
        """SELECT attrelid::regclass::text, relname, attname FROM pg_attribute
        JOIN pg_class ON oid = attrelid WHERE relnamespace = 'privileges'::regnamespace
            AND relkind = 'r' AND relname LIKE 'ai\\_%' AND attnum > 0"""
    ).fetchall()
    assert len(found) == 23
    for table, name, column in found:
        update = f"UPDATE {table} SET {column} = {column}"
        for role in EVERYBODY:
            expected = None if f"UPDATE {name}.{column}" in HELD[role] else DENIED
            assert attempt(roles[role], update) == expected, (role, update)


def test_no_role_hands_on_what_it_has(owner: Connection, roles: dict[str, Connection]) -> None:
    """A GRANT of a privilege that is held without grant option is a warning and does nothing."""
    for connection in roles.values():
        connection.execute("GRANT ALL ON privileges.ai_conversations TO PUBLIC")
        connection.execute("GRANT SELECT ON privileges.ai_messages TO PUBLIC")
        connection.execute("GRANT ALL ON SCHEMA privileges TO PUBLIC")
        connection.execute('REVOKE SELECT ON privileges.ai_messages FROM "chat reader"')
    assert held(owner) == {role: set(privileges) for role, privileges in HELD.items()}


def check_denied(owner: Connection, roles: dict[str, Connection], tried: Attempt) -> None:
    """Check that roles are denied what the owner can do, so that only a privilege is missing."""
    for role in tried.denied:
        statements = filled(tried.statements, owner, role)
        assert attempt(owner, statements) is None, statements
        assert attempt(roles[role], statements) == DENIED, role


def filled(statements: str, owner: Connection, role: str) -> str:
    """Return statements with the names of the owner and of the role that tries."""
    names = {"{owner}": owner.info.user, "{role}": role}
    for place, name in names.items():
        statements = statements.replace(place, sql.Identifier(name).as_string())
    return statements


# Granted ----------------------------------------------------------------------------------------

_HELD = """SELECT a.grantee,
    a.privilege_type || CASE WHEN a.is_grantable THEN '*' ELSE '' END, o.name
FROM (
    SELECT nspname::text AS name, nspowner AS owner, nspacl AS acl FROM pg_namespace
        WHERE nspname = 'privileges'
    UNION ALL SELECT relname, relowner, coalesce(relacl, acldefault(
            CASE relkind WHEN 'S' THEN 's'::"char" ELSE 'r' END, relowner)) FROM pg_class
        WHERE relnamespace = 'privileges'::regnamespace AND relkind <> 'i'
    UNION ALL SELECT relname || '.' || attname, relowner, attacl FROM pg_attribute
        JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'privileges'::regnamespace
    UNION ALL SELECT proname, proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
        WHERE pronamespace = 'privileges'::regnamespace
) AS o, aclexplode(o.acl) AS a WHERE a.grantee <> o.owner"""


def held(owner: Connection) -> dict[str, set[str]]:
    """Return what is granted on the schema and on all that is in it, but to the owner."""
    names: dict[int, str] = dict(owner.execute("SELECT oid, rolname FROM pg_roles").fetchall())
    found: dict[str, set[str]] = {}
    for grantee, privilege, name in owner.execute(_HELD):
        found.setdefault(names.get(grantee, "PUBLIC"), set()).add(f"{privilege} {name}")
    return found


def test_nothing_else_is_granted(owner: Connection) -> None:
    """The roles have exactly what is listed here, without grant option, and PUBLIC has nothing."""
    assert held(owner) == {role: set(privileges) for role, privileges in HELD.items()}


def test_functions_find_what_they_name(owner: Connection) -> None:
    """Each function of ours has its own search_path, and the rights of who calls it."""
    found = owner.execute(
        """SELECT proname, proconfig[1], prosecdef FROM pg_proc
        WHERE pronamespace = 'privileges'::regnamespace ORDER BY 1"""
    ).fetchall()
    assert found == [
        ("is_own", "search_path=pg_catalog, privileges, pg_temp", False),
        ("refuse", "search_path=pg_catalog, pg_temp", False),
    ]


@pytest.fixture
async def stores(dsn: str, migrated: set[str]) -> AsyncIterator[dict[str, ConversationStore]]:
    """Give a store of the application role, with a conversation, and one of the read-only role."""
    opened = open_store_as(APPLICATION, dsn, "granted", migrated)
    async with (
        opened as store,
        ConversationStore.connect(as_role(dsn, READER), schema="granted", min_size=1) as reading,
    ):
        yield {APPLICATION: store, READER: reading}


NO_PROXY: Any = None

READS = {
    "find_conversation",
    "get_conversation",
    "get_message",
    "latest_messages",
    "list_conversations",
    "list_conversations, of a status",
    "messages_after",
    "purge_conversations, a dry run",
}


async def test_the_application_does_not_migrate(stores: dict[str, ConversationStore]) -> None:
    """It may not even look what was applied."""
    for store in stores.values():
        with pytest.raises(StoreMisconfigured) as caught:
            await store.migrate()
        assert caught.value.sqlstate == DENIED


def test_every_service_function_is_tried() -> None:
    """A new one must be among those that read, or be denied to the read-only role."""
    tried = {name.split(",")[0] for name in SERVICE_FUNCTIONS}
    assert set(service_functions()) - tried == {"export_conversations", "import_conversations"}


async def test_the_read_only_role(stores: dict[str, ConversationStore]) -> None:
    """It can do every service function that reads, and none that writes."""
    conversation, [message] = await start_conversation(
        stores[APPLICATION].unit_of_work(), user_id="u", session_id="s", drafts=[draft("first")]
    )
    wired = Wired(stores[READER], NO_PROXY, conversation.id, message.id)
    for name, call in SERVICE_FUNCTIONS.items():
        uow = stores[READER].unit_of_work()
        if name in READS:
            await call(wired, uow)
            continue
        with pytest.raises(StoreMisconfigured) as caught:
            await call(wired, uow)
        assert caught.value.sqlstate == DENIED, name
    records = [record async for record in export_conversations(stores[READER].unit_of_work())]
    assert [record["session_id"] for record in records] == ["s"]
    records[0]["session_id"] = "t"
    with pytest.raises(StoreMisconfigured) as caught:
        await import_conversations(stores[READER].unit_of_work(), records=records)
    assert caught.value.sqlstate == DENIED


@pytest.mark.parametrize("role", [APPLICATION, READER])
async def test_every_privilege_is_needed(dsn: str, owner: Connection, role: str) -> None:
    """Without any one of those that a role has, some service function cannot do its work."""
    unneeded = set()
    of = sql.Identifier(role)
    for privilege in sorted(HELD[role]):
        owner.execute(sql.SQL("REVOKE {} FROM {}").format(on_what(privilege), of))
        try:
            if not await is_missed(dsn, role):
                unneeded.add(privilege)
        finally:
            owner.execute(sql.SQL("GRANT {} TO {}").format(on_what(privilege), of))
    assert unneeded == set()
    assert held(owner) == {role: set(privileges) for role, privileges in HELD.items()}


def on_what(privilege: str) -> sql.Composable:
    """Return what a GRANT of one of the privileges that `held` found says of it."""
    kind, name = privilege.split(" ")
    table, _, column = name.partition(".")
    what = {
        "privileges": "SCHEMA privileges",
        "ai_ids": "SEQUENCE privileges.ai_ids",
        "refuse": "FUNCTION privileges.refuse(text, json)",
        "is_own": "FUNCTION privileges.is_own(bigint)",
    }.get(table, f"TABLE privileges.{table}")
    return sql.SQL(f"{kind}{f' ({column})' if column else ''} ON {what}")


async def is_missed(dsn: str, role: str) -> bool:
    """Return whether a service function fails for want of a privilege, under row security."""
    options: dict[str, Any] = {"schema": SCHEMA, "min_size": 1, "row_security": True}
    async with (
        ConversationStore.connect(as_role(dsn, role), **options) as store,
        await psycopg.AsyncConnection.connect(as_role(dsn, role), autocommit=True) as connection,
    ):
        wired = Wired(store, NO_PROXY, -1, -2)
        for name, call in SERVICE_FUNCTIONS.items():
            if role == READER and name not in READS:
                continue
            try:
                async with connection.transaction(force_rollback=True):
                    await call(wired, store.unit_of_work(user_id="u", connection=connection))
            except StoreMisconfigured as error:
                return error.sqlstate == DENIED
    return False
