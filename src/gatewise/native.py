"""The calls into the native core, and nothing else.

The core makes the results where all it is given is plain; buffers come from here where something
has to be copied first, or the caller has them.

A run's tensors are passed around flat, in this order: x, batch_sizes, h0, c0, then for each
direction the six fields of ``reference.Weights``; None stands for what a run does not have.
Its results are y, h_n, c_n, tape; here None, and to autograd and operators, which want a tensor
everywhere, an empty one, stands for what it does not have: a cell state in a plain RNN, a tape in
inference.

A run is reduced if its products, forward and backward, round what they multiply to bfloat16
(core/bf16.h). ``may_reduce`` says which runs can be; whoever begins one decides, for all of it. Its
tape is bfloat16 too where backward alone will read it. A tape that somebody may see is float32: the
values that the run used. Backward rounds that one, so the gradients are the same either way.
A tape that backward alone will read lies by groups of rows (core/groups.h): what a worker writes is
then in one piece. ``in_order`` makes of it one that lies as its shape says.
Of a reduced run x and y may be bfloat16, each for itself, and then their gradients are: what torch
has so, or wants so, need not be converted. The numbers are those of float32, rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gatewise import private
from gatewise.spec import CELLS, CellSpec

try:
    from gatewise import _core
except ImportError as missing:
    raise ImportError(
        "gatewise: the native core is not built, or not for this Python: run `pip install .` in "
        "the source tree (it needs a C++20 compiler), or install a wheel of gatewise"
    ) from missing

#: What the core computes in. bfloat16 and float16 come as float32 and are rounded at the end.
DTYPES = (torch.float32, torch.float64)

private.require()

_is_dead_wrapper = torch._C._functorch.is_dead_tensor_wrapper  # type: ignore[attr-defined]

#: Fields of a direction's Weights.
FIELDS = 6
W_IH, W_HH, B_IH, W_HR = 0, 1, 2, 4

#: Of tensors, None among them: their state (changes in place, wish for a gradient, dtype), and
#: whether they are others in that state, or have been changed in place since.
state, are, changed = _core.state, _core.are, _core.changed

TokenSums = _core.TokenSums

#: What the core raises, before anything is done, at what lies in pieces, is lazy or does not fit.
_UNFIT = (TypeError, ValueError, RuntimeError)

Flat = Sequence[Tensor | None]
Results = tuple[Tensor, Tensor, Tensor | None, Tensor | None]
Tensors = tuple[Tensor, Tensor, Tensor, Tensor]

_GATES = {name: len(cell.gates) for name, cell in CELLS.items()}
_SLOTS = {name: len(cell.slots) for name, cell in CELLS.items()}
_STATEFUL = {name: cell.has_cell_state for name, cell in CELLS.items()}


class GradSink(Protocol):
    """Takes the total gradient of the loss with respect to every slot and every hidden state."""

    def add(self, tape: Tensor, h: Tensor) -> None:
        """Take what one backward pass found: like the tape, and (D, T, B, P) or (D, N, P)."""


def covers(cell: CellSpec) -> bool:
    """Whether the core knows this row (a deepcopied or unpickled row is another object)."""
    row = CELLS.get(cell.name)
    return row is cell or row == cell


def sizes(cell: CellSpec, x: Any, batch_sizes: Any, h0: Any, weights: Flat) -> tuple[Any, ...]:
    """D, B, H, P of a run; B may be symbolic."""
    W_hh = weights[W_HH]
    assert W_hh is not None
    rows, P = W_hh.shape if W_hh.dim() == 2 else (0, 0)  # which the core refuses, with its reason
    B = x.shape[1] if batch_sizes is None else int(batch_sizes[0]) if h0 is None else h0.shape[1]
    return len(weights) // FIELDS, B, rows // _GATES[cell.name], P


def scratch(shapes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Tensors in float32, of undefined numbers, in memory that goes back to the core's workspaces
    with the last of them."""
    found: tuple[Tensor, ...] = _core.scratch(_LIKE, [tuple(shape) for shape in shapes])
    return found


