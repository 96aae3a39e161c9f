"""The server is out of disk or of connections: typed errors, nothing stored, and it heals."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psycopg
import pytest
from ledger import APPLICATION, Ledger, left_in_transaction
from load import Load
from postgres_cluster import Cluster, Server
from store_fixtures import draft, open_store, turn

from conversation_store import (
    Conversation,
    ConversationRecord,
    ConversationStore,
    Message,
    Outcome,
    Retry,
    StoreTimeout,
    StoreUnavailable,
    append_messages,
    get_conversation,
    import_conversations,
    start_conversation,
)

DISK_FULL = "53100"
ONCE = Retry(attempts=1)
SCHEMA = "out_of_disk"

# A message meets a full disk when it is inserted; or all is well until the COMMIT.
FULL = """
CREATE FUNCTION {schema}.disk_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.content = 'too much' THEN
        RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full';
    END IF;
    RETURN NEW;
END $$;
CREATE {kind} TRIGGER disk_full AFTER INSERT ON {schema}.ai_messages {when}
    FOR EACH ROW EXECUTE FUNCTION {schema}.disk_full()
"""
MOMENTS = {
    "at the insert": {"kind": "", "when": ""},
    "at the commit": {"kind": "CONSTRAINT", "when": "DEFERRABLE INITIALLY DEFERRED"},
}
Refused = Callable[[ConversationStore, Conversation], Awaitable[Outcome]]
TOO_MUCH = [draft("still fits"), draft("too much"), draft("after it")]


@contextmanager
def a_full_disk(dsn: str, moment: str) -> Iterator[None]:
    """Have the server answer as with a full disk, for messages that are too much."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(FULL.format(schema=SCHEMA, **MOMENTS[moment]).encode())
        try:
            yield
        finally:
            connection.execute(f"DROP FUNCTION {SCHEMA}.disk_full CASCADE".encode())


async def one_more(store: ConversationStore, conversation: Conversation) -> list[Message]:
    """Append a turn, as proof that all is well again."""
    uow = store.unit_of_work()
    return await append_messages(uow, conversation_id=conversation.id, drafts=turn(1))


async def refused_append(store: ConversationStore, conversation: Conversation) -> Outcome:
    """Append what is too much."""
    uow = store.unit_of_work()
    with pytest.raises(StoreUnavailable) as refused:
        await append_messages(uow, conversation_id=conversation.id, drafts=TOO_MUCH)
    assert refused.value.sqlstate == DISK_FULL
    return uow.outcome


async def refused_unit(store: ConversationStore, conversation: Conversation) -> Outcome:
    """Write several things in one flush."""
    uow = store.unit_of_work()
    with pytest.raises(StoreUnavailable) as refused:
        async with uow:
            uow.messages.append(conversation.id, turn(1))
            uow.messages.append(conversation.id, TOO_MUCH)
            uow.conversations.remove(conversation.id)
    assert refused.value.sqlstate == DISK_FULL
    return uow.outcome


async def refused_interactive(store: ConversationStore, conversation: Conversation) -> Outcome:
    """Write in a transaction that stays open."""
    uow = store.unit_of_work()
    with pytest.raises(StoreUnavailable) as refused:
        async with uow:
            uow.messages.append(conversation.id, turn(1))
            await uow.conversations.get(conversation.id)
            uow.messages.append(conversation.id, TOO_MUCH)
    assert refused.value.sqlstate == DISK_FULL
    return uow.outcome


async def refused_import(store: ConversationStore, conversation: Conversation) -> Outcome:
    """Bring a conversation in."""
    record: ConversationRecord = {
        "user_id": "ada",
        "session_id": "imported",
        "messages": [{"role": "user", "content": each.content} for each in TOO_MUCH],
    }
    uow = store.unit_of_work()
    with pytest.raises(StoreUnavailable) as refused:
        await import_conversations(uow, records=[record])
    assert refused.value.sqlstate == DISK_FULL
    return uow.outcome


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    "refused", [refused_append, refused_unit, refused_interactive, refused_import]
)
async def test_what_meets_a_full_disk_is_not_stored(
    dsn: str, migrated: set[str], refused: Refused, moment: str
) -> None:
    """It is StoreUnavailable with the server's code, and the connection is clean afterwards."""
    async with open_store(dsn, SCHEMA, migrated, retry=ONCE, max_size=1) as store:
        conversation, _ = await start_conversation(
            store.unit_of_work(), user_id="ada", session_id="s-1"
        )
        with a_full_disk(dsn, moment):
            outcome = await refused(store, conversation)

            assert outcome is Outcome.ROLLED_BACK
            assert await left_in_transaction(dsn) == []
            after = await one_more(store, conversation)
        assert [message.position for message in after] == [1, 2]


@pytest.mark.parametrize("moment", MOMENTS)
async def test_turns_that_shared_a_flush_with_one_too_much_are_stored(
    dsn: str, migrated: set[str], moment: str
) -> None:
    """Each of 16 turns has its own end."""
    async with open_store(dsn, SCHEMA, migrated, retry=ONCE, coalesce=True) as store:
        started = [
            await start_conversation(store.unit_of_work(), user_id="ada", session_id=f"s-{n}")
            for n in range(16)
        ]
        with a_full_disk(dsn, moment):
            ended = await asyncio.gather(
                *(
                    append_messages(
                        store.unit_of_work(),
                        conversation_id=conversation.id,
                        drafts=turn(number) if number % 4 else TOO_MUCH,
                    )
                    for number, (conversation, _) in enumerate(started)
                ),
                return_exceptions=True,
            )

        for number, (conversation, _) in enumerate(started):
            found = await get_conversation(store.unit_of_work(), conversation_id=conversation.id)
            assert found.message_count == (2 if number % 4 else 0)
            assert isinstance(ended[number], list if number % 4 else StoreUnavailable)


