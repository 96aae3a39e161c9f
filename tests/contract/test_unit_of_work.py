"""The contract of the unit of work, rule by rule; the numbers are those of its rules."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from store_fixtures import draft, turn

from conversation_store import (
    ConcurrentUpdate,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    DuplicateSession,
    InvalidMessage,
    Outcome,
    RequestConflict,
    Status,
    UnitOfWorkMisuse,
    append_messages,
    close_conversation,
    find_conversation,
    get_conversation,
    latest_messages,
    start_conversation,
)
from conversation_store.domain.conversation import ConversationChanges, NewConversation

MISSING = 4_000_000_000_000


class HostError(Exception):
    """An error of the host's own."""


def new(session: str = "n", user: str = "u") -> NewConversation:
    """Return a conversation to be added."""
    return NewConversation(user_id=user, session_id=session)


@pytest.fixture
async def conversation(store: Any) -> int:
    """Give a conversation with one turn."""
    started, _ = await start_conversation(
        store.unit_of_work(), user_id="u", session_id="s", drafts=turn(0)
    )
    return started.id


async def count(store: Any, conversation_id: int) -> int:
    """Return how many messages are stored, having checked that they are what is counted."""
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation_id)
    messages = await latest_messages(
        store.unit_of_work(), conversation_id=conversation_id, limit=1000
    )
    assert [message.position for message in messages] == list(range(1, found.message_count + 1))
    return found.message_count


async def exists(store: Any, session: str) -> bool:
    """Return whether a session is stored."""
    return (
        await find_conversation(store.unit_of_work(), user_id="u", session_id=session) is not None
    )


# 1: blocks --------------------------------------------------------------------------------------


async def test_leaving_normally_commits(store: Any, conversation: int) -> None:
    """Rule 1: what was registered is stored when the outermost block is left."""
    async with store.unit_of_work() as uow:
        uow.messages.append(conversation, turn(1))
        uow.conversations.update(conversation, ConversationChanges(rescue_id="r"))
    assert uow.outcome is Outcome.COMMITTED
    assert await count(store, conversation) == 4
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    assert found.rescue_id == "r"


@pytest.mark.parametrize("flushed", [False, True])
async def test_leaving_by_an_exception_discards_and_raises_it(
    store: Any, conversation: int, flushed: bool
) -> None:
    """Rule 1: an exception leaves nothing behind and goes on, sent before or not."""
    uow = store.unit_of_work()
    with pytest.raises(HostError):
        async with uow:
            pending = uow.messages.append(conversation, turn(1))
            if flushed:
                await pending
            raise HostError
    assert uow.outcome is (Outcome.ROLLED_BACK if flushed else Outcome.NOT_STARTED)
    assert await count(store, conversation) == 2


@pytest.mark.parametrize("flushed", [False, True])
async def test_rollback_discards_and_leaves_cleanly(
    store: Any, conversation: int, flushed: bool
) -> None:
    """Rule 1: after rollback() the block is left without an error and nothing is stored."""
    async with store.unit_of_work() as uow:
        pending = uow.messages.append(conversation, turn(1))
        if flushed:
            await pending
        await uow.rollback()
        await uow.rollback()
    assert await count(store, conversation) == 2


async def test_rollback_of_an_inner_block_keeps_the_outer(store: Any, conversation: int) -> None:
    """Rule 1: rollback() discards the innermost block only."""
    async with store.unit_of_work() as uow:
        uow.messages.append(conversation, [draft("outer")])
        async with uow:
            await uow.messages.append(conversation, [draft("inner")])
            await uow.rollback()
        uow.messages.append(conversation, [draft("outer again")])
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert [m.content for m in messages[2:]] == ["outer", "outer again"]
    assert await count(store, conversation) == 4


