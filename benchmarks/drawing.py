"""How the pictures of the tables look: on a light card of their own, for any page.

matplotlib is loaded when something is drawn: measuring needs none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

CARD: Final = "#fbfaf7"
INK: Final = "#22272e"
FAINT: Final = "#d9d6cd"
COLOURS: Final = (
    "#0b6e99",
    "#d9480f",
    "#2b8a3e",
    "#862e9c",
    "#b8860b",
    "#c2255c",
    "#495057",
    "#1098ad",
    "#5c3d2e",
)
MARKS: Final = "osD^vP*Xh"


@contextmanager
def axes_on_card(
    out: Path, *, rows: int, columns: int, size: tuple[float, float], share_x: bool = False
) -> Iterator[list[Any]]:
    """Give the axes of a picture, and write it when they were drawn on."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    style: dict[Any, Any] = {
        "figure.facecolor": CARD,
        "axes.facecolor": CARD,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "grid.color": FAINT,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "font.family": "DejaVu Sans",
        "font.size": 9.5,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "svg.hashsalt": "tables",  # the same data make the same file
    }
    with mpl.rc_context(style):
        figure, axes = plt.subplots(
            rows, columns, figsize=size, layout="constrained", squeeze=False, sharex=share_x
        )
        yield list(axes.flat)
        metadata = {"Date": None} if out.suffix == ".svg" else {}
        figure.savefig(out, dpi=110, metadata=metadata)
        plt.close(figure)
    print(f"drawn: {out}")


def lines(axes: Any, x: Sequence[float], series: Mapping[str, Sequence[float]], title: str) -> None:
    """Draw one line for each series."""
    axes.set_title(title)
    for number, (name, y) in enumerate(series.items()):
        axes.plot(
            x,
            y,
            label=name,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKS[number % len(MARKS)],
            markersize=5,
            linewidth=1.6,
        )