async def test_a_turn_waits_for_room_on_the_disk(dsn: str, migrated: set[str]) -> None:
    """By default the store tries again, so what met a full disk is stored when there is room."""
    async with open_store(dsn, SCHEMA, migrated) as store:
        conversation, _ = await start_conversation(
            store.unit_of_work(), user_id="ada", session_id="s-1"
        )
        uow = store.unit_of_work()
        with a_full_disk(dsn, "at the insert"):
            appending = asyncio.create_task(
                append_messages(uow, conversation_id=conversation.id, drafts=TOO_MUCH)
            )
            await asyncio.sleep(0.1)
            assert not appending.done()

        assert [message.position for message in await appending] == [1, 2, 3]


# A disk that is full indeed ---------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a file system of that size; half of it is taken by a file that can be removed."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("this process may not mount a file system")
    try:
        (folder / "ballast").write_bytes(bytes(megabytes << 19))
        owner = folder.parent.stat()
        os.chown(folder, owner.st_uid, owner.st_gid)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """Give a place for servers of our own."""
    with Cluster() as cluster:
        yield cluster


async def fill(load: Load) -> None:
    """Write until the disk is full, and nothing more is acknowledged for a while."""
    acknowledged = -1
    async with asyncio.timeout(60):
        while not load.sqlstates[DISK_FULL] or load.told["acknowledged"] > acknowledged:
            acknowledged = load.told["acknowledged"]
            await asyncio.sleep(0.5)


async def test_a_disk_that_is_full_heals_when_there_is_room_again(cluster: Cluster) -> None:
    """The tables are on a small file system, which 16 tasks fill."""
    server = cluster.new_server()
    server.start()
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(cluster.folder / "small", 6))
        space = disk / "space"
        space.mkdir()
        shutil.chown(space, *owner_of(disk))
        with server.connect() as connection:
            connection.execute(f"CREATE TABLESPACE small LOCATION '{space}'".encode())
            connection.execute("ALTER ROLE postgres SET default_tablespace = small")
        ledger = Ledger(server.dsn)
        async with ConversationStore.connect(server.dsn, retry=ONCE, coalesce=True) as store:
            await store.migrate()
            async with Load([store], ledger, padding=1_000) as load:
                await fill(load)
                (disk / "ballast").unlink()
                await load.acknowledge(100)
            assert load.surprises == []
        assert ledger.violations() == []
        server.stop()


def owner_of(path: Path) -> tuple[int, int]:
    """Return the user and the group that a path belongs to."""
    status = path.stat()
    return status.st_uid, status.st_gid


# No connection is left --------------------------------------------------------------------------


@contextmanager
def all_taken(server: Server) -> Iterator[None]:
    """Take every connection that the server has left."""
    with ExitStack() as stack:
        with suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(server.connect())
        yield


@pytest.fixture(scope="module")
def few_connections() -> Iterator[Server]:
    """Give a server of ten connections."""
    with Cluster() as cluster:
        server = cluster.new_server(
            {"max_connections": "10", "superuser_reserved_connections": "0"}
        )
        server.start()
        yield server


async def test_no_connection_is_left_for_a_store_that_opens(few_connections: Server) -> None:
    """It says so at once, and opens when one is free."""
    store = ConversationStore.connect(few_connections.dsn, min_size=1)
    with all_taken(few_connections), pytest.raises(StoreUnavailable):
        await store.__aenter__()

    async with ConversationStore.connect(few_connections.dsn, min_size=1) as store:
        await store.ping()


@pytest.mark.parametrize("coalesce", [False, True])
async def test_no_connection_is_left_for_a_store_that_lost_its_own(
    few_connections: Server, coalesce: bool
) -> None:
    """Who waits in vain gets StoreTimeout, and nothing is stored; when there are some, it goes on.

    Others took the connections of the store after the server had ended them.
    """
    async with ConversationStore.connect(
        few_connections.dsn, min_size=1, max_size=4, timeout=1, coalesce=coalesce
    ) as store:
        await store.migrate()
        conversation, _ = await start_conversation(
            store.unit_of_work(), user_id="ada", session_id=str(coalesce)
        )
        units = [store.unit_of_work() for _ in range(8)]
        end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        with few_connections.connect() as watcher:
            watcher.execute(f"{end} WHERE application_name = '{APPLICATION}'".encode())
            with all_taken(few_connections):
                ended = await asyncio.gather(
                    *(
                        append_messages(uow, conversation_id=conversation.id, drafts=turn(0))
                        for uow in units
                    ),
                    return_exceptions=True,
                )
        async with asyncio.timeout(20):
            while True:
                with suppress(StoreTimeout):
                    after = await one_more(store, conversation)
                    break

    assert [type(error) for error in ended] == [StoreTimeout] * 8
    assert {uow.outcome for uow in units} == {Outcome.NOT_STARTED}
    assert [message.position for message in after] == [1, 2]


async def test_more_tasks_than_connections_lose_nothing(few_connections: Server) -> None:
    """Two stores want twice the connections that there are, while others come and go."""
    ledger = Ledger(few_connections.dsn, "crowded")
    async with (
        ConversationStore.connect(few_connections.dsn, schema="crowded", min_size=1) as one,
        ConversationStore.connect(few_connections.dsn, schema="crowded", min_size=1) as two,
    ):
        await one.migrate()
        async with Load([one, two], ledger) as load:
            for _ in range(3):
                with all_taken(few_connections):
                    await load.acknowledge(100)
        assert load.surprises == []
    assert ledger.violations() == []
