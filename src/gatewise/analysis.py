"""Questions people ask of a trace. Each function is a method of Trace; each states its formula.

Results are numpy arrays. Steps that are padding count nowhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gatewise.errors import ArgumentError, ShapeError
from gatewise.fields import DIRECTIONS, NAMES, as_numpy, check_name
from gatewise.trace import Trace

Values = np.ndarray[Any, np.dtype[Any]]

#: d activation / d z, from the activation's value.
_SLOPES: dict[str, Callable[[Values], Values]] = {
    "sigmoid": lambda v: v * (1 - v),
    "tanh": lambda v: 1 - v * v,
    "relu": lambda v: (v > 0).astype(v.dtype),
    "identity": np.ones_like,
    "one": np.zeros_like,
    "zero": np.zeros_like,
}
_OUT: dict[str, Callable[[Values], Values]] = {"tanh": np.tanh, "identity": lambda v: v}


class Saturation(NamedTuple):
    """Each (L, D, H): the share of steps at which a unit's gate is shut, and is open."""

    shut: Values
    open: Values


class Tracking(NamedTuple):
    """How units follow a signal: r (L, D, H), and the same as (r, name of the unit), best first."""

    r: Values
    best: list[tuple[float, str]]


def saturation(trace: Trace, gate: str, low: float = 0.1, high: float = 0.9) -> Saturation:
    """The share of steps at which each unit's gate is stuck at an end of its range.

    shut = share of (t, b) with v < low, open = share with v > high, where v is the gate's value. A
    gate with tanh is read as v = (g + 1) / 2, which is the sigmoid of 2z.

    Args:
        gate: i, f, g or o.
        low, high: below and above which it counts as stuck.

    Source: Karpathy, Johnson and Fei-Fei 2015, "Visualizing and Understanding Recurrent Networks",
    section 4.2, with these thresholds.

    Raises:
        ArgumentError: the gate does not saturate in this cell: it is welded, linear or a relu.
    """
    cell = trace.cell
    activation = "sigmoid" if gate == "f" and cell.coupled else getattr(cell, gate, None)
    if gate not in ("i", "f", "g", "o") or activation not in ("sigmoid", "tanh"):
        raise ArgumentError(
            f"gate: expected a gate with sigmoid or tanh in cell {cell.name!r}, got {gate!r}"
        )
    v = _steps(trace, gate)
    v = (v + 1) / 2 if activation == "tanh" else v
    return Saturation((v < low).mean(axis=2), (v > high).mean(axis=2))


def memory_length(trace: Trace) -> Values:
    """(L, D, H) in steps: how long the forget gate of each unit keeps what is in its cell.

    tau = -1 / mean of ln f(t) over t and b. With the gates of this run, what lies in the cell falls
    to 1/e in tau steps along the direct path, c(t) = f(t) * c(t-1) + ...: the product of n forget
    gates is exp(-n / tau) on average. inf for a gate that is welded open, 0 where f reaches 0.

    Source: the time scale of Mahto, Vo, Turek and Huth 2021, "Multi-timescale Representation
    Learning in LSTM Language Models"; f as the inverse of a life-time: Tallec and Ollivier
    2018, "Can recurrent neural networks warp time?".
    """
    with np.errstate(divide="ignore"):
        return np.asarray(1 / np.abs(np.log(np.abs(_steps(trace, "f"))).mean(axis=2)))


def gradient_reach(trace: Trace, name: str = "c") -> Values:
    """(L, D, T, B): how much of the loss's gradient reaches each step; NaN at padding.

    The Euclidean norm over units of d loss / d c(t) (or of another value). It falls or grows by
    what each step back multiplies it with: the vanishing and exploding gradient.

    Source: Hochreiter 1991; Pascanu, Mikolov and Bengio 2013, "On the difficulty of training
    recurrent neural networks".

    Raises:
        ArgumentError: there is no gradient yet, or the name is unknown.
    """
    if trace.grad is None:
        raise ArgumentError(
            "trace: expected gradients, got a trace without: call backward() on a loss made of "
            "this run's results first"
        )
    check_name(name)
    return np.asarray(np.linalg.norm(as_numpy(getattr(trace.grad, name)), axis=-1))


