"""The measurements of large tables, made small: what they find is asserted, never a time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def database(dsn: str) -> Iterator[str]:
    """Give the connection string of a database of the benchmarks' own."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS benchmarks WITH (FORCE)")
        connection.execute("CREATE DATABASE benchmarks")
        yield make_conninfo(dsn, dbname="benchmarks")
        connection.execute("DROP DATABASE benchmarks WITH (FORCE)")


def run(name: str, *arguments: str) -> str:
    """Run a benchmark as a person would, and return what it says."""
    command = [sys.executable, "-W", "error", "-m", f"benchmarks.{name}", *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def result_of(name: str, database: str, folder: Path, *arguments: str) -> Any:
    """Run a measurement in its quick form, and return its result."""
    out = folder / f"{name}.json"
    run(name, "--quick", "--dsn", database, "--out", str(out), *arguments)
    return json.loads(out.read_text("utf-8"))


def rows(database: str, query: str) -> list[Any]:
    """Return the rows of a query."""
    with psycopg.connect(database) as connection:
        return connection.execute(query.encode()).fetchall()


SEED = ("--messages", "6000", "--conversations", "1000", "--users", "100")


@pytest.fixture(scope="module")
def seeded(database: str) -> Any:
    """Give what the seeding tool says of a small store that it filled."""
    return json.loads(run("seed", "--dsn", database, "--schema", "seeded", *SEED))


def test_what_is_seeded_is_consistent(database: str, seeded: Any) -> None:
    """Counts, versions, times and positions are as if the store had written them."""
    [counted] = rows(
        database,
        """SELECT count(*), sum(message_count), min(message_count), max(message_count),
            count(DISTINCT user_id)
        FROM seeded.ai_conversations""",
    )
    wrong = rows(
        database,
        """SELECT c.id FROM seeded.ai_conversations AS c LEFT JOIN (
            SELECT conversation_id, count(*) AS n, max(position) AS last, min(timestamp) AS first,
                max(timestamp) AS latest, count(DISTINCT timestamp) AS turns
            FROM seeded.ai_messages GROUP BY 1) AS m ON m.conversation_id = c.id
        WHERE (c.message_count, c.message_count, c.version, c.start_time, c.last_activity)
            IS DISTINCT FROM (m.n, m.last, m.turns, m.first, m.latest)""",
    )
    backwards = rows(
        database,
        """SELECT id FROM (SELECT id, timestamp < lag(timestamp) OVER (ORDER BY id) AS earlier
            FROM seeded.ai_messages) AS m WHERE earlier""",
    )

    assert counted == (1000, 6000, 2, seeded["most_messages"], 100)
    assert wrong == []
    assert backwards == []
    assert seeded["most_messages"] > 10 * seeded["median_messages"]
    assert (seeded["messages"], seeded["conversations"], seeded["users"]) == (6000, 1000, 100)


def test_ids_go_on_after_what_was_seeded(database: str, seeded: Any) -> None:
    """The store draws no id that the seeding tool gave out."""
    [[drawn, highest]] = rows(
        database,
        """SELECT nextval('seeded.ai_ids'), greatest(
            (SELECT max(id) FROM seeded.ai_messages), (SELECT max(id) FROM seeded.ai_conversations))
        """,
    )

    assert drawn > highest


def test_the_same_arguments_seed_the_same_rows(database: str, seeded: Any) -> None:
    """A measurement can be repeated on the very same tables."""
    run("seed", "--dsn", database, "--schema", "again", *SEED)
    hashes = [
        rows(
            database,
            f"""SELECT md5(string_agg(c::text, '' ORDER BY id)) FROM {schema}.ai_conversations AS c
            UNION ALL SELECT md5(string_agg(m::text, '' ORDER BY id)) FROM {schema}.ai_messages AS m
            """,
        )
        for schema in ("seeded", "again")
    ]

    assert hashes[0] == hashes[1]


def test_a_store_that_holds_something_is_not_seeded(database: str, seeded: Any) -> None:
    """What is there already is never mixed with made-up rows."""
    with pytest.raises(AssertionError, match="not empty"):
        run("seed", "--dsn", database, "--schema", "seeded", *SEED)


def test_pages_stay_flat_while_the_tables_grow(database: str, tmp_path: Path) -> None:
    """From one table to one of five times its size no operation touches many more pages."""
    small, large = result_of("table_growth", database, tmp_path)["tables"]

    assert large["messages"] == 5 * small["messages"]
    for kind in ("usual", "hot"):
        before, after = (table["on"][kind]["buffers"] for table in (small, large))
        assert len(before) == 9
        for operation, by_planning in after.items():
            for planning, pages in by_planning.items():
                assert pages <= before[operation][planning] + 12, (kind, operation, planning)


def test_an_index_on_the_activity_makes_every_append_write_all_indexes(
    database: str, tmp_path: Path
) -> None:
    """Without it no append does; but then a list reads all conversations of its user."""
    result = result_of("indexes", database, tmp_path)
    layouts = {layout["name"]: layout for layout in result["layouts"]}

    assert layouts["today"]["hot_share"] == 0
    assert layouts["none_90"]["hot_share"] > 0.9
    assert layouts["hour_90"]["hot_share"] > 0.5
    logged = {name: layout["log_of_an_append"]["records"] for name, layout in layouts.items()}
    assert logged["none_90"] == logged["hour_90"] == logged["today"] - 3
    pages = {
        name: layout["list_after_vacuum"]["1000 all"]["buffers"] for name, layout in layouts.items()
    }
    assert pages["none"] > 2 * pages["today"]


def test_what_messages_take(database: str, tmp_path: Path) -> None:
    """The order of columns is worth little; an index without order reads everything."""
    result = result_of("storage", database, tmp_path)
    today, fixed_first = result["bytes_of_a_row"].values()
    built = result["indexes"]["built"]

    assert 0.97 < fixed_first / today <= 1
    assert built["BRIN (conversation_id)"]["buffers_of_latest_50"]["usual"] > 100


def test_a_run_of_writes_is_sampled(database: str, tmp_path: Path) -> None:
    """Every sample has latencies and the state of both tables, and what was done is stored."""
    result = result_of("write_run", database, tmp_path, "--minutes", "0.1")
    done = result["done"]
    [[messages, conversations]] = rows(
        database,
        """SELECT (SELECT count(*) FROM written.ai_messages),
            (SELECT count(*) FROM written.ai_conversations)""",
    )

    assert len(result["samples"]) == 10
    assert {tuple(sample["tables"]) for sample in result["samples"]} <= {
        ("ai_conversations", "ai_messages"),
        ("ai_messages", "ai_conversations"),
    }
    assert min(done.values()) > 0
    assert messages == result["seeded_messages"] + 2 * done["append"] + done["start"]
    assert conversations == result["seeded_conversations"] + done["start"]
    assert result["summary"]["ai_conversations"]["hot_share"] == 0


def test_the_page_says_what_was_measured() -> None:
    """Nothing in docs/large-tables.md is typed by hand: it is what the kept results make."""
    made = run("large_tables_page", "--print")

    assert made == (PROJECT / "docs" / "large-tables.md").read_text("utf-8")
