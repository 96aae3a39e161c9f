"""Nothing that was said is in an error, a repr, a trace or a log, whatever a call comes to."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from listening import (
    ARGUMENTS,
    MARK,
    METADATA,
    SLOTS,
    call,
    listening,
    new_world,
    secret,
    secret_draft,
    secret_record,
    secret_turn,
    service_functions,
)

from conversation_store import (
    Conflict,
    ConversationChanges,
    ConversationNotFound,
    ConversationStoreError,
    InvalidInput,
    MessageDraft,
    MessageNotFound,
    NewConversation,
    RuleViolation,
    append_messages,
    latest_messages,
    list_conversations,
    start_conversation,
)


class Stubborn(dict[str, Any]):
    """An object of the host's that tells its words when it is read."""

    def items(self) -> Any:
        """Fail."""
        raise LookupError(secret("stubborn"))


class MoreStubborn(Stubborn):
    """A record of that kind."""

    def __iter__(self) -> Any:
        raise LookupError(secret("stubborn"))


on_both_adapters = pytest.mark.parametrize("store", ["memory", "application_role"], indirect=True)

UNSTORABLE = [
    secret("zero") + "\0",
    secret("surrogate") + "\ud800",
    secret("long") * 100,
    "",
    [secret("list")],
    [secret_draft(), secret("no draft")],
    {secret("zero") + "\0": 1},
    {secret("key"): {secret("key"): {1, 2}}},
    {secret("key"): secret("surrogate") + "\udfff"},
    {secret("key"): [float("nan")], secret("other"): 1},
    {secret("deep"): [[[{secret("key"): 10**400}]]]},
    {1: secret("key that is no text")},
    secret("bytes").encode(),
    Stubborn(),
    {"in": Stubborn()},
    10**400,
    -1,
    True,
    float("inf"),
]
"""Values that no parameter takes, or only some do."""


def test_every_service_function_is_called() -> None:
    """A service function without arguments to call it with makes this fail."""
    assert sorted(ARGUMENTS) == sorted(service_functions())


@on_both_adapters
async def test_success_is_quiet(store: Any) -> None:
    """What a function returns shows ids, not words; nothing of them is logged."""
    with listening() as ear:
        for name, arguments in ARGUMENTS.items():
            closed = name in {"archive_conversation", "reopen_conversation"}
            world = await new_world(store, closed=closed)
            uow = store.unit_of_work()
            async with uow:
                if not closed:
                    pending = uow.messages.append(world.conversation_id, secret_turn())
                    ear.heard.append(repr(pending))
                result = await ear.outcome(call(name, uow, arguments(world)))
            assert not isinstance(result, Exception)
        ear.objects()


@on_both_adapters
async def test_bad_input_is_quiet(store: Any) -> None:
    """A value that is refused is not shown, whichever parameter it was given for."""
    with listening() as ear:
        for name, arguments in ARGUMENTS.items():
            world = await new_world(store)
            refused = 0
            for parameter in _parameters(name):
                for value in UNSTORABLE:
                    values = arguments(world) | {parameter: value}
                    outcome = await ear.outcome(call(name, store.unit_of_work(), values))
                    refused += isinstance(outcome, InvalidInput)
            assert refused >= 10


@pytest.mark.parametrize("make", [MessageDraft, NewConversation, ConversationChanges])
def test_bad_values_are_quiet(make: Callable[..., Any]) -> None:
    """A draft, a conversation or changes that cannot be made show nothing of what was given."""
    good = {"role": "user", "content": "x", "user_id": "u", "session_id": "s", "rescue_id": "r"}
    names = [*inspect.signature(make).parameters]

    async def run() -> None:
        with listening() as ear:
            for name in names:
                for value in UNSTORABLE:
                    values = {n: v for n, v in good.items() if n in names} | {name: value}
                    await ear.outcome(asyncio.to_thread(make, **values))
            assert sum(issubclass(kind, InvalidInput) for kind in ear.kinds) >= 10

    asyncio.run(run())


BAD_RECORDS: list[Any] = [
    MoreStubborn(user_id="u", session_id="s", messages=[]),
    secret("record"),
    [secret("record")],
    {secret("field"): 1},
    {"user_id": secret("user"), "session_id": "s"},
    secret_record("s", **{secret("field"): secret("value")}),
    secret_record("s", status=secret("status")),
    secret_record("s", start_time=secret("time")),
    secret_record("s", start_time="2026-01-02T00:00:00Z", last_activity="2026-01-01T00:00:00Z"),
    secret_record("s", metadata=secret("metadata")),
    secret_record("s", metadata={secret("key"): {secret("key"): object()}}),
    secret_record("s", messages=secret("messages")),
    secret_record("s", messages=[secret("message")]),
    *(
        secret_record("s", messages=[{"role": "user", "content": secret("content")} | bad])
        for bad in (
            {"role": secret("role")},
            {"content": secret("zero") + "\0"},
            {"content": [secret("content")]},
            {"slots": [secret("slots")]},
            {"slots": {secret("key"): float("nan")}},
            {"metadata": {secret("key"): secret("surrogate") + "\ud800"}},
            {"position": secret("position")},
            {"timestamp": secret("timestamp")},
            {secret("field"): 1},
        )
    ),
]


