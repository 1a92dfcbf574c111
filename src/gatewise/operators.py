"""The compiled and exported route: a layer and its gradient as operators of ``torch.library``.

Each is one node of a graph, ``torch.ops.gatewise.layer`` and ``layer_gradient``, with a fake
kernel that keeps T and B symbolic. Derivatives are attached by hand: what ``register_autograd`` of
torch.library makes refuses torch.func, and takes a forward-mode tangent to be zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import Function, forward_ad
from torch.utils.flop_counter import register_flop_formula

from gatewise import autograd, batching, formulas, native
from gatewise.autograd import Gradients
from gatewise.native import FIELDS, W_HH, W_HR, W_IH, Tensors
from gatewise.spec import CELLS, CellSpec

_INPUTS = "Tensor x, Tensor? batch_sizes, Tensor? h0, Tensor? c0, Tensor?[] weights"
_COTANGENTS = "Tensor? d_y, Tensor? d_h_n, Tensor? d_c_n, Tensor? d_tape"
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.flexible_layout)  # any outer strides will do

torch.library.define(
    "gatewise::layer",
    f"({_INPUTS}, str cell, bool reduced, bool keep_tape)"
    " -> (Tensor y, Tensor h_n, Tensor c_n, Tensor tape)",
    tags=_TAGS,
)
torch.library.define(
    "gatewise::layer_gradient",
    f"({_INPUTS}, Tensor y, Tensor tape, {_COTANGENTS}, str cell, bool reduced, bool[] wanted)"
    " -> Tensor[]",
    tags=_TAGS,
)


def layer(cell: CellSpec, reduced: bool, keep_tape: bool, *flat: Tensor | None) -> Tensors:
    """A layer as one node of a graph."""
    x, batch_sizes, h0, c0, *weights = flat
    assert x is not None
    if batch_sizes is not None and h0 is None:  # to the fake kernel, B is a length of h0
        D, B, _, P = native.sizes(cell, x, batch_sizes, h0, weights)
        h0 = x.new_zeros(D, B, P)
    results: Tensors = torch.ops.gatewise.layer(
        x, batch_sizes, h0, c0, weights, cell.name, reduced, keep_tape
    )
    return results


def layer_gradient(
    cell: CellSpec, reduced: bool, wanted: Sequence[bool], *args: Tensor | None
) -> list[Tensor]:
    """The wanted gradients as one node of a graph; args as for ``native.backward``."""
    first = len(wanted)
    found: list[Tensor] = torch.ops.gatewise.layer_gradient(
        *args[:4], args[4:first], *args[first:], cell.name, reduced, wanted
    )
    return found


# --- what runs, and what shapes it has ------------------------------------------------------------


@torch.library.impl("gatewise::layer", "CPU")
def _(
    x: Tensor,
    batch_sizes: Any,
    h0: Any,
    c0: Any,
    weights: Any,
    cell: str,
    reduced: bool,
    keep: bool,
) -> Tensors:
    tape = x.dtype if keep else None
    reduced = reduced and native.may_reduce(x, batch_sizes)  # asked where it runs
    found = native.forward(CELLS[cell], tape, reduced, x, batch_sizes, h0, c0, *weights)
    return native.tensors(found)


@torch.library.impl("gatewise::layer_gradient", "CPU")
def _(x: Tensor, batch_sizes: Any, h0: Any, c0: Any, weights: Any, *rest: Any) -> list[Tensor]:
    *args, cell, reduced, wanted = rest
    flat = (x, batch_sizes, h0, c0, *weights, *args)
    reduced = reduced and native.may_reduce(x, batch_sizes)
    found = native.backward(CELLS[cell], reduced, wanted, None, *flat)
    return [d for d in found if d is not None]


@torch.library.register_fake("gatewise::layer")  # type: ignore[untyped-decorator]
def _(
    x: Tensor, batch_sizes: Any, h0: Any, c0: Any, weights: Any, cell: str, _: bool, keep: bool
) -> Tensors:
    tape = x.dtype if keep else None
    return native.tensors(native.empty_results(CELLS[cell], tape, x, batch_sizes, h0, weights))


@torch.library.register_fake("gatewise::layer_gradient")  # type: ignore[untyped-decorator]
def _(x: Tensor, batch_sizes: Any, h0: Any, c0: Any, weights: Any, *rest: Any) -> list[Tensor]:
    *_, wanted = rest
    inputs = (x, batch_sizes, h0, c0, *weights)
    return [x.new_empty(t.shape) for t, want in zip(inputs, wanted, strict=True) if want]


# --- what FlopCounterMode counts: products, as for torch's own operations ------------------------


@register_flop_formula(torch.ops.gatewise.layer)
def _(x: torch.Size, *args: Any, **_: Any) -> int:
    weights = args[3]
    return _flops(prod(x[:-1]), weights, [True] * len(weights))


@register_flop_formula(torch.ops.gatewise.layer_gradient)
def _(x: torch.Size, *args: Any, **_: Any) -> int:
    h0, weights, wanted = args[1], args[3], args[-1]
    N, B = prod(x[:-1]), (h0 or x)[1]
    through = [wanted[0] or k % FIELDS != W_IH for k in range(len(weights))]
    past_h0 = [not wanted[2] and k % FIELDS == W_HH for k in range(len(weights))]
    back = _flops(N, weights, through) - _flops(B, weights, past_h0)  # the first step ends there
    return back + _flops(N, weights, wanted[4:])


def _flops(rows: int, weights: Sequence[torch.Size | None], which: Sequence[bool]) -> int:
    """Of so many rows by those of the matrices; a multiply-add is two."""
    sizes = [
        w.numel()
        for k, (w, used) in enumerate(zip(weights, which, strict=True))
        if w is not None and used and k % FIELDS in (W_IH, W_HH, W_HR)
    ]
    return 2 * rows * sum(sizes)


# --- derivatives ----------------------------------------------------------------------------------


@contextmanager
def _next_level() -> Iterator[None]:
    """Below this level's autograd, which apply has put off for further levels too: on with it."""
    with (
        torch._C._AutoDispatchBelowAutograd(),
        torch.enable_grad(),
        forward_ad._set_fwd_grad_enabled(True),
    ):
        yield


