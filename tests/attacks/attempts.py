"""What is tried against the data of another user: a table, by public function.

A name with a dot is a method of a repository. What names the other's data is given as a function of
the target; everything else is a plain value.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, ClassVar, Final

from attrs import frozen
from store_fixtures import draft, turn

import conversation_store
from conversation_store import (
    AsyncUnitOfWork,
    ConversationChanges,
    NewConversation,
    Status,
)
from conversation_store.domain.record import check_record
from conversation_store.domain.removal import RemovalCondition

from .world import SHARED, STATES, Target, started

Value = Callable[[Target], Any]


@frozen
class Attempt:
    """One way to call a function with something that names another user's data."""

    function: str
    how: str
    arguments: Mapping[str, Any]
    is_misuse: bool
    """Whether it names the user: then it is refused for that alone."""
    is_own_error: ClassVar[bool] = True
    """Whether what it raises has to be an error of the store's."""

    @property
    def tries(self) -> frozenset[str]:
        """The parameters that name the data."""
        return frozenset(name for name, value in self.arguments.items() if callable(value))

    def __str__(self) -> str:
        return f"{self.function}, {self.how}"

    async def __call__(self, uow: AsyncUnitOfWork, target: Target) -> Any:
        """Make the call in a unit of work and return all that it gives."""
        values = {
            name: value(target) if callable(value) else value
            for name, value in self.arguments.items()
        }
        if "." not in self.function:
            answer = getattr(conversation_store, self.function)(uow, **values)
            if isinstance(answer, AsyncGenerator):
                return [one async for one in answer]
            return await answer
        async with uow:
            method = uow
            for name in self.function.split("."):
                method = getattr(method, name)
            answer = method(**values)  # type: ignore[operator]
            if inspect.iscoroutine(answer):
                answer = await answer
                if not hasattr(answer, "aclose"):
                    return answer
                async with aclosing(answer):
                    return [one async for one in answer]
        return await answer


ATTEMPTS: Final[list[Attempt]] = []


def attempt(functions: str, how: str, *, misuse: bool = False, **arguments: Any) -> None:
    """Add an attempt to the table, for each of the functions named."""
    ATTEMPTS.extend(Attempt(one, how, arguments, misuse) for one in functions.split())


# What names data ------------------------------------------------------------------------------


def conversation(state: str) -> Value:
    """Return what gives the id of a conversation."""
    return lambda target: target.conversations[state]


def message(state: str) -> Value:
    """Return what gives the id of a message."""
    return lambda target: target.messages[state]


def version(state: str) -> Value:
    """Return what gives the version of a conversation."""
    return lambda target: target.versions[state]


def session(state: str) -> Value:
    """Return what gives the session_id of a conversation."""
    return lambda target: target.session(state)


def same_drafts(_: Target) -> Any:
    """Return what the victim has said, to the letter."""
    return started("active")


def user(target: Target) -> str:
    """Return the user_id."""
    return target.user_id


def start_key(target: Target) -> str:
    """Return the request_id of a start."""
    return target.start


def turn_key(target: Target) -> str:
    """Return the request_id of a turn."""
    return target.turn


def cursor(status: str | None = None) -> Value:
    """Return what gives a cursor of a list."""
    return lambda target: target.cursors[status]


def new(state: str, *, of_user: bool = False) -> Value:
    """Return what gives a conversation to be, with a session or a user that is another's."""

    def made(target: Target) -> NewConversation:
        user_id = target.user_id if of_user else target.by
        return NewConversation(user_id=user_id, session_id=target.session(state))

    return made


def record(target: Target, user_id: str, session_id: str) -> Any:
    """Return a record of a conversation."""
    return {
        "user_id": user_id,
        "session_id": session_id,
        "messages": [{"role": "user", "content": "forged"}],
    }


