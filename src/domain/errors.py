"""Every error of the store, in one tree.

    ConversationStoreError
    ├── NotFound
    │   ├── ConversationNotFound
    │   └── MessageNotFound
    ├── Conflict
    │   ├── DuplicateSession
    │   ├── ConcurrentUpdate
    │   └── RequestConflict
    ├── RuleViolation
    │   ├── ConversationNotAcceptingMessages
    │   └── InvalidTransition
    ├── InvalidInput (also ValueError)
    │   ├── InvalidConversation
    │   ├── InvalidMessage
    │   ├── InvalidRecord
    │   ├── InvalidCursor
    │   └── InvalidLimit
    ├── StoreError
    │   ├── TransactionAborted      retryable
    │   ├── StoreUnavailable        retryable
    │   │   └── StoreClosed
    │   ├── StoreTimeout            retryable
    │   ├── StoreMisconfigured
    │   └── CommitOutcomeUnknown
    └── UnitOfWorkMisuse

`retryable` says whether running the whole unit of work again may succeed.
No text of an error ever holds what a person said: ids, names of fields and reasons only.
"""

from __future__ import annotations

from typing import Any, ClassVar

from attrs import define, field

from .receipt import ErasureReceipt, ImportReceipt


def _rebuild(cls: type[ConversationStoreError], state: dict[str, Any]) -> ConversationStoreError:
    error = cls.__new__(cls)
    error.__dict__.update(state)
    return error


@define(slots=False, eq=False, kw_only=True)
class ConversationStoreError(Exception):
    """The root: whatever the store refuses or fails at is one of these."""

    retryable: ClassVar[bool] = False
    """Whether the same unit of work, run again, may succeed."""

    imported: ImportReceipt | None = field(default=None, init=False, repr=False)
    """What an import had stored for good before this error ended it; None outside imports."""

    erased: ErasureReceipt | None = field(default=None, init=False, repr=False)
    """What a removal had removed before this error ended it; None where that is nothing."""

    tried: tuple[ConversationStoreError, ...] = field(default=(), init=False, repr=False)
    """What the tries before failed with, the first one first; empty where there was only one."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.__dict__)


# What is not there ------------------------------------------------------------------------------


class NotFound(ConversationStoreError):
    """What was asked for does not exist, or belongs to a user the unit does not act for."""


@define(slots=False, eq=False, kw_only=True)
class ConversationNotFound(NotFound):
    """No such conversation."""

    conversation_id: int
    """The id that was asked for."""

    def __str__(self) -> str:
        return f"there is no conversation {self.conversation_id}"


@define(slots=False, eq=False, kw_only=True)
class MessageNotFound(NotFound):
    """No such message."""

    message_id: int
    """The id that was asked for."""

    def __str__(self) -> str:
        return f"there is no message {self.message_id}"


# What contradicts what is there -----------------------------------------------------------------


class Conflict(ConversationStoreError):
    """What was asked for contradicts what is stored."""


@define(slots=False, eq=False, kw_only=True)
class DuplicateSession(Conflict):
    """The user already has a conversation of this session."""

    user_id: str
    """Whose conversation is there already."""
    session_id: str
    """Its session."""

    def __str__(self) -> str:
        return (
            f"user {self.user_id!r} already has a conversation for session {self.session_id!r}: "
            "find_conversation or get_or_start_conversation gives it"
        )


@define(slots=False, eq=False, kw_only=True)
class ConcurrentUpdate(Conflict):
    """The conversation is no longer at the version that the caller expected."""

    conversation_id: int
    """Which conversation."""
    expected_version: int
    """The version that the caller expected."""
    actual_version: int
    """The version that it has."""

    def __str__(self) -> str:
        return (
            f"conversation {self.conversation_id} is at version {self.actual_version}, "
            f"not {self.expected_version}: read it again and decide anew"
        )


@define(slots=False, eq=False, kw_only=True)
class RequestConflict(Conflict):
    """The request_id was used before in this conversation, for other content."""

    conversation_id: int
    """Which conversation."""
    request_id: str
    """The key that was used before."""
    position: int
    """Where the turn that was stored with it begins."""

    def __str__(self) -> str:
        return (
            f"request {self.request_id!r} of conversation {self.conversation_id} was stored with "
            f"other content, from position {self.position}: use a new request_id for new content"
        )


# What the rules of the domain forbid ------------------------------------------------------------


class RuleViolation(ConversationStoreError):
    """A rule of the domain forbids it."""


@define(slots=False, eq=False, kw_only=True)
class ConversationNotAcceptingMessages(RuleViolation):
    """The conversation's status does not allow new messages."""

    conversation_id: int
    """Which conversation."""
    status: str
    """The status that it has."""

    def __str__(self) -> str:
        return (
            f"conversation {self.conversation_id} is {self.status} and takes no messages: "
            "reopen it first"
        )


