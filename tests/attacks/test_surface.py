"""The table of attempts tries all that there is; what is new and not tried is found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from attacks.attempts import ATTEMPTS, UNIT, parameters, untried
from attacks.predicates import PREDICATE, WITHOUT, texts_of
from attacks.scene import TwinScene
from attacks.siege import answer, answer_of_nobody
from attacks.surface import everything, repository_methods, service_functions, unit_methods
from attacks.world import ALICE
from attrs import evolve

from conversation_store import AsyncUnitOfWork
from conversation_store.adapters.postgres.texts import Texts


def test_every_function_and_every_parameter_that_names_data_is_tried() -> None:
    """A new function, and a new parameter, needs an attempt."""
    assert untried(everything()) == []
    assert len(service_functions()) >= 17
    assert len(repository_methods()) >= 14


def test_nothing_is_tried_that_is_not_there() -> None:
    """The table is of this version."""
    assert {one.function for one in ATTEMPTS} <= set(everything())


def test_methods_of_a_unit_name_no_data() -> None:
    """Where one begins to, it needs an attempt."""
    assert set(unit_methods()) == set(UNIT)
    named = {name: [*parameters(method)] for name, method in unit_methods().items()}
    assert {name for name, names in named.items() if names} == {"meaning", "register", "perform"}


def test_a_new_function_is_missed() -> None:
    """One that nobody tries is found, coroutine or generator; so is a parameter of one that is."""

    async def peek(uow: AsyncUnitOfWork, *, conversation_id: int) -> None:
        """Show something."""

    async def leak(uow: AsyncUnitOfWork) -> Any:
        """Show all."""
        yield uow

    async def get_message(uow: AsyncUnitOfWork, *, message_id: int, thread_id: int) -> None:
        """Show more than before."""

    async def unrelated(other: int) -> None:
        """Take no unit of work."""

    new = {f.__name__: f for f in (peek, leak, get_message, unrelated)}
    package = SimpleNamespace(__all__=[*new], **new)
    assert untried(service_functions(package)) == ["get_message(thread_id)", "leak", "peek"]


async def test_every_attempt_would_find_something() -> None:
    """Made by the victim herself each shows, or changes, what it does not for somebody else."""
    scene = await TwinScene.make()

    async def as_the_victim(_: Any, call: Any, target: Any) -> Any:
        return await call(scene.store.unit_of_work(user_id=ALICE), target)

    vain: list[str] = []
    for attempt in ATTEMPTS:
        target = evolve(scene.target, by=ALICE)
        hers = await answer(scene, as_the_victim, attempt, target)
        theirs = await answer_of_nobody(scene, as_the_victim, attempt, target)
        if hers.told == theirs.told:
            vain.append(str(attempt))
    print(*vain, sep="\n")
    assert vain == []


def test_every_statement_has_a_predicate() -> None:
    """A statement that keeps users apart in another form, or not at all, is found."""
    texts = texts_of(Texts("a"))
    without = {name for name, text in texts.items() if not PREDICATE.search(text)}
    assert without == set(WITHOUT)
    for name, text in texts.items():
        assert b"user_id =" not in PREDICATE.sub(b"", text), name
        assert b"user_id)s::text IS NULL" not in PREDICATE.sub(b"", text), name
