"""A user of very many messages is erased while others write: how that is for them, what is left.

    python tests/erasure.py --messages 1000000

The eraser is a process of its own. It is stopped every other second, so that what others meet while
it works is compared with what they meet at the same time while it does not. In the middle of its
work it is killed (-9); another one goes on. At the end every table of the schema is searched for a
marker that everything of the user holds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from postgres_cluster import Cluster
from psycopg import sql

from conversation_store import (
    ConversationStore,
    ConversationStoreError,
    MessageDraft,
    append_messages,
    start_conversation,
)

MARKER: Final = "forget-me-0d9c"
"""What everything of the user holds, the user_id too."""
LONG: Final = 0.3
"""Share of the messages that are in one conversation."""
SHORT: Final = 140
"""The most messages of any other conversation."""
FIRST_ID: Final = 10**10
"""Behind all ids that the store gives here."""
WRITERS: Final = 8
PAUSE: Final = 0.02
"""Seconds between the turns of a writer."""
WINDOW: Final = 1.0
"""Seconds for which the eraser works, and for which it is stopped."""

ERASER: Final = """
import asyncio, json, resource, sys, time
from conversation_store import ConversationStore, erase_user

dsn, user_id = json.loads(sys.argv[1])
clock = time.monotonic

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

def tell(receipt):
    print(json.dumps([receipt.conversations, receipt.messages, peak()]), flush=True)

async def main():
    async with ConversationStore.connect(dsn, min_size=1, max_size=1) as store:
        await erase_user(store.unit_of_work(), user_id=user_id, progress=tell)

asyncio.run(main())
"""

_CONVERSATIONS: Final = """
    INSERT INTO {} (id, user_id, session_id, status, rescue_id, intent_type, source, metadata,
        start_time, last_activity, message_count, version)
    SELECT %(first)s + n, %(user)s, %(marker)s || n, 'active', %(marker)s, %(marker)s, %(marker)s,
        jsonb_build_object('marker', %(marker)s::text), now(), now(),
        CASE WHEN n = 0 THEN %(long)s ELSE 1 + n * 37 %% %(short)s END, 1
    FROM generate_series(0, %(others)s) AS n
"""
_MESSAGES: Final = """
    INSERT INTO {} (conversation_id, position, id, role, content, timestamp, intent_type, slots,
        metadata, request_id, request_digest)
    SELECT c.id, p, %(first)s + row_number() OVER () , 'user', %(marker)s || repeat(' word', 40),
        now(), %(marker)s, jsonb_build_object('marker', %(marker)s::text),
        jsonb_build_object('marker', %(marker)s::text), %(marker)s || p, decode('00', 'hex')
    FROM {} AS c, generate_series(1, c.message_count) AS p WHERE c.user_id = %(user)s
