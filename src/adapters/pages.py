"""Reading more messages than a page holds, as they stood at one moment.

Each further page begins with the message that the page before ended with. Where that one is gone,
the history was cleared, replaced or popped to there meanwhile, so it is read anew: what is before a
message that is still there has not changed.
"""

from __future__ import annotations

from collections.abc import Callable

from ..domain.message import Message
from ..domain.page import MAX_LIMIT
from ..service_layer.messages import latest_messages, messages_after
from ..service_layer.unit_of_work import AsyncUnitOfWork


async def all_after(
    new_unit: Callable[[], AsyncUnitOfWork], conversation_id: int, position: int = 0
) -> list[Message]:
    """Return all messages of a conversation that follow a position, oldest first.

    Raises: ConversationNotFound. Round trips: 1, and 1 for each further 999 messages.
    """
    messages: list[Message] = []
    while True:
        last = messages[-1] if messages else None
        page = await messages_after(
            new_unit(),
            conversation_id=conversation_id,
            position=position if last is None else last.position - 1,
            limit=MAX_LIMIT,
        )
        if last is not None and (not page or page[0].id != last.id):
            messages = []
            continue
        messages += page if last is None else page[1:]
        if len(page) < MAX_LIMIT:
            return messages


async def newest(
    new_unit: Callable[[], AsyncUnitOfWork], conversation_id: int, most: int
) -> list[Message]:
    """Return the newest messages of a conversation, oldest of them first; `most` is 1 or more.

    Raises: ConversationNotFound. Round trips: 1, and 1 for each further 999 messages.
    """
    messages: list[Message] = []
    while True:
        first = messages[0] if messages else None
        size = min(most - len(messages) + (first is not None), MAX_LIMIT)
        page = await latest_messages(
            new_unit(),
            conversation_id=conversation_id,
            limit=size,
            before=None if first is None else first.position + 1,
        )
        if first is not None and (not page or page[-1].id != first.id):
            messages = []
            continue
        messages = page + messages[1:]
        if len(page) < size or len(messages) == most:
            return messages
