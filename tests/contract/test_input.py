"""What every store accepts and refuses, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import draft

from conversation_store import (
    ConversationStore,
    InvalidConversation,
    InvalidInput,
    InvalidMessage,
    InvalidRecord,
    MessageDraft,
    append_messages,
    close_conversation,
    delete_conversation,
    find_conversation,
    get_conversation,
    get_message,
    get_or_start_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    messages_after,
    start_conversation,
    storable_json,
    storable_text,
    update_conversation,
)

BAD_NAMES = ["", "x" * 256, "a\0b", "\ud800", 7, b"x", ["x"]]


@pytest.mark.parametrize("value", [*BAD_NAMES, None])
@pytest.mark.parametrize("field", ["user_id", "session_id"])
async def test_required_names(store: Any, field: str, value: Any) -> None:
    """user_id and session_id are texts of 1..255 characters that can be stored."""
    values = {"user_id": "u", "session_id": "s", field: value}
    for function in (start_conversation, get_or_start_conversation, find_conversation):
        with pytest.raises(InvalidConversation) as caught:
            await function(store.unit_of_work(), **values)
        assert caught.value.field == field
        assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("value", BAD_NAMES)
@pytest.mark.parametrize("field", ["rescue_id", "intent_type", "source"])
async def test_optional_names(store: Any, field: str, value: Any) -> None:
    """Optional names are None or texts of 1..255 characters that can be stored."""
    values: Any = {field: value}
    with pytest.raises(InvalidConversation) as caught:
        await start_conversation(store.unit_of_work(), user_id="u", session_id="s", **values)
    assert caught.value.field == field
    if field != "source":
        with pytest.raises(InvalidConversation):
            await update_conversation(store.unit_of_work(), conversation_id=1, **values)


async def test_the_longest_names(store: Any) -> None:
    """255 characters are accepted, whatever their size in bytes."""
    name = "\U0001f600" * 255
    conversation, _ = await start_conversation(
        store.unit_of_work(),
        user_id=name,
        session_id=name,
        rescue_id=name,
        intent_type=name,
        source=name,
    )
    uow = store.unit_of_work()
    assert await get_conversation(uow, conversation_id=conversation.id) == conversation


@pytest.mark.parametrize("value", BAD_NAMES)
async def test_request_ids(store: Any, value: Any) -> None:
    """A request_id is a text of 1..255 characters that can be stored."""
    with pytest.raises(InvalidMessage) as caught:
        await append_messages(
            store.unit_of_work(), conversation_id=1, drafts=[draft("x")], request_id=value
        )
    assert caught.value.field == "request_id"


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**40, "1", 1.0, True, None])
async def test_ids(store: Any, value: Any) -> None:
    """Ids are integers within 64 bits."""
    uow = store.unit_of_work()
    for function in (
        get_conversation,
        close_conversation,
        delete_conversation,
        latest_messages,
    ):
        with pytest.raises(InvalidConversation) as caught:
            await function(uow, conversation_id=value)
        assert caught.value.field == "conversation_id"
    with pytest.raises(InvalidConversation):
        await append_messages(uow, conversation_id=value, drafts=[draft("x")])
    with pytest.raises(InvalidMessage) as message:
        await get_message(uow, message_id=value)
    assert message.value.field == "message_id"
    with pytest.raises(InvalidMessage):
        await messages_after(uow, conversation_id=1, position=value)


@pytest.mark.parametrize("value", [2**63, "1", 1.0, True])
async def test_expected_versions(store: Any, value: Any) -> None:
    """An expected_version is an integer within 64 bits."""
    uow = store.unit_of_work()
    for call in (
        lambda: append_messages(
            uow, conversation_id=1, drafts=[draft("x")], expected_version=value
        ),
        lambda: close_conversation(uow, conversation_id=1, expected_version=value),
        lambda: update_conversation(uow, conversation_id=1, rescue_id="r", expected_version=value),
    ):
        with pytest.raises(InvalidConversation) as caught:
            await call()
        assert caught.value.field == "expected_version"


@pytest.mark.parametrize("status", ["open", "", "ACTIVE", 1, ["active"]])
async def test_statuses(store: Any, status: Any) -> None:
    """A status is active, closed or archived."""
    with pytest.raises(InvalidConversation) as caught:
        await list_conversations(store.unit_of_work(), user_id="u", status=status)
    assert caught.value.field == "status"


@pytest.mark.parametrize("drafts", [[], [draft("x")] * 1001, ["x"], [{"role": "user"}]])
async def test_drafts(store: Any, drafts: Any) -> None:
    """An append takes 1..1000 MessageDraft objects."""
    with pytest.raises(InvalidMessage) as caught:
        await append_messages(store.unit_of_work(), conversation_id=1, drafts=drafts)
    assert caught.value.field == "drafts"


BAD_JSON: list[Any] = [
    [1],
    "text",
    7,
    {1: 2},
    {"a": math.nan},
    {"a": math.inf},
    {"a": [-math.inf]},
    {"a": 10**300},
    {"a": -(10**300)},
    {"a": 1e300},
    {"a": "b\0"},
    {"a\0": 1},
    {"a": "\udfff"},
    {"\ud800": 1},
    {"a": {1, 2}},
    {"a": b"x"},
    {"a": object()},
    {"a": datetime(2020, 1, 1, tzinfo=UTC)},
    {"a": "x" * 1_000_000},
]


def nested(depth: int) -> Any:
    """Return an object of that many levels."""
    value: Any = {}
    for number in range(depth - 1):
        value = {"a": value} if number % 2 else {"a": [value]} if depth < 60 else {"a": value}
    return value


@pytest.mark.parametrize("value", [*BAD_JSON, nested(65)], ids=lambda value: repr(value)[:20])
async def test_json_objects(store: Any, value: Any) -> None:
    """Slots and metadata are JSON objects that come back as they were."""
    for field in ("slots", "metadata"):
        with pytest.raises(InvalidMessage) as message:
            draft("x", **{field: value})
        assert message.value.field.startswith(field)
    with pytest.raises(InvalidConversation) as conversation:
        await start_conversation(store.unit_of_work(), user_id="u", session_id="s", metadata=value)
    assert conversation.value.field.startswith("metadata")


async def stored_slots(store: Any, slots: Any) -> Any:
    """Return slots as they were returned and as they are read, having checked they are equal."""
    session = repr(slots)[:200] or "s"
    _, [returned] = await start_conversation(
        store.unit_of_work(), user_id="u", session_id=session, drafts=[draft("x", slots=slots)]
    )
    stored = await get_message(store.unit_of_work(), message_id=returned.id)
    assert repr(stored.slots) == repr(returned.slots)
    return stored.slots


@pytest.mark.parametrize(
    ("given_value", "canonical"),
    [
        (1e16, 10**16),
        (1e23, 10**23),
        (-1.5e20, -(15 * 10**19)),
        (123456789012345678.0, 123456789012345680),
        (-0.0, 0.0),
        (1.0, 1.0),
        (0.1, 0.1),
        (1e-7, 1e-7),
        (5e-324, 5e-324),
        (9.99e15, 9.99e15),
        (10**300 - 1, 10**300 - 1),
        (True, True),
        (None, None),
        ("", ""),
        ((1, 2), [1, 2]),
        ([], []),
        ({"bb": 1, "a": 2, "c": 3}, {"a": 2, "c": 3, "bb": 1}),
        ("\x01\x1f\x7f\u2028\U0001f600é", "\x01\x1f\x7f\u2028\U0001f600é"),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_json_is_canonical(store: Any, given_value: Any, canonical: Any) -> None:
    """What comes back is what jsonb makes of it, already when it is returned."""
    slots = await stored_slots(store, {"a": given_value})
    assert slots == {"a": canonical}
    assert repr(slots) == repr({"a": canonical})


async def test_the_deepest_and_largest_json(store: Any) -> None:
    """64 levels and 1,000,000 bytes are accepted."""
    assert await stored_slots(store, nested(64)) == nested(64)
    large = {"a": "x" * (1_000_000 - len('{"a":""}'))}
    assert await stored_slots(store, large) == large


_TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
_JSON = st.dictionaries(
    _TEXTS,
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(10**40), 10**40)
        | st.floats(-1e299, 1e299, allow_nan=False)
        | _TEXTS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXTS, inner, max_size=4),
        max_leaves=12,
    ),
    max_size=5,
)


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(content=_TEXTS, slots=_JSON)
async def test_what_is_accepted_comes_back_equal(
    store: Any, content: str, slots: dict[str, Any]
) -> None:
    """Any text and any JSON object that the domain accepts is read as it was returned."""
    conversation, _ = await get_or_start_conversation(
        store.unit_of_work(), user_id="u", session_id="hypothesis"
    )
    [returned] = await append_messages(
        store.unit_of_work(),
        conversation_id=conversation.id,
        drafts=[draft(content, slots=slots)],
    )
    stored = await get_message(store.unit_of_work(), message_id=returned.id)
    assert stored == returned
    assert repr(stored.slots) == repr(returned.slots)
    assert stored.content == content


async def test_the_longest_content(store: Any) -> None:
    """10,000,000 bytes of UTF-8 are accepted and come back; one more is refused."""
    content = "é" * 5_000_000
    _, [message] = await start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", drafts=[draft(content)]
    )
    stored = await get_message(store.unit_of_work(), message_id=message.id)
    assert stored.content == content
    with pytest.raises(InvalidMessage) as caught:
        draft(content + "x")
    assert caught.value.field == "content"


async def test_515_hostile_strings_come_back_equal(store: Any, naughty_strings: list[str]) -> None:
    """Every hostile string goes through every text field and comes back equal."""
    uow = store.unit_of_work()
    assert len(naughty_strings) == 515
    drafts = [
        draft(
            text,
            intent_type=text[:255] or None,
            slots={text: [text, {text: text}]},
            metadata={text: text},
        )
        for text in naughty_strings
    ]
    conversation, returned = await start_conversation(
        uow, user_id="u", session_id="all", drafts=drafts
    )
    stored = await latest_messages(uow, conversation_id=conversation.id, limit=1000)
    assert stored == returned
    for text, message in zip(naughty_strings, stored, strict=True):
        assert message.content == text
        assert message.intent_type == (text[:255] or None)
        assert message.slots == {text: [text, {text: text}]}
        assert message.metadata == {text: text}


async def test_hostile_strings_as_names(store: Any, naughty_strings: list[str]) -> None:
    """Hostile strings are good names: they are found again and only they."""
    uow = store.unit_of_work()
    names = sorted({text for text in naughty_strings if 1 <= len(text) <= 255})
    for name in names:
        conversation, _ = await start_conversation(
            uow,
            user_id=name,
            session_id=name,
            rescue_id=name,
            intent_type=name,
            source=name,
            metadata={name: name},
        )
        first = await append_messages(
            uow, conversation_id=conversation.id, drafts=[draft(name)], request_id=name
        )
        again = await append_messages(
            uow, conversation_id=conversation.id, drafts=[draft(name)], request_id=name
        )
        assert again == first
        found = await find_conversation(uow, user_id=name, session_id=name)
        assert found is not None
        assert (found.rescue_id, found.intent_type, found.source) == (name, name, name)
        assert found.metadata == {name: name}
        page = await list_conversations(uow, user_id=name)
        assert [c.id for c in page.conversations] == [conversation.id]


@pytest.mark.parametrize("text", ["a\0b\0", "\ud800", "x\udfffy", "fine", ""])
async def test_storable_text_saves_a_turn(store: Any, text: str) -> None:
    """What storable_text returns is accepted; what was storable is unchanged."""
    fixed = storable_text(text)
    assert len(fixed) == len(text)
    _, [message] = await start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", drafts=[draft(fixed)]
    )
    assert message.content == fixed
    if text == "fine":
        assert fixed == text


async def test_storable_json_saves_a_turn(store: Any) -> None:
    """What storable_json returns is accepted."""
    raw: Any = {
        "a\0": ["\ud800", math.nan, math.inf, 10**301, 1e308, (1, {"b\0": None})],
        7: True,
        "ok": {"x": 1.5},
    }
    slots = await stored_slots(store, storable_json(raw))
    assert slots["a\ufffd"][:3] == ["\ufffd", None, None]
    assert slots["a\ufffd"][3] == str(10**301)
    assert slots["a\ufffd"][5] == [1, {"b\ufffd": None}]
    assert slots["7"] is True
    assert slots["ok"] == {"x": 1.5}


RECORD: dict[str, Any] = {"user_id": "u", "session_id": "s", "messages": []}
MESSAGE: dict[str, Any] = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ("text", "record"),
        (None, "record"),
        ([], "record"),
        ({"session_id": "s", "messages": []}, "user_id"),
        ({"user_id": "u", "messages": []}, "session_id"),
        ({"user_id": "u", "session_id": "s"}, "messages"),
        (RECORD | {"messages": None}, "messages"),
        (RECORD | {"messages": {"a": 1}}, "messages"),
        (RECORD | {"messages": "text"}, "messages"),
        (RECORD | {"user_id": ""}, "user_id"),
        (RECORD | {"user_id": None}, "user_id"),
        (RECORD | {"session_id": "x" * 256}, "session_id"),
        (RECORD | {"source": 5}, "source"),
        (RECORD | {"status": "open"}, "status"),
        (RECORD | {"status": None}, "status"),
        (RECORD | {"metadata": []}, "metadata"),
        (RECORD | {"typo": 1}, "record"),
        (RECORD | {3: 1}, "record"),
        (RECORD | {"start_time": "2020-01-01T00:00:00"}, "start_time"),
        (RECORD | {"start_time": "yesterday"}, "start_time"),
        (RECORD | {"start_time": 5}, "start_time"),
        (RECORD | {"last_activity": datetime(2020, 1, 1)}, "last_activity"),  # noqa: DTZ001
        (RECORD | {"start_time": "0001-01-01T00:00:00+10:00"}, "start_time"),
        (
            RECORD
            | {"start_time": "2020-01-02T00:00:00Z", "last_activity": "2020-01-01T00:00:00Z"},
            "timestamp",
        ),
        (RECORD | {"messages": ["x"]}, "messages[0]"),
        (RECORD | {"messages": [MESSAGE, {"role": "user"}]}, "messages[1].content"),
        (RECORD | {"messages": [{"content": "x"}]}, "messages[0].role"),
        (RECORD | {"messages": [MESSAGE | {"role": None}]}, "messages[0].role"),
        (RECORD | {"messages": [MESSAGE | {"content": None}]}, "messages[0].content"),
        (RECORD | {"messages": [MESSAGE | {"content": "a\0"}]}, "messages[0].content"),
        (RECORD | {"messages": [MESSAGE | {"slots": {"a": math.nan}}]}, "messages[0].slots.a"),
        (RECORD | {"messages": [MESSAGE | {"position": 2}]}, "messages[0].position"),
        (RECORD | {"messages": [MESSAGE | {"id": 1}]}, "messages[0]"),
        (
            RECORD | {"messages": [MESSAGE | {"timestamp": "2020-01-01T00:00:00Z"}, MESSAGE]},
            "messages",
        ),
        (
            RECORD
            | {
                "messages": [
                    MESSAGE | {"timestamp": "2020-01-02T00:00:00Z"},
                    MESSAGE | {"timestamp": "2020-01-01T00:00:00Z"},
                ]
            },
            "timestamp",
        ),
    ],
    ids=lambda value: repr(value)[-40:],
)
async def test_records(store: Any, bad: Any, field: str) -> None:
    """A malformed record is InvalidRecord with its number, the field and the reason."""
    good: Any = {"user_id": "u", "session_id": "good", "messages": [MESSAGE | {"position": 1}]}
    with pytest.raises(InvalidRecord) as caught:
        await import_conversations(store.unit_of_work(), records=[good, bad])
    assert (caught.value.record, caught.value.field) == (2, field)
    assert caught.value.reason
    assert "record 2" in str(caught.value)
    uow = store.unit_of_work()
    assert await find_conversation(uow, user_id="u", session_id="good") is None


async def test_errors_hold_no_content() -> None:
    """The text of a refusal shows no word of what was said."""
    secret = "my secret \0 words"
    calls: tuple[Callable[[], MessageDraft], ...] = (
        lambda: draft(secret),
        lambda: draft("x", slots={"a": secret}),
        lambda: draft("x", metadata={"a": [secret]}),
    )
    for call in calls:
        with pytest.raises(InvalidInput) as caught:
            call()
        assert "secret" not in str(caught.value) + repr(caught.value)
        assert caught.value.offset == 10


async def test_reprs_hold_no_content() -> None:
    """Entities show ids, not words."""
    async with ConversationStore.in_memory() as store:
        conversation, messages = await start_conversation(
            store.unit_of_work(),
            user_id="u",
            session_id="s",
            metadata={"secret": 1},
            drafts=[draft("secret", slots={"secret": 1}, metadata={"secret": 1})],
        )
    assert "secret" not in repr((conversation, messages, draft("secret")))


def test_roles() -> None:
    """A role is user, assistant, system or tool."""
    for role in ("User", "", "robot", None, 1, ["user"]):
        with pytest.raises(InvalidMessage) as caught:
            MessageDraft(role=role, content="x")  # type: ignore[arg-type]
        assert caught.value.field == "role"


def test_contents() -> None:
    """Content is a text that can be stored; it may be empty."""
    assert not draft("").content
    for content, offset in (("ab\0", 2), ("\ud83d", 0), (7, None), (None, None), (b"", None)):
        with pytest.raises(InvalidMessage) as caught:
            draft(content)  # type: ignore[arg-type]
        assert (caught.value.field, caught.value.offset) == ("content", offset)
