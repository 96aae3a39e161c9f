"""What is too large, too deep, without end or hostile is refused, and costs no more than its limit.

Each attack ends in an error of the InvalidInput family that names the field. How much of it is read
is counted; how much memory that takes is traced.
"""

from __future__ import annotations

import gzip
import io
import subprocess
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import pytest
from attacks.hostile import (
    HUGE,
    OBJECTS,
    SECRET,
    CountedError,
    EndlessList,
    EndlessObject,
    HostError,
    LyingInteger,
    LyingText,
    Raising,
    RaisingList,
    laughing,
    million_keys,
    nested,
)
from store_fixtures import draft, open_store

from conversation_store import (
    ConversationStore,
    InvalidConversation,
    InvalidCursor,
    InvalidInput,
    InvalidLimit,
    InvalidMessage,
    InvalidRecord,
    MessageDraft,
    NewConversation,
    Outcome,
    append_messages,
    close_conversation,
    dump_record,
    find_conversation,
    get_conversation,
    get_message,
    import_conversations,
    latest_messages,
    list_conversations,
    messages_after,
    redact_message,
    start_conversation,
    storable_json,
    update_conversation,
)
from conversation_store.domain import imported, record
from conversation_store.domain.json_object import check_json_object, dump_plain
from conversation_store.entrypoints import json_lines
from conversation_store.service_layer import transfer

MEMORY: Final = 40_000_000
"""Bytes that refusing may take, on top of what the attack itself holds."""


@pytest.fixture(params=["memory", "postgres"])
async def either(request: pytest.FixtureRequest) -> AsyncIterator[ConversationStore]:
    """Give an empty store of each adapter."""
    if request.param == "memory":
        yield ConversationStore.in_memory()
        return
    dsn, migrated = request.getfixturevalue("dsn"), request.getfixturevalue("migrated")
    async with open_store(dsn, "operational", migrated) as opened:
        yield opened


@contextmanager
def little_memory() -> Generator[None]:
    """Check that a block takes little memory."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY, f"{peak / 1e6:.0f} MB"


async def start(store: ConversationStore) -> int:
    """Start a conversation of one message."""
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", drafts=[draft("first")]
    )
    return conversation.id


async def count(store: ConversationStore) -> int:
    """Return how many messages there are in the user's conversations."""
    page = await list_conversations(store.unit_of_work(), user_id="u")
    return sum(conversation.message_count for conversation in page.conversations)


# JSON objects -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTS)
def test_a_json_object_is_refused_for_what_it_is(name: str) -> None:
    """Nothing but the first megabyte of it is read, and the error names the place."""
    value = OBJECTS[name]()
    assert dump_plain(value) is None, "the quick way does not take it"
    with pytest.raises(InvalidMessage) as caught:
        draft("x", slots=value)
    assert caught.value.field.startswith("slots")
    assert len(str(caught.value)) < 6000
    assert SECRET not in str(caught.value)


FEW: Final = ("deep object", "circular", "huge integer", "endless list", "raising", "triples")


