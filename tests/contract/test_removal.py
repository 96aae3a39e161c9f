"""Removing for good: a conversation, a user, what has been inactive; in batches, with receipts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from typing import Any

import pytest
from server_waits import is_waiting
from store_fixtures import draft, turn

from conversation_store import (
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStore,
    ConversationStoreError,
    ErasureReceipt,
    InvalidConversation,
    InvalidTransition,
    NewConversation,
    RemovalCondition,
    Status,
    StoreTimeout,
    UnitOfWorkMisuse,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    erase_user,
    export_conversations,
    find_conversation,
    get_conversation,
    get_or_start_conversation,
    import_conversations,
    list_conversations,
    messages_after,
    purge_conversations,
    reopen_conversation,
    start_conversation,
    update_conversation,
)

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
"""When imported conversations were active last."""
CUT = datetime(2010, 1, 1, tzinfo=UTC)
"""What was active before is to be purged."""
AHEAD = timezone(timedelta(hours=23, microseconds=1))
"""A zone that PostgreSQL does not take."""
MOST_MESSAGES = 6
MOST_CONVERSATIONS = 3
MOST_LOOKED_AT = 4


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make batches so small that a few conversations need several."""
    # The adapters first: one that is loaded now takes the sizes of the domain as they are.
    for module in ("adapters.postgres", "adapters.memory", "domain"):
        place = f"conversation_store.{module}.removal"
        monkeypatch.setattr(f"{place}.BATCH_MESSAGES", MOST_MESSAGES)
        monkeypatch.setattr(f"{place}.BATCH_CONVERSATIONS", MOST_CONVERSATIONS)
        monkeypatch.setattr(f"{place}.BATCH_LOOKED_AT", MOST_LOOKED_AT)


def digest(*went: tuple[int, int], parts: Iterable[tuple[int, int]] = ()) -> str:
    """Compute the digest of a receipt as its description says."""
    total = 0
    for number, more in ((went, 1), (parts, 0)):
        for conversation_id, messages in number:
            hashed = hashlib.sha256(str(conversation_id).encode()).digest()
            total += int.from_bytes(hashed) * (messages + more)
    return f"{total % 2**256:064x}"


async def start(store: Any, session: str, messages: int = 0, user: str = "u") -> int:
    """Start a conversation with so many messages."""
    conversation, _ = await start_conversation(
        store.unit_of_work(),
        user_id=user,
        session_id=session,
        drafts=[draft(f"{session} {number}") for number in range(1, messages + 1)],
    )
    return conversation.id


KEPT_SOURCES = [("web", "web"), ("nowhere", None), ("alike", "Phone"), ("longer", "phones")]


async def import_old(store: Any, session: str, messages: int = 1, **values: Any) -> int:
    """Import a conversation that has been inactive for long."""
    record: Any = {
        "user_id": "u",
        "session_id": session,
        "start_time": LONG_AGO.isoformat(),
        "last_activity": LONG_AGO.isoformat(),
        "messages": [{"role": "user", "content": "x"}] * messages,
    }
    uow = store.unit_of_work()
    await import_conversations(uow, records=[record | values])
    found = await find_conversation(uow, user_id=values.get("user_id", "u"), session_id=session)
    assert found is not None
    return found.id


async def sessions(store: Any, user: str = "u") -> list[str]:
    """Return the sessions that a user has."""
    page = await list_conversations(store.unit_of_work(), user_id=user, limit=1000)
    return sorted(found.session_id for found in page.conversations)


async def is_gap_free(store: Any, conversation_id: int) -> bool:
    """Whether what is left of a conversation is as many messages as it says, from 1 on."""
    uow = store.unit_of_work()
    found = await get_conversation(uow, conversation_id=conversation_id)
    messages = await messages_after(uow, conversation_id=conversation_id, position=0, limit=1000)
    return [message.position for message in messages] == list(range(1, found.message_count + 1))


def counts(receipt: ErasureReceipt) -> tuple[int, int]:
    """Return what a receipt counts."""
    return receipt.conversations, receipt.messages


# One conversation ---------------------------------------------------------------------------------


