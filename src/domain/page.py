"""Pages: how much of a list is read at a time, and where the next page starts."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from datetime import UTC, datetime, timedelta
from typing import Final

from attrs import frozen

from .conversation import Conversation, Status
from .errors import InvalidCursor, InvalidLimit

MAX_LIMIT: Final = 1000
"""Largest page."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_PLACE: Final = struct.Struct(">qq")
_SEAL_BYTES: Final = 8
_MOST_CHARACTERS: Final = 64  # a cursor has half as many


def check_limit(limit: object) -> int:
    """Return `limit` if it is an integer of 1..1000; raise InvalidLimit if not."""
    number = int.__int__(limit) if isinstance(limit, int) and not isinstance(limit, bool) else None
    if number is None or not 1 <= number <= MAX_LIMIT:
        is_short = number is not None and abs(number) < 10**12
        shown = number if is_short else type(limit).__name__
        reason = f"must be an integer of 1..{MAX_LIMIT}, not {shown}"
        raise InvalidLimit(field="limit", reason=reason)
    return number


@frozen(kw_only=True)
class ConversationPage:
    """A page of a user's conversations, the most recent activity first."""

    conversations: list[Conversation]
    """The conversations of this page."""
    next_cursor: str | None
    """What `after` takes to get the next page; None when this is the last."""


@frozen(kw_only=True)
class ConversationCursor:
    """Where a page of conversations ended: the place of its last one in the list."""

    last_activity: datetime
    conversation_id: int

    def encode(self, user_id: str, status: Status | None) -> str:
        """Return the opaque text of this place in the list of that user and status."""
        microseconds = (self.last_activity - _EPOCH) // _MICROSECOND
        place = _PLACE.pack(microseconds, self.conversation_id)
        return base64.urlsafe_b64encode(place + _seal(place, user_id, status)).decode()

    @classmethod
    def decode(cls, text: object, user_id: str, status: Status | None) -> ConversationCursor:
        """Return the place that `text` stands for; raise InvalidCursor if it is none of this list.

        A cursor is no secret and no permission: it only says where to go on.
        """
        try:
            if not isinstance(text, str) or str.__len__(text) > _MOST_CHARACTERS:
                raise ValueError
            raw = base64.b64decode(str.__str__(text).encode("ascii"), altchars=b"-_", validate=True)
            place, seal = raw[: _PLACE.size], raw[_PLACE.size :]
            microseconds, conversation_id = _PLACE.unpack(place)
            if seal != _seal(place, user_id, status):
                raise ValueError
            moment = _EPOCH + microseconds * _MICROSECOND
            return cls(last_activity=moment, conversation_id=conversation_id)
        except (ValueError, struct.error, binascii.Error, OverflowError):
            pass  # told below, for what says here why holds the text
        reason = "is damaged or was made for another list; start again without a cursor"
        raise InvalidCursor(field="after", reason=reason)


def _seal(place: bytes, user_id: str, status: Status | None) -> bytes:
    """Return a check sum that ties a place to its list; it finds mistakes, not forgeries."""
    listed = f"{status or ''}\0{user_id}".encode()
    return hashlib.blake2b(place + listed, digest_size=_SEAL_BYTES).digest()
