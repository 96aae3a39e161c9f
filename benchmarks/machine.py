"""Where and with what it was measured."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from .dialogues import PROJECT


def machine() -> dict[str, Any]:
    """Describe this machine."""
    return {
        "cpu": _first(r"model name\s*:\s*(.+)", "/proc/cpuinfo") or platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(int(_first(r"MemTotal:\s*(\d+)", "/proc/meminfo") or 0) / 2**20, 1),
        "system": _first(r'PRETTY_NAME="(.+)"', "/etc/os-release") or platform.system(),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "flush_ms": round(_flush() * 1e3, 3),
    }


def occasion(seed: int) -> dict[str, Any]:
    """Say when this is, of which state of the project, and by which order."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": _commit(),
        "seed": seed,
        "driver": {name: version(name) for name in ("psycopg", "psycopg-pool")},
    }


def _first(pattern: str, file: str) -> str | None:
    with suppress(OSError):
        found = re.search(pattern, Path(file).read_text("utf-8"))
        return found[1] if found else None
    return None


def _flush() -> float:
    """Return the seconds that it takes to write 8 kB and have them on disk."""
    times = []
    with tempfile.NamedTemporaryFile() as file:
        for _ in range(50):
            began = time.perf_counter()
            file.write(b"x" * 8192)
            file.flush()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return median(times)


def _commit() -> str:
    with suppress(OSError, subprocess.CalledProcessError):
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.check_output(command, cwd=PROJECT, text=True).strip()
    return "not of a checkout"