async def test_a_deletion_gives_a_receipt(store: Any) -> None:
    """It counts, knows when, and names nothing: neither what was said, nor the user."""
    conversation = await start(store, "secret session", 2, user="secret user")
    other = await start(store, "other", 1)
    receipt = await delete_conversation(store.unit_of_work(), conversation_id=conversation)
    assert counts(receipt) == (1, 2)
    assert receipt.digest == digest((conversation, 2))
    assert receipt.started_at <= receipt.finished_at
    assert (receipt.started_at.tzinfo, receipt.finished_at.tzinfo) == (UTC, UTC)
    assert "secret" not in repr(receipt)
    assert await sessions(store, "secret user") == []
    again = await delete_conversation(store.unit_of_work(), conversation_id=conversation)
    assert (counts(again), again.digest) == ((0, 0), "0" * 64)
    assert await is_gap_free(store, other)


@pytest.mark.usefixtures("small_batches")
async def test_a_long_conversation_loses_its_newest_messages_first(store: Any) -> None:
    """What is left after each batch has no gap, is counted, and accepts no messages."""
    conversation = await start(store, "s", 2 * MOST_MESSAGES + 3)
    before = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    left: list[int] = []
    while True:
        async with store.unit_of_work() as uow:
            pending = uow.conversations.remove_part(conversation)
        batch = await pending
        if not batch.left:
            break
        assert (batch.removed, batch.trimmed) == ([], [(conversation, MOST_MESSAGES)])
        now = await get_conversation(store.unit_of_work(), conversation_id=conversation)
        left.append(now.message_count)
        assert now.status is Status.ARCHIVED
        assert now.version == before.version + len(left)
        assert now.last_activity == before.last_activity
        assert await is_gap_free(store, conversation)
    assert left == [MOST_MESSAGES + 3, 3]
    assert batch.removed == [(conversation, 3)]


@pytest.mark.usefixtures("small_batches")
async def test_a_long_conversation_is_deleted_by_one_call(store: Any) -> None:
    """Its receipt is that of all batches; each was told."""
    conversation = await start(store, "s", 2 * MOST_MESSAGES + 3)
    told: list[ErasureReceipt] = []
    receipt = await delete_conversation(
        store.unit_of_work(), conversation_id=conversation, progress=told.append
    )
    assert counts(receipt) == (1, 2 * MOST_MESSAGES + 3)
    assert receipt.digest == digest((conversation, 2 * MOST_MESSAGES + 3))
    assert [counts(each) for each in told] == [
        (0, MOST_MESSAGES),
        (0, 2 * MOST_MESSAGES),
        (1, 2 * MOST_MESSAGES + 3),
    ]
    assert told[-1] == receipt
    assert await sessions(store) == []


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("status", list(Status))
async def test_what_is_trimmed_is_archived(store: Any, status: Status) -> None:
    """Whatever it was: a closed one could be reopened with its end missing."""
    old = await import_old(store, "s", 2 * MOST_MESSAGES + 1, status=status.value)
    for messages in (MOST_MESSAGES + 1, 1):
        async with store.unit_of_work() as uow:
            uow.conversations.remove_part(old)
        found = await get_conversation(store.unit_of_work(), conversation_id=old)
        assert (found.status, found.message_count) == (Status.ARCHIVED, messages)
    with pytest.raises(InvalidTransition):
        await reopen_conversation(store.unit_of_work(), conversation_id=old)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("status", [Status.ACTIVE, Status.CLOSED])
async def test_a_purge_by_status_that_was_interrupted(store: Any, status: Status) -> None:
    """It goes by what is left of a long conversation; one of what is archived takes it."""
    old = await import_old(store, "s", 2 * MOST_MESSAGES + 1, status=status.value)
    only = RemovalCondition(inactive_since=CUT, status=status)
    async with store.unit_of_work() as uow:
        uow.conversations.remove_part(old, only)
    for again, gone in ((status, 0), (Status.ARCHIVED, 1)):
        receipt = await purge_conversations(store.unit_of_work(), inactive_since=CUT, status=again)
        assert receipt.conversations == gone


