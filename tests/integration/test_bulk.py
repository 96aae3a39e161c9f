"""Imports and exports on the server: raced, interrupted, killed, lost, and in what memory."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import signal
import sys
import tracemalloc
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psycopg
import pytest
from interruption import Moments
from server_waits import until_the_server_waits
from store_fixtures import draft, open_store
from wire_proxy import WireProxy

from conversation_store import (
    CommitOutcomeUnknown,
    ConversationStore,
    DuplicateSession,
    ImportReceipt,
    Outcome,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    append_messages,
    erase_user,
    export_conversations,
    find_conversation,
    import_conversations,
    start_conversation,
)

SEED = """
INSERT INTO operational.ai_conversations (id, user_id, session_id, status, start_time,
    last_activity, message_count, version) VALUES (-1, 'u', 's-00050', 'active', now(), now(), 0, 1)
"""


def records(count: int, messages: int = 2, size: int = 20) -> Iterator[Any]:
    """Give records, one after the other."""
    for number in range(count):
        said = [
            {"role": "user", "content": f"{n:5}" + "x" * size, "slots": {"city": f"c-{n}"}}
            for n in range(messages)
        ]
        yield {"user_id": "u", "session_id": f"s-{number:05}", "messages": said}


async def counts(dsn: str) -> tuple[int, int]:
    """Return how many conversations and messages are stored."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute(
            "SELECT (SELECT count(*) FROM operational.ai_conversations),"
            " (SELECT count(*) FROM operational.ai_messages)"
        )
        [row] = await cursor.fetchall()
        return row


