"""What programs say: arguments that mean the same on both sides, good ones mostly."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from attrs import frozen
from hypothesis import strategies as st

from conversation_store import MessageDraft

from .hands import Hand
from .names import Names

Strategy = st.SearchStrategy[Any]


@frozen
class Chat:
    """The id of a conversation that was seen, or of one that is not there."""

    number: int


@frozen
class Said:
    """The id of a message that was seen, or of one that is not there."""

    number: int


@frozen
class Seen:
    """The version at which a conversation was seen last, and a little more."""

    chat: int
    more: int


@frozen
class NextCursor:
    """The cursor of a page that was read."""

    number: int


@frozen
class Draft:
    """A draft that is made where it is used, so that both sides refuse it."""

    values: Mapping[str, Any]


def resolved(value: Any, hand: Hand) -> Any:
    """Return what an argument is on the side of a hand."""
    names: Names = hand.names
    if isinstance(value, Chat):
        return names.pick(names.conversations, value.number)
    if isinstance(value, Said):
        return names.pick(names.messages, value.number)
    if isinstance(value, Seen):
        return names.seen_version(value.chat) + value.more
    if isinstance(value, NextCursor):
        return names.cursors[value.number % len(names.cursors)] if names.cursors else None
    if isinstance(value, Draft):
        return MessageDraft(**value.values)
    if isinstance(value, tuple):
        return [resolved(item, hand) for item in value]
    return value


def mostly(good: Strategy, *bad: Any) -> Strategy:
    """Return values that are good, and now and then one that is not."""
    return st.integers(0, 29).flatmap(lambda n: good if n < 29 else st.sampled_from(bad))


USERS = ("ada", "bob", "eve")
SESSIONS = ("s-1", "s-2")
BAD_NAMES = ("", "x" * 256, "a\0b", "\ud800", 7)
BAD_NUMBERS = (2**63, -(2**63) - 1, True, "1", 1.5)

user_ids = mostly(st.sampled_from(USERS), *BAD_NAMES, None)
scopes = st.sampled_from((None, None, None, *USERS))
session_ids = mostly(st.sampled_from(SESSIONS), *BAD_NAMES)
values = mostly(st.none() | st.sampled_from(("r", "ü\U0001f600", "x" * 255)), *BAD_NAMES)
chats = mostly(
    st.builds(Chat, st.sampled_from((0, 0, 1, 1, 2, 3, 4, 5, 6, 7))), *BAD_NUMBERS, 0, -5
)
said = mostly(st.builds(Said, st.integers(0, 23)), *BAD_NUMBERS, 0)
versions = st.none() | mostly(
    st.builds(Seen, st.integers(0, 11), st.sampled_from((0, 0, 0, 1, -1))), *BAD_NUMBERS, 0
)
positions = mostly(st.integers(-1, 9), *BAD_NUMBERS, 2**63 - 1)
limits = mostly(st.integers(1, 4) | st.just(1000), 0, -1, 1001, True, "7", 10**15)
times = mostly(
    st.sampled_from((datetime(2010, 1, 1, tzinfo=UTC), datetime(2095, 1, 1, tzinfo=UTC))),
    datetime(2010, 1, 1),  # noqa: DTZ001 - it lacks its time zone
    "2010-01-01",
)
"""Times between which conversations were active: some were before all of them, some are after."""
statuses = mostly(st.sampled_from((None, None, "active", "closed", "archived")), "open", 3)
cursors = st.none() | mostly(st.builds(NextCursor, st.integers(0, 9)), "", "AAAA", "ü", 5)
places = st.none() | mostly(st.sampled_from(("0", "s-1")), "", "ü", 2**63, 7)
request_ids = st.none() | mostly(st.sampled_from(("r-1", "r-2")), *BAD_NAMES)
duplicates = mostly(st.sampled_from(("error", "skip")), "replace")

_objects = mostly(
    st.none() | st.sampled_from(({}, {"a": [1, 2.5, None]}, {"bb": -0.0, "a": {"ü": 1e23}})),
    {"a": float("nan")},
    {"a\0": 1},
    [1],
)
_roles = mostly(st.sampled_from(("user", "assistant", "tool")), "robot")
_contents = mostly(st.sampled_from(("", "one", "two", "hé\U0001f600")), "a\0", "\udfff")
_drafts = st.builds(
    Draft,
    st.fixed_dictionaries(
        {"role": _roles, "content": _contents},
        optional={"intent_type": values, "slots": _objects, "metadata": _objects},
    ),
)
_same_turns = st.sampled_from(
    [
        (Draft({"role": "user", "content": "the same"}),),
        (Draft({"role": "user", "content": "a"}), Draft({"role": "assistant", "content": "b"})),
    ]
)
turns = _same_turns | _same_turns | st.lists(_drafts, min_size=1, max_size=3).map(tuple)
"""Drafts of an append."""
openings = mostly(_same_turns | st.lists(_drafts, max_size=2).map(tuple), ("no draft",))
"""Drafts of a conversation that is started."""
no_turns = mostly(turns, ())
details = {"rescue_id": values, "intent_type": values, "metadata": _objects}
"""What can be changed of a conversation."""


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """Return a record: with times of its own, that no other record has, or with none."""
    messages = draw(
        st.lists(
            st.fixed_dictionaries(
                {"role": _roles, "content": _contents},
                optional={"slots": _objects, "metadata": _objects, "intent_type": values},
            ),
            max_size=3,
        )
    )
    record: dict[str, Any] = {
        "user_id": draw(mostly(st.sampled_from(USERS), "", None)),
        "session_id": draw(session_ids),
        "messages": messages,
    }
    if draw(st.booleans()):
        # Two conversations of one last_activity are listed by their ids, whose order is no promise.
        first = draw(st.integers(0, 10**6))
        times = [
            f"{2001 if first % 2 else 2101}-01-01T00:00:{number:02}.{first:06}Z"
            for number in range(len(messages) + 2)
        ]
        record |= {"start_time": times[0], "last_activity": times[-1]}
        for message, time in zip(messages, times[1:], strict=False):
            message["timestamp"] = time
    record |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "status": statuses.filter(lambda status: status is not None),
                "source": values,
                **details,
            },
        )
    )
    return record
