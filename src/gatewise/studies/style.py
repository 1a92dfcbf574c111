"""How the studies' figures look: one colour and one mark a network, the same in every figure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito 2008: eight colours that stay apart for every kind of colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip

#: Colour and mark of each network.
LOOKS: dict[str, tuple[str, str]] = {
    "RNN tanh": (ORANGE, "o"),
    "RNN relu": (PINK, "v"),
    "RNN tanh, orthogonal": (RED, "D"),
    "LSTM": (SKY, "s"),
    "LSTM, forget bias 1": (BLUE, "^"),
    "LSTM, chrono": (GREEN, "P"),
    "Bi-RNN": (RED, "<"),
    "Bi-LSTM": (GREEN, ">"),
}


def look(name: str, **more: Any) -> dict[str, Any]:
    """Keyword arguments for a line of this network; grey where the name has no look of its own."""
    colour, mark = LOOKS.get(name, ("#666666", "x"))
    return {"color": colour, "marker": mark, "markersize": 5, "linewidth": 1.6, **more}


def canvas(rows: int, columns: int, title: str, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure with its axes in reading order; nothing global is touched."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9 * columns, height * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes.flat)


def plain(ax: Axes, axes: str = "xy") -> None:
    """Logarithmic axes with few ticks, written as people write numbers: 0.03, not 3 x 10^-2."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    for axis in (ax.xaxis if each == "x" else ax.yaxis for each in axes):
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(high / low)
        subs = (1.0, 2.0, 5.0) if decades < 1.3 else (1.0, 3.0) if decades < 2.6 else (1.0,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())


def small(ax: Axes, **more: Any) -> None:
    """A legend that stays out of the way."""
    ax.legend(fontsize=8, frameon=False, **more)
