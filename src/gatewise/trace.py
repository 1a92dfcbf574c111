"""Trace: every gate, cell and hidden state of a run, by name.

    L layers  D directions  T steps  B batch  I input size  H hidden size  P output size
    G computed gates  S slots of the tape  N tokens of packed input

A trace is a reading of the tape that the kernel wrote: nothing is computed again, nothing is copied
until it is asked for. It holds torch tensors after ``LSTM.trace`` (with their graph, so any value can
stand in a loss) and numpy arrays after ``to_numpy`` or ``load``; this file imports no torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from gatewise.errors import ArgumentError
from gatewise.spec import WELDED, CellSpec

if TYPE_CHECKING:
    from os import PathLike

#: A torch tensor or a numpy array.
Array = Any

#: What a trace names at every step, in the order of a step: the four gates, cell state, hidden state.
NAMES = ("i", "f", "g", "o", "c", "h")
DIRECTIONS = ("fwd", "reverse")
_PATH = re.compile(r"l(\d+)\.(fwd|reverse)\.(\w+)")


def library(array: Array) -> ModuleType:
    """numpy or torch: whichever made the array."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def as_numpy(array: Array) -> np.ndarray:
    """The array as numpy, sharing memory where it can; bfloat16, which numpy has not, as float32."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    values: np.ndarray = (array.float() if "bfloat16" in str(array.dtype) else array).numpy()
    return values


@dataclass(frozen=True)
class Packing:
    """Where the N tokens of packed input sit in the (T, B) grid of the caller's sequences.

    Args:
        batch_sizes: (T,) how many sequences reach step t; never increasing.
        unsorted: (B,) the caller's sequence b is column unsorted[b] of the batch, longest first.
    """

    batch_sizes: np.ndarray
    unsorted: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(T, B) True where a sequence has a step, sequences in the caller's order."""
        return np.asarray(self.unsorted < self.batch_sizes[:, None])

    @property
    def grid(self) -> np.ndarray:
        """(T, B) the token that sits there, or N for padding."""
        first = np.cumsum(self.batch_sizes) - self.batch_sizes
        return np.asarray(
            np.where(self.mask, first[:, None] + self.unsorted, self.batch_sizes.sum())
        )

    def pad(self, tokens: Array) -> Array:
        """(N, ...) as (T, B, ...), NaN at padding."""
        xp = library(tokens)
        return xp.concatenate([tokens, xp.full_like(tokens[:1], float("nan"))])[self.grid]

    def before(self, tokens: Array, first: Array, reverse: bool) -> Array:
        """The value one step earlier: (N, ...), from first (B, ...) where a sequence begins."""
        N, B = int(self.batch_sizes.sum()), int(self.batch_sizes[0])
        rows = np.split(np.arange(N), np.cumsum(self.batch_sizes)[:-1])
        begin = np.arange(N, N + B)
        if reverse:  # the step read before t is t+1, where the sequence has one
            later = [*rows[1:], begin[:0]]
            index = [np.r_[b, begin[len(b) : len(a)]] for a, b in zip(rows, later, strict=True)]
        else:
            index = [begin, *(a[: len(b)] for a, b in pairwise(rows))]
        return library(tokens).concatenate([tokens, first])[np.concatenate(index)]


@dataclass
class GradSink:
    """Receives the total gradients of a layer's run; they add up over backward passes, as .grad does.

    Args:
        tape: (D, T, B, S, H) or (D, N, S, H), d loss / d tape; None before backward.
        h: (D, T, B, P) or (D, N, P), d loss / d h; None before backward.
    """

    tape: Array | None = None
    h: Array | None = None

    def add(self, tape: Array, h: Array) -> None:
        """Take what one backward pass found."""
        self.tape = tape if self.tape is None else self.tape + tape
        self.h = h if self.h is None else self.h + h


