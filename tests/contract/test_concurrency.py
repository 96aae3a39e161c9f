"""What units of work that meet each other may rely on: order, locks, verdicts after a wait."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self

import pytest
from histories import check_history, whole_history
from server_waits import is_waiting
from store_fixtures import draft, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConcurrentUpdate,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationStore,
    ConversationStoreError,
    DuplicateSession,
    NewConversation,
    Outcome,
    RequestConflict,
    Status,
    StoreTimeout,
    TransactionAborted,
    append_messages,
    close_conversation,
    delete_conversation,
    find_conversation,
    get_conversation,
    get_or_start_conversation,
    import_conversations,
    messages_after,
    reopen_conversation,
    start_conversation,
    update_conversation,
)

Act = Callable[[AsyncUnitOfWork], Awaitable[Any]]
SENT = 0.5
"""Seconds in which what is to wait for a lock has begun to, on a busy machine as well."""


async def start(store: ConversationStore, session: str = "s") -> int:
    """Start a conversation."""
    conversation, _ = await start_conversation(
        store.unit_of_work(), user_id="u", session_id=session
    )
    return conversation.id


class Held:
    """A unit of work, in a task of its own, that did something and waits to be told how to end."""

    def __init__(self, store: ConversationStore, act: Act) -> None:
        self.uow = store.unit_of_work()
        self._act = act
        self._acted = asyncio.Event()
        self._finish = asyncio.Event()
        self._keep = True
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self.uow:
            await self._act(self.uow)
            self._acted.set()
            await self._finish.wait()
            if not self._keep:
                await self.uow.rollback()

    async def __aenter__(self) -> Self:
        acted = asyncio.create_task(self._acted.wait())
        await asyncio.wait([acted, self._task], return_when=asyncio.FIRST_COMPLETED)
        acted.cancel()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.end()

    async def end(self, *, keep: bool = True) -> None:
        """Let it commit, or roll back, and wait for that."""
        self._keep = self._keep and keep
        self._finish.set()
        await self._task


def appending(conversation_id: int, *drafts: Any) -> Act:
    """Return what appends messages."""

    async def act(uow: AsyncUnitOfWork) -> None:
        await uow.messages.append(conversation_id, list(drafts) or turn(1))

    return act


# Waiting ----------------------------------------------------------------------------------------


async def test_a_write_waits_for_the_unit_that_wrote_before(
    shared_store: ConversationStore,
) -> None:
    """An append waits while another unit that appended is open, and follows it."""
    conversation = await start(shared_store)
    async with Held(shared_store, appending(conversation)) as held:
        task = asyncio.create_task(
            append_messages(
                shared_store.unit_of_work(), conversation_id=conversation, drafts=turn(2)
            )
        )
        assert await is_waiting(shared_store, task)
        await held.end()
        messages = await task
    assert [message.position for message in messages] == [3, 4]


async def test_a_write_takes_the_place_of_one_rolled_back(
    shared_store: ConversationStore,
) -> None:
    """A position that was given out and rolled back is given out again: no gaps."""
    conversation = await start(shared_store)
    async with Held(shared_store, appending(conversation)) as held:
        task = asyncio.create_task(
            append_messages(
                shared_store.unit_of_work(), conversation_id=conversation, drafts=turn(2)
            )
        )
        assert await is_waiting(shared_store, task)
        await held.end(keep=False)
        messages = await task
    assert [message.position for message in messages] == [1, 2]


async def test_a_lock_is_given_back_with_its_savepoint(shared_store: ConversationStore) -> None:
    """What only a rolled-back inner block locked is free, though the outer block is open."""
    conversation = await start(shared_store)

    async def act(uow: AsyncUnitOfWork) -> None:
        await uow.conversations.find("s", "u")
        async with uow:
            await uow.messages.append(conversation, turn(1))
            await uow.rollback()

    async with Held(shared_store, act):
        messages = await append_messages(
            shared_store.unit_of_work(), conversation_id=conversation, drafts=turn(2)
        )
    assert [message.position for message in messages] == [1, 2]


async def test_reads_never_wait_and_see_what_is_committed(
    shared_store: ConversationStore,
) -> None:
    """A reader sees neither the open unit's writes, nor waits for them, nor half of them."""
    conversation = await start(shared_store)
    async with Held(shared_store, appending(conversation)) as held:
        uow = shared_store.unit_of_work()
        async with uow:
            assert (await uow.conversations.get(conversation)).message_count == 0
            assert await uow.messages.latest(conversation) == []
            await held.end()
            # READ COMMITTED: the next read of the same unit sees what was committed meanwhile.
            assert (await uow.conversations.get(conversation)).message_count == 2


