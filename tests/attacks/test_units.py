"""Units of two users that meet: in one flush, on one connection, at one conversation."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest
from attacks.scene import Scene, first_wall
from attacks.world import ALICE, MALLORY
from store_fixtures import draft, turn

from conversation_store import (
    ConversationNotFound,
    MessageNotFound,
    append_messages,
    export_conversations,
    latest_messages,
    list_conversations,
)
from conversation_store.adapters.postgres.flush import Flush, Seat
from conversation_store.domain.message import Turn


async def own_id(scene: Scene) -> int:
    """Return a conversation of the attacker's."""
    page = await list_conversations(scene.unit())
    return page.conversations[-1].id


async def test_turns_of_both_in_one_flush(dsn: str, migrated: set[str]) -> None:
    """What travels in one statement is judged apart: only those of one's own are stored."""
    async with first_wall(dsn, migrated) as scene:
        assert scene.together is not None
        adapter: Any = scene.together._adapter
        hers, mine = scene.target.conversations["active"], await own_id(scene)
        seats: list[Seat] = []
        turns = [(ALICE, hers), (MALLORY, hers), (MALLORY, mine), (ALICE, mine), (ALICE, hers)]
        for number, (user_id, conversation_id) in enumerate(turns):
            messages: Any = scene.together.unit_of_work(user_id=user_id).messages
            drafts = (draft(f"{user_id} {number}"),)
            statement = messages._append(Turn(conversation_id=conversation_id, drafts=drafts))
            statement.ids = await adapter._ids.take(1)
            parameters = statement.bind(statement.ids)
            seats.append(Seat(statement, parameters, conversation_id, number))
        await Flush(seats).run(adapter._connections, adapter._texts)
        assert [seat.placed is not None for seat in seats] == [True, False, True, False, True]
        said = await latest_messages(scene.unit(ALICE), conversation_id=hers)
        assert [one.content for one in said[4:]] == [f"{ALICE} 0", f"{ALICE} 4"]
        said = await latest_messages(scene.unit(), conversation_id=mine)
        assert [one.content for one in said[2:]] == [f"{MALLORY} 2"]


async def test_one_refused_write_takes_all_of_its_unit_along(scene: Scene) -> None:
    """What the attacker wrote in the same unit, before it and after it, is not stored."""
    mine = await own_id(scene)
    uow = scene.unit()
    with pytest.raises(ConversationNotFound) as caught:
        async with uow:
            before = uow.messages.append(mine, turn(2))
            theirs = uow.messages.append(scene.target.conversations["active"], turn(2))
            after = uow.conversations.remove(mine)
    assert caught.value.conversation_id == scene.target.conversations["active"]
    for pending in (before, theirs, after):
        with pytest.raises(ConversationNotFound):
            await pending
    assert await scene.state() == scene.before


async def test_an_inner_block_that_was_refused_leaves_the_rest(scene: Scene) -> None:
    """What is around it is stored, and is the attacker's own."""
    mine = await own_id(scene)
    async with scene.unit() as uow:
        uow.messages.append(mine, turn(2))
        for _ in range(2):
            with pytest.raises(MessageNotFound):
                async with uow:
                    uow.messages.append(mine, turn(3))
                    uow.messages.redact(scene.target.messages["active"])
    after = await scene.state()
    new = [row for key, row in after.items() if key not in scene.before]
    assert [row["conversation_id"] for row in new] == [mine, mine]
    assert {key: after[key] for key in scene.victims} == scene.victims
    await scene.restore()


async def test_what_others_store_during_an_export_is_not_in_it(scene: Scene) -> None:
    """The stream of one user shows nothing of the other, whoever writes while it is read."""
    seen: list[str] = []
    async for record in export_conversations(scene.unit()):
        seen.append(record["user_id"])
        await append_messages(
            scene.unit(ALICE),
            conversation_id=scene.target.conversations["active"],
            drafts=turn(len(seen)),
        )
    assert set(seen) == {MALLORY}
    await scene.restore()


async def test_units_of_both_in_one_transaction_of_the_hosts(dsn: str, migrated: set[str]) -> None:
    """They share a connection and what is not committed yet, and still see only their own."""
    async with first_wall(dsn, migrated) as scene:
        hers = scene.target.conversations["active"]
        connection = await psycopg.AsyncConnection.connect(scene.attacker_dsn)
        async with connection:
            alice, mallory = (scene.unit(one, connection=connection) for one in (ALICE, MALLORY))
            await append_messages(alice, conversation_id=hers, drafts=turn(7))
            with pytest.raises(ConversationNotFound):
                await append_messages(mallory, conversation_id=hers, drafts=turn(8))
            async with alice:
                await append_messages(alice, conversation_id=hers, drafts=turn(9))
                with pytest.raises(ConversationNotFound):
                    await latest_messages(mallory, conversation_id=hers)
            said = await latest_messages(alice, conversation_id=hers, limit=4)
        assert [one.content[-1] for one in said] == ["7", "7", "9", "9"]