def records(*, of_user: bool, after_own: bool = False) -> Value:
    """Return what gives records of another's session, or that name another user."""

    def made(target: Target) -> list[Any]:
        user_id = target.user_id if of_user else target.by
        forged = record(target, user_id, target.session("active"))
        own = record(target, target.by, "a record of one's own")
        return [own, forged] if after_own else [forged]

    return made


def batch(*, of_user: bool) -> Value:
    """Return the same as it is stored."""
    return lambda target: [check_record(one, 1) for one in records(of_user=of_user)(target)]


def all_of(target: Target) -> RemovalCondition:
    """Return the condition that all meets that a user has."""
    return RemovalCondition(user_id=target.user_id)


TO_COME: Final = datetime(2090, 1, 1, tzinfo=UTC)

# Reads --------------------------------------------------------------------------------------------

for _state in (*STATES, SHARED):
    _of = f"of the {_state} one"
    attempt("get_conversation conversations.get", _of, conversation_id=conversation(_state))
    attempt("latest_messages messages.latest", _of, conversation_id=conversation(_state))
    attempt(
        "latest_messages messages.latest",
        f"{_of}, before a position",
        conversation_id=conversation(_state),
        before=lambda _: 2,
        limit=1,
    )
    attempt(
        "messages_after messages.after",
        _of,
        conversation_id=conversation(_state),
        position=lambda _: 0,
        limit=1000,
    )
    if _state != "empty":
        attempt("get_message messages.get", _of, message_id=message(_state))
    if _state != SHARED:
        attempt("find_conversation conversations.find", _of, session_id=session(_state))
    attempt(
        "find_conversation conversations.find",
        f"{_of}, naming the user",
        misuse=True,
        user_id=user,
        session_id=session(_state) if _state != SHARED else SHARED,
    )

attempt("list_conversations conversations.list_page", "of the user", misuse=True, user_id=user)
attempt("list_conversations conversations.list_page", "of one's own")
attempt(
    "list_conversations conversations.list_page", "of one's own of a status", status=Status.ACTIVE
)
attempt("list_conversations conversations.list_page", "from a cursor", after=cursor())
attempt(
    "list_conversations conversations.list_page",
    "of a status, from a cursor",
    after=cursor("active"),
    status=Status.ACTIVE,
)
attempt(
    "list_conversations conversations.list_page",
    "of the user, from the cursor",
    misuse=True,
    user_id=user,
    after=cursor(),
)
attempt("export_conversations conversations.export", "of one's own")
attempt("export_conversations conversations.export", "of the user", misuse=True, user_id=user)

# Writes to a conversation -------------------------------------------------------------------------