async def terminate(dsn: str) -> None:
    """End the connections that the stores have now, and wait until they are no more."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        cursor = await connection.execute(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'conversation-store'"
        )
        ended = [pid for pid, _ in await cursor.fetchall()]
        left = True
        while left:
            await asyncio.sleep(0.01)
            cursor = await connection.execute(
                "SELECT pid FROM pg_stat_activity WHERE pid = ANY(%s)", (ended,)
            )
            left = bool(await cursor.fetchall())


@pytest.fixture
async def narrow(dsn: str, migrated: set[str]) -> AsyncIterator[ConversationStore]:
    """Give a store with a single connection, so that what one call leaves behind the next meets."""
    async with open_store(dsn, "operational", migrated, min_size=1, max_size=1, timeout=5) as store:
        yield store


# Raced --------------------------------------------------------------------------------------------


async def test_imports_of_the_same_sessions_at_once(postgres: ConversationStore, dsn: str) -> None:
    """Each session is stored once, whoever comes first, in whatever order they come."""
    for attempt in range(5):
        given = [list(records(300)) for _ in range(4)]
        for number, part in enumerate(given):
            random.Random(attempt * 10 + number).shuffle(part)
            for record in part:
                record["user_id"] = f"u-{attempt}"
        receipts = await asyncio.gather(
            *(
                import_conversations(postgres.unit_of_work(), records=part, on_duplicate="skip")
                for part in given
            )
        )
        assert sum(receipt.conversations for receipt in receipts) == 300
        assert sum(receipt.skipped for receipt in receipts) == 900
        assert await counts(dsn) == (300 * (attempt + 1), 600 * (attempt + 1))


@pytest.mark.parametrize("lent", [False, True])
@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize("on_duplicate", ["error", "skip"])
async def test_a_session_that_another_is_just_storing(
    postgres: ConversationStore, dsn: str, on_duplicate: Any, end: str, lent: bool
) -> None:
    """The batch waits for the other, and then judges by what became of it."""
    connection = await psycopg.AsyncConnection.connect(dsn) if lent else None
    rival = await psycopg.AsyncConnection.connect(dsn)
    uow = postgres.unit_of_work(connection=connection)
    async with rival:
        await rival.execute(SEED)
        task = asyncio.create_task(
            import_conversations(uow, records=records(100), on_duplicate=on_duplicate)
        )
        await until_the_server_waits(dsn)
        assert not task.done()
        await (rival.commit() if end == "commit" else rival.rollback())
        [ended] = await asyncio.gather(task, return_exceptions=True)
    if end == "commit" and on_duplicate == "error":
        assert isinstance(ended, DuplicateSession)
        assert ended.session_id == "s-00050"
        assert uow.outcome is Outcome.ROLLED_BACK
        assert await counts(dsn) == (1, 0)
    else:
        skipped = int(end == "commit")
        assert ended == ImportReceipt(
            conversations=100 - skipped, messages=200 - 2 * skipped, skipped=skipped
        )
        assert await counts(dsn) == (100, 200 - 2 * skipped)
    if connection is not None:
        await connection.close()


async def test_a_batch_that_is_outrun_again_and_again_is_given_up(
    postgres: ConversationStore, dsn: str
) -> None:
    """In a transaction that does not see what others store it is TransactionAborted."""
    async with (
        await psycopg.AsyncConnection.connect(dsn) as connection,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as rival,
    ):
        await connection.set_isolation_level(psycopg.IsolationLevel.REPEATABLE_READ)
        async with connection.transaction():
            await connection.execute("SELECT count(*) FROM operational.ai_conversations")
            await rival.execute(SEED)
            uow = postgres.unit_of_work(connection=connection)
            with pytest.raises(TransactionAborted) as caught:
                await import_conversations(uow, records=records(100))
            assert caught.value.retryable
            await connection.execute("SELECT 1")
    assert await counts(dsn) == (1, 0)


# Interrupted --------------------------------------------------------------------------------------


@pytest.mark.parametrize("inside", [False, True])
async def test_an_import_cancelled_at_any_time(
    narrow: ConversationStore, dsn: str, inside: bool
) -> None:
    """A batch is whole or absent, the outcome says which, and the connection is good."""
    moments = Moments(inside)
    ends: list[Outcome] = []
    for number in range(60):
        uow = narrow.unit_of_work(user_id=f"u-{number}")
        given = [record | {"user_id": f"u-{number}"} for record in records(60, messages=10)]

        async def run(uow: Any = uow, given: Any = given) -> None:
            if not inside:
                await import_conversations(uow, records=given)
                return
            async with uow:
                await start_conversation(uow, session_id="a")
                await import_conversations(uow, records=given)

        task = asyncio.create_task(run())
        await asyncio.sleep(moments.draw())
        moments.tell(had_ended=task.done())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        ends.append(uow.outcome)
        async with await psycopg.AsyncConnection.connect(dsn) as connection:
            cursor = await connection.execute(
                "SELECT count(*), coalesce(sum(message_count), 0)::int,"
                " (SELECT count(*) FROM operational.ai_messages AS m JOIN"
                " operational.ai_conversations AS c ON c.id = m.conversation_id"
                " WHERE user_id = %(user)s)"
                " FROM operational.ai_conversations WHERE user_id = %(user)s",
                {"user": f"u-{number}"},
            )
            [stored] = await cursor.fetchall()
        assert stored in {(0, 0, 0), (60 + inside, 600, 600)}
        if uow.outcome is not Outcome.UNKNOWN:
            assert (stored[0] > 0) is (uow.outcome is Outcome.COMMITTED)
    assert 0 < ends.count(Outcome.COMMITTED) < 60
    assert ends.count(Outcome.UNKNOWN) <= 2
    await start_conversation(narrow.unit_of_work(), user_id="u", session_id="after")


async def test_an_export_cancelled_at_any_time(narrow: ConversationStore) -> None:
    """Its only connection is there for the next one."""
    await import_conversations(narrow.unit_of_work(), records=records(100, messages=30))
    moments = Moments("an export")
    for _ in range(40):

        async def run() -> None:
            async for _ in export_conversations(narrow.unit_of_work()):
                await asyncio.sleep(0)

        task = asyncio.create_task(run())
        await asyncio.sleep(moments.draw())
        moments.tell(had_ended=task.done())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert len([_ async for _ in export_conversations(narrow.unit_of_work())]) == 100


async def test_an_abandoned_export_gives_its_connection_back(narrow: ConversationStore) -> None:
    """The event loop closes the generator, in another task than the one that used it."""
    await import_conversations(narrow.unit_of_work(), records=records(1200, messages=1))
    for _ in range(3):
        stream = export_conversations(narrow.unit_of_work())
        await anext(stream)
        del stream
        gc.collect()
        assert await find_conversation(narrow.unit_of_work(), user_id="u", session_id="s-00000")


async def test_an_export_holds_a_connection_of_its_own(narrow: ConversationStore) -> None:
    """With a pool of one its consumer finds none; inside a block there is one for both."""
    await import_conversations(narrow.unit_of_work(), records=records(3))
    uow = narrow.unit_of_work()
    async with uow:
        await start_conversation(uow, user_id="u", session_id="a")
        async for record in export_conversations(uow):
            await start_conversation(uow, user_id="v", session_id=record["session_id"])
    narrow_pool: Any = uow
    narrow_pool._connections.pool.timeout = 0.1
    stream = export_conversations(uow)
    await anext(stream)
    with pytest.raises(StoreTimeout):
        await find_conversation(uow, user_id="u", session_id="a")
    await stream.aclose()
    assert await find_conversation(uow, user_id="v", session_id="a")


async def test_a_consumer_that_is_too_slow_for_the_role(
    narrow: ConversationStore, dsn: str
) -> None:
    """Idle in the transaction for longer than allowed is StoreTimeout, and the pool recovers."""
    await import_conversations(narrow.unit_of_work(), records=records(1200, messages=1))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as admin:
        await admin.execute("ALTER ROLE CURRENT_USER SET idle_in_transaction_session_timeout = 200")
        try:
            await terminate(dsn)
            stream = export_conversations(narrow.unit_of_work())
            await anext(stream)
            await asyncio.sleep(0.6)
            with pytest.raises((StoreTimeout, StoreUnavailable)) as caught:
                [_ async for _ in stream]
            assert caught.value.retryable
        finally:
            await admin.execute("ALTER ROLE CURRENT_USER RESET idle_in_transaction_session_timeout")
    await terminate(dsn)
    await start_conversation(narrow.unit_of_work(), user_id="u", session_id="after")


# Lost ---------------------------------------------------------------------------------------------


async def test_an_import_lost_at_its_commit_is_unknown_and_names_its_ids(
    narrow: ConversationStore, dsn: str
) -> None:
    """What was sent in the unit can be looked for, and what came before is told."""
    uow = narrow.unit_of_work()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        async with uow:
            await import_conversations(uow, records=records(5))
            await terminate(dsn)
    assert uow.outcome is Outcome.UNKNOWN
    assert len(set(caught.value.conversation_ids)) == 5
    assert len(set(caught.value.message_ids)) == 10
    assert await counts(dsn) == (0, 0)


async def test_an_import_lost_before_its_commit_stores_nothing_of_the_batch(
    narrow: ConversationStore, dsn: str
) -> None:
    """Lost in the middle of a batch, the error says what is in, and nothing else is."""
    uow = narrow.unit_of_work()
    async with await psycopg.AsyncConnection.connect(dsn) as rival:
        await rival.execute(SEED.replace("s-00050", "s-01050"))
        task = asyncio.create_task(import_conversations(uow, records=records(1500)))
        await until_the_server_waits(dsn)
        await terminate(dsn)
        with pytest.raises(StoreUnavailable) as caught:
            await task
        await rival.rollback()
    assert caught.value.imported == ImportReceipt(conversations=1000, messages=2000)
    assert uow.outcome is Outcome.ROLLED_BACK
    assert await counts(dsn) == (1000, 2000)


IMPORTER = """
import asyncio, json, sys
from conversation_store import ConversationStore, import_conversations

