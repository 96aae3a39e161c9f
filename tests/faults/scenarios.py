"""What is played in front of faults: every service function, and units made of several.

A scenario prepares what it needs on a store beside the proxy, then opens `case.played`, in which
the fault happens. It checks what is returned; what is stored the ledger judges.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from ledger import Change, Ledger, Turn

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    ConversationRecord,
    ConversationStore,
    Message,
    Status,
    StoreError,
    StoreUnavailable,
    TransactionAborted,
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
    reopen_conversation,
    start_conversation,
    update_conversation,
)

from .proxy import Fault, FaultProxy
from .pulse import Pulse

SCHEMA: Final = "faults"
PATIENCE: Final = 10.0
"""Seconds within which every call ends, where the network loses nothing silently."""
DEADLINE: Final = 0.2
"""Seconds after which a call in a black hole is cancelled."""

STATUS: Final = "SELECT status FROM {conversations} WHERE id = %s"
MARK: Final = "SELECT metadata->>'mark' FROM {conversations} WHERE id = %s"
SESSIONS: Final = "SELECT count(*) FROM {conversations} WHERE user_id = %s"


@dataclass
class Case:
    """One run of a scenario."""

    name: str
    store: ConversationStore
    """Behind the proxy."""
    beside: ConversationStore
    """The same store, without a proxy."""
    proxy: FaultProxy
    fault: Fault | None
    ledger: Ledger
    pulse: Pulse
    overtime: float = 0.0
    """Seconds that a call in a black hole took to end after it was cancelled."""

    @asynccontextmanager
    async def played(
        self,
        *turns: Turn,
        changes: Sequence[Change] = (),
        removes: Sequence[int] = (),
        is_its_own: bool = True,
    ) -> AsyncGenerator[AsyncUnitOfWork]:
        """Give a unit of work, in which the fault happens, unless others do `is_its_own` part."""
        clock = asyncio.get_running_loop().time
        uow = self.store.unit_of_work()
        deadline = late = 0.0
        try:
            async with asyncio.timeout(PATIENCE) as limit:

                def hurry() -> None:
                    nonlocal deadline, late
                    deadline, late = clock() + DEADLINE, self.pulse.late
                    limit.reschedule(deadline)

                with self.ledger.unit(
                    *turns,
                    changes=changes,
                    removes=removes,
                    uow=uow if is_its_own else None,
                    note=self.name,
                ):
                    self.proxy.when_dark = hurry
                    self.proxy.arm(self.fault)
                    yield uow
        finally:
            if deadline:
                self.overtime = clock() - deadline - (self.pulse.late - late)
            self.proxy.disarm()

    async def started(self, user_id: str | None = None) -> tuple[int, Turn]:
        """Start a conversation with a turn, beside the proxy."""
        return await self.start(self.beside, user_id)

    async def start(self, store: ConversationStore, user_id: str | None = None) -> tuple[int, Turn]:
        """Start a conversation with a turn."""
        turn, uow = self.ledger.turn(None), store.unit_of_work()
        with self.ledger.unit(turn, uow=uow, note=f"beside {self.name}"):
            conversation, messages = await start_conversation(
                uow, user_id=user_id or "u", session_id=turn.contents[0], drafts=turn.drafts()
            )
            turn.placed(messages)
        return conversation.id, turn


Play: TypeAlias = Callable[[Case], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """What is played."""

    name: str
    """That of a service function begins with the function's."""
    play: Play
    coalesce: bool = False
    """Whether it needs a store with group commit."""
    needs_retry: bool = False
    """Whether it succeeds at the second try only."""
    raises_the_drivers: bool = False
    """Whether the host sends SQL itself, and so meets the driver's own errors."""
    may_raise: tuple[type[StoreError], ...] = ()
    """What it may end with for lack of a network, although the store tries units again.

    A unit that is one flush, and a lone read, are tried again by themselves, and a lost answer is
    asked for again. A unit whose transaction is open between flushes is not tried again, but by
    `run`; and there are units that cannot be sent twice.
    """


SCENARIOS: Final[dict[str, Scenario]] = {}


def scenario(name: str, **options: Any) -> Callable[[Play], Play]:
    """Enter a scenario."""

    def enter(play: Play) -> Play:
        assert name not in SCENARIOS
        SCENARIOS[name] = Scenario(name, play, **options)
        return play

    return enter