@pytest.mark.parametrize("name", FEW)
async def test_it_is_refused_wherever_it_is_given(either: ConversationStore, name: str) -> None:
    """As slots or metadata of a message, a conversation, a change or a record; nothing is sent."""
    value = OBJECTS[name]()
    conversation_id = await start(either)
    said: dict[str, Any] = {"role": "user", "content": "x"}
    new: dict[str, Any] = {"user_id": "u", "session_id": "other"}
    uow = either.unit_of_work()
    with pytest.raises(InvalidMessage, match="metadata"):
        MessageDraft(role="user", content="x", metadata=value)
    for call, place in (
        (lambda: start_conversation(uow, **new, metadata=value), "metadata"),
        (
            lambda: update_conversation(uow, conversation_id=conversation_id, metadata=value),
            "metadata",
        ),
        (
            lambda: import_conversations(
                uow, records=[recorded(messages=[said | {"slots": value}])]
            ),
            "messages[0].slots",
        ),
        (
            lambda: import_conversations(uow, records=[recorded(metadata=value)]),
            "metadata",
        ),
    ):
        with pytest.raises(InvalidInput) as caught:
            await call()
        assert caught.value.field.startswith(place)
        assert uow.outcome is Outcome.NOT_STARTED
    assert await count(either) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("million keys", "million texts", "laughing list", "very long text"),
        *("the same list often", "endless list", "endless object"),
    ],
)
def test_refusing_takes_little_memory(name: str) -> None:
    """In proportion to the limit, not to what was given; also where the quick way is tried."""
    value = OBJECTS[name]()
    said = {"role": "user", "content": "x", "slots": value}
    with little_memory(), pytest.raises(InvalidRecord) as caught:
        record.check_record({"user_id": "u", "session_id": "s", "messages": [said]}, 7)
    assert (caught.value.field, caught.value.record) == ("messages[0].slots", 7)


@pytest.mark.parametrize("size", [999_992, 999_993])
def test_the_limit_is_held_to_the_byte(size: int) -> None:
    """{"a":"…"} of exactly 1 MB is taken, one byte more is not."""
    value = {"a": "x" * size}
    if size == 999_992:
        assert check_json_object(value, "slots", InvalidMessage) == value
        assert check_json_object({"a": [0] * 499_996}, "slots", InvalidMessage)
    else:
        with pytest.raises(InvalidMessage, match="1000000 bytes"):
            check_json_object(value, "slots", InvalidMessage)


def test_what_lies_is_taken_for_what_it_holds() -> None:
    """Subclasses of the built-in types are read past their own methods, and not kept."""
    drafted = draft(
        LyingText("héllo"), slots={LyingText("a"): LyingText("b"), "n": LyingInteger(5)}
    )
    new = NewConversation(user_id=LyingText("ada"), session_id="s")
    assert (drafted.content, drafted.slots, new.user_id) == ("héllo", {"a": "b", "n": 5}, "ada")
    assert drafted.slots is not None
    assert {type(value) for value in (drafted.content, *drafted.slots, new.user_id)} == {str}
    assert type(drafted.slots["n"]) is int


def test_the_remedy_is_bounded_too() -> None:
    """storable_json repairs what can be, leaves what is too deep, refuses what is too large."""
    deep = nested(as_list=False)
    for value in (deep, nested(as_list=True)):
        with pytest.raises(InvalidMessage, match="nests deeper"):
            draft("x", slots=storable_json(value))
    endless = EndlessObject(str), {"a": EndlessList()}, laughing(as_list=True)
    for large in (*endless, laughing(as_list=False), {"a": "x" * 1_000_001}):
        with pytest.raises(InvalidInput, match="1000000 bytes"):
            storable_json(large)
    with pytest.raises(InvalidMessage, match="not below"):
        draft("x", slots=storable_json({"a": HUGE}))
    assert storable_json({"a": 10**400, "b": -(10**400)}) == {
        "a": f"1{'0' * 400}",
        "b": f"-1{'0' * 400}",
    }
    keys: Any = {10**400: 1, HUGE: 2}
    assert len(storable_json(keys)) == 2
    with pytest.raises(InvalidInput, match="cannot be written"):
        dump_record(deep)  # type: ignore[arg-type]


# Drafts -----------------------------------------------------------------------------------------


class Drafts:
    """Drafts that are made as they are asked for, and counted."""

    def __init__(self, make: Callable[[], Any], most: int) -> None:
        self._make = make
        self._most = most
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.given += 1
            if self.given > self._most:
                raise CountedError
            yield self._make()


MEGABYTE: Final = {"a": "x" * 999_000}


