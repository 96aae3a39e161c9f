"""An observer that can raise without harm: what it is told of goes on, and what it stored stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from attrs import frozen

from .log import LOGGER
from .observer import Observation, Observer, PoolState, Tally
from .outcome import Outcome

P = ParamSpec("P")
T = TypeVar("T")


def _told(tell: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
    """Tell an observer something; None where it raised."""
    try:
        return tell(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - whatever another's observer raises
        # Without its text and traceback: those may quote anything.
        LOGGER.warning("the observer of the store raised %s", type(error).__name__)
        return None


@frozen
class GuardedObservation:
    """An observation of an observer; None: it raised when it was to begin it."""

    observation: Observation | None

    def end(self, tally: Tally, error: BaseException | None, outcome: Outcome | None) -> None:
        """Tell of the end."""
        if self.observation is not None:
            _told(self.observation.end, tally, error, outcome)


@frozen
class GuardedObserver:
    """Another observer, whose errors are logged."""

    observer: Observer

    def call_began(
        self, function: str, unit: Observation | None, *, stream: bool
    ) -> GuardedObservation:
        """Tell of a call."""
        around = unit.observation if isinstance(unit, GuardedObservation) else None
        return GuardedObservation(_told(self.observer.call_began, function, around, stream=stream))

    def unit_began(self) -> GuardedObservation:
        """Tell of a unit of work."""
        return GuardedObservation(_told(self.observer.unit_began))

    def tried_again(self) -> None:
        """Tell of another try of `run`."""
        _told(self.observer.tried_again)

    def waited(self, seconds: float) -> None:
        """Tell of a wait for a connection."""
        _told(self.observer.waited, seconds)

    def pool_opened(self, read: Callable[[], PoolState]) -> Callable[[], None]:
        """Tell of a pool; return what tells of its end."""
        close = _told(self.observer.pool_opened, read)

        def tell_end() -> None:
            if close is not None:
                _told(close)

        return tell_end
