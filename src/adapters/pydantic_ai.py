"""Histories of Pydantic AI that are conversations of a store.

    history = PydanticAIHistory("s-1", store=store, user_id="ada")
    result = await agent.run("Hello", message_history=await history.load())
    await history.add(result.new_messages())

Each message of Pydantic AI is one message. Its words are the content, so that people and queries
can read them; the whole of it stands in the metadata, under "pydantic_ai": see
docs/how-to/pydantic-ai.md, also for the ConversationStore of Pydantic AI.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from .extra import Extra

with Extra("pydantic-ai"):
    from pydantic_ai.messages import (
        ModelMessage,
        ModelMessagesTypeAdapter,
        ModelRequest,
        ModelResponse,
        SystemPromptPart,
        TextPart,
        UserPromptPart,
    )

from ..domain.json_object import JsonObject
from ..domain.message import Message, MessageDraft, Role
from ..domain.text import storable_text
from .history import History, Json, stored_item, to_draft, understood, words_of
from .store_thread import Store, StoreThread

KEY: Final = "pydantic_ai"
"""The key of a message's metadata under which the message of Pydantic AI stands."""
SOURCE: Final = "pydantic-ai"
"""The source of a conversation that a history starts."""

_ROLES: Final = {
    "tool-return": Role.TOOL,
    "retry-prompt": Role.TOOL,
    "user-prompt": Role.USER,
    "speech": Role.USER,
}
"""By the kind of a part of a request; all others are the system's."""


class PydanticAIHistory:
    """The history of an agent: one conversation of one user, started by the first message.

    It may be used by many runs at the same time: the messages of one `add` stand side by side, and
    nothing is lost or doubled. Where the answer to a clearing is lost, that raises
    CommitOutcomeUnknown. Calls that end with _sync need a StoreThread, else they raise
    UnitOfWorkMisuse.
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

    async def load(self, limit: int | None = None) -> list[ModelMessage]:
        """Return the newest messages, oldest of them first; without a limit all of them.

        With a limit they begin where a user speaks, so that nothing that a tool gave is without its
        call: at most `limit` messages, or if the newest turn is longer, that turn.

        They are those of one moment, whatever others clear meanwhile.

        Round trips: 1, and 1 for each further 999 messages; 1 more where the history did not
        meet its conversation yet; with a limit 1 more each time that a turn was twice as long.
        """
        return await self._history.do(self._load(limit))

    def load_sync(self, limit: int | None = None) -> list[ModelMessage]:
        """Return the newest messages; as load."""
        return self._history.wait_for(self._load(limit))

    async def add(self, messages: Sequence[ModelMessage]) -> None:
        """Store messages behind those that are there, all of them or none.

        Raises: ConversationNotAcceptingMessages where the conversation was closed or archived;
        InvalidMessage for a message of more than 10 MB; ValueError for one that is no JSON.

        Round trips: 1; 1 more where the history did not meet its conversation yet.
        """
        await self._history.do(self._history.add(from_model_messages(messages)))

    def add_sync(self, messages: Sequence[ModelMessage]) -> None:
        """Store messages behind those that are there; as add."""
        self._history.wait_for(self._history.add(from_model_messages(messages)))

    async def clear(self) -> None:
        """Take all messages away; the conversation stays. Round trips: 1."""
        await self._history.do(self._history.clear())

    def clear_sync(self) -> None:
        """Take all messages away; as clear."""
        self._history.wait_for(self._history.clear())

    async def _load(self, limit: int | None) -> list[ModelMessage]:
        messages = await self._history.read(limit)
        if limit is not None and messages:
            messages = await self._from_a_turn_on(messages)
        return list(map(to_model_message, messages))

    async def _from_a_turn_on(self, messages: list[Message]) -> list[Message]:
        """Return messages from the first of a user's on; if there is none, from the last before."""
        begun = [place for place, message in enumerate(messages) if message.role is Role.USER]
        if begun:
            return messages[begun[0] :]
        while messages and messages[0].position > 1 and not begun:
            messages = await self._history.read(2 * len(messages))
            begun = [place for place, message in enumerate(messages) if message.role is Role.USER]
        return messages[begun[-1] :] if begun else messages


# Messages of Pydantic AI, and messages ----------------------------------------------------------


def from_model_messages(messages: Sequence[ModelMessage]) -> list[MessageDraft]:
    """Return the messages that those of Pydantic AI become."""
    return [draft_of(item) for item in to_items(messages)]


def to_items(messages: Sequence[ModelMessage]) -> list[JsonObject]:
    """Return messages of Pydantic AI as JSON."""
    items: list[JsonObject] = ModelMessagesTypeAdapter.dump_python(list(messages), mode="json")
    return items


def draft_of(item: JsonObject) -> MessageDraft:
    """Return the message that one of Pydantic AI, as JSON, becomes.

    Its content is what is said by the parts that are of its role: that a user's first message
    brings the prompt of the system with it does not make that the user's words.
    """
    parts: list[JsonObject] = item["parts"]
    if item["kind"] == "response":
        role, said = Role.ASSISTANT, parts
    else:
        by_role = [(_ROLES.get(part["part_kind"], Role.SYSTEM), part) for part in parts]
        roles = [role for role, _ in by_role]
        role = next((one for one in (Role.TOOL, Role.USER) if one in roles), Role.SYSTEM)
        said = [part for one, part in by_role if one is role]
    return to_draft(KEY, role, "\n".join(filter(None, map(_words, said))), item)


def to_model_message(message: Message) -> ModelMessage:
    """Return the message of Pydantic AI that a message is; its role and words if it is none."""
    item = stored_item(KEY, message)
    if item is not None and item.keys() >= {"kind", "parts"}:
        return understood(to_model_messages, [item], message)[0]
    if message.role is Role.USER:
        return ModelRequest([UserPromptPart(message.content, timestamp=message.timestamp)])
    if message.role is Role.SYSTEM:
        return ModelRequest([SystemPromptPart(message.content, timestamp=message.timestamp)])
    return ModelResponse([TextPart(message.content)], timestamp=message.timestamp)


def to_model_messages(items: Sequence[JsonObject]) -> list[ModelMessage]:
    """Return the messages of Pydantic AI that were JSON."""
    return ModelMessagesTypeAdapter.validate_python(list(items))


def _words(part: JsonObject) -> str:
    """Return what a part says: its text, what a tool is called with, what it gave."""
    said: Any = part.get("args", part.get("content", part.get("transcript")))
    if isinstance(said, str) or part["part_kind"] in {"user-prompt", "file"}:
        return words_of(said)
    return _json_text(said)


def _json_text(said: Json) -> str:
    """Return a value of JSON as a text, but of files, and of nothing, only the words."""
    text = json.dumps(said, ensure_ascii=False)
    return words_of(said) if said is None or '"kind": "binary"' in text else storable_text(text)
