"""What every store promises of imports and exports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest
from store_fixtures import draft

from conversation_store import (
    ConversationRecord,
    DuplicateSession,
    ImportReceipt,
    InvalidConversation,
    InvalidRecord,
    append_messages,
    archive_conversation,
    dump_record,
    erase_user,
    export_conversations,
    find_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    start_conversation,
)


def record(session: str = "s", **values: Any) -> Any:
    """Return a record."""
    return {"user_id": "u", "session_id": session, "messages": []} | values


def said(*contents: str, **values: Any) -> list[Any]:
    """Return the messages of a record."""
    return [{"role": "user", "content": content} | values for content in contents]


async def exported(store: Any, **values: Any) -> list[str]:
    """Export all as lines."""
    uow = store.unit_of_work()
    return [dump_record(r) async for r in export_conversations(uow, **values)]


async def load(store: Any, *records: Any, **values: Any) -> ImportReceipt:
    """Import records."""
    return await import_conversations(store.unit_of_work(), records=records, **values)


async def test_an_imported_conversation_is_like_one_that_was_held(store: Any) -> None:
    """Its messages have positions 1, 2 …, its counts are right, and it can go on."""
    receipt = await load(
        store,
        record(
            source="sgd",
            intent_type="i",
            rescue_id="r",
            metadata={"a": [1]},
            messages=said("a", "b", intent_type="x", slots={"c": 1}, metadata={"m": 1}),
        ),
    )
    assert receipt == ImportReceipt(conversations=1, messages=2, skipped=0)
    uow = store.unit_of_work()
    found = await find_conversation(uow, user_id="u", session_id="s")
    assert found is not None
    assert (found.source, found.intent_type, found.rescue_id) == ("sgd", "i", "r")
    assert (found.metadata, found.status, found.version) == ({"a": [1]}, "active", 1)
    assert found.message_count == 2
    messages = await append_messages(uow, conversation_id=found.id, drafts=[draft("c")])
    assert messages[0].position == 3
    stored = await latest_messages(uow, conversation_id=found.id)
    assert [(m.position, m.content) for m in stored] == [(1, "a"), (2, "b"), (3, "c")]
    assert (stored[0].intent_type, stored[0].slots, stored[0].metadata) == (
        "x",
        {"c": 1},
        {"m": 1},
    )


async def test_times_of_a_record_are_kept(store: Any) -> None:
    """A record's own times are stored, in UTC."""
    await load(
        store,
        record(
            start_time="2020-01-01T00:00:00+02:00",
            last_activity="2020-01-03T00:00:00.000001Z",
            messages=[
                {"role": "user", "content": "a", "timestamp": "2020-01-02T00:00:00Z"},
                {"role": "user", "content": "b", "timestamp": "2020-01-02T00:00:00.5-01:00"},
            ],
        ),
    )
    [line] = await exported(store)
    out = json.loads(line)
    assert out["start_time"] == "2019-12-31T22:00:00.000000Z"
    assert out["last_activity"] == "2020-01-03T00:00:00.000001Z"
    assert [m["timestamp"] for m in out["messages"]] == [
        "2020-01-02T00:00:00.000000Z",
        "2020-01-02T01:00:00.500000Z",
    ]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"start_time": "2020-01-01T00:00:00Z"},
        {"last_activity": "2020-01-01T00:00:00Z"},
        {"start_time": "2999-01-01T00:00:00Z"},
        {"start_time": "0001-01-01T00:00:00Z", "last_activity": "9999-12-31T23:59:59.999999Z"},
    ],
)
async def test_times_that_a_record_lacks_are_given(store: Any, given: dict[str, str]) -> None:
    """Start, messages and last activity are in order whatever of them the record names."""
    await load(store, record(messages=said("a"), **given))
    [line] = await exported(store)
    out = json.loads(line)
    for name, value in given.items():
        assert out[name].removesuffix("Z").removesuffix(".000000") == value.removesuffix("Z")
    assert out["start_time"] <= out["messages"][0]["timestamp"] <= out["last_activity"]


