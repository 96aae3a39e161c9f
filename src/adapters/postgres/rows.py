"""Rows become entities, by position, without a second validation: what is stored was checked.

Entities are immutable, so their constructors go through object.__setattr__, which costs more than
all else of a row. Here the slots of a new entity are filled by their own descriptors, in the order
of the fields: the same object at a third of the price. How much: docs/benchmarks.md.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

import attrs

from ...domain.conversation import Conversation, Status
from ...domain.json_object import JsonObject
from ...domain.message import Message, Role

Row: TypeAlias = tuple[Any, ...]

CONVERSATION_COLUMNS: Final = 12
"""How many columns of a row make a conversation."""

_ROLES: Final = {role.value: role for role in Role}
_STATUSES: Final = {status.value: status for status in Status}


_new: Final = object.__new__
_combine: Final = datetime.combine
_load: Final = json.JSONDecoder().raw_decode


def _setters(entity: type[attrs.AttrsInstance]) -> list[Callable[[Any, Any], None]]:
    return [getattr(entity, field.name).__set__ for field in attrs.fields(entity)]


(
    _set_message_id,
    _set_conversation_id,
    _set_position,
    _set_role,
    _set_content,
    _set_timestamp,
    _set_intent_type,
    _set_slots,
    _set_metadata,
) = _setters(Message)

(
    _set_id,
    _set_user_id,
    _set_session_id,
    _set_status,
    _set_start_time,
    _set_last_activity,
    _set_message_count,
    _set_version,
    _set_rescue_id,
    _set_conversation_intent_type,
    _set_source,
    _set_conversation_metadata,
) = _setters(Conversation)


def utc(naive: datetime) -> datetime:
    """Return the time of a column that left the server as UTC without zone."""
    return _combine(naive, naive.time(), UTC)  # a sixth of what replace(tzinfo=UTC) costs


def _json(text: str | None) -> JsonObject | None:
    if text is None:
        return None
    loaded: JsonObject = _load(text)[0]  # jsonb has no space before it, nor anything after it
    return loaded


def to_conversation(row: Sequence[Any]) -> Conversation:
    """Return the conversation of a row."""
    conversation = _new(Conversation)
    _set_id(conversation, row[0])
    _set_user_id(conversation, row[1])
    _set_session_id(conversation, row[2])
    _set_status(conversation, _STATUSES[row[3]])
    _set_start_time(conversation, utc(row[4]))
    _set_last_activity(conversation, utc(row[5]))
    _set_message_count(conversation, row[6])
    _set_version(conversation, row[7])
    _set_rescue_id(conversation, row[8])
    _set_conversation_intent_type(conversation, row[9])
    _set_source(conversation, row[10])
    _set_conversation_metadata(conversation, _json(row[11]))
    return conversation


def to_message(row: Sequence[Any]) -> Message:
    """Return the message of a row."""
    message = _new(Message)
    _set_message_id(message, row[0])
    _set_conversation_id(message, row[1])
    _set_position(message, row[2])
    _set_role(message, _ROLES[row[3]])
    _set_content(message, row[4])
    _set_timestamp(message, utc(row[5]))
    _set_intent_type(message, row[6])
    _set_slots(message, _json(row[7]))
    _set_metadata(message, _json(row[8]))
    return message