def jacobian(
    trace: Trace,
    unit: int | None = None,
    at: int | None = None,
    layer: int = 0,
    direction: str = "fwd",
    sequence: int = 0,
) -> Values:
    """The exact Jacobian d c(at) / d c(t) for every t: every path, through all gates and units.

    One sweep back over the recorded values. With u the row of c(at) that is asked for,

        d_c(t)   = d u / d c(t)  =  e_u at t = at, and before that
                   d_c(t+1) * f(t+1)  +  what reaches c(t) by way of h(t), o(t) and the peepholes
        d_z(t)   = d_c(t) * (g, c(t-1), i)(t) * slopes of the gates,  for i, f, g
        d_h(t-1) = d_z(t) W_hh

    and h(t-1) hands it on to o(t-1) and c(t-1). ``direct_path`` is another quantity: the cell's own
    line alone, the product of forget gates.

    Args:
        unit: u; None gives every row.
        at: a step of the input; None for the last one that the direction reads.
        layer, direction, sequence: which lane (one direction of a layer), and which sequence of the
            batch.

    Returns:
        (T, H), row t is d c_u(at) / d c(t), or (T, H, H) with [t, u]. T is the sequence's own
        length. Zero for steps read after `at`. In float64.

    Raises:
        ArgumentError: there is no such unit, step or lane.

    Source: Hochreiter and Schmidhuber 1997, appendix A, without the truncation made there.
    """
    lane = _Lane(trace, layer, direction, sequence)
    if unit is not None and not -lane.H <= unit < lane.H:
        raise ArgumentError(f"unit: expected 0 to {lane.H - 1} (H - 1), got {unit}")
    H, cell, w, v = lane.H, trace.cell, lane.weights, lane.values
    rows = np.eye(H) if unit is None else np.eye(H)[[unit]]
    found = np.zeros((lane.T, len(rows), H))
    d_c, d_h = rows, np.zeros((len(rows), w["W_hh"].shape[1]))
    peep = dict(zip("ifo", w.get("peep", np.zeros((3, H))), strict=True))
    for t in lane.back_from(at):
        read = _OUT[cell.out](v["c"][t])
        d_m = d_h @ w["W_hr"] if "W_hr" in w else d_h  # m = o * out(c), before the projection
        d_zo = d_m * read * _SLOPES[cell.o](v["o"][t])
        d_c = d_c + d_m * v["o"][t] * _SLOPES[cell.out](read) + d_zo * peep["o"]
        found[t] = d_c
        d_i, d_f = d_c * v["g"][t], d_c * v["before"][t]
        if cell.coupled:
            d_i, d_f = d_i - d_f, np.zeros_like(d_f)
        d_zi, d_zf = d_i * _SLOPES[cell.i](v["i"][t]), d_f * _SLOPES[cell.f](v["f"][t])
        d_zg = d_c * v["i"][t] * _SLOPES[cell.g](v["g"][t])
        d_z = {"i": d_zi, "f": d_zf, "g": d_zg, "o": d_zo}
        d_h = np.concatenate([d_z[gate] for gate in cell.gates], axis=-1) @ w["W_hh"]
        d_c = d_c * v["f"][t] + d_zi * peep["i"] + d_zf * peep["f"]
    return found if unit is None else found[:, 0]


def direct_path(
    trace: Trace,
    at: int | None = None,
    layer: int = 0,
    direction: str = "fwd",
    sequence: int = 0,
) -> Values:
    """(T, H): d c(at) / d c(t) along the cell's own line alone, gates held fixed.

    The product of f over the steps read after t, up to `at`: the constant error carousel with a
    forget gate. ``jacobian`` adds every other path. Zero for steps read after `at`.

    Args: as for ``jacobian``.

    Source: Gers, Schmidhuber and Cummins 2000, "Learning to Forget".
    """
    lane = _Lane(trace, layer, direction, sequence)
    found, product = np.zeros((lane.T, lane.H)), np.ones(lane.H)
    for t in lane.back_from(at):
        found[t] = product
        product = product * lane.values["f"][t]
    return found