@pytest.mark.parametrize(
    ("make", "most"),
    [
        (lambda: draft("x"), 1001),
        (lambda: draft("x" * 10_000_000), 11),
        (lambda: draft("\x01" * 10_000_000), 2),
        (lambda: draft("x", metadata=MEGABYTE), 101),
        (lambda: "no draft", 1),
        (lambda: draft, 1),
    ],
    ids=["small", "large", "control characters", "metadata", "texts", "functions"],
)
async def test_no_more_drafts_are_asked_for_than_may_be_stored(
    either: ConversationStore, make: Callable[[], Any], most: int
) -> None:
    """An endless stream of drafts is refused where the first of them are too many, or too large."""
    conversation_id = await start(either)
    drafts: Any = Drafts(make, most)
    uow = either.unit_of_work()
    with pytest.raises(InvalidMessage) as caught:
        await append_messages(uow, conversation_id=conversation_id, drafts=drafts)
    assert caught.value.field == "drafts"
    assert drafts.given <= most
    assert uow.outcome is Outcome.NOT_STARTED
    assert await count(either) == 1


@pytest.mark.parametrize("drafts", [None, 5, object(), draft("x")])
async def test_what_is_no_series_of_drafts(either: ConversationStore, drafts: Any) -> None:
    """It is refused by name."""
    with pytest.raises(InvalidMessage) as caught:
        await append_messages(either.unit_of_work(), conversation_id=1, drafts=drafts)
    assert caught.value.field == "drafts"


async def test_an_error_of_the_stream_itself_is_the_hosts(either: ConversationStore) -> None:
    """Drafts that fail while they are made: their own error goes on, and nothing is stored."""
    conversation_id = await start(either)
    for stream in (RaisingList([draft("x")]), Drafts(lambda: draft("x"), 3)):
        with pytest.raises((HostError, CountedError)):
            await append_messages(
                either.unit_of_work(),
                conversation_id=conversation_id,
                drafts=stream,  # type: ignore[arg-type]
            )
    assert await count(either) == 1


@pytest.mark.parametrize("length", [10_000_001, 60_000_000])
@pytest.mark.parametrize("character", ["x", "\x00", "é", "\ud800"])
def test_a_content_that_is_too_long(length: int, character: str) -> None:
    """It is refused for its length before it is looked at or copied."""
    content = character * length
    with little_memory(), pytest.raises(InvalidMessage, match="10000000 bytes") as caught:
        draft(content)
    assert caught.value.field == "content"


async def test_ten_megabytes_are_stored(either: ConversationStore) -> None:
    """The longest content, the largest slots and metadata go in and come out."""
    conversation_id = await start(either)
    drafts = [draft("é" * 5_000_000, slots=MEGABYTE, metadata=MEGABYTE)]
    [stored] = await append_messages(
        either.unit_of_work(), conversation_id=conversation_id, drafts=drafts
    )
    assert (stored.content, stored.slots) == (drafts[0].content, MEGABYTE)
    assert await get_message(either.unit_of_work(), message_id=stored.id) == stored


# Names, numbers, pages --------------------------------------------------------------------------


LONG: Final[Any] = ["x" * 256, "x" * 50_000_000, "\0", "\ud800", LyingText("x" * 256), HUGE, b"x"]


@pytest.mark.parametrize("value", LONG, ids=range(len(LONG)))
async def test_a_name_that_is_none(either: ConversationStore, value: Any) -> None:
    """Every name is refused by its own name, at the cost of its first 255 characters."""
    uow = either.unit_of_work()
    with little_memory():
        for name in ("user_id", "session_id", "rescue_id", "intent_type", "source"):
            values: dict[str, Any] = {"user_id": "u", "session_id": "s"} | {name: value}
            with pytest.raises(InvalidConversation) as caught:
                await start_conversation(uow, **values)
            assert caught.value.field == name
        with pytest.raises(InvalidMessage, match="request_id"):
            await append_messages(uow, conversation_id=1, drafts=[draft("x")], request_id=value)
        with pytest.raises(InvalidMessage, match="intent_type"):
            draft("x", intent_type=value)
        with pytest.raises(InvalidMessage, match="role"):
            MessageDraft(role=value, content="x")
        with pytest.raises(InvalidConversation, match="user_id"):
            either.unit_of_work(user_id=value)
        with pytest.raises(InvalidConversation, match="session_id"):
            await find_conversation(uow, user_id="u", session_id=value)
        with pytest.raises(InvalidConversation, match="status"):
            await list_conversations(uow, user_id="u", status=value)
        with pytest.raises(InvalidCursor):
            await list_conversations(uow, user_id="u", after=value)


