"""A unit whose answer was lost: the store finds out what became of it, and never guesses.

The old connection may have stored the unit, may be about to, or may never have got it; and others
may have changed the conversation since.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import psycopg
import pytest
from late_proxy import LateProxy
from store_fixtures import draft, open_store, turn

from conversation_store import (
    AsyncUnitOfWork,
    CommitOutcomeUnknown,
    ConcurrentUpdate,
    Conversation,
    ConversationNotAcceptingMessages,
    ConversationNotFound,
    ConversationRecord,
    ConversationStore,
    DuplicateSession,
    ErasureReceipt,
    Message,
    MessageNotFound,
    NewConversation,
    Outcome,
    RemovalCondition,
    RequestConflict,
    Retry,
    Status,
    StoreTimeout,
    StoreUnavailable,
    TransactionAborted,
    append_messages,
    archive_conversation,
    close_conversation,
    delete_conversation,
    erase_user,
    find_conversation,
    get_conversation,
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
from conversation_store.adapters.postgres import removal
from conversation_store.adapters.postgres.inquiry import Inquiry


@dataclass
class Lossy:
    """A store behind a proxy, and the same store without it."""

    store: ConversationStore
    direct: ConversationStore
    proxy: LateProxy
    dsn: str
    chat: int = 0

    def uow(self) -> AsyncUnitOfWork:
        """Return a unit of work behind the proxy."""
        return self.store.unit_of_work()

    def append(self, drafts: list[Any], **values: Any) -> Awaitable[list[Message]]:
        """Append behind the proxy."""
        return append_messages(self.uow(), conversation_id=self.chat, drafts=drafts, **values)

    async def stored(self) -> list[str]:
        """Return the contents of the conversation; positions must have no gap."""
        messages = await messages_after(
            self.direct.unit_of_work(), conversation_id=self.chat, position=0
        )
        assert [message.position for message in messages] == list(range(1, len(messages) + 1))
        found = await get_conversation(self.direct.unit_of_work(), conversation_id=self.chat)
        assert found.message_count == len(messages)
        return [message.content for message in messages]

    async def close(self) -> None:
        """Close the conversation, as another would."""
        await close_conversation(self.direct.unit_of_work(), conversation_id=self.chat)


@asynccontextmanager
async def lossy_store(dsn: str, migrated: set[str], **options: Any) -> AsyncIterator[Lossy]:
    """Open a store behind a proxy, with a conversation, ids in stock and a warm connection."""
    async with open_store(dsn, "operational", migrated) as direct, LateProxy(dsn) as proxy:
        values = {"min_size": 1, "max_size": 4} | options
        async with ConversationStore.connect(proxy.dsn, **values) as store:
            lossy = Lossy(store, direct, proxy, dsn)
            started, _ = await start_conversation(lossy.uow(), user_id="u", session_id="s")
            lossy.chat = started.id
            yield lossy


@pytest.fixture
async def lossy(dsn: str, migrated: set[str]) -> AsyncIterator[Lossy]:
    """Give a store behind a proxy."""
    async with lossy_store(dsn, migrated) as opened:
        yield opened


@asynccontextmanager
async def locked(lossy: Lossy) -> AsyncIterator[None]:
    """Hold the lock of the conversation's row."""
    async with await psycopg.AsyncConnection.connect(lossy.dsn) as blocker:
        await blocker.execute(
            "SELECT FROM operational.ai_conversations WHERE id = %s FOR UPDATE", [lossy.chat]
        )
        yield
        await blocker.rollback()


async def waits(lossy: Lossy, *, count: int) -> None:
    """Return when so many backends wait for a lock."""
    async with await psycopg.AsyncConnection.connect(lossy.dsn, autocommit=True) as watcher:
        async with asyncio.timeout(5):
            while True:
                cursor = await watcher.execute(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                )
                row = await cursor.fetchone()
                if row is not None and row[0] >= count:
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Awaitable[Any]]], None]:
    """Give a way to have something done between the loss of an answer and the first question."""

    def arrange(act: Callable[[], Awaitable[Any]]) -> None:
        ask = Inquiry._ask
        acts = [act]

        async def ask_later(inquiry: Inquiry, lost: CommitOutcomeUnknown) -> Any:
            if acts:
                await acts.pop()()
            return await ask(inquiry, lost)

        monkeypatch.setattr(Inquiry, "_ask", ask_later)

    return arrange


# Each service function --------------------------------------------------------------------------


WRITES: dict[str, Callable[[AsyncUnitOfWork, int], Awaitable[Any]]] = {
    "append": lambda uow, chat: append_messages(uow, conversation_id=chat, drafts=turn(1)),
    "append, with slots": lambda uow, chat: append_messages(
        uow,
        conversation_id=chat,
        drafts=[draft("ü\u2028", slots={"a": [1.0, 1e23, -0.0, None]}, metadata={}) for _ in "ab"],
    ),
    "append, with a request": lambda uow, chat: append_messages(
        uow, conversation_id=chat, drafts=turn(1), request_id="r"
    ),
    "append, at a version": lambda uow, chat: append_messages(
        uow, conversation_id=chat, drafts=turn(1), expected_version=1
    ),
    "replace": lambda uow, chat: replace_messages(uow, conversation_id=chat, drafts=turn(1)),
    "replace, at a version": lambda uow, chat: replace_messages(
        uow, conversation_id=chat, drafts=turn(1), expected_version=1
    ),
    "start": lambda uow, _: start_conversation(
        uow, user_id="u", session_id="new", drafts=turn(1), metadata={"a": 1}
    ),
    "start, silent": lambda uow, _: start_conversation(uow, user_id="u", session_id="new"),
    "get or start": lambda uow, _: get_or_start_conversation(
        uow, user_id="u", session_id="new", drafts=turn(1)
    ),
    "get or start, there": lambda uow, _: get_or_start_conversation(
        uow, user_id="u", session_id="s"
    ),
    "start, with a request": lambda uow, _: start_conversation(
        uow, user_id="u", session_id="new", drafts=turn(1), metadata={"a": 1}, request_id="r"
    ),
    "get or start, with a request": lambda uow, _: get_or_start_conversation(
        uow, user_id="u", session_id="new", drafts=turn(1), request_id="r"
    ),
    "get or start, with a request, there": lambda uow, _: get_or_start_conversation(
        uow, user_id="u", session_id="s", drafts=turn(1), request_id="r"
    ),
    "close": lambda uow, chat: close_conversation(uow, conversation_id=chat),
    "reopen": lambda uow, chat: reopen_conversation(uow, conversation_id=chat),
    "archive": lambda uow, chat: archive_conversation(uow, conversation_id=chat),
    "delete": lambda uow, chat: delete_conversation(uow, conversation_id=chat),
    "update, at a version": lambda uow, chat: update_conversation(
        uow, conversation_id=chat, rescue_id="r", expected_version=1
    ),
}

