"""The conversations on PostgreSQL: what each method sends, and what it makes of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from ...domain.json_object import dump_json
from ...domain.message import Message
from ...domain.page import ConversationCursor
from ...domain.receipt import ErasureReceipt, ImportReceipt
from ...domain.record import ImportedConversation
from ...domain.repository import ConversationRepository, OnDuplicate
from .parameters import (
    ReadingUnit,
    array,
    drafts_text,
    flag_text,
    integer_text,
    json_text,
    status_array,
    time_text,
)
from .rows import CONVERSATION_COLUMNS, Row, to_conversations, to_messages, utc
from .sql import Texts
from .statement import SHORT, Parameters, Statement

T = TypeVar("T")

_SOURCES: Final = {target: status_array(sources) for target, sources in TRANSITIONS.items()}


class PsycopgConversationRepository(ConversationRepository):
    """The conversations on PostgreSQL."""

    _unit: ReadingUnit

    def __init__(self, unit: ReadingUnit, texts: Texts) -> None:
        super().__init__(unit)
        self._texts = texts

    def _add(self, new: NewConversation) -> Statement[tuple[Conversation, list[Message]]]:
        def read(ids: Sequence[int], rows: list[Row]) -> tuple[Conversation, list[Message]]:
            time = utc(rows[0][0])
            conversation = new.stored(conversation_id=ids[0], start_time=time, last_activity=time)
            messages = [
                draft.stored(
                    message_id=ids[position],
                    conversation_id=ids[0],
                    position=position,
                    timestamp=time,
                )
                for position, draft in enumerate(new.drafts, 1)
            ]
            return conversation, messages

        return _starting(new, self._texts.start, read)

    def _get_or_add(self, new: NewConversation) -> Statement[tuple[Conversation, bool]]:
        def read(ids: Sequence[int], rows: list[Row]) -> tuple[Conversation, bool]:
            conversation = to_conversations(rows)[0]
            return conversation, conversation.id == ids[0]

        return _starting(new, self._texts.get_or_start, read)

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
            "metadata": None if metadata is UNCHANGED else json_text(metadata),
        }
        return self._changing(conversation_id, self._texts.update, parameters)

    def _set_status(
        self, conversation_id: int, target: Status, expected_version: int | None
    ) -> Statement[Conversation]:
        parameters = self._addressed(conversation_id, expected_version)
        parameters |= {"target": target.value, "sources": _SOURCES[target]}
        return self._changing(conversation_id, self._texts.set_status, parameters)

    def _remove(self, conversation_id: int) -> Statement[None]:
        parameters = self._addressed(conversation_id)
        return Statement(
            self._texts.remove,
            lambda _: parameters,
            lambda _ids, _rows: None,
            conversation_id=conversation_id,
        )

    def _erase_user(self, user_id: str) -> Statement[ErasureReceipt]:
        return Statement(
            self._texts.erase_user,
            lambda _: {"owner": user_id},
            lambda _, rows: ErasureReceipt(conversations=rows[0][0], messages=rows[0][1]),
        )

    def _add_imported(
        self, batch: Sequence[ImportedConversation], on_duplicate: OnDuplicate
    ) -> Statement[ImportReceipt]:
        messages = sum(len(imported.conversation.drafts) for imported in batch)

        def read(_: Sequence[int], rows: list[Row]) -> ImportReceipt:
            stored = rows[0][0]
            return ImportReceipt(
                conversations=stored, messages=rows[0][1], skipped=len(batch) - stored
            )

        def bind(ids: Sequence[int]) -> Parameters:
            conversation_ids, message_ids = ids[: len(batch)], iter(ids[len(batch) :])
            return {
                "conversations": dump_json(
                    [
                        _imported_conversation(imported, conversation_id)
                        for imported, conversation_id in zip(batch, conversation_ids, strict=True)
                    ]
                ),
                "messages": dump_json(
                    [
                        _imported_message(imported, conversation_id, index, next(message_ids))
                        for imported, conversation_id in zip(batch, conversation_ids, strict=True)
                        for index in range(len(imported.conversation.drafts))
                    ]
                ),
                "skip": flag_text(value=on_duplicate == "skip"),
            }

        return Statement(
            self._texts.import_batch,
            bind,
            read,
            ids_needed=len(batch) + messages,
            new_conversations=len(batch),
        )

    async def _export_page(
        self, user_id: str | None, after: tuple[str, str] | None, limit: int
    ) -> list[tuple[Conversation, list[Message]]]:
        after_user_id, after_session_id = ("", "") if after is None else after
        parameters: dict[str, object] = {
            "after_session_id": after_session_id,
            "limit": Int8(limit),
        }
        if user_id is None:
            parameters["after_user_id"] = after_user_id
            rows = await self._unit.fetch(self._texts.export, parameters)
        else:
            parameters["owner"] = user_id
            rows = await self._unit.fetch(self._texts.export_of_user, parameters)
        page: list[tuple[Conversation, list[Message]]] = []
        for row in rows:
            if not page or page[-1][0].id != row[0]:
                page.append((to_conversations([row])[0], []))
            if row[CONVERSATION_COLUMNS] is not None:
                page[-1][1].extend(to_messages([row[CONVERSATION_COLUMNS:]]))
        return page

    def _addressed(
        self, conversation_id: int, expected_version: int | None = None
    ) -> dict[str, object]:
        return {
            "conversation_id": Int8(conversation_id),
            "user_id": self._unit.user_id,
            "expected_version": integer_text(expected_version),
        }

    def _changing(
        self, conversation_id: int, text: bytes, parameters: Parameters
    ) -> Statement[Conversation]:
        return Statement(
            text,
            lambda _: parameters,
            lambda _, rows: to_conversations(rows)[0],
            conversation_id=conversation_id,
        )


def _starting(
    new: NewConversation, text: bytes, read: Callable[[Sequence[int], list[Row]], T]
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
        "metadata": json_text(new.metadata),
        "drafts": drafts,
    }

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
    )


def _imported_conversation(
    imported: ImportedConversation, conversation_id: int
) -> dict[str, object]:
    new = imported.conversation
    return {
        "id": conversation_id,
        "user_id": new.user_id,
        "session_id": new.session_id,
        "status": imported.status,
        "start_time": time_text(imported.start_time),
        "last_activity": time_text(imported.last_activity),
        "message_count": len(new.drafts),
        "rescue_id": new.rescue_id,
        "intent_type": new.intent_type,
        "source": new.source,
        "metadata": new.metadata,
    }


def _imported_message(
    imported: ImportedConversation, conversation_id: int, index: int, message_id: int
) -> dict[str, object]:
    draft = imported.conversation.drafts[index]
    return {
        "conversation_id": conversation_id,
        "position": index + 1,
        "id": message_id,
        "role": draft.role,
        "content": draft.content,
        "timestamp": time_text(imported.timestamps[index]) if imported.timestamps else None,
        "intent_type": draft.intent_type,
        "slots": draft.slots,
        "metadata": draft.metadata,
    }
