"""The SQL of writes. Every write is one statement; every verdict is reached in it.

Texts are composed once per store, with the schema's name quoted, and are static from then on, so
that the server can keep them prepared. They stay under 4096 characters (longer ones are parsed
anew by psycopg at every call). Times leave the server as UTC without zone and JSON as text, so
that no setting or loader of a host's connection matters.
"""

from __future__ import annotations

from typing import Final, LiteralString

CONVERSATION: Final[LiteralString] = """
    id, user_id, session_id, status,
    start_time AT TIME ZONE 'UTC', last_activity AT TIME ZONE 'UTC',
    message_count, version, rescue_id, intent_type, source, metadata::text"""

MESSAGE: Final[LiteralString] = """
    m.id, m.conversation_id, m.position, m.role, m.content,
    m.timestamp AT TIME ZONE 'UTC', m.intent_type, m.slots::text, m.metadata::text"""

IS_SCOPED: Final[LiteralString] = "(%(user_id)s::text IS NULL OR user_id = %(user_id)s)"

IS_ADDRESSED: Final[LiteralString] = f"id = %(conversation_id)s AND {IS_SCOPED}"

# Whom row security binds sees nothing where no user is set: what removes or exports all that it
# sees must not take that for success. It is judged once in a statement.
IS_SEEING: Final[LiteralString] = """(SELECT CASE
        WHEN row_security_active({conversations_name}::regclass)
            AND nullif(current_setting('conversation_store.user_id', true), '') IS NULL
        THEN {refuse}('row_security_unscoped', json_build_object('role', current_user))
        ELSE true END)"""

IS_EXPECTED: Final[LiteralString] = (
    "(%(expected_version)s::bigint IS NULL OR version = %(expected_version)s::bigint)"
)

DRAFTS: Final[LiteralString] = """ROWS FROM (json_to_recordset(%(drafts)s::json) AS (
        role text, content text, intent_type text, slots jsonb, metadata jsonb
    ), unnest(%(ids)s::bigint[])) WITH ORDINALITY
    AS d (role, content, intent_type, slots, metadata, id, ordinal)"""

REFUSAL_DETAIL: Final[LiteralString] = """json_build_object(
        'conversation_id', %(conversation_id)s::bigint, 'status', now.status,
        'version', now.version, 'expected_version', %(expected_version)s::bigint"""

# Of a repetition, which changes no row: what it finds may be stored here and not on the synchronous
# standbys, if the first commit did not wait to the end. With a record in the log it waits itself.
LOGGED: Final[LiteralString] = "SELECT pg_logical_emit_message(true, 'conversation-store', '')"

START: Final[LiteralString] = f"""
WITH new AS (
    INSERT INTO {{conversations}} (id, user_id, session_id, status, start_time, last_activity,
        message_count, version, rescue_id, intent_type, source, metadata)
    SELECT %(id)s, %(owner)s, %(session_id)s, %(status)s, clock.time, clock.time, %(count)s, 1,
        %(rescue_id)s, %(intent_type)s, %(source)s, %(metadata)s::jsonb
    FROM (SELECT clock_timestamp() AS time) AS clock
    ON CONFLICT ON CONSTRAINT ai_conversations_session_key DO NOTHING
    RETURNING id, start_time
), added AS (
    INSERT INTO {{messages}} (conversation_id, position, id, role, content, timestamp,
        intent_type, slots, metadata)
    SELECT new.id, d.ordinal, d.id, d.role, d.content, new.start_time,
        d.intent_type, d.slots, d.metadata
    FROM new, {DRAFTS}
)
SELECT new.start_time AT TIME ZONE 'UTC'
FROM (VALUES (1)) AS one LEFT JOIN new ON true
WHERE CASE WHEN new.id IS NOT NULL THEN true ELSE {{refuse}}('duplicate_session',
    json_build_object('user_id', %(owner)s::text, 'session_id', %(session_id)s::text)) END
"""

