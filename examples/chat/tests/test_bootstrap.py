"""The service as it is served."""

from __future__ import annotations

from pathlib import Path

import pytest

from chat.bootstrap import serving
from conversation_store import ConversationStore, dump_record, list_conversations

DIALOGUE = dump_record(
    {"user_id": "ada", "session_id": "s", "messages": [{"role": "user", "content": "Hello!"}]}
)


@pytest.mark.parametrize("said", [None, "", f"{DIALOGUE}\n"])
async def test_dialogues_are_there_if_their_file_is(
    conversation_store_on_server: ConversationStore,
    conversation_store_dsn: str,
    conversation_store_schema: str,
    tmp_path: Path,
    said: str | None,
) -> None:
    """A folder that was copied alone has none, and serves; a second start imports none again."""
    dialogues = tmp_path / "dialogues.jsonl"
    if said is not None:
        dialogues.write_text(said, "utf-8")

    for _ in range(2):
        async with serving(
            conversation_store_dsn, dialogues=dialogues, schema=conversation_store_schema
        ) as chat:
            page = await list_conversations(chat.store.unit_of_work(user_id="ada"))
            assert len(page.conversations) == bool(said)