class _SingleLevel(Function):
    """A Function for use inside an operator, where torch.func has already chosen the level."""

    @classmethod
    def apply(cls, *args: Any) -> Any:
        with enable_single_level_autograd_function():
            return super(Function, cls).apply(*args)  # type: ignore[misc]


class _Layer(_SingleLevel):
    @staticmethod
    def forward(cell: CellSpec, reduced: bool, keep_tape: bool, *flat: Tensor | None) -> Tensors:
        with _next_level():
            return layer(cell, reduced, keep_tape, *flat)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.cell, ctx.reduced, _, *flat = inputs
        y, h_n, c_n, tape = output
        y = y.clone()  # what the caller has may be changed
        autograd.remember_layer(ctx, flat, (y, h_n, c_n, tape))

    @staticmethod
    @autograd.new_vmap
    def backward(ctx: Any, *d_results: Tensor | None) -> Gradients:
        wanted = ctx.needs_input_grad[3:]
        args = (*ctx.saved_tensors, *d_results)
        found = iter(layer_gradient(ctx.cell, ctx.reduced, wanted, *args))
        return *[None] * 3, *(next(found) if want else None for want in wanted)


class _LayerGradient(_SingleLevel):
    @staticmethod
    def forward(
        cell: CellSpec, reduced: bool, wanted: Sequence[bool], *args: Tensor | None
    ) -> tuple[Tensor, ...]:
        with _next_level():
            return tuple(layer_gradient(cell, reduced, wanted, *args))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        cell, _, wanted, *args = inputs
        autograd.remember_gradient(ctx, cell, wanted, args)

    @staticmethod
    @autograd.new_vmap
    def backward(ctx: Any, *d_grads: Tensor | None) -> Gradients:
        return *[None] * 3, *autograd.second_gradient(ctx, d_grads)


@torch.library.impl("gatewise::layer", "Autograd")
def _(
    x: Tensor,
    batch_sizes: Any,
    h0: Any,
    c0: Any,
    weights: Any,
    cell: str,
    reduced: bool,
    keep: bool,
) -> Tensors:
    flat = (x, batch_sizes, h0, c0, *weights)
    if _has_tangent(flat):
        return formulas.layer(CELLS[cell], *flat)
    results: Tensors = _Layer.apply(CELLS[cell], reduced, keep, *flat)
    return results


@torch.library.impl("gatewise::layer_gradient", "Autograd")
def _(x: Tensor, batch_sizes: Any, h0: Any, c0: Any, weights: Any, *rest: Any) -> list[Tensor]:
    *args, cell, reduced, wanted = rest
    flat = (x, batch_sizes, h0, c0, *weights, *args)
    if _has_tangent(flat):
        if torch._C._are_functorch_transforms_active():
            raise NotImplementedError(
                "torch.func.jvp over the gradient of a compiled layer: take grad of jvp or grad of "
                "grad, or call it outside torch.compile"
            )
        return formulas.gradient(CELLS[cell], wanted, *flat)
    return list(_LayerGradient.apply(CELLS[cell], reduced, wanted, *flat))


def _has_tangent(flat: Sequence[Tensor | None]) -> bool:
    """Forward mode is on its way (asked of the tensors: a compiled jvp enters no level)."""
    return any(t is not None and torch._VF._unpack_dual(t, level=0)[1] is not None for t in flat)


# --- vmap -----------------------------------------------------------------------------------------


@torch.library.register_vmap("gatewise::layer")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: Any, *args: Any) -> Any:
    *head, weights, cell, reduced, keep_tape = args
    return batching.layer(
        lambda *flat: layer(CELLS[cell], reduced, keep_tape, *flat),
        info.batch_size,
        _dims(in_dims, len(weights), 5),
        (*head, *weights),
    )


@torch.library.register_vmap("gatewise::layer_gradient")  # type: ignore[untyped-decorator]
def _(info: Any, in_dims: Any, *args: Any) -> Any:
    *tensors, cell, reduced, wanted = args
    head, weights, rest = tensors[:4], tensors[4], tensors[5:]
    found, out_dims = batching.gradient(
        lambda *flat: layer_gradient(CELLS[cell], reduced, wanted, *flat),
        info.batch_size,
        _dims(in_dims, len(weights), len(tensors)),
        any(wanted[4:]),
        (*head, *weights, *rest),
    )
    return list(found), list(out_dims)


def _dims(in_dims: Any, weights: int, end: int) -> tuple[int | None, ...]:
    """The axes of the flat inputs."""
    return (*in_dims[:4], *(in_dims[4] or [None] * weights), *in_dims[5:end])