@pytest.mark.usefixtures("small_batches")
async def test_what_is_left_of_a_conversation_works_as_any_other(store: Any) -> None:
    """Reopened it goes on where it ends, and what was said by a request before is forgotten."""
    conversation = await start(store, "s", 3)
    uow = store.unit_of_work()
    for request_id, said in (("early", 1), ("late", 6)):
        await append_messages(
            uow,
            conversation_id=conversation,
            drafts=[draft(request_id)] * said,
            request_id=request_id,
        )
    async with uow:
        uow.conversations.remove_part(conversation)
    await close_conversation(uow, conversation_id=conversation)
    await reopen_conversation(uow, conversation_id=conversation)
    for request_id, said, position in (("early", 1, 4), ("late", 6, 5)):
        messages = await append_messages(
            uow,
            conversation_id=conversation,
            drafts=[draft(request_id)] * said,
            request_id=request_id,
        )
        assert messages[0].position == position
    assert await is_gap_free(store, conversation)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("left_of_turn", range(4))
async def test_the_turn_of_a_request_goes_whole(store: Any, left_of_turn: int) -> None:
    """What is left of it would be the answer to that request, and not what it stored."""
    conversation = await start(store, "s", 2)
    uow = store.unit_of_work()
    drafts = [*turn(1), draft("third")]

    async def append() -> Any:
        return await append_messages(
            uow, conversation_id=conversation, drafts=drafts, request_id="r"
        )

    before = await append()
    after = MOST_MESSAGES - len(drafts) + left_of_turn
    await append_messages(uow, conversation_id=conversation, drafts=[draft("x")] * after)
    async with uow:
        uow.conversations.remove_part(conversation)
    found = await get_conversation(uow, conversation_id=conversation)
    assert found.message_count == (5 if left_of_turn == len(drafts) else 2)
    assert await is_gap_free(store, conversation)
    if found.message_count == 5:
        assert await append() == before
    else:
        with pytest.raises(ConversationNotAcceptingMessages):
            await append()


@pytest.mark.usefixtures("small_batches")
async def test_a_part_that_is_rolled_back_is_there_again(store: Any) -> None:
    """Inside a block nothing is gone before it is left."""
    conversation = await start(store, "s", 2 * MOST_MESSAGES)
    uow = store.unit_of_work()
    async with uow:
        receipt = await delete_conversation(uow, conversation_id=conversation)
        with pytest.raises(ConversationNotFound):
            await uow.conversations.get(conversation)
        await uow.rollback()
    assert counts(receipt) == (1, 2 * MOST_MESSAGES)
    found = await get_conversation(uow, conversation_id=conversation)
    assert (found.status, found.version) == (Status.ACTIVE, 1)
    assert await is_gap_free(store, conversation)
    async with uow:
        await uow.conversations.remove_part(conversation)
        uow.conversations.set_status(conversation, Status.CLOSED)
        uow.conversations.set_status(conversation, Status.ACTIVE)
        await uow.messages.append(conversation, turn(1))
        await uow.rollback()
    messages = await messages_after(uow, conversation_id=conversation, position=0)
    assert [message.content for message in messages] == [
        f"s {number}" for number in range(1, 2 * MOST_MESSAGES + 1)
    ]


@pytest.mark.usefixtures("small_batches")
async def test_a_deletion_that_waited_takes_along_what_came_meanwhile(
    shared_store: ConversationStore,
) -> None:
    """What was appended while it waited for the conversation is gone too, and counted."""
    conversation = await start(shared_store, "s", MOST_MESSAGES)
    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(conversation, turn(1))
        deleting = asyncio.create_task(
            delete_conversation(shared_store.unit_of_work(), conversation_id=conversation)
        )
        assert await is_waiting(shared_store, deleting)
    receipt = await deleting
    assert counts(receipt) == (1, MOST_MESSAGES + 2)
    assert receipt.digest == digest((conversation, MOST_MESSAGES + 2))


# A user -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_batches")
async def test_an_erasure_removes_all_batch_by_batch(store: Any) -> None:
    """Short and long ones, of every status; nothing of others."""
    lengths = [0, 1, 2, 3, MOST_MESSAGES, MOST_MESSAGES + 1, 2 * MOST_MESSAGES + 1, 5]
    ids = [await start(store, f"s-{n}", length) for n, length in enumerate(lengths)]
    await close_conversation(store.unit_of_work(), conversation_id=ids[1])
    await archive_conversation(store.unit_of_work(), conversation_id=ids[5])
    other = await start(store, "s-0", 3, user="v")
    told: list[ErasureReceipt] = []
    receipt = await erase_user(store.unit_of_work(), user_id="u", progress=told.append)
    assert counts(receipt) == (len(ids), sum(lengths))
    assert receipt.digest == digest(*zip(ids, lengths, strict=True))
    assert told[-1] == receipt
    assert [each.messages for each in told] == sorted(each.messages for each in told)
    steps = [after.messages - before.messages for before, after in pairwise(told)]
    assert max(steps) <= MOST_MESSAGES
    assert await sessions(store) == []
    assert await is_gap_free(store, other)
    again = await erase_user(store.unit_of_work(), user_id="u")
    assert counts(again) == (0, 0)


