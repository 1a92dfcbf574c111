"""How far back does the gradient of the loss reach?

The loss is a random direction of the last hidden state, L = v . h(T), |v| = 1. For each distance k
the study takes |dL/dh(T-k)| and |dL/dc(T-k)|, step by step on the specification page in float64. A
row whose gradient becomes small or large is rescaled by a power of two, which is exact, and the
power is remembered: nothing underflows, however long the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gatewise import CELLS, CellSpec, Weights, step
from gatewise.studies import stats, style, tuning
from gatewise.studies.frame import Json, Mode, Prediction, Published, Study, finite, pick
from gatewise.studies.learn import Recipe, train
from gatewise.studies.networks import DESIGNS, Design, Reader
from gatewise.studies.tasks import adding

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NETWORKS = (
    "RNN tanh",
    "RNN tanh, orthogonal",
    "RNN relu",
    "LSTM",
    "LSTM, forget bias 1",
    "Bi-LSTM",
)
#: W_hh = gain * orthogonal: below 1 the gradient must vanish, above 1 it can explode.
GAINS = (0.8, 1.0, 1.5, 2.0)
#: The smallest normal number of float32 and of float64, as powers of ten.
FLOAT32, FLOAT64 = -37.9, -307.7
#: How many distances of a curve are kept, beside those that the lesson names.
KEPT = 32
NAMED = (10, 100, 1000, 4999)

_SIZES: dict[Mode, Json] = {
    "quick": {"hidden": 16, "batch": 4, "T": 120, "seeds": 3, "trained_on": 20, "sequences": 1600,
              "rates": [0.01]},
    "default": {"hidden": 32, "batch": 8, "T": 1000, "seeds": 3, "trained_on": 100,
                "sequences": 25_600, "rates": [0.01]},
    "full": {"hidden": 32, "batch": 4, "T": 5000, "seeds": 5, "trained_on": 100,
             "sequences": 48_000, "rates": [0.01, 0.001, 0.003, 0.03]},
}  # fmt: skip


def reach(cell: CellSpec, x: Tensor, w: Weights, v: Tensor) -> tuple[Tensor, Tensor]:
    """log10 |dL/dh(t)| and log10 |dL/dc(t)| of every sequence, for L = v . h(T), each (T, B).

    Args:
        x: (T, B, I).
        v: (B, H).

    Example:
        >>> w = Weights(torch.zeros(4, 1), torch.zeros(4, 1))  # every gate is 1/2
        >>> h, c = reach(CELLS["lstm"], torch.zeros(3, 1, 1), w, torch.ones(1, 1))
        >>> [round(10**value, 6) for value in c[:, 0].tolist()]  # o(T), then times f each step
        [0.125, 0.25, 0.5]
    """
    T, B, H = len(x), x.shape[1], v.shape[1]
    h = c = x.new_zeros(B, H)
    before = []
    with torch.no_grad():
        for x_t in x:
            before.append((h, c))
            s = step(cell, x_t, h, c, w)
            h, c = s.h, s.c
    d_h, d_c, power = v, torch.zeros_like(v), v.new_zeros(B, 1)
    log_h, log_c = x.new_empty(T, B), x.new_empty(T, B)
    for t in reversed(range(T)):
        h, c = (state.detach().requires_grad_() for state in before.pop())
        s = step(cell, x[t], h, c, w)
        log_h[t] = _log10(d_h, power)
        seen, d_h, d_c = torch.autograd.grad((s.h, s.c), (s.c, h, c), (d_h, d_c))
        log_c[t] = _log10(seen, power)
        largest = torch.maximum(d_h.abs().amax(1, True), d_c.abs().amax(1, True))
        shift = torch.where(largest > 0, -largest.clamp_min(1e-300).log2().floor(), 0.0)
        d_h, d_c, power = d_h * 2**shift, d_c * 2**shift, power - shift
    return log_h, log_c


def _log10(gradient: Tensor, power: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(gradient, dim=1)
    return (norm.log2() + power[:, 0]) * math.log10(2)


def units(mode: Mode) -> list[Json]:
    """What is not trained, or shows clipping; the pilots of what is trained."""
    size = _SIZES[mode]
    plan: list[Json] = []
    for seed in range(size["seeds"]):
        shared = {key: size[key] for key in ("hidden", "batch", "T")} | {"seed": seed}
        training = {key: size[key] for key in ("trained_on", "sequences")}
        for network in NETWORKS:
            plan.append({"kind": "start", "network": network, **shared})
        for gain in GAINS:
            plan.append({"kind": "gain", "network": "RNN tanh", "gain": gain, **shared})
        for clip in (None, 1.0):
            plan.append({"kind": "clip", "network": "RNN relu", "gain": 1.5, "clip": clip,
                         **shared, **training})  # fmt: skip
    return plan + tuning.pilots(_trained(mode))


def then(mode: Mode, records: list[Json]) -> list[Json]:
    """Every network after training at its own rate."""
    return tuning.tuned(_trained(mode), records, tuning.sequences)


def _trained(mode: Mode) -> list[Json]:
    size = _SIZES[mode]
    return [
        {"kind": "trained", "network": network, "seed": seed,
         **{key: value for key, value in size.items() if key != "seeds"}}
        for seed in range(size["seeds"])
        for network in NETWORKS
    ]  # fmt: skip


def measure(unit: Json) -> Json:
    design, seed = DESIGNS[unit["network"]], unit["seed"]
    if "gain" in unit:
        design = Design(design.cell, gain=unit["gain"])
    task = adding(unit["trained_on"] if "trained_on" in unit else unit["T"])
    net = Reader(design, task.inputs, unit["hidden"], task.outputs, seed)
    if unit["kind"] == "clip":
        recipe = Recipe(unit["sequences"] // 4, rate=0.01, clip=unit["clip"], looks=10, sgd=True)
        return {"training": train(net, task, recipe, seed)}
    if unit["kind"] != "trained":
        return _curves(net, design, unit)
    found = train(net, task, Recipe(unit["sequences"], rate=unit["rate"], looks=10), seed)
    return found if "pilot" in unit else {"training": found, **_curves(net, design, unit)}


def _curves(net: Reader, design: Design, unit: Json) -> Json:
    """The curves by distance from the loss; for two directions each from its own last step."""
    T, B = unit["T"], unit["batch"]
    rng = np.random.default_rng([unit["seed"], 3])
    x = torch.from_numpy(adding(T).draw(B, rng).x).double()
    v = torch.from_numpy(rng.standard_normal((B, unit["hidden"])))
    v = v / v.norm(dim=1, keepdim=True)
    w = {name: value.detach().double() for name, value in net.layer.named_parameters()}
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    log_h, log_c = reach(CELLS[design.cell], x, Weights(*(w[n] for n in names)), v)
    h, c = by_distance(log_h), by_distance(log_c)
    spread = (*np.geomspace(1, T - 1, KEPT), *np.linspace(1, min(T - 1, 300), KEPT))
    kept = sorted({round(d) for d in spread} | {d for d in NAMED if d < T})
    found: Json = {
        "distance": kept,
        "h": [_tidy(h[d]) for d in kept],
        "c": [_tidy(c[d]) for d in kept],
        "slope_h": slope(h),
        "slope_c": slope(c),
        "float32_ends": ends(h, FLOAT32),
        "float64_ends": ends(h, FLOAT64),
    }
    if design.both:
        back = Weights(*(w[f"{n}_reverse"] for n in names))
        other = by_distance(reach(CELLS[design.cell], x.flip(0), back, v)[0])
        joined = np.logaddexp2(2 * h / math.log10(2), 2 * other[::-1] / math.log10(2)) / 2
        found["joined"] = [_tidy(joined[d] * math.log10(2)) for d in kept]
    return found


def by_distance(log: Tensor) -> np.ndarray:
    """(T, B) by step -> (T,) by distance from the loss: log10 of the root mean square over B."""
    squares = torch.logsumexp(2 * math.log(10) * log, dim=1) - math.log(log.shape[1])
    return (squares / (2 * math.log(10))).flip(0).numpy()


def slope(curve: np.ndarray) -> float | None:
    """Decades per 100 steps: the least-squares line over the distances from 5 on, zeros apart."""
    k = np.arange(5, len(curve))
    k = k[np.isfinite(curve[k])]
    return finite(100 * stats.line(k.tolist(), curve[k].tolist())[0]) if len(k) > 2 else None


def ends(curve: np.ndarray, limit: float) -> int | None:
    """The first distance at which the norm is below 10**limit; None: it never is."""
    below = np.flatnonzero(curve < limit)
    return int(below[0]) if len(below) else None


def _tidy(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None


def summarise(records: list[Json]) -> Json:
    found: Json = {"slopes": {}, "gains": {}, "clipping": {}, "T": records[0]["unit"]["T"]}
    for kind in ("start", "trained"):
        found["slopes"][kind] = {}
        for network in NETWORKS:
            those = pick(records, kind=kind, network=network, pilot=None)
            here = [r["values"] for r in those]
            found["slopes"][kind][network] = {
                "h": _mean([v["slope_h"] for v in here]),
                "each_h": [v["slope_h"] for v in here],
                "c": _mean([v["slope_c"] for v in here]),
                "float32_ends": [v["float32_ends"] for v in here],
                "float64_ends": [v["float64_ends"] for v in here],
                "at": {str(d): _at(here, d) for d in NAMED if d in here[0]["distance"]},
                "solved": sum(v.get("training", {}).get("solved_at") is not None for v in here),
                "seeds": len(here),
                "rate": those[0]["unit"].get("rate"),
            }
    for gain in GAINS:
        values = [r["values"]["slope_h"] for r in pick(records, kind="gain", gain=gain)]
        found["gains"][str(gain)] = _mean(values)
    for clip in (None, 1.0):
        here = [r["values"]["training"] for r in pick(records, kind="clip", clip=clip)]
        found["clipping"][str(clip)] = {
            "seeds": len(here),
            "lost": sum(v["lost"] is not None for v in here),
            "largest_norm": max((v["norms"][0] for v in here), default=None),
            "errors": [v["error"] for v in here],
        }
    return found | {"tuning": tuning.choices(records, tuning.sequences)}


def _mean(values: Sequence[float | None]) -> list[float] | None:
    """Mean and half width of its interval; None where no curve had a slope."""
    there = [v for v in values if v is not None]
    return [round(v, 3) for v in stats.mean(there)] if there else None


def _at(values: Sequence[Json], distance: int) -> float | None:
    """log10 of |dL/dh| so far from the loss, the middle of the seeds; None: a gradient of zero."""
    found = [v["h"][v["distance"].index(distance)] for v in values]
    return None if None in found else round(median(found), 1)


def _less_steep(summary: Json) -> bool:
    """At every seed the LSTM with forget bias 1 keeps more than the tanh RNN, at the start."""
    start = summary["slopes"]["start"]
    pairs = zip(start["LSTM, forget bias 1"]["each_h"], start["RNN tanh"]["each_h"], strict=True)
    return all(a > b for a, b in pairs)


def answer(summary: Json) -> str:
    start, trained = summary["slopes"]["start"], summary["slopes"]["trained"]
    said = stats.plus_minus
    return (
        "Over 100 steps back the gradient changes, at the start, by "
        f"{said(start['RNN tanh']['h'])} powers of ten in the tanh RNN, "
        f"{said(start['LSTM']['h'])} in the LSTM and {said(start['LSTM, forget bias 1']['h'])} in "
        "the LSTM with forget bias 1 (torch's initialisation otherwise); trained on adding, "
        f"{said(trained['RNN tanh']['h'])} in the tanh RNN and {said(trained['LSTM']['h'])} in the "
        "LSTM."
    )


def draw(result: Json) -> Figure:
    records = pick(result["records"], pilot=None)
    figure, axes = style.canvas(2, 3, result["question"])
    distance, height = "distance from the loss (steps)", "log10 of the norm"
    for ax, kind, title in (
        (axes[0], "start", "|dL/dh| at the start"),
        (axes[1], "trained", "|dL/dh| after training on the adding problem"),
    ):
        for network in NETWORKS[:-1]:  # one direction of the Bi-LSTM is the LSTM with forget bias 1
            _band(ax, pick(records, kind=kind, network=network), "h", network)
        ax.axhline(FLOAT32, color="#888888", linewidth=0.8, linestyle=":")
        ax.set(title=title, xlabel=distance, ylabel=height, ylim=(-60, 5))
        ax.set(xlim=(0, min(300, result["summary"]["T"])))
        ax.text(0, FLOAT32, " float32 ends", fontsize=7, va="top")
    x = np.array([0, 300])
    for published in result["published"]:
        axes[0].plot(x, x * published["value"] / 100, color="#555555", linestyle="--",
                     linewidth=1, label="f = sigmoid(1) alone")  # fmt: skip
    for network in NETWORKS[3:5]:
        _band(axes[2], pick(records, kind="start", network=network), "c", f"{network}, start",
              linestyle=":", color=style.look(network)["color"], marker="")  # fmt: skip
        _band(axes[2], pick(records, kind="trained", network=network), "c", network,
              label=f"{network}, trained")  # fmt: skip
    axes[2].set(title="|dL/dc|: the cell's additive path", xlabel=distance, ylabel=height,
                ylim=axes[0].get_ylim(), xlim=axes[0].get_xlim())  # fmt: skip
    for gain, colour in zip(GAINS, (style.BLUE, style.SKY, style.ORANGE, style.RED), strict=True):
        _band(axes[3], pick(records, kind="gain", gain=gain), "h", f"W_hh = {gain} x orthogonal",
              color=colour, marker="")  # fmt: skip
    axes[3].set(title="tanh RNN: vanishing and exploding", xlabel=distance, ylabel=height)
    for kind, dashes in (("start", ":"), ("trained", "-")):
        _band(axes[4], pick(records, kind=kind, network="Bi-LSTM"), "joined", f"Bi-LSTM, {kind}",
              color=style.GREEN, marker="", linestyle=dashes)  # fmt: skip
        _band(axes[4], pick(records, kind=kind, network="LSTM, forget bias 1"), "h",
              f"LSTM, forget bias 1, {kind}",
              color=style.BLUE, marker="", linestyle=dashes)  # fmt: skip
    axes[4].set(title="two directions: both ends are near", ylabel=height, ylim=(-60, 5),
                xlabel="distance from the end (steps)")  # fmt: skip
    _clipping(axes[5], records)
    for ax in axes[:2]:  # the lines leave no room
        style.small(ax, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    for ax in axes[2:]:
        style.small(ax, loc="best")
    return figure


def _clipping(ax: Axes, records: list[Json]) -> None:
    """Held-out error against sequences; a cross on the upper edge where a run was lost."""
    for clip, colour, words in ((None, style.RED, "no clipping"), (1.0, style.BLUE, "clip at 1")):
        runs = [r["values"]["training"] for r in pick(records, kind="clip", clip=clip)]
        lost = [run for run in runs if run["lost"] is not None]
        for k, run in enumerate(runs):
            curve = [(n, e) for n, e in run["curve"] if e is not None]
            label = f"{words}: {len(lost)} of {len(runs)} lost"
            ax.plot(*zip(*curve or [(math.nan, math.nan)], strict=True), color=colour,
                    linewidth=1.4, label=label if k == 0 else None)  # fmt: skip
        for k, run in enumerate(lost):
            ax.plot(run["lost"], 0.97 - 0.05 * k, "x", color=colour, markersize=7,
                    transform=ax.get_xaxis_transform())  # fmt: skip
    ax.set(title="clipping: relu RNN that explodes", xlabel="training sequences", yscale="log",
           ylabel="held-out squared error (cross: lost)")  # fmt: skip
    style.plain(ax, "y")


def _band(ax: Axes, records: list[Json], field: str, name: str, **more: Any) -> None:
    """The middle of the seeds, and from the lowest to the highest of them."""
    values = [r["values"] for r in records]
    if not values:
        return
    rows = np.array([[np.nan if y is None else y for y in v[field]] for v in values])
    shown = ~np.isnan(rows).all(axis=0)
    k, rows = np.array(values[0]["distance"])[shown], rows[:, shown]
    looks = style.look(name, **{"label": name, "markevery": 5, **more})
    ax.plot(k, np.nanmedian(rows, axis=0), **looks)
    ax.fill_between(k, np.nanmin(rows, axis=0), np.nanmax(rows, axis=0),
                    color=looks["color"], alpha=0.2, linewidth=0)  # fmt: skip


STUDY = Study(
    name="gradient-reach",
    question="How far back does the gradient of the loss reach?",
    method=(
        "L = v . h(T) with a random v of length 1. Exact norms of dL/dh(t) and dL/dc(t) for every "
        "distance from the end (the first ten distances are those of a sequence of ten steps, and "
        "so on), on the specification page in float64, rescaled by powers of two so that nothing "
        "underflows. Inputs are those of the adding problem; networks as torch initialises them "
        "unless the name says otherwise, all of the same hidden size. Trained: on adding over 100 "
        "steps until it is solved or the sequences are used up, Adam, batch 32, gradients clipped "
        "at norm 1. Equal tuning: each network at its own best of the same learning rates, found "
        "by pilots of equal length from a seed that does not count. Slope: least squares of log10 "
        "of the norm over all distances from 5. Clipping: relu RNN with W_hh = 1.5 x orthogonal, "
        "plain gradient descent."
    ),
    predictions=(
        Prediction(
            "The gradient of the LSTM with forget bias 1 falls less steeply than the tanh RNN's, "
            "at every seed, at the start.",
            _less_steep,
        ),
        Prediction(
            "As torch initialises it (forget bias near 0, f near 1/2) the LSTM keeps no more than "
            "the tanh RNN: the gate can only hold what it is set to hold.",
            lambda s: bool(
                s["slopes"]["start"]["LSTM"]["h"][0] <= s["slopes"]["start"]["RNN tanh"]["h"][0]
            ),
        ),
        Prediction(
            "Training lets the LSTM's gradient reach further than at the start.",
            lambda s: bool(
                s["slopes"]["trained"]["LSTM, forget bias 1"]["h"][0]
                > s["slopes"]["start"]["LSTM, forget bias 1"]["h"][0]
            ),
        ),
        Prediction(
            "The tanh RNN explodes with W_hh = 2 x orthogonal and vanishes with 0.8 x orthogonal.",
            lambda s: bool(s["gains"]["2.0"][0] > 0 > s["gains"]["0.8"][0]),
        ),
        Prediction(
            "Without clipping some seeds of the relu RNN are lost to infinities; with it none.",
            lambda s: bool(s["clipping"]["None"]["lost"] > 0 and s["clipping"]["1.0"]["lost"] == 0),
        ),
    ),
    units=units,
    then=then,
    threads=1,
    measure=measure,
    summarise=summarise,
    answer=answer,
    draw=draw,
    published=(
        Published(
            "decades per 100 steps of a cell whose forget gate stays at sigmoid(1)",
            round(100 * math.log10(1 / (1 + math.exp(-1))), 1),
            "follows from dc(t)/dc(t-1) = f(t): Gers, Schmidhuber and Cummins 2000, section 2",
            "the direct path alone, without the way through h",
            key="f1",
        ),
    ),
)
