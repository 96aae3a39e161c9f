"""Whether connections to other machines are encrypted; a warning says so once where one is not.

libpq encrypts where the server offers it and goes on in the clear where not (sslmode=prefer), so
without a word what people said can travel readable.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from psycopg import capabilities
from psycopg.pq.abc import PGconn

from ...service_layer.log import LOGGER


class EncryptionWatch:
    """Looks at the connections of one store, each once, and warns of the first in the clear."""

    def __init__(self) -> None:
        self._has_warned = False

    def look_at(self, pgconn: PGconn) -> None:
        """Warn if a connection to another machine is not encrypted; sends nothing."""
        if self._has_warned or is_encrypted(pgconn) or not is_remote(pgconn):
            return
        self._has_warned = True
        LOGGER.warning(
            "the connection to %s is not encrypted: who is on the way reads what is said, and may "
            "change it; connect with sslmode=verify-full",
            pgconn.host.decode(errors="replace"),
        )


def is_encrypted(pgconn: PGconn) -> bool:
    """Whether what goes over a connection is encrypted."""
    # GSSAPI encrypts, too, unless gssencmode=disable; libpq does not tell psycopg whether it did.
    return pgconn.ssl_in_use or (capabilities.has_used_gssapi() and pgconn.used_gssapi)


def is_remote(pgconn: PGconn) -> bool:
    """Whether a connection leaves the machine: by neither a Unix socket nor a loopback address."""
    if pgconn.host.startswith((b"/", b"@")):
        return False
    try:
        address = ip_address(pgconn.hostaddr.decode())
    except ValueError:
        return pgconn.host != b"localhost"
    if isinstance(address, IPv6Address):
        address = address.ipv4_mapped or address
    return not address.is_loopback
