-- A row of both tables exists only for the user whose conversation it belongs to: the one that
-- conversation_store.user_id names. Where that is not set, or empty, there are no rows.

ALTER TABLE {schema}.ai_conversations ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
ALTER TABLE {schema}.ai_messages ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;

-- Once a setting was used it is '' afterwards, not NULL.
DROP POLICY IF EXISTS ai_conversations_user ON {schema}.ai_conversations;
CREATE POLICY ai_conversations_user ON {schema}.ai_conversations
    USING (user_id = nullif(current_setting('conversation_store.user_id', true), ''));

-- A scalar subquery, not EXISTS, which may be planned as a hash of all conversations of the user.
-- One that is started together with its messages is not seen by it, hence is_own.
DROP POLICY IF EXISTS ai_messages_user ON {schema}.ai_messages;
CREATE POLICY ai_messages_user ON {schema}.ai_messages
    USING ((SELECT c.user_id FROM {schema}.ai_conversations AS c
            WHERE c.id = ai_messages.conversation_id)
        = nullif(current_setting('conversation_store.user_id', true), ''))
    WITH CHECK ((SELECT c.user_id FROM {schema}.ai_conversations AS c
            WHERE c.id = ai_messages.conversation_id)
        = nullif(current_setting('conversation_store.user_id', true), '')
        OR {schema}.is_own(conversation_id));

-- So that it is known in which form they are there.
COMMENT ON POLICY ai_conversations_user ON {schema}.ai_conversations IS '{checksum}';
COMMENT ON POLICY ai_messages_user ON {schema}.ai_messages IS '{checksum}';
