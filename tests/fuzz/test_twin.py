"""The twin and PostgreSQL answer random programs alike: a short run, the same each time."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import conversation_store
from conversation_store import ConversationRepository, MessageRepository

from .calls import IMPORTS, METHODS, READS, REGISTERED, SERVICES, Call
from .machine import Programs, calls
from .running import COMMON, machine, run

PROGRAMS = 40
NAMES = sorted({*SERVICES, *METHODS})


@pytest.fixture(scope="module")
def programs(dsn: str) -> Iterator[type[Programs]]:
    """Give the machine that runs programs on both sides."""
    with machine(dsn) as running:
        yield running


def test_every_public_function_is_called() -> None:
    """Whatever takes a unit of work is in a table of calls, and each method of a repository."""
    functions = {
        name
        for name in conversation_store.__all__
        if inspect.isfunction(getattr(conversation_store, name))
        and "uow" in inspect.signature(getattr(conversation_store, name)).parameters
    }
    methods = {
        f"{repository}.{name}"
        for repository, cls in (
            ("conversations", ConversationRepository),
            ("messages", MessageRepository),
        )
        for name, _ in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }

    assert functions == SERVICES.keys()
    assert methods == METHODS.keys()
    assert METHODS.keys() - READS - IMPORTS == REGISTERED


@settings(COMMON, max_examples=10, derandomize=True)
@given(each=st.tuples(*map(calls, NAMES)))
def test_every_call_ends_alike(programs: type[Programs], each: tuple[Call, ...]) -> None:
    """Each function and method, one after the other; methods in a block of their own."""
    program: Any = programs()
    program.begin(manner="pool", patient=True)
    for call in each:
        if call.name in METHODS:
            program.block(0, "enter")
        program._call(0, call)
        if call.name in METHODS:
            program.settle(0, 0, -1)
            program.block(0, "leave")
    program.teardown()

    assert program.steps.keys() >= {*NAMES}


def test_random_programs_end_alike(programs: type[Programs]) -> None:
    """Step by step both sides return and raise the same, and the same is stored in the end."""
    run(programs, PROGRAMS)

    assert programs.steps["(waits)"]
