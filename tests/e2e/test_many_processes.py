"""Many processes on one store: order, wholeness, what readers see, and requests stored once."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from histories import check_history, whole_history

from conversation_store import (
    ConversationStore,
    find_conversation,
    messages_after,
    start_conversation,
)

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


@asynccontextmanager
async def running(program: str, arguments: list[list[Any]]) -> AsyncIterator[list[Process]]:
    """Run a program once for each of the arguments; all are ready, and are ended at the end."""
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", program),
            json.dumps(given),
            stdin=PIPE,
            stdout=PIPE,
        )
        for given in arguments
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_tasks_of_two_processes_append_while_others_read(
    dsn: str, postgres: ConversationStore
) -> None:
    """Positions have no gap, turns stay together, and every poll is a prefix of the end."""
    conversation, _ = await start_conversation(postgres.unit_of_work(), user_id="u", session_id="s")
    arguments = [
        [dsn, f"process {number}", conversation.id, TASKS, TURNS, SIZE]
        for number in range(PROCESSES)
    ]
    async with running(WRITER, arguments) as writers:
        readers = [asyncio.create_task(poll(postgres, conversation.id)) for _ in range(2)]
        await asyncio.gather(*(writer.communicate(b"go\n") for writer in writers))
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


SENDER = """
import asyncio, json, sys
from conversation_store import (
    ConversationStore, MessageDraft, append_messages, get_or_start_conversation,
    latest_messages, start_conversation,
)

dsn, sessions, tasks = json.loads(sys.argv[1])

def turn(name):
    return [MessageDraft(role="user", content=name), MessageDraft(role="assistant", content=name)]

async def send(store, session, task):
    uow = store.unit_of_work(user_id="u")
    given = {"session_id": session, "drafts": turn("first"), "request_id": "r-1"}
    if task % 2:
        chat, created = await get_or_start_conversation(uow, **given)
        assert created
        first = await latest_messages(uow, conversation_id=chat.id, before=3)
    else:
        chat, first = await start_conversation(uow, **given)
    second = await append_messages(
        uow, conversation_id=chat.id, drafts=turn("second"), request_id="r-2"
    )
    return [(message.id, message.position, message.content) for message in first + second]

async def main():
    async with ConversationStore.connect(dsn, min_size=8) as store:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        given = {}
        for number in range(sessions):
            session = f"s-{number}"
            first, *others = await asyncio.gather(
                *(send(store, session, task) for task in range(tasks))
            )
            assert all(other == first for other in others)
            given[session] = first
        print(json.dumps(given))

asyncio.run(main())
"""
SESSIONS = 40


async def test_two_processes_send_the_same_requests(dsn: str, postgres: ConversationStore) -> None:
    """Of starts and appends alike each request is stored once, and all get what is stored."""
    async with running(SENDER, [[dsn, SESSIONS, TASKS // 2]] * PROCESSES) as senders:
        answers = await asyncio.gather(*(sender.communicate(b"go\n") for sender in senders))
    assert [sender.returncode for sender in senders] == [0] * PROCESSES
    given, *others = [json.loads(answer) for answer, _ in answers]
    assert all(other == given for other in others)
    assert len(given) == SESSIONS
    for session, messages in given.items():
        uow = postgres.unit_of_work()
        found = await find_conversation(uow, user_id="u", session_id=session)
        assert found is not None
        there = await messages_after(uow, conversation_id=found.id, position=0)
        stored = [[message.id, message.position, message.content] for message in there]
        assert stored == messages
        assert [position for _, position, _ in stored] == [1, 2, 3, 4]


WRITER_THAT_TELLS = """
import asyncio, itertools, json, sys
from conversation_store import ConversationStore, MessageDraft, append_messages

dsn, name, conversation_id, tasks = json.loads(sys.argv[1])

async def write(store, task):
    for turn in itertools.count():
        contents = [f"{name}-{task}-{turn}/{part}" for part in range(3)]
        drafts = [MessageDraft(role="user", content=content) for content in contents]
        messages = await append_messages(
            store.unit_of_work(), conversation_id=conversation_id, drafts=drafts
        )
        print(json.dumps([contents[0], messages[0].position]), flush=True)

async def main():
    async with ConversationStore.connect(dsn, min_size=4, coalesce=name == "together") as store:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.gather(*(write(store, task) for task in range(tasks)))

asyncio.run(main())
"""


async def test_a_process_is_killed_in_the_middle(dsn: str, postgres: ConversationStore) -> None:
    """What it was told is there, where it was told; of the rest each turn is whole or absent."""
    conversation, _ = await start_conversation(postgres.unit_of_work(), user_id="u", session_id="s")
    arguments = [[dsn, name, conversation.id, 8] for name in ("alone", "together")]
    told: list[tuple[str, int]] = []
    async with running(WRITER_THAT_TELLS, arguments) as writers:
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write(b"go\n")
        for writer in writers:
            assert writer.stdout is not None
            told += [tuple(json.loads(await writer.stdout.readline())) for _ in range(100)]
            writer.kill()
            rest = (await writer.communicate())[0].splitlines(keepends=True)
            told += [tuple(json.loads(line)) for line in rest if line.endswith(b"\n")]
    await asyncio.sleep(0.5)  # what the server still does for a client that is gone
    said = [message.content for message in await whole_history(postgres, conversation.id)]
    assert all(said[position - 1] == content for content, position in told)
    turns = [said[start : start + 3] for start in range(0, len(said), 3)]
    for turn in turns:
        name = turn[0].removesuffix("/0")
        assert turn == [f"{name}/{part}" for part in range(3)]
    assert len(set(said)) == len(said)
    assert len(turns) >= len(told) >= 200
