"""Histories of LangChain that are conversations of a store.

    history = LangChainHistory("s-1", store=store, user_id="ada")
    await history.aadd_messages([HumanMessage("Hello")])

Each message of LangChain is one message. Its words are the content, so that people and queries can
read them; the whole of it stands in the metadata, under "langchain": see docs/how-to/langchain.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from .extra import Extra

with Extra("langchain"):
    from langchain_core.chat_history import BaseChatMessageHistory
    from langchain_core.messages import (
        AIMessage,
        BaseMessage,
        HumanMessage,
        SystemMessage,
        message_to_dict,
        messages_from_dict,
    )

from ..domain.message import Message, MessageDraft, Role
from .history import History, stored_item, to_draft, understood
from .store_thread import Store, StoreThread

KEY: Final = "langchain"
"""The key of a message's metadata under which the message of LangChain stands."""
SOURCE: Final = "langchain"
"""The source of a conversation that a history starts."""

_ROLES: Final = {
    "human": Role.USER,
    "user": Role.USER,
    "system": Role.SYSTEM,
    "tool": Role.TOOL,
    "function": Role.TOOL,
}
"""By the type of a message, or the role of a ChatMessage; all others are the assistant's."""

_MADE_OF: Final[dict[Role, type[BaseMessage]]] = {
    Role.USER: HumanMessage,
    Role.SYSTEM: SystemMessage,
    Role.ASSISTANT: AIMessage,
    Role.TOOL: AIMessage,
}
"""What a message becomes that no history stored."""


class LangChainHistory(BaseChatMessageHistory):
    """A chat history of LangChain: one conversation of one user, started by the first message.

    It may be used by many chains at the same time: the messages of one call stand side by side,
    and nothing is lost or doubled. Where the answer to a clearing is lost, that raises
    CommitOutcomeUnknown. Its calls that are not async need a StoreThread, else they raise
    UnitOfWorkMisuse; they hold the thread that calls, so in an event loop use the async ones.
    """

    def __init__(self, session_id: str, *, store: Store | StoreThread, user_id: str) -> None:
        """Make a history; nothing is sent.

        Args:
            session_id: the session_id of the conversation, 1..255 characters.
            store: an open store, for use in the event loop in which it was opened; or a
                StoreThread, for use from any thread and any event loop.
            user_id: whose history it is.
        """
        self._history = History(session_id, store=store, user_id=user_id, source=SOURCE)

    @property
    def messages(self) -> list[BaseMessage]:
        """All messages, oldest first. Round trips: as of aget_messages.

        To set them puts others in the place of all, in one step; without any that is a clearing.
        """
        return list(map(to_message, self._history.wait_for(self._history.read())))

    @messages.setter
    def messages(  # pyright: ignore[reportIncompatibleVariableOverride] # there an attribute
        self, messages: Sequence[BaseMessage]
    ) -> None:
        self._history.wait_for(self._history.put(list(map(from_message, messages))))

    async def aget_messages(self) -> list[BaseMessage]:
        """Return all messages, oldest first.

        They are those of one moment, whatever others clear meanwhile.

        Round trips: 1, and 1 for each further 999 messages; 1 more where the history did not meet
        its conversation yet.
        """
        return list(map(to_message, await self._history.do(self._history.read())))

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind those that are there; as aadd_messages."""
        self._history.wait_for(self._history.add(list(map(from_message, messages))))

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Store messages behind those that are there, all of them or none.

        Raises: ConversationNotAcceptingMessages where the conversation was closed or archived;
        InvalidMessage for a message of more than 10 MB; TypeError for one that is no JSON.

        Round trips: 1; 1 more where the history did not meet its conversation yet.
        """
        await self._history.do(self._history.add(list(map(from_message, messages))))

    def clear(self) -> None:
        """Take all messages away; as aclear."""
        self._history.wait_for(self._history.clear())

    async def aclear(self) -> None:
        """Take all messages away; the conversation stays. Round trips: 1."""
        await self._history.do(self._history.clear())


def from_message(message: BaseMessage) -> MessageDraft:
    """Return the message that one of LangChain becomes."""
    item: dict[str, Any] = json.loads(json.dumps(message_to_dict(message)))
    said: dict[str, Any] = item["data"]
    role = _ROLES.get(said.get("role") or message.type.removesuffix("MessageChunk").lower())
    return to_draft(KEY, role or Role.ASSISTANT, said.get("content"), item)


def to_message(message: Message) -> BaseMessage:
    """Return the message of LangChain that a message is; its role and words if it is none."""
    item = stored_item(KEY, message)
    if item is None or item.keys() != {"type", "data"}:
        return _MADE_OF[message.role](content=message.content)
    [stored] = understood(messages_from_dict, [item], message)
    return stored
