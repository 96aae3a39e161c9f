"""Connections to other machines: a warning where one is in the clear, and what TLS verifies."""

from __future__ import annotations

import logging
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from psycopg import capabilities
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool
from store_fixtures import open_store
from tls_proxy import TlsProxy
from wire_proxy import WireProxy

from conversation_store import ConversationStore, StoreUnavailable
from conversation_store.adapters.postgres import encryption
from conversation_store.adapters.postgres.embedded import EmbeddedPostgres

PASSWORD = "pw-f7a1c0de"


def pgconn(host: str, hostaddr: str, *, ssl_in_use: bool = False, used_gssapi: bool = False) -> Any:
    """Return what stands for a connection to that server."""
    return SimpleNamespace(
        host=host.encode(),
        hostaddr=hostaddr.encode(),
        ssl_in_use=ssl_in_use,
        used_gssapi=used_gssapi,
    )


@pytest.mark.parametrize(
    ("connection", "warns"),
    [
        (pgconn("db.example.org", "203.0.113.7"), True),
        (pgconn("db.example.org", "2001:db8::7"), True),
        (pgconn("db.example.org", "fe80::1%eth0"), True),
        (pgconn("db.example.org", "::ffff:203.0.113.7"), True),
        (pgconn("10.0.0.7", "10.0.0.7"), True),
        (pgconn("db.example.org", ""), True),
        (pgconn("db.example.org", "203.0.113.7", ssl_in_use=True), False),
        (pgconn("localhost", "127.0.0.1"), False),
        (pgconn("db.local", "127.8.9.1"), False),
        (pgconn("localhost", "::1"), False),
        (pgconn("localhost", "::ffff:127.0.0.1"), False),
        (pgconn("localhost", ""), False),
        (pgconn("/run/postgresql", ""), False),
        (pgconn("@abstract", ""), False),
    ],
    ids=lambda value: f"{value.host} {value.hostaddr}" if hasattr(value, "host") else None,
)
def test_which_connections_are_warned_of(
    caplog: pytest.LogCaptureFixture, connection: Any, *, warns: bool
) -> None:
    """One that leaves the machine, and is not encrypted; neither a socket nor a loopback."""
    watch = encryption.EncryptionWatch()
    with caplog.at_level(logging.DEBUG, "conversation_store"):
        watch.look_at(connection)
        watch.look_at(connection)
    told = [(record.name, record.levelname) for record in caplog.records]
    assert told == [("conversation_store", "WARNING")] * warns
    if warns:
        assert connection.host.decode() in caplog.text
        assert "sslmode=verify-full" in caplog.text


