"""Chats of LlamaIndex as conversations: which messages they hold, and which are archived."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias, cast

from llama_index.core.base.llms.types import ChatMessage, DocumentBlock, MessageRole
from llama_index.core.storage.chat_store.base_db import MessageStatus
from pydantic_core import to_jsonable_python

from ..domain.conversation import Conversation, ConversationChanges
from ..domain.errors import ConcurrentUpdate
from ..domain.json_object import JsonObject
from ..domain.message import MAX_DRAFTS, Message, MessageDraft, Role
from ..service_layer.conversations import (
    get_conversation,
    update_conversation,
)
from .history import (
    History,
    Owner,
    as_it_was,
    replace,
    stored_item,
    to_draft,
    understood,
    words_of,
)
from .store_thread import Store, StoreThread

KEY: Final = "llama_index"
"""The key of a message's metadata under which the message of LlamaIndex stands, and of a
conversation's under which stands how far it is archived."""
SOURCE: Final = "llama-index"
"""The source of a conversation that a chat store starts."""

_MOST_KNOWN: Final = 1000
"""Of so many chats it is known which conversations they are."""

_ROLES: Final = {
    MessageRole.USER: Role.USER,
    MessageRole.SYSTEM: Role.SYSTEM,
    MessageRole.DEVELOPER: Role.SYSTEM,
    MessageRole.TOOL: Role.TOOL,
    MessageRole.FUNCTION: Role.TOOL,
}
"""All others are the assistant's."""

_MADE_OF: Final = {
    Role.USER: MessageRole.USER,
    Role.SYSTEM: MessageRole.SYSTEM,
    Role.ASSISTANT: MessageRole.ASSISTANT,
    Role.TOOL: MessageRole.ASSISTANT,
}
"""The role of a message that no chat store stored."""


class Known(NamedTuple):
    """A message of a chat."""

    message: Message
    is_marked: bool
    """Whether it is one of those that were archived from the oldest on."""

    @property
    def is_archived(self) -> bool:
        """Whether it is archived, in one way or the other."""
        item = None if self.is_marked else stored_item(KEY, self.message)
        return self.is_marked or (
            item is not None and item.get("status") == MessageStatus.ARCHIVED.value
        )


class Chats(Owner):
    """The chats of one user, by their keys.

    Which messages are archived stands in two places: in the metadata of the conversation the last
    message, by position and id, of those that were archived from the oldest on; and in a message
    that was archived when it was stored.
    """

    def __init__(self, *, store: Store | StoreThread, user_id: str) -> None:
        super().__init__(store=store, user_id=user_id, source=SOURCE)

        def chat(key: str) -> History:
            return History(key, store=store, user_id=user_id, source=SOURCE)

        self.chat = lru_cache(maxsize=_MOST_KNOWN)(chat)

    async def keys(self) -> list[str]:
        """Return the keys of all that hold a message, the most recent activity first."""
        return [each.session_id for each in await self.conversations() if each.message_count]

    async def read(
        self, key: str, status: MessageStatus | None, limit: int | None, offset: int | None
    ) -> list[ChatMessage]:
        """Return the messages of a status, or all of them, from an offset on."""
        chat = self.chat(key)

        async def read(conversation: Conversation) -> list[Message]:
            is_whole = status is not MessageStatus.ACTIVE
            known = await self._known(chat, conversation, is_whole=is_whole)
            return of_status(known, status)

        found = await (chat.read() if status is None else chat.change(read))
        start = offset or 0
        end = None if limit is None else start + limit
        return list(map(to_chat_message, (found or [])[start:end]))

    async def put(self, key: str, drafts: Sequence[MessageDraft]) -> None:
        """Store messages in the place of all that are there, and archive none."""
        chat = self.chat(key)

        async def put(conversation: Conversation) -> bool:
            async with chat.unit() as uow:
                replace(uow, conversation.id, drafts, expected_version=conversation.version)
                if _archived_up_to(conversation) is not None:
                    changes = ConversationChanges(metadata=_noted(conversation, None))
                    uow.conversations.update(conversation.id, changes)
            return True

        if not await chat.change(put):
            await chat.put(drafts)

    async def take(
        self, key: str, which: Callable[[list[Known]], list[Message]]
    ) -> list[ChatMessage]:
        """Take some messages away, and return them; those that stay are stored anew."""
        chat = self.chat(key)

        async def take(conversation: Conversation) -> list[Message]:
            known = await self._known(chat, conversation, is_whole=True)
            taken = which(known)
            gone = {message.id for message in taken}
            left = [each for each in known if each.message.id not in gone]
            if taken:
                await self._put_back(chat, conversation, left)
            return taken

        return list(map(to_chat_message, await chat.change(take) or []))

    async def archive(self, key: str, most: int) -> list[ChatMessage]:
        """Archive the oldest messages that are active, and return them."""
        chat = self.chat(key)

        async def archive(conversation: Conversation) -> list[Message]:
            known = await self._known(chat, conversation, is_whole=False)
            oldest = of_status(known, MessageStatus.ACTIVE)[: max(most, 0)]
            if oldest:
                await update_conversation(
                    chat.unit(),
                    conversation_id=conversation.id,
                    metadata=_noted(conversation, oldest[-1]),
                    expected_version=conversation.version,
                )
            return oldest

        return list(map(to_chat_message, await chat.change(archive) or []))

    async def _known(
        self, chat: History, conversation: Conversation, *, is_whole: bool
    ) -> list[Known]:
        """Return the messages of a chat; if it is not to be whole, those to come after the mark.

        A mark counts as long as the message stands where it says. Where the messages were
        replaced or popped by others, all that are there are active.
        """
        position, message_id = _archived_up_to(conversation) or (0, 0)
        start = 0 if is_whole else max(position - 1, 0)
        messages = await chat.after(conversation.id, start)
        if position and (position, message_id) not in [(m.position, m.id) for m in messages]:
            now = await get_conversation(chat.unit(), conversation_id=conversation.id)
            if now.version != conversation.version:  # replaced since the mark was read
                raise ConcurrentUpdate(
                    conversation_id=now.id,
                    expected_version=conversation.version,
                    actual_version=now.version,
                )
            position, messages = 0, await chat.after(conversation.id)
        return [Known(message, message.position <= position) for message in messages]

    async def _put_back(
        self, chat: History, conversation: Conversation, left: Sequence[Known]
    ) -> None:
        """Store what is left in the place of all, and note what of it is archived."""
        drafts = [as_it_was(each.message) for each in left]
        archived = sum(each.is_marked for each in left)
        async with chat.unit() as uow:
            pages = replace(uow, conversation.id, drafts, expected_version=conversation.version)
            if _archived_up_to(conversation) is not None:
                page, place = divmod(archived - 1, MAX_DRAFTS)
                last = (await pages[page])[place] if archived else None  # its id is a new one
                changes = ConversationChanges(metadata=_noted(conversation, last))
                uow.conversations.update(conversation.id, changes)