@pytest.mark.parametrize("state", ["failed", "discarded"])
async def test_a_block_that_is_not_live_takes_nothing_more(
    store: Any, conversation: int, state: str
) -> None:
    """Rule 1: in a failed or discarded block reads, writes and new blocks are misuse."""
    async with store.unit_of_work() as uow:
        if state == "discarded":
            await uow.rollback()
        else:
            with pytest.raises(ConversationNotFound):
                await uow.messages.append(MISSING, turn(1))
        with pytest.raises(UnitOfWorkMisuse):
            uow.messages.append(conversation, turn(1))
        with pytest.raises(UnitOfWorkMisuse):
            await uow.conversations.get(conversation)
        with pytest.raises(UnitOfWorkMisuse):
            async with uow:
                pass
        with pytest.raises(UnitOfWorkMisuse):
            await uow.connection()
        await uow.rollback()
    assert await count(store, conversation) == 2


async def test_leaving_a_failed_block_raises_its_error_again(store: Any, conversation: int) -> None:
    """Rule 1: an error that was swallowed inside comes back at the end, and nothing is stored."""
    uow = store.unit_of_work()
    with pytest.raises(ConversationNotFound) as caught:
        async with uow:
            uow.messages.append(conversation, turn(1))
            pending = uow.messages.append(MISSING, turn(1))
            with pytest.raises(ConversationNotFound) as first:
                await pending
    assert caught.value is first.value
    assert uow.outcome is Outcome.ROLLED_BACK
    assert await count(store, conversation) == 2


async def test_a_failed_block_may_be_rolled_back(store: Any, conversation: int) -> None:
    """Rule 1: rollback() makes a failed block leave cleanly."""
    async with store.unit_of_work() as uow:
        with pytest.raises(ConversationNotFound):
            await uow.messages.append(MISSING, turn(1))
        await uow.rollback()
    assert await count(store, conversation) == 2


async def test_an_exception_leaves_a_failed_block_as_itself(store: Any, conversation: int) -> None:
    """Rule 1: the exception that leaves a block wins over the error of the block."""
    with pytest.raises(HostError):
        async with store.unit_of_work() as uow:
            with pytest.raises(ConversationNotFound):
                await uow.messages.append(MISSING, turn(1))
            raise HostError
    assert await count(store, conversation) == 2


# 2: registered writes ---------------------------------------------------------------------------


async def test_a_write_validates_when_it_is_registered(store: Any, conversation: int) -> None:
    """Rule 2: a bad value is refused at once and the block goes on."""
    async with store.unit_of_work() as uow:
        with pytest.raises(InvalidMessage):
            uow.messages.append(conversation, [])
        uow.messages.append(conversation, [draft("good")])
    assert await count(store, conversation) == 3


async def test_reads_see_the_units_own_writes(store: Any, conversation: int) -> None:
    """Rule 2: a read in the block shows what was registered before it."""
    async with store.unit_of_work() as uow:
        uow.messages.append(conversation, [draft("own")])
        uow.conversations.set_status(conversation, Status.CLOSED)
        found = await uow.conversations.get(conversation)
        [newest] = await uow.messages.latest(conversation, limit=1)
        assert (found.status, found.message_count, newest.content) == ("closed", 3, "own")
        assert await uow.messages.get(newest.id) == newest
        page = await uow.conversations.list_page("u")
        assert [listed.id for listed in page.conversations] == [conversation]
        await uow.rollback()


async def test_a_unit_that_started_a_conversation_can_go_on_with_it(store: Any) -> None:
    """Rule 2: the id of a new conversation is known once its Pending is."""
    async with store.unit_of_work() as uow:
        started, _ = await uow.conversations.add(new(), turn(1))
        messages = uow.messages.append(started.id, turn(2))
        closed = uow.conversations.set_status(started.id, Status.CLOSED)
    assert [message.position for message in await messages] == [3, 4]
    assert (await closed).version == 3
    assert await count(store, started.id) == 4


