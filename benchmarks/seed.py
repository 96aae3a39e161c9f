"""Fill the tables of a store with many messages, skewed as those of real users are.

    python -m benchmarks.seed --dsn ... --messages 5000000 --conversations 100000

A few conversations are very long and most are short, a few users have very many conversations and
most have one. The turns of all conversations are written in the order of their times, about one
message a second, so that those of one conversation lie scattered in the table as they do in a store
that grew. The same arguments make the same rows. Rows are streamed by COPY: memory grows with the
number of conversations, not of messages.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import json
import random
import time
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import Any, Final

import psycopg
from psycopg import sql

from conversation_store import ConversationStore

from .texts import Said, turns

LISTED_USER: Final = "listed"
"""A user of 1,000 conversations in a table of any size, so that tables can be compared."""
LISTED: Final = 1000
END: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""When the last message was said."""
MESSAGES_A_SECOND: Final = 1.0
SECONDS_BETWEEN_TURNS: Final = 60
CHUNK: Final = 1 << 17
REQUESTED: Final = 2
"""Of so many conversations one sends its turns with a request_id."""

_CONVERSATIONS: Final = """COPY {} (id, user_id, session_id, status, intent_type, source, metadata,
    start_time, last_activity, message_count, version) FROM STDIN"""
_MESSAGES: Final = """COPY {} (conversation_id, position, id, timestamp, role, content, intent_type,
    slots, request_id, request_digest) FROM STDIN"""
_FOREIGN_KEY: Final = """ALTER TABLE {} ADD CONSTRAINT ai_messages_conversation_fkey
    FOREIGN KEY (conversation_id) REFERENCES {} (id) ON DELETE CASCADE"""


@dataclass(frozen=True)
class Seeded:
    """What is in the tables now."""

    messages: int
    conversations: int
    users: int
    longest_conversation: int
    """The id of the conversation with the most messages."""
    most_messages: int
    median_conversation: int
    """The id of a conversation of the median length."""
    median_messages: int
    largest_user: str
    most_conversations: int
    texts: str
    """Where the texts come from."""
    mean_content: float
    """Bytes of content, by message."""
    seconds: float


def shares(total: int, parts: int, exponent: float, least: int) -> list[int]:
    """Divide a total among parts by Zipf's law, the largest first; each gets at least so much."""
    weights = [rank**-exponent for rank in range(1, parts + 1)]
    scale = (total - least * parts) / sum(weights)
    if scale < 0:
        raise ValueError(f"{total} are too few for {parts} parts of at least {least}")
    bounds = [0, *(round(bound * scale) for bound in accumulate(weights))]
    return [least + high - low for low, high in pairwise(bounds)]


