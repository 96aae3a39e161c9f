"""What an observer is told to have been sent is what passes on the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any

import psycopg
import pytest
from attrs import define
from store_fixtures import APPLICATION, as_role, draft, open_store, open_store_as, turn
from watching import Watcher
from wire_proxy import WireCount, WireProxy
from wired_store import SERVICE_FUNCTIONS, Wired, wired_store

from conversation_store import (
    ConversationNotFound,
    ConversationStore,
    Outcome,
    append_messages,
    export_conversations,
    get_conversation,
    import_conversations,
    latest_messages,
    start_conversation,
)

NOWHERE = 4_000_000_000


@define
class Watched:
    """A store behind the proxy, and who watches it."""

    wired: Wired
    watcher: Watcher


@pytest.fixture
async def watched(dsn: str, migrated: set[str]) -> AsyncIterator[Watched]:
    """Give a watched store behind the proxy; nothing is prepared, which takes a trip by itself."""
    watcher = Watcher()
    options = {"observer": watcher, "prepare_threshold": None}
    async with wired_store(dsn, migrated, **options) as wired:
        yield Watched(wired, watcher)


@pytest.fixture
async def secured(dsn: str, migrated: set[str]) -> AsyncIterator[Watched]:
    """Give one with row security."""
    watcher = Watcher()
    options: dict[str, Any] = {
        "observer": watcher,
        "prepare_threshold": None,
        "min_size": 1,
        "max_size": 1,
    }
    async with WireProxy(as_role(dsn, APPLICATION)) as proxy:
        opened = open_store_as(APPLICATION, dsn, "observed row security", migrated, policies=True)
        async with (
            opened,
            ConversationStore.connect(
                proxy.dsn, schema="observed row security", row_security=True, **options
            ) as store,
        ):
            conversation, [message] = await start_conversation(
                store.unit_of_work(user_id="u"), session_id="s", drafts=[draft("first")]
            )
            yield Watched(Wired(store, proxy, conversation.id, message.id), watcher)


async def compare(watched: Watched, call: Callable[[], Awaitable[Any]]) -> WireCount:
    """Do something, and assert that the observer was told of what passed; ids are nobody's."""
    watched.watcher.forget()
    with watched.wired.proxy.count() as wire:
        await call()
    total = watched.watcher.total()
    draws = sum("nextval" in text for text in wire.texts)
    counted = (total.round_trips, total.statements)
    assert counted in {
        (wire.round_trips - some, wire.statements - some) for some in range(draws + 1)
    }, wire.texts
    return wire


@pytest.mark.parametrize("name", SERVICE_FUNCTIONS)
async def test_what_service_functions_send(watched: Watched, name: str) -> None:
    """Alone, each is told to be one statement in one round trip, as it is."""
    await calls_once(watched, name)


@pytest.mark.parametrize("name", ["append_messages", "pop_message", "latest_messages"])
async def test_what_service_functions_send_under_row_security(secured: Watched, name: str) -> None:
    """The user that is set, and the BEGIN and COMMIT of a lone write, are among what is told."""
    await calls_once(secured, name)


async def calls_once(watched: Watched, name: str) -> None:
    """Assert that a service function is told as what it is: one round trip."""
    uow = watched.wired.store.unit_of_work(user_id="u")
    call = partial(SERVICE_FUNCTIONS[name], watched.wired, uow)
    if name.endswith(", replay"):
        await call()
    await compare(watched, call)
    seen, unit = watched.watcher.seen
    assert seen.tally == unit.tally
    assert unit.tally is not None
    assert (unit.tally.round_trips, unit.tally.retries) == (1, 0)
    assert unit.tally.rows >= 1 or name.startswith(("erase", "purge", "delete"))


async def read(stream: AsyncGenerator[Any]) -> None:
    """Read an export to its end."""
    assert [record async for record in stream]


async def leave(stream: AsyncGenerator[Any]) -> None:
    """Leave an export half way."""
    async with aclosing(stream):
        await anext(stream)


async def several(store: ConversationStore, conversation: int) -> None:
    """Write several times in one flush."""
    async with store.unit_of_work(user_id="u") as uow:
        for number in range(3):
            uow.messages.append(conversation, turn(number))


async def refused(store: ConversationStore, conversation: int) -> None:
    """Have the second of two writes refused, so that the connection has to be cleaned."""
    with pytest.raises(ConversationNotFound):
        async with store.unit_of_work(user_id="u") as uow:
            uow.messages.append(conversation, turn(1))
            uow.messages.append(NOWHERE, turn(1))


