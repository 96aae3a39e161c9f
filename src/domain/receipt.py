"""Receipts: what a call that moves whole conversations has done."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from datetime import datetime
from typing import Final

from attrs import frozen

_DIGESTS: Final = 2**256
"""How many digests there are."""


@frozen(kw_only=True)
class ImportReceipt:
    """What an import has stored for good."""

    conversations: int = 0
    """Conversations stored."""
    messages: int = 0
    """Messages stored with them."""
    skipped: int = 0
    """Records left out because the user had a conversation of that session already."""

    def __add__(self, other: ImportReceipt) -> ImportReceipt:
        return ImportReceipt(
            conversations=self.conversations + other.conversations,
            messages=self.messages + other.messages,
            skipped=self.skipped + other.skipped,
        )


@frozen(kw_only=True)
class ErasureReceipt:
    """What was removed for good; it holds nothing of what was said, and no user_id.

    Receipts add up: the sum of those of several calls is the receipt of one that did it all.
    """

    conversations: int
    """Conversations that are gone."""
    messages: int
    """Messages that are gone, also those of conversations of which a part is left."""
    started_at: datetime
    """When the first batch began, by the server's clock, in UTC."""
    finished_at: datetime
    """When the last batch was done, by the server's clock, in UTC."""
    digest: str
    """A check sum of which conversations went, and how long they were: 64 hexadecimal digits.

    The sum, modulo 2**256, over all conversations, of the SHA-256 of the id in decimal digits,
    times the number of its messages that went, plus one where the conversation itself is gone.
    Whoever listed ids and message_counts before can compute it again; the order does not matter.
    It compares, and is no signature.
    """

    def __add__(self, other: ErasureReceipt) -> ErasureReceipt:
        return ErasureReceipt(
            conversations=self.conversations + other.conversations,
            messages=self.messages + other.messages,
            started_at=min(self.started_at, other.started_at),
            finished_at=max(self.finished_at, other.finished_at),
            digest=_hex(int(self.digest, 16) + int(other.digest, 16)),
        )


def digest_of(removed: Iterable[tuple[int, int]], trimmed: Iterable[tuple[int, int]] = ()) -> str:
    """Return the digest of a receipt: of conversations that are gone, and of some in part.

    Each is an id and a number of messages.
    """
    whole = sum(_hash(conversation_id) * (messages + 1) for conversation_id, messages in removed)
    parts = sum(_hash(conversation_id) * messages for conversation_id, messages in trimmed)
    return _hex(whole + parts)


def _hash(conversation_id: int) -> int:
    return int.from_bytes(hashlib.sha256(b"%d" % conversation_id).digest())


def _hex(number: int) -> str:
    return f"{number % _DIGESTS:064x}"
