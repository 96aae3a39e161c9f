"""Nothing is lost and nothing doubled, whatever happens to a connection, at whatever message."""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import pytest
from faults.matrix import Matrix
from faults.proxy import Kind
from faults.scenarios import SCENARIOS
from ledger import left_in_transaction

import conversation_store
from conversation_store import Retry


def service_functions() -> list[str]:
    """Return the names of the functions that a host calls with a unit of work."""
    return [
        name
        for name in conversation_store.__all__
        if inspect.isfunction(function := getattr(conversation_store, name))
        and next(iter(inspect.signature(function).parameters), "") == "uow"
    ]


def test_every_service_function_is_played() -> None:
    """A new service function needs a scenario."""
    played = {name.split(" ")[0] for name in SCENARIOS}
    assert [name for name in service_functions() if name not in played] == []
    assert len(service_functions()) >= 17


MENDED = (Kind.RESET, Kind.TERMINATE)
"""What is played where units are tried again; what else ends a connection is like these."""


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
    ends = ", ".join(f"{count} {end}" for end, count in report.ends.most_common())
    fault_report.append(
        f"faults, {name}: {report.cases} cases of {len(SCENARIOS)} scenarios"
        f" ({ends}), {len(report.complaints)} violations; out of a black hole"
        f" {report.slowest:.2f} s after it was cancelled"
    )
    assert report.complaints == []
    assert await left_in_transaction(dsn) == []
