"""What `doctor` finds: each thing that can be wrong is found, and what it advises mends it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import capabilities, sql
from psycopg.conninfo import make_conninfo
from small_pooler import SmallPooler
from store_fixtures import APPLICATION, MAINTENANCE, READER, ROLES, as_role, create_roles

from conversation_store import ConversationStore, StoreMisconfigured, StoreUnavailable
from conversation_store.adapters.postgres import examination, examined_pooler
from conversation_store.adapters.postgres.examination import examine, has_problem
from conversation_store.adapters.postgres.examined_schema import NEEDS, Need
from conversation_store.adapters.postgres.findings import Finding, Severity
from conversation_store.adapters.postgres.migrate import known_migrations

SCHEMA = 'Examined "schema"'
NAME = sql.Identifier(SCHEMA)
NEWEST = known_migrations()[-1]
LIMITED = " ".join(
    f"-c {name}=60s"
    for name in ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")
)

Look = Callable[..., Awaitable[dict[str, Finding]]]


@pytest.fixture
def owner(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """Give a connection of the owner, who has migrated and granted."""
    create_roles(dsn)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(NAME))
        printed = ConversationStore.migration_sql(schema=SCHEMA, row_security=True, **ROLES)
        with connection.transaction():
            connection.execute(printed.encode())
        yield connection
        connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(NAME))


@pytest.fixture
def look(dsn: str, owner: psycopg.Connection[Any]) -> Look:
    """Give a way to examine as a role, or as the owner, by what is looked at."""

    async def examine_as(role: str | None = None, **more: Any) -> dict[str, Finding]:
        its_dsn = as_role(dsn, role) if role else dsn
        found = await examine(make_conninfo(its_dsn, **more), SCHEMA)
        assert len({finding.about for finding in found}) == len(found)
        assert all(finding.remedy for finding in found if finding.severity is not Severity.OK)
        assert "secret" not in str(found)
        return {finding.about: finding for finding in found}

    return examine_as


def run_on(connection: psycopg.Connection[Any], text: str) -> None:
    """Run SQL in which {} is the schema."""
    connection.execute(sql.SQL(text).format(NAME))


def bad(found: dict[str, Finding]) -> dict[str, Severity]:
    """Return what is not well; a server for tests is never durable."""
    kept = (each for each in found.values() if each.about != "writing")
    return {each.about: each.severity for each in kept if each.severity is not Severity.OK}


async def test_the_application_role_is_well(look: Look) -> None:
    """As `migrate` grants, and with timeouts, there is nothing to mend."""
    limited = LIMITED + " -c transaction_timeout=60s"
    found = await look(APPLICATION)
    assert bad(found) == {"timeouts": Severity.ADVICE}
    assert not has_problem(list(found.values()))
    assert "binds" in found["row security"].what
    assert APPLICATION in found["connection"].what
    if "transaction_timeout" not in str(found["timeouts"].what):  # before PostgreSQL 17
        limited = LIMITED
    assert bad(await look(APPLICATION, options=limited)) == {}


async def test_other_roles(look: Look) -> None:
    """A reader, the maintenance role and the owner work; who they are is said."""
    reader, everybodys = await look(READER), await look(MAINTENANCE)
    owners = await look()
    assert reader["privileges"].severity is Severity.ADVICE
    assert "may read, and nothing else" in reader["privileges"].what
    assert everybodys["privileges"].severity is Severity.OK
    assert everybodys["row security"].severity is Severity.ADVICE
    assert "owner" in owners["privileges"].what
    assert f"all {NEWEST.number} are applied" in owners["migrations"].what
    assert owners["role"].severity is Severity.ADVICE


async def test_timeouts_are_mended_by_what_is_advised(
    look: Look, owner: psycopg.Connection[Any]
) -> None:
    """The remedy is SQL that can be run as it stands."""
    remedy = (await look(APPLICATION))["timeouts"].remedy
    assert remedy is not None
    role = sql.Identifier(APPLICATION)
    try:
        owner.execute(remedy.encode())
        assert bad(await look(APPLICATION)) == {}
    finally:
        owner.execute(sql.SQL("ALTER ROLE {} RESET ALL").format(role))


# Privileges ---------------------------------------------------------------------------------------


def test_the_needs_are_what_is_granted(owner: psycopg.Connection[Any]) -> None:
    """No privilege is granted that is not looked for, and the other way round."""
    granted = owner.execute(
        """WITH acls AS (
            SELECT relname::text AS name, NULL::text AS part, relacl AS acl, relnamespace AS home
                FROM pg_class
            UNION ALL SELECT relname, attname, attacl, relnamespace
                FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
            UNION ALL SELECT proname, NULL, proacl, pronamespace FROM pg_proc)
        SELECT privilege_type, part, name FROM acls, aclexplode(acl)
        WHERE home = (SELECT oid FROM pg_namespace WHERE nspname = %s) AND grantee = (
            SELECT oid FROM pg_roles WHERE rolname = %s)""",
        [SCHEMA, APPLICATION],
    )
    assert {Need(*row) for row in granted} == set(NEEDS)


async def test_each_privilege_is_missed(
    look: Look, dsn: str, owner: psycopg.Connection[Any]
) -> None:
    """A role that lacks one is told which, and the command that is advised gives it."""
    kinds = {"ai_ids": "SEQUENCE ", "refuse": "FUNCTION ", "is_own": "FUNCTION "}
    for need in NEEDS:
        what = need.verb if need.column is None else f"{need.verb} ({need.column})"
        text = f"REVOKE {what} ON {kinds.get(need.on, '')}{{}}.{need.on} FROM "
        owner.execute(sql.SQL(text).format(NAME) + sql.Identifier(APPLICATION))
        found = (await look(APPLICATION))["privileges"]
        assert found.severity is Severity.PROBLEM
        assert f"lacks {what} on {need.on}" in found.what
        assert found.remedy is not None
        assert "migrate --schema" in found.remedy
        assert "--application-role" in found.remedy
        async with ConversationStore.connect(dsn, schema=SCHEMA, min_size=1) as store:
            await store.migrate(application_role=APPLICATION)
    assert (await look(APPLICATION))["privileges"].severity is Severity.OK


# The schema ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "about", "what"),
    [
        ("DROP SCHEMA {} CASCADE", "schema", "there is no schema"),
        ("DROP FUNCTION {}.is_own CASCADE", "migrations", "has no is_own"),
        ("DROP TABLE {}.conversation_store_migrations", "migrations", "has no conversation_store"),
        (
            f"DELETE FROM {{}}.conversation_store_migrations WHERE number = {NEWEST.number}",
            "migrations",
            f"missing: {NEWEST.name}",
        ),
        (
            "INSERT INTO {}.conversation_store_migrations VALUES (9999, '9999_new', 'x')",
            "migrations",
            "9999_new, which is newer",
        ),
        (
            "UPDATE {}.conversation_store_migrations SET checksum = 'x' WHERE number = 1",
            "migrations",
            "another form",
        ),
        (
            "ALTER TABLE {}.ai_messages DISABLE ROW LEVEL SECURITY",
            "row security",
            "not on both tables",
        ),
        (
            "ALTER POLICY ai_messages_user ON {}.ai_messages USING (true)",
            "row security",
            "in the form",
        ),
    ],
)
async def test_what_is_missing_in_a_schema(
    look: Look, owner: psycopg.Connection[Any], text: str, about: str, what: str
) -> None:
    """Tables, functions, migrations and policies that are not there, or not as they were."""
    run_on(owner, text)
    found = await look()
    assert found[about].severity is Severity.PROBLEM
    assert what in found[about].what


async def test_row_security_that_is_off(look: Look, owner: psycopg.Connection[Any]) -> None:
    """That is well, and said."""
    for table in ("ai_conversations", "ai_messages"):
        run_on(owner, f"ALTER TABLE {{}}.{table} DISABLE ROW LEVEL SECURITY")
    found = (await look(APPLICATION))["row security"]
    assert (found.severity, found.what[:4]) == (Severity.OK, "off:")


async def test_row_security_that_is_refused(look: Look) -> None:
    """A role with the setting row_security off can read nothing where policies bind it."""
    found = (await look(APPLICATION, options="-c row_security=off"))["row security"]
    assert found.severity is Severity.PROBLEM
    role = sql.Identifier(APPLICATION).as_string()
    assert found.remedy == f"ALTER ROLE {role} SET row_security = on;"


async def test_a_schema_that_may_not_be_used(look: Look, owner: psycopg.Connection[Any]) -> None:
    """The role learns that, and nothing fails."""
    role = sql.Identifier(APPLICATION)
    owner.execute(sql.SQL("REVOKE USAGE ON SCHEMA {} FROM {}").format(NAME, role))
    found = await look(APPLICATION)
    assert found["schema"].severity is Severity.PROBLEM
    assert "may not use" in found["schema"].what


# The server ---------------------------------------------------------------------------------------


async def test_transactions_that_are_read_only(look: Look) -> None:
    """A role that may write nothing is a problem."""
    found = await look(APPLICATION, options="-c default_transaction_read_only=on")
    assert found["writing"].severity is Severity.PROBLEM


async def test_a_client_that_is_not_in_utf8(look: Look) -> None:
    """Its encoding could not hold everything that is said."""
    found = await look(APPLICATION, client_encoding="latin1")
    assert found["server"].severity is Severity.PROBLEM
    assert "LATIN1" in found["server"].what


WELL = ("me", True, "18.1", 180001, "UTF8", "UTF8", False, False, True, True, "on", False)


@pytest.mark.parametrize(
    ("number", "value", "about", "severity"),
    [
        (1, False, "server", Severity.ADVICE),
        (3, 140012, "server", Severity.PROBLEM),
        (4, "LATIN1", "server", Severity.PROBLEM),
        (6, True, "writing", Severity.PROBLEM),
        (7, True, "writing", Severity.PROBLEM),
        (8, False, "writing", Severity.ADVICE),
        (10, "off", "writing", Severity.ADVICE),
        (10, "on", "nothing", Severity.OK),
    ],
)
def test_what_a_server_may_be(number: int, value: object, about: str, severity: Severity) -> None:
    """An old one, a standby, one that forgets."""
    row = (*WELL[:number], value, *WELL[number + 1 :])
    found = [examination._server(row), *examination._writing(row)]
    bad = {each.about: each.severity for each in found if each.severity is not Severity.OK}
    assert bad == ({about: severity} if severity is not Severity.OK else {})


def test_an_old_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pipelines nothing works."""
    monkeypatch.setattr(capabilities, "has_pipeline", lambda: False)
    assert examination._server(WELL).severity is Severity.PROBLEM


