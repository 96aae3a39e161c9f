-- The two tables, the source of their ids, and the function that refuses.

-- Ids are given out in blocks: nextval() .. nextval() + increment - 1 belong to who asked.
CREATE SEQUENCE {schema}.ai_ids AS bigint INCREMENT BY {id_block} MINVALUE 1 START WITH 1 NO CYCLE;

CREATE TABLE {schema}.ai_conversations (
    id            bigint           NOT NULL,
    user_id       text COLLATE "C" NOT NULL,
    session_id    text COLLATE "C" NOT NULL,
    status        text COLLATE "C" NOT NULL,
    rescue_id     text COLLATE "C",
    intent_type   text COLLATE "C",
    source        text COLLATE "C",
    metadata      jsonb,
    start_time    timestamptz      NOT NULL,
    last_activity timestamptz      NOT NULL,
    message_count bigint           NOT NULL,
    version       bigint           NOT NULL,
    CONSTRAINT ai_conversations_pkey PRIMARY KEY (id),
    CONSTRAINT ai_conversations_session_key UNIQUE (user_id, session_id),
    CONSTRAINT ai_conversations_status_check CHECK (status IN ('active', 'closed', 'archived')),
    CONSTRAINT ai_conversations_count_check CHECK (message_count >= 0),
    CONSTRAINT ai_conversations_version_check CHECK (version >= 1),
    CONSTRAINT ai_conversations_time_check CHECK (last_activity >= start_time)
);

-- A user's list, the most recent activity first; status last, so that it filters in the index.
CREATE INDEX ai_conversations_activity_idx
    ON {schema}.ai_conversations (user_id, last_activity, id, status);

CREATE TABLE {schema}.ai_messages (
    conversation_id bigint           NOT NULL,
    position        bigint           NOT NULL,
    id              bigint           NOT NULL,
    role            text COLLATE "C" NOT NULL,
    content         text             NOT NULL,
    timestamp       timestamptz      NOT NULL,
    intent_type     text COLLATE "C",
    slots           jsonb,
    metadata        jsonb,
    request_id      text COLLATE "C",
    request_digest  bytea,
    CONSTRAINT ai_messages_pkey PRIMARY KEY (conversation_id, position),
    CONSTRAINT ai_messages_id_key UNIQUE (id),
    CONSTRAINT ai_messages_conversation_fkey FOREIGN KEY (conversation_id)
        REFERENCES {schema}.ai_conversations (id) ON DELETE CASCADE,
    CONSTRAINT ai_messages_role_check CHECK (role IN ('user', 'assistant', 'system', 'tool')),
    CONSTRAINT ai_messages_position_check CHECK (position >= 1)
);

-- A request is stored once; its digest stands on the first message of its turn.
CREATE UNIQUE INDEX ai_messages_request_key
    ON {schema}.ai_messages (conversation_id, request_id) WHERE request_digest IS NOT NULL;

-- A refusal is an error, so that it stops the rest of its unit of work.
CREATE FUNCTION {schema}.refuse(kind text, detail json) RETURNS boolean
    LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'CS001', MESSAGE = 'refused: ' || kind, CONSTRAINT = kind, DETAIL = detail::text;
END
$$;

COMMENT ON TABLE {schema}.ai_conversations IS 'One dialogue of one user with the application';
COMMENT ON TABLE {schema}.ai_messages IS 'What was said, in the order of position';
