"""Ids: drawn a block at a time, ahead of need, and never given twice."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import suppress
from itertools import pairwise
from typing import Any

import psycopg
import pytest
from psycopg import sql
from store_fixtures import draft, turn

from conversation_store import (
    ConversationStore,
    TransactionAborted,
    append_messages,
    delete_conversation,
    get_conversation,
    start_conversation,
)
from conversation_store.adapters.postgres.ids import IdSource

SCHEMA = "ids"
BLOCK = 7

WRITER = """
import asyncio, json, sys
from conversation_store import (
    ConversationStore, MessageDraft, append_messages, get_or_start_conversation,
    start_conversation,
)

dsn, schema, name, tasks = json.loads(sys.argv[1])

def drafts(count):
    return [MessageDraft(role="user", content=str(number)) for number in range(count)]

async def write(store, task):
    ids = []
    for number in range(5):
        uow = store.unit_of_work()
        session = f"{name}-{task}-{number}"
        conversation, messages = await start_conversation(
            uow, user_id="u", session_id=session, drafts=drafts(number)
        )
        ids += [conversation.id, *(message.id for message in messages)]
        for count in (1, 3, 20):
            messages = await append_messages(
                uow, conversation_id=conversation.id, drafts=drafts(count)
            )
            ids += [message.id for message in messages]
        await get_or_start_conversation(uow, user_id="u", session_id=session, drafts=drafts(2))
    return ids

async def main():
    async with ConversationStore.connect(dsn, schema=schema, max_size=4) as store:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        given = await asyncio.gather(*(write(store, task) for task in range(tasks)))
        print(json.dumps([number for ids in given for number in ids]))

asyncio.run(main())
"""


async def fresh(dsn: str, schema: str) -> None:
    """Remove a schema with all that is in it."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(
            sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
        )


@pytest.fixture
async def schema(dsn: str) -> AsyncIterator[str]:
    """Give a schema that was migrated just now, with blocks of 7 ids."""
    await fresh(dsn, SCHEMA)
    async with ConversationStore.connect(dsn, schema=SCHEMA, min_size=1) as store:
        await store.migrate(id_block=BLOCK)
    yield SCHEMA
    await fresh(dsn, SCHEMA)