def empty(dtype: torch.dtype, *shape: int) -> Tensor:
    """A tensor of undefined numbers, in memory that the core keeps for the next result: to have
    much of it fresh from the system, and touch it for the first time, takes long."""
    made: Any = _core.empty(_LIKE, shape, dtype.itemsize)
    found: Tensor = made
    return found


_LIKE = torch.empty(0)  # torch's kind of tensor


#: Sequences for which a step alone is worth rounding its weights.
REDUCED_ROWS = 16


def may_reduce(x: Tensor, batch_sizes: Tensor | None) -> bool:
    """Whether a run may be reduced: where the kernels have the products for it, and it pays."""
    steps = len(x if batch_sizes is None else batch_sizes)
    return (steps > 1 or x.shape[-2] >= REDUCED_ROWS) and _core.has_pairs()


def empty_results(
    cell: CellSpec,
    tape: torch.dtype | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Any,
    weights: Flat,
    output: torch.dtype | None = None,
) -> Results:
    """The buffers that a run fills; the fake kernels call it too, so shapes are said once.

    Args:
        tape: its dtype; None for no tape.
        output: that of y; None for that of the others.
    """
    D, B, H, P = sizes(cell, x, batch_sizes, h0, weights)
    *steps, _ = x.shape
    dtype = x.dtype if x.dtype in DTYPES else torch.float32
    return (
        x.new_empty(*steps, D * P, dtype=output or dtype),
        x.new_empty(D, B, P, dtype=dtype),
        x.new_empty(D, B, H, dtype=dtype) if _STATEFUL[cell.name] else None,
        None if tape is None else x.new_empty(D, *steps, _SLOTS[cell.name], H, dtype=tape),
    )


def tensors(results: Results) -> Tensors:
    """The results with an empty tensor for None."""
    y, h_n, c_n, tape = results
    return (
        y,
        h_n,
        y.new_empty(0) if c_n is None else c_n,
        y.new_empty(0) if tape is None else tape,
    )


def is_there(t: Tensor) -> bool:
    """Whether a result is one, and not the empty tensor that stands for none."""
    return t.dim() > 1


def forward(
    cell: CellSpec,
    tape: torch.dtype | None,
    reduced: bool,
    *flat: Tensor | None,
    output: torch.dtype | None = None,
    by_groups: bool = False,
) -> Results:
    """Run a layer: y, h_n, c_n, tape.

    Args:
        tape: its dtype, that of the weights or, of a reduced run, bfloat16; None for no tape.
        flat: x, batch_sizes, h0, c0, *weights.
        output: the dtype of y, the same; None for that of the weights.
        by_groups: so lies the tape, which is bfloat16 if the run is reduced.
    """
    x, batch_sizes, h0, c0, *weights = flat
    assert x is not None
    results: Results
    keep, rounded = tape is not None, tape is torch.bfloat16
    try:
        results = _core.layer(
            cell.name, _rows(x), batch_sizes, _whole(h0), _whole(c0), _by_direction(weights),
            keep, rounded, reduced, output is torch.bfloat16, by_groups, torch.get_num_threads(),
        )  # fmt: skip
    except _UNFIT:
        results = empty_results(cell, tape, x, batch_sizes, h0, weights, output)
        fill(cell, reduced, results, flat, by_groups=by_groups)
    return results


class Part(NamedTuple):
    """What a run is that is a part of a longer one, with the bits of the whole; of one step they
    are otherwise those of another order. Its x, y and their gradients may be tuples, of a tensor
    for each direction. The gradients of the weights are added to what is there.

    Args:
        reverse: direction 0 runs from right to left, too.
        adds_inputs: the gradient of x is added to what is there, too.
    """

    reverse: bool
    adds_inputs: bool


