"""The repositories in memory: the same rules in the same order as the SQL applies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

from attrs import evolve

from ...domain.conversation import (
    MAX_ID,
    TRANSITIONS,
    UNCHANGED,
    Conversation,
    ConversationChanges,
    NewConversation,
    Status,
)
from ...domain.errors import (
    ConcurrentUpdate,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStoreError,
    DuplicateSession,
    InvalidTransition,
    MessageNotFound,
    RequestConflict,
    TransactionAborted,
)
from ...domain.json_object import copy_json
from ...domain.message import Message, MessageDraft, Turn
from ...domain.page import ConversationCursor
from ...domain.record import ImportedConversation, ImportReceipt
from ...domain.repository import (
    ConversationRepository,
    ErasureReceipt,
    MessageRepository,
    OnDuplicate,
    Unit,
)
from .change import Change
from .database import Session, Stored, View, show

_NO_CHANGE: Final = object()
"""The verdict on a change whose target is reached already."""

Verdict = Callable[[Conversation], ConversationStoreError | object | None]
"""Gives the error that forbids a change, _NO_CHANGE, or None if it may be made."""


def _is_seen(view_user: str | None, conversation: Conversation) -> bool:
    return view_user in (None, conversation.user_id)


async def _lock_and_judge(
    view: View, scope: str | None, conversation_id: int, verdict: Verdict
) -> tuple[Stored, bool]:
    """Wait for a conversation, judge its newest version, return it and whether to change it.

    Like the SQL: what may be changed now, but might not when the wait began, is contested.
    """
    before = view.find(conversation_id)
    if before is None or not _is_seen(scope, before.conversation):
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


def _stale(conversation: Conversation, expected_version: int | None) -> ConcurrentUpdate | None:
    if expected_version is None or expected_version == conversation.version:
        return None
    return ConcurrentUpdate(
        conversation_id=conversation.id,
        expected_version=expected_version,
        actual_version=conversation.version,
    )


def _messages(
    view: View,
    drafts: Sequence[MessageDraft],
    ids: Sequence[int],
    conversation_id: int,
    base: int,
    times: Sequence[datetime],
) -> list[Message]:
    messages = [
        Message(
            id=message_id,
            conversation_id=conversation_id,
            position=position,
            role=draft.role,
            content=draft.content,
            timestamp=time,
            intent_type=draft.intent_type,
            slots=copy_json(draft.slots),
            metadata=copy_json(draft.metadata),
        )
        for position, (draft, message_id, time) in enumerate(
            zip(drafts, ids, times, strict=True), base + 1
        )
    ]
    for message in messages:
        view.database.message_places[message.id] = (conversation_id, message.position)
    return messages


class InMemoryConversationRepository(ConversationRepository):
    """The conversations in memory."""

    def __init__(self, unit: Unit, view: View) -> None:
        super().__init__(unit)
        self._view = view

    def _add(self, new: NewConversation) -> Change[tuple[Conversation, list[Message]]]:
        async def apply(ids: Sequence[int]) -> tuple[Conversation, list[Message]]:
            session = (new.user_id, new.session_id)
            if await self._view.lock_session(session) is not None:
                raise DuplicateSession(user_id=new.user_id, session_id=new.session_id)
            stored = await self._store_new(new, ids)
            return stored.shown(), stored.shown_messages()

        return Change(apply, ids_needed=1 + len(new.drafts))

    def _get_or_add(self, new: NewConversation) -> Change[tuple[Conversation, bool]]:
        async def apply(ids: Sequence[int]) -> tuple[Conversation, bool]:
            session = (new.user_id, new.session_id)
            found = self._view.find_session(session)
            if found is None:
                found = await self._view.lock_session(session)
                if found is None:
                    return (await self._store_new(new, ids)).shown(), True
                found = await self._view.lock(found.conversation.id) or found
            return found.shown(), False

        return Change(apply, ids_needed=1 + len(new.drafts))

    async def _store_new(self, new: NewConversation, ids: Sequence[int]) -> Stored:
        now = self._view.database.clock()
        conversation = Conversation(
            id=ids[0],
            user_id=new.user_id,
            session_id=new.session_id,
            status=Status.ACTIVE,
            start_time=now,
            last_activity=now,
            message_count=len(new.drafts),
            version=1,
            rescue_id=new.rescue_id,
            intent_type=new.intent_type,
            source=new.source,
            metadata=copy_json(new.metadata),
        )
        return await self._put_new(conversation, new.drafts, ids[1:], [now] * len(new.drafts))

    async def _put_new(
        self,
        conversation: Conversation,
        drafts: Sequence[MessageDraft],
        ids: Sequence[int],
        times: Sequence[datetime],
    ) -> Stored:
        await self._view.lock(conversation.id)
        messages = _messages(self._view, drafts, ids, conversation.id, 0, times)
        stored = Stored(conversation, messages, {})
        self._view.put(stored)
        return stored

    async def _get(self, conversation_id: int) -> Conversation:
        stored = self._view.find(conversation_id)
        if stored is None or not _is_seen(self._unit.user_id, stored.conversation):
            raise ConversationNotFound(conversation_id=conversation_id)
        return stored.shown()

    async def _find(self, user_id: str, session_id: str) -> Conversation | None:
        stored = self._view.find_session((user_id, session_id))
        return None if stored is None else stored.shown()

    async def _list_page(
        self, user_id: str, status: Status | None, limit: int, after: ConversationCursor | None
    ) -> list[Conversation]:
        def place(stored: Stored) -> tuple[datetime, int]:
            return stored.conversation.last_activity, stored.conversation.id

        listed = sorted(
            (
                stored
                for stored in self._view.all_of(user_id)
                if status in (None, stored.conversation.status)
                and (
                    after is None or place(stored) < (after.last_activity, after.conversation_id)
                )
            ),
            key=place,
            reverse=True,
        )
        return [stored.shown() for stored in listed[:limit]]

    def _update(
        self, conversation_id: int, changes: ConversationChanges, expected_version: int | None
    ) -> Change[Conversation]:
        rescue_id, intent_type = changes.rescue_id, changes.intent_type
        metadata = changes.metadata

        def change(before: Conversation) -> Conversation:
            return evolve(
                before,
                version=before.version + 1,
                rescue_id=before.rescue_id if rescue_id is UNCHANGED else rescue_id,
                intent_type=before.intent_type if intent_type is UNCHANGED else intent_type,
                metadata=before.metadata if metadata is UNCHANGED else metadata,
            )

        return self._changing(
            conversation_id,
            lambda conversation: _stale(conversation, expected_version),
            change,
        )

    def _set_status(
        self, conversation_id: int, target: Status, expected_version: int | None
    ) -> Change[Conversation]:
        def verdict(conversation: Conversation) -> object | None:
            status = conversation.status
            if status is not target and status not in TRANSITIONS[target]:
                return InvalidTransition(
                    conversation_id=conversation_id, status=status.value, target=target.value
                )
            stale = _stale(conversation, expected_version)
            return stale or (_NO_CHANGE if status is target else None)

        return self._changing(
            conversation_id,
            verdict,
            lambda conversation: evolve(
                conversation, version=conversation.version + 1, status=target
            ),
        )

    def _changing(
        self,
        conversation_id: int,
        verdict: Verdict,
        change: Callable[[Conversation], Conversation],
    ) -> Change[Conversation]:
        async def apply(_: Sequence[int]) -> Conversation:
            stored, is_to_change = await _lock_and_judge(
                self._view, self._unit.user_id, conversation_id, verdict
            )
            if is_to_change:
                stored = evolve(stored, conversation=change(stored.conversation))
                self._view.put(stored)
            return stored.shown()

        return Change(apply)

    def _remove(self, conversation_id: int) -> Change[None]:
        async def apply(_: Sequence[int]) -> None:
            stored = self._view.find(conversation_id)
            if stored is not None and _is_seen(self._unit.user_id, stored.conversation):
                await self._drop(conversation_id)

        return Change(apply)

    async def _drop(self, conversation_id: int) -> Stored | None:
        stored = await self._view.lock(conversation_id)
        if stored is not None:
            conversation = stored.conversation
            await self._view.lock_session((conversation.user_id, conversation.session_id))
            self._view.drop(stored)
        return stored

    def _erase_user(self, user_id: str) -> Change[ErasureReceipt]:
        async def apply(_: Sequence[int]) -> ErasureReceipt:
            seen = [stored.conversation.id for stored in self._view.all_of(user_id)]
            dropped = [await self._drop(conversation_id) for conversation_id in sorted(seen)]
            gone = [stored.conversation for stored in dropped if stored is not None]
            return ErasureReceipt(
                conversations=len(gone),
                messages=sum(conversation.message_count for conversation in gone),
            )

        return Change(apply)

    def _add_imported(
        self, batch: Sequence[ImportedConversation], on_duplicate: OnDuplicate
    ) -> Change[ImportReceipt]:
        async def apply(ids: Sequence[int]) -> ImportReceipt:
            message_ids = iter(ids[len(batch) :])
            stored = messages = 0
            for conversation_id, imported in zip(ids, batch, strict=False):
                new = imported.conversation
                ours = [next(message_ids) for _ in new.drafts]
                session: Session = (new.user_id, new.session_id)
                if await self._view.lock_session(session) is not None:
                    if on_duplicate == "error":
                        raise DuplicateSession(user_id=new.user_id, session_id=new.session_id)
                    continue
                await self._put_imported(imported, conversation_id, ours)
                stored += 1
                messages += len(ours)
            return ImportReceipt(
                conversations=stored, messages=messages, skipped=len(batch) - stored
            )

        count = sum(len(imported.conversation.drafts) for imported in batch)
        return Change(apply, ids_needed=len(batch) + count)

    async def _put_imported(
        self, imported: ImportedConversation, conversation_id: int, ids: Sequence[int]
    ) -> None:
        new, times = imported.conversation, imported.timestamps
        now = self._view.database.clock()
        start = imported.start_time or (times[0] if times else None)
        last = imported.last_activity or (times[-1] if times else None)
        last_activity = last or max(start or now, now)
        conversation = Conversation(
            id=conversation_id,
            user_id=new.user_id,
            session_id=new.session_id,
            status=imported.status,
            start_time=start or last or now,
            last_activity=last_activity,
            message_count=len(new.drafts),
            version=1,
            rescue_id=new.rescue_id,
            intent_type=new.intent_type,
            source=new.source,
            metadata=copy_json(new.metadata),
        )
        await self._put_new(
            conversation, new.drafts, ids, times or [last_activity] * len(new.drafts)
        )

    async def _export_page(
        self, user_id: str | None, after: tuple[str, str] | None, limit: int
    ) -> list[tuple[Conversation, list[Message]]]:
        def session(stored: Stored) -> Session:
            return stored.conversation.user_id, stored.conversation.session_id

        page = sorted(
            (s for s in self._view.all_of(user_id) if after is None or session(s) > after),
            key=session,
        )
        return [(stored.shown(), stored.shown_messages()) for stored in page[:limit]]


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
            return _stale(conversation, turn.expected_version)

        async def apply(ids: Sequence[int]) -> list[Message]:
            if turn.request_id is None:
                stored, _ = await _lock_and_judge(
                    self._view, self._unit.user_id, turn.conversation_id, verdict
                )
                return self._store(stored, turn, ids)
            return await self._append_request(turn, turn.request_id, verdict, ids)

        return Change(apply, ids_needed=len(turn.drafts))

    async def _append_request(
        self, turn: Turn, request_id: str, verdict: Verdict, ids: Sequence[int]
    ) -> list[Message]:
        """Judge before the wait and after it; only an append that may be made waits."""
        stored = self._view.find(turn.conversation_id)
        for is_locked in (False, True):
            if stored is None or not _is_seen(self._unit.user_id, stored.conversation):
                raise ConversationNotFound(conversation_id=turn.conversation_id)
            prior = stored.request(request_id)
            if prior is not None:
                digest, position = prior
                if digest != turn.digest:
                    raise RequestConflict(
                        conversation_id=turn.conversation_id,
                        request_id=request_id,
                        position=position,
                    )
                return stored.shown_messages(position - 1, position - 1 + len(turn.drafts))
            refusal = verdict(stored.conversation)
            if isinstance(refusal, ConversationStoreError):
                raise refusal
            if not is_locked:
                stored = await self._view.lock(turn.conversation_id)
        if stored is None:
            raise ConversationNotFound(conversation_id=turn.conversation_id)
        stored.requests[request_id] = (turn.digest, stored.conversation.message_count + 1, ids[0])
        return self._store(stored, turn, ids)

    def _store(self, stored: Stored, turn: Turn, ids: Sequence[int]) -> list[Message]:
        before = stored.conversation
        time = max(before.last_activity, self._view.database.clock())
        messages = _messages(
            self._view,
            turn.drafts,
            ids,
            before.id,
            before.message_count,
            [time] * len(turn.drafts),
        )
        conversation = evolve(
            before,
            message_count=before.message_count + len(messages),
            version=before.version + 1,
            last_activity=time,
        )
        self._view.put(stored.with_messages(conversation, messages))
        return [show(message) for message in messages]

    async def _get(self, message_id: int) -> Message:
        found = self._view.find_message(message_id)
        if found is None or not _is_seen(self._unit.user_id, found[0].conversation):
            raise MessageNotFound(message_id=message_id)
        return found[1]

    async def _latest(
        self, conversation_id: int, limit: int, before: int | None
    ) -> list[Message]:
        stored = self._seen(conversation_id)
        last = MAX_ID if before is None else before
        end = max(min(last - 1, stored.conversation.message_count), 0)
        return stored.shown_messages(end - limit, end)

    async def _after(self, conversation_id: int, position: int, limit: int) -> list[Message]:
        start = max(position, 0)
        return self._seen(conversation_id).shown_messages(start, start + limit)

    def _seen(self, conversation_id: int) -> Stored:
        stored = self._view.find(conversation_id)
        if stored is None or not _is_seen(self._unit.user_id, stored.conversation):
            raise ConversationNotFound(conversation_id=conversation_id)
        return stored

