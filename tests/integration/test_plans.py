"""The plans of the statements: what they touch grows with the page, never with the table.

The statements are those that the service functions send, with the parameters they send, explained
on 20,000 conversations with a million messages: once planned for their very parameters, and once as
the generic plan that a prepared statement may end with. One conversation has 100,000 messages and
one user 5,000 conversations, so that a plan that reads a whole history or a whole list shows it.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, get_args

import psycopg
import pytest
from psycopg import sql
from psycopg.types.numeric import Int8
from store_fixtures import APPLICATION, ROLES, as_role, create_roles, turn

from conversation_store import (
    AsyncUnitOfWork,
    ConversationStore,
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
from conversation_store.adapters.postgres import flush, statement
from conversation_store.adapters.postgres.flush import MOST_TURNS, Seat
from conversation_store.adapters.postgres.statement import Command, Cursor
from conversation_store.adapters.postgres.texts import Texts
from conversation_store.domain.removal import BATCH_CONVERSATIONS, BATCH_LOOKED_AT, BATCH_MESSAGES

SCHEMA = "plans"
MILLION = 1_000_000
CONVERSATIONS = 20_000
LONG = 1
"""The conversation of 100,000 messages; the others have 45, one of them 90."""
SHORT = 4_322
TABLES = {"ai_conversations", "ai_messages"}
PAGE = 50

Planning = Literal["custom", "generic"]
Call = Callable[[AsyncUnitOfWork], Awaitable[Any]]
Plan = Mapping[str, Any]

# User u-0 has conversations 1..5000; the 15,000 others are of 150 users, 100 each. The user's
# sessions, times and ids are in different orders, and the statuses are mixed.
SEED = """
INSERT INTO {schema}.ai_conversations (id, user_id, session_id, status, start_time, last_activity,
    message_count, version, rescue_id, intent_type, source, metadata)
SELECT n, CASE WHEN n <= 5000 THEN 'u-0' ELSE 'u-' || 1 + n % 150 END, 's-' || n * 7919 % 20000,
    CASE WHEN n % 100 = 0 THEN 'archived' WHEN n % 10 = 1 AND n > 1 THEN 'closed'
        ELSE 'active' END,
    '2024-01-01 00:00Z', '2024-01-02 00:00Z'::timestamptz + n * 104729 % 20000 * interval '1 min',
    CASE WHEN n = 1 THEN 100000 WHEN n = 2 THEN 90 ELSE 45 END, 2, NULL, 'booking', 'web', '{{}}'
FROM generate_series(1, 20000) AS n;
INSERT INTO {schema}.ai_messages (conversation_id, position, id, role, content, timestamp,
    intent_type, slots, metadata, request_id, request_digest)
SELECT c.id, p, 1000000 + row_number() OVER (),
    CASE WHEN p % 2 = 1 THEN 'user' ELSE 'assistant' END,
    'A sentence of about the usual length, said as number ' || p, c.start_time + p * interval '1 s',
    CASE WHEN p % 2 = 1 THEN 'inform' END, '{{"city": "Oslo"}}', NULL,
    'r-' || p / 2, CASE WHEN p % 2 = 0 THEN '\\x00'::bytea END
