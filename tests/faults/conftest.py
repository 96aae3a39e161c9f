"""How the tests of faults say what they played."""

from __future__ import annotations

import logging

import pytest

_lines: list[str] = []


@pytest.fixture
def fault_report() -> list[str]:
    """Give the lines that the end of the test report shows."""
    return _lines


@pytest.fixture(autouse=True)
def _quiet_driver(caplog: pytest.LogCaptureFixture) -> None:
    """Keep thousands of lines about lost connections out of the report."""
    caplog.set_level(logging.ERROR, "psycopg")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many cases were played, and what they found."""
    for line in _lines:
        terminalreporter.write_line(line)
