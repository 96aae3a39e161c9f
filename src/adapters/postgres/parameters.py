"""Parameters of statements, and the unit of work that repositories read through.

Parameters are texts and 64-bit integers only, whatever their value: psycopg picks a type by value
for plain integers, and each mix of types would be another prepared statement. Lists travel as one
JSON text: psycopg's own dumping of lists is the largest single cost of a call.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from ...domain.conversation import ACCEPTING_MESSAGES, Status
from ...domain.json_object import dump_json
from ...domain.message import MessageDraft
from ...domain.unit import Unit
from .bulk import OpenTransaction
from .rows import Row
from .statement import Parameters
from .stream import RowStream


class ReadingUnit(Unit, Protocol):
    """A unit of work that reads rows."""

    async def fetch(self, text: bytes, parameters: Parameters) -> list[Row]:
        """Read the rows of a statement."""
        ...

    async def stream(self, text: bytes, parameters: Parameters) -> RowStream:
        """Begin to read the rows of a statement a chunk at a time."""
        ...

    def transaction(self) -> OpenTransaction:
        """Give what is needed of the transaction that is open."""
        ...


def status_array(statuses: Iterable[Status]) -> str:
    """Return statuses as the text of an array."""
    return "{" + ",".join(sorted(statuses)) + "}"


ACCEPTING: Final = status_array(ACCEPTING_MESSAGES)
"""The statuses that accept messages."""


def integer_text(value: int | None) -> str | None:
    """Return an optional integer as text, so that NULL is of no other type than a number."""
    return None if value is None else str(value)


def array(integers: Iterable[int]) -> str:
    """Return integers as the text of an array."""
    return "{" + ",".join(map(str, integers)) + "}"


def bytes_text(value: bytes) -> str:
    """Return bytes as text."""
    return f"\\x{value.hex()}"


def drafts_text(drafts: Sequence[MessageDraft]) -> str:
    """Return what drafts say as one JSON text."""
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


def flag_text(*, value: bool) -> str:
    """Return a flag as text."""
    return "true" if value else "false"
