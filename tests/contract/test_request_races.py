"""One request sent by many at once is stored once, whatever else happens at the same moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
from attrs import define
from histories import whole_history
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_fixtures import draft, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConcurrentUpdate,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStore,
    ConversationStoreError,
    DuplicateSession,
    Message,
    MessageDraft,
    RequestConflict,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    find_conversation,
    get_conversation,
    get_or_start_conversation,
    messages_after,
    reopen_conversation,
    start_conversation,
    update_conversation,
)

SENDERS = 16
ROUNDS = 50

Send = Callable[[AsyncUnitOfWork, str, Sequence[MessageDraft]], Awaitable[list[Message]]]


async def by_append(
    uow: AsyncUnitOfWork, session_id: str, drafts: Sequence[MessageDraft]
) -> list[Message]:
    """Append request r to the conversation of a session, which is there."""
    async with uow:
        found = await find_conversation(uow, user_id="u", session_id=session_id)
        assert found is not None
        return await append_messages(uow, conversation_id=found.id, drafts=drafts, request_id="r")


async def by_start(
    uow: AsyncUnitOfWork, session_id: str, drafts: Sequence[MessageDraft]
) -> list[Message]:
    """Start the conversation of a session with request r."""
    conversation, messages = await start_conversation(
        uow, user_id="u", session_id=session_id, drafts=drafts, request_id="r"
    )
    assert conversation.id == messages[0].conversation_id
    return messages


async def by_get_or_start(
    uow: AsyncUnitOfWork, session_id: str, drafts: Sequence[MessageDraft]
) -> list[Message]:
    """Start it unless it is there, and append unless that stored the messages."""
    conversation, created = await get_or_start_conversation(
        uow, user_id="u", session_id=session_id, drafts=drafts, request_id="r"
    )
    if created:
        return await messages_after(
            uow, conversation_id=conversation.id, position=0, limit=len(drafts)
        )
    return await append_messages(
        uow, conversation_id=conversation.id, drafts=drafts, request_id="r"
    )


SENDS = {"append": by_append, "start": by_start, "get_or_start": by_get_or_start}
sends = pytest.mark.parametrize("send", SENDS.values(), ids=SENDS)


async def settled(call: Callable[[], Awaitable[Any]]) -> Any:
    """Return what a call comes to, or its error, as a host that tries again gets it."""
    for _ in range(50):
        try:
            return await call()
        except ConversationStoreError as error:
            if not error.retryable:
                return error
    raise AssertionError("given up again and again")


async def at_once(*calls: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Return what calls come to that all begin at once, in an order of chance."""
    order = list(range(len(calls)))
    random.shuffle(order)
    tasks = {number: asyncio.create_task(settled(calls[number])) for number in order}
    await asyncio.wait(tasks.values())
    return [tasks[number].result() for number in range(len(calls))]


def sending(
    store: ConversationStore, send: Send, session_id: str, drafts: Sequence[MessageDraft]
) -> Callable[[], Awaitable[Any]]:
    """Return what sends request r in a unit of its own."""
    return lambda: send(store.unit_of_work(), session_id, drafts)


async def stored(store: ConversationStore, session_id: str) -> list[Message]:
    """Return all that was said in a session."""
    found = await find_conversation(store.unit_of_work(), user_id="u", session_id=session_id)
    return [] if found is None else await whole_history(store, found.id)


async def prepare(store: ConversationStore, send: Send, session_id: str) -> None:
    """Start the conversation of a session if it has to be there."""
    if send is by_append:
        uow = store.unit_of_work()
        await start_conversation(uow, user_id="u", session_id=session_id)


# One request alone ------------------------------------------------------------------------------


@sends
async def test_one_request_sent_by_many(shared_store: ConversationStore, send: Send) -> None:
    """All senders get the same ids and positions, and these are all that is stored."""
    for number in range(ROUNDS):
        session = f"s-{number}"
        await prepare(shared_store, send, session)
        call = sending(shared_store, send, session, turn(number))
        first, *others = await at_once(*[call] * SENDERS)
        assert [message.position for message in first] == [1, 2]
        assert all(other == first for other in others)
        assert await stored(shared_store, session) == first


