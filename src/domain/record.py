"""Records: conversations as they are imported and exported, one JSON object each.

A record holds no ids and no versions: those are new in the store it is imported into. Where a
record has no times, the store's clock gives them. In a JSON Lines file a record is one line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final, NotRequired, TypedDict, cast

from .conversation import Conversation, NewConversation, Status, to_status
from .errors import InvalidInput, InvalidRecord
from .imported import ImportedConversation, ImportedMessages, read_plain
from .json_object import JsonObject, dump_optional
from .message import Message, MessageDraft, content_bytes

MAX_RECORD_BYTES: Final = 100_000_000
"""Largest content of all messages of a record together, in bytes of UTF-8."""


class MessageRecord(TypedDict):
    """One message of a record."""

    role: str
    content: str
    intent_type: NotRequired[str | None]
    slots: NotRequired[JsonObject | None]
    metadata: NotRequired[JsonObject | None]
    timestamp: NotRequired[str]
    """ISO 8601 with an offset; all messages of a record have one, or none has."""
    position: NotRequired[int]
    """Where present, 1, 2, 3 … in order."""


class ConversationRecord(TypedDict):
    """One conversation with all its messages, oldest first."""

    user_id: str
    session_id: str
    messages: list[MessageRecord]
    source: NotRequired[str | None]
    intent_type: NotRequired[str | None]
    rescue_id: NotRequired[str | None]
    metadata: NotRequired[JsonObject | None]
    status: NotRequired[str]
    start_time: NotRequired[str]
    last_activity: NotRequired[str]


_CONVERSATION_FIELDS = frozenset(ConversationRecord.__annotations__)
_MESSAGE_FIELDS = frozenset(MessageRecord.__annotations__)


def check_record(record: object, number: int) -> ImportedConversation:
    """Read record `number` of a stream; raise InvalidRecord saying which field is wrong and why."""
    plain = read_plain(record, _CONVERSATION_FIELDS, _MESSAGE_FIELDS)
    if plain is not None:
        return plain
    try:
        return _read_record(record, number)
    except InvalidRecord:
        raise
    except InvalidInput as error:
        raise InvalidRecord(
            record=number, field=error.field, reason=error.reason, offset=error.offset
        ) from error


def _read_record(record: object, number: int) -> ImportedConversation:
    values = _fields(record, "record", _CONVERSATION_FIELDS, number)
    for name in ("user_id", "session_id", "messages"):
        if name not in values:
            raise InvalidRecord(record=number, field=name, reason="is missing")
    messages = values["messages"]
    if not isinstance(messages, list | tuple):
        reason = f"must be a list, not {type(messages).__name__}"
        raise InvalidRecord(record=number, field="messages", reason=reason)
    conversation = NewConversation(
        user_id=values["user_id"],
        session_id=values["session_id"],
        rescue_id=values.get("rescue_id"),
        intent_type=values.get("intent_type"),
        source=values.get("source"),
        metadata=values.get("metadata"),
    )
    start_time = _time(values.get("start_time"), "start_time", number)
    last_activity = _time(values.get("last_activity"), "last_activity", number)
    drafts, timestamps = _read_messages(cast("Sequence[object]", messages), number)
    _check_order([start_time, *timestamps, last_activity], number)
    return ImportedConversation(
        user_id=conversation.user_id,
        session_id=conversation.session_id,
        rescue_id=conversation.rescue_id,
        intent_type=conversation.intent_type,
        source=conversation.source,
        metadata=dump_optional(conversation.metadata),
        status=to_status(values.get("status", Status.ACTIVE)),
        start_time=start_time or (timestamps[0] if timestamps else None),
        last_activity=last_activity or (timestamps[-1] if timestamps else None),
        messages=ImportedMessages(
            roles=[draft.role.value for draft in drafts],
            contents=[draft.content for draft in drafts],
            intent_types=[draft.intent_type for draft in drafts],
            slots=[dump_optional(draft.slots) for draft in drafts],
            metadata=[dump_optional(draft.metadata) for draft in drafts],
            timestamps=timestamps,
        ),
    )


def _read_messages(
    messages: Sequence[object], number: int
) -> tuple[list[MessageDraft], list[datetime]]:
    drafts: list[MessageDraft] = []
    timestamps: list[datetime] = []
    size = 0
    for index, message in enumerate(messages):
        place = f"messages[{index}]"
        values = _fields(message, place, _MESSAGE_FIELDS, number)
        if "content" not in values or "role" not in values:
            missing = "role" if "role" not in values else "content"
            raise InvalidRecord(record=number, field=f"{place}.{missing}", reason="is missing")
        try:
            draft = MessageDraft(
                role=values["role"],
                content=values["content"],
                intent_type=values.get("intent_type"),
                slots=values.get("slots"),
                metadata=values.get("metadata"),
            )
        except InvalidInput as error:
            raise InvalidRecord(
                record=number,
                field=f"{place}.{error.field}",
                reason=error.reason,
                offset=error.offset,
            ) from error
        position = values.get("position", index + 1)
        if isinstance(position, bool) or position != index + 1:
            reason = f"must be {index + 1}: positions count 1, 2, 3 … in order"
            raise InvalidRecord(record=number, field=f"{place}.position", reason=reason)
        timestamp = _time(values.get("timestamp"), f"{place}.timestamp", number)
        if timestamp is not None:
            timestamps.append(timestamp)
        drafts.append(draft)
        size += content_bytes(draft.content)
    if timestamps and len(timestamps) != len(drafts):
        reason = "all messages of a record must have a timestamp, or none"
        raise InvalidRecord(record=number, field="messages", reason=reason)
    if size > MAX_RECORD_BYTES:
        reason = f"hold more than {MAX_RECORD_BYTES} bytes of content together"
        raise InvalidRecord(record=number, field="messages", reason=reason)
    return drafts, timestamps


def _fields(value: object, place: str, known: frozenset[str], number: int) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        reason = f"must be a JSON object, not {type(value).__name__}"
        raise InvalidRecord(record=number, field=place, reason=reason)
    fields = cast("Mapping[str, Any]", value)
    for name in fields:
        if name not in known:
            shown = repr(str(name)[:64])
            reason = f"has an unknown field {shown}; known are {', '.join(sorted(known))}"
            raise InvalidRecord(record=number, field=place, reason=reason)
    return fields


def _time(value: object, name: str, number: int) -> datetime | None:
    if value is None:
        return None
    reason = "must be a date and time in ISO 8601"
    try:
        moment = datetime.fromisoformat(value) if isinstance(value, str) else value
        if isinstance(moment, datetime):
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
            reason = "must have an offset from UTC"
    except (ValueError, OverflowError):
        pass
    raise InvalidRecord(record=number, field=name, reason=reason)


def _check_order(times: Sequence[datetime | None], number: int) -> None:
    given = [time for time in times if time is not None]
    if any(later < earlier for earlier, later in pairwise(given)):
        reason = "times must not decrease: start_time, the timestamps in order, last_activity"
        raise InvalidRecord(record=number, field="timestamp", reason=reason)


def to_record(conversation: Conversation, messages: Sequence[Message]) -> ConversationRecord:
    """Return the record of a conversation; what it has none of (rescue_id, metadata) is left out.

    The four fields of every message and the five of every conversation are always there.
    """
    record: ConversationRecord = {
        "user_id": conversation.user_id,
        "session_id": conversation.session_id,
        "source": conversation.source,
        "intent_type": conversation.intent_type,
        "metadata": conversation.metadata,
        "status": conversation.status.value,
        "start_time": format_time(conversation.start_time),
        "last_activity": format_time(conversation.last_activity),
        "messages": [_message_record(message) for message in messages],
    }
    if conversation.rescue_id is not None:
        record["rescue_id"] = conversation.rescue_id
    return record


def _message_record(message: Message) -> MessageRecord:
    record: MessageRecord = {
        "role": message.role.value,
        "content": message.content,
        "intent_type": message.intent_type,
        "slots": message.slots,
        "timestamp": format_time(message.timestamp),
    }
    if message.metadata is not None:
        record["metadata"] = message.metadata
    return record


def format_time(moment: datetime) -> str:
    """Write a time as records do: ISO 8601 in UTC with microseconds."""
    text = moment.astimezone(UTC).isoformat(timespec="microseconds")
    return text.removesuffix("+00:00") + "Z"


def dump_record(record: ConversationRecord) -> str:
    """Write a record as one line of JSON, without line end: the same record, the same bytes."""
    return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
