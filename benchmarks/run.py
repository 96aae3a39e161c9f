"""One run: all scenarios, on loopback and behind the proxy, and everything that comes out."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from .bulk import load_in_rounds
from .contenders.registry import LIMIT, ContenderType, version_of
from .delaying_proxy import DelayingProxy
from .dialogues import Dialogues
from .durable_server import settings_of
from .growth import Growth
from .machine import machine, occasion
from .measuring import settle
from .plan import Plan
from .rounds import failure, figures, run_rounds
from .scenarios import COUNTED_CONNECTIONS, SCENARIOS, Stage, count_round_trips
from .writers import write_at_once

_DELAY = 0.001  # seconds that the proxy adds to a round trip, as ordered; what it is, is measured
_WRITER_ROUNDS = 3
_BULK_ROUNDS = 3


class Run:
    """A run over one server; `results` is what goes into the file."""

    def __init__(
        self,
        dsn: str,
        contenders: dict[str, ContenderType],
        *,
        plan: Plan,
        dialogues: Dialogues,
        seed: int,
        say: Callable[[str], None],
    ) -> None:
        self._dsn = dsn
        self._contenders = contenders
        self._plan = plan
        self._chance = random.Random(seed)
        self._say = say
        self._began = time.monotonic()
        self._stages = {
            key: Stage(key, contender(), dialogues, plan) for key, contender in contenders.items()
        }
        self.results: dict[str, Any] = {
            "plan": plan.name,
            **occasion(seed),
            "machine": machine(),
            "server": settings_of(dsn),
            "dialogues": dialogues.origin,
            "connections": plan.connections,
            "rounds": plan.rounds,
            "slice_seconds": plan.slice_seconds,
            "read": plan.read,
            "listed": plan.listed,
            "conversations": plan.conversations,
            "writers": plan.writers,
            "contenders": {
                key: {
                    "name": contender.name,
                    "package": contender.package,
                    "version": version_of(contender),
                }
                for key, contender in contenders.items()
            },
            "cells": [],
            "round_trips": [],
        }

    async def go(self, scenarios: list[str], parts: set[str]) -> None:
        """Do it all, or the parts that are named: cells, bulk, writers, growth."""
        async with self._opened(self._dsn):
            self.report("prepare")
            for stage in self._stages.values():
                await stage.prepare()
                self.report(f"  {stage.key}: {stage.among} conversations {stage.cannot or ''}")
            if "cells" in parts:
                await self._measure_cells(scenarios, "loopback", self._plan.tasks)
            if "bulk" in parts:
                self.report("bulk")
                settle()
                self.results["bulk"] = await load_in_rounds(
                    self._stages, chance=self._chance, rounds=_BULK_ROUNDS
                )
            if "writers" in parts:
                await self._measure_writers()
            if "growth" in parts:
                self.report("growth")
                settle()
                self.results["growth"] = await Growth(
                    self._stages, self._plan, self._chance
                ).measure()
        self.results["among"] = {key: stage.among for key, stage in self._stages.items()}
        upstream = conninfo_to_dict(self._dsn)
        host, port = str(upstream.get("host") or "127.0.0.1"), int(upstream.get("port") or 5432)
        with DelayingProxy(host, port) as proxy:
            dsn = make_conninfo(self._dsn, host="127.0.0.1", port=proxy.port, sslmode="disable")
            async with self._opened(dsn, COUNTED_CONNECTIONS):
                await self._count(scenarios, proxy)
            proxy.delay(_DELAY)
            self.results["added_ms"] = round(await self._added(dsn) * 1e3, 3)
            if "cells" in parts:
                async with self._opened(dsn):
                    await self._measure_cells(scenarios, "proxy", self._plan.tasks_behind_proxy)
        self.results["seconds"] = round(time.monotonic() - self._began)

    def report(self, what: str) -> None:
        """Say how far it has come."""
        self._say(f"[{time.monotonic() - self._began:5.0f} s] {what}")

    @asynccontextmanager
    async def _opened(self, dsn: str, connections: int | None = None) -> AsyncIterator[None]:
        opened: list[Stage] = []
        try:
            for key, stage in self._stages.items():
                stage.contender = self._contenders[key]()
                await stage.contender.open(dsn, connections=connections or self._plan.connections)
                stage.cpu.clear()
                opened.append(stage)
            yield
        finally:
            gc.unfreeze()
            for stage in opened:
                await stage.contender.close()

    async def _measure_cells(
        self, scenarios: list[str], network: str, all_tasks: tuple[int, ...]
    ) -> None:
        for scenario in scenarios:
            for stage in self._stages.values():
                if scenario not in stage.cannot:
                    try:
                        await stage.warm_up(scenario)
                    except Exception as error:  # noqa: BLE001 - it is that contender's result
                        stage.cannot[scenario] = failure(error)
            settle()
            for tasks in all_tasks:
                self.report(f"{network}: {SCENARIOS[scenario]}, {tasks} at once")
                await self._measure_cell(scenario, network, tasks)

    async def _measure_cell(self, scenario: str, network: str, tasks: int) -> None:
        out = {
            key: stage.cannot.get(scenario) or stage.too_slow_for(scenario, tasks)
            for key, stage in self._stages.items()
        }
        operations = {
            key: stage.operation(scenario, tasks)
            for key, stage in self._stages.items()
            if out[key] is None
        }
        courses = await run_rounds(operations, tasks=tasks, plan=self._plan, chance=self._chance)
        for key in self._stages:
            cell = {"scenario": scenario, "network": network, "tasks": tasks, "contender": key}
            if key in courses:
                cell |= figures(courses[key], courses.get(LIMIT))
            else:
                cell |= {"cannot": out[key]}
            self.results["cells"].append(cell)

    async def _count(self, scenarios: list[str], proxy: DelayingProxy) -> None:
        self.report("count round trips")
        settle()
        for scenario in scenarios:
            for key, stage in self._stages.items():
                counted = await count_round_trips(stage, scenario, proxy.count, proxy.round_trips)
                row = {"scenario": scenario, "contender": key} | counted
                self.results["round_trips"].append(row)

    async def _added(self, dsn: str) -> float:
        """Return the seconds that the proxy adds to a round trip."""
        medians = []
        for each in (self._dsn, dsn):
            async with await psycopg.AsyncConnection.connect(each, autocommit=True) as connection:
                times = []
                for _ in range(200):
                    began = time.perf_counter()
                    await connection.execute("SELECT 1")
                    times.append(time.perf_counter() - began)
                medians.append(sorted(times)[len(times) // 2])
        return medians[1] - medians[0]

    async def _measure_writers(self) -> None:
        self.report(f"{self._plan.writers} writers on one conversation")
        settle()
        rows: list[dict[str, Any]] = []
        for number in range(_WRITER_ROUNDS):
            order = list(self._stages)
            self._chance.shuffle(order)
            for key in order:
                row: dict[str, Any] = {"contender": key, "round": number}
                try:
                    contender = self._stages[key].contender
                    row |= await write_at_once(contender, f"writers-{number}", self._plan)
                except Exception as error:  # noqa: BLE001 - it is that contender's result
                    row["cannot"] = failure(error)
                rows.append(row)
        self.results["writers_rounds"] = rows