async def test_writes_are_carried_out_in_the_order_registered(
    store: Any, conversation: int
) -> None:
    """Rule 3: later writes of a unit see the earlier ones."""
    async with store.unit_of_work() as uow:
        first = uow.messages.append(conversation, [draft("1")])
        closed = uow.conversations.set_status(conversation, Status.CLOSED)
        reopened = uow.conversations.set_status(conversation, Status.ACTIVE)
        second = uow.messages.append(conversation, [draft("2")])
        removed = uow.conversations.remove(conversation)
        again = uow.conversations.add(new("s"), [draft("3")])
    assert [(await p)[0].position for p in (first, second)] == [3, 4]
    assert ((await closed).version, (await reopened).version) == (3, 4)
    await removed
    assert (await again)[0].id != conversation


# 3: flush points and Pendings -------------------------------------------------------------------


async def test_awaiting_a_pending_gives_its_result_before_the_end(
    store: Any, conversation: int
) -> None:
    """Rule 3: awaiting sends what is registered; the value stays the same afterwards."""
    async with store.unit_of_work() as uow:
        pending = uow.messages.append(conversation, turn(1))
        inside = await pending
        assert [message.position for message in inside] == [3, 4]
    assert await pending == inside


async def test_the_first_failure_is_raised_once_and_nothing_is_stored(
    store: Any, conversation: int
) -> None:
    """Rule 3: writes after a refused one are not carried out, those before it are undone."""
    uow = store.unit_of_work()
    with pytest.raises(ConversationNotFound):
        async with uow:
            before = uow.messages.append(conversation, turn(1))
            guilty = uow.messages.append(MISSING, turn(2))
            after = uow.conversations.update(conversation, ConversationChanges(rescue_id="r"))
    assert uow.outcome is Outcome.ROLLED_BACK
    for pending in (before, guilty, after):
        with pytest.raises(ConversationNotFound):
            await pending
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    assert (found.message_count, found.rescue_id) == (2, None)


@pytest.mark.parametrize("place", ["read", "pending", "exit"])
async def test_an_error_surfaces_at_the_flush_point(
    store: Any, conversation: int, place: str
) -> None:
    """Rule 3: a read, an await or the exit raises the error of a write registered before."""
    uow = store.unit_of_work()
    reached = []
    with pytest.raises(ConversationNotFound):
        async with uow:
            uow.messages.append(MISSING, turn(1))
            other = uow.messages.append(conversation, turn(1))
            reached.append("registered")
            if place == "read":
                await uow.conversations.get(conversation)
            elif place == "pending":
                await other
            reached.append("not flushed")
    assert reached == (["registered", "not flushed"] if place == "exit" else ["registered"])
    assert await count(store, conversation) == 2


async def test_a_pending_of_a_discarded_block_has_no_result(store: Any, conversation: int) -> None:
    """Rule 3: a Pending raises once its block, or one around it, was discarded."""
    async with store.unit_of_work() as uow:
        async with uow:
            kept = uow.messages.append(conversation, turn(1))
        assert len(await kept) == 2
        await uow.rollback()
    with pytest.raises(UnitOfWorkMisuse, match="discarded"):
        await kept
    with pytest.raises(HostError):
        async with uow:
            lost = uow.messages.append(conversation, turn(1))
            raise HostError
    with pytest.raises(UnitOfWorkMisuse) as caught:
        await lost
    assert isinstance(caught.value.__cause__, HostError)


async def test_a_pending_of_a_failed_inner_block_raises_its_error(
    store: Any, conversation: int
) -> None:
    """Rule 3: the Pendings of a block that failed raise the error it failed with."""
    async with store.unit_of_work() as uow:
        with pytest.raises(ConversationNotFound):
            async with uow:
                good = uow.messages.append(conversation, turn(1))
                uow.messages.append(MISSING, turn(1))
        with pytest.raises(ConversationNotFound):
            await good
    with pytest.raises(ConversationNotFound):
        await good


# 4: nesting -------------------------------------------------------------------------------------