@pytest.mark.usefixtures("small_batches")
async def test_a_full_batch_does_not_know_whether_there_is_more(store: Any) -> None:
    """It tells where it ended; one that is not full has met the end."""
    uow = store.unit_of_work()
    for number in range(MOST_CONVERSATIONS + 1):
        await start(store, f"s-{number}")
    async with uow:
        batch = await uow.conversations.remove_some(RemovalCondition(user_id="u"))
        assert batch.next_place == "s-2"
        batch = await uow.conversations.remove_some(RemovalCondition(user_id="u"), "s-2")
        assert (len(batch.removed), batch.next_place) == (1, None)
    for number in range(MOST_CONVERSATIONS):
        await start(store, f"s-{number}")
    async with uow:
        batch = await uow.conversations.remove_some(RemovalCondition(user_id="u"))
        assert batch.next_place == "s-2"


@pytest.mark.usefixtures("small_batches")
async def test_the_twin_keeps_nothing_of_an_erased_user() -> None:
    """Not even the places of messages, of conversations that were trimmed."""
    store = ConversationStore.in_memory()
    for number in range(MOST_CONVERSATIONS + 1):
        await start(store, f"s-{number}", number * MOST_MESSAGES)
    await erase_user(store.unit_of_work(), user_id="u")
    database: Any = store._adapter._database  # type: ignore[attr-defined]
    kept = (database.conversations, database.sessions, database.of_user, database.message_places)
    assert kept == ({}, {}, {}, {})


@pytest.mark.usefixtures("small_batches")
async def test_receipts_add_up(store: Any) -> None:
    """Those of a removal in two calls are that of one."""
    ids = [await start(store, f"s-{number}", 2 * MOST_MESSAGES + number) for number in range(2)]
    async with store.unit_of_work() as uow:
        part = await uow.conversations.remove_part(ids[1])
    rest = await erase_user(store.unit_of_work(), user_id="u")
    receipt = part.receipt() + rest
    assert counts(receipt) == (2, 4 * MOST_MESSAGES + 1)
    assert receipt.digest == digest(*((each, 2 * MOST_MESSAGES + n) for n, each in enumerate(ids)))
    assert (receipt.started_at, receipt.finished_at) == (part.started_at, rest.finished_at)


@pytest.mark.usefixtures("small_batches")
async def test_an_erasure_in_a_block_is_stored_with_the_rest_of_it(store: Any) -> None:
    """All batches, or none."""
    for number in range(MOST_CONVERSATIONS + 2):
        await start(store, f"s-{number}", MOST_MESSAGES + number)
    before = await sessions(store)
    uow = store.unit_of_work()
    with pytest.raises(ConversationNotFound):
        async with uow:
            receipt = await erase_user(uow, user_id="u")
            uow.messages.append(4_000_000_000, turn(1))
    assert receipt.conversations == len(before)
    assert await sessions(store) == before
    async with uow:
        receipt = await erase_user(uow, user_id="u")
        uow.conversations.add(NewConversation(user_id="u", session_id="new"))
    assert receipt.conversations == len(before)
    assert await sessions(store) == ["new"]


@pytest.mark.usefixtures("small_batches")
async def test_what_the_user_starts_meanwhile_is_erased_too(
    shared_store: ConversationStore,
) -> None:
    """Before the place where the erasure is, and behind it."""
    held, *_ = [await start(shared_store, f"m-{n}", 1) for n in range(MOST_CONVERSATIONS + 2)]
    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(held, turn(1))
        erasing = asyncio.create_task(erase_user(shared_store.unit_of_work(), user_id="u"))
        assert await is_waiting(shared_store, erasing)
        for session in ("a", "z"):
            await start(shared_store, session, 1)
    assert counts(await erasing) == (MOST_CONVERSATIONS + 4, MOST_CONVERSATIONS + 6)
    assert await sessions(shared_store) == []


