"""Trace: every gate, cell and hidden state of a run, by name.

    L layers  D directions  T steps  B batch  I input size  H hidden size  P output size
    G computed gates  S slots of the tape  N tokens of packed input

A trace is a reading of the tape that the kernel wrote: nothing is computed again, and nothing is
copied until it is asked for. It holds torch tensors after ``LSTM.trace``, with their graph, so any
value can stand in a loss, and numpy arrays after ``to_numpy`` or ``load``; no torch is needed here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gatewise.errors import ArgumentError
from gatewise.fields import (
    DIRECTIONS,
    NAMES,
    WEIGHTS,
    Array,
    Fields,
    Packing,
    as_numpy,
    check_name,
    library,
)
from gatewise.spec import WELDED, CellSpec

if TYPE_CHECKING:
    from os import PathLike

    from matplotlib.figure import Figure

    from gatewise.analysis import Saturation, Tracking


@dataclass
class GradSink:
    """Receives the total gradients of a layer's run; backward passes add up, as in ``.grad``.

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
        h0, c0: (D, B, P), (D, B, H), where it began; None for zeros (a trace fills them in).
        output: (T, B, D*P) or (N, D*P), what it gave to the layer above.
        h_n, c_n: (D, B, P), (D, B, H), where it ended.
        tape: (D, T, B, S, H) or (D, N, S, H), the values of ``cell.slots`` at every step.
        weights: of each direction the six of ``fields.WEIGHTS``, None for what the layer lacks; or
            None when they are no longer those of the run.
        grad: where backward leaves the total gradients.
        versions: torch's counts of in-place changes to the weights, when the run was made.
        z: the pre-activations of each direction, when they were asked for with the run.
    """

    x: Array
    h0: Array | None
    c0: Array | None
    output: Array
    h_n: Array
    c_n: Array
    tape: Array
    weights: Sequence[Sequence[Array | None]] | None = None
    grad: GradSink = field(default_factory=GradSink)
    versions: Sequence[int] | None = None
    z: Sequence[Array] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of tape and output."""
        return int(self.tape.nbytes + self.output.nbytes)

    @property
    def h(self) -> Array:
        """(D, T, B, P) or (D, N, P): output, seen by direction."""
        D = self.tape.shape[0]
        split = self.output.reshape((*self.output.shape[:-1], D, self.output.shape[-1] // D))
        return library(split).moveaxis(split, -2, 0)


class Gradients(Fields):
    """d loss / d value, for every value of a trace.

    Each is total: how the loss would change if this one value moved, and with it everything that is
    computed from it. A welded gate cannot move: zero. A coupled forget gate is read as a value of
    its own: d_f = d_c * c(t-1), which is part of d_i too.
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
            before = self._trace.before(k, d, "c")
            return self._lane(k, d, "c") * getattr(before, "detach", before.view)()
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

    A gate that the cell does not compute is filled in from its row: ones, zeros, or 1 - i. In a
    cell without a cell state (the plain RNN) c is g. Time always comes first, sequences stand in
    the caller's order, and an input without a batch has B = 1. A lane is one direction of a layer.

    Example:
        >>> import torch, gatewise
        >>> lstm = gatewise.LSTM(3, 4, num_layers=2, bidirectional=True)
        >>> trace = lstm.trace(torch.zeros(5, 1, 3))
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

    # --- values ----------------------------------------------------------------------------------

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
        """The state ("h" or "c") before each step of a lane: (T, B, ...), or (N, ...) as packed.

        Args:
            k, d: layer and direction, by number.
        """
        check_name(name, ("h", "c"))
        now, first = self._lane(k, d, name), self._began(k, name)[d]
        if self.packing is not None:
            return self.packing.before(now, first, reverse=d == 1)
        parts = [now[1:], first[None]] if d == 1 else [first[None], now[:-1]]
        return library(now).concatenate(parts)

    def _began(self, k: int, name: str) -> Array:
        """The state before the first step of layer k: (D, B, P) for "h", (D, B, H) for "c".

        In a cell without a cell state both are h. As the kernel laid it out: of packed input the
        longest sequence comes first.
        """
        record = self.records[k]
        of_h = name == "h" or not self.cell.has_cell_state
        first, last = (record.h0, record.h_n) if of_h else (record.c0, record.c_n)
        return library(last).zeros_like(last) if first is None else first

    def _z(self, k: int, d: int) -> Array:
        kept = self.records[k].z
        if kept is not None:
            return kept[d]
        w = {name: self._precise(k, each) for name, each in self._weights(k)[d].items()}
        x, h = self._precise(k, self.records[k].x), self._precise(k, self.before(k, d, "h"))
        z = x @ w["W_ih"].T + h @ w["W_hh"].T
        for bias in ("b_ih", "b_hh"):
            z = z + w[bias] if bias in w else z
        z = z.reshape((*z.shape[:-1], len(self.cell.gates), self.records[k].tape.shape[-1]))
        if not self.cell.peephole:
            return z
        before = self.before(k, d, "c")
        seen = {"i": before, "f": before, "o": self._lane(k, d, "c")}
        parts = [
            z[..., n, :] + (w["peep"]["ifo".index(gate)] * seen[gate] if gate in seen else 0)
            for n, gate in enumerate(self.cell.gates)
        ]
        return library(z).stack(parts, -2)

    def _precise(self, k: int, array: Array) -> Array:
        """In the dtype of the tape, float32 where inputs and weights are bfloat16; with a graph if
        the run had one."""
        tape = self.records[k].tape
        if isinstance(array, np.ndarray):
            return array
        return (array if tape.requires_grad else array.detach()).to(tape.dtype)

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

    def keep_z(self) -> None:
        """Compute z now, so that it can be asked for when the weights have moved on."""
        for k, record in enumerate(self.records):
            record.z = record.z or [self._z(k, d) for d in range(self.num_directions)]

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

        Raises:
            ArgumentError: there is no such layer, direction or state.
        """
        check_name(name, ("h", "c"))
        ends = self.h_n if name == "h" else self.c_n
        k = self.layer(layer).k
        return ends[k * self.num_directions + self.direction(direction)]

    @property
    def mask(self) -> np.ndarray:
        """(T, B) True where a sequence has a step: ``trace.f[:, :, mask]`` leaves padding out."""
        shape = self.records[0].tape.shape
        return np.ones(shape[1:3], bool) if self.packing is None else self.packing.mask

    @property
    def lengths(self) -> np.ndarray | None:
        """(B,) steps of each sequence of packed input, in the caller's order; else None."""
        return None if self.packing is None else self.packing.mask.sum(0)

    @property
    def nbytes(self) -> int:
        """Bytes of tape and output."""
        return sum(record.nbytes for record in self.records)

    # --- weights and gradients -------------------------------------------------------------------

    def _weights(self, k: int) -> Sequence[dict[str, Array]]:
        record = self.records[k]
        lanes = record.weights
        if lanes is not None and record.versions is not None:
            now = [w._version for lane in lanes for w in lane if w is not None]
            lanes = lanes if now == record.versions else None
        if lanes is None:
            raise ArgumentError(
                f"trace: expected the weights of the run, but layer {k} has others by now; ask "
                "before the optimizer steps, or keep trace.to_numpy(), which copies them"
            )
        return [
            {name: w for name, w in zip(WEIGHTS, lane, strict=True) if w is not None}
            for lane in lanes
        ]

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
        """d loss / d value for every value, after ``backward()``; None before."""
        known = any(record.grad.tape is not None for record in self.records)
        return Gradients(self) if known else None

    # --- elsewhere -------------------------------------------------------------------------------

    def to_numpy(self) -> Trace:
        """The same trace as numpy arrays, without graph; weights and inputs are copied."""
        records = [self._numpy_record(k) for k in range(self.num_layers)]
        return Trace(self.cell, records, self.packing)

    def _numpy_record(self, k: int) -> LayerRecord:
        record = self.records[k]
        try:
            known = self._weights(k)
        except ArgumentError:
            weights = None
        else:
            copies = [{n: as_numpy(w).copy() for n, w in lane.items()} for lane in known]
            weights = [[lane.get(name) for name in WEIGHTS] for lane in copies]
        grad = (record.grad.tape, record.grad.h)
        return LayerRecord(
            x=as_numpy(record.x).copy(),
            h0=as_numpy(self._began(k, "h")).copy(),
            c0=as_numpy(self._began(k, "c")).copy(),
            output=as_numpy(record.output),
            h_n=as_numpy(record.h_n),
            c_n=as_numpy(record.c_n),
            tape=as_numpy(record.tape),
            weights=weights,
            grad=GradSink(*(None if g is None else as_numpy(g).copy() for g in grad)),
            z=None if record.z is None else [as_numpy(z) for z in record.z],
        )

    def to_xarray(self) -> Any:
        """An ``xarray.Dataset`` with named dimensions; padding is NaN.

        i f g o c (layer, direction, step, batch, unit), h with ``out`` in place of ``unit``,
        x (step, batch, input), output (step, batch, feature); coordinates layer, direction, and
        for packed input length (batch).

        Raises:
            ArgumentError: xarray is not installed.
        """
        try:
            import xarray
        except ImportError:
            raise ArgumentError(
                "to_xarray: expected xarray, got none installed; pip install xarray"
            ) from None
        lane = ("layer", "direction", "step", "batch")
        arrays: dict[str, Any] = {
            n: ((*lane, "out" if n == "h" else "unit"), getattr(self, n)) for n in NAMES
        }
        arrays["x"] = (("step", "batch", "input"), self.x)
        arrays["output"] = (("step", "batch", "feature"), self.output)
        coords: dict[str, Any] = {
            "layer": np.arange(self.num_layers),
            "direction": list(DIRECTIONS[: self.num_directions]),
        }
        if self.lengths is not None:
            coords["length"] = ("batch", self.lengths)
        return xarray.Dataset(
            {name: (dims, as_numpy(a)) for name, (dims, a) in arrays.items()},
            coords,
            {"cell": self.cell.name},
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the trace to a safetensors file, whole or not at all, with gradients if known.

        Raises:
            OSError: the file cannot be written.
        """
        from gatewise.trace_file import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Trace:
        """Read a trace that ``save`` wrote, as numpy arrays.

        Raises:
            OSError: it cannot be read.
            ArgumentError: the file is of another kind.
        """
        from gatewise.trace_file import load

        return load(Path(path))

    # --- questions (analysis.py has more on each, and the source) ---------------------------------

    def saturation(self, gate: str, low: float = 0.1, high: float = 0.9) -> Saturation:
        """How often each unit's gate is stuck: the share of steps with v < low, and with v > high.

        Args:
            gate: i, f, g or o, whose value v is; of g, which has a sign, v = (g + 1) / 2.

        Returns:
            Saturation(shut, open), each (L, D, H).

        Raises:
            ArgumentError: in this cell the gate is welded, linear or a relu.

        Example:
            >>> import torch, gatewise
            >>> gatewise.LSTM(3, 2).trace(torch.zeros(5, 3)).saturation("f").open.shape
            (1, 1, 2)
        """
        from gatewise.analysis import saturation

        return saturation(self, gate, low, high)

    def memory_length(self) -> np.ndarray:
        """(L, D, H) in steps: how long each unit keeps 1/e of its cell, -1 / mean of ln f.

        Example:
            >>> import torch, gatewise
            >>> gatewise.LSTM(3, 2, cell="no_forget_gate").trace(torch.ones(5, 3)).memory_length()
            array([[[inf, inf]]])
        """
        from gatewise.analysis import memory_length

        return memory_length(self)

    def gradient_reach(self, name: str = "c") -> np.ndarray:
        """(L, D, T, B): the norm over units of d loss / d c(t), or of another's, after backward."""
        from gatewise.analysis import gradient_reach

        return gradient_reach(self, name)

    def jacobian(self, unit: int | None = None, at: int | None = None, **lane: Any) -> np.ndarray:
        """The exact d c_unit(at) / d c(t): (T, H), or (T, H, H) with every unit as a row.

        Args:
            at: a step; None for the last that the direction reads.
            lane: layer, direction, sequence, by default 0, "fwd", 0.
        """
        from gatewise.analysis import jacobian

        return jacobian(self, unit, at, **lane)

    def direct_path(self, at: int | None = None, **lane: Any) -> np.ndarray:
        """(T, H): d c(at) / d c(t), gates held fixed; the arguments are those of ``jacobian``."""
        from gatewise.analysis import direct_path

        return direct_path(self, at, **lane)

    def tracking(self, signal: Any, name: str = "c") -> Tracking:
        """Tracking(r, best), how units follow a signal, and (r, name of the unit), best first.

        Pearson's r = cov(v, s) / (sd(v) sd(s)) over all steps, (L, D, H).

        Args:
            signal: s, (T,) or (T, B); NaN leaves a step out.
            name: which value v: i, f, g, o, c or h.

        Example:
            >>> import torch, gatewise
            >>> found = gatewise.LSTM(3, 2).trace(torch.randn(5, 3)).tracking([0, 0, 1, 0, 0])
            >>> found.r.shape, len(found.best)
            ((1, 1, 2), 2)
        """
        from gatewise.analysis import tracking

        return tracking(self, signal, name)

    # --- pictures (figures.py says what each shows) -----------------------------------------------

    def plot(self, names: Sequence[str] | None = None, **how: Any) -> Figure:
        """Gates and states of one lane as maps of units over time.

        Args:
            names: which of i f g o c h; None for all that the cell computes.
            how: layer, direction, sequence, order, tokens, gradient, ax: see ``figures.plot``.
        """
        from gatewise.figures import plot

        return plot(self, names, **how)

    def plot_unit(self, unit: int, **how: Any) -> Figure:
        """The six curves of one unit; ``how`` as for ``figures.plot_unit``, much as ``plot``."""
        from gatewise.figures import plot_unit

        return plot_unit(self, unit, **how)

    def plot_reach(self, name: str = "c", **how: Any) -> Figure:
        """How far back the gradient of the loss reaches; ``how``: beside, labels, sequence, ax."""
        from gatewise.figures import plot_reach

        return plot_reach(self, name, **how)

    def plot_text(self, tokens: Sequence[str], unit: int, name: str = "c", **how: Any) -> Figure:
        """The text, each token coloured by one unit; ``how``: layer, direction, sequence, width."""
        from gatewise.figures import plot_text

        return plot_text(self, tokens, unit, name, **how)

    def explore(
        self,
        path: str | PathLike[str],
        tokens: Sequence[Any] | None = None,
        title: str | None = None,
        beside: Trace | None = None,
        *,
        batch: int | Sequence[int] | None = None,
    ) -> Path:
        """Write the explorer, one HTML page of this run (and of `beside` on the same input).

        Args:
            path: the file to write.
            tokens: what stands at each step: a string, words or numbers; None draws the input.
            title: what the page is called.
            beside: a second trace on the same sequence, such as a plain RNN's.
            batch: which sequences of the batch, one place or several; None: the first ones, at
                most 8. ``gatewise.see.write`` says more.

        Returns:
            The path.

        Raises:
            ArgumentError: tokens, batch or beside do not fit.
            OSError: the page cannot be written.
        """
        from gatewise import see

        return see.write(self, path, tokens=tokens, title=title, beside=beside, batch=batch)

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
