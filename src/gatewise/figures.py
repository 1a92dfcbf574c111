"""Figures of a trace, as a paper could print them. Each function is a method of Trace.

Colours keep the sign: what lies in 0..1 (gates) goes from dark to light (cividis), what has a sign
goes from red over white at zero to blue (RdBu), as on the explorer's page. Both are safe for the
colour-blind, and so are the curves (Okabe and Ito 2008). In grey, red and blue are one: where there
is room, a dash stands on what is below zero. Nothing here touches pyplot: a figure belongs to its
caller.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from gatewise.errors import ArgumentError, ShapeError
from gatewise.fields import NAMES, DirectionView, as_numpy, check_name
from gatewise.spec import WELDED
from gatewise.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Values = np.ndarray[Any, np.dtype[Any]]

TITLES = {
    "i": "input gate i",
    "f": "forget gate f",
    "g": "candidate g",
    "o": "output gate o",
    "c": "cell state c",
    "h": "hidden state h",
}
#: Okabe and Ito's colours, the dark ones for the states.
COLOURS = {
    "i": "#009E73",
    "f": "#E69F00",
    "g": "#56B4E9",
    "o": "#CC79A7",
    "c": "#000000",
    "h": "#0072B2",
}
_WAYS = {"fwd": "left to right", "reverse": "right to left"}
#: Lines of layers, and of the layers beside them; dashes of their directions.
_LINES = [COLOURS[name] for name in "cifhgo"]
_DASHES = [("-", ":"), ("--", "-.")]
#: So many units of a map are numbered one by one; a dash takes so many points.
_NUMBERED, _DASH = 16, 5.0


class Picture(Figure):
    """A figure that a notebook shows, although it is none of pyplot's."""

    def _repr_png_(self) -> bytes:
        png = io.BytesIO()
        self.savefig(png, format="png")
        return png.getvalue()