async def test_a_wait_for_a_lock_ends_with_the_lock_timeout(
    shared_store: ConversationStore,
) -> None:
    """A lock that is not free in time is StoreTimeout, and nothing is stored."""
    conversation = await start(shared_store)
    async with Held(shared_store, appending(conversation)):
        uow = shared_store.unit_of_work()
        with pytest.raises(StoreTimeout) as caught:
            await append_messages(uow, conversation_id=conversation, drafts=turn(2))
        assert (caught.value.sqlstate, caught.value.retryable) == ("55P03", True)
        assert uow.outcome is Outcome.ROLLED_BACK
    assert await count(shared_store, conversation) == 2


async def test_two_units_of_one_task_that_block_each_other_time_out(
    shared_store: ConversationStore,
) -> None:
    """The lock timeout is the way out for a task that waits for itself."""
    conversation = await start(shared_store)
    async with shared_store.unit_of_work() as first:
        await first.messages.append(conversation, turn(1))
        with pytest.raises(StoreTimeout):
            await append_messages(
                shared_store.unit_of_work(), conversation_id=conversation, drafts=turn(2)
            )
    assert await count(shared_store, conversation) == 2


async def test_a_cancelled_wait_leaves_the_others_in_order(
    shared_store: ConversationStore,
) -> None:
    """Cancelling one that waits stores nothing of it and harms nobody who waits with it."""
    conversation = await start(shared_store)
    async with Held(shared_store, appending(conversation, draft("held"))) as held:
        uows = [shared_store.unit_of_work() for _ in range(3)]
        tasks = []
        for number, uow in enumerate(uows):
            tasks.append(
                asyncio.create_task(
                    append_messages(uow, conversation_id=conversation, drafts=[draft(str(number))])
                )
            )
            assert await is_waiting(shared_store, tasks[-1])
        tasks[1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[1]
        await held.end()
        await asyncio.gather(tasks[0], tasks[2])
    assert uows[1].outcome is Outcome.ROLLED_BACK
    assert sorted(await contents(shared_store, conversation)) == ["0", "2", "held"]


async def test_who_ends_a_unit_may_write_again_at_once(
    shared_store: ConversationStore,
) -> None:
    """The next unit of the same task takes its turn behind those who waited."""
    conversation = await start(shared_store)
    async with asyncio.timeout(10):
        async with shared_store.unit_of_work() as uow:
            await uow.messages.append(conversation, [draft("first")])
            task = asyncio.create_task(
                append_messages(
                    shared_store.unit_of_work(),
                    conversation_id=conversation,
                    drafts=[draft("waited")],
                )
            )
            assert await is_waiting(shared_store, task)
        await append_messages(
            shared_store.unit_of_work(), conversation_id=conversation, drafts=[draft("again")]
        )
        await task
    assert sorted(await contents(shared_store, conversation)) == ["again", "first", "waited"]


async def test_a_deadlock_aborts_exactly_one(shared_store: ConversationStore) -> None:
    """Of two interactive units that wait for each other one is TransactionAborted, retryable."""
    first, second = await start(shared_store, "a"), await start(shared_store, "b")
    both = asyncio.Barrier(2)

    async def cross(one: int, other: int) -> str:
        try:
            async with shared_store.unit_of_work() as uow:
                await uow.messages.append(one, turn(1))
                await both.wait()
                await uow.messages.append(other, turn(1))
        except TransactionAborted as error:
            assert error.retryable
            assert error.sqlstate == "40P01"
            return "aborted"
        return "committed"

    ends = await asyncio.gather(cross(first, second), cross(second, first))
    assert sorted(ends) == ["aborted", "committed"]
    assert await count(shared_store, first) == await count(shared_store, second) == 2


async def test_a_deadlock_of_units_of_one_flush_is_sent_again(
    shared_store: ConversationStore,
) -> None:
    """Units that are one flush, in opposite orders, all commit: the store sends them again."""
    first, second = await start(shared_store, "a"), await start(shared_store, "b")

    async def both(one: int, other: int) -> None:
        async with shared_store.unit_of_work() as uow:
            for number in range(5):
                uow.messages.append(one, turn(number))
                uow.messages.append(other, turn(number))

    for _ in range(8):
        await asyncio.gather(both(first, second), both(second, first))
    assert await count(shared_store, first) == await count(shared_store, second) == 160


# Verdicts after a wait --------------------------------------------------------------------------


async def raced(
    store: ConversationStore, act: Act, contender: Act, *, keep: bool, interactive: bool
) -> Any:
    """Return what a contender comes to that waits for a unit which then commits or rolls back."""
    result: Any = None

    async def contend() -> None:
        nonlocal result
        async with store.unit_of_work() as uow:
            if interactive:
                await start_conversation(uow, user_id="other", session_id="x")
            result = await contender(uow)

    async with Held(store, act) as held:
        task = asyncio.create_task(contend())
        await is_waiting(store, task)
        await held.end(keep=keep)
        try:
            await task
        except Exception as error:  # noqa: BLE001 - the test looks at it
            return error
    return result


def closing(conversation: int) -> Act:
    """Return what closes a conversation."""

    async def act(uow: AsyncUnitOfWork) -> Any:
        return await uow.conversations.set_status(conversation, Status.CLOSED)

    return act


def reopening(conversation: int) -> Act:
    """Return what reopens a conversation."""

    async def act(uow: AsyncUnitOfWork) -> Any:
        return await uow.conversations.set_status(conversation, Status.ACTIVE)

    return act


def removing(conversation: int) -> Act:
    """Return what removes a conversation."""

    async def act(uow: AsyncUnitOfWork) -> Any:
        return await uow.conversations.remove(conversation)

    return act


def sending(conversation: int, **values: Any) -> Act:
    """Return what appends a turn."""

    async def act(uow: AsyncUnitOfWork) -> Any:
        return await uow.messages.append(conversation, turn(1), **values)

    return act


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("request_id", [None, "r"])
@pytest.mark.parametrize("keep", [True, False])
async def test_an_append_that_waited_for_a_close(
    shared_store: ConversationStore, keep: bool, request_id: str | None, interactive: bool
) -> None:
    """The verdict is on what the wait ended with."""
    conversation = await start(shared_store)
    end = await raced(
        shared_store,
        closing(conversation),
        sending(conversation, request_id=request_id),
        keep=keep,
        interactive=interactive,
    )
    if keep:
        assert isinstance(end, ConversationNotAcceptingMessages)
        assert end.status == "closed"
    else:
        assert [message.position for message in end] == [1, 2]


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("request_id", [None, "r"])
@pytest.mark.parametrize("keep", [True, False])
async def test_an_append_with_a_version_that_waited_for_an_append(
    shared_store: ConversationStore, keep: bool, request_id: str | None, interactive: bool
) -> None:
    """A version that passed during the wait is ConcurrentUpdate with the newest version."""
    conversation = await start(shared_store)
    end = await raced(
        shared_store,
        sending(conversation),
        sending(conversation, expected_version=1, request_id=request_id),
        keep=keep,
        interactive=interactive,
    )
    if keep:
        assert isinstance(end, ConcurrentUpdate)
        assert (end.expected_version, end.actual_version) == (1, 2)
    else:
        assert len(end) == 2


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("request_id", [None, "r"])
@pytest.mark.parametrize("keep", [True, False])
async def test_an_append_that_waited_for_a_delete(
    shared_store: ConversationStore, keep: bool, request_id: str | None, interactive: bool
) -> None:
    """What was deleted during the wait is not found."""
    conversation = await start(shared_store)
    end = await raced(
        shared_store,
        removing(conversation),
        sending(conversation, request_id=request_id),
        keep=keep,
        interactive=interactive,
    )
    if keep:
        assert isinstance(end, ConversationNotFound)
    else:
        assert len(end) == 2


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize("keep", [True, False])
async def test_a_request_that_waited_for_itself(
    shared_store: ConversationStore, keep: bool, same: bool, interactive: bool
) -> None:
    """The second sender of a request gets the stored messages, or RequestConflict."""
    conversation = await start(shared_store)

    async def other(uow: AsyncUnitOfWork) -> Any:
        return await uow.messages.append(
            conversation, turn(1) if same else turn(2), request_id="r", expected_version=1
        )

    end = await raced(
        shared_store,
        sending(conversation, request_id="r"),
        other,
        keep=keep,
        interactive=interactive,
    )
    if keep and not same:
        assert isinstance(end, RequestConflict)
    else:
        assert [message.position for message in end] == [1, 2]
    assert await count(shared_store, conversation) == 2


def starting(number: int = 1, request_id: str = "r") -> Act:
    """Return what starts session new with a request."""

    async def act(uow: AsyncUnitOfWork) -> Any:
        return await uow.conversations.add(
            NewConversation(user_id="u", session_id="new"), turn(number), request_id=request_id
        )

    return act


def getting_or_starting(number: int = 1, request_id: str = "r") -> Act:
    """Return what gets it, or starts it with a request."""

    async def act(uow: AsyncUnitOfWork) -> Any:
        return await uow.conversations.get_or_add(
            NewConversation(user_id="u", session_id="new"), turn(number), request_id=request_id
        )

    return act


async def contend(store: ConversationStore, act: Act) -> Any:
    """Return what a unit of its own comes to, or its error."""
    try:
        async with store.unit_of_work() as uow:
            return await act(uow)
    except ConversationStoreError as error:
        return error


CONTENDERS: dict[str, tuple[Act, Any]] = {
    "the same": (starting(), [1, 2]),
    "other content": (starting(2), RequestConflict),
    "another request": (starting(1, "other"), DuplicateSession),
    "get the same": (getting_or_starting(), True),
    "get with other content": (getting_or_starting(2), RequestConflict),
    "get by another request": (getting_or_starting(1, "other"), False),
}


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("keep", [True, False])
async def test_a_start_with_a_request_that_waited_for_another(
    shared_store: ConversationStore, keep: bool, contender: str, interactive: bool
) -> None:
    """The verdict is on what the wait ended with; where that was undone, it starts."""
    act, expected = CONTENDERS[contender]
    end = await raced(shared_store, starting(), act, keep=keep, interactive=interactive)
    found = await find_conversation(shared_store.unit_of_work(), user_id="u", session_id="new")
    assert found is not None
    if isinstance(end, Exception):
        assert keep
        assert isinstance(end, expected)
    else:
        assert end[0] == found
        if isinstance(end[1], bool):
            assert end[1] is (expected if keep else True)
        else:
            assert [message.position for message in end[1]] == [1, 2]
            assert not keep or expected == [1, 2]
    assert await count(shared_store, found.id) == 2


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("keep", [True, False])
async def test_a_start_with_a_request_that_waited_for_a_delete(
    shared_store: ConversationStore, keep: bool, interactive: bool
) -> None:
    """Started if the delete commits; DuplicateSession if it rolls back."""
    conversation = await start(shared_store, "new")
    end = await raced(
        shared_store, removing(conversation), starting(), keep=keep, interactive=interactive
    )
    if keep:
        assert end[0].id != conversation
    else:
        assert isinstance(end, DuplicateSession)


async def test_another_start_with_a_request_waits_for_who_holds_the_conversation(
    shared_store: ConversationStore,
) -> None:
    """Also for who changes nothing: whether it is still there then, it learns from its lock."""
    conversation = await start(shared_store, "new")
    await close_conversation(shared_store.unit_of_work(), conversation_id=conversation)
    for keep in (True, False):
        async with Held(shared_store, closing(conversation)) as held:
            contending = asyncio.create_task(contend(shared_store, starting()))
            assert await is_waiting(shared_store, contending)
            await held.end(keep=keep)
            assert isinstance(await contending, DuplicateSession)


@pytest.mark.parametrize("request_id", [None, "r"])
async def test_who_waits_for_a_start_that_an_inner_block_undoes(
    shared_store: ConversationStore, request_id: str | None
) -> None:
    """A start is waited for until its block is undone; with a request until its unit ends.

    For a request has a savepoint of its own, and what is released of it belongs to the unit.
    """
    async with shared_store.unit_of_work() as uow:
        await start_conversation(uow, user_id="own", session_id="x")
        async with uow:
            await uow.conversations.add(
                NewConversation(user_id="u", session_id="new"), turn(1), request_id=request_id
            )
            contending = asyncio.create_task(contend(shared_store, starting(2, "other")))
            assert await is_waiting(shared_store, contending)
            await uow.rollback()
        assert await is_waiting(shared_store, contending) is (request_id is not None)
        late = asyncio.create_task(contend(shared_store, starting(2, "other")))
        assert not await is_waiting(shared_store, late)
    conversation, messages = await contending
    assert (await late) == (conversation, messages)
    assert await count(shared_store, conversation.id) == 2


@pytest.mark.parametrize("contender", ["the same", "other content", "get the same"])
async def test_a_request_that_is_there_is_given_without_a_wait(
    shared_store: ConversationStore, contender: str
) -> None:
    """Who holds the conversation, or is about to remove it, holds up no repetition of its start."""
    act, expected = CONTENDERS[contender]
    async with shared_store.unit_of_work() as uow:
        conversation, messages = await starting()(uow)
    for holding in (appending(conversation.id), removing(conversation.id)):
        async with Held(shared_store, holding) as held:
            try:
                async with shared_store.unit_of_work() as uow:
                    end: Any = await act(uow)
            except RequestConflict as error:
                end = error
            if contender == "other content":
                assert isinstance(end, expected)
            else:
                assert end[0] == conversation
                assert end[1] in (messages, True)
            await held.end(keep=False)


@pytest.mark.parametrize("keep", [True, False])
async def test_an_append_that_waited_for_a_reopening(
    shared_store: ConversationStore, keep: bool
) -> None:
    """A unit of one flush that met a conversation being reopened waits and is stored."""
    conversation = await start(shared_store)
    await close_conversation(shared_store.unit_of_work(), conversation_id=conversation)

    async def append(uow: AsyncUnitOfWork) -> None:
        uow.messages.append(conversation, turn(1))

    end = await raced(shared_store, reopening(conversation), append, keep=keep, interactive=False)
    assert end is None if keep else isinstance(end, ConversationNotAcceptingMessages)
    assert await count(shared_store, conversation) == (2 if keep else 0)


async def test_an_interactive_append_that_waited_for_a_reopening_is_contested(
    shared_store: ConversationStore,
) -> None:
    """An interactive unit cannot be sent again by the store: TransactionAborted, retryable."""
    conversation = await start(shared_store)
    await close_conversation(shared_store.unit_of_work(), conversation_id=conversation)
    end = await raced(
        shared_store, reopening(conversation), sending(conversation), keep=True, interactive=True
    )
    assert isinstance(end, TransactionAborted)
    assert end.retryable


@pytest.mark.parametrize("interactive", [False, True])
@pytest.mark.parametrize("keep", [True, False])
async def test_a_close_that_waited_for_a_close(
    shared_store: ConversationStore, keep: bool, interactive: bool
) -> None:
    """Closed by another during the wait is success without change."""
    conversation = await start(shared_store)
    end = await raced(
        shared_store,
        closing(conversation),
        closing(conversation),
        keep=keep,
        interactive=interactive,
    )
    assert (end.status, end.version) == (Status.CLOSED, 2)


@pytest.mark.parametrize("keep", [True, False])
async def test_a_start_waits_for_a_start_of_the_same_session(
    shared_store: ConversationStore, keep: bool
) -> None:
    """DuplicateSession if the first commits; started if it rolls back."""

    async def starting(uow: AsyncUnitOfWork) -> Any:
        return (await start_conversation(uow, user_id="u", session_id="new"))[0]

    end = await raced(shared_store, starting, starting, keep=keep, interactive=False)
    if keep:
        assert isinstance(end, DuplicateSession)
    else:
        assert end.session_id == "new"


@pytest.mark.parametrize("keep", [True, False])
async def test_a_start_waits_for_a_delete_of_the_same_session(
    shared_store: ConversationStore, keep: bool
) -> None:
    """Started if the delete commits; DuplicateSession if it rolls back."""
    conversation = await start(shared_store)

    async def starting(uow: AsyncUnitOfWork) -> Any:
        return (await start_conversation(uow, user_id="u", session_id="s"))[0]

    end = await raced(shared_store, removing(conversation), starting, keep=keep, interactive=False)
    if keep:
        assert end.id != conversation
    else:
        assert isinstance(end, DuplicateSession)


@pytest.mark.parametrize("keep", [True, False])
async def test_get_or_start_waits_for_a_start_of_the_same_session(
    shared_store: ConversationStore, keep: bool
) -> None:
    """It gives the other's conversation if that commits, and starts its own if not."""

    async def act(uow: AsyncUnitOfWork) -> Any:
        return await get_or_start_conversation(uow, user_id="u", session_id="new")

    conversation, created = await raced(shared_store, act, act, keep=keep, interactive=False)
    found = await find_conversation(shared_store.unit_of_work(), user_id="u", session_id="new")
    assert found == conversation
    assert created is not keep


async def test_a_start_that_waits_holds_nothing(shared_store: ConversationStore) -> None:
    """Who waits for a session's conversation is in nobody's way: its owner may delete it."""
    conversation = await start(shared_store)

    async def starting() -> Any:
        return await start_conversation(shared_store.unit_of_work(), user_id="u", session_id="s")

    async with shared_store.unit_of_work() as uow:
        await uow.messages.append(conversation, turn(1))
        task = asyncio.create_task(starting())
        assert await is_waiting(shared_store, task)
        await uow.conversations.remove(conversation)
        again, _ = await uow.conversations.add(NewConversation(user_id="u", session_id="s"))
    with pytest.raises(DuplicateSession):
        await task
    found = await find_conversation(shared_store.unit_of_work(), user_id="u", session_id="s")
    assert found == again


async def test_a_skipped_record_locks_nothing(shared_store: ConversationStore) -> None:
    """A session that an open import left out may be deleted meanwhile."""
    conversation = await start(shared_store)
    record: Any = {"user_id": "u", "session_id": "s", "messages": []}

    async def importing(uow: AsyncUnitOfWork) -> None:
        receipt = await import_conversations(uow, records=[record], on_duplicate="skip")
        assert receipt.skipped == 1

    async with Held(shared_store, importing):
        async with asyncio.timeout(10):  # who waits for a lock has an error before
            await delete_conversation(shared_store.unit_of_work(), conversation_id=conversation)


async def test_a_wait_cancelled_as_the_lock_is_given_harms_nobody(
    shared_store: ConversationStore,
) -> None:
    """Cancelled in the moment in which the holder ends, a waiter ends as cancelled."""
    conversation = await start(shared_store)
    for _ in range(10):
        async with Held(shared_store, appending(conversation, draft("held"))) as held:
            task = asyncio.create_task(
                append_messages(
                    shared_store.unit_of_work(), conversation_id=conversation, drafts=turn(1)
                )
            )
            await asyncio.sleep(0.02)
            ending = asyncio.create_task(held.end())
            task.cancel()
            [end] = await asyncio.gather(task, return_exceptions=True)
            assert isinstance(end, (asyncio.CancelledError, list))
            await ending
    await append_messages(shared_store.unit_of_work(), conversation_id=conversation, drafts=turn(2))


async def test_an_inner_block_that_timed_out_leaves_the_outer_whole(
    shared_store: ConversationStore,
) -> None:
    """The first write of a unit timed out in an inner block: the outer goes on and commits."""
    busy, free = await start(shared_store, "busy"), await start(shared_store, "free")
    async with Held(shared_store, appending(busy)):
        for impatient in (True, False):
            async with shared_store.unit_of_work() as uow:
                with pytest.raises((TimeoutError, StoreTimeout)):
                    async with asyncio.timeout(SENT if impatient else 10):
                        await append_messages(uow, conversation_id=busy, drafts=turn(1))
                await append_messages(uow, conversation_id=free, drafts=turn(2))
            assert uow.outcome is Outcome.COMMITTED
    assert await count(shared_store, free) == 4
    assert await count(shared_store, busy) == 2


# Races ------------------------------------------------------------------------------------------


async def test_one_request_sent_by_many_is_stored_once(shared_store: ConversationStore) -> None:
    """16 concurrent sends of one request give all the same messages."""
    conversation = await start(shared_store)
    for number in range(10):
        answers = await asyncio.gather(
            *(
                append_messages(
                    shared_store.unit_of_work(),
                    conversation_id=conversation,
                    drafts=turn(number),
                    request_id=f"r-{number}",
                )
                for _ in range(16)
            )
        )
        assert all(answer == answers[0] for answer in answers)
    assert await count(shared_store, conversation) == 20


async def test_one_version_is_won_by_one(shared_store: ConversationStore) -> None:
    """Of 16 appends that expect the same version one is stored."""
    conversation = await start(shared_store)
    for version in range(1, 6):
        ends = await asyncio.gather(
            *(
                append_messages(
                    shared_store.unit_of_work(),
                    conversation_id=conversation,
                    drafts=turn(version),
                    expected_version=version,
                )
                for _ in range(16)
            ),
            return_exceptions=True,
        )
        assert sum(isinstance(end, list) for end in ends) == 1
        assert sum(isinstance(end, ConcurrentUpdate) for end in ends) == 15
    assert await count(shared_store, conversation) == 10


async def test_one_session_is_created_by_one(shared_store: ConversationStore) -> None:
    """Of 16 callers of get_or_start one creates, and all get the same conversation."""
    for number in range(10):
        ends = await asyncio.gather(
            *(
                get_or_start_conversation(
                    shared_store.unit_of_work(),
                    user_id="u",
                    session_id=f"s-{number}",
                    drafts=turn(1),
                )
                for _ in range(16)
            )
        )
        assert len({conversation.id for conversation, _ in ends}) == 1
        assert sum(created for _, created in ends) == 1
        assert await count(shared_store, ends[0][0].id) == 2


async def test_a_closing_and_reopening_conversation_loses_nothing(
    shared_store: ConversationStore,
) -> None:
    """Each append is stored or refused; those that were acknowledged are all there."""
    conversation = await start(shared_store)
    acknowledged: list[int] = []

    async def append() -> None:
        for number in range(15):
            try:
                messages = await append_messages(
                    shared_store.unit_of_work(),
                    conversation_id=conversation,
                    drafts=turn(number),
                )
            except (ConversationNotAcceptingMessages, TransactionAborted):
                await asyncio.sleep(0)
            else:
                acknowledged.extend(message.id for message in messages)

    async def flip() -> None:
        for _ in range(15):
            uow = shared_store.unit_of_work()
            await close_conversation(uow, conversation_id=conversation)
            await reopen_conversation(uow, conversation_id=conversation)

    await asyncio.gather(*(append() for _ in range(6)), flip(), flip())
    stored = await whole_history(shared_store, conversation)
    assert sorted(acknowledged) == sorted(message.id for message in stored)


async def test_appends_and_a_delete_leave_nothing_behind(
    shared_store: ConversationStore,
) -> None:
    """Appends that race a delete are stored before it or not found."""
    for number in range(5):
        conversation = await start(shared_store, f"s-{number}")
        appends = [
            append_messages(
                shared_store.unit_of_work(), conversation_id=conversation, drafts=turn(n)
            )
            for n in range(8)
        ]
        delete = delete_conversation(shared_store.unit_of_work(), conversation_id=conversation)
        ends = await asyncio.gather(*appends[:4], delete, *appends[4:], return_exceptions=True)
        for end in ends[:4] + ends[5:]:
            assert isinstance(end, (list, ConversationNotFound))
        with pytest.raises(ConversationNotFound):
            await get_conversation(shared_store.unit_of_work(), conversation_id=conversation)


async def test_many_writers_and_readers_on_one_conversation(
    shared_store: ConversationStore,
) -> None:
    """Positions have no gap, turns stay together, and every poll is a prefix of the end."""
    conversation = await start(shared_store)
    polls: list[list[int]] = []
    writing = True

    async def write(writer: int) -> None:
        for number in range(12):
            drafts = [draft(f"{writer}/{number}/{part}") for part in range(3)]
            await append_messages(
                shared_store.unit_of_work(), conversation_id=conversation, drafts=drafts
            )

    async def poll() -> None:
        while writing:
            page = await messages_after(
                shared_store.unit_of_work(),
                conversation_id=conversation,
                position=0,
                limit=1000,
            )
            polls.append([message.id for message in page])
            await asyncio.sleep(0.001)

    readers = [asyncio.create_task(poll()) for _ in range(2)]
    await asyncio.gather(*(write(writer) for writer in range(16)))
    writing = False
    await asyncio.gather(*readers)
    await check_history(shared_store, conversation, polls, turns=16 * 12, size=3)


async def test_updates_of_different_columns_do_not_undo_each_other(
    shared_store: ConversationStore,
) -> None:
    """Each update writes its own columns only, whatever else changes meanwhile."""
    conversation = await start(shared_store)

    async def update(**changes: Any) -> None:
        for _ in range(10):
            await update_conversation(
                shared_store.unit_of_work(), conversation_id=conversation, **changes
            )

    async def append() -> None:
        for number in range(10):
            await append_messages(
                shared_store.unit_of_work(), conversation_id=conversation, drafts=turn(number)
            )

    await asyncio.gather(update(rescue_id="r"), update(metadata={"a": 1}), append())
    found = await get_conversation(shared_store.unit_of_work(), conversation_id=conversation)
    assert (found.rescue_id, found.metadata) == ("r", {"a": 1})
    assert (found.message_count, found.version) == (20, 31)


# Helpers ----------------------------------------------------------------------------------------


async def contents(store: ConversationStore, conversation: int) -> list[str]:
    """Return what was said."""
    return [message.content for message in await whole_history(store, conversation)]


async def count(store: ConversationStore, conversation: int) -> int:
    """Return how many messages are stored."""
    return len(await whole_history(store, conversation))
