"""The SQL of what takes messages of a conversation away again: popping and replacing.

Both hold the conversation's row first. Who waited for it may not see what was appended meanwhile:
where that is so nothing is changed, and the statement is sent again.
"""

from __future__ import annotations

from typing import Final, LiteralString

from .sql import DRAFTS, IS_ADDRESSED, IS_EXPECTED, MESSAGE, REFUSAL_DETAIL

# What is left of a request's turn would be the answer to that request: so its digest goes, too.
POP: Final[LiteralString] = f"""
WITH done AS (
    UPDATE {{conversations}} SET message_count = message_count - 1, version = version + 1
    WHERE {IS_ADDRESSED} AND status = ANY(%(accepting)s::text[]) AND {IS_EXPECTED}
        AND message_count > 0
    RETURNING id, message_count + 1 AS position
), gone AS (
    DELETE FROM {{messages}} AS m USING done
    WHERE m.conversation_id = done.id AND m.position = done.position
    RETURNING m.*
), cut AS (
    UPDATE {{messages}} AS m SET request_digest = %(digest)s::bytea
    FROM gone WHERE m.conversation_id = gone.conversation_id AND m.request_id = gone.request_id
        AND m.request_digest IS NOT NULL AND gone.request_digest IS NULL
), now AS MATERIALIZED (
    SELECT status, version, message_count FROM {{conversations}}
    WHERE {IS_ADDRESSED} AND NOT EXISTS (SELECT FROM done) FOR UPDATE
)
SELECT {MESSAGE}
FROM (VALUES (1)) AS one LEFT JOIN done ON true LEFT JOIN gone AS m ON true LEFT JOIN now ON true
WHERE CASE WHEN m.id IS NOT NULL OR now.message_count = 0
        AND now.status = ANY(%(accepting)s::text[]) AND {IS_EXPECTED} THEN true
    ELSE {{refuse}}(
        CASE WHEN done.id IS NOT NULL THEN 'contested'
            WHEN now.version IS NULL THEN 'conversation_not_found'
            WHEN NOT now.status = ANY(%(accepting)s::text[]) THEN 'not_accepting'
            WHEN NOT {IS_EXPECTED} THEN 'stale' ELSE 'contested' END,
        {REFUSAL_DETAIL})) END
"""

# Sent again it would clear its own ids out of the way, so it looks for them.
REPLACE: Final[LiteralString] = f"""
WITH locked AS MATERIALIZED (
    SELECT id, message_count FROM {{conversations}}
    WHERE {IS_ADDRESSED} AND status = ANY(%(accepting)s::text[]) AND {IS_EXPECTED}
    FOR NO KEY UPDATE
), gone AS (
    DELETE FROM {{messages}} AS m USING locked
    WHERE m.conversation_id = locked.id AND NOT m.id = ANY(%(ids)s::bigint[])
    RETURNING m.id
), done AS (
    UPDATE {{conversations}} AS c SET message_count = %(count)s, version = c.version + 1,
        last_activity = CASE WHEN %(count)s > 0
            THEN greatest(c.last_activity, clock_timestamp()) ELSE c.last_activity END
    FROM locked
    WHERE c.id = locked.id AND (SELECT count(*) FROM gone) = locked.message_count
    RETURNING c.id, c.last_activity
), added AS (
    INSERT INTO {{messages}} (conversation_id, position, id, role, content, timestamp,
        intent_type, slots, metadata)
    SELECT done.id, d.ordinal, d.id, d.role, d.content, done.last_activity,
        d.intent_type, d.slots, d.metadata
    FROM done, {DRAFTS}
), now AS MATERIALIZED (
    SELECT status, version FROM {{conversations}}
    WHERE {IS_ADDRESSED} AND NOT EXISTS (SELECT FROM done) FOR UPDATE
)
SELECT 0::bigint, done.last_activity AT TIME ZONE 'UTC'
FROM (VALUES (1)) AS one LEFT JOIN done ON true LEFT JOIN now ON true
WHERE CASE WHEN done.id IS NOT NULL THEN true ELSE {{refuse}}(
    CASE WHEN now.version IS NULL THEN 'conversation_not_found'
        WHEN EXISTS (SELECT FROM {{messages}} AS m
            WHERE m.conversation_id = %(conversation_id)s AND m.id = ANY(%(ids)s::bigint[]))
            THEN 'id_taken'
        WHEN NOT now.status = ANY(%(accepting)s::text[]) THEN 'not_accepting'
        WHEN NOT {IS_EXPECTED} THEN 'stale' ELSE 'contested' END,
    {REFUSAL_DETAIL})) END
"""
