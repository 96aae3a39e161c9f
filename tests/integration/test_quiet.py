"""Whatever breaks between the store and its server, no word of what was said is told.

Every service function fails in every way there is, while all is heard that is logged, warned of,
raised or shown: words that were planted in what was said, and in the password, must not be in it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from listening import (
    ARGUMENTS,
    MARK,
    Ear,
    call,
    listening,
    new_world,
    secret,
    secret_draft,
    secret_record,
    secret_turn,
    ways_to_call,
)
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg_pool import AsyncConnectionPool
from store_fixtures import open_store
from wire_proxy import WireProxy

from conversation_store import (
    ConversationStore,
    ConversationStoreError,
    InvalidRecord,
    Retry,
    StoreClosed,
    StoreError,
    StoreMisconfigured,
    StoreTimeout,
    StoreUnavailable,
    append_messages,
    latest_messages,
    run_unit,
)
from conversation_store.entrypoints.json_lines import RecordReader

SCHEMA = "quiet"
PASSWORD = f"pw-{MARK}"
READS = {
    "export_conversations",
    "find_conversation",
    "get_conversation",
    "get_message",
    "latest_messages",
    "list_conversations",
    "messages_after",
}
NO_RETRY = Retry(attempts=1)


def with_secret(dsn: str) -> str:
    """Return a connection string with a secret password, where the server asks for none."""
    return dsn if "password" in conninfo_to_dict(dsn) else make_conninfo(dsn, password=PASSWORD)


@asynccontextmanager
async def quiet_store(dsn: str, **options: Any) -> AsyncIterator[ConversationStore]:
    """Give a store in a schema of its own, whose connection string holds a secret password."""
    through = with_secret(options.pop("through", dsn))
    options = {"retry": NO_RETRY} | options
    async with open_store(dsn, SCHEMA, set(), through=through, **options) as store:
        yield store


async def execute(dsn: str, *statements: str) -> None:
    """Run SQL of the host's."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement.encode())


def _trigger(body: str) -> list[str]:
    function = (
        f"CREATE FUNCTION {SCHEMA}.hosts() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE said text"
        f" := coalesce(NEW, OLD)::text; BEGIN {body}; RETURN coalesce(NEW, OLD); END $$"
    )
    return [
        function,
        *(
            f"CREATE TRIGGER hosts BEFORE INSERT OR UPDATE OR DELETE ON {SCHEMA}.{table}"
            " FOR EACH ROW EXECUTE FUNCTION quiet.hosts()"
            for table in ("ai_conversations", "ai_messages")
        ),
    ]


FAILURES = {
    "a trigger that quotes the row": _trigger(
        "RAISE EXCEPTION 'no %', said USING DETAIL = said, HINT = said, COLUMN = 'content'"
    ),
    "a trigger that claims a code of ours": _trigger(
        "RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = said, DETAIL = said"
    ),
    "a trigger that wants JSON": _trigger("PERFORM ('{' || said)::json"),
    "a trigger with SQL of its own": _trigger(
        "EXECUTE 'SELECT ' || quote_literal(said) || '::int'"
    ),
    "a trigger that warns": _trigger("RAISE WARNING '%', said; RAISE EXCEPTION 'x'"),
    "a constraint": [
        f"ALTER TABLE {SCHEMA}.{table} ADD CONSTRAINT hosts CHECK ({column} IS NULL) NOT VALID"
        for table, column in (("ai_conversations", "metadata"), ("ai_messages", "content"))
    ],
    "a unique index": [
        f"CREATE UNIQUE INDEX hosts ON {SCHEMA}.ai_messages (content) WHERE position > 2",
    ],
    "a column that is missing": [f"ALTER TABLE {SCHEMA}.ai_messages RENAME content TO hosts"],
}
"""SQL of the host's that makes statements of the store fail, most of it quoting their rows."""


