"""What the page knows: the numbers of a trace as blocks, and a description that names them.

    T steps  B batch  I input size  H hidden size  P output size  L layers  D directions

A block is a float32 array of shape (T, width), cut to its sequence's own length; equal blocks are
kept once (in a plain RNN c, g and h are one). A field that the cell welds is one number instead.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Sequence
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gatewise.errors import ArgumentError
from gatewise.spec import WELDED, CellSpec

if TYPE_CHECKING:
    from gatewise.trace import Trace

FIELDS = ("i", "f", "g", "o", "c", "h")

#: By default a page takes more sequences of a batch while their numbers stay under this.
SEVERAL_BYTES = 32e6
#: More than this in one page is allowed, with a warning that says how to take less.
LARGE_BYTES = 100e6
#: Weights beyond this are left out, and with them the contributions to each gate.
WEIGHT_BYTES = 32e6


class Blocks:
    """Arrays by number, each stored once."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self._seen: dict[bytes, int] = {}

    def add(self, array: Any) -> int:
        """The number of a float32 copy of the array."""
        data = np.ascontiguousarray(array, dtype="<f4").tobytes()
        key = hashlib.sha256(data).digest()
        if key not in self._seen:
            self._seen[key] = len(self.data)
            self.data.append(data)
        return self._seen[key]

    @property
    def size(self) -> int:
        return sum(map(len, self.data))


def gather(
    trace: Trace,
    tokens: Sequence[Any] | None = None,
    title: str | None = None,
    beside: Trace | None = None,
    *,
    batch: int | Sequence[int] | None = None,
    loss: tuple[int, str] | None = None,
    columns: Sequence[str] | None = None,
) -> tuple[dict[str, Any], list[bytes]]:
    """What the page knows: a description that fits JSON, and the blocks of numbers it names."""
    traces = [one.to_numpy() for one in (trace, beside) if one is not None]
    lengths = [_lengths(t) for t in traces]
    if lengths[0] != lengths[-1]:
        raise ArgumentError(
            f"beside: expected a trace of the same sequences (lengths {lengths[0]}), "
            f"got lengths {lengths[-1]}; run both layers on the same input"
        )
    chosen = _chosen(batch, traces, lengths[0])
    texts, kind = _tokens(tokens, lengths[0])
    T = max(lengths[0])
    if loss is not None and not 0 <= loss[0] < T:
        raise ArgumentError(f"loss: expected a step 0 to {T - 1}, got {loss[0]}")
    blocks = Blocks()
    models = [_model(t, chosen, lengths[0], blocks) for t in traces]
    if blocks.size > LARGE_BYTES:
        fewer = ", or choose sequences with batch=[0]" if len(chosen) > 1 else ""
        warnings.warn(
            f"the page holds {blocks.size / 1e6:.0f} MB of numbers and will open slowly; "
            f"give it a shorter input{fewer}",
            UserWarning,
            stacklevel=4,
        )
    first = texts[chosen[0]] if texts else None
    meta = {
        "title": title or (_headline(first) if first and kind == "text" else models[0]["name"]),
        "kind": kind,
        "tokens": [texts[b] for b in chosen] if texts else None,
        "columns": None if columns is None else _columns(columns, traces),
        "batch": chosen,
        "of": len(lengths[0]),
        "loss": None if loss is None else {"t": loss[0], "name": loss[1]},
        "models": models,
    }
    return meta, blocks.data


def _lengths(trace: Trace) -> list[int]:
    T, B = trace.mask.shape
    return [T] * B if trace.lengths is None else [int(n) for n in trace.lengths]


def _chosen(
    batch: int | Sequence[int] | None, traces: Sequence[Trace], lengths: list[int]
) -> list[int]:
    """Which sequences of the batch the page holds."""
    B = len(lengths)
    if B == 0 or max(lengths) == 0:
        raise ArgumentError("trace: expected at least one sequence of at least one step, got none")
    if batch is not None:
        try:
            chosen = [index(b) for b in (batch if isinstance(batch, Iterable) else [batch])]
        except TypeError:  # no whole numbers
            chosen = []
        if not chosen or any(not -B <= b < B for b in chosen):
            raise ArgumentError(f"batch: expected places in a batch of B = {B}, got {batch!r}")
        return [b % B for b in chosen]
    per_step = 4 * sum(
        len(FIELDS) * t.num_layers * t.num_directions * _hidden(t) * (1 if t.grad is None else 2)
        for t in traces
    )
    taken, chosen = 0.0, [0]
    for b in range(1, min(B, 8)):
        taken += per_step * lengths[b - 1]
        if taken + per_step * lengths[b] > SEVERAL_BYTES:
            break
        chosen.append(b)
    return chosen


