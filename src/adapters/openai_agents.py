"""Sessions of the OpenAI Agents SDK that are conversations of a store.

    session = AgentsSession("s-1", store=store, user_id="ada")
    await Runner.run(agent, "Hello", session=session)

Each item is one message. What it says is the content, so that people and queries can read it; the
item itself stands in the metadata, under "openai_agents": see docs/how-to/openai-agents.md.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeAlias, TypeVar, cast

from agents.items import TResponseInputItem
from agents.memory import SessionSettings
from agents.memory.session_settings import coerce_session_settings, resolve_session_limit

from ..domain.errors import ConversationNotFound, InvalidInput, StoreClosed
from ..domain.message import MAX_DRAFTS, Message, MessageDraft, Role
from ..domain.page import MAX_LIMIT
from ..domain.text import storable_text
from ..service_layer.conversations import find_conversation, get_or_start_conversation
from ..service_layer.messages import (
    latest_messages,
    messages_after,
    pop_message,
    replace_messages,
)
from ..service_layer.unit_of_work import AsyncUnitOfWork

T = TypeVar("T")

_Json: TypeAlias = "dict[str, _Json] | list[_Json] | str | float | bool | None"

KEY: Final = "openai_agents"
"""The key of a message's metadata under which its item stands."""
SOURCE: Final = "openai-agents"
"""The source of a conversation that a session starts."""

_ROLES: Final = {
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
}
_TEXTS: Final = ("content", "output", "summary", "arguments", "text", "refusal")
"""Where the words of an item, or of a part of it, may be."""


class Store(Protocol):
    """What a session needs of a store; ConversationStore has it."""

    def unit_of_work(self, *, user_id: str | None = None) -> AsyncUnitOfWork:
        """Return a unit of work that acts for one user."""
        ...