# Writes -------------------------------------------------------------------------------------------


@scenario("start_conversation")
async def _start(case: Case) -> None:
    turn = case.ledger.turn(None)
    user = turn.contents[0]
    async with case.played(turn, changes=[Change(SESSIONS, (user,), 0, 1)]) as uow:
        _, messages = await start_conversation(
            uow, user_id=user, session_id="s", drafts=turn.drafts()
        )
        turn.placed(messages)


@scenario("start_conversation with a request_id")
async def _start_request(case: Case) -> None:
    turn = case.ledger.turn(None)
    user = turn.contents[0]
    async with case.played(turn, changes=[Change(SESSIONS, (user,), 0, 1)]) as uow:
        _, messages = await start_conversation(
            uow, user_id=user, session_id="s", drafts=turn.drafts(), request_id="r"
        )
        turn.placed(messages)


@scenario("get_or_start_conversation with a request_id")
async def _get_or_start_request(case: Case) -> None:
    turn = case.ledger.turn(None)
    user = turn.contents[0]
    async with case.played(turn, changes=[Change(SESSIONS, (user,), 0, 1)]) as uow:
        conversation, created = await get_or_start_conversation(
            uow, user_id=user, session_id="s", drafts=turn.drafts(), request_id="r"
        )
        assert (conversation.message_count, created) == (len(turn.contents), True)


@scenario("get_or_start_conversation")
async def _get_or_start(case: Case) -> None:
    turn = case.ledger.turn(None)
    user = turn.contents[0]
    async with case.played(turn, changes=[Change(SESSIONS, (user,), 0, 1)]) as uow:
        conversation, _ = await get_or_start_conversation(
            uow, user_id=user, session_id="s", drafts=turn.drafts()
        )
        assert conversation.message_count == len(turn.contents)


@scenario("append_messages")
async def _append(case: Case) -> None:
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    async with case.played(turn) as uow:
        messages = await append_messages(uow, conversation_id=conversation, drafts=turn.drafts())
        turn.placed(messages)


@scenario("append_messages with a request_id")
async def _append_request(case: Case) -> None:
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    async with case.played(turn) as uow:
        messages = await append_messages(
            uow, conversation_id=conversation, drafts=turn.drafts(), request_id="r"
        )
        turn.placed(messages)


@scenario("append_messages with an expected version")
async def _append_expecting(case: Case) -> None:
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    async with case.played(turn) as uow:
        messages = await append_messages(
            uow, conversation_id=conversation, drafts=turn.drafts(), expected_version=1
        )
        turn.placed(messages)


@scenario(
    "append_messages with ids given before", needs_retry=True, may_raise=(TransactionAborted,)
)
async def _append_given_before(case: Case) -> None:
    """After a failover to a standby that lagged behind, ids may come again."""
    conversation, _ = await case.started()
    ids: Any = case.store._adapter._ids  # type: ignore[attr-defined]
    first = ids._ranges[0]
    used, turn = case.ledger.turn(conversation), case.ledger.turn(conversation)
    uow = case.store.unit_of_work()
    with case.ledger.unit(used, uow=uow, note=f"before {case.name}"):
        messages = await append_messages(uow, conversation_id=conversation, drafts=used.drafts())
        used.placed(messages)
    ids._ranges[0] = first
    async with case.played(turn) as uow:
        messages = await append_messages(uow, conversation_id=conversation, drafts=turn.drafts())
        turn.placed(messages)


@scenario("close_conversation")
async def _close(case: Case) -> None:
    conversation, _ = await case.started()
    change = Change(STATUS, (conversation,), "active", "closed")
    async with case.played(changes=[change]) as uow:
        assert (await close_conversation(uow, conversation_id=conversation)).status == "closed"


@scenario("reopen_conversation")
async def _reopen(case: Case) -> None:
    conversation, _ = await case.started()
    await close_conversation(case.beside.unit_of_work(), conversation_id=conversation)
    change = Change(STATUS, (conversation,), "closed", "active")
    async with case.played(changes=[change]) as uow:
        assert (await reopen_conversation(uow, conversation_id=conversation)).status == "active"


