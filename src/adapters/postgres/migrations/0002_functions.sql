-- Functions that find what they name wherever they are called, and one for row security.

ALTER FUNCTION {schema}.refuse(text, json) SET search_path = pg_catalog, pg_temp;

-- Whether a conversation belongs to the user of row security. It is volatile so that it sees what
-- the statement that calls it has stored so far; all others see what was there before.
CREATE FUNCTION {schema}.is_own(conversation_id bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, {schema}, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM ai_conversations AS c WHERE c.id = is_own.conversation_id
        AND c.user_id = nullif(current_setting('conversation_store.user_id', true), ''));
END
$$;
