"""Plays every scenario in front of every fault, at every message, and lists what went wrong."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import psycopg
from ledger import APPLICATION, Ledger, Told
from psycopg import sql
from pulse import Pulse
from store_fixtures import APPLICATION as APPLICATION_ROLE
from store_fixtures import ROLES, as_role, create_roles

from conversation_store import ConversationStore, ConversationStoreError, StoreError, StoreTimeout

from . import scenarios, units  # noqa: F401 - they enter themselves
from .case import PATIENCE, SCENARIOS, SCHEMA, Case, Scenario
from .proxy import Fault, FaultProxy, Kind, Way

AT_ONCE: Final = 16
"""So many lanes at once."""
WAITING_AT_ONCE: Final = 48
"""Those that do nothing but wait: in a black hole, or for the pool's next try to connect."""
LONGEST_LANE: Final = 40
LONGEST_HOLE: Final = 12
LONGEST_OPENING: Final = 2
GRACE: Final = 0.5
"""Seconds within which a call has ended that was cancelled."""
MORE_TRIES: Final = 2
"""For a call that ended late: if it is late every time, it was not the machine that was busy."""
ID_BLOCK: Final = 1_000_000
"""So large that no store draws ids in the midst of a case."""

VAGUE: Final = (ConversationStoreError, StoreError)
"""Errors that say too little about a network that fails."""

KINDS: Final[Mapping[Way, Sequence[Kind]]] = {
    Way.TO_SERVER: tuple(Kind),
    # An answer that is not passed on is lost: there, to reset is to lose the reply.
    Way.TO_CLIENT: tuple(kind for kind in Kind if kind is not Kind.LOSE),
}


@dataclass
class Report:
    """What a run found."""

    ends: Counter[str] = field(default_factory=Counter)
    """How many cases ended how."""
    slowest: float = 0.0
    """Seconds that a call in a black hole took most to end after it was cancelled."""
    complaints: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        """How many cases were played."""
        return self.ends.total()


class Lane(NamedTuple):
    """A store behind a proxy, and the faults that it meets in turn."""

    scenario: Scenario
    faults: Sequence[Fault]
    waits: bool


