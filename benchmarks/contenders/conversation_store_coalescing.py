"""This package with group commit: the turns of tasks that write at once share a statement."""

from __future__ import annotations

from .conversation_store import ConversationStoreContender


class CoalescingContender(ConversationStoreContender):
    """Ours, with `coalesce=True`."""

    name = "conversation-store, coalesce"
    schema = "ours_coalescing"
    options = {"coalesce": True}  # noqa: RUF012 - it is a ClassVar of the parent