def fill(
    cell: CellSpec,
    reduced: bool,
    results: Sequence[Any],
    inputs: Sequence[Any],
    *,
    part: Part | None = None,
    by_groups: bool = False,
) -> None:
    """Run a layer into the results, of which y may have any outer strides."""
    y, h_n, c_n, tape = results
    _core.forward(
        *_given(cell, inputs),
        y,
        h_n,
        c_n,
        tape,
        torch.get_num_threads(),
        reduced,
        part is not None,
        part is not None and part.reverse,
        by_groups,
    )


def backward(
    cell: CellSpec,
    reduced: bool,
    wanted: Sequence[bool],
    sink: GradSink | None,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    *rest: Tensor | None,
    by_groups: bool = False,
) -> Flat:
    """The gradients of a run.

    Args:
        wanted: for each of x, batch_sizes, h0, c0, *weights, whether its gradient is.
        rest: the weights, then y, tape, d_y, d_h_n, d_c_n, d_tape; None is a gradient of zero.
        by_groups: so lies the tape.

    Returns:
        One gradient for each input, None where it is not wanted.
    """
    *weights, y, tape, d_y, d_h_n, d_c_n, d_tape = rest
    assert y is not None
    assert tape is not None
    if not is_there(tape):  # whoever exported, or keeps states alone, has none: run again
        kept, flat = torch.bfloat16 if reduced else x.dtype, (x, batch_sizes, h0, c0, *weights)
        y, *_, tape = tensors(forward(cell, kept, reduced, *flat, by_groups=by_groups))
    tape = tape.bfloat16() if reduced else tape
    if sink is None:
        try:
            return _core.layer_gradient(
                cell.name, tuple(wanted), _rows(x), batch_sizes, _whole(h0), _whole(c0),
                _by_direction(weights), y, tape, None if d_y is None else _rows(d_y), _whole(d_h_n),
                _whole(d_c_n) if _STATEFUL[cell.name] else None, d_tape,
                by_groups, torch.get_num_threads(),
            )  # fmt: skip
        except _UNFIT:
            pass
    inputs = (x, batch_sizes, h0, c0, *weights)
    grads = empty_gradients(inputs, wanted)
    g_tape = g_h = None
    if sink is not None:
        D, _, _, P = sizes(cell, x, batch_sizes, h0, weights)
        g_tape, g_h = x.new_empty(tape.shape), x.new_empty(D, *x.shape[:-1], P)
    cotangents = d_y, d_h_n, d_c_n, d_tape
    fill_gradients(
        cell, grads, inputs, y, tape, cotangents, g_tape, g_h, by_groups=by_groups
    )  # fmt: skip
    if sink is not None and g_tape is not None and g_h is not None:
        sink.add(g_tape, g_h)
    return grads


def in_order(cell: CellSpec, flat: Flat, tape: Tensor) -> Tensor:
    """The tape of this run, which lies by groups, in the order that its shape says."""
    x, batch_sizes, h0, _, *weights = flat
    assert x is not None
    D, B, H, P = sizes(cell, x, batch_sizes, h0, weights)
    *steps, I = x.shape
    T = len(x if batch_sizes is None else batch_sizes)
    first = _core.rows_of_first_group(
        cell.name, batch_sizes, T, B, math.prod(steps), I, H, P, tape.itemsize
    )
    if first == B:
        return tape
    active = [B] * T if batch_sizes is None else batch_sizes.tolist()
    second = torch.cat([torch.arange(n) >= first for n in active])
    lies = torch.empty(len(second), dtype=torch.int64)
    lies[second.argsort(stable=True)] = torch.arange(len(second))
    return tape.reshape(D, len(second), -1)[:, lies].reshape(tape.shape)


def empty_gradients(inputs: Flat, wanted: Sequence[bool]) -> list[Tensor | None]:
    """The buffers for the gradients of a run."""
    return [
        torch.empty_like(t, memory_format=torch.contiguous_format)
        if t is not None and want
        else None
        for t, want in zip(inputs, wanted, strict=True)
    ]


