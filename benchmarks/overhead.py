"""Where the CPU of a call goes: `python -m benchmarks.overhead`.

Each service function is called many times under the profiler, and the time spent in Python and C
code is put to the account of who it belongs to: the driver, its pool, the event loop, the layers
of this package. The profiler makes many small functions dearer than they are, so only the shares
say something; what a call costs in all, and beside the bare statement, is measured without it.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import itertools
import json
import pstats
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any, Final, TypeAlias

from conversation_store import (
    ConversationRecord,
    ConversationStore,
    MessageDraft,
    MessageRecord,
    append_messages,
    import_conversations,
    latest_messages,
    list_conversations,
    start_conversation,
)

from .contenders.bare_psycopg import SCHEMA as BARE_SCHEMA
from .contenders.bare_psycopg import BarePsycopgContender
from .dialogues import PROJECT, read_dialogues, read_messages
from .durable_server import durable_server
from .machine import machine, occasion
from .markdown import table

Call: TypeAlias = Callable[[], Awaitable[Any]]

OWNERS: Final = {
    "/psycopg_pool/": "pool",
    "/psycopg/": "driver",
    "/asyncio/": "event loop",
    "/selectors.py": "event loop",
    "/conversation_store/service_layer/": "unit of work",
    "/conversation_store/domain/": "checks of the domain",
    "/conversation_store/adapters/postgres/rows.py": "rows to entities",
    "/conversation_store/adapters/": "adapter",
    "/src/service_layer/": "unit of work",
    "/src/domain/": "checks of the domain",
    "/src/adapters/postgres/rows.py": "rows to entities",
    "/src/adapters/": "adapter",
    "/json/": "JSON",
}
"""Whose a file is, by a part of its name; the first that fits."""

WAITING: Final = frozenset({"poll", "select"})
"""Functions that wait for the server: no CPU of ours."""


def owner_of(file: str, name: str) -> str | None:
    """Return to whose account a function goes; None: it is built in, and goes to its callers'."""
    if name.startswith("<method ") and any(f"'{each}'" in name for each in WAITING):
        return "waiting"
    if file == "~":
        return None
    if "attrs generated" in file:
        return "checks of the domain"
    return next((owner for part, owner in OWNERS.items() if part in file), "the rest")


def shares(profile: cProfile.Profile) -> dict[str, float]:
    """Return the part of the CPU of each owner; what is built in goes to who called it."""
    seconds: Counter[str] = Counter()
    stats: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, name), (_, _, own_time, _, callers) in stats.items():
        owner = owner_of(file, name)
        if owner is not None:
            seconds[owner] += own_time
            continue
        for (caller_file, _, caller_name), (_, _, time_for_it, _) in callers.items():
            seconds[owner_of(caller_file, caller_name) or "the rest"] += time_for_it
    del seconds["waiting"]
    whole = sum(seconds.values())
    return {owner: round(part / whole, 3) for owner, part in seconds.most_common()}


async def profiled(call: Call, times: int) -> dict[str, float]:
    """Call something many times, warmed up, and return where its CPU went."""
    for _ in range(min(times, 50)):
        await call()
    profile = cProfile.Profile()
    profile.enable()
    for _ in range(times):
        await call()
    profile.disable()
    return shares(profile)


async def calls_of(store: ConversationStore) -> dict[str, Call]:
    """Return the service functions that are looked at, with something to work on."""
    dialogues = read_dialogues()
    turns = (
        [MessageDraft(role=role, content=content) for role, content in turn]
        for turn in dialogues.turns()
    )
    numbers = itertools.count()
    uow = store.unit_of_work()
    written, _ = await start_conversation(uow, user_id="u", session_id="written")
    read, _ = await start_conversation(uow, user_id="u", session_id="read")
    said = [MessageDraft(role=role, content=text) for role, text in dialogues.long(1000)]
    await append_messages(uow, conversation_id=read.id, drafts=said)
    for number in range(20):
        await start_conversation(uow, user_id="listed", session_id=f"s-{number}")

    async def start() -> None:
        drafts = next(turns)[:1]
        session = f"s-{next(numbers)}"
        uow = store.unit_of_work(user_id="u")
        await start_conversation(uow, session_id=session, drafts=drafts)

    async def append() -> None:
        uow = store.unit_of_work()
        await append_messages(uow, conversation_id=written.id, drafts=next(turns))

    async def latest() -> None:
        await latest_messages(store.unit_of_work(), conversation_id=read.id, limit=50)

    async def read_all() -> None:
        await latest_messages(store.unit_of_work(), conversation_id=read.id, limit=1000)

    async def list_() -> None:
        await list_conversations(store.unit_of_work(user_id="listed"), limit=20)

    return {
        "start_conversation": start,
        "append_messages, a turn": append,
        "latest_messages, 50": latest,
        "latest_messages, 1,000": read_all,
        "list_conversations, 20": list_,
    }