# DO UPDATE, not DO NOTHING: a race's loser must get the winner's row, which its snapshot lacks.
GET_OR_START: Final[LiteralString] = f"""
WITH found AS MATERIALIZED (
    SELECT * FROM {{conversations}} WHERE user_id = %(owner)s AND session_id = %(session_id)s
), new AS (
    INSERT INTO {{conversations}} AS c (id, user_id, session_id, status, start_time, last_activity,
        message_count, version, rescue_id, intent_type, source, metadata)
    SELECT %(id)s, %(owner)s, %(session_id)s, %(status)s, clock.time, clock.time, %(count)s, 1,
        %(rescue_id)s, %(intent_type)s, %(source)s, %(metadata)s::jsonb
    FROM (SELECT clock_timestamp() AS time) AS clock
    WHERE NOT EXISTS (SELECT FROM found)
    ON CONFLICT ON CONSTRAINT ai_conversations_session_key DO UPDATE SET version = c.version
    RETURNING *
), added AS (
    INSERT INTO {{messages}} (conversation_id, position, id, role, content, timestamp,
        intent_type, slots, metadata)
    SELECT new.id, d.ordinal, d.id, d.role, d.content, new.start_time,
        d.intent_type, d.slots, d.metadata
    FROM new, {DRAFTS}
    WHERE new.id = %(id)s
)
SELECT {CONVERSATION} FROM found UNION ALL SELECT {CONVERSATION} FROM new
"""

# The request stands on the first message. Who meets a session that its snapshot lacks, or waits for
# one that is then gone, cannot see what is there: that is contested, and sent again.
_START_ONCE: Final[LiteralString] = f"""
WITH found AS MATERIALIZED (
    SELECT * FROM {{conversations}} WHERE user_id = %(owner)s AND session_id = %(session_id)s
), prior AS MATERIALIZED (
    SELECT m.position, m.request_digest AS digest
    FROM found JOIN {{messages}} AS m ON m.conversation_id = found.id
    WHERE m.request_id = %(request_id)s AND m.request_digest IS NOT NULL
), logged AS MATERIALIZED (
    {LOGGED} FROM prior WHERE digest = %(digest)s::bytea
), new AS (
    INSERT INTO {{conversations}} (id, user_id, session_id, status, start_time, last_activity,
        message_count, version, rescue_id, intent_type, source, metadata)
    SELECT %(id)s, %(owner)s, %(session_id)s, %(status)s, clock.time, clock.time, %(count)s, 1,
        %(rescue_id)s, %(intent_type)s, %(source)s, %(metadata)s::jsonb
    FROM (SELECT clock_timestamp() AS time) AS clock
    WHERE NOT EXISTS (SELECT FROM found)
    ON CONFLICT ON CONSTRAINT ai_conversations_session_key DO NOTHING
    RETURNING *
), added AS (
    INSERT INTO {{messages}} (conversation_id, position, id, role, content, timestamp,
        intent_type, slots, metadata, request_id, request_digest)
    SELECT new.id, d.ordinal, d.id, d.role, d.content, new.start_time,
        d.intent_type, d.slots, d.metadata, %(request_id)s,
        CASE WHEN d.ordinal = 1 THEN %(digest)s::bytea END
    FROM new, {DRAFTS}
), one AS (
    SELECT *, false AS is_new FROM found UNION ALL SELECT *, true FROM new
), there AS MATERIALIZED (
    SELECT FROM {{conversations}} WHERE id = (SELECT id FROM found) FOR UPDATE
)"""

_START_ONCE_FROM: Final[LiteralString] = """
FROM (VALUES (1)) AS v LEFT JOIN one ON true LEFT JOIN prior ON true
WHERE CASE WHEN one.is_new OR prior.digest = %(digest)s::bytea"""

_START_ONCE_REFUSAL: Final[LiteralString] = """{refuse}(
    CASE WHEN prior.position IS NOT NULL THEN 'request_conflict'
        WHEN EXISTS (SELECT FROM there) THEN 'duplicate_session' ELSE 'contested' END,
    json_build_object('user_id', %(owner)s::text, 'session_id', %(session_id)s::text,
        'conversation_id', one.id, 'request_id', %(request_id)s::text, 'position', prior.position))
"""

START_REQUEST: Final[LiteralString] = f"""{_START_ONCE}
SELECT {CONVERSATION}, (SELECT string_agg(m.id::text, ',' ORDER BY m.position)
    FROM logged, found JOIN {{messages}} AS m
        ON m.conversation_id = found.id AND m.position <= %(count)s)
{_START_ONCE_FROM} THEN true ELSE {_START_ONCE_REFUSAL} END
"""

# A request may have gone two ways: it started the conversation, or its turn was appended.
GET_OR_START_REQUEST: Final[LiteralString] = f"""{_START_ONCE}
SELECT {CONVERSATION}, EXISTS (SELECT FROM logged) OR one.is_new
{_START_ONCE_FROM}
        OR substr(%(digest)s::bytea, 1, length(prior.digest)) = prior.digest
        OR one.id IS NOT NULL AND prior.position IS NULL THEN true
    ELSE {_START_ONCE_REFUSAL} END
"""