NUMBERS: Final[Any] = [HUGE, -HUGE, 2**63, LyingInteger(HUGE), 1e300, "1", b"1", None, [1]]


@pytest.mark.parametrize("value", NUMBERS, ids=range(len(NUMBERS)))
async def test_a_number_that_is_none(either: ConversationStore, value: Any) -> None:
    """Ids, positions, versions and limits: refused by name, without writing a huge one out."""
    uow = either.unit_of_work()
    calls: dict[str, Callable[[], Any]] = {
        "conversation_id": lambda: get_conversation(uow, conversation_id=value),
        "message_id": lambda: redact_message(uow, message_id=value),
        "position": lambda: messages_after(uow, conversation_id=1, position=value),
        "limit": lambda: latest_messages(uow, conversation_id=1, limit=value),
    }
    if value is not None:
        calls["before"] = lambda: latest_messages(uow, conversation_id=1, before=value)
        calls["expected_version"] = lambda: close_conversation(
            uow, conversation_id=1, expected_version=value
        )
        calls["timeout"] = lambda: get_conversation(
            either.unit_of_work(timeout=value), conversation_id=1
        )
    for field, call in calls.items():
        with pytest.raises(InvalidInput) as caught:
            await call()
        assert caught.value.field == field
        assert len(str(caught.value)) < 200


@pytest.mark.parametrize("limit", [0, -1, 1001, 10**12, True])
async def test_the_size_of_a_page(either: ConversationStore, limit: int) -> None:
    """1..1000, whatever is listed."""
    uow = either.unit_of_work()
    for call in (
        lambda: list_conversations(uow, user_id="u", limit=limit),
        lambda: latest_messages(uow, conversation_id=1, limit=limit),
        lambda: messages_after(uow, conversation_id=1, position=0, limit=limit),
    ):
        with pytest.raises(InvalidLimit, match=r"1\.\.1000"):
            await call()


# Records ----------------------------------------------------------------------------------------


def recorded(**values: Any) -> Any:
    """Return a record."""
    said = [{"role": "user", "content": "x"}]
    return {"user_id": "u", "session_id": "s", "messages": said} | values


class Mutating(dict[str, Any]):
    """A message that says another thing each time it is asked."""

    asked = 0

    def __getitem__(self, key: str) -> Any:
        Mutating.asked += 1
        return "user" if key == "role" else "x" * Mutating.asked


def said(**values: Any) -> Any:
    """Return a record with one message."""
    return recorded(messages=[{"role": "user", "content": "x"} | values])


