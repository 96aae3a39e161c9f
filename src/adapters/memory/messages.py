"""The messages in memory: the same rules in the same order as the SQL applies them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from attrs import evolve

from ...domain.conversation import MAX_ID, Conversation
from ...domain.errors import (
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStoreError,
    MessageNotFound,
    RequestConflict,
)
from ...domain.message import Message, Turn
from ...domain.repository import MessageRepository
from ...domain.unit import Unit
from .change import Change
from .database import Request, Stored, View
from .verdicts import Verdict, is_seen, lock_and_judge, stale


class InMemoryMessageRepository(MessageRepository):
    """The messages in memory."""

    def __init__(self, unit: Unit, view: View) -> None:
        super().__init__(unit)
        self._view = view

    def _append(self, turn: Turn) -> Change[list[Message]]:
        def verdict(conversation: Conversation) -> ConversationStoreError | None:
            if not conversation.accepts_messages:
                return ConversationNotAcceptingMessages(
                    conversation_id=conversation.id, status=conversation.status.value
                )
            return stale(conversation, turn.expected_version)

        async def apply(ids: Sequence[int]) -> list[Message]:
            if turn.request_id is not None:
                return await self._append_request(turn, turn.request_id, verdict, ids)
            came, found = self._view.database.clock(), self._view.find(turn.conversation_id)
            stored, _ = await lock_and_judge(
                self._view, self._unit.user_id, turn.conversation_id, verdict
            )
            return self._store(stored, turn, ids, came if stored is found else None)

        return Change(apply, ids_needed=len(turn.drafts))

    async def _append_request(
        self, turn: Turn, request_id: str, verdict: Verdict, ids: Sequence[int]
    ) -> list[Message]:
        """Judge before the wait and after it; only an append that may be made waits."""
        came, found = self._view.database.clock(), self._view.find(turn.conversation_id)
        stored = found
        for is_locked in (False, True):
            if stored is None or not is_seen(self._unit.user_id, stored.conversation):
                raise ConversationNotFound(conversation_id=turn.conversation_id)
            prior = stored.request(request_id)
            if prior is not None:
                if not prior.digest.startswith(turn.digest):
                    raise RequestConflict(
                        conversation_id=turn.conversation_id,
                        request_id=request_id,
                        position=prior.position,
                    )
                start = prior.position - 1
                return stored.shown_messages(start, start + prior.count)
            refusal = verdict(stored.conversation)
            if isinstance(refusal, ConversationStoreError):
                raise refusal
            if not is_locked:
                stored = await self._view.lock(turn.conversation_id, for_request=True)
        if stored is None:
            raise ConversationNotFound(conversation_id=turn.conversation_id)
        stored.requests[request_id] = Request(
            digest=turn.digest,
            position=stored.conversation.message_count + 1,
            message_id=ids[0],
            count=len(turn.drafts),
        )
        return self._store(stored, turn, ids, came if stored is found else None)

    def _store(
        self, stored: Stored, turn: Turn, ids: Sequence[int], came: datetime | None
    ) -> list[Message]:
        """Store a turn: as of when it came, or as of now where it met a change at work."""
        before = stored.conversation
        time = max(before.last_activity, came or self._view.database.clock())
        conversation = evolve(
            before,
            message_count=before.message_count + len(turn.drafts),
            version=before.version + 1,
            last_activity=time,
        )
        after = stored.with_messages(conversation, turn.drafts, ids, [time] * len(turn.drafts))
        self._view.put(after)
        return after.shown_messages(before.message_count)

    def _redact(self, message_id: int) -> Change[Message]:
        async def apply(_: Sequence[int]) -> Message:
            found = self._seen_message(message_id)
            await self._view.lock(found[0].conversation.id)
            stored, message = self._seen_message(message_id)
            if message.is_redacted:
                return message
            before = stored.conversation
            conversation = evolve(before, version=before.version + 1)
            self._view.put(stored.redacted(conversation, message.position))
            return message.redacted()

        return Change(apply)

    async def _get(self, message_id: int) -> Message:
        return self._seen_message(message_id)[1]

    async def _latest(self, conversation_id: int, limit: int, before: int | None) -> list[Message]:
        stored = self._seen(conversation_id)
        last = MAX_ID if before is None else before
        end = max(min(last - 1, stored.conversation.message_count), 0)
        return stored.shown_messages(end - limit, end)

    async def _after(self, conversation_id: int, position: int, limit: int) -> list[Message]:
        start = max(position, 0)
        return self._seen(conversation_id).shown_messages(start, start + limit)

    def _seen_message(self, message_id: int) -> tuple[Stored, Message]:
        found = self._view.find_message(message_id)
        if found is None or not is_seen(self._unit.user_id, found[0].conversation):
            raise MessageNotFound(message_id=message_id)
        return found

    def _seen(self, conversation_id: int) -> Stored:
        stored = self._view.find(conversation_id)
        if stored is None or not is_seen(self._unit.user_id, stored.conversation):
            raise ConversationNotFound(conversation_id=conversation_id)
        return stored
