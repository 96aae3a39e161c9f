"""Nothing is lost and nothing doubled, whatever happens to a connection, at whatever message."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from faults.case import SCENARIOS
from faults.matrix import Matrix, Report
from faults.proxy import Kind
from ledger import left_in_transaction
from wired_store import service_functions

from conversation_store import Retry


def test_every_service_function_is_played() -> None:
    """A new service function needs a scenario."""
    played = {name.split(" ")[0] for name in SCENARIOS}
    assert [name for name in service_functions() if name not in played] == []
    assert len(service_functions()) >= 17


MENDED = (Kind.RESET, Kind.LOSE, Kind.TERMINATE)
"""What is played where units are tried again; what else ends a connection is like one of these."""


ENDS = (Kind.RESET, Kind.LOSE, Kind.TERMINATE, Kind.CANCEL)


def said(name: str, report: Report) -> str:
    """Return what a run found, in a line."""
    ends = ", ".join(f"{count} {end}" for end, count in report.ends.most_common())
    time = f"; out of a black hole after {report.slowest:.2f} s" if report.slowest else ""
    return (
        f"faults, {name}: {report.cases} cases ({ends}), {len(report.complaints)} violations{time}"
    )


@pytest.mark.parametrize(
    ("name", "retry", "kinds"),
    [("tried once", Retry(attempts=1), tuple(Kind)), ("tried again", Retry(), MENDED)],
)
async def test_nothing_is_lost_or_doubled(
    dsn: str, fault_report: list[str], name: str, retry: Retry, kinds: Sequence[Kind]
) -> None:
    """Every message of every scenario meets every fault; the ledger finds nothing amiss.

    Tried once, a unit may fail or end unknown. Tried again it must not, once there is a network.
    """
    matrix = Matrix(dsn, {"retry": retry}, tries_again=retry.attempts > 1)
    report = await matrix.play(kinds=kinds)
    fault_report.append(said(name, report))
    assert report.complaints == []
    assert await left_in_transaction(dsn) == []


PREPARED = (
    "append_messages",
    "append_messages with a request_id",
    "get_conversation",
    "two writes at once",
    "an inner block rolled back",
    "appends that travel together",
)


async def test_nothing_is_lost_where_statements_are_prepared(
    dsn: str, fault_report: list[str]
) -> None:
    """What is sent then has no texts; and a connection must not believe in what was lost."""
    report = await Matrix(dsn, tries_again=True, prepared=True).play(PREPARED, ENDS)
    fault_report.append(said("prepared statements", report))
    assert report.complaints == []


SECURED = (
    "append_messages",
    "append_messages with a request_id",
    "latest_messages",
    "two writes at once",
    "an inner block rolled back",
)


async def test_nothing_is_lost_under_row_security(dsn: str, fault_report: list[str]) -> None:
    """A lone write has its scope before it; a lone read has that, and no COMMIT behind it."""
    matrix = Matrix(dsn, tries_again=True, prepared=True, user_id="u")
    report = await matrix.play(SECURED, ENDS)
    fault_report.append(said("row security", report))
    assert report.complaints == []
    assert await left_in_transaction(dsn) == []


async def test_nothing_is_lost_while_a_connection_is_opened(
    dsn: str, fault_report: list[str]
) -> None:
    """The pool has no connection and opens one: a fault there costs a call nothing but time."""
    kinds = (Kind.RESET, Kind.END, Kind.TRUNCATE, Kind.HOLE)
    matrix = Matrix(dsn, {"retry": Retry(attempts=1)}, tries_again=True, opening=True)
    report = await matrix.play(["append_messages"], kinds)
    fault_report.append(said("opening a connection", report))
    assert report.complaints == []
