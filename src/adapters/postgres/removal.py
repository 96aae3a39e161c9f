"""Removals on PostgreSQL: what each batch sends, and what it makes of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from psycopg.types.numeric import Int8

from ...domain.conversation import Status
from ...domain.removal import (
    BATCH_CONVERSATIONS,
    BATCH_LOOKED_AT,
    BATCH_MESSAGES,
    RemovalCondition,
    RemovedBatch,
)
from .rows import Row, utc
from .statement import Look, Parameters, Statement
from .texts import Texts

_FIRST_SESSION: Final = ""
_FIRST_ID: Final = str(-(2**63))
"""What lies before all others."""


def removing_part(
    texts: Texts, conversation_id: int, only: RemovalCondition, *, is_repeatable: bool
) -> Statement[RemovedBatch]:
    """Return the statement that removes a conversation, or the end of a long one."""
    parameters = _condition(only)
    parameters |= {
        "conversation_id": Int8(conversation_id),
        "archived": Status.ARCHIVED.value,
    }

    def read(_: Sequence[int], rows: list[Row]) -> RemovedBatch:
        [(started_at, finished_at, removed, trimmed)] = rows
        return RemovedBatch(
            removed=[] if removed is None else [(conversation_id, removed)],
            trimmed=[(conversation_id, trimmed)] if trimmed else [],
            left=[] if trimmed is None else [conversation_id],
            started_at=utc(started_at),
            finished_at=utc(finished_at),
        )

    def look() -> Look[RemovedBatch]:
        return Look(texts.look_for_rest, lambda ids, rows: [read(ids, rows)])

    return Statement(
        texts.remove_part,
        lambda _: parameters,
        read,
        conversation_id=conversation_id,
        is_removal=True,
        is_repeatable=is_repeatable,
        look=look if is_repeatable else None,
    )


def removing_some(
    texts: Texts, only: RemovalCondition, after: str | None
) -> Statement[RemovedBatch]:
    """Return the statement that removes the next conversations that meet a condition."""
    text = texts.remove_some if only.user_id is None else texts.remove_some_of_user
    parameters = _walk(only, after)
    return Statement(text, lambda _: parameters, lambda _, rows: to_batch(rows))


def finding(texts: Texts, only: RemovalCondition, after: str | None) -> tuple[bytes, Parameters]:
    """Return how to read which conversations meet a condition, with its parameters."""
    text = texts.find_removable if only.user_id is None else texts.find_removable_of_user
    return text, _walk(only, after)


def to_batch(rows: list[Row]) -> RemovedBatch:
    """Return what a batch removed, or what was found as if it were gone."""
    started_at, finished_at, next_place = rows[0][:3]
    taken = sorted((row[3], row[4]) for row in rows if row[3] is not None)
    return RemovedBatch(
        removed=[(its_id, messages) for its_id, messages in taken if messages is not None],
        left=[its_id for its_id, messages in taken if messages is None],
        next_place=next_place,
        started_at=utc(started_at),
        finished_at=utc(finished_at),
    )


def _condition(only: RemovalCondition) -> dict[str, object]:
    since = only.inactive_since
    return {
        "user_id": only.user_id,
        "inactive_since": "infinity" if since is None else since.isoformat(),
        "status": None if only.status is None else only.status.value,
        "source": only.source,
        "most_messages": Int8(BATCH_MESSAGES),
    }


def _walk(only: RemovalCondition, after: str | None) -> dict[str, object]:
    first = _FIRST_ID if only.user_id is None else _FIRST_SESSION
    return _condition(only) | {
        "after": first if after is None else after,
        "most_conversations": Int8(BATCH_CONVERSATIONS),
        "most_looked_at": Int8(BATCH_LOOKED_AT),
    }
