"""The predicates of the statements that keep users apart, and each of them taken out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from conversation_store.adapters.postgres.texts import Texts

_OF_A_UNIT: Final = rb"\(%\(user_id\)s::text IS NULL OR user_id = %\(user_id\)s\)"
_OF_A_MESSAGE: Final = (
    rb"\(%\(user_id\)s::text IS NULL OR EXISTS \(\s*SELECT FROM \S+ "
    rb"WHERE id = m\.conversation_id AND user_id = %\(user_id\)s\)\)"
)
_OF_A_TURN: Final = rb"\(t\.user_id IS NULL OR t\.user_id = locked\.user_id\)"
_OF_AN_OWNER: Final = rb"(?:c\.)?user_id = %\(owner\)s"
_OF_A_WALK: Final = rb"user_id = %\(user_id\)s(?= AND session_id)"
_OF_A_RECORD: Final = rb"c\.user_id = given ->> 0"

PREDICATE: Final = re.compile(
    b"|".join((_OF_A_UNIT, _OF_A_MESSAGE, _OF_A_TURN, _OF_AN_OWNER, _OF_A_WALK, _OF_A_RECORD))
)

WITHOUT: Final = {
    "start": "adds a row; whose it is was checked when the call was made",
    "copy_conversations": "adds rows; whose they are was checked when the call was made",
    "copy_messages": "adds rows to conversations that the same batch adds",
    "export": "is for units that act for the application",
    "remove_some": "is for units that act for the application",
    "find_removable": "is for units that act for the application",
    "scope": "tells the server whom the unit acts for",
    "scope_for_a_while": "tells the server whom the unit acts for",
    "next_ids": "reads the sequence",
}
"""Texts that need no predicate, and why."""


def texts_of(texts: Texts) -> dict[str, bytes]:
    """Return the statements of a store, by name."""
    named: dict[str, Any] = vars(texts)
    return {name: text for name, text in named.items() if isinstance(text, bytes)}


def without_one(texts: Texts) -> Iterator[tuple[str, int, bytes]]:
    """Give each text with one of its predicates taken out, and which it is."""
    for name, text in texts_of(texts).items():
        for number, found in enumerate(PREDICATE.finditer(text), 1):
            yield name, number, text[: found.start()] + b"true" + text[found.end() :]


def without_any(text: bytes) -> bytes:
    """Return a text without its predicates."""
    return PREDICATE.sub(b"true", text)


class WatchedTexts(Texts):
    """Texts that note which of them was asked for."""

    asked_for: set[str]

    def __getattribute__(self, name: str) -> Any:
        if name != "asked_for" and not name.startswith("_"):
            object.__getattribute__(self, "asked_for").add(name)
        return object.__getattribute__(self, name)
