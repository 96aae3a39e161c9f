"""What a store in memory keeps, and what one unit of work sees of it.

Committed state is one layer; each open block of a unit lays its own changes over it. Reads look
through the unit's layers at what is committed at that moment, and never wait.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from datetime import UTC, datetime

from attrs import define, evolve, field, frozen

from ...domain.conversation import Conversation
from ...domain.imported import Session
from ...domain.json_object import copy_json
from ...domain.message import REDACTED_DIGEST, Message, MessageDraft
from .locks import Holder, Locks


@frozen(kw_only=True)
class Request:
    """A turn that was stored with a request_id."""

    digest: bytes
    position: int
    """Of its first message."""
    message_id: int
    """Of its first message."""
    count: int
    """How many messages it has."""


@define(eq=False)
class Stored:
    """A conversation with its messages, as one layer has it.

    `messages` and `requests` are shared by all versions of the conversation and only grow, until
    something is taken away, which begins new ones; a version sees as many messages as its
    message_count says.
    """

    conversation: Conversation
    messages: list[Message]
    requests: dict[str, Request]

    def shown(self) -> Conversation:
        """Return a copy of the conversation."""
        conversation = self.conversation
        return evolve(conversation, metadata=copy_json(conversation.metadata))

    def shown_messages(self, start: int = 0, stop: int | None = None) -> list[Message]:
        """Return copies of the messages between two offsets."""
        count = self.conversation.message_count
        end = count if stop is None else min(stop, count)
        return [show(message) for message in self.messages[max(start, 0) : end]]

    def with_messages(
        self,
        conversation: Conversation,
        drafts: Sequence[MessageDraft],
        ids: Sequence[int],
        times: Sequence[datetime],
    ) -> Stored:
        """Return the next version, with messages behind those of this one."""
        count = self.conversation.message_count
        del self.messages[count:]  # what a unit appended that was rolled back
        self.messages.extend(
            draft.stored(
                message_id=message_id,
                conversation_id=conversation.id,
                position=position,
                timestamp=time,
            )
            for position, (draft, message_id, time) in enumerate(
                zip(drafts, ids, times, strict=True), count + 1
            )
        )
        return Stored(conversation, self.messages, self.requests)

    def redacted(self, conversation: Conversation, position: int) -> Stored:
        """Return the next version, without the words there; what came before keeps them."""
        messages = self.messages[: self.conversation.message_count]
        messages[position - 1] = messages[position - 1].redacted()
        requests = {
            request_id: evolve(request, digest=REDACTED_DIGEST)
            if request.position <= position < request.position + request.count
            else request
            for request_id, request in self.requests.items()
            if self.has(request.position, request.message_id)
        }
        return Stored(conversation, messages, requests)

    def popped(self) -> Stored:
        """Return the next version, without the newest message; what came before keeps it."""
        before = self.conversation
        last = before.message_count
        requests = {
            request_id: evolve(request, digest=REDACTED_DIGEST, count=last - request.position)
            if request.position + request.count > last
            else request
            for request_id, request in self.requests.items()
            if request.position < last and self.has(request.position, request.message_id)
        }
        after = evolve(before, message_count=last - 1, version=before.version + 1)
        return Stored(after, self.messages[: last - 1], requests)

    def request(self, request_id: str) -> Request | None:
        """Return the turn that was stored with a request_id."""
        found = self.requests.get(request_id)
        if found is None or not self.has(found.position, found.message_id):
            return None
        return found

    def has(self, position: int, message_id: int) -> bool:
        """Whether this version has that message there."""
        count = self.conversation.message_count
        return position <= count and self.messages[position - 1].id == message_id


def show(message: Message) -> Message:
    """Return a copy of a message that shares nothing mutable with it."""
    if message.slots is None and message.metadata is None:
        return message
    return evolve(message, slots=copy_json(message.slots), metadata=copy_json(message.metadata))


@define(eq=False)
class Layer:
    """Changes: of a block, or all that were ever committed. None marks what is gone."""

    conversations: dict[int, Stored | None] = field(factory=dict[int, Stored | None])
    sessions: dict[Session, int | None] = field(factory=dict[Session, int | None])
    locks: list[Hashable] = field(factory=list[Hashable])
    inherited: list[Hashable] = field(factory=list[Hashable])
    """Locks of blocks inside it that are closed."""

    def absorb(self, other: Layer) -> None:
        """Take over the changes and locks of the layer above."""
        self.conversations.update(other.conversations)
        self.sessions.update(other.sessions)
        self.inherited += other.locks + other.inherited


class Database:
    """A store in memory: what is committed, who locks what, and the next id."""

    def __init__(self, clock: Callable[[], datetime] | None, lock_timeout: float | None) -> None:
        self.clock = clock or (lambda: datetime.now(UTC))
        self.locks = Locks(lock_timeout)
        self.conversations: dict[int, Stored] = {}
        self.sessions: dict[Session, int] = {}
        self.of_user: dict[str, set[int]] = {}
        self.message_places: dict[int, tuple[int, int]] = {}
        """Message id: conversation and position; true where that version has it there."""
        self._ids = itertools.count(1)

    def draw_ids(self, count: int) -> list[int]:
        """Give ids that were never given before."""
        return list(itertools.islice(self._ids, count))

    def commit(self, layer: Layer) -> None:
        """Make the changes of a layer what is committed."""
        for conversation_id, stored in layer.conversations.items():
            before = self.conversations.pop(conversation_id, None)
            if before is not None and stored is None:
                self._forget(before)
            elif before is not None and stored is not None:
                self._forget_messages(before, stored)
            if stored is not None:
                self.conversations[conversation_id] = stored
                owner = stored.conversation.user_id
                self.of_user.setdefault(owner, set()).add(conversation_id)
        for session, owner_id in layer.sessions.items():
            if owner_id is None:
                self.sessions.pop(session, None)
            else:
                self.sessions[session] = owner_id

    def _forget_messages(self, before: Stored, after: Stored) -> None:
        """Forget where messages were that a conversation has no more."""
        if after.messages is not before.messages:
            for message in before.messages:
                if not after.has(message.position, message.id):
                    self.message_places.pop(message.id, None)

    def _forget(self, stored: Stored) -> None:
        conversation = stored.conversation
        owned = self.of_user[conversation.user_id]
        owned.discard(conversation.id)
        if not owned:
            del self.of_user[conversation.user_id]
        for message in stored.messages:
            self.message_places.pop(message.id, None)


class View:
    """What one unit of work sees and changes: its layers over what is committed."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.layers: list[Layer] = []
        self._holder = Holder(self._has_changed)

    def find(self, conversation_id: int) -> Stored | None:
        """Return the conversation as the unit sees it now."""
        for layer in reversed(self.layers):
            if conversation_id in layer.conversations:
                return layer.conversations[conversation_id]
        return self.database.conversations.get(conversation_id)

    def find_session(self, session: Session) -> Stored | None:
        """Return the conversation of a session as the unit sees it now."""
        for layer in reversed(self.layers):
            if session in layer.sessions:
                found = layer.sessions[session]
                return None if found is None else self.find(found)
        committed = self.database.sessions.get(session)
        return None if committed is None else self.find(committed)

    def find_message(self, message_id: int) -> tuple[Stored, Message] | None:
        """Return a message and its conversation as the unit sees them now."""
        place = self.database.message_places.get(message_id)
        if place is None:
            return None
        conversation_id, position = place
        stored = self.find(conversation_id)
        if stored is None or not stored.has(position, message_id):
            return None
        return stored, show(stored.messages[position - 1])

    def all_of(self, user_id: str | None) -> Iterator[Stored]:
        """Return a user's conversations as the unit sees them now, or everybody's."""
        committed = (
            self.database.conversations
            if user_id is None
            else self.database.of_user.get(user_id, ())
        )
        ids = set(committed).union(*(layer.conversations for layer in self.layers))
        for conversation_id in ids:
            stored = self.find(conversation_id)
            if stored is not None and user_id in (None, stored.conversation.user_id):
                yield stored

    async def lock(self, conversation_id: int, *, for_request: bool = False) -> Stored | None:
        """Wait for a conversation, hold it to the end of the block, return its newest version.

        For a request it is held as by an inner block that is closed: it has a savepoint of its own.
        """
        key, layer = ("conversation", conversation_id), self.layers[-1]
        if await self.database.locks.acquire(key, self._holder):
            (layer.inherited if for_request else layer.locks).append(key)
        return self.find(conversation_id)

    def may_lock(self, conversation_id: int) -> bool:
        """Whether a conversation can be locked without waiting."""
        owner = self.database.locks.owner(("conversation", conversation_id))
        return owner in (None, self._holder)

    async def lock_session(self, session: Session, *, for_request: bool = False) -> Stored | None:
        """Wait for the right to start a session; return its conversation if there is one.

        As a unique index does: whoever finds a conversation waits for those who are changing it,
        and holds nothing meanwhile; whoever finds none holds the session to the end of the block.
        """
        locks, key = self.database.locks, ("session", session)
        while True:
            is_new = await locks.acquire(key, self._holder)
            found = self.find_session(session)
            if found is None:
                if is_new:
                    layer = self.layers[-1]
                    (layer.inherited if for_request else layer.locks).append(key)
                return None
            if is_new:
                locks.release(key)
            row = ("conversation", found.conversation.id)
            owner = locks.owner(row)
            is_changed = owner is not None and owner.has_changed(found.conversation.id)
            if is_changed and await locks.acquire(row, self._holder):
                locks.release(row)
            found = self.find_session(session)
            if found is not None:
                return found

    def _has_changed(self, conversation_id: int) -> bool:
        return any(conversation_id in layer.conversations for layer in self.layers)

    def put(self, stored: Stored) -> None:
        """Change a conversation, or add one; its lock is held."""
        conversation = stored.conversation
        before = self.find(conversation.id)
        is_grown = before is not None and before.messages is stored.messages
        known = before.conversation.message_count if before is not None and is_grown else 0
        for message in stored.messages[known:]:
            self.database.message_places[message.id] = (conversation.id, message.position)
        self.layers[-1].conversations[conversation.id] = stored
        self.layers[-1].sessions[(conversation.user_id, conversation.session_id)] = conversation.id

    def drop(self, stored: Stored) -> None:
        """Remove a conversation; its lock is held."""
        conversation = stored.conversation
        self.layers[-1].conversations[conversation.id] = None
        self.layers[-1].sessions[(conversation.user_id, conversation.session_id)] = None

    def release(self, layer: Layer) -> None:
        """Let go of the locks of a layer, and end the unit if it was the last."""
        locks = self.database.locks
        for key in layer.locks:
            locks.release(key)
        for key in layer.inherited:
            (locks.abandon if self.layers else locks.release)(key)
        layer.locks.clear()
        layer.inherited.clear()
        if not self.layers:
            locks.end(self._holder)
