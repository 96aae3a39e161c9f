"""The conversations on PostgreSQL: what each method sends, and what it makes of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from psycopg.types.numeric import Int8

from ...domain.conversation import (
    MAX_ID,
    TRANSITIONS,
    UNCHANGED,
    Conversation,
    ConversationChanges,
    NewConversation,
    Status,
)
from ...domain.errors import ConversationNotFound
from ...domain.imported import ImportedConversation
from ...domain.json_object import dump_optional
from ...domain.message import Message
from ...domain.page import ConversationCursor
from ...domain.receipt import ImportReceipt
from ...domain.removal import RemovalCondition, RemovedBatch
from ...domain.repository import ConversationRepository, OnDuplicate
from .bulk import store_batch
from .export import RecordStream
from .parameters import (
    ReadingUnit,
    array,
    bytes_text,
    drafts_text,
    flag_text,
    integer_text,
    status_array,
)
from .removal import finding, removing_part, removing_some, to_batch
from .rows import CONVERSATION_COLUMNS, Row, are_stored, to_conversations, to_messages, utc
from .statement import SHORT, Look, Parameters, Statement
from .texts import Texts

T = TypeVar("T")

_SOURCES: Final = {target: status_array(sources) for target, sources in TRANSITIONS.items()}


class PsycopgConversationRepository(ConversationRepository):
    """The conversations on PostgreSQL."""

    _unit: ReadingUnit

    def __init__(self, unit: ReadingUnit, texts: Texts) -> None:
        super().__init__(unit)
        self._texts = texts

    def _add(
        self, new: NewConversation, request_id: str | None
    ) -> Statement[tuple[Conversation, list[Message]]]:
        def read(ids: Sequence[int], rows: list[Row]) -> tuple[Conversation, list[Message]]:
            time = utc(rows[0][0])
            conversation = new.stored(conversation_id=ids[0], start_time=time, last_activity=time)
            return conversation, _first_messages(new, conversation, ids[1:])

        def look_at(
            ids: Sequence[int], rows: list[Row]
        ) -> list[tuple[Conversation, list[Message]]] | None:
            if not rows:
                return None
            started = read(ids, [(rows[0][0],)])
            stored = to_messages([row[1:] for row in rows if row[1] is not None])
            return [started] if are_stored(stored, started[1]) else []

        def look() -> Look[tuple[Conversation, list[Message]]]:
            text = self._texts.look_for_start
            return Look(text, look_at, proves_stored=True, proves_absent=True)

        if request_id is not None:
            return self._add_once(new, request_id)
        return _starting(new, self._texts.start, read, look)

    def _add_once(
        self, new: NewConversation, request_id: str
    ) -> Statement[tuple[Conversation, list[Message]]]:
        def read(ids: Sequence[int], rows: list[Row]) -> tuple[Conversation, list[Message]]:
            conversation, found = to_conversations(rows)[0], rows[0][CONVERSATION_COLUMNS]
            stored = ids[1:] if found is None else map(int, found.split(","))
            return conversation, _first_messages(new, conversation, stored)

        def look_at(
            ids: Sequence[int], rows: list[Row]
        ) -> list[tuple[Conversation, list[Message]]] | None:
            # Another conversation of the session may have come after it was removed. Of one that
            # was redacted, or lost its end, only its ids say what is the same.
            is_own = bool(rows) and rows[0][0] == ids[0]
            if not rows or not (is_own or rows[0][-1] == new.digest.hex()):
                return None
            found = rows[0][CONVERSATION_COLUMNS] or ""
            there = [int(its_id) for its_id in found.split(",") if its_id]
            stored = [its_id for its_id in there if not is_own or its_id in ids]
            conversation = to_conversations(rows)[0]
            return [(conversation, _first_messages(new, conversation, stored))]

        def look() -> Look[tuple[Conversation, list[Message]]]:
            return Look(self._texts.look_for_start_request, look_at, proves_absent=True)

        return _starting(new, self._texts.start_request, read, look, request_id)

    def _get_or_add(
        self, new: NewConversation, request_id: str | None
    ) -> Statement[tuple[Conversation, bool]]:
        def read(ids: Sequence[int], rows: list[Row]) -> tuple[Conversation, bool]:
            conversation = to_conversations(rows)[0]
            return conversation, conversation.id == ids[0]

        def look() -> Look[tuple[Conversation, bool]]:
            return Look(self._texts.find, lambda ids, rows: [read(ids, rows)] if rows else None)

        if request_id is not None:
            return self._get_or_add_once(new, request_id)
        return _starting(new, self._texts.get_or_start, read, look)

    def _get_or_add_once(
        self, new: NewConversation, request_id: str
    ) -> Statement[tuple[Conversation, bool]]:
        def read(_: Sequence[int], rows: list[Row]) -> tuple[Conversation, bool]:
            return to_conversations(rows)[0], rows[0][CONVERSATION_COLUMNS]

        def look_at(ids: Sequence[int], rows: list[Row]) -> list[tuple[Conversation, bool]] | None:
            mine = new.digest.hex()
            is_new = bool(rows) and (rows[0][-1] == mine or rows[0][0] == ids[0])
            if not rows or not (is_new or mine.startswith(rows[0][-1] or "")):
                return None
            return [(to_conversations(rows)[0], is_new)]

        def look() -> Look[tuple[Conversation, bool]]:
            return Look(self._texts.look_for_start_request, look_at, proves_absent=True)

        return _starting(new, self._texts.get_or_start_request, read, look, request_id)

    async def _get(self, conversation_id: int) -> Conversation:
        rows = await self._unit.fetch(self._texts.get, self._addressed(conversation_id))
        if not rows:
            raise ConversationNotFound(conversation_id=conversation_id)
        return to_conversations(rows)[0]

    async def _find(self, user_id: str, session_id: str) -> Conversation | None:
        parameters = {"owner": user_id, "session_id": session_id}
        rows = await self._unit.fetch(self._texts.find, parameters)
        return to_conversations(rows)[0] if rows else None

    async def _list_page(
        self, user_id: str, status: Status | None, limit: int, after: ConversationCursor | None
    ) -> list[Conversation]:
        parameters: dict[str, object] = {
            "owner": user_id,
            "last_activity": "infinity" if after is None else after.last_activity.isoformat(),
            "conversation_id": Int8(MAX_ID if after is None else after.conversation_id),
            "limit": Int8(limit),
        }
        if status is None:
            rows = await self._unit.fetch(self._texts.list, parameters)
        else:
            parameters["status"] = status.value
            rows = await self._unit.fetch(self._texts.list_of_status, parameters)
        return to_conversations(rows)

    def _update(
        self, conversation_id: int, changes: ConversationChanges, expected_version: int | None
    ) -> Statement[Conversation]:
        parameters = self._addressed(conversation_id, expected_version)
        rescue_id, intent_type, metadata = (
            changes.rescue_id,
            changes.intent_type,
            changes.metadata,
        )
        parameters |= {
            "set_rescue_id": flag_text(value=rescue_id is not UNCHANGED),
            "rescue_id": None if rescue_id is UNCHANGED else rescue_id,
            "set_intent_type": flag_text(value=intent_type is not UNCHANGED),
            "intent_type": None if intent_type is UNCHANGED else intent_type,
            "set_metadata": flag_text(value=metadata is not UNCHANGED),
            "metadata": None if metadata is UNCHANGED else dump_optional(metadata),
        }
        return self._changing(
            conversation_id,
            self._texts.update,
            parameters,
            # Done twice, it could undo what another has done in between; a version prevents that.
            is_repeatable=expected_version is not None,
        )

    def _set_status(
        self, conversation_id: int, target: Status, expected_version: int | None
    ) -> Statement[Conversation]:
        parameters = self._addressed(conversation_id, expected_version)
        parameters |= {"target": target.value, "sources": _SOURCES[target]}
        return self._changing(
            conversation_id, self._texts.set_status, parameters, is_repeatable=True
        )

    def _remove(self, conversation_id: int) -> Statement[None]:
        parameters = self._addressed(conversation_id)
        return Statement(
            self._texts.remove,
            lambda _: parameters,
            lambda _ids, _rows: None,
            conversation_id=conversation_id,
            is_removal=True,
            is_repeatable=True,
            look=lambda: Look(self._texts.get, lambda _ids, _rows: [None]),
        )

    def _remove_part(
        self, conversation_id: int, only: RemovalCondition | None
    ) -> Statement[RemovedBatch]:
        condition = only or RemovalCondition(user_id=self._unit.user_id)
        return removing_part(self._texts, conversation_id, condition, is_repeatable=only is None)

    def _remove_some(self, only: RemovalCondition, after: str | None) -> Statement[RemovedBatch]:
        return removing_some(self._texts, only, after)

    async def _find_removable(self, only: RemovalCondition, after: str | None) -> RemovedBatch:
        return to_batch(await self._unit.fetch(*finding(self._texts, only, after)))

    async def _add_imported(
        self, batch: Sequence[ImportedConversation], on_duplicate: OnDuplicate
    ) -> ImportReceipt:
        return await store_batch(self._unit.transaction(), self._texts, batch, on_duplicate)

    async def _export(self, user_id: str | None) -> RecordStream:
        if user_id is None:
            rows = await self._unit.stream(self._texts.export, {})
        else:
            rows = await self._unit.stream(self._texts.export_of_user, {"owner": user_id})
        return RecordStream(rows, self._unit.still_open())

    def _addressed(
        self, conversation_id: int, expected_version: int | None = None
    ) -> dict[str, object]:
        return {
            "conversation_id": Int8(conversation_id),
            "user_id": self._unit.user_id,
            "expected_version": integer_text(expected_version),
        }

    def _changing(
        self, conversation_id: int, text: bytes, parameters: Parameters, *, is_repeatable: bool
    ) -> Statement[Conversation]:
        return Statement(
            text,
            lambda _: parameters,
            lambda _, rows: to_conversations(rows)[0],
            conversation_id=conversation_id,
            is_repeatable=is_repeatable,
            look=lambda: Look(self._texts.get, lambda _, rows: to_conversations(rows) or None),
        )


def _first_messages(
    new: NewConversation, conversation: Conversation, ids: Iterable[int]
) -> list[Message]:
    """Return the messages that a conversation was started with, as far as they are there.

    All are as old as it.
    """
    return [
        draft.stored(
            message_id=message_id,
            conversation_id=conversation.id,
            position=position,
            timestamp=conversation.start_time,
        )
        for position, (draft, message_id) in enumerate(zip(new.drafts, ids, strict=False), 1)
    ]


def _starting(
    new: NewConversation,
    text: bytes,
    read: Callable[[Sequence[int], list[Row]], T],
    look: Callable[[], Look[T]],
    request_id: str | None = None,
) -> Statement[T]:
    drafts = drafts_text(new.drafts)
    parameters: dict[str, object] = {
        "owner": new.user_id,
        "session_id": new.session_id,
        "status": Status.ACTIVE.value,
        "count": Int8(len(new.drafts)),
        "rescue_id": new.rescue_id,
        "intent_type": new.intent_type,
        "source": new.source,
        "metadata": dump_optional(new.metadata),
        "drafts": drafts,
    }

    if request_id is not None:
        parameters |= {"request_id": request_id, "digest": bytes_text(new.digest)}

    def bind(ids: Sequence[int]) -> Parameters:
        parameters["id"] = Int8(ids[0])
        parameters["ids"] = array(ids[1:])
        return parameters

    return Statement(
        text,
        bind,
        read,
        ids_needed=1 + len(new.drafts),
        new_conversations=1,
        is_short=new.metadata is None and len(drafts) < SHORT,
        request_id=request_id,
        is_repeatable=True,
        look=look,
    )