async def prepare(dsn: str, harm: str = "", *, row_security: bool = False) -> None:
    """Make an empty store in a schema of its own, then do what harm is to be done to it."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        name = sql.Identifier(SCHEMA)
        await connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(name))
        async with ConversationStore.connect(dsn, schema=SCHEMA, min_size=1) as store:
            if row_security:
                create_roles(dsn)
            roles = ROLES if row_security else {}
            await store.migrate(id_block=ID_BLOCK, row_security=row_security, **roles)
        if harm:
            await connection.execute(sql.SQL(harm).format(name))


@dataclass
class Matrix:
    """Faults to be played, on one server."""

    dsn: str
    options: dict[str, Any] = field(default_factory=dict)
    """Of the stores behind the proxy."""
    tries_again: bool = False
    """Whether that is to mend what can be mended: see Scenario.may_raise."""
    prepared: bool = False
    """Whether statements are prepared when the fault comes: each case is played well before."""
    opening: bool = False
    """Whether the fault comes while a connection is opened: there is none then."""
    harm: str = ""
    """SQL that is run beforehand, with {} for the schema."""
    user_id: str | None = None
    """For whom all units act, by stores with row security; None: by stores without."""
    ledger: Ledger = field(init=False)
    report: Report = field(init=False, default_factory=Report)
    _numbers: Iterator[int] = field(init=False, default_factory=itertools.count)

    async def play(
        self,
        names: Collection[str] = SCENARIOS.keys(),
        kinds: Collection[Kind] = tuple(Kind),
    ) -> Report:
        """Play these scenarios in front of these faults, and judge."""
        await prepare(self.dsn, self.harm, row_security=self.user_id is not None)
        self.ledger = Ledger(self.dsn, SCHEMA)
        self._pulse = Pulse()
        async with (
            self._pulse.beating(),
            ConversationStore.connect(self.dsn, schema=SCHEMA, max_size=16) as self._beside,
            await psycopg.AsyncConnection.connect(self.dsn, autocommit=True) as self._control,
        ):
            lanes = [
                lane
                for scenario in (SCENARIOS[name] for name in names)
                if self.tries_again or not scenario.needs_retry
                for lane in self._lanes(scenario, await self.record(scenario), kinds)
            ]
            # First those that wait in black holes, for these are also held to a time.
            await self._run_lanes([lane for lane in lanes if lane.waits], WAITING_AT_ONCE)
            await self._run_lanes([lane for lane in lanes if not lane.waits], AT_ONCE)
        self.report.complaints += await asyncio.to_thread(self.ledger.violations)
        return self.report

    async def _run_lanes(self, lanes: Sequence[Lane], at_once: int) -> None:
        free = asyncio.Semaphore(at_once)

        async def run(lane: Lane) -> None:
            async with free:
                await self._run_lane(lane.scenario, lane.faults)

        async with asyncio.TaskGroup() as tasks:
            for lane in lanes:
                tasks.create_task(run(lane))

    async def record(self, scenario: Scenario) -> dict[Way, list[str]]:
        """Return the messages of a scenario that meets no fault."""
        async with self._behind_proxy(scenario) as (proxy, store):
            for _ in range(1 + self.prepared):
                await scenario.play(self._case(scenario, proxy, store, None))
            return proxy.seen

    @asynccontextmanager
    async def _behind_proxy(
        self, scenario: Scenario
    ) -> AsyncGenerator[tuple[FaultProxy, ConversationStore]]:
        """Give a warm store whose only connection goes through a proxy."""
        name = f"{APPLICATION} {scenario.name[:20]} {next(self._numbers)}"
        async with FaultProxy(self.dsn, name, self._control) as proxy:
            async with ConversationStore.connect(
                as_role(proxy.dsn, APPLICATION_ROLE) if self.user_id else proxy.dsn,
                schema=SCHEMA,
                min_size=1,
                max_size=1,
                prepare_threshold=0 if self.prepared else None,
                coalesce=scenario.coalesce,
                row_security=self.user_id is not None,
                **self.options,
            ) as store:
                await self._case(scenario, proxy, store, None).start(store)
                yield proxy, store
                if left := await self._left_over(name):
                    self.report.complaints.append(f"{scenario.name}: left on the server: {left}")

    def _case(
        self,
        scenario: Scenario,
        proxy: FaultProxy,
        store: ConversationStore,
        fault: Fault | None,
    ) -> Case:
        name = f"{scenario.name}, {fault or 'no fault'}"
        between = store, self._beside, proxy, fault, self.ledger, self._pulse
        return Case(name, *between, self.opening, self.user_id)

    async def _left_over(self, application: str) -> list[Any]:
        """Return what a store left on the server: more than its one connection, or that at work."""
        query = "SELECT pid, state, query FROM pg_stat_activity WHERE application_name = %s"
        rows: list[Any] = []
        for _ in range(100):
            rows = await (await self._control.execute(query, [application])).fetchall()
            if len(rows) <= 1 and all(state == "idle" for _, state, _ in rows):
                return []
            await asyncio.sleep(0.05)
        return rows

    async def _run_lane(self, scenario: Scenario, faults: Sequence[Fault]) -> None:
        async with self._behind_proxy(scenario) as (proxy, store):
            for fault in faults:
                if self.prepared:
                    await scenario.play(self._case(scenario, proxy, store, None))
                case = self._case(scenario, proxy, store, fault)
                complaint = await self._run_case(scenario, case)
                for _ in range(MORE_TRIES):
                    if case.overtime > GRACE:
                        case = self._case(scenario, proxy, store, fault)
                        complaint = await self._run_case(scenario, case)
                if complaint:
                    self.report.complaints.append(f"{case.name}: {complaint}")

    async def _run_case(self, scenario: Scenario, case: Case) -> str | None:
        error: BaseException | None = None
        try:
            await scenario.play(case)
        except (Exception, asyncio.CancelledError) as caught:  # noqa: BLE001 - it is judged
            error = caught
        self.report.ends[Told.ACKNOWLEDGED if error is None else type(error).__name__] += 1
        complaint = self._judge(scenario, case, error)
        case.proxy.heal()
        try:
            async with asyncio.timeout(PATIENCE):
                await case.proxy.settled()
                await case.start(case.store)
        except Exception as caught:  # noqa: BLE001 - it is told
            return f"{complaint or ''} the next call failed with {caught!r}"
        return complaint

    def _judge(self, scenario: Scenario, case: Case, error: BaseException | None) -> str | None:
        """Return what is wrong with how a call ended; what it stored is for the ledger to say."""
        assert case.fault is not None
        kind = case.fault.kind
        if not case.proxy.fired:
            return f"the fault never came, with {error!r}"
        if kind is Kind.HOLE:
            if case.overtime <= GRACE:
                self.report.slowest = max(self.report.slowest, case.overtime)
            else:
                return f"took {case.overtime:.2f} s after it was cancelled, with {error!r}"
            return None if isinstance(error, TimeoutError | None) else f"ended with {error!r}"
        if error is None:
            return None
        if isinstance(error, psycopg.Error) and scenario.raises_the_drivers:
            return None
        if not isinstance(error, ConversationStoreError) or type(error) in VAGUE:
            return f"ended with {error!r}"
        if kind is Kind.DELAY:
            return f"a delay ended with {error!r}"
        if kind is Kind.CANCEL:
            return None if isinstance(error, StoreTimeout) else f"ended with {error!r}"
        if self.tries_again and type(error) not in scenario.may_raise:
            return f"was not tried again: {error!r}"
        return None

    def _lanes(
        self, scenario: Scenario, messages: Mapping[Way, Sequence[str]], kinds: Collection[Kind]
    ) -> Iterator[Lane]:
        """Give the faults of a scenario, those of one kind for one store."""
        for kind in kinds:
            if kind is Kind.HOLE and scenario.raises_the_drivers:
                continue  # the driver's own calls wait 10 s there
            faults = [
                Fault(way, number, kind)
                for way in Way
                if kind in KINDS[way]
                for number in range(len(messages[way]))
            ]
            waits = self.opening or kind is Kind.HOLE
            size = (LONGEST_OPENING if self.opening else LONGEST_HOLE) if waits else LONGEST_LANE
            for start in range(0, len(faults), size):
                yield Lane(scenario, faults[start : start + size], waits)
