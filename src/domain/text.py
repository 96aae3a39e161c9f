"""Which texts can be stored, and the remedy for those that cannot.

PostgreSQL stores neither NUL nor lone surrogates in text or jsonb
(https://www.postgresql.org/docs/current/datatype-character.html); language models emit both.
The domain refuses them, so that every adapter does.
"""

from __future__ import annotations

import re
from typing import Final

from .errors import InvalidInput

MAX_NAME_LENGTH: Final = 255
"""Longest id or name, in characters."""

_LONGEST_SHOWN: Final = 40
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


def storable_text(text: str) -> str:
    """Return `text` with U+FFFD in place of each NUL and lone surrogate.

    For output of models and other programs that must not be lost for one bad character.
    """
    return _UNSTORABLE.sub("\ufffd", text)


def is_storable(text: str) -> bool:
    """Whether PostgreSQL can store `text`."""
    return "\0" not in text if text.isascii() else _UNSTORABLE.search(text) is None


def check_text(value: object, field: str, error: type[InvalidInput]) -> str:
    """Return `value` if it is a text that can be stored; raise `error` naming `field` if not.

    What is returned is a plain text: a subclass of str may say one thing and hold another.
    """
    text = to_text(value, field, error)
    bad = None if is_storable(text) else _UNSTORABLE.search(text)
    if bad is not None:
        what = "a NUL character" if bad[0] == "\0" else "a lone surrogate"
        raise error(
            field=field,
            reason=f"holds {what}, which cannot be stored; storable_text() replaces it",
            offset=bad.start(),
        )
    return text


def to_text(value: object, field: str, error: type[InvalidInput]) -> str:
    """Return `value` as a plain text; raise `error` if it is none."""
    if not isinstance(value, str):
        raise error(field=field, reason=f"must be a text, not {type(value).__name__}")
    return value if type(value) is str else str.__str__(value)


def check_name(value: object, field: str, error: type[InvalidInput]) -> str:
    """Return `value` if it is a storable text of 1..255 characters; raise `error` if not."""
    text = to_text(value, field, error)
    if not 1 <= len(text) <= MAX_NAME_LENGTH:
        reason = f"must have 1..{MAX_NAME_LENGTH} characters, not {len(text)}"
        raise error(field=field, reason=reason)
    return text if is_storable(text) else check_text(text, field, error)


def shown_name(name: str, number: int) -> str:
    """Return how an error calls the member of that name: by it, or else by its number, from 1.

    Members of slots and metadata are called whatever the host, or a model, likes: by an address or
    a sentence, too. Only what looks like the name of a field is shown as one.
    """
    is_short = len(name) <= _LONGEST_SHOWN and name.isascii()
    return name if is_short and name.replace("-", "_").isidentifier() else f"<key {number}>"