def fill_gradients(
    cell: CellSpec,
    grads: Sequence[Any],
    inputs: Sequence[Any],
    y: Tensor,
    tape: Tensor,
    cotangents: Sequence[Any],
    g_tape: Tensor | None = None,
    g_h: Tensor | None = None,
    *,
    part: Part | None = None,
    by_groups: bool = False,
) -> None:
    """Run a layer's gradient into grads, of which that of x may have any outer strides.

    Args:
        tape: in bfloat16 that of a reduced run.
        grads: one for each of the inputs, None where it is not wanted.
        cotangents: d_y, d_h_n, d_c_n, d_tape.
        g_tape, g_h: for the total gradients, like the tape and (D, T, B, P) or (D, N, P).
    """
    d_x, _, d_h0, d_c0, *d_weights = grads
    d_y, d_h_n, d_c_n, d_tape = cotangents
    biases = []
    for b in range(B_IH, len(d_weights), FIELDS):  # the two biases have one gradient: one buffer
        d_ih, d_hh = d_weights[b : b + 2]
        d_weights[b : b + 2] = [d_hh if d_ih is None else d_ih, None]
        biases.append((d_ih, d_hh))
    _core.backward(
        *_given(cell, inputs),
        _unit_stride(y),
        _dense(tape),
        None if d_y is None else _tokens(d_y),
        _dense(d_h_n),
        _dense(d_c_n) if _STATEFUL[cell.name] else None,
        _dense(d_tape),
        d_x,
        d_h0,
        d_c0,
        _by_direction(d_weights),
        g_tape,
        g_h,
        torch.get_num_threads(),
        part is not None,
        part is not None and part.reverse,
        by_groups,
        part is not None and part.adds_inputs,
    )
    for d_ih, d_hh in biases:
        if d_ih is not None and d_hh is not None:
            d_hh.copy_(d_ih)