async def test_two_service_functions_in_a_block_commit_together(store: Any) -> None:
    """Rule 4: both are stored when the outer block is left."""
    async with store.unit_of_work() as uow:
        first, _ = await start_conversation(uow, user_id="u", session_id="a", drafts=turn(1))
        second, _ = await start_conversation(uow, user_id="u", session_id="b")
        await append_messages(uow, conversation_id=second.id, drafts=turn(1))
    assert await count(store, first.id) == await count(store, second.id) == 2


async def test_two_service_functions_in_a_block_vanish_together(store: Any) -> None:
    """Rule 4: neither is stored when the outer block is left by an exception."""
    with pytest.raises(HostError):
        async with store.unit_of_work() as uow:
            await start_conversation(uow, user_id="u", session_id="a", drafts=turn(1))
            await start_conversation(uow, user_id="u", session_id="b")
            raise HostError
    assert not await exists(store, "a")
    assert not await exists(store, "b")


async def test_a_caught_failure_of_an_inner_block_undoes_only_that(
    store: Any, conversation: int
) -> None:
    """Rule 4: the outer block goes on after an inner error was caught, and commits."""
    async with store.unit_of_work() as uow:
        await append_messages(uow, conversation_id=conversation, drafts=[draft("1")])
        with pytest.raises(DuplicateSession):
            await start_conversation(uow, user_id="u", session_id="s")
        with pytest.raises(ConversationNotFound):
            async with uow:
                uow.messages.append(conversation, [draft("gone")])
                uow.messages.append(MISSING, [draft("guilty")])
        await append_messages(uow, conversation_id=conversation, drafts=[draft("2")])
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert [message.content for message in messages[2:]] == ["1", "2"]
    assert await count(store, conversation) == 4


async def test_an_exception_leaves_an_inner_block_and_is_caught_outside(
    store: Any, conversation: int
) -> None:
    """Rule 4: an inner block left by the host's exception is undone, flushed or not."""
    async with store.unit_of_work() as uow:
        for flushed in (False, True):
            with pytest.raises(HostError):
                async with uow:
                    pending = uow.messages.append(conversation, [draft("gone")])
                    if flushed:
                        await pending
                    raise HostError
        uow.messages.append(conversation, [draft("kept")])
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert [message.content for message in messages[2:]] == ["kept"]


async def test_an_error_of_an_outer_write_fails_the_outer_block(
    store: Any, conversation: int
) -> None:
    """Rule 3, 4: found at an inner flush, it fails the block that registered the guilty write."""
    uow = store.unit_of_work()
    with pytest.raises(ConversationNotFound):
        async with uow:
            uow.messages.append(MISSING, turn(1))
            with pytest.raises(ConversationNotFound):
                async with uow:
                    uow.messages.append(conversation, turn(1))
            with pytest.raises(UnitOfWorkMisuse):
                uow.messages.append(conversation, turn(1))
    assert await count(store, conversation) == 2


async def test_an_inner_error_after_outer_writes_keeps_those(store: Any, conversation: int) -> None:
    """Rule 4: outer writes that are sent with an inner block survive that block's failure."""
    async with store.unit_of_work() as uow:
        outer = uow.messages.append(conversation, [draft("outer")])
        with pytest.raises(ConversationNotFound):
            async with uow:
                uow.messages.append(MISSING, turn(1))
    assert (await outer)[0].position == 3
    assert await count(store, conversation) == 3


async def test_blocks_nest_deeply(store: Any, conversation: int) -> None:
    """Rule 4: of blocks in blocks each is undone or kept by itself."""
    async with store.unit_of_work() as uow:
        async with uow:
            uow.messages.append(conversation, [draft("1")])
            async with uow:
                uow.messages.append(conversation, [draft("1.1")])
                with pytest.raises(HostError):
                    async with uow:
                        await uow.messages.append(conversation, [draft("1.1.1")])
                        raise HostError
                async with uow:
                    uow.messages.append(conversation, [draft("1.1.2")])
            async with uow:
                await uow.messages.append(conversation, [draft("1.2")])
                await uow.rollback()
        uow.messages.append(conversation, [draft("2")])
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert [message.content for message in messages[2:]] == ["1", "1.1", "1.1.2", "2"]


