"""`asyncio.timeout` around any call ends in time, and tells the truth, also in a black hole.

A proxy stops to pass anything on, without closing anything, before or after a given message. Then a
call is cancelled by `asyncio.timeout`, the network comes back, and the rows are compared with what
the unit of work said.
"""

from __future__ import annotations

import asyncio
import inspect
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest
from attrs import define
from histories import whole_history
from psycopg_pool import AsyncConnectionPool
from pulse import within
from store_fixtures import draft, open_store, turn
from wire_proxy import WireProxy

import conversation_store
from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    ConversationRecord,
    ConversationStore,
    Outcome,
    StoreError,
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
    get_message,
    get_or_start_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    messages_after,
    pop_message,
    purge_conversations,
    redact_message,
    reopen_conversation,
    replace_messages,
    run_unit,
    start_conversation,
    update_conversation,
)
from conversation_store.adapters.postgres import waiting

DEADLINE: Final = 0.15
"""Seconds that each call is given."""
PROMISED: Final = 0.5
"""Seconds after the deadline in which it ends."""

State = tuple[Any, ...]


@define
class World:
    """A store behind a proxy, and what one user has in it."""

    store: ConversationStore
    proxy: WireProxy
    dsn: str
    user: str
    chat: int = 0
    closed: int = 0
    message: int = 0
    before: State = ()
    """What is stored before a call."""

    async def prepare(self) -> None:
        """Store again what there is at first."""
        await erase_user(self.store.unit_of_work(), user_id=self.user)
        uow = self.store.unit_of_work(user_id=self.user)
        chat, messages = await start_conversation(uow, session_id="chat", drafts=turn(1))
        closed, _ = await start_conversation(uow, session_id="closed")
        await close_conversation(uow, conversation_id=closed.id)
        self.chat, self.closed, self.message = chat.id, closed.id, messages[0].id
        self.before = await self.state()

    async def state(self) -> State:
        """Return what is stored, without what differs from run to run; past the proxy."""
        async with await psycopg.AsyncConnection.connect(self.dsn) as connection:
            cursor = await connection.execute(
                "SELECT count(*), sum(version), sum(message_count), array_agg(status ORDER BY id),"
                " count(rescue_id), (SELECT count(*) FROM operational.ai_messages"
                " WHERE conversation_id = ANY(array_agg(c.id)))"
                " FROM operational.ai_conversations c WHERE user_id = %s",
                [self.user],
            )
            return await cursor.fetchone() or ()

    async def settle(self) -> None:
        """Bring the network back, make a call, and wait until nothing of the past goes on."""
        self.proxy.restore()
        async with asyncio.timeout(5):
            await self.store.ping()
            while any(connection.is_left() for connection in self.proxy.connections):
                await asyncio.sleep(0.01)
        async with (
            asyncio.timeout(5),
            await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as connection,
        ):
            while await self._busy(connection):
                await asyncio.sleep(0.01)

    async def _busy(self, connection: psycopg.AsyncConnection[Any]) -> bool:
        cursor = await connection.execute(
            "SELECT FROM pg_stat_activity WHERE state <> 'idle' AND application_name = %s",
            [f"cancelled-{self.user}"],
        )
        return cursor.rowcount > 0


Call = Callable[[AsyncUnitOfWork, World], Awaitable[object]]


@asynccontextmanager
async def world(dsn: str, migrated: set[str], user: str, **options: Any) -> AsyncIterator[World]:
    """Give a store through a proxy of its own; statements are not prepared, so messages count."""
    values: dict[str, Any] = {"min_size": 1, "max_size": 1, "prepare_threshold": None}
    async with WireProxy(f"{dsn} application_name=cancelled-{user}") as proxy:
        if "operational" not in migrated:
            async with open_store(dsn, "operational", migrated):
                pass
        async with ConversationStore.connect(proxy.dsn, **values | options) as store:
            made = World(store, proxy, dsn, user)
            await made.prepare()
            try:
                yield made
            finally:
                proxy.restore()


@asynccontextmanager
async def in_time(seconds: float = DEADLINE) -> AsyncIterator[None]:
    """Check that a block ends by a TimeoutError, and when."""
    async with within(seconds + PROMISED):
        with pytest.raises(TimeoutError):
            yield


