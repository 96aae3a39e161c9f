"""The repositories on PostgreSQL: what each method sends, and what it makes of the answer.

Parameters are texts and 64-bit integers only, whatever their value: psycopg picks a type by value
for plain integers, and each mix of types would be another prepared statement. Lists travel as one
JSON text: psycopg's own dumping of lists is the largest single cost of a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Final, Protocol

from psycopg.types.numeric import Int8

from ...domain.conversation import (
    ACCEPTING_MESSAGES,
    MAX_ID,
    TRANSITIONS,
    UNCHANGED,
    Conversation,
    ConversationChanges,
    NewConversation,
    Status,
)
from ...domain.errors import ConversationNotFound, MessageNotFound
from ...domain.json_object import JsonObject, dump_json
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
from .rows import CONVERSATION_COLUMNS, Row, to_conversation, to_message, utc
from .sql import Texts
from .statement import Parameters, Statement


class ReadingUnit(Unit, Protocol):
    """A unit of work that reads rows."""

    async def fetch(self, text: bytes, parameters: Parameters) -> list[Row]:
        """Read the rows of a statement."""
        ...


def _array(statuses: Iterable[Status]) -> str:
    return "{" + ",".join(sorted(statuses)) + "}"


_ACCEPTING: Final = _array(ACCEPTING_MESSAGES)
_SOURCES: Final = {target: _array(sources) for target, sources in TRANSITIONS.items()}


def _json(value: JsonObject | None) -> str | None:
    return None if value is None else dump_json(value)


def _integer(value: int | None) -> str | None:
    """Return an optional integer as text, so that NULL is of no other type than a number."""
    return None if value is None else str(value)


def _ids(ids: Sequence[int]) -> str:
    return "{" + ",".join(map(str, ids)) + "}"


def _drafts(drafts: Sequence[MessageDraft]) -> str:
    return dump_json(
        [
            {
                "role": draft.role,
                "content": draft.content,
                "intent_type": draft.intent_type,
                "slots": draft.slots,
                "metadata": draft.metadata,
            }
            for draft in drafts
        ]
    )


def _message(
    draft: MessageDraft, conversation_id: int, message_id: int, position: int, time: datetime
) -> Message:
    """Return the message that a draft became; it needs no reading back."""
    return Message(
        id=message_id,
        conversation_id=conversation_id,
        position=position,
        role=draft.role,
        content=draft.content,
        timestamp=time,
        intent_type=draft.intent_type,
        slots=draft.slots,
        metadata=draft.metadata,
    )


class PsycopgConversationRepository(ConversationRepository):
    """The conversations on PostgreSQL."""

    _unit: ReadingUnit

    def __init__(self, unit: ReadingUnit, texts: Texts) -> None:
        super().__init__(unit)
        self._texts = texts

    def _add(self, new: NewConversation) -> Statement[tuple[Conversation, list[Message]]]:
        def read(
            ids: Sequence[int], rows: list[Row]
        ) -> tuple[Conversation, list[Message]]:
            time = utc(rows[0][0])
            conversation = Conversation(
                id=ids[0],
                user_id=new.user_id,
                session_id=new.session_id,
                status=Status.ACTIVE,
                start_time=time,
                last_activity=time,
                message_count=len(new.drafts),
                version=1,
                rescue_id=new.rescue_id,
                intent_type=new.intent_type,
                source=new.source,
                metadata=new.metadata,
            )
            messages = [
                _message(draft, ids[0], ids[position], position, time)
                for position, draft in enumerate(new.drafts, 1)
            ]
            return conversation, messages

        return Statement(
            self._texts.start,
            _starting(new),
            read,
            ids_needed=1 + len(new.drafts),
            new_conversations=1,
        )

    def _get_or_add(self, new: NewConversation) -> Statement[tuple[Conversation, bool]]:
        def read(ids: Sequence[int], rows: list[Row]) -> tuple[Conversation, bool]:
            conversation = to_conversation(rows[0])
            return conversation, conversation.id == ids[0]

        return Statement(
            self._texts.get_or_start,
            _starting(new),
            read,
            ids_needed=1 + len(new.drafts),
            new_conversations=1,
        )

    async def _get(self, conversation_id: int) -> Conversation:
        rows = await self._unit.fetch(self._texts.get, self._addressed(conversation_id))
        if not rows:
            raise ConversationNotFound(conversation_id=conversation_id)
        return to_conversation(rows[0])

    async def _find(self, user_id: str, session_id: str) -> Conversation | None:
        parameters = {"owner": user_id, "session_id": session_id}
        rows = await self._unit.fetch(self._texts.find, parameters)
        return to_conversation(rows[0]) if rows else None

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
        return [to_conversation(row) for row in rows]

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
            "set_rescue_id": _flag(rescue_id is not UNCHANGED),
            "rescue_id": None if rescue_id is UNCHANGED else rescue_id,
            "set_intent_type": _flag(intent_type is not UNCHANGED),
            "intent_type": None if intent_type is UNCHANGED else intent_type,
            "set_metadata": _flag(metadata is not UNCHANGED),
            "metadata": None if metadata is UNCHANGED else _json(metadata),
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
                "skip": _flag(on_duplicate == "skip"),
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
                page.append((to_conversation(row), []))
            if row[CONVERSATION_COLUMNS] is not None:
                page[-1][1].append(to_message(row[CONVERSATION_COLUMNS:]))
        return page

    def _addressed(
        self, conversation_id: int, expected_version: int | None = None
    ) -> dict[str, object]:
        return {
            "conversation_id": Int8(conversation_id),
            "user_id": self._unit.user_id,
            "expected_version": _integer(expected_version),
        }

    def _changing(
        self, conversation_id: int, text: bytes, parameters: Parameters
    ) -> Statement[Conversation]:
        return Statement(
            text,
            lambda _: parameters,
            lambda _, rows: to_conversation(rows[0]),
            conversation_id=conversation_id,
        )


class PsycopgMessageRepository(MessageRepository):
    """The messages on PostgreSQL."""

    _unit: ReadingUnit

    def __init__(self, unit: ReadingUnit, texts: Texts) -> None:
        super().__init__(unit)
        self._texts = texts

    def _append(self, turn: Turn) -> Statement[list[Message]]:
        parameters: dict[str, object] = {
            "conversation_id": Int8(turn.conversation_id),
            "user_id": self._unit.user_id,
            "expected_version": _integer(turn.expected_version),
            "accepting": _ACCEPTING,
            "count": Int8(len(turn.drafts)),
            "drafts": _drafts(turn.drafts),
        }

        def bind(ids: Sequence[int]) -> Parameters:
            return parameters | {"ids": _ids(ids)}

        def read(ids: Sequence[int], rows: list[Row]) -> list[Message]:
            base, time = rows[0][0], utc(rows[0][1])
            return [
                _message(draft, turn.conversation_id, message_id, base + ordinal, time)
                for ordinal, (draft, message_id) in enumerate(
                    zip(turn.drafts, ids, strict=True), 1
                )
            ]

        def read_request(_: Sequence[int], rows: list[Row]) -> list[Message]:
            return [
                _message(draft, turn.conversation_id, message_id, position, utc(time))
                for draft, (position, message_id, time) in zip(turn.drafts, rows, strict=True)
            ]

        if turn.request_id is not None:
            parameters |= {"request_id": turn.request_id, "digest": f"\\x{turn.digest.hex()}"}
        return Statement(
            self._texts.append if turn.request_id is None else self._texts.append_request,
            bind,
            read if turn.request_id is None else read_request,
            ids_needed=len(turn.drafts),
            conversation_id=turn.conversation_id,
            request_id=turn.request_id,
        )

    async def _get(self, message_id: int) -> Message:
        parameters = {"message_id": Int8(message_id), "user_id": self._unit.user_id}
        rows = await self._unit.fetch(self._texts.get_message, parameters)
        if not rows:
            raise MessageNotFound(message_id=message_id)
        return to_message(rows[0])

    async def _latest(
        self, conversation_id: int, limit: int, before: int | None
    ) -> list[Message]:
        bounds = {"before": Int8(MAX_ID if before is None else before), "limit": Int8(limit)}
        return await self._page(self._texts.latest, conversation_id, bounds)

    async def _after(self, conversation_id: int, position: int, limit: int) -> list[Message]:
        bounds = {"position": Int8(position), "limit": Int8(limit)}
        return await self._page(self._texts.after, conversation_id, bounds)

    async def _page(
        self, text: bytes, conversation_id: int, bounds: dict[str, Any]
    ) -> list[Message]:
        parameters = bounds | {
            "conversation_id": Int8(conversation_id),
            "user_id": self._unit.user_id,
        }
        rows = await self._unit.fetch(text, parameters)
        if not rows:
            raise ConversationNotFound(conversation_id=conversation_id)
        if rows[0][0] is None:
            return []
        return [to_message(row) for row in rows]


def _flag(value: bool) -> str:
    return "true" if value else "false"


def _starting(new: NewConversation) -> Callable[[Sequence[int]], Parameters]:
    parameters: dict[str, object] = {
        "owner": new.user_id,
        "session_id": new.session_id,
        "status": Status.ACTIVE.value,
        "count": Int8(len(new.drafts)),
        "rescue_id": new.rescue_id,
        "intent_type": new.intent_type,
        "source": new.source,
        "metadata": _json(new.metadata),
        "drafts": _drafts(new.drafts),
    }
    return lambda ids: parameters | {"id": Int8(ids[0]), "ids": _ids(ids[1:])}


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _imported_conversation(
    imported: ImportedConversation, conversation_id: int
) -> dict[str, object]:
    new = imported.conversation
    first, last = (imported.timestamps or (None,))[0], (imported.timestamps or (None,))[-1]
    return {
        "id": conversation_id,
        "user_id": new.user_id,
        "session_id": new.session_id,
        "status": imported.status,
        "start_time": _time(imported.start_time or first),
        "last_activity": _time(imported.last_activity or last),
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
        "timestamp": _time(imported.timestamps[index]) if imported.timestamps else None,
        "intent_type": draft.intent_type,
        "slots": draft.slots,
        "metadata": draft.metadata,
    }