def tracking(trace: Trace, signal: Any, name: str = "c") -> Tracking:
    """Which units follow a labelled signal: Pearson's correlation over steps and sequences.

    r = cov(v, s) / (sd(v) sd(s)); for a signal of 0 and 1 the point-biserial correlation. A unit
    that never moves has r = 0.

    Args:
        signal: (T,) or (T, B), a number for each step; NaN leaves a step out.
        name: i, f, g, o, c or h.

    Source: the search for interpretable cells of Karpathy, Johnson and Fei-Fei 2015, section 4.2;
    Radford, Jozefowicz and Sutskever 2017, "Learning to Generate Reviews and Discovering
    Sentiment".

    Raises:
        ShapeError: the signal does not fit.
        ArgumentError: the signal is constant, or the name is unknown.
    """
    check_name(name)
    T, B = trace.mask.shape
    given = np.asarray(signal, dtype=np.float64)
    if given.shape not in ((T,), (T, B)):
        raise ShapeError(
            f"signal: expected (T,) = ({T},) or (T, B) = ({T}, {B}), got {given.shape}; "
            "time comes first"
        )
    full = np.broadcast_to(given if given.ndim == 2 else given[:, None], (T, B))
    use = trace.mask & ~np.isnan(full)
    s = full[use]
    s = s - s.mean()
    if not s.any():
        raise ArgumentError("signal: expected one that varies, got a constant")
    v = as_numpy(getattr(trace, name)).astype(np.float64)[:, :, use]
    v = v - v.mean(axis=2, keepdims=True)
    spread = np.sqrt((v * v).sum(axis=2) * (s * s).sum())
    moves = spread > 1e-12 * np.abs(s).sum()
    r = np.divide(np.einsum("ldnh,n->ldh", v, s), spread, out=np.zeros_like(spread), where=moves)
    places = sorted(np.ndindex(r.shape), key=lambda place: -abs(r[place]))
    best = [(float(r[k, d, u]), f"l{k}.{DIRECTIONS[d]}.{name}[{u}]") for k, d, u in places]
    return Tracking(r, best)


def _steps(trace: Trace, name: str) -> Values:
    """(L, D, N, H): a value at the real steps, in float64."""
    return as_numpy(getattr(trace, name)).astype(np.float64)[:, :, trace.mask]


class _Lane:
    """One sequence in one lane: i f g o c and c before the step, each (T, H), and the weights."""

    def __init__(self, trace: Trace, layer: int, direction: str, sequence: int) -> None:
        view = trace.layer(layer)[direction]
        k, d = view.k, view.d
        B = trace.mask.shape[1]
        if not -B <= sequence < B:
            raise ArgumentError(f"sequence: expected 0 to {B - 1} (B - 1), got {sequence}")
        real = trace.mask[:, sequence]
        self.T, self.H, self.reverse = int(real.sum()), view.c.shape[-1], d == 1
        before = trace.before(k, d, "c")
        before = before if trace.packing is None else trace.packing.pad(before)
        wide = {name: view.field(name) for name in NAMES[:-1]} | {"before": before}
        self.values = {
            name: as_numpy(value).astype(np.float64)[: self.T, sequence]
            for name, value in wide.items()
        }
        self.weights = {n: w.astype(np.float64) for n, w in trace.weights[k][d].items()}

    def back_from(self, at: int | None) -> range:
        """The steps from `at` to the first that the direction reads."""
        if at is not None and not -self.T <= at < self.T:
            raise ArgumentError(f"at: expected a step from 0 to {self.T - 1} (T - 1), got {at}")
        if self.reverse:
            return range(0 if at is None else at % self.T, self.T)
        return range(self.T - 1 if at is None else at % self.T, -1, -1)
