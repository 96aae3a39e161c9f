"""SQL of the host's own, sent in a unit of work that acts for the attacker.

It is no part of the store, and the first wall does not reach it. The policies do.
"""

from __future__ import annotations

from typing import Any, Final

from attrs import frozen
from store_fixtures import MAINTENANCE

from conversation_store import AsyncUnitOfWork

from .world import BEHIND_POLICIES, Target


@frozen
class HostsSql:
    """A statement of the host's own that reaches for another's data."""

    how: str
    text: str

    function: str = "connection"
    is_misuse: bool = False
    is_own_error: bool = False
    """Whether what it raises is an error of the store's."""
    tries: frozenset[str] = frozenset({"sql"})

    def __str__(self) -> str:
        return f"{self.function}, {self.how}"

    async def __call__(self, uow: AsyncUnitOfWork, target: Target) -> Any:
        """Send it and return all that the server says."""
        values = {
            "user": target.user_id,
            "session": target.session("active"),
            "conversation": target.conversations["active"],
            "message": target.messages["active"],
            "request": target.start,
        }
        async with uow:
            connection = await uow.connection()
            await connection.execute(f'SET LOCAL search_path TO "{BEHIND_POLICIES}", pg_catalog')
            cursor = await connection.execute(self.text, values)
            rows = await cursor.fetchall() if cursor.description else []
            return [cursor.rowcount, rows]


_NEW: Final = """INSERT INTO ai_conversations (id, user_id, session_id, status, start_time,
    last_activity, message_count, version) VALUES (1, %(user)s, %(session)s, 'active', now(),
    now(), 0, 1)"""
_SAID: Final = """INSERT INTO ai_messages (conversation_id, position, id, role, content, timestamp)
    VALUES (%(conversation)s, {}, 1, 'user', 'forged', now())"""

STATEMENTS: Final = [
    HostsSql(how, text)
    for how, text in {
        "all conversations": "SELECT to_jsonb(c)::text FROM ai_conversations AS c ORDER BY id",
        "all messages": "SELECT to_jsonb(m)::text FROM ai_messages AS m ORDER BY id",
        "how many there are": """SELECT (SELECT count(*) FROM ai_conversations),
            (SELECT count(*) FROM ai_messages), (SELECT max(id) FROM ai_messages)""",
        "a conversation": "SELECT status FROM ai_conversations WHERE id = %(conversation)s",
        "a session": "SELECT id FROM ai_conversations WHERE session_id = %(session)s",
        "a message": "SELECT content FROM ai_messages WHERE id = %(message)s",
        "a request": "SELECT content FROM ai_messages WHERE request_id = %(request)s",
        "a lock": "SELECT id FROM ai_conversations WHERE id = %(conversation)s FOR UPDATE",
        "an error that tells": """SELECT count(*) FROM ai_messages
            WHERE 1 / (CASE WHEN content = 'a secret' THEN 0 ELSE 1 END) = 1""",
        "whose it is": "SELECT is_own(%(conversation)s)",
        "without policies": "SET LOCAL row_security = off; SELECT count(*) FROM ai_messages",
        "as another role": f'SET LOCAL ROLE "{MAINTENANCE}"; SELECT count(*) FROM ai_messages',
        "a change": """UPDATE ai_conversations SET status = 'closed'
            WHERE id = %(conversation)s RETURNING version""",
        "a change of all": "UPDATE ai_conversations SET version = version + 1",
        "a change of all that reads nothing": "UPDATE ai_conversations SET status = 'closed'",
        "other words": "UPDATE ai_messages SET content = 'forged' WHERE id = %(message)s",
        "other words everywhere": "UPDATE ai_messages SET content = 'forged'",
        "a removal": "DELETE FROM ai_conversations WHERE id = %(conversation)s",
        "a removal of all": "DELETE FROM ai_conversations",
        "a removal of what was said": "DELETE FROM ai_messages",
        "a conversation of the user's": _NEW,
        "a conversation that may be there": f"{_NEW} ON CONFLICT DO NOTHING",
        "a conversation that is to be changed": f"""{_NEW}
            ON CONFLICT ON CONSTRAINT ai_conversations_session_key DO UPDATE SET status = 'closed'
            RETURNING id""",
        "a message at the end": _SAID.format(5),
        "a message where one is": _SAID.format(1),
        "a move of a conversation": "UPDATE ai_conversations SET user_id = %(user)s",
        "a move of a message": "UPDATE ai_messages SET conversation_id = %(conversation)s",
        "a truncation": "TRUNCATE ai_conversations, ai_messages",
        "what is known of the tables": """SELECT count(*) FROM pg_stats
            WHERE tablename IN ('ai_conversations', 'ai_messages')""",
    }.items()
]
