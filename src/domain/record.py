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
from .text import shown_name

MAX_RECORD_BYTES: Final = 100_000_000
"""Largest content, slots and metadata of all messages of a record together, in bytes of UTF-8."""
MAX_RECORD_MESSAGES: Final = 1_000_000
"""Most messages of a record."""
_MOST_TIME_CHARACTERS: Final = 64


class MessageRecord(TypedDict):
    """One message of a record."""

    role: str
    """user, assistant, system or tool."""
    content: str
    """The words, up to 10 MB of UTF-8."""
    intent_type: NotRequired[str | None]
    """The intent found in it."""
    slots: NotRequired[JsonObject | None]
    """The slots found in it."""
    metadata: NotRequired[JsonObject | None]
    """The host's own JSON object."""
    timestamp: NotRequired[str]
    """ISO 8601 with an offset; all messages of a record have one, or none has."""
    position: NotRequired[int]
    """Where present, 1, 2, 3 … in order."""


class ConversationRecord(TypedDict):
    """One conversation with all its messages, oldest first."""

    user_id: str
    """Whose conversation it is."""
    session_id: str
    """The host's own name for it, unique per user_id."""
    messages: list[MessageRecord]
    """All its messages, at most 1,000,000."""
    source: NotRequired[str | None]
    """Where it came from."""
    intent_type: NotRequired[str | None]
    """The intent that it is about."""
    rescue_id: NotRequired[str | None]
    """Reference to a case in the host's world."""
    metadata: NotRequired[JsonObject | None]
    """The host's own JSON object."""
    status: NotRequired[str]
    """active, closed or archived; active where it is left out."""
    start_time: NotRequired[str]
    """ISO 8601 with an offset; else that of the first message, or the store's clock."""
    last_activity: NotRequired[str]
    """ISO 8601 with an offset; else that of the last message, or the store's clock."""


_CONVERSATION_FIELDS = frozenset(ConversationRecord.__annotations__)
_MESSAGE_FIELDS = frozenset(MessageRecord.__annotations__)


def check_record(record: object, number: int) -> ImportedConversation:
    """Read record `number` of a stream; raise InvalidRecord saying which field is wrong and why."""
    try:
        plain = read_plain(record, _CONVERSATION_FIELDS, _MESSAGE_FIELDS)
        return plain or _read_record(record, number)
    except (InvalidRecord, MemoryError):
        raise
    except InvalidInput as error:
        raise InvalidRecord(
            record=number, field=error.field, reason=error.reason, offset=error.offset
        ) from error
    except Exception as error:  # noqa: BLE001 - whatever a record of the host raises
        failed = type(error).__name__  # all else that it says may be a value
    reason = f"could not be read: that raised {failed}"
    raise InvalidRecord(record=number, field="record", reason=reason)


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
    said = _read_messages(cast("Sequence[object]", messages), number)
    _check_order([start_time, *said.timestamps, last_activity], number)
    return ImportedConversation(
        user_id=conversation.user_id,
        session_id=conversation.session_id,
        rescue_id=conversation.rescue_id,
        intent_type=conversation.intent_type,
        source=conversation.source,
        metadata=dump_optional(conversation.metadata),
        status=to_status(values.get("status", Status.ACTIVE)),
        start_time=start_time or (said.timestamps[0] if said.timestamps else None),
        last_activity=last_activity or (said.timestamps[-1] if said.timestamps else None),
        messages=said,
    )


def _read_messages(messages: Sequence[object], number: int) -> ImportedMessages:
    roles: list[str] = []
    contents: list[str] = []
    intent_types: list[str | None] = []
    slots: list[str | None] = []
    metadata: list[str | None] = []
    timestamps: list[datetime] = []
    size = 0
    for index, message in enumerate(messages):
        if index == MAX_RECORD_MESSAGES:
            reason = f"must be at most {MAX_RECORD_MESSAGES}, and are more"
            raise InvalidRecord(record=number, field="messages", reason=reason)
        place = f"messages[{index}]"
        values = _fields(message, place, _MESSAGE_FIELDS, number)
        draft = _read_draft(values, place, number)
        position = values.get("position", index + 1)
        if isinstance(position, bool) or position != index + 1:
            reason = f"must be {index + 1}: positions count 1, 2, 3 … in order"
            raise InvalidRecord(record=number, field=f"{place}.position", reason=reason)
        timestamp = _time(values.get("timestamp"), f"{place}.timestamp", number)
        if timestamp is not None:
            timestamps.append(timestamp)
        roles.append(draft.role.value)
        contents.append(draft.content)
        intent_types.append(draft.intent_type)
        slots.append(dump_optional(draft.slots))
        metadata.append(dump_optional(draft.metadata))
        texts = (draft.content, slots[-1], metadata[-1])
        size += sum(content_bytes(text) for text in texts if text is not None)
        if size > MAX_RECORD_BYTES:
            reason = f"hold more than {MAX_RECORD_BYTES} bytes of content and JSON together"
            raise InvalidRecord(record=number, field="messages", reason=reason)
    if timestamps and len(timestamps) != len(contents):
        reason = "all messages of a record must have a timestamp, or none"
        raise InvalidRecord(record=number, field="messages", reason=reason)
    return ImportedMessages(
        roles=roles,
        contents=contents,
        intent_types=intent_types,
        slots=slots,
        metadata=metadata,
        timestamps=timestamps,
    )


def _read_draft(values: Mapping[str, Any], place: str, number: int) -> MessageDraft:
    if "content" not in values or "role" not in values:
        missing = "role" if "role" not in values else "content"
        raise InvalidRecord(record=number, field=f"{place}.{missing}", reason="is missing")
    try:
        return MessageDraft(
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


def _fields(value: object, place: str, known: frozenset[str], number: int) -> dict[str, Any]:
    """Return the fields of a record or message as they are now, each read once."""
    if not isinstance(value, Mapping):
        reason = f"must be a JSON object, not {type(value).__name__}"
        raise InvalidRecord(record=number, field=place, reason=reason)
    fields: dict[str, Any] = {}
    for index, (name, item) in enumerate(cast("Mapping[str, Any]", value).items(), 1):
        if name not in known:
            shown = type(name).__name__
            if isinstance(name, str):
                shown = shown_name(str.__str__(name), index)
            reason = f"has an unknown field {shown}; known are {', '.join(sorted(known))}"
            raise InvalidRecord(record=number, field=place, reason=reason)
        if name in fields:
            raise InvalidRecord(record=number, field=place, reason=f"has {name} more than once")
        fields[name] = item
    return fields


def _time(value: object, name: str, number: int) -> datetime | None:
    if value is None:
        return None
    reason = "must be a date and time in ISO 8601"
    try:
        text = value if isinstance(value, str) and len(value) <= _MOST_TIME_CHARACTERS else None
        moment = value if text is None else datetime.fromisoformat(text)
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
    """Write a record as one line of JSON, without line end: the same record, the same bytes.

    Raises: InvalidInput for what no export gives: what JSON does not have, or nests too deep.
    """
    try:
        return json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    except (RecursionError, TypeError, ValueError) as error:
        reason = f"cannot be written as JSON: that raised {type(error).__name__}"
        raise InvalidInput(field="record", reason=reason) from error