async def last_value(dsn: str, schema: str) -> int:
    """Return the last value that the sequence gave."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute(
            sql.SQL("SELECT last_value FROM {}").format(sql.Identifier(schema, "ai_ids"))
        )
        [[value]] = await cursor.fetchall()
    return int(value)


# On the server ----------------------------------------------------------------------------------


async def test_many_processes_never_get_an_id_twice(dsn: str, schema: str) -> None:
    """Ids are unique among processes that draw small blocks at once, and write large turns."""
    processes, tasks = 4, 8
    writers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", WRITER),
            json.dumps([dsn, schema, f"process {number}", tasks]),
            stdin=PIPE,
            stdout=PIPE,
        )
        for number in range(processes)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert await writer.stdout.readline() == b"ready\n"
        ends = await asyncio.gather(*(writer.communicate(b"go\n") for writer in writers))
    finally:
        for writer in writers:
            with suppress(ProcessLookupError):
                writer.kill()
            await writer.wait()
    assert [writer.returncode for writer in writers] == [0] * processes
    given = [number for out, _ in ends for number in json.loads(out)]
    conversations = processes * tasks * 5
    messages = processes * tasks * (5 * (1 + 3 + 20) + sum(range(5)))
    assert len(given) == len(set(given)) == conversations + messages
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute(
            b"SELECT id FROM ids.ai_conversations UNION ALL SELECT id FROM ids.ai_messages"
        )
        assert sorted(row[0] for row in await cursor.fetchall()) == sorted(given)
        cursor = await connection.execute(
            b"SELECT count(*), sum(message_count) FROM ids.ai_conversations"
        )
        assert await cursor.fetchall() == [(conversations, messages)]


async def test_stores_of_two_schemas_have_their_own_ids(dsn: str, schema: str) -> None:
    """Each schema has its own sequence and its own block, side by side in one process."""
    await fresh(dsn, "ids_two")
    async with (
        ConversationStore.connect(dsn, schema=schema, min_size=1) as one,
        ConversationStore.connect(dsn, schema="ids_two", min_size=1) as two,
    ):
        await two.migrate(id_block=100)
        given: dict[int, list[int]] = {1: [], 2: []}
        for number in range(10):
            for name, store in ((1, one), (2, two)):
                conversation, messages = await start_conversation(
                    store.unit_of_work(), user_id="u", session_id=f"{number}", drafts=turn(1)
                )
                given[name] += [conversation.id, *(message.id for message in messages)]
        assert given[1] == given[2] == list(range(1, 31))
    assert await last_value(dsn, schema) == 29  # its fifth block of seven
    assert await last_value(dsn, "ids_two") == 1
    await fresh(dsn, "ids_two")


async def test_a_block_survives_a_unit_that_was_rolled_back(dsn: str) -> None:
    """A unit that is rolled back wastes the ids it took, and no more of the block."""
    await fresh(dsn, SCHEMA)
    async with ConversationStore.connect(dsn, schema=SCHEMA, min_size=1) as store:
        await store.migrate(id_block=1000)
        async with store.unit_of_work() as uow:
            conversation, _ = await start_conversation(uow, user_id="u", session_id="a")
            assert conversation.id == 1
            await uow.rollback()
        conversation, messages = await start_conversation(
            store.unit_of_work(), user_id="u", session_id="a", drafts=turn(1)
        )
        assert [conversation.id, *(message.id for message in messages)] == [2, 3, 4]
        assert await last_value(dsn, SCHEMA) == 1
    await fresh(dsn, SCHEMA)


async def test_a_block_drawn_in_a_transaction_survives_its_rollback(dsn: str, schema: str) -> None:
    """What was drawn inside the host's transaction stays drawn when that is rolled back."""
    async with (
        ConversationStore.connect(dsn, schema=schema, min_size=1) as store,
        await psycopg.AsyncConnection.connect(dsn) as conn,
    ):
        async with conn.transaction(force_rollback=True):
            conversation, _ = await start_conversation(
                store.unit_of_work(connection=conn), user_id="u", session_id="a"
            )
            assert conversation.id == 1
        conversation, _ = await start_conversation(
            store.unit_of_work(), user_id="u", session_id="a"
        )
        assert conversation.id == 2
        assert await last_value(dsn, schema) == 1


@pytest.mark.parametrize("id_block", [1, 2])
async def test_the_only_connection_is_lent_to_draw(dsn: str, id_block: int) -> None:
    """A unit that holds the pool's only connection gets ids over it, and does not starve."""
    await fresh(dsn, SCHEMA)
    async with ConversationStore.connect(
        dsn, schema=SCHEMA, min_size=1, max_size=1, timeout=2
    ) as store:
        await store.migrate(id_block=id_block)
        async with asyncio.timeout(10), store.unit_of_work() as uow:
            conversation, _ = await uow.conversations.add(new_conversation("s"))
            for number in range(10):
                messages = await uow.messages.append(conversation.id, turn(number))
                assert [message.position for message in messages] == [
                    2 * number + 1,
                    2 * number + 2,
                ]
        # The background had to wait for the connection, and others who need ids with it.
        await asyncio.gather(
            *(
                append_messages(
                    store.unit_of_work(), conversation_id=conversation.id, drafts=turn(number)
                )
                for number in range(8)
            )
        )
        found = await get_conversation(store.unit_of_work(), conversation_id=conversation.id)
        assert found.message_count == 36
    await fresh(dsn, SCHEMA)


def new_conversation(session_id: str) -> Any:
    """Return what a conversation is started with."""
    from conversation_store.domain.conversation import NewConversation

    return NewConversation(user_id="u", session_id=session_id)


