"""Random moments at which a test interrupts what it started: now before that ends, now after.

A fixed time is right for one machine alone, and what was measured once (the first unit opens its
connections) for one moment. So each end that is told moves the window, and about half of what is
interrupted has ended by then, on any machine and however busy it is.
"""

from __future__ import annotations

import random

_STEP = 1.25


class Moments:
    """Draws seconds to wait until an interruption, within a window that follows how things end."""

    def __init__(self, seed: object) -> None:
        self._dice = random.Random(repr(seed))
        self._window = 0.01
        self.in_time = 0
        """Interruptions that met what they were meant for."""
        self.too_late = 0
        """Interruptions of what had ended."""

    def draw(self) -> float:
        """Seconds from now until the next interruption."""
        return self._dice.random() * self._window

    def tell(self, *, had_ended: bool) -> None:
        """Tell how an interruption met what it was meant for."""
        if had_ended:
            self.too_late += 1
            self._window /= _STEP
        else:
            self.in_time += 1
            self._window *= _STEP