async def beside_the_driver(dsn: str, rounds: int) -> dict[str, float]:
    """Return our CPU as a multiple of the bare statement's, for reads of messages with slots.

    Bare is as in `contenders/bare_psycopg.py`: tuples, with values as the driver makes them.
    """
    conversation, others = messages_with_slots()
    bare = BarePsycopgContender()
    await bare.open(dsn, connections=1)
    found = {}
    async with ConversationStore.connect(dsn, schema=BARE_SCHEMA, min_size=1, max_size=1) as store:
        await import_conversations(store.unit_of_work(), records=[conversation])
        page = await list_conversations(store.unit_of_work(), user_id="slots")
        chat = page.conversations[0].id
        for limit in (50, 1000):

            async def ours(limit: int = limit) -> None:
                await latest_messages(store.unit_of_work(), conversation_id=chat, limit=limit)

            async def theirs(limit: int = limit) -> None:
                await bare.latest(chat, limit)

            ratios = []
            for number in range(rounds + 2):
                pair = (ours, theirs) if number % 2 else (theirs, ours)
                used = {call: await cpu_of(call, 5000 // limit) for call in pair}
                ratios.append(used[ours] / used[theirs])
            found[f"{limit:,} messages, {others} of 1,000 with slots"] = median(ratios[2:])
    await bare.close()
    return {name: round(ratio, 2) for name, ratio in found.items()}


async def cpu_of(call: Call, times: int) -> float:
    """Return the seconds of CPU of one call."""
    began = time.process_time()
    for _ in range(times):
        await call()
    return (time.process_time() - began) / times


def messages_with_slots() -> tuple[ConversationRecord, int]:
    """Return a record of 1,000 messages as the dialogues have them, and how many have slots."""
    messages: list[MessageRecord] = []
    for message in itertools.cycle(read_messages()):
        messages.append(message)
        if len(messages) == 1000:
            break
    record: ConversationRecord = {"user_id": "slots", "session_id": "s", "messages": messages}
    return record, sum(bool(message.get("slots")) for message in messages)


async def look(dsn: str, times: int) -> dict[str, dict[str, float]]:
    """Return where the CPU goes, by service function."""
    async with ConversationStore.connect(dsn, min_size=1, max_size=1) as store:
        await store.migrate()
        return {
            name: await profiled(call, max(10, times // (20 if "1,000" in name else 1)))
            for name, call in (await calls_of(store)).items()
        }


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=PROJECT / "benchmarks/results/overhead.json")
    arguments = parser.parse_args()
    times = 300 if arguments.quick else 3000
    with durable_server() as dsn:
        found = asyncio.run(look(dsn, times))
        beside = asyncio.run(beside_the_driver(dsn, 10 if arguments.quick else 60))
    results = {
        **occasion(0),
        "machine": machine(),
        "calls": times,
        "shares": found,
        "with_slots": beside,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(text(results))


def text(results: dict[str, Any]) -> str:
    """Make the chapter."""
    shares_of: dict[str, dict[str, float]] = results["shares"]
    owners = Counter[str]()
    for parts in shares_of.values():
        owners.update(parts)
    names = [owner for owner, _ in owners.most_common()]
    rows = [
        [call, *(f"{parts.get(name, 0):.0%}" for name in names)]
        for call, parts in shares_of.items()
    ]
    slots = [[what, f"{ratio} x"] for what, ratio in results["with_slots"].items()]
    chapter = [_HEADING, table(["", *names], rows), _READING, _SLOTS, table(["", "CPU"], slots)]
    return "\n\n".join([*chapter, _made_of(results)])


_HEADING: Final = """\
## Where the time of a call goes

How much more than the bare statement a call costs stands above, in the ratios of
each scenario. Here is who spends the CPU of our own calls. Waiting is left out."""

_READING: Final = """\
- **driver**: psycopg makes parameters of values, waits for the socket, makes values of columns.
- **event loop**: asyncio; half of it is to add the socket to the loop and take it out again, twice
  a call.
- **adapter**: the parameters of the statement, the connection borrowed and given back, and the look
  whether the server closed it meanwhile.
- **rows to entities**: times get their zone, roles and JSON become objects, entities are made.
- **checks of the domain**: what the caller gave is checked, before anything is sent.
- **unit of work**: blocks and the script of writes."""


_SLOTS: Final = """\
The contenders above store words alone, for some of them can store nothing else. Messages with slots
are cheaper here than by the bare driver, whose way to read JSON is slower; our CPU as a multiple of
the bare statement's:"""


def _made_of(results: dict[str, Any]) -> str:
    return (
        f"Profiled on {results['date']}, Python {results['machine']['python']}, commit"
        f" `{results['commit']}`: {results['calls']:,} calls of each. The profiler makes small"
        " functions look dearer than they are; only the shares say something."
    )


if __name__ == "__main__":
    main()
