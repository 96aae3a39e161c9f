"""How the machine is run: so many programs, always the same or those of a seed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from typing import Final
from unittest.mock import patch

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import run_state_machine_as_test

from conversation_store.adapters.memory import removal as memory
from conversation_store.adapters.postgres import removal as postgres
from conversation_store.domain import removal as domain

from .machine import Programs
from .server import Server

COMMON = settings(
    deadline=None,
    database=None,
    print_blob=False,
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
)


BATCHES: Final = {"BATCH_MESSAGES": 3, "BATCH_CONVERSATIONS": 2, "BATCH_LOOKED_AT": 3}
"""How much a removal takes at a time: so little that the few things of a program need several."""


@contextmanager
def small_batches() -> Iterator[None]:
    """Have removals go in small batches."""
    with ExitStack() as stack:
        for module, (name, size) in product((domain, memory, postgres), BATCHES.items()):
            stack.enter_context(patch.object(module, name, size))
        yield


@contextmanager
def machine(dsn: str) -> Iterator[type[Programs]]:
    """Give the machine with a server to run on, and an event loop that lives as long."""
    with asyncio.Runner() as runner, small_batches():
        loop = runner.get_loop()
        opening = Server.open(dsn)
        server = loop.run_until_complete(opening.__aenter__())
        try:
            own = {"loop": loop, "server": server, "steps": Counter[str](), "failures": []}
            yield type("Programs", (Programs,), own)
        finally:
            loop.run_until_complete(opening.__aexit__(None, None, None))


def run(
    programs: type[Programs], count: int, *, seed: int | None = None, shorten: bool = True
) -> None:
    """Run so many programs: always the same, or those of a seed."""
    phases = (Phase.generate, Phase.shrink) if shorten else (Phase.generate,)
    chosen = settings(COMMON, max_examples=count, phases=phases, derandomize=seed is None)
    seeded = programs if seed is None else hypothesis.seed(seed)(programs)
    try:
        run_state_machine_as_test(seeded, settings=chosen)
    except FlakyStrategyDefinition:
        # A program is over where the server was too slow to cancel in time, or had another victim:
        # begun again it goes on. That is no difference, but one may have come before it.
        if programs.failures:
            raise programs.failures[0] from None
        programs.steps["(rounds that went otherwise when begun again)"] += 1
