"""Chat stores of LlamaIndex whose chats are conversations of a store.

    store = LlamaIndexMemoryStore(store=store, user_id="ada")
    memory = Memory.from_defaults(session_id="s-1", chat_store=store)

There are two, for LlamaIndex has two ports, whose methods have the same names and are async in one
of them only. Each message of LlamaIndex is one message. Its words are the content, so that people
and queries can read them; the whole of it stands in the metadata, under "llama_index": see
docs/how-to/llama-index.md.
"""

from __future__ import annotations

from collections.abc import Sequence

from .extra import Extra

with Extra("llama-index"):
    from llama_index.core.base.llms.types import ChatMessage
    from llama_index.core.bridge.pydantic import PrivateAttr
    from llama_index.core.storage.chat_store.base import BaseChatStore
    from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus

from ..domain.message import Message
from .llama_index_chats import Chats, Known, from_chat_message, of_status, to_chat_message
from .store_thread import Store, StoreThread


class LlamaIndexChatStore(BaseChatStore):
    """A chat store of LlamaIndex: each key is a session_id, each chat a conversation of one user.

    For ChatMemoryBuffer, ChatSummaryMemoryBuffer, and what else takes a BaseChatStore. Many may
    use a chat at the same time: what is taken out of the middle takes nothing with it that another
    added meanwhile. Calls that are not async need a StoreThread, else they raise UnitOfWorkMisuse;
    the two memories call these even where they are async themselves.

    Where the answer to set_messages, without messages, or to delete_last_message is lost, that
    raises CommitOutcomeUnknown. What changes a chat raises ConversationNotAcceptingMessages where
    the conversation was closed or archived.
    """

    _chats: Chats = PrivateAttr()

    def __init__(self, *, store: Store | StoreThread, user_id: str) -> None:
        """Make a chat store; nothing is sent.

        Args:
            store: an open store, for use in the event loop in which it was opened; or a
                StoreThread, for use from any thread and any event loop.
            user_id: whose chats they are.
        """
        super().__init__()
        self._chats = Chats(store=store, user_id=user_id)

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex knows the class."""
        return "LlamaIndexChatStore"

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Put messages in the place of all; as aset_messages."""
        self._chats.wait_for(self._set(key, messages))

    async def aset_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Put messages in the place of all that a chat has; without any it is cleared.

        Raises: InvalidMessage for a message of more than 10 MB.

        Round trips: 1; 1 more where the chat was not met yet.
        """
        await self._chats.do(self._set(key, messages))

    def get_messages(self, key: str) -> list[ChatMessage]:
        """Return all messages of a chat; as aget_messages."""
        return self._chats.wait_for(self._chats.read(key, None, None, None))

    async def aget_messages(self, key: str) -> list[ChatMessage]:
        """Return all messages of a chat, oldest first; they are those of one moment.

        Round trips: 1, and 1 for each further 999 messages; 1 more where the chat was not met yet.
        """
        return await self._chats.do(self._chats.read(key, None, None, None))

    def add_message(self, key: str, message: ChatMessage) -> None:
        """Add a message to a chat; as async_add_message."""
        self._chats.wait_for(self._add(key, message))

    async def async_add_message(self, key: str, message: ChatMessage) -> None:
        """Add a message behind those that are there; the first starts the conversation.

        Raises: InvalidMessage for a message of more than 10 MB.

        Round trips: 1; 1 more where the chat was not met yet.
        """
        await self._chats.do(self._add(key, message))

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        """Take all messages of a chat away; as adelete_messages."""
        return self._chats.wait_for(self._delete(key))

    async def adelete_messages(self, key: str) -> list[ChatMessage] | None:
        """Take all messages of a chat away, and return them; None if there were none.

        The conversation stays. Round trips: 3 for up to 1,000 messages; 3 more each time that
        another was faster.
        """
        return await self._chats.do(self._delete(key))

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Take one message away; as adelete_message."""
        return self._chats.wait_for(self._delete_one(key, idx))

    async def adelete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Take the message of an index, of a list from 0 on, away, and return it.

        None if there is none. The others are stored anew, with new ids and times. Round trips: as
        adelete_messages.
        """
        return await self._chats.do(self._delete_one(key, idx))

    def delete_last_message(self, key: str) -> ChatMessage | None:
        """Take the newest message away; as adelete_last_message."""
        return self._chats.wait_for(self._delete_last(key))

    async def adelete_last_message(self, key: str) -> ChatMessage | None:
        """Take the newest message of a chat away, and return it; None if there is none.

        Round trips: 1; 1 more where the chat was not met yet.
        """
        return await self._chats.do(self._delete_last(key))

    def get_keys(self) -> list[str]:
        """Return the keys of all chats that hold a message; as aget_keys."""
        return self._chats.wait_for(self._chats.keys())

    async def aget_keys(self) -> list[str]:
        """Return the keys of all chats that hold a message, the most recent activity first.

        These are all conversations of the user. Round trips: 1; of more than 1,000
        conversations 1 for each 1,000 and 1 more.
        """
        return await self._chats.do(self._chats.keys())

    async def _set(self, key: str, messages: Sequence[ChatMessage]) -> None:
        await self._chats.chat(key).put(list(map(from_chat_message, messages)))

    async def _add(self, key: str, message: ChatMessage) -> None:
        await self._chats.chat(key).add([from_chat_message(message)])

    async def _delete(self, key: str) -> list[ChatMessage] | None:
        return await self._chats.take(key, lambda known: of_status(known, None)) or None

    async def _delete_one(self, key: str, idx: int) -> ChatMessage | None:
        def one(known: list[Known]) -> list[Message]:
            return [known[idx].message] if -len(known) <= idx < len(known) else []

        taken = await self._chats.take(key, one)
        return taken[0] if taken else None

    async def _delete_last(self, key: str) -> ChatMessage | None:
        popped = await self._chats.chat(key).pop()
        return None if popped is None else to_chat_message(popped)


class LlamaIndexMemoryStore(AsyncDBChatStore):
    """The chat store of a Memory of LlamaIndex: each key, a session_id, is a conversation.

    Many memories may use a chat at the same time: nothing is lost or doubled. What changes a chat
    raises ConversationNotAcceptingMessages where the conversation was closed or archived;
    archiving messages does not archive the conversation.

    Those calls of a Memory that are not async need a StoreThread.
    """

    _chats: Chats = PrivateAttr()

    def __init__(self, *, store: Store | StoreThread, user_id: str) -> None:
        """Make a chat store; nothing is sent.

        Args:
            store: an open store, for use in the event loop in which it was opened; or a
                StoreThread, for use from any thread and any event loop.
            user_id: whose chats they are.
        """
        super().__init__()
        self._chats = Chats(store=store, user_id=user_id)

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex knows the class."""
        return "LlamaIndexMemoryStore"

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = MessageStatus.ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        """Return messages of a chat, oldest first: those of a status, or with None all.

        Args:
            key: the session_id.
            status: active ones, archived ones, or None.
            limit: at most how many.
            offset: how many to leave out, the oldest first.

        Round trips: 2 for up to 1,000 messages, active ones or all; with None 1. Archived
        messages are not read for active ones.
        """
        return await self._chats.do(self._chats.read(key, status, limit, offset))

    async def count_messages(
        self, key: str, status: MessageStatus | None = MessageStatus.ACTIVE
    ) -> int:
        """Return how many messages get_messages gives; they are read for it."""
        return len(await self.get_messages(key, status))

    async def add_message(
        self, key: str, message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Add a message to a chat; as add_messages."""
        await self.add_messages(key, [message], status)

    async def add_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Add messages behind those that are there, all of them or none.

        The first start the conversation.

        Raises: InvalidMessage for a message of more than 10 MB.

        Round trips: 1; 1 more where the chat was not met yet.
        """
        drafts = [from_chat_message(message, status) for message in messages]
        await self._chats.do(self._chats.chat(key).add(drafts))

    async def set_messages(
        self, key: str, messages: list[ChatMessage], status: MessageStatus = MessageStatus.ACTIVE
    ) -> None:
        """Put messages in the place of all that a chat has, of whatever status.

        Raises: InvalidMessage for a message of more than 10 MB.

        Round trips: 2; 2 more each time that another was faster.
        """
        drafts = [from_chat_message(message, status) for message in messages]
        await self._chats.do(self._chats.put(key, drafts))

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Take the message of an id, as the store gave it, away, and return it.

        None if the chat has none of that id. The others are stored anew, with new ids and times.
        Round trips: 3 for up to 1,000 messages, and 3 more where some were archived; as many again
        each time that another was faster.
        """

        def one(known: list[Known]) -> list[Message]:
            return [each.message for each in known if each.message.id == idx]

        taken = await self._chats.do(self._chats.take(key, one))
        return taken[0] if taken else None

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Take the messages of a status away, or with None all; the conversation stays.

        Round trips: 2 for all; as delete_message for those of a status.
        """
        if status is None:
            await self._chats.do(self._chats.put(key, []))
        else:
            await self._chats.do(self._chats.take(key, lambda known: of_status(known, status)))

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Take the oldest active messages away, at most n, and return them.

        Round trips: as delete_message.
        """

        def oldest(known: list[Known]) -> list[Message]:
            return of_status(known, MessageStatus.ACTIVE)[: max(n, 0)]

        return await self._chats.do(self._chats.take(key, oldest))

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Archive the oldest active messages, at most n, and return them.

        That is a note on the conversation; no message is stored anew. Round trips: 3 for up to
        1,000 active messages; 3 more each time that another was faster.
        """
        return await self._chats.do(self._chats.archive(key, n))

    async def get_keys(self) -> list[str]:
        """Return the keys of all chats that hold a message, the most recent activity first.

        These are all conversations of the user. Round trips: 1; of more than 1,000
        conversations 1 for each 1,000 and 1 more.
        """
        return await self._chats.do(self._chats.keys())
