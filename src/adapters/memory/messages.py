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
    TransactionAborted,
)
from ...domain.message import Message, Turn
from ...domain.repository import MessageRepository
from ...domain.unit import Unit
from .change import Change
from .database import Request, Stored, View
from .verdicts import NO_CHANGE, Verdict, is_seen, lock_and_judge, stale


class InMemoryMessageRepository(MessageRepository):
    """The messages in memory."""

    def __init__(self, unit: Unit, view: View) -> None:
        super().__init__(unit)
        self._view = view

    def _append(self, turn: Turn) -> Change[list[Message]]:
        def verdict(conversation: Conversation) -> ConversationStoreError | None:
            return _refusal(conversation, turn.expected_version)

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

    def _pop(self, conversation_id: int, expected_version: int | None) -> Change[Message | None]:
        def verdict(conversation: Conversation) -> object | None:
            refusal = _refusal(conversation, expected_version)
            return refusal or (None if conversation.message_count else NO_CHANGE)

        async def apply(_: Sequence[int]) -> Message | None:
            found = self._view.find(conversation_id)
            stored, is_to_change = await lock_and_judge(
                self._view, self._unit.user_id, conversation_id, verdict
            )
            if not is_to_change:
                return None
            self._check_seen(found, stored, stored.conversation.message_count)
            [popped] = stored.shown_messages(stored.conversation.message_count - 1)
            self._view.put(stored.popped())
            return popped

        return Change(apply)

    def _replace(self, turn: Turn) -> Change[list[Message]]:
        async def apply(ids: Sequence[int]) -> list[Message]:
            found = self._view.find(turn.conversation_id)
            stored, _ = await lock_and_judge(
                self._view,
                self._unit.user_id,
                turn.conversation_id,
                lambda conversation: _refusal(conversation, turn.expected_version),
            )
            for position in range(1, stored.conversation.message_count + 1):
                self._check_seen(found, stored, position)
            before = stored.conversation
            time = before.last_activity
            if turn.drafts:
                time = max(time, self._view.database.clock())
            after = evolve(
                before,
                message_count=len(turn.drafts),
                version=before.version + 1,
                last_activity=time,
            )
            empty = Stored(evolve(before, message_count=0), [], {})
            replaced = empty.with_messages(after, turn.drafts, ids, [time] * len(turn.drafts))
            self._view.put(replaced)
            return replaced.shown_messages()

        return Change(apply, ids_needed=len(turn.drafts))

    @staticmethod
    def _check_seen(found: Stored | None, stored: Stored, position: int) -> None:
        """Refuse, as the SQL does, to take a message that came while the lock was waited for."""
        if found is None or not found.has(position, stored.messages[position - 1].id):
            raise TransactionAborted(
                reason="the conversation changed while the statement ran", sqlstate="CS001"
            )

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


def _refusal(
    conversation: Conversation, expected_version: int | None
) -> ConversationStoreError | None:
    """Return the error if what is said in a conversation must not be changed."""
    if not conversation.accepts_messages:
        return ConversationNotAcceptingMessages(
            conversation_id=conversation.id, status=conversation.status.value
        )
    return stale(conversation, expected_version)