async def test_an_inner_block_that_only_reads_is_nothing(store: Any, conversation: int) -> None:
    """Rule 4: leaving it keeps what the outer block registered in order."""
    async with store.unit_of_work() as uow:
        first = uow.messages.append(conversation, [draft("1")])
        async with uow:
            assert (await uow.conversations.get(conversation)).message_count == 3
        async with uow:
            pass
        second = uow.messages.append(conversation, [draft("2")])
    assert [(await p)[0].position for p in (first, second)] == [3, 4]


async def test_an_outer_rollback_takes_finished_inner_blocks_with_it(
    store: Any, conversation: int
) -> None:
    """Rule 4: what an inner block did is kept only if the outer one is."""
    async with store.unit_of_work() as uow:
        await append_messages(uow, conversation_id=conversation, drafts=turn(1))
        await close_conversation(uow, conversation_id=conversation)
        await uow.rollback()
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation)
    assert (found.status, found.message_count) == (Status.ACTIVE, 2)


async def test_a_session_freed_and_taken_in_an_inner_block_comes_back(
    store: Any, conversation: int
) -> None:
    """Rule 4: a delete and a new start of the session are undone together."""
    async with store.unit_of_work() as uow:
        async with uow:
            uow.conversations.remove(conversation)
            started, _ = await uow.conversations.add(new("s"), turn(5))
            assert (await uow.conversations.find("s", "u")) == started
            await uow.rollback()
        found = await uow.conversations.find("s", "u")
        assert found is not None
        assert found.id == conversation
    assert await count(store, conversation) == 2


@pytest.mark.parametrize("end", ["caught", "rolled back", "read after"])
async def test_a_unit_whose_only_write_was_discarded_ends_like_any_other(
    store: Any, conversation: int, end: str
) -> None:
    """Rule 4: an outer block that wrote nothing itself ends what its inner block began."""
    uow = store.unit_of_work()
    for _ in range(3):
        async with uow:
            if end == "rolled back":
                async with uow:
                    await uow.messages.append(conversation, turn(1))
                    await uow.rollback()
            else:
                with pytest.raises(HostError):
                    async with uow:
                        await append_messages(uow, conversation_id=conversation, drafts=turn(1))
                        raise HostError
            if end == "read after":
                assert (await uow.conversations.get(conversation)).message_count == 2
    async with uow:
        uow.messages.append(conversation, turn(1))
    assert await count(store, conversation) == 4


@pytest.mark.parametrize("how", ["exception", "rollback", "failure"])
async def test_a_discarded_block_takes_its_finished_inner_blocks_with_it(
    store: Any, conversation: int, how: str
) -> None:
    """Rule 4: what follows in the outer block does not trip over what was discarded."""
    uow = store.unit_of_work()
    async with uow:
        uow.messages.append(conversation, [draft("outer")])
        try:
            async with uow:
                await append_messages(uow, conversation_id=conversation, drafts=[draft("gone")])
                async with uow:
                    await append_messages(uow, conversation_id=conversation, drafts=turn(7))
                if how == "exception":
                    raise HostError
                if how == "rollback":
                    await uow.rollback()
                else:
                    uow.messages.append(MISSING, turn(1))
        except (HostError, ConversationNotFound):
            assert how != "rollback"
        await append_messages(uow, conversation_id=conversation, drafts=[draft("kept")])
        async with uow:
            await append_messages(uow, conversation_id=conversation, drafts=[draft("too")])
    assert uow.outcome is Outcome.COMMITTED
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert [message.content for message in messages[2:]] == ["outer", "kept", "too"]