# The row is locked and counted first: positions are given out under the lock, in commit order.
# Where nothing was updated, `now` waits for the row's newest version and says why.
APPEND: Final[LiteralString] = f"""
WITH done AS (
    UPDATE {{conversations}}
    SET message_count = message_count + %(count)s, version = version + 1,
        last_activity = greatest(last_activity, clock_timestamp())
    WHERE {IS_ADDRESSED} AND status = ANY(%(accepting)s::text[]) AND {IS_EXPECTED}
    RETURNING id, message_count - %(count)s AS base, last_activity
), added AS (
    INSERT INTO {{messages}} (conversation_id, position, id, role, content, timestamp,
        intent_type, slots, metadata)
    SELECT done.id, done.base + d.ordinal, d.id, d.role, d.content, done.last_activity,
        d.intent_type, d.slots, d.metadata
    FROM done, {DRAFTS}
), now AS MATERIALIZED (
    SELECT status, version FROM {{conversations}}
    WHERE {IS_ADDRESSED} AND NOT EXISTS (SELECT FROM done) FOR UPDATE
)
SELECT done.base, done.last_activity AT TIME ZONE 'UTC'
FROM (VALUES (1)) AS one LEFT JOIN done ON true LEFT JOIN now ON true
WHERE CASE WHEN done.id IS NOT NULL THEN true ELSE {{refuse}}(
    CASE WHEN now.version IS NULL THEN 'conversation_not_found'
        WHEN NOT now.status = ANY(%(accepting)s::text[]) THEN 'not_accepting'
        WHEN NOT {IS_EXPECTED} THEN 'stale' ELSE 'contested' END,
    {REFUSAL_DETAIL})) END
"""

# Many turns at once, and only those that are beyond doubt: rows that others have locked are passed
# over, so that this statement waits for nobody. Locked rows are read in their newest version, so a
# turn that is taken is taken rightly; why one was not, its own statement finds out.
APPEND_TOGETHER: Final[LiteralString] = """
WITH turns AS MATERIALIZED (
    SELECT * FROM json_to_recordset(%(turns)s::json) AS t (turn bigint, before bigint,
        count bigint, conversation_id bigint, user_id text, request_id text, digest text)
), locked AS MATERIALIZED (
    SELECT id, user_id, status, message_count, greatest(last_activity, clock_timestamp()) AS time
    FROM {conversations} WHERE id = ANY(%(conversation_ids)s::bigint[])
    ORDER BY id FOR NO KEY UPDATE SKIP LOCKED
), taken AS MATERIALIZED (
    SELECT locked.id, locked.time, t.turn, t.before, t.count, t.request_id, t.digest,
        locked.message_count - t.count
            + (sum(t.count) OVER (PARTITION BY locked.id ORDER BY t.turn))::bigint AS base
    FROM turns AS t JOIN locked ON locked.id = t.conversation_id
    WHERE locked.status = ANY(%(accepting)s::text[])
        AND (t.user_id IS NULL OR t.user_id = locked.user_id)
        AND NOT EXISTS (SELECT FROM {messages} AS m WHERE m.conversation_id = t.conversation_id
            AND m.request_id = t.request_id AND m.request_digest IS NOT NULL)
), done AS (
    UPDATE {conversations} AS c SET message_count = c.message_count + sums.count,
        version = c.version + sums.turns, last_activity = sums.time
    FROM (SELECT id, max(time) AS time, sum(count)::bigint AS count, count(*) AS turns
        FROM taken GROUP BY id) AS sums WHERE c.id = sums.id
), added AS (
    INSERT INTO {messages} (conversation_id, position, id, role, content, timestamp,
        intent_type, slots, metadata, request_id, request_digest)
    SELECT taken.id, taken.base + d.ordinal - taken.before, d.id, d.role, d.content,
        taken.time, d.intent_type, d.slots, d.metadata, taken.request_id,
        CASE WHEN d.ordinal = taken.before + 1 THEN taken.digest::bytea END
    FROM ROWS FROM (json_to_recordset(%(drafts)s::json) AS (
            role text, content text, intent_type text, slots jsonb, metadata jsonb
        ), unnest(%(ids)s::bigint[]), unnest(%(turn_of_each)s::bigint[])) WITH ORDINALITY
        AS d (role, content, intent_type, slots, metadata, id, turn, ordinal)
    JOIN taken ON taken.turn = d.turn
)
SELECT turn, base, time AT TIME ZONE 'UTC' FROM taken
"""

