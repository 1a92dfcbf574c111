"""The compiled and exported route: the core as operators of ``torch.library``.

``torch.ops.gatewise.layer`` and ``torch.ops.gatewise.layer_gradient``, each with a fake kernel that
keeps T and B symbolic, a derivative and a vmap rule. An operator takes no None in a list: weights
come as the present ones only, and ``layout`` names them ("W_ih W_hh b_ih b_hh").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from gatewise import batching, formulas, native
from gatewise.native import FIELDS, Flat, Results
from gatewise.reference import Weights
from gatewise.spec import CELLS, CellSpec


def run(cell: CellSpec, keep_tape: bool, *flat: Tensor | None) -> Results:
    """A layer as one node of a graph."""
    x, batch_sizes, h0, c0, *weights = flat
    assert x is not None
    if batch_sizes is not None and h0 is None:  # the batch is a length of h0 to the fake kernel
        D, B, _, P = native.sizes(cell, x, batch_sizes, h0, weights)
        h0 = x.new_zeros(D, B, P)
    present, layout = _pack(weights)
    results: Results = layer(x, batch_sizes, h0, c0, present, cell.name, layout, keep_tape)
    return results


@torch.library.custom_op("gatewise::layer", mutates_args=())
def layer(
    x: Tensor,
    batch_sizes: Optional[Tensor],
    h0: Optional[Tensor],
    c0: Optional[Tensor],
    weights: list[Tensor],
    cell: str,
    layout: str,
    keep_tape: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return native.forward(
        CELLS[cell], keep_tape, x, batch_sizes, h0, c0, *_unpack(weights, layout)
    )


@torch.library.custom_op("gatewise::layer_gradient", mutates_args=())
def layer_gradient(
    x: Tensor,
    batch_sizes: Optional[Tensor],
    h0: Optional[Tensor],
    c0: Optional[Tensor],
    weights: list[Tensor],
    y: Tensor,
    tape: Tensor,
    d_y: Optional[Tensor],
    d_h_n: Optional[Tensor],
    d_c_n: Optional[Tensor],
    d_tape: Optional[Tensor],
    cell: str,
    layout: str,
    wanted: list[bool],
) -> list[Tensor]:
    inputs = (x, batch_sizes, h0, c0, *_unpack(weights, layout))
    found = native.backward(
        CELLS[cell], _spread(wanted, layout), None, *inputs, y, tape, d_y, d_h_n, d_c_n, d_tape
    )
    return [d for d in found if d is not None]


@layer.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    cell: str,
    layout: str,
    keep_tape: bool,
) -> Results:
    return native.empty_results(
        CELLS[cell], keep_tape, x, batch_sizes, h0, _unpack(weights, layout)
    )


@layer_gradient.register_fake
def _(
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: list[Tensor],
    *rest: Any,
) -> list[Tensor]:
    *_, wanted = rest
    inputs = (x, h0, c0, *weights)
    return [
        x.new_empty(t.shape)
        for t, want in zip(inputs, wanted, strict=True)
        if want and t is not None
    ]


def _layer_context(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    x, batch_sizes, h0, c0, weights, ctx.cell, ctx.layout, _ = inputs
    y, _, c_n, tape = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, batch_sizes, h0, c0, *weights, y, tape)
    ctx.mark_non_differentiable(*(t for t in (c_n, tape) if t.dim() == 1))


def _layer_backward(ctx: Any, *d_results: Tensor | None) -> tuple[Any, ...]:
    x, batch_sizes, h0, c0, *weights, y, tape = ctx.saved_tensors
    want_x, _, want_h0, want_c0, want_weights, *_ = ctx.needs_input_grad
    wanted = [want_x, want_h0, want_c0, *want_weights]
    found = iter(
        layer_gradient(
            x, batch_sizes, h0, c0, weights, y, tape, *d_results, ctx.cell, ctx.layout, wanted
        )
    )
    d_x, d_h0, d_c0, *d_weights = (next(found) if want else None for want in wanted)
    return d_x, None, d_h0, d_c0, d_weights, None, None, None


def _gradient_context(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *head, weights, y, tape, d_y, d_h_n, d_c_n, d_tape, ctx.cell, ctx.layout, ctx.wanted = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*head, *weights, y, tape, d_y, d_h_n, d_c_n, d_tape)


def _gradient_backward(ctx: Any, d_grads: list[Tensor | None]) -> tuple[Any, ...]:
    cell, layout = CELLS[ctx.cell], ctx.layout
    x, batch_sizes, h0, c0, *weights, y, tape, d_y, d_h_n, d_c_n, d_tape = ctx.saved_tensors
    inputs = (x, batch_sizes, h0, c0, *_unpack(weights, layout))
    found = formulas.vjp(
        lambda *args: formulas.gradient(cell, _spread(ctx.wanted, layout), *args),
        (*inputs, y, tape, d_y, d_h_n, d_c_n, d_tape),
        d_grads,
    )
    d_x, _, d_h0, d_c0, *d_weights = found[:-6]
    d_weights = [d for d, w in zip(d_weights, inputs[4:], strict=True) if w is not None]
    return d_x, None, d_h0, d_c0, d_weights, None, None, *found[-4:], None, None, None


def _layer_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    *head, weights, cell, layout, keep_tape = args

    def unbatched(*flat: Any) -> Results:
        results: Results = layer(*flat[:4], list(flat[4:]), cell, layout, keep_tape)
        return results

    dims = (*in_dims[:4], *(in_dims[4] or [None] * len(weights)))
    return batching.layer(unbatched, info.batch_size, dims, (*head, *weights))


def _gradient_vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    head, weights, tail = args[:4], args[4], args[5:11]
    W = 4 + len(weights)

    def unbatched(*flat: Any) -> Any:
        return layer_gradient(*flat[:4], list(flat[4:W]), *flat[W:], *args[11:])

    dims = (*in_dims[:4], *(in_dims[4] or [None] * len(weights)), *in_dims[5:11])
    found, out_dims = batching.gradient(
        unbatched, info.batch_size, dims, any(args[-1][3:]), (*head, *weights, *tail)
    )
    return list(found), list(out_dims)


layer.register_autograd(_layer_backward, setup_context=_layer_context)
layer_gradient.register_autograd(_gradient_backward, setup_context=_gradient_context)
layer.register_vmap(_layer_vmap)
layer_gradient.register_vmap(_gradient_vmap)


def _pack(weights: Flat) -> tuple[list[Tensor], str]:
    """The weights that are there, and their names in one direction."""
    names = [name for name, w in zip(Weights._fields, weights[:FIELDS], strict=True) if w is not None]
    return [w for w in weights if w is not None], " ".join(names)


def _unpack(weights: Sequence[Tensor], layout: str) -> list[Tensor | None]:
    return _fields(weights, layout, None)


def _spread(wanted: Sequence[bool], layout: str) -> list[bool]:
    """(x, h0, c0, *present weights) -> (x, batch_sizes, h0, c0, *weights)."""
    x, h0, c0, *weights = wanted
    return [x, False, h0, c0, *_fields(weights, layout, False)]


def _fields(present: Sequence[Any], layout: str, absent: Any) -> list[Any]:
    """Six fields for each direction, ``absent`` where the layout has none."""
    names = layout.split()
    values = iter(present)
    return [
        next(values) if name in names else absent
        for _ in range(len(present) // len(names))
        for name in Weights._fields
    ]