@pytest.mark.usefixtures("small_batches")
async def test_an_erasure_waits_for_one_conversation_at_a_time_and_holds_no_other(
    shared_store: ConversationStore,
) -> None:
    """What is free goes first, whatever its place; what others hold is waited for alone."""
    held, free = [await start(shared_store, session, 2) for session in ("a", "b")]
    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(held, turn(1))
        erasing = asyncio.create_task(erase_user(shared_store.unit_of_work(), user_id="u"))
        assert await is_waiting(shared_store, erasing)
        assert await sessions(shared_store) == ["a"]
        async with asyncio.timeout(10):  # who waits for a lock has an error before
            await get_or_start_conversation(
                shared_store.unit_of_work(), user_id="u", session_id="b"
            )
        with pytest.raises(ConversationNotFound):
            await append_messages(shared_store.unit_of_work(), conversation_id=free, drafts=turn(1))
    receipt = await erasing
    assert counts(receipt) == (3, 6)
    assert await sessions(shared_store) == []


async def test_a_removal_that_fails_says_what_it_had_removed(
    shared_store: ConversationStore, request: pytest.FixtureRequest
) -> None:
    """`erased` of the error is the receipt so far; calling again completes it."""
    held, free = [await start(shared_store, session, 2) for session in ("a", "b")]
    errors: list[ConversationStoreError] = []
    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(held, turn(1))
        with pytest.raises(StoreTimeout) as caught:
            await erase_user(shared_store.unit_of_work(user_id="u", timeout=0.3))
        errors.append(caught.value)
        with pytest.raises(StoreTimeout) as caught:
            await delete_conversation(shared_store.unit_of_work(timeout=0.3), conversation_id=held)
        errors.append(caught.value)
    erased = errors[0].erased
    assert erased is not None
    assert (counts(erased), erased.digest) == ((1, 2), digest((free, 2)))
    assert errors[1].erased is None
    receipt = erased + await erase_user(shared_store.unit_of_work(), user_id="u")
    assert (counts(receipt), receipt.digest) == ((2, 6), digest((free, 2), (held, 4)))


@pytest.mark.usefixtures("small_batches")
async def test_removals_of_the_same_user_do_not_stand_in_each_others_way(
    shared_store: ConversationStore,
) -> None:
    """Several erasures at once, and deletions: each conversation is counted once."""
    ids = [
        await start(shared_store, f"s-{number}", number % (2 * MOST_MESSAGES))
        for number in range(4 * MOST_CONVERSATIONS)
    ]
    removals = [erase_user(shared_store.unit_of_work(), user_id="u") for _ in range(3)]
    removals += [
        delete_conversation(shared_store.unit_of_work(), conversation_id=each)
        for each in reversed(ids)
    ]
    receipts = await asyncio.gather(*removals)
    total = receipts[0]
    for receipt in receipts[1:]:
        total += receipt
    went = [(each, number % (2 * MOST_MESSAGES)) for number, each in enumerate(ids)]
    assert counts(total) == (len(ids), sum(messages for _, messages in went))
    assert total.digest == digest(*went)


@pytest.mark.usefixtures("small_batches")
async def test_an_erasure_beside_writes_of_the_same_user(
    shared_store: ConversationStore,
) -> None:
    """Who writes meanwhile stores whole turns or learns that there is nothing to write to."""
    ids = [
        await start(shared_store, f"s-{number}", 2 * MOST_MESSAGES)
        for number in range(MOST_CONVERSATIONS + 1)
    ]
    refused = 0

    async def write() -> None:
        nonlocal refused
        for each in ids:
            try:
                await append_messages(
                    shared_store.unit_of_work(), conversation_id=each, drafts=turn(1)
                )
            except ConversationStoreError:
                refused += 1
            await asyncio.sleep(0)

    receipt, *_ = await asyncio.gather(
        erase_user(shared_store.unit_of_work(), user_id="u"), write(), write()
    )
    assert receipt.conversations == len(ids)
    assert receipt.messages == 2 * MOST_MESSAGES * len(ids) + 2 * (2 * len(ids) - refused)
    assert await sessions(shared_store) == []


