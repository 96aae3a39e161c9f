"""The attempts, made: each against the victim and against nobody, and both answers compared."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final

import psycopg
from attrs import define, field
from store_fixtures import turn

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    ConversationChanges,
    ConversationStoreError,
    Retry,
    UnitOfWorkMisuse,
)

from .attempts import Attempt
from .hosts_sql import HostsSql
from .scene import PostgresScene, Scene
from .told import State, Teller
from .world import ALICE, MALLORY, Target, nobody

_LONGEST: Final = 20
"""Seconds that a call may take."""

Call = Callable[[AsyncUnitOfWork, Target], Awaitable[Any]]
Way = Callable[[Scene, Call, Target], Awaitable[Any]]


@define
class Answer:
    """What an attempt came to."""

    value: Any
    """What was given or raised."""
    told: Any
    """The same, and what became of all rows, as it is to be compared."""
    after: State

    @property
    def is_refused(self) -> bool:
        """Whether it was an error."""
        return isinstance(self.value, BaseException)


@define
class Report:
    """What a siege came to."""

    pairs: int = 0
    refused: int = 0
    functions: set[str] = field(factory=set[str])
    ends: Counter[str] = field(factory=Counter[str])
    complaints: list[str] = field(factory=list[str])
    came_through: set[str] = field(factory=set[str])
    """The functions that were not refused."""

    def add(self, other: Report) -> None:
        """Take in what another siege came to."""
        self.pairs += other.pairs
        self.refused += other.refused
        self.functions |= other.functions
        self.ends += other.ends
        self.complaints += other.complaints

    def said(self, store: str) -> str:
        """Return it in a line."""
        ends = ", ".join(f"{count} {name}" for name, count in self.ends.most_common())
        return (
            f"attacks, {store}: {self.pairs} pairs of {len(self.functions)} functions and their "
            f"attempts, {self.refused} refused ({ends}), {len(self.complaints)} complaints"
        )


async def answer(scene: Scene, way: Way, call: Call, target: Target) -> Answer:
    """Make an attempt, see what became of the store, and set it back."""
    return await _answer(scene, way, call, target, scene.before)


async def answer_of_nobody(
    scene: Scene, way: Way, attempt: Attempt | HostsSql, target: Target
) -> Answer:
    """Make an attempt on who never was; what names nobody is called where the victim never was."""
    if attempt.tries:
        return await answer(scene, way, attempt, nobody(target))
    await scene.remove_victim()
    return await _answer(scene, way, attempt, target, await scene.state())


async def _answer(scene: Scene, way: Way, call: Call, target: Target, before: State) -> Answer:
    value: Any
    try:
        async with asyncio.timeout(_LONGEST):
            value = await way(scene, call, target)
    except Exception as error:  # noqa: BLE001 - whatever comes is the answer
        value = error
    after = await scene.state()
    teller = Teller(target, before)
    told = [teller.told(value), teller.changes(before, after)]
    if after != scene.before:
        await scene.restore()
    return Answer(value, told, after)


async def alone(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call in a unit of work of its own."""
    return await call(scene.unit(), target)


async def lay_siege(
    scene: Scene, attempts: Iterable[Attempt | HostsSql], way: Way = alone, *, walls: bool = True
) -> Report:
    """Make attempts; without `walls` naming another user need be no misuse."""
    report = Report()
    for attempt in attempts:
        found = await answer(scene, way, attempt, scene.target)
        as_nobody = await answer_of_nobody(scene, way, attempt, scene.target)
        said = list(complaints(scene, attempt, found, as_nobody, walls=walls))
        report.pairs += 1
        report.functions.add(attempt.function)
        report.refused += not said
        if said:
            report.came_through.add(attempt.function)
        end = type(found.value).__name__ if found.is_refused else "answered as if it were not there"
        report.ends[end] += 1
        report.complaints += [f"{attempt}: {text}" for text in said]
    return report