# The verdict comes from the snapshot that looked for the request: a version that moved since then
# may have moved by this very request, so that is contested, and the statement is sent again.
# A sum may fail, so policies come before it: it is made beforehand, for the index to end there.
APPEND_REQUEST: Final[LiteralString] = f"""
WITH now AS MATERIALIZED (
    SELECT id, status, version FROM {{conversations}} WHERE {IS_ADDRESSED}
), prior AS MATERIALIZED (
    SELECT m.position, m.position + %(count)s AS beyond,
        substr(m.request_digest, 1, length(%(digest)s::bytea)) = %(digest)s::bytea AS is_same
    FROM now JOIN {{messages}} AS m ON m.conversation_id = now.id
    WHERE m.request_id = %(request_id)s AND m.request_digest IS NOT NULL
), logged AS MATERIALIZED (
    {LOGGED} FROM prior WHERE is_same
), done AS (
    UPDATE {{conversations}}
    SET message_count = message_count + %(count)s, version = version + 1,
        last_activity = greatest(last_activity, clock_timestamp())
    WHERE {IS_ADDRESSED} AND status = ANY(%(accepting)s::text[]) AND {IS_EXPECTED}
        AND NOT EXISTS (SELECT FROM prior)
    RETURNING id, message_count - %(count)s AS base, last_activity
), added AS (
    INSERT INTO {{messages}} (conversation_id, position, id, role, content, timestamp,
        intent_type, slots, metadata, request_id, request_digest)
    SELECT done.id, done.base + d.ordinal, d.id, d.role, d.content, done.last_activity,
        d.intent_type, d.slots, d.metadata, %(request_id)s,
        CASE WHEN d.ordinal = 1 THEN %(digest)s::bytea END
    FROM done, {DRAFTS}
    RETURNING position, id, timestamp
)
SELECT position, id, timestamp AT TIME ZONE 'UTC' FROM added
UNION ALL
SELECT m.position, m.id, m.timestamp AT TIME ZONE 'UTC'
FROM logged, prior JOIN {{messages}} AS m ON m.conversation_id = %(conversation_id)s
    AND m.position >= prior.position AND m.position < prior.beyond
UNION ALL
SELECT NULL, NULL, NULL
FROM (VALUES (1)) AS one LEFT JOIN done ON true LEFT JOIN prior ON true LEFT JOIN now ON true
WHERE CASE WHEN done.id IS NOT NULL OR prior.is_same THEN false
    ELSE {{refuse}}(
        CASE WHEN now.version IS NULL THEN 'conversation_not_found'
            WHEN prior.position IS NOT NULL THEN 'request_conflict'
            WHEN NOT now.status = ANY(%(accepting)s::text[]) THEN 'not_accepting'
            WHEN NOT {IS_EXPECTED} THEN 'stale' ELSE 'contested' END,
        {REFUSAL_DETAIL}, 'request_id', %(request_id)s::text, 'position', prior.position)) END
ORDER BY 1
"""

# The conversation is locked before the message, as by all that write. What the message says is then
# read in its newest version. The digest that tells what a turn said stands on its first message.
REDACT: Final[LiteralString] = """
WITH held AS MATERIALIZED (
    SELECT id FROM {conversations}
    WHERE id = (SELECT conversation_id FROM {messages} WHERE id = %(message_id)s)
        AND (%(user_id)s::text IS NULL OR user_id = %(user_id)s) FOR NO KEY UPDATE
), said AS MATERIALIZED (
    SELECT m.conversation_id, m.position, m.id, m.role, m.timestamp, m.request_id,
        (m.content = %(content)s AND m.slots = %(slots)s::jsonb AND m.metadata IS NULL
            AND m.intent_type IS NULL) IS TRUE AS is_redacted
    FROM held JOIN {messages} AS m ON m.conversation_id = held.id
    WHERE m.id = %(message_id)s FOR NO KEY UPDATE OF m
), places AS MATERIALIZED (
    SELECT said.conversation_id, said.id, ARRAY[said.position, (
        SELECT m.position FROM {messages} AS m WHERE m.conversation_id = said.conversation_id
            AND m.request_id = said.request_id AND m.request_digest IS NOT NULL)] AS positions
    FROM said WHERE NOT said.is_redacted
), moved AS (
    UPDATE {conversations} SET version = version + 1
    WHERE id = (SELECT conversation_id FROM places)
), done AS (
    UPDATE {messages} AS m
    SET content = CASE WHEN m.id = p.id THEN %(content)s ELSE m.content END,
        slots = CASE WHEN m.id = p.id THEN %(slots)s::jsonb ELSE m.slots END,
        metadata = CASE WHEN m.id = p.id THEN NULL ELSE m.metadata END,
        intent_type = CASE WHEN m.id = p.id THEN NULL ELSE m.intent_type END,
        request_digest = CASE WHEN m.request_digest IS NULL THEN NULL ELSE %(digest)s::bytea END
    FROM places AS p WHERE m.conversation_id = p.conversation_id AND m.position = ANY(p.positions)
)
SELECT said.id, said.conversation_id, said.position, said.role, %(content)s::text,
    said.timestamp AT TIME ZONE 'UTC', NULL, %(slots)s::text, NULL
FROM (VALUES (1)) AS one LEFT JOIN said ON true
WHERE CASE WHEN said.id IS NOT NULL THEN true ELSE {refuse}('message_not_found',
    json_build_object('message_id', %(message_id)s::bigint)) END
"""