async def test_an_erasure_of_a_scoped_unit_is_of_its_user(store: Any) -> None:
    """Of no other: naming one is misuse, and nothing of others is there to be removed."""
    own, other = await start(store, "s", 1), await start(store, "s", 1, user="v")
    uow = store.unit_of_work(user_id="u")
    with pytest.raises(UnitOfWorkMisuse):
        await erase_user(uow, user_id="v")
    with pytest.raises(UnitOfWorkMisuse):
        await purge_conversations(uow, inactive_since=CUT, user_id="v")
    assert counts(await delete_conversation(uow, conversation_id=other)) == (0, 0)
    with pytest.raises(InvalidConversation, match="user_id"):
        await erase_user(store.unit_of_work())
    receipt = await erase_user(uow)
    assert (counts(receipt), receipt.digest) == ((1, 1), digest((own, 1)))
    assert await is_gap_free(store, other)


# What has been inactive ---------------------------------------------------------------------------


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("user_id", [None, "u"])
async def test_a_purge_removes_what_was_not_active_since(store: Any, user_id: str | None) -> None:
    """However much is looked at in between; a dry run tells the same and removes nothing."""
    gone: list[tuple[int, int]] = []
    kept: list[str] = []
    for number in range(3 * MOST_LOOKED_AT):
        if number % 3 == 0 and not 2 < number < 2 * MOST_LOOKED_AT:
            messages = number % (2 * MOST_MESSAGES)
            gone.append((await import_old(store, f"s-{number}", messages), messages))
        else:
            await start(store, f"s-{number}", 1)
            kept.append(f"s-{number}")
    uow = store.unit_of_work(user_id=user_id)
    dry = await purge_conversations(uow, inactive_since=CUT, dry_run=True)
    assert len(await sessions(store)) == len(gone) + len(kept)
    receipt = await purge_conversations(uow, inactive_since=CUT)
    assert await sessions(store) == sorted(kept)
    for each in (dry, receipt):
        assert counts(each) == (len(gone), sum(messages for _, messages in gone))
        assert each.digest == digest(*gone)
    again = await purge_conversations(uow, inactive_since=CUT)
    assert counts(again) == (0, 0)


async def test_a_purge_goes_by_status_time_and_user(store: Any) -> None:
    """All that is given has to be met; a conversation active at that very time stays."""
    for number, status in enumerate(("active", "closed", "archived")):
        await import_old(store, f"s-{number}", status=status)
    await import_old(store, "s-1", status="closed", user_id="v")
    uow = store.unit_of_work()
    at_that_time = await purge_conversations(uow, inactive_since=LONG_AGO)
    assert counts(at_that_time) == (0, 0)
    for status in ("closed", Status.ARCHIVED):
        receipt = await purge_conversations(
            uow,
            inactive_since=LONG_AGO + timedelta(microseconds=1),
            status=status,
            user_id="u",
        )
        assert counts(receipt) == (1, 1)
    assert await sessions(store) == ["s-0"]
    assert await sessions(store, "v") == ["s-1"]
    last = await purge_conversations(uow, inactive_since=CUT)
    assert counts(last) == (2, 2)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("user_id", [None, "u"])
async def test_a_purge_goes_by_source(store: Any, user_id: str | None) -> None:
    """What came from elsewhere, or from nobody knows where, stays, be it as old."""
    kept = [await import_old(store, session, source=source) for session, source in KEPT_SOURCES]
    gone = [await import_old(store, f"gone {number}", source="phone") for number in range(2)]
    long = await import_old(store, "long", 2 * MOST_MESSAGES + 1, source="phone", status="closed")
    removes: Any = {"inactive_since": CUT, "source": "phone", "user_id": user_id}
    dry = await purge_conversations(store.unit_of_work(), **removes, dry_run=True)
    by_status = await purge_conversations(store.unit_of_work(), **removes, status="archived")
    receipt = await purge_conversations(store.unit_of_work(), **removes)
    assert counts(by_status) == (0, 0)
    assert counts(dry) == counts(receipt) == (len(gone) + 1, len(gone) + 2 * MOST_MESSAGES + 1)
    assert sorted(await sessions(store)) == sorted(session for session, _ in KEPT_SOURCES)
    assert long not in kept