@pytest.mark.parametrize("failure", FAILURES)
async def test_a_refusal_of_the_server_is_quiet(dsn: str, failure: str) -> None:
    """What the server quotes of a row stays with it: in no error, no cause of one, no log."""
    async with quiet_store(dsn) as store, quiet_store_beside(store) as coalescing:
        world = await new_world(store)
        await execute(dsn, *FAILURES[failure])
        failed: set[str] = set()
        with listening() as ear:
            for name in ARGUMENTS:
                for used in (store, coalescing) if name == "append_messages" else (store,):
                    for way in ways_to_call(name, used.unit_of_work, world):
                        error = await ear.outcome(way())
                        if isinstance(error, StoreError):
                            failed.add(name)
            await ear.outcome(asyncio.wait_for(_many(coalescing, world.conversation_id), 5))
            ear.objects()
    writes = {"append_messages", "start_conversation", "import_conversations"}
    assert failed >= ({"append_messages"} if "unique" in failure else writes)


@asynccontextmanager
async def quiet_store_beside(store: ConversationStore) -> AsyncIterator[ConversationStore]:
    """Give another store on the same pool, which has turns share statements."""
    pool: Any = store._adapter._pool  # type: ignore[attr-defined]
    other = ConversationStore.from_pool(pool, schema=SCHEMA, coalesce=True, retry=NO_RETRY)
    async with other:
        yield other


async def _many(store: ConversationStore, conversation_id: int) -> list[Any]:
    turns = (
        append_messages(store.unit_of_work(), conversation_id=conversation_id, drafts=secret_turn())
        for _ in range(8)
    )
    return await asyncio.gather(*turns, return_exceptions=True)


async def test_what_debugging_needs_is_kept(dsn: str) -> None:
    """The cause of an error keeps its class, code, constraint, table and place in the text."""
    async with quiet_store(dsn) as store:
        world = await new_world(store)
        await execute(dsn, *FAILURES["a constraint"][1:])
        turn = {"conversation_id": world.conversation_id, "drafts": secret_turn()}
        with pytest.raises(StoreError) as caught:
            await call("append_messages", store.unit_of_work(), turn)
        cause = caught.value.__cause__
        assert isinstance(cause, psycopg.errors.CheckViolation)
        assert str(cause) == 'new row for relation "ai_messages" violates check constraint "hosts"'
        assert (cause.sqlstate, cause.diag.constraint_name) == ("23514", "hosts")
        assert (cause.diag.schema_name, cause.diag.table_name) == (SCHEMA, "ai_messages")
        assert (cause.diag.message_detail, cause.diag.context, cause.pgresult) == (None,) * 3
        await execute(dsn, *FAILURES["a trigger that wants JSON"])
        with pytest.raises(StoreError) as caught:
            await call("append_messages", store.unit_of_work(), turn)
        assert "left out" in str(caught.value.__cause__)
        await execute(dsn, *FAILURES["a column that is missing"])
        with pytest.raises(StoreMisconfigured) as missing:
            await latest_messages(store.unit_of_work(), conversation_id=world.conversation_id)
        cause = missing.value.__cause__
        assert isinstance(cause, psycopg.errors.UndefinedColumn)
        assert str(cause) == "column m.content does not exist"
        assert cause.diag.statement_position is not None


async def test_errors_of_sql_of_the_host_stay_whole(dsn: str) -> None:
    """What the server says of the host's own SQL is the host's: the store takes nothing out."""
    async with quiet_store(dsn) as store:
        world = await new_world(store)

        async def work(uow: Any) -> None:
            connection = await uow.connection()
            await connection.execute(
                b"UPDATE quiet.ai_messages SET position = -1 WHERE id = %s", [world.message_id]
            )

        for begun in (run_unit(store.unit_of_work, work, NO_RETRY), _in_unit(store, work)):
            with pytest.raises(psycopg.errors.CheckViolation) as caught:
                await begun
            assert MARK in str(caught.value.diag.message_detail)


async def _in_unit(store: ConversationStore, work: Any) -> None:
    async with store.unit_of_work() as uow:
        await work(uow)


