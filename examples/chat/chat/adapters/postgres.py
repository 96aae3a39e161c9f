"""The chat service's own table and index in PostgreSQL, by the connection of the unit of work."""

from __future__ import annotations

from typing import Any, Final, LiteralString

from psycopg import OperationalError
from psycopg.sql import SQL, Identifier

from conversation_store import AsyncUnitOfWork, StoreUnavailable

from ..domain import Charge, Hit, excerpt
from ..ports import ChargeRepository, MessageSearch

MIGRATION: Final = """
SELECT pg_advisory_xact_lock(hashtext('chat'));  -- many processes may start at once

CREATE TABLE IF NOT EXISTS {schema}.chat_charges (
    conversation_id bigint,  -- refers to no row: what was charged outlives what was said
    request_id text,
    user_id text NOT NULL,
    position bigint NOT NULL,
    tokens integer NOT NULL,
    charged_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (conversation_id, request_id)
);
CREATE INDEX IF NOT EXISTS chat_charges_of_user ON {schema}.chat_charges (user_id) INCLUDE (tokens);

-- Words are what domain.words says they are, whatever the locale of the database. A content may be
-- larger than a tsvector, and must not be refused for that: only its beginning is indexed.
CREATE OR REPLACE FUNCTION {schema}.chat_words(content text) RETURNS tsvector
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT to_tsvector('pg_catalog.simple',
        regexp_replace(lower(left(content, 200000) COLLATE pg_c_utf8), '[^[:alnum:]]+', ' ', 'g'))
$$;
CREATE INDEX IF NOT EXISTS chat_words_of_messages ON {schema}.ai_messages
    USING gin ({schema}.chat_words(content));
"""

ADD_CHARGE: Final = """
INSERT INTO {schema}.chat_charges (user_id, conversation_id, request_id, position, tokens)
VALUES (%s, %s, %s, %s, %s) ON CONFLICT (conversation_id, request_id) DO NOTHING
"""
POSITION: Final = """
SELECT position FROM {schema}.chat_charges
WHERE user_id = %s AND conversation_id = %s AND request_id = %s
"""
SPENT: Final = "SELECT coalesce(sum(tokens), 0) FROM {schema}.chat_charges WHERE user_id = %s"

SEARCH: Final = """
SELECT session_id, position, content
FROM {schema}.ai_messages JOIN {schema}.ai_conversations AS c ON c.id = conversation_id
WHERE user_id = %s AND {schema}.chat_words(content) @@ plainto_tsquery('pg_catalog.simple', %s)
ORDER BY timestamp DESC, ai_messages.id DESC LIMIT %s
"""


class _InSchema:
    def __init__(self, schema: str) -> None:
        self._schema = Identifier(schema)

    async def _run(self, uow: AsyncUnitOfWork, statement: LiteralString, *values: Any) -> Any:
        """Run SQL of ours in the transaction of the unit; return the cursor.

        A unit that acts for a user does not limit SQL of ours: each statement names the user.
        """
        connection = await uow.connection()
        try:
            return await connection.execute(SQL(statement).format(schema=self._schema), values)
        except OperationalError as error:  # what the store does for its own SQL
            reason = f"the server failed: {type(error).__name__}"
            raise StoreUnavailable(reason=reason, sqlstate=error.sqlstate) from error


async def migrate(uow: AsyncUnitOfWork, schema: str) -> None:
    """Make what is ours, where it is not there yet, beside the tables of the store."""
    async with uow:
        connection = await uow.connection()
        await connection.execute(SQL(MIGRATION).format(schema=Identifier(schema)))


class PsycopgChargeRepository(_InSchema, ChargeRepository):
    """Charges in a table of ours."""

    async def add(self, uow: AsyncUnitOfWork, charge: Charge) -> None:
        key = (uow.user_id, charge.conversation_id, charge.request_id)
        await self._run(uow, ADD_CHARGE, *key, charge.position, charge.tokens)

    async def position(
        self, uow: AsyncUnitOfWork, conversation_id: int, request_id: str
    ) -> int | None:
        async with uow:
            found = await self._run(uow, POSITION, uow.user_id, conversation_id, request_id)
            row = await found.fetchone()
        return None if row is None else int(row[0])

    async def spent(self, uow: AsyncUnitOfWork) -> int:
        async with uow:
            [spent] = await (await self._run(uow, SPENT, uow.user_id)).fetchone()
        return int(spent)


class PsycopgMessageSearch(_InSchema, MessageSearch):
    """Search by an index on the store's own table: redaction and erasure hold for it, too."""

    async def find(self, uow: AsyncUnitOfWork, wanted: list[str], limit: int) -> list[Hit]:
        async with uow:
            found = await self._run(uow, SEARCH, uow.user_id, " ".join(wanted), limit)
            rows = await found.fetchall()
        return [
            Hit(session_id=session_id, position=position, excerpt=excerpt(content, wanted))
            for session_id, position, content in rows
        ]
