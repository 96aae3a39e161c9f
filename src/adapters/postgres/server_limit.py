"""The timeout of a unit of work as the server's own limit, for who cannot be told to stop any more.

The client stops waiting by itself, and has the server cancel the statement; where the server cannot
be reached then, its limit ends the statement a moment later. The limit is the transaction's alone,
and is never longer than the one that holds already.
"""

from __future__ import annotations

from typing import Final, LiteralString

from psycopg.types.numeric import Int8

from ...service_layer.limited import TimeLimit
from .statement import Command
from .waiting import GRACE

_SET: Final[LiteralString] = """set_config('statement_timeout', least(
    nullif(extract(epoch FROM current_setting('statement_timeout')::interval) * 1000, 0),
    %(milliseconds)s)::bigint::text, true)"""

_KEPT: Final[LiteralString] = "conversation_store.statement_timeouts"
"""A setting that holds what others before had set, the last one first: units of work nest."""

_LIMIT: Final = f"SELECT {_SET}".encode()
_LIMIT_FOR_A_WHILE: Final = f"""
SELECT set_config('{_KEPT}', concat_ws(' ', current_setting('statement_timeout'),
    nullif(current_setting('{_KEPT}', true), '')), true), {_SET}""".strip().encode()
_RESTORE: Final = f"""
SELECT set_config('statement_timeout', split_part(current_setting('{_KEPT}'), ' ', 1), true),
    set_config('{_KEPT}', substr(current_setting('{_KEPT}'),
        length(split_part(current_setting('{_KEPT}'), ' ', 1)) + 2), true)""".strip().encode()


def limiting(limit: TimeLimit | None, *, for_a_while: bool = False) -> list[Command]:
    """Return the commands that set the server's limit for the rest of a transaction.

    Or, for a while, until it is set back; or until what follows is rolled back.
    """
    if limit is None:
        return []
    milliseconds = Int8(max(1, round((limit.left() + GRACE) * 1000)))
    parameters = {"milliseconds": milliseconds}
    if for_a_while:
        # Never prepared: skipped after an error, psycopg would take it for prepared, and it is the
        # host that rolls back.
        return [Command(_LIMIT_FOR_A_WHILE, parameters, prepare=False)]
    return [Command(_LIMIT, parameters)]


def restoring(limit: TimeLimit | None) -> list[Command]:
    """Return the commands that set the server's limit back to what it was."""
    return [] if limit is None else [Command(_RESTORE, prepare=False)]