@pytest.mark.usefixtures("small_batches")
async def test_a_purge_by_source_goes_on_after_an_interruption(store: Any) -> None:
    """What is left of a long conversation still came from where it came from."""
    old = await import_old(store, "s", 2 * MOST_MESSAGES + 1, source="phone")
    only = RemovalCondition(inactive_since=CUT, source="phone")
    async with store.unit_of_work() as uow:
        uow.conversations.remove_part(old, only)
    elsewhere = await purge_conversations(store.unit_of_work(), inactive_since=CUT, source="web")
    receipt = await purge_conversations(store.unit_of_work(), inactive_since=CUT, source="phone")
    assert counts(elsewhere) == (0, 0)
    assert counts(receipt) == (1, MOST_MESSAGES + 1)


async def test_a_purge_spares_what_became_active_meanwhile(
    shared_store: ConversationStore,
) -> None:
    """Its condition is checked again under the lock."""
    busy, quiet = [await import_old(shared_store, session) for session in ("a", "b")]
    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(busy, turn(1))
        purging = asyncio.create_task(
            purge_conversations(shared_store.unit_of_work(), inactive_since=CUT)
        )
        assert await is_waiting(shared_store, purging)
    receipt = await purging
    assert (counts(receipt), receipt.digest) == ((1, 1), digest((quiet, 1)))
    assert await sessions(shared_store) == ["a"]
    assert await is_gap_free(shared_store, busy)


async def test_a_purge_beside_appends_removes_nothing_that_was_said_before_it(
    shared_store: ConversationStore,
) -> None:
    """An append that was acknowledged is there; one that came too late met no conversation."""
    records: list[Any] = [
        {
            "user_id": "u",
            "session_id": f"s-{number}",
            "start_time": LONG_AGO.isoformat(),
            "last_activity": LONG_AGO.isoformat(),
            "messages": [{"role": "user", "content": "x"}] * 3,
        }
        for number in range(60)
    ]
    await import_conversations(shared_store.unit_of_work(), records=records)
    page = await list_conversations(shared_store.unit_of_work(), user_id="u", limit=100)
    said: set[int] = set()

    async def say(conversation_id: int) -> None:
        with suppress(ConversationNotFound):
            await append_messages(
                shared_store.unit_of_work(), conversation_id=conversation_id, drafts=turn(1)
            )
            said.add(conversation_id)

    purge = purge_conversations(shared_store.unit_of_work(), inactive_since=CUT)
    saying = asyncio.gather(*(say(found.id) for found in page.conversations))
    receipt, _ = await asyncio.gather(purge, saying)
    left = await list_conversations(shared_store.unit_of_work(), user_id="u", limit=100)
    assert {found.id for found in left.conversations} == said
    assert receipt.conversations == len(records) - len(said)


@pytest.mark.usefixtures("small_batches")
async def test_a_purge_spares_a_long_conversation_that_became_active_meanwhile(
    shared_store: ConversationStore,
) -> None:
    """None of its messages is gone."""
    busy = await import_old(shared_store, "a", MOST_MESSAGES + 1)
    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(busy, turn(1))
        purging = asyncio.create_task(
            purge_conversations(shared_store.unit_of_work(), inactive_since=CUT)
        )
        assert await is_waiting(shared_store, purging)
    assert counts(await purging) == (0, 0)
    found = await get_conversation(shared_store.unit_of_work(), conversation_id=busy)
    assert (found.message_count, found.status) == (MOST_MESSAGES + 3, Status.ACTIVE)


@pytest.mark.usefixtures("small_batches")
async def test_a_trimmed_conversation_keeps_no_gap_if_it_grew_meanwhile(
    shared_store: ConversationStore,
) -> None:
    """A batch that waited for an append takes nothing away yet, and keeps all others out."""
    conversation = await start(shared_store, "s", MOST_MESSAGES + 1)

    async def trim() -> Any:
        async with shared_store.unit_of_work() as uow:
            pending = uow.conversations.remove_part(conversation)
        return await pending

    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(conversation, turn(1))
        trimming = asyncio.create_task(trim())
        assert await is_waiting(shared_store, trimming)
    batch = await trimming
    assert (batch.removed, batch.trimmed, batch.left) == ([], [], [conversation])
    assert await is_gap_free(shared_store, conversation)
    found = await get_conversation(shared_store.unit_of_work(), conversation_id=conversation)
    assert (found.message_count, found.status) == (MOST_MESSAGES + 3, Status.ARCHIVED)
    batch = await trim()
    assert batch.trimmed == [(conversation, MOST_MESSAGES)]
    assert await is_gap_free(shared_store, conversation)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("status", ["active", "closed", None])
