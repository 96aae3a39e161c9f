"""A conversation as the history that an agent framework keeps.

What the frameworks have in common: one conversation of one user, found or started by its
session_id; things of theirs that are messages of ours; and calls from wherever.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias, TypeVar

from ..domain.conversation import Conversation
from ..domain.errors import (
    ConcurrentUpdate,
    ConversationNotFound,
    InvalidInput,
    StoreMisconfigured,
    UnitOfWorkMisuse,
)
from ..domain.json_object import JsonObject
from ..domain.message import MAX_DRAFTS, Message, MessageDraft, Role
from ..domain.text import storable_text
from ..domain.unit import Pending
from ..service_layer.conversations import (
    find_conversation,
    get_conversation,
    get_or_start_conversation,
)
from ..service_layer.messages import (
    pop_message,
    replace_messages,
)
from ..service_layer.unit_of_work import AsyncUnitOfWork
from .pages import all_after, all_conversations, newest
from .store_thread import Store, StoreThread, check_loop

T = TypeVar("T")

Json: TypeAlias = "dict[str, Json] | list[Json] | str | float | bool | None"
"""A value of JSON."""


class Owner:
    """A user whose conversations an agent framework uses, from any thread and event loop.

    A store belongs to the event loop in which it was opened; a StoreThread serves all loops, and
    those who have none.
    """

    def __init__(self, *, store: Store | StoreThread, user_id: str, source: str) -> None:
        """Take an open store; the source is that of conversations that are started."""
        self._where = store
        self._user_id = user_id
        self._source = source

    async def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what a method of an heir returned.

        Raises: UnitOfWorkMisuse in another event loop than that of a store without a StoreThread.
        """
        if isinstance(self._where, StoreThread):
            self._check_open(work)
            return await self._where.do(work)
        try:
            check_loop(self._where)
        except UnitOfWorkMisuse:
            work.close()
            raise
        return await work

    def wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        """Do the same for who has no event loop. Raises UnitOfWorkMisuse without a StoreThread."""
        if not isinstance(self._where, StoreThread):
            work.close()
            reason = "without an event loop the store has to be in a StoreThread"
            raise UnitOfWorkMisuse(reason=reason)
        self._check_open(work)
        return self._where.wait_for(work)

    def unit(self) -> AsyncUnitOfWork:
        """Return a unit of work that acts for the user, for use in the loop of the store."""
        where = self._where
        store = where.store if isinstance(where, StoreThread) else where
        return store.unit_of_work(user_id=self._user_id)

    async def conversations(self) -> list[Conversation]:
        """Return all conversations of the user, the most recent activity first."""
        return await all_conversations(self.unit)

    async def after(self, conversation_id: int, position: int = 0) -> list[Message]:
        """Return all messages of a conversation that follow a position."""
        return await all_after(self.unit, conversation_id, position)

    def _check_open(self, work: Coroutine[Any, Any, Any]) -> None:
        try:
            self.unit()
        except BaseException:
            work.close()
            raise


class History(Owner):
    """One conversation of one user, started by what is added first; many may use it at once."""

    def __init__(
        self, session_id: str, *, store: Store | StoreThread, user_id: str, source: str
    ) -> None:
        super().__init__(store=store, user_id=user_id, source=source)
        self._session_id = session_id
        self._conversation_id: int | None = None

    async def read(self, most: int | None = None) -> list[Message]:
        """Return the newest messages, oldest of them first; without a limit all of them."""
        if most is not None and most <= 0:
            return []

        async def read(conversation_id: int) -> list[Message]:
            if most is None:
                return await self.after(conversation_id)
            return await newest(self.unit, conversation_id, most)

        return await self._in_conversation(read) or []

    async def add(self, drafts: Sequence[MessageDraft]) -> None:
        """Store messages behind those that are there, all of them or none."""
        if drafts:
            await self._write(lambda uow, conversation_id: append(uow, conversation_id, drafts))

    async def put(self, drafts: Sequence[MessageDraft]) -> None:
        """Store messages in the place of all that are there."""
        if not drafts:
            await self.clear()
            return
        await self._write(lambda uow, conversation_id: replace(uow, conversation_id, drafts))

    async def pop(self) -> Message | None:
        """Take the newest message away, and return it; None if there is none."""
        return await self._in_conversation(
            lambda conversation_id: pop_message(self.unit(), conversation_id=conversation_id)
        )

    async def clear(self) -> None:
        """Take all messages away; the conversation stays."""
        await self._in_conversation(
            lambda conversation_id: replace_messages(
                self.unit(), conversation_id=conversation_id, drafts=[]
            )
        )

    async def change(self, work: Callable[[Conversation], Coroutine[Any, Any, T]]) -> T | None:
        """Do work that guards what it writes by the version of the conversation that it is given.

        It is done again where another was faster. None where there is no conversation.
        """

        async def change(conversation_id: int) -> T:
            while True:
                found = await get_conversation(self.unit(), conversation_id=conversation_id)
                with suppress(ConcurrentUpdate):
                    return await work(found)

        return await self._in_conversation(change)

    async def _write(self, register: Callable[[AsyncUnitOfWork, int], object]) -> None:
        """Store what is registered in the conversation, started if there is none."""
        while True:
            conversation_id = self._conversation_id
            if conversation_id is None:
                started, _ = await get_or_start_conversation(
                    self.unit(), session_id=self._session_id, source=self._source
                )
                conversation_id = self._conversation_id = started.id
            try:
                async with self.unit() as uow:
                    register(uow, conversation_id)
            except ConversationNotFound:  # it was deleted since it was met
                self._conversation_id = None
            else:
                return

    async def _in_conversation(self, work: Callable[[int], Coroutine[Any, Any, T]]) -> T | None:
        """Do something in the conversation; None where there is none.

        One that was deleted since it was met may have been started anew.
        """
        met = self._conversation_id
        if met is not None:
            with suppress(ConversationNotFound):
                return await work(met)
        found = await find_conversation(self.unit(), session_id=self._session_id)
        self._conversation_id = None if found is None else found.id
        if found is not None:
            with suppress(ConversationNotFound):
                return await work(found.id)
        return None


