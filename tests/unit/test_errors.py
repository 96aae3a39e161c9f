"""The tree of errors: what each says, carries, and survives."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import Any

import psycopg
import psycopg_pool
import pytest

import conversation_store
from conversation_store import (
    CommitOutcomeUnknown,
    ConcurrentUpdate,
    Conflict,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStoreError,
    DuplicateSession,
    ImportReceipt,
    InvalidConversation,
    InvalidCursor,
    InvalidInput,
    InvalidLimit,
    InvalidMessage,
    InvalidRecord,
    InvalidTransition,
    MessageNotFound,
    NotFound,
    RequestConflict,
    RuleViolation,
    StoreClosed,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWorkMisuse,
)
from conversation_store.adapters.postgres.errors import translate

ERRORS: list[ConversationStoreError] = [
    ConversationNotFound(conversation_id=7),
    MessageNotFound(message_id=7),
    DuplicateSession(user_id="u", session_id="s"),
    ConcurrentUpdate(conversation_id=7, expected_version=1, actual_version=2),
    RequestConflict(conversation_id=7, request_id="r", position=3),
    ConversationNotAcceptingMessages(conversation_id=7, status="closed"),
    InvalidTransition(conversation_id=7, status="archived", target="active"),
    InvalidConversation(field="user_id", reason="is missing"),
    InvalidMessage(field="content", reason="holds a NUL character", offset=3),
    InvalidRecord(field="role", reason="is missing", record=12),
    InvalidCursor(field="after", reason="is damaged"),
    InvalidLimit(field="limit", reason="must be an integer of 1..1000"),
    StoreError(reason="the server reported Something", sqlstate="XX000"),
    TransactionAborted(reason="deadlock", sqlstate="40P01"),
    StoreUnavailable(reason="the connection failed"),
    StoreClosed(reason="the store is closed"),
    StoreTimeout(reason="no connection was free in time"),
    StoreMisconfigured(reason="a table is missing", sqlstate="42P01"),
    CommitOutcomeUnknown(reason="lost", message_ids=(1, 2), request_ids=("r",)),
    UnitOfWorkMisuse(reason="the unit of work is not entered"),
]

KINDS = {ConversationStoreError, NotFound, Conflict, RuleViolation, InvalidInput}


def test_every_error_is_in_this_test() -> None:
    """Leaves of the tree are listed above, so that none goes untested."""
    exported = {
        value
        for value in vars(conversation_store).values()
        if inspect.isclass(value) and issubclass(value, ConversationStoreError)
    }
    assert {type(error) for error in ERRORS} == exported - KINDS


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_survives_pickling_and_copying(error: ConversationStoreError) -> None:
    """Errors cross processes with their attributes and their text."""
    error.imported = ImportReceipt(conversations=3)
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # noqa: S301 - our own
        assert type(twin) is type(error)
        assert vars(twin) == vars(error)
        assert str(twin) == str(error)
    error.imported = None


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_says_in_its_text_what_it_carries(error: ConversationStoreError) -> None:
    """The text names every attribute that was given, but lists of ids."""
    for value in vars(error).values():
        if value is not None and not isinstance(value, tuple):
            assert str(value) in str(error)


def test_only_the_servers_troubles_are_worth_another_try() -> None:
    """`retryable` says so, and nothing else is."""
    retryable = {type(error) for error in ERRORS if error.retryable}
    assert retryable == {TransactionAborted, StoreUnavailable, StoreTimeout}


def test_bad_input_is_a_value_error() -> None:
    """Hosts that know nothing of the store can catch ValueError."""
    assert issubclass(InvalidInput, ValueError)


def test_the_picture_of_the_tree_is_the_tree() -> None:
    """The module's docstring shows every class under its parent."""
    from conversation_store.domain import errors

    parents: dict[int, str] = {}
    shown: dict[str, str] = {}
    for line in (errors.__doc__ or "").splitlines():
        name = line.strip(" │├└─").split(" ")[0]
        if not name or not line.startswith("    "):
            continue
        depth = (len(line) - len(line.lstrip(" │├└─"))) // 4
        parents[depth] = name
        if depth > 1:
            shown[name] = parents[depth - 1]
    real = {
        name: value.__bases__[0].__name__
        for name, value in vars(errors).items()
        if inspect.isclass(value)
        and issubclass(value, ConversationStoreError)
        and value is not ConversationStoreError
    }
    assert shown == real


def driver_error(sqlstate: str) -> psycopg.Error:
    """Return the driver's error of that code."""
    return psycopg.errors.lookup(sqlstate)("what the server said of secret words")


@pytest.mark.parametrize(
    ("sqlstate", "kind"),
    [
        ("40001", TransactionAborted),
        ("40P01", TransactionAborted),
        ("55P03", StoreTimeout),
        ("57014", StoreTimeout),
        ("25P03", StoreTimeout),
        ("53300", StoreUnavailable),
        ("53100", StoreUnavailable),
        ("57P01", StoreUnavailable),
        ("57P02", StoreUnavailable),
        ("57P03", StoreUnavailable),
        ("25006", StoreUnavailable),
        ("08006", StoreUnavailable),
        ("58030", StoreUnavailable),
        ("42P01", StoreMisconfigured),
        ("3F000", StoreMisconfigured),
        ("42501", StoreMisconfigured),
        ("28P01", StoreMisconfigured),
        ("3D000", StoreMisconfigured),
        ("25P02", UnitOfWorkMisuse),
        ("3B001", UnitOfWorkMisuse),
        ("22012", StoreError),
        ("XX000", StoreError),
    ],
)
def test_a_code_of_the_server_has_its_meaning(sqlstate: str, kind: type[Any]) -> None:
    """Translated by SQLSTATE, never by text, which does not come through."""
    error = translate(driver_error(sqlstate))
    assert type(error) is kind
    assert "secret" not in str(error)
    if isinstance(error, StoreError):
        assert error.sqlstate == sqlstate


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg.OperationalError("connection refused"), StoreUnavailable),
        (psycopg.InterfaceError("the connection is closed"), StoreUnavailable),
        (psycopg_pool.PoolTimeout("no connection after 30 s"), StoreTimeout),
        (psycopg_pool.TooManyRequests("queue full"), StoreTimeout),
        (psycopg_pool.PoolClosed("the pool is closed"), StoreClosed),
        (psycopg.DataError("secret words"), StoreError),
        (psycopg.ProgrammingError("secret words"), StoreError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_an_error_of_the_driver_has_its_meaning(error: psycopg.Error, kind: type[Any]) -> None:
    """What the driver raises by itself is translated by its class."""
    translated = translate(error)
    assert type(translated) is kind
    assert "secret" not in str(translated)
