"""The SQL of removals. Each batch is one statement, of bounded size, found by an index.

What a batch needs beyond SELECT is DELETE on both tables and UPDATE of status, message_count and
version. The messages of a conversation that goes whole go by the foreign key.
"""

from __future__ import annotations

from typing import Final, LiteralString

from .sql import IS_ADDRESSED, IS_SEEING, LOGGED

IS_MEANT: Final[LiteralString] = """last_activity < %(inactive_since)s::timestamptz
        AND (%(status)s::text IS NULL OR status = %(status)s)
        AND (%(source)s::text IS NULL OR source = %(source)s)"""

_STARTED: Final[LiteralString] = "statement_timestamp() AT TIME ZONE 'UTC'"
_FINISHED: Final[LiteralString] = "clock_timestamp() AT TIME ZONE 'UTC'"

# Where a removal walks: along the sessions of one user, or along all ids. Neither ever changes.
_OF_USER: Final[LiteralString] = """{conversations}
        WHERE user_id = %(user_id)s AND session_id > %(after)s ORDER BY session_id"""
_OF_ALL: Final[LiteralString] = """{conversations}
        WHERE id > %(after)s::bigint ORDER BY id"""

# Chosen by the snapshot, in the order of the walk; locked in the order of ids, so that removals do
# not wait for each other in a circle; judged again when they are locked. What others hold is passed
# over: nobody is waited for while a batch is held. At the end of the walk, finding nothing is told
# when it is as durable as a removal: what is gone here may still be on a synchronous standby.
_REMOVE_SOME: Final[LiteralString] = f"""
, counted AS (
    SELECT id, place, message_count,
        sum(CASE WHEN message_count > %(most_messages)s THEN 0 ELSE message_count END)
            OVER (ORDER BY place) AS so_far
    FROM meant
), taken AS MATERIALIZED (
    SELECT id, place, message_count FROM counted WHERE so_far <= %(most_messages)s
), locked AS MATERIALIZED (
    SELECT id FROM {{conversations}} WHERE id = ANY(ARRAY(SELECT id FROM taken))
        AND message_count <= %(most_messages)s AND {IS_MEANT}
    ORDER BY id FOR UPDATE SKIP LOCKED
), gone AS (
    DELETE FROM {{conversations}} WHERE id = ANY(ARRAY(SELECT id FROM locked))
    RETURNING id, message_count
), next AS (
    SELECT CASE
        WHEN (SELECT count(*) FROM taken) < (SELECT count(*) FROM meant)
            OR (SELECT count(*) FROM meant) = %(most_conversations)s
            THEN (SELECT max(place) FROM taken)
        ELSE (SELECT place FROM horizon) END AS place
), logged AS MATERIALIZED (
    {LOGGED} FROM next WHERE place IS NULL AND NOT EXISTS (SELECT FROM gone)
)
SELECT {_STARTED}, {_FINISHED}, (SELECT place::text FROM next), taken.id, gone.message_count
FROM (VALUES (1)) AS one LEFT JOIN taken ON true LEFT JOIN gone ON gone.id = taken.id
LEFT JOIN logged ON true
WHERE {IS_SEEING}
"""

REMOVE_SOME_OF_USER: Final[LiteralString] = f"""
WITH meant AS MATERIALIZED (
    SELECT id, session_id AS place, message_count
    FROM (SELECT * FROM {_OF_USER} LIMIT %(most_looked_at)s) AS looked_at
    WHERE {IS_MEANT} ORDER BY session_id LIMIT %(most_conversations)s
), horizon AS (
    SELECT session_id AS place FROM {_OF_USER} OFFSET %(most_looked_at)s - 1 LIMIT 1
){_REMOVE_SOME}"""

REMOVE_SOME: Final[LiteralString] = f"""
WITH meant AS MATERIALIZED (
    SELECT id, id AS place, message_count
    FROM (SELECT * FROM {_OF_ALL} LIMIT %(most_looked_at)s) AS looked_at
    WHERE {IS_MEANT} ORDER BY id LIMIT %(most_conversations)s
), horizon AS (
    SELECT id AS place FROM {_OF_ALL} OFFSET %(most_looked_at)s - 1 LIMIT 1
){_REMOVE_SOME}"""

