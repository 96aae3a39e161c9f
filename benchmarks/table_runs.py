"""Where a measurement of the tables is made, and what is said of it beside the numbers."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import psycopg

import conversation_store
from conversation_store.adapters.postgres.embedded import EmbeddedPostgres

RESULTS: Final = Path(__file__).parent / "results"
SETTINGS: Final = {"shared_buffers": "1GB", "max_wal_size": "4GB", "max_connections": "100"}
_TOLD: Final = (
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "shared_buffers",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "autovacuum_naptime",
    "autovacuum_vacuum_scale_factor",
)


def parser_of(name: str, purpose: str) -> argparse.ArgumentParser:
    """Return a parser of what every measurement can be told."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=purpose)
    parser.add_argument("--dsn", help="a server to measure on; by default one of its own, durable")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json")
    parser.add_argument("--quick", action="store_true", help="small, to see that it works")
    parser.add_argument("--note", default="", help="what a reader should know of this run")
    return parser


@contextmanager
def server(dsn: str | None, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Give a server to measure on: the one named, or one that flushes every commit to disk."""
    if dsn is not None:
        yield dsn
        return
    with EmbeddedPostgres(durable=True, settings=SETTINGS | dict(settings or {})) as embedded:
        yield embedded.dsn


def about(dsn: str, note: str) -> dict[str, Any]:
    """Say on what a measurement was made, and when."""
    with psycopg.connect(dsn) as connection:
        settings = {
            name: connection.execute("SELECT current_setting(%s)", [name]).fetchall()[0][0]
            for name in _TOLD
        }
        version = connection.info.parameter_status("server_version")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "psycopg": psycopg.__version__,
        "postgresql": version,
        "conversation_store": conversation_store.__version__,
        "settings": settings,
        "note": note,
    }


def write(out: Path, result: dict[str, Any]) -> None:
    """Keep a result."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(f"written: {out}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
