"""What the tests of the scripts in examples/moving share: the peers' databases, and running one."""

from __future__ import annotations

import io
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

SCRIPTS = Path(__file__).parents[1] / "examples" / "moving"
DATABASE = "of a peer"


class Ended(NamedTuple):
    """How a script ended."""

    code: int
    out: str
    err: str


def run(script: str, *arguments: object) -> Ended:
    """Run a script as its own program would, in this process; it brings its own event loop."""
    before = sys.argv
    code: object = 0
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        try:
            sys.argv = [script, *map(str, arguments)]
            runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        except SystemExit as end:
            code = end.code
        finally:
            sys.argv = before
    if isinstance(code, str):  # as the interpreter would
        return Ended(1, out.getvalue(), err.getvalue() + code)
    return Ended(code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


@contextmanager
def database_of_a_peer(dsn: str) -> Iterator[str]:
    """Give an empty database, whose own time is far from UTC."""
    name = Identifier(DATABASE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(SQL("CREATE DATABASE {}").format(name))
        connection.execute(SQL("ALTER DATABASE {} SET TimeZone = 'Asia/Kathmandu'").format(name))
        yield make_conninfo(dsn, dbname=DATABASE)
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(name))


def sqlalchemy_url(dsn: str, driver: str) -> str:
    """Return the URL of SQLAlchemy for a connection string of libpq."""
    from sqlalchemy import URL

    parts = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    by_socket = parts.get("host", "/").startswith("/")
    names: list[str] = ["host", "port"] if by_socket else []
    query = {name: parts[name] for name in names if name in parts}
    url = URL.create(
        f"postgresql+{driver}",
        username=parts.get("user"),
        password=parts.get("password"),
        database=parts["dbname"],
        host=None if by_socket else parts["host"],
        port=None if by_socket else int(parts.get("port", "5432")),
        query=query,
    )
    return url.render_as_string(hide_password=False)


def rows_of(dsn: str) -> dict[str, list[tuple[object, ...]]]:
    """Return all that a database holds, table by table."""
    with psycopg.connect(dsn) as connection:
        tables = connection.execute(
            "SELECT relname FROM pg_stat_user_tables ORDER BY relname"
        ).fetchall()
        return {
            name: connection.execute(
                SQL("SELECT t::text FROM {} AS t ORDER BY 1").format(Identifier(name))
            ).fetchall()
            for (name,) in tables
        }