BY_VERSION = "update, at a version"


async def state(lossy: Lossy) -> list[tuple[Any, ...]]:
    """Return what is stored, without ids and times."""
    page = await list_conversations(lossy.direct.unit_of_work(), user_id="u")
    found: list[tuple[Any, ...]] = []
    for one in page.conversations:
        messages = await latest_messages(lossy.direct.unit_of_work(), conversation_id=one.id)
        said = [(m.position, m.content, m.slots, m.metadata) for m in messages]
        found.append((one.session_id, one.status, one.message_count, one.rescue_id, said))
    return sorted(found)


def without_ids(result: Any) -> Any:
    """Return a result with its ids and times taken out."""
    if isinstance(result, tuple | list):
        return [without_ids(part) for part in result]
    if isinstance(result, Message):
        return result.position, result.content, result.slots, result.metadata
    if isinstance(result, Conversation):
        return result.session_id, result.status, result.message_count, result.metadata
    # What a batch removed whose answer was lost is not in the receipt.
    return None if isinstance(result, ErasureReceipt) else result


@pytest.mark.parametrize("name", [name for name in WRITES if name != BY_VERSION])
async def test_a_lost_answer_is_asked_for_again(dsn: str, migrated: set[str], name: str) -> None:
    """The caller gets what it would have got, and it is stored once, as if nothing had been."""
    async with lossy_store(dsn, migrated) as calm:
        expected = without_ids(await WRITES[name](calm.uow(), calm.chat))
        expected_state = await state(calm)
    async with lossy_store(dsn, migrated) as lossy:
        lossy.proxy.lose()
        uow = lossy.uow()
        result = await WRITES[name](uow, lossy.chat)
        assert without_ids(result) == expected
        assert uow.outcome is Outcome.COMMITTED
        assert await state(lossy) == expected_state


@pytest.mark.parametrize("name", WRITES)
async def test_what_never_arrived_is_sent_again(lossy: Lossy, name: str) -> None:
    """Lost on its way there, it is stored by the second; if it arrives late, it is refused."""
    lossy.proxy.keep()
    uow = lossy.uow()
    await WRITES[name](uow, lossy.chat)
    assert uow.outcome is Outcome.COMMITTED
    before = await state(lossy)
    await lossy.proxy.deliver()
    assert await state(lossy) == before


async def test_it_is_not_asked_over_a_connection_to_a_standby(
    dsn: str, migrated: set[str], between: Any
) -> None:
    """One that takes no writes is not used for the next question."""
    async with lossy_store(dsn, migrated, max_size=1) as lossy:
        store: Any = lossy.store

        async def make_read_only() -> None:
            async with store._adapter._pool.connection() as connection:
                await connection.execute("SET default_transaction_read_only = on")

        between(make_read_only)
        lossy.proxy.lose()
        await lossy.append(turn(1))
        assert await lossy.stored() == ["question 1", "answer 1"]


async def test_an_update_is_not_repeated(lossy: Lossy) -> None:
    """Done again it could undo what another has done since: the caller is told that, at once."""
    lossy.proxy.lose()
    uow = lossy.uow()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await update_conversation(uow, conversation_id=lossy.chat, rescue_id="r")
    assert caught.value.conversation_ids == (lossy.chat,)
    assert caught.value.tried == ()
    assert uow.outcome is Outcome.UNKNOWN


