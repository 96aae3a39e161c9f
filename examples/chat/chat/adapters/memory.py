"""The twins of our adapters on PostgreSQL: the twin of the store has no connection for SQL."""

from __future__ import annotations

from conversation_store import AsyncUnitOfWork, latest_messages, list_conversations

from ..domain import Charge, Hit, excerpt, words
from ..ports import ChargeRepository, MessageSearch


class InMemoryChargeRepository(ChargeRepository):
    """Charges in a dictionary.

    It takes no part in the unit's transaction. So a charge has to be the last thing that a unit
    writes: what fails before leaves no charge, and afterwards nothing is left to fail.
    """

    def __init__(self) -> None:
        self._charges: dict[tuple[str | None, int, str], Charge] = {}

    async def add(self, uow: AsyncUnitOfWork, charge: Charge) -> None:
        key = (uow.user_id, charge.conversation_id, charge.request_id)
        self._charges.setdefault(key, charge)

    async def position(
        self, uow: AsyncUnitOfWork, conversation_id: int, request_id: str
    ) -> int | None:
        charge = self._charges.get((uow.user_id, conversation_id, request_id))
        return None if charge is None else charge.position

    async def spent(self, uow: AsyncUnitOfWork) -> int:
        return sum(each.tokens for key, each in self._charges.items() if key[0] == uow.user_id)


class InMemoryMessageSearch(MessageSearch):
    """Search by looking at the messages of the user, the newest 1000 of each conversation."""

    async def find(self, uow: AsyncUnitOfWork, wanted: list[str], limit: int) -> list[Hit]:
        page = await list_conversations(uow, limit=1000)
        found = [
            (message, conversation.session_id)
            for conversation in page.conversations
            for message in await latest_messages(uow, conversation_id=conversation.id, limit=1000)
            if set(wanted) <= set(words(message.content))
        ]
        found.sort(key=lambda pair: (pair[0].timestamp, pair[0].id), reverse=True)
        return [
            Hit(session_id=name, position=said.position, excerpt=excerpt(said.content, wanted))
            for said, name in found[:limit]
        ]
