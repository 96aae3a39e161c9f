"""Connection strings that cannot be read, or not as they were meant.

Nothing here says what stands in one: where it is read wrongly, any part may be the password.
"""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ...domain.errors import StoreMisconfigured

UNREADABLE: Final = "the connection string cannot be read: see the manual of libpq for its form"


def check_connection_string(dsn: str) -> None:
    """Raise StoreMisconfigured for a string that libpq cannot read, or would read wrongly.

    It takes part of a password for the host, the port or the database where a URL has reserved
    characters in it, and would name that in errors and logs.
    """
    try:
        read = conninfo_to_dict(dsn)
    except (psycopg.ProgrammingError, UnicodeError):
        read = None
    if read is None:
        raise StoreMisconfigured(reason=UNREADABLE)
    ports = str(read.get("port") or "").split(",")
    if _has_at_sign_left(dsn) or not all(port.isdecimal() or not port for port in ports):
        reason = (
            "the connection string has no number for a port, or more than one @ before a ?: write "
            "@ : / ? # percent-encoded in the password of a URL"
        )
        raise StoreMisconfigured(reason=reason)


def _has_at_sign_left(dsn: str) -> bool:
    """Whether a URL has another @ than the one after user and password."""
    scheme, _, rest = dsn.partition("://")
    if not scheme.isalpha():
        return False
    user, _, after = rest.partition("@")
    where = rest if "/" in user else after
    return "@" in where.partition("?")[0]