def of_status(known: Sequence[Known], status: MessageStatus | None) -> list[Message]:
    """Return the messages of a status, or with None all of them."""
    is_archived = status is MessageStatus.ARCHIVED
    return [each.message for each in known if status is None or each.is_archived is is_archived]


def _archived_up_to(conversation: Conversation) -> tuple[int, int] | None:
    """Return position and id of the last message that was archived."""
    noted: Any = (conversation.metadata or {}).get(KEY)
    with suppress(KeyError, TypeError, ValueError):  # none, or of others, who have the same key
        mark = noted["archived"]
        return int(mark["position"]), int(mark["message_id"])
    return None


def _noted(conversation: Conversation, last: Message | None) -> JsonObject | None:
    """Return the metadata of a conversation that is archived up to a message."""
    others = {key: value for key, value in (conversation.metadata or {}).items() if key != KEY}
    if last is None:
        return others or None
    mark = {"position": last.position, "message_id": last.id}
    return {**others, KEY: {"archived": mark}}


# Messages of LlamaIndex, and messages -----------------------------------------------------------


def from_chat_message(
    message: ChatMessage, status: MessageStatus = MessageStatus.ACTIVE
) -> MessageDraft:
    """Return the message that one of LlamaIndex becomes."""
    item: JsonObject = json.loads(json.dumps(message.model_dump(), default=_plain))
    said = words_of(item["blocks"])
    if status is MessageStatus.ARCHIVED:
        item["status"] = status.value
    return to_draft(KEY, _ROLES.get(message.role, Role.ASSISTANT), said, item)


def to_chat_message(message: Message) -> ChatMessage:
    """Return the message of LlamaIndex that a message is; its role and words if it is none."""
    item = stored_item(KEY, message)
    if item is None or not item.keys() >= {"role", "blocks", "additional_kwargs"}:
        return ChatMessage(message.content, role=_MADE_OF[message.role])
    return understood(_chat_message_of, item, message)


def _chat_message_of(item: JsonObject) -> ChatMessage:
    blocks = [_without_path(block) for block in item["blocks"]]
    made = ChatMessage(role=item["role"], blocks=blocks)
    made.additional_kwargs = item["additional_kwargs"]  # given above, its images would be added
    for block, stored in zip(made.blocks, item["blocks"], strict=True):
        _set_path(block, stored)
    return made


def _plain(value: object) -> object:
    """Return what JSON has in the place of a value; bytes are base64, as those of blocks are."""
    if not isinstance(value, bytes):
        return to_jsonable_python(value)
    try:
        base64.b64decode(value, validate=True)
    except ValueError:
        return base64.b64encode(value).decode()
    return value.decode()


_NESTED: Final = ("content", "cited_content")
"""Where a block may hold others."""
_Blocks: TypeAlias = Sequence[Any]


def _without_path(block: Any) -> Any:
    """Return a block without paths: of a file that is gone since, LlamaIndex would refuse it."""
    if isinstance(block, list):
        return [_without_path(each) for each in cast("_Blocks", block)]
    if not isinstance(block, dict):
        return block
    plain = cast("JsonObject", block)
    nested = {name: _without_path(plain[name]) for name in _NESTED if name in plain}
    return {name: value for name, value in plain.items() if name != "path"} | nested


def _set_path(block: Any, stored: Any) -> None:
    """Give a block, and those in it, their paths back."""
    if isinstance(block, list):
        for each, each_stored in zip(cast("_Blocks", block), stored, strict=True):
            _set_path(each, each_stored)
    elif isinstance(stored, dict):
        plain = cast("JsonObject", stored)
        path = plain.get("path")
        if path is not None:
            block.path = path if isinstance(block, DocumentBlock) else Path(path)
        for name in _NESTED:
            if name in plain:
                _set_path(getattr(block, name), plain[name])
