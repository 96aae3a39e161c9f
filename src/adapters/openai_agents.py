"""Sessions of the OpenAI Agents SDK that are conversations of a store.

    session = AgentsSession("s-1", store=store, user_id="ada")
    await Runner.run(agent, "Hello", session=session)

Each item is one message. What it says is the content, so that people and queries can read it; the
item itself stands in the metadata, under "openai_agents": see docs/how-to/openai-agents.md.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from itertools import dropwhile
from typing import Any, Final, NamedTuple, TypeAlias, cast

from .extra import Extra

with Extra("openai-agents"):
    from agents.items import TResponseInputItem
    from agents.memory import SessionSettings
    from agents.memory.session_settings import coerce_session_settings, resolve_session_limit

from ..domain.conversation import Conversation
from ..domain.errors import ConcurrentUpdate, ConversationNotFound
from ..domain.message import Message, MessageDraft, Role
from .history import History, as_it_was, replace, stored_item, to_draft, words_of
from .store_thread import Store, StoreThread

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


_IsExpired: TypeAlias = Callable[[TResponseInputItem], bool]


class _Snapshot(NamedTuple):
    """What the SDK's compaction works on: the newest items, as they stood at one moment."""

    items: list[TResponseInputItem]
    complete: bool
    """Whether these are all."""
    replace_suffix: Callable[[int, list[TResponseInputItem]], Awaitable[bool]]
    """Puts items in the place of those from an index on; False where something came meanwhile."""


class AgentsSession:
    """A session of the SDK: one conversation of one user, started by the first item.

    It may be used by many runs at the same time: the items of one `add_items` stand side by side,
    and nothing is lost or doubled. Where the answer to a pop or a clearing is lost, that raises
    CommitOutcomeUnknown: done again, it could take what another run has added.
    """

    session_id: str
    """The session_id of the conversation."""
    session_settings: SessionSettings | None
    """Those of the SDK: how many items `get_items` gives at most."""

    def __init__(
        self,
        session_id: str,
        *,
        store: Store | StoreThread,
        user_id: str,
        session_settings: SessionSettings | dict[str, Any] | None = None,
    ) -> None:
        """Make a session; nothing is sent.

        Args:
            session_id: the session_id of the conversation, 1..255 characters.
            store: an open store, for use in the event loop in which it was opened; or a
                StoreThread, for use from any thread and any event loop.
            user_id: whose session it is.
            session_settings: those of the SDK: how many items get_items gives at most.
        """
        self.session_id = session_id
        self.session_settings = coerce_session_settings(session_settings or SessionSettings())
        self._history = History(session_id, store=store, user_id=user_id, source=SOURCE)

    async def get_items(self, limit: int | None = None) -> list[TResponseInputItem]:
        """Return the newest items, oldest of them first; without a limit all of them.

        They are those of one moment, whatever others clear meanwhile.

        Round trips: 1, and 1 for each further 999 items; 1 more where the session did not meet its
        conversation yet.
        """
        most = resolve_session_limit(limit, self.session_settings)
        return [to_item(message) for message in await self._history.do(self._history.read(most))]

    async def add_items(self, items: list[TResponseInputItem]) -> None:
        """Store items behind those that are there, all of them or none.

        Raises: ConversationNotAcceptingMessages where the conversation was closed or archived;
        InvalidMessage for an item of more than 10 MB; TypeError for one that is no JSON.

        Round trips: 1; 1 more where the session did not meet its conversation yet.
        """
        await self._history.do(self._history.add(list(map(_draft_of, items))))

    async def pop_item(self) -> TResponseInputItem | None:
        """Remove the newest item and return it; None if there is none. Round trips: 1."""
        popped = await self._history.do(self._history.pop())
        return None if popped is None else to_item(popped)

    async def clear_session(self) -> None:
        """Remove all items; the conversation stays, and goes on with the next. Round trips: 1."""
        await self._history.do(self._history.clear())

    # The SDK's compaction asks a session whether it has these two, and replaces items by them
    # rather than by clearing and adding, between which others add, and a process may end. An heir
    # may store items in another way, so it is asked for what it has itself.

    async def _get_compaction_snapshot(
        self, limit: int, *, prune_prefix: _IsExpired | None = None
    ) -> _Snapshot | None:
        if type(self) is not AgentsSession:
            return None
        return await self._history.do(self._snapshot(limit, prune_prefix))

    async def _atomic_replace_items(self, items: list[TResponseInputItem]) -> bool:
        if type(self) is not AgentsSession:
            return False
        await self._history.do(self._history.put(list(map(_draft_of, items))))
        return True

    async def _snapshot(self, limit: int, is_expired: _IsExpired | None) -> _Snapshot | None:
        async def read(conversation: Conversation) -> tuple[Conversation, list[Message]]:
            return conversation, await self._history.after(conversation.id)

        found = await self._history.change(read)
        if found is None:
            return None
        conversation, messages = found
        shown = max(len(messages) - limit, 0)

        def has_expired(message: Message) -> bool:
            return is_expired is not None and is_expired(to_item(message))

        async def put(start: int, items: list[TResponseInputItem]) -> bool:
            kept = dropwhile(has_expired, messages[: shown + start])
            drafts = [*map(as_it_was, kept), *map(_draft_of, items)]
            try:
                async with self._history.unit() as uow:
                    replace(uow, conversation.id, drafts, expected_version=conversation.version)
            except (ConcurrentUpdate, ConversationNotFound):
                return False
            return True

        async def replace_suffix(start: int, items: list[TResponseInputItem]) -> bool:
            return await self._history.do(put(start, items))

        return _Snapshot(list(map(to_item, messages[shown:])), not shown, replace_suffix)


def from_item(item: Mapping[str, Any]) -> MessageDraft:
    """Return the message that an item becomes; one that is only a role and words is just these."""
    plain: dict[str, Any] = json.loads(json.dumps(item))
    role = _role(plain)
    if role is not Role.TOOL and plain == {"role": role.value, "content": words_of(plain)}:
        return MessageDraft(role=role, content=plain["content"])
    return to_draft(KEY, role, plain, plain)


def _draft_of(item: TResponseInputItem) -> MessageDraft:
    return from_item(cast("Mapping[str, Any]", item))


def to_item(message: Message) -> TResponseInputItem:
    """Return the item that a message is; one that no session stored is its role and its words."""
    item = stored_item(KEY, message)
    if item is None:
        role = Role.ASSISTANT if message.role is Role.TOOL else message.role
        item = {"role": role.value, "content": message.content}
    return cast("TResponseInputItem", item)


def _role(item: Mapping[str, Any]) -> Role:
    """Return who speaks in an item; a call is the assistant's, its output a tool's."""
    role = item.get("role")
    if isinstance(role, str) and role in _ROLES:
        return _ROLES[role]
    return Role.TOOL if str(item.get("type", "")).endswith("_output") else Role.ASSISTANT