@scenario("archive_conversation")
async def _archive(case: Case) -> None:
    conversation, _ = await case.started()
    change = Change(STATUS, (conversation,), "active", "archived")
    async with case.played(changes=[change]) as uow:
        assert (await archive_conversation(uow, conversation_id=conversation)).status == "archived"


@scenario("update_conversation", may_raise=(CommitOutcomeUnknown,))
async def _update(case: Case) -> None:
    conversation, _ = await case.started()
    async with case.played(changes=[Change(MARK, (conversation,), None, "new")]) as uow:
        await update_conversation(uow, conversation_id=conversation, metadata={"mark": "new"})


@scenario("update_conversation with an expected version", may_raise=(CommitOutcomeUnknown,))
async def _update_expecting(case: Case) -> None:
    conversation, _ = await case.started()
    async with case.played(changes=[Change(MARK, (conversation,), None, "new")]) as uow:
        await update_conversation(
            uow, conversation_id=conversation, metadata={"mark": "new"}, expected_version=1
        )


@scenario("delete_conversation")
async def _delete(case: Case) -> None:
    conversation, _ = await case.started()
    async with case.played(removes=[conversation]) as uow:
        await delete_conversation(uow, conversation_id=conversation)


@scenario("erase_user", may_raise=(CommitOutcomeUnknown,))
async def _erase(case: Case) -> None:
    user = case.ledger.turn(None).contents[0]
    conversations = [(await case.started(user))[0] for _ in range(2)]
    async with case.played(removes=conversations) as uow:
        assert (await erase_user(uow, user_id=user)).conversations == 2


def record(turn: Turn, user_id: str) -> ConversationRecord:
    """Return a record of a conversation with one turn."""
    return {
        "user_id": user_id,
        "session_id": turn.contents[0],
        "messages": [{"role": "user", "content": content} for content in turn.contents],
    }


@scenario("import_conversations", may_raise=(StoreUnavailable, CommitOutcomeUnknown))
async def _import(case: Case) -> None:
    turns = [case.ledger.turn(None) for _ in range(2)]
    user = turns[0].contents[0]
    async with case.played(*turns, changes=[Change(SESSIONS, (user,), 0, 2)]) as uow:
        records = [record(turn, user) for turn in turns]
        assert (await import_conversations(uow, records=records)).conversations == 2


# Reads --------------------------------------------------------------------------------------------


@scenario("get_conversation")
async def _get(case: Case) -> None:
    conversation, _ = await case.started()
    async with case.played() as uow:
        found = await get_conversation(uow, conversation_id=conversation)
        assert (found.id, found.message_count) == (conversation, 2)


@scenario("find_conversation")
async def _find(case: Case) -> None:
    conversation, turn = await case.started()
    async with case.played() as uow:
        found = await find_conversation(uow, user_id="u", session_id=turn.contents[0])
        assert found is not None
        assert found.id == conversation


@scenario("list_conversations")
async def _list(case: Case) -> None:
    user = case.ledger.turn(None).contents[0]
    conversation, _ = await case.started(user)
    async with case.played() as uow:
        page = await list_conversations(uow, user_id=user)
        assert [found.id for found in page.conversations] == [conversation]


@scenario("get_message")
async def _get_message(case: Case) -> None:
    _, turn = await case.started()
    assert turn.told is not None
    async with case.played() as uow:
        message = await get_message(uow, message_id=turn.told[0][2])
        assert message.content == turn.contents[0]


@scenario("latest_messages")
async def _latest(case: Case) -> None:
    conversation, turn = await case.started()
    async with case.played() as uow:
        messages = await latest_messages(uow, conversation_id=conversation)
        assert tuple(message.content for message in messages) == turn.contents


@scenario("messages_after")
async def _after(case: Case) -> None:
    conversation, turn = await case.started()
    async with case.played() as uow:
        messages = await messages_after(uow, conversation_id=conversation, position=1)
        assert tuple(message.content for message in messages) == turn.contents[1:]


@scenario("export_conversations", may_raise=(StoreUnavailable,))
async def _export(case: Case) -> None:
    user = case.ledger.turn(None).contents[0]
    for _ in range(2):
        await case.started(user)
    async with case.played() as uow:
        records = [record async for record in export_conversations(uow, user_id=user)]
        assert [len(record["messages"]) for record in records] == [2, 2]


