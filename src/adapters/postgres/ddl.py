"""SQL that takes no parameters: its names and values are written into it, quoted."""

from __future__ import annotations

import re
from typing import Final

from psycopg import sql

from .connections import Connection
from .rows import Row
from .statement import new_cursor

_PLACE: Final = re.compile(r"\{(\w+)\}")


def fill(text: str, **parts: str) -> str:
    """Return a text with its places filled, in one go: what a part holds is no place."""
    return _PLACE.sub(lambda place: parts[place[1]], text)


def quoted(*names: str) -> str:
    """Return the name of a schema or a role, or of something in a schema."""
    return sql.Identifier(*names).as_string()


def literal(text: str) -> str:
    """Return a text as SQL writes it."""
    return sql.Literal(text).as_string()


async def run(connection: Connection, text: str) -> None:
    """Run statements. Errors: those of the driver."""
    await new_cursor(connection).execute(text.encode(), prepare=False)


async def fetch(connection: Connection, text: str) -> list[Row]:
    """Return the rows of a query. Errors: those of the driver."""
    cursor = new_cursor(connection)
    await cursor.execute(text.encode())
    return await cursor.fetchall()
