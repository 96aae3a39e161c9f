"""Group commit: what is sent for whom, counted on the wire, and what if that goes wrong."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import psycopg
import pytest
from attrs import define
from histories import whole_history
from patience import LONG, wait_for_the_server
from psycopg.conninfo import make_conninfo
from server_waits import until_the_server_waits
from store_fixtures import draft, open_store, turn
from wire_proxy import WireCount, WireProxy

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    ConversationNotAcceptingMessages,
    ConversationStore,
    Message,
    MessageDraft,
    Outcome,
    Retry,
    StoreClosed,
    StoreTimeout,
    append_messages,
    close_conversation,
    start_conversation,
)
from conversation_store.adapters.postgres import group_commit
from conversation_store.adapters.postgres.flush import MOST_CHARACTERS, MOST_TURNS, Seat
from conversation_store.adapters.postgres.group_commit import MOST_AWAY, GroupCommit


@define
class Sending:
    """A turn on its way."""

    uow: AsyncUnitOfWork
    task: asyncio.Task[list[Message]]


@define
class Crowd:
    """A coalescing store behind the counting proxy, with ids drawn and conversations in it."""

    store: ConversationStore
    proxy: WireProxy
    dsn: str
    chats: list[int]

    def send(
        self, chat: int, drafts: Sequence[MessageDraft] | None = None, **options: Any
    ) -> Sending:
        """Begin to append a turn."""
        uow = self.store.unit_of_work()
        call = append_messages(uow, conversation_id=chat, drafts=drafts or turn(1), **options)
        return Sending(uow, asyncio.create_task(call))

    @property
    def adapter(self) -> Any:
        """What is inside the store."""
        adapter: Any = self.store._adapter
        return adapter

    @property
    def group(self) -> GroupCommit:
        """The group commit of the store."""
        group: GroupCommit = self.adapter._group_commit
        return group

    @contextmanager
    def count(self) -> Iterator[WireCount]:
        """Count what is sent, and check afterwards that nothing of the crowd is left."""
        with self.proxy.count() as wire:
            yield wire
        group = self.group
        assert (group._away, group._waiting, group._alone, group._occupied) == (0, {}, set(), {})

    @asynccontextmanager
    async def locked(self, *chats: int) -> AsyncIterator[None]:
        """Hold conversations as a host's transaction may; without any, all inserts of messages."""
        async with await psycopg.AsyncConnection.connect(self.dsn) as host:
            if not chats:
                await host.execute("LOCK TABLE operational.ai_messages IN SHARE MODE")
            await host.execute(
                "SELECT FROM operational.ai_conversations WHERE id = ANY(%s) FOR UPDATE",
                [list(chats)],
            )
            yield
            await host.rollback()

    async def waiting_backends(self) -> list[int]:
        """Return, as soon as there are any, the server's processes that wait for a lock."""
        connecting = psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        async with asyncio.timeout(5), await connecting as connection:
            while True:
                cursor = await connection.execute(
                    "SELECT pid FROM pg_stat_activity"
                    " WHERE wait_event_type = 'Lock' AND query LIKE '%SKIP LOCKED%'"
                )
                if rows := await cursor.fetchall():
                    return [pid for (pid,) in rows]

    async def terminate(self, pids: Sequence[int]) -> None:
        """End processes of the server."""
        async with await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection:
            for pid in pids:
                await connection.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])


@asynccontextmanager
async def crowd_of(
    dsn: str, migrated: set[str], *, settings: str = "", **options: Any
) -> AsyncIterator[Crowd]:
    """Open a crowd's store; `settings` are those of its sessions."""
    async with WireProxy(dsn) as proxy:
        through = make_conninfo(proxy.dsn, options=settings)
        values = {"min_size": 4, "max_size": 8, "coalesce": True} | options
        opened = open_store(dsn, "operational", migrated, through=through, **values)
        async with opened as store:
            chats = [
                (await start_conversation(store.unit_of_work(), user_id="u", session_id=f"s-{n}"))
                for n in range(8)
            ]
            yield Crowd(store, proxy, dsn, [conversation.id for conversation, _ in chats])