async def refused_alone(store: ConversationStore, conversation: int) -> None:
    """Have a lone write refused, and write another."""
    uow = store.unit_of_work(user_id="u")
    with pytest.raises(ConversationNotFound):
        await append_messages(uow, conversation_id=NOWHERE, drafts=turn(1))
    await append_messages(uow, conversation_id=conversation, drafts=turn(1))


async def interactive(store: ConversationStore, conversation: int) -> None:
    """Write, read, have a write refused and undone, write again: a transaction."""
    async with store.unit_of_work(user_id="u") as uow:
        for number in range(2):
            await append_messages(uow, conversation_id=conversation, drafts=turn(number))
        await latest_messages(uow, conversation_id=conversation)
        with pytest.raises(ConversationNotFound):
            await append_messages(uow, conversation_id=NOWHERE, drafts=turn(1))
        await append_messages(
            uow, conversation_id=conversation, drafts=turn(3), request_id="of this test"
        )


async def undone(store: ConversationStore, conversation: int) -> None:
    """Roll a transaction back."""
    async with store.unit_of_work(user_id="u") as uow:
        await append_messages(uow, conversation_id=conversation, drafts=turn(1))
        await uow.rollback()


async def limited(store: ConversationStore, conversation: int) -> None:
    """Write and read with a limit, which is sent too."""
    uow = store.unit_of_work(user_id="u", timeout=30)
    await append_messages(uow, conversation_id=conversation, drafts=turn(1))
    await get_conversation(uow, conversation_id=conversation)


async def imported_and_exported(store: ConversationStore, _: int) -> None:
    """Import two batches, skip them, and read two chunks."""
    records: list[Any] = [
        {"user_id": "v", "session_id": f"i-{n}", "messages": [{"role": "user", "content": "x"}]}
        for n in range(1200)
    ]
    for _ in range(2):
        await import_conversations(store.unit_of_work(), records=records, on_duplicate="skip")
    exported = export_conversations(store.unit_of_work(user_id="v"))
    assert len([record async for record in exported]) == 1200


async def exported(store: ConversationStore, _: int) -> None:
    """Export to the end, and half way."""
    await read(export_conversations(store.unit_of_work(user_id="u")))
    await leave(export_conversations(store.unit_of_work(user_id="u")))


async def exported_inside(store: ConversationStore, conversation: int) -> None:
    """Export inside of a transaction."""
    async with store.unit_of_work(user_id="u") as uow:
        uow.messages.append(conversation, turn(1))
        assert [record async for record in export_conversations(uow)]


SHAPES = [
    several,
    refused,
    refused_alone,
    interactive,
    undone,
    limited,
    imported_and_exported,
    exported,
    exported_inside,
]


async def test_what_other_units_send(watched: Watched) -> None:
    """Whatever is done in a unit of work, and however it ends."""
    for shape in SHAPES:
        await compare(watched, partial(shape, watched.wired.store, watched.wired.conversation))


async def test_what_other_units_send_under_row_security(secured: Watched) -> None:
    """The same, where a refused write has to be rolled back; an import is none of theirs."""
    for shape in SHAPES:
        if shape is not imported_and_exported:
            await compare(secured, partial(shape, secured.wired.store, secured.wired.conversation))


@pytest.mark.parametrize("use", [read, leave])
@pytest.mark.parametrize("autocommit", [True, False])
async def test_what_an_export_sends_on_a_lent_connection(
    watched: Watched, use: Callable[[AsyncGenerator[Any]], Awaitable[None]], *, autocommit: bool
) -> None:
    """Its transaction, its chunks, its end; and its chunks alone in a transaction of the host's."""
    async with await psycopg.AsyncConnection.connect(
        watched.wired.proxy.dsn, prepare_threshold=None, autocommit=autocommit
    ) as lent:

        async def export() -> None:
            await use(export_conversations(watched.wired.store.unit_of_work(connection=lent)))

        wire = await compare(watched, export)
        assert wire.round_trips == 3
        await compare(watched, export)
        await lent.execute("BEGIN" if autocommit else "SELECT 1")
        wire = await compare(watched, export)
        assert wire.round_trips == 2
        await lent.rollback()
        assert not any("tally" in name for name in vars(lent))


