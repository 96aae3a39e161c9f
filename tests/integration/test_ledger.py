"""The judge of the fault tests finds what it is there to find."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from ledger import Change, Ledger, Turn, left_in_transaction

from conversation_store import (
    CommitOutcomeUnknown,
    ConversationNotFound,
    ConversationStore,
    StoreUnavailable,
    append_messages,
    close_conversation,
    delete_conversation,
    start_conversation,
)

STATUS = "SELECT status FROM {conversations} WHERE id = %s"


async def start(store: ConversationStore, ledger: Ledger) -> Turn:
    """Start a conversation with a turn; return it."""
    turn, uow = ledger.turn(None), store.unit_of_work()
    with ledger.unit(turn, uow=uow):
        _, messages = await start_conversation(
            uow, user_id="u", session_id=turn.contents[0], drafts=turn.drafts()
        )
        turn.placed(messages)
    return turn


def conversation_of(turn: Turn) -> int:
    """Return the conversation of a turn that was acknowledged."""
    assert turn.told
    return turn.told[0][0]


async def append(store: ConversationStore, ledger: Ledger, conversation_id: int) -> Turn:
    """Append a turn."""
    turn, uow = ledger.turn(conversation_id), store.unit_of_work()
    with ledger.unit(turn, uow=uow):
        messages = await append_messages(uow, conversation_id=conversation_id, drafts=turn.drafts())
        turn.placed(messages)
    return turn


async def test_what_is_as_told_is_no_violation(postgres: ConversationStore, dsn: str) -> None:
    """Starts, appends, changes, refusals and removals, all as they were told."""
    ledger = Ledger(dsn)
    kept = conversation_of(await start(postgres, ledger))
    gone = conversation_of(await start(postgres, ledger))
    await asyncio.gather(*(append(postgres, ledger, kept) for _ in range(5)))
    with ledger.unit(changes=[Change(STATUS, (kept,), "active", "closed")]):
        await close_conversation(postgres.unit_of_work(), conversation_id=kept)
    with ledger.unit(removes=[gone]):
        await delete_conversation(postgres.unit_of_work(), conversation_id=gone)
    with pytest.raises(ConversationNotFound):
        await append(postgres, ledger, gone)
    assert ledger.violations() == []
    assert await left_in_transaction(dsn) == []


async def test_a_unit_that_was_cancelled_is_what_its_outcome_says(
    postgres: ConversationStore, dsn: str
) -> None:
    """Cancelled inside its block nothing of a unit is stored, and it is held to that."""
    ledger = Ledger(dsn)
    conversation = conversation_of(await start(postgres, ledger))
    turn, uow = ledger.turn(conversation), postgres.unit_of_work()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            with ledger.unit(turn, uow=uow) as unit:
                async with uow:
                    uow.messages.append(conversation, turn.drafts())
                    await asyncio.sleep(60)
    assert (unit.told, ledger.violations()) == ("failed", [])


LOST = "DELETE FROM operational.ai_messages WHERE content = %(second)s"
MOVED = "UPDATE operational.ai_messages SET position = 7 WHERE content = %(second)s"
RENUMBERED = "UPDATE operational.ai_messages SET id = -1 WHERE content = %(second)s"
DOUBLED = """INSERT INTO operational.ai_messages
    SELECT conversation_id, position + 10, -id, role, content, timestamp
    FROM operational.ai_messages WHERE content = %(second)s"""
ALL_LOST = "DELETE FROM operational.ai_messages"
MISCOUNTED = "UPDATE operational.ai_conversations SET message_count = 3"
UNDONE = "UPDATE operational.ai_conversations SET status = 'archived'"
FOREIGN = "UPDATE operational.ai_messages SET content = 'hello' WHERE content = %(second)s"


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (LOST, {"not where it was told", "torn", "counts"}),
        (MOVED, {"not where it was told", "torn", "has positions"}),
        (RENUMBERED, {"not where it was told"}),
        (DOUBLED, {"not where it was told", "stored 2 times", "has positions", "counts"}),
        (ALL_LOST, {"not where it was told", "in part", "counts"}),
        (MISCOUNTED, {"counts"}),
        (UNDONE, {"neither before nor after", "in part"}),
        (FOREIGN, {"not where it was told", "torn", "nobody intended"}),
    ],
)
async def test_what_is_not_as_acknowledged_is_found(
    postgres: ConversationStore, dsn: str, harm: str, words: set[str]
) -> None:
    """Whatever happens to an acknowledged unit behind the store's back."""
    ledger = Ledger(dsn)
    turn = await start(postgres, ledger)
    ledger.units[0].changes = (Change(STATUS, (conversation_of(turn),), None, "active"),)
    assert ledger.violations() == []
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(harm, {"second": turn.contents[1]})
    found = ledger.violations()
    assert {word for word in words if any(word in text for text in found)} == words, found


def unknown(*_: Any) -> CommitOutcomeUnknown:
    """Return the error of a unit that may be stored."""
    return CommitOutcomeUnknown(reason="lost")


def failed(*_: Any) -> StoreUnavailable:
    """Return the error of a unit that is not stored."""
    return StoreUnavailable(reason="away")


@pytest.mark.parametrize(
    ("error", "harm", "words"),
    [
        (failed, None, ["is there"]),
        (unknown, None, []),
        (unknown, "TRUNCATE operational.ai_conversations, operational.ai_messages", []),
        (unknown, LOST, ["torn", "counts"]),
    ],
)
async def test_what_is_there_although_it_failed_is_found(
    postgres: ConversationStore,
    dsn: str,
    error: Callable[[], Exception],
    harm: str | None,
    words: list[str],
) -> None:
    """A unit that failed is wholly absent; one whose outcome is unknown is whole or absent."""
    ledger = Ledger(dsn)
    turn, uow = ledger.turn(None), postgres.unit_of_work()
    with pytest.raises(type(error())):
        with ledger.unit(turn, uow=uow):
            await start_conversation(uow, user_id="u", session_id="s", drafts=turn.drafts())
            raise error()
    with psycopg.connect(dsn, autocommit=True) as connection:
        if harm is not None:
            connection.execute(harm, {"second": turn.contents[1]})
    found = ledger.violations()
    assert len(found) == len(words), found
    assert all(any(word in text for text in found) for word in words), found


async def test_a_transaction_that_idles_is_found(dsn: str) -> None:
    """A connection of a store that was left inside a transaction."""
    async with await psycopg.AsyncConnection.connect(
        dsn, application_name="conversation-store"
    ) as connection:
        await connection.execute("SELECT 1")
        [left] = await left_in_transaction(dsn, wait=0.1)
        assert left.pid == connection.info.backend_pid
    assert await left_in_transaction(dsn) == []
