"""What the service layer needs of the world outside; adapters/ has it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence

from conversation_store import AsyncUnitOfWork, Message

from .domain import Charge, Hit


class ChargeRepository(ABC):
    """The charges of the user that a unit of work acts for."""

    @abstractmethod
    async def add(self, uow: AsyncUnitOfWork, charge: Charge) -> None:
        """Add a charge, in the transaction of `uow`; one that is there stays as it is."""

    @abstractmethod
    async def position(
        self, uow: AsyncUnitOfWork, conversation_id: int, request_id: str
    ) -> int | None:
        """Say where the turn of a request begins; None if it was not charged, so is not stored."""

    @abstractmethod
    async def spent(self, uow: AsyncUnitOfWork) -> int:
        """Say how many tokens the user has spent."""


class MessageSearch(ABC):
    """The store promises no search in texts, so the host brings its own."""

    @abstractmethod
    async def find(self, uow: AsyncUnitOfWork, wanted: list[str], limit: int) -> list[Hit]:
        """Return the newest messages of the user that have all the wanted words."""


class Model(ABC):
    """What answers."""

    @abstractmethod
    def answer(self, history: Sequence[Message], question: str) -> AsyncIterator[str]:
        """Give an answer bit by bit; `history` is what was said before, oldest first.

        Raises ModelUnavailable.
        """
