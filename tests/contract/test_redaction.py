"""What redaction promises: the words are gone for good, and all else stays where it was."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from histories import whole_history
from server_waits import is_waiting
from store_fixtures import draft, turn

from conversation_store import (
    Conversation,
    ConversationStore,
    ErasureReceipt,
    InvalidMessage,
    Message,
    MessageNotFound,
    Outcome,
    RequestConflict,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    dump_record,
    export_conversations,
    get_conversation,
    get_message,
    get_or_start_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    messages_after,
    redact_message,
    start_conversation,
)

MARKER = "correct horse battery staple"
"""What nobody may find any more."""


def said(number: int = 1) -> list[Any]:
    """Return three messages that hold the marker wherever a message can."""
    return [
        draft(
            f"{MARKER} {number}-{part}",
            role,
            intent_type=MARKER,
            slots={"a": [MARKER], MARKER: part},
            metadata={"b": MARKER},
        )
        for part, role in enumerate(("user", "assistant", "tool"))
    ]


async def start(store: Any, **values: Any) -> tuple[Conversation, list[Message]]:
    """Start a conversation of three messages."""
    given = {"user_id": "u", "session_id": "s", "drafts": said()} | values
    return await start_conversation(store.unit_of_work(), **given)


async def redact(store: Any, message: Message, **scope: Any) -> Message:
    """Redact a message."""
    return await redact_message(store.unit_of_work(**scope), message_id=message.id)


async def read(store: Any, conversation: Conversation) -> tuple[Conversation, list[Message]]:
    """Read a conversation and its messages."""
    uow = store.unit_of_work()
    found = await get_conversation(uow, conversation_id=conversation.id)
    return found, await latest_messages(uow, conversation_id=conversation.id)


def is_tombstone_of(now: Message, then: Message) -> bool:
    """Whether one is what has to be left of the other."""
    stays = [(m.id, m.conversation_id, m.position, m.role, m.timestamp) for m in (now, then)]
    says = (now.content, now.intent_type, now.slots, now.metadata)
    is_empty = says == ("[redacted]", None, {"redacted": True}, None)
    return stays[0] == stays[1] and is_empty and now.is_redacted


# What it does -----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_tombstone_takes_the_place_of_the_words(store: Any, which: int) -> None:
    """Id, position, role and timestamp stay; content, slots, metadata and intent_type go."""
    conversation, messages = await start(store)
    tombstone = await redact(store, messages[which])
    assert is_tombstone_of(tombstone, messages[which])
    assert not messages[which].is_redacted
    found, history = await read(store, conversation)
    assert [message.position for message in history] == [1, 2, 3]
    assert history == [*messages[:which], tombstone, *messages[which + 1 :]]
    assert await get_message(store.unit_of_work(), message_id=tombstone.id) == tombstone
    assert (found.version, found.message_count) == (2, 3)
    assert found.last_activity == conversation.last_activity


async def test_every_read_shows_the_tombstone(store: Any) -> None:
    """Pages from both ends, before and after a position, and the next append goes on behind it."""
    conversation, messages = await start(store)
    tombstone = await redact(store, messages[2])
    [added] = await append_messages(
        store.unit_of_work(), conversation_id=conversation.id, drafts=[draft("on")]
    )
    assert added.position == 4
    uow, id_ = store.unit_of_work(), conversation.id
    assert await latest_messages(uow, conversation_id=id_, limit=2) == [tombstone, added]
    assert await latest_messages(uow, conversation_id=id_, limit=1, before=4) == [tombstone]
    assert await messages_after(uow, conversation_id=id_, position=2) == [tombstone, added]
    page = await list_conversations(uow, user_id="u")
    assert [one.version for one in page.conversations] == [3]


async def test_done_twice_is_done_once(store: Any) -> None:
    """The second time is success, changes nothing, and moves no version."""
    conversation, messages = await start(store)
    first = await redact(store, messages[0])
    before = await read(store, conversation)
    uow = store.unit_of_work()
    assert await redact_message(uow, message_id=messages[0].id) == first
    assert uow.outcome is Outcome.COMMITTED
    assert await read(store, conversation) == before


@pytest.mark.parametrize(
    "values",
    [
        {"slots": {"redacted": True}, "metadata": {}},
        {"slots": {"redacted": True}, "intent_type": "i"},
        {"slots": {"redacted": 1}},
        {"slots": {"redacted": True, "a": 1}},
        {"slots": {}},
        {},
    ],
)
async def test_what_only_looks_like_a_tombstone_is_redacted(
    store: Any, values: dict[str, Any]
) -> None:
    """Anything else that a message holds is taken from it, and that is a change."""
    conversation, [message] = await start(store, drafts=[draft("[redacted]", **values)])
    assert not message.is_redacted
    assert is_tombstone_of(await redact(store, message), message)
    assert (await read(store, conversation))[0].version == 2


async def test_who_says_what_a_tombstone_says_has_nothing_to_redact(store: Any) -> None:
    """A message of the same content and slots is a tombstone already."""
    conversation, [message] = await start(
        store, drafts=[draft("[redacted]", slots={"redacted": True})]
    )
    assert await redact(store, message) == message
    assert await read(store, conversation) == (conversation, [message])


@pytest.mark.parametrize("end", [close_conversation, archive_conversation])
async def test_it_works_in_a_conversation_of_any_status(store: Any, end: Any) -> None:
    """A closed or archived conversation stays so."""
    conversation, messages = await start(store)
    before = await end(store.unit_of_work(), conversation_id=conversation.id)
    await redact(store, messages[1])
    after, history = await read(store, conversation)
    assert (after.status, after.version) == (before.status, before.version + 1)
    assert [message.is_redacted for message in history] == [False, True, False]


async def test_the_tombstone_shares_nothing_with_its_reader(store: Any) -> None:
    """Who writes into the slots that were returned changes what is his own."""
    conversation, messages = await start(store)
    tombstone = await redact(store, messages[0])
    assert tombstone.slots is not None
    tombstone.slots["words"] = "back"
    _, history = await read(store, conversation)
    assert history[0].slots == {"redacted": True}
    assert is_tombstone_of(await redact(store, messages[1]), messages[1])


# What it refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize("message_id", [0, -1, 4_000_000_000_000, 2**63 - 1])
async def test_an_unknown_message(store: Any, message_id: int) -> None:
    """It is not found, by its id."""
    with pytest.raises(MessageNotFound) as caught:
        await redact_message(store.unit_of_work(), message_id=message_id)
    assert caught.value.message_id == message_id


@pytest.mark.parametrize("message_id", [2**63, -(2**63), True, "1", 1.0, None])
async def test_what_is_no_id(store: Any, message_id: Any) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(InvalidMessage, match="message_id"):
        await redact_message(store.unit_of_work(), message_id=message_id)


async def test_a_message_of_another_user(store: Any) -> None:
    """It does not exist for a unit that acts for one user, and stays as it was."""
    conversation, messages = await start(store, user_id="them")
    for message in messages:
        with pytest.raises(MessageNotFound) as caught:
            await redact(store, message, user_id="u")
        assert caught.value.message_id == message.id
    assert await read(store, conversation) == (conversation, messages)
    assert (await redact(store, messages[0], user_id="them")).is_redacted


async def test_a_message_of_a_conversation_that_is_gone(store: Any) -> None:
    """With its conversation it is gone."""
    conversation, messages = await start(store)
    await delete_conversation(store.unit_of_work(), conversation_id=conversation.id)
    with pytest.raises(MessageNotFound):
        await redact(store, messages[0])


# Units of work ----------------------------------------------------------------------------------


async def test_together_with_other_writes(store: Any) -> None:
    """In one unit: what was appended in it can be redacted in it, and reads see it."""
    conversation, messages = await start(store)
    async with store.unit_of_work() as uow:
        added = await uow.messages.append(conversation.id, said(2))
        uow.messages.redact(messages[0].id)
        pending = uow.messages.redact(added[1].id)
        uow.messages.append(conversation.id, [draft("last")])
        history = await uow.messages.latest(conversation.id)
        assert [message.is_redacted for message in history] == [
            message.position in (1, 5) for message in history
        ]
        assert await pending == history[4] == await uow.messages.get(added[1].id)
        assert (await uow.conversations.get(conversation.id)).version == 5
    found, stored = await read(store, conversation)
    assert (stored, found.version, found.message_count) == (history, 5, 7)


async def test_several_in_one_flush(store: Any) -> None:
    """All messages of a turn, registered one after the other."""
    conversation, messages = await start(store)
    async with store.unit_of_work() as uow:
        pendings = [uow.messages.redact(message.id) for message in messages]
    assert all([(await pending).is_redacted for pending in pendings])
    assert (await read(store, conversation))[0].version == 4


async def test_rolled_back_the_words_are_there(store: Any) -> None:
    """As if nothing had been: words, version, and the request that stored them."""
    conversation, messages = await start(store, request_id="r")
    async with store.unit_of_work() as uow:
        uow.messages.append(conversation.id, turn(1))
        assert (await uow.messages.redact(messages[1].id)).is_redacted
        await uow.rollback()
    assert await read(store, conversation) == (conversation, messages)
    assert (await start(store, request_id="r"))[1] == messages


async def test_an_inner_block_is_undone_alone(store: Any) -> None:
    """The redaction of a block that failed is undone, that of the outer one is kept."""
    conversation, messages = await start(store)
    async with store.unit_of_work() as uow:
        await redact_message(uow, message_id=messages[0].id)
        with pytest.raises(LookupError):
            async with uow:
                await redact_message(uow, message_id=messages[1].id)
                raise LookupError
        history = await uow.messages.latest(conversation.id)
        assert [message.is_redacted for message in history] == [True, False, False]
    found, stored = await read(store, conversation)
    assert (stored, found.version) == (history, 2)
    assert stored[1:] == messages[1:]


async def test_a_refused_one_takes_the_unit_with_it(store: Any) -> None:
    """A unit that redacts what is not there stores nothing."""
    conversation, messages = await start(store)
    uow = store.unit_of_work()
    with pytest.raises(MessageNotFound):
        async with uow:
            uow.messages.redact(messages[0].id)
            uow.messages.redact(4_000_000_000_000)
            uow.messages.append(conversation.id, turn(1))
    assert uow.outcome is not Outcome.COMMITTED
    assert await read(store, conversation) == (conversation, messages)


# Requests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_an_append_sent_again_after_redaction(store: Any, which: int) -> None:
    """Whichever message of the turn was redacted, the words do not come back: it is a conflict."""
    conversation, _ = await start(store)
    again: dict[str, Any] = {
        "conversation_id": conversation.id,
        "drafts": said(2),
        "request_id": "r",
    }
    other: dict[str, Any] = {
        "conversation_id": conversation.id,
        "drafts": said(3),
        "request_id": "other",
    }
    messages = await append_messages(store.unit_of_work(), **again)
    others = await append_messages(store.unit_of_work(), **other)
    await redact(store, messages[which])
    before = await read(store, conversation)
    with pytest.raises(RequestConflict) as caught:
        await append_messages(store.unit_of_work(), **again)
    conflict = caught.value
    assert (conflict.conversation_id, conflict.request_id) == (conversation.id, "r")
    assert conflict.position == messages[0].position
    assert await append_messages(store.unit_of_work(), **other) == others
    assert await read(store, conversation) == before


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("how", [start_conversation, get_or_start_conversation])
async def test_a_start_sent_again_after_redaction(store: Any, how: Any, which: int) -> None:
    """Likewise, whichever function asks, and whichever asked before."""
    values: dict[str, Any] = {
        "user_id": "u",
        "session_id": "s",
        "drafts": said(),
        "request_id": "r",
        "metadata": {"n": 1},
    }
    await how(store.unit_of_work(), **values)
    [conversation] = (await list_conversations(store.unit_of_work(), user_id="u")).conversations
    _, messages = await read(store, conversation)
    await redact(store, messages[which])
    before = await read(store, conversation)
    for function in (start_conversation, get_or_start_conversation):
        with pytest.raises(RequestConflict):
            await function(store.unit_of_work(), **values)
    with pytest.raises(RequestConflict):
        await append_messages(
            store.unit_of_work(),
            conversation_id=conversation.id,
            drafts=said(),
            request_id="r",
        )
    assert await read(store, conversation) == before


async def test_a_request_within_the_unit_that_redacted(store: Any) -> None:
    """The conflict is seen at once."""
    conversation, _ = await start(store)
    async with store.unit_of_work() as uow:
        messages = await uow.messages.append(conversation.id, said(2), request_id="r")
        uow.messages.redact(messages[2].id)
        with pytest.raises(RequestConflict):
            async with uow:
                await uow.messages.append(conversation.id, said(2), request_id="r")


# Transfer ---------------------------------------------------------------------------------------


async def test_a_redacted_message_goes_out_and_comes_back(store: Any) -> None:
    """An export holds the tombstone, and its import is a redacted message again."""
    _, messages = await start(store)
    await redact(store, messages[1])
    uow = store.unit_of_work()
    [record] = [record async for record in export_conversations(uow)]
    assert MARKER not in json.dumps(record["messages"][1])
    record["user_id"] = "v"
    await import_conversations(uow, records=[record])
    [again] = [record async for record in export_conversations(uow, user_id="v")]
    assert dump_record(again) == dump_record(record)
    [imported] = (await list_conversations(uow, user_id="v")).conversations
    _, history = await read(store, imported)
    assert [message.is_redacted for message in history] == [False, True, False]
    assert is_tombstone_of(await redact(store, history[0]), history[0])


# Meetings ---------------------------------------------------------------------------------------


async def test_many_redact_the_same_message(shared_store: ConversationStore) -> None:
    """It is redacted once."""
    conversation, messages = await start(shared_store)
    tombstones = await asyncio.gather(*(redact(shared_store, messages[0]) for _ in range(12)))
    assert all(is_tombstone_of(tombstone, messages[0]) for tombstone in tombstones)
    assert (await read(shared_store, conversation))[0].version == 2


async def test_while_others_append(shared_store: ConversationStore) -> None:
    """Nothing is lost, nothing torn: as many versions as changes, no gap, the right tombstones."""
    conversation, _ = await start(shared_store, drafts=said() * 10)
    first = await whole_history(shared_store, conversation.id)
    appends = [
        append_messages(
            shared_store.unit_of_work(),
            conversation_id=conversation.id,
            drafts=turn(number),
            request_id=f"r-{number}" if number % 2 else None,
        )
        for number in range(30)
    ]
    redactions = [redact(shared_store, message) for message in first[::2]]
    await asyncio.gather(
        *(call for pair in zip(appends, redactions, strict=False) for call in pair)
    )
    await asyncio.gather(*appends[len(redactions) :])
    history = await whole_history(shared_store, conversation.id)
    assert [message.position for message in history] == list(range(1, 91))
    assert [m.position for m in history if m.is_redacted] == list(range(1, 31, 2))
    found = await get_conversation(shared_store.unit_of_work(), conversation_id=conversation.id)
    assert found.version == 1 + 30 + 15


async def test_two_messages_of_a_turn_at_once(shared_store: ConversationStore) -> None:
    """Both are redacted, though both overwrite what tells the turn from another."""
    conversation, _ = await start(shared_store)
    messages = await append_messages(
        shared_store.unit_of_work(),
        conversation_id=conversation.id,
        drafts=said(2),
        request_id="r",
    )
    for message, tombstone in zip(
        messages,
        await asyncio.gather(*(redact(shared_store, message) for message in messages)),
        strict=True,
    ):
        assert is_tombstone_of(tombstone, message)
    found, history = await read(shared_store, conversation)
    assert [message.is_redacted for message in history] == [False] * 3 + [True] * 3
    assert found.version == 5


async def test_it_waits_for_the_unit_that_wrote_before(shared_store: ConversationStore) -> None:
    """It sees what that left: a message that was redacted, or a conversation that is gone."""
    conversation, messages = await start(shared_store)
    other, others = await start(shared_store, session_id="other")
    async with shared_store.unit_of_work() as uow:
        await uow.messages.redact(messages[0].id)
        await uow.conversations.remove(other.id)
        same = asyncio.create_task(redact(shared_store, messages[0]))
        gone = asyncio.create_task(redact(shared_store, others[0]))
        assert await is_waiting(shared_store, same)
        assert await is_waiting(shared_store, gone)
    assert (await same).is_redacted
    with pytest.raises(MessageNotFound):
        await gone
    assert (await read(shared_store, conversation))[0].version == 2


async def test_while_its_conversation_is_deleted(shared_store: ConversationStore) -> None:
    """Either is first; then there is nothing left, and nobody is in a circle of waits."""
    for number in range(10):
        conversation, messages = await start(shared_store, session_id=f"s-{number}")
        ends = await asyncio.gather(
            *(redact(shared_store, message) for message in messages),
            delete_conversation(shared_store.unit_of_work(), conversation_id=conversation.id),
            return_exceptions=True,
        )
        for end in ends[:-1]:
            assert isinstance(end, MessageNotFound) or (
                isinstance(end, Message) and end.is_redacted
            )
        assert isinstance(ends[-1], ErasureReceipt)
    page = await list_conversations(shared_store.unit_of_work(), user_id="u")
    assert page.conversations == []


async def test_a_request_that_races_a_redaction(shared_store: ConversationStore) -> None:
    """It gets the messages stored then, or a conflict; it stores nothing more."""
    for number in range(10):
        conversation, _ = await start(shared_store, session_id=f"s-{number}")
        values: dict[str, Any] = {
            "conversation_id": conversation.id,
            "drafts": said(2),
            "request_id": "r",
        }
        messages = await append_messages(shared_store.unit_of_work(), **values)
        again, _ = await asyncio.gather(
            append_messages(shared_store.unit_of_work(), **values),
            redact(shared_store, messages[number % 3]),
            return_exceptions=True,
        )
        assert isinstance(again, RequestConflict) or again == messages
        found, history = await read(shared_store, conversation)
        assert (found.version, len(history)) == (3, 6)
