"""What `doctor` prints: what was looked at, what is wrong, and what to do about it."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..adapters.postgres.findings import Finding, Severity
from .show import one_line
from .terminal import counted

_STYLES: Final = {
    Severity.OK: "green",
    Severity.ADVICE: "yellow",
    Severity.PROBLEM: "bold red",
}


def print_findings(console: Console, found: list[Finding]) -> None:
    """Print findings, each with its remedy, and their sum."""
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in found:
        what = Text(one_line(finding.what))
        for line in (finding.remedy or "").splitlines():
            what.append(f"\n→ {one_line(line)}", "bold")
        style = _STYLES[finding.severity]
        table.add_row(Text(finding.severity, style), Text(finding.about), what)
    console.print(table)
    severities = [finding.severity for finding in found]
    problems = counted(severities.count(Severity.PROBLEM), "problem")
    pieces = counted(severities.count(Severity.ADVICE), "piece")
    console.print(Text(f"{problems}, {pieces} of advice"))