async def swallowed(world: World, call: Call, after: int) -> tuple[Outcome, State]:
    """Cancel a call whose network goes black after so many messages; return how it ended."""
    uow = world.store.unit_of_work()
    world.proxy.swallow(after)
    async with in_time(), asyncio.timeout(DEADLINE):
        await call(uow, world)
    await world.settle()
    return uow.outcome, await world.state()


async def limited(world: World, call: Call, after: int) -> tuple[Outcome, State]:
    """Do the same with the unit's own timeout, whose error has to say what its outcome says."""
    uow = world.store.unit_of_work(timeout=DEADLINE)
    world.proxy.swallow(after)
    async with within(DEADLINE + PROMISED):
        try:
            await call(uow, world)
        except StoreTimeout:
            assert uow.outcome in (Outcome.NOT_STARTED, Outcome.ROLLED_BACK)
        except CommitOutcomeUnknown:
            assert uow.outcome is Outcome.UNKNOWN
        except UnitOfWorkMisuse as misuse:  # it went on after an undo that could not be done
            assert isinstance(misuse.__cause__, StoreError)
    await world.settle()
    return uow.outcome, await world.state()


async def run(world: World, call: Call) -> tuple[int, State]:
    """Make a call undisturbed; return how many messages it took, and what is stored then."""
    await world.prepare()
    passed = world.proxy.passed
    await call(world.store.unit_of_work(), world)
    return world.proxy.passed - passed, await world.state()


def check(outcome: Outcome, found: State, world: World, whole: State) -> None:
    """Check that it is stored whole or not at all, as the unit of work said."""
    assert found in (world.before, whole)
    if outcome is Outcome.COMMITTED:
        assert found == whole
    elif outcome is not Outcome.UNKNOWN:
        assert found == world.before


async def check_everywhere(
    dsn: str,
    migrated: set[str],
    call: Call,
    points: Callable[[int], list[int]],
    end: Callable[[World, Call, int], Awaitable[tuple[Outcome, State]]] = swallowed,
) -> list[Outcome]:
    """Let the network go black at several points of a call, a world each; return the outcomes."""
    async with world(dsn, migrated, "measured") as measured:
        messages, whole = await run(measured, call)
        await measured.prepare()

    async def one(after: int) -> Outcome:
        async with world(dsn, migrated, f"black-{after}") as made:
            outcome, found = await end(made, call, after)
            check(outcome, found, made, whole)
            return outcome

    outcomes: list[Outcome] = []
    chosen = points(messages)
    for first in range(0, len(chosen), 8):
        outcomes += await asyncio.gather(*map(one, chosen[first : first + 8]))
    return outcomes


# Every service function ---------------------------------------------------------------------------


def record(user: str, number: int) -> ConversationRecord:
    """Return a record to be imported."""
    return {
        "user_id": user,
        "session_id": f"imported-{number}",
        "source": None,
        "intent_type": None,
        "metadata": None,
        "status": "active",
        "messages": [{"role": "user", "content": "x", "intent_type": None, "slots": None}],
    }


async def export(uow: AsyncUnitOfWork, world: World) -> None:
    """Read all of a user's conversations."""
    async with aclosing(export_conversations(uow, user_id=world.user)) as records:
        async for _ in records:
            pass


async def two_reads_and_a_write(uow: AsyncUnitOfWork, world: World) -> None:
    """Read, write and read again: a unit that is interactive."""
    async with uow:
        await latest_messages(uow, conversation_id=world.chat)
        await append_messages(uow, conversation_id=world.chat, drafts=turn(2))
        await latest_messages(uow, conversation_id=world.chat)


async def given(uow: AsyncUnitOfWork, world: World) -> None:
    """Do work by `run_unit` in the very unit that is looked at."""
    await run_unit(
        lambda: uow, lambda uow: two_reads_and_a_write(uow, world), conversation_store.Retry()
    )


