"""Reading more than a page holds.

Messages are those of one moment. Each further page begins with the message that the page before
ended with. Where that one is gone, the history was cleared, replaced or popped to there meanwhile,
so it is read anew: what is before a message that is still there has not changed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from ..domain.conversation import Conversation
from ..domain.message import Message
from ..domain.page import MAX_LIMIT
from ..service_layer.conversations import list_conversations
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
    new_unit: Callable[[], AsyncUnitOfWork],
    conversation_id: int,
    most: int,
    *,
    before: int | None = None,
) -> list[Message]:
    """Return the newest messages of a conversation, oldest of them first; `most` is 1 or more.

    With `before` they are those before that position.

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
            before=before if first is None else first.position + 1,
        )
        if first is not None and (not page or page[-1].id != first.id):
            messages = []
            continue
        messages = page + messages[1:]
        if len(page) < size or len(messages) == most:
            return messages


async def all_conversations(new_unit: Callable[[], AsyncUnitOfWork]) -> list[Conversation]:
    """Return all conversations of a user, the most recent activity first.

    One that is active while pages are read moves to the front, and may be on none of them. So the
    front is read again, until one page holds all that moved there.

    Round trips: 1; of more than 1,000 conversations 1 for each 1,000 and 1 more.
    """
    found: dict[int, Conversation] = {}
    front: datetime | None = None  # of the last time: what is behind it did not move since
    while True:
        reached, front, pages, cursor = front, None, 0, None
        while not pages or cursor:
            page = await list_conversations(new_unit(), limit=MAX_LIMIT, after=cursor)
            found |= {each.id: each for each in page.conversations}
            active = [each.last_activity for each in page.conversations]
            front = front or max(active, default=None)
            pages += 1
            cursor = (
                None if reached and min(active, default=reached) < reached else page.next_cursor
            )
        if pages == 1:
            last_first = sorted(found.values(), key=lambda each: (each.last_activity, each.id))
            return last_first[::-1]
