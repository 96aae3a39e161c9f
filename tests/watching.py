"""An observer that keeps what it was told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field

from conversation_store import Observation, Outcome, PoolState, Tally


@define(eq=False)
class Seen:
    """A call or a unit of work, as the observer was told of it."""

    function: str | None
    """None: a unit of work."""
    around: Observation | None = None
    """The unit that a call is made in; the call, if any goes on, that makes a unit."""
    tally: Tally | None = None
    """None: it goes on."""
    error: BaseException | None = None
    outcome: Outcome | None = None

    def end(self, tally: Tally, error: BaseException | None, outcome: Outcome | None) -> None:
        """Keep how it ended."""
        assert self.tally is None, "it ends once"
        self.tally, self.error, self.outcome = tally, error, outcome


@define(eq=False)
class Watcher:
    """An observer that keeps what it was told, in the order of the beginnings."""

    seen: list[Seen] = field(factory=list[Seen])
    waits: list[float] = field(factory=list[float])
    tries: int = 0
    pools: list[Callable[[], PoolState]] = field(factory=list[Any])

    @property
    def calls(self) -> list[Seen]:
        """The calls of service functions."""
        return [one for one in self.seen if one.function is not None]

    @property
    def units(self) -> list[Seen]:
        """The units of work."""
        return [one for one in self.seen if one.function is None]

    def total(self) -> Tally:
        """Return the sum of all that is not inside of something else."""
        total = Tally()
        for one in self.seen:
            if one.around is None and one.tally is not None:
                total.add(one.tally, Tally())
        return total

    def call_began(self, function: str, unit: Observation | None, *, stream: bool) -> Observation:
        """Keep a call."""
        self.seen.append(Seen(function, unit))
        return self.seen[-1]

    def unit_began(self) -> Observation:
        """Keep a unit."""
        going_on = [call for call in self.calls if call.tally is None]
        self.seen.append(Seen(None, going_on[-1] if going_on else None))
        return self.seen[-1]

    def tried_again(self) -> None:
        """Count a try of `run`."""
        self.tries += 1

    def waited(self, seconds: float) -> None:
        """Keep a wait."""
        self.waits.append(seconds)

    def pool_opened(self, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Keep a pool until its end."""
        self.pools.append(read)
        return lambda: self.pools.remove(read)

    def forget(self) -> None:
        """Begin anew."""
        self.seen.clear()
        self.waits.clear()