CASES: Final[dict[str, Call]] = {
    "append_messages": lambda uow, world: append_messages(
        uow, conversation_id=world.chat, drafts=turn(2)
    ),
    "archive_conversation": lambda uow, world: archive_conversation(
        uow, conversation_id=world.chat
    ),
    "close_conversation": lambda uow, world: close_conversation(uow, conversation_id=world.chat),
    "delete_conversation": lambda uow, world: delete_conversation(uow, conversation_id=world.chat),
    "erase_user": lambda uow, world: erase_user(uow, user_id=world.user),
    "export_conversations": export,
    "find_conversation": lambda uow, world: find_conversation(
        uow, user_id=world.user, session_id="chat"
    ),
    "get_conversation": lambda uow, world: get_conversation(uow, conversation_id=world.chat),
    "get_message": lambda uow, world: get_message(uow, message_id=world.message),
    "get_or_start_conversation": lambda uow, world: get_or_start_conversation(
        uow, user_id=world.user, session_id="new", drafts=turn(1)
    ),
    "import_conversations": lambda uow, world: import_conversations(
        uow, records=[record(world.user, number) for number in range(3)]
    ),
    "latest_messages": lambda uow, world: latest_messages(uow, conversation_id=world.chat),
    "list_conversations": lambda uow, world: list_conversations(uow, user_id=world.user),
    "messages_after": lambda uow, world: messages_after(
        uow, conversation_id=world.chat, position=0
    ),
    "pop_message": lambda uow, world: pop_message(uow, conversation_id=world.chat),
    "replace_messages": lambda uow, world: replace_messages(
        uow, conversation_id=world.chat, drafts=turn(1)
    ),
    "redact_message": lambda uow, world: redact_message(uow, message_id=world.message),
    "purge_conversations": lambda uow, world: purge_conversations(
        uow, inactive_since=datetime(2100, 1, 1, tzinfo=UTC), user_id=world.user
    ),
    "reopen_conversation": lambda uow, world: reopen_conversation(
        uow, conversation_id=world.closed
    ),
    "run_unit": given,
    "start_conversation": lambda uow, world: start_conversation(
        uow, user_id=world.user, session_id="new", drafts=turn(1)
    ),
    "update_conversation": lambda uow, world: update_conversation(
        uow, conversation_id=world.chat, rescue_id="r-1"
    ),
}
"""A call of each service function."""


def test_every_service_function_has_a_case() -> None:
    """What takes a unit of work, or makes one, is cancelled here."""
    functions = {
        name
        for name in conversation_store.__all__
        if inspect.iscoroutinefunction(function := getattr(conversation_store, name))
        or (inspect.isfunction(function) and "uow" in inspect.signature(function).parameters)
    }
    assert set(CASES) == functions