@on_both_adapters
async def test_bad_records_are_quiet(store: Any) -> None:
    """A record that is refused is not shown; the error says which it is, and which field."""
    with listening() as ear:
        for record in BAD_RECORDS:
            values = {"records": [secret_record("good"), record]}
            error = await ear.outcome(call("import_conversations", store.unit_of_work(), values))
            assert isinstance(error, InvalidInput)
            assert error.field


@on_both_adapters
async def test_refusals_are_quiet(store: Any) -> None:
    """What contradicts what is stored is refused by ids, and by nothing that was said."""
    world, closed = await new_world(store), await new_world(store, closed=True)
    missing = {"conversation_id": 2**62, "message_id": 2**62, "user_id": "nobody"}
    kinds: set[type] = set()
    with listening() as ear:
        for name, arguments in ARGUMENTS.items():
            for of in (world, closed):
                good = arguments(of)
                absent = good | {k: v for k, v in missing.items() if k in good}
                stale = {"expected_version": 77} if "expected_version" in _parameters(name) else {}
                again = {"session_id": of.session_id} if "session_id" in good else {}
                repeated = {"request_id": "r"} if "request_id" in good else {}
                versions = [
                    absent,
                    good | stale,
                    good | again | repeated | {"drafts": secret_turn()[:1]},
                ]
                if name in {"delete_conversation", "erase_user", "archive_conversation"}:
                    versions = [absent]
                for values in versions:
                    known = {k: v for k, v in values.items() if k in _parameters(name)}
                    for user_id in (None, "u", "mallory"):
                        uow = store.unit_of_work(user_id=user_id)
                        kinds.add(type(await ear.outcome(call(name, uow, known))))
    for kind in (ConversationNotFound, MessageNotFound, Conflict, RuleViolation):
        assert any(issubclass(met, kind) for met in kinds), kind


def _parameters(name: str) -> list[str]:
    return list(inspect.signature(service_functions()[name]).parameters)[1:]


@on_both_adapters
async def test_a_cursor_that_is_none_is_quiet(store: Any) -> None:
    """A text that is no cursor is not shown."""
    with listening() as ear:
        for cursor in (secret("cursor"), secret("cursor") + "€", secret("c").encode().hex()):
            page = list_conversations(store.unit_of_work(), user_id="u", after=cursor)
            assert isinstance(await ear.outcome(page), InvalidInput)


@on_both_adapters
async def test_errors_of_the_host_stay_its_own(store: Any) -> None:
    """An exception of the host's that leaves a block is what it was, and the store says no more."""
    world = await new_world(store)
    uow = store.unit_of_work()
    with pytest.raises(ZeroDivisionError) as caught:
        async with uow:
            uow.messages.append(world.conversation_id, secret_turn())
            1 / 0  # noqa: B018 - it raises
    assert caught.value.__cause__ is None
    with listening() as ear:
        ear.error(caught.value)


async def test_names_of_fields_are_shown_where_they_look_like_names() -> None:
    """A key that looks like a name says where the trouble is; any other is numbered."""
    for key, shown in (
        ("city", "slots.city"),
        ("tool-call_2", "slots.tool-call_2"),
        ("ada@example.org", "slots.<key 2>"),
        ("two words", "slots.<key 2>"),
        ("ä", "slots.<key 2>"),
        ("x" * 41, "slots.<key 2>"),
        ("", "slots.<key 2>"),
    ):
        with pytest.raises(InvalidInput) as caught:
            MessageDraft(role="user", content="x", slots={"first": 1, key: object()})
        assert caught.value.field == shown


@on_both_adapters
async def test_words_that_are_stored_are_there(store: Any) -> None:
    """The secrets of these tests are stored as they are: nothing is quiet for lack of them."""
    world = await new_world(store)
    uow = store.unit_of_work()
    messages = await latest_messages(uow, conversation_id=world.conversation_id)
    assert messages[0].content == secret("content")
    assert (messages[0].slots, messages[0].metadata) == (SLOTS, METADATA)
    assert MARK not in repr(messages)
    assert isinstance(
        await _refusal(append_messages(uow, conversation_id=2**62, drafts=secret_turn())),
        ConversationNotFound,
    )
    assert isinstance(
        await _refusal(start_conversation(uow, user_id=world.user_id, session_id=world.session_id)),
        Conflict,
    )


async def _refusal(work: Any) -> ConversationStoreError:
    with pytest.raises(ConversationStoreError) as caught:
        await work
    return caught.value
