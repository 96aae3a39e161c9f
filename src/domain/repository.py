"""The ports: what the domain asks of whoever keeps conversations and messages.

Writes are plain calls: they validate at once, register with the unit of work, and return a
Pending, the handle of what will be. Reads are async and see the unit's own writes. An adapter
implements the methods whose names start with an underscore and nothing else, so every adapter
validates, registers and scopes alike.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol, TypeAlias

from attrs import evolve

from .conversation import (
    Conversation,
    ConversationChanges,
    NewConversation,
    Status,
    check_integer,
)
from .errors import InvalidConversation, InvalidMessage
from .imported import ImportedConversation
from .message import Message, MessageDraft, Turn, check_drafts
from .page import ConversationCursor, ConversationPage, check_limit
from .receipt import ImportReceipt
from .record import ConversationRecord
from .removing import RemovingRepository
from .text import check_name
from .unit import Pending, Repository, Write, check_conversation_id

OnDuplicate: TypeAlias = Literal["error", "skip"]
"""What an import does with a session that exists: refuse the batch, or leave the record out."""


class ExportedRecords(Protocol):
    """Records that are read as they are asked for."""

    def __aiter__(self) -> AsyncIterator[ConversationRecord]: ...

    async def __anext__(self) -> ConversationRecord: ...

    async def aclose(self) -> None:
        """Stop reading, and give back what that holds; any task may do so."""


def _version(value: int | None) -> int | None:
    if value is None:
        return None
    return check_integer(value, "expected_version", InvalidConversation)


def _request_id(value: str | None) -> str | None:
    return None if value is None else check_name(value, "request_id", InvalidMessage)


def _request_of_start(value: str | None, new: NewConversation) -> str | None:
    """Return the request_id of a start; it is kept with the first message, so there must be one."""
    request_id = _request_id(value)
    if request_id is not None and not new.drafts:
        reason = (
            "is kept with the first message, so it needs drafts; without drafts leave it out: "
            "get_or_start_conversation can be called again as it is"
        )
        raise InvalidMessage(field="request_id", reason=reason)
    return request_id


class ConversationRepository(RemovingRepository, ABC):
    """The conversations."""

    def add(
        self,
        conversation: NewConversation,
        drafts: Sequence[MessageDraft] = (),
        *,
        request_id: str | None = None,
    ) -> Pending[tuple[Conversation, list[Message]]]:
        """Register a new conversation with its first messages.

        Errors, the first that holds: RequestConflict, DuplicateSession. A request_id that this
        conversation was started with before, with the same content, gives the conversation as it
        is now with the messages stored then, and changes nothing.
        """
        new = self._owned(conversation, drafts)
        return self._unit.register(self._add(new, _request_of_start(request_id, new)))

    def get_or_add(
        self,
        conversation: NewConversation,
        drafts: Sequence[MessageDraft] = (),
        *,
        request_id: str | None = None,
    ) -> Pending[tuple[Conversation, bool]]:
        """Register a new conversation unless the user has one of that session already.

        Gives the conversation, and whether it was created, by this call or by an earlier one with
        this request_id. For one that was there neither the drafts nor anything else of
        `conversation` is stored. Errors: RequestConflict.
        """
        new = self._owned(conversation, drafts)
        return self._unit.register(self._get_or_add(new, _request_of_start(request_id, new)))

    async def get(self, conversation_id: int) -> Conversation:
        """Read one conversation. Errors: ConversationNotFound."""
        conversation_id = check_conversation_id(conversation_id)
        await self._unit.before_read()
        return await self._get(conversation_id)

    async def find(self, session_id: str, user_id: str | None = None) -> Conversation | None:
        """Read the conversation of a session; None if the user has none."""
        owner = self._owner(user_id)
        session_id = check_name(session_id, "session_id", InvalidConversation)
        await self._unit.before_read()
        return await self._find(owner, session_id)

    async def list_page(
        self,
        user_id: str | None = None,
        *,
        status: Status | None = None,
        limit: int = 20,
        after: str | None = None,
    ) -> ConversationPage:
        """Read a page of a user's conversations, the most recent activity first.

        Errors: InvalidLimit, InvalidCursor.
        """
        owner = self._owner(user_id)
        limit = check_limit(limit)
        start = None if after is None else ConversationCursor.decode(after, owner, status)
        await self._unit.before_read()
        found = await self._list_page(owner, status, limit + 1, start)
        cursor = None
        if len(found) > limit:
            del found[limit:]
            last = ConversationCursor(
                last_activity=found[-1].last_activity, conversation_id=found[-1].id
            )
            cursor = last.encode(owner, status)
        return ConversationPage(conversations=found, next_cursor=cursor)

    def update(
        self,
        conversation_id: int,
        changes: ConversationChanges,
        *,
        expected_version: int | None = None,
    ) -> Pending[Conversation]:
        """Register new values for some columns. Errors: ConversationNotFound, ConcurrentUpdate."""
        conversation_id = check_conversation_id(conversation_id)
        version = _version(expected_version)
        return self._unit.register(self._update(conversation_id, evolve(changes), version))

    def set_status(
        self, conversation_id: int, target: Status, *, expected_version: int | None = None
    ) -> Pending[Conversation]:
        """Register a change of status; already there is success without change.

        Errors: ConversationNotFound, InvalidTransition, ConcurrentUpdate.
        """
        conversation_id = check_conversation_id(conversation_id)
        version = _version(expected_version)
        return self._unit.register(self._set_status(conversation_id, target, version))

    def remove(self, conversation_id: int) -> Pending[None]:
        """Register the removal of a conversation with its messages; gone already is success.

        However long it is, it goes in one statement; `remove_part` takes it away in batches.
        """
        return self._unit.register(self._remove(check_conversation_id(conversation_id)))

    async def add_imported(
        self, batch: Sequence[ImportedConversation], on_duplicate: OnDuplicate
    ) -> ImportReceipt:
        """Store conversations that were read from records, in the open transaction, at once.

        Errors: DuplicateSession where `on_duplicate` is "error".
        """
        self._unit.check_import()
        for owner in {imported.user_id for imported in batch}:
            self._owner(owner)
        return await self._unit.perform(lambda: self._add_imported(batch, on_duplicate))

    async def export(self, user_id: str | None = None) -> ExportedRecords:
        """Begin to read conversations with all their messages, as they are now.

        They come ordered by user_id and session_id. `user_id` None is every user's, unless the
        unit acts for one. Where the unit has a transaction open it is read in that, and can be read
        until the block is left; else it is read in one of its own.
        """
        owner = self._unit.user_id if user_id is None else self._owner(user_id)
        await self._unit.before_read()
        return await self._export(owner)

    def _owned(
        self, conversation: NewConversation, drafts: Sequence[MessageDraft]
    ) -> NewConversation:
        """Return a conversation as it is now, with its drafts; it is the unit's own user's."""
        self._owner(conversation.user_id)
        return conversation.with_drafts(check_drafts(drafts, least=0))

    @abstractmethod
    def _add(
        self, new: NewConversation, request_id: str | None
    ) -> Write[tuple[Conversation, list[Message]]]: ...

    @abstractmethod
    def _get_or_add(
        self, new: NewConversation, request_id: str | None
    ) -> Write[tuple[Conversation, bool]]: ...

    @abstractmethod
    async def _get(self, conversation_id: int) -> Conversation: ...

    @abstractmethod
    async def _find(self, user_id: str, session_id: str) -> Conversation | None: ...

    @abstractmethod
    async def _list_page(
        self, user_id: str, status: Status | None, limit: int, after: ConversationCursor | None
    ) -> list[Conversation]: ...

    @abstractmethod
    def _update(
        self, conversation_id: int, changes: ConversationChanges, expected_version: int | None
    ) -> Write[Conversation]: ...

    @abstractmethod
    def _set_status(
        self, conversation_id: int, target: Status, expected_version: int | None
    ) -> Write[Conversation]: ...

    @abstractmethod
    def _remove(self, conversation_id: int) -> Write[None]: ...

    @abstractmethod
    async def _add_imported(
        self, batch: Sequence[ImportedConversation], on_duplicate: OnDuplicate
    ) -> ImportReceipt: ...

    @abstractmethod
    async def _export(self, user_id: str | None) -> ExportedRecords: ...


class MessageRepository(Repository, ABC):
    """The messages."""

    def append(
        self,
        conversation_id: int,
        drafts: Sequence[MessageDraft],
        *,
        request_id: str | None = None,
        expected_version: int | None = None,
    ) -> Pending[list[Message]]:
        """Register a turn at the end of a conversation.

        Errors, the first that holds: ConversationNotFound, RequestConflict,
        ConversationNotAcceptingMessages, ConcurrentUpdate. A request_id that was used before
        with the same drafts gives the messages stored then and changes nothing.
        """
        turn = Turn(
            conversation_id=check_conversation_id(conversation_id),
            drafts=check_drafts(drafts, least=1),
            request_id=_request_id(request_id),
            expected_version=_version(expected_version),
        )
        return self._unit.register(self._append(turn))

    def pop(
        self, conversation_id: int, *, expected_version: int | None = None
    ) -> Pending[Message | None]:
        """Register that the newest message of a conversation is taken away again.

        Gives that message; None, and nothing is changed, where the conversation has none. Errors,
        the first that holds: ConversationNotFound, ConversationNotAcceptingMessages,
        ConcurrentUpdate.
        """
        conversation_id = check_conversation_id(conversation_id)
        version = _version(expected_version)
        return self._unit.register(self._pop(conversation_id, version))

    def replace(
        self,
        conversation_id: int,
        drafts: Sequence[MessageDraft],
        *,
        expected_version: int | None = None,
    ) -> Pending[list[Message]]:
        """Register that these messages take the place of all that a conversation has.

        However long it was, that is one statement. Errors, the first that holds:
        ConversationNotFound, ConversationNotAcceptingMessages, ConcurrentUpdate.
        """
        turn = Turn(
            conversation_id=check_conversation_id(conversation_id),
            drafts=check_drafts(drafts, least=0),
            expected_version=_version(expected_version),
        )
        return self._unit.register(self._replace(turn))

    def redact(self, message_id: int) -> Pending[Message]:
        """Register that a tombstone takes the place of what a message said.

        Redacted already is success without change. Errors: MessageNotFound.
        """
        message_id = check_integer(message_id, "message_id", InvalidMessage)
        return self._unit.register(self._redact(message_id))

    async def get(self, message_id: int) -> Message:
        """Read one message. Errors: MessageNotFound."""
        message_id = check_integer(message_id, "message_id", InvalidMessage)
        await self._unit.before_read()
        return await self._get(message_id)

    async def latest(
        self, conversation_id: int, *, limit: int = 50, before: int | None = None
    ) -> list[Message]:
        """Read the newest messages, or the newest before a position, oldest first.

        Errors: ConversationNotFound, InvalidLimit.
        """
        conversation_id = check_conversation_id(conversation_id)
        limit = check_limit(limit)
        if before is not None:
            before = check_integer(before, "before", InvalidMessage)
        await self._unit.before_read()
        return await self._latest(conversation_id, limit, before)

    async def after(self, conversation_id: int, position: int, *, limit: int) -> list[Message]:
        """Read the messages that follow a position, oldest first.

        Errors: ConversationNotFound, InvalidLimit.
        """
        conversation_id = check_conversation_id(conversation_id)
        position = check_integer(position, "position", InvalidMessage)
        limit = check_limit(limit)
        await self._unit.before_read()
        return await self._after(conversation_id, position, limit)

    @abstractmethod
    def _append(self, turn: Turn) -> Write[list[Message]]: ...

    @abstractmethod
    def _pop(self, conversation_id: int, expected_version: int | None) -> Write[Message | None]: ...

    @abstractmethod
    def _replace(self, turn: Turn) -> Write[list[Message]]: ...

    @abstractmethod
    def _redact(self, message_id: int) -> Write[Message]: ...

    @abstractmethod
    async def _get(self, message_id: int) -> Message: ...

    @abstractmethod
    async def _latest(
        self, conversation_id: int, limit: int, before: int | None
    ) -> list[Message]: ...

    @abstractmethod
    async def _after(self, conversation_id: int, position: int, limit: int) -> list[Message]: ...