async def test_an_update_at_a_version_that_moved_is_unknown(lossy: Lossy) -> None:
    """Whether it moved by this update or by another's cannot be told; it is not done twice."""
    lossy.proxy.lose()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await WRITES[BY_VERSION](lossy.uow(), lossy.chat)
    assert isinstance(caught.value.__cause__, ConcurrentUpdate)
    found = await get_conversation(lossy.direct.unit_of_work(), conversation_id=lossy.chat)
    assert (found.rescue_id, found.version) == ("r", 2)


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove one conversation at a time, or two messages."""
    monkeypatch.setattr("conversation_store.adapters.postgres.removal.BATCH_CONVERSATIONS", 1)
    monkeypatch.setattr("conversation_store.adapters.postgres.removal.BATCH_MESSAGES", 2)


async def purge(uow: AsyncUnitOfWork, progress: Callable[[ErasureReceipt], None]) -> ErasureReceipt:
    """Remove everything that is there now."""
    until = datetime(2100, 1, 1, tzinfo=UTC)
    return await purge_conversations(uow, inactive_since=until, progress=progress)


async def erase(uow: AsyncUnitOfWork, progress: Callable[[ErasureReceipt], None]) -> ErasureReceipt:
    """Remove everything that the user has."""
    return await erase_user(uow, user_id="u", progress=progress)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize("remove", [erase, purge])
async def test_a_batch_is_not_repeated(lossy: Lossy, remove: Any) -> None:
    """Its receipt would count what is left: the error says what went before, and others go on."""
    for session in ("a", "b"):
        await start_conversation(lossy.direct.unit_of_work(), user_id="u", session_id=session)
    lossy.proxy.lose()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await remove(lossy.uow(), lambda _: None)
    assert caught.value.erased is None
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await remove(lossy.uow(), lambda _: lossy.proxy.lose())
    assert caught.value.erased is not None
    assert caught.value.erased.conversations == 1
    rest = await remove(lossy.uow(), lambda _: None)
    page = await list_conversations(lossy.direct.unit_of_work(), user_id="u")
    assert page.conversations == []
    assert rest.conversations <= 1


@pytest.mark.usefixtures("small_batches")
async def test_a_deletion_in_batches_is_asked_for_again(lossy: Lossy) -> None:
    """Whatever batch was lost, the conversation is gone; the receipt may lack what that removed."""
    for number in range(3):
        await append_messages(
            lossy.direct.unit_of_work(), conversation_id=lossy.chat, drafts=turn(number)
        )
    receipt = await delete_conversation(
        lossy.uow(), conversation_id=lossy.chat, progress=lambda _: lossy.proxy.lose()
    )
    assert receipt.messages <= 8
    with pytest.raises(ConversationNotFound):
        await get_conversation(lossy.direct.unit_of_work(), conversation_id=lossy.chat)


@pytest.mark.parametrize(
    "read",
    [
        lambda uow, chat: get_conversation(uow, conversation_id=chat),
        lambda uow, chat: latest_messages(uow, conversation_id=chat),
        lambda uow, _: list_conversations(uow, user_id="u"),
        lambda uow, _: find_conversation(uow, user_id="u", session_id="s"),
    ],
)
async def test_a_lost_read_is_read_again(lossy: Lossy, read: Any) -> None:
    """Nobody notices."""
    lossy.proxy.lose()
    assert await read(lossy.uow(), lossy.chat) == await read(
        lossy.direct.unit_of_work(), lossy.chat
    )


# The old connection is still at work ------------------------------------------------------------


async def test_the_old_one_waits_for_a_lock(lossy: Lossy) -> None:
    """Looking would say that it is not stored, and it would be a moment later."""
    async with locked(lossy):
        sending = asyncio.ensure_future(lossy.append(turn(1)))
        await waits(lossy, count=1)
        lossy.proxy.cut_off()
        await waits(lossy, count=2)  # the old one and the new one
    messages = await sending
    assert [message.position for message in messages] == [1, 2]
    assert await lossy.stored() == ["question 1", "answer 1"]


async def test_the_second_overtakes_the_first(lossy: Lossy) -> None:
    """Arriving late, the first is refused by its own ids, and takes no position."""
    lossy.proxy.keep()
    messages = await lossy.append(turn(1))
    await append_messages(
        lossy.direct.unit_of_work(), conversation_id=lossy.chat, drafts=[draft("between")]
    )
    await lossy.proxy.deliver()
    assert [message.position for message in messages] == [1, 2]
    assert await lossy.stored() == ["question 1", "answer 1", "between"]


async def test_the_old_one_starts_the_conversation_meanwhile(lossy: Lossy) -> None:
    """Who gets or starts meets its own start, which its snapshot lacks: it asks once more."""
    async with await psycopg.AsyncConnection.connect(lossy.dsn) as blocker:
        # It holds back the first message of the old one, whose conversation is there by then.
        await blocker.execute(FOREIGN, [lossy.chat + 2, lossy.chat])
        uow = lossy.uow()
        sending = asyncio.ensure_future(WRITES["get or start"](uow, lossy.chat))
        await waits(lossy, count=1)
        lossy.proxy.cut_off()
        await waits(lossy, count=2)
        await blocker.rollback()
        found, created = await sending
    assert (found.session_id, found.message_count, created) == ("new", 2, True)
    assert uow.outcome is Outcome.COMMITTED


async def test_the_server_does_not_answer_in_time(dsn: str, migrated: set[str]) -> None:
    """At the deadline the caller is told what to ask for later, and what was tried."""
    retry = Retry(deadline=0.5)
    async with lossy_store(dsn, migrated, retry=retry) as lossy:
        uow = lossy.uow()
        async with locked(lossy):
            sending = asyncio.ensure_future(
                append_messages(uow, conversation_id=lossy.chat, drafts=turn(1), request_id="r")
            )
            await waits(lossy, count=1)
            lossy.proxy.cut_off()
            with pytest.raises(CommitOutcomeUnknown) as caught:
                await sending
        assert caught.value.request_ids == ("r",)
        assert caught.value.conversation_ids == (lossy.chat,)
        assert isinstance(caught.value.tried[-1], StoreTimeout)
        assert uow.outcome is Outcome.UNKNOWN
        again = await lossy.append(turn(1), request_id="r")
        assert [message.position for message in again] == [1, 2]
        assert await lossy.stored() == ["question 1", "answer 1"]


async def test_the_question_itself_is_cancelled(lossy: Lossy) -> None:
    """The outcome stays unknown, and CancelledError goes on."""
    uow = lossy.uow()
    async with locked(lossy):
        sending = asyncio.ensure_future(
            append_messages(uow, conversation_id=lossy.chat, drafts=turn(1))
        )
        await waits(lossy, count=1)
        lossy.proxy.cut_off()
        await waits(lossy, count=2)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
    assert uow.outcome is Outcome.UNKNOWN
    # In one look: the old one may be stored at any moment.
    direct = lossy.direct.unit_of_work()
    assert len(await latest_messages(direct, conversation_id=lossy.chat)) in {0, 2}


# Others were faster -----------------------------------------------------------------------------


async def test_closed_since(lossy: Lossy, between: Any) -> None:
    """What was stored before the conversation was closed is acknowledged."""
    between(lossy.close)
    lossy.proxy.lose()
    messages = await lossy.append(turn(1))
    assert [message.position for message in messages] == [1, 2]
    found = await latest_messages(lossy.direct.unit_of_work(), conversation_id=lossy.chat)
    assert found == messages


async def test_closed_before_it_arrived(lossy: Lossy, between: Any) -> None:
    """What is refused and not there is refused, also when the first arrives late."""
    between(lossy.close)
    lossy.proxy.keep()
    uow = lossy.uow()
    with pytest.raises(ConversationNotAcceptingMessages):
        await append_messages(uow, conversation_id=lossy.chat, drafts=turn(1))
    assert uow.outcome is Outcome.ROLLED_BACK
    await lossy.proxy.deliver()
    assert await lossy.stored() == []


async def test_closed_before_it_arrived_and_reopened_since(lossy: Lossy, between: Any) -> None:
    """What remains open: refused by status, and the status changes back before the first arrives.

    It is stored then, once, though its caller was told that it was refused.
    """
    between(lossy.close)
    lossy.proxy.keep()
    with pytest.raises(ConversationNotAcceptingMessages):
        await lossy.append(turn(1))
    await reopen_conversation(lossy.direct.unit_of_work(), conversation_id=lossy.chat)
    await lossy.proxy.deliver()
    assert await lossy.stored() == ["question 1", "answer 1"]


async def test_deleted_since(lossy: Lossy, between: Any) -> None:
    """There is no such conversation any more."""

    async def delete() -> None:
        await delete_conversation(lossy.direct.unit_of_work(), conversation_id=lossy.chat)

    between(delete)
    lossy.proxy.lose()
    with pytest.raises(ConversationNotFound):
        await lossy.append(turn(1))


async def test_another_appended_since(lossy: Lossy, between: Any) -> None:
    """The positions told are those that were given the first time."""

    async def append() -> None:
        await append_messages(
            lossy.direct.unit_of_work(), conversation_id=lossy.chat, drafts=[draft("after")]
        )

    between(append)
    lossy.proxy.lose()
    messages = await lossy.append(turn(1), expected_version=1)
    assert [message.position for message in messages] == [1, 2]
    assert await lossy.stored() == ["question 1", "answer 1", "after"]


async def test_another_took_the_session_before_it_arrived(lossy: Lossy, between: Any) -> None:
    """DuplicateSession stands: the conversation of that session is another's."""

    async def start() -> None:
        await start_conversation(lossy.direct.unit_of_work(), user_id="u", session_id="new")

    between(start)
    lossy.proxy.keep()
    with pytest.raises(DuplicateSession):
        await start_conversation(lossy.uow(), user_id="u", session_id="new", drafts=turn(1))
    await lossy.proxy.deliver()
    found = await find_conversation(lossy.direct.unit_of_work(), user_id="u", session_id="new")
    assert found is not None
    assert found.message_count == 0