async def test_a_long_conversation_is_purged_whole(store: Any, status: str | None) -> None:
    """What was begun is gone to its end, although it was archived by then."""
    messages = 3 * MOST_MESSAGES + 1
    old = await import_old(store, "s", messages, status=status or "active")
    receipt = await purge_conversations(store.unit_of_work(), inactive_since=CUT, status=status)
    assert (counts(receipt), receipt.digest) == ((1, messages), digest((old, messages)))
    assert await sessions(store) == []


async def test_a_change_that_is_no_activity_does_not_spare_a_conversation(store: Any) -> None:
    """Its last_activity is what counts."""
    old = await import_old(store, "s")
    await update_conversation(store.unit_of_work(), conversation_id=old, metadata={"a": 1})
    assert counts(await purge_conversations(store.unit_of_work(), inactive_since=CUT)) == (1, 1)


async def test_a_purge_before_and_after_what_a_block_wrote(store: Any) -> None:
    """Inside a block it sees what the block wrote, and a dry run does too."""
    await import_old(store, "s")
    uow = store.unit_of_work()
    async with uow:
        uow.conversations.remove_some(RemovalCondition(inactive_since=CUT))
        assert counts(await purge_conversations(uow, inactive_since=CUT, dry_run=True)) == (0, 0)
        await uow.rollback()
    assert counts(await purge_conversations(uow, inactive_since=CUT, dry_run=True)) == (1, 1)


async def test_what_is_exported_meanwhile_is_whole(store: Any) -> None:
    """An export that began before a removal shows what was there then."""
    await start(store, "s", 3)
    if not isinstance(store, ConversationStore):
        return  # one connection cannot do both
    records = export_conversations(store.unit_of_work())
    exported = [await anext(records)]
    await erase_user(store.unit_of_work(), user_id="u")
    exported += [record async for record in records]
    assert [len(record["messages"]) for record in exported] == [3]


async def test_a_purge_takes_a_time_of_any_zone(store: Any) -> None:
    """Also of one that PostgreSQL does not know."""
    await import_old(store, "s")
    uow = store.unit_of_work()
    assert counts(await purge_conversations(uow, inactive_since=LONG_AGO.astimezone(AHEAD))) == (
        0,
        0,
    )
    assert counts(await purge_conversations(uow, inactive_since=CUT.astimezone(AHEAD))) == (1, 1)


# Bad input ----------------------------------------------------------------------------------------


BAD: list[tuple[dict[str, Any], str]] = [
    ({"inactive_since": datetime(2010, 1, 1)}, "inactive_since"),  # noqa: DTZ001 - on purpose
    ({"inactive_since": "2010-01-01"}, "inactive_since"),
    ({"inactive_since": None}, "inactive_since"),
    ({"inactive_since": datetime.min.replace(tzinfo=AHEAD)}, "inactive_since"),
    ({"inactive_since": CUT, "status": "open"}, "status"),
    ({"inactive_since": CUT, "status": 3}, "status"),
    ({"inactive_since": CUT, "source": ""}, "source"),
    ({"inactive_since": CUT, "source": "\0"}, "source"),
    ({"inactive_since": CUT, "source": "x" * 256}, "source"),
    ({"inactive_since": CUT, "user_id": ""}, "user_id"),
    ({"inactive_since": CUT, "user_id": "\0"}, "user_id"),
]


async def test_a_purge_refuses_what_it_does_not_understand(store: Any) -> None:
    """It names the field, and removes nothing."""
    await import_old(store, "s")
    for values, field in BAD:
        for dry_run in (True, False):
            with pytest.raises(InvalidConversation) as caught:
                await purge_conversations(store.unit_of_work(), dry_run=dry_run, **values)
            assert caught.value.field == field
    assert await sessions(store) == ["s"]


async def test_a_walk_goes_on_only_where_it_was(store: Any) -> None:
    """The place is the one that a batch of the same condition told."""
    bad: list[Any] = ["", "x" * 256, "\0", "s", "-1", str(2**63), 7]
    async with store.unit_of_work() as uow:
        for after in bad:
            with pytest.raises(InvalidConversation, match="after"):
                uow.conversations.remove_some(RemovalCondition(), after)
            with pytest.raises(InvalidConversation, match="after"):
                await uow.conversations.find_removable(RemovalCondition(), after)
