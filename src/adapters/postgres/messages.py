"""The messages on PostgreSQL: what each method sends, and what it makes of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from psycopg.types.numeric import Int8

from ...domain.conversation import MAX_ID
from ...domain.errors import ConversationNotFound, MessageNotFound
from ...domain.json_object import dump_json
from ...domain.message import (
    REDACTED_CONTENT,
    REDACTED_DIGEST,
    REDACTED_SLOTS,
    Message,
    Turn,
)
from ...domain.repository import MessageRepository
from .parameters import (
    ACCEPTING,
    ReadingUnit,
    array,
    bytes_text,
    drafts_text,
    integer_text,
)
from .rows import Row, are_stored, to_messages, utc
from .statement import SHORT, Look, Parameters, Statement
from .texts import Texts


class PsycopgMessageRepository(MessageRepository):
    """The messages on PostgreSQL."""

    _unit: ReadingUnit

    def __init__(self, unit: ReadingUnit, texts: Texts) -> None:
        super().__init__(unit)
        self._texts = texts

    def _append(self, turn: Turn) -> Statement[list[Message]]:
        drafts = drafts_text(turn.drafts)
        parameters = self._given(turn, drafts)

        def bind(ids: Sequence[int]) -> Parameters:
            parameters["ids"] = array(ids)
            return parameters

        def read_request(_: Sequence[int], rows: list[Row]) -> list[Message]:
            return [
                draft.stored(
                    message_id=message_id,
                    conversation_id=turn.conversation_id,
                    position=position,
                    timestamp=utc(time),
                )
                # Of a turn that is looked for the end may be gone since.
                for draft, (position, message_id, time) in zip(turn.drafts, rows, strict=False)
            ]

        def look() -> Look[list[Message]]:
            if turn.request_id is None:
                return self._look_for_turn(read)
            return Look(
                self._texts.look_for_request,
                _looking(lambda ids, rows: [read_request(ids, rows)]),
                proves_absent=True,
            )

        read = _reading(turn)
        if turn.request_id is not None:
            parameters |= {"request_id": turn.request_id, "digest": bytes_text(turn.digest)}
        return Statement(
            self._texts.append if turn.request_id is None else self._texts.append_request,
            bind,
            read if turn.request_id is None else read_request,
            ids_needed=len(turn.drafts),
            is_short=len(drafts) < SHORT,
            conversation_id=turn.conversation_id,
            request_id=turn.request_id,
            is_repeatable=True,
            look=look,
            # A version is expected at one moment: who expects it has to come at that moment.
            read_placed=read if turn.expected_version is None else None,
        )

    def _given(self, turn: Turn, drafts: str) -> dict[str, object]:
        """Return the parameters of a turn, but for its ids."""
        return {
            "conversation_id": Int8(turn.conversation_id),
            "user_id": self._unit.user_id,
            "expected_version": integer_text(turn.expected_version),
            "accepting": ACCEPTING,
            "count": Int8(len(turn.drafts)),
            "drafts": drafts,
        }

    def _pop(self, conversation_id: int, expected_version: int | None) -> Statement[Message | None]:
        parameters: dict[str, object] = {
            "conversation_id": Int8(conversation_id),
            "user_id": self._unit.user_id,
            "expected_version": integer_text(expected_version),
            "accepting": ACCEPTING,
            "digest": bytes_text(REDACTED_DIGEST),
        }

        def read(_: Sequence[int], rows: list[Row]) -> Message | None:
            return None if rows[0][0] is None else to_messages(rows)[0]

        return Statement(
            self._texts.pop,
            lambda _: parameters,
            read,
            conversation_id=conversation_id,
            is_removal=True,
            # Done twice, it would take two messages; a version prevents that.
            is_repeatable=expected_version is not None,
            # What it took is gone, and nothing tells what that was.
            look=lambda: Look(self._texts.get, lambda _, rows: [] if rows else None),
        )

    def _replace(self, turn: Turn) -> Statement[list[Message]]:
        drafts = drafts_text(turn.drafts)
        parameters = self._given(turn, drafts)

        def bind(ids: Sequence[int]) -> Parameters:
            parameters["ids"] = array(ids)
            return parameters

        def look() -> Look[list[Message]]:
            if turn.drafts:
                return self._look_for_turn(read)
            return Look(self._texts.get, lambda _, rows: [] if rows else None)

        read = _reading(turn)
        return Statement(
            self._texts.replace,
            bind,
            read,
            ids_needed=len(turn.drafts),
            is_short=len(drafts) < SHORT,
            conversation_id=turn.conversation_id,
            is_removal=True,
            # Without messages of its own it would take along what came since.
            is_repeatable=turn.expected_version is not None,
            look=look,
        )

    def _look_for_turn(
        self, read: Callable[[Sequence[int], list[Row]], list[Message]]
    ) -> Look[list[Message]]:
        """Return how to see a turn of which only the ids tell that it was stored."""

        def read_turn(ids: Sequence[int], rows: list[Row]) -> list[list[Message]]:
            base, time = rows[0][2] - 1, rows[0][5]
            stored = to_messages(rows)
            return [stored] if are_stored(stored, read(ids, [(base, time)])) else []

        text = self._texts.look_for_turn
        return Look(text, _looking(read_turn), proves_stored=True, proves_absent=True)

    def _redact(self, message_id: int) -> Statement[Message]:
        parameters: dict[str, object] = {
            "message_id": Int8(message_id),
            "user_id": self._unit.user_id,
            "content": REDACTED_CONTENT,
            "slots": dump_json(REDACTED_SLOTS),
            "digest": bytes_text(REDACTED_DIGEST),
        }

        def look_at(_: Sequence[int], rows: list[Row]) -> list[Message] | None:
            if not rows:
                return None
            return [message for message in to_messages(rows) if message.is_redacted]

        return Statement(
            self._texts.redact,
            lambda _: parameters,
            lambda _, rows: to_messages(rows)[0],
            is_repeatable=True,
            # Nothing brings words back: where they are, the unit was not stored.
            look=lambda: Look(self._texts.get_message, look_at, proves_absent=True),
        )

    async def _get(self, message_id: int) -> Message:
        parameters = {"message_id": Int8(message_id), "user_id": self._unit.user_id}
        rows = await self._unit.fetch(self._texts.get_message, parameters)
        if not rows:
            raise MessageNotFound(message_id=message_id)
        return to_messages(rows)[0]

    async def _latest(self, conversation_id: int, limit: int, before: int | None) -> list[Message]:
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
        return to_messages(rows)


def _reading(turn: Turn) -> Callable[[Sequence[int], list[Row]], list[Message]]:
    """Return what reads where a turn was placed: behind which position, and when."""

    def read(ids: Sequence[int], rows: list[Row]) -> list[Message]:
        base, time = rows[0][0], utc(rows[0][1])
        return [
            draft.stored(
                message_id=message_id,
                conversation_id=turn.conversation_id,
                position=base + ordinal,
                timestamp=time,
            )
            for ordinal, (draft, message_id) in enumerate(zip(turn.drafts, ids, strict=True), 1)
        ]

    return read


def _looking(
    read: Callable[[Sequence[int], list[Row]], list[list[Message]]],
) -> Callable[[Sequence[int], list[Row]], list[list[Message]] | None]:
    """Return what reads a look for a turn: of a conversation without it there is a row of nulls."""

    def look_at(ids: Sequence[int], rows: list[Row]) -> list[list[Message]] | None:
        if not rows:
            return None
        return [] if rows[0][0] is None else read(ids, rows)

    return look_at
