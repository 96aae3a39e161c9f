"""What is sent on a connection is counted for the unit of work that is observed and holds it."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any, Final

from psycopg import AsyncConnection, AsyncCursor

from ...service_layer.observer import Tally

_TALLY: Final = "_conversation_store_tally"
"""The attribute of a connection that holds the tally."""


def count_for(connection: AsyncConnection[Any], tally: Tally | None) -> Tally | None:
    """Count from now on for this tally, or no more; return the one it was counted for before."""
    former: Tally | None = connection.__dict__.pop(_TALLY, None)
    if tally is not None:
        connection.__dict__[_TALLY] = tally
    return former


def stop_counting(connection: AsyncConnection[Any], tally: Tally) -> None:
    """Count no more for this tally; where it is another's turn by now, that goes on."""
    if connection.__dict__.get(_TALLY) is tally:
        del connection.__dict__[_TALLY]


@contextmanager
def counting_for(connection: AsyncConnection[Any], tally: Tally) -> Generator[None]:
    """Count for this tally in a block, and then as before, where it is nobody else's turn."""
    former = count_for(connection, tally)
    try:
        yield
    finally:
        if connection.__dict__.get(_TALLY) is tally:
            count_for(connection, former)


def note_sent(
    connection: AsyncConnection[Any],
    statements: int = 1,
    cursors: Iterable[AsyncCursor[Any]] = (),
    *,
    round_trips: int = 1,
) -> None:
    """Count what was sent together on a connection, and the rows that came."""
    tally: Tally | None = connection.__dict__.get(_TALLY)
    if tally is not None:
        results = [cursor.pgresult for cursor in cursors]
        rows = sum(result.ntuples for result in results if result is not None)
        tally.note_sent(statements, rows, round_trips)
