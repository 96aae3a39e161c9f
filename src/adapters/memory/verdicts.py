"""Who may change what, judged before a wait and after it, as the SQL does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ...domain.conversation import Conversation
from ...domain.errors import (
    ConcurrentUpdate,
    ConversationNotFound,
    ConversationStoreError,
    TransactionAborted,
)
from .database import Stored, View

NO_CHANGE: Final = object()
"""The verdict on a change whose target is reached already."""

Verdict = Callable[[Conversation], ConversationStoreError | object | None]
"""Gives the error that forbids a change, NO_CHANGE, or None if it may be made."""


def is_seen(scope: str | None, conversation: Conversation) -> bool:
    """Whether a unit that acts for this user, or for the application, sees a conversation."""
    return scope in (None, conversation.user_id)


async def lock_and_judge(
    view: View, scope: str | None, conversation_id: int, verdict: Verdict
) -> tuple[Stored, bool]:
    """Wait for a conversation, judge its newest version, return it and whether to change it.

    Like the SQL: what may be changed now, but might not when the wait began, is contested.
    """
    before = view.find(conversation_id)
    if before is None or not is_seen(scope, before.conversation):
        raise ConversationNotFound(conversation_id=conversation_id)
    first = verdict(before.conversation)
    stored = await view.lock(conversation_id)
    if stored is None:
        raise ConversationNotFound(conversation_id=conversation_id)
    last = verdict(stored.conversation)
    if isinstance(last, ConversationStoreError):
        raise last
    if last is None and first is not None:
        raise TransactionAborted(
            reason="the conversation changed while the statement ran", sqlstate="CS001"
        )
    return stored, last is None


def stale(conversation: Conversation, expected_version: int | None) -> ConcurrentUpdate | None:
    """Return the error if a conversation is not at the version that is expected."""
    if expected_version is None or expected_version == conversation.version:
        return None
    return ConcurrentUpdate(
        conversation_id=conversation.id,
        expected_version=expected_version,
        actual_version=conversation.version,
    )
