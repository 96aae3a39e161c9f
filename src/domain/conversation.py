"""Conversations: the aggregate root, its statuses, and which of them may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import Enum, StrEnum
from typing import Any, Final

from attrs import Attribute, field, frozen

from .errors import InvalidConversation, InvalidInput
from .json_object import JsonObject, check_optional_json
from .message import MessageDraft, digest_drafts, digest_json
from .text import check_name

MAX_ID: Final = 2**63 - 1
"""Largest id, version or position: what 64 bits hold."""


class Status(StrEnum):
    """Where a conversation stands in its life."""

    ACTIVE = "active"
    """It goes on: it accepts messages."""
    CLOSED = "closed"
    """It is over, until it is reopened."""
    ARCHIVED = "archived"
    """It is put away; it has to be closed before it can be reopened."""


_STATUSES: Final[dict[object, Status]] = {status.value: status for status in Status}

ACCEPTING_MESSAGES: Final = frozenset({Status.ACTIVE})
"""The statuses in which a conversation accepts messages."""

TRANSITIONS: Final[dict[Status, frozenset[Status]]] = {
    Status.ACTIVE: frozenset({Status.CLOSED}),
    Status.CLOSED: frozenset({Status.ACTIVE, Status.ARCHIVED}),
    Status.ARCHIVED: frozenset({Status.ACTIVE, Status.CLOSED}),
}
"""Target status: the statuses it can be reached from. Already there is success without change."""


class Unchanged(Enum):
    """The type of UNCHANGED."""

    UNCHANGED = "unchanged"
    """The one value of this type."""

    def __repr__(self) -> str:
        return self.name


UNCHANGED: Final = Unchanged.UNCHANGED
"""Stands for a column that an update leaves as it is; None would clear it."""


def _check(made: object, attribute: Attribute[Any], value: Any) -> None:
    """Refuse a name that cannot be stored; where it may be left out, nothing is one too."""
    is_required = attribute.name in ("user_id", "session_id")
    if is_required or (value is not None and value is not UNCHANGED):
        name = check_name(value, attribute.name, InvalidConversation)
        if name is not value:  # it was of a subclass of str
            object.__setattr__(made, attribute.name, name)


def _to_metadata(value: Mapping[str, Any] | None) -> JsonObject | None:
    return check_optional_json(value, "metadata", InvalidConversation)


def _to_metadata_change(
    value: Mapping[str, Any] | Unchanged | None,
) -> JsonObject | Unchanged | None:
    return UNCHANGED if value is UNCHANGED else _to_metadata(value)


def to_status(value: str, field_name: str = "status") -> Status:
    """Return the Status of that name; raise InvalidConversation if there is none."""
    status = _STATUSES.get(str.__str__(value) if isinstance(value, str) else None)
    if status is None:
        reason = f"must be one of {', '.join(Status)}"
        raise InvalidConversation(field=field_name, reason=reason)
    return status


def check_integer(value: object, field_name: str, error: type[InvalidInput]) -> int:
    """Return `value` if it is an integer that 64 bits hold; raise `error` if not."""
    if isinstance(value, bool) or not isinstance(value, int):
        reason = f"must be an integer, not {type(value).__name__}"
        raise error(field=field_name, reason=reason)
    number = int.__int__(value)  # a subclass may say one thing and hold another
    if not -MAX_ID <= number <= MAX_ID:
        raise error(field=field_name, reason="must be an integer within 64 bits")
    return number


@frozen(kw_only=True)
class Conversation:
    """One dialogue of one user with the host application."""

    id: int
    """Unique in the store; given out before the conversation is stored."""
    user_id: str
    """Whose conversation it is; the host's own text."""
    session_id: str
    """The host's own name for it, unique per user_id."""
    status: Status
    """active, closed or archived; only an active one accepts messages."""
    start_time: datetime
    """When it was started, by the store's clock, in UTC."""
    last_activity: datetime
    """When its newest message was stored (start_time while it has none); never goes back."""
    message_count: int
    """How many messages it has; also the position of the newest."""
    version: int
    """1 when started; grows by 1 with every change, appends included."""
    rescue_id: str | None = None
    """Reference to a case in the host's world."""
    intent_type: str | None = field(default=None, repr=False)
    """The intent that the conversation is about."""
    source: str | None = None
    """Where it came from: a channel, a data set."""
    metadata: JsonObject | None = field(default=None, repr=False, hash=False)
    """The host's own JSON object."""

    @property
    def accepts_messages(self) -> bool:
        """Whether its status allows new messages."""
        return self.status in ACCEPTING_MESSAGES


