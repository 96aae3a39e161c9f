"""The page on large tables, made from the results alone.

python -m benchmarks.large_tables_page       # writes docs/large-tables.md
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .table_runs import RESULTS

PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "large-tables.md"
PICTURES: Final = "../benchmarks/results"
NAMES: Final = ("table_growth", "storage", "indexes", "write_run", "naptime_1min", "naptime_15s")

Result = Mapping[str, Any]


def read(folder: Path = RESULTS) -> dict[str, Any]:
    """Return the results that the page is made of."""
    return {name: json.loads((folder / f"{name}.json").read_text("utf-8")) for name in NAMES}


def page(results: Mapping[str, Result]) -> str:
    """Return the page as Markdown."""
    growth, storage, indexes, run, *naptimes = (results[name] for name in NAMES)
    return "\n".join(
        (
            "# Large tables",
            "",
            _prose("""
                This page is made by `python -m benchmarks.large_tables_page` from what
                `benchmarks/results` holds. Do not edit it by hand."""),
            "",
            *_growth(growth),
            *_storage(growth, storage),
            *_indexes(indexes),
            *_run(run),
            *_naptimes(naptimes),
            *_measured_on(results),
        )
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return [*("| " + " | ".join(map(str, line)) + " |" for line in lines), ""]


def _prose(text: str) -> str:
    return " ".join(text.split())


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"


def _growth(result: Result) -> list[str]:
    tables = result["tables"]
    last = tables[-1]
    lines = [
        "## What an operation touches",
        "",
        _prose("""
            Pages of 8 kB that the statement of an operation meets, in tables of different
            sizes: the larger of its two plans, with and without known parameters. The pages
            that the check of the foreign key meets come on top of an append and a start."""),
        "",
        _prose(f"""
            The tables are seeded by `benchmarks/seed.py`. The largest has {last["messages"]:,}
            messages in {last["conversations"]:,} conversations of {last["users"]:,} users; one
            conversation has {last["most_messages"]:,} messages, one user
            {last["most_conversations"]:,} conversations. Turns lie in the table in the order of
            their times, so that those of one conversation are scattered over it."""),
        "",
    ]
    for kind, title in (
        ("usual", "A conversation of about 50 messages"),
        ("hot", "The longest conversation of the table"),
    ):
        rows = [
            [
                operation,
                *(
                    _number(max(table["on"][kind]["buffers"][operation].values()))
                    for table in tables
                ),
            ]
            for operation in last["on"][kind]["buffers"]
        ]
        head = [title, *(f"{table['messages']:,} messages" for table in tables)]
        lines += _table(head, rows)
    lines += [
        _prose("""
            What grows is the depth of the B-trees, by a page now and then. The list grows up
            to a page for each conversation in it: in a small table several lie on one page, in
            a large one each lies on its own."""),
        "",
        f"![Pages and times over the size of the table]({PICTURES}/table_growth.svg)",
        "",
    ]
    return lines


def _storage(growth: Result, storage: Result) -> list[str]:
    kinds = growth["storage"]
    first = next(iter(kinds.values()))
    rows = [
        [
            name,
            _number(part["ai_messages (rows)"] + part["ai_messages (toast)"]),
            _number(part["ai_messages_pkey"]),
            _number(part["ai_messages_id_key"]),
            _number(part["ai_messages_request_key"]),
            _number(sum(size for key, size in part.items() if key.startswith("ai_conversations"))),
            _number(part["all"]),
        ]
        for name, part in kinds.items()
    ]
    head = ["messages", "rows", "primary key", "id", "request", "conversations", "bytes in all"]
    orders = storage["bytes_of_a_row"]
    today, fixed = orders["today"], orders["fixed widths first"]
    built = storage["indexes"]["built"]
    lines = [
        "## Bytes per message",
        "",
        _prose(f"""
            The words of a message are {first["content"]} bytes on average here; what is said to
            a language model is longer, and comes on top."""),
        "",
        *_table(head, rows),
        _prose(f"""
            - The order of columns is worth {100 * (1 - fixed / today):.1f} %: with the columns
            of fixed width first a row would take {fixed} bytes instead of {today}."""),
        _prose("""
            - Each index has its use: the primary key is the order of messages, the one on `id`
            finds a message by its id, the partial one tells a repeated request."""),
    ]
    for name, found in built.items():
        if name.startswith("BRIN"):
            pages = found["buffers_of_latest_50"]
            kept = built["ai_messages_pkey (conversation_id, position), packed"]
            lines.append(
                f"- {name} in place of the primary key takes {found['bytes']} bytes, but the "
                f"newest 50 of the longest conversation then cost {pages['hot']:,} pages instead "
                f"of {kept['buffers_of_latest_50']['hot']}, and nothing would keep positions apart."
            )
    return [*lines, ""]


def _indexes(result: Result) -> list[str]:
    layouts = result["layouts"]
    users = sorted({int(key.split()[0]) for key in layouts[0]["list_seeded"]})
    few, many, most = users[0], users[1], users[-1]

    def pages(layout: Result, when: str, key: str, measure: str = "buffers") -> str:
        return _number(layout[f"list_{when}"][key][measure])

    head = [
        "layout of ai_conversations",
        "append p50",
        "log bytes",
        "HOT",
        f"list of {few:,}",
        f"list of {many:,}",
        f"list of {most:,}",
        f"archived of {most:,}",
        "MB after",
    ]
    rows = [
        [
            f"{layout['name']}: {layout['says']}",
            f"{layout['append_ratio']:.2f}x",
            _number(layout["log_of_an_append"]["bytes"]),
            f"{100 * layout['hot_share']:.0f} %",
            pages(layout, "before_vacuum", f"{few} all", "first_buffers"),
            pages(layout, "before_vacuum", f"{many} all", "first_buffers"),
            pages(layout, "before_vacuum", f"{most} all", "first_buffers"),
            pages(layout, "before_vacuum", f"{most} archived", "first_buffers"),
            f"{sum(layout['size_after'].values()) / 1e6:.1f}",
        ]
        for layout in layouts
    ]
    waited = [
        [
            layout["name"],
            f"{layout['durable']['alone_ratio']:.2f}x",
            f"{layout['durable']['16_tasks_ratio']:.2f}x",
            f"{layout['durable']['16_tasks_rate_ratio']:.2f}x",
        ]
        for layout in layouts
        if "durable" in layout
    ]
    return [
        "## The price of the index on last_activity",
        "",
        _prose(f"""
            Every append changes `last_activity`, so with an index on it no append is a HOT
            update: it writes into all indexes of `ai_conversations`. The layouts below list a
            user's conversations in other ways. {result["appends"]:,} appends on each, in turns,
            on {result["conversations"]:,} conversations. The p50 is of the bare statement, not
            waiting for the disk; log bytes are those of one append without page images; lists
            are pages met by the first 20, the first time after {result["between_vacuums"]:,}
            appends without a vacuum."""),
        "",
        *_table(head, rows),
        _prose("""
            With the hour, a list reads all conversations that its user was active in within
            that hour: if all of them were, as after an import without times, as many pages as
            without an index. A repeated list of a layout with times meets fewer pages than the
            first: what the first found dead, the index no longer shows."""),
        "",
        "Through `append_messages`, waiting for the disk:",
        "",
        *_table(["layout", "p50, one task", "p50, 16 tasks", "rate, 16 tasks"], waited),
        "What follows from it: [decision 15](decisions/0015-the-price-of-the-activity-index.md).",
        "",
    ]


def _run(result: Result) -> list[str]:
    found = result["summary"]
    conversations, messages = found["ai_conversations"], found["ai_messages"]
    grown = conversations["bytes_per_row"]
    return [
        "## Autovacuum under writes",
        "",
        f"{result['tasks']} tasks wrote for {result['seconds'] / 60:.0f} minutes to a store of "
        f"{result['seeded_messages']:,} messages in {result['seeded_conversations']:,} "
        f"conversations, half of the appends to {result['hot_conversations']} of them: "
        + ", ".join(f"{count:,} times {name}" for name, count in sorted(result["done"].items()))
        + ". Autovacuum ran at its default settings.",
        "",
        *_table(
            ["", "second fifth of the run", "last fifth"],
            [
                [title, _number(found[name]["early"]), _number(found[name]["late"])]
                for name, title in (
                    ("operations_per_second", "operations a second"),
                    ("append_p50_ms", "append, p50 [ms]"),
                    ("append_p99_ms", "append, p99 [ms]"),
                    ("list_p50_ms", "list, p50 [ms]"),
                )
            ],
        ),
        _prose(f"""
            - `ai_conversations`: {conversations["updates"]:,} updates,
            {conversations["autovacuums"]} passes of autovacuum, at most
            {conversations["most_dead"]:,} dead rows at once,
            {conversations["most_dead_late"]:,} in the last fifth. Bytes by row, indexes
            included: {grown["first"]} at the start, {grown["early"]} after two fifths of the
            run, {grown["last"]} at the end."""),
        _prose(f"""
            - `ai_messages` is only inserted into: at most {messages["most_dead"]:,} dead rows;
            {messages["bytes_per_row"]["first"]} bytes by row at the start,
            {messages["bytes_per_row"]["last"]} at the end."""),
        "",
        f"![Latency, dead rows and sizes over the run]({PICTURES}/write_run.svg)",
        "",
    ]


def _naptimes(runs: Sequence[Result]) -> list[str]:
    """Compare runs after the same number of updates, and with what they began with."""
    table = "ai_conversations"
    enough = min(run["summary"][table]["updates"] for run in runs)
    rows = [["at the start", "", "", *_parts(runs[0]["samples"][0])]]
    for run in runs:
        sample = next(s for s in run["samples"] if s["tables"][table]["updates"] >= enough)
        naptime = run["about"]["settings"]["autovacuum_naptime"]
        passes = _number(sample["tables"][table]["autovacuums"])
        rows.append([naptime, passes, _number(run["summary"][table]["most_dead"]), *_parts(sample)])
    head = ["naptime", "passes", "most dead", "row", "primary key", "session", "activity"]
    return [
        _prose(f"""
            Autovacuum looks for work once in `autovacuum_naptime`, a minute by default. Under
            such a load that decides how many rows are dead, and not the settings of a table:
            each time there is enough to do. Two shorter runs after {enough:,} updates of
            `ai_conversations`, bytes by row that is alive:"""),
        "",
        *_table(head, rows),
        _prose("""
            The rows and the other indexes nearly keep their size. The activity index takes more:
            entries leave the pages where they were, and a page is used again when it is empty.
            `REINDEX INDEX CONCURRENTLY` packs it, if that should ever matter."""),
        "",
    ]


def _parts(sample: Mapping[str, Any]) -> list[str]:
    table, indexes = sample["tables"]["ai_conversations"], sample["bytes_of_indexes"]
    sizes = (
        table["bytes_of_rows"],
        *(indexes[f"ai_conversations_{name}"] for name in ("pkey", "session_key", "activity_idx")),
    )
    return [_number(round(size / table["rows"], 1)) for size in sizes]


def _measured_on(results: Mapping[str, Result]) -> list[str]:
    lines = ["## Measured on", ""]
    for name, result in results.items():
        about = result["about"]
        settings = about["settings"]
        lines.append(
            f"- `benchmarks/results/{name}.json`, {about['date']}: {about['processor']}, "
            f"{about['cores']} cores; PostgreSQL {about['postgresql']} (fsync "
            f"{settings['fsync']}, synchronous_commit {settings['synchronous_commit']}, "
            f"shared_buffers {settings['shared_buffers']}), Python {about['python']}, psycopg "
            f"{about['psycopg']}." + (f" Note: {about['note']}." if about["note"] else "")
        )
    return [*lines, ""]


def main() -> None:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description="Make docs/large-tables.md from the results.")
    parser.add_argument("--print", action="store_true", help="print it, write nothing")
    text = page(read())
    if parser.parse_args().print:
        print(text, end="")
    else:
        PAGE.write_text(text, "utf-8")
        print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
