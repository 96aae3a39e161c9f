"""What PostgreSQL and the driver report, as errors of the domain.

Translated here and nowhere else: by SQLSTATE and by the names of constraints, never by the text of
a message (https://www.postgresql.org/docs/current/errcodes-appendix.html).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Final

import psycopg
import psycopg_pool

from ...domain.errors import (
    ConcurrentUpdate,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStoreError,
    DuplicateSession,
    InvalidTransition,
    MessageNotFound,
    RequestConflict,
    StoreClosed,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWorkMisuse,
)
from .quiet import REFUSED, quieten

REQUEST_KEY: Final = "ai_messages_request_key"
SESSION_KEY: Final = "ai_conversations_session_key"
DEADLOCK: Final = "40P01"
READ_ONLY: Final = "25006"
UNIQUE: Final = "23505"
NOT_PERMITTED: Final = "42501"
ID_KEYS: Final = ("ai_conversations_pkey", "ai_messages_id_key")
"""What breaks when an id is given twice."""

_ID_TAKEN: Final = "id_taken"
_TAKEN: Final = "an id was given twice: was the sequence ai_ids set back?"
_CONTESTED: Final = "the conversation changed while the statement ran"

REFUSALS: Final[Mapping[str, Callable[[Mapping[str, Any]], ConversationStoreError]]] = {
    "conversation_not_found": lambda detail: ConversationNotFound(
        conversation_id=detail["conversation_id"]
    ),
    "message_not_found": lambda detail: MessageNotFound(message_id=detail["message_id"]),
    "not_accepting": lambda detail: ConversationNotAcceptingMessages(
        conversation_id=detail["conversation_id"], status=detail["status"]
    ),
    "invalid_transition": lambda detail: InvalidTransition(
        conversation_id=detail["conversation_id"],
        status=detail["status"],
        target=detail["target"],
    ),
    "stale": lambda detail: ConcurrentUpdate(
        conversation_id=detail["conversation_id"],
        expected_version=detail["expected_version"],
        actual_version=detail["version"],
    ),
    "request_conflict": lambda detail: RequestConflict(
        conversation_id=detail["conversation_id"],
        request_id=detail["request_id"],
        position=detail["position"],
    ),
    "duplicate_session": lambda detail: DuplicateSession(
        user_id=detail["user_id"], session_id=detail["session_id"]
    ),
    "row_security_inactive": lambda detail: StoreMisconfigured(
        reason=f"row security does not bind the role {detail['role']}: connect as a role that is "
        "neither a superuser nor has BYPASSRLS; or it is not switched on: run "
        "`await store.migrate(row_security=True)` as the owner of the tables",
        sqlstate=REFUSED,
    ),
    "row_security_unscoped": lambda detail: StoreMisconfigured(
        reason=f"row security shows the role {detail['role']} nothing, for the store does not say "
        "for whom it acts: open it with row_security=True; or connect as the maintenance role",
        sqlstate=REFUSED,
    ),
    "contested": lambda _: TransactionAborted(reason=_CONTESTED, sqlstate=REFUSED),
    _ID_TAKEN: lambda _: TransactionAborted(reason=_TAKEN, sqlstate=UNIQUE),
}
"""What a refusal of that kind, with that detail, means."""

CONSTRAINTS: Final[Mapping[str, str]] = {
    "ai_conversations_pkey": _TAKEN,
    SESSION_KEY: "the user already has a conversation of that session",
    "ai_conversations_status_check": "no such status",
    "ai_conversations_count_check": "message_count must not be negative",
    "ai_conversations_version_check": "version starts at 1",
    "ai_conversations_time_check": "last_activity must not lie before start_time",
    "ai_messages_pkey": "the position is taken: was ai_messages written to by others?",
    "ai_messages_id_key": _TAKEN,
    "ai_messages_conversation_fkey": "the conversation does not exist",
    "ai_messages_role_check": "no such role",
    "ai_messages_position_check": "positions start at 1",
    REQUEST_KEY: _CONTESTED,
}
"""What it means that a constraint of our tables is violated; our own statements reach only the
last, all others need SQL from outside the store."""

MISUSE: Final = {
    "25P02": "an SQL error in the unit's transaction was swallowed; nothing of it is stored",
    "25P01": "the host's SQL ended the unit's transaction: leave COMMIT and ROLLBACK to it",
    "34000": "what was being read is gone: its transaction or block was ended in the middle of it",
    "3B001": "a savepoint of the unit is gone: units, or the host's own savepoints, overlap on "
    "this connection instead of nesting",
}
"""What the host did wrong where the server answers so, or where it would."""

_ABORTED: Final = {
    "40001": "the transaction could not be serialized",
    DEADLOCK: "the transaction was the victim of a deadlock",
}

_TIMEOUTS: Final = {
    "55P03": "a lock was not free in time (lock_timeout)",
    "57014": "the statement was cancelled (statement_timeout, or by an administrator)",
    "25P03": "the transaction was idle too long (idle_in_transaction_session_timeout)",
    "25P04": "the transaction took too long (transaction_timeout)",
}

_UNAVAILABLE: Final = {
    READ_ONLY: "the server is read-only: a standby?",
    "57P01": "the server is being shut down, or the connection was ended by an administrator",
    "57P02": "the server crashed and is coming back",
    "57P03": "the server cannot be connected to now",
    "57P05": "the connection was idle too long (idle_session_timeout)",
}

_UNAVAILABLE_CLASSES: Final = {
    "08": "the connection failed",
    "53": "the server is out of a resource (connections, disk or memory)",
    "58": "the server's system failed",
}

_ROW_SECURITY: Final = {
    "ExecWithCheckOptions": "row security: the row would belong to another user than the one the "
    "unit of work acts for; or no user is set, because the store was opened without row_security",
    "check_enable_rls": "row security: the setting row_security is off for this role, and has to "
    "be on",
}
"""What it means that row security refused something; by the server's function that says so."""

