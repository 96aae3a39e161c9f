"""A store behind the counting proxy, and a call of each service function that is one statement."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from attrs import define
from store_fixtures import draft, open_store, turn
from wire_proxy import WireProxy

import conversation_store
from conversation_store import (
    AsyncUnitOfWork,
    ConversationStore,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    erase_user,
    find_conversation,
    get_conversation,
    get_message,
    get_or_start_conversation,
    latest_messages,
    list_conversations,
    messages_after,
    pop_message,
    purge_conversations,
    redact_message,
    reopen_conversation,
    replace_messages,
    start_conversation,
    update_conversation,
)


@define
class Wired:
    """A store behind the counting proxy, with ids drawn and one conversation in it."""

    store: ConversationStore
    proxy: WireProxy
    conversation: int
    message: int
    number: int = 0

    def fresh(self) -> str:
        """Return a session_id that was not used."""
        self.number += 1
        return f"fresh-{self.number}"


@asynccontextmanager
async def wired_store(dsn: str, migrated: set[str], **options: Any) -> AsyncIterator[Wired]:
    """Give a store behind the proxy: one connection, its first block of ids drawn.

    Options are those of `connect`.
    """
    async with WireProxy(dsn) as proxy:
        values = {"min_size": 1, "max_size": 1} | options
        opened = open_store(dsn, "operational", migrated, through=proxy.dsn, **values)
        async with opened as store:
            conversation, [message] = await start_conversation(
                store.unit_of_work(), user_id="u", session_id="s", drafts=[draft("first")]
            )
            yield Wired(store, proxy, conversation.id, message.id)


FUTURE = datetime(2100, 1, 1, tzinfo=UTC)

Call = Callable[[Wired, AsyncUnitOfWork], Awaitable[Any]]

SERVICE_FUNCTIONS: dict[str, Call] = {
    "start_conversation": lambda w, uow: start_conversation(
        uow, user_id="u", session_id=w.fresh(), drafts=turn(1)
    ),
    "get_or_start_conversation, new": lambda w, uow: get_or_start_conversation(
        uow, user_id="u", session_id=w.fresh(), drafts=turn(1)
    ),
    "get_or_start_conversation, found": lambda _, uow: get_or_start_conversation(
        uow, user_id="u", session_id="s", drafts=turn(1)
    ),
    "start_conversation, new request": lambda w, uow: start_conversation(
        uow, user_id="u", session_id=w.fresh(), drafts=turn(1), request_id="r"
    ),
    "start_conversation, replay": lambda _, uow: start_conversation(
        uow, user_id="u", session_id="replayed", drafts=turn(1), request_id="r"
    ),
    "get_or_start_conversation, new request": lambda w, uow: get_or_start_conversation(
        uow, user_id="u", session_id=w.fresh(), drafts=turn(1), request_id="r"
    ),
    "get_or_start_conversation, replay": lambda _, uow: get_or_start_conversation(
        uow, user_id="u", session_id="replayed", drafts=turn(1), request_id="r"
    ),
    "get_or_start_conversation, found by a request": lambda _, uow: get_or_start_conversation(
        uow, user_id="u", session_id="s", drafts=turn(1), request_id="r"
    ),
    "append_messages": lambda w, uow: append_messages(
        uow, conversation_id=w.conversation, drafts=turn(1)
    ),
    "append_messages, new request": lambda w, uow: append_messages(
        uow, conversation_id=w.conversation, drafts=turn(1), request_id=w.fresh()
    ),
    "append_messages, replay": lambda w, uow: append_messages(
        uow, conversation_id=w.conversation, drafts=turn(1), request_id="r"
    ),
    "get_conversation": lambda w, uow: get_conversation(uow, conversation_id=w.conversation),
    "find_conversation": lambda _, uow: find_conversation(uow, user_id="u", session_id="s"),
    "list_conversations": lambda _, uow: list_conversations(uow, user_id="u"),
    "list_conversations, of a status": lambda _, uow: list_conversations(
        uow, user_id="u", status="active"
    ),
    "redact_message": lambda w, uow: redact_message(uow, message_id=w.message),
    "redact_message, replay": lambda w, uow: redact_message(uow, message_id=w.message),
    "pop_message": lambda w, uow: pop_message(uow, conversation_id=w.conversation),
    "pop_message, replay": lambda w, uow: pop_message(uow, conversation_id=w.conversation),
    "replace_messages": lambda w, uow: replace_messages(
        uow, conversation_id=w.conversation, drafts=turn(1)
    ),
    "replace_messages, by nothing": lambda w, uow: replace_messages(
        uow, conversation_id=w.conversation, drafts=[]
    ),
    "get_message": lambda w, uow: get_message(uow, message_id=w.message),
    "latest_messages": lambda w, uow: latest_messages(uow, conversation_id=w.conversation),
    "messages_after": lambda w, uow: messages_after(
        uow, conversation_id=w.conversation, position=0
    ),
    "update_conversation": lambda w, uow: update_conversation(
        uow, conversation_id=w.conversation, metadata={"a": 1}
    ),
    "close_conversation": lambda w, uow: close_conversation(uow, conversation_id=w.conversation),
    "reopen_conversation": lambda w, uow: reopen_conversation(uow, conversation_id=w.conversation),
    "archive_conversation": lambda w, uow: archive_conversation(
        uow, conversation_id=w.conversation
    ),
    "delete_conversation": lambda w, uow: delete_conversation(uow, conversation_id=w.conversation),
    "erase_user": lambda _, uow: erase_user(uow, user_id="u"),
    "purge_conversations": lambda _, uow: purge_conversations(uow, inactive_since=FUTURE),
    "purge_conversations, a dry run": lambda _, uow: purge_conversations(
        uow, inactive_since=FUTURE, dry_run=True
    ),
}


def service_functions() -> list[str]:
    """Return the names of the functions that a host calls with a unit of work."""
    return [
        name
        for name in conversation_store.__all__
        if inspect.isfunction(function := getattr(conversation_store, name))
        and next(iter(inspect.signature(function).parameters), "") == "uow"
    ]
