"""What is tried again when the server gave it up: how often, how long, after which pauses."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

from attrs import frozen

from ..domain.errors import (
    ConversationStoreError,
    StoreMisconfigured,
    StoreUnavailable,
    TransactionAborted,
)

T = TypeVar("T")

GIVEN_UP: Final = (TransactionAborted, StoreUnavailable)
"""Errors that say that nothing is stored and that another try may succeed.

Not StoreTimeout: a wait that came to its limit is not begun anew without being asked for.
"""


@frozen(kw_only=True)
class Retry:
    """How a store tries again what the server gave up.

    The first try costs nothing more. The second follows at once, the others after pauses of
    random length, up to a limit that doubles each time. Whole units of work are tried again, with
    the same ids, and never single statements of them.

    A unit whose answer was lost is sent again until its outcome is known; see
    docs/decisions/0018-a-lost-answer-is-asked-for-again.md.

    Raises: StoreMisconfigured for values out of range.
    """

    attempts: int = 10
    """Tries in all, 1..1000. 1 tries nothing again, and tells a lost answer at once."""
    deadline: float = 30.0
    """Seconds after the first failure from which on no try begins; at most a day.

    Where an answer is lost, it is asked for in as many seconds from then on.
    """
    first_pause: float = 0.02
    """The longest pause before the third try, in seconds; at most `longest_pause`."""
    longest_pause: float = 1.0
    """The longest pause of all, in seconds; at most a day."""

    def __attrs_post_init__(self) -> None:
        """Check the values."""
        if not _is_within(self.attempts, 1, 1_000) or self.attempts != int(self.attempts):
            raise StoreMisconfigured(reason="retry: attempts must be an integer within 1..1000")
        for name in ("deadline", "longest_pause"):
            if not _is_within(getattr(self, name), 0, _DAY):
                raise StoreMisconfigured(reason=f"retry: {name} must be within 0..{_DAY} seconds")
        if not _is_within(self.first_pause, 0, self.longest_pause):
            raise StoreMisconfigured(reason="retry: first_pause must be within 0..longest_pause")

    def pause(self, failures: int) -> float:
        """Return how many seconds to wait after so many failures.

        Of random length, so that those who met each other do not meet again.
        """
        if failures == 1:
            return 0.0
        doublings = min(failures - 2, _MOST_DOUBLINGS)
        longest = min(self.first_pause * 2**doublings, self.longest_pause)
        return random.uniform(0, longest)  # noqa: S311 - nobody gains from guessing it


_DAY: Final = 86_400
_MOST_DOUBLINGS: Final = 30


def _is_within(value: Any, least: float, most: float) -> bool:
    return isinstance(value, int | float) and least <= value <= most


def was_given_up(error: ConversationStoreError) -> bool:
    """Whether nothing was stored and another try may succeed."""
    return isinstance(error, GIVEN_UP) and error.retryable


async def try_again(
    retry: Retry,
    error: ConversationStoreError,
    work: Callable[[], Awaitable[T]],
    is_worth: Callable[[ConversationStoreError], bool] = was_given_up,
) -> T:
    """Do work again that failed with `error`, until it succeeds or is not worth another try.

    The error that is raised then knows, in `tried`, those of the tries before.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + retry.deadline
    failures = [error]
    while len(failures) < retry.attempts and is_worth(failures[-1]):
        pause = retry.pause(len(failures))
        if loop.time() + pause > end:
            break
        await asyncio.sleep(pause)
        try:
            return await work()
        except ConversationStoreError as failure:
            failures.append(failure)
    last = failures.pop()
    if failures:
        last.tried = (*failures, *last.tried)
        last.add_note(f"tried {len(last.tried) + 1} times; before: {_in_words(failures)}")
    raise last


def _in_words(failures: list[ConversationStoreError]) -> str:
    return "; ".join(dict.fromkeys(f"{type(error).__name__}: {error}" for error in failures))
