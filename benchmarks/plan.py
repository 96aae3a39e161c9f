"""How long and how often is measured."""

from __future__ import annotations

from typing import Final

from attrs import frozen


@frozen(kw_only=True)
class Plan:
    """What one run does. Budgets are of time: who is slow does less in it."""

    name: str
    tasks: tuple[int, ...] = (1, 16, 128)
    tasks_behind_proxy: tuple[int, ...] = (1, 16, 128)
    connections: int = 16
    """In each contender's pool, however many tasks there are."""
    rounds: int
    """How often each contender has a slice of each scenario, if it is not too slow."""
    slice_seconds: float
    warm_seconds: float
    """So long a contender may take to warm up for a scenario."""
    drain_seconds: float
    """A scenario is left out for who would need longer for one operation of each task."""
    seed_seconds: float
    """So long a contender may take to fill its tables before a scenario."""
    listed: int = 1000
    """Conversations of the user that are listed."""
    conversations: int
    """Conversations of all users, when they are listed."""
    read: int = 1000
    """Messages of the conversation that is read."""
    bulk_seconds: float
    writers: int = 16
    writer_seconds: float
    lengths: tuple[int, ...]
    """Of the conversations over which growth is measured."""


FULL: Final = Plan(
    name="full",
    rounds=5,
    slice_seconds=0.25,
    warm_seconds=1.5,
    drain_seconds=3,
    seed_seconds=20,
    conversations=100_000,
    bulk_seconds=1.5,
    writer_seconds=1,
    lengths=(10, 100, 1_000, 10_000, 100_000),
)

QUICK: Final = Plan(
    name="quick",
    tasks_behind_proxy=(1,),
    rounds=3,
    slice_seconds=0.06,
    warm_seconds=0.3,
    drain_seconds=0.5,
    seed_seconds=1.5,
    read=300,
    listed=200,
    conversations=5_000,
    bulk_seconds=0.2,
    writer_seconds=0.2,
    lengths=(10, 100, 1_000),
)

TINY: Final = Plan(
    name="tiny",
    tasks=(1, 4),
    tasks_behind_proxy=(1, 4),
    connections=4,
    rounds=2,
    slice_seconds=0.02,
    warm_seconds=5,
    drain_seconds=5,
    seed_seconds=5,
    listed=30,
    conversations=60,
    read=100,
    bulk_seconds=0.05,
    writers=4,
    writer_seconds=0.05,
    lengths=(10, 100),
)
"""For the tests: what is looked at is what was stored and read, not how long it took."""