@pytest.mark.parametrize("is_same_request", [True, False])
@pytest.mark.parametrize("start", [start_conversation, get_or_start_conversation])
async def test_another_start_came_before_the_request_arrived(
    lossy: Lossy, between: Any, start: Any, is_same_request: bool
) -> None:
    """What is told is about the conversation that is there, and stays true when the first comes."""
    given: dict[str, Any] = {"user_id": "u", "session_id": "new", "request_id": "r"}

    async def start_another() -> None:
        request_id = "r" if is_same_request else "other"
        await start_conversation(
            lossy.direct.unit_of_work(), **given | {"drafts": turn(2), "request_id": request_id}
        )

    between(start_another)
    lossy.proxy.keep()
    uow = lossy.uow()
    if is_same_request:
        with pytest.raises(RequestConflict):
            await start(uow, drafts=turn(1), **given)
    elif start is start_conversation:
        with pytest.raises(DuplicateSession):
            await start(uow, drafts=turn(1), **given)
    else:
        assert (await start(uow, drafts=turn(1), **given))[1] is False
    is_found = start is get_or_start_conversation and not is_same_request
    assert uow.outcome is (Outcome.COMMITTED if is_found else Outcome.ROLLED_BACK)
    before = await state(lossy)
    await lossy.proxy.deliver()
    assert await state(lossy) == before


async def test_a_start_that_is_deleted_before_it_arrived(lossy: Lossy) -> None:
    """What remains open: its ids are free again, so the first starts it once more."""
    lossy.proxy.keep()
    started, _ = await start_conversation(lossy.uow(), user_id="u", session_id="new")
    await delete_conversation(lossy.direct.unit_of_work(), conversation_id=started.id)
    await lossy.proxy.deliver()
    found = await find_conversation(lossy.direct.unit_of_work(), user_id="u", session_id="new")
    assert found is not None
    assert found.id == started.id


FOREIGN = """
INSERT INTO operational.ai_messages (conversation_id, position, id, role, content, timestamp)
SELECT id, 1, %s, 'user', 'of another', now() FROM operational.ai_conversations WHERE id = %s
"""


@pytest.mark.parametrize("is_same_conversation", [True, False])
async def test_another_has_the_ids(lossy: Lossy, between: Any, is_same_conversation: bool) -> None:
    """As after a failover that set the sequence back: ids alone are no proof of what they name."""
    [before] = await lossy.append([draft("before")])
    other, _ = await start_conversation(lossy.uow(), user_id="u", session_id="other")
    place = lossy.chat if is_same_conversation else other.id

    async def insert() -> None:
        async with await psycopg.AsyncConnection.connect(lossy.dsn) as connection:
            await connection.execute(
                FOREIGN.replace("id, 1", "id, message_count + 1"), [other.id + 1, place]
            )
            await connection.execute(
                "UPDATE operational.ai_conversations SET message_count = message_count + 1"
                " WHERE id = %s",
                [place],
            )

    assert other.id == before.id + 1
    between(insert)
    lossy.proxy.keep()
    uow = lossy.uow()
    with pytest.raises(TransactionAborted, match="id was given twice"):
        await append_messages(uow, conversation_id=lossy.chat, drafts=[draft("mine")])
    assert uow.outcome is Outcome.ROLLED_BACK
    await lossy.proxy.deliver()
    await lossy.append([draft("again")])
    of_another = ["of another"] if is_same_conversation else []
    assert await lossy.stored() == ["before", *of_another, "again"]


# Units of several writes ------------------------------------------------------------------------


async def test_starts_with_requests_and_an_append_that_is_refused_since(
    lossy: Lossy, between: Any
) -> None:
    """The append alone tells that the unit is stored; what the starts said is read back."""
    sessions = [NewConversation(user_id="u", session_id=name) for name in ("a", "b", "s")]
    between(lossy.close)
    lossy.proxy.lose()
    async with lossy.uow() as uow:
        first = uow.conversations.add(sessions[0], turn(1), request_id="r")
        second = uow.conversations.get_or_add(sessions[1], turn(2), request_id="r")
        third = uow.conversations.get_or_add(sessions[2], turn(3), request_id="r")
        uow.messages.append(lossy.chat, turn(4))
    conversation, messages = await first
    assert [message.content for message in messages] == ["question 1", "answer 1"]
    direct = lossy.direct.unit_of_work()
    assert await latest_messages(direct, conversation_id=conversation.id) == messages
    found, created = await second
    assert (found.session_id, found.message_count, created) == ("b", 2, True)
    found, created = await third
    assert (found.id, created) == (lossy.chat, False)
    assert await lossy.stored() == ["question 4", "answer 4"]


@pytest.mark.parametrize("is_kept", [True, False])
async def test_an_append_and_a_close(lossy: Lossy, is_kept: bool) -> None:
    """One unit: sent again it is refused by its own close, and both writes have their results."""
    if is_kept:
        lossy.proxy.keep()
    else:
        lossy.proxy.lose()
    async with lossy.uow() as uow:
        appended = uow.messages.append(lossy.chat, turn(1))
        closed = uow.conversations.set_status(lossy.chat, Status.CLOSED)
    assert [message.position for message in await appended] == [1, 2]
    assert (await closed).status is Status.CLOSED
    if is_kept:
        await lossy.proxy.deliver()
    assert await lossy.stored() == ["question 1", "answer 1"]


