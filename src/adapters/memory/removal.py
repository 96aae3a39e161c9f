"""Removals in memory, batch by batch, as PostgreSQL does them."""

from __future__ import annotations

from attrs import evolve

from ...domain.conversation import Conversation, Status
from ...domain.removal import (
    BATCH_CONVERSATIONS,
    BATCH_LOOKED_AT,
    BATCH_MESSAGES,
    RemovalCondition,
    RemovedBatch,
    fitting,
)
from .database import Stored, View


async def remove_part(view: View, conversation_id: int, only: RemovalCondition) -> RemovedBatch:
    """Remove a conversation, or the end of a long one."""
    started_at = view.database.clock()
    seen = view.find(conversation_id)
    removed: list[tuple[int, int]] = []
    trimmed: list[tuple[int, int]] = []
    left: list[int] = []
    if seen is not None and only.is_met_by(seen.conversation):
        stored = await view.lock(conversation_id)
        if stored is not None and only.is_met_by(stored.conversation):
            count = stored.conversation.message_count
            if count <= BATCH_MESSAGES:
                view.drop(stored)
                removed.append((conversation_id, count))
            else:
                is_as_seen = stored.conversation.version == seen.conversation.version
                rest = _rest(stored) if is_as_seen else count
                if rest < count or stored.conversation.status is not Status.ARCHIVED:
                    view.put(_without_end(stored, rest))
                left.append(conversation_id)
                trimmed += [(conversation_id, count - rest)] if rest < count else []
    return RemovedBatch(
        removed=removed,
        trimmed=trimmed,
        left=left,
        started_at=started_at,
        finished_at=view.database.clock(),
    )


def _rest(stored: Stored) -> int:
    """Return how many messages a batch leaves: the turn of a request goes whole."""
    rest = stored.conversation.message_count - BATCH_MESSAGES
    for request in stored.requests.values():
        is_cut = request.position <= rest < request.position + request.count - 1
        if is_cut and stored.has(request.position, request.message_id):
            return request.position - 1
    return rest


def _without_end(stored: Stored, rest: int) -> Stored:
    """Return the next version, with so many messages, archived."""
    before = stored.conversation
    after = evolve(
        before,
        message_count=rest,
        version=before.version + 1,
        status=Status.ARCHIVED,
    )
    requests = {
        request_id: request
        for request_id, request in stored.requests.items()
        if request.position <= rest
    }
    return Stored(after, stored.messages[:rest], requests)


async def remove_some(view: View, only: RemovalCondition, after: str | None) -> RemovedBatch:
    """Remove the next conversations that meet a condition and that nobody else holds."""
    started_at = view.database.clock()
    meant, horizon = _look(view, only, after)
    taken = meant[: fitting([conversation.message_count for conversation in meant])]
    removed: list[tuple[int, int]] = []
    left: list[int] = []
    for conversation in sorted(taken, key=lambda conversation: conversation.id):
        stored = None
        if conversation.message_count <= BATCH_MESSAGES and view.may_lock(conversation.id):
            stored = await view.lock(conversation.id)
        if stored is None:
            left.append(conversation.id)
        else:
            view.drop(stored)
            removed.append((conversation.id, stored.conversation.message_count))
    if len(taken) < len(meant) or len(taken) == BATCH_CONVERSATIONS:
        horizon = _place(taken[-1], only)
    return RemovedBatch(
        removed=removed,
        left=left,
        next_place=horizon,
        started_at=started_at,
        finished_at=view.database.clock(),
    )


def find_removable(view: View, only: RemovalCondition, after: str | None) -> RemovedBatch:
    """Return the next conversations that meet a condition, as if they were gone."""
    now = view.database.clock()
    meant, horizon = _look(view, only, after)
    return RemovedBatch(
        removed=sorted((conversation.id, conversation.message_count) for conversation in meant),
        next_place=horizon,
        started_at=now,
        finished_at=now,
    )


def _look(
    view: View, only: RemovalCondition, after: str | None
) -> tuple[list[Conversation], str | None]:
    """Return the next conversations that meet a condition, and where looking ended, if before all.

    Along the sessions of one user, or along all ids.
    """
    found = [stored.conversation for stored in view.all_of(only.user_id)]
    if only.user_id is None:
        found = [one for one in found if after is None or one.id > int(after)]
        found.sort(key=lambda conversation: conversation.id)
    else:
        found = [one for one in found if after is None or one.session_id > after]
        found.sort(key=lambda conversation: conversation.session_id)
    looked_at = found[:BATCH_LOOKED_AT]
    is_end = len(looked_at) < BATCH_LOOKED_AT
    meant = [conversation for conversation in looked_at if only.is_met_by(conversation)]
    return meant, None if is_end else _place(looked_at[-1], only)


def _place(conversation: Conversation, only: RemovalCondition) -> str:
    return str(conversation.id) if only.user_id is None else conversation.session_id
