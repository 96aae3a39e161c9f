"""Migrations: the numbered .sql files beside this module, applied once each, in order.

Each runs in a transaction of its own, under a lock that makes any number of processes take turns,
and is recorded with its checksum. What is left of a process that died is undone by the server.
Row security and the privileges of roles come after them, where they are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from importlib import resources
from typing import Final

import psycopg
from attrs import field, frozen

from ...domain.errors import StoreMisconfigured
from .connections import Connection
from .ddl import fetch, fill, literal, quoted, run
from .errors import translate
from .privileges import Roles, check_granted, check_name, check_roles, grant, grants
from .rows import Row

DEFAULT_ID_BLOCK: Final = 1000
"""How many ids a process draws at a time."""
MAX_ID_BLOCK: Final = 1_000_000
"""Largest such block."""

ROW_SECURITY: Final = "row_security"
"""The name of what is not numbered: the policies of row security."""

RECORDS: Final = "conversation_store_migrations"
"""The table that says what was applied."""

_LOCK: Final = (
    "SELECT pg_advisory_xact_lock(hashtextextended('conversation_store ' || {schema}, 0))"
)

_MAKE_RECORDS: Final = """CREATE TABLE IF NOT EXISTS {schema}.conversation_store_migrations (
    number     integer     NOT NULL,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT conversation_store_migrations_pkey PRIMARY KEY (number)
)"""

_RECORD: Final = """INSERT INTO {schema}.conversation_store_migrations (number, name, checksum)
VALUES ({number}, {name}, {checksum})"""


# The comment of a policy holds the checksum of its file; it is written in the same transaction, so
# a policy that was altered since tells by its xmin.
_IS_SECURED: Final = """SELECT count(*) = 2
FROM pg_policy AS p JOIN pg_class AS c ON c.oid = p.polrelid
    JOIN pg_description AS d ON d.objoid = p.oid AND d.classoid = 'pg_policy'::regclass