@sends
async def test_one_request_of_which_some_senders_are_cancelled(
    shared_store: ConversationStore, send: Send
) -> None:
    """The others get what is stored, and who was cancelled gets it when sending again."""
    for number in range(ROUNDS // 3):
        session = f"s-{number}"
        await prepare(shared_store, send, session)
        call = sending(shared_store, send, session, turn(number))
        tasks = [asyncio.create_task(settled(call)) for _ in range(SENDERS)]
        await asyncio.sleep(random.choice([0, 0.001, 0.002, 0.004]))
        for task in random.sample(tasks, SENDERS // 4):
            task.cancel()
        await asyncio.wait(tasks)
        last = await call()
        assert all(task.cancelled() or task.result() == last for task in tasks)
        assert await stored(shared_store, session) == last


@sends
async def test_one_request_with_several_contents(
    shared_store: ConversationStore, send: Send
) -> None:
    """One content is stored, whole; its senders get it, and all others RequestConflict."""
    contents = [turn(1), turn(2), turn(1)[:1], [*turn(1), draft("more")]]
    for number in range(ROUNDS // 3):
        session = f"s-{number}"
        await prepare(shared_store, send, session)
        drafts = [contents[sender % len(contents)] for sender in range(SENDERS)]
        ends = await at_once(*(sending(shared_store, send, session, each) for each in drafts))
        there = await stored(shared_store, session)
        said = [message.content for message in there]
        for each, end in zip(drafts, ends, strict=True):
            if [one.content for one in each] == said:
                assert end == there
            else:
                assert isinstance(end, RequestConflict)
                assert (end.request_id, end.position) == ("r", 1)
        assert sum(end == there for end in ends) == SENDERS // len(contents)


async def test_starts_of_one_session_by_several_requests(
    shared_store: ConversationStore,
) -> None:
    """One request starts the session: its senders get that, others DuplicateSession or False."""
    for number in range(ROUNDS // 3):

        def starting(request_id: str, *, get: bool, session: str = f"s-{number}") -> Any:
            call: Any = get_or_start_conversation if get else start_conversation
            return lambda: call(
                shared_store.unit_of_work(),
                user_id="u",
                session_id=session,
                drafts=turn(int(request_id)),
                request_id=request_id,
            )

        requests = [f"{sender % 4}" for sender in range(SENDERS)]
        ends = await at_once(
            *(starting(each, get=sender % 8 < 4) for sender, each in enumerate(requests))
        )
        there = await stored(shared_store, f"s-{number}")
        winner = there[0].content.removeprefix("question ")
        for sender, (each, end) in enumerate(zip(requests, ends, strict=True)):
            if sender % 8 < 4:
                assert (end[0].id, end[1]) == (there[0].conversation_id, each == winner)
            elif each == winner:
                assert end[1] == there
            else:
                assert isinstance(end, DuplicateSession)
        assert len(there) == 2


# One request among other writes -----------------------------------------------------------------


async def test_a_request_among_closing_and_reopening(shared_store: ConversationStore) -> None:
    """Who is refused may send again later; nobody's sending stores a second one."""
    uow = shared_store.unit_of_work()
    for number in range(ROUNDS // 3):
        conversation, _ = await start_conversation(uow, user_id="u", session_id=f"s-{number}")
        call = sending(shared_store, by_append, f"s-{number}", turn(1))
        changes = [
            partial(change, shared_store.unit_of_work(), conversation_id=conversation.id)
            for change in (close_conversation, reopen_conversation, archive_conversation) * 2
        ]
        ends = (await at_once(*[call] * 10, *changes))[:10]
        given = [end for end in ends if isinstance(end, list)]
        refused = [end for end in ends if isinstance(end, ConversationNotAcceptingMessages)]
        assert len(given) + len(refused) == 10
        await close_conversation(uow, conversation_id=conversation.id)
        await reopen_conversation(uow, conversation_id=conversation.id)
        last = await call()
        assert all(end == last for end in given)
        assert await stored(shared_store, f"s-{number}") == last


@pytest.mark.parametrize("send", [by_start, by_get_or_start])
async def test_a_request_among_removals(shared_store: ConversationStore, send: Send) -> None:
    """Each conversation of the session has the request once; what was given was stored in one."""
    uow = shared_store.unit_of_work()
    for number in range(ROUNDS // 3):
        session = f"s-{number}"

        async def removing(session: str = session) -> None:
            unit = shared_store.unit_of_work()
            found = await find_conversation(unit, user_id="u", session_id=session)
            if found is not None:
                await delete_conversation(unit, conversation_id=found.id)

        call = sending(shared_store, send, session, turn(1))
        ends = await at_once(*[call] * 10, *[removing] * 4)
        given: dict[int, list[Message]] = {}
        for end in ends[:10]:
            # Gone between two calls, or one that is gone by now and was started by nobody else.
            if isinstance(end, ConversationNotFound) and send is by_get_or_start:
                continue
            assert [message.position for message in end] == [1, 2]
            assert given.setdefault(end[0].conversation_id, end) == end
        last = await send(uow, session, turn(1))
        assert given.get(last[0].conversation_id, last) == last
        assert await stored(shared_store, session) == last


async def test_a_request_that_expects_a_version(shared_store: ConversationStore) -> None:
    """Stored by one, it is given to all; overtaken by another turn, it is refused to all."""
    outcomes = set()
    for number in range(ROUNDS):
        conversation, _ = await start_conversation(
            shared_store.unit_of_work(), user_id="u", session_id=f"s-{number}"
        )

        def appending(i: int = conversation.id, **values: Any) -> Callable[[], Awaitable[Any]]:
            drafts = turn(1) if values else turn(2)
            return lambda: append_messages(
                shared_store.unit_of_work(), conversation_id=i, drafts=drafts, **values
            )

        *ends, _ = await at_once(
            *[appending(request_id="r", expected_version=1)] * (SENDERS - 1), appending()
        )
        is_stored = isinstance(ends[0], list)
        outcomes.add(is_stored)
        if is_stored:
            assert all(end == ends[0] for end in ends)
        else:
            assert all(isinstance(end, ConcurrentUpdate) for end in ends)
        assert len(await stored(shared_store, f"s-{number}")) == 2 + 2 * is_stored
    assert outcomes  # usually both


async def test_requests_among_turns_of_others(shared_store: ConversationStore) -> None:
    """Positions have no gap and turns stay whole; each request is there once."""
    uow = shared_store.unit_of_work()
    conversation, _ = await start_conversation(
        uow, user_id="u", session_id="s", drafts=turn(0), request_id="r-0"
    )

    def appending(number: int, request_id: str | None) -> Callable[[], Awaitable[Any]]:
        return lambda: append_messages(
            shared_store.unit_of_work(),
            conversation_id=conversation.id,
            drafts=turn(number),
            request_id=request_id,
        )

    for first in range(1, 11):
        numbers = [first * 10 + sender % 4 for sender in range(SENDERS)]
        requested = [appending(number, f"r-{number}") for number in numbers]
        again = [appending(0, "r-0")] * 4
        others = [appending(first * 10 + 5 + sender, None) for sender in range(4)]
        ends = await at_once(*requested, *again, *others)
        for sender in range(SENDERS):
            assert ends[sender] == ends[sender % 4]
        assert all(end == ends[SENDERS] for end in ends[SENDERS : SENDERS + 4])
    there = await whole_history(shared_store, conversation.id)
    assert [message.position for message in there] == list(range(1, len(there) + 1))
    said = [message.content for message in there]
    assert said[1::2] == [text.replace("question", "answer") for text in said[::2]]
    assert len(set(said)) == len(said) == 2 * (1 + 10 * 8)


# Inside interactive units -----------------------------------------------------------------------


@sends
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "some undone"])
async def test_one_request_inside_open_units(
    shared_store: ConversationStore, send: Send, keep: bool
) -> None:
    """Units that flush before their end wait for each other; who is undone stored nothing."""
    for number in range(10):
        session = f"s-{number}"
        await prepare(shared_store, send, session)

        async def unit(sender: int, session: str = session, number: int = number) -> Any:
            uow = shared_store.unit_of_work()
            async with uow:
                own, _ = await start_conversation(
                    uow, user_id="own", session_id=f"{number}-{sender}"
                )
                sent = await send(uow, session, turn(1))
                with pytest.raises(RequestConflict):
                    await append_messages(
                        uow,
                        conversation_id=sent[0].conversation_id,
                        drafts=turn(2),
                        request_id="r",
                    )
                await append_messages(uow, conversation_id=own.id, drafts=turn(3))
                if not keep and sender % 3:
                    await uow.rollback()
                    return None
            return sent

        ends = await at_once(*(partial(unit, sender) for sender in range(8)))
        there = await stored(shared_store, session)
        kept = [end for end in ends if end is not None]
        assert len(kept) == (8 if keep else 3)
        assert all(end == there for end in kept)
        assert [message.position for message in there] == [1, 2]


# Any interleaving -------------------------------------------------------------------------------


@define(frozen=True)
class Play:
    """What one unit of work does: begins after a while, waits a while in the middle, ends."""

    act: str
    before: int
    within: int | None
    """None: one write alone; else how often it lets others go first while it is open."""
    keep: bool


_CHANGES: dict[str, Callable[..., Awaitable[Any]]] = {
    "close": close_conversation,
    "reopen": reopen_conversation,
    "archive": archive_conversation,
    "delete": delete_conversation,
    "update": lambda uow, conversation_id: update_conversation(
        uow, conversation_id=conversation_id, intent_type="x"
    ),
    "append": lambda uow, conversation_id: append_messages(
        uow, conversation_id=conversation_id, drafts=turn(2)
    ),
    "other content": lambda uow, conversation_id: append_messages(
        uow, conversation_id=conversation_id, drafts=turn(3), request_id="r"
    ),
}

PLAYS = st.lists(
    st.builds(
        Play,
        act=st.sampled_from([*SENDS, *SENDS, *_CHANGES]),
        before=st.integers(0, 6),
        within=st.none() | st.integers(0, 6),
        keep=st.booleans() | st.just(value=True),
    ),
    min_size=2,
    max_size=8,
)


async def _act(store: ConversationStore, uow: AsyncUnitOfWork, act: str) -> list[Message] | None:
    if act in ("start", "get_or_start"):
        return await SENDS[act](uow, "s", turn(1))
    found = await find_conversation(store.unit_of_work(), user_id="u", session_id="s")
    if found is None:
        return None
    if act == "append":
        return await append_messages(uow, conversation_id=found.id, drafts=turn(1), request_id="r")
    await _CHANGES[act](uow, conversation_id=found.id)
    return None


async def _play(store: ConversationStore, play: Play) -> list[Message] | None:
    """Return what was given for request r, if that unit was kept."""
    for _ in range(play.before):
        await asyncio.sleep(0)
    uow = store.unit_of_work()
    if play.within is None:
        return await _act(store, uow, play.act)
    async with uow:
        sent = await _act(store, uow, play.act)
        for _ in range(play.within):
            await asyncio.sleep(0)
        if not play.keep:
            await uow.rollback()
            return None
    return sent


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(plays=PLAYS, is_there=st.booleans())
async def test_any_interleaving_stores_a_request_once(
    shared_store: ConversationStore, plays: list[Play], is_there: bool
) -> None:
    """Whatever units meet, each conversation has the request once, as every sender was told."""
    uow = shared_store.unit_of_work()
    former = await find_conversation(uow, user_id="u", session_id="s")
    if former is not None:
        await delete_conversation(uow, conversation_id=former.id)
    if is_there:
        await start_conversation(uow, user_id="u", session_id="s", drafts=turn(0))
    ends = await at_once(*(partial(_play, shared_store, play) for play in plays))
    given_of: dict[int, list[Message]] = {}
    for end in ends:
        if isinstance(end, list):
            assert [message.content for message in end] == ["question 1", "answer 1"]
            assert given_of.setdefault(end[0].conversation_id, end) == end
    if not any(play.act == "delete" for play in plays):
        assert len(given_of) <= 1
    found, _ = await get_or_start_conversation(uow, user_id="u", session_id="s")
    await close_conversation(uow, conversation_id=found.id)
    await reopen_conversation(uow, conversation_id=found.id)
    last = await settled(
        lambda: append_messages(uow, conversation_id=found.id, drafts=turn(1), request_id="r")
    )
    there = await whole_history(shared_store, found.id)
    assert (await get_conversation(uow, conversation_id=found.id)).message_count == len(there)
    times = [message.content for message in there].count("question 1")
    if isinstance(last, RequestConflict):
        assert there[last.position - 1].content == "question 3"
        assert times == 0
        assert found.id not in given_of
    else:
        assert times == 1
        assert given_of.get(found.id, last) == last
        assert there[last[0].position - 1 : last[1].position] == last
