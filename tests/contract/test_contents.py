"""Any text and any JSON that the domain accepts comes back equal; what it refuses, all refuse.

Twin and PostgreSQL in one test, side by side: what one of them gives back is what the other does.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from store_fixtures import AWKWARD_SCHEMA, open_store

from conversation_store import (
    ConversationStore,
    InvalidInput,
    MessageDraft,
    append_messages,
    erase_user,
    export_conversations,
    find_conversation,
    get_conversation,
    get_or_start_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    start_conversation,
    update_conversation,
)

Both = tuple[ConversationStore, ConversationStore]

TEXTS = st.text(max_size=30) | st.text(st.characters(exclude_categories=()), max_size=30)
"""Any text, with NUL and lone surrogates."""
NUMBERS = (
    st.integers()
    | st.integers(-(10**301), 10**301)
    | st.floats()
    | st.sampled_from([1e16, 1e23, -1e22, 123456789012345678.0, -0.0, 5e-324, 1.7e308, 10**300 - 1])
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=15,
)
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=5)


@st.composite
def deep_objects(draw: st.DrawFn) -> Any:
    """Return an object of about as many levels as may be, or one more."""
    value: Any = draw(st.sampled_from([{}, [], 1, "x"]))
    for is_list in draw(st.lists(st.booleans(), min_size=61, max_size=65)):
        value = [value] if is_list else {"a": value}
    return {"a": value}


JSON = st.none() | OBJECTS | deep_objects()

EACH = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
async def both(dsn: str, migrated: set[str]) -> AsyncIterator[Both]:
    """Give an empty twin and an empty store on PostgreSQL."""
    async with (
        ConversationStore.in_memory() as twin,
        open_store(dsn, AWKWARD_SCHEMA, migrated) as postgres,
    ):
        yield twin, postgres


def shown(value: Any) -> str:
    """Return JSON as it is to be equal: 1 is not 1.0, and the order of keys counts."""
    return json.dumps(value, ensure_ascii=False)


def refusal(error: InvalidInput) -> tuple[Any, ...]:
    """Return what two refusals have to have in common."""
    return type(error), error.field, error.reason, error.offset


async def said(store: ConversationStore, content: Any, slots: Any, metadata: Any) -> Any:
    """Say something, and return how it is read; or why it was refused."""
    try:
        draft = MessageDraft(role="user", content=content, slots=slots, metadata=metadata)
        conversation, _ = await get_or_start_conversation(
            store.unit_of_work(), user_id="u", session_id="said"
        )
        returned = await append_messages(
            store.unit_of_work(), conversation_id=conversation.id, drafts=[draft]
        )
    except InvalidInput as error:
        return refusal(error)
    read = await latest_messages(store.unit_of_work(), conversation_id=conversation.id, limit=1)
    assert read == returned
    assert shown([read[0].slots, read[0].metadata]) == shown([draft.slots, draft.metadata])
    return read[0].content, shown(read[0].slots), shown(read[0].metadata)


@EACH
@given(content=TEXTS, slots=JSON, metadata=JSON)
@example(content="\0", slots=None, metadata=None)
@example(content="\ud83d", slots={"\udfff": 1}, metadata=None)
@example(content="", slots={"a": 1e23, "bb": -0.0}, metadata={"": ""})
async def test_drafts(both: Both, content: str, slots: Any, metadata: Any) -> None:
    """What is said comes back as it was returned, on both sides alike."""
    twin, postgres = both
    mine = await said(twin, content, slots, metadata)
    assert mine == await said(postgres, content, slots, metadata)
    if isinstance(mine[0], str):
        assert mine[0] == content


async def kept(store: ConversationStore, name: Any, metadata: Any) -> Any:
    """Start a conversation with a name in each place, change it, and return how it is read."""
    uow = store.unit_of_work()
    names = {"rescue_id": name, "intent_type": name, "source": name}
    try:
        started, _ = await start_conversation(
            uow, user_id=name, session_id=name, metadata=metadata, **names
        )
    except InvalidInput as error:
        return refusal(error)
    assert await find_conversation(uow, user_id=name, session_id=name) == started
    page = await list_conversations(uow, user_id=name)
    assert page.conversations == [started]
    changed = await update_conversation(
        uow, conversation_id=started.id, metadata={"was": metadata}, rescue_id=None
    )
    read = await get_conversation(uow, conversation_id=started.id)
    assert read == changed
    await erase_user(uow, user_id=name)
    return started.user_id, started.source, shown(started.metadata), shown(read.metadata)


@EACH
@given(name=TEXTS, metadata=st.none() | OBJECTS)
@example(name="x" * 256, metadata=None)
@example(name="\U0001f600" * 255, metadata=None)
async def test_conversations(both: Both, name: str, metadata: Any) -> None:
    """Names and metadata of a conversation come back equal, and are found again."""
    twin, postgres = both
    mine = await kept(twin, name, metadata)
    assert mine == await kept(postgres, name, metadata)
    if isinstance(mine[0], str):
        assert mine[:2] == (name, name)


async def moved(store: ConversationStore, record: Any) -> Any:
    """Import a record, export it, and import that: the same comes out; or say why not."""
    uow = store.unit_of_work()
    try:
        await import_conversations(uow, records=[record])
    except InvalidInput as error:
        return [refusal(error)]
    [first] = [shown(exported) async for exported in export_conversations(uow)]
    user_id = record["user_id"]
    await erase_user(uow, user_id=user_id)
    await import_conversations(uow, records=[json.loads(first)])
    [again] = [shown(exported) async for exported in export_conversations(uow)]
    await erase_user(uow, user_id=user_id)
    assert again == first
    return [first]


RECORDS = st.fixed_dictionaries(
    {
        "user_id": TEXTS.filter(bool),
        "session_id": TEXTS.filter(bool),
        "start_time": st.datetimes(timezones=st.timezones()).map(lambda time: time.isoformat()),
        "messages": st.lists(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["user", "tool"]), "content": TEXTS},
                optional={"slots": JSON, "metadata": JSON, "intent_type": st.none() | TEXTS},
            ),
            max_size=3,
        ),
    },
    optional={"metadata": JSON, "source": st.none() | TEXTS, "rescue_id": st.none() | TEXTS},
).map(lambda record: record | {"last_activity": record["start_time"]})


@EACH
@given(record=RECORDS)
async def test_records(both: Both, record: Any) -> None:
    """What is imported comes out of an export equal, byte for byte, on both sides."""
    twin, postgres = both
    assert await moved(twin, record) == await moved(postgres, record)


async def test_515_hostile_strings(both: Both, naughty_strings: list[str]) -> None:
    """Both sides give every hostile string back, in each place where one may stand."""
    twin, postgres = both
    record: Any = {
        "user_id": "u",
        "session_id": "s",
        "start_time": "2020-01-01T00:00:00Z",
        "last_activity": "2020-01-01T00:00:00Z",
        "metadata": {text: [text] for text in naughty_strings},
        "messages": [
            {"role": "user", "content": text, "slots": {text: text}, "metadata": {"a": [text]}}
            for text in naughty_strings
        ],
    }
    [mine] = await moved(twin, record)
    assert [mine] == await moved(postgres, record)
    exported = json.loads(mine)
    assert exported["metadata"] == record["metadata"]
    for text, message in zip(naughty_strings, exported["messages"], strict=True):
        assert (message["content"], message["slots"]) == (text, {text: text})
        assert await said(twin, text, {text: text}, None) == await said(
            postgres, text, {text: text}, None
        )