_MISCONFIGURED: Final = {
    "42P01": "a table is missing: run `await store.migrate()`, or check the schema's name",
    "3F000": "the schema is missing: run `await store.migrate()`, or check its name",
    "42883": "a function is missing: run `await store.migrate()`, or check the schema's name",
    "42703": "a column is missing: run `await store.migrate()`",
    NOT_PERMITTED: "the role lacks a privilege on the store's schema, tables or sequence",
    "3D000": "the database does not exist",
    "28000": "the server does not let this role in",
    "28P01": "the server refuses the password",
    "22P05": "the client_encoding lacks a character of what is stored: it must be UTF8",
}


def is_contested(error: psycopg.Error) -> bool:
    """Whether the statement met another at work and may succeed when it is sent again."""
    name = error.diag.constraint_name
    return (error.sqlstate == REFUSED and name == "contested") or (
        error.sqlstate == UNIQUE and name == REQUEST_KEY
    )


def is_id_taken(error: psycopg.Error) -> bool:
    """Whether an id that was drawn is used already: the sequence went back.

    As after a failover to a standby that lagged behind, or a restored backup. Other ids will do.
    """
    name = error.diag.constraint_name
    return (error.sqlstate == REFUSED and name == _ID_TAKEN) or (
        error.sqlstate == UNIQUE and name in ID_KEYS
    )


def translate(error: psycopg.Error) -> ConversationStoreError:
    """Return the domain's error for one of the driver's; raise it `from` that one.

    That one then quotes nothing that is stored any more.
    """
    quieten(error)
    return meaning_of(error)


def meaning_of(error: psycopg.Error) -> ConversationStoreError:
    """Return the domain's error for one of the driver's, which stays as it is."""
    state = error.sqlstate
    if state is None:
        return _without_sqlstate(error)
    name = error.diag.constraint_name
    if state == REFUSED and name is not None and name in REFUSALS:
        return REFUSALS[name](json.loads(error.diag.message_detail or "{}"))
    if name == REQUEST_KEY or is_id_taken(error):
        return TransactionAborted(reason=CONSTRAINTS[name or ""], sqlstate=state)
    refused_by = error.diag.source_function
    if state == NOT_PERMITTED and refused_by in _ROW_SECURITY:
        return StoreMisconfigured(reason=_ROW_SECURITY[refused_by], sqlstate=state)
    if state in MISUSE:
        return UnitOfWorkMisuse(reason=MISUSE[state])
    for kind, reasons in (
        (TransactionAborted, _ABORTED),
        (StoreTimeout, _TIMEOUTS),
        (StoreUnavailable, _UNAVAILABLE),
        (StoreMisconfigured, _MISCONFIGURED),
    ):
        if state in reasons:
            return kind(reason=reasons[state], sqlstate=state)
    if state[:2] in _UNAVAILABLE_CLASSES:
        return StoreUnavailable(reason=_UNAVAILABLE_CLASSES[state[:2]], sqlstate=state)
    reason = CONSTRAINTS.get(name or "", f"the server reported {type(error).__name__}")
    return StoreError(reason=reason, sqlstate=state)


def caused(error: psycopg.Error) -> ConversationStoreError:
    """Return the domain's error with the driver's as its cause, to be raised elsewhere."""
    translated = translate(error)
    translated.__cause__ = error
    return translated


class NotEncodableError(psycopg.DataError):
    """A parameter has a character that the connection's client_encoding lacks."""

    def __init__(self, encoding: str) -> None:
        super().__init__(f"the client_encoding, {encoding}, lacks a character of a parameter")


def _without_sqlstate(error: psycopg.Error) -> ConversationStoreError:
    if isinstance(error, NotEncodableError):
        return StoreMisconfigured(reason=f"{error}: it must be UTF8")
    if isinstance(error, psycopg_pool.PoolTimeout | psycopg_pool.TooManyRequests):
        return StoreTimeout(reason=f"no connection was free in time: {error}")
    if isinstance(error, psycopg_pool.PoolClosed):
        return StoreClosed(reason="the store, or the pool that it was given, is closed")
    if isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return StoreUnavailable(reason=f"the connection failed: {error}")
    return StoreError(reason=f"the driver reported {type(error).__name__}")
