"""vmap: one more axis over a layer, for both routes.

Where only the data carries the axis it is folded into the batch, and the core runs once. Where the
weights carry it (an ensemble), or their gradients will (per-sample gradients), the core runs once
for each of its elements.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gatewise.native import Flat, is_there

Dims = Sequence[int | None]
Batched = tuple[tuple[Tensor, ...], tuple[int | None, ...]]


def layer(run: Callable[..., Sequence[Tensor]], size: int, dims: Dims, flat: Flat) -> Batched:
    """The rule of a layer.

    Args:
        run: the layer without the axis, itself open to further transforms.
        size: V, the length of the axis.
        dims: where each of flat has the axis, None where it has none.
        flat: x, batch_sizes, h0, c0, *weights.
    """
    if flat[1] is not None or _any_axis(dims[4:]):
        return _each(run, size, dims, flat)
    x, h0, c0 = (_fold(flat[k], dims[k], size, 1) for k in (0, 2, 3))
    y, h_n, c_n, tape = run(x, None, h0, c0, *flat[4:])
    return (
        (_unfold(y, 1, size), _unfold(h_n, 1, size), _unfold(c_n, 1, size), _unfold(tape, 2, size)),
        (1, 1, 1 if is_there(c_n) else None, 2 if is_there(tape) else None),
    )


def gradient(
    run: Callable[..., Sequence[Tensor]], size: int, dims: Dims, of_weights: bool, args: Flat
) -> Batched:
    """The rule of a layer's gradient.

    Args:
        args: x, batch_sizes, h0, c0, *weights, y, tape, d_y, d_h_n, d_c_n, d_tape.
        of_weights: whether the gradient of any weight is wanted.
    """
    *_, tape_dim, _, _, _, _ = dims
    if of_weights or tape_dim is None or args[1] is not None or _any_axis(dims[4:-6]):
        return _each(run, size, dims, args)
    weights, first = args[4:-6], len(args) - 6
    x, h0, c0, y, d_y, d_h_n, d_c_n = (
        _fold(args[k], dims[k], size, 1) for k in (0, 2, 3, first, first + 2, first + 3, first + 4)
    )
    tape, d_tape = (_fold(args[k], dims[k], size, 2) for k in (first + 1, first + 5))
    found = run(x, None, h0, c0, *weights, y, tape, d_y, d_h_n, d_c_n, d_tape)
    return tuple(_unfold(d, 1, size) for d in found), (1,) * len(found)


def _each(run: Callable[..., Sequence[Tensor]], size: int, dims: Dims, args: Flat) -> Batched:
    """One run for each element of the axis."""
    runs = [
        run(*(_element(t, dim, v) for t, dim in zip(args, dims, strict=True))) for v in range(size)
    ]
    results = tuple(torch.stack(list(result)) for result in zip(*runs, strict=True))
    return results, (0,) * len(results)


def _any_axis(dims: Dims) -> bool:
    return any(dim is not None for dim in dims)


def _element(t: Tensor | None, dim: int | None, v: int) -> Tensor | None:
    return t if t is None or dim is None else t.select(dim, v)


def _fold(t: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    """Fold the axis V, wherever it is, into the axis ``batch``, which becomes V*B long."""
    if t is None or not is_there(t):
        return t
    if dim is None:
        t = t.unsqueeze(batch).expand(*t.shape[:batch], size, *t.shape[batch:])
    else:
        t = t.movedim(dim, batch)
    return t.flatten(batch, batch + 1)


def _unfold(t: Tensor, batch: int, size: int) -> Tensor:
    return t.unflatten(batch, (size, -1)) if is_there(t) else t