WHERE (c.oid, p.polname) IN (({conversations}::regclass, 'ai_conversations_user'),
        ({messages}::regclass, 'ai_messages_user'))
    AND c.relrowsecurity AND c.relforcerowsecurity
    AND d.description = {checksum} AND d.xmin = p.xmin"""


@frozen
class Migration:
    """One numbered file."""

    number: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, in hexadecimal digits."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@frozen(kw_only=True)
class Wanted:
    """What a database is to be brought to."""

    id_block: int = DEFAULT_ID_BLOCK
    row_security: bool = False
    """Whether to switch it on; where not, it stays as it is."""
    roles: Roles = field(factory=dict[str, str])

    def check(self) -> None:
        """Raise StoreMisconfigured for what cannot be."""
        _check_id_block(self.id_block)
        check_roles(self.roles)


def known_migrations() -> list[Migration]:
    """Return the migrations of this version of the package, in order."""
    folder = resources.files(__name__.rpartition(".")[0]) / "migrations"
    names = sorted(file.name for file in folder.iterdir() if file.name[:4].isdigit())
    return [
        Migration(int(name[:4]), name.removesuffix(".sql"), (folder / name).read_text("utf-8"))
        for name in names
    ]


def migration_sql(
    schema: str = "operational",
    id_block: int = DEFAULT_ID_BLOCK,
    *,
    row_security: bool = False,
    roles: Roles | None = None,
) -> str:
    """Return all that `migrate` would run on an empty database, for a tool of the host's own.

    Run it in one transaction. It records itself, so that `migrate` finds nothing left to do.
    `roles` are by the keywords of `ConversationStore.migrate`.
    Errors: StoreMisconfigured for a name or a block that cannot be.
    """
    check_schema(schema)
    wanted = Wanted(id_block=id_block, row_security=row_security, roles=roles or {})
    wanted.check()
    statements = [
        f"CREATE SCHEMA IF NOT EXISTS {quoted(schema)}",
        fill(_MAKE_RECORDS, schema=quoted(schema)),
    ]
    for migration in known_migrations():
        statements += [_filled(migration, schema, wanted.id_block), _record(migration, schema)]
    if wanted.row_security:
        statements.append(_row_security(schema))
    statements += grants(schema, wanted.roles)
    return ";\n\n".join(statement.strip().removesuffix(";") for statement in statements) + ";\n"


async def migrate(connection: Connection, schema: str, wanted: Wanted) -> list[str]:
    """Apply the migrations that are missing and what else is wanted; return their names.

    Errors: StoreMisconfigured where the database is newer than this code, where a file that was
    applied has changed since, where a role is missing or is none that can be granted to, and where
    the own role lacks a privilege.
    """
    wanted.check()
    known = known_migrations()
    done: list[str] = []
    try:
        while True:
            async with _transaction(connection):
                await check_granted(connection, schema, wanted.roles)
                missing = await _missing(connection, schema, known)
                if missing:
                    await run(connection, _filled(missing[0], schema, wanted.id_block))
                    await run(connection, _record(missing[0], schema))
                    done.append(missing[0].name)
            if len(missing) <= 1:
                break
        if wanted.row_security or wanted.roles:
            async with _transaction(connection):
                await _take_turn(connection, schema)
                if wanted.row_security and not await is_secured(connection, schema):
                    await run(connection, _row_security(schema))
                    done.append(ROW_SECURITY)
                await grant(connection, schema, wanted.roles)
    except psycopg.Error as error:
        raise translate(error) from error
    return done


def check_schema(schema: str) -> None:
    """Raise StoreMisconfigured for a name that PostgreSQL would refuse or cut short."""
    check_name("a schema's name", schema)


def _check_id_block(id_block: object) -> None:
    is_flag = isinstance(id_block, bool)
    if is_flag or not isinstance(id_block, int) or not 1 <= id_block <= MAX_ID_BLOCK:
        raise StoreMisconfigured(reason=f"id_block must be 1..{MAX_ID_BLOCK}")


@asynccontextmanager
async def _transaction(connection: Connection) -> AsyncGenerator[None]:
    """Open a transaction in which nothing is done to some rows where all are meant.

    Forced row security binds the owner, too: what meets it unawares is refused, not filtered.
    """
    async with connection.transaction():
        [(row_security,)] = await fetch(connection, "SHOW row_security")
        await run(connection, "SET LOCAL row_security = off")
        yield
        await run(connection, f"SET LOCAL row_security = {literal(str(row_security))}")


async def _take_turn(connection: Connection, schema: str) -> None:
    """Wait, however long, until no other process migrates."""
    [(lock_timeout,)] = await fetch(connection, "SHOW lock_timeout")
    await run(connection, "SET LOCAL lock_timeout = 0")
    await run(connection, fill(_LOCK, schema=literal(schema)))
    await run(connection, f"SET LOCAL lock_timeout = {literal(str(lock_timeout))}")


async def _missing(
    connection: Connection, schema: str, known: Sequence[Migration]
) -> list[Migration]:
    """Take the turn, and return the migrations that are not applied yet."""
    await _take_turn(connection, schema)
    # Only where it is missing: creating it needs a privilege on the database.
    if not await fetch(connection, f"SELECT FROM pg_namespace WHERE nspname = {literal(schema)}"):
        await run(connection, f"CREATE SCHEMA {quoted(schema)}")
    records = quoted(schema, RECORDS)
    [(there,)] = await fetch(connection, f"SELECT to_regclass({literal(records)}) IS NOT NULL")
    if not there:
        await run(connection, fill(_MAKE_RECORDS, schema=quoted(schema)))
    return missing_after(await applied(connection, schema), known)


async def applied(connection: Connection, schema: str) -> list[Row]:
    """Return number, name and checksum of the migrations that were applied."""
    records = quoted(schema, RECORDS)
    return await fetch(connection, f"SELECT number, name, checksum FROM {records} ORDER BY number")


def missing_after(rows: Sequence[Row], known: Sequence[Migration]) -> list[Migration]:
    """Return the migrations that are not among those applied.

    Errors: StoreMisconfigured for one that is newer than this code, or is not what it was.
    """
    for number, name, checksum in rows:
        if number > len(known):
            raise StoreMisconfigured(
                reason=f"the database has migration {name}, which is newer than this version of "
                "conversation-store: upgrade the package"
            )
        migration = known[int(number) - 1]
        if checksum != migration.checksum:
            raise StoreMisconfigured(
                reason=f"migration {name} was applied in another form than this package has it: "
                "its file must not be changed"
            )
    return list(known[len(rows) :])


async def is_secured(connection: Connection, schema: str) -> bool:
    """Whether row security is on in the form that this version has it."""
    query = fill(
        _IS_SECURED,
        conversations=literal(quoted(schema, "ai_conversations")),
        messages=literal(quoted(schema, "ai_messages")),
        checksum=literal(_row_security_file().checksum),
    )
    return await fetch(connection, query) == [(True,)]


def _row_security_file() -> Migration:
    file = resources.files(__name__.rpartition(".")[0]) / "migrations" / f"{ROW_SECURITY}.sql"
    return Migration(0, ROW_SECURITY, file.read_text("utf-8"))


def _row_security(schema: str) -> str:
    file = _row_security_file()
    return fill(file.text, schema=quoted(schema), checksum=file.checksum)


def _filled(migration: Migration, schema: str, id_block: int) -> str:
    return fill(migration.text, schema=quoted(schema), id_block=str(id_block))


def _record(migration: Migration, schema: str) -> str:
    return fill(
        _RECORD,
        number=str(migration.number),
        name=literal(migration.name),
        checksum=literal(migration.checksum),
        schema=quoted(schema),
    )
