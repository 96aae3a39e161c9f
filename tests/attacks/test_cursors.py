"""A cursor is no permission: whatever is given for one, the list is the user's own, or refused."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from attacks.scene import Scene
from attacks.world import ALICE, MALLORY

from conversation_store import (
    ConversationPage,
    InvalidConversation,
    InvalidCursor,
    InvalidMessage,
    UnitOfWorkMisuse,
    get_conversation,
    latest_messages,
    list_conversations,
    messages_after,
)
from conversation_store.domain.page import ConversationCursor, _seal
from conversation_store.domain.removal import RemovalCondition


async def own(scene: Scene, status: str | None = None) -> ConversationPage:
    """Return the whole list of the attacker."""
    return await list_conversations(scene.unit(), status=status)


async def page(scene: Scene, after: Any, status: str | None = None) -> ConversationPage | None:
    """Return the page of the attacker's list after a cursor; None where that is refused."""
    try:
        return await list_conversations(scene.unit(), status=status, after=after)
    except InvalidCursor as error:
        assert error.field == "after"
        assert len(after) < 16 or after not in str(error)
        return None


def flipped(cursor: str) -> Iterator[str]:
    """Give a cursor with each of its bits the other way."""
    raw = base64.urlsafe_b64decode(cursor)
    for bit in range(8 * len(raw)):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        yield base64.urlsafe_b64encode(bytes(changed)).decode()


async def test_a_cursor_that_was_changed_is_refused(scene: Scene) -> None:
    """By one bit, one character, at either end, in its letters or its padding."""
    cursor = (await list_conversations(scene.unit(), limit=1)).next_cursor
    assert cursor is not None
    changed = {*flipped(cursor)}
    changed |= {cursor[:length] for length in range(len(cursor))}
    changed |= {cursor + more for more in ("=", "A", "AAAA", cursor, "\n", " ", "\0", "%")}
    changed |= {
        cursor.swapcase(),
        cursor[::-1],
        f" {cursor}",
        cursor.rstrip("="),
        "",
        "é",
        "\ud800",
    }
    changed.discard(cursor)
    place = await page(scene, cursor)
    for one in sorted(changed):
        is_the_same = one.rstrip("=") == cursor  # which some versions of Python take for it
        assert await page(scene, one) in ((None, place) if is_the_same else (None,)), one


async def test_a_cursor_of_another_list_is_refused(scene: Scene) -> None:
    """Of another user, of another status, of the list of all; and the other way round."""
    for status, cursor in scene.target.cursors.items():
        assert await page(scene, cursor) is None
        assert await page(scene, cursor, status) is None
    mine = (await list_conversations(scene.unit(), limit=1)).next_cursor
    of_active = (await list_conversations(scene.unit(), status="active", limit=1)).next_cursor
    assert await page(scene, mine, "active") is None
    assert await page(scene, of_active) is None
    assert await page(scene, of_active, "closed") is None
    assert await page(scene, mine) is not None
    assert await page(scene, of_active, "active") is not None


async def test_a_forged_cursor_shows_ones_own(scene: Scene) -> None:
    """Made of the victim's places, or of none that there are, it is a place in one's own list."""
    mine = (await own(scene)).conversations
    hers = [row for key, row in scene.victims.items() if key[0] == "conversation"]
    ends = [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC)]
    places = [(moment, 2**63 - 1) for moment in ends] + [(moment, -(2**63)) for moment in ends]
    for row in hers:
        last_activity = row["last_activity"]
        if isinstance(last_activity, str):
            last_activity = datetime.fromisoformat(last_activity)
        places += [(last_activity + timedelta(microseconds=step), row["id"]) for step in (-1, 0, 1)]
    for moment, conversation_id in places:
        place = ConversationCursor(last_activity=moment, conversation_id=conversation_id)
        found = await page(scene, place.encode(MALLORY, None))
        assert found is not None
        assert found.conversations == [
            one for one in mine if (one.last_activity, one.id) < (moment, conversation_id)
        ]
        assert await page(scene, place.encode(ALICE, None)) is None


async def test_places_beyond_all_time_are_refused(scene: Scene) -> None:
    """Sealed as they should be, they are no times that there are."""
    for microseconds in (2**63 - 1, -(2**63), 300_000_000_000_000_000):
        text = forged(microseconds, 1)
        assert await page(scene, text) is None


def forged(microseconds: int, conversation_id: int) -> str:
    """Return a cursor with a right seal for any place."""
    place = struct.pack(">qq", microseconds, conversation_id)
    return base64.urlsafe_b64encode(place + _seal(place, MALLORY, None)).decode()


class Poisoned:
    """Not a text, though it says that it is."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text


async def test_what_is_no_text_is_refused(scene: Scene) -> None:
    """Numbers, bytes, lists, and texts of ten megabytes."""
    cursor = scene.target.cursors[None]
    things: list[Any] = [0, 1, -1, True, 1.5, 10**5000, b"", cursor.encode(), [], [cursor], {}]
    things += [object(), Poisoned(cursor), "A" * 10_000_000, "=" * 1_000_000, "💥" * 1000]
    for thing in things:
        with pytest.raises(InvalidCursor):
            await list_conversations(scene.unit(), after=thing)


async def test_positions_are_numbers_in_ones_own_conversation(scene: Scene) -> None:
    """However large or small, there is nothing before the first and nothing after the last."""
    mine = (await own(scene)).conversations[0]
    said = await latest_messages(scene.unit(), conversation_id=mine.id)
    for number in (-(2**63) + 1, -1, 0, 1, 2, 3, 2**63 - 1):
        before = await latest_messages(scene.unit(), conversation_id=mine.id, before=number)
        after = await messages_after(scene.unit(), conversation_id=mine.id, position=number)
        assert before == [one for one in said if one.position < number]
        assert after == [one for one in said if one.position > number]
    wrong: list[Any] = [2**63, -(2**63) - 1, 10**40, "1", "1 OR 1=1", 1.0, True, None, [1]]
    for number in wrong:
        with pytest.raises(InvalidMessage):
            await messages_after(scene.unit(), conversation_id=mine.id, position=number)
        with pytest.raises(InvalidConversation):
            await get_conversation(scene.unit(), conversation_id=number)


async def test_places_of_removals_are_of_ones_own_walk(scene: Scene) -> None:
    """From wherever a removal is gone on with, it finds the attacker's conversations only."""
    mine = {one.session_id: one.id for one in (await own(scene)).conversations}
    for place in (ALICE, scene.target.session("active"), "0", "' OR 1=1 --", "\U0010ffff", "-1"):
        async with scene.unit() as uow:
            batch = await uow.conversations.find_removable(RemovalCondition(), place)
        assert {one for one, _ in batch.removed} == {
            id_ for session, id_ in mine.items() if session > place
        }
    async with scene.store.unit_of_work() as uow:
        for wrong in ("x", "-1", "1.5", str(2**63), " 1", "\uff11", "1 OR 1=1"):
            with pytest.raises(InvalidConversation):
                await uow.conversations.find_removable(RemovalCondition(), wrong)
    with pytest.raises(UnitOfWorkMisuse):
        async with scene.unit() as uow:
            await uow.conversations.find_removable(RemovalCondition(user_id=ALICE))
