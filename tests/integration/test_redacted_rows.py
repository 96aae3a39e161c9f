"""After a redaction no live row of any table holds what was said, nor a digest of it."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import sql
from store_fixtures import draft

from conversation_store import (
    ConversationStore,
    MessageDraft,
    append_messages,
    get_or_start_conversation,
    redact_message,
    start_conversation,
)
from conversation_store.domain.message import digest_drafts

MARKER = "purple monkey dishwasher"


def turn(number: int) -> list[MessageDraft]:
    """Return two messages that hold the marker wherever a message can."""
    return [
        draft(
            f"{MARKER} {number} {part}",
            intent_type=f"{MARKER} intent",
            slots={"a": [{MARKER: f"{MARKER} slot"}]},
            metadata={MARKER: 1},
        )
        for part in "ab"
    ]


def found(dsn: str, text: str) -> list[tuple[str, str]]:
    """Return the live rows, of any table that is not the server's own, that hold a text."""
    rows: list[tuple[str, str]] = []
    with psycopg.connect(dsn) as connection:
        tables: list[Any] = connection.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname NOT IN"
            " ('pg_catalog', 'information_schema')"
        ).fetchall()
        for schema, table in tables:
            query = sql.SQL("SELECT t::text FROM {} AS t WHERE strpos(t::text, {}) > 0").format(
                sql.Identifier(schema, table), sql.Literal(text)
            )
            rows += [(table, row) for (row,) in connection.execute(query)]
    return rows


async def test_nothing_that_was_said_is_left(dsn: str, postgres: ConversationStore) -> None:
    """Of turns appended and started, with a request_id and without, of which one was redacted."""
    uow = postgres.unit_of_work()
    conversation, first = await start_conversation(
        uow, user_id="u", session_id="s", drafts=turn(1), request_id="r"
    )
    await get_or_start_conversation(
        uow, user_id="u", session_id="t", drafts=turn(2), request_id="r"
    )
    said = [
        *first,
        *await append_messages(
            uow, conversation_id=conversation.id, drafts=turn(3), request_id="q"
        ),
        *await append_messages(uow, conversation_id=conversation.id, drafts=turn(4)),
    ]
    digests = [digest_drafts(turn(number)).hex() for number in (1, 2, 3)]
    assert [len(found(dsn, text)) for text in (MARKER, *digests)] == [8, 1, 1, 1]
    await redact_message(uow, message_id=said[3].id)
    assert [len(found(dsn, text)) for text in (MARKER, *digests)] == [7, 1, 1, 0]
    for message in said:
        await redact_message(uow, message_id=message.id)
    left = found(dsn, MARKER)
    assert [len(found(dsn, text)) for text in (MARKER, *digests)] == [2, 0, 1, 0], left
