"""Entities that are made of rows are the entities that constructors make."""

from __future__ import annotations

import copy
import pickle
import weakref
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs.exceptions import FrozenInstanceError

from conversation_store import Conversation, Message, Role, Status
from conversation_store.adapters.postgres.rows import to_conversations, to_messages

NOON = datetime(2026, 5, 1, 12, 0, 0, 250)  # noqa: DTZ001 - as it leaves the server

MESSAGE = (7, 1, 2, "assistant", "Hello", NOON, "greet", '{"a": [1, null]}', None)
CONVERSATION = (1, "u", "s", "closed", NOON, NOON, 2, 3, "r", None, None, '{"k": "v"}')


def message(row: tuple[Any, ...]) -> Message:
    """Make a message by its constructor."""
    return Message(
        id=row[0],
        conversation_id=row[1],
        position=row[2],
        role=Role(row[3]),
        content=row[4],
        timestamp=row[5].replace(tzinfo=UTC),
        intent_type=row[6],
        slots={"a": [1, None]},
        metadata=None,
    )


def conversation() -> Conversation:
    """Make a conversation by its constructor."""
    noon = NOON.replace(tzinfo=UTC)
    return Conversation(
        id=1,
        user_id="u",
        session_id="s",
        status=Status.CLOSED,
        start_time=noon,
        last_activity=noon,
        message_count=2,
        version=3,
        rescue_id="r",
        metadata={"k": "v"},
    )


@pytest.mark.parametrize(
    ("made", "constructed"),
    [
        (to_messages([MESSAGE])[0], message(MESSAGE)),
        (to_conversations([CONVERSATION])[0], conversation()),
    ],
    ids=["message", "conversation"],
)
def test_one_of_a_row_is_as_good_as_one_of_a_constructor(made: Any, constructed: Any) -> None:
    """Equal, of the same class and hash, immutable, and able to be copied and referred to."""
    assert type(made) is type(constructed)
    assert made == constructed
    assert repr(made) == repr(constructed)
    assert hash(made) == hash(constructed)
    assert copy.copy(made) == pickle.loads(pickle.dumps(made)) == constructed  # noqa: S301
    with pytest.raises(FrozenInstanceError):
        made.id = 8
    with pytest.raises(FrozenInstanceError):
        del made.id
    assert weakref.ref(made)() is made


def test_rows_keep_their_order_and_share_nothing() -> None:
    """Each row becomes one entity, with a JSON object of its own."""
    rows = [(*MESSAGE[:2], position, *MESSAGE[3:]) for position in range(1, 6)]
    messages = to_messages(rows)
    assert [each.position for each in messages] == [1, 2, 3, 4, 5]
    assert messages[0].slots == messages[1].slots
    assert messages[0].slots is not messages[1].slots
    assert to_messages([]) == []
    assert to_conversations([]) == []