async def test_a_message_after_an_import_from_the_future_is_not_earlier(store: Any) -> None:
    """Times of messages never decrease with their position, whatever was imported."""
    await load(store, record(messages=said("a"), last_activity="2999-01-01T00:00:00Z"))
    uow = store.unit_of_work()
    found = await find_conversation(uow, user_id="u", session_id="s")
    assert found is not None
    [message] = await append_messages(uow, conversation_id=found.id, drafts=[draft("b")])
    assert message.timestamp == found.last_activity


async def test_export_import_export_is_the_same_byte_for_byte(store: Any) -> None:
    """What was exported, imported and exported again is equal, times included."""
    uow = store.unit_of_work()
    for number in range(120):
        conversation, _ = await start_conversation(
            uow,
            user_id=f"u-{number % 3}",
            session_id=f"s-{number}",
            drafts=[draft("é\u2028\x01", slots={"b": 1e16, "aa": [1.0, None, {}]})] * (number % 3),
            metadata={"n": number} if number % 2 else None,
            rescue_id="r" if number % 5 == 0 else None,
        )
        if number % 7 == 0:
            await append_messages(
                uow,
                conversation_id=conversation.id,
                drafts=[draft("x", "tool", metadata={"k": -0.0})],
            )
            await archive_conversation(uow, conversation_id=conversation.id)
    first = await exported(store)
    assert len(first) == 120
    for user in ("u-0", "u-1", "u-2"):
        await erase_user(uow, user_id=user)
    assert await exported(store) == []
    receipt = await load(store, *(json.loads(line) for line in first))
    assert receipt.conversations == 120
    assert await exported(store) == first


async def test_an_export_is_ordered_by_user_and_session(store: Any) -> None:
    """The order is that of the texts' code points, in every store."""
    names = ["a", "B", "é", "\U0001f600", "z", "a b", "_", "Ω"]
    for name in names:
        await load(store, record(session=name))
    assert [json.loads(line)["session_id"] for line in await exported(store)] == sorted(names)


async def test_an_export_of_an_empty_conversation(store: Any) -> None:
    """A conversation without messages is exported, and everything that may be null is there."""
    await load(store, record())
    [line] = await exported(store)
    out = json.loads(line)
    assert out["messages"] == []
    for name in ("source", "intent_type", "metadata"):
        assert out[name] is None


async def test_records_may_come_as_an_async_stream(store: Any) -> None:
    """An async iterable is read as it comes; progress is told after each batch."""

    async def stream() -> AsyncIterator[ConversationRecord]:
        for number in range(2201):
            yield record(session=str(number), messages=said("a"))

    told: list[int] = []
    receipt = await import_conversations(
        store.unit_of_work(),
        records=stream(),
        progress=lambda so_far: told.append(so_far.conversations),
    )
    assert receipt == ImportReceipt(conversations=2201, messages=2201)
    assert told == [1000, 2000, 2201]


async def test_a_duplicate_refuses_its_batch(store: Any) -> None:
    """By default a session that exists is DuplicateSession; nothing of the batch is stored."""
    await load(store, record(session="old", messages=said("kept")))
    before = await exported(store)
    with pytest.raises(DuplicateSession) as caught:
        await load(store, record(session="new"), record(session="old", messages=said("other")))
    assert (caught.value.user_id, caught.value.session_id) == ("u", "old")
    assert caught.value.imported == ImportReceipt()
    assert await exported(store) == before


async def test_a_duplicate_can_be_skipped(store: Any) -> None:
    """With "skip" the records of sessions that exist are left out and counted."""
    await load(store, record(session="old", messages=said("kept")))
    receipt = await load(
        store,
        record(session="new", messages=said("a", "b")),
        record(session="old", messages=said("other")),
        record(session="new", messages=said("twice in a batch")),
        on_duplicate="skip",
    )
    assert receipt == ImportReceipt(conversations=1, messages=2, skipped=2)
    contents = [
        [m["content"] for m in json.loads(line)["messages"]] for line in await exported(store)
    ]
    assert contents == [["a", "b"], ["kept"]]