@pytest.mark.parametrize("how", ["cancelled", "timed out", "too long", "cut", "killed"])
async def test_an_interruption_is_quiet(dsn: str, how: str) -> None:
    """A call that is cancelled, times out, or loses its connection or server, tells no word."""
    limits = {"options": "-c statement_timeout=1500ms"} if how == "too long" else {}
    async with (
        WireProxy(dsn) as proxy,
        quiet_store(dsn, through=make_conninfo(proxy.dsn, **limits), max_size=60) as store,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as beside,
    ):
        worlds = {name: await new_world(store) for name in ARGUMENTS}
        with listening() as ear:
            async with beside.transaction():
                await beside.execute(
                    b"LOCK quiet.ai_conversations, quiet.ai_messages IN ACCESS EXCLUSIVE MODE"
                )
                timeout = 0.3 if how == "timed out" else None
                new_unit = partial(store.unit_of_work, timeout=timeout)
                tasks = [
                    asyncio.create_task(ear.outcome(way()))
                    for name, world in worlds.items()
                    for way in ways_to_call(name, new_unit, world)[::2]
                ]
                await asyncio.sleep(0.3)
                ear.objects()
                if how == "cancelled":
                    for task in tasks:
                        task.cancel()
                elif how == "cut":
                    for connection in list(proxy.connections):
                        connection.cut()
                elif how == "killed":
                    await beside.execute(
                        b"SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        b" WHERE application_name = 'conversation-store'"
                    )
                done = await asyncio.gather(*tasks, return_exceptions=True)
            for error in done:
                if isinstance(error, BaseException):
                    ear.error(error)
            ear.objects()
    expected = asyncio.CancelledError if how == "cancelled" else StoreError
    assert sum(issubclass(kind, expected) for kind in ear.kinds) >= len(ARGUMENTS)


async def test_a_last_word_of_the_server_is_quiet(dsn: str) -> None:
    """What the server answers to who was cancelled is not logged either."""
    async with quiet_store(dsn, max_size=60) as store:
        worlds = {name: await new_world(store) for name in ARGUMENTS if name not in READS}
        await execute(
            dsn,
            *_trigger(
                "BEGIN PERFORM pg_sleep(20); EXCEPTION WHEN query_canceled THEN"
                " RAISE EXCEPTION '%', said USING DETAIL = said; END"
            ),
        )
        with listening() as ear:
            tasks = [
                asyncio.create_task(ear.outcome(way()))
                for name, world in worlds.items()
                for way in ways_to_call(name, store.unit_of_work, world)
            ]
            await asyncio.sleep(0.2)
            for task in tasks:
                task.cancel()
            for error in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(error, BaseException):
                    ear.error(error)
        assert len(ear.kinds) >= len(worlds)


async def test_a_pool_that_gives_nothing_is_quiet(dsn: str) -> None:
    """A pool that is exhausted, full or closed says how large it is, and nothing of its string."""
    through = with_secret(dsn)
    async with quiet_store(dsn) as store:
        world = await new_world(store)
    pool = AsyncConnectionPool(
        through, open=False, min_size=1, max_size=1, timeout=0.1, max_waiting=1
    )
    lent = ConversationStore.from_pool(pool, schema=SCHEMA, retry=NO_RETRY)
    with listening() as ear:
        async with pool:
            async with pool.connection():
                reads = [
                    ear.outcome(call(name, lent.unit_of_work(), ARGUMENTS[name](world)))
                    for name in READS
                ]
                await asyncio.gather(*reads)
                ear.heard += [repr(lent), repr(pool), repr(lent._adapter)]
        await ear.outcome(call("get_message", lent.unit_of_work(), {"message_id": 1}))
    assert {StoreTimeout, StoreClosed} <= {*ear.kinds}


