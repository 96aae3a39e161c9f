"""How long a new connection of our own pool may take."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict

from conversation_store.adapters.postgres.store import CONNECTING, with_connect_timeout


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGCONNECT_TIMEOUT", raising=False)


@pytest.mark.parametrize("dsn", ["", "host=db dbname=chat", "postgresql://ada@db/chat"])
def test_a_connection_string_without_a_limit_gets_one(dsn: str) -> None:
    """Whatever its form; all else in it stays."""
    given, extended = conninfo_to_dict(dsn), conninfo_to_dict(with_connect_timeout(dsn))
    assert extended == given | {"connect_timeout": str(CONNECTING)}


def test_what_the_host_says_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the connection string or in the environment; one that cannot be read is told later."""
    for dsn in ("connect_timeout=3", "postgresql://db/chat?connect_timeout=0", "not a = dsn ="):
        assert with_connect_timeout(dsn) == dsn
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "5")
    assert with_connect_timeout("host=db") == "host=db"
