"""How the attacks say how many they were."""

from __future__ import annotations

import pytest

_lines: list[str] = []


@pytest.fixture
def attack_report() -> list[str]:
    """Give the lines that the end of the test report shows."""
    return _lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many pairs of function and attempt were made, and what came of them."""
    for line in _lines:
        terminalreporter.write_line(line)