def plot(
    trace: Trace,
    names: Sequence[str] | None = None,
    *,
    layer: int = 0,
    direction: str = "fwd",
    sequence: int = 0,
    order: str | None = None,
    tokens: Sequence[str] | None = None,
    gradient: bool = False,
    ax: Any = None,
) -> Figure:
    """Maps of units (rows) over time (columns), one for each gate and state.

    Args:
        names: which of i f g o c h; by default all that the cell computes.
        layer, direction, sequence: which lane (one direction of a layer), and which sequence of the
            batch.
        order: how units are sorted, top to bottom: "memory" (the longest first, ``memory_length``),
            "activity" (the largest sd of c over time first), "similarity" (neighbours correlate) or
            "index". By default memory, or activity where the forget gate is welded.
        tokens: (T,) labels of the steps.
        gradient: draw d loss / d value instead of the values.
        ax: axes to draw in, as many as names; by default a new figure.

    Raises:
        ArgumentError: a name or an order is unknown, or there is no gradient.
        ShapeError: tokens or ax are not as many as they should be.
    """
    names = _computed(trace) if names is None else list(names)
    values, T = _lane(trace, layer, direction, sequence, gradient)
    for name in names:
        if name not in NAMES:
            raise ArgumentError(f"names: expected some of {' '.join(NAMES)}, got {name!r}")
    _check_tokens(tokens, T)
    by_unit, meaning = _order(trace, order, layer, direction, sequence)
    rows = -(-len(names) // 2) if len(names) > 1 else 1
    of_units = 0.8 + 0.13 * min(len(by_unit), _NUMBERED)
    of_labels = 0.07 * max(map(len, _labels(tokens)), default=0)  # those on end take room
    figure, axes = _axes(
        ax,
        len(names),
        rows,
        width=4.4 * -(-len(names) // rows),
        height=(max(2.2, of_units) + of_labels) * rows,
    )
    for panel, name in zip(axes, names, strict=True):
        shown = values(name)
        projected = shown.shape[1] != len(by_unit)
        shown = shown if projected else shown[:, by_unit]
        image = panel.imshow(
            shown.T,
            aspect="auto",
            interpolation="nearest",
            **_colours(trace, name, shown, gradient),
        )
        panel.set_title(f"d loss / d {name}" if gradient else TITLES[name], fontsize=10)
        panel.set_ylabel("projected unit" if projected else f"unit, {meaning}", fontsize=8)
        units = np.arange(shown.shape[1]) if projected else by_unit
        at = np.arange(0, len(units), -(-len(units) // _NUMBERED))
        panel.set_yticks(at, [str(unit) for unit in units[at]])
        _tidy(panel)
        _label_steps(panel, tokens, T, direction)
        bar = _bar(panel, image, fraction=0.05)
        below = np.argwhere(shown < 0)
        if len(below) and min(_room(panel, *shown.T.shape)) > _DASH:
            _dash(panel, image, below, shown[shown < 0], bar)
    return figure


def plot_unit(
    trace: Trace,
    unit: int,
    *,
    layer: int = 0,
    direction: str = "fwd",
    sequence: int = 0,
    tokens: Sequence[str] | None = None,
    ax: Any = None,
) -> Figure:
    """The six curves of one unit over time: each gate (0 to 1) above, candidate and states below.

    Args:
        unit: 0 to H - 1.
        layer, direction, sequence, tokens: as for ``plot``.
        ax: axes for each gate and one for the rest; or two, the first for all gates; or one for all
            curves. By default a new figure. A plain RNN has no gates, and so one.
    """
    values, T = _lane(trace, layer, direction, sequence, gradient=False)
    _check_unit(values("c"), unit)
    _check_tokens(tokens, T)
    names = _computed(trace)
    gates = [name for name in names if name in "ifo"]
    figure, axes = _axes(
        ax, len(gates) + 1, len(gates) + 1, width=6.4, height=2.2 + 0.8 * len(gates), fewest=1,
        heights=[1.0] * len(gates) + [2.4],
    )  # fmt: skip
    *uppers, lower = axes
    alone = len(uppers) == len(gates)  # where gates share axes, they hide each other less as lines
    for name in names:
        if name == "h" and values("h").shape[1] != values("c").shape[1]:
            continue  # projected: h has no such unit
        gate = name in gates and bool(uppers)
        panel = uppers[min(gates.index(name), len(uppers) - 1)] if gate else lower
        curve = values(name)[:, unit]
        in_steps = gate and alone
        panel.plot(
            curve,
            color=COLOURS[name],
            label=TITLES[name],
            linewidth=1.8 if name in "ch" else 1.2,
            linestyle="--" if name == "g" else "-",
            drawstyle="steps-mid" if in_steps else "default",
            **_dots(curve),
        )
        if in_steps:  # the first and the last step as wide as the others
            edges = np.arange(T + 1) - 0.5
            panel.stairs(curve, edges, color=COLOURS[name], fill=True, alpha=0.35)
            panel.stairs(curve, edges, color=COLOURS[name], baseline=None, linewidth=1.2)
    for panel in uppers:
        if all(_is_share(trace, name) for name in gates):
            panel.set_ylim(-0.04, 1.04)
            panel.set_yticks([0, 1], ["0 shut", "1 open"])
        panel.tick_params(labelbottom=False)
    lower.set_ylabel("value", fontsize=8)
    lower.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes[0].set_title(f"unit {unit}, layer {layer}, {_WAYS[direction]}", fontsize=10)
    for panel in axes:
        panel.set_xlim(-0.5, T - 0.5)
        _tidy(panel)
        if panel.lines:
            panel.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    _label_steps(lower, tokens, T, direction)
    return figure


def plot_reach(
    trace: Trace,
    name: str = "c",
    *,
    beside: Trace | None = None,
    labels: Sequence[str] | None = None,
    sequence: int | None = None,
    ax: Axes | None = None,
) -> Figure:
    """How far back the gradient reaches: the norm of d loss / d c(t) at each step, log scale.

    Args:
        name: i, f, g, o, c or h.
        beside: another trace of the same input, e.g. of a plain RNN.
        labels: what to call the two in the legend; by default by their cells.
        sequence: which sequence of the batch; None for the mean over those that have the step.
        ax: axes to draw in; by default a new figure.

    Each line is a lane of ``gradient_reach``: a colour for each layer, a dash for each direction. A
    norm of exactly 0 is a gap: it has no logarithm.
    """
    figure, (panel,) = _axes(ax, 1, 1, width=5.6, height=3.2)
    traces = [trace] if beside is None else [trace, beside]
    called = list(labels) if labels is not None else [each.cell.name for each in traces]
    for number, each in enumerate(traces):
        reach = each.gradient_reach(name)
        if sequence is None:
            reach = np.nanmean(reach, axis=-1)
        else:
            _check_sequence(each, sequence)
            reach = reach[..., sequence]
        T = reach.shape[-1]
        for k, d in np.ndindex(reach.shape[:2]):
            lane = "" if reach.shape[:2] == (1, 1) else f", layer {k}, {list(_WAYS.values())[d]}"
            line = np.where(reach[k, d] > 0, reach[k, d], np.nan)
            colour, dash = _LINES[(k + 3 * number) % 6], _DASHES[number][d]
            panel.plot(line, dash, color=colour, label=called[number] + lane, **_dots(line))
    panel.set_yscale("log")
    _label_steps(panel, None, T)
    panel.set_ylabel(f"norm of d loss / d {name}(t)", fontsize=8)
    panel.set_title("how far the gradient reaches back", fontsize=10)
    panel.legend(fontsize=8, frameon=False)
    _tidy(panel)
    return figure


def plot_text(
    trace: Trace,
    tokens: Sequence[str],
    unit: int,
    name: str = "c",
    *,
    layer: int = 0,
    direction: str = "fwd",
    sequence: int = 0,
    width: int = 64,
    ax: Axes | None = None,
) -> Figure:
    """The text, each token on the colour of one unit's value there.

    Args:
        tokens: (T,) what stands at each step: characters or words.
        unit, name: whose value, and which.
        layer, direction, sequence: as for ``plot``.
        width: characters a line.
        ax: axes to draw in; by default a new figure.

    Source: Karpathy, Johnson and Fei-Fei 2015, figure 2.
    """
    from matplotlib.patches import Rectangle

    check_name(name)
    values, T = _lane(trace, layer, direction, sequence, gradient=False)
    _check_unit(values(name), unit)
    _check_tokens(tokens, T)
    v = values(name)[:, unit]
    placed = _typeset(tokens, width)
    lines = placed[-1][1] + 1 if placed else 1
    used = max((column + cells for _, _, column, cells in placed), default=1)
    figure, (panel,) = _axes(ax, 1, 1, width=0.085 * used + 1.2, height=0.25 * lines + 0.7)
    colours = _colours(trace, name, v, gradient=False)
    mappable = _mappable(colours)
    for (shown, row, left, cells), value in zip(placed, v, strict=True):
        rgba = mappable.to_rgba(value)
        panel.add_patch(Rectangle((left, row), cells, 1, facecolor=rgba, edgecolor="none"))
        panel.text(
            left + cells / 2, row + 0.52, shown, color=_ink(rgba), fontsize=9, family="monospace",
            ha="center", va="center",
        )  # fmt: skip
    panel.set_xlim(0, used)
    panel.set_ylim(lines, 0)
    panel.set_axis_off()
    panel.set_title(f"{TITLES[name]} of unit {unit}", fontsize=10, loc="left")
    bar = _bar(panel, mappable, fraction=0.04, aspect=12)
    below = [(left + cells / 2, row + 0.9) for _, row, left, cells in placed]
    below = [at for at, value in zip(below, v, strict=True) if value < 0]
    if below:
        _dash(panel, mappable, np.array(below), v[v < 0], bar)
    return figure


# --- parts ----------------------------------------------------------------------------------------


def _computed(trace: Trace) -> list[str]:
    """The values that are not constant in this cell, and not twice the same."""
    gates = [g for g in "ifgo" if getattr(trace.cell, g) not in WELDED]
    return [*gates, "c", "h"] if trace.cell.has_cell_state else ["h"]


def _lane(
    trace: Trace, layer: int, direction: str, sequence: int, gradient: bool
) -> tuple[Callable[[str], Values], int]:
    """The values (T, H) of one sequence in one lane by name, and its T."""
    fields = trace.grad if gradient else trace
    if fields is None:
        raise ArgumentError(
            "gradient: expected a trace after backward(), got one without gradients"
        )
    view: DirectionView = fields.layer(layer)[direction]
    _check_sequence(trace, sequence)
    T = int(trace.mask[:, sequence].sum())

    def values(name: str) -> Values:
        return as_numpy(view.field(name))[:T, sequence].astype(np.float64)

    return values, T


def _order(
    trace: Trace, order: str | None, layer: int, direction: str, sequence: int
) -> tuple[Values, str]:
    """The units from top to bottom, and the order in words."""
    values, _ = _lane(trace, layer, direction, sequence, gradient=False)
    c = values("c")
    order = order or ("activity" if trace.cell.f in WELDED else "memory")
    if order == "index":
        return np.arange(c.shape[1]), "by index"
    if order == "memory":
        with np.errstate(divide="ignore"):
            kept = np.log(np.abs(values("f"))).mean(axis=0)
        return np.argsort(-kept, kind="stable"), "longest memory on top"
    if order == "activity":
        return np.argsort(-c.std(axis=0), kind="stable"), "most active on top"
    if order == "similarity":
        return _chain(c), "similar ones together"
    raise ArgumentError(f"order: expected memory, activity, similarity or index, got {order!r}")


def _chain(c: Values) -> Values:
    """Units so that neighbours correlate: from the most active one, always to the most alike."""
    z = c - c.mean(axis=0)
    z = z / np.maximum(np.linalg.norm(z, axis=0), 1e-30)
    alike = z.T @ z
    chain = [int(np.argmax(c.std(axis=0)))]
    left = set(range(c.shape[1])) - set(chain)
    while left:
        chain.append(max(left, key=lambda unit: (alike[chain[-1], unit], -unit)))
        left.remove(chain[-1])
    return np.array(chain)


def _colours(trace: Trace, name: str, shown: Values, gradient: bool) -> dict[str, Any]:
    """Colour map and limits: 0..1 for gates, symmetric about zero for what has a sign."""
    if not gradient and _is_share(trace, name):
        return {"cmap": "cividis", "vmin": 0.0, "vmax": 1.0}
    most = float(np.nanmax(np.abs(shown), initial=0.0)) or 1.0
    return {"cmap": "RdBu", "vmin": -most, "vmax": most}


def _is_share(trace: Trace, name: str) -> bool:
    """Whether the value lies in 0..1: a gate with a sigmoid."""
    coupled = name == "f" and trace.cell.coupled
    return bool(getattr(trace.cell, "i" if coupled else name, "") == "sigmoid")


def _mappable(colours: dict[str, Any]) -> Any:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(colours["vmin"], colours["vmax"]), colours["cmap"])


def _bar(panel: Axes, coloured: Any, **how: Any) -> Any:
    """What the colours mean, beside the panel."""
    bar = panel.figure.colorbar(coloured, ax=panel, pad=0.02, **how)
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_linewidth(0.5)
    return bar


def _ink(rgba: Sequence[float]) -> str:
    """What can be read on a colour."""
    light = np.dot(np.power(rgba[:3], 2.2), (0.2126, 0.7152, 0.0722))  # as WCAG has it, nearly
    return "white" if light < 0.18 else "black"


def _room(panel: Axes, rows: int, columns: int) -> tuple[float, float]:
    """Height and width of a square of a map, in points."""
    place = panel.get_window_extent()
    points = 72 / panel.figure.dpi
    return place.height * points / max(rows, 1), place.width * points / max(columns, 1)


def _dash(panel: Axes, coloured: Any, at: Values, values: Values, bar: Any) -> None:
    """A dash at each (x, y) of values below zero, and on that half of the bar."""
    half = np.array([-0.75, -0.5, -0.25]) * coloured.norm.vmax
    on_bar = np.stack([np.full(3, np.mean(bar.ax.get_xlim())), half], axis=1)
    for axes, places, v in ((panel, at, values), (bar.ax, on_bar, half)):
        inks = [_ink(rgba) for rgba in coloured.to_rgba(v)]
        x, y = places.T
        axes.scatter(x, y, marker="_", s=_DASH**2, linewidths=0.9, c=inks, zorder=3)


def _axes(
    ax: Any,
    count: int,
    rows: int,
    width: float,
    height: float,
    fewest: int | None = None,
    heights: Sequence[float] | None = None,
) -> tuple[Figure, list[Axes]]:
    """The axes to draw in: the caller's, or those of a new figure."""
    if ax is None:
        figure = Picture(figsize=(width, height), layout="constrained")
        columns = -(-count // rows)
        grid = figure.subplots(rows, columns, squeeze=False, height_ratios=heights)
        made = grid.T.ravel().tolist()
        for spare in made[count:]:
            spare.remove()
        return figure, made[:count]
    given: list[Axes] = list(np.ravel(np.asarray(ax, dtype=object)))
    if not (fewest or count) <= len(given) <= count:
        raise ShapeError(f"ax: expected {count} axes, got {len(given)}")
    return given[0].figure, given  # type: ignore[return-value]


def _dots(curve: Values) -> dict[str, Any]:
    """How the points of a curve are marked: one alone makes no line."""
    return {"marker": "o", "markersize": 4} if np.isfinite(curve).sum() == 1 else {}


def _label_steps(panel: Axes, tokens: Sequence[str] | None, T: int, direction: str = "fwd") -> None:
    """Tokens under the steps, where they can be read."""
    panel.set_xlabel("step t" if direction == "fwd" else "step t, read right to left", fontsize=8)
    if tokens is None:
        return
    shown = _labels(tokens)
    upright = max(map(len, shown), default=0) <= 1
    width = panel.get_window_extent().width * 72 / panel.figure.dpi / max(T, 1)  # of a step, points
    size = min(8.0, width / (0.65 if upright else 1.1))
    if size >= 4:
        panel.set_xticks(range(T), shown, family="monospace", rotation=0 if upright else 90)
        panel.tick_params(axis="x", labelsize=size, length=2)


def _typeset(tokens: Sequence[str], width: int) -> list[tuple[str, int, int, int]]:
    """Each token as (text, line, column, columns taken); lines break between words if they can."""
    placed: list[tuple[str, int, int, int]] = []
    line = column = 0
    sizes = [max(len(_visible(token)), 1) for token in tokens]
    # how much must stand on one line from here on: up to the next token that ends in white space
    word, words = 0, []
    for token, size in zip(reversed(tokens), reversed(sizes), strict=True):
        word = size if token[-1:].isspace() or size > 1 else word + size
        words.append(word)
    for token, size, ahead in zip(tokens, sizes, reversed(words), strict=True):
        starts = not placed or tokens[len(placed) - 1][-1:].isspace()
        needed = ahead if starts and ahead <= width else size
        if column and column + needed > width:
            line, column = line + 1, 0
        placed.append((_visible(token), line, column, size))
        column += size + (size > 1)
        if token.endswith("\n"):
            line, column = line + 1, 0
    return placed


def _visible(token: str) -> str:
    """The token as a reader can see it: a space as a dot, the end of a line as an arrow."""
    return token.rstrip() or token.replace("\n", "↵").replace(" ", "·")


def _labels(tokens: Sequence[str] | None) -> list[str]:
    """Tokens short enough to stay clear of the title below them."""
    shown = [_visible(token) for token in tokens or ()]
    return [text if len(text) <= 12 else f"{text[:11]}…" for text in shown]


def _tidy(panel: Axes) -> None:
    """Small ticks at whole steps, and no frame."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(10, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    panel.tick_params(labelsize=7)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _check_tokens(tokens: Sequence[str] | None, T: int) -> None:
    if tokens is not None and len(tokens) != T:
        raise ShapeError(f"tokens: expected one a step (T = {T}), got {len(tokens)}")


def _check_sequence(trace: Trace, sequence: int) -> None:
    B = trace.mask.shape[1]
    if not -B <= sequence < B:
        raise ArgumentError(f"sequence: expected 0 to {B - 1} (B - 1), got {sequence}")


def _check_unit(values: Values, unit: int) -> None:
    H = values.shape[1]
    if not -H <= unit < H:
        raise ArgumentError(f"unit: expected 0 to {H - 1} (H - 1), got {unit}")