@pytest.fixture
async def crowd(dsn: str, migrated: set[str]) -> AsyncIterator[Crowd]:
    """Give a coalescing store."""
    async with crowd_of(dsn, migrated) as opened:
        yield opened


@pytest.fixture
async def crowd_once(dsn: str, migrated: set[str]) -> AsyncIterator[Crowd]:
    """Give a coalescing store that tries nothing again."""
    async with crowd_of(dsn, migrated, retry=Retry(attempts=1)) as opened:
        yield opened


async def ends_of(sent: Sequence[Sending]) -> list[Any]:
    """Wait for turns, and return how they ended."""
    return await asyncio.gather(*(sending.task for sending in sent), return_exceptions=True)


async def stored(crowd: Crowd) -> int:
    """Return how many messages are stored, having checked that positions have no gaps."""
    total = 0
    for chat in crowd.chats:
        history = await whole_history(crowd.store, chat)
        assert [message.position for message in history] == list(range(1, len(history) + 1))
        total += len(history)
    return total


def joint(wire: WireCount) -> int:
    """Return how many of the statements carried turns of several units."""
    return sum("SKIP LOCKED" in text for text in wire.texts)


# What is sent -------------------------------------------------------------------------------------


async def test_a_lone_turn_goes_as_without_group_commit(crowd: Crowd) -> None:
    """One round trip, the plain statement, no task, also after a crowd was there."""
    for _ in range(2):
        for request_id in (None, "r"):
            tasks = len(asyncio.all_tasks())
            with crowd.count() as wire:
                await append_messages(
                    crowd.store.unit_of_work(),
                    conversation_id=crowd.chats[0],
                    drafts=turn(1),
                    request_id=request_id,
                )
            assert (wire.round_trips, wire.statements, joint(wire)) == (1, 1, 0)
            assert len(asyncio.all_tasks()) == tasks
        await ends_of([crowd.send(chat) for chat in crowd.chats])


async def test_turns_that_wait_together_are_one_statement(crowd: Crowd) -> None:
    """The first goes at once; all that came meanwhile share a round trip."""
    with crowd.count() as wire:
        sent = [crowd.send(crowd.chats[7], turn(0))]
        sent += [crowd.send(crowd.chats[n % 7], turn(n)) for n in range(1, MOST_TURNS + 1)]
        ends = await ends_of(sent)
    assert (wire.round_trips, wire.statements, joint(wire)) == (2, 2, 1)
    for number, messages in enumerate(ends):
        assert [m.content for m in messages] == [d.content for d in turn(number)]
    assert await stored(crowd) == 2 * (MOST_TURNS + 1)


async def test_a_flush_has_a_limit_in_characters(crowd: Crowd) -> None:
    """A turn that is larger than a flush goes alone, and those that came with it without it."""
    large = [draft("x" * MOST_CHARACTERS)]
    with crowd.count() as wire:
        sent = [crowd.send(crowd.chats[n]) for n in range(3)]
        sent.append(crowd.send(crowd.chats[3], large))
        sent += [crowd.send(crowd.chats[n]) for n in range(3, 8)]
        ends = await ends_of(sent)
    assert [len(end) for end in ends] == [2, 2, 2, 1, 2, 2, 2, 2, 2]
    assert ends[3][0].position == 1  # not overtaken by the other turn of its conversation
    assert joint(wire) < wire.statements - 1  # the first turn, and the large one


async def test_what_does_not_join_goes_as_before(crowd: Crowd) -> None:
    """An expected version, or several writes: never in a statement with those of others."""

    async def both(chat: int) -> None:
        async with crowd.store.unit_of_work() as uow:
            uow.messages.append(chat, turn(1))
            uow.messages.append(chat, turn(2))

    with crowd.count() as wire:
        sent = [crowd.send(chat, expected_version=1) for chat in crowd.chats]
        ends = await ends_of(sent)
        await asyncio.gather(*(both(chat) for chat in crowd.chats))
    assert joint(wire) == 0
    assert [len(end) for end in ends] == [2] * 8
    assert await stored(crowd) == 8 * 6