FROM {schema}.ai_conversations AS c, generate_series(1, c.message_count) AS p;
SELECT setval('{schema}.ai_ids', 10000000);
"""


@pytest.fixture(scope="module")
def seeded(dsn: str) -> Iterator[str]:
    """Give the connection string of a server whose schema `plans` has a million messages."""
    drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(SCHEMA))
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(drop)
        create_roles(dsn)
        # The policies do not bind the superuser, who explains the plans without them.
        migrations = ConversationStore.migration_sql(schema=SCHEMA, row_security=True, **ROLES)
        connection.execute(migrations.encode())
        connection.execute(SEED.format(schema=SCHEMA).encode())
        for table in sorted(TABLES):
            connection.execute(f"VACUUM (ANALYZE) {SCHEMA}.{table}".encode())
        counted = connection.execute(
            f"""SELECT count(*), sum(message_count), (SELECT count(*) FROM {SCHEMA}.ai_messages)
            FROM {SCHEMA}.ai_conversations""".encode()
        ).fetchone()
        assert counted == (CONVERSATIONS, MILLION, MILLION)
        yield dsn
        connection.execute(drop)


@pytest.fixture
async def explain(seeded: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Explain]:
    """Give what explains the statement of a service function, on the million messages."""
    async with ConversationStore.connect(seeded, schema=SCHEMA, min_size=1, max_size=2) as store:
        yield Explain(seeded, store, monkeypatch)


class CaughtError(Exception):
    """The statement that a service function was about to send."""

    def __init__(self, command: Command) -> None:
        super().__init__(command)
        self.command = command


@dataclass(frozen=True)
class Explain:
    """Explains what a service function sends."""

    dsn: str
    store: ConversationStore
    monkeypatch: pytest.MonkeyPatch

    async def __call__(self, call: Call, planning: Planning, user_id: str | None = None) -> Plan:
        """Return the plan, carried out and then undone."""
        return await self.plan_of(await self.command(call, user_id), planning)

    async def plan_of(
        self, command: Command, planning: Planning, secured: str | None = None
    ) -> Plan:
        """Return the plan of a statement, carried out and then undone.

        As the application, under row security for the user that is `secured`; else as the owner.
        """
        assert command.parameters is not None
        dsn = as_role(self.dsn, APPLICATION) if secured else self.dsn
        connection = await psycopg.AsyncConnection.connect(dsn)
        async with connection:
            if secured:
                setting = "SELECT set_config('conversation_store.user_id', %s, true)"
                await connection.execute(setting, [secured])
            if planning == "custom":
                text, parameters = command.text, command.parameters
            else:
                text, parameters = await _prepared(connection, command), {}
            cursor = connection.cursor()
            await cursor.execute(
                b"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) " + text, parameters or None
            )
            [[explained]] = await cursor.fetchall()
            await connection.rollback()
        plan: Plan = explained[0]["Plan"]
        return plan

    async def command(self, call: Call, user_id: str | None) -> Command:
        """Let the function run until it sends its statement, and take that away from it."""
        real, next_ids = statement.execute, Texts(SCHEMA).next_ids

        async def catch(cursor: Cursor, command: Command) -> None:
            if command.parameters is not None and command.text != next_ids:
                raise CaughtError(command)
            await real(cursor, command)

        async def catch_alone(_connection: Any, _cursors: list[Cursor], command: Command) -> None:
            raise CaughtError(command)

        with self.monkeypatch.context() as patched:
            patched.setattr(statement, "execute", catch)
            patched.setattr(statement, "execute_alone", catch_alone)
            with pytest.raises(CaughtError) as caught:
                await call(self.store.unit_of_work(user_id=user_id))
        return caught.value.command


async def _prepared(connection: psycopg.AsyncConnection[Any], command: Command) -> bytes:
    """Prepare a statement as psycopg does, to be planned without its parameters; return its call.

    The types are those that psycopg sends: bigint for Int8, and for text what the server infers.
    """
    assert command.parameters is not None
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", command.text.decode())))
    text = re.sub(
        r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", command.text.decode()
    ).replace("%%", "%")
    values = [command.parameters[name] for name in names]
    types = ", ".join("bigint" if isinstance(value, Int8) else "unknown" for value in values)
    await connection.execute(b"SET plan_cache_mode = force_generic_plan")
    await connection.execute(f"PREPARE caught ({types}) AS {text}".encode())
    literals = ", ".join(sql.Literal(value).as_string() for value in values)
    return f"EXECUTE caught ({literals})".encode()


def nodes(plan: Plan) -> Iterator[Plan]:
    """Walk a plan."""
    yield plan
    for part in plan.get("Plans", ()):
        yield from nodes(part)


def touched(node: Plan) -> float:
    """Return how many rows a scan met, whether it kept them or not."""
    dropped = sum(
        node.get(reason, 0)
        for reason in ("Rows Removed by Filter", "Rows Removed by Index Recheck")
    )
    rows: float = (node["Actual Rows"] + dropped) * node["Actual Loops"]
    return rows


def check(plan: Plan, *, rows: int, buffers: int, bitmap: bool = False) -> None:
    """Check that a plan uses indexes only, and meets no more rows and buffers than that."""
    scans = [
        node
        for node in nodes(plan)
        if node.get("Relation Name") in TABLES and node["Node Type"] != "ModifyTable"
    ]
    allowed = {"Index Scan", "Index Only Scan"} | ({"Bitmap Heap Scan"} if bitmap else set())
    met = [(node["Node Type"], node["Relation Name"], touched(node)) for node in scans]
    assert {node["Node Type"] for node in scans} <= allowed, met
    assert sum(map(touched, scans)) <= rows, met
    for node in nodes(plan):
        if node["Node Type"] in {"Sort", "Incremental Sort"}:
            assert node["Actual Rows"] <= rows
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] <= buffers, met


plannings = pytest.mark.parametrize("planning", get_args(Planning))
scopes = pytest.mark.parametrize("user_id", [None, "u-0"], ids=["unscoped", "scoped"])


# Reading ----------------------------------------------------------------------------------------


@plannings
@scopes
@pytest.mark.parametrize("conversation_id", [LONG, SHORT], ids=["long", "short"])
async def test_latest_messages(
    explain: Explain, planning: Planning, user_id: str | None, conversation_id: int
) -> None:
    """The newest messages cost a page, however long the conversation is."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await latest_messages(uow, conversation_id=conversation_id, limit=PAGE)

    check(await explain(call, planning, user_id), rows=PAGE + 1, buffers=30)