async def test_a_session_twice_in_a_batch_is_a_duplicate(store: Any) -> None:
    """The second of two records of one session refuses the batch."""
    with pytest.raises(DuplicateSession):
        await load(store, record(), record())
    assert await exported(store) == []


async def test_a_bad_record_refuses_its_batch_and_says_what_was_stored_before(
    store: Any,
) -> None:
    """Batches before the bad record stay, the one with it is not stored, and the error tells."""
    records = [record(session=f"{n:04}") for n in range(1200)]
    records[1150]["messages"] = [{"role": "robot", "content": "x"}]
    with pytest.raises(InvalidRecord) as caught:
        await load(store, *records)
    error = caught.value
    assert (error.record, error.field) == (1151, "messages[0].role")
    assert error.imported == ImportReceipt(conversations=1000)
    assert len(await exported(store)) == 1000


async def test_an_import_inside_a_block_is_part_of_it(store: Any) -> None:
    """Imported in an outer block that is rolled back, nothing is stored."""
    async with store.unit_of_work() as uow:
        receipt = await import_conversations(
            uow, records=[record(session=str(n)) for n in range(1001)]
        )
        assert receipt.conversations == 1001
        await uow.rollback()
    assert await exported(store) == []


async def test_an_import_of_nothing(store: Any) -> None:
    """No records, no trouble."""
    assert await load(store) == ImportReceipt()


async def test_on_duplicate_is_error_or_skip(store: Any) -> None:
    """Any other policy is refused."""
    values: Any = {"on_duplicate": "overwrite"}
    with pytest.raises(InvalidConversation) as caught:
        await load(store, record(), **values)
    assert caught.value.field == "on_duplicate"


async def test_2000_dialogues_go_in_and_come_out_equal(store: Any, dialogues: list[Any]) -> None:
    """All 41,970 messages come back word for word; a second import stores nothing."""
    receipt = await load(store, *dialogues)
    assert (receipt.conversations, receipt.messages) == (2000, 41_970)
    uow = store.unit_of_work()
    out = {}
    async for r in export_conversations(uow):
        assert r.pop("status") == "active"
        del r["start_time"], r["last_activity"]
        for message in r["messages"]:
            del message["timestamp"]
        out[r["session_id"]] = r
    assert len(out) == 2000
    for dialogue in dialogues:
        assert out[dialogue["session_id"]] == dialogue
    with pytest.raises(DuplicateSession) as caught:
        await load(store, *dialogues)
    assert caught.value.session_id == dialogues[0]["session_id"]
    again = await load(store, *dialogues, on_duplicate="skip")
    assert again == ImportReceipt(conversations=0, messages=0, skipped=2000)


async def test_a_busy_users_list_is_complete(store: Any, dialogues: list[Any]) -> None:
    """Paging through the list of the user with most dialogues shows each once."""
    busiest = Counter(d["user_id"] for d in dialogues).most_common(1)[0][0]
    mine = [d for d in dialogues if d["user_id"] == busiest]
    await load(store, *mine)
    seen: list[str] = []
    after = None
    while True:
        page = await list_conversations(
            store.unit_of_work(), user_id=mine[0]["user_id"], limit=10, after=after
        )
        seen += [conversation.session_id for conversation in page.conversations]
        after = page.next_cursor
        if after is None:
            break
    assert sorted(seen) == sorted(d["session_id"] for d in mine)
    assert len(seen) == 99


async def test_a_turn_can_follow_each_imported_dialogue(store: Any, dialogues: list[Any]) -> None:
    """Real dialogues replayed turn by turn equal the imported ones."""
    uow = store.unit_of_work()
    for dialogue in dialogues[:20]:
        conversation, _ = await start_conversation(
            uow, user_id=dialogue["user_id"], session_id=dialogue["session_id"]
        )
        for message in dialogue["messages"]:
            await append_messages(uow, conversation_id=conversation.id, drafts=[draft(**message)])
        stored = await latest_messages(uow, conversation_id=conversation.id, limit=1000)
        assert [(m.role, m.content, m.intent_type, m.slots) for m in stored] == [
            (m["role"], m["content"], m["intent_type"], m["slots"]) for m in dialogue["messages"]
        ]
