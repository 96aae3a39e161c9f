"""The conversations in memory: the same rules in the same order as the SQL applies them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

from attrs import evolve

from ...domain.conversation import (
    TRANSITIONS,
    UNCHANGED,
    Conversation,
    ConversationChanges,
    NewConversation,
    Status,
)
from ...domain.errors import (
    ConversationNotFound,
    DuplicateSession,
    InvalidTransition,
    RequestConflict,
)
from ...domain.imported import ImportedConversation
from ...domain.json_object import load_optional
from ...domain.message import Message, MessageDraft
from ...domain.page import ConversationCursor
from ...domain.receipt import ImportReceipt
from ...domain.removal import RemovalCondition, RemovedBatch
from ...domain.repository import ConversationRepository, OnDuplicate
from ...domain.unit import Unit
from .bulk import take_sessions
from .change import Change
from .database import Request, Stored, View
from .export import SnapshotRecords
from .removal import find_removable, remove_part, remove_some
from .verdicts import NO_CHANGE, Verdict, is_seen, lock_and_judge, stale


class InMemoryConversationRepository(ConversationRepository):
    """The conversations in memory."""

    def __init__(self, unit: Unit, view: View) -> None:
        super().__init__(unit)
        self._view = view

    def _add(
        self, new: NewConversation, request_id: str | None
    ) -> Change[tuple[Conversation, list[Message]]]:
        async def apply(ids: Sequence[int]) -> tuple[Conversation, list[Message]]:
            if request_id is not None:
                stored = await self._add_once(new, ids, request_id)
                return stored.shown(), stored.shown_messages(0, len(new.drafts))
            session, now = (new.user_id, new.session_id), self._view.database.clock()
            if await self._view.lock_session(session) is not None:
                raise DuplicateSession(user_id=new.user_id, session_id=new.session_id)
            stored = await self._store_new(new, ids, now)
            return stored.shown(), stored.shown_messages()

        return Change(apply, ids_needed=1 + len(new.drafts))

    async def _add_once(self, new: NewConversation, ids: Sequence[int], request_id: str) -> Stored:
        while True:
            stored, is_own = await self._find_or_start(new, ids, request_id)
            if is_own:
                return stored
            prior = stored.request(request_id)
            if prior is not None:
                raise _conflict(stored, request_id, prior.position)
            if await self._view.lock(stored.conversation.id) is not None:
                raise DuplicateSession(user_id=new.user_id, session_id=new.session_id)

    def _get_or_add(
        self, new: NewConversation, request_id: str | None
    ) -> Change[tuple[Conversation, bool]]:
        async def apply(ids: Sequence[int]) -> tuple[Conversation, bool]:
            if request_id is not None:
                return await self._get_or_add_once(new, ids, request_id)
            session, now = (new.user_id, new.session_id), self._view.database.clock()
            found = self._view.find_session(session)
            if found is not None:
                return found.shown(), False
            while (found := await self._view.lock_session(session)) is not None:
                locked = await self._view.lock(found.conversation.id)
                if locked is not None:
                    self._view.put(
                        evolve(locked)
                    )  # it is written to, for who else wants the session
                    return locked.shown(), False
            return (await self._store_new(new, ids, now)).shown(), True

        return Change(apply, ids_needed=1 + len(new.drafts))

    async def _get_or_add_once(
        self, new: NewConversation, ids: Sequence[int], request_id: str
    ) -> tuple[Conversation, bool]:
        stored, is_own = await self._find_or_start(new, ids, request_id)
        prior = stored.request(request_id)
        if prior is not None and not new.digest.startswith(prior.digest):
            raise _conflict(stored, request_id, prior.position)
        return stored.shown(), is_own

    async def _find_or_start(
        self, new: NewConversation, ids: Sequence[int], request_id: str
    ) -> tuple[Stored, bool]:
        """Return the conversation of a session, and whether this request started it, if only now.

        Who has to wait for it judges anew what is there then.
        """
        session = (new.user_id, new.session_id)
        while (found := self._view.find_session(session)) is None:
            now = self._view.database.clock()
            if await self._view.lock_session(session, for_request=True) is None:
                stored = await self._store_new(new, ids, now)
                stored.requests[request_id] = Request(
                    digest=new.digest, position=1, message_id=ids[1], count=len(new.drafts)
                )
                return stored, True
        prior = found.request(request_id)
        return found, prior is not None and prior.digest == new.digest

    async def _store_new(self, new: NewConversation, ids: Sequence[int], now: datetime) -> Stored:
        conversation = new.stored(conversation_id=ids[0], start_time=now, last_activity=now)
        return await self._put_new(conversation, new.drafts, ids[1:], [now] * len(new.drafts))

    async def _put_new(
        self,
        conversation: Conversation,
        drafts: Sequence[MessageDraft],
        ids: Sequence[int],
        times: Sequence[datetime],
    ) -> Stored:
        await self._view.lock(conversation.id)
        empty = evolve(conversation, message_count=0)
        stored = Stored(empty, [], {}).with_messages(conversation, drafts, ids, times)
        self._view.put(stored)
        return stored

    async def _get(self, conversation_id: int) -> Conversation:
        stored = self._view.find(conversation_id)
        if stored is None or not is_seen(self._unit.user_id, stored.conversation):
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
                and (after is None or place(stored) < (after.last_activity, after.conversation_id))
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
            lambda conversation: stale(conversation, expected_version),
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
            outdated = stale(conversation, expected_version)
            return outdated or (NO_CHANGE if status is target else None)

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
            stored, is_to_change = await lock_and_judge(
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
            if stored is None or not is_seen(self._unit.user_id, stored.conversation):
                return
            stored = await self._view.lock(conversation_id)
            if stored is not None:
                self._view.drop(stored)

        return Change(apply)

    def _remove_part(
        self, conversation_id: int, only: RemovalCondition | None
    ) -> Change[RemovedBatch]:
        condition = only or RemovalCondition(user_id=self._unit.user_id)
        return Change(lambda _: remove_part(self._view, conversation_id, condition))

    def _remove_some(self, only: RemovalCondition, after: str | None) -> Change[RemovedBatch]:
        return Change(lambda _: remove_some(self._view, only, after))

    async def _find_removable(self, only: RemovalCondition, after: str | None) -> RemovedBatch:
        return find_removable(self._view, only, after)

    async def _add_imported(
        self, batch: Sequence[ImportedConversation], on_duplicate: OnDuplicate
    ) -> ImportReceipt:
        now, new = await take_sessions(self._view, batch, on_duplicate)
        for imported in new:
            await self._put_imported(imported, now)
        return ImportReceipt(
            conversations=len(new),
            messages=sum(len(imported.messages) for imported in new),
            skipped=len(batch) - len(new),
        )

    async def _put_imported(self, imported: ImportedConversation, now: datetime) -> None:
        start, last = imported.start_time, imported.last_activity
        last_activity = last or max(start or now, now)
        new, times = _to_new(imported), imported.messages.timestamps
        ids = self._view.database.draw_ids(1 + len(new.drafts))
        conversation = new.stored(
            conversation_id=ids[0],
            start_time=start or last or now,
            last_activity=last_activity,
            status=imported.status,
        )
        await self._put_new(
            conversation, new.drafts, ids[1:], times or [last_activity] * len(new.drafts)
        )

    async def _export(self, user_id: str | None) -> SnapshotRecords:
        return SnapshotRecords(self._view.all_of(user_id), self._unit.still_open())


def _conflict(stored: Stored, request_id: str, position: int) -> RequestConflict:
    return RequestConflict(
        conversation_id=stored.conversation.id, request_id=request_id, position=position
    )


def _to_new(imported: ImportedConversation) -> NewConversation:
    said = imported.messages
    columns = (said.roles, said.contents, said.intent_types, said.slots, said.metadata)
    return NewConversation(
        user_id=imported.user_id,
        session_id=imported.session_id,
        rescue_id=imported.rescue_id,
        intent_type=imported.intent_type,
        source=imported.source,
        metadata=load_optional(imported.metadata),
        drafts=tuple(
            MessageDraft(
                role=role,
                content=content,
                intent_type=intent_type,
                slots=load_optional(slots),
                metadata=load_optional(metadata),
            )
            for role, content, intent_type, slots, metadata in zip(*columns, strict=True)
        ),
    )