async def test_what_is_sent_in_a_hosts_transaction(watched: Watched) -> None:
    """What the unit sends counts, and what the host sends does not; a unit inside counts once."""
    store, conversation = watched.wired.store, watched.wired.conversation
    connection = await psycopg.AsyncConnection.connect(
        watched.wired.proxy.dsn, prepare_threshold=None
    )
    async with connection, connection.transaction():

        async def unit() -> None:
            async with store.unit_of_work(connection=connection) as outer:
                await append_messages(outer, conversation_id=conversation, drafts=turn(1))
                inner = store.unit_of_work(connection=connection)
                await append_messages(inner, conversation_id=conversation, drafts=turn(2))
                await append_messages(outer, conversation_id=conversation, drafts=turn(3))

        watched.watcher.forget()
        with watched.wired.proxy.count() as wire:
            await unit()
            await connection.execute("SELECT 1")
        trips = [unit.tally.round_trips for unit in watched.watcher.units if unit.tally]
        assert sum(trips) == wire.round_trips - 1, wire.texts
        assert len(trips) == 2
    idle = await psycopg.AsyncConnection.connect(
        watched.wired.proxy.dsn, prepare_threshold=None, autocommit=True
    )
    async with idle:
        uow = store.unit_of_work(connection=idle)
        await compare(
            watched, lambda: append_messages(uow, conversation_id=conversation, drafts=turn(4))
        )


async def test_a_read_that_is_sent_again_is_a_retry(watched: Watched) -> None:
    """A connection that ends while it reads is no reason to fail, and is told of."""
    uow = watched.wired.store.unit_of_work()
    reading = asyncio.create_task(get_conversation(uow, conversation_id=watched.wired.conversation))
    watched.watcher.forget()
    while not watched.watcher.waits:
        await asyncio.sleep(0)
    for connection in list(watched.wired.proxy.connections):
        connection.cut()
    await reading
    [unit] = watched.watcher.units
    assert unit.tally is not None
    assert unit.tally.retries == 1
    assert len(watched.watcher.waits) == 2


async def test_a_write_whose_answer_is_lost_is_a_retry(watched: Watched) -> None:
    """It is asked for, which is told as one retry, and what that took is counted for the unit."""
    uow = watched.wired.store.unit_of_work()
    watched.watcher.forget()
    writing = asyncio.create_task(
        append_messages(uow, conversation_id=watched.wired.conversation, drafts=turn(1))
    )
    while not watched.watcher.waits:
        await asyncio.sleep(0)
    for connection in list(watched.wired.proxy.connections):
        connection.cut()
    await writing
    [unit] = watched.watcher.units
    assert unit.outcome is Outcome.COMMITTED
    assert unit.tally is not None
    assert unit.tally.retries == 1
    assert unit.tally.round_trips >= 2


async def test_turns_that_travel_together(dsn: str, migrated: set[str]) -> None:
    """Each is told of the one statement that it shared, in one round trip."""
    watcher = Watcher()
    async with open_store(
        dsn, "operational", migrated, coalesce=True, observer=watcher, max_size=2
    ) as store:
        store._adapter._group_commit._go_together = lambda _: True  # type: ignore[attr-defined]
        uow = store.unit_of_work()
        started = [
            (await start_conversation(uow, user_id="u", session_id=f"together-{number}"))[0].id
            for number in range(8)
        ]
        watcher.forget()
        await asyncio.gather(
            *(
                append_messages(store.unit_of_work(), conversation_id=each, drafts=turn(1))
                for each in started
            )
        )
    tallies = [unit.tally for unit in watcher.units if unit.tally is not None]
    assert [(tally.statements, tally.round_trips, tally.rows) for tally in tallies] == [
        (1, 1, 1)
    ] * 8


async def test_the_pool_is_shown_until_the_store_is_closed(dsn: str, migrated: set[str]) -> None:
    """How many connections are lent, free, waited for."""
    watcher = Watcher()
    async with open_store(
        dsn, "operational", migrated, observer=watcher, min_size=1, max_size=3
    ) as store:
        [read] = watcher.pools
        before = read()
        async with store.unit_of_work() as uow:
            await uow.connection()
            now = read()
            await uow.rollback()
        assert (before.used, now.used, now.waiting, now.most) == (0, 1, 0, 3)
        assert watcher.units[-1].tally is not None
        assert watcher.waits
    assert watcher.pools == []
