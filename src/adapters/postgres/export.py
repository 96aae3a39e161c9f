"""Rows of an export become records."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Final

from attrs import define, field

from ...domain.json_object import load_optional
from ...domain.record import ConversationRecord, MessageRecord
from .rows import Row
from .stream import RowStream

_MESSAGE: Final = 10
"""Where in a row the columns of the message begin."""


@define(eq=False)
class RecordStream:
    """The records of rows that come a chunk at a time, each given when it is whole."""

    _rows: RowStream
    _check: Callable[[], None]
    """Raises where the stream may not be read any more."""
    _whole: deque[ConversationRecord] = field(factory=deque[ConversationRecord], repr=False)
    _id: int | None = None
    """Of the conversation that the last row belongs to."""
    _last: ConversationRecord | None = field(default=None, repr=False)
    """Its record, to which more messages may come."""

    def __aiter__(self) -> RecordStream:
        return self

    async def __anext__(self) -> ConversationRecord:
        self._check()
        while not self._whole:
            rows = await self._rows.next_chunk()
            for row in rows:
                self._take(row)
            if not rows:
                if self._last is None:
                    raise StopAsyncIteration
                self._whole.append(self._last)
                self._last = None
        return self._whole.popleft()

    async def aclose(self) -> None:
        """Give back what the stream holds."""
        await self._rows.close()

    def _take(self, row: Row) -> None:
        record = self._last
        if record is None or row[0] != self._id:
            if record is not None:
                self._whole.append(record)
            record = self._last = _conversation(row)
            self._id = row[0]
        if row[_MESSAGE] is not None:
            record["messages"].append(_message(row[_MESSAGE:]))


def _conversation(row: Row) -> ConversationRecord:
    record: ConversationRecord = {
        "user_id": row[1],
        "session_id": row[2],
        "source": row[8],
        "intent_type": row[7],
        "metadata": load_optional(row[9]),
        "status": row[3],
        "start_time": _time(row[4]),
        "last_activity": _time(row[5]),
        "messages": [],
    }
    if row[6] is not None:
        record["rescue_id"] = row[6]
    return record


def _message(row: Row) -> MessageRecord:
    role, content, timestamp, intent_type, slots, metadata = row
    record: MessageRecord = {
        "role": role,
        "content": content,
        "intent_type": intent_type,
        "slots": load_optional(slots),
        "timestamp": _time(timestamp),
    }
    if metadata is not None:
        record["metadata"] = load_optional(metadata)
    return record


def _time(moment: datetime) -> str:
    """Write a time that left the server as UTC without zone as records do."""
    return moment.isoformat(timespec="microseconds") + "Z"
