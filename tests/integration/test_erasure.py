"""A user of many messages is erased while others write, by a process that is killed in the middle.

`make erasure` does the same with a million messages, on a durable server, and measures it.
"""

from __future__ import annotations

import os
from typing import Final

import pytest
from erasure import MARKER, Trial, found

from conversation_store import ConversationStore, list_conversations
from conversation_store.domain.removal import BATCH_MESSAGES

MESSAGES: Final = int(os.environ.get("CONVERSATION_STORE_ERASED_MESSAGES", "60000"))
MOST_MEMORY: Final = 10_000
"""Kilobytes by which an eraser may grow from its first batch to its last."""


@pytest.fixture
async def trial(dsn: str, postgres: ConversationStore) -> Trial:
    """Give an erasure that is over, with what others met meanwhile."""
    trial = Trial(postgres, dsn)
    await trial.run(MESSAGES, windows=0.3)
    return trial


async def test_a_killed_erasure_is_gone_on_with(
    dsn: str, postgres: ConversationStore, trial: Trial
) -> None:
    """Called again it completes, in bounded memory; nothing of the user is left in any table."""
    killed, last = trial.told
    assert killed > trial.messages // 2
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