async def test_a_changed_value_is_stored_as_it_was_registered(store: Any) -> None:
    """Rule 2: metadata that is changed between registering and sending has no effect."""
    first, second = {"a": [1]}, {"b": [1]}
    started = NewConversation(user_id="u", session_id="n", metadata=first)
    async with store.unit_of_work() as uow:
        pending = uow.conversations.add(started)
        assert started.metadata is not None
        started.metadata["a"].append(2)
        conversation, _ = await pending
        changes = ConversationChanges(metadata=second)
        uow.conversations.update(conversation.id, changes)
        assert isinstance(changes.metadata, dict)
        changes.metadata["b"].append(2)
    assert conversation.metadata == {"a": [1]}
    found = await get_conversation(store.unit_of_work(), conversation_id=conversation.id)
    assert found.metadata == {"b": [1]}


# 6, 7: units ------------------------------------------------------------------------------------


async def test_a_unit_that_only_reads_has_started_nothing(store: Any, conversation: int) -> None:
    """Rule 6: reads need no transaction."""
    async with store.unit_of_work() as uow:
        await uow.conversations.get(conversation)
    assert uow.outcome is Outcome.NOT_STARTED


async def test_the_object_may_be_entered_again(store: Any, conversation: int) -> None:
    """Rule 7: after the outermost exit the same object is a new unit."""
    uow = store.unit_of_work()
    async with uow:
        uow.messages.append(conversation, turn(1))
    with pytest.raises(ConversationNotFound):
        async with uow:
            uow.messages.append(MISSING, turn(1))
    ends = [uow.outcome]
    async with uow:
        ends.append(uow.outcome)
        uow.messages.append(conversation, turn(2))
    ends.append(uow.outcome)
    assert ends == ["rolled_back", "not_started", "committed"]
    assert await count(store, conversation) == 6


async def test_a_unit_belongs_to_the_task_that_entered_it(store: Any, conversation: int) -> None:
    """Rule 7: use from another task is misuse and changes nothing."""

    async def intrude(uow: Any) -> list[type[BaseException]]:
        errors: list[type[BaseException]] = []
        for attempt in (
            lambda: uow.conversations.get(conversation),
            uow.__aenter__,
            uow.rollback,
            lambda: uow.__aexit__(None, None, None),
            uow.connection,
            lambda: append_messages(uow, conversation_id=conversation, drafts=turn(9)),
        ):
            try:
                await attempt()
            except UnitOfWorkMisuse as error:
                errors.append(type(error))
        with pytest.raises(UnitOfWorkMisuse):
            uow.messages.append(conversation, turn(9))
        return errors

    async with store.unit_of_work() as uow:
        pending = uow.messages.append(conversation, turn(1))
        assert len(await asyncio.create_task(intrude(uow))) == 6
    assert len(await pending) == 2
    assert await count(store, conversation) == 4


async def test_a_pending_may_be_awaited_by_any_task_once_the_unit_is_over(
    store: Any, conversation: int
) -> None:
    """Rule 7: a result is no use of the unit."""
    async with store.unit_of_work() as uow:
        pending = uow.messages.append(conversation, turn(1))

    async def wait() -> int:
        return len(await pending)

    assert await asyncio.create_task(wait()) == 2


async def test_a_unit_is_used_inside_its_block(store: Any, conversation: int) -> None:
    """Rule 7: before entering and after leaving, use is misuse."""
    uow = store.unit_of_work()
    for _ in range(2):
        with pytest.raises(UnitOfWorkMisuse, match="not entered"):
            uow.messages.append(conversation, turn(1))
        with pytest.raises(UnitOfWorkMisuse, match="not entered"):
            await uow.conversations.get(conversation)
        with pytest.raises(UnitOfWorkMisuse, match="not entered"):
            await uow.rollback()
        async with uow:
            pass