for _state in (*STATES, SHARED):
    _of = f"to the {_state} one"
    _id = conversation(_state)
    attempt("append_messages messages.append", _of, conversation_id=_id, drafts=turn(9))
    attempt(
        "append_messages messages.append",
        f"{_of}, at its version",
        conversation_id=_id,
        drafts=turn(9),
        expected_version=version(_state),
    )
    attempt(
        "append_messages messages.append",
        f"{_of}, at another version",
        conversation_id=_id,
        drafts=turn(9),
        expected_version=lambda _: 77,
    )
    attempt(
        "append_messages messages.append",
        f"{_of}, with a new request",
        conversation_id=_id,
        drafts=turn(9),
        request_id="a new one",
    )
    attempt(
        "append_messages messages.append",
        f"{_of}, with the request of its turn",
        conversation_id=_id,
        drafts=turn(2),
        request_id=turn_key,
    )
    attempt(
        "append_messages messages.append",
        f"{_of}, with the request of its turn for other words",
        conversation_id=_id,
        drafts=turn(9),
        request_id=turn_key,
    )
    attempt(
        "append_messages messages.append",
        f"{_of}, with the request of its start at its version",
        conversation_id=_id,
        drafts=same_drafts,
        request_id=start_key,
        expected_version=version(_state),
    )
    attempt("update_conversation", _of, conversation_id=_id, metadata={"by": "another"})
    attempt(
        "conversations.update",
        _of,
        conversation_id=_id,
        changes=ConversationChanges(rescue_id="another's", metadata=None),
    )
    attempt(
        "update_conversation",
        f"{_of}, at its version",
        conversation_id=_id,
        rescue_id=None,
        expected_version=version(_state),
    )
    attempt(
        "conversations.update",
        f"{_of}, at another version",
        conversation_id=_id,
        changes=ConversationChanges(intent_type=None),
        expected_version=lambda _: 77,
    )
    for _function, _status in (
        ("close_conversation", Status.CLOSED),
        ("reopen_conversation", Status.ACTIVE),
        ("archive_conversation", Status.ARCHIVED),
    ):
        attempt(_function, _of, conversation_id=_id)
        attempt(
            _function,
            f"{_of}, at its version",
            conversation_id=_id,
            expected_version=version(_state),
        )
        attempt(
            "conversations.set_status", f"{_of}: {_status}", conversation_id=_id, target=_status
        )
        attempt(
            "conversations.set_status",
            f"{_of}: {_status}, at another version",
            conversation_id=_id,
            target=_status,
            expected_version=lambda _: 77,
        )
    attempt(
        "delete_conversation conversations.remove conversations.remove_part",
        _of,
        conversation_id=_id,
    )
    attempt(
        "conversations.remove_part",
        f"{_of}, on a condition",
        conversation_id=_id,
        only=RemovalCondition(inactive_since=TO_COME),
    )
    attempt(
        "conversations.remove_part",
        f"{_of}, naming the user",
        misuse=True,
        conversation_id=_id,
        only=all_of,
    )
    if _state != "empty":
        attempt("redact_message messages.redact", _of, message_id=message(_state))
    attempt("pop_message messages.pop", _of, conversation_id=_id)
    attempt("replace_messages messages.replace", _of, conversation_id=_id, drafts=turn(9))
    attempt(
        "replace_messages messages.replace", f"{_of}, by nothing", conversation_id=_id, drafts=[]
    )
    attempt(
        "pop_message messages.pop",
        f"{_of}, at its version",
        conversation_id=_id,
        expected_version=version(_state),
    )
    attempt(
        "replace_messages messages.replace",
        f"{_of}, at its version",
        conversation_id=_id,
        drafts=turn(9),
        expected_version=version(_state),
    )

# New conversations, and what concerns a whole user ------------------------------------------------

for _state in STATES:
    _of = f"in the session of the {_state} one"
    _said: dict[str, Any] = {"drafts": turn(9)}
    attempt(
        "start_conversation get_or_start_conversation", _of, session_id=session(_state), **_said
    )
    attempt("conversations.add conversations.get_or_add", _of, conversation=new(_state), **_said)
    attempt(
        "start_conversation get_or_start_conversation",
        f"{_of}, with its request",
        session_id=session(_state),
        request_id=start_key,
        drafts=same_drafts,
    )
    attempt(
        "conversations.add conversations.get_or_add",
        f"{_of}, with its request for other words",
        conversation=new(_state),
        request_id=start_key,
        **_said,
    )
    attempt(
        "start_conversation get_or_start_conversation",
        f"{_of}, naming the user",
        misuse=True,
        user_id=user,
        session_id=session(_state),
        **_said,
    )
    attempt(
        "conversations.add conversations.get_or_add",
        f"{_of}, naming the user",
        misuse=True,
        conversation=new(_state, of_user=True),
        **_said,
    )
    attempt(
        "start_conversation get_or_start_conversation",
        f"{_of}, naming the user, with its request",
        misuse=True,
        user_id=user,
        session_id=session(_state),
        request_id=start_key,
        drafts=same_drafts,
    )
attempt(
    "start_conversation get_or_start_conversation",
    "in a new session of the user's",
    misuse=True,
    user_id=user,
    session_id="a new one",
    drafts=[draft("forged")],
)