@plannings
@pytest.mark.parametrize("before", [99_000, 50_000, 100])
async def test_latest_messages_before(explain: Explain, planning: Planning, before: int) -> None:
    """An older page costs no more than the newest."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await latest_messages(uow, conversation_id=LONG, limit=PAGE, before=before)

    check(await explain(call, planning), rows=PAGE + 1, buffers=30)


@plannings
@scopes
@pytest.mark.parametrize("position", [0, 50_000, 99_990, 100_000])
async def test_messages_after(
    explain: Explain, planning: Planning, user_id: str | None, position: int
) -> None:
    """The messages that follow cost a page, wherever in a long conversation the reader is."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await messages_after(uow, conversation_id=LONG, position=position, limit=PAGE)

    check(await explain(call, planning, user_id), rows=PAGE + 1, buffers=30)


@plannings
@pytest.mark.parametrize("limit", [1, 1000])
async def test_a_page_of_any_size(explain: Explain, planning: Planning, limit: int) -> None:
    """What a page of messages costs is its own size."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await messages_after(uow, conversation_id=LONG, position=50_000, limit=limit)

    check(await explain(call, planning), rows=limit + 1, buffers=20 + limit // 10)


@plannings
@scopes
async def test_get_message(explain: Explain, planning: Planning, user_id: str | None) -> None:
    """One message costs one row, and one of its conversation where users are told apart."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await get_message(uow, message_id=1_500_000)

    check(await explain(call, planning, user_id), rows=2, buffers=15)


@plannings
@scopes
@pytest.mark.parametrize("message_id", [1_001_000, 1_001_001], ids=["first of its turn", "second"])
async def test_redact_message(
    explain: Explain, planning: Planning, user_id: str | None, message_id: int
) -> None:
    """Redacting costs a few rows: the conversation, the message, the first one of its turn."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await redact_message(uow, message_id=message_id)

    check(await explain(call, planning, user_id), rows=8, buffers=100)


@plannings
@scopes
@pytest.mark.parametrize("conversation_id", [SHORT, LONG], ids=["short", "long"])
async def test_pop_message(
    explain: Explain, planning: Planning, user_id: str | None, conversation_id: int
) -> None:
    """Popping costs a few rows: the conversation, the message, the first one of its turn."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await pop_message(uow, conversation_id=conversation_id)

    check(await explain(call, planning, user_id), rows=8, buffers=140)


@plannings
@scopes
async def test_replace_messages(explain: Explain, planning: Planning, user_id: str | None) -> None:
    """Replacing costs the messages that go, and those that come."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await replace_messages(uow, conversation_id=SHORT, drafts=turn(1))

    check(await explain(call, planning, user_id), rows=300, buffers=2000, bitmap=True)


@plannings
@scopes
async def test_get_conversation(explain: Explain, planning: Planning, user_id: str | None) -> None:
    """One conversation costs one row."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await get_conversation(uow, conversation_id=SHORT)

    check(await explain(call, planning, user_id), rows=1, buffers=12)