@dataclass
class LayerRecord:
    """What the run of one layer left.

    Args:
        x: (T, B, I) or (N, I), what the layer read.
        h0, c0: (D, B, P), (D, B, H), where it began.
        output: (T, B, D*P) or (N, D*P), what it gave to the layer above.
        h_n, c_n: (D, B, P), (D, B, H), where it ended.
        tape: (D, T, B, S, H) or (D, N, S, H), the values of ``cell.slots`` at every step.
        weights: one dict a direction (W_ih, W_hh, and b_ih, b_hh, W_hr, peep where the layer has
            them), or None when they are no longer those of the run.
        grad: where backward leaves the total gradients.
        versions: torch's counts of in-place changes to the weights, when the run was made.
    """

    x: Array
    h0: Array
    c0: Array
    output: Array
    h_n: Array
    c_n: Array
    tape: Array
    weights: Sequence[dict[str, Array]] | None = None
    grad: GradSink = field(default_factory=GradSink)
    versions: Sequence[int] | None = None

    @property
    def h(self) -> Array:
        """(D, T, B, P) or (D, N, P): output, seen by direction."""
        D = self.tape.shape[0]
        split = self.output.reshape((*self.output.shape[:-1], D, self.output.shape[-1] // D))
        return library(split).moveaxis(split, -2, 0)


class _Named:
    """A value by its name: ``values.f`` is ``values.field("f")``."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, values: Any, owner: type) -> Any:
        return self if values is None else values.field(self.name)


class DirectionView:
    """One direction of one layer: each value (T, B, H), h (T, B, P), a view of the tape.

    For packed input the values are laid out in the caller's (T, B), NaN at padding, which copies;
    ``tokens(name)`` is the view, (N, H), in the order of the packed data.
    """

    i = _Named("(T, B, H) input gate: how much is written")
    f = _Named("(T, B, H) forget gate: how much of the old cell state stays")
    g = _Named("(T, B, H) candidate: what is written")
    o = _Named("(T, B, H) output gate: how much is read")
    c = _Named("(T, B, H) cell state after the step")
    h = _Named("(T, B, P) hidden state after the step")

    def __init__(self, values: Fields, k: int, d: int) -> None:
        self._values, self._k, self._d = values, k, d

    def tokens(self, name: str) -> Array:
        """A value as the kernel laid it out: (T, B, ...), or (N, ...) for packed input."""
        return self._values._lane(self._k, self._d, name)

    def field(self, name: str) -> Array:
        """A value by its name."""
        tokens, packing = self.tokens(name), self._values.packing
        return tokens if packing is None else packing.pad(tokens)

    @property
    def z(self) -> Array:
        """(T, B, G, H) pre-activations, gates in the order of ``cell.gates``; see ``Trace.z``."""
        return self.field("z")

    def __repr__(self) -> str:
        return f"l{self._k}.{DIRECTIONS[self._d]} of {self._values!r}"


class LayerView:
    """One layer of a trace: ``.fwd`` and, where it reads both ways, ``.reverse``."""

    def __init__(self, values: Fields, k: int) -> None:
        self._values, self._k = values, k

    def __getitem__(self, direction: str | int) -> DirectionView:
        return DirectionView(self._values, self._k, self._values.direction(direction))

    @property
    def fwd(self) -> DirectionView:
        """Left to right."""
        return self["fwd"]

    @property
    def reverse(self) -> DirectionView:
        """Right to left; step t is still step t of the input."""
        return self["reverse"]


class Fields:
    """Named values of every layer, direction and step; a Trace is one, its gradient another.

    ``.i .f .g .o .c`` are (L, D, T, B, H) and ``.h`` is (L, D, T, B, P); ``.layer(0).fwd.i`` is one
    lane of them without a copy, and so is ``["l0.fwd.i"]``.
    """

    i = _Named("(L, D, T, B, H) input gates")
    f = _Named("(L, D, T, B, H) forget gates")
    g = _Named("(L, D, T, B, H) candidates")
    o = _Named("(L, D, T, B, H) output gates")
    c = _Named("(L, D, T, B, H) cell states")
    h = _Named("(L, D, T, B, P) hidden states")

    cell: CellSpec
    packing: Packing | None

    @property
    def num_layers(self) -> int:
        """L."""
        raise NotImplementedError

    @property
    def num_directions(self) -> int:
        """D: 1, or 2 for a layer that reads both ways."""
        raise NotImplementedError

    def _lane(self, k: int, d: int, name: str) -> Array:
        """Value `name` of layer k, direction d, as the kernel laid it out."""
        raise NotImplementedError

    def direction(self, direction: str | int) -> int:
        """The number of a direction: 0 for "fwd", 1 for "reverse"."""
        known = DIRECTIONS[: self.num_directions]
        if direction in known:
            return DIRECTIONS.index(str(direction))
        if direction in range(len(known)):
            return int(direction)
        raise ArgumentError(f"direction: expected one of {', '.join(known)}, got {direction!r}")

    def layer(self, k: int) -> LayerView:
        """Layer k; negative numbers count from the top."""
        if not -self.num_layers <= k < self.num_layers:
            raise ArgumentError(f"layer: expected 0 to {self.num_layers - 1} (L - 1), got {k}")
        return LayerView(self, k % self.num_layers)

    def field(self, name: str) -> Array:
        """A value of all layers and directions: (L, D, T, B, ...)."""
        lanes = [
            self.layer(k)[d].field(name)
            for k in range(self.num_layers)
            for d in range(self.num_directions)
        ]
        if len(lanes) == 1:  # nothing to stack, nothing to copy
            return lanes[0][None, None]
        stacked = library(lanes[0]).stack(lanes)
        return stacked.reshape((self.num_layers, self.num_directions, *lanes[0].shape))

    def names(self) -> Iterator[str]:
        """Every name that ``[...]`` takes, layer by layer: l0.fwd.i, l0.fwd.f, ..."""
        for k in range(self.num_layers):
            for direction in DIRECTIONS[: self.num_directions]:
                yield from (f"l{k}.{direction}.{name}" for name in NAMES)

    def __getitem__(self, name: str) -> Array:
        found = _PATH.fullmatch(name)
        if found is None or found[3] not in (*NAMES, "z"):
            raise ArgumentError(
                f"name: expected l<layer>.<fwd|reverse>.<{'|'.join(NAMES)}|z>, as in 'l0.fwd.f', "
                f"got {name!r}"
            )
        return self.layer(int(found[1]))[found[2]].field(found[3])


class Gradients(Fields):
    """d loss / d value, for every value of a trace.

    Each is total: how the loss would change if this one value moved and everything computed from it
    moved along. A welded gate cannot move: zero. A coupled forget gate is f itself: d_f = d_c * c(t-1).
    """

    def __init__(self, trace: Trace) -> None:
        self._trace, self.cell, self.packing = trace, trace.cell, trace.packing

    @property
    def num_layers(self) -> int:
        return self._trace.num_layers

    @property
    def num_directions(self) -> int:
        return self._trace.num_directions

    def _lane(self, k: int, d: int, name: str) -> Array:
        record = self._trace.records[k]
        grad = record.grad
        if name == "z":
            raise ArgumentError("name: a gradient has i f g o c h, got 'z'")
        if grad.tape is None or grad.h is None:  # the loss did not reach this layer
            like = record.h[d] if name == "h" else record.tape[d][..., 0, :]
            return library(like).zeros_like(like)
        if name == "h":
            return grad.h[d]
        if name in self.cell.slots:
            return grad.tape[d][..., self.cell.slots.index(name), :]
        if name == "c":  # no cell state of its own: c is g
            return grad.tape[d][..., self.cell.slots.index("g"), :]
        like = grad.tape[d][..., 0, :]
        if name == "f" and self.cell.coupled:
            return self._lane(k, d, "c") * self._trace.before(k, d, "c")
        return library(like).zeros_like(like)

    def __repr__(self) -> str:
        return f"gradients of {self._trace!r}"


@dataclass(repr=False, eq=False)
class Trace(Fields):
    """Every gate, cell and hidden state of every step of a run.

    Args:
        cell: the row of ``gatewise.CELLS`` that ran.
        records: one a layer, what its run left.
        packing: where packed tokens sit, or None for a plain batch.

    A gate that the cell does not compute is filled in from its row: ones, zeros, or 1 - i. In a cell
    without a cell state (the plain RNN) c is g. Sequences are always in the caller's order, time is
    always first, and an input without a batch has B = 1.

    Example:
        >>> import torch, gatewise
        >>> trace = gatewise.LSTM(3, 4, num_layers=2, bidirectional=True).trace(torch.zeros(5, 1, 3))
        >>> trace.f.shape
        torch.Size([2, 2, 5, 1, 4])
        >>> trace["l1.reverse.c"].shape
        torch.Size([5, 1, 4])
    """

    cell: CellSpec
    records: Sequence[LayerRecord]
    packing: Packing | None = None

    @property
    def num_layers(self) -> int:
        return len(self.records)

    @property
    def num_directions(self) -> int:
        return int(self.records[0].tape.shape[0])

    # --- values -----------------------------------------------------------------------------------

    def _lane(self, k: int, d: int, name: str) -> Array:
        record = self.records[k]
        if name == "h":
            return record.h[d]
        if name == "z":
            return self._z(k, d)
        slots = self.cell.slots
        if name not in slots and name == "c":
            name = "g"
        if name in slots:
            return record.tape[d][..., slots.index(name), :]
        if name == "f" and self.cell.coupled:
            return 1 - self._lane(k, d, "i")
        like = record.tape[d][..., 0, :]
        xp = library(like)
        return xp.ones_like(like) if getattr(self.cell, name) == "one" else xp.zeros_like(like)

    def before(self, k: int, d: int, name: str) -> Array:
        """The state before each step: "h" or "c" of layer k, direction d, as the kernel laid it out."""
        record, now = self.records[k], self._lane(k, d, name)
        first = (record.h0 if name == "h" else record.c0)[d]
        if self.packing is not None:
            return self.packing.before(now, first, reverse=d == 1)
        parts = [now[1:], first[None]] if d == 1 else [first[None], now[:-1]]
        return library(now).concatenate(parts)

    def _z(self, k: int, d: int) -> Array:
        w = self._weights(k)[d]
        z = self.records[k].x @ w["W_ih"].T + self.before(k, d, "h") @ w["W_hh"].T
        for bias in ("b_ih", "b_hh"):
            z = z + w[bias] if bias in w else z
        z = z.reshape((*z.shape[:-1], len(self.cell.gates), -1))
        if not self.cell.peephole:
            return z
        seen = {
            "i": self.before(k, d, "c"),
            "f": self.before(k, d, "c"),
            "o": self._lane(k, d, "c"),
        }
        parts = [
            z[..., n, :] + (w["peep"]["ifo".index(gate)] * seen[gate] if gate in seen else 0)
            for n, gate in enumerate(self.cell.gates)
        ]
        return library(z).stack(parts, -2)

    @property
    def z(self) -> Array:
        """(L, D, T, B, G, H) pre-activations: what enters the activation of each of ``cell.gates``.

        z = W_ih x(t) + b_ih + W_hh h(t-1) + b_hh, with peep * c added for the gates that see the
        cell (i and f see c(t-1), o sees c(t)). Computed when asked for, from the weights, inputs
        and states of the run.

        Raises:
            ArgumentError: the weights have changed since the run.
        """
        return self.field("z")

    @property
    def x(self) -> Array:
        """(T, B, I) what the first layer read; NaN at padding."""
        return self._padded(self.records[0].x)

    @property
    def output(self) -> Array:
        """(T, B, D*P) what the last layer gave, forward half first; NaN at padding."""
        return self._padded(self.records[-1].output)

    @property
    def h_n(self) -> Array:
        """(L*D, B, P) the last hidden states, as torch orders them: layer, then direction."""
        return self._ends("h_n")

    @property
    def c_n(self) -> Array:
        """(L*D, B, H) the last cell states, as torch orders them: layer, then direction."""
        return self._ends("c_n")

    def _padded(self, tokens: Array) -> Array:
        return tokens if self.packing is None else self.packing.pad(tokens)

    def _ends(self, name: str) -> Array:
        ends = [getattr(record, name) for record in self.records]
        joined = library(ends[0]).concatenate(ends)
        return joined if self.packing is None else joined[:, self.packing.unsorted]

    def last(self, layer: int = -1, direction: str | int = "fwd", name: str = "h") -> Array:
        """The state a direction ended in: (B, P) for "h", (B, H) for "c".

        Right to left, a direction ends at step 0: this is ``h_n``, and not ``output[-1]``, whose
        reverse half has read one step only.
        """
        if name not in ("h", "c"):
            raise ArgumentError(f"name: expected 'h' or 'c', got {name!r}")
        ends = self.h_n if name == "h" else self.c_n
        k = self.layer(layer)._k
        return ends[k * self.num_directions + self.direction(direction)]

    @property
    def mask(self) -> np.ndarray:
        """(T, B) True where a sequence has a step; ``trace.f[:, :, trace.mask]`` leaves out padding."""
        shape = self.records[0].tape.shape
        return np.ones(shape[1:3], bool) if self.packing is None else self.packing.mask

    @property
    def lengths(self) -> np.ndarray | None:
        """(B,) steps of each sequence of packed input, in the caller's order; None for a plain batch."""
        return None if self.packing is None else self.packing.mask.sum(0)

    # --- weights and gradients --------------------------------------------------------------------

    def _weights(self, k: int) -> Sequence[dict[str, Array]]:
        record = self.records[k]
        weights = record.weights
        if weights is not None and record.versions is not None:
            now = [w._version for lane in weights for w in lane.values()]
            weights = weights if now == record.versions else None
        if weights is None:
            raise ArgumentError(
                f"trace: expected the weights of the run, got layer {k}, whose weights have changed "
                "since; ask before the optimizer steps, or keep trace.to_numpy(), which copies them"
            )
        return weights

    @property
    def weights(self) -> list[list[dict[str, np.ndarray]]]:
        """[layer][direction] -> the parameters of the run as numpy copies: W_ih, W_hh, b_ih, ...

        Raises:
            ArgumentError: the weights have changed since the run.
        """
        return [
            [{name: as_numpy(w).copy() for name, w in lane.items()} for lane in self._weights(k)]
            for k in range(self.num_layers)
        ]

    @property
    def grad(self) -> Gradients | None:
        """The gradient of the loss with respect to every value, after ``backward()``; None before."""
        known = any(record.grad.tape is not None for record in self.records)
        return Gradients(self) if known else None

    # --- elsewhere --------------------------------------------------------------------------------

    def to_numpy(self) -> Trace:
        """The same trace as numpy arrays, without graph; weights and inputs are copied."""
        return Trace(
            self.cell, [self._numpy_record(k) for k in range(self.num_layers)], self.packing
        )

    def _numpy_record(self, k: int) -> LayerRecord:
        record = self.records[k]
        try:
            weights = [
                {n: as_numpy(w).copy() for n, w in lane.items()} for lane in self._weights(k)
            ]
        except ArgumentError:
            weights = None
        grad = (record.grad.tape, record.grad.h)
        return LayerRecord(
            x=as_numpy(record.x).copy(),
            h0=as_numpy(record.h0).copy(),
            c0=as_numpy(record.c0).copy(),
            output=as_numpy(record.output),
            h_n=as_numpy(record.h_n),
            c_n=as_numpy(record.c_n),
            tape=as_numpy(record.tape),
            weights=weights,
            grad=GradSink(*(None if g is None else as_numpy(g) for g in grad)),
        )

    def explore(
        self,
        path: str | PathLike[str],
        tokens: Sequence[str] | None = None,
        title: str | None = None,
        beside: Trace | None = None,
    ) -> None:
        """Write the explorer: one HTML page that shows this run, and `beside` on the same input."""
        from gatewise import see

        see.write(self, path, tokens=tokens, title=title, beside=beside)

    def __repr__(self) -> str:
        record = self.records[0]
        T, B = self.mask.shape
        H, P = record.tape.shape[-1], record.output.shape[-1] // self.num_directions
        sizes = {"L": self.num_layers, "D": self.num_directions, "T": T, "B": B, "H": H, "P": P}
        welded = [g for g in "ifgo" if getattr(self.cell, g) in WELDED]
        notes = [
            f"welded {' '.join(welded)}" if welded else "",
            "" if self.packing is None else f"packed, {int(self.packing.batch_sizes.sum())} tokens",
            "" if self.grad is None else "with gradients",
        ]
        shape = " ".join(f"{letter}={size}" for letter, size in sizes.items())
        return f"Trace({', '.join([self.cell.name, shape, *filter(None, notes)])})"
