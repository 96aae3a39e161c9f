"""Receipts: what a call that moves whole conversations has done."""

from __future__ import annotations

from attrs import frozen


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
    """What an erasure removed."""

    conversations: int
    messages: int
