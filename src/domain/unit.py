"""What a repository and the unit of work it belongs to are to each other.

A write is registered with the unit, which gives a Pending, the handle of what will be.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, Protocol, TypeVar

from .conversation import check_integer
from .errors import InvalidConversation, UnitOfWorkMisuse
from .text import check_name

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


class Repository:
    """What the repositories have in common: the unit of work they belong to, and its user."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def _owner(self, user_id: str | None) -> str:
        """Return the user a call is about: the one named, or the one the unit acts for."""
        scope = self._unit.user_id
        if user_id is None:
            if scope is None:
                raise InvalidConversation(field="user_id", reason="is missing")
            return scope
        user_id = check_name(user_id, "user_id", InvalidConversation)
        if scope is not None and user_id != scope:
            reason = "the unit of work acts for one user; another user_id was named"
            raise UnitOfWorkMisuse(reason=reason)
        return user_id


def check_conversation_id(value: int) -> int:
    """Return an id of 64 bits; raise InvalidConversation if it is none."""
    return check_integer(value, "conversation_id", InvalidConversation)