_FIND: Final[LiteralString] = f"""
SELECT {_STARTED}, {_FINISHED}, (SELECT CASE WHEN count(*) = %(most_looked_at)s
    THEN max(place)::text END FROM looked_at), found.id, found.message_count
FROM (VALUES (1)) AS one LEFT JOIN (SELECT * FROM looked_at WHERE {IS_MEANT}) AS found ON true
WHERE {IS_SEEING}
"""

FIND_REMOVABLE_OF_USER: Final[LiteralString] = f"""
WITH looked_at AS MATERIALIZED (
    SELECT id, session_id AS place, message_count, last_activity, status, source
    FROM {_OF_USER} LIMIT %(most_looked_at)s
){_FIND}"""

FIND_REMOVABLE: Final[LiteralString] = f"""
WITH looked_at AS MATERIALIZED (
    SELECT id, id AS place, message_count, last_activity, status, source
    FROM {_OF_ALL} LIMIT %(most_looked_at)s
){_FIND}"""

# The newest messages go, and what is left is counted, under the row lock. A statement that waited
# for the lock does not see what was appended meanwhile: then it only sees to it that nothing more
# comes, and the next one takes messages away. Two that wait for each other do not go on so for
# ever: where nothing is taken away of what is archived, nothing is changed. The turn of a request
# goes whole: what is left of it would be the answer to that request. Whatever its status was, it is
# archived: closed it could be reopened, and its absence would tell who asks after a lost answer.
REMOVE_PART: Final[LiteralString] = f"""
WITH seen AS MATERIALIZED (
    SELECT version FROM {{conversations}} WHERE {IS_ADDRESSED}
), locked AS MATERIALIZED (
    SELECT id, message_count, version FROM {{conversations}}
    WHERE {IS_ADDRESSED} AND {IS_MEANT} FOR UPDATE
), long AS MATERIALIZED (
    SELECT locked.id, locked.message_count, CASE
        WHEN locked.version <> seen.version THEN locked.message_count
        ELSE coalesce((
            SELECT first.position - 1 FROM {{messages}} AS cut JOIN {{messages}} AS first
                ON first.conversation_id = cut.conversation_id
                AND first.request_id = cut.request_id AND first.request_digest IS NOT NULL
            WHERE cut.conversation_id = locked.id AND cut.request_digest IS NULL
                AND cut.position = locked.message_count - %(most_messages)s + 1
        ), locked.message_count - %(most_messages)s) END AS rest
    FROM locked, seen WHERE locked.message_count > %(most_messages)s
), trimmed AS (
    DELETE FROM {{messages}} AS m USING long
    WHERE m.conversation_id = long.id AND m.position > long.rest
), kept AS (
    UPDATE {{conversations}} AS c SET message_count = long.rest, version = c.version + 1,
        status = %(archived)s
    FROM long WHERE c.id = long.id
        AND (long.rest < long.message_count OR c.status <> %(archived)s)
), gone AS (
    DELETE FROM {{conversations}}
    WHERE id = (SELECT id FROM locked WHERE message_count <= %(most_messages)s)
    RETURNING id, message_count
), logged AS MATERIALIZED (
    {LOGGED} WHERE NOT EXISTS (SELECT FROM gone) AND NOT EXISTS (SELECT FROM long)
)
SELECT {_STARTED}, {_FINISHED}, gone.message_count, long.message_count - long.rest
FROM (VALUES (1)) AS one LEFT JOIN gone ON true LEFT JOIN long ON true LEFT JOIN logged ON true
WHERE {IS_SEEING}
"""

LOOK_FOR_REST: Final[LiteralString] = f"""
SELECT {_STARTED}, {_FINISHED}, NULL::bigint, CASE WHEN c.id IS NOT NULL THEN 0 END
FROM (VALUES (1)) AS one LEFT JOIN (
    SELECT id FROM {{conversations}} WHERE {IS_ADDRESSED} FOR NO KEY UPDATE
) AS c ON true
"""