@pytest.mark.parametrize(
    ("host", "tls", "gssapi", "mode", "severity"),
    [
        ("/run/postgresql", False, False, None, Severity.OK),
        ("db.example.org", False, False, None, Severity.ADVICE),
        ("db.example.org", True, False, None, Severity.ADVICE),
        ("db.example.org", True, False, b"require", Severity.ADVICE),
        ("db.example.org", True, False, b"verify-full", Severity.OK),
        ("db.example.org", False, True, None, Severity.OK),
    ],
)
def test_encryption(  # noqa: PLR0917
    monkeypatch: pytest.MonkeyPatch,
    host: str,
    tls: bool,
    gssapi: bool,
    mode: bytes | None,
    severity: Severity,
) -> None:
    """What leaves the machine is to be encrypted, and the server to prove who it is."""
    monkeypatch.setattr(examination, "is_encrypted", lambda _: tls or gssapi)
    info = [SimpleNamespace(keyword=b"sslmode", val=mode)]
    pgconn: Any = SimpleNamespace(host=host.encode(), hostaddr=b"", ssl_in_use=tls, info=info)
    assert examination._encryption(pgconn).severity is severity


@pytest.mark.parametrize(("ahead", "said"), [(-10.0, "behind"), (10.0, "ahead of")])
async def test_a_clock_that_is_wrong(
    look: Look, monkeypatch: pytest.MonkeyPatch, ahead: float, said: str
) -> None:
    """A server whose clock is elsewhere is told of, and in which direction."""
    wrong = SimpleNamespace(time=lambda: time.time() - ahead, monotonic=time.monotonic)
    monkeypatch.setattr(examination, "time", wrong)
    found = (await look(APPLICATION))["clock"]
    assert found.severity is Severity.ADVICE
    assert f"is 10.0 s {said} this machine's" in found.what