async def test_a_start_an_update_and_a_request(lossy: Lossy) -> None:
    """The ids of the start keep the update from being done twice."""
    lossy.proxy.lose()
    async with lossy.uow() as uow:
        started = uow.conversations.add(
            NewConversation(user_id="u", session_id="new"), [draft("first")]
        )
        appended = uow.messages.append(lossy.chat, turn(1), request_id="r")
        removed = uow.conversations.remove(404)
    conversation, [first] = await started
    assert (conversation.session_id, conversation.version) == ("new", 1)
    assert first.content == "first"
    assert [message.position for message in await appended] == [1, 2]
    await removed
    assert await lossy.stored() == ["question 1", "answer 1"]


async def append_and_close(uow: AsyncUnitOfWork, chat: int, _: int) -> None:
    """All of it is in one conversation."""
    uow.messages.append(chat, turn(1))
    uow.conversations.set_status(chat, Status.CLOSED)


async def append_and_close_another(uow: AsyncUnitOfWork, chat: int, other: int) -> None:
    """It leaves something elsewhere."""
    uow.messages.append(chat, turn(1))
    uow.conversations.set_status(other, Status.CLOSED)


async def append_and_request(uow: AsyncUnitOfWork, chat: int, other: int) -> None:
    """It leaves something elsewhere, which may be of another sending."""
    uow.messages.append(chat, turn(1))
    uow.messages.append(other, turn(1), request_id="r")


async def append_interactively(uow: AsyncUnitOfWork, chat: int, other: int) -> None:
    """Only its COMMIT is lost."""
    await uow.messages.append(chat, turn(1))
    await uow.conversations.set_status(other, Status.CLOSED)


async def append_and_remove(uow: AsyncUnitOfWork, chat: int, other: int) -> None:
    """It removes itself what it appended to."""
    uow.messages.append(chat, turn(1))
    uow.conversations.set_status(other, Status.CLOSED)
    uow.conversations.remove(chat)


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (append_and_close, Outcome.ROLLED_BACK),
        (append_and_close_another, Outcome.UNKNOWN),
        (append_and_request, Outcome.UNKNOWN),
        (append_interactively, Outcome.UNKNOWN),
        (append_and_remove, Outcome.UNKNOWN),
    ],
)
async def test_a_unit_of_which_a_conversation_was_deleted_since(
    lossy: Lossy, between: Any, work: Any, outcome: Outcome
) -> None:
    """That the turn is not there does not tell: it may have been removed with its conversation."""
    other, _ = await start_conversation(lossy.uow(), user_id="u", session_id="other")

    async def delete() -> None:
        await delete_conversation(lossy.direct.unit_of_work(), conversation_id=lossy.chat)

    between(delete)
    uow = lossy.uow()
    error = CommitOutcomeUnknown if outcome is Outcome.UNKNOWN else ConversationNotFound
    with pytest.raises(error):
        async with uow:
            await work(uow, lossy.chat, other.id)
            lossy.proxy.lose()
    assert uow.outcome is outcome


@pytest.mark.parametrize(
    ("at_a_time", "work", "outcome"),
    [
        (1, append_and_close_another, Outcome.COMMITTED),
        (2, append_and_close_another, Outcome.UNKNOWN),
        (2, append_and_request, Outcome.UNKNOWN),
    ],
)
async def test_a_unit_of_which_a_turn_was_removed_since(  # noqa: PLR0917 - fixtures
    lossy: Lossy,
    between: Any,
    monkeypatch: pytest.MonkeyPatch,
    at_a_time: int,
    work: Any,
    outcome: Outcome,
) -> None:
    """A long conversation loses its end first: what is left of a turn tells, nothing does not."""
    monkeypatch.setattr(removal, "BATCH_MESSAGES", at_a_time)
    other, _ = await start_conversation(lossy.uow(), user_id="u", session_id="other")
    await append_messages(lossy.uow(), conversation_id=lossy.chat, drafts=turn(0))

    async def trim() -> None:
        async with lossy.direct.unit_of_work() as direct:
            direct.conversations.remove_part(lossy.chat)

    between(trim)
    uow = lossy.uow()
    with suppress(CommitOutcomeUnknown):
        async with uow:
            await work(uow, lossy.chat, other.id)
            lossy.proxy.lose()
    assert uow.outcome is outcome


async def test_a_unit_of_which_a_turn_is_not_there(lossy: Lossy, between: Any) -> None:
    """A conversation that does not have it proves that nothing of the unit was stored."""
    other, _ = await start_conversation(lossy.uow(), user_id="u", session_id="other")
    between(lossy.close)
    for request_id in (None, "r"):
        lossy.proxy.keep()
        uow = lossy.uow()
        with pytest.raises(ConversationNotAcceptingMessages):
            async with uow:
                uow.conversations.set_status(other.id, Status.CLOSED)
                uow.messages.append(lossy.chat, turn(1), request_id=request_id)
        assert uow.outcome is Outcome.ROLLED_BACK
        await lossy.proxy.deliver()
    found = await get_conversation(lossy.direct.unit_of_work(), conversation_id=other.id)
    assert found.status is Status.ACTIVE


async def test_a_user_is_not_erased_again(lossy: Lossy, between: Any) -> None:
    """A start besides proves nothing: it would be erased, with what was said in it since."""

    async def append() -> None:
        found = await find_conversation(lossy.direct.unit_of_work(), user_id="u", session_id="new")
        assert found is not None
        await append_messages(
            lossy.direct.unit_of_work(), conversation_id=found.id, drafts=[draft("since")]
        )

    between(append)
    lossy.proxy.lose()
    uow = lossy.uow()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        async with uow:
            uow.conversations.remove_some(RemovalCondition(user_id="u"))
            uow.conversations.add(NewConversation(user_id="u", session_id="new"), turn(1))
    assert caught.value.tried == ()
    assert uow.outcome is Outcome.UNKNOWN


# Only the COMMIT was lost -----------------------------------------------------------------------