RECORDS: Final[dict[str, Callable[[], Any]]] = {
    "nothing": lambda: None,
    "number": lambda: HUGE,
    "text": lambda: "{}",
    "raising": Raising,
    "endless": lambda: EndlessObject(lambda _: "user_id"),
    "endless fields": lambda: EndlessObject(str),
    "million fields": million_keys,
    "huge field": lambda: recorded() | {HUGE: 1},
    "lying field": lambda: recorded() | {LyingText("more"): 1},
    "endless messages": lambda: recorded(messages=EndlessList()),
    "raising messages": lambda: recorded(messages=RaisingList([1])),
    "endless message": lambda: recorded(messages=[EndlessObject(lambda _: "role")]),
    "million fields in a message": lambda: said(**million_keys()),
    "raising message": lambda: recorded(messages=[Raising(role="user", content="x")]),
    "messages of another type": lambda: recorded(messages={"role": "user"}),
    "deep content": lambda: said(content=nested(as_list=True)),
    "huge position": lambda: said(position=HUGE),
    "lying position": lambda: said(position=LyingInteger(7)),
    "raising position": lambda: said(position=Raising()),
    "long content": lambda: said(content="x" * 10_000_001),
    "number as content": lambda: said(content=5),
    "list as role": lambda: said(role=["user"]),
    "long time": lambda: said(timestamp="2020-01-01T00:00:00Z" * 100_000),
    "number as time": lambda: said(timestamp=HUGE),
    "time without an offset": lambda: said(timestamp=datetime(2020, 1, 1)),  # noqa: DTZ001
    "time before time": lambda: said(timestamp="0001-01-01T00:00:00+23:59"),
    "deep status": lambda: recorded(status=nested(as_list=True)),
    "raising status": lambda: recorded(status=Raising()),
    "raising user": lambda: recorded(user_id=Raising()),
    "long user": lambda: recorded(user_id="x" * 10_000_000),
    "surrogate session": lambda: recorded(session_id="\ud800"),
    "NUL": lambda: said(content="a\0"),
}


@pytest.mark.parametrize("name", RECORDS)
async def test_a_hostile_record(either: ConversationStore, name: str) -> None:
    """It is refused as record 2 of the stream, by the name of its field; nothing is stored."""
    uow = either.unit_of_work()
    with pytest.raises(InvalidRecord) as caught:
        await import_conversations(uow, records=[recorded(session_id="1"), RECORDS[name]()])
    assert caught.value.record == 2
    assert len(str(caught.value)) < 600
    assert SECRET not in str(caught.value)
    assert await count(either) == 0


async def test_a_record_is_read_once(either: ConversationStore) -> None:
    """What a message says when it is read is what is stored, whatever it says later."""
    message = Mutating(role="user", content="first")
    for number, one in enumerate((message, MappingProxyType(message))):
        await import_conversations(
            either.unit_of_work(), records=[recorded(session_id=f"{number}", messages=[one])]
        )
    page = await list_conversations(either.unit_of_work(), user_id="u")
    assert [one.message_count for one in page.conversations] == [1, 1]


@pytest.mark.parametrize("records", [None, 5, object()])
async def test_what_is_no_stream_of_records(either: ConversationStore, records: Any) -> None:
    """It is refused by name."""
    with pytest.raises(InvalidConversation) as caught:
        await import_conversations(either.unit_of_work(), records=records)
    assert caught.value.field == "records"


@pytest.mark.parametrize("what", ["content", "slots"])
def test_a_record_of_more_than_a_hundred_megabytes(what: str) -> None:
    """All that its messages say counts; no more of it is read than that."""
    message = said(content="x" * 9_999_999)["messages"][0]
    if what == "slots":
        message = {"role": "user", "content": "", "slots": MEGABYTE}
    messages = [message] * 200 + [None]
    with pytest.raises(InvalidRecord, match="100000000 bytes") as caught:
        record.check_record(recorded(messages=messages), 1)
    assert caught.value.field == "messages"


