"""A user of many messages is erased while others write, by a process that is killed in the middle.

`make erasure` does the same with a million messages, on a durable server, and measures it.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from erasure import MARKER, Trial, found
from store_fixtures import APPLICATION, MAINTENANCE, as_role, open_store_as

from conversation_store import (
    ConversationStore,
    MessageDraft,
    append_messages,
    delete_conversation,
    erase_user,
    get_conversation,
    list_conversations,
    purge_conversations,
    start_conversation,
)
from conversation_store.domain.removal import BATCH_MESSAGES

MESSAGES: Final = int(os.environ.get("CONVERSATION_STORE_ERASED_MESSAGES", "60000"))
MOST_MEMORY: Final = 10_000
"""Kilobytes by which an eraser may grow from its first batch to its last."""


@pytest.fixture
async def trial(dsn: str, postgres: ConversationStore) -> Trial:
    """Give an erasure that is over, with what others met meanwhile."""
    trial = Trial(postgres, dsn)
    await trial.run(MESSAGES, windows=0.2)
    return trial


async def test_a_killed_erasure_is_gone_on_with(
    dsn: str, postgres: ConversationStore, trial: Trial
) -> None:
    """Called again it completes, in bounded memory; nothing of the user is left in any table."""
    killed, last = trial.told
    assert killed > trial.messages // 3
    assert last > 0
    # What was appended meanwhile is gone too; what the killed one did last nobody was told of.
    assert trial.messages - BATCH_MESSAGES <= killed + last <= trial.messages + len(trial.own)
    assert max(trial.memory) - trial.memory[0] < MOST_MEMORY
    left = found(dsn, trial.schema)
    assert left.keys() >= {"ai_conversations", "ai_messages"}
    assert not any(left.values()), left
    page = await list_conversations(postgres.unit_of_work(), user_id=MARKER)
    assert page.conversations == []
    assert trial.alone
    assert trial.beside


async def test_removals_under_row_security(dsn: str, migrated: set[str]) -> None:
    """A scoped unit of the application role removes what is its user's, long or short.

    The maintenance role, which the policies do not bind, purges everybody's.
    """
    schema = "row security"
    options: dict[str, Any] = {"policies": True, "row_security": True, "max_size": 2}
    drafts = [MessageDraft(role="user", content="x")] * 900
    async with open_store_as(APPLICATION, dsn, schema, migrated, **options) as store:
        ids: dict[tuple[str, str], int] = {}
        for user_id in ("me", "they"):
            uow = store.unit_of_work(user_id=user_id)
            for session in ("a", "b", "c"):
                started, _ = await start_conversation(uow, session_id=session, drafts=drafts)
                ids[user_id, session] = started.id
            for _ in range(2):
                await append_messages(uow, conversation_id=ids[user_id, "b"], drafts=drafts)
        mine, now = store.unit_of_work(user_id="me"), datetime.now(UTC) + timedelta(hours=1)
        theirs = await delete_conversation(mine, conversation_id=ids["they", "a"])
        assert (theirs.conversations, theirs.messages) == (0, 0)
        dry = await purge_conversations(mine, inactive_since=now, dry_run=True)
        assert (dry.conversations, dry.messages) == (3, 4500)
        deleted = await delete_conversation(mine, conversation_id=ids["me", "b"])
        assert (deleted.conversations, deleted.messages) == (1, 2700)
        erased = await erase_user(mine)
        assert (erased.conversations, erased.messages) == (2, 1800)
        left = await get_conversation(
            store.unit_of_work(user_id="they"), conversation_id=ids["they", "b"]
        )
        assert left.message_count == 2700
    maintenance = as_role(dsn, MAINTENANCE)
    async with ConversationStore.connect(maintenance, schema=schema, min_size=1) as store:
        purged = await purge_conversations(store.unit_of_work(), inactive_since=now)
        assert (purged.conversations, purged.messages) == (3, 4500)
