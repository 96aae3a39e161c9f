"""How the attacks say how many they were."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from attacks.scene import Scene, TwinScene, first_wall

_lines: list[str] = []


@pytest.fixture
def attack_report() -> list[str]:
    """Give the lines that the end of the test report shows."""
    return _lines


@pytest.fixture(params=["the twin", "PostgreSQL"])
async def scene(request: pytest.FixtureRequest) -> AsyncIterator[Scene]:
    """Give a store with a victim in it."""
    if request.param == "the twin":
        yield await TwinScene.make()
        return
    dsn, migrated = request.getfixturevalue("dsn"), request.getfixturevalue("migrated")
    async with first_wall(dsn, migrated) as opened:
        yield opened


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many pairs of function and attempt were made, and what came of them."""
    for line in _lines:
        terminalreporter.write_line(line)