# Writes, of as many messages as there are -----------------------------------------------------


def append(
    uow: AsyncUnitOfWork, conversation_id: int, drafts: Sequence[MessageDraft]
) -> list[Pending[list[Message]]]:
    """Register messages behind those that are there."""
    return [
        uow.messages.append(conversation_id, drafts[start : start + MAX_DRAFTS])
        for start in range(0, len(drafts), MAX_DRAFTS)
    ]


def replace(
    uow: AsyncUnitOfWork,
    conversation_id: int,
    drafts: Sequence[MessageDraft],
    *,
    expected_version: int | None = None,
) -> list[Pending[list[Message]]]:
    """Register messages in the place of all that are there; refused at another version."""
    first = uow.messages.replace(
        conversation_id, drafts[:MAX_DRAFTS], expected_version=expected_version
    )
    return [first, *append(uow, conversation_id, drafts[MAX_DRAFTS:])]


def as_it_was(message: Message) -> MessageDraft:
    """Return a message for storing it anew, with another id and time."""
    return MessageDraft(
        role=message.role,
        content=message.content,
        intent_type=message.intent_type,
        slots=message.slots,
        metadata=message.metadata,
    )


# Things of a framework, and messages ----------------------------------------------------------


def to_draft(key: str, role: Role, said: Json, item: JsonObject) -> MessageDraft:
    """Return the message that a thing of a framework becomes.

    The words of what is said are the content; the thing itself stands in the metadata, under the
    framework's key. One that a metadata cannot hold, for its size, its depth, a character or a
    number, is the content itself, as JSON.

    Raises: InvalidMessage for one of more than 10 MB.
    """
    with suppress(InvalidInput):
        draft = MessageDraft(role=role, content=words_of(said), metadata={key: item})
        if draft.metadata == {key: item}:  # some numbers are not the same in canonical form
            return draft
    content = json.dumps(item, ensure_ascii=False)
    if storable_text(content) != content:
        content = json.dumps(item)  # all escaped, which takes up to three times as much
    return MessageDraft(role=role, content=content, metadata={key: None})


def stored_item(key: str, message: Message) -> JsonObject | None:
    """Return the thing of a framework that a message is; None if it was not stored as one."""
    stored = message.metadata
    if stored is None or key not in stored:
        return None
    item: Json = stored[key]
    if item is None:
        with suppress(ValueError, RecursionError):  # of others, who have the same key
            item = json.loads(message.content)
    return item if isinstance(item, dict) else None


def understood(read: Callable[[Any], T], item: object, stored: Message | Conversation) -> T:
    """Return what a framework makes of a thing of its own that is stored.

    Raises: StoreMisconfigured where it makes nothing of it; its own error quotes what was said.
    """
    with suppress(ValueError):
        return read(item)
    what = "message" if isinstance(stored, Message) else "conversation"
    reason = f"the framework cannot read what stands in {what} {stored.id}: a newer version of it "
    raise StoreMisconfigured(reason=f"{reason}may have stored it, or others by the same key")


_TEXTS: Final = ("content", "output", "summary", "arguments", "text", "refusal")
"""Where the words of a thing, or of a part of it, may be."""


def words_of(said: Json) -> str:
    """Return what a thing says, or a part of it, as it can be stored."""
    if isinstance(said, str):
        return storable_text(said)
    if isinstance(said, dict):
        found = [words_of(said[key]) for key in _TEXTS if key in said]
    elif isinstance(said, list):
        found = [words_of(part) for part in said]
    else:
        return ""
    return "\n".join(filter(None, found))
