"""How the studies' figures look: one colour and one mark a network, the same in every figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Okabe and Ito 2008: eight colours that stay apart for every kind of colour vision.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip

#: Colour and mark of each network; the lines of plain RNNs are dashed, so that grey will do.
LOOKS: dict[str, tuple[str, str]] = {
    "RNN tanh": (ORANGE, "o"),
    "RNN relu": (PINK, "v"),
    "RNN relu, identity": (BLACK, "X"),
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
    dashes = "--" if "RNN" in name else "-"
    return {"color": colour, "marker": mark, "markersize": 5, "linewidth": 1.6,
            "linestyle": dashes, **more}  # fmt: skip


def canvas(rows: int, columns: int, title: str, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """A figure with its axes in reading order; nothing global is touched.

    Panels are so wide that two beside each other can be read on a page 700 points wide.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.4 * columns, height * rows + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=12)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25, linewidth=0.6)
    return figure, list(axes.flat)


def seeds(ax: Axes, k: int, errors: Sequence[float], least: float, **looks: Any) -> None:
    """Line k of a panel: every seed small, their median large; none stands left of ``least``."""
    shown = [max(error, least) for error in errors]
    ax.hlines(k, min(shown), max(shown), color=looks["color"], alpha=0.4, linewidth=3)
    ax.plot(shown, [k] * len(shown), ".", color=looks["color"], markersize=5)
    ax.plot(median(shown), k, **looks)


def limits(ax: Axes, lines: int, baseline: float, least: float | None = None) -> None:
    """Above the lines of a panel: what its right and its left edge mean."""
    ax.set_ylim(lines - 0.5, -1.1)
    ax.axvline(baseline, color="#888888", linewidth=0.9, linestyle="--")
    ax.text(baseline, -0.65, "remembers nothing ", fontsize=8, ha="right", va="center")
    if least is not None:
        ax.text(least, -0.65, "this or less", fontsize=8, ha="left", va="center")


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


def below(ax: Axes, columns: int = 1) -> None:
    """A legend under the panel, where no line is; one column if its words are long."""
    small(ax, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=columns)


def small(ax: Axes, **more: Any) -> None:
    """A legend that stays out of the way."""
    ax.legend(fontsize=8, frameon=False, **more)