async def test_the_answer_to_a_commit_is_lost(lossy: Lossy) -> None:
    """It is stored, so the unit is left normally."""
    async with lossy.uow() as uow:
        messages = await uow.messages.append(lossy.chat, turn(1))
        lossy.proxy.lose()
    assert uow.outcome is Outcome.COMMITTED
    found = await latest_messages(lossy.direct.unit_of_work(), conversation_id=lossy.chat)
    assert found == messages


async def test_a_commit_never_arrives(lossy: Lossy) -> None:
    """When the server ends the old connection it is known that nothing is stored: retryable."""
    uow = lossy.uow()

    async def unit() -> None:
        async with uow:
            await uow.messages.append(lossy.chat, turn(1))
            lossy.proxy.keep()

    ending = asyncio.ensure_future(unit())
    await waits(lossy, count=1)  # the question waits for the old transaction
    await lossy.proxy.forget()
    with pytest.raises(StoreUnavailable) as caught:
        await ending
    assert caught.value.retryable
    assert uow.outcome is Outcome.ROLLED_BACK
    assert await lossy.stored() == []


async def test_a_commit_arrives_late(lossy: Lossy) -> None:
    """The question waits for the old transaction, so it cannot be overtaken by it."""

    async def unit() -> None:
        async with lossy.uow() as uow:
            await uow.messages.append(lossy.chat, turn(1))
            lossy.proxy.keep()

    ending = asyncio.ensure_future(unit())
    await waits(lossy, count=1)
    await lossy.proxy.deliver()
    await ending
    assert await lossy.stored() == ["question 1", "answer 1"]


async def test_what_was_undone_is_not_asked_for(lossy: Lossy) -> None:
    """An inner block that was rolled back has no part in the question."""
    async with lossy.uow() as uow:
        await uow.messages.append(lossy.chat, [draft("kept")])
        async with uow:
            await uow.messages.append(lossy.chat, [draft("undone")])
            await uow.conversations.set_status(lossy.chat, Status.CLOSED)
            await uow.rollback()
        await uow.messages.append(lossy.chat, [draft("kept too")])
        lossy.proxy.lose()
    assert uow.outcome is Outcome.COMMITTED
    assert await lossy.stored() == ["kept", "kept too"]


async def test_sql_of_the_host_makes_it_unknown(lossy: Lossy) -> None:
    """What the host did cannot be sent again; the ids are named."""
    uow = lossy.uow()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        async with uow:
            [message] = await uow.messages.append(lossy.chat, [draft("kept")])
            await (await uow.connection()).execute("SELECT 1")
            lossy.proxy.lose()
    assert caught.value.message_ids == (message.id,)
    assert uow.outcome is Outcome.UNKNOWN
    assert await lossy.stored() == ["kept"]


async def test_a_status_alone_cannot_be_told(lossy: Lossy) -> None:
    """Of an interactive unit that inserted nothing, nothing proves that it was stored."""
    with pytest.raises(CommitOutcomeUnknown):
        async with lossy.uow() as uow:
            await uow.conversations.set_status(lossy.chat, Status.CLOSED)
            lossy.proxy.lose()


async def erase_and_start(uow: AsyncUnitOfWork, _: int) -> None:
    """Start anew for a user that is forgotten."""
    await uow.conversations.remove_some(RemovalCondition(user_id="u"))
    await uow.conversations.add(NewConversation(user_id="u", session_id="new"), turn(1))


async def start_and_remove(uow: AsyncUnitOfWork, chat: int) -> None:
    """Start a conversation and remove it; what else the unit does is stored."""
    conversation, _ = await uow.conversations.add(NewConversation(user_id="u", session_id="new"))
    await uow.conversations.set_status(chat, Status.CLOSED)
    await uow.conversations.remove(conversation.id)


async def append_and_import(uow: AsyncUnitOfWork, chat: int) -> None:
    """Append, and import a conversation."""
    await uow.messages.append(chat, turn(1))
    record: ConversationRecord = {"user_id": "u", "session_id": "imported", "messages": []}
    await import_conversations(uow, records=[record])


@pytest.mark.parametrize("work", [erase_and_start, start_and_remove, append_and_import])
async def test_what_removes_its_own_proof_is_unknown(lossy: Lossy, work: Any) -> None:
    """It could be done again although it is stored, so nothing would stand in its way."""
    uow = lossy.uow()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        async with uow:
            await work(uow, lossy.chat)
            lossy.proxy.lose()
    assert caught.value.tried == ()
    assert uow.outcome is Outcome.UNKNOWN


async def test_run_does_a_lost_unit_again(lossy: Lossy) -> None:
    """`run` begins anew once it is certain that nothing is stored."""
    tries: list[int] = []

    async def work(uow: AsyncUnitOfWork) -> list[Message]:
        tries.append(1)
        messages = await uow.messages.append(lossy.chat, turn(len(tries)))
        if len(tries) == 1:
            lossy.proxy.keep()
        return messages

    ending = asyncio.ensure_future(lossy.store.run(work))
    await waits(lossy, count=1)
    await lossy.proxy.forget()
    messages = await ending
    assert [message.position for message in messages] == [1, 2]
    assert await lossy.stored() == ["question 2", "answer 2"]


# Together with others, and on a connection that was lent ----------------------------------------


async def test_a_lost_flush_of_many(dsn: str, migrated: set[str]) -> None:
    """Each turn of it is asked for by its own unit, and stored once."""
    async with lossy_store(dsn, migrated, coalesce=True, max_size=8) as lossy:
        first = asyncio.ensure_future(lossy.append([draft("0")]))
        await asyncio.sleep(0)
        others = [asyncio.ensure_future(lossy.append([draft(f"{n}")])) for n in range(1, 9)]
        await first
        lossy.proxy.lose()
        ends = await asyncio.gather(*others)
        assert sorted(message.position for [message] in ends) == list(range(2, 10))
        stored = await lossy.stored()
        assert all(stored[message.position - 1] == message.content for [message] in ends)


async def test_a_connection_that_was_lent_is_the_only_one(lossy: Lossy) -> None:
    """There is no other to ask over: the caller is told."""
    async with await psycopg.AsyncConnection.connect(
        lossy.proxy.dsn, autocommit=True
    ) as connection:
        await get_conversation(
            lossy.store.unit_of_work(connection=connection), conversation_id=lossy.chat
        )
        uow = lossy.store.unit_of_work(connection=connection)
        lossy.proxy.lose()
        with pytest.raises(CommitOutcomeUnknown):
            await append_messages(uow, conversation_id=lossy.chat, drafts=turn(1))
        assert uow.outcome is Outcome.UNKNOWN
    assert await lossy.stored() == ["question 1", "answer 1"]


