"""What callers may rely on who all come at once: each gets its own answer, or its own error."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from attrs import define
from histories import whole_history
from store_fixtures import draft, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConcurrentUpdate,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStore,
    InvalidMessage,
    Message,
    MessageDraft,
    Outcome,
    RequestConflict,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    get_conversation,
    start_conversation,
)

MISSING = 4_000_000_000_000


@define
class Sent:
    """A turn that one of many sent, and how that ended."""

    uow: AsyncUnitOfWork
    conversation: int
    drafts: Sequence[MessageDraft]
    end: Any

    @property
    def said(self) -> list[str]:
        """What the turn says."""
        return [one.content for one in self.drafts]


async def start(store: ConversationStore, session: str, user_id: str = "u") -> int:
    """Start a conversation."""
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id=user_id, session_id=session
    )
    return conversation.id


async def send(
    store: ConversationStore,
    conversation: int,
    drafts: Sequence[MessageDraft],
    *,
    user_id: str | None = None,
    **options: Any,
) -> Sent:
    """Append a turn, and return how that ended."""
    uow = store.unit_of_work(user_id=user_id)
    try:
        end: Any = await append_messages(
            uow, conversation_id=conversation, drafts=drafts, **options
        )
    except Exception as error:  # noqa: BLE001 - the test looks at it
        end = error
    return Sent(uow, conversation, drafts, end)


async def check_stored(
    store: ConversationStore, conversation: int, sent: Sequence[Sent], *, changes: int = 0
) -> list[Message]:
    """Check that a history is the turns that were acknowledged, each once; return it.

    `changes` is how often the conversation changed otherwise.
    """
    stored = await whole_history(store, conversation)
    assert [message.position for message in stored] == list(range(1, len(stored) + 1))
    times = [message.timestamp for message in stored]
    assert times == sorted(times)
    acknowledged = {
        one.end[0].position: one.end for one in sent if one.uow.outcome is Outcome.COMMITTED
    }
    assert stored == [m for position in sorted(acknowledged) for m in acknowledged[position]]
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    assert found.message_count == len(stored)
    assert found.version == 1 + len(acknowledged) + changes
    return stored


async def test_each_of_a_crowd_gets_its_own_answer(shared_store: ConversationStore) -> None:
    """Good turns are all stored, and what is refused among them is refused to its sender alone."""
    good = [await start(shared_store, f"good-{number}") for number in range(5)]
    closed, archived = await start(shared_store, "closed"), await start(shared_store, "archived")
    deleted, others = await start(shared_store, "deleted"), await start(shared_store, "s", "other")
    await close_conversation(shared_store.unit_of_work(), conversation_id=closed)
    await archive_conversation(shared_store.unit_of_work(), conversation_id=archived)
    await delete_conversation(shared_store.unit_of_work(), conversation_id=deleted)
    once = await send(shared_store, good[0], turn(100), request_id="once")

    def refused(number: int) -> list[Any]:
        return [
            send(shared_store, closed, turn(number)),
            send(shared_store, archived, turn(number), request_id="r"),
            send(shared_store, MISSING, turn(number)),
            send(shared_store, deleted, turn(number)),
            send(shared_store, others, turn(number), user_id="u"),
            send(shared_store, good[1], turn(number), expected_version=99),
            send(shared_store, good[0], turn(number), request_id="once"),
            send(shared_store, good[2], [draft("x")] * 1001),
        ]

    expected = [
        ConversationNotAcceptingMessages,
        ConversationNotAcceptingMessages,
        ConversationNotFound,
        ConversationNotFound,
        ConversationNotFound,
        ConcurrentUpdate,
        RequestConflict,
        InvalidMessage,
    ]
    calls: list[Any] = []
    for number in range(4):
        calls += [send(shared_store, chat, turn(number), user_id="u") for chat in good]
        calls.append(send(shared_store, others, turn(number)))
        calls += refused(number)
        calls.append(send(shared_store, good[0], turn(100), request_id="once"))
        calls.append(send(shared_store, good[3], turn(200), request_id="new"))
    sent = await asyncio.gather(*calls)

    size = len(calls) // 4
    for first in range(0, len(sent), size):
        accepted, errors = sent[first : first + 6], sent[first + 6 : first + 6 + len(expected)]
        assert all([m.content for m in one.end] == one.said for one in accepted)
        assert [type(one.end) for one in errors] == expected
        assert {one.end.conversation_id for one in errors[:-1]} == {
            *(closed, archived, MISSING, deleted, others, good[1], good[0])
        }
        assert all(one.uow.outcome is not Outcome.COMMITTED for one in errors)
        assert sent[first + size - 2].end == once.end
    ends = [one.end for one in sent if isinstance(one.end, Exception)]
    assert len({id(end) for end in ends}) == len(ends)
    requested = sent[size - 1 :: size]
    assert all(one.end == requested[0].end for one in requested)
    for chat in [*good, others]:
        await check_stored(shared_store, chat, [one for one in sent if one.conversation == chat])
    for chat in (closed, archived):
        assert await whole_history(shared_store, chat) == []


async def test_a_turn_that_follows_another_of_its_task_follows_it_in_the_history(
    shared_store: ConversationStore,
) -> None:
    """However many send at once, what a task sends later stands later."""
    chats = [await start(shared_store, f"s-{number}") for number in range(3)]
    sent: list[Sent] = []

    async def write(writer: int) -> None:
        for number in range(6):
            drafts = [draft(f"{writer}"), draft(f"{number}", "assistant")]
            options = {"request_id": f"{writer}/{number}"} if writer % 4 == 0 else {}
            chat = chats[(writer + number % 2) % len(chats)]
            sent.append(await send(shared_store, chat, drafts, **options))

    await asyncio.gather(*(write(writer) for writer in range(20)))
    for chat in chats:
        stored = await check_stored(shared_store, chat, [s for s in sent if s.conversation == chat])
        of_each: dict[str, list[str]] = {}
        for question, answer in zip(stored[::2], stored[1::2], strict=True):
            of_each.setdefault(question.content, []).append(answer.content)
        assert all(numbers == sorted(numbers) for numbers in of_each.values())


async def test_one_request_sent_by_a_crowd_is_stored_once(shared_store: ConversationStore) -> None:
    """Whoever of them is cancelled, all others get the same messages, among other turns."""
    chat = await start(shared_store, "s")
    for number in range(3):
        tasks = [
            asyncio.create_task(send(shared_store, chat, turn(number), request_id=f"r-{number}"))
            if sender % 2
            else asyncio.create_task(send(shared_store, chat, turn(1000 * number + sender)))
            for sender in range(40)
        ]
        await asyncio.sleep(0.002)
        tasks[number * 2 + 1].cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        requested = [end.end for end in ends[1::2] if isinstance(end, Sent)]
        assert len(requested) >= 19
        assert all(end == requested[0] for end in requested)
        assert all(isinstance(end, Sent) and isinstance(end.end, list) for end in ends[::2])
    assert len(await whole_history(shared_store, chat)) == 2 * (3 + 3 * 20)


async def test_what_was_cancelled_in_a_crowd_is_as_its_outcome_says(
    shared_store: ConversationStore,
) -> None:
    """Cancelled at any moment, once or twice: nobody else is harmed, and no outcome is wrong."""
    rng = random.Random(7)
    chats = [await start(shared_store, f"s-{number}") for number in range(4)]
    units: dict[str, tuple[AsyncUnitOfWork, asyncio.Task[Any], int]] = {}
    for number in range(200):
        chat, uow = rng.choice(chats), shared_store.unit_of_work()
        request_id = f"r-{number}" if number % 5 == 0 else None
        task = asyncio.create_task(
            append_messages(uow, conversation_id=chat, drafts=turn(number), request_id=request_id)
        )
        units[f"question {number}"] = uow, task, chat
        if number % 8 == 0:
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.003]))
        for _, other, _ in rng.sample(list(units.values()), 1):
            if rng.random() < 0.5:
                other.cancel()
    await asyncio.wait([task for _, task, _ in units.values()])
    stored = {
        chat: [message.content for message in await whole_history(shared_store, chat)]
        for chat in chats
    }
    for said, (uow, task, chat) in units.items():
        times = stored[chat].count(said)
        if not task.cancelled():
            assert task.result()[0].content == said
            assert uow.outcome is Outcome.COMMITTED
        if uow.outcome is not Outcome.UNKNOWN:
            assert times == (uow.outcome is Outcome.COMMITTED), (said, uow.outcome)
        assert times <= 1
    for chat in chats:
        found = await get_conversation(shared_store.unit_of_work(), conversation_id=chat)
        assert (found.message_count, found.version) == (
            len(stored[chat]),
            1 + len(stored[chat]) // 2,
        )
        await append_messages(shared_store.unit_of_work(), conversation_id=chat, drafts=turn(0))