@plannings
@pytest.mark.parametrize("session_id", ["s-7919", "none of hers"])
async def test_find_conversation(explain: Explain, planning: Planning, session_id: str) -> None:
    """Looking a session up costs one row, of a user with many of them too."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await find_conversation(uow, user_id="u-0", session_id=session_id)

    check(await explain(call, planning), rows=1, buffers=12)


@plannings
@pytest.mark.parametrize("user_id", ["u-0", "u-17", "a stranger"])
async def test_list_conversations(explain: Explain, planning: Planning, user_id: str) -> None:
    """The newest conversations of a user cost a page, however many there are."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await list_conversations(uow, user_id=user_id, limit=PAGE)

    check(await explain(call, planning), rows=PAGE + 1, buffers=100)


@plannings
@pytest.mark.parametrize("status", [None, "active"])
async def test_list_conversations_further_on(
    explain: Explain, planning: Planning, status: str | None
) -> None:
    """A page in the middle of a long list costs no more than the first."""
    cursor = await _cursor_in_the_middle(explain, status)

    async def call(uow: AsyncUnitOfWork) -> None:
        await list_conversations(uow, user_id="u-0", status=status, limit=PAGE, after=cursor)

    check(await explain(call, planning), rows=PAGE + 1, buffers=100)


async def _cursor_in_the_middle(explain: Explain, status: str | None) -> str | None:
    cursor = None
    for _ in range(3):
        page = await list_conversations(
            explain.store.unit_of_work(), user_id="u-0", status=status, limit=1000, after=cursor
        )
        cursor = page.next_cursor
    assert cursor is not None
    return cursor


@plannings
@pytest.mark.parametrize("status", ["active", "closed"])
async def test_list_conversations_of_a_status(
    explain: Explain, planning: Planning, status: str
) -> None:
    """A status is looked for in the index: the table is met for the page alone."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await list_conversations(uow, user_id="u-0", status=status, limit=PAGE)

    check(await explain(call, planning), rows=PAGE + 1, buffers=110)


@plannings
async def test_list_conversations_of_a_rare_status(explain: Explain, planning: Planning) -> None:
    """Where a page has to be looked for in a user's whole list, it is in the index alone."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await list_conversations(uow, user_id="u-0", status="archived", limit=PAGE)

    # 50 of 5,000: sorting the few that a bitmap found is as good as walking the index in order.
    check(await explain(call, planning), rows=PAGE + 1, buffers=200, bitmap=True)


@scopes
@pytest.mark.parametrize("secured", [False, True], ids=["", "row security"])
async def test_export(explain: Explain, user_id: str | None, *, secured: bool) -> None:
    """An export walks two indexes in their order: its first chunk costs what is in it."""

    async def call(uow: AsyncUnitOfWork) -> None:
        async for _ in export_conversations(uow):
            pass

    command = await explain.command(call, user_id)
    dsn = as_role(explain.dsn, APPLICATION) if secured else explain.dsn
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await connection.execute("SELECT set_config('conversation_store.user_id', 'u-0', true)")
        cursor = connection.cursor()
        await cursor.execute(b"EXPLAIN (FORMAT JSON) " + command.text, command.parameters)
        [[explained]] = await cursor.fetchall()
        plan = explained[0]["Plan"]
        found = [(node["Node Type"], node.get("Relation Name")) for node in nodes(plan)]
        look = [("Index Scan", "ai_conversations")] if secured else []
        assert [node for node in found if node != ("Result", None)] == [
            ("Incremental Sort", None),
            ("Nested Loop", None),
            ("Index Scan", "ai_conversations"),
            ("Index Scan", "ai_messages"),
            *look,
        ]
        assert plan["Presorted Key"][-1] == "c.session_id"
        await connection.rollback()


# Writing ----------------------------------------------------------------------------------------


