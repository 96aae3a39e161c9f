"""What each contender is asked to do, and what it needs beforehand."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

from attrs import define, field

from .contenders.contender import CannotDoError, Contender, Handle
from .dialogues import Dialogues
from .measuring import Operation, warm_up
from .plan import Plan
from .rounds import failure

LISTED: Final = "the one with many"
"""The user whose conversations are listed."""
_OTHERS: Final = 100  # conversations of each other user, when they are listed
_SEED_BATCH: Final = 1000
_WARM: Final = 8  # psycopg prepares a statement at its sixth use, on each connection
_LATEST: Final = 50
_RECENT: Final = 20


@define
class Stage:
    """A contender, and what has been prepared for it. Outlives the connections."""

    key: str
    contender: Contender
    dialogues: Dialogues
    plan: Plan
    cannot: dict[str, str] = field(factory=dict)
    """Why a scenario cannot be had, by scenario."""
    appended_to: list[Handle] = field(factory=list)
    read: Handle = None
    among: int = 0
    """Conversations there are when the user's are listed."""
    numbers: itertools.count[int] = field(factory=itertools.count)
    cpu: dict[str, float] = field(factory=dict)
    """Seconds of CPU that one operation took, by scenario that is warm."""

    async def prepare(self) -> None:
        """Store what the scenarios read and append to, and see that it is read as it was said."""
        for scenario, prepare in {
            "append": self._prepare_append,
            "latest": self._prepare_read,
            "list": self._prepare_list,
        }.items():
            await self._guarded(scenario, prepare)
        if "latest" in self.cannot:
            self.cannot["all"] = self.cannot["latest"]
        else:
            await self._guarded("latest", self._check_latest)
            await self._guarded("all", self._check_all)

    async def _guarded(self, scenario: str, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except CannotDoError as error:
            self.cannot[scenario] = str(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is that contender's result
            self.cannot[scenario] = failure(error)

    async def _prepare_append(self) -> None:
        first = self.dialogues.texts[0][0]
        for number in range(max(self.plan.tasks)):
            handle = await self.contender.start("appender", f"append-{number}", first)
            self.appended_to.append(handle)

    async def _prepare_read(self) -> None:
        said = self.dialogues.long(self.plan.read)
        (loaded,) = await self.contender.load([("reader", "to be read", said)])
        self.read = await self.contender.resolve(loaded)

    async def _prepare_list(self) -> None:
        """Store the user's own conversations first, then those of others, as time allows."""
        first = self.dialogues.texts[0][:1]
        began = time.perf_counter()
        plan = self.plan
        await self.contender.list_recent(LISTED, _RECENT)  # or there is no need to fill anything
        while self.among < plan.conversations:
            end = min(self.among + min(_SEED_BATCH, plan.listed), plan.conversations)
            batch = [
                (LISTED if n < plan.listed else f"other-{n // _OTHERS}", f"list-{n}", first)
                for n in range(self.among, end)
            ]
            await self.contender.load(batch)
            self.among = end
            spent = time.perf_counter() - began
            if spent + spent * len(batch) / self.among > plan.seed_seconds:
                break
        listed = await self.contender.list_recent(LISTED, _RECENT)
        assert len(listed) == _RECENT

    async def _check_latest(self) -> None:
        said = self.contender.said(await self.contender.latest(self.read, _LATEST))
        assert said == self.dialogues.long(self.plan.read)[-_LATEST:]

    async def _check_all(self) -> None:
        said = self.contender.said(await self.contender.read_all(self.read))
        assert said == self.dialogues.long(self.plan.read)

    def operation(self, scenario: str, tasks: int) -> Operation:
        """Return what is measured in a scenario."""
        turns = self.dialogues.turns()
        contender = self.contender

        def start(_: int) -> Awaitable[Handle]:
            number = next(self.numbers)
            return contender.start(f"starter-{number % 1000}", f"start-{number}", next(turns)[0])

        mine = [itertools.cycle(self.appended_to[task::tasks]) for task in range(tasks)]

        def append(task: int) -> Awaitable[None]:
            return contender.append_turn(next(mine[task]), next(turns))

        operations: dict[str, Operation] = {
            "start": start,
            "append": append,
            "latest": lambda _: contender.latest(self.read, _LATEST),
            "all": lambda _: contender.read_all(self.read),
            "list": lambda _: contender.list_recent(LISTED, _RECENT),
        }
        return operations[scenario]

    def too_slow_for(self, scenario: str, tasks: int) -> str | None:
        """Say why so many tasks would take too long, if they would."""
        seconds = self.cpu.get(scenario, 0.0) * tasks
        if seconds <= self.plan.drain_seconds:
            return None
        return f"left out: {tasks} at once take {seconds:.0f} s of CPU"

    async def warm_up(self, scenario: str) -> None:
        """Do it on each connection, until its statements are prepared there; see how much it is."""
        tasks = self.plan.connections
        operation = self.operation(scenario, tasks)
        self.cpu[scenario] = await warm_up(
            operation, tasks=tasks, times=_WARM, seconds=self.plan.warm_seconds
        )


COUNTED_CONNECTIONS: Final = 2
"""When round trips are counted: few, for pools give the one that has rested longest."""

SCENARIOS: Final[dict[str, str]] = {
    "start": "start a conversation with a first message",
    "append": "append a turn",
    "latest": f"read the last {_LATEST} messages",
    "all": "read all messages",
    "list": f"list a user's {_RECENT} most recent conversations",
}
"""By key, in words."""


async def count_round_trips(
    stage: Stage, scenario: str, begin: Callable[[], None], trips: Callable[[], int]
) -> dict[str, Any]:
    """Count the round trips of one operation: the median of a few, once all is prepared."""
    if scenario in stage.cannot:
        return {"cannot": stage.cannot[scenario]}
    operation = stage.operation(scenario, 1)
    counted = []
    try:
        for _ in range(_WARM * COUNTED_CONNECTIONS):
            await operation(0)
        for _ in range(5):
            begin()
            await operation(0)
            counted.append(trips())
    except Exception as error:  # noqa: BLE001 - as above
        return {"cannot": failure(error)}
    return {"round_trips": sorted(counted)[2]}
