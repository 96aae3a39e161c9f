"""Messages: what was said in a conversation, and what a caller wants to say."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Final

from attrs import evolve, field, frozen

from .errors import InvalidMessage
from .json_object import MAX_JSON_BYTES, JsonObject, check_optional_json, dump_json
from .text import check_name, check_text, is_storable, to_text

MAX_CONTENT_BYTES: Final = 10_000_000
"""Longest content of a message, in bytes of UTF-8."""
MAX_DRAFTS: Final = 1000
"""Most messages that one call stores."""
MAX_TURN_BYTES: Final = 100_000_000
"""Largest content, slots and metadata of all messages of one call together, in bytes of JSON."""
_MOST_BYTES_A_CHARACTER: Final = 6  # of JSON in UTF-8: \u0001

REDACTED_CONTENT: Final = "[redacted]"
"""What stands where the words of a redacted message were."""
REDACTED_SLOTS: Final[JsonObject] = {"redacted": True}
"""The slots of a redacted message."""
REDACTED_DIGEST: Final = bytes(32)
"""What stands where the digest of a redacted turn was: no turn has it, and it tells nothing."""


class Role(StrEnum):
    """Who speaks."""

    USER = "user"
    """The person."""
    ASSISTANT = "assistant"
    """The model, or whoever answers; also where it calls a tool."""
    SYSTEM = "system"
    """Instructions of the host's."""
    TOOL = "tool"
    """What a tool gave."""


_ROLES: Final[dict[object, Role]] = {role.value: role for role in Role}


def _to_role(value: str) -> Role:
    role = _ROLES.get(str.__str__(value) if isinstance(value, str) else None)
    if role is None:
        reason = f"must be one of {', '.join(Role)}"
        raise InvalidMessage(field="role", reason=reason)
    return role


def _to_content(value: str) -> str:
    text = to_text(value, "content", InvalidMessage)
    size = len(text)
    # Each character takes a byte or more: of what has too many nothing is looked at or copied.
    if size <= MAX_CONTENT_BYTES:
        if not is_storable(text):
            check_text(text, "content", InvalidMessage)
        size = content_bytes(text)
    if size > MAX_CONTENT_BYTES:
        reason = f"must be at most {MAX_CONTENT_BYTES} bytes of UTF-8, not {size}"
        raise InvalidMessage(field="content", reason=reason)
    return text


def content_bytes(text: str) -> int:
    """Return the length of `text` in bytes of UTF-8."""
    return len(text) if text.isascii() else len(text.encode())


def _to_intent_type(value: str | None) -> str | None:
    return None if value is None else check_name(value, "intent_type", InvalidMessage)


def _to_slots(value: JsonObject | None) -> JsonObject | None:
    return check_optional_json(value, "slots", InvalidMessage)


def _to_metadata(value: JsonObject | None) -> JsonObject | None:
    return check_optional_json(value, "metadata", InvalidMessage)


@frozen(kw_only=True)
class MessageDraft:
    """What a caller wants to say; becomes a Message when it gets id, position and timestamp.

    Raises InvalidMessage when made from values that cannot be stored.
    """

    role: Role = field(converter=_to_role)
    """Who speaks: user, assistant, system or tool."""
    content: str = field(converter=_to_content, repr=False)
    """The words: up to 10 MB of UTF-8; may be empty (tool calls produce that)."""
    intent_type: str | None = field(default=None, converter=_to_intent_type, repr=False)
    """The intent that the language-understanding step found, 1..255 characters."""
    slots: JsonObject | None = field(default=None, converter=_to_slots, repr=False, hash=False)
    """The slots that it found: a JSON object of at most 1 MB."""
    metadata: JsonObject | None = field(
        default=None, converter=_to_metadata, repr=False, hash=False
    )
    """The host's own JSON object (model, tokens, tool call ids), at most 1 MB."""

    def stored(
        self, *, message_id: int, conversation_id: int, position: int, timestamp: datetime
    ) -> Message:
        """Return the message that the draft becomes."""
        return Message(
            id=message_id,
            conversation_id=conversation_id,
            position=position,
            role=self.role,
            content=self.content,
            timestamp=timestamp,
            intent_type=self.intent_type,
            slots=self.slots,
            metadata=self.metadata,
        )