@frozen(kw_only=True)
class NewConversation:
    """A conversation that does not exist yet, with its first messages.

    Raises InvalidConversation when made from values that cannot be stored.
    """

    user_id: str = field(validator=_check)
    """Whose conversation it is, 1..255 characters."""
    session_id: str = field(validator=_check)
    """The host's own name for it, unique per user_id, 1..255 characters."""
    rescue_id: str | None = field(default=None, validator=_check)
    """Reference to a case in the host's world, 1..255 characters."""
    intent_type: str | None = field(default=None, validator=_check, repr=False)
    """The intent that the conversation is about, 1..255 characters."""
    source: str | None = field(default=None, validator=_check)
    """Where it comes from, 1..255 characters."""
    metadata: JsonObject | None = field(
        default=None, converter=_to_metadata, repr=False, hash=False
    )
    """The host's own JSON object, at most 1 MB."""
    drafts: tuple[MessageDraft, ...] = field(default=(), repr=False)
    """Its first messages, oldest first."""

    @property
    def digest(self) -> bytes:
        """What tells its content from another: the digest of its first turn, and one of the rest.

        So it begins with the digest that an append of the same messages has.
        """
        rest = [self.rescue_id, self.intent_type, self.source, self.metadata]
        return digest_drafts(self.drafts) + digest_json(rest)

    def with_drafts(self, drafts: tuple[MessageDraft, ...]) -> NewConversation:
        """Return a copy with these first messages; its metadata is checked and copied anew."""
        return NewConversation(
            user_id=self.user_id,
            session_id=self.session_id,
            rescue_id=self.rescue_id,
            intent_type=self.intent_type,
            source=self.source,
            metadata=self.metadata,
            drafts=drafts,
        )

    def stored(
        self,
        *,
        conversation_id: int,
        start_time: datetime,
        last_activity: datetime,
        status: Status = Status.ACTIVE,
    ) -> Conversation:
        """Return the conversation that this becomes: at version 1, with its first messages."""
        return Conversation(
            id=conversation_id,
            user_id=self.user_id,
            session_id=self.session_id,
            status=status,
            start_time=start_time,
            last_activity=last_activity,
            message_count=len(self.drafts),
            version=1,
            rescue_id=self.rescue_id,
            intent_type=self.intent_type,
            source=self.source,
            metadata=self.metadata,
        )


@frozen(kw_only=True)
class ConversationChanges:
    """The columns of a conversation that an update sets; those left UNCHANGED stay."""

    rescue_id: str | Unchanged | None = field(default=UNCHANGED, validator=_check)
    """The new reference; None clears it."""
    intent_type: str | Unchanged | None = field(default=UNCHANGED, validator=_check, repr=False)
    """The new intent; None clears it."""
    metadata: JsonObject | Unchanged | None = field(
        default=UNCHANGED, converter=_to_metadata_change, repr=False, hash=False
    )
    """The JSON object that takes the place of the old one; None clears it."""

    def __attrs_post_init__(self) -> None:
        if all(value is UNCHANGED for value in (self.rescue_id, self.intent_type, self.metadata)):
            reason = "name at least one of rescue_id, intent_type, metadata"
            raise InvalidConversation(field="changes", reason=reason)
