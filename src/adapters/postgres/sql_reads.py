"""The SQL of reads, and of what is looked for when an answer was lost."""

from __future__ import annotations

from typing import Final, LiteralString

from .sql import CONVERSATION, IS_ADDRESSED, IS_SEEING, MESSAGE

GET: Final[LiteralString] = f"SELECT {CONVERSATION} FROM {{conversations}} WHERE {IS_ADDRESSED}"

FIND: Final[LiteralString] = f"""
SELECT {CONVERSATION} FROM {{conversations}}
WHERE user_id = %(owner)s AND session_id = %(session_id)s
"""

_LIST_REST: Final[LiteralString] = """
    AND (last_activity, id) < (%(last_activity)s::timestamptz, %(conversation_id)s)
ORDER BY last_activity DESC, id DESC LIMIT %(limit)s
"""

LIST: Final[LiteralString] = f"""
SELECT {CONVERSATION} FROM {{conversations}} WHERE user_id = %(owner)s {_LIST_REST}
"""

LIST_OF_STATUS: Final[LiteralString] = f"""
SELECT {CONVERSATION} FROM {{conversations}}
WHERE user_id = %(owner)s AND status = %(status)s {_LIST_REST}
"""

GET_MESSAGE: Final[LiteralString] = f"""
SELECT {MESSAGE} FROM {{messages}} AS m
WHERE m.id = %(message_id)s AND (%(user_id)s::text IS NULL OR EXISTS (
    SELECT FROM {{conversations}} WHERE id = m.conversation_id AND user_id = %(user_id)s))
"""

# One row without a message where the conversation has none to show; no row where there is none.
LATEST: Final[LiteralString] = f"""
SELECT {MESSAGE}
FROM (SELECT id FROM {{conversations}} WHERE {IS_ADDRESSED}) AS c LEFT JOIN LATERAL (
    SELECT * FROM {{messages}} WHERE conversation_id = c.id AND position < %(before)s
    ORDER BY position DESC LIMIT %(limit)s) AS m ON true
ORDER BY m.position
"""

AFTER: Final[LiteralString] = f"""
SELECT {MESSAGE}
FROM (SELECT id FROM {{conversations}} WHERE {IS_ADDRESSED}) AS c LEFT JOIN LATERAL (
    SELECT * FROM {{messages}} WHERE conversation_id = c.id AND position > %(position)s
    ORDER BY position LIMIT %(limit)s) AS m ON true
ORDER BY m.position
"""

# For a cursor: planned for its first rows, so it walks two indexes and sorts within conversations.
_EXPORT: Final[LiteralString] = f"""
SELECT c.id, c.user_id, c.session_id, c.status,
    c.start_time AT TIME ZONE 'UTC', c.last_activity AT TIME ZONE 'UTC',
    c.rescue_id, c.intent_type, c.source,
    CASE WHEN m.position IS NULL OR m.position = 1 THEN c.metadata::text END,
    m.role, m.content, m.timestamp AT TIME ZONE 'UTC', m.intent_type, m.slots::text,
    m.metadata::text
FROM {{conversations}} AS c LEFT JOIN {{messages}} AS m ON m.conversation_id = c.id
WHERE {IS_SEEING}
"""

_EXPORT_ORDER: Final[LiteralString] = "ORDER BY c.user_id, c.session_id, m.position"

EXPORT: Final[LiteralString] = f"{_EXPORT}{_EXPORT_ORDER}"

EXPORT_OF_USER: Final[LiteralString] = f"{_EXPORT}AND c.user_id = %(owner)s\n{_EXPORT_ORDER}"

NEXT_IDS: Final[LiteralString] = """
SELECT nextval(seqrelid), seqincrement
FROM pg_catalog.pg_sequence, generate_series(1, %(blocks)s)
WHERE seqrelid = %(sequence)s::regclass
"""

# What a lost answer would have said, see Look. Of a conversation that is there without the turn
# there is one row of nulls. The lock makes the server answer only when what is
# shown is as durable as a write after it.
LOOK_FOR_START: Final[LiteralString] = f"""
SELECT c.start_time AT TIME ZONE 'UTC', {MESSAGE}
FROM (SELECT id, start_time FROM {{conversations}}
    WHERE id = %(id)s AND user_id = %(owner)s AND session_id = %(session_id)s
    FOR NO KEY UPDATE) AS c
LEFT JOIN {{messages}} AS m ON m.conversation_id = c.id AND m.id = ANY(%(ids)s::bigint[])
ORDER BY m.position
"""

LOOK_FOR_START_REQUEST: Final[LiteralString] = f"""
SELECT {CONVERSATION}, (SELECT string_agg(m.id::text, ',' ORDER BY m.position)
        FROM {{messages}} AS m WHERE m.conversation_id = c.id AND m.position <= %(count)s),
    (SELECT encode(request_digest, 'hex') FROM {{messages}} WHERE conversation_id = c.id
        AND request_id = %(request_id)s AND request_digest IS NOT NULL)
FROM (SELECT * FROM {{conversations}} WHERE user_id = %(owner)s AND session_id = %(session_id)s
    FOR NO KEY UPDATE) AS c
"""

_LOCKED: Final[LiteralString] = f"""
    (SELECT id, status FROM {{conversations}} WHERE {IS_ADDRESSED} FOR NO KEY UPDATE) AS c"""

# A long one that is being removed is archived, and loses its end first: there it does not tell.
_TELLS: Final[LiteralString] = "(m.id IS NOT NULL OR c.status <> 'archived')"

LOOK_FOR_TURN: Final[LiteralString] = f"""
SELECT {MESSAGE}
FROM {_LOCKED} LEFT JOIN {{messages}} AS m
    ON m.conversation_id = c.id AND m.id = ANY(%(ids)s::bigint[])
WHERE {_TELLS} ORDER BY m.position
"""

# Of a turn that was redacted, or lost its end, only its ids say what is the same.
LOOK_FOR_REQUEST: Final[LiteralString] = f"""
WITH prior AS MATERIALIZED (
    SELECT c.id, m.position, m.position + %(count)s AS beyond,
        substr(m.request_digest, 1, length(%(digest)s::bytea)) = %(digest)s::bytea AS is_same
    FROM {_LOCKED} LEFT JOIN {{messages}} AS m ON m.conversation_id = c.id
        AND m.request_id = %(request_id)s AND m.request_digest IS NOT NULL
        AND (substr(m.request_digest, 1, length(%(digest)s::bytea)) = %(digest)s::bytea
            OR m.id = (%(ids)s::bigint[])[1])
    WHERE {_TELLS}
)
SELECT m.position, m.id, m.timestamp AT TIME ZONE 'UTC'
FROM prior LEFT JOIN {{messages}} AS m ON m.conversation_id = prior.id
    AND m.position >= prior.position AND m.position < prior.beyond
    AND (prior.is_same OR m.id = ANY(%(ids)s::bigint[]))
ORDER BY m.position
"""