def _tokens(tokens: Sequence[Any] | None, lengths: list[int]) -> tuple[list[list[str]] | None, str]:
    """The text of every step of every sequence, and whether it is text or a series to be drawn."""
    if tokens is None:
        return None, "series"
    many = len(lengths)
    a_list_each = not isinstance(tokens, str) and any(
        not isinstance(one, str) and np.ndim(one) > 0 for one in tokens
    )
    a_string_each = many > 1 and all(isinstance(one, str) for one in tokens)
    a_string_each = a_string_each and [len(one) for one in tokens] == lengths
    each = a_list_each or a_string_each
    lists = [list(one) for one in tokens] if each else [list(tokens)] * many
    got = [len(one) for one in lists]
    if got != lengths:
        shape = "one list of T tokens" if many == 1 else "one list of tokens for each sequence"
        raise ArgumentError(
            f"tokens: expected {shape} (lengths {lengths}), got lengths {got}; "
            "pass what stands at each step, for instance list('ilovechina')"
        )
    numbers = all(isinstance(token, (int, float, np.number)) for one in lists for token in one)
    texts = [[f"{token:.4g}" if numbers else str(token) for token in one] for one in lists]
    return texts, "series" if numbers else "text"


def _columns(columns: Sequence[str], traces: Sequence[Trace]) -> list[str]:
    """The names of the numbers of a step, short enough to stand beside them."""
    for trace in traces:
        if len(columns) != (I := trace.records[0].x.shape[-1]):
            raise ArgumentError(f"columns: expected I = {I} names, got {len(columns)}")
    spaced = (" ".join(str(name).split()) for name in columns)
    return [name if len(name) <= 24 else f"{name[:23]}…" for name in spaced]


def _headline(tokens: list[str]) -> str:
    joined = ("" if all(len(token) <= 1 for token in tokens) else " ").join(tokens)
    return joined if len(joined) <= 60 else joined[:59].rstrip() + "…"


def _hidden(trace: Trace) -> int:
    return int(trace.records[0].tape.shape[-1])


def _model(trace: Trace, chosen: list[int], lengths: list[int], blocks: Blocks) -> dict[str, Any]:
    cell, L, D, H = trace.cell, trace.num_layers, trace.num_directions, _hidden(trace)
    record = trace.records[0]
    lanes = [[_lanes(trace, k, d, chosen, lengths, blocks) for d in range(D)] for k in range(L)]
    x = [_inputs(trace, k, chosen, lengths, blocks) for k in range(L)]
    weights = _weights(trace, blocks)
    return {
        "name": _name(cell, D),
        "cell": {
            **{name: getattr(cell, name) for name in ("name", *"ifgo", "out", "source")},
            **{name: getattr(cell, name) for name in ("coupled", "peephole", "has_cell_state")},
            "gates": list(cell.gates),
        },
        "size": {
            "I": record.x.shape[-1],
            "H": H,
            "P": record.output.shape[-1] // D,
            "L": L,
            "D": D,
        },
        "weights": weights,
        "broken_weights": _broken_weights(weights, blocks),
        "runs": [
            {
                "T": lengths[b],
                "x": [x[k][n] for k in range(L)],
                "lanes": [[lanes[k][d][n] for d in range(D)] for k in range(L)],
            }
            for n, b in enumerate(chosen)
        ],
    }


def _name(cell: CellSpec, D: int) -> str:
    plain = {"lstm": "LSTM", "rnn": "RNN", "rnn_relu": "RNN (relu)"}
    name = plain.get(cell.name, f"LSTM ({cell.name.replace('_', ' ')})")
    return f"Bi-{name}" if D == 2 else name


def _inputs(
    trace: Trace, k: int, chosen: list[int], lengths: list[int], blocks: Blocks
) -> list[int | None]:
    """What layer k read in each sequence; None where it is the output of the layer below."""
    packing, x = trace.packing, trace.records[k].x
    if k > 0 and np.array_equal(x, trace.records[k - 1].output, equal_nan=True):
        return [None] * len(chosen)
    padded = x if packing is None else packing.pad(x)
    return [blocks.add(padded[: lengths[b], b]) for b in chosen]


