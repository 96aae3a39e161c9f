"""What programs do: each public function, and each method of the repositories, with arguments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from attrs import frozen
from hypothesis import strategies as st

import conversation_store
from conversation_store import (
    ConversationChanges,
    NewConversation,
    RemovalCondition,
    Status,
)
from conversation_store.domain.record import check_record

from . import arguments as of
from .arguments import Chat, Said, Strategy, resolved
from .hands import Hand
from .names import Names

Home = tuple[str, str]
"""A user and a session: what two units may meet at."""

_NEW: Final = {"user_id": of.user_ids, "session_id": of.session_ids}
_ONCE: Final = {"drafts": of.openings, "request_id": of.request_ids}
_NEW_MORE: Final = {**of.details, "source": of.values, **_ONCE}
_ONE: Final = {"conversation_id": of.chats}
_MESSAGE: Final = {"message_id": of.said}
_EXPECTED: Final = {"expected_version": of.versions}
_OWNER: Final = {"user_id": of.user_ids}
_CONDITION: Final = {"inactive_since": of.times, "status": of.statuses, "source": of.values}

SERVICES: Final[Mapping[str, Strategy]] = {
    name: st.fixed_dictionaries(required, optional=optional)
    for name, required, optional in (
        ("start_conversation", _NEW, _NEW_MORE),
        ("get_or_start_conversation", _NEW, _NEW_MORE),
        ("append_messages", {**_ONE, "drafts": of.turns, "request_id": of.request_ids}, _EXPECTED),
        ("update_conversation", _ONE, {**of.details, **_EXPECTED}),
        ("close_conversation", _ONE, _EXPECTED),
        ("reopen_conversation", _ONE, _EXPECTED),
        ("archive_conversation", _ONE, _EXPECTED),
        ("delete_conversation", _ONE, {}),
        ("erase_user", _OWNER, {}),
        (
            "purge_conversations",
            {"inactive_since": of.times},
            {"status": of.statuses, "source": of.values, **_OWNER, "dry_run": st.booleans()},
        ),
        ("get_conversation", _ONE, {}),
        ("find_conversation", _NEW, {}),
        (
            "list_conversations",
            _OWNER,
            {"status": of.statuses, "limit": of.limits, "after": of.cursors},
        ),
        ("redact_message", _MESSAGE, {}),
        ("pop_message", _ONE, _EXPECTED),
        ("replace_messages", {**_ONE, "drafts": of.openings}, _EXPECTED),
        ("get_message", _MESSAGE, {}),
        ("latest_messages", _ONE, {"limit": of.limits, "before": of.positions}),
        ("messages_after", {**_ONE, "position": of.positions}, {"limit": of.limits}),
        (
            "import_conversations",
            {"records": st.lists(of.records(), max_size=3)},
            {"on_duplicate": of.duplicates},
        ),
        ("export_conversations", {}, _OWNER),
    )
}
"""The service functions, and what programs call them with."""

_STATUS: Final = {"target": st.sampled_from(tuple(Status))}
_PAGE: Final = {"limit": of.limits, "after": of.cursors}

METHODS: Final[Mapping[str, Strategy]] = {
    name: st.fixed_dictionaries(required, optional=optional)
    for name, required, optional in (
        ("conversations.add", {**_NEW, **_ONCE}, of.details),
        ("conversations.get_or_add", {**_NEW, **_ONCE}, of.details),
        ("conversations.get", _ONE, {}),
        ("conversations.find", {"session_id": of.session_ids}, _OWNER),
        ("conversations.list_page", _OWNER, {"status": st.sampled_from(tuple(Status)), **_PAGE}),
        ("conversations.update", {**_ONE, **of.details}, _EXPECTED),
        ("conversations.set_status", {**_ONE, **_STATUS}, _EXPECTED),
        ("conversations.remove", _ONE, {}),
        ("conversations.remove_part", _ONE, _CONDITION),
        ("conversations.remove_some", _OWNER, {**_CONDITION, "after": of.places}),
        ("conversations.find_removable", _OWNER, {**_CONDITION, "after": of.places}),
        (
            "conversations.add_imported",
            {
                "records": st.lists(of.records(), max_size=2),
                "on_duplicate": st.sampled_from(("error", "skip")),
            },
            {},
        ),
        ("conversations.export", {}, _OWNER),
        (
            "messages.append",
            {**_ONE, "drafts": of.no_turns, "request_id": of.request_ids},
            _EXPECTED,
        ),
        ("messages.redact", _MESSAGE, {}),
        ("messages.pop", _ONE, _EXPECTED),
        ("messages.replace", {**_ONE, "drafts": of.openings}, _EXPECTED),
        ("messages.get", _MESSAGE, {}),
        ("messages.latest", _ONE, {"limit": of.limits, "before": of.positions}),
        ("messages.after", {**_ONE, "position": of.positions, "limit": of.limits}, {}),
    )
}
"""The methods of the repositories, and what programs call them with."""

READS: Final = frozenset(
    {
        *("get_conversation", "find_conversation", "list_conversations", "get_message"),
        *("latest_messages", "messages_after", "export_conversations"),
        *("conversations.get", "conversations.find", "conversations.list_page"),
        *("conversations.export", "messages.get", "messages.latest", "messages.after"),
        "conversations.find_removable",
    }
)
REGISTERED: Final = frozenset(
    {
        *("conversations.add", "conversations.get_or_add", "conversations.update"),
        *("conversations.set_status", "conversations.remove", "conversations.remove_part"),
        *("conversations.remove_some", "messages.append", "messages.redact"),
        *("messages.pop", "messages.replace"),
    }
)
"""Writes that are registered and wait to be sent."""

MANY: Final = frozenset({"erase_user", "purge_conversations", "conversations.remove_some"})
"""Writes that may meet others at any conversation that a user has, or that anybody has."""

IMPORTS: Final = frozenset({"import_conversations", "conversations.add_imported"})


@frozen
class Call:
    """A call of a service function, or of a method of a repository."""

    name: str
    arguments: Mapping[str, Any]

    def meets_at(self, names: Names, scope: str | None) -> set[Home]:
        """Return where the call, if it writes, may wait for other units, or make them wait."""
        if self.name in READS:
            return set()
        owner = self.arguments.get("user_id")
        owner = scope if owner is None else owner
        if self.name in MANY:
            return {home for home in names.homes.values() if owner in (None, home[0])}
        homes: set[Home] = {
            (record["user_id"], record["session_id"])
            for record in self.arguments.get("records", ())
            if isinstance(record["user_id"], str) and isinstance(record["session_id"], str)
        }
        session, chat = self.arguments.get("session_id"), self.arguments.get("conversation_id")
        if isinstance(session, str) and isinstance(owner, str):
            homes.add((owner, session))
        if isinstance(chat, Chat):
            home = names.home(chat.number)
            homes |= set() if home is None else {home}
        message = self.arguments.get("message_id")
        if isinstance(message, Said):
            home = names.home_of_message(message.number)
            homes |= set() if home is None else {home}
        return homes

    def about(self, number: int, names: Names) -> Call:
        """Return the same call, about this conversation, or its session."""
        values = dict(self.arguments)
        home = names.home(number)
        if "conversation_id" in values:
            values["conversation_id"] = Chat(number)
        if home is not None and "session_id" in values:
            values["session_id"] = home[1]
        if home is not None and "user_id" in values:
            values["user_id"] = home[0]
        return Call(self.name, values)

    async def __call__(self, hand: Hand) -> Any:
        """Do it, by this hand."""
        values = {key: resolved(value, hand) for key, value in self.arguments.items()}
        if self.name in SERVICES:
            function = getattr(conversation_store, self.name)
            result = function(hand.uow, **values)
            if isinstance(result, AsyncIterator):
                await hand.keep_export(result)
                return "records"
            return await result
        repository, method = self.name.split(".")
        act = getattr(getattr(hand.uow, repository), method)
        result = act(*_of_method(method, values), **values)
        if self.name in REGISTERED:
            hand.keep_pending(result)
            return "pending"
        result = await result
        if method == "export":
            await hand.keep_export(result)
            return "records"
        return result


def _of_method(method: str, values: dict[str, Any]) -> list[Any]:
    """Take out of the values what a method takes as an object."""
    if method in ("add", "get_or_add"):
        drafts, request_id = values.pop("drafts"), values.pop("request_id")
        new = NewConversation(**values)
        values.clear()
        values["request_id"] = request_id
        return [new, drafts]
    if method in ("remove_part", "remove_some", "find_removable"):
        place = [values.pop(key) for key in ("conversation_id", "after") if key in values]
        is_conditional = method != "remove_part" or bool(values)
        condition = [RemovalCondition(**values)] if is_conditional else []
        values.clear()
        return [*place, *condition] if method == "remove_part" else [*condition, *place]
    if method == "update":
        chat = values.pop("conversation_id")
        expected = values.pop("expected_version", None)
        changes = ConversationChanges(**values)
        values.clear()
        values["expected_version"] = expected
        return [chat, changes]
    if method == "add_imported":
        records = values.pop("records")
        return [[check_record(record, number) for number, record in enumerate(records, 1)]]
    return []