@frozen(kw_only=True)
class Message:
    """One utterance in a conversation, immutable once stored; only redaction takes its words."""

    id: int
    """Unique in the store; given out before the message is stored."""
    conversation_id: int
    """The conversation it was said in."""
    position: int
    """1, 2, 3 … within the conversation, in commit order, without gaps."""
    role: Role
    """Who spoke."""
    content: str = field(repr=False)
    """The words."""
    timestamp: datetime
    """When it was stored, by the store's clock, in UTC; never decreases with position."""
    intent_type: str | None = field(default=None, repr=False)
    """The intent found in it."""
    slots: JsonObject | None = field(default=None, repr=False, hash=False)
    """The slots found in it."""
    metadata: JsonObject | None = field(default=None, repr=False, hash=False)
    """The host's own JSON object."""

    @property
    def is_redacted(self) -> bool:
        """Whether it says what a redacted message says, and nothing else."""
        slots = self.slots
        is_marked = slots == REDACTED_SLOTS and slots is not None and slots["redacted"] is True
        is_bare = self.intent_type is None and self.metadata is None
        return is_marked and is_bare and self.content == REDACTED_CONTENT

    def redacted(self) -> Message:
        """Return what is left of it: where it stands, who spoke and when, and a tombstone."""
        return evolve(
            self,
            content=REDACTED_CONTENT,
            intent_type=None,
            slots=dict(REDACTED_SLOTS),
            metadata=None,
        )


def _own(draft: MessageDraft) -> MessageDraft:
    if not isinstance(draft, MessageDraft):
        reason = f"must hold MessageDraft objects, not {type(draft).__name__}"
        raise InvalidMessage(field="drafts", reason=reason)
    if draft.slots is None and draft.metadata is None:
        return draft
    return MessageDraft(  # checks and copies both anew
        role=draft.role,
        content=draft.content,
        intent_type=draft.intent_type,
        slots=draft.slots,
        metadata=draft.metadata,
    )


def _most_bytes(draft: MessageDraft) -> int:
    """Return a size that the draft does not exceed, without looking closely."""
    objects = (draft.slots is not None) + (draft.metadata is not None)
    return _MOST_BYTES_A_CHARACTER * len(draft.content) + MAX_JSON_BYTES * objects


def _bytes(draft: MessageDraft) -> int:
    """Return how many bytes what the draft says takes as it is sent, as JSON in UTF-8."""
    objects = (draft.slots, draft.metadata)
    size = sum(content_bytes(dump_json(value)) for value in objects if value is not None)
    return size + content_bytes(dump_json(draft.content)) - len('""')


def check_drafts(drafts: Iterable[MessageDraft], *, least: int) -> tuple[MessageDraft, ...]:
    """Return `drafts` as they are now; raise InvalidMessage if too few, too many or too large.

    What the caller does to their slots and metadata afterwards has no effect. No more of them is
    asked for than may be stored.
    """
    if not isinstance(drafts, Iterable):
        reason = f"must be a sequence of MessageDraft objects, not {type(drafts).__name__}"
        raise InvalidMessage(field="drafts", reason=reason)
    checked: list[MessageDraft] = []
    size = at_most = 0
    uncounted = 0
    for draft in drafts:
        if len(checked) == MAX_DRAFTS:
            reason = f"must be {least}..{MAX_DRAFTS} messages, and are more"
            raise InvalidMessage(field="drafts", reason=reason)
        checked.append(_own(draft))
        at_most += _most_bytes(checked[-1])
        if at_most > MAX_TURN_BYTES:  # it may be too large: count what it comes to so far
            size += sum(map(_bytes, checked[uncounted:]))
            at_most, uncounted = size, len(checked)
        if size > MAX_TURN_BYTES:
            reason = f"must come to at most {MAX_TURN_BYTES} bytes of JSON together, and are more"
            raise InvalidMessage(field="drafts", reason=reason)
    if len(checked) < least:
        reason = f"must be {least}..{MAX_DRAFTS} messages, not {len(checked)}"
        raise InvalidMessage(field="drafts", reason=reason)
    return tuple(checked)


@frozen(kw_only=True)
class Turn:
    """Messages that belong together and are appended by one call."""

    conversation_id: int
    drafts: tuple[MessageDraft, ...]
    request_id: str | None = None
    expected_version: int | None = None

    @property
    def digest(self) -> bytes:
        """What tells its content from another."""
        return digest_drafts(self.drafts)


def digest_drafts(drafts: Iterable[MessageDraft]) -> bytes:
    """Return SHA-256 over what is said; its first byte names the form of the text digested."""
    return b"\x01" + digest_json(
        [
            [draft.role, draft.content, draft.intent_type, draft.slots, draft.metadata]
            for draft in drafts
        ]
    )


def digest_json(value: object) -> bytes:
    """Return SHA-256 over values in canonical form; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).digest()