async def test_a_client_encoding_that_lacks_characters_is_quiet(dsn: str) -> None:
    """Where a host's connections are not in UTF8, the error names the encoding, not the text."""
    async with quiet_store(dsn) as store:
        world = await new_world(store)
        euro = [secret_draft(), *secret_turn()]
        euro[0] = type(euro[0])(role="user", content=secret("content") + " €", slots={"a": "€"})
        await append_messages(
            store.unit_of_work(), conversation_id=world.conversation_id, drafts=euro
        )
        pool = AsyncConnectionPool(
            dsn, open=False, min_size=1, kwargs={"client_encoding": "latin1"}
        )
        refused = 0
        async with pool:
            lent = ConversationStore.from_pool(pool, schema=SCHEMA, retry=NO_RETRY)
            record = secret_record("€", messages=[{"role": "user", "content": secret("x") + "€"}])
            values: dict[str, dict[str, Any]] = {
                "append_messages": {"conversation_id": world.conversation_id, "drafts": euro},
                "start_conversation": {"user_id": "u", "session_id": "n", "drafts": euro},
                "import_conversations": {"records": [record]},
                "latest_messages": {"conversation_id": world.conversation_id},
                "export_conversations": {},
            }
            with listening() as ear:
                for name, arguments in values.items():
                    for way in ("alone", "inside"):
                        uow = lent.unit_of_work()
                        if way == "alone":
                            error = await ear.outcome(call(name, uow, arguments))
                        else:
                            error = await ear.outcome(
                                _inside(uow, world.conversation_id, name, arguments)
                            )
                        assert isinstance(error, StoreMisconfigured), (name, way, error)
                        refused += 1
                uow = lent.unit_of_work()
                found = await call("get_message", uow, {"message_id": world.message_id})
                assert found.content == secret("content")
    assert refused == 10


async def _inside(uow: Any, conversation_id: int, name: str, arguments: dict[str, Any]) -> Any:
    async with uow:
        uow.messages.append(conversation_id, secret_turn())
        return await call(name, uow, arguments)


BAD_STRINGS = [
    f"host=127.0.0.1 port=1 password={PASSWORD}",
    f"host=127.0.0.1 port=1 password={PASSWORD}\ud800",
    f"host=127.0.0.1 port=1 password={PASSWORD}\0",
    f"host=127.0.0.1 port=1 pass word={PASSWORD}",
    f"host=127.0.0.1 port=1 password='{PASSWORD}",
    f"host=127.0.0.1 port=1 {PASSWORD}=x",
    f"host=127.0.0.1 port={PASSWORD}",
    f"postgresql://ada:{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://ada:a@{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://ada:a/{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://ada:1/{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://ada:a?{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://ada:a/b?{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://ada:a#{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://ada:a%zz{PASSWORD}@127.0.0.1:1/db",
    f"postgresql://ada:{PASSWORD}/db",
    f"postgresql://ada@127.0.0.1:1/db?connect_timeout={PASSWORD}",
]


@pytest.mark.parametrize("string", BAD_STRINGS)
async def test_a_connection_string_is_never_told(string: str) -> None:
    """However it is mistyped, nothing of the password is in an error, a cause or a log."""
    with listening() as ear:
        error = await ear.outcome(_opened(string))
        ear.objects()
    assert isinstance(error, StoreUnavailable | StoreMisconfigured)


async def _opened(string: str) -> None:
    async with ConversationStore.connect(string, timeout=1.0):
        pass


async def test_a_wrong_password_is_never_told(dsn: str) -> None:
    """A password that the server refuses is not in the error; host and role may be."""
    from conversation_store.adapters.postgres.embedded import EmbeddedPostgres

    with EmbeddedPostgres(tcp=True) as server, listening() as ear:
        error = await ear.outcome(_opened(make_conninfo(server.dsn, password=PASSWORD)))
        assert isinstance(error, StoreUnavailable)
        assert "password authentication failed" in str(error)
        pool = AsyncConnectionPool(
            make_conninfo(server.dsn, password=PASSWORD), open=False, min_size=1, timeout=0.3
        )
        await pool.open()
        lent = ConversationStore.from_pool(pool, retry=NO_RETRY)
        assert isinstance(await ear.outcome(lent.ping()), StoreTimeout)
        await pool.close()