attempt(
    "start_conversation get_or_start_conversation",
    "in a session that both have, with the user's request",
    session_id=SHARED,
    request_id=start_key,
    drafts=same_drafts,
)
attempt("erase_user", "of one's own")
attempt("erase_user", "of the user", misuse=True, user_id=user)
attempt("purge_conversations", "of one's own", inactive_since=TO_COME)
attempt("purge_conversations", "of one's own, tried", inactive_since=TO_COME, dry_run=True)
for _dry_run in (False, True):
    attempt(
        "purge_conversations",
        f"of the user{', tried' if _dry_run else ''}",
        misuse=True,
        inactive_since=TO_COME,
        user_id=user,
        dry_run=_dry_run,
    )
attempt(
    "conversations.remove_some conversations.find_removable",
    "of one's own",
    only=RemovalCondition(),
)
attempt(
    "conversations.remove_some conversations.find_removable",
    "of the user",
    misuse=True,
    only=all_of,
)
attempt(
    "conversations.remove_some conversations.find_removable",
    "of one's own, from a place of the user's",
    only=RemovalCondition(),
    after=session("active"),
)
attempt(
    "import_conversations", "of a record of the user's", misuse=True, records=records(of_user=True)
)
attempt(
    "import_conversations",
    "of a record of the user's behind one's own",
    misuse=True,
    records=records(of_user=True, after_own=True),
)
attempt(
    "import_conversations",
    "of a record of the user's, skipping what is there",
    misuse=True,
    records=records(of_user=True),
    on_duplicate="skip",
)
attempt("import_conversations", "in the session of another", records=records(of_user=False))
attempt(
    "conversations.add_imported",
    "of a record of the user's",
    misuse=True,
    batch=batch(of_user=True),
    on_duplicate="error",
)
attempt(
    "conversations.add_imported",
    "in the session of another",
    batch=batch(of_user=False),
    on_duplicate="skip",
)

# What is asked of the table -----------------------------------------------------------------------

PLAIN: Final = frozenset({"drafts", "limit", "status", "target", "changes", "progress"}) | {
    "rescue_id",
    "intent_type",
    "source",
    "metadata",
    "on_duplicate",
    "inactive_since",
    "dry_run",
}
"""Parameters that name no data; every other one has to be tried."""

UNIT: Final = {
    "meaning": "takes an error",
    "register": "takes a write that a repository made; repositories are tried",
    "perform": "takes a function of the store's own",
    "before_read": "takes nothing",
    "check_import": "takes nothing",
    "still_open": "takes nothing",
    "rollback": "takes nothing",
    "connection": "takes nothing; SQL of the host is tried in test_units",
}
"""Methods of a unit of work, and why there is nothing to try."""


def parameters(function: Callable[..., Any]) -> Iterator[str]:
    """Give the parameters of a function that may name data."""
    for name in inspect.signature(function).parameters:
        if name not in {"self", "uow", *PLAIN}:
            yield name


def untried(functions: Mapping[str, Callable[..., Any]]) -> list[str]:
    """Return the functions, and the parameters of them, that nothing in the table tries."""
    tried: dict[str, set[str]] = {}
    for one in ATTEMPTS:
        tried.setdefault(one.function, set()).update(one.tries)
    missing = [name for name in functions if name not in tried]
    for name, function in functions.items():
        missing += [
            f"{name}({parameter})"
            for parameter in parameters(function)
            if name in tried and parameter not in tried[name]
        ]
    return sorted(missing)


def on_one_conversation() -> list[Attempt]:
    """Return the attempts without those that differ in nothing but the conversation."""
    others = [state for state in (*STATES, SHARED) if state != "active"]
    return [one for one in ATTEMPTS if not any(f"the {state} one" in one.how for state in others)]


def of_each_function() -> list[Attempt]:
    """Return one attempt of each function, the first of the table."""
    firsts: dict[str, Attempt] = {}
    for one in ATTEMPTS:
        firsts.setdefault(one.function, one)
    return [*firsts.values()]
