"""Ask the advisory service for known weaknesses of what an installation brings: `make audit`.

Asked about is what the package needs to run, its extras among that, in the
versions that are installed here. A weakness that is known fails; a service that does not answer, or
does not know a version, is said and fails nothing, so that it works without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement

EXTRAS: Final = ("cli", "embedded", "otel")
SECONDS: Final = 90
"""The longest that the service is waited for, in all."""


def installed(package: str, extras: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of all that a package with these extras needs, itself left out."""
    found: dict[str, str] = {}
    to_see = [(package, extra) for extra in ("", *extras)]
    seen: set[tuple[str, str]] = set()
    while to_see:
        name, extra = to_see.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        for text in requires(name) or ():
            needed = Requirement(text)
            if needed.marker is not None and not needed.marker.evaluate({"extra": extra}):
                continue
            try:
                found[needed.name] = version(needed.name)
            except PackageNotFoundError:
                continue  # optional where it is asked for, and left out
            to_see += [(needed.name, of) for of in ("", *needed.extras)]
    found.pop(package, None)
    return found


def judge(report: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the weaknesses that a report of pip-audit names, and what it could not say."""
    weak: list[str] = []
    unknown: list[str] = []
    for found in report["dependencies"]:
        name = f"{found['name']} {found.get('version', '')}".strip()
        if "skip_reason" in found:
            unknown.append(name)
        for weakness in found.get("vulns", ()):
            fixed = ", ".join(weakness["fix_versions"]) or "no version yet"
            weak.append(f"{name}: {weakness['id']}, mended in {fixed}")
    return weak, unknown


def ask(versions: dict[str, str]) -> dict[str, Any] | None:
    """Return the report of pip-audit; None where the service gave no answer."""
    with tempfile.TemporaryDirectory() as folder:
        pins, answer = Path(folder, "requirements.txt"), Path(folder, "answer.json")
        pins.write_text("".join(f"{name}=={of}\n" for name, of in sorted(versions.items())))
        command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), "--no-deps"]
        command += ["--disable-pip", "--progress-spinner=off", "--timeout=5"]
        command += ["--cache-dir", folder, "--format=json", "--output", str(answer)]
        try:
            subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
            report: dict[str, Any] = json.loads(answer.read_text())
        except (subprocess.TimeoutExpired, OSError, ValueError):
            return None
        return report


def main() -> int:
    """Ask, and say what there is to say."""
    versions = installed("conversation-store", EXTRAS)
    report = ask(versions)
    if report is None:
        print(f"audit: the advisory service does not answer; {len(versions)} packages unaudited")
        return 0
    weak, unknown = judge(report)
    for line in weak:
        print(f"audit: {line}")
    if unknown:
        print(f"audit: the advisory service knows nothing of {', '.join(unknown)}")
    print(f"audit: {len(versions) - len(unknown)} packages audited, {len(weak)} weaknesses known")
    return 1 if weak else 0


if __name__ == "__main__":
    sys.exit(main())
