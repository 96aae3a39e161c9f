"""The chapter on the contenders: its text and tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from .contender_results import Cell, ContenderResults, short
from .markdown import table

_OF: Final = {
    "start": "start a conversation with a first message",
    "append": "append a turn",
    "latest": "read the last 50 messages of {read}",
    "all": "read all {read} messages",
    "list": "list a user's 20 most recent of {listed} conversations, among {conversations}",
}
_NETWORK: Final = {"loopback": "on loopback", "proxy": "over a network of {added} ms a round trip"}


def text(data: dict[str, Any]) -> str:
    """Make the chapter."""
    results = ContenderResults(data)
    parts = [
        "## Beside others",
        _circumstances(data),
        _versions(results),
        *_in_short(results),
        "### Round trips",
        "How often a client waits for the server in one operation, once it has run a few times.",
        picture("round-trips", "Round trips of each contender"),
        "### Time of one operation",
        picture("p50", "Median time of an operation, for each contender"),
        picture("throughput", "Operations a second with many tasks, for each contender"),
        "### Each scenario",
        "A figure with × is a ratio to bare psycopg: the median over rounds, and the quartiles.",
        *_scenarios(results),
        *_bulk(results),
        *_writers(results),
        *_growth(results),
    ]
    return "\n\n".join(parts)


def readme_block(data: dict[str, Any]) -> str:
    """Make the small table and the plot of the README."""
    results = ContenderResults(data)
    many = max(results.tasks("loopback"), default=1)
    added = short(data["added_ms"])
    head = [
        "",
        "round trips: start / turn / last 50 / list",
        "a turn",
        f"over {added} ms",
        f"turns/s, {many} tasks",
        "client CPU",
    ]
    rows = []
    for key in results.keys:
        trips = [results.trips(name, key) for name in ("start", "append", "latest", "list")]
        alone = results.cell("append", "loopback", 1, key)
        rows.append(
            [
                _named(results, key),
                " / ".join(str(each.get("round_trips", "–")) for each in trips),
                _beside(alone, "p50", "p50_ms", " ms"),
                _beside(results.cell("append", "proxy", 1, key), "p50", "p50_ms", " ms"),
                _beside(results.cell("append", "loopback", many, key), "per_second"),
                _beside(alone, "cpu", "cpu_us", " µs"),
            ]
        )
    words = "A turn: round trips, time over a network, turns a second"
    where = (
        f"PostgreSQL {data['server']['server_version'].split()[0]} with durable commits,"
        f" {data['machine']['cores']} cores shared by client and server, {data['date']}; medians."
        " × is a multiple of bare psycopg, which sends the same statement."
        " All scenarios, machine and versions: [benchmarks](docs/benchmarks.md)."
    )
    return "\n\n".join([f"![{words}](docs/benchmarks/turn.svg)", table(head, rows), where])


def comparison_block(data: dict[str, Any]) -> str:
    """Make the tables of docs/comparison.md."""
    results = ContenderResults(data)
    many, added = max(results.tasks("loopback"), default=1), short(data["added_ms"])
    grown = {(row["contender"], row["length"]): row for row in data.get("growth", ())}
    length = sorted({length for _, length in grown})[-2:][0] if grown else 0
    costs = []
    for key in results.keys:
        trips = [results.trips(name, key) for name in ("start", "append", "latest")]
        bulk = data.get("bulk", {}).get(key, {})
        costs.append(
            [
                _named(results, key),
                " / ".join(str(each.get("round_trips", "–")) for each in trips),
                _middle(results.cell("append", "loopback", 1, key), "p50_ratio"),
                _middle(results.cell("append", "proxy", 1, key), "p50_ratio"),
                _middle(results.cell("append", "loopback", many, key), "per_second_ratio"),
                _figure(grown.get((key, length), {}), "latest_ms", " ms"),
                _middle(bulk, "ratio"),
            ]
        )
    head = [
        "",
        "round trips: start / turn / last 50",
        "a turn",
        f"over {added} ms",
        f"turns/s, {many} tasks",
        f"last 50 of {length:,}".replace(",", " "),
        "bulk",
    ]
    faults = []
    for key in results.keys:
        row = results.writers(key)
        if "cannot" not in row:
            faults.append(
                [
                    _named(results, key),
                    f"{row['lost']} / {row['doubled']}",
                    f"{row['interleaved']} of {row['turns']}",
                    *(f"{row[name]} of {row['polls']}" for name in ("polls_moved", "polls_half")),
                ]
            )
    kinds = [
        "",
        "lost / doubled",
        "turns taken apart",
        "polls that moved",
        "polls with half a turn",
    ]
    measure = (
        f"× is a multiple of bare psycopg, which sends the same statement: [all"
        f" scenarios](benchmarks.md#each-scenario), [long"
        f" conversations](benchmarks.md#as-a-conversation-gets-longer),"
        f" [bulk](benchmarks.md#whole-conversations-at-once). Measured {data['date']}, PostgreSQL"
        f" {data['server']['server_version'].split()[0]}, {data['machine']['cores']} cores shared"
        f" by client and server."
    )
    writers = data.get("writers", 0)
    writing = (
        f"{writers} tasks that append turns to one conversation while a reader polls it: [how it"
        " was measured]"
        f"(benchmarks.md#{writers}-writers-on-one-conversation-and-a-reader-who-polls)."
    )
    parts = [_versions(results), table(head, costs), measure, writing, table(kinds, faults)]
    return "\n\n".join(parts)


def picture(name: str, what: str) -> str:
    """Name a plot."""
    return f"![{what}](benchmarks/{name}.svg)"


def _circumstances(data: dict[str, Any]) -> str:
    machine, server = data["machine"], data["server"]
    settings = ", ".join(f"`{k} = {v}`" for k, v in server.items() if k != "server_version")
    return (
        f"A {data['plan']} run of {data['date']}, commit `{data['commit']}`, seed {data['seed']},"
        f" {data['seconds']} s long. {machine['cpu']}, {machine['cores']} cores,"
        f" {machine['memory_gb']} GB, {machine['system']}, Linux {machine['kernel']}; 8 kB are on"
        f" disk after {machine['flush_ms']} ms. Python {machine['python']}. PostgreSQL"
        f" {server['server_version'].split()[0]}, on the same machine: {settings}. Dialogues:"
        f" {data['dialogues']}. Every contender has {data['connections']} connections."
    )


def _versions(results: ContenderResults) -> str:
    known = results.data["contenders"]
    driver = ", ".join(f"{name} {version}" for name, version in results.data["driver"].items())
    rows = [
        [results.name(key), f"{known[key]['package']} {known[key]['version']}"]
        for key in results.keys
    ]
    return table(["contender", "distribution"], rows) + f"\n\nBeneath: {driver}."


def _in_short(results: ContenderResults) -> Iterable[str]:
    yield "### In short"
    for network in ("loopback", "proxy"):
        where = _NETWORK[network].format(added=short(results.data["added_ms"]))
        yield f"p50 of one task {where}, as a multiple of bare psycopg:"
        names = [name for name in _WORDS if name in results.scenarios()]
        rows = []
        for key in results.keys:
            cells = [results.cell(name, network, 1, key) for name in names]
            rows.append([_named(results, key), *(_middle(cell, "p50_ratio") for cell in cells)])
        yield table(["", *(_WORDS[name] for name in names)], rows)
    many = [tasks for tasks in results.tasks("loopback") if tasks > 1]
    yield "Turns a second on loopback, as a multiple of bare psycopg:"
    rows = []
    for key in results.keys:
        cells = [results.cell("append", "loopback", tasks, key) for tasks in many]
        rows.append([_named(results, key), *(_middle(cell, "per_second_ratio") for cell in cells)])
    yield table(["", *(f"{tasks} tasks" for tasks in many)], rows)


_WORDS: Final = {
    "start": "start",
    "append": "turn",
    "latest": "last 50",
    "all": "all",
    "list": "list",
}


def _scenarios(results: ContenderResults) -> Iterable[str]:
    data = results.data
    for scenario in results.scenarios():
        what = _OF[scenario].format(**{k: f"{data[k]:,}".replace(",", " ") for k in _SIZES})
        yield f"<details><summary>{what[0].upper()}{what[1:]}</summary>"
        if scenario == "list" and (fewer := _fewer(results)):
            yield fewer
        for network in ("loopback", "proxy"):
            for tasks in results.tasks(network):
                where = _NETWORK[network].format(added=short(data["added_ms"]))
                who = "One task" if tasks == 1 else f"{tasks} tasks"
                yield f"{who}, {where}:"
                yield _cells(results, scenario, network, tasks)
        yield "</details>"


_SIZES: Final = ("read", "listed", "conversations")


def _fewer(results: ContenderResults) -> str:
    """Say who did not get all the conversations that it should have been given."""
    data = results.data
    fewer = [
        f"{results.name(key)} among {data['among'][key]:,}".replace(",", " ")
        for key in results.keys
        if 0 < data["among"][key] < data["conversations"]
    ]
    return f"Among fewer, for filling takes too long: {', '.join(fewer)}." if fewer else ""


def _cells(results: ContenderResults, scenario: str, network: str, tasks: int) -> str:
    head = ["", "round trips", "p50 ms", "p99 ms", "ops/s", "CPU µs", "p50 ×", "CPU ×", "ops/s ×"]
    rows = []
    for key in results.keys:
        cell = results.cell(scenario, network, tasks, key)
        if "cannot" in cell:
            rows.append([_named(results, key), cell["cannot"], *[""] * (len(head) - 2)])
            continue
        rows.append(
            [
                _named(results, key),
                str(results.trips(scenario, key).get("round_trips", "–")),
                *(short(cell[name]) for name in ("p50_ms", "p99_ms", "per_second", "cpu_us")),
                *(_ratio(cell, f"{name}_ratio") for name in ("p50", "cpu", "per_second")),
            ]
        )
    return table(head, rows)


def _bulk(results: ContenderResults) -> Iterable[str]:
    if "bulk" not in results.data:
        return
    yield "### Whole conversations at once"
    rows = []
    for key in results.keys:
        row = results.data["bulk"].get(key, {"cannot": "not measured"})
        cells = (
            [row["cannot"], "", ""]
            if "cannot" in row
            else [
                _figure(row, "messages_per_second"),
                _figure(row, "cpu_us"),
                _ratio(row, "ratio"),
            ]
        )
        rows.append([_named(results, key), *cells])
    yield table(["", "messages/s", "CPU µs a message", "messages/s ×"], rows)
    yield "The limit here is COPY into both tables."


def _writers(results: ContenderResults) -> Iterable[str]:
    if "writers_rounds" not in results.data:
        return
    yield f"### {results.data['writers']} writers on one conversation, and a reader who polls"
    yield (
        "Lost and doubled are messages; interleaved are turns whose answer does not follow its"
        " question. Of the polls: how many showed something elsewhere than the poll before, and how"
        " many a part of a turn."
    )
    speeds = ["turns/s", "p50 ms", "p99 ms"]
    head = ["", *speeds, "lost", "doubled", "interleaved", "moved", "half turns"]
    rows = []
    for key in results.keys:
        row = results.writers(key)
        if "cannot" in row:
            rows.append([_named(results, key), row["cannot"], *[""] * (len(head) - 2)])
            continue
        rows.append(
            [
                _named(results, key),
                *(short(row[name]) for name in ("turns_per_second", "p50_ms", "p99_ms")),
                *(str(row[name]) for name in ("lost", "doubled")),
                f"{row['interleaved']} of {row['turns']}",
                *(f"{row[name]} of {row['polls']}" for name in ("polls_moved", "polls_half")),
            ]
        )
    yield table(head, rows)


def _growth(results: ContenderResults) -> Iterable[str]:
    rows = results.data.get("growth")
    if not rows:
        return
    yield "### As a conversation gets longer"
    yield picture("growth", "Time of a turn and of the last 50 messages over the length")
    lengths = list(dict.fromkeys(row["length"] for row in rows))
    found = {(row["contender"], row["length"]): row for row in rows}
    for name, what in (("append", "A turn"), ("latest", "The last 50 messages")):
        yield f"{what}, p50 in ms, by messages that the conversation has:"
        yield table(
            ["", *(f"{length:,}".replace(",", " ") for length in lengths)],
            [
                [
                    _named(results, key),
                    *(_figure(found[key, length], f"{name}_ms") for length in lengths),
                ]
                for key in results.keys
            ],
        )
    if ended := _ended(results, rows):
        yield f"Not measured further: {ended}."


def _ended(results: ContenderResults, rows: list[Cell]) -> str:
    reasons: dict[str, str] = {}
    for row in rows:
        if "cannot" in row:
            reasons.setdefault(row["contender"], row["cannot"].removeprefix("left out: "))
    return "; ".join(f"{results.name(key)} ({why})" for key, why in reasons.items())


def _named(results: ContenderResults, key: str) -> str:
    name = results.name(key)
    return f"**{name}**" if key in {"ours", "coalesce"} else name


def _figure(cell: Cell, name: str, unit: str = "") -> str:
    return f"{short(cell[name])}{unit}" if name in cell else "–"


def _beside(cell: Cell, ratio: str, name: str | None = None, unit: str = "") -> str:
    """Write a figure, and what it is beside the limit's."""
    figure = _figure(cell, name or ratio, unit)
    middle = _middle(cell, f"{ratio}_ratio")
    return figure if middle in {"–", "1×"} else f"{figure}, {middle}"


def _middle(cell: Cell, name: str) -> str:
    return f"{short(cell[name][1])}×" if name in cell else "–"


def _ratio(cell: Cell, name: str) -> str:
    if name not in cell:
        return "–"
    low, middle, high = cell[name]
    if middle < 0.1:
        return f"{middle:.3f} ({low:.3f}–{high:.3f})"
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"