async def test_a_sequence_that_was_set_back(dsn: str, schema: str) -> None:
    """An id that is given twice all the same is refused by the tables, and others are drawn.

    As after a failover to a standby that lagged behind. Where a transaction is open already, its
    unit is given up, and its next try has other ids.
    """
    async with ConversationStore.connect(dsn, schema=schema, min_size=1) as store:
        conversation, _ = await start_conversation(
            store.unit_of_work(), user_id="u", session_id="a", drafts=turn(1)
        )
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(b"SELECT setval('ids.ai_ids', 1, false)")
    async with ConversationStore.connect(dsn, schema=schema, min_size=1) as store:
        other, _ = await start_conversation(store.unit_of_work(), user_id="u", session_id="b")
        assert other.id != conversation.id
        found = await get_conversation(store.unit_of_work(), conversation_id=conversation.id)
        assert found == conversation
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute(b"SELECT setval('ids.ai_ids', 1, false)")
    async with ConversationStore.connect(dsn, schema=schema, min_size=1) as store:
        with pytest.raises(TransactionAborted, match="an id was given twice") as caught:
            async with store.unit_of_work() as uow:
                await uow.messages.append(conversation.id, turn(2))
        assert caught.value.sqlstate == "23505"
        [appended, _] = await append_messages(
            store.unit_of_work(), conversation_id=conversation.id, drafts=turn(2)
        )
        assert appended.position == 3


async def test_a_turn_larger_than_the_block(dsn: str, schema: str) -> None:
    """A turn that needs many blocks gets them, in the order they were drawn."""
    async with ConversationStore.connect(dsn, schema=schema, min_size=1) as store:
        conversation, messages = await start_conversation(
            store.unit_of_work(),
            user_id="u",
            session_id="s",
            drafts=[draft(str(number)) for number in range(1000)],
        )
        ids = [conversation.id, *(message.id for message in messages)]
        assert all(earlier < later for earlier, later in pairwise(ids))
        await delete_conversation(store.unit_of_work(), conversation_id=conversation.id)


# The source -------------------------------------------------------------------------------------


class Sequence:
    """A sequence whose blocks come when they are let go."""

    def __init__(self, block: int = 8) -> None:
        self.block = block
        self.draws = 0
        self.errors: list[Exception] = []
        self.open = asyncio.Event()
        self.open.set()
        self._next = 1

    async def draw(self, blocks: int) -> list[range]:
        """Draw blocks."""
        self.draws += 1
        await self.open.wait()
        if self.errors:
            raise self.errors.pop()
        first, self._next = self._next, self._next + blocks * self.block
        return [range(n, n + self.block) for n in range(first, self._next, self.block)]