@plannings
@scopes
@pytest.mark.parametrize("conversation_id", [LONG, SHORT], ids=["long", "short"])
@pytest.mark.parametrize("request_id", [None, "new"], ids=["plain", "request"])
async def test_append_messages(
    explain: Explain,
    planning: Planning,
    user_id: str | None,
    conversation_id: int,
    request_id: str | None,
) -> None:
    """A turn costs one row of its conversation, met twice, and its own messages."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await append_messages(
            uow,
            conversation_id=conversation_id,
            drafts=turn(1),
            request_id=request_id,
            expected_version=2,
        )

    check(await explain(call, planning, user_id), rows=2, buffers=120)


@plannings
@pytest.mark.parametrize("user_id", [None, "u-18"], ids=["unscoped", "scoped"])
@pytest.mark.parametrize("apart", [True, False], ids=["apart", "one conversation"])
@pytest.mark.parametrize("request_id", [None, "new"], ids=["plain", "request"])
async def test_append_together(
    explain: Explain, planning: Planning, user_id: str | None, apart: bool, request_id: str | None
) -> None:
    """A flush costs each of its turns no more than it would cost alone."""
    seats: list[Seat] = []
    for number in range(MOST_TURNS):
        async with explain.store.unit_of_work(user_id=user_id) as uow:
            request = None if request_id is None else f"{request_id}-{number}"
            pending: Any = uow.messages.append(
                5_117 + 150 * (number if apart else MOST_TURNS), turn(number), request_id=request
            )
            await uow.rollback()
        write = pending.write
        write.ids = range(number * 2 + 20_000_000, number * 2 + 20_000_002)
        seats.append(Seat(write, write.bind(write.ids), write.conversation_id, number))
    plan = await explain.plan_of(
        Command(Texts(SCHEMA).append_together, flush._together(seats)), planning
    )
    assert plan["Actual Rows"] == MOST_TURNS
    # What its parts write after the last row was returned, the whole does not count.
    buffers = sum(part["Shared Hit Blocks"] + part["Shared Read Blocks"] for part in plan["Plans"])
    assert buffers <= MOST_TURNS * 80
    check(plan, rows=2 * MOST_TURNS, buffers=MOST_TURNS * 80)


@plannings
@scopes
async def test_append_is_repeated(
    explain: Explain, planning: Planning, user_id: str | None
) -> None:
    """The answer to a repeated request costs the messages of its turn."""
    drafts = turn(1)
    uow = explain.store.unit_of_work()
    conversation, _ = await start_conversation(uow, user_id="u-0", session_id="repeated")

    async def call(uow: AsyncUnitOfWork) -> None:
        await append_messages(
            uow, conversation_id=conversation.id, drafts=drafts, request_id="again"
        )

    try:
        await call(uow)
        plan = await explain(call, planning, user_id)
    finally:
        await delete_conversation(uow, conversation_id=conversation.id)
    assert plan["Actual Rows"] == len(drafts)
    check(plan, rows=6, buffers=60)


@plannings
@pytest.mark.parametrize("request_id", [None, "new"], ids=["plain", "request"])
async def test_start_conversation(
    explain: Explain, planning: Planning, request_id: str | None
) -> None:
    """A start reads no row of the tables, however many conversations the user has."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await start_conversation(
            uow, user_id="u-0", session_id="new", drafts=turn(1), request_id=request_id
        )

    check(await explain(call, planning), rows=0, buffers=100)


@plannings
@pytest.mark.parametrize("start", [start_conversation, get_or_start_conversation])
async def test_start_is_repeated(explain: Explain, planning: Planning, start: Any) -> None:
    """The answer to a repeated start costs what it stored, whatever was said since."""
    drafts = turn(1)
    uow = explain.store.unit_of_work()

    async def call(uow: AsyncUnitOfWork) -> None:
        await start(uow, user_id="u-0", session_id="repeated", drafts=drafts, request_id="again")

    conversation, _ = await start_conversation(
        uow, user_id="u-0", session_id="repeated", drafts=drafts, request_id="again"
    )
    try:
        await append_messages(uow, conversation_id=conversation.id, drafts=turn(2) * 500)
        plan = await explain(call, planning)
    finally:
        await delete_conversation(uow, conversation_id=conversation.id)
    assert plan["Actual Rows"] == 1
    check(plan, rows=2 + len(drafts), buffers=60)


@plannings
@pytest.mark.parametrize("request_id", [None, "new"], ids=["plain", "request"])
@pytest.mark.parametrize("session_id", ["new", "s-7919"])
async def test_get_or_start_conversation(
    explain: Explain, planning: Planning, session_id: str, request_id: str | None
) -> None:
    """A start that may find something reads at most what it finds."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await get_or_start_conversation(
            uow, user_id="u-0", session_id=session_id, drafts=turn(1), request_id=request_id
        )

    check(await explain(call, planning), rows=1, buffers=100)


@plannings
@scopes
async def test_update_conversation(
    explain: Explain, planning: Planning, user_id: str | None
) -> None:
    """A change of columns costs one row."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await update_conversation(
            uow, conversation_id=LONG, rescue_id="r-1", metadata={"a": 1}, expected_version=2
        )

    check(await explain(call, planning, user_id), rows=1, buffers=60)


