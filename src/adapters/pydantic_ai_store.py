"""The ConversationStore of Pydantic AI, whose conversations are those of a store.

    store = PydanticAIStore(store=store, user_id="ada")
    conversation = await store.load("s-1") or Conversation(conversation_id="s-1")
    await store.save(await agent.run("Hello", conversation=conversation))

Each entry is one message; a record is in the metadata of its conversation, under "pydantic_ai": see
docs/how-to/pydantic-ai.md.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias, cast

from .extra import Extra

with Extra("pydantic-ai"):
    from pydantic import ConfigDict, TypeAdapter
    from pydantic_ai.conversation_store import (
        ConversationConflict,
        ConversationEntry,
        ConversationRecord,
        ConversationStore,
    )

from ..domain.conversation import Conversation, ConversationChanges
from ..domain.errors import ConcurrentUpdate, ConversationNotFound, InvalidInput
from ..domain.json_object import JsonObject
from ..domain.message import Message, MessageDraft
from ..domain.page import MAX_LIMIT
from ..service_layer.conversations import (
    find_conversation,
    get_or_start_conversation,
)
from ..service_layer.messages import latest_messages
from .history import Owner, append, stored_item, understood
from .pydantic_ai import KEY, SOURCE, draft_of, to_items, to_model_message
from .store_thread import Store, StoreThread

_Link: TypeAlias = tuple[str, str | None]
"""The id of an entry, and of the one before it."""

_MOST_MET: Final = 10_000
"""Of so many entries it is known in which conversation they are."""

_RECORDS: Final = TypeAdapter(
    list[ConversationRecord], config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
)


class PydanticAIStore(ConversationStore):
    """A store of Pydantic AI: each conversation_id is a session_id of one user.

    Of those who save a conversation at the same time one does, and the others get a
    ConversationConflict: load it again. What a run added is stored together with the record, or not
    at all. A fork has copies of the entries that it shares, with the same ids; so deleting a
    conversation erases all its messages, and nothing of another.

    A conversation that was closed or archived takes no new entries:
    ConversationNotAcceptingMessages.
    """

    def __init__(self, *, store: Store | StoreThread, user_id: str) -> None:
        """Make a store; nothing is sent.

        Args:
            store: an open store, for use in the event loop in which it was opened; or a
                StoreThread, for use from any thread and any event loop.
            user_id: whose conversations they are. A scope is within them.
        """
        self._log = _Log(store=store, user_id=user_id)

    async def read_record(self, conversation_id: str) -> ConversationRecord | None:
        """Return the record of a conversation; None if there is none. Round trips: 1."""
        return await self._log.do(self._log.read_record(conversation_id))

    async def read_records(
        self, *, scope: str | None = None, limit: int | None = None
    ) -> Sequence[ConversationRecord]:
        """Return the records of a scope, or all, the one saved last first.

        Round trips: 1; of more than 1,000 conversations of the user 1 for each 1,000 and 1 more.
        """
        return await self._log.do(self._log.read_records(scope, limit))

    async def write_record(
        self,
        record: ConversationRecord,
        *,
        new_entries: Sequence[ConversationEntry] = (),
        expected_revision: str | None,
    ) -> None:
        """Store a record and new entries together, in the place of the record of a revision.

        Raises: ConversationConflict for another revision, and for a fork whose entries are gone;
        InvalidMessage for an entry of more than 10 MB; InvalidConversation for a record of more
        than 1 MB.

        Round trips: 2; for a fork as many more as it takes to read what it shares.
        """
        await self._log.do(self._log.write(record, new_entries, expected_revision))

    async def delete_record(self, conversation_id: str, *, expected_revision: str) -> None:
        """Delete a conversation with all its entries, also of branches that it left.

        Raises: ConversationConflict for another revision. Round trips: 2.
        """
        await self._log.do(self._log.delete(conversation_id, expected_revision))

    async def read_entry(self, entry_id: str) -> ConversationEntry:
        """Return an entry. Raises LookupError if there is none. Round trips: as read_history."""
        [entry] = await self.read_history(entry_id, limit=1)
        return entry

    async def read_history(
        self, head_id: str | None, *, limit: int | None = None
    ) -> list[ConversationEntry]:
        """Return the entries up to one, oldest first; or only the last of them.

        Raises: LookupError if there is no such entry.

        Round trips: 1 for every 1,000 messages that are read, from the newest on. An entry of a
        conversation that this store object did not meet lately is looked for in all of the user's.
        """
        if head_id is None or limit == 0:
            return []
        return await self._log.do(self._log.read_history(head_id, limit))


class _Log(Owner):
    """The conversations of one user, as records and entries."""

    def __init__(self, *, store: Store | StoreThread, user_id: str) -> None:
        super().__init__(store=store, user_id=user_id, source=SOURCE)
        self._met: dict[str, int] = {}
        """The ids of conversations, by those of entries; who was met last is last."""

    async def read_record(self, session_id: str) -> ConversationRecord | None:
        """Return the record of a conversation."""
        found = await find_conversation(self.unit(), session_id=session_id)
        return None if found is None else self._record_of(found)

    async def read_records(self, scope: str | None, limit: int | None) -> list[ConversationRecord]:
        """Return the records of a scope, or all, the one saved last first."""
        found = [self._record_of(each) for each in await self.conversations()]
        records = [
            record
            for record in found
            if record is not None and (scope is None or record.scope == scope)
        ]
        return sorted(records, key=lambda record: record.updated_at, reverse=True)[:limit]

    async def write(
        self,
        record: ConversationRecord,
        new_entries: Sequence[ConversationEntry],
        expected_revision: str | None,
    ) -> None:
        """Store a record and entries in the place of the record of a revision."""
        entries = list(new_entries)
        if expected_revision is None:
            entries = await self._shared(record, entries) + entries
        drafts = _drafts_of(entries)
        ConversationChanges(metadata=_with_record(None, record))  # refuses one that is too large
        while True:
            found = await self._found(record.conversation_id, expected_revision)
            changes = ConversationChanges(metadata=_with_record(found, record))
            with suppress(ConcurrentUpdate, ConversationNotFound):  # changed since it was found
                async with self.unit() as uow:
                    version = found.version
                    uow.conversations.update(found.id, changes, expected_version=version)
                    append(uow, found.id, drafts)
                self._meet(record, found.id)
                return

    async def _found(self, session_id: str, expected_revision: str | None) -> Conversation:
        """Return the conversation of a record of a revision; without a record it is started."""
        found: Conversation | None
        if expected_revision is None:
            found, _ = await get_or_start_conversation(
                self.unit(), session_id=session_id, source=SOURCE
            )
        else:
            found = await find_conversation(self.unit(), session_id=session_id)
        stored = None if found is None else self._record_of(found)
        revision = None if stored is None else stored.revision
        if found is None or revision != expected_revision:
            raise ConversationConflict(session_id)
        return found

    async def _shared(
        self, record: ConversationRecord, entries: Sequence[ConversationEntry]
    ) -> list[ConversationEntry]:
        """Return the entries of another conversation that a new one begins with."""
        first = entries[0].parent_id if entries else record.head_id
        if first is None:
            return []
        try:
            return await self.read_history(first, None)
        except LookupError:
            raise ConversationConflict(record.conversation_id) from None

    async def delete(self, session_id: str, expected_revision: str) -> None:
        """Delete the conversation of a record of a revision."""
        while True:
            found = await self._found(session_id, expected_revision)
            changes = ConversationChanges(metadata=None)
            with suppress(ConcurrentUpdate, ConversationNotFound):
                async with self.unit() as uow:
                    version = found.version
                    uow.conversations.update(found.id, changes, expected_version=version)
                    uow.conversations.remove(found.id)
                return

    async def read_history(self, head_id: str, limit: int | None) -> list[ConversationEntry]:
        """Return the entries up to one, or the last of them. Raises: LookupError."""
        met = self._met.get(head_id)
        if met is not None:
            with suppress(ConversationNotFound, LookupError):
                return await self._path(met, head_id, limit)
            with suppress(ConversationNotFound, LookupError):
                path = _mended(await self.after(met), head_id)
                return path if limit is None else path[-limit:]
        for conversation in await self.conversations():
            if conversation.id != met:
                with suppress(ConversationNotFound, LookupError):
                    return await self._path(conversation.id, head_id, limit)
        raise LookupError(head_id)

    async def _path(
        self, conversation_id: int, head_id: str, limit: int | None
    ) -> list[ConversationEntry]:
        """Return the entries up to one; who comes before stands before, so read from the end on."""
        path: list[ConversationEntry] = []
        wanted: str | None = head_id
        before: int | None = None
        size = min(limit or MAX_LIMIT, MAX_LIMIT)
        while wanted is not None and len(path) != limit:
            page = await latest_messages(
                self.unit(), conversation_id=conversation_id, limit=size, before=before
            )
            if not page:
                raise LookupError(wanted)
            before, size = page[0].position, MAX_LIMIT
            for message in reversed(page):
                link = _link_of(message)
                if link is not None and link[0] == wanted and len(path) != limit:
                    path.append(_entry_of(message, *link))
                    wanted = link[1]
        return path[::-1]

    def _record_of(self, conversation: Conversation) -> ConversationRecord | None:
        stored: Any = (conversation.metadata or {}).get(KEY)
        if stored is None:
            return None
        plain = json.loads(stored) if isinstance(stored, str) else stored
        [record] = understood(_RECORDS.validate_python, [plain], conversation)
        self._meet(record, conversation.id)
        return record

    def _meet(self, record: ConversationRecord, conversation_id: int) -> None:
        """Remember where the entries that a record names are."""
        for entry_id in filter(None, (*record.branches, record.head_id)):
            self._met.pop(entry_id, None)
            self._met[entry_id] = conversation_id
        while len(self._met) > _MOST_MET:
            del self._met[next(iter(self._met))]


def _with_record(conversation: Conversation | None, record: ConversationRecord) -> JsonObject:
    """Return the metadata of a conversation with a record, beside what else it holds.

    A record that is not the same in a metadata stands there as a text.
    """
    [plain] = cast("list[JsonObject]", _RECORDS.dump_python([record], mode="json"))
    others = (conversation and conversation.metadata) or {}
    with suppress(InvalidInput):
        metadata = ConversationChanges(metadata={**others, KEY: plain}).metadata
        if isinstance(metadata, dict) and metadata[KEY] == plain:
            return metadata
    return {**others, KEY: json.dumps(plain)}


def _drafts_of(entries: Sequence[ConversationEntry]) -> list[MessageDraft]:
    items = to_items([entry.message for entry in entries])
    for item, entry in zip(items, entries, strict=True):
        item["entry"] = {"id": entry.id, "parent_id": entry.parent_id}
    return list(map(draft_of, items))


def _link_of(message: Message) -> _Link | None:
    """Return the id of the entry that a message is, and of the one before; None if it is none."""
    item = stored_item(KEY, message)
    entry: Any = None if item is None else item.get("entry")
    return None if entry is None else (entry["id"], entry["parent_id"])


def _entry_of(message: Message, entry_id: str, parent_id: str | None) -> ConversationEntry:
    return ConversationEntry(id=entry_id, parent_id=parent_id, message=to_model_message(message))


def _mended(messages: Sequence[Message], head_id: str) -> list[ConversationEntry]:
    """Return the entries up to one, where some were redacted and do not say which they are.

    Such a one is taken to follow the message before it. Raises: LookupError.
    """
    links = [_link_of(message) for message in messages]
    places = {link[0]: place for place, link in enumerate(links) if link is not None}
    unlinked = [place for place, link in enumerate(links) if link is None]
    path: list[ConversationEntry] = []
    wanted: str | None = head_id
    end = len(messages)
    while wanted is not None:
        end = places.get(wanted, max((place for place in unlinked if place < end), default=-1))
        if end < 0:
            raise LookupError(wanted)
        link = links[end] or (wanted, _before(messages, links, end))
        path.append(_entry_of(messages[end], *link))
        wanted = link[1]
    return path[::-1]


def _before(messages: Sequence[Message], links: Sequence[_Link | None], place: int) -> str | None:
    """Return the id of the entry before a place; of one that says none, a name for it."""
    if place == 0:
        return None
    link = links[place - 1]
    return f"message {messages[place - 1].id}" if link is None else link[0]