# Locks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("locked", [1, 4])
async def test_a_locked_conversation_holds_up_no_other(crowd: Crowd, locked: int) -> None:
    """All others are stored while a host holds it; its own turns wait, and come in order."""
    held, free = crowd.chats[:locked], crowd.chats[locked:]
    with crowd.count():
        async with crowd.locked(*held), asyncio.timeout(5):
            waiting = [crowd.send(chat, turn(n)) for n in range(3) for chat in held]
            others = [crowd.send(chat) for chat in free]
            await asyncio.gather(*(sending.task for sending in others))
            for chat in free:  # each finds those before it that wait
                await crowd.send(chat).task
            assert not any(sending.task.done() for sending in waiting)
        ends = await ends_of(waiting)
    for number, messages in enumerate(ends):
        assert messages[0].position == 1 + 2 * (number // locked)
    assert await stored(crowd) == 2 * (3 * locked + 2 * len(free))


async def test_lone_turns_that_wait_for_a_lock_hold_up_no_other(crowd: Crowd) -> None:
    """After a moment the next goes without them, but none of their own conversations."""
    held = crowd.chats[:MOST_AWAY]
    with crowd.count() as wire:
        async with crowd.locked(*held), asyncio.timeout(5):
            waiting = []
            for chat in held:
                waiting.append(crowd.send(chat))
                await asyncio.sleep(0.05)
            for chat in crowd.chats[MOST_AWAY:]:
                await crowd.send(chat).task
            assert not any(sending.task.done() for sending in waiting)
            sent = wire.statements
            waiting.append(crowd.send(held[0], turn(2)))
            await asyncio.sleep(0.05)
            assert wire.statements == sent
        ends = await ends_of(waiting)
    assert [messages[0].position for messages in ends] == [1] * len(held) + [3]


async def test_turns_that_a_flush_passed_over_stay_before_those_that_came_later(
    crowd: Crowd,
) -> None:
    """What waits for its conversation is stored in the order in which it came."""
    chat, texts = crowd.chats[0], crowd.adapter._texts
    texts.append_together += b", (SELECT pg_advisory_xact_lock_shared(7)) AS slow"
    async with crowd.locked(chat), await psycopg.AsyncConnection.connect(crowd.dsn) as brake:
        await brake.execute("SELECT pg_advisory_xact_lock(7)")
        others = [crowd.send(crowd.chats[1]), crowd.send(crowd.chats[2])]
        sent = [crowd.send(chat, turn(n)) for n in range(4)]
        await until_the_server_waits(crowd.dsn)
        assert not others[1].task.done()
        sent += [crowd.send(chat, turn(n)) for n in range(4, 7)]
        await brake.rollback()
        await others[1].task
    ends = await ends_of(sent)
    assert [messages[0].position for messages in ends] == [1, 3, 5, 7, 9, 11, 13]
    await ends_of(others)


async def test_who_waits_costs_nothing(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a turn waits behind one of its conversation, the event loop sleeps."""
    looked = 0
    choose = crowd.group._choose

    def counted() -> Any:
        nonlocal looked
        looked += 1
        return choose()

    monkeypatch.setattr(crowd.group, "_choose", counted)
    async with crowd.locked(crowd.chats[0]):
        sent = [crowd.send(crowd.chats[0], turn(n)) for n in range(3)]
        await asyncio.sleep(0.1)
    await ends_of(sent)
    assert looked <= 4


async def test_waits_for_a_lock_do_not_add_up(dsn: str, migrated: set[str]) -> None:
    """Those that wait behind a turn fail with it, each by its own error; later ones do not."""
    async with crowd_of(dsn, migrated, settings="-c lock_timeout=1000") as crowd:
        chat = crowd.chats[0]
        with crowd.count() as wire:
            async with crowd.locked(chat):
                sent = [crowd.send(chat, turn(n)) for n in range(10)]
                while wire.statements < 3:
                    await asyncio.sleep(0.01)
                late = crowd.send(chat, turn(10))
                errors = await ends_of(sent)
            [messages] = await ends_of([late])
        # The first, all others in vain, the next of them; then the one that came while it waited.
        assert (joint(wire), wire.statements) == (1, 4)
        assert {(type(error), error.sqlstate) for error in errors} == {(StoreTimeout, "55P03")}
        assert len(set(map(id, errors))) == len(errors)
        assert {sending.uow.outcome for sending in sent} == {Outcome.ROLLED_BACK}
        assert messages[0].position == 1


async def test_two_stores_that_share_conversations_do_not_deadlock(crowd: Crowd, dsn: str) -> None:
    """However the turns of two processes meet, none is a victim, and none is lost."""

    async def deadlocks() -> Any:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            await connection.execute("SELECT pg_stat_force_next_flush()")
            cursor = await connection.execute(
                "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
            )
            return await cursor.fetchone()

    async def write(store: ConversationStore, chats: Sequence[int]) -> None:
        for chat in chats:
            await append_messages(store.unit_of_work(), conversation_id=chat, drafts=turn(1))

    before = await deadlocks()
    async with ConversationStore.connect(dsn, coalesce=True) as other, asyncio.timeout(10):
        await asyncio.gather(
            *(write(crowd.store, crowd.chats * 2) for _ in range(10)),
            *(write(other, crowd.chats[::-1] * 2) for _ in range(10)),
        )
    assert await deadlocks() == before
    assert await stored(crowd) == 20 * 16 * 2


# Refusals and failures ----------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["error", "timeout"])
async def test_a_statement_refused_as_a_whole_fails_nobody(
    dsn: str, migrated: set[str], how: str
) -> None:
    """Its turns are then sent alone, and each gets its own answer."""
    settings = "-c statement_timeout=1000" if how == "timeout" else ""
    async with crowd_of(dsn, migrated, settings=settings) as crowd:
        texts, spoilt = crowd.adapter._texts, b"1 / (turn - turn)"
        if how == "timeout":
            spoilt = b"(SELECT 1 FROM pg_sleep(20))"
        texts.append_together = texts.append_together.replace(
            b"SELECT turn, base", b"SELECT " + spoilt + b", base"
        )
        await close_conversation(crowd.store.unit_of_work(), conversation_id=crowd.chats[5])
        with crowd.count() as wire:
            ends = await ends_of([crowd.send(chat) for chat in crowd.chats])
        assert (joint(wire), wire.statements) == (1, 1 + len(crowd.chats))
        refused = ends.pop(5)
        assert isinstance(refused, ConversationNotAcceptingMessages)
        assert refused.conversation_id == crowd.chats[5]
        assert all(messages[0].position == 1 for messages in ends)
        assert await stored(crowd) == 2 * 7


async def test_a_lost_flush_is_unknown_to_each_by_itself(crowd_once: Crowd) -> None:
    """CommitOutcomeUnknown names the caller's own ids; sent again, each is stored once."""
    turns = {chat: turn(chat) for chat in crowd_once.chats}
    async with crowd_once.locked():
        send = crowd_once.send
        sent = [send(chat, drafts, request_id=f"r-{chat}") for chat, drafts in turns.items()]
        await crowd_once.terminate(await crowd_once.waiting_backends())
    ends = await ends_of(sent)
    lost = [end for end in ends if not isinstance(end, list)]
    assert len(lost) == 7  # the first went alone
    named: list[int] = []
    for chat, sending, error in zip(crowd_once.chats, sent, ends, strict=True):
        if isinstance(error, list):
            continue
        assert isinstance(error, CommitOutcomeUnknown)
        assert error.conversation_ids == (chat,)
        assert error.request_ids == (f"r-{chat}",)
        assert sending.uow.outcome is Outcome.UNKNOWN
        named += error.message_ids
    assert len(set(named)) == len(named) == 2 * len(lost)
    with crowd_once.count():
        again = [send(chat, drafts, request_id=f"r-{chat}") for chat, drafts in turns.items()]
        assert all(messages[0].position == 1 for messages in await ends_of(again))
    assert await stored(crowd_once) == 2 * len(crowd_once.chats)


@pytest.mark.parametrize("many", [8, 3 * MOST_TURNS * MOST_AWAY])
async def test_without_a_connection_each_has_its_own_timeout(
    dsn: str, migrated: set[str], many: int
) -> None:
    """However many wait, none waits for the sum of the timeouts of those before it."""
    async with crowd_of(dsn, migrated, min_size=1, max_size=1, timeout=1) as crowd:
        pool = crowd.adapter._pool
        with crowd.count() as wire:
            async with pool.connection():
                asked = pool.get_stats()["requests_num"]
                sent = [crowd.send(crowd.chats[n % 8], turn(n)) for n in range(many)]
                errors = await ends_of(sent)
                # The first, flushes, and a block of ids in the background.
                assert pool.get_stats()["requests_num"] - asked <= 1 + MOST_AWAY + 1
        assert wire.statements == 0
        assert {type(error) for error in errors} == {StoreTimeout}
        assert len(set(map(id, errors))) == many
        assert {s.uow.outcome for s in sent} <= {Outcome.NOT_STARTED, Outcome.ROLLED_BACK}
        assert [len(end) for end in await ends_of([crowd.send(c) for c in crowd.chats])] == [2] * 8


async def test_a_store_that_is_closed_leaves_nobody_waiting(dsn: str, migrated: set[str]) -> None:
    """Who is not stored by then has StoreClosed."""
    async with crowd_of(dsn, migrated, min_size=1, max_size=1) as crowd:
        sent = [crowd.send(crowd.chats[n % 8], turn(n)) for n in range(4 * MOST_TURNS)]
        with crowd.count():
            await asyncio.sleep(0)
            await crowd.store.__aexit__(None, None, None)
            ends = await ends_of(sent)
    assert {type(end) for end in ends} <= {list, StoreClosed}
    assert isinstance(ends[-1], StoreClosed)


# Cancellation -------------------------------------------------------------------------------------


async def test_nothing_is_sent_for_who_was_cancelled_while_it_waited(crowd: Crowd) -> None:
    """Behind another turn of its conversation it was not sent yet, and never is."""
    chat = crowd.chats[0]
    with crowd.count() as wire:
        async with crowd.locked(chat):
            first, second, third = (crowd.send(chat, turn(n)) for n in range(3))
            await asyncio.sleep(0.05)
            second.task.cancel()
            third.task.cancel()
            ends = await ends_of([second, third])
        await first.task
    assert wire.statements == 1
    assert all(isinstance(end, asyncio.CancelledError) for end in ends)
    assert {second.uow.outcome, third.uow.outcome} == {Outcome.ROLLED_BACK}


@pytest.mark.parametrize("all_of_them", [False, True])
async def test_nothing_is_sent_for_who_was_cancelled_before_there_was_a_connection(
    dsn: str, migrated: set[str], all_of_them: bool
) -> None:
    """A flush that waits for a connection carries who is still there when it comes, at once."""
    async with crowd_of(dsn, migrated, min_size=1, max_size=1) as crowd:
        with crowd.count() as wire:
            async with crowd.adapter._pool.connection(), asyncio.timeout(5):
                sent = [crowd.send(chat) for chat in crowd.chats]
                await asyncio.sleep(0.05)
                gone = sent[1:] if all_of_them else sent[2:4]
                for sending in gone:
                    sending.task.cancel()
                ends = await ends_of(gone)
            await ends_of([sending for sending in sent if sending not in gone])
        assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert {sending.uow.outcome for sending in gone} == {Outcome.NOT_STARTED}
        assert (joint(wire), wire.statements) == ((0, 1) if all_of_them else (1, 2))
        assert await stored(crowd) == 2 * (len(sent) - len(gone))


async def test_who_is_cancelled_while_a_flush_is_away_takes_no_other_along(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits a moment for the answer, which tells its outcome; the others get theirs."""
    monkeypatch.setattr(group_commit, "COMMIT_GRACE", LONG)  # a moment of a busy machine
    async with crowd.locked():
        sent = [crowd.send(chat) for chat in crowd.chats]
        await crowd.waiting_backends()
        for sending in sent[2:4]:
            sending.task.cancel()
    ends = await ends_of(sent)
    assert [isinstance(end, asyncio.CancelledError) for end in ends].count(True) == 2
    assert {sending.uow.outcome for sending in sent} == {Outcome.COMMITTED}
    assert await stored(crowd) == 2 * len(sent)


async def test_a_flush_whose_callers_are_all_gone_is_ended(
    dsn: str, migrated: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is stored, and its connection goes on working."""
    wait_for_the_server(monkeypatch)
    async with crowd_of(dsn, migrated, min_size=2, max_size=2) as crowd:
        with crowd.count():
            async with crowd.locked():
                sent = [crowd.send(chat) for chat in crowd.chats]
                pids = await crowd.waiting_backends()
                for sending in sent:
                    sending.task.cancel()
                ends = await ends_of(sent)
                assert sent[-1].uow.outcome is Outcome.ROLLED_BACK
                assert all(isinstance(end, asyncio.CancelledError) for end in ends)
        assert await stored(crowd) == 0
        await ends_of([crowd.send(chat) for chat in crowd.chats])
        async with crowd.adapter._pool.connection() as one, crowd.adapter._pool.connection() as two:
            assert {one.info.backend_pid, two.info.backend_pid} > set(pids)
        assert await stored(crowd) == 2 * len(crowd.chats)


@pytest.mark.parametrize("began", [False, True])
async def test_a_flush_that_a_host_cancels_is_no_harm(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch, began: bool
) -> None:
    """A host that cancels all tasks it finds: who is not cancelled itself is stored once."""
    tasks: list[asyncio.Task[None]] = []
    depart = crowd.group._depart

    def caught(flush: Any) -> None:
        depart(flush)
        if flush.task is not None:
            tasks.append(flush.task)
            if not began:
                flush.task.cancel()

    monkeypatch.setattr(crowd.group, "_depart", caught)
    with crowd.count():
        async with crowd.locked():
            sent = [crowd.send(chat) for chat in crowd.chats]
            if began:
                await crowd.waiting_backends()
                tasks[0].cancel()
            await asyncio.sleep(0.05)
        ends = await ends_of(sent)
    assert [task.cancelled() for task in tasks] == [True]
    assert all(messages[0].position == 1 for messages in ends)
    assert await stored(crowd) == 2 * len(sent)


async def test_a_flush_that_was_cut_off_is_unknown(
    crowd_once: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled again before the server said how it ended, it is not sent again on a guess."""
    tasks: list[asyncio.Task[None]] = []
    depart = crowd_once.group._depart

    def caught(flush: Any) -> None:
        depart(flush)
        if flush.task is not None:
            tasks.append(flush.task)

    monkeypatch.setattr(crowd_once.group, "_depart", caught)
    async with crowd_once.locked():
        sent = [crowd_once.send(chat, request_id="r") for chat in crowd_once.chats]
        await crowd_once.waiting_backends()
        for _ in range(2):
            tasks[0].cancel()
            await asyncio.sleep(0)
        errors = await ends_of(sent[1:])
    await sent[0].task
    assert {type(error) for error in errors} == {CommitOutcomeUnknown}
    assert {sending.uow.outcome for sending in sent[1:]} == {Outcome.UNKNOWN}
    await ends_of([crowd_once.send(chat, request_id="r") for chat in crowd_once.chats])
    assert await stored(crowd_once) == 2 * len(sent)


# What is left -------------------------------------------------------------------------------------


async def test_nothing_is_left_to_the_garbage_collector(crowd: Crowd) -> None:
    """Of turns that were stored nothing stays in memory, nor does a flush keep itself alive."""
    gc.collect()
    gc.disable()
    others = {id(thing) for thing in gc.get_objects() if isinstance(thing, Seat)}  # of other tests
    try:
        for _ in range(3):
            await ends_of([crowd.send(chat) for chat in crowd.chats])
        await asyncio.sleep(0)
        seats = [thing for thing in gc.get_objects() if isinstance(thing, Seat)]
        assert [seat for seat in seats if id(seat) not in others] == []
    finally:
        gc.enable()
