"""Many processes on one conversation: order, wholeness, and what readers see meanwhile."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE

from histories import check_history

from conversation_store import ConversationStore, messages_after, start_conversation

PROCESSES, TASKS, TURNS, SIZE = 2, 16, 12, 3

WRITER = """
import asyncio, json, sys
from conversation_store import ConversationStore, MessageDraft, append_messages

dsn, name, conversation_id, tasks, turns, size = json.loads(sys.argv[1])

async def write(store, task):
    for turn in range(turns):
        contents = [f"{name}-{task}-{turn}/{part}" for part in range(size)]
        drafts = [MessageDraft(role="user", content=content) for content in contents]
        await append_messages(
            store.unit_of_work(), conversation_id=conversation_id, drafts=drafts
        )

async def main():
    async with ConversationStore.connect(dsn, min_size=8) as store:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(write(store, task) for task in range(tasks)))

asyncio.run(main())
"""


async def test_tasks_of_two_processes_append_while_others_read(
    dsn: str, postgres: ConversationStore
) -> None:
    """Positions have no gap, turns stay together, and every poll is a prefix of the end."""
    conversation, _ = await start_conversation(postgres.unit_of_work(), user_id="u", session_id="s")
    writers = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", WRITER),
            json.dumps([dsn, f"process {number}", conversation.id, TASKS, TURNS, SIZE]),
            stdin=PIPE,
            stdout=PIPE,
        )
        for number in range(PROCESSES)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert await writer.stdout.readline() == b"ready\n"
        readers = [asyncio.create_task(poll(postgres, conversation.id)) for _ in range(2)]
        await asyncio.gather(*(writer.communicate(b"go\n") for writer in writers))
    finally:
        for writer in writers:
            if writer.returncode is None:
                writer.kill()
                await writer.wait()
    assert [writer.returncode for writer in writers] == [0] * PROCESSES
    polls = [seen for reader in readers for seen in await reader]
    # They did read while the others wrote.
    assert len({len(seen) for seen in polls}) > 3
    turns = PROCESSES * TASKS * TURNS
    await check_history(postgres, conversation.id, polls, turns=turns, size=SIZE)


async def poll(store: ConversationStore, conversation_id: int) -> list[list[int]]:
    """Read on from what is known until all is there; return what was known after each read."""
    seen: list[int] = []
    polls = [list(seen)]
    async with asyncio.timeout(60):
        while len(seen) < PROCESSES * TASKS * TURNS * SIZE:
            page = await messages_after(
                store.unit_of_work(),
                conversation_id=conversation_id,
                position=len(seen),
                limit=1000,
            )
            seen += [message.id for message in page]
            polls.append(list(seen))
            await asyncio.sleep(0.002)
    return polls