@pytest.mark.parametrize("how", ["leave", "rollback"])
async def test_a_unit_of_a_task_that_ended_can_be_cleaned_up_by_another(
    store: Any, conversation: int, how: str
) -> None:
    """Rule 7: whoever finds a unit that its task left open may end it, and nothing else."""
    uow = store.unit_of_work()

    async def leave_open() -> None:
        await uow.__aenter__()
        await uow.messages.append(conversation, turn(1))

    await asyncio.create_task(leave_open())
    with pytest.raises(UnitOfWorkMisuse):
        uow.messages.append(conversation, turn(2))
    if how == "rollback":
        await uow.rollback()
    error = HostError() if how == "leave" else None
    await uow.__aexit__(type(error) if error else None, error, None)
    assert await count(store, conversation) == 2


# 8: cancellation --------------------------------------------------------------------------------


@pytest.mark.parametrize("flushed", [False, True])
async def test_cancelled_before_leaving_nothing_is_stored(
    store: Any, conversation: int, flushed: bool
) -> None:
    """Rule 8: a task cancelled inside the block stores nothing; what was sent is undone."""
    uow = store.unit_of_work()
    entered = asyncio.Event()

    async def work() -> None:
        async with uow:
            pending = uow.messages.append(conversation, turn(1))
            if flushed:
                await pending
            entered.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert uow.outcome is (Outcome.ROLLED_BACK if flushed else Outcome.NOT_STARTED)
    assert await count(store, conversation) == 2


async def test_a_timeout_inside_the_block_is_an_exception_like_others(
    store: Any, conversation: int
) -> None:
    """Rule 8: an inner block that ran out of time is undone; the outer goes on."""
    async with store.unit_of_work() as uow:
        uow.messages.append(conversation, [draft("kept")])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(None) as limit, uow:
                await uow.messages.append(conversation, [draft("gone")])
                limit.reschedule(asyncio.get_running_loop().time())
                await asyncio.sleep(60)
    messages = await latest_messages(store.unit_of_work(), conversation_id=conversation)
    assert [message.content for message in messages[2:]] == ["kept"]


# 11: verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("missing", ConversationNotFound),
        ("closed", ConversationNotAcceptingMessages),
        ("stale", ConcurrentUpdate),
        ("conflict", RequestConflict),
        ("duplicate", DuplicateSession),
    ],
)
async def test_a_refusal_stops_the_whole_unit(store: Any, kind: str, error: Any) -> None:
    """Rule 11: whatever a write is refused for, the writes beside it are not stored."""
    uow = store.unit_of_work()
    good, _ = await start_conversation(uow, user_id="u", session_id="good")
    bad, _ = await start_conversation(uow, user_id="u", session_id="bad")
    await append_messages(uow, conversation_id=bad.id, drafts=turn(1), request_id="r")
    if kind == "closed":
        await close_conversation(uow, conversation_id=bad.id)
    with pytest.raises(error):
        async with uow:
            uow.messages.append(good.id, turn(1))
            if kind == "missing":
                uow.messages.append(MISSING, turn(1))
            elif kind == "closed":
                uow.messages.append(bad.id, turn(1))
            elif kind == "stale":
                uow.messages.append(bad.id, turn(1), expected_version=1)
            elif kind == "conflict":
                uow.messages.append(bad.id, turn(2), request_id="r")
            else:
                uow.conversations.add(new("bad"))
            uow.conversations.set_status(good.id, Status.CLOSED)
    found = await get_conversation(uow, conversation_id=good.id)
    assert (found.message_count, found.status) == (0, Status.ACTIVE)


async def test_a_replay_inside_a_unit_lets_the_rest_be_stored(
    store: Any, conversation: int
) -> None:
    """Rule 11: request_id makes one append idempotent, not the unit around it."""
    uow = store.unit_of_work()
    first = await append_messages(uow, conversation_id=conversation, drafts=turn(1), request_id="r")
    async with uow:
        replayed = uow.messages.append(conversation, turn(1), request_id="r")
        added = uow.messages.append(conversation, turn(2))
    assert await replayed == first
    assert [message.position for message in await added] == [5, 6]
