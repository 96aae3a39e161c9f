"""What a contender of the benchmarks does: the same work, each by its own public API."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

Said: TypeAlias = tuple[str, str]
"""A role and what was said: ("user", "Hello")."""

Handle: TypeAlias = Any
"""What a contender knows a conversation by; of its own kind, and good for another instance too."""


class CannotDoError(Exception):
    """The contender has no such operation; the text says why, for the table."""


class Contender(ABC):
    """One way to keep conversations in PostgreSQL.

    Methods raise CannotDoError where the public API offers no way; they never get around it by
    SQL of their own.
    """

    name: ClassVar[str]
    """As it stands in tables."""
    package: ClassVar[str]
    """The distribution whose version is reported."""

    @abstractmethod
    async def open(self, dsn: str, *, connections: int) -> None:
        """Connect with at most so many connections and make a schema of its own."""

    @abstractmethod
    async def close(self) -> None:
        """Give all connections back."""

    @abstractmethod
    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        """Start a conversation with a first message."""

    @abstractmethod
    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        """Append what a user and an assistant said."""

    @abstractmethod
    async def latest(self, handle: Handle, limit: int) -> Sequence[Any]:
        """Read the newest messages, oldest of them first."""

    @abstractmethod
    async def read_all(self, handle: Handle) -> Sequence[Any]:
        """Read all messages, oldest first."""

    @abstractmethod
    async def list_recent(self, user_id: str, limit: int) -> Sequence[Any]:
        """List a user's conversations, the most recent activity first."""

    @abstractmethod
    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        """Store whole conversations (user_id, session_id, what was said), as fast as it can."""

    async def resolve(self, loaded: Handle) -> Handle:
        """Return what `append_turn` and the reads take, from what `load` gave; never timed."""
        return loaded

    @abstractmethod
    def said(self, messages: Sequence[Any]) -> list[Said]:
        """Return what messages of `latest` or `read_all` say, to compare with what was given."""