def test_a_record_of_too_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is refused at the first one too many."""
    monkeypatch.setattr(record, "MAX_RECORD_MESSAGES", 1000)
    monkeypatch.setattr(imported, "MAX_PLAIN_MESSAGES", 500)
    [message] = recorded()["messages"]
    assert len(record.check_record(recorded(messages=[message] * 1000), 1).messages) == 1000
    with pytest.raises(InvalidRecord, match="at most 1000"):
        record.check_record(recorded(messages=[message] * 1001), 1)
    with pytest.raises(InvalidRecord, match="at most 1000"):
        record.check_record(recorded(messages=EndlessMessages(message)), 1)


class EndlessMessages(EndlessList):
    """The same message without end."""

    def __init__(self, message: Any) -> None:
        super().__init__()
        self._message = message

    def __iter__(self) -> Iterator[Any]:
        return iter(lambda: self._message, None)


async def test_an_endless_import_reads_a_batch_ahead(either: ConversationStore) -> None:
    """Records without end are stored batch by batch; what is in memory is two batches at most."""
    read, stored = 0, 0

    def stream() -> Iterator[Any]:
        nonlocal read
        while True:
            read += 1
            assert read <= stored + 2 * transfer.BATCH_CONVERSATIONS + 1
            yield recorded(session_id=f"{read}")

    def progress(receipt: Any) -> None:
        nonlocal stored
        stored = receipt.conversations
        if stored >= 3000:
            raise HostError

    with pytest.raises(HostError):
        await import_conversations(either.unit_of_work(), records=stream(), progress=progress)
    assert stored == 3000


@pytest.mark.parametrize("kind", ["real", "shared", "unusual"])
async def test_a_batch_is_bounded_by_what_its_objects_come_to(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Slots and metadata count as content does, also where one part stands in them many times."""
    monkeypatch.setattr(transfer, "BATCH_CHARACTERS", 400_000)
    monkeypatch.setattr(transfer, "MOST_CHARACTERS", 800_000)
    shared: Any = {"a": ["x" * 1000] * 100}
    values: dict[str, Callable[[int], Mapping[str, Any]]] = {
        "real": lambda number: {"a": "x" * 100_000 + str(number)},
        "shared": lambda _: shared,
        "unusual": lambda _: MappingProxyType(shared),
    }
    batches: list[int] = []
    receipt = await import_conversations(
        ConversationStore.in_memory().unit_of_work(),
        records=[
            recorded(session_id=f"{number}", metadata=values[kind](number)) for number in range(40)
        ],
        progress=lambda so_far: batches.append(so_far.conversations),
    )
    sizes = [after - before for before, after in zip([0, *batches], batches, strict=False)]
    assert receipt.conversations == sum(sizes) == 40
    assert max(sizes) <= 9


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
def test_a_line_without_end(
    monkeypatch: pytest.MonkeyPatch, pack: Callable[[bytes], bytes]
) -> None:
    """A file is read a line at a time, and no more of a line than a record may have."""
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 1000)
    first = b'{"user_id":"u"}' + b" " * 984 + b"\n"
    raw = io.BufferedReader(io.BytesIO(pack(first + b"x" * 30_000_000)))
    reader = json_lines.RecordReader(raw, None)
    with little_memory(), pytest.raises(InvalidRecord, match="more than 1000 bytes") as caught:
        list(reader)
    assert (caught.value.record, reader.line) == (2, 2)


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 1_000_000])
def test_a_line_that_nests_too_deep(line: bytes) -> None:
    """It is a malformed record, as a number that Python does not read is."""
    raw = io.BufferedReader(io.BytesIO(line))
    with pytest.raises(InvalidRecord):
        list(json_lines.RecordReader(raw, None))


# Memory of a whole process ----------------------------------------------------------------------


LARGEST_TURN: Final = """
import asyncio, resource, sys
from conversation_store import ConversationStore, MessageDraft, append_messages, start_conversation

async def main():
    async with ConversationStore.in_memory() as store:
        uow = store.unit_of_work()
        chat, _ = await start_conversation(uow, user_id="u", session_id="s")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        drafts = [MessageDraft(role="user", content=chr(97 + n) * 10_000_000) for n in range(10)]
        for request_id in (None, "r"):
            await append_messages(
                uow, conversation_id=chat.id, drafts=drafts, request_id=request_id
            )
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

asyncio.run(main())
"""


def test_the_largest_turn_takes_a_few_times_its_size() -> None:
    """100 MB in ten messages: with the drafts, their digest and what is stored, under 800 MB."""
    ran = subprocess.run(
        [sys.executable, "-c", LARGEST_TURN], capture_output=True, text=True, check=True
    )
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(ran.stdout) * unit < 800_000_000
