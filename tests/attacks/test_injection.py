"""Whatever a text looks like, it is a text: it is stored as it is, or refused as a value."""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, Final

import psycopg
import pytest
from attacks.scene import PostgresScene, Scene, both_walls, first_wall
from attacks.surface import service_functions
from attacks.world import ALICE
from psycopg import sql
from store_fixtures import as_role, draft, turn

from conversation_store import (
    Conversation,
    ConversationStore,
    ConversationStoreError,
    InvalidInput,
    Retry,
    StoreError,
    StoreMisconfigured,
    append_messages,
    erase_user,
    export_conversations,
    find_conversation,
    list_conversations,
    start_conversation,
)

SQL: Final = [
    "'; DROP TABLE ai_messages; --",
    "' OR '1'='1",
    '" OR ""="',
    "\\'; DELETE FROM ai_conversations; --",
    "$$; DROP SCHEMA attacks CASCADE; $$",
    "1); DELETE FROM ai_conversations; --",
    "u', 's'), ('v",
    "%(user_id)s",
    "%s %% %b %t %",
    "{conversations} {messages} {refuse} {0} {",
    "$1 $2",
    "{a,b}",
    '["u", "s"]',
    "\\x6869",
    "NULL",
    "/* --",
    "\u02bc; DROP TABLE ai_messages",
    "E'\\''||pg_sleep(9)",
]
"""Texts that would do harm if they were ever taken for SQL, or for a part of it."""

ADDING: Final = {"start_conversation", "get_or_start_conversation", "append_messages"}
"""Functions that add rows with what they are given."""
CHOICES: Final = {"status", "after", "on_duplicate"}
"""Parameters that take certain texts only."""


def string_parameters() -> Iterator[tuple[str, str]]:
    """Give each public function with each of its parameters that takes a text."""
    for name, function in service_functions().items():
        for parameter in inspect.signature(function).parameters.values():
            if re.search(r"\b(str|OnDuplicate)\b", str(parameter.annotation)):
                yield name, parameter.name


def values(scene: Scene, function: Callable[..., Any], number: int) -> dict[str, Any]:
    """Return what a function has to be given."""
    known: dict[str, Any] = {
        "user_id": "u",
        "session_id": f"s-{number}",
        "drafts": turn(1),
        "conversation_id": scene.target.conversations["active"],
        "message_id": 1,
        "position": 0,
        "records": [],
        "inactive_since": datetime(2020, 1, 1, tzinfo=UTC),
    }
    parameters = inspect.signature(function).parameters.values()
    wanted = {one.name for one in parameters if one.default is inspect.Parameter.empty}
    wanted |= {one.name for one in parameters} & {"user_id", "drafts"}
    return {name: value for name, value in known.items() if name in wanted}


_numbers = itertools.count()


async def inject(scene: Scene, name: str, parameter: str, text: str) -> Any:
    """Call a function with a text for a parameter; return its answer, or what it raised."""
    function = service_functions()[name]
    given = values(scene, function, next(_numbers)) | {parameter: text}
    try:
        answer = function(scene.store.unit_of_work(), **given)
        if isinstance(answer, AsyncGenerator):
            return [one async for one in answer]
        return await answer
    except ConversationStoreError as error:
        return error


def catalogue(scene: Scene) -> Any:
    """Return all that exists in the database, and whose it is."""
    if not isinstance(scene, PostgresScene):
        return None
    return scene.execute(
        """SELECT relname, relkind::text, relowner, relacl::text, relnamespace FROM pg_class
        WHERE relnamespace NOT IN (SELECT oid FROM pg_namespace WHERE nspname ~ '^pg_')
        UNION ALL SELECT proname, 'p', proowner, proacl::text, pronamespace FROM pg_proc
        UNION ALL SELECT rolname, 'r', oid, rolsuper::text, 0 FROM pg_roles ORDER BY 1, 2, 3, 5"""
    )


async def _try(scene: Scene, tries: list[tuple[str, str, str]]) -> list[str]:
    """Inject texts; return what was not as it has to be."""
    wrong: list[str] = []
    before = catalogue(scene)
    stored: list[tuple[str, str, str]] = []
    for name, parameter, text in tries:
        answer = await inject(scene, name, parameter, text)
        if isinstance(answer, StoreError):
            wrong.append(f"{name}({parameter}={text!r}) reached the server: {answer!r}")
        if parameter in CHOICES and not isinstance(answer, InvalidInput):
            wrong.append(f"{name}({parameter}={text!r}) is no choice: {answer!r}")
        if isinstance(answer, Conversation) and getattr(answer, parameter) != text:
            wrong.append(f"{name}({parameter}={text!r}) gives {answer}")
        if name in ADDING and not isinstance(answer, ConversationStoreError):
            stored.append((name, parameter, text))
    after = await scene.state()
    there = {value for row in after.values() for value in row.values() if isinstance(value, str)}
    there |= {key for row in after.values() for key in row.get("requests", ())}
    wrong += [f"{one} is not stored as it is" for one in stored if one[2] not in there]
    for key, row in scene.victims.items():
        moving = {"last_activity", "message_count", "version", "requests"}
        moving |= {"rescue_id", "intent_type"} if row["id"] in _active(scene) else set()
        kept = {name: value for name, value in row.items() if name not in moving}
        if any(after.get(key, {}).get(name) != value for name, value in kept.items()):
            wrong.append(f"{key} is {after.get(key)}")
    assert catalogue(scene) == before
    await scene.restore()
    return wrong


