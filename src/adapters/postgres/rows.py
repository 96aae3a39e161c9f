"""Rows become entities, by position, without a second validation: what is stored was checked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeAlias

from ...domain.conversation import Conversation, Status
from ...domain.json_object import JsonObject
from ...domain.message import Message, Role

Row: TypeAlias = tuple[Any, ...]

CONVERSATION_COLUMNS: Final = 12
"""How many columns of a row make a conversation."""

_ROLES: Final = {role.value: role for role in Role}
_STATUSES: Final = {status.value: status for status in Status}


def utc(naive: datetime) -> datetime:
    """Return the time of a column that left the server as UTC without zone."""
    return naive.replace(tzinfo=UTC)


def _json(text: str | None) -> JsonObject | None:
    if text is None:
        return None
    loaded: JsonObject = json.loads(text)
    return loaded


def to_conversation(row: Sequence[Any]) -> Conversation:
    """Return the conversation of a row."""
    return Conversation(
        id=row[0],
        user_id=row[1],
        session_id=row[2],
        status=_STATUSES[row[3]],
        start_time=utc(row[4]),
        last_activity=utc(row[5]),
        message_count=row[6],
        version=row[7],
        rescue_id=row[8],
        intent_type=row[9],
        source=row[10],
        metadata=_json(row[11]),
    )


def to_message(row: Sequence[Any]) -> Message:
    """Return the message of a row."""
    return Message(
        id=row[0],
        conversation_id=row[1],
        position=row[2],
        role=_ROLES[row[3]],
        content=row[4],
        timestamp=utc(row[5]),
        intent_type=row[6],
        slots=_json(row[7]),
        metadata=_json(row[8]),
    )
