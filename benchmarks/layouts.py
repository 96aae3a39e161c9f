"""Ways to lay out the conversations, so that the list of a user can be weighed against the append.

Each is the migrated schema with its indexes altered, and the statement that lists a user's
conversations on it. All of them give the same list in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from conversation_store.adapters.postgres.texts import Texts

_INDEX: Final = "CREATE INDEX {name} ON {{schema}}.ai_conversations ({columns});"
_DROP: Final = "DROP INDEX {schema}.ai_conversations_activity_idx;"
_FILL: Final = "ALTER TABLE {{schema}}.ai_conversations SET (fillfactor = {percent});"
_BIN: Final = "date_bin('{length}', {time}, '2000-01-01 00:00Z'::timestamptz)"
_ORDER: Final = b"ORDER BY last_activity DESC"
_AFTER: Final = b"AND (last_activity, id) <"


@dataclass(frozen=True)
class Layout:
    """One way to lay out the conversations."""

    name: str
    says: str
    """What it is, for a reader of the results."""
    ddl: str = ""
    bin_length: str | None = None
    """A column holds last_activity cut to this length, and is indexed in its place."""

    def list_text(self, schema: str, *, status: bool = False) -> bytes:
        """Return the statement that lists a user's conversations, of one status or of all."""
        texts = Texts(schema)
        text = texts.list_of_status if status else texts.list
        if self.bin_length is None:
            return text
        # The bins are in the order of the times: rows come bin by bin, sorted within one.
        bound = _BIN.format(length=self.bin_length, time="%(last_activity)s::timestamptz")
        text = text.replace(_AFTER, f"AND activity_bin <= {bound} ".encode() + _AFTER)
        return text.replace(_ORDER, b"ORDER BY activity_bin DESC, last_activity DESC")

    def ddl_in(self, schema: str) -> str:
        """Return what makes it of a schema that was migrated and is empty."""
        return self.ddl.replace("{schema}", schema)


def _index(name: str, columns: str) -> str:
    return _INDEX.format(name=name, columns=columns)


def _binned(length: str) -> str:
    column = _BIN.format(length=length, time="last_activity")
    return (
        _DROP
        + "ALTER TABLE {schema}.ai_conversations ADD COLUMN activity_bin timestamptz "
        + f"GENERATED ALWAYS AS ({column}) STORED;"
        + _index("binned", "user_id, activity_bin, status")
    )


def _filled(percent: int) -> str:
    return _FILL.format(percent=percent)


LAYOUTS: Final = (
    Layout("today", "index (user_id, last_activity, id, status)"),
    Layout("today_90", "the same, fillfactor 90", _filled(90)),
    Layout("today_70", "the same, fillfactor 70", _filled(70)),
    Layout(
        "no_status",
        "index (user_id, last_activity, id)",
        _DROP + _index("plain", "user_id, last_activity, id"),
    ),
    Layout(
        "with_status",
        "today's, and a second index (user_id, status, last_activity, id)",
        _index("by_status", "user_id, status, last_activity, id"),
    ),
    Layout(
        "with_archived",
        "today's, and a partial index (user_id, last_activity, id) of the archived",
        _index("archived", "user_id, last_activity, id").replace(
            ";", " WHERE status = 'archived';"
        ),
    ),
    Layout("none", "no index: all conversations of the user are read and sorted", _DROP),
    Layout(
        "none_90",
        "the same, fillfactor 90",
        _DROP + _filled(90),
    ),
    Layout(
        "hour",
        "index (user_id, last_activity cut to the hour, status)",
        _binned("1 hour"),
        "1 hour",
    ),
    Layout(
        "hour_90",
        "the same, fillfactor 90",
        _binned("1 hour") + _filled(90),
        "1 hour",
    ),
)
