"""What one side answers, told without what may differ: ids and times by name.

The two stores give different ids and know different times. What they show for the first time gets
the next name of its kind; as long as both show the same things in the same order, the same things
have the same names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final

from attrs import define, field

from conversation_store import (
    Conversation,
    ConversationPage,
    ConversationStoreError,
    ErasureReceipt,
    ImportReceipt,
    Message,
    RemovedBatch,
)

MISSING: Final = 4_000_000_000_000
"""An id that no store has given."""
_BY_THE_CLOCK: Final = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC))
"""What programs give as a time lies outside of this."""
_TIMES: Final = {"start_time", "last_activity", "timestamp"}
_OF_THE_WAY: Final = {"tried", "__notes__"}
"""What an error tells of the tries before: the twin needs fewer, for it judges under its locks."""


@define(eq=False)
class Names:
    """The names of what one side has shown."""

    conversations: list[int] = field(factory=list[int])
    messages: list[int] = field(factory=list[int])
    times: list[datetime] = field(factory=list[datetime])
    cursors: list[str] = field(factory=list[str])
    homes: dict[int, tuple[str, str]] = field(factory=dict[int, tuple[str, str]])
    """By the number of a conversation: its user and session."""
    chats_of_messages: dict[int, int] = field(factory=dict[int, int])
    """By the number of a message: the number of its conversation."""
    versions: dict[int, int] = field(factory=dict[int, int])
    """By the number of a conversation: the version it was seen at last."""
    times_of_users: dict[str, set[datetime]] = field(factory=dict[str, set[datetime]])

    def told(self, value: Any) -> Any:
        """Return a value of an answer as it is to be compared."""
        if isinstance(value, Conversation):
            return self._conversation(value)
        if isinstance(value, Message):
            return self._message(value)
        if isinstance(value, ConversationPage):
            return ["page", self.told(value.conversations), self._cursor(value.next_cursor)]
        if isinstance(value, ConversationStoreError):
            return self._error(value)
        if isinstance(value, ImportReceipt | ErasureReceipt | RemovedBatch):
            return self._receipt(value)
        if isinstance(value, BaseException):
            # Of errors that are not the store's, the type is what a caller may rely on.
            return [type(value).__name__]
        if isinstance(value, Enum):
            return [type(value).__name__, value.value]
        if isinstance(value, Mapping):
            return self._record(value, str(value.get("user_id")))
        if isinstance(value, list | tuple):
            items: Sequence[Any] = value
            return [type(value).__name__, *(self.told(item) for item in items)]
        return value

    def order_of_times(self) -> dict[str, list[str]]:
        """Return, for each user, the names of times in the order of time."""
        return {
            user_id: [self._time(moment) for moment in sorted(times)]
            for user_id, times in self.times_of_users.items()
        }

    def home(self, number: int) -> tuple[str, str] | None:
        """Return the user and session of a conversation that a program names by a number."""
        return self.homes.get(number % (len(self.conversations) + 1))

    def home_of_message(self, number: int) -> tuple[str, str] | None:
        """Return the same of the conversation of a message that a program names by a number."""
        chat = self.chats_of_messages.get(number % (len(self.messages) + 1))
        return None if chat is None else self.homes.get(chat)

    def seen_version(self, number: int) -> int:
        """Return the version that a conversation was seen at last."""
        return self.versions.get(number % (len(self.conversations) + 1), 1)

    @staticmethod
    def pick(ids: Sequence[int], number: int) -> int:
        """Return the id that a program names by a number; one place is for what is not there."""
        place = number % (len(ids) + 1)
        return ids[place] if place < len(ids) else MISSING

    def _conversation(self, shown: Conversation) -> Any:
        name = self._number(self.conversations, shown.id)
        self.homes[name] = shown.user_id, shown.session_id
        self.versions[name] = shown.version
        self._note_times(shown.user_id, shown.start_time, shown.last_activity)
        return {
            "conversation": name,
            "home": (shown.user_id, shown.session_id),
            "status": self.told(shown.status),
            "times": (self._time(shown.start_time), self._time(shown.last_activity)),
            "counts": (shown.message_count, shown.version),
            "values": (shown.rescue_id, shown.intent_type, shown.source),
            "metadata": repr(shown.metadata),
        }

    def _receipt(self, shown: ImportReceipt | ErasureReceipt | RemovedBatch) -> Any:
        if isinstance(shown, ImportReceipt):
            return repr(shown)
        if isinstance(shown, ErasureReceipt):
            return ["erased", shown.conversations, shown.messages]

        def named(went: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
            return [(self._number(self.conversations, its_id), count) for its_id, count in went]

        left = [self._number(self.conversations, its_id) for its_id in shown.left]
        return ["batch", named(shown.removed), named(shown.trimmed), left, shown.next_place]

    def _message(self, shown: Message) -> Any:
        chat = self._number(self.conversations, shown.conversation_id)
        if chat in self.homes:
            self._note_times(self.homes[chat][0], shown.timestamp)
        name = self._number(self.messages, shown.id)
        self.chats_of_messages[name] = chat
        return {
            "message": name,
            "conversation": chat,
            "position": shown.position,
            "said": (self.told(shown.role), shown.content, shown.intent_type),
            "time": self._time(shown.timestamp),
            "slots": repr(shown.slots),
            "metadata": repr(shown.metadata),
        }

    def _record(self, record: Mapping[str, Any], user_id: str) -> Any:
        told: dict[str, Any] = {}
        for key, value in record.items():
            if key in _TIMES:
                moment = datetime.fromisoformat(value)
                self._note_times(user_id, moment)
                told[key] = self._time(moment)
            elif key == "messages":
                told[key] = [self._record(message, user_id) for message in value]
            else:
                told[key] = repr(value)
        return told

    def _error(self, error: ConversationStoreError) -> Any:
        told: dict[str, Any] = {"error": type(error).__name__, "retryable": error.retryable}
        for key, value in vars(error).items():
            if key in _OF_THE_WAY:
                continue
            if key == "conversation_id":
                told[key] = self._known(self.conversations, value)
            elif key == "message_id":
                told[key] = self._known(self.messages, value)
            else:
                told[key] = self.told(value)
        return told

    def _cursor(self, cursor: str | None) -> str | None:
        if cursor is None:
            return None
        self.cursors.append(cursor)
        return "more"

    def _known(self, ids: list[int], value: int) -> Any:
        """Return the name of an id, if a store gave it and not the program."""
        return f"number {self._number(ids, value)}" if 0 < value < MISSING else value

    def _number(self, ids: list[int], value: int) -> int:
        if value not in ids:
            ids.append(value)
        return ids.index(value)

    def _note_times(self, user_id: str, *times: datetime) -> None:
        self.times_of_users.setdefault(user_id, set()).update(times)

    def _time(self, moment: datetime) -> str:
        if moment.utcoffset() is None or not _is_by_the_clock(moment):
            return moment.isoformat()
        if moment not in self.times:
            self.times.append(moment)
        return f"time {self.times.index(moment)}"


def _is_by_the_clock(moment: datetime) -> bool:
    first, last = _BY_THE_CLOCK
    return first <= moment <= last


@define(eq=False)
class Ended:
    """How a call ended: with a value, or with an error."""

    value: Any = None
    error: BaseException | None = None

    def told(self, names: Names) -> Any:
        """Return it as it is to be compared."""
        if self.error is None:
            return ["returned", names.told(self.value)]
        if isinstance(self.error, asyncio.CancelledError):
            return ["cancelled"]
        return ["raised", names.told(self.error)]
