"""Removal: which conversations are to go for good, and what went so far.

Everything is removed in batches of a bounded size, so that no lock is held for long. What is left
of a conversation between two batches is a history without a gap, from position 1 on.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from attrs import field, frozen

from .conversation import Conversation, Status, to_status
from .errors import InvalidConversation
from .receipt import ErasureReceipt, digest_of
from .text import check_name

BATCH_MESSAGES: Final = 2_000
"""Most messages that one batch removes."""
BATCH_CONVERSATIONS: Final = 500
"""Most conversations that one batch removes."""
BATCH_LOOKED_AT: Final = 2_000
"""Most conversations that one batch looks at to find those that are to go."""


def _to_status(value: str | None) -> Status | None:
    return None if value is None else to_status(value)


def _to_user_id(value: str | None) -> str | None:
    return None if value is None else check_name(value, "user_id", InvalidConversation)


def _to_source(value: str | None) -> str | None:
    return None if value is None else check_name(value, "source", InvalidConversation)


def check_time(value: object) -> datetime:
    """Return a time in UTC; raise InvalidConversation for what is no datetime with a time zone."""
    if not isinstance(value, datetime):
        reason = f"must be a datetime, not {type(value).__name__}"
        raise InvalidConversation(field="inactive_since", reason=reason)
    if value.utcoffset() is None:
        reason = "must say its time zone: datetime.now(UTC) does, datetime.now() does not"
        raise InvalidConversation(field="inactive_since", reason=reason)
    try:
        return value.astimezone(UTC)
    except OverflowError:
        reason = "must lie in the years 1..9999 in UTC, too"
        raise InvalidConversation(field="inactive_since", reason=reason) from None


def _to_time(value: datetime | None) -> datetime | None:
    return None if value is None else check_time(value)


@frozen(kw_only=True)
class RemovalCondition:
    """Which conversations are to be removed: those that meet all that is given."""

    user_id: str | None = field(default=None, converter=_to_user_id)
    """Whose; None: everybody's, as far as the unit of work sees them."""
    inactive_since: datetime | None = field(default=None, converter=_to_time)
    """Only those whose last_activity lies before this time."""
    status: Status | None = field(default=None, converter=_to_status)
    """Only those of this status."""
    source: str | None = field(default=None, converter=_to_source)
    """Only those that came from there."""

    def is_met_by(self, conversation: Conversation) -> bool:
        """Whether a conversation, as it is now, is to be removed."""
        return (
            self.user_id in (None, conversation.user_id)
            and (self.inactive_since is None or conversation.last_activity < self.inactive_since)
            and self.status in (None, conversation.status)
            and self.source in (None, conversation.source)
        )


@frozen(kw_only=True)
class RemovedBatch:
    """What one batch removed, or, where nothing was to be removed, what it found."""

    removed: Sequence[tuple[int, int]]
    """Conversations that are gone: their ids, and how many messages went with each."""
    trimmed: Sequence[tuple[int, int]] = ()
    """Conversations that lost their newest messages and are still there: ids and numbers."""
    left: Sequence[int] = ()
    """Conversations to be removed one by one: too long for a batch, or held by others."""
    next_place: str | None = None
    """Where the next batch goes on; None: there is nothing behind this one."""
    started_at: datetime
    """When the batch began, by the store's clock."""
    finished_at: datetime
    """When it ended, by the store's clock."""

    def receipt(self) -> ErasureReceipt:
        """Return what this batch adds to the receipt."""
        return ErasureReceipt(
            conversations=len(self.removed),
            messages=sum(messages for _, messages in (*self.removed, *self.trimmed)),
            started_at=self.started_at,
            finished_at=self.finished_at,
            digest=digest_of(self.removed, self.trimmed),
        )


def fitting(counts: Sequence[int]) -> int:
    """Return how many conversations, of these lengths, fit into one batch, from the first on.

    One that is longer than a batch goes by: it is removed alone.
    """
    messages = number = 0
    for count in counts[:BATCH_CONVERSATIONS]:
        messages += count if count <= BATCH_MESSAGES else 0
        if messages > BATCH_MESSAGES:
            break
        number += 1
    return number