# Redaction --------------------------------------------------------------------------------------


async def redact_all(lossy: Lossy, chat: int | None = None) -> None:
    """Redact what was said, as another would."""
    uow = lossy.direct.unit_of_work()
    for message in await latest_messages(uow, conversation_id=chat or lossy.chat):
        await redact_message(uow, message_id=message.id)


@pytest.mark.parametrize("how", ["lose", "keep"])
async def test_a_redaction_is_done_once(lossy: Lossy, how: str) -> None:
    """Whether its answer was lost or it was: the version moves once, and the caller is told."""
    message, _ = await lossy.append(turn(1))
    getattr(lossy.proxy, how)()
    uow = lossy.uow()
    assert (await redact_message(uow, message_id=message.id)).is_redacted
    assert uow.outcome is Outcome.COMMITTED
    if how == "keep":
        await lossy.proxy.deliver()
    assert await lossy.stored() == ["[redacted]", "answer 1"]
    found = await get_conversation(lossy.direct.unit_of_work(), conversation_id=lossy.chat)
    assert found.version == 3


async def test_a_redaction_of_what_was_deleted_since(lossy: Lossy, between: Any) -> None:
    """There is no such message any more."""
    message, _ = await lossy.append(turn(1))

    async def delete() -> None:
        await delete_conversation(lossy.direct.unit_of_work(), conversation_id=lossy.chat)

    between(delete)
    lossy.proxy.lose()
    with pytest.raises(MessageNotFound):
        await redact_message(lossy.uow(), message_id=message.id)


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_redaction_in_a_unit_that_is_refused(
    lossy: Lossy, between: Any, is_stored: bool
) -> None:
    """Refused when it is sent again, its parts are looked for: words that are there say it all."""
    message, _ = await lossy.append(turn(1))
    between(lossy.close)
    (lossy.proxy.lose if is_stored else lossy.proxy.keep)()
    uow = lossy.uow()
    try:
        async with uow:
            redacted = uow.messages.redact(message.id)
            uow.messages.append(lossy.chat, turn(2))
        assert (await redacted).is_redacted
    except ConversationNotAcceptingMessages:
        assert not is_stored
    assert uow.outcome is (Outcome.COMMITTED if is_stored else Outcome.ROLLED_BACK)
    if not is_stored:
        await lossy.proxy.deliver()
    assert (await lossy.stored())[0] == ("[redacted]" if is_stored else "question 1")


@pytest.fixture
def redacted_between(lossy: Lossy, between: Any) -> None:
    """Have another redact all that was said between the loss of an answer and the question."""

    async def redact() -> None:
        uow = lossy.direct.unit_of_work()
        for one in (await list_conversations(uow, user_id="u")).conversations:
            await redact_all(lossy, one.id)

    between(redact)


@pytest.mark.usefixtures("redacted_between")
@pytest.mark.parametrize("name", ["append", "append, with slots", "start", "get or start"])
async def test_what_was_redacted_since(lossy: Lossy, name: str) -> None:
    """It was stored: that its words are gone does not deny it."""
    lossy.proxy.lose()
    uow = lossy.uow()
    await WRITES[name](uow, lossy.chat)
    assert uow.outcome is Outcome.COMMITTED
    said = [text for one in await state(lossy) for _, text, _, _ in one[-1]]
    assert said == ["[redacted]", "[redacted]"]


@pytest.mark.usefixtures("redacted_between")
@pytest.mark.parametrize("name", [name for name in WRITES if "with a request" in name][:3])
async def test_a_request_that_was_redacted_since(lossy: Lossy, name: str) -> None:
    """It is a conflict now, which does not say that it was not stored: the caller is told so."""
    lossy.proxy.lose()
    uow = lossy.uow()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await WRITES[name](uow, lossy.chat)
    assert isinstance(caught.value.__cause__, RequestConflict)
    assert uow.outcome is Outcome.UNKNOWN
    with pytest.raises(RequestConflict):
        await WRITES[name](lossy.uow(), lossy.chat)


async def test_anothers_request_that_was_redacted_since(lossy: Lossy, between: Any) -> None:
    """A turn of other ids is another's; what it said cannot be compared: a conflict."""

    async def another() -> None:
        await append_messages(
            lossy.direct.unit_of_work(),
            conversation_id=lossy.chat,
            drafts=turn(1),
            request_id="r",
        )
        await redact_all(lossy)

    between(another)
    lossy.proxy.keep()
    uow = lossy.uow()
    with pytest.raises(RequestConflict):
        await append_messages(uow, conversation_id=lossy.chat, drafts=turn(1), request_id="r")
    assert uow.outcome is Outcome.ROLLED_BACK
    await lossy.proxy.deliver()
    assert await lossy.stored() == ["[redacted]", "[redacted]"]


# Taking back ------------------------------------------------------------------------------------


async def clear(lossy: Lossy, **values: Any) -> list[Message]:
    """Clear the conversation behind the proxy."""
    return await replace_messages(lossy.uow(), conversation_id=lossy.chat, drafts=[], **values)


async def pop(lossy: Lossy, **values: Any) -> Message | None:
    """Pop a message behind the proxy."""
    return await pop_message(lossy.uow(), conversation_id=lossy.chat, **values)


@pytest.mark.parametrize("take", [pop, clear])
async def test_what_only_takes_is_not_repeated(lossy: Lossy, take: Any) -> None:
    """Done again it would take what another has said since: the caller is told that, at once."""
    await lossy.append(turn(1))
    lossy.proxy.lose()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await take(lossy)
    assert caught.value.conversation_ids == (lossy.chat,)
    assert caught.value.tried == ()
    assert await lossy.stored() == ["question 1"] * (take is pop)


@pytest.mark.parametrize("take", [pop, clear])
async def test_what_takes_at_a_version_is_done_once(lossy: Lossy, take: Any) -> None:
    """The version moves once: sent again it is done, or refused, and then it stays unknown."""
    await lossy.append(turn(1))
    lossy.proxy.keep()
    await take(lossy, expected_version=2)
    await lossy.append(turn(2))
    before = await lossy.stored()
    await lossy.proxy.deliver()
    assert await lossy.stored() == before
    lossy.proxy.lose()
    with pytest.raises(CommitOutcomeUnknown) as caught:
        await take(lossy, expected_version=4)
    assert isinstance(caught.value.__cause__, ConcurrentUpdate)
    assert await lossy.stored() == (before[:-1] if take is pop else [])


