"""The scenarios of units that do several things."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from ledger import Change, Turn

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    ConversationChanges,
    Message,
    RemovalCondition,
    Status,
    StoreUnavailable,
    append_messages,
    start_conversation,
)

from .case import MARK, SCHEMA, STATUS, Case, scenario

LOCKED: Final = 0.1
"""Seconds that a conversation is locked."""


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


@scenario("append_messages behind a lock")
async def _append_behind_a_lock(case: Case) -> None:
    """So that what hits the server's process hits it at work."""
    conversation, _ = await case.started()
    before, turn = case.ledger.turn(conversation), case.ledger.turn(conversation)
    is_locked = asyncio.Event()

    async def hold() -> None:
        uow = case.beside.unit_of_work()
        with case.ledger.unit(before, uow=uow, note=f"before {case.name}"):
            async with uow:
                before.placed(await uow.messages.append(conversation, before.drafts()))
                is_locked.set()
                await asyncio.sleep(LOCKED)

    holding = asyncio.create_task(hold())
    await is_locked.wait()
    try:
        async with case.played(turn) as uow:
            turn.placed(
                await append_messages(uow, conversation_id=conversation, drafts=turn.drafts())
            )
    finally:
        await holding


@scenario("an append with an update")
async def _append_and_update(case: Case) -> None:
    """The ids of the messages keep the update from being done twice."""
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    change = Change(MARK, (conversation,), None, "new")
    async with case.played(turn, changes=[change]) as uow:
        async with uow:
            uow.conversations.update(conversation, ConversationChanges(metadata={"mark": "new"}))
            appended = uow.messages.append(conversation, turn.drafts())
        turn.placed(await appended)


@scenario("an append with an erasure", may_raise=(CommitOutcomeUnknown,))
async def _append_and_erase(case: Case) -> None:
    """Done again the erasure could take along what others stored in between."""
    user = case.ledger.turn(None).contents[0]
    kept, gone = (await case.started())[0], (await case.started(user))[0]
    turn = case.ledger.turn(kept)
    async with case.played(turn, removes=[gone]) as uow:
        async with uow:
            erased = uow.conversations.remove_some(RemovalCondition(user_id=user))
            appended = uow.messages.append(kept, turn.drafts())
        turn.placed(await appended)
        assert len((await erased).removed) == 1


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
