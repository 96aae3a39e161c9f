"""The quick way to read a record: it takes nothing that the thorough way refuses or reads other."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

import pytest
from attrs import asdict
from hypothesis import given
from hypothesis import strategies as st

from conversation_store import InvalidRecord
from conversation_store.domain import record as records
from conversation_store.domain.errors import InvalidInput
from conversation_store.domain.imported import ImportedConversation, read_plain
from conversation_store.domain.json_object import check_json_object, dump_plain


class Name(StrEnum):
    """A text that is of another type."""

    USER = "user"


def quick(record: object) -> ImportedConversation | None:
    """Read a record the quick way."""
    return read_plain(record, records._CONVERSATION_FIELDS, records._MESSAGE_FIELDS)


def thorough(record: object) -> ImportedConversation | None:
    """Read a record the thorough way; None where it is refused."""
    try:
        return records._read_record(record, 1)
    except InvalidInput:
        return None


def meaning(imported: ImportedConversation) -> dict[str, Any]:
    """Return what a record says, with its JSON texts read."""
    said = asdict(imported)
    said["metadata"] = said["metadata"] and json.loads(said["metadata"])
    for name in ("slots", "metadata"):
        said["messages"][name] = [text and json.loads(text) for text in said["messages"][name]]
    for name, column in said["messages"].items():
        said["messages"][name] = list(column)
    return said


texts = st.one_of(
    st.text(max_size=5),
    st.sampled_from(["", "\0", "\ud800", "é\u2028", "\\u0000", '"\\', "x" * 256, Name.USER]),
)
numbers = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([10**300, 10**299, 1e16, 1e15, -0.0, 0.5, float("nan"), float("inf"), True]),
)
values = st.recursive(
    st.one_of(st.none(), texts, numbers, st.booleans(), st.just(object())),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=2).map(tuple),
        st.dictionaries(st.one_of(texts, st.integers(0, 1)), inner, max_size=3),
    ),
    max_leaves=6,
)
objects = st.one_of(
    st.none(),
    st.dictionaries(texts, st.one_of(texts, st.lists(texts, max_size=2)), max_size=3),
    values,
)
moments = st.integers(0, 3).map(
    lambda day: (datetime(2020, 1, 1, tzinfo=UTC) + timedelta(days=day)).isoformat()
)
times = st.one_of(
    moments,
    st.sampled_from(["2020-01-02T00:00:00+02:00", "2020-01-02T00:00:00", "x", None]),
    st.just(datetime(2020, 1, 2, tzinfo=UTC)),
)
names = st.one_of(st.none(), texts, st.just("name"), st.just(5))
messages = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "tool", "robot", Name.USER, None]),
        "content": st.one_of(texts, st.just("said")),
    },
    optional={
        "intent_type": names,
        "slots": objects,
        "metadata": objects,
        "timestamp": times,
        "position": st.sampled_from([1, 2, True, 1.0, None]),
        "more": st.just(1),
    },
)
plain_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant"]), "content": st.text(max_size=5)},
    optional={"slots": objects, "timestamp": moments},
)
conversations = st.fixed_dictionaries(
    {
        "user_id": st.one_of(st.just("u"), names),
        "session_id": st.one_of(st.just("s"), names),
        "messages": st.one_of(
            st.lists(plain_messages, max_size=3),
            st.lists(messages, max_size=3),
            st.lists(messages, max_size=2).map(tuple),
            st.sampled_from([None, "", {}, [1], [MappingProxyType({"role": "user"})]]),
        ),
    },
    optional={
        "source": names,
        "rescue_id": names,
        "intent_type": names,
        "metadata": objects,
        "status": st.sampled_from(["active", "closed", "gone", None, 1]),
        "start_time": times,
        "last_activity": times,
        "more": st.just(1),
    },
)


@given(conversations)
def test_the_quick_way_reads_as_the_thorough_one(record: dict[str, Any]) -> None:
    """What it takes the thorough way takes too, and reads as the same."""
    read = quick(record)
    if read is not None:
        expected = thorough(record)
        assert expected is not None
        assert meaning(read) == meaning(expected)


@given(objects)
def test_plain_json_is_what_is_acceptable(value: Any) -> None:
    """A JSON object that is written the quick way is one, and of the same meaning."""
    text = dump_plain(value)
    if text is not None:
        canonical = check_json_object(value, "slots", RefusedError)
        assert json.loads(text) == canonical
        assert json.dumps(json.loads(text), sort_keys=True) == json.dumps(canonical, sort_keys=True)


class RefusedError(InvalidInput):
    """What a JSON object is refused with."""


@pytest.mark.parametrize("depth", [63, 64, 65])
@pytest.mark.parametrize("kind", ["list", "object"])
def test_depth(depth: int, kind: str) -> None:
    """64 levels are taken, one more is not."""
    value: Any = {}
    for _ in range(depth - 1):
        value = {"a": value} if kind == "object" else [value]
    if kind == "list":
        value = {"a": value}
        depth += 1
    assert (dump_plain(value) is not None) is (depth <= 64)


def test_plain_records_are_read_the_quick_way() -> None:
    """Those that most streams consist of need no closer look."""
    plain: Any = {
        "user_id": "u",
        "session_id": "s",
        "source": None,
        "metadata": {"a": {"b": [1, 2.5, None, True, "c"]}},
        "status": "closed",
        "start_time": "2020-01-01T00:00:00.000000Z",
        "messages": [
            {
                "role": "user",
                "content": "é",
                "slots": {"city": ["Oslo"], "day": "today"},
                "metadata": None,
                "timestamp": "2020-01-01T00:00:00Z",
                "position": 1,
            }
        ],
    }
    read = quick(plain)
    assert read is not None
    assert meaning(read) == meaning(records._read_record(plain, 1))
    assert quick(plain | {"messages": []}) is not None


@pytest.mark.parametrize("size", [10_000_000, 10_000_001])
def test_large_records_are_looked_at_closely(size: int) -> None:
    """The limits in bytes are the thorough way's to hold."""
    record: Any = {
        "user_id": "u",
        "session_id": "s",
        "messages": [{"role": "user", "content": "x" * size}],
    }
    assert quick(record) is None
    if size > 10_000_000:
        with pytest.raises(InvalidRecord):
            records.check_record(record, 1)
    else:
        assert records.check_record(record, 1).messages.contents == ["x" * size]
