"""Rows become entities, without a second validation: what is stored was checked.

Entities are immutable, so their constructors set each field by object.__setattr__, which costs
more than all else of a row. Here an entity is first one whose fields can still be set, made column
by column, and then sealed by giving it its own class: the same object at a quarter of the price.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import repeat
from typing import Any, Final, TypeAlias

from ...domain.conversation import Conversation, Status
from ...domain.json_object import JsonObject, load_optional
from ...domain.message import Message, Role

Row: TypeAlias = tuple[Any, ...]

CONVERSATION_COLUMNS: Final = 12
"""How many columns of a row make a conversation."""

_ROLES: Final = {role.value: role for role in Role}
_STATUSES: Final = {status.value: status for status in Status}


class _UnsealedConversation(Conversation):
    """A conversation whose fields can still be set."""

    __slots__ = ()
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__  # Python sees the plain way of setting only in both together

    def __init__(  # noqa: PLR0917 - called by map() with a row
        self: Any,
        its_id: Any,
        user_id: Any,
        session_id: Any,
        status: Any,
        start_time: Any,
        last_activity: Any,
        message_count: Any,
        version: Any,
        rescue_id: Any,
        intent_type: Any,
        source: Any,
        metadata: Any,
    ) -> None:
        self.id = its_id
        self.user_id = user_id
        self.session_id = session_id
        self.status = status
        self.start_time = start_time
        self.last_activity = last_activity
        self.message_count = message_count
        self.version = version
        self.rescue_id = rescue_id
        self.intent_type = intent_type
        self.source = source
        self.metadata = metadata


class _UnsealedMessage(Message):
    """A message whose fields can still be set."""

    __slots__ = ()
    __setattr__ = object.__setattr__
    __delattr__ = object.__delattr__

    def __init__(  # noqa: PLR0917 - called by map() with a row
        self: Any,
        its_id: Any,
        conversation_id: Any,
        position: Any,
        role: Any,
        content: Any,
        timestamp: Any,
        intent_type: Any,
        slots: Any,
        metadata: Any,
    ) -> None:
        self.id = its_id
        self.conversation_id = conversation_id
        self.position = position
        self.role = role
        self.content = content
        self.timestamp = timestamp
        self.intent_type = intent_type
        self.slots = slots
        self.metadata = metadata


def utc(naive: datetime) -> datetime:
    """Return the time of a column that left the server as UTC without zone."""
    return datetime.combine(naive, naive.time(), UTC)  # a sixth of what replace(tzinfo=UTC) costs


def _aware(column: Sequence[datetime]) -> Iterator[datetime]:
    return map(datetime.combine, column, map(datetime.time, column), repeat(UTC))


def _loaded(column: Sequence[str | None]) -> Sequence[JsonObject | None]:
    if not any(column):
        return [None] * len(column)
    return [load_optional(text) for text in column]


def to_conversations(rows: Sequence[Row]) -> list[Conversation]:
    """Return the conversations of rows; what comes after their columns is left out."""
    columns: list[Any] = list(zip(*rows, strict=True))[:CONVERSATION_COLUMNS]
    if not columns:
        return []
    columns[3] = map(_STATUSES.__getitem__, columns[3])
    columns[4] = _aware(columns[4])
    columns[5] = _aware(columns[5])
    columns[11] = _loaded(columns[11])
    conversations: list[Any] = list(map(_UnsealedConversation, *columns))
    for conversation in conversations:
        conversation.__class__ = Conversation
    return conversations


def are_stored(found: list[Message], meant: list[Message]) -> bool:
    """Whether what is found was to be stored; since then it may be redacted, or lack its end."""
    is_there = bool(found) or not meant
    return is_there and all(
        now == (then.redacted() if now.is_redacted else then)
        for now, then in zip(found, meant, strict=False)
    )


def to_messages(rows: Sequence[Row]) -> list[Message]:
    """Return the messages of rows."""
    columns: list[Any] = list(zip(*rows, strict=True))
    if not columns:
        return []
    columns[3] = map(_ROLES.__getitem__, columns[3])
    columns[5] = _aware(columns[5])
    columns[7] = _loaded(columns[7])
    columns[8] = _loaded(columns[8])
    messages: list[Any] = list(map(_UnsealedMessage, *columns))
    for message in messages:
        message.__class__ = Message
    return messages