async def test_a_replacement_takes_nothing_that_came_since(lossy: Lossy, between: Any) -> None:
    """It meets its own ids, and does not clear them out of the way."""

    async def another() -> None:
        await append_messages(
            lossy.direct.unit_of_work(), conversation_id=lossy.chat, drafts=turn(2)
        )

    between(another)
    await lossy.append(turn(0))
    lossy.proxy.lose()
    uow = lossy.uow()
    replaced = await WRITES["replace"](uow, lossy.chat)
    assert [message.content for message in replaced] == ["question 1", "answer 1"]
    assert uow.outcome is Outcome.COMMITTED
    assert await lossy.stored() == ["question 1", "answer 1", "question 2", "answer 2"]


@pytest.mark.parametrize("is_stored", [True, False])
async def test_a_replacement_of_what_was_closed_since(
    lossy: Lossy, between: Any, is_stored: bool
) -> None:
    """Refused when it is sent again, it is looked for."""
    between(lossy.close)
    (lossy.proxy.lose if is_stored else lossy.proxy.keep)()
    uow = lossy.uow()
    try:
        await WRITES["replace"](uow, lossy.chat)
        assert is_stored
    except ConversationNotAcceptingMessages:
        assert not is_stored
        await lossy.proxy.deliver()
    assert uow.outcome is (Outcome.COMMITTED if is_stored else Outcome.ROLLED_BACK)
    assert await lossy.stored() == ["question 1", "answer 1"] * is_stored


async def append_and_pop(uow: AsyncUnitOfWork, chat: int, other: int) -> None:
    """Append here and pop there."""
    await uow.messages.append(chat, turn(2))
    await uow.messages.pop(other)


async def append_and_pop_it(uow: AsyncUnitOfWork, chat: int, other: int) -> None:
    """Append, and take away again what was appended; what else the unit does is stored."""
    await uow.messages.append(chat, turn(2)[:1])
    await uow.messages.pop(chat)
    await uow.conversations.set_status(other, Status.CLOSED)


async def pop_and_replace(uow: AsyncUnitOfWork, chat: int, other: int) -> None:
    """Pop, then store what proves it."""
    await uow.messages.pop(other)
    await uow.messages.append(chat, turn(0))
    await uow.messages.replace(chat, turn(2))


@pytest.mark.parametrize(
    ("work", "outcome"),
    [
        (append_and_pop, Outcome.COMMITTED),
        (append_and_pop_it, Outcome.UNKNOWN),
        (pop_and_replace, Outcome.COMMITTED),
    ],
)
@pytest.mark.parametrize("is_one_flush", [False, True])
async def test_a_unit_that_takes_and_stores(
    lossy: Lossy, work: Any, outcome: Outcome, is_one_flush: bool
) -> None:
    """What it stored proves the rest, but what it took away again; a lone flush told no result."""
    other, _ = await start_conversation(
        lossy.uow(), user_id="u", session_id="other", drafts=turn(1)
    )
    await lossy.append(turn(1))
    uow = lossy.uow()
    with suppress(CommitOutcomeUnknown):
        async with uow:
            if is_one_flush:
                lossy.proxy.lose()
                uow.messages.append(lossy.chat, turn(2))
                uow.messages.pop(other.id)
            else:
                await work(uow, lossy.chat, other.id)
                lossy.proxy.lose()
    assert uow.outcome is (Outcome.UNKNOWN if is_one_flush else outcome)
    found = await get_conversation(lossy.direct.unit_of_work(), conversation_id=other.id)
    assert found.message_count == (2 if work is append_and_pop_it and not is_one_flush else 1)


POPPED_SINCE = [
    "append",
    "append, with a request",
    "replace",
    "start",
    "start, with a request",
    "get or start, with a request",
]


@pytest.mark.parametrize("name", POPPED_SINCE)
async def test_what_lost_its_end_since(lossy: Lossy, between: Any, name: str) -> None:
    """What is left of a turn proves it; a request is a conflict now, and is told as unknown."""

    async def pop_and_append() -> None:
        uow = lossy.direct.unit_of_work()
        session_id = "new" if "start" in name else "s"
        found = await find_conversation(uow, user_id="u", session_id=session_id)
        assert found is not None
        await pop_message(uow, conversation_id=found.id)
        await append_messages(uow, conversation_id=found.id, drafts=turn(2))

    between(pop_and_append)
    lossy.proxy.lose()
    uow = lossy.uow()
    if "request" in name:
        with pytest.raises(CommitOutcomeUnknown) as caught:
            await WRITES[name](uow, lossy.chat)
        assert isinstance(caught.value.__cause__, RequestConflict)
    else:
        await WRITES[name](uow, lossy.chat)
        assert uow.outcome is Outcome.COMMITTED
    said = [text for one in await state(lossy) for _, text, _, _ in one[-1]]
    assert said == ["question 1", "question 2", "answer 2"]


@pytest.mark.parametrize("is_start", [False, True])
async def test_a_request_beside_what_proves_it_lost_its_end_since(
    lossy: Lossy, between: Any, is_start: bool
) -> None:
    """It was stored, and gives what is left of it, not what stands where its end was."""
    new = NewConversation(user_id="u", session_id="new")
    if not is_start:
        await start_conversation(lossy.uow(), user_id="u", session_id="new")

    async def pop_and_append() -> None:
        uow = lossy.direct.unit_of_work()
        found = await find_conversation(uow, user_id="u", session_id="new")
        assert found is not None
        await pop_message(uow, conversation_id=found.id)
        await append_messages(uow, conversation_id=found.id, drafts=turn(2))

    between(pop_and_append)
    found = await find_conversation(lossy.uow(), user_id="u", session_id="new")
    lossy.proxy.lose()
    async with lossy.uow() as uow:
        uow.messages.append(lossy.chat, turn(0))
        pending: Any
        if found is None:
            pending = uow.conversations.add(new, turn(1), request_id="r")
        else:
            pending = uow.messages.append(found.id, turn(1), request_id="r")
    messages = (await pending)[1] if found is None else await pending
    assert uow.outcome is Outcome.COMMITTED
    assert [(message.position, message.content) for message in messages] == [(1, "question 1")]