dsn, on_duplicate = json.loads(sys.argv[1])

def records():
    for number in range(6000):
        said = [{"role": "user", "content": str(n)} for n in range(3)]
        yield {"user_id": "u", "session_id": f"s-{number:05}", "messages": said}

def tell(so_far):
    print(json.dumps([so_far.conversations, so_far.skipped]), flush=True)

async def main():
    async with ConversationStore.connect(dsn) as store:
        await import_conversations(
            store.unit_of_work(), records=records(), on_duplicate=on_duplicate, progress=tell
        )

asyncio.run(main())
"""


async def importer(dsn: str, on_duplicate: str) -> asyncio.subprocess.Process:
    """Start a process that imports 6,000 conversations."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", IMPORTER),
        json.dumps([dsn, on_duplicate]),
        stdout=PIPE,
    )


async def test_an_import_that_was_killed_is_gone_on_with(
    postgres: ConversationStore, dsn: str
) -> None:
    """Killed after some batches and run again with "skip": all is in, and nothing twice."""
    async with await psycopg.AsyncConnection.connect(dsn) as rival:
        # However late it is killed, it is not done: the last batch waits for this session.
        await rival.execute(SEED.replace("s-00050", "s-05500"))
        first = await importer(dsn, "error")
        assert first.stdout is not None
        told = b""
        for _ in range(3):
            told = await first.stdout.readline()
        first.send_signal(signal.SIGKILL)
        await first.wait()
        await rival.rollback()
    assert json.loads(told) == [3000, 0]
    second = await importer(dsn, "skip")
    out, _ = await second.communicate()
    assert second.returncode == 0
    conversations, skipped = json.loads(out.splitlines()[-1])
    assert conversations + skipped == 6000
    assert 3000 <= skipped < 6000
    assert await counts(dsn) == (6000, 18_000)