async def test_what_cannot_be_examined(dsn: str) -> None:
    """A server that does not answer, a string that cannot be read, a schema that cannot be."""
    with pytest.raises(StoreUnavailable):
        await examine("host=127.0.0.1 port=1 password=secret", SCHEMA)
    with pytest.raises(StoreMisconfigured):
        await examine("no such thing", SCHEMA)
    with pytest.raises(StoreMisconfigured):
        await examine(dsn, "")


# Poolers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooler", "prepares", "severity", "what"),
    [
        ({"size": 2}, True, Severity.PROBLEM, "loses prepared statements"),
        ({"size": 2}, False, Severity.OK, "no statements are prepared"),
        ({"size": 2, "bears": True}, True, Severity.OK, "bears prepared statements"),
        ({"size": 6, "sessions": True}, True, Severity.OK, "keep sessions"),
        ({"size": 1}, True, Severity.ADVICE, "no second connection"),
    ],
)
async def test_a_pooler(  # noqa: PLR0917
    dsn: str,
    monkeypatch: pytest.MonkeyPatch,
    pooler: dict[str, Any],
    prepares: bool,
    severity: Severity,
    what: str,
) -> None:
    """It is noticed, and what it does with prepared statements is tried."""
    if pooler["size"] == 1:
        monkeypatch.setattr(examined_pooler, "_SECONDS", 0.3)
    async with SmallPooler(dsn, **pooler) as between:
        found = {f.about: f for f in await examine(between.dsn, "operational", prepares=prepares)}
    assert found["pooler"].severity is severity
    assert what in found["pooler"].what