@define(slots=False, eq=False, kw_only=True)
class InvalidTransition(RuleViolation):
    """A conversation cannot go from this status to that one."""

    conversation_id: int
    """Which conversation."""
    status: str
    """The status that it has."""
    target: str
    """The status that it was to get."""

    def __str__(self) -> str:
        return (
            f"conversation {self.conversation_id} is {self.status} and cannot become {self.target}"
        )


# What cannot be accepted ------------------------------------------------------------------------


@define(slots=False, eq=False, kw_only=True)
class InvalidInput(ConversationStoreError, ValueError):
    """A value that the store does not accept; nothing was sent."""

    field: str  # shadows attrs.field from here on, in this class only
    """Which value, for example ``content`` or ``slots.city``."""
    reason: str
    """Why it is refused and what would be accepted."""
    offset: int | None = None
    """Where in a text the trouble starts, in characters from 0; None where that says nothing."""

    def __str__(self) -> str:
        at = "" if self.offset is None else f" (at offset {self.offset})"
        return f"{self.field}: {self.reason}{at}"


class InvalidConversation(InvalidInput):
    """A value of a conversation is not acceptable."""


class InvalidMessage(InvalidInput):
    """A value of a message is not acceptable."""


@define(slots=False, eq=False, kw_only=True)
class InvalidRecord(InvalidInput):
    """A record to be imported is malformed."""

    record: int
    """Which record of the stream, counted from 1; in a JSON Lines file its line."""

    def __str__(self) -> str:
        return f"record {self.record}: {super().__str__()}"


class InvalidCursor(InvalidInput):
    """The cursor of a list is damaged, or was made for another list."""


class InvalidLimit(InvalidInput):
    """The size of a page is not within 1..1000, or a timeout not above 0."""


# What the server or the way to it does ----------------------------------------------------------


@define(slots=False, eq=False, kw_only=True)
class StoreError(ConversationStoreError):
    """The server reported something; where no subclass fits, something the store does not know."""

    reason: str
    """What happened, in words."""
    sqlstate: str | None = None
    """The server's code, five characters; None where the server said nothing."""

    def __str__(self) -> str:
        return self.reason if self.sqlstate is None else f"{self.reason} [{self.sqlstate}]"


class TransactionAborted(StoreError):
    """The server gave the transaction up (deadlock, serialization, contention): nothing stored."""

    retryable: ClassVar[bool] = True


class StoreUnavailable(StoreError):
    """The server cannot be reached or takes no work now; nothing was stored."""

    retryable: ClassVar[bool] = True


class StoreClosed(StoreUnavailable):
    """The store, or the pool that it was given, was closed; nothing was stored."""

    retryable: ClassVar[bool] = False


class StoreTimeout(StoreError):
    """A wait came to its limit: for a connection, a lock or a statement; nothing was stored."""

    retryable: ClassVar[bool] = True


class StoreMisconfigured(StoreError):
    """The database is not as it has to be: migrations, schema name or privileges.

    Or an agent framework cannot read what it has there.
    """


@define(slots=False, eq=False, kw_only=True)
class CommitOutcomeUnknown(StoreError):
    """The connection was lost while the unit was being committed: stored whole or not at all.

    Raised only where the store could not find out: units that hold SQL of the host's, an import, a
    change without an expected version or an erasure; or the server did not answer in time. Send the
    same request with the same request_id again, or ask for the ids once the old connection is gone.
    """

    conversation_ids: tuple[int, ...] = ()
    """The conversations that the unit wrote to or would have started."""
    message_ids: tuple[int, ...] = ()
    """The messages that the unit would have stored."""
    request_ids: tuple[str, ...] = ()
    """The request_ids of its appends and starts."""


# What the caller does wrong ---------------------------------------------------------------------


@define(slots=False, eq=False, kw_only=True)
class UnitOfWorkMisuse(ConversationStoreError):
    """The unit of work was used in a way its contract does not allow; nothing was changed by it."""

    reason: str
    """What was done, and what to do instead."""

    def __str__(self) -> str:
        return self.reason
