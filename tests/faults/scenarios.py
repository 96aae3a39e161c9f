"""The scenarios of the service functions, each called alone."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from ledger import Change, Told, Turn

from conversation_store import (
    CommitOutcomeUnknown,
    ConversationRecord,
    StoreUnavailable,
    TransactionAborted,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    erase_user,
    export_conversations,
    find_conversation,
    get_conversation,
    get_message,
    get_or_start_conversation,
    import_conversations,
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

from .case import CONTENT, MARK, SAYING, SESSIONS, STATUS, Case, scenario

FUTURE = datetime(2100, 1, 1, tzinfo=UTC)

# Writes -------------------------------------------------------------------------------------------


@scenario("start_conversation")
async def _start(case: Case) -> None:
    turn = case.ledger.turn(None)
    user = turn.contents[0]
    async with case.played(turn, changes=[Change(SESSIONS, (user,), 0, 1)]) as uow:
        _, messages = await start_conversation(
            uow, user_id=user, session_id="s", drafts=turn.drafts()
        )
        turn.placed(messages)


@scenario("start_conversation with a request_id")
async def _start_request(case: Case) -> None:
    turn = case.ledger.turn(None)
    user = turn.contents[0]
    async with case.played(turn, changes=[Change(SESSIONS, (user,), 0, 1)]) as uow:
        _, messages = await start_conversation(
            uow, user_id=user, session_id="s", drafts=turn.drafts(), request_id="r"
        )
        turn.placed(messages)


@scenario("get_or_start_conversation with a request_id")
async def _get_or_start_request(case: Case) -> None:
    turn = case.ledger.turn(None)
    user = turn.contents[0]
    async with case.played(turn, changes=[Change(SESSIONS, (user,), 0, 1)]) as uow:
        conversation, created = await get_or_start_conversation(
            uow, user_id=user, session_id="s", drafts=turn.drafts(), request_id="r"
        )
        assert (conversation.message_count, created) == (len(turn.contents), True)


@scenario("get_or_start_conversation")
async def _get_or_start(case: Case) -> None:
    turn = case.ledger.turn(None)
    user = turn.contents[0]
    async with case.played(turn, changes=[Change(SESSIONS, (user,), 0, 1)]) as uow:
        conversation, _ = await get_or_start_conversation(
            uow, user_id=user, session_id="s", drafts=turn.drafts()
        )
        assert conversation.message_count == len(turn.contents)


@scenario("append_messages")
async def _append(case: Case) -> None:
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    async with case.played(turn) as uow:
        messages = await append_messages(uow, conversation_id=conversation, drafts=turn.drafts())
        turn.placed(messages)


@scenario("append_messages with a request_id")
async def _append_request(case: Case) -> None:
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    async with case.played(turn) as uow:
        messages = await append_messages(
            uow, conversation_id=conversation, drafts=turn.drafts(), request_id="r"
        )
        turn.placed(messages)


@scenario("append_messages with an expected version")
async def _append_expecting(case: Case) -> None:
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation)
    async with case.played(turn) as uow:
        messages = await append_messages(
            uow, conversation_id=conversation, drafts=turn.drafts(), expected_version=1
        )
        turn.placed(messages)


@scenario(
    "append_messages with ids given before", needs_retry=True, may_raise=(TransactionAborted,)
)
async def _append_given_before(case: Case) -> None:
    """After a failover to a standby that lagged behind, ids may come again."""
    conversation, _ = await case.started()
    ids: Any = case.store._adapter._ids  # type: ignore[attr-defined]
    first = ids._ranges[0]
    used, turn = case.ledger.turn(conversation), case.ledger.turn(conversation)
    uow = case.store.unit_of_work()
    with case.ledger.unit(used, uow=uow, note=f"before {case.name}"):
        messages = await append_messages(uow, conversation_id=conversation, drafts=used.drafts())
        used.placed(messages)
    ids._ranges[0] = first
    async with case.played(turn) as uow:
        messages = await append_messages(uow, conversation_id=conversation, drafts=turn.drafts())
        turn.placed(messages)


@scenario("close_conversation")
async def _close(case: Case) -> None:
    conversation, _ = await case.started()
    change = Change(STATUS, (conversation,), "active", "closed")
    async with case.played(changes=[change]) as uow:
        assert (await close_conversation(uow, conversation_id=conversation)).status == "closed"


@scenario("close_conversation with an expected version", may_raise=(CommitOutcomeUnknown,))
async def _close_expecting(case: Case) -> None:
    conversation, _ = await case.started()
    change = Change(STATUS, (conversation,), "active", "closed")
    async with case.played(changes=[change]) as uow:
        closed = await close_conversation(uow, conversation_id=conversation, expected_version=1)
        assert closed.status == "closed"


@scenario("reopen_conversation")
async def _reopen(case: Case) -> None:
    conversation, _ = await case.started()
    await close_conversation(case.beside.unit_of_work(), conversation_id=conversation)
    change = Change(STATUS, (conversation,), "closed", "active")
    async with case.played(changes=[change]) as uow:
        assert (await reopen_conversation(uow, conversation_id=conversation)).status == "active"


@scenario("archive_conversation")
async def _archive(case: Case) -> None:
    conversation, _ = await case.started()
    change = Change(STATUS, (conversation,), "active", "archived")
    async with case.played(changes=[change]) as uow:
        assert (await archive_conversation(uow, conversation_id=conversation)).status == "archived"


@scenario("update_conversation", may_raise=(CommitOutcomeUnknown,))
async def _update(case: Case) -> None:
    conversation, _ = await case.started()
    async with case.played(changes=[Change(MARK, (conversation,), None, "new")]) as uow:
        await update_conversation(uow, conversation_id=conversation, metadata={"mark": "new"})


@scenario("update_conversation with an expected version", may_raise=(CommitOutcomeUnknown,))
async def _update_expecting(case: Case) -> None:
    conversation, _ = await case.started()
    async with case.played(changes=[Change(MARK, (conversation,), None, "new")]) as uow:
        await update_conversation(
            uow, conversation_id=conversation, metadata={"mark": "new"}, expected_version=1
        )


@scenario("redact_message")
async def _redact(case: Case) -> None:
    _, turn = await case.started()
    assert turn.told is not None
    message_id = turn.told[0][2]
    change = Change(CONTENT, (message_id,), turn.contents[0], "[redacted]")
    async with case.played(changes=[change]) as uow:
        assert (await redact_message(uow, message_id=message_id)).is_redacted


async def _to_be_taken(case: Case) -> tuple[int, Turn]:
    """Start a conversation whose messages need not be there in the end."""
    conversation, turn = await case.started()
    [unit] = [unit for unit in case.ledger.units if turn in unit.turns]
    unit.told = Told.UNKNOWN
    return conversation, turn


async def _to_be_popped(case: Case) -> tuple[int, Change]:
    """Start a conversation with one message to be popped."""
    conversation, _ = await case.started()
    turn = case.ledger.turn(conversation, size=1)
    with case.ledger.unit(turn) as unit:
        await append_messages(
            case.beside.unit_of_work(user_id=case.user_id),
            conversation_id=conversation,
            drafts=turn.drafts(),
        )
    unit.told = Told.UNKNOWN
    return conversation, Change(SAYING, (list(turn.contents),), 1, 0)


@scenario("pop_message", may_raise=(CommitOutcomeUnknown,))
async def _pop(case: Case) -> None:
    conversation, change = await _to_be_popped(case)
    async with case.played(changes=[change]) as uow:
        popped = await pop_message(uow, conversation_id=conversation)
        assert popped is not None
        assert (popped.position, [popped.content]) == (3, *change.parameters)


@scenario("pop_message with an expected version", may_raise=(CommitOutcomeUnknown,))
async def _pop_expecting(case: Case) -> None:
    conversation, change = await _to_be_popped(case)
    async with case.played(changes=[change]) as uow:
        popped = await pop_message(uow, conversation_id=conversation, expected_version=2)
        assert popped is not None
        assert popped.position == 3


@scenario("replace_messages")
async def _replace(case: Case) -> None:
    conversation, old = await _to_be_taken(case)
    turn = case.ledger.turn(conversation)
    change = Change(SAYING, (list(old.contents),), 2, 0)
    async with case.played(turn, changes=[change]) as uow:
        messages = await replace_messages(uow, conversation_id=conversation, drafts=turn.drafts())
        turn.placed(messages)


@scenario("replace_messages by nothing", may_raise=(CommitOutcomeUnknown,))
async def _clear(case: Case) -> None:
    conversation, old = await _to_be_taken(case)
    async with case.played(changes=[Change(SAYING, (list(old.contents),), 2, 0)]) as uow:
        assert await replace_messages(uow, conversation_id=conversation, drafts=[]) == []


@scenario("delete_conversation")
async def _delete(case: Case) -> None:
    conversation, _ = await case.started()
    async with case.played(removes=[conversation]) as uow:
        await delete_conversation(uow, conversation_id=conversation)


@scenario("erase_user", may_raise=(CommitOutcomeUnknown,))
async def _erase(case: Case) -> None:
    user = case.ledger.turn(None).contents[0]
    conversations = [(await case.started(user))[0] for _ in range(2)]
    async with case.played(removes=conversations) as uow:
        assert (await erase_user(uow, user_id=user)).conversations == 2


@scenario("purge_conversations", may_raise=(CommitOutcomeUnknown,))
async def _purge(case: Case) -> None:
    user = case.ledger.turn(None).contents[0]
    conversations = [(await case.started(user))[0] for _ in range(2)]
    async with case.played(removes=conversations) as uow:
        receipt = await purge_conversations(uow, inactive_since=FUTURE, user_id=user)
        assert receipt.conversations == 2


def record(turn: Turn, user_id: str) -> ConversationRecord:
    """Return a record of a conversation with one turn."""
    return {
        "user_id": user_id,
        "session_id": turn.contents[0],
        "messages": [{"role": "user", "content": content} for content in turn.contents],
    }


@scenario("import_conversations", may_raise=(StoreUnavailable, CommitOutcomeUnknown))
async def _import(case: Case) -> None:
    turns = [case.ledger.turn(None) for _ in range(2)]
    user = turns[0].contents[0]
    async with case.played(*turns, changes=[Change(SESSIONS, (user,), 0, 2)]) as uow:
        records = [record(turn, user) for turn in turns]
        assert (await import_conversations(uow, records=records)).conversations == 2


# Reads --------------------------------------------------------------------------------------------


@scenario("get_conversation")
async def _get(case: Case) -> None:
    conversation, _ = await case.started()
    async with case.played() as uow:
        found = await get_conversation(uow, conversation_id=conversation)
        assert (found.id, found.message_count) == (conversation, 2)


@scenario("find_conversation")
async def _find(case: Case) -> None:
    conversation, turn = await case.started()
    async with case.played() as uow:
        found = await find_conversation(uow, user_id="u", session_id=turn.contents[0])
        assert found is not None
        assert found.id == conversation


@scenario("list_conversations")
async def _list(case: Case) -> None:
    user = case.ledger.turn(None).contents[0]
    conversation, _ = await case.started(user)
    async with case.played() as uow:
        page = await list_conversations(uow, user_id=user)
        assert [found.id for found in page.conversations] == [conversation]


@scenario("get_message")
async def _get_message(case: Case) -> None:
    _, turn = await case.started()
    assert turn.told is not None
    async with case.played() as uow:
        message = await get_message(uow, message_id=turn.told[0][2])
        assert message.content == turn.contents[0]


@scenario("latest_messages")
async def _latest(case: Case) -> None:
    conversation, turn = await case.started()
    async with case.played() as uow:
        messages = await latest_messages(uow, conversation_id=conversation)
        assert tuple(message.content for message in messages) == turn.contents


@scenario("messages_after")
async def _after(case: Case) -> None:
    conversation, turn = await case.started()
    async with case.played() as uow:
        messages = await messages_after(uow, conversation_id=conversation, position=1)
        assert tuple(message.content for message in messages) == turn.contents[1:]


@scenario("export_conversations", may_raise=(StoreUnavailable,))
async def _export(case: Case) -> None:
    user = case.ledger.turn(None).contents[0]
    for _ in range(2):
        await case.started(user)
    async with case.played() as uow:
        records = [record async for record in export_conversations(uow, user_id=user)]
        assert [len(record["messages"]) for record in records] == [2, 2]