# In a host's session ------------------------------------------------------------------------------


async def test_the_hosts_session_does_not_matter(postgres: ConversationStore, dsn: str) -> None:
    """Its time zone changes nothing that is stored or read."""
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("SET timezone = 'Asia/Kolkata'")
        uow = postgres.unit_of_work(connection=connection)
        given = [
            record | {"start_time": "2020-01-01T00:00:00.000001Z", "metadata": {"a": [1e16]}}
            for record in records(2)
        ]
        async with connection.transaction():
            await import_conversations(uow, records=given)
            inside = [record async for record in export_conversations(uow)]
    outside = [record async for record in export_conversations(postgres.unit_of_work())]
    assert inside == outside
    assert outside[0]["messages"][0]["content"] == given[0]["messages"][0]["content"]
    assert outside[0]["messages"][1]["slots"] == {"city": "c-1"}
    assert outside[0].get("start_time") == "2020-01-01T00:00:00.000001Z"
    assert outside[0].get("metadata") == {"a": [10**16]}


async def test_an_export_on_a_lent_connection_keeps_what_the_host_wrote_meanwhile(
    postgres: ConversationStore, dsn: str
) -> None:
    """On an idle connection it is a transaction of the export's, and that is committed."""
    await import_conversations(postgres.unit_of_work(), records=records(3))
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        uow = postgres.unit_of_work(connection=connection)
        async for record in export_conversations(uow):
            await start_conversation(uow, user_id="v", session_id=record["session_id"])
            if record["session_id"] == "s-00001":
                break
        gc.collect()
        await asyncio.sleep(0.05)
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert await counts(dsn) == (5, 6)


# How much at a time -------------------------------------------------------------------------------


async def test_the_first_record_comes_before_the_last_is_read(dsn: str, migrated: set[str]) -> None:
    """Records are given as they come: 1,000 messages are fetched at a time."""
    async with WireProxy(dsn) as proxy:
        async with open_store(dsn, "operational", migrated, through=proxy.dsn) as store:
            await import_conversations(store.unit_of_work(), records=records(50, messages=100))
            with proxy.count() as wire:
                stream = export_conversations(store.unit_of_work())
                await anext(stream)
                assert sum(text.startswith("FETCH") for text in wire.texts) == 1
                assert len([record async for record in stream]) == 49
            assert sum(text.startswith("FETCH") for text in wire.texts) == 6
            assert wire.round_trips == 8


async def peak_of_import(store: ConversationStore, count: int) -> int:
    """Return the most memory that Python held while so many conversations were imported."""
    gc.collect()
    tracemalloc.start()
    await import_conversations(store.unit_of_work(), records=records(count, messages=20, size=200))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


async def peak_of_export(store: ConversationStore, user_id: str) -> int:
    """Return the most memory that Python held while a user's conversations were exported."""
    gc.collect()
    tracemalloc.start()
    async for _ in export_conversations(store.unit_of_work(), user_id=user_id):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


async def test_memory_does_not_grow_with_the_stream(
    postgres: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times the input has the same peak, going in and coming out, within 20 %."""
    # The peak is that of two batches: with small ones a short stream is enough to reach it.
    monkeypatch.setattr("conversation_store.service_layer.transfer.BATCH_MESSAGES", 1000)
    await import_conversations(postgres.unit_of_work(), records=[])
    small = await peak_of_import(postgres, 200)
    for user, count in (("few", 200), ("many", 2000)):
        given = (record | {"user_id": user} for record in records(count, messages=20, size=200))
        await import_conversations(postgres.unit_of_work(), records=given)
    few, many = [await peak_of_export(postgres, user) for user in ("few", "many")]
    assert many < 1.2 * few
    await erase_user(postgres.unit_of_work(), user_id="u")
    large = await peak_of_import(postgres, 2000)
    assert large < 1.2 * small


async def test_an_append_after_an_import_goes_on(postgres: ConversationStore) -> None:
    """What COPY stored is like what was said: positions go on behind it."""
    await import_conversations(postgres.unit_of_work(), records=records(1, messages=3))
    uow = postgres.unit_of_work()
    found = await find_conversation(uow, user_id="u", session_id="s-00000")
    assert found is not None
    [message] = await append_messages(uow, conversation_id=found.id, drafts=[draft("next")])
    assert message.position == 4