def test_gssapi_counts_as_encrypted(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection of Kerberos is encrypted by it, unless the host has switched that off."""
    monkeypatch.setattr(capabilities, "has_used_gssapi", lambda: True)
    watch = encryption.EncryptionWatch()
    watch.look_at(pgconn("db.example.org", "203.0.113.7", used_gssapi=True))
    assert not caplog.records


def test_nothing_is_printed_where_no_logging_is_configured() -> None:
    """The logger has a handler that does nothing, so Python's handler of last resort is silent."""
    handlers = logging.getLogger("conversation_store").handlers
    assert [type(handler) for handler in handlers] == [logging.NullHandler]


async def test_a_store_warns_once(
    dsn: str,
    migrated: set[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever it does, on how many connections, of its own pool or of the host's: one warning."""
    monkeypatch.setattr(encryption, "is_remote", lambda _: True)
    caplog.set_level(logging.WARNING, "conversation_store")
    async with WireProxy(dsn) as proxy:
        through = proxy.dsn
        if "password" not in conninfo_to_dict(dsn):  # the server asks for none
            through = make_conninfo(proxy.dsn, password=PASSWORD)
        async with open_store(dsn, "operational", migrated, through=through, min_size=4) as store:
            async with store.unit_of_work() as first, store.unit_of_work() as second:
                await first.connection()
                await second.connection()
            await store.ping()
            with proxy.count() as wire:
                await store.ping()
            assert (wire.round_trips, wire.statements) == (1, 1)
            assert len(caplog.records) == 1
            assert "127.0.0.1" in caplog.text
            assert PASSWORD not in caplog.text + str(vars(caplog.records[0]))
        async with AsyncConnectionPool(through, open=False, min_size=2) as pool:
            lent = ConversationStore.from_pool(pool)
            await lent.ping()
            await lent.ping()
            assert len(caplog.records) == 2
        # What is lent for a unit is of a pool, or of no pool, that the store does not know.
        async with await psycopg.AsyncConnection.connect(through) as connection:
            async with lent.unit_of_work(connection=connection) as uow:
                await uow.connection()
    assert len(caplog.records) == 2


# TLS ----------------------------------------------------------------------------------------------


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def _certificate(folder: Path, name: str) -> None:
    subject = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", f"{name}.key", "-out", f"{name}.crt"]
    _openssl(folder, "req", "-x509", "-days", "2", *key, *files, *subject)


@pytest.fixture(scope="module")
def certificates() -> Iterator[Path]:
    """Give a folder with self-signed certificates of db.test, and of another; keys beside them."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make certificates with")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for host in ("db.test", "other.test"):
            _certificate(folder, host)
        key = folder / "db.test.key"  # the server refuses one that others may read
        key.chmod(0o600)
        if os.geteuid() == 0:  # then the server runs as nobody, and has to own its key
            os.chown(key, pwd.getpwnam("nobody").pw_uid, -1)
        yield folder


async def _pinged(dsn: str) -> None:
    async with ConversationStore.connect(dsn, min_size=1) as store:
        await store.ping()


async def test_tls_verifies_the_server(
    dsn: str,
    certificates: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """verify-full takes the certificate of that name and root; prefer and require take any."""
    monkeypatch.setattr(encryption, "is_remote", lambda _: True)
    caplog.set_level(logging.WARNING, "conversation_store")
    root = str(certificates / "db.test.crt")
    verified = {"sslmode": "verify-full", "sslrootcert": root}
    async with TlsProxy(dsn, certificates / "db.test.crt", certificates / "db.test.key") as proxy:
        address = {"host": "db.test", "hostaddr": "127.0.0.1", "port": str(proxy.port)}

        def through(**options: str) -> str:
            return make_conninfo(dsn, **{**address, "gssencmode": "disable", **options})

        await _pinged(through(**verified))
        await _pinged(through(sslmode="prefer", host="other.test"))
        await _pinged(through(sslmode="require", host="other.test"))
        assert not _warnings(caplog)
        for options in (
            {**verified, "host": "other.test"},
            {**verified, "sslrootcert": str(certificates / "other.test.crt")},
            {**verified, "sslrootcert": str(certificates / "none.crt")},
            {**verified, "channel_binding": "require"},  # TLS does not end at the server
        ):
            with pytest.raises(StoreUnavailable):
                await _pinged(through(**options))
        await _pinged(through(sslmode="disable"))
    [warning] = _warnings(caplog)
    assert "db.test" in warning


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the store warned of; asyncio says more of TLS that ends."""
    ours = [record for record in caplog.records if record.name == "conversation_store"]
    return [record.getMessage() for record in ours]


def _with_tls() -> Path | None:
    """Return the binaries of a server that was built with TLS; the embedded one is not."""
    return next((folder for folder in Path("/usr/lib/postgresql").glob("*/bin")), None)


@pytest.mark.skipif(_with_tls() is None, reason="no server with TLS here")
async def test_tls_of_the_server_itself(certificates: Path) -> None:
    """A server that speaks TLS itself is verified, and its channel is bound to the password."""
    settings = {
        "ssl": "on",
        "ssl_cert_file": str(certificates / "db.test.crt"),
        "ssl_key_file": str(certificates / "db.test.key"),
    }
    address = {"host": "db.test", "hostaddr": "127.0.0.1", "sslmode": "verify-full"}
    root = {"sslrootcert": str(certificates / "db.test.crt")}
    with EmbeddedPostgres(tcp=True, settings=settings, binaries=_with_tls()) as server:
        bound = make_conninfo(server.dsn, **address, **root, channel_binding="require")
        await _pinged(bound)
        for options in (
            {"host": "other.test"},
            {"sslrootcert": str(certificates / "other.test.crt")},
        ):
            with pytest.raises(StoreUnavailable):
                await _pinged(make_conninfo(bound, **options))