def _active(scene: Scene) -> set[int]:
    return {scene.target.conversations["active"]}


async def test_sql_in_every_string_parameter(scene: Scene) -> None:
    """Of every public function, found by its signature."""
    parameters = [*string_parameters()]
    assert len(parameters) >= 20
    tries = [(name, parameter, text) for name, parameter in parameters for text in SQL]
    assert await _try(scene, tries) == []


@pytest.mark.data
async def test_hostile_strings_in_string_parameters(
    scene: Scene, naughty_strings: list[str]
) -> None:
    """All 515, each in one of them."""
    parameters = [*string_parameters()]
    tries = [
        (*parameters[number % len(parameters)], text) for number, text in enumerate(naughty_strings)
    ]
    assert await _try(scene, tries) == []


async def test_sql_in_what_is_said(scene: Scene) -> None:
    """Contents, intents, and keys and values of JSON come back as they were."""
    uow = scene.store.unit_of_work(user_id="u")
    said = [
        draft(text, intent_type=text, slots={text: [text]}, metadata={text: {text: text}})
        for text in SQL
    ]
    _, messages = await start_conversation(
        uow, session_id="s", drafts=said, metadata={text: text for text in SQL}
    )
    assert [one.content for one in messages] == SQL
    [record] = [record async for record in export_conversations(uow)]
    assert record.get("metadata") == {text: text for text in SQL}
    assert [one["content"] for one in record["messages"]] == SQL
    assert [one.get("slots") for one in record["messages"]] == [{text: [text]} for text in SQL]
    assert [one.get("intent_type") for one in record["messages"]] == SQL
    await scene.restore()


async def test_sql_as_the_user_of_a_unit(dsn: str, migrated: set[str]) -> None:
    """Under row security the server is told it in a setting: it is a name like any other."""
    async with both_walls(dsn, migrated) as scene:
        before = catalogue(scene)
        for text in (*SQL, f"{ALICE}' --", f"{ALICE}\n", f" {ALICE}", ALICE.upper()):
            uow = scene.store.unit_of_work(user_id=text)
            assert (await list_conversations(uow)).conversations == []
            conversation, _ = await start_conversation(uow, session_id=text, drafts=turn(1))
            assert (await list_conversations(uow)).conversations == [conversation]
            assert conversation.user_id == text
            assert (await erase_user(uow)).conversations == 1
        assert await scene.state() == scene.before
        assert catalogue(scene) == before


NAMES: Final = [
    'x"; DROP SCHEMA attacks CASCADE; --',
    "'; DROP TABLE ai_messages; --",
    "%s %(user_id)s %% {conversations}",
    "{schema} {id_block} {} {0} $$ $1",
    'a.b\\\'""',
    "\u00fc\U0001f600 \u202e",
]
"""Names of schemas and roles that are SQL, or a part of it."""


@pytest.mark.parametrize("name", NAMES)
async def test_sql_as_the_name_of_a_schema_and_of_a_role(
    dsn: str, migrated: set[str], name: str
) -> None:
    """It is the name of that schema, and of that role, and of nothing else."""
    async with first_wall(dsn, migrated) as scene:
        with psycopg.connect(dsn, autocommit=True) as connection:
            identifier = sql.Identifier(name)
            connection.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'secret'").format(identifier))
            try:
                before = catalogue(scene)
                async with ConversationStore.connect(dsn, schema=name, min_size=1) as owner:
                    await owner.migrate(row_security=True, application_role=name)
                async with ConversationStore.connect(
                    as_role(dsn, name),
                    schema=name,
                    min_size=1,
                    row_security=True,
                    retry=Retry(attempts=1),
                ) as store:
                    uow = store.unit_of_work(user_id=name)
                    started, _ = await start_conversation(uow, session_id=name, drafts=turn(1))
                    await append_messages(uow, conversation_id=started.id, drafts=turn(2))
                    assert await find_conversation(uow, session_id=name) is not None
                    assert [one["user_id"] async for one in export_conversations(uow)] == [name]
                there = catalogue(scene)
                assert [one for one in before if one not in there] == []
                schemas = connection.execute(
                    "SELECT count(*) FROM pg_namespace WHERE nspname = %s", [name]
                )
                assert schemas.fetchone() == (1,)
            finally:
                connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(identifier))
                connection.execute(sql.SQL("DROP OWNED BY {}").format(identifier))
                connection.execute(sql.SQL("DROP ROLE {}").format(identifier))


@pytest.mark.parametrize("name", ["", "x" * 64, "a\0b", "pg_catalog\0", "\ud800"])
def test_what_cannot_be_the_name_of_a_schema(name: str) -> None:
    """It is refused before anything is sent."""
    with pytest.raises(StoreMisconfigured):
        ConversationStore.connect("host=nowhere", schema=name)
    with pytest.raises(StoreMisconfigured):
        ConversationStore.migration_sql(schema=name)
