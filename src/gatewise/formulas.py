"""A layer by the page's formulas, with its derivatives of any order.

The kernels give a layer's value, its gradient and, by way of ``second``, the tangents of both and
the gradient of the latter. What they do not give is taken here from the page: third derivatives,
most that torch.func takes, many tangents at once, and every device and dtype that the kernels lack.
All functions are flat, as in ``native``: x, batch_sizes, h0, c0, *weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gatewise import listening, reference
from gatewise.native import FIELDS, Flat, GradSink, Tensors
from gatewise.reference import Weights
from gatewise.spec import CellSpec

Function = Callable[..., Sequence[Tensor]]


def layer(
    cell: CellSpec,
    *flat: Tensor | None,
    taps: Sequence[Callable[..., Tensor]] | None = None,
    sink: GradSink | None = None,
) -> Tensors:
    """What ``native.forward`` computes, tape included.

    Args:
        taps: one per direction; sees each value of the page by name, and may replace it.
        sink: gets the total gradients, as from ``native.backward``.
    """
    x, batch_sizes, h0, c0, *weights = flat
    assert x is not None
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    per_direction = [Weights._make(weights[k : k + FIELDS]) for k in range(0, len(weights), FIELDS)]
    rows, P = per_direction[0].W_hh.shape
    D, B = len(per_direction), x.shape[1] if sizes is None else sizes[0]
    h0 = x.new_zeros(D, B, P) if h0 is None else h0
    c0 = x.new_zeros(D, B, rows // len(cell.gates)) if c0 is None else c0
    taps = [reference.untouched] * D if taps is None else taps
    if sink is not None:
        taps = listening.taps(cell, taps, sink, x, batch_sizes, h0, c0, *weights)
    with torch.autocast(x.device.type, enabled=False):
        y, h_n, c_n, runs = reference.layer(cell, x, h0, c0, per_direction, sizes, taps)
        tape = torch.stack(
            [torch.stack([getattr(run.steps, slot) for slot in cell.slots], dim=-2) for run in runs]
        )
    return y, h_n, c_n if cell.has_cell_state else x.new_empty(0), tape


def step(
    cell: CellSpec, x: Tensor, h: Tensor | None, c: Tensor | None, w: Weights
) -> tuple[Tensor, Tensor]:
    """One step: x (B, I), h and c (B, H) or None for zeros, to the next h and c."""
    zeros = x.new_zeros(x.shape[0], w.W_hh.shape[1])
    now = reference.step(cell, x, zeros if h is None else h, zeros if c is None else c, w)
    return now.h, now.c


def gradient(cell: CellSpec, wanted: Sequence[bool], *args: Tensor | None) -> list[Tensor]:
    """What ``native.backward`` computes, without what is not wanted.

    Args:
        args: as for ``native.backward``: the inputs, then y, tape, d_y, d_h_n, d_c_n, d_tape.
    """
    *inputs, _, _, d_y, d_h_n, d_c_n, d_tape = args
    found = vjp(lambda *flat: layer(cell, *flat), inputs, (d_y, d_h_n, d_c_n, d_tape))
    return [d for d, want in zip(found, wanted, strict=True) if want and d is not None]


def vjp(f: Function, args: Flat, cotangents: Flat) -> list[Tensor | None]:
    """The gradient of f at args along cotangents (None is zero); None where args has no number."""
    at, free = _free(args)
    results, pull = _pull(f, args, at, free)
    found: list[Tensor | None] = [None] * len(args)
    for k, d in zip(at, pull(_or_zeros(cotangents, results)), strict=True):
        found[k] = d
    return found


def jvp(f: Function, args: Flat, tangents: Flat) -> tuple[Tensor, ...]:
    """The tangent of f at args along tangents (None is zero).

    J v is the gradient of u -> J' u along v. Two reverse passes, because forward mode, in whose
    rule this is called, does not nest.
    """
    at, free = _free(args)
    results, pull = _pull(f, args, at, free)
    _, push = _pull(lambda *u: pull(u), results, range(len(results)), _or_zeros((), results))
    return push(_or_zeros([tangents[k] for k in at], free))


def _pull(
    f: Function, args: Flat, at: Sequence[int], free: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]]]:
    """f at args, with ``free`` at the places ``at``, and its gradient along cotangents."""

    def of_free(*free: Tensor) -> tuple[Tensor, ...]:
        full = list(args)
        for k, t in zip(at, free, strict=True):
            full[k] = t
        return tuple(f(*full))

    return torch.func.vjp(of_free, *free)  # type: ignore[return-value]


def _free(args: Flat) -> tuple[list[int], list[Tensor]]:
    """Where the arguments stand that one can differentiate in, and these."""
    found = {
        k: t
        for k, t in enumerate(args)
        if t is not None and (t.is_floating_point() or t.is_complex())
    }
    return list(found), list(found.values())


def _or_zeros(given: Flat, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Zeros for each None of given, and for what it lacks."""
    padded = (*given, *[None] * (len(like) - len(given)))
    return tuple(torch.zeros_like(t) if d is None else d for d, t in zip(padded, like, strict=True))