# Units made of several ----------------------------------------------------------------------------


@scenario("two writes at once")
async def _two(case: Case) -> None:
    first, second = (await case.started())[0], (await case.started())[0]
    turn = case.ledger.turn(first)
    change = Change(STATUS, (second,), "active", "closed")
    async with case.played(turn, changes=[change]) as uow:
        async with uow:
            appended = uow.messages.append(first, turn.drafts())
            uow.conversations.set_status(second, Status.CLOSED)
        turn.placed(await appended)


@scenario("a read between two writes", may_raise=(StoreUnavailable,))
async def _interactive(case: Case) -> None:
    conversation, _ = await case.started()
    turns = [case.ledger.turn(conversation) for _ in range(2)]
    async with case.played(*turns) as uow:
        async with uow:
            one = uow.messages.append(conversation, turns[0].drafts())
            assert (await uow.conversations.get(conversation)).message_count == 4
            two = uow.messages.append(conversation, turns[1].drafts())
        turns[0].placed(await one)
        turns[1].placed(await two)


@scenario("service functions in one block", may_raise=(StoreUnavailable,))
async def _nested(case: Case) -> None:
    conversation, _ = await case.started()
    turns = [case.ledger.turn(conversation), case.ledger.turn(None)]
    async with case.played(*turns) as uow:
        async with uow:
            one = await append_messages(uow, conversation_id=conversation, drafts=turns[0].drafts())
            _, two = await start_conversation(
                uow, user_id="u", session_id=turns[1].contents[0], drafts=turns[1].drafts()
            )
        turns[0].placed(one)
        turns[1].placed(two)


@scenario("run of a read between two writes")
async def _run(case: Case) -> None:
    conversation, _ = await case.started()
    turns = [case.ledger.turn(conversation) for _ in range(2)]

    async def work(uow: AsyncUnitOfWork) -> list[list[Message]]:
        one = uow.messages.append(conversation, turns[0].drafts())
        await uow.conversations.get(conversation)
        two = uow.messages.append(conversation, turns[1].drafts())
        return [await one, await two]

    async with case.played(*turns, is_its_own=False):
        for turn, messages in zip(turns, await case.store.run(work), strict=True):
            turn.placed(messages)


@scenario("an inner block rolled back", may_raise=(StoreUnavailable,))
async def _inner_rollback(case: Case) -> None:
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    async with case.played(turn) as uow:
        async with uow:
            appended = uow.messages.append(conversation, turn.drafts())
            async with uow:
                dropped = case.ledger.turn(conversation).drafts()  # which nobody intends to store
                await uow.messages.append(conversation, dropped)
                await uow.rollback()
        turn.placed(await appended)


@scenario("appends that travel together", coalesce=True)
async def _together(case: Case) -> None:
    conversations = [(await case.started())[0] for _ in range(3)]
    turns = [case.ledger.turn(conversation) for conversation in conversations]

    async def append(turn: Turn) -> None:
        uow = case.store.unit_of_work()
        assert turn.conversation_id is not None
        with case.ledger.unit(turn, uow=uow, note=case.name):
            messages = await append_messages(
                uow, conversation_id=turn.conversation_id, drafts=turn.drafts()
            )
            turn.placed(messages)

    await append(case.ledger.turn(conversations[0]))  # alone: others are not waited for then
    async with case.played():
        ends = await asyncio.gather(*map(append, turns), return_exceptions=True)
        for end in ends:
            if end is not None:
                raise end


@scenario(
    "SQL of the host",
    raises_the_drivers=True,
    may_raise=(StoreUnavailable, CommitOutcomeUnknown),
)
async def _host(case: Case) -> None:
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    change = Change(MARK, (conversation,), None, "host")
    query = (
        f"""UPDATE {SCHEMA}.ai_conversations SET metadata = '{{"mark": "host"}}' WHERE id = %s"""
    )
    async with case.played(turn, changes=[change]) as uow:
        async with uow:
            appended = uow.messages.append(conversation, turn.drafts())
            connection: Any = await uow.connection()
            await connection.execute(query, [conversation])
        turn.placed(await appended)
