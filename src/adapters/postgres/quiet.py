"""What the driver's errors may say: codes, names and places, never what is stored.

The server quotes values in its errors: the row that breaks a constraint, the token that is no JSON,
the line of a COPY. Who logs an error of the store logs its causes, too. So each error of the
driver's that becomes one of the store's is changed first: its class, SQLSTATE, and the names of
constraint, table, column and so on stay; DETAIL, HINT, CONTEXT and queries inside functions go.
"""

from __future__ import annotations

from typing import Final

import psycopg
from psycopg.errors import Diagnostic
from psycopg.pq import DiagnosticField

REFUSED: Final = "CS001"
"""SQLSTATE of refusals, raised by the function `refuse` of the migrations; its DETAIL holds ids."""

_QUOTES: Final = {
    DiagnosticField.MESSAGE_PRIMARY,
    DiagnosticField.MESSAGE_DETAIL,
    DiagnosticField.MESSAGE_HINT,
    DiagnosticField.INTERNAL_QUERY,
    DiagnosticField.CONTEXT,
}
"""The fields that may quote values."""

_NAMES_ONLY: Final = frozenset({
    "08", "0A", "23", "25", "28", "34", "3B", "3D", "3F", "40", "42", "53", "54", "55", "57", "58"
})  # fmt: skip
"""Classes of SQLSTATE whose messages name objects and conditions: not 22, which is of data."""

_PLACES: Final = ("schema_name", "table_name", "column_name", "datatype_name", "constraint_name")


def quieten(error: psycopg.Error) -> None:
    """Take out of an error of the driver's, and of those it came of, what may quote values.

    In place, for what is handled stays the context of what is raised. The connection goes, too: it
    knows its password.
    """
    known: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if isinstance(link, psycopg.Error) and id(link) not in known:
            known.add(id(link))
            _quieten_alone(link)
            links += [link.__cause__, link.__context__]


def _quieten_alone(error: psycopg.Error) -> None:
    if error.sqlstate is None:  # the driver's own words, which quote nothing
        psycopg.Error.__init__(error, *error.args)
        return
    if error.pgresult is None:  # done before
        return
    diag = error.diag
    message = diag.message_primary if _speaks_of_names(diag) else None
    kept: dict[int, bytes | None] = {
        field: value.encode()
        for field in DiagnosticField
        if field not in _QUOTES and (value := getattr(diag, field.name.lower())) is not None
    }
    if message is not None:
        kept[DiagnosticField.MESSAGE_PRIMARY] = message.encode()
    if diag.sqlstate == REFUSED and diag.message_detail is not None:
        kept[DiagnosticField.MESSAGE_DETAIL] = diag.message_detail.encode()
    psycopg.Error.__init__(error, message or _instead(diag), info=kept)


def _speaks_of_names(diag: Diagnostic) -> bool:
    """Whether the message is the server's own; where there is a context, a function may speak."""
    return diag.context is None and (diag.sqlstate or "")[:2] in _NAMES_ONLY


def _instead(diag: Diagnostic) -> str:
    places = [
        f"{place.removesuffix('_name')} {name}"
        for place in _PLACES
        if (name := getattr(diag, place)) is not None
    ]
    if diag.statement_position is not None:
        places.append(f"position {diag.statement_position}")
    where = f" ({', '.join(places)})" if places else ""
    return f"the server's words are left out, for they may quote what is stored{where}"