class AgentsSession:
    """A session of the SDK: one conversation of one user, started by the first item.

    It may be used by many runs at the same time: the items of one `add_items` stand side by side,
    and nothing is lost or doubled. Where the answer to a pop or a clearing is lost, that raises
    CommitOutcomeUnknown: done again, it could take what another run has added.

    A store belongs to the event loop in which it was opened. Called from another loop, a session
    has its work done in the store's, which has to run in another thread: see StoreThread.
    """

    session_id: str
    session_settings: SessionSettings | None

    def __init__(
        self,
        session_id: str,
        *,
        store: Store,
        user_id: str,
        session_settings: SessionSettings | dict[str, Any] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Make a session; nothing is sent.

        Args:
            session_id: the session_id of the conversation, 1..255 characters.
            store: an open store.
            user_id: whose session it is.
            session_settings: those of the SDK: how many items get_items gives at most.
            loop: the event loop in which the store was opened; None: the one that calls.
        """
        self.session_id = session_id
        self.session_settings = coerce_session_settings(session_settings or SessionSettings())
        self._store = store
        self._user_id = user_id
        self._loop = loop
        self._conversation_id: int | None = None

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the newest items, oldest of them first; without a limit all of them.

        Round trips: 1, and 1 for each further 1,000 items; 1 more where the session did not meet
        its conversation yet.
        """
        most = resolve_session_limit(limit, self.session_settings)
        messages = await self._at_home(self._read(most))
        return [to_item(message) for message in messages]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Store items behind those that are there, all of them or none.

        Raises: ConversationNotAcceptingMessages where the conversation was closed or archived.

        Round trips: 1; 1 more where the session did not meet its conversation yet.
        """
        drafts = [to_draft(cast("Mapping[str, Any]", item)) for item in items]
        if drafts:
            await self._at_home(self._add(drafts))

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item and return it; None if there is none. Round trips: 1."""
        popped = await self._at_home(self._pop())
        return None if popped is None else to_item(popped)

    async def clear_session(self) -> None:
        """Remove all items; the conversation stays, and goes on with the next. Round trips: 1."""
        await self._at_home(self._clear())

    # In the loop of the store -----------------------------------------------------------------

    async def _read(self, most: int | None) -> list[Message]:
        if most is not None and most <= 0:
            return []

        async def read(conversation_id: int) -> list[Message]:
            if most is None:
                return await self._all(conversation_id)
            return await self._newest(conversation_id, most)

        return await self._in_conversation(read) or []

    async def _all(self, conversation_id: int) -> list[Message]:
        messages: list[Message] = []
        while True:
            page = await messages_after(
                self._unit(),
                conversation_id=conversation_id,
                position=len(messages),
                limit=MAX_LIMIT,
            )
            messages += page
            if len(page) < MAX_LIMIT:
                return messages

    async def _newest(self, conversation_id: int, most: int) -> list[Message]:
        messages: list[Message] = []
        while True:
            size = min(most - len(messages), MAX_LIMIT)
            before = messages[0].position if messages else None
            page = await latest_messages(
                self._unit(), conversation_id=conversation_id, limit=size, before=before
            )
            messages = page + messages
            if len(page) < size or len(messages) == most:
                return messages

    async def _add(self, drafts: Sequence[MessageDraft]) -> None:
        while True:
            conversation_id = self._conversation_id
            if conversation_id is None:
                started, _ = await get_or_start_conversation(
                    self._unit(), session_id=self.session_id, source=SOURCE
                )
                conversation_id = self._conversation_id = started.id
            try:
                async with self._unit() as uow:
                    for start in range(0, len(drafts), MAX_DRAFTS):
                        uow.messages.append(conversation_id, drafts[start : start + MAX_DRAFTS])
            except ConversationNotFound:  # it was deleted since it was met
                self._conversation_id = None
            else:
                return

    async def _pop(self) -> Message | None:
        return await self._in_conversation(
            lambda conversation_id: pop_message(self._unit(), conversation_id=conversation_id)
        )

    async def _clear(self) -> None:
        await self._in_conversation(
            lambda conversation_id: replace_messages(
                self._unit(), conversation_id=conversation_id, drafts=[]
            )
        )

    async def _in_conversation(self, work: Callable[[int], Coroutine[Any, Any, T]]) -> T | None:
        """Do something in the conversation; None where there is none.

        One that was deleted since it was met may have been started anew.
        """
        met = self._conversation_id
        if met is not None:
            with suppress(ConversationNotFound):
                return await work(met)
        found = await find_conversation(self._unit(), session_id=self.session_id)
        self._conversation_id = None if found is None else found.id
        if found is not None:
            with suppress(ConversationNotFound):
                return await work(found.id)
        return None

    def _unit(self) -> AsyncUnitOfWork:
        return self._store.unit_of_work(user_id=self._user_id)

    async def _at_home(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work in the loop of the store; who is cancelled cancels it there."""
        if self._loop is None or self._loop is asyncio.get_running_loop():
            return await work
        if not self._loop.is_running():
            work.close()
            raise StoreClosed(reason="the event loop of the session's store does not run")
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


class StoreThread:
    """A store in a thread and an event loop of its own, for programs without one, or with several.

        with StoreThread(ConversationStore.connect(dsn)) as thread:
            session = thread.session("s-1", user_id="ada")
            Runner.run_sync(agent, "Hello", session=session)

    Left, it closes the store and ends the thread.
    """

    def __init__(self, store: AbstractAsyncContextManager[Store]) -> None:
        """Take a store that is not opened yet."""
        self._opening = store
        self._store: Store | None = None

    def __enter__(self) -> Self:
        """Start the thread and open the store, once. Raises what opening it raises."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="conversation-store", daemon=True
        )
        self._thread.start()
        try:
            self._store = self._call(self._opening.__aenter__())
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the store and end the thread."""
        try:
            self._call(self._opening.__aexit__(exc_type, exc, traceback))
        finally:
            self._end()

    def session(
        self,
        session_id: str,
        *,
        user_id: str,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> AgentsSession:
        """Return a session, for use from any thread and any event loop. Raises: StoreClosed."""
        if self._store is None:
            raise StoreClosed(reason="the thread of the store is not entered")
        return AgentsSession(
            session_id,
            store=self._store,
            user_id=user_id,
            session_settings=session_settings,
            loop=self._loop,
        )

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._store = None
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


# Items and messages ---------------------------------------------------------------------------


def to_draft(item: Mapping[str, Any]) -> MessageDraft:
    """Return the message that an item becomes.

    An item that is only a role and words needs no metadata. One that a metadata cannot hold, for
    its size, its depth, a character or a number, is the content itself, as JSON.

    Raises: InvalidMessage for one of more than 10 MB; TypeError for what is no JSON.
    """
    text = json.dumps(item)  # ASCII, so it can be stored whatever it holds
    plain: dict[str, Any] = json.loads(text)
    role, said = _role(plain), storable_text(_words(plain))
    if plain == {"role": role.value, "content": said} and role is not Role.TOOL:
        return MessageDraft(role=role, content=said)
    with suppress(InvalidInput):
        draft = MessageDraft(role=role, content=said, metadata={KEY: plain})
        if draft.metadata == {KEY: plain}:  # some numbers are not the same in canonical form
            return draft
    return MessageDraft(role=role, content=text, metadata={KEY: None})


def to_item(message: Message) -> TResponseInputItem:
    """Return the item that a message is; one that no session stored is its role and its words."""
    stored = message.metadata
    if stored is not None and KEY in stored:
        item = stored[KEY]
        return cast("TResponseInputItem", json.loads(message.content) if item is None else item)
    role = Role.ASSISTANT if message.role is Role.TOOL else message.role
    return cast("TResponseInputItem", {"role": role.value, "content": message.content})


def _role(item: Mapping[str, Any]) -> Role:
    """Return who speaks in an item; a call is the assistant's, its output a tool's."""
    role = item.get("role")
    if isinstance(role, str) and role in _ROLES:
        return _ROLES[role]
    return Role.TOOL if str(item.get("type", "")).endswith("_output") else Role.ASSISTANT


def _words(said: _Json) -> str:
    """Return what an item says, or a part of it."""
    if isinstance(said, str):
        return said
    if isinstance(said, dict):
        found = [_words(said[key]) for key in _TEXTS if key in said]
    elif isinstance(said, list):
        found = [_words(part) for part in said]
    else:
        return ""
    return "\n".join(filter(None, found))
