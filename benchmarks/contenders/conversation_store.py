"""This package, by its service functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from conversation_store import (
    Conversation,
    ConversationRecord,
    ConversationStore,
    Message,
    MessageDraft,
    append_messages,
    find_conversation,
    import_conversations,
    latest_messages,
    list_conversations,
    start_conversation,
)

from .contender import Contender, Handle, Said

_PAGE = 1000  # the largest


class ConversationStoreContender(Contender):
    """Ours: one service function for each operation."""

    name = "conversation-store"
    package = "conversation-store"
    schema: ClassVar[str] = "ours"
    options: ClassVar[dict[str, Any]] = {}
    """Further arguments of `ConversationStore.connect`."""

    async def open(self, dsn: str, *, connections: int) -> None:
        self._store = ConversationStore.connect(
            dsn, schema=self.schema, min_size=connections, max_size=connections, **self.options
        )
        await self._store.__aenter__()
        await self._store.migrate()

    async def close(self) -> None:
        await self._store.__aexit__(None, None, None)

    async def start(self, user_id: str, session_id: str, first: Said) -> Handle:
        conversation, _ = await start_conversation(
            self._store.unit_of_work(user_id=user_id),
            session_id=session_id,
            drafts=[MessageDraft(role=first[0], content=first[1])],
        )
        return conversation.id

    async def append_turn(self, handle: Handle, turn: Sequence[Said]) -> None:
        await append_messages(
            self._store.unit_of_work(),
            conversation_id=handle,
            drafts=[MessageDraft(role=role, content=content) for role, content in turn],
        )

    async def latest(self, handle: Handle, limit: int) -> Sequence[Message]:
        uow = self._store.unit_of_work()
        return await latest_messages(uow, conversation_id=handle, limit=limit)

    async def read_all(self, handle: Handle) -> Sequence[Message]:
        # Backwards: positions have no gaps, so the page that holds position 1 is the last.
        uow = self._store.unit_of_work()
        messages = await latest_messages(uow, conversation_id=handle, limit=_PAGE)
        while messages and messages[0].position > 1:
            before = messages[0].position
            page = await latest_messages(uow, conversation_id=handle, limit=_PAGE, before=before)
            messages = page + messages
        return messages

    async def list_recent(self, user_id: str, limit: int) -> Sequence[Conversation]:
        uow = self._store.unit_of_work(user_id=user_id)
        page = await list_conversations(uow, limit=limit)
        return page.conversations

    async def load(self, conversations: Sequence[tuple[str, str, Sequence[Said]]]) -> list[Handle]:
        await import_conversations(
            self._store.unit_of_work(),
            records=(
                ConversationRecord(
                    user_id=user_id,
                    session_id=session_id,
                    messages=[{"role": role, "content": content} for role, content in said],
                )
                for user_id, session_id, said in conversations
            ),
        )
        return [(user_id, session_id) for user_id, session_id, _ in conversations]

    async def resolve(self, loaded: Handle) -> Handle:
        user_id, session_id = loaded
        uow = self._store.unit_of_work(user_id=user_id)
        conversation = await find_conversation(uow, session_id=session_id)
        assert conversation is not None
        return conversation.id

    def said(self, messages: Sequence[Any]) -> list[Said]:
        return [(message.role, message.content) for message in messages]
