"""The plots of the chapter on the contenders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .contender_results import COLOURS, ContenderResults, short
from .plotting import CARD, FAINT, INK, NOTE, TELLABLE, Plots, bars

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHORT: Final = {
    "start": "start",
    "append": "a turn",
    "latest": "last 50",
    "list": "list of 20",
}
Row = tuple[str, float | None, str, str]
Panels = list[tuple[str, list[Row]]]


def draw(data: dict[str, Any], plots: Plots) -> None:
    """Draw all of them."""
    results = ContenderResults(data)
    _round_trips(results, plots)
    _times(results, plots)
    _throughput(results, plots)
    _turn(results, plots)
    if data.get("growth"):
        _growth(results, plots)


def _rows(results: ContenderResults, cells: dict[str, dict[str, Any]], name: str) -> list[Row]:
    return [
        (
            results.name(key),
            cell.get(name),
            short(cell[name]) if name in cell else "–",
            results.colour(key),
        )
        for key, cell in cells.items()
    ]


def _panels(results: ContenderResults, plots: Plots, file: str, title: str, panels: Panels) -> None:
    height = 1.3 + 0.34 * len(results.keys)
    figure, axes = plots.figure(2.4 + 2.0 * len(panels), height, len(panels), sharey=True)
    for each, (name, rows) in zip(axes, panels, strict=True):
        bars(each, name, rows)
    figure.suptitle(title, x=0.01, ha="left", fontsize=13)
    if any(value is None for _, rows in panels for _, value, *_ in rows):
        note = "–: it cannot, or it would take too long; the tables say which"
        figure.text(0.01, 0.0, note, fontsize=9, color=NOTE)
    figure.tight_layout(w_pad=1.5)
    plots.save(figure, file)


def _round_trips(results: ContenderResults, plots: Plots) -> None:
    panels = []
    for scenario, name in _SHORT.items():
        cells = {key: results.trips(scenario, key) for key in results.keys}
        panels.append((name, _rows(results, cells, "round_trips")))
    _panels(results, plots, "round-trips", "Round trips of one operation", panels)


def _times(results: ContenderResults, plots: Plots) -> None:
    added = short(results.data["added_ms"])
    panels = []
    for network, where in (("loopback", "loopback"), ("proxy", f"+{added} ms")):
        for scenario in ("append", "latest"):
            cells = {key: results.cell(scenario, network, 1, key) for key in results.keys}
            panels.append((f"{_SHORT[scenario]}, {where}", _rows(results, cells, "p50_ms")))
    _panels(results, plots, "p50", "Median time of one operation, one task, ms", panels)


def _throughput(results: ContenderResults, plots: Plots) -> None:
    many = max(results.tasks("loopback"), default=1)
    panels = []
    for scenario, name in _SHORT.items():
        cells = {key: results.cell(scenario, "loopback", many, key) for key in results.keys}
        panels.append((name, _rows(results, cells, "per_second")))
    title = f"Operations a second, {many} tasks over {results.data['connections']} connections"
    _panels(results, plots, "throughput", title, panels)


def _turn(results: ContenderResults, plots: Plots) -> None:
    """Draw what the README shows."""
    added = short(results.data["added_ms"])
    many = max(results.tasks("loopback"), default=1)
    trips = {key: results.trips("append", key) for key in results.keys}
    times = {key: results.cell("append", "proxy", 1, key) for key in results.keys}
    rates = {key: results.cell("append", "loopback", many, key) for key in results.keys}
    panels = [
        ("round trips", _rows(results, trips, "round_trips")),
        (f"p50 in ms, +{added} ms", _rows(results, times, "p50_ms")),
        (f"turns/s, {many} tasks", _rows(results, rates, "per_second")),
    ]
    title = f"A turn of two messages: round trips, time over a network of {added} ms, and speed"
    _panels(results, plots, "turn", title, panels)


def _growth(results: ContenderResults, plots: Plots) -> None:
    figure, axes = plots.figure(9.5, 4.6, 2, sharey=True)
    colours = _line_colours(results)
    for each, (name, title) in zip(
        axes, (("append", "a turn"), ("latest", "last 50 messages")), strict=True
    ):
        _lines(each, results, name, colours)
        each.set_title(title, loc="left", pad=8)
        each.set_xlabel("messages in the conversation")
    axes[0].set_ylabel("p50, ms")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 0), frameon=False, ncol=4
    )
    figure.suptitle("As a conversation gets longer", x=0.01, ha="left", fontsize=13)
    figure.tight_layout()
    plots.save(figure, "growth")


def _line_colours(results: ContenderResults) -> dict[str, str]:
    others = [key for key in results.keys if key not in COLOURS]
    return COLOURS | dict(zip(others, TELLABLE, strict=False))


def _lines(axes: Axes, results: ContenderResults, name: str, colours: dict[str, str]) -> None:
    markers = dict(zip(results.keys, "osD^vP*X<p", strict=False))
    for key in results.keys:
        points = [
            (row["length"], row[f"{name}_ms"])
            for row in results.data["growth"]
            if row["contender"] == key and f"{name}_ms" in row
        ]
        is_ours = key == "ours"
        axes.plot(
            [length for length, _ in points],
            [value for _, value in points],
            color=colours[key],
            marker=markers[key],
            markersize=9 if is_ours else 7,
            markeredgewidth=0.7,
            linewidth=3 if is_ours else 1.6,
            linestyle="--" if key == "bare" else "-",
            markeredgecolor=CARD,
            zorder=5 if is_ours else 3,
            label=results.name(key),
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(visible=True, which="major", color=FAINT, linewidth=0.8)
    axes.tick_params(which="minor", length=0)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace(",", " "))
    axes.tick_params(colors=INK)
