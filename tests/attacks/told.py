"""An answer, told without what may differ between two that are to be the same.

The names and ids that the attack was made with are called what they are of; ids that are new are
called new, and times times. All else counts: types, texts, attributes, counts, cursors, and what
the error says of its cause.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import Enum
from typing import Any, Final

import attrs
import psycopg

from conversation_store import ConversationStoreError

from .world import Target

Row = dict[str, Any]
State = dict[tuple[str, int], Row]
"""All rows of a store: by table and id."""

_TIMES: Final = {"start_time", "last_activity", "timestamp", "started_at", "finished_at"}
_IDS: Final = {"id", "conversation_id", "conversation_ids", "message_ids"}


class Teller:
    """Tells answers to attacks on one target, in a store of which all rows are known."""

    def __init__(self, target: Target, before: State) -> None:
        self._names = target.names
        self._user_id = target.user_id
        self._known = {id_ for _, id_ in before}
        by_length = sorted(map(str, self._names), key=len, reverse=True)
        self._ids = re.compile(rf"\b({'|'.join(by_length)})\b")

    def told(self, value: Any, field: str = "") -> Any:
        """Return a value as it is to be compared."""
        if isinstance(value, BaseException):
            return self._error(value)
        if isinstance(value, datetime) or (field in _TIMES and value is not None):
            return "<time>"
        if isinstance(value, Enum):
            return value.value
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return self._integer(value, field)
        if attrs.has(type(value)):
            names = [one.name for one in attrs.fields(type(value))]
            told = {name: self.told(getattr(value, name), name) for name in names}
            return [type(value).__name__, told]
        if isinstance(value, Mapping):
            return {self.told(key): self.told(item, str(key)) for key, item in value.items()}
        if isinstance(value, Sequence) and not isinstance(value, bytes):
            return [self.told(item, field) for item in value]
        return value

    def changes(self, before: State, after: State) -> list[Any]:
        """Return what became of the rows of a store."""
        gone = [(key[0], self.told(row)) for key, row in sorted(before.items()) if key not in after]
        new = [(key[0], self.told(row)) for key, row in sorted(after.items()) if key not in before]
        moved = [
            (key, {name: self.told(row[name], name) for name in row if row[name] != old[name]})
            for key, old in sorted(before.items())
            if (row := after.get(key, old)) != old
        ]
        return [("gone", gone), ("new", new), ("moved", moved)]

    def _text(self, text: str) -> str:
        text = text.replace(self._user_id, "<user>")
        return self._ids.sub(lambda found: self._names[int(found[1])], text)

    def _integer(self, value: int, field: str) -> Any:
        if value in self._names:
            return self._names[value]
        return "<new>" if field in _IDS and value not in self._known else value

    def _error(self, error: BaseException) -> Any:
        told: dict[str, Any] = {"type": type(error).__name__, "text": self._text(str(error))}
        if isinstance(error, ConversationStoreError):
            told |= {name: self.told(value, name) for name, value in vars(error).items()}
        if isinstance(error, psycopg.Error):
            diag = error.diag
            told |= {
                name: self.told(getattr(diag, name))
                for name in ("message_primary", "message_detail", "message_hint", "context")
            }
        # Of what was raised meanwhile only what it came from: a context may lead back to itself.
        if error.__cause__ is not None:
            told["cause"] = self.told(error.__cause__)
        return told
