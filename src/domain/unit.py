"""What a repository and the unit of work it belongs to are to each other.

A write is registered with the unit, which gives a Pending, the handle of what will be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Pending(Awaitable[T_co], Protocol[T_co]):
    """The handle of a registered write.

    Awaiting it gives the write's result: it sends what is registered if need be, costs nothing
    once that is sent, and is final only when the outermost block has been left. It raises the
    error of its block when that block, or one around it, failed or was discarded.
    """


class Write(Generic[T]):
    """A write as an adapter will carry it out; the unit of work keeps it until it is sent."""

    ids_needed: int = 0
    """How many ids it needs; they are drawn once and stay with it when it is sent again."""
    ids: Sequence[int] = ()
    """The ids it was given."""
    result: T
    """What it came to; set by the adapter when it is carried out."""


class Unit(Protocol):
    """What a repository needs of the unit of work it belongs to."""

    @property
    def user_id(self) -> str | None:
        """The user that the unit acts for; None: it acts for the application."""

    def register(self, write: Write[T]) -> Pending[T]:
        """Take a write into the current block."""
        ...

    async def before_read(self) -> None:
        """Send what is registered, so that the read sees it."""

    def still_open(self) -> Callable[[], None]:
        """Return a check that what is read now can be read on."""
        ...

    def check_import(self) -> None:
        """Refuse an import where there can be none."""

    async def perform(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do at once, in the current block, what cannot be registered."""
        ...
