"""What a host's type checker sees of the public names. Checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any, assert_type

import conversation_store as cs

if TYPE_CHECKING:
    from datetime import datetime

    from psycopg import AsyncConnection
    from psycopg_pool import AsyncConnectionPool

    from conversation_store.adapters.memory.conversations import InMemoryConversationRepository
    from conversation_store.adapters.memory.messages import InMemoryMessageRepository
    from conversation_store.adapters.memory.unit_of_work import InMemoryUnitOfWork
    from conversation_store.adapters.otel import OpenTelemetryObserver
    from conversation_store.adapters.postgres.conversations import PsycopgConversationRepository
    from conversation_store.adapters.postgres.messages import PsycopgMessageRepository
    from conversation_store.adapters.postgres.unit_of_work import PsycopgUnitOfWork


def adapters_fit_their_ports(
    in_memory: tuple[InMemoryUnitOfWork, InMemoryConversationRepository, InMemoryMessageRepository],
    on_postgres: tuple[PsycopgUnitOfWork, PsycopgConversationRepository, PsycopgMessageRepository],
) -> None:
    """Each adapter can be used wherever its port is asked for."""
    unit: cs.AsyncUnitOfWork = in_memory[0]
    conversations: cs.ConversationRepository = in_memory[1]
    messages: cs.MessageRepository = in_memory[2]
    unit, conversations, messages = on_postgres
    del unit, conversations, messages


def observers(observer: cs.Observer, own: OpenTelemetryObserver) -> None:
    """The observer that is shipped fits the protocol, and every store takes one."""
    observer = own
    assert_type(cs.ConversationStore.in_memory(observer=observer), cs.ConversationStore)
    assert_type(cs.ConversationStore.connect("", observer=None), cs.ConversationStore)


async def stores(
    pool: AsyncConnectionPool[Any], connection: AsyncConnection[Any], now: datetime
) -> None:
    """A store, whatever it is kept in, has one type."""
    assert_type(cs.ConversationStore.connect("dbname=app"), cs.ConversationStore)
    assert_type(
        cs.ConversationStore.connect(
            "dbname=app",
            schema="operational",
            min_size=2,
            max_size=10,
            timeout=30.0,
            prepare_threshold=None,
            row_security=True,
        ),
        cs.ConversationStore,
    )
    assert_type(cs.ConversationStore.from_pool(pool, schema="chat"), cs.ConversationStore)
    assert_type(cs.ConversationStore.in_memory(row_security=True), cs.ConversationStore)
    assert_type(
        cs.ConversationStore.in_memory(clock=lambda: now, lock_timeout=None), cs.ConversationStore
    )
    async with cs.ConversationStore.connect("dbname=app") as store:
        assert_type(store, cs.ConversationStore)
        assert_type(await store.migrate(), list[str])
        assert_type(await store.migrate(id_block=100, connection=connection), list[str])
        assert_type(await store.migrate(row_security=True, application_role="app"), list[str])
        assert_type(store.migration_sql(read_only_role="reader", maintenance_role=None), str)
        await store.ping()
        assert_type(store.unit_of_work(), cs.AsyncUnitOfWork)
        assert_type(store.unit_of_work(user_id="u", connection=connection), cs.AsyncUnitOfWork)
        assert_type(store.unit_of_work(timeout=2.5), cs.AsyncUnitOfWork)


async def units_of_work(uow: cs.AsyncUnitOfWork) -> None:
    """A unit of work gives itself, its repositories, and what became of it."""
    async with uow as entered:
        assert_type(entered, cs.AsyncUnitOfWork)
        assert_type(entered.conversations, cs.ConversationRepository)
        assert_type(entered.messages, cs.MessageRepository)
        assert_type(await entered.connection(), Any)
        await entered.rollback()
    assert_type(uow.user_id, str | None)
    assert_type(uow.outcome, cs.Outcome)


async def repositories(uow: cs.AsyncUnitOfWork, drafts: list[cs.MessageDraft]) -> None:
    """A registered write gives a Pending, which gives what the write comes to; a read gives it."""
    async with uow:
        new = cs.NewConversation(user_id="u", session_id="s")
        started = uow.conversations.add(new, drafts, request_id="r")
        assert_type(started, cs.Pending[tuple[cs.Conversation, list[cs.Message]]])
        found = uow.conversations.get_or_add(new, drafts, request_id="r")
        assert_type(found, cs.Pending[tuple[cs.Conversation, bool]])
        appended = uow.messages.append(1, drafts, request_id="r", expected_version=2)
        assert_type(appended, cs.Pending[list[cs.Message]])
        assert_type(await appended, list[cs.Message])
        closed = uow.conversations.set_status(1, cs.Status.CLOSED, expected_version=2)
        assert_type(closed, cs.Pending[cs.Conversation])
        assert_type(await closed, cs.Conversation)
        assert_type(await uow.conversations.remove(1), None)
        one_user = cs.RemovalCondition(user_id="u", status="closed")
        assert_type(uow.conversations.remove_some(one_user), cs.Pending[cs.RemovedBatch])
        assert_type(uow.conversations.remove_part(1, one_user), cs.Pending[cs.RemovedBatch])
        assert_type(await uow.conversations.find_removable(one_user), cs.RemovedBatch)
        assert_type(await uow.conversations.get(1), cs.Conversation)
        assert_type(await uow.conversations.find("s", "u"), cs.Conversation | None)
        assert_type(await uow.conversations.list_page("u", limit=5), cs.ConversationPage)
        assert_type(uow.messages.redact(1), cs.Pending[cs.Message])
        assert_type(uow.messages.pop(1, expected_version=1), cs.Pending[cs.Message | None])
        assert_type(uow.messages.replace(1, drafts), cs.Pending[list[cs.Message]])
        assert_type(await uow.messages.get(1), cs.Message)
        assert_type(await uow.messages.latest(1, limit=50, before=9), list[cs.Message])
        assert_type(await uow.messages.after(1, 0, limit=50), list[cs.Message])


async def conversations(uow: cs.AsyncUnitOfWork, drafts: list[cs.MessageDraft]) -> None:
    """The service functions for conversations."""
    started = await cs.start_conversation(
        uow,
        user_id="u",
        session_id="s",
        drafts=drafts,
        rescue_id=None,
        intent_type="book",
        source="web",
        metadata={"channel": "web"},
        request_id="r",
    )
    assert_type(started, tuple[cs.Conversation, list[cs.Message]])
    found_or_started = await cs.get_or_start_conversation(
        uow, session_id="s", drafts=drafts, request_id="r"
    )
    assert_type(found_or_started, tuple[cs.Conversation, bool])
    assert_type(await cs.get_conversation(uow, conversation_id=1), cs.Conversation)
    found = await cs.find_conversation(uow, user_id="u", session_id="s")
    assert_type(found, cs.Conversation | None)
    page = await cs.list_conversations(
        uow, user_id="u", status=cs.Status.ACTIVE, limit=20, after=None
    )
    assert_type(page, cs.ConversationPage)
    assert_type(page.conversations, list[cs.Conversation])
    assert_type(page.next_cursor, str | None)
    assert_type(
        await cs.update_conversation(
            uow,
            conversation_id=1,
            rescue_id=None,
            intent_type=cs.UNCHANGED,
            metadata={"n": 1},
            expected_version=3,
        ),
        cs.Conversation,
    )
    assert_type(
        await cs.close_conversation(uow, conversation_id=1, expected_version=3), cs.Conversation
    )
    assert_type(await cs.reopen_conversation(uow, conversation_id=1), cs.Conversation)
    assert_type(await cs.archive_conversation(uow, conversation_id=1), cs.Conversation)
    assert_type(await cs.delete_conversation(uow, conversation_id=1), cs.ErasureReceipt)


async def messages(uow: cs.AsyncUnitOfWork, drafts: list[cs.MessageDraft]) -> None:
    """The service functions for messages."""
    appended = await cs.append_messages(
        uow, conversation_id=1, drafts=drafts, request_id="r", expected_version=1
    )
    assert_type(appended, list[cs.Message])
    assert_type(await cs.redact_message(uow, message_id=1), cs.Message)
    assert_type(await cs.pop_message(uow, conversation_id=1), cs.Message | None)
    replaced = await cs.replace_messages(uow, conversation_id=1, drafts=drafts, expected_version=1)
    assert_type(replaced, list[cs.Message])
    assert_type(await cs.get_message(uow, message_id=1), cs.Message)
    latest = await cs.latest_messages(uow, conversation_id=1, limit=50, before=None)
    assert_type(latest, list[cs.Message])
    newer = await cs.messages_after(uow, conversation_id=1, position=0, limit=50)
    assert_type(newer, list[cs.Message])


async def transfer(
    uow: cs.AsyncUnitOfWork,
    records: list[cs.ConversationRecord],
    stream: AsyncIterator[cs.ConversationRecord],
) -> None:
    """The service functions that move whole conversations."""
    receipt = await cs.import_conversations(uow, records=records, on_duplicate="skip")
    assert_type(receipt, cs.ImportReceipt)

    def report(stored: cs.ImportReceipt) -> None:
        assert_type(stored.conversations, int)

    await cs.import_conversations(uow, records=stream, progress=report)
    exported = cs.export_conversations(uow, user_id="u")
    assert_type(exported, AsyncGenerator[cs.ConversationRecord, None])
    async for record in exported:
        assert_type(record["messages"], list[cs.MessageRecord])
        assert_type(cs.dump_record(record), str)
    erased = await cs.erase_user(uow, user_id="u")
    assert_type(erased, cs.ErasureReceipt)
    assert_type((erased.conversations, erased.messages), tuple[int, int])
    purged = await cs.purge_conversations(
        uow, inactive_since=erased.started_at, status=cs.Status.CLOSED, dry_run=True
    )
    assert_type((erased + purged).digest, str)


def values(conversation: cs.Conversation, message: cs.Message, draft: cs.MessageDraft) -> None:
    """What entities are made of."""
    assert_type(conversation.id, int)
    assert_type(conversation.user_id, str)
    assert_type(conversation.session_id, str)
    assert_type(conversation.status, cs.Status)
    assert_type(conversation.start_time, "datetime")
    assert_type(conversation.last_activity, "datetime")
    assert_type(conversation.message_count, int)
    assert_type(conversation.version, int)
    assert_type(conversation.rescue_id, str | None)
    assert_type(conversation.metadata, cs.JsonObject | None)
    assert_type(conversation.accepts_messages, bool)
    assert_type(message.id, int)
    assert_type(message.conversation_id, int)
    assert_type(message.position, int)
    assert_type(message.role, cs.Role)
    assert_type(message.content, str)
    assert_type(message.timestamp, "datetime")
    assert_type(message.slots, cs.JsonObject | None)
    assert_type(draft.role, cs.Role)


def making_drafts() -> None:
    """A draft takes a role by its name too; what cannot be stored can be made storable."""
    assert_type(
        cs.MessageDraft(role="user", content="hello", slots={"city": "Rome"}), cs.MessageDraft
    )
    assert_type(cs.MessageDraft(role=cs.Role.USER, content="hello"), cs.MessageDraft)
    assert_type(cs.storable_text("a\0b"), str)
    assert_type(cs.storable_json({"a": "\0"}), cs.JsonObject)


def errors(error: cs.ConversationStoreError) -> None:
    """What an error says, it says in typed attributes."""
    assert_type(error.retryable, bool)
    assert_type(error.imported, cs.ImportReceipt | None)
    assert_type(error.erased, cs.ErasureReceipt | None)
    if isinstance(error, cs.InvalidInput):
        assert_type(error.field, str)
        assert_type(error.reason, str)
        assert_type(error.offset, int | None)
    if isinstance(error, cs.DuplicateSession):
        assert_type((error.user_id, error.session_id), tuple[str, str])
    if isinstance(error, cs.ConversationNotFound):
        assert_type(error.conversation_id, int)
    if isinstance(error, cs.InvalidRecord):
        assert_type(error.record, int)


async def what_is_refused(uow: cs.AsyncUnitOfWork, message: cs.Message) -> None:
    """Mistakes that a type checker finds: an ignore that is not needed is an error itself."""
    await cs.append_messages(uow, 1, [])  # type: ignore[call-arg]
    await cs.get_conversation(uow, conversation_id="1")  # type: ignore[arg-type]
    await cs.import_conversations(uow, records=[], on_duplicate="")  # type: ignore[arg-type]
    message.content = "changed"  # type: ignore[misc]
