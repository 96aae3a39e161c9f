"""The server that is measured: durable, and of the same settings wherever it runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import psycopg
from psycopg import sql

from conversation_store.adapters.postgres.embedded import EmbeddedPostgres

DURABLE: Final = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}

SETTINGS: Final = DURABLE | {
    "shared_buffers": "256MB",
    "max_wal_size": "4GB",  # no checkpoint falls into one contender's slice
    "checkpoint_timeout": "30min",
    "max_connections": "300",
}


@contextmanager
def durable_server() -> Iterator[str]:
    """Start the server on 127.0.0.1 and give its connection string."""
    with EmbeddedPostgres(durable=True, tcp=True, settings=SETTINGS) as server:
        shown = settings_of(server.dsn)
        assert shown.items() >= DURABLE.items(), f"the server is not durable: {shown}"
        yield server.dsn


def settings_of(dsn: str) -> dict[str, str]:
    """Ask a server for what matters here of its settings."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        shown = {}
        for name in ("server_version", *SETTINGS):
            row = connection.execute(sql.SQL("SHOW {}").format(sql.Identifier(name))).fetchone()
            assert row is not None
            shown[name] = str(row[0])
    return shown
