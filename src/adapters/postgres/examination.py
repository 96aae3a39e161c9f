"""An examination of a server and a schema: what the store needs of them, and whether it is there.

It writes nothing, and waits for no lock.
"""

from __future__ import annotations

import time
from typing import Final

import psycopg
from psycopg import capabilities, pq

from .connections import Connection
from .ddl import fetch, quoted
from .encryption import is_encrypted, is_remote
from .errors import translate
from .examined_pooler import look_at_pooler
from .examined_schema import look_at_schema
from .findings import Finding, Severity, advice, ok, problem
from .migrate import check_schema
from .store import connect_once

OLDEST: Final = 15
"""Oldest major version of PostgreSQL that the tests run on."""

MOST_SECONDS_APART: Final = 1.0
"""How far the clocks of the two machines may be apart."""

_NAME: Final = "conversation-store doctor"

_SERVER: Final = """SELECT current_user::text, version() LIKE 'PostgreSQL%',
    current_setting('server_version'), current_setting('server_version_num')::int,
    current_setting('server_encoding'), current_setting('client_encoding'),
    pg_is_in_recovery(), current_setting('transaction_read_only') = 'on',
    current_setting('fsync') = 'on', current_setting('full_page_writes') = 'on',
    current_setting('synchronous_commit'),
    (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"""

_TIMEOUTS: Final = {
    # setting: what is good for an application, and the first version that has it
    "lock_timeout": ("5s", 9_03_00),
    "statement_timeout": ("30s", 7_03_00),
    "idle_in_transaction_session_timeout": ("60s", 9_06_00),
    "transaction_timeout": ("60s", 17_00_00),
}


async def examine(dsn: str, schema: str, *, prepares: bool = True) -> list[Finding]:
    """Look at all that the store needs of a server and a schema, as the role that connects.

    `prepares` says whether the application has statements prepared, which it has unless it
    connects with prepare_threshold=None.

    Errors: StoreMisconfigured for a connection string that cannot be read or a schema that cannot
    be, StoreUnavailable where the server cannot be reached or the connection fails.
    """
    check_schema(schema)
    begun = time.monotonic()
    try:
        connection = await _connect(dsn)
        async with connection:
            seconds = time.monotonic() - begun
            found = [_reached(connection, seconds), _encryption(connection.pgconn)]
            [row] = await fetch(connection, _SERVER)
            role, version = str(row[0]), int(row[3])
            found += [_server(row), *_writing(row), _role(role, is_superuser=bool(row[11]))]
            found += await look_at_schema(connection, schema, role)
            found += [await _clock(connection), await _timeouts(connection, role, version)]
        found.append(await look_at_pooler(lambda: _connect(dsn), prepares=prepares))
    except psycopg.Error as error:
        raise translate(error) from error
    return found


def has_problem(found: list[Finding]) -> bool:
    """Whether something has to be mended."""
    return any(each.severity is Severity.PROBLEM for each in found)


async def _connect(dsn: str) -> Connection:
    return await connect_once(dsn, autocommit=True, fallback_application_name=_NAME)


def _reached(connection: Connection, seconds: float) -> Finding:
    info = connection.info
    what = (
        f"{info.dbname} at {info.host or info.hostaddr} as {info.user}, in {seconds * 1e3:.0f} ms"
    )
    return ok("connection", what)


def _encryption(pgconn: pq.abc.PGconn) -> Finding:
    about, remedy = "encryption", "connect with sslmode=verify-full and sslrootcert=…"
    if not is_remote(pgconn):
        return ok(about, "not needed: the connection does not leave this machine")
    if not is_encrypted(pgconn):
        what = "none: who is on the way reads what is said, and may change it"
        return advice(about, what, remedy)
    if not pgconn.ssl_in_use:
        return ok(about, "by GSSAPI")
    mode = next((each.val for each in pgconn.info if each.keyword == b"sslmode"), None) or b"prefer"
    if mode == b"verify-full":
        return ok(about, "TLS, and the server proves who it is")
    what = f"TLS with sslmode={mode.decode()}: whoever answers in the server's place is believed"
    return advice(about, what, remedy)