def step(
    cell: CellSpec,
    keep_tape: bool,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: tuple[Tensor | None, ...],
    reduced: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run one step of a layer: x (B, I) to h (B, H), c (B, H), tape (B, S, H). In bfloat16 the tape
    is float32, or rounded where products are: of more than 16 rows.

    Args:
        reduced: products round what they multiply to bfloat16, and the tape is rounded, too.

    Raises:
        ValueError, TypeError: what does not fit or does not lie in one piece.
    """
    found: tuple[Tensor, Tensor | None, Tensor | None]
    found = _core.step(cell.name, x, h, c, weights, keep_tape, reduced)
    return found


def token_sums(weights: tuple[Tensor | None, ...]) -> TokenSums:
    """Of the gradients of W_ih, W_hh and, one for both, the biases, as far as they are wanted; in
    float32 where the weights are bfloat16."""
    W_ih, W_hh, b_ih, b_hh = (
        None if t is None or not t.requires_grad else torch.empty_like(t, dtype=_wide(t))
        for t in weights[:4]
    )
    return TokenSums(weights[0], weights[1], W_ih, W_hh, b_hh if b_ih is None else b_ih)


def _wide(t: Tensor) -> torch.dtype:
    return torch.float32 if t.dtype == torch.bfloat16 else t.dtype


def step_gradient(
    cell: CellSpec,
    wanted: tuple[bool, ...],
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    weights: tuple[Tensor | None, ...],
    tape: Tensor,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    sums: TokenSums | None,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``step`` by x, h and c.

    Args:
        wanted: for each of x, h, c, whether its gradient is.
        tape: as ``step`` made it; one in bfloat16 is that of a reduced step.
        sums: of the weights' gradients, which the step is added to.
    """
    found: tuple[Tensor | None, ...]
    name = cell.name
    if x.dtype == torch.bfloat16:
        x_, *rest = _widened((x, h, c, d_h_n, d_c_n, *weights))
        assert x_ is not None
        h, c, d_h_n, d_c_n, *wide = rest
        found = step_gradient(cell, wanted, x_, h, c, tuple(wide), tape, d_h_n, d_c_n, sums)
        return tuple(None if t is None else t.to(x.dtype) for t in found)
    try:
        d_h_n, d_c_n = _whole(d_h_n), _whole(d_c_n)
        found = _core.step_gradient(name, wanted, x, h, c, weights, tape, d_h_n, d_c_n, sums)
    except _UNFIT:
        d_h_n, d_c_n = _dense(d_h_n), _dense(d_c_n)
        found = _core.step_gradient(name, wanted, x, h, c, weights, tape, d_h_n, d_c_n, sums)
    return found


def _widened(tensors: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
    """In float32, in memory that is used again."""
    narrow = [t for t in tensors if t is not None]
    wide = scratch([t.shape for t in narrow])
    torch._foreach_copy_(wide, narrow)
    made = iter(wide)
    return (None if t is None else next(made) for t in tensors)


def stream(
    cell: CellSpec,
    batch: int,
    layers: Sequence[Sequence[Tensor | None]],
    watched: Sequence[tuple[dict[str, Any], str, Tensor]],
) -> Any:
    """Layers that run one step a call, the weights packed now.

    Args:
        layers: the fields of ``reference.Weights`` of each.
        watched: the place of every parameter, as (dict, key, tensor), to see when it changes.
    """
    W_hh = layers[0][W_HH]
    assert W_hh is not None
    dtype = W_hh.dtype
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    weights = [
        tuple(None if w is None else _dense(w.detach().to(wide)) for w in layer) for layer in layers
    ]
    name = str(dtype).removeprefix("torch.")
    made_by = torch.is_grad_enabled, np.empty, np.dtype(name) if dtype in DTYPES else None
    return _core.Stream(cell.name, batch, name, weights, list(watched), *made_by)


def of_direction(weights: Flat, d: int) -> Flat:
    """The fields of ``reference.Weights`` of one direction, of those of all."""
    return of_directions(weights, slice(d, d + 1))


def of_directions(weights: Flat, directions: slice) -> Flat:
    """The same of several."""
    return weights[directions.start * FIELDS : directions.stop * FIELDS]


def _given(cell: CellSpec, inputs: Sequence[Any]) -> tuple[str, Any, Any, Any, Any, Any]:
    """What a layer is run on, as the core reads it."""
    x, batch_sizes, h0, c0, *weights = inputs
    by_direction = _by_direction([_dense(w) for w in weights])
    return cell.name, _tokens(x), batch_sizes, _dense(h0), _dense(c0), by_direction


def _by_direction(fields: list[Tensor | None]) -> tuple[tuple[Tensor | None, ...], ...]:
    flat = tuple(fields)
    return (flat,) if len(flat) == FIELDS else (flat[:FIELDS], flat[FIELDS:])


# What often comes in pieces: a state or the gradient of a sum, expanded; x, transposed. The core
# would tell, but to raise takes 20 us, as long as a short run.
def _rows(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else _copy(t)


def _whole(t: Tensor | None) -> Tensor | None:
    return t if t is None or t.is_contiguous() else _copy(t)


def _dense(t: Tensor | None) -> Tensor | None:
    """Copied only when not contiguous."""
    if t is None or (t.is_contiguous() and not _needs_copy(t)):
        return t
    return _copy(t)


def _unit_stride(t: Tensor) -> Tensor:
    """Copied only when the last axis has gaps. The other axes may have any stride."""
    return t if t.stride(-1) == 1 and not _needs_copy(t) else _copy(t)


def _tokens(t: Any) -> Any:
    """The same of each direction's, where they are apart."""
    return tuple(map(_unit_stride, t)) if isinstance(t, tuple) else _unit_stride(t)


def _needs_copy(t: Tensor) -> bool:
    """Whether the numbers are not those in memory: a lazy negative, lazy zeros, or what has leaked
    from a transform of torch.func."""
    return t.is_neg() or t._is_zerotensor() or _is_dead_wrapper(t)


def _copy(t: Tensor) -> Tensor:
    return t.detach().clone(memory_format=torch.contiguous_format)
