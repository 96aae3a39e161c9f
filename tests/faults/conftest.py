"""How the tests of faults say what they played."""

from __future__ import annotations

import pytest

_lines: list[str] = []


@pytest.fixture
def fault_report() -> list[str]:
    """Give the lines that the end of the test report shows."""
    return _lines


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cases were played, and what they found."""
    for line in _lines:
        terminalreporter.write_line(line)