def _server(row: tuple[object, ...]) -> Finding:
    _, is_original, name, version, encoding, client_encoding, *_ = row
    what = f"PostgreSQL {name}, libpq {_dotted(pq.version())}"
    if not is_original:
        remedy = "the store is tested on PostgreSQL alone: run its contract tests on yours"
        return advice("server", f"it says to be no PostgreSQL, but like {name}", remedy)
    if int(str(version)) < OLDEST * 10000:
        return problem("server", what, f"upgrade: the store is tested from PostgreSQL {OLDEST} on")
    if not capabilities.has_pipeline():
        return problem("server", what, "pip install 'psycopg[binary]': it brings a newer libpq")
    for whose, each in (("database", encoding), ("client", client_encoding)):
        if each != "UTF8":
            remedy = "CREATE DATABASE … ENCODING 'UTF8'; connect with client_encoding=UTF8"
            what = f"the encoding of the {whose} is {each}: what it has no signs for is refused"
            return problem("server", what, remedy)
    return ok("server", what)


def _dotted(version: int) -> str:
    return f"{version // 10000}.{version % 10000}"


def _writing(row: tuple[object, ...]) -> list[Finding]:
    is_standby, is_read_only, is_synced, is_whole, commit = row[6:11]
    if is_standby:
        remedy = "name the primary, or all hosts with target_session_attrs=read-write"
        return [problem("writing", "the server is a standby, which takes no writes", remedy)]
    if is_read_only:
        remedy = "ALTER ROLE … or ALTER DATABASE … RESET default_transaction_read_only"
        return [problem("writing", "transactions are read-only here", remedy)]
    if not is_synced or not is_whole:
        what = "fsync or full_page_writes is off: a crash of the machine can destroy all data"
        return [advice("writing", what, "leave them on, except for tests")]
    if commit == "off":
        what = "synchronous_commit is off: a crash can lose turns that were said to be stored"
        return [advice("writing", what, "leave it on for the application's role")]
    return [ok("writing", f"durable: synchronous_commit is {commit}")]


def _role(role: str, *, is_superuser: bool) -> Finding:
    if is_superuser:
        remedy = "let the application connect as a role that owns nothing: docs/how-to/"
        remedy += "run-migrations.md#roles-and-privileges"
        return advice("role", f"{role} is a superuser, whom no privilege binds", remedy)
    return ok("role", f"{role}, no superuser")


async def _clock(connection: Connection) -> Finding:
    before, text = time.time(), "SELECT extract(epoch FROM clock_timestamp())::double precision"
    [(server,)] = await fetch(connection, text)
    after = time.time()
    apart = server - (before + after) / 2
    if abs(apart) - (after - before) / 2 <= MOST_SECONDS_APART:
        return ok("clock", f"within {MOST_SECONDS_APART:g} s of this machine's")
    what = f"the server's is {abs(apart):,.1f} s {'ahead of' if apart > 0 else 'behind'} this "
    remedy = "synchronise both (NTP); what is stored has the server's time"
    return advice("clock", f"{what}machine's", remedy)


async def _timeouts(connection: Connection, role: str, version: int) -> Finding:
    names = [name for name, (_, since) in _TIMEOUTS.items() if version >= since]
    texts = ", ".join(f"current_setting('{name}')" for name in names)
    [values] = await fetch(connection, f"SELECT {texts}")
    missing = [name for name, value in zip(names, values, strict=True) if value == "0"]
    if not missing:
        said = (f"{name} {value}" for name, value in zip(names, values, strict=True))
        return ok("timeouts", ", ".join(said))
    remedy = "\n".join(
        f"ALTER ROLE {quoted(role)} SET {name} = '{_TIMEOUTS[name][0]}';" for name in missing
    )
    return advice("timeouts", f"{', '.join(missing)}: none, so waits can last for ever", remedy)
