"""The figure of a result: speed by size, and how time grows."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bench.cases import OURS, TORCH
from bench.claims import Json, case_of, fits, share

BLUE, ORANGE = "#0072B2", "#D55E00"  # Okabe and Ito 2008: told apart by everybody
LOOKS = {
    OURS: {"color": BLUE, "marker": "o"},
    TORCH: {"color": ORANGE, "marker": "s"},
}


def digest(result: Json) -> str:
    """Of what the figure shows; it stands in the figure's file."""
    shown = [row for row in result["rows"] if row["case"]["group"] in ("fp32", "packed", "growth")]
    return hashlib.sha256(json.dumps([shown, result["peak"]]).encode()).hexdigest()


def draw(result: Json, path: Path) -> None:
    """Write the figure as SVG; the same result gives the same file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "gatewise", "font.size": 8, "svg.fonttype": "none"}):
        page = Figure(figsize=(10, 6.5), layout="constrained")
        halves: Any = page.subfigures(2, 1, height_ratios=(1.1, 1))
        top, bottom = halves
        _shares(top.subplots(), result)
        for axes, axis in zip(bottom.subplots(1, 3), "TBH", strict=True):
            _growth(axes, axis, result)
        page.savefig(path, metadata={"Date": None, "Description": digest(result)})


def _shares(axes: Any, result: Json) -> None:
    rows = [
        row
        for row in result["rows"]
        if row["case"]["group"] in ("fp32", "packed")
        and row["case"]["mode"] == "training"
        and row["times"]
    ]
    for k, name in enumerate((OURS, TORCH)):
        places = [n + 0.4 * (k - 0.5) for n in range(len(rows))]
        heights = [share(row, name, result) if name in row["times"] else 0.0 for row in rows]
        axes.bar(places, heights, 0.38, color=LOOKS[name]["color"], label=name)
    labels = [_in_lines(case_of(row).label) for row in rows]
    axes.set_xticks(range(len(rows)), labels, fontsize=6.5)
    axes.set_ylabel("share of the machine's peak")
    axes.set_ylim(0, max(1, axes.get_ylim()[1]))
    axes.set_title("A training step in float32: (T, B, I, H)", loc="left")
    axes.legend(frameon=False, ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def _in_lines(label: str) -> str:
    """As narrow as the bars: (T, B, and I, H) below each other, then what follows, word by word."""
    sizes, _, rest = label.partition(")")
    T, B, size = sizes.split(", ", 2)
    first, _, more = rest.removeprefix(", ").partition(" ")
    return "\n".join(filter(None, (f"{T}, {B},", f"{size})", first, more)))


def _growth(axes: Any, axis: str, result: Json) -> None:
    rows = [
        r for r in result["rows"] if (r["case"]["group"], r["case"]["axis"]) == ("growth", axis)
    ]
    rows = [row for row in rows if row["times"]]
    powers = fits(result)
    for name in (OURS, TORCH):
        timed = [row for row in rows if name in row["times"]]
        sizes = [row["case"][axis] for row in timed]
        times = [1e3 * row["times"][name]["median"] for row in timed]
        power = f", {axis}^{powers[axis, name]:.2f}" if (axis, name) in powers else ""
        axes.plot(sizes, times, label=name + power, markersize=4, **LOOKS[name])
    if not rows:
        axes.set_axis_off()
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel({"T": "steps T", "B": "batch B", "H": "hidden size H = I"}[axis])
    axes.set_ylabel("training step, ms")
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
