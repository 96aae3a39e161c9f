"""Migrations: the numbered .sql files beside this module, applied once each, in order.

Each runs in a transaction of its own, under a lock that makes any number of processes take turns,
and is recorded with its checksum. What is left of a process that died is undone by the server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Final

import psycopg
from attrs import frozen
from psycopg import sql

from ...domain.errors import StoreMisconfigured
from ...domain.text import storable_text
from .connections import Connection
from .errors import translate
from .rows import Row
from .statement import new_cursor

DEFAULT_ID_BLOCK: Final = 1000
"""How many ids a process draws at a time."""
MAX_ID_BLOCK: Final = 1_000_000
"""Largest such block."""

MAX_SCHEMA_BYTES: Final = 63
"""Longest name of a schema, in bytes of UTF-8; PostgreSQL would cut off the rest."""

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('conversation_store ' || {}, 0))"

_RECORDS: Final = """CREATE TABLE IF NOT EXISTS {schema}.conversation_store_migrations (
    number     integer     NOT NULL,
    name       text        NOT NULL,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT conversation_store_migrations_pkey PRIMARY KEY (number)
)"""

_RECORD: Final = """INSERT INTO {schema}.conversation_store_migrations (number, name, checksum)
VALUES ({number}, {name}, {checksum})"""


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


def known_migrations() -> list[Migration]:
    """Return the migrations of this version of the package, in order."""
    folder = resources.files(__name__.rpartition(".")[0]) / "migrations"
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    return [
        Migration(int(file.name[:4]), file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in files
    ]


def migration_sql(schema: str = "operational", id_block: int = DEFAULT_ID_BLOCK) -> str:
    """Return all that `migrate` would run on an empty database, for a tool of the host's own.

    Run it in one transaction. It records itself, so that `migrate` finds nothing left to do.
    Errors: StoreMisconfigured for a name or a block that cannot be.
    """
    check_schema(schema)
    _check_id_block(id_block)
    statements = [
        f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)}",
        _RECORDS.replace("{schema}", _quoted(schema)),
    ]
    for migration in known_migrations():
        statements += [_filled(migration, schema, id_block), _record(migration, schema)]
    return ";\n\n".join(statement.strip().removesuffix(";") for statement in statements) + ";\n"


async def migrate(
    connection: Connection, schema: str, id_block: int = DEFAULT_ID_BLOCK
) -> list[str]:
    """Apply the migrations that are missing; return their names.

    Errors: StoreMisconfigured where the database is newer than this code, where a file that was
    applied has changed since, and where the role lacks a privilege.
    """
    _check_id_block(id_block)
    known = known_migrations()
    applied: list[str] = []
    try:
        while True:
            async with connection.transaction():
                missing = await _missing(connection, schema, known)
                if missing:
                    await _run(connection, _filled(missing[0], schema, id_block))
                    await _run(connection, _record(missing[0], schema))
                    applied.append(missing[0].name)
            if len(missing) <= 1:
                return applied
    except psycopg.Error as error:
        raise translate(error) from error


def check_schema(schema: str) -> None:
    """Raise StoreMisconfigured for a name that PostgreSQL would refuse or cut short."""
    is_text = storable_text(schema) == schema
    if not is_text or not 1 <= len(schema.encode()) <= MAX_SCHEMA_BYTES:
        reason = f"a schema's name must be a text of 1..{MAX_SCHEMA_BYTES} bytes that can be stored"
        raise StoreMisconfigured(reason=reason)


def _check_id_block(id_block: object) -> None:
    is_flag = isinstance(id_block, bool)
    if is_flag or not isinstance(id_block, int) or not 1 <= id_block <= MAX_ID_BLOCK:
        raise StoreMisconfigured(reason=f"id_block must be 1..{MAX_ID_BLOCK}")


async def _missing(
    connection: Connection, schema: str, known: Sequence[Migration]
) -> list[Migration]:
    """Take the turn, and return the migrations that are not applied yet."""
    [(lock_timeout,)] = await _rows(connection, "SHOW lock_timeout")
    await _run(connection, "SET LOCAL lock_timeout = 0")  # turns are waited for, however long
    await _run(connection, _LOCK.replace("{}", _literal(schema)))
    await _run(connection, f"SET LOCAL lock_timeout = {_literal(str(lock_timeout))}")
    # Only where it is missing: creating it needs a privilege on the database.
    schemas = f"SELECT FROM pg_namespace WHERE nspname = {_literal(schema)}"
    if not await _rows(connection, schemas):
        await _run(connection, f"CREATE SCHEMA {_quoted(schema)}")
    records = f"{_quoted(schema)}.conversation_store_migrations"
    [(there,)] = await _rows(connection, f"SELECT to_regclass({_literal(records)}) IS NOT NULL")
    if not there:
        await _run(connection, _RECORDS.replace("{schema}", _quoted(schema)))
    rows = await _rows(connection, f"SELECT number, name, checksum FROM {records} ORDER BY number")
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


async def _run(connection: Connection, text: str) -> None:
    await new_cursor(connection).execute(text.encode(), prepare=False)


async def _rows(connection: Connection, text: str) -> list[Row]:
    cursor = new_cursor(connection)
    await cursor.execute(text.encode())
    return await cursor.fetchall()


def _filled(migration: Migration, schema: str, id_block: int) -> str:
    return migration.text.replace("{id_block}", str(id_block)).replace("{schema}", _quoted(schema))


def _record(migration: Migration, schema: str) -> str:
    return (
        _RECORD.replace("{number}", str(migration.number))
        .replace("{name}", _literal(migration.name))
        .replace("{checksum}", _literal(migration.checksum))
        .replace("{schema}", _quoted(schema))
    )


def _quoted(schema: str) -> str:
    return sql.Identifier(schema).as_string()


def _literal(text: str) -> str:
    return sql.Literal(text).as_string()