def complaints(
    scene: Scene,
    attempt: Attempt | HostsSql,
    found: Answer,
    as_nobody: Answer,
    *,
    walls: bool = True,
) -> Iterator[str]:
    """Give what is wrong with an answer, next to the one that nobody's data got."""
    yield from _differences(found.told, as_nobody.told)
    is_own = isinstance(found.value, ConversationStoreError)
    if found.is_refused and attempt.is_own_error and not is_own:
        yield f"no error of the store: {found.value!r}"
    if walls and attempt.is_misuse and not isinstance(found.value, UnitOfWorkMisuse):
        yield f"no misuse: {found.value!r}"
    for key, row in scene.victims.items():
        if found.after.get(key) != row:
            yield f"the victim's {key} is {found.after.get(key)}"


def _differences(one: Any, other: Any) -> Iterator[str]:
    """Give where two answers differ, the smallest parts that do."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        for key in one:
            yield from _differences(one[key], other[key])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for each, its_like in zip(one, other, strict=True):
            yield from _differences(each, its_like)
    elif one != other:
        yield f"{one!r} instead of {other!r}"


# Ways to make a call ------------------------------------------------------------------------------


async def _own(uow: AsyncUnitOfWork) -> int:
    """Return a conversation of the attacker's own."""
    found = await uow.conversations.find("own", MALLORY)
    assert found is not None
    return found.id


async def behind_a_write(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call in a unit that wrote something of its own before."""
    async with scene.unit() as uow:
        uow.messages.append(await _own(uow), turn(3))
        return await call(uow, target)


async def in_an_inner_block(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call in an inner block; what was done around it is kept."""
    value: Any
    async with scene.unit() as uow:
        uow.messages.append(await _own(uow), turn(3))
        try:
            async with uow:
                value = await call(uow, target)
        except ConversationStoreError as error:
            value = error
    return value


async def in_time(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call in a unit that has a timeout."""
    return await call(scene.unit(timeout=20), target)


async def run(scene: Scene, call: Call, target: Target) -> Any:
    """Have the store run it."""
    return await scene.store.run(lambda uow: call(uow, target), user_id=MALLORY)


async def while_she_writes(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call while a unit of the victim's holds all that she has: nothing is to wait for it.

    Who had to wait would know that something is there.
    """
    hers = scene.unit(ALICE)
    value: Any = None
    with suppress(ConversationStoreError):
        async with hers:
            for id_ in scene.target.messages.values():
                hers.messages.redact(id_)
            for id_ in scene.target.conversations.values():
                hers.conversations.update(id_, ConversationChanges(rescue_id="held"))
            with suppress(ConversationStoreError):  # she is gone where there is to be nobody
                await hers.before_read()
            try:
                value = await call(scene.unit(), target)
            except ConversationStoreError as error:
                value = error
            await hers.rollback()
    return value


async def with_others(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call where turns travel together."""
    assert isinstance(scene, PostgresScene)
    assert scene.together is not None
    return await call(scene.together.unit_of_work(user_id=MALLORY), target)


async def lent(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call on a connection of the host's."""
    assert isinstance(scene, PostgresScene)
    connection = await psycopg.AsyncConnection.connect(scene.attacker_dsn, autocommit=True)
    async with connection:
        return await call(scene.unit(connection=connection), target)


async def inside_the_hosts(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call inside a transaction of the host's, which commits in any case."""
    assert isinstance(scene, PostgresScene)
    connection = await psycopg.AsyncConnection.connect(scene.attacker_dsn)
    async with connection:
        uow = scene.unit(connection=connection)
        try:
            return await call(uow, target)
        except ConversationStoreError as error:
            return error


async def behind_sql(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call after SQL of the host's in the same unit."""
    async with scene.unit() as uow:
        await (await uow.connection()).execute("SELECT 1")
        return await call(uow, target)


async def with_its_answer_lost(scene: Scene, call: Call, target: Target) -> Any:
    """Make the call, and lose the answer: the store asks what became of it."""
    uow: Any = scene.unit()
    uow._retry = Retry(attempts=2, first_pause=0, longest_pause=0)

    async def lose(_: object) -> None:
        raise CommitOutcomeUnknown(reason="the answer was lost")

    uow._run_whole = lose
    return await call(uow, target)
