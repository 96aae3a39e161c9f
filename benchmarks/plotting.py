"""How plots look: on a light card of their own, so that they can be read in dark mode as well."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attrs import frozen

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CARD: Final = "#fbfaf7"
INK: Final = "#22252a"
FAINT: Final = "#d9d6cf"
NOTE: Final = "#6b6861"
OURS: Final = "#0072b2"
OURS_TOO: Final = "#56b4e9"
LIMIT: Final = "#4d4d4d"
OTHERS: Final = "#c3bfb6"
TELLABLE: Final = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#8c6d31", "#7b61b0", "#7f7f7f")
"""Colours of lines that have to be told apart, also by who sees fewer of them (Okabe and Ito)."""


@frozen
class Plots:
    """The folder of plots; each says in its metadata which results it was made from."""

    folder: Path
    made_from: str
    """Digest of the file of results."""

    def figure(self, width: float, height: float, columns: int, **options: Any) -> tuple[Any, Any]:
        """Return a figure and its axes, side by side."""
        import matplotlib as mpl

        mpl.use("agg")
        from matplotlib import pyplot as plt

        plt.rcParams.update(
            {
                "figure.facecolor": CARD,
                "axes.facecolor": CARD,
                "savefig.facecolor": CARD,
                "text.color": INK,
                "axes.labelcolor": INK,
                "axes.edgecolor": FAINT,
                "xtick.color": INK,
                "ytick.color": INK,
                "font.size": 11,
                "axes.titlesize": 12,
                "axes.titleweight": "bold",
                "axes.spines.top": False,
                "axes.spines.right": False,
                "svg.hashsalt": "benchmarks",
            }
        )
        figure, axes = plt.subplots(1, columns, figsize=(width, height), squeeze=False, **options)
        return figure, axes[0]

    def save(self, figure: Figure, name: str) -> None:
        """Save a figure as NAME.svg and NAME.png."""
        from matplotlib import pyplot as plt

        self.folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.2}
        about = {"Description": self.made_from}
        figure.savefig(self.folder / f"{name}.svg", metadata=about | {"Date": None}, **options)
        figure.savefig(self.folder / f"{name}.png", dpi=150, metadata=about, **options)
        plt.close(figure)


def bars(axes: Axes, title: str, rows: list[tuple[str, float | None, str, str]]) -> None:
    """Draw horizontal bars: name, value (or none), what stands at its end, colour; first on top."""
    values = [value or 0.0 for _, value, _, _ in rows]
    places = range(len(rows), 0, -1)
    axes.barh(list(places), values, color=[colour for *_, colour in rows], height=0.72)
    longest = max(values) or 1.0
    for place, value, (_, known, label, colour) in zip(places, values, rows, strict=True):
        is_ours = colour in {OURS, OURS_TOO}
        axes.text(
            value + longest * 0.02,
            place,
            label,
            va="center",
            fontweight="bold" if is_ours else "normal",
            color=INK if known is not None else NOTE,
            fontsize=10 if known is not None else 9,
        )
    axes.set_title(title, loc="left", pad=8)
    axes.set_yticks(list(places), [name for name, *_ in rows])
    # Only the first of several axes shows the names.
    for tick, (*_, colour) in zip(axes.get_yticklabels(), rows, strict=False):
        if colour in {OURS, OURS_TOO}:
            tick.set_fontweight("bold")
    axes.tick_params(length=0)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.set_xlim(0, longest * 1.25)
