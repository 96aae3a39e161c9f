"""What the contenders of other makers share: how they reach the server, and how they load."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, TypeVar

import psycopg
from psycopg import conninfo, sql

T = TypeVar("T")


async def make_schema(dsn: str, schema: str) -> None:
    """Make a schema for one contender, if it is not there yet."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        statement = sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema))
        await connection.execute(statement)


def sqlalchemy_url(dsn: str, driver: str) -> str:
    """Translate a libpq connection string; a folder of a Unix socket goes into the query."""
    from sqlalchemy import URL

    parts = {name: str(value) for name, value in conninfo.conninfo_to_dict(dsn).items()}
    host, port = parts.get("host", "localhost"), parts.get("port", "5432")
    by_socket = host.startswith("/")
    url = URL.create(
        f"postgresql+{driver}",
        username=parts.get("user"),
        password=parts.get("password"),
        database=parts.get("dbname"),
        host=None if by_socket else host,
        port=None if by_socket else int(port),
        query={"host": host, "port": port} if by_socket else {},
    )
    text: str = url.render_as_string(hide_password=False)
    return text


def engine_options(connections: int, schema: str) -> dict[str, Any]:
    """Return what create_async_engine is told for asyncpg: a bounded pool, a schema of its own."""
    return {
        "pool_size": connections,
        "max_overflow": 0,
        "connect_args": {"server_settings": {"search_path": schema}},
    }


async def connect_all(engine: Any, connections: int) -> None:
    """Let an engine open all its connections, as the pools of psycopg do."""
    async with AsyncExitStack() as stack:
        for _ in range(connections):
            await stack.enter_async_context(engine.connect())


async def each_at_once(
    items: Iterable[T], work: Callable[[T], Awaitable[None]], *, tasks: int
) -> None:
    """Do the work for each item, so many at a time that each has a connection."""
    waiting = iter(items)

    async def one_after_another() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(one_after_another())