@plannings
@scopes
@pytest.mark.parametrize("change", [close_conversation, reopen_conversation, archive_conversation])
async def test_a_change_of_status(
    explain: Explain, planning: Planning, user_id: str | None, change: Any
) -> None:
    """Closing, reopening and archiving cost one row, met twice where it stays as it is."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await change(uow, conversation_id=LONG)

    check(await explain(call, planning, user_id), rows=2, buffers=60)


@plannings
@scopes
async def test_delete_conversation(
    explain: Explain, planning: Planning, user_id: str | None
) -> None:
    """A removal finds its conversation by the index; its messages go by theirs."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await delete_conversation(uow, conversation_id=SHORT)

    check(await explain(call, planning, user_id), rows=3, buffers=30)


@plannings
@scopes
async def test_delete_a_long_conversation(
    explain: Explain, planning: Planning, user_id: str | None
) -> None:
    """A batch costs the messages that it removes, however many are left."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await delete_conversation(uow, conversation_id=LONG)

    rows = BATCH_MESSAGES + 10
    check(await explain(call, planning, user_id), rows=rows, buffers=3 * rows, bitmap=True)


@plannings
@pytest.mark.parametrize("user_id", ["u-0", "u-17"], ids=["5,000", "100"])
async def test_erase_user(explain: Explain, planning: Planning, user_id: str) -> None:
    """A batch costs the conversations that it removes, however many the user has."""

    async def call(uow: AsyncUnitOfWork) -> None:
        await erase_user(uow, user_id=user_id)

    rows = BATCH_CONVERSATIONS + 2 * BATCH_MESSAGES // 45
    check(await explain(call, planning), rows=rows, buffers=3 * rows, bitmap=True)


@plannings
@pytest.mark.parametrize("dry_run", [False, True], ids=["purge", "dry run"])
@scopes
async def test_purge_conversations(
    explain: Explain, planning: Planning, user_id: str | None, dry_run: bool
) -> None:
    """A batch walks along an index, and looks at no more than so many conversations."""

    async def call(uow: AsyncUnitOfWork) -> None:
        since = datetime(2024, 1, 2, 8, tzinfo=UTC)
        await purge_conversations(uow, inactive_since=since, dry_run=dry_run)

    rows = 2 * BATCH_LOOKED_AT + 2 * BATCH_MESSAGES // 45
    check(await explain(call, planning, user_id), rows=rows, buffers=2 * rows)


@plannings
@pytest.mark.parametrize("on_duplicate", ["error", "skip"])
async def test_import(explain: Explain, planning: Planning, on_duplicate: Any) -> None:
    """To look a batch up costs what is in it, in whatever table it is looked for."""
    records: list[Any] = [
        {
            "session_id": f"imported-{number}",
            "user_id": "u-0",
            "messages": [{"role": "user", "content": "hello"}] * 10,
        }
        for number in range(20)
    ]

    async def call(uow: AsyncUnitOfWork) -> None:
        await import_conversations(uow, records=records, on_duplicate=on_duplicate)

    check(await explain(call, planning), rows=20, buffers=20 * 6)


# Under row security -----------------------------------------------------------------------------


SECURED: dict[str, tuple[Call, int, int]] = {
    "latest": (lambda u: latest_messages(u, conversation_id=LONG, limit=PAGE), PAGE, 30),
    "latest, before": (
        lambda u: latest_messages(u, conversation_id=LONG, limit=PAGE, before=50_000),
        PAGE,
        30,
    ),
    "after": (
        lambda u: messages_after(u, conversation_id=LONG, position=50_000, limit=PAGE),
        PAGE,
        30,
    ),
    "get_message": (lambda u: get_message(u, message_id=1_050_000), 1, 20),
    "get": (lambda u: get_conversation(u, conversation_id=SHORT), 0, 12),
    "find": (lambda u: find_conversation(u, user_id="u-0", session_id="s-7919"), 0, 12),
    "list": (lambda u: list_conversations(u, user_id="u-0", limit=PAGE), 0, 100),
    "list, of a status": (
        lambda u: list_conversations(u, user_id="u-0", status="active", limit=PAGE),
        0,
        110,
    ),
    "append": (lambda u: append_messages(u, conversation_id=LONG, drafts=turn(1)), 2, 130),
    "append a request": (
        lambda u: append_messages(u, conversation_id=LONG, drafts=turn(1), request_id="new"),
        2,
        140,
    ),
    "start": (
        lambda u: start_conversation(u, user_id="u-0", session_id="new", drafts=turn(1)),
        2,
        100,
    ),
    "get or start": (
        lambda u: get_or_start_conversation(u, user_id="u-0", session_id="new", drafts=turn(1)),
        2,
        100,
    ),
    "update": (lambda u: update_conversation(u, conversation_id=LONG, rescue_id="r"), 0, 60),
    "close": (lambda u: close_conversation(u, conversation_id=LONG), 0, 60),
    "pop_message": (lambda u: pop_message(u, conversation_id=LONG), 4, 140),
    "replace_messages": (
        lambda u: replace_messages(u, conversation_id=SHORT, drafts=turn(1)),
        100,
        1000,
    ),
    "redact_message": (lambda u: redact_message(u, message_id=1_050_000), 5, 80),
    "delete": (lambda u: delete_conversation(u, conversation_id=SHORT), 0, 60),
    "delete a long one": (lambda u: delete_conversation(u, conversation_id=LONG), 2010, 6000),
}
"""Calls, how many messages they meet, and how many buffers they cost without policies."""


@plannings
@pytest.mark.parametrize("name", SECURED)
async def test_under_row_security(explain: Explain, planning: Planning, name: str) -> None:
    """The same indexes serve, and each message that is met costs a look at its conversation."""
    call, messages, buffers = SECURED[name]
    command = await explain.command(call, "u-0")
    plan = await explain.plan_of(command, planning, secured="u-0")
    rows = PAGE + 1 if name.startswith("list") else 3
    # All messages of a conversation may be met by way of a bitmap, too.
    bitmap = name == "replace_messages"
    check(plan, rows=2 * messages + rows, buffers=buffers + 4 * messages, bitmap=bitmap)


@plannings
@pytest.mark.parametrize("start", [None, start_conversation, get_or_start_conversation])
async def test_what_is_repeated_under_row_security(
    explain: Explain, planning: Planning, start: Any
) -> None:
    """The answer to a request costs its own messages, whatever was said since."""
    drafts, uow = turn(1), explain.store.unit_of_work()
    conversation, _ = await start_conversation(
        uow, user_id="u-0", session_id="repeated", drafts=drafts, request_id="again"
    )

    async def call(uow: AsyncUnitOfWork) -> None:
        if start is None:
            await append_messages(
                uow, conversation_id=conversation.id, drafts=drafts, request_id="again"
            )
        else:
            await start(
                uow, user_id="u-0", session_id="repeated", drafts=drafts, request_id="again"
            )

    try:
        await append_messages(uow, conversation_id=conversation.id, drafts=turn(2) * 500)
        plan = await explain.plan_of(await explain.command(call, "u-0"), planning, secured="u-0")
    finally:
        await delete_conversation(uow, conversation_id=conversation.id)
    check(plan, rows=12, buffers=90)


@plannings
async def test_a_look_under_row_security(explain: Explain, planning: Planning) -> None:
    """To find a request whose answer was lost costs its own messages, too."""
    parameters = {
        "conversation_id": Int8(LONG),
        "request_id": "r-100",
        "digest": "\\x00",
        "ids": "{1}",
        "user_id": "u-0",
        "count": Int8(2),
    }
    command = Command(Texts(SCHEMA).look_for_request, parameters)
    plan = await explain.plan_of(command, planning, secured="u-0")
    assert plan["Actual Rows"] == 2
    check(plan, rows=10, buffers=60)


@plannings
@pytest.mark.parametrize("call", ["erasure", "purge", "dry run"])
async def test_removals_under_row_security(explain: Explain, planning: Planning, call: str) -> None:
    """A batch of a user's conversations is found by the same indexes as without policies."""
    since = datetime(2024, 1, 2, 8, tzinfo=UTC)

    async def remove(uow: AsyncUnitOfWork) -> None:
        if call == "erasure":
            await erase_user(uow)
        else:
            await purge_conversations(uow, inactive_since=since, dry_run=call == "dry run")

    command = await explain.command(remove, "u-0")
    plan = await explain.plan_of(command, planning, secured="u-0")
    rows = 2 * BATCH_LOOKED_AT + 2 * BATCH_MESSAGES // 45
    check(plan, rows=rows, buffers=3 * rows, bitmap=True)