@pytest.mark.parametrize("name", CASES)
async def test_a_call_ends_in_time_wherever_the_network_goes_black(
    dsn: str, migrated: set[str], name: str
) -> None:
    """Before its first byte, after it, in the middle and before its last answer."""

    def points(messages: int) -> list[int]:
        return sorted({0, 1, messages // 3, messages // 2, messages * 3 // 4, messages - 1})

    outcomes = await check_everywhere(dsn, migrated, CASES[name], points)
    assert Outcome.COMMITTED not in outcomes[:2], "nothing had left"


# Units of several flushes -------------------------------------------------------------------------


async def nested(uow: AsyncUnitOfWork, world: World) -> None:
    """Write in two inner blocks, and undo a third."""
    async with uow:
        await append_messages(uow, conversation_id=world.chat, drafts=turn(2))
        with suppress(LookupError):
            async with uow:
                await append_messages(uow, conversation_id=world.chat, drafts=turn(3))
                raise LookupError
        await update_conversation(uow, conversation_id=world.chat, rescue_id="r-1")


async def several_writes(uow: AsyncUnitOfWork, world: World) -> None:
    """Write twice in one flush."""
    async with uow:
        uow.messages.append(world.chat, turn(2))
        uow.conversations.remove(world.closed)


async def rolled_back(uow: AsyncUnitOfWork, world: World) -> None:
    """Write, and think better of it."""
    async with uow:
        await append_messages(uow, conversation_id=world.chat, drafts=turn(2))
        await uow.rollback()


async def failing(uow: AsyncUnitOfWork, world: World) -> None:
    """Write, and fail in the middle of it."""
    with suppress(LookupError):
        async with uow:
            await append_messages(uow, conversation_id=world.chat, drafts=turn(2))
            raise LookupError


UNITS: Final[dict[str, Call]] = {
    "interactive": two_reads_and_a_write,
    "nested": nested,
    "several writes": several_writes,
    "rolled back": rolled_back,
    "failing": failing,
    "import": CASES["import_conversations"],
}


@pytest.mark.parametrize("name", UNITS)
async def test_a_unit_ends_in_time_at_each_of_its_messages(
    dsn: str, migrated: set[str], name: str
) -> None:
    """At its flush, at its COMMIT, at its rollback, in its COPY: whole or absent, and it knows."""
    outcomes = await check_everywhere(dsn, migrated, UNITS[name], lambda count: [*range(count)])
    if name in ("rolled back", "failing"):
        assert Outcome.UNKNOWN not in outcomes
    if name != "several writes":  # all of which leaves at once, with its COMMIT
        assert Outcome.ROLLED_BACK in outcomes


@pytest.mark.parametrize("name", ["append", "interactive", "nested", "several writes", "import"])
async def test_a_unit_with_a_timeout_ends_in_time_at_each_of_its_messages(
    dsn: str, migrated: set[str], name: str
) -> None:
    """Its error, or its result, is the truth."""
    call = UNITS.get(name, CASES["append_messages"])
    await check_everywhere(dsn, migrated, call, lambda count: [*range(0, count, 2)], limited)


@pytest.mark.parametrize("how", ["left by an exception", "rolled back", "refused"])
async def test_cleaning_up_has_a_limit_of_its_own(
    dsn: str, migrated: set[str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Without a deadline, too, a connection that does not answer a ROLLBACK is ended, and told."""
    monkeypatch.setattr(waiting, "CLEANING", 0.2)

    async def unit(uow: AsyncUnitOfWork, made: World) -> None:
        async with uow:
            await append_messages(uow, conversation_id=made.chat, drafts=turn(2))
            if how == "refused":
                with suppress(psycopg.Error):
                    await (await uow.connection()).execute("SELECT 1/0")
                made.proxy.swallow()
                return
            made.proxy.swallow()
            if how == "rolled back":
                await uow.rollback()
            else:
                raise LookupError

    async with world(dsn, migrated, "cleaning") as made:
        uow = made.store.unit_of_work()
        async with asyncio.timeout(10), within(0.2 + PROMISED):
            if how == "rolled back":
                await unit(uow, made)
            else:
                error = LookupError if how != "refused" else conversation_store.UnitOfWorkMisuse
                with pytest.raises(error) as caught:
                    await unit(uow, made)
                assert "did not answer within" in "".join(caught.value.__notes__)
        assert uow.outcome is Outcome.ROLLED_BACK
        await made.settle()
        assert await made.state() == made.before


# Streams ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("at", ["reading", "leaving"])
async def test_an_export_ends_in_time_in_the_middle(
    dsn: str, migrated: set[str], inside: bool, at: str
) -> None:
    """Cancelled while it reads on, or while its consumer holds it."""
    async with world(dsn, migrated, "exporting") as made:
        for _ in range(3):
            drafts = [draft(str(number)) for number in range(800)]
            uow = made.store.unit_of_work(user_id=made.user)
            await start_conversation(uow, session_id=f"long-{_}", drafts=drafts)
        before = await made.state()

        async def consume(uow: AsyncUnitOfWork) -> None:
            async with aclosing(export_conversations(uow, user_id=made.user)) as records:
                async for _ in records:
                    made.proxy.swallow()
                    if at == "leaving":
                        await asyncio.sleep(10)

        uow = made.store.unit_of_work()
        async with in_time(0.4), asyncio.timeout(0.4):
            if inside:
                async with uow:
                    await append_messages(uow, conversation_id=made.chat, drafts=turn(2))
                    await consume(uow)
            else:
                await consume(uow)
        await made.settle()
        assert await made.state() == before


# Group commit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("cancelled", [1, 3, 6])
async def test_who_shares_a_flush_is_not_hurt_by_who_leaves_it(
    dsn: str, migrated: set[str], cancelled: int
) -> None:
    """The ones end in time in the black hole; the others get their answer when the network does."""
    async with world(dsn, migrated, "crowd", coalesce=True, max_size=3, min_size=3) as made:
        uow = made.store.unit_of_work(user_id=made.user)
        chats = [
            (await start_conversation(uow, session_id=f"c-{number}"))[0].id for number in range(6)
        ]
        units = [made.store.unit_of_work() for _ in chats]
        made.proxy.swallow()

        async def one(number: int) -> None:
            call = append_messages(units[number], conversation_id=chats[number], drafts=turn(1))
            if number < cancelled:
                async with in_time(), asyncio.timeout(DEADLINE):
                    await call
            else:
                assert len(await call) == 2

        tasks = [asyncio.create_task(one(number)) for number in range(6)]
        await asyncio.wait(tasks[:cancelled], timeout=10)
        assert all(task.done() for task in tasks[:cancelled])
        await made.settle()
        async with asyncio.timeout(5):
            await asyncio.gather(*tasks)
        for uow, chat in zip(units, chats, strict=True):
            found = await get_conversation(made.store.unit_of_work(), conversation_id=chat)
            assert found.message_count in (0, 2)
            if uow.outcome is not Outcome.UNKNOWN:
                assert (found.message_count == 2) is (uow.outcome is Outcome.COMMITTED)
        assert all(uow.outcome is Outcome.COMMITTED for uow in units[cancelled:])


# Connections --------------------------------------------------------------------------------------


async def test_who_waits_for_a_connection_ends_in_time(dsn: str, migrated: set[str]) -> None:
    """The pool's only connection is in the black hole; who waited for it goes on afterwards."""
    async with world(dsn, migrated, "narrow") as made:
        made.proxy.swallow()
        units = [made.store.unit_of_work() for _ in range(3)]

        async def one(uow: AsyncUnitOfWork, seconds: float) -> None:
            async with in_time(seconds), asyncio.timeout(seconds):
                await append_messages(uow, conversation_id=made.chat, drafts=turn(2))

        await asyncio.gather(*(one(uow, 0.1 * n) for n, uow in enumerate(units, 1)))
        assert units[1].outcome is Outcome.NOT_STARTED
        await made.settle()
        await append_messages(
            made.store.unit_of_work(), conversation_id=made.chat, drafts=[draft("on")]
        )


@pytest.mark.parametrize("in_transaction", [False, True])
@pytest.mark.parametrize("name", ["append_messages", "run_unit"])
async def test_a_unit_on_a_lent_connection_ends_in_time(
    dsn: str, migrated: set[str], in_transaction: bool, name: str
) -> None:
    """The host's connection, on which nobody answers, is ended; its transaction with it."""
    async with (
        world(dsn, migrated, "lent") as made,
        await psycopg.AsyncConnection.connect(made.proxy.dsn, autocommit=True) as lent,
    ):
        if in_transaction:
            await lent.execute("BEGIN")
        uow = made.store.unit_of_work(connection=lent)
        made.proxy.swallow()
        async with in_time(), asyncio.timeout(DEADLINE):
            await CASES[name](uow, made)
        assert lent.closed
        assert uow.outcome is not Outcome.COMMITTED
        assert not (in_transaction and uow.outcome is Outcome.UNKNOWN)
        await made.settle()
        state = await made.state()
        assert state == made.before or uow.outcome is Outcome.UNKNOWN


async def test_a_pool_of_the_host_that_asks_each_connection_first(
    dsn: str, migrated: set[str]
) -> None:
    """Its own question to the server, when it gives a connection out, ends in time as well."""
    async with (
        world(dsn, migrated, "checked") as made,
        AsyncConnectionPool(
            made.proxy.dsn,
            min_size=1,
            max_size=1,
            open=False,
            check=AsyncConnectionPool.check_connection,
        ) as pool,
    ):
        await pool.wait()
        uow = ConversationStore.from_pool(pool).unit_of_work()
        made.proxy.swallow()
        async with in_time(), asyncio.timeout(DEADLINE):
            await CASES["append_messages"](uow, made)
        assert uow.outcome is Outcome.NOT_STARTED
        await made.settle()
        assert await made.state() == made.before
        await CASES["append_messages"](ConversationStore.from_pool(pool).unit_of_work(), made)


@pytest.mark.parametrize("call", ["start_conversation", "ping", "migrate"])
async def test_what_died_holds_up_nobody_who_comes_later(
    dsn: str, migrated: set[str], call: str
) -> None:
    """Old connections stay black for ever; on new ones all goes on, the draw of ids too."""
    async with world(dsn, migrated, "old") as made:
        patient = f"{made.proxy.dsn} connect_timeout=2"
        async with ConversationStore.connect(patient, min_size=1, max_size=1) as store:

            async def make() -> None:
                if call == "start_conversation":
                    await CASES[call](store.unit_of_work(), made)
                else:
                    await getattr(store, call)()

            made.proxy.swallow()
            async with in_time(), asyncio.timeout(DEADLINE):
                await make()
            made.proxy.restore(also_old=False)
            async with asyncio.timeout(5):
                await make()


# A storm ------------------------------------------------------------------------------------------


async def tagged(uow: AsyncUnitOfWork, chat: int, tag: str, kind: str) -> None:
    """Store four messages of this tag, in one flush or in several."""
    drafts = [draft(f"{tag}/{number}") for number in range(4)]
    if kind == "one write":
        await append_messages(uow, conversation_id=chat, drafts=drafts)
    elif kind == "with a request":
        await append_messages(uow, conversation_id=chat, drafts=drafts, request_id=tag)
    else:
        async with uow:
            await append_messages(uow, conversation_id=chat, drafts=drafts[:2])
            if kind == "interactive":
                await latest_messages(uow, conversation_id=chat, limit=1)
            await append_messages(uow, conversation_id=chat, drafts=drafts[2:])


@pytest.mark.parametrize("coalesce", [False, True])
@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_of_cancellations(
    dsn: str, migrated: set[str], seed: int, coalesce: bool
) -> None:
    """Of 300 units many are cancelled at random, twice at times, while the network comes and goes.

    A ledger outside of the store knows what each of them said; each is stored whole or not at all,
    as it said, and those that were not cancelled know nothing of it.
    """
    dice = random.Random(seed)
    ledger: dict[str, Outcome] = {}
    options = {"min_size": 4, "max_size": 4, "prepare_threshold": 5, "coalesce": coalesce}
    async with world(dsn, migrated, "storm", **options) as made:
        uow = made.store.unit_of_work(user_id=made.user)
        chats = [
            (await start_conversation(uow, session_id=f"c-{number}"))[0].id for number in range(3)
        ]
        kinds = ["one write", "with a request", "nested", "interactive"]

        async def one(number: int) -> None:
            tag, uow = f"t{number}", made.store.unit_of_work()
            unit = asyncio.create_task(tagged(uow, dice.choice(chats), tag, dice.choice(kinds)))
            cancellations = dice.choice([0, 1, 1, 2])
            for _ in range(cancellations):
                await asyncio.sleep(dice.random() * 0.03)
                unit.cancel()
            async with within(PROMISED if cancellations else 10):
                [end] = await asyncio.gather(unit, return_exceptions=True)
            if end is None:
                assert uow.outcome is Outcome.COMMITTED
            else:
                assert cancellations
                assert isinstance(end, asyncio.CancelledError)
            ledger[tag] = uow.outcome

        async def weather() -> None:
            while True:
                await asyncio.sleep(0.2 + dice.random() * 0.1)
                made.proxy.swallow()
                await asyncio.sleep(0.02 if dice.random() < 0.5 else 0.3)
                made.proxy.restore()

        changing = asyncio.create_task(weather())
        for first in range(0, 300, 12):
            await asyncio.gather(*map(one, range(first, first + 12)))
        changing.cancel()
        await made.settle()

        stored: Counter[str] = Counter()
        for chat in chats:
            messages = await whole_history(made.store, chat)
            assert [m.position for m in messages] == [*range(1, len(messages) + 1)]
            stored.update(message.content.split("/")[0] for message in messages)
        assert set(stored.values()) == {4}
        for tag, outcome in ledger.items():
            if outcome is not Outcome.UNKNOWN:
                assert (tag in stored) is (outcome is Outcome.COMMITTED), (tag, outcome)
        counted = Counter(ledger.values())
        assert 0 < counted[Outcome.COMMITTED] < 300, "cancelled always or never"
        assert counted[Outcome.UNKNOWN] < 30
