"""Records that mean harm: an import stores what it may, whole, or nothing of a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import pytest
from attacks.scene import Scene
from attacks.world import ALICE, MALLORY, SHARED

from conversation_store import (
    DuplicateSession,
    InvalidRecord,
    UnitOfWorkMisuse,
    import_conversations,
)


def record(session_id: str = "new", user_id: str = MALLORY, **more: Any) -> Any:
    """Return a record of two messages."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return {"user_id": user_id, "session_id": session_id, "messages": messages} | more


def message(**more: Any) -> list[dict[str, Any]]:
    """Return the messages of a record, of which the second is special."""
    return [{"role": "user", "content": "a"}, {"role": "user", "content": "b"} | more]


EARLY, LATE = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"

MALFORMED: Final[dict[str, Any]] = {
    "no object": "x",
    "nothing": None,
    "a list": [["user_id", MALLORY]],
    "no user": {"session_id": "s", "messages": []},
    "a user of another type": record(user_id=7),  # type: ignore[arg-type]
    "a user of no length": record(user_id=""),
    "a list of users": record(user_id=[MALLORY, ALICE]),  # type: ignore[arg-type]
    "a session too long": record("x" * 256),
    "a NUL": record("a\0b"),
    "a lone surrogate": record(source="\ud800"),
    "an id of its own": record(id=1),
    "a version of its own": record(version=9),
    "a count of its own": record(message_count=9),
    "no messages": {"user_id": MALLORY, "session_id": "s"},
    "messages of another type": record(messages={"0": "x"}),
    "a message of another type": record(messages=["x"]),
    "a role that there is not": record(messages=message(role="root")),
    "content of another type": record(messages=message(content=["x"])),
    "a message id of its own": record(messages=message(id=1)),
    "a conversation of its own": record(messages=message(conversation_id=1)),
    "a request of its own": record(messages=message(request_id="r")),
    "a position too far": record(messages=message(position=3)),
    "a position twice": record(messages=message(position=1)),
    "a position of another type": record(messages=message(position="2")),
    "a position that is true": record(messages=[{"role": "user", "content": "", "position": True}]),
    "a time of one message": record(messages=message(timestamp=EARLY)),
    "a time without a zone": record(start_time="2026-01-01T00:00:00"),
    "an end before the start": record(start_time=LATE, last_activity=EARLY),
    "a time that there is not": record(start_time="2026-02-30T00:00:00Z"),
    "SQL for a time": record(start_time="now(); DROP TABLE ai_messages"),
    "a status that there is not": record(status="erased"),
    "metadata of another type": record(metadata=["x"]),
    "metadata that is no JSON": record(metadata={"x": {1, 2}}),
    "a number that is none": record(metadata={"x": float("nan")}),
    "slots of another type": record(messages=message(slots="x")),
}


@pytest.mark.parametrize("batched", [False, True])
async def test_malformed_records_store_nothing(scene: Scene, *, batched: bool) -> None:
    """Alone, or behind good ones: the record and the field are named, and nothing of it stays."""
    for what, malformed in MALFORMED.items():
        records = [record("before"), malformed, record("after")] if batched else [malformed]
        with pytest.raises(InvalidRecord) as caught:
            await import_conversations(scene.store.unit_of_work(), records=records)
        assert caught.value.record == (2 if batched else 1), what
        assert await scene.state() == scene.before, what


async def test_records_of_another_user_store_nothing(scene: Scene) -> None:
    """Wherever they stand in a batch, all that was in it is left out."""
    mine, hers = record("mine"), record(scene.target.session("active"), ALICE)
    new = record("hers, new", ALICE)
    for records in ([hers], [new], [mine, new], [new, mine], [mine, hers, record("more")]):
        for on_duplicate in ("error", "skip"):
            with pytest.raises(UnitOfWorkMisuse) as caught:
                await import_conversations(
                    scene.unit(),
                    records=records,
                    on_duplicate=on_duplicate,
                )
            assert ALICE not in str(caught.value)
            assert await scene.state() == scene.before


async def test_duplicates_are_of_ones_own(scene: Scene) -> None:
    """A session twice in a batch, or there already, is a duplicate; one of the victim's is none."""
    for records in ([record("x"), record("x")], [record(SHARED)], [record("x"), record("own")]):
        with pytest.raises(DuplicateSession) as caught:
            await import_conversations(scene.unit(), records=records)
        assert caught.value.user_id == MALLORY
        assert await scene.state() == scene.before
    taken = [record(scene.target.session(state)) for state in ("active", "closed")]
    receipt = await import_conversations(
        scene.unit(), records=[*taken, record("own"), *taken], on_duplicate="skip"
    )
    assert (receipt.conversations, receipt.skipped) == (2, 3)
    after = await scene.state()
    assert {key: after[key] for key in scene.before} == scene.before
    await scene.restore()


class Turning(Mapping[str, Any]):
    """A record that says one user when it is looked at first, and another one later."""

    def __init__(self) -> None:
        self._looks = 0
        self._values = record("turned")

    def __getitem__(self, key: str) -> Any:
        if key == "user_id":
            self._looks += 1
            return MALLORY if self._looks == 1 else ALICE
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


class TurningDict(dict[str, Any]):
    """The same as a dict, which programs look into in more than one way."""

    def __init__(self) -> None:
        super().__init__(record("turned", ALICE))

    def __getitem__(self, key: str) -> Any:
        return MALLORY if key == "user_id" else super().__getitem__(key)


@pytest.mark.parametrize("turning", [Turning, TurningDict])
async def test_a_record_that_turns_is_taken_at_one_word(
    scene: Scene, turning: Callable[[], Any]
) -> None:
    """What is stored is what was checked: the attacker's, or nothing."""
    with suppress(InvalidRecord, UnitOfWorkMisuse):
        await import_conversations(scene.unit(), records=[turning()])
    after = await scene.state()
    new = [row for key, row in after.items() if key not in scene.before]
    assert {row["user_id"] for row in new if "user_id" in row} <= {MALLORY}
    assert {key: after[key] for key in scene.before} == scene.before
    await scene.restore()