class Plan:
    """Who has which conversation, how long it is, when it begins; by number, in order of time."""

    def __init__(self, messages: int, conversations: int, users: int, seed: int) -> None:
        chance = random.Random(seed)
        # Half of them in turns of two messages: the least is one turn, and lengths are even.
        self.turns = array("q", shares(messages // 2, conversations, 0.8, 1))
        chance.shuffle(self.turns)
        listed = min(LISTED, conversations // 2)
        sizes = shares(conversations - listed, users - 1, 1.05, 1)
        names = [f"user-{number}" for number in range(1, users)]
        chance.shuffle(names)
        self.users = [LISTED_USER] * listed
        for name, size in zip(names, sizes, strict=True):
            self.users += [name] * size
        self.largest_user, self.most_conversations = max(
            (names[0], sizes[0]), (LISTED_USER, listed), key=lambda pair: pair[1]
        )
        chance.shuffle(self.users)
        period = messages / MESSAGES_A_SECOND
        begin = END - period
        self.starts = array("d", sorted(begin + chance.random() * period for _ in self.users))
        # A long conversation begins early enough, or goes faster, to end with the period.
        self.gaps = array("d", bytes(8 * conversations))
        for number, count in enumerate(self.turns):
            wanted = SECONDS_BETWEEN_TURNS * chance.uniform(0.2, 1.8)
            self.gaps[number] = min(wanted, (END - self.starts[number]) / count)

    def __len__(self) -> int:
        return len(self.turns)

    def last(self, number: int) -> float:
        """Return when the last turn of a conversation is said."""
        return self.starts[number] + self.gaps[number] * (self.turns[number] - 1)

    def all_turns(self) -> Iterator[tuple[float, int, int]]:
        """Give the time, the conversation and the number of every turn, in the order of time."""
        going: list[tuple[float, int, int]] = []
        for number, start in enumerate(self.starts):
            while going and going[0][0] <= start:
                yield self._next_of(going)
            heapq.heappush(going, (start, number, 0))
        while going:
            yield self._next_of(going)

    def _next_of(self, going: list[tuple[float, int, int]]) -> tuple[float, int, int]:
        first = going[0]
        _, number, turn = first
        if turn + 1 < self.turns[number]:
            following = self.starts[number] + self.gaps[number] * (turn + 1)
            heapq.heapreplace(going, (following, number, turn + 1))
        else:
            heapq.heappop(going)
        return first


def seed_store(
    dsn: str,
    schema: str,
    *,
    messages: int,
    conversations: int,
    users: int | None = None,
    seed: int = 1,
    with_slots: bool = True,
    with_requests: bool = True,
) -> Seeded:
    """Fill the empty tables of a migrated schema, and vacuum them."""
    begun = time.monotonic()
    plan = Plan(messages, conversations, users or max(2, conversations // 10), seed)
    source, spoken = turns()
    said = [(_rest(one, with_slots), _rest(two, with_slots)) for one, two in spoken]
    lengths = [len(each.content.encode()) for pair in spoken for each in pair]
    table = {name: sql.Identifier(schema, name) for name in ("ai_conversations", "ai_messages")}
    with psycopg.connect(dsn, autocommit=True) as connection, connection.cursor() as cursor:
        for name in table.values():
            if (
                cursor.execute(sql.SQL("SELECT FROM {} LIMIT 1").format(name)).fetchone()
                is not None
            ):
                raise SystemExit(f"{name.as_string()} is not empty: seed a schema of its own")
        # The foreign key is checked once for all rows at the end: by row it would double the time.
        drop = "ALTER TABLE {} DROP CONSTRAINT ai_messages_conversation_fkey"
        cursor.execute(sql.SQL(drop).format(table["ai_messages"]))
        with cursor.copy(sql.SQL(_CONVERSATIONS).format(table["ai_conversations"])) as copy:
            _write(copy, _conversation_lines(plan, seed))
        with cursor.copy(sql.SQL(_MESSAGES).format(table["ai_messages"])) as copy:
            _write(copy, _message_lines(plan, said, seed, with_requests))
        cursor.execute(
            sql.SQL(_FOREIGN_KEY).format(table["ai_messages"], table["ai_conversations"])
        )
        last_id = conversations + 2 * sum(plan.turns)
        sequence = sql.Identifier(schema, "ai_ids").as_string()
        cursor.execute("SELECT setval(%s::regclass, %s)", [sequence, last_id])
        for name in table.values():
            cursor.execute(sql.SQL("VACUUM (ANALYZE) {}").format(name))
    by_length = sorted(range(len(plan)), key=plan.turns.__getitem__)
    longest, median = by_length[-1], by_length[len(by_length) // 2]
    return Seeded(
        messages=2 * sum(plan.turns),
        conversations=len(plan),
        users=len(set(plan.users)),
        longest_conversation=longest + 1,
        most_messages=2 * plan.turns[longest],
        median_conversation=median + 1,
        median_messages=2 * plan.turns[median],
        largest_user=plan.largest_user,
        most_conversations=plan.most_conversations,
        texts=source,
        mean_content=round(sum(lengths) / len(lengths), 1),
        seconds=round(time.monotonic() - begun, 1),
    )


def _write(copy: psycopg.Copy, lines: Iterator[bytes]) -> None:
    chunk = bytearray()
    for line in lines:
        chunk += line
        if len(chunk) >= CHUNK:
            copy.write(chunk)
            chunk = bytearray()
    copy.write(chunk)


def _conversation_lines(plan: Plan, seed: int) -> Iterator[bytes]:
    chance = random.Random(seed + 1)
    for number, user in enumerate(plan.users):
        status = chance.choices(("active", "closed", "archived"), (90, 9, 1))[0]
        source = chance.choice(("web", "app", "phone"))
        count = plan.turns[number]
        line = (
            f"{number + 1}\t{user}\tsession-{chance.getrandbits(48):012x}\t{status}\tbooking\t"
            f'{source}\t{{"channel": "{source}", "language": "en"}}\t'
            f"{_time(plan.starts[number])}\t{_time(plan.last(number))}\t{2 * count}\t{count}\n"
        )
        yield line.encode()


def _message_lines(
    plan: Plan, said: list[tuple[bytes, bytes]], seed: int, with_requests: bool
) -> Iterator[bytes]:
    message_id = len(plan)
    number_of_texts = len(said)
    for moment, number, turn in plan.all_turns():
        # Neighbours in a conversation are neighbours in a dialogue.
        one, two = said[(number * 7919 * seed + turn) % number_of_texts]
        message_id += 2
        place = number + 1, 2 * turn + 1, message_id - 1
        when = _time(moment).encode()
        if with_requests and number % REQUESTED == 0:
            request = b"%08x-%08x" % (number * 2654435761 % 2**32, turn)
            digest = sha256(request).hexdigest().encode()
            yield b"%d\t%d\t%d\t%s\t%s\t%s\t\\\\x%s\n" % (*place, when, one, request, digest)
            request_of_two = request
        else:
            yield b"%d\t%d\t%d\t%s\t%s\t\\N\t\\N\n" % (*place, when, one)
            request_of_two = b"\\N"
        place = number + 1, 2 * turn + 2, message_id
        yield b"%d\t%d\t%d\t%s\t%s\t%s\t\\N\n" % (*place, when, two, request_of_two)


def _time(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()


def _rest(said: Said, with_slots: bool) -> bytes:
    slots = json.dumps(said.slots, ensure_ascii=False) if with_slots and said.slots else None
    return "\t".join(map(_field, (said.role, said.content, said.intent_type, slots))).encode()


def _field(value: str | None) -> str:
    if value is None:
        return "\\N"
    value = value.replace("\\", "\\\\").replace("\t", "\\t")
    return value.replace("\n", "\\n").replace("\r", "\\r")


async def migrated(dsn: str, schema: str) -> None:
    """Make the tables, where they are not there yet."""
    async with ConversationStore.connect(dsn, schema=schema, min_size=1, max_size=1) as store:
        await store.migrate()


async def fresh(dsn: str, schema: str) -> None:
    """Make the tables anew, in a schema that belongs to a measurement."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        drop = sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(schema))
        connection.execute(drop)
    await migrated(dsn, schema)


def main() -> None:
    """Seed from the command line."""
    parser = argparse.ArgumentParser(description="Fill the tables of a store, by COPY.")
    parser.add_argument("--dsn", required=True)
    parser.add_argument("--schema", default="operational")
    parser.add_argument("--messages", type=int, default=5_000_000)
    parser.add_argument("--conversations", type=int, default=100_000)
    parser.add_argument("--users", type=int, help="a tenth of the conversations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--slots", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--requests", action=argparse.BooleanOptionalAction, default=True)
    given: dict[str, Any] = vars(parser.parse_args())
    asyncio.run(migrated(given["dsn"], given["schema"]))
    seeded = seed_store(
        given["dsn"],
        given["schema"],
        messages=given["messages"],
        conversations=given["conversations"],
        users=given["users"],
        seed=given["seed"],
        with_slots=given["slots"],
        with_requests=given["requests"],
    )
    print(json.dumps(asdict(seeded), indent=2))


if __name__ == "__main__":
    main()
