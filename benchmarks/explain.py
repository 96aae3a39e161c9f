"""What the statement of a service function touches: its plan, carried out and undone."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import psycopg
from psycopg import sql
from psycopg.types.numeric import Int8

from conversation_store import AsyncUnitOfWork, ConversationStore
from conversation_store.adapters.postgres import statement
from conversation_store.adapters.postgres.statement import Command, Cursor

Planning = Literal["custom", "generic"]
Call = Callable[[AsyncUnitOfWork], Awaitable[Any]]
Plan = Mapping[str, Any]

EXPLAIN = b"EXPLAIN (ANALYZE, BUFFERS, WAL, TIMING OFF, FORMAT JSON) "


class CaughtError(Exception):
    """The command that a service function was about to send."""

    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self.command = command


async def command_of(store: ConversationStore, call: Call) -> Command:
    """Let a service function run until it sends its statement, and take that away from it."""
    with _caught():
        try:
            await call(store.unit_of_work())
        except CaughtError as caught:
            return caught.command
    raise AssertionError("it sent nothing")


@contextmanager
def _caught() -> Iterator[None]:
    real = statement.execute

    async def catch(cursor: Cursor, command: Command) -> None:
        if b"pg_sequence" not in command.text:  # ids may be drawn first
            raise CaughtError(command)
        await real(cursor, command)

    statement.execute = catch
    try:
        yield
    finally:
        statement.execute = real


async def explain(dsn: str, command: Command, planning: Planning) -> Plan:
    """Return the plan of a command, with the buffers that it touched; what it did is undone."""
    assert command.parameters is not None
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        text, parameters = command.text, command.parameters
        if planning == "generic":
            text, parameters = await _prepared(connection, command), {}
        cursor = connection.cursor()
        # Once before, so that what a new connection looks up in the catalogues is not counted.
        plan: Plan = {}
        for _ in range(2):
            await cursor.execute(b"SAVEPOINT before")
            await cursor.execute(EXPLAIN + text, parameters or None)
            [[explained]] = await cursor.fetchall()
            plan = explained[0]["Plan"]
            await cursor.execute(b"ROLLBACK TO SAVEPOINT before")
        await connection.rollback()
    return plan


def buffers(plan: Plan) -> int:
    """Return how many pages a plan met, wherever they were found.

    What the check of a foreign key meets is not in a plan.
    """
    return total(plan, "Shared Hit Blocks") + total(plan, "Shared Read Blocks")


def total(plan: Plan, measure: str) -> int:
    """Return a measure of a whole plan.

    A node's numbers include those of what it reads. A write that no other part reads runs last and
    is in no number but its own.
    """
    read = {node.get("CTE Name") for node in _nodes(plan)}
    unread = (
        part
        for part in plan.get("Plans", ())
        if part.get("Subplan Name", "").startswith("CTE ")
        and part["Subplan Name"].removeprefix("CTE ") not in read
    )
    found: int = plan[measure]
    found += sum(part[measure] for part in unread)
    return found


def _nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for part in plan.get("Plans", ()):
        yield from _nodes(part)


async def _prepared(connection: psycopg.AsyncConnection[Any], command: Command) -> bytes:
    """Prepare a command to be planned without its parameters, as psycopg does; return its call."""
    assert command.parameters is not None
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", command.text.decode())))
    text = re.sub(
        r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", command.text.decode()
    ).replace("%%", "%")
    values = [command.parameters[name] for name in names]
    types = ", ".join("bigint" if isinstance(value, Int8) else "unknown" for value in values)
    await connection.execute(b"SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE caught ({types}) AS {text}".encode())
    literals = ", ".join(sql.Literal(value).as_string() for value in values)
    return f"EXECUTE caught ({literals})".encode()