"""


def seed(dsn: str, schema: str, messages: int) -> int:
    """Give the user about so many messages, in one long conversation and many short ones."""
    tables = [sql.Identifier(schema, name) for name in ("ai_conversations", "ai_messages")]
    others = round(messages * (1 - LONG) / (SHORT / 2))
    values = {
        "user": MARKER,
        "marker": MARKER,
        "first": FIRST_ID,
        "long": round(messages * LONG),
        "short": SHORT,
        "others": others,
    }
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(sql.SQL(_CONVERSATIONS).format(tables[0]), values)
        done = connection.execute(sql.SQL(_MESSAGES).format(tables[1], tables[0]), values)
        for table in tables:
            connection.execute(sql.SQL("VACUUM ANALYZE {}").format(table))
        return done.rowcount


def found(dsn: str, schema: str) -> dict[str, int]:
    """Search every table of a schema for the marker; return how many rows hold it."""
    query = """SELECT relname FROM pg_class
        WHERE relnamespace = %s::regnamespace AND relkind IN ('r', 'p', 'm') ORDER BY relname"""
    counts = {}
    with psycopg.connect(dsn, autocommit=True) as connection:
        for (name,) in connection.execute(query, [schema]).fetchall():
            look = sql.SQL("SELECT count(*) FROM {} AS t WHERE t::text LIKE {}")
            table = sql.Identifier(schema, name)
            row = connection.execute(look.format(table, f"%{MARKER}%")).fetchone()
            assert row is not None
            counts[name] = row[0]
    return counts


@dataclass
class Trial:
    """One erasure, with what others meet meanwhile."""

    store: ConversationStore
    dsn: str
    schema: str = "operational"
    messages: int = 0
    """That the user had."""
    is_at_work: bool = False
    """Whether the eraser works at this moment."""
    alone: list[float] = field(default_factory=list)
    """Seconds that the turns of others took while it did not."""
    beside: list[float] = field(default_factory=list)
    """Seconds that they took while it did."""
    own: list[float] = field(default_factory=list)
    """Seconds that turns of the same user took, refused or not."""
    waited: float = 0.0
    """Seconds that anybody waited for a lock, at the longest."""
    memory: list[int] = field(default_factory=list)
    """Kilobytes of memory that an eraser had at most, batch by batch, of the last one."""
    told: list[int] = field(default_factory=list)
    """Messages that each eraser told of."""
    seconds: float = 0.0
    """For which erasers worked."""
    _is_over: bool = False

    async def run(self, messages: int, *, windows: float = WINDOW, settle: float = 0.0) -> None:
        """Seed, erase, kill in the middle, erase again."""
        self.messages = await asyncio.to_thread(seed, self.dsn, self.schema, messages)
        others = [asyncio.create_task(self._write(number)) for number in range(WRITERS)]
        others += [asyncio.create_task(self._write_own()), asyncio.create_task(self._watch())]
        try:
            await asyncio.sleep(settle)
            await self._erase(windows, kill_at=self.messages // 3)
            await self._erase(windows, kill_at=None)
        finally:
            self._is_over = True
            await asyncio.gather(*others)

    async def _erase(self, windows: float, kill_at: int | None) -> None:
        eraser = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", ERASER), json.dumps([self.dsn, MARKER]), stdout=PIPE
        )
        turns: asyncio.Task[None] | None = None
        self.told.append(0)
        self.memory.clear()
        try:
            assert eraser.stdout is not None
            async for line in eraser.stdout:
                if turns is None:
                    turns = asyncio.create_task(self._stop_and_go(eraser, windows))
                _, self.told[-1], memory = json.loads(line)
                self.memory.append(memory)
                if kill_at is not None and self.told[-1] > kill_at:
                    _signal(eraser, signal.SIGKILL)  # what it told is still to be read
            code = await eraser.wait()
            assert code == (0 if kill_at is None else -signal.SIGKILL)
        finally:
            if turns is not None:
                turns.cancel()
            self.is_at_work = False
            _signal(eraser, signal.SIGKILL)

    async def _stop_and_go(self, eraser: Process, windows: float) -> None:
        """Stop the eraser every other window; what it has sent the server does nevertheless."""
        while True:
            _signal(eraser, signal.SIGCONT)
            self.is_at_work = True
            began = time.monotonic()
            try:
                await asyncio.sleep(windows)
            finally:
                self.seconds += time.monotonic() - began
            _signal(eraser, signal.SIGSTOP)
            await asyncio.sleep(0.2)  # for what it has sent
            self.is_at_work = False
            await asyncio.sleep(windows)

    async def _write(self, number: int) -> None:
        """Write as another user does."""
        uow = self.store.unit_of_work(user_id=f"other-{number}")
        conversation, _ = await start_conversation(uow, session_id="s")
        turn = [MessageDraft(role=role, content="word " * 40) for role in ("user", "assistant")]
        while not self._is_over:
            was_at_work, began = self.is_at_work, time.perf_counter()
            await append_messages(uow, conversation_id=conversation.id, drafts=turn)
            if was_at_work == self.is_at_work:
                (self.beside if was_at_work else self.alone).append(time.perf_counter() - began)
            await asyncio.sleep(PAUSE)

    async def _write_own(self) -> None:
        """Write as the user that is erased; from some time on there is nothing to write to."""
        uow = self.store.unit_of_work(user_id=MARKER)
        number = 0
        while not self._is_over:
            number = (number * 7 + 1) % 1009
            began = time.perf_counter()
            with suppress(ConversationStoreError):
                await append_messages(
                    uow,
                    conversation_id=FIRST_ID + number,
                    drafts=[MessageDraft(role="user", content=MARKER)],
                )
            self.own.append(time.perf_counter() - began)
            await asyncio.sleep(PAUSE)

    async def _watch(self) -> None:
        """See how long anybody waits for a lock."""
        connection = await psycopg.AsyncConnection.connect(self.dsn, autocommit=True)
        query = "SELECT max(clock_timestamp() - waitstart) FROM pg_locks WHERE NOT granted"
        async with connection:
            while not self._is_over:
                row: Any = await (await connection.execute(query)).fetchone()
                self.waited = max(self.waited, row[0].total_seconds() if row[0] else 0.0)
                await asyncio.sleep(0.02)


def _signal(process: Process, number: signal.Signals) -> None:
    """Send a signal to a process that runs; its own method would take its end from the loop."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def percentile(values: list[float], part: float) -> float:
    """Return the value below which this part of all values lies."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


async def erase(dsn: str, messages: int) -> bool:
    """Do it once, tell of it, and return whether all is well."""
    async with ConversationStore.connect(dsn, min_size=10, max_size=12) as store:
        await store.migrate()
        trial = Trial(store, dsn)
        await trial.run(messages, settle=3.0)
    left = await asyncio.to_thread(found, dsn, trial.schema)
    p99 = [percentile(part, 0.99) * 1000 for part in (trial.alone, trial.beside)]
    print(
        f"{trial.messages} messages gone in {trial.seconds:.0f} s of work "
        f"({trial.messages / trial.seconds:.0f} a second), killed after {trial.told[0]}\n"
        f"turns of {WRITERS} others: p50 {percentile(trial.alone, 0.5) * 1000:.1f} -> "
        f"{percentile(trial.beside, 0.5) * 1000:.1f} ms, p99 {p99[0]:.1f} -> {p99[1]:.1f} ms "
        f"({p99[1] / p99[0]:.2f} times), max {max(trial.alone) * 1000:.0f} -> "
        f"{max(trial.beside) * 1000:.0f} ms; {len(trial.alone)} and {len(trial.beside)} turns\n"
        f"turns of the same user: p99 {percentile(trial.own, 0.99) * 1000:.1f} ms, "
        f"max {max(trial.own) * 1000:.0f} ms; "
        f"longest wait for a lock {trial.waited * 1000:.0f} ms\n"
        f"memory of the eraser: {trial.memory[0]} kB at its first batch, "
        f"{trial.memory[-1]} kB at its last\n"
        f"rows with the marker left: {left}"
    )
    return not any(left.values()) and p99[1] <= 3 * p99[0]


def main() -> None:
    """Do it on a durable server; end with 1 if something is left, or others were held up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=1_000_000)
    messages = parser.parse_args().messages
    with Cluster() as cluster:
        server = cluster.new_server({"max_wal_size": "4GB", "shared_buffers": "256MB"})
        server.start()
        sys.exit(0 if asyncio.run(erase(server.dsn, messages)) else 1)


if __name__ == "__main__":
    main()
