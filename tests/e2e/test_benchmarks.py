"""The benchmarks measure what they say they measure: results are looked at here, times are not."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from benchmarks.contenders.contender import Contender
from benchmarks.contenders.registry import OURS, PEERS, load_contenders
from benchmarks.delaying_proxy import DelayingProxy
from benchmarks.dialogues import PROJECT, made_up
from benchmarks.durable_server import DURABLE, durable_server, settings_of
from benchmarks.plan import TINY
from benchmarks.run import Run
from benchmarks.scenarios import SCENARIOS
from benchmarks.writers import _has_half, _interleaved
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.sql import SQL, Identifier

if TYPE_CHECKING:
    from collections.abc import Iterator

ALONE, _ = load_contenders([*OURS])
PARTS = {"cells", "bulk", "writers", "growth"}
DATABASE = "benchmarks"


@pytest.fixture(scope="module")
def database(dsn: str) -> Iterator[str]:
    """Give the connection string of an empty database."""
    name = Identifier(DATABASE)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(SQL("CREATE DATABASE {}").format(name))
        yield make_conninfo(dsn, dbname=DATABASE)
        connection.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(name))


@pytest.fixture(scope="module")
def results(database: str) -> dict[str, Any]:
    """Give the results of a tiny run of all contenders that need nothing but this package."""
    run = Run(database, ALONE, plan=TINY, dialogues=made_up(), seed=1, say=print)
    asyncio.run(run.go([*SCENARIOS], PARTS))
    return run.results


def test_all_that_need_nothing_else_take_part() -> None:
    """The limit, this package, and the hand-written DAO run wherever the tests run."""
    assert set(ALONE) == {"bare", "ours", "coalesce", "naive"}


def test_every_contender_is_known() -> None:
    """A module with a contender has a key to be asked for by."""
    modules = (PROJECT / "benchmarks" / "contenders").glob("*.py")
    contenders = {module.stem for module in modules if "Contender):" in module.read_text("utf-8")}

    assert contenders == {*OURS.values(), *PEERS.values()}


def test_every_scenario_is_measured(results: dict[str, Any]) -> None:
    """Each contender does each scenario, on each network, with each number of tasks."""
    done = {
        (cell["contender"], cell["scenario"], cell["network"], cell["tasks"]): cell
        for cell in results["cells"]
    }

    assert len(done) == len(results["cells"]) == len(ALONE) * len(SCENARIOS) * 2 * len(TINY.tasks)
    assert {key: cell["cannot"] for key, cell in done.items() if "cannot" in cell} == {}
    assert all(cell["operations"] >= cell["tasks"] for cell in done.values())
    assert all(cell["p50_ratio"][1] == 1 for key, cell in done.items() if key[0] == "bare")


def test_round_trips_are_counted(results: dict[str, Any]) -> None:
    """What this package does is one round trip; a transaction of several statements is several."""
    counted: dict[str, dict[str, int]] = {}
    for row in results["round_trips"]:
        counted.setdefault(row["contender"], {})[row["scenario"]] = row["round_trips"]

    assert counted["bare"] == dict.fromkeys(SCENARIOS, 1)
    assert counted["ours"] == dict.fromkeys(SCENARIOS, 1)
    assert counted["coalesce"] == dict.fromkeys(SCENARIOS, 1)
    assert counted["naive"] == {"start": 4, "append": 5, "latest": 3, "all": 3, "list": 3}


def test_all_conversations_are_there_when_some_are_listed(results: dict[str, Any]) -> None:
    """A list is asked for among as many conversations as is said."""
    assert results["among"] == dict.fromkeys(ALONE, TINY.conversations)


def test_bulk_and_growth_are_measured(results: dict[str, Any]) -> None:
    """Each contender loads conversations, short and long, and goes on with them."""
    assert set(results["bulk"]) == set(ALONE)
    assert [row for row in results["bulk"].values() if "cannot" in row] == []
    assert len(results["growth"]) == len(ALONE) * len(TINY.lengths)
    assert [row for row in results["growth"] if not {"append_ms", "latest_ms"} <= set(row)] == []


def test_writers_of_one_conversation_do_each_other_no_harm(results: dict[str, Any]) -> None:
    """Nothing is lost, doubled or taken apart, and what was seen stays where it was."""
    harm = ("lost", "doubled", "interleaved", "polls_moved", "polls_half")
    rounds = [row for row in results["writers_rounds"] if row["contender"] != "naive"]

    assert len(rounds) == 3 * (len(ALONE) - 1)
    assert all(row["turns"] >= TINY.writers and row["polls"] for row in rounds)
    assert [row for row in rounds if any(row[name] for name in harm)] == []


def test_turns_that_are_taken_apart_are_noticed() -> None:
    """A turn is whole if its answer follows its question."""
    asked, answered = ("user", "1/0 asks"), ("assistant", "1/0 says")
    other = ("user", "2/0 asks")

    assert _interleaved([asked, answered]) == 0
    assert _interleaved([asked, other, answered]) == 2
    assert not _has_half([asked, answered])
    assert _has_half([asked, answered, other])


@pytest.mark.parametrize("key", ALONE)
async def test_what_was_loaded_is_read(key: str, database: str) -> None:
    """Contenders give back what they were given, in its order, and go on from there."""
    contender: Contender = ALONE[key]()
    said = made_up().long(75)
    await contender.open(database, connections=2)
    try:
        (loaded,) = await contender.load([("somebody", f"reads {key}", said)])
        handle = await contender.resolve(loaded)
        await contender.append_turn(handle, said[:2])

        assert contender.said(await contender.read_all(handle)) == said + said[:2]
        assert contender.said(await contender.latest(handle, 3)) == [said[-1], *said[:2]]
        assert len(await contender.list_recent("somebody", 20)) == 1
    finally:
        await contender.close()


def test_the_server_is_durable() -> None:
    """What is measured is on disk when it is answered for."""
    with durable_server() as dsn:
        shown = settings_of(dsn)

    assert {name: shown[name] for name in DURABLE} == dict.fromkeys(DURABLE, "on")


async def test_the_proxy_counts_as_clients_wait(dsn: str) -> None:
    """A pipeline is one round trip, COPY two, and each statement of a transaction one."""
    upstream = conninfo_to_dict(dsn)
    host, port = str(upstream.get("host") or "127.0.0.1"), int(upstream.get("port") or 5432)
    with DelayingProxy(host, port) as proxy:
        through = make_conninfo(dsn, host="127.0.0.1", port=proxy.port)
        async with await psycopg.AsyncConnection.connect(through, autocommit=True) as connection:
            proxy.count()
            async with connection.pipeline():
                for _ in range(3):
                    await connection.execute("SELECT 1")
            pipeline = proxy.round_trips()

            await connection.execute("CREATE TEMPORARY TABLE copied (number int)")
            proxy.count()
            async with connection.cursor().copy("COPY copied FROM STDIN") as copy:
                await copy.write_row([1])
            copied = proxy.round_trips()

            proxy.count()
            async with connection.transaction():
                await connection.execute("SELECT 1")
            transaction = proxy.round_trips()

            proxy.delay(0.05)
            began = time.monotonic()
            await connection.execute("SELECT 1")
            waited = time.monotonic() - began

    assert (pipeline, copied, transaction) == (1, 2, 3)
    assert waited >= 0.049
