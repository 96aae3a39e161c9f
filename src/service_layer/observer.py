"""Who is told what service functions and units of work do: how long it took, and how much it was.

Told are names of functions, numbers, outcomes and errors. Nothing that is stored is told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from attrs import define, frozen

from .outcome import Outcome


@define
class Tally:
    """What was sent to a server; in memory nothing is, and all stays 0."""

    statements: int = 0
    """Commands: BEGIN, COMMIT, savepoints and settings among them."""
    round_trips: int = 0
    """Those in which the driver prepares a statement on a connection, once, are not among them."""
    rows: int = 0
    """Rows that the server answered with."""
    retries: int = 0
    """How often a unit, or a read by itself, was sent again, and lost answers were asked for."""
    waited: float = 0.0
    """Seconds that connections were waited for."""

    def note_sent(self, statements: int = 1, rows: int = 0, round_trips: int = 1) -> None:
        """Count what was sent together."""
        self.statements += statements
        self.round_trips += round_trips
        self.rows += rows

    def copy(self) -> Tally:
        """Return one of its own with the same numbers."""
        return Tally(self.statements, self.round_trips, self.rows, self.retries, self.waited)

    def add(self, now: Tally, before: Tally) -> None:
        """Add what came to another tally since it was copied."""
        self.statements += now.statements - before.statements
        self.round_trips += now.round_trips - before.round_trips
        self.rows += now.rows - before.rows
        self.retries += now.retries - before.retries
        self.waited += now.waited - before.waited


@frozen
class PoolState:
    """The connections of a store's own pool."""

    used: int
    """Connections that are lent."""
    idle: int
    """Connections that are free."""
    waiting: int
    """How many wait for one."""
    most: int
    """How many there can be."""


class Observation(Protocol):
    """A call of a service function, or a unit of work, that goes on."""

    def end(self, tally: Tally, error: BaseException | None, outcome: Outcome | None) -> None:
        """Learn that it ended.

        Args:
            tally: what was sent for it.
            error: what it raised, or what its outermost block was left by; None: nothing.
            outcome: of a unit of work; None: it is a call.
        """
        ...


class Observer(Protocol):
    """Is told what a store does, in the event loop, while it does it: it is to be quick.

    What it raises is logged and harms nothing.
    """

    def call_began(self, function: str, unit: Observation | None, *, stream: bool) -> Observation:
        """Learn that a service function was called.

        Args:
            function: its name.
            unit: the unit of work that it is called in; None: it makes units of its own.
            stream: whether it gives its result bit by bit, so that others run before its end,
                which may come in another task.
        """
        ...

    def unit_began(self) -> Observation:
        """Learn that a unit of work was entered."""
        ...

    def tried_again(self) -> None:
        """Learn that `run` or `run_unit` begins another unit, as the one before was given up."""
        ...

    def waited(self, seconds: float) -> None:
        """Learn how long a connection was waited for, whether or not one came."""
        ...

    def pool_opened(self, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Learn of a store's own pool and how to read its state; return what to call at its end."""
        ...