def _lanes(
    trace: Trace, k: int, d: int, chosen: list[int], lengths: list[int], blocks: Blocks
) -> list[dict[str, Any]]:
    """One direction of one layer over each sequence: blocks by name, or what fills them."""
    cell, packing = trace.cell, trace.packing
    view, grad = trace.layer(k)[d], trace.grad
    value = {name: view.field(name) for name in FIELDS}
    slope = None if grad is None else {name: grad.layer(k)[d].field(name) for name in FIELDS}
    welded = {name for name in "ifgo" if getattr(cell, name) in WELDED}
    at = k * trace.num_directions + d

    def one(b: int) -> dict[str, Any]:
        steps = slice(lengths[b])
        column = b if packing is None else int(packing.unsorted[b])
        cells = value["c"][steps, b].astype(np.float64)
        keep = value["f"][steps, b].astype(np.float64)
        return {
            "value": {
                name: {"fill": float(getattr(cell, name) == "one")}
                if name in welded
                else blocks.add(value[name][steps, b])
                for name in FIELDS
            },
            "grad": None
            if slope is None
            else {n: blocks.add(v[steps, b]) for n, v in slope.items() if n not in welded},
            "h0": blocks.add(trace._began(k, "h")[d, column]),
            "c0": blocks.add(trace._began(k, "c")[d, column]),
            "h_n": blocks.add(trace.h_n[at, b]),
            "c_n": blocks.add(trace.c_n[at, b]) if cell.has_cell_state else None,
            "broken": _broken([value[name][steps, b] for name in FIELDS], reverse=d == 1),
            "memory": [_json(m) for m in memory(keep)] if cell.has_cell_state else None,
            "activity": [_json(m) for m in np.abs(cells).mean(0)],
            "similarity": similarity(cells).tolist(),
        }

    return [one(b) for b in chosen]


def _broken(values: Iterable[NDArray[Any]], *, reverse: bool) -> int | None:
    """The first step, in the order of reading, at which a value is NaN or infinite, if any."""
    bad = np.any([~np.isfinite(one).all(-1) for one in values], axis=0)
    steps = np.flatnonzero(bad)
    return int(steps[-1 if reverse else 0]) if len(steps) else None


def _json(number: float) -> float | None:
    return float(f"{number:.4g}") if np.isfinite(number) else None


def memory(f: NDArray[Any]) -> NDArray[Any]:
    """Effective memory length of each unit: the steps in which forgetting alone leaves 1/e.

    -1 / mean over t of log f: the forget gates multiply, so their logs are what averages.

    Args:
        f: (T, H) forget gates.

    Returns:
        (H,) steps; infinite where the gate never closes.

    Example:
        >>> import numpy as np
        >>> memory(np.full((5, 1), np.exp(-1 / 8))).round(6).tolist()
        [8.0]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(1 / np.abs(np.minimum(np.log(np.maximum(f, 0)).mean(0), 0)))


def similarity(values: NDArray[Any]) -> NDArray[np.int64]:
    """An order of the units that puts those with similar curves next to each other.

    The angle of each unit in the plane of the two leading principal components of the standardised
    curves (Friendly and Kwan 2003, 'Effect ordering for data displays').

    Args:
        values: (T, H).

    Returns:
        (H,) the units in that order, cut where the gap between neighbours is widest.
    """
    T, H = values.shape
    if T < 3 or H < 3:
        return np.arange(H)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite or very large values
        spread = values.std(0)
        z = (values - values.mean(0)) / np.where(spread > 0, spread, 1)
    z = np.nan_to_num(z, posinf=0, neginf=0)
    axes = np.stack([np.arange(H) % 2 + 0.5, np.arange(H) / H], 1)
    for _ in range(30):  # orthogonal iteration: an order needs no more digits
        axes, _ = np.linalg.qr(z.T @ (z @ axes))
    angle = np.arctan2(axes[:, 0], axes[:, 1])
    order = np.argsort(angle, kind="stable")
    gaps = np.diff(angle[order], append=angle[order[0]] + 2 * np.pi)
    return np.roll(order, -int(gaps.argmax()) - 1)


def _weights(trace: Trace, blocks: Blocks) -> list[list[dict[str, int]]] | None:
    """The weights of each layer and direction; None where they changed since, or are too large."""
    try:
        weights = trace.weights
    except ArgumentError:
        return None
    if sum(4 * w.size for layer in weights for lane in layer for w in lane.values()) > WEIGHT_BYTES:
        return None
    return [
        [{name: blocks.add(w) for name, w in lane.items()} for lane in layer] for layer in weights
    ]


def _broken_weights(weights: list[list[dict[str, int]]] | None, blocks: Blocks) -> list[list[bool]]:
    """Of each layer and direction, whether a weight is NaN or infinite."""
    return [
        [
            any(not np.isfinite(np.frombuffer(blocks.data[n], "<f4")).all() for n in lane.values())
            for lane in layer
        ]
        for layer in weights or []
    ]