SET_STATUS: Final[LiteralString] = f"""
WITH done AS (
    UPDATE {{conversations}} SET status = %(target)s, version = version + 1
    WHERE {IS_ADDRESSED} AND status = ANY(%(sources)s::text[]) AND {IS_EXPECTED}
    RETURNING *
), now AS MATERIALIZED (
    SELECT * FROM {{conversations}}
    WHERE {IS_ADDRESSED} AND NOT EXISTS (SELECT FROM done) FOR UPDATE
), one AS (
    SELECT * FROM done UNION ALL SELECT * FROM now
)
SELECT {CONVERSATION} FROM (VALUES (1)) AS v LEFT JOIN one AS now ON true
WHERE CASE WHEN now.status = %(target)s
        AND ({IS_EXPECTED} OR EXISTS (SELECT FROM done)) THEN true ELSE {{refuse}}(
    CASE WHEN now.id IS NULL THEN 'conversation_not_found'
        WHEN NOT now.status = ANY(%(sources)s::text[] || %(target)s::text)
            THEN 'invalid_transition'
        WHEN NOT {IS_EXPECTED} THEN 'stale' ELSE 'contested' END,
    {REFUSAL_DETAIL}, 'target', %(target)s::text)) END
"""

UPDATE: Final[LiteralString] = f"""
WITH done AS (
    UPDATE {{conversations}} SET version = version + 1,
        rescue_id = CASE WHEN %(set_rescue_id)s::boolean THEN %(rescue_id)s ELSE rescue_id END,
        intent_type =
            CASE WHEN %(set_intent_type)s::boolean THEN %(intent_type)s ELSE intent_type END,
        metadata = CASE WHEN %(set_metadata)s::boolean THEN %(metadata)s::jsonb ELSE metadata END
    WHERE {IS_ADDRESSED} AND {IS_EXPECTED}
    RETURNING *
), now AS MATERIALIZED (
    SELECT status, version FROM {{conversations}}
    WHERE {IS_ADDRESSED} AND NOT EXISTS (SELECT FROM done) FOR UPDATE
)
SELECT {CONVERSATION} FROM (VALUES (1)) AS one LEFT JOIN done ON true
WHERE CASE WHEN done.id IS NOT NULL THEN true ELSE (SELECT {{refuse}}(
    CASE WHEN now.version IS NULL THEN 'conversation_not_found'
        WHEN NOT {IS_EXPECTED} THEN 'stale' ELSE 'contested' END,
    {REFUSAL_DETAIL})) FROM (VALUES (1)) AS v LEFT JOIN now ON true) END
"""

REMOVE: Final[LiteralString] = f"""
DELETE FROM {{conversations}} WHERE {IS_ADDRESSED} AND {IS_SEEING}
"""

# The sessions of a batch that exist already, or one row without any.
LOOK_UP: Final[LiteralString] = """
SELECT clock.time AT TIME ZONE 'UTC', found.user_id, found.session_id
FROM (SELECT clock_timestamp() AS time) AS clock LEFT JOIN (
    SELECT c.user_id, c.session_id
    FROM json_array_elements(%(sessions)s::json) AS given
    JOIN {conversations} AS c ON c.user_id = given ->> 0 AND c.session_id = given ->> 1
) AS found ON true
"""

COPY_CONVERSATIONS: Final[LiteralString] = """
COPY {conversations} (id, user_id, session_id, status, rescue_id, intent_type, source, metadata,
    start_time, last_activity, message_count, version) FROM STDIN (FORMAT binary)
"""

COPY_MESSAGES: Final[LiteralString] = """
COPY {messages} (conversation_id, position, id, role, content, timestamp, intent_type, slots,
    metadata) FROM STDIN (FORMAT binary)
"""
