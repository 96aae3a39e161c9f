"""A unit of work that the store gives up is done again, as a whole, and stored once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from store_fixtures import draft, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConversationNotFound,
    ConversationStore,
    Message,
    Outcome,
    Retry,
    StoreUnavailable,
    TransactionAborted,
    UnitOfWorkMisuse,
    append_messages,
    messages_after,
    run_unit,
    start_conversation,
)

QUICK = Retry(attempts=3, first_pause=0, longest_pause=0)


async def start(store: ConversationStore, session: str = "s") -> int:
    """Start a conversation."""
    started, _ = await start_conversation(store.unit_of_work(), user_id="u", session_id=session)
    return started.id


async def contents(store: ConversationStore, conversation: int) -> list[str]:
    """Return what was said in a conversation."""
    messages = await messages_after(store.unit_of_work(), conversation_id=conversation, position=0)
    return [message.content for message in messages]


async def test_run_gives_the_result_of_the_work(shared_store: ConversationStore) -> None:
    """What was read and written in it is one unit, stored when it returns."""
    chat = await start(shared_store)
    units: list[AsyncUnitOfWork] = []

    async def work(uow: AsyncUnitOfWork) -> list[Message]:
        units.append(uow)
        conversation = await uow.conversations.get(chat)
        messages = uow.messages.append(chat, [draft(f"after {conversation.message_count}")])
        return await messages

    [message] = await shared_store.run(work)
    assert (message.position, message.content) == (1, "after 0")
    assert [uow.outcome for uow in units] == [Outcome.COMMITTED]
    assert await contents(shared_store, chat) == ["after 0"]


async def test_work_given_up_is_done_again(shared_store: ConversationStore) -> None:
    """In a new unit of work each time; of those before nothing is stored."""
    chat = await start(shared_store)
    units: list[AsyncUnitOfWork] = []

    async def work(uow: AsyncUnitOfWork) -> str:
        units.append(uow)
        await uow.messages.append(chat, [draft(f"try {len(units)}")])
        if len(units) < 3:
            raise TransactionAborted(reason="for the test")
        return "done"

    assert await run_unit(shared_store.unit_of_work, work, QUICK) == "done"
    assert len(set(map(id, units))) == 3
    assert await contents(shared_store, chat) == ["try 3"]


async def test_what_the_unit_itself_tried_is_not_multiplied(
    shared_store: ConversationStore,
) -> None:
    """Also not in a later try of the work."""
    tries: list[int] = []

    async def work(_: AsyncUnitOfWork) -> None:
        tries.append(1)
        error = StoreUnavailable(reason="for the test")
        if len(tries) == 2:
            error.tried = (StoreUnavailable(reason="for the test, before"),)
        raise error

    with pytest.raises(StoreUnavailable):
        await run_unit(shared_store.unit_of_work, work, QUICK)
    assert len(tries) == 2


async def test_work_given_up_for_good(shared_store: ConversationStore) -> None:
    """The last error says what was tried."""
    chat = await start(shared_store)
    errors = [StoreUnavailable(reason=f"for the test, {number}") for number in range(5)]
    tries = iter(errors)

    async def work(uow: AsyncUnitOfWork) -> None:
        await uow.messages.append(chat, turn(1))
        raise next(tries)

    with pytest.raises(StoreUnavailable) as caught:
        await run_unit(shared_store.unit_of_work, work, QUICK)
    assert caught.value is errors[2]
    assert caught.value.tried == (errors[0], errors[1])
    assert await contents(shared_store, chat) == []


@pytest.mark.parametrize("error", [ValueError("mine"), asyncio.CancelledError()])
async def test_errors_of_the_work_go_on(
    shared_store: ConversationStore, error: BaseException
) -> None:
    """They are not tried again, and nothing is stored."""
    chat = await start(shared_store)
    tries: list[int] = []

    async def work(uow: AsyncUnitOfWork) -> None:
        tries.append(1)
        await uow.messages.append(chat, turn(1))
        raise error

    with pytest.raises(type(error)):
        await shared_store.run(work)
    assert len(tries) == 1
    assert await contents(shared_store, chat) == []


async def test_a_refusal_is_not_tried_again(shared_store: ConversationStore) -> None:
    """It would be refused again."""
    tries: list[int] = []

    async def work(uow: AsyncUnitOfWork) -> None:
        tries.append(1)
        await append_messages(uow, conversation_id=404, drafts=turn(1))

    with pytest.raises(ConversationNotFound) as caught:
        await shared_store.run(work)
    assert (len(tries), caught.value.tried) == (1, ())


async def test_run_for_one_user(shared_store: ConversationStore) -> None:
    """The unit acts for the user that is named."""

    async def work(uow: AsyncUnitOfWork) -> str | None:
        return uow.user_id

    assert await shared_store.run(work, user_id="ada") == "ada"
    assert await shared_store.run(work) is None


async def test_two_that_wait_for_each_other_are_both_done(
    shared_store: ConversationStore,
) -> None:
    """A deadlock costs one of them a try, and neither its result."""
    chats = [await start(shared_store, session) for session in "ab"]
    ready, done = asyncio.Barrier(2), asyncio.Event()
    tries: list[str] = []

    async def crossing(name: str, first: int, second: int) -> None:
        async def work(uow: AsyncUnitOfWork) -> None:
            tries.append(name)
            if len(tries) > 2:
                await (
                    done.wait()
                )  # else it may be quicker than who waited for it, and meet it again
            await uow.messages.append(first, [draft(name)])
            if len(tries) <= 2:
                await ready.wait()
            await uow.messages.append(second, [draft(name)])

        await shared_store.run(work)
        done.set()

    async with asyncio.timeout(20):
        await asyncio.gather(crossing("one", *chats), crossing("two", *reversed(chats)))
    assert len(tries) == 3
    for chat in chats:
        assert sorted(await contents(shared_store, chat)) == ["one", "two"]


async def test_many_that_cross_each_other(shared_store: ConversationStore) -> None:
    """However they meet, each is stored once, in both conversations."""
    chats = [await start(shared_store, session) for session in "abc"]

    async def work(number: int) -> None:
        async def unit(uow: AsyncUnitOfWork) -> None:
            for step in range(2):
                chat = chats[(number + step * (1 + number % 2)) % 3]
                await uow.messages.append(chat, [draft(f"{number}")])

        await shared_store.run(unit)

    async with asyncio.timeout(60):
        await asyncio.gather(*(work(number) for number in range(12)))
    said = [content for chat in chats for content in await contents(shared_store, chat)]
    assert sorted(said) == sorted([f"{number}" for number in range(12)] * 2)


async def test_a_unit_that_is_entered_is_not_shared(shared_store: ConversationStore) -> None:
    """The unit of `run` belongs to it: afterwards it can be used no more than any that was left."""
    kept: list[Any] = []

    async def work(uow: AsyncUnitOfWork) -> None:
        kept.append(uow)

    await shared_store.run(work)
    with pytest.raises(UnitOfWorkMisuse):
        kept[0].messages.append(1, turn(1))