async def settle() -> None:
    """Let tasks run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_ids_are_drawn_ahead_of_need() -> None:
    """A block is drawn in the background below a quarter, and nobody waits for it."""
    sequence = Sequence(8)
    ids = IdSource(sequence.draw)
    assert await ids.take(6) == [1, 2, 3, 4, 5, 6]
    await settle()
    assert sequence.draws == 1  # two of eight are a quarter, not less
    sequence.open.clear()
    assert await ids.take(1) == [7]
    await settle()
    assert sequence.draws == 2
    assert await ids.take(1) == [8]  # without the block that is on its way
    sequence.open.set()
    await settle()
    assert await ids.take(3) == [9, 10, 11]
    assert sequence.draws == 2


async def test_one_draw_serves_all_who_wait() -> None:
    """Of many who need ids at once one draws, and each gets others."""
    sequence = Sequence(100)
    ids = IdSource(sequence.draw)
    taken = await asyncio.gather(*(ids.take(3) for _ in range(20)))
    assert sorted(number for part in taken for number in part) == list(range(1, 61))
    assert sequence.draws == 1


async def test_who_no_longer_waits_cancels_no_draw() -> None:
    """A waiter that is cancelled takes nothing from those who wait with it."""
    sequence = Sequence()
    sequence.open.clear()
    ids = IdSource(sequence.draw)
    first, second = asyncio.create_task(ids.take(1)), asyncio.create_task(ids.take(1))
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    sequence.open.set()
    assert await second == [1]
    assert sequence.draws == 1


async def test_a_draw_that_nobody_waits_for_any_more_is_ended() -> None:
    """It may never be answered; who comes next draws anew."""
    sequence = Sequence()
    sequence.open.clear()
    ids = IdSource(sequence.draw)
    waiters = [asyncio.create_task(ids.take(1)) for _ in range(2)]
    await settle()
    for waiter in waiters:
        waiter.cancel()
    await settle()
    assert all(waiter.cancelled() for waiter in waiters)
    sequence.open.set()
    async with asyncio.timeout(1):
        await ids.take(1)
    assert sequence.draws == 2


async def test_a_draw_that_fails_is_told_and_tried_again() -> None:
    """The error of a draw reaches who waits for it; who asks next draws anew."""
    sequence = Sequence()
    sequence.errors = [ValueError("no")]
    ids = IdSource(sequence.draw)
    with pytest.raises(ValueError, match="no"):
        await ids.take(1)
    assert await ids.take(1) == [1]
    assert sequence.draws == 2


async def test_a_draw_ahead_that_fails_disturbs_nobody() -> None:
    """The error of a draw that nobody waits for is dropped, and the draw is tried again."""
    sequence = Sequence(8)
    ids = IdSource(sequence.draw)
    await ids.take(1)
    sequence.errors = [ValueError("no")]
    assert await ids.take(6) == [2, 3, 4, 5, 6, 7]
    await settle()
    assert sequence.draws == 2
    assert await ids.take(3) == [8, 9, 10]


async def test_a_lent_draw_is_used_only_where_ids_are_missing() -> None:
    """A unit that lends its connection draws over it, and only what it needs."""
    sequence, lent = Sequence(8), Sequence(8)
    lent._next = 101
    ids = IdSource(sequence.draw)
    assert await ids.take(2, lent.draw) == [101, 102]
    assert await ids.take(2, lent.draw) == [103, 104]
    assert (sequence.draws, lent.draws) == (0, 1)
    assert await ids.take(10, lent.draw) == [105, 106, 107, 108, *range(109, 115)]
    assert lent.draws == 2


async def test_a_lent_draw_does_not_wait_for_the_background() -> None:
    """A unit that holds a connection never waits for a draw that may wait for that connection."""
    sequence, lent = Sequence(8), Sequence(8)
    lent._next = 101
    ids = IdSource(sequence.draw)
    await ids.take(1)
    sequence.open.clear()
    await ids.take(6)
    await settle()
    assert sequence.draws == 2
    async with asyncio.timeout(5):
        assert await ids.take(3, lent.draw) == [8, 101, 102]
    sequence.open.set()
    await settle()
    assert await ids.take(8) == [*range(103, 109), 9, 10]


async def test_a_fork_shares_no_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was forked leaves the ids it was born with to its parent."""
    sequence = Sequence(8)
    ids = IdSource(sequence.draw)
    assert await ids.take(2) == [1, 2]
    pid = os.getpid()
    monkeypatch.setattr(os, "getpid", lambda: pid + 1)
    assert await ids.take(2) == [9, 10]
    assert await ids.take(2) == [11, 12]


async def test_closing_stops_the_draw() -> None:
    """After closing nothing runs on, whether a draw was on its way or not."""
    sequence = Sequence(8)
    ids = IdSource(sequence.draw)
    await ids.close()
    await ids.take(7)
    sequence.open.clear()
    await ids.take(1)
    await settle()
    assert sequence.draws == 2
    before = asyncio.all_tasks()
    await ids.close()
    assert len(asyncio.all_tasks()) == len(before) - 1
    await ids.close()


async def test_a_source_that_was_closed_serves_again() -> None:
    """A store over a pool of the host's can be entered again: closing loses no way to draw."""
    sequence = Sequence(1)
    ids = IdSource(sequence.draw)
    assert await ids.take(1) == [1]  # and a draw is due that did not start yet
    await ids.close()
    async with asyncio.timeout(5):
        assert await ids.take(1) == [2]


async def test_many_takers_of_many_sizes() -> None:
    """Whatever is taken at once, no id is given twice and none of a block is lost."""
    sequence = Sequence(7)
    ids = IdSource(sequence.draw)
    sizes = [1 + number * 5 % 23 for number in range(200)]
    taken = await asyncio.gather(*(ids.take(size) for size in sizes))
    assert [len(part) for part in taken] == sizes
    given = sorted(number for part in taken for number in part)
    assert given == list(range(1, sum(sizes) + 1))
