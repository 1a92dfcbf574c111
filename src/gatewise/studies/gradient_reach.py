"""How far back does the gradient of the loss reach?

The loss is a random direction of the last hidden state, L = v . h(T), |v| = 1. For each distance k
the study takes |dL/dh(T-k)| and |dL/dc(T-k)|, step by step on the specification page in float64. A
row whose gradient becomes small or large is rescaled by a power of two, which is exact, and the
power is remembered: nothing underflows, however long the sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from gatewise import CELLS, CellSpec, Weights, step
from gatewise.studies import stats, style, tuning, wording
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
    "RNN relu, identity",
    "LSTM",
    "LSTM, forget bias 1",
    "Bi-LSTM",
)
#: The two that differ in the start of the forget gate alone.
_LSTMS = ("LSTM", "LSTM, forget bias 1")
#: W_hh = gain * orthogonal: below 1 the gradient must vanish, above 1 it can explode.
GAINS = {
    "RNN tanh": (0.8, 1.0, 1.5, 2.0, 4.0, 8.0, 16.0),
    **dict.fromkeys(_LSTMS, (2.0, 4.0, 8.0, 16.0)),
}
#: Sequences in a step of training.
BATCH = 32
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
        for network, gains in GAINS.items():
            for gain in gains:
                plan.append({"kind": "gain", "network": network, "gain": gain, **shared})
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
        design = replace(design, gain=unit["gain"])
    task = adding(unit["trained_on"] if "trained_on" in unit else unit["T"])
    net = Reader(design, task.inputs, unit["hidden"], task.outputs, seed)
    if unit["kind"] == "clip":
        recipe = Recipe(unit["sequences"] // 4, BATCH, 0.01, unit["clip"], looks=10, sgd=True)
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
                **{
                    key: {str(d): _at(here, d, of) for d in NAMED if d in here[0]["distance"]}
                    for key, of in (("at", "h"), ("at_c", "c"))
                },
                "solved": sum(v.get("training", {}).get("solved_at") is not None for v in here),
                "seeds": len(here),
                "rate": those[0]["unit"].get("rate"),
            }
    for network, gains in GAINS.items():
        found["gains"][network] = {}
        for gain in gains:
            here = pick(records, kind="gain", network=network, gain=gain)
            each = [r["values"]["slope_h"] for r in here]
            found["gains"][network][str(gain)] = {"each": each, "mean": _mean(each)}
    baseline = adding(9).baseline
    for clip in (None, 1.0):
        here = [r["values"]["training"] for r in pick(records, kind="clip", clip=clip)]
        found["clipping"][str(clip)] = {
            "seeds": len(here),
            "lost": sum(v["lost"] is not None for v in here),
            "no_better": sum(v["error"] is None or v["error"] >= baseline for v in here),
            "largest_norm": max((v["norms"][0] for v in here), default=None),
            "errors": [v["error"] for v in here],
        }
    return found | {"tuning": tuning.choices(records, tuning.sequences)}


def _mean(values: Sequence[float | None]) -> list[float] | None:
    """Mean and half width of its interval; None where no curve had a slope."""
    there = [v for v in values if v is not None]
    return [round(v, 3) for v in stats.mean(there)] if there else None


def _at(values: Sequence[Json], distance: int, of: str) -> float | None:
    """log10 of |dL/dh| or |dL/dc| so far from the loss, the middle of the seeds; None: it is 0."""
    found = [v[of][v["distance"].index(distance)] for v in values]
    middle = median(-math.inf if value is None else value for value in found)
    return round(middle, 1) if math.isfinite(middle) else None


def _less_steep(summary: Json) -> bool:
    """At every seed the LSTM with forget bias 1 keeps more than the tanh RNN, at the start."""
    start = summary["slopes"]["start"]
    pairs = zip(start["LSTM, forget bias 1"]["each_h"], start["RNN tanh"]["each_h"], strict=True)
    return all(a > b for a, b in pairs)


def _keeps_no_more(summary: Json) -> bool | Literal["undecided"]:
    """Whether the LSTM's slope is no higher than the tanh RNN's, by differences seed by seed."""
    start = summary["slopes"]["start"]
    pairs = zip(start["LSTM"]["each_h"], start["RNN tanh"]["each_h"], strict=True)
    more, half = stats.mean([lstm - rnn for lstm, rnn in pairs])
    return "undecided" if abs(more) <= half else more < 0


def answer(summary: Json) -> str:
    start, trained = summary["slopes"]["start"], summary["slopes"]["trained"]
    said = stats.plus_minus
    near, far = list(trained["LSTM"]["at"])[:2]
    in_h, in_c = (" and ".join(map(wording.power, (trained["LSTM"][key][d] for d in (near, far))))
                  for key in ("at", "at_c"))  # fmt: skip
    return (
        f"The fitted slope of the gradient's size over the distances 5 to {summary['T'] - 1:,} is, "
        f"in powers of ten per 100 steps, at the start {said(start['RNN tanh']['h'])} in the tanh "
        f"RNN, {said(start['LSTM']['h'])} in the LSTM as torch starts it and "
        f"{said(start['LSTM, forget bias 1']['h'])} in the LSTM with forget bias 1; trained on "
        f"adding, {said(trained['RNN tanh']['h'])} in the tanh RNN and "
        f"{said(trained['LSTM']['h'])} in the LSTM. The LSTM pays once, on the way from h into "
        f"the cell, and the cell then holds: {near} and {far} steps back |dL/dh| is {in_h}, "
        f"|dL/dc| {in_c}."
    )


def draw(result: Json) -> Figure:
    records = pick(result["records"], pilot=None)
    figure, axes = style.canvas(3, 2, result["question"], height=4.2)
    distance, height = "distance from the loss (steps)", "log10 of the norm"
    for ax, kind, title in (
        (axes[0], "start", "|dL/dh| at the start"),
        (axes[1], "trained", "|dL/dh| after training on adding"),
    ):
        for network in NETWORKS[:-1]:  # one direction of the Bi-LSTM is the LSTM with forget bias 1
            _band(ax, pick(records, kind=kind, network=network), "h", network)
        ax.axhline(FLOAT32, color="#888888", linewidth=0.8, linestyle=":")
        ax.set(title=title, xlabel=distance, ylabel=height, ylim=(-60, 5))
        ax.set(xlim=(0, min(300, result["summary"]["T"])))
        ax.text(0, FLOAT32, " float32 ends", fontsize=8, va="top")
    x = np.array([0, 300])
    for published in result["published"]:
        axes[0].plot(x, x * published["value"] / 100, color="#555555", linestyle="--",
                     linewidth=1, label="f = sigmoid(1) alone")  # fmt: skip
    for network in _LSTMS:
        _band(axes[2], pick(records, kind="start", network=network), "c", network,
              label=f"{network}, start", linestyle=":")  # fmt: skip
        _band(axes[2], pick(records, kind="trained", network=network), "c", network,
              label=f"{network}, trained", linestyle="-")  # fmt: skip
    axes[2].set(title="|dL/dc|: the cell's additive path", xlabel=distance, ylabel=height,
                ylim=axes[0].get_ylim(), xlim=axes[0].get_xlim())  # fmt: skip
    _explosion(axes[3], result["summary"]["gains"])
    for kind, dashes in (("start", ":"), ("trained", "-")):
        _band(axes[4], pick(records, kind=kind, network="Bi-LSTM"), "joined", "Bi-LSTM",
              label=f"Bi-LSTM, {kind}", linestyle=dashes)  # fmt: skip
        _band(axes[4], pick(records, kind=kind, network=_LSTMS[1]), "h", _LSTMS[1],
              label=f"{_LSTMS[1]}, {kind}", linestyle=dashes)  # fmt: skip
    axes[4].set(title="two directions: both ends are near", ylabel=height, ylim=(-60, 5),
                xlabel="distance from the end (steps)")  # fmt: skip
    _clipping(axes[5], records)
    for ax, columns in zip(axes, (2, 2, 1, 1, 1, 1), strict=True):
        style.below(ax, columns)
    return figure


def _explosion(ax: Axes, gains: Json) -> None:
    """How steep the gradient is, by the size of W_hh: the middle of the seeds, and each of them."""
    for network, found in gains.items():
        sizes = list(map(float, found))
        looks = style.look(network, label=network)
        ax.plot(sizes, [median(row["each"]) for row in found.values()], **looks)
        for size, row in zip(sizes, found.values(), strict=True):
            ax.plot([size] * len(row["each"]), row["each"], ".", color=looks["color"], markersize=3)
    ax.axhline(0, color="#555555", linewidth=0.9)
    ax.set(title="explodes above 0, vanishes below", xlabel="W_hh = so many times orthogonal",
           ylabel="decades per 100 steps", xscale="log")  # fmt: skip
    style.plain(ax, "x")


def _clipping(ax: Axes, records: list[Json]) -> None:
    """Held-out error against sequences; a cross on the upper edge where a run was lost."""
    for clip, colour, dashes, words in (
        (None, style.RED, "--", "no clipping"),
        (1.0, style.BLUE, "-", "clip at 1"),
    ):
        runs = [r["values"]["training"] for r in pick(records, kind="clip", clip=clip)]
        lost = [run["lost"] * BATCH for run in runs if run["lost"] is not None]
        for k, run in enumerate(runs):
            curve = [(n, e) for n, e in run["curve"] if e is not None]
            label = f"{words}: {len(lost)} of {len(runs)} lost"
            ax.plot(*zip(*curve or [(math.nan, math.nan)], strict=True), color=colour,
                    linewidth=1.4, linestyle=dashes, label=label if k == 0 else None)  # fmt: skip
        if lost:
            ax.plot(lost, [1.0] * len(lost), "x", color=colour, markersize=7, clip_on=False,
                    transform=ax.get_xaxis_transform())  # fmt: skip
    baseline = adding(9).baseline
    ax.axhline(baseline, color="#888888", linewidth=0.9, linestyle=":", label="always answers 1")
    ax.set(title="clipping: relu RNN that explodes", xlabel="training sequences", yscale="log",
           ylabel="held-out squared error")  # fmt: skip
    ax.plot([], [], "kx", linestyle="", label="lost then (on the upper edge)")
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
        "underflows; of the Bi-LSTM, those of its half that reads from left to right (the figure "
        "has both). Inputs are those of the adding problem; networks as torch initialises them "
        "unless the name says otherwise, all of the same hidden size. Identity: W_hh is the "
        "identity and the biases are 0 (Le, Jaitly and Hinton 2015). The size of W_hh: that of "
        "each gate is so many times a random orthogonal matrix. Trained: on adding over 100 "
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
            _keeps_no_more,
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
            lambda s: bool(
                s["gains"]["RNN tanh"]["2.0"]["mean"][0]
                > 0
                > s["gains"]["RNN tanh"]["0.8"]["mean"][0]
            ),
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