# The command line ---------------------------------------------------------------------------------

LINES: list[bytes] = [
    f'{{"user_id": "u", "content": {MARK}}}'.encode(),
    f'{{"user_id": "{MARK}'.encode() + b"\xff",
    (f'{{"{MARK}":' * 100_000).encode(),
    f'{{"{MARK}": {"9" * 5000}}}'.encode(),
    b"\x1f\x8b" + MARK.encode(),
]


@pytest.mark.parametrize("line", LINES, ids=lambda line: repr(line[:20]))
async def test_a_file_that_cannot_be_read_is_quiet(tmp_path: Path, line: bytes) -> None:
    """What is wrong with a line is said by its place, not by what stands in it."""
    file = tmp_path / "records.jsonl"
    file.write_bytes(line)

    async def read() -> None:
        with RecordReader.open(str(file)) as records:
            list(records)

    with listening() as ear:
        assert isinstance(await ear.outcome(read()), InvalidRecord)


def _process(*arguments: str, stdin: bytes = b"", **environment: str) -> subprocess.Popen[bytes]:
    ours = {k: v for k, v in os.environ.items() if not k.startswith(("CONVERSATION_STORE_D", "PG"))}
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-m", "conversation_store", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ours | {"PYTHONUNBUFFERED": "1"} | environment,
    )
    assert process.stdin is not None
    process.stdin.write(stdin)
    process.stdin.close()
    process.stdin = None
    return process


async def test_the_command_line_is_quiet(dsn: str) -> None:
    """A bad record, a refusal of the server and an unreadable string show no secret."""
    string = with_secret(dsn)
    async with quiet_store(dsn) as store:
        await new_world(store)
        await execute(dsn, *FAILURES["a constraint"])
        ends = [
            _process("import", "-", "--schema", SCHEMA, stdin=line, CONVERSATION_STORE_DSN=string)
            for line in (
                json.dumps(secret_record("s", status=secret("status"))).encode(),
                json.dumps(secret_record("new")).encode(),
            )
        ]
        ends += [
            _process("export", CONVERSATION_STORE_DSN=f"postgresql://u:a@{PASSWORD}@h/d"),
        ]
        for process in ends:
            out, err = await asyncio.to_thread(process.communicate)
            assert process.returncode in {1, 2}
            assert MARK not in (out + err).decode(errors="replace")


def test_the_demo_is_quiet_about_what_it_imports(tmp_path: Path) -> None:
    """The demo shows its own conversation, and of a file that it imports only counts."""
    file = tmp_path / "dialogues.jsonl"
    lines = [json.dumps(secret_record(f"s{number}")) for number in range(3)]
    file.write_text("\n".join(lines))
    out, err = _process("demo", str(file)).communicate()
    assert b"3 conversations" in out
    assert MARK.encode() not in out + err


async def test_the_ear_hears(dsn: str) -> None:
    """A secret that is told is heard: in a log, a warning, an error and its causes, a repr."""

    def tell(ear: Ear) -> None:
        try:
            try:
                raise ValueError(secret("context"))
            except ValueError:
                raise KeyError from None
        except KeyError as error:
            ear.error(error)

    with pytest.raises(AssertionError, match=MARK), listening() as ear:
        tell(ear)
    async with quiet_store(dsn) as store:
        world = await new_world(store)
        with pytest.raises(AssertionError, match=MARK), listening() as ear:
            error = await ear.outcome(_told_by_the_driver(store, world.message_id))
            assert isinstance(error, psycopg.errors.CheckViolation)
    assert not isinstance(error, ConversationStoreError)


async def _told_by_the_driver(store: ConversationStore, message_id: int) -> None:
    async with store.unit_of_work() as uow:
        connection = await uow.connection()
        await connection.execute(
            b"UPDATE quiet.ai_messages SET position = -1 WHERE id = %s", [message_id]
        )
