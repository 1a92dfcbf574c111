"""The eager route: the core under ``torch.autograd.Function``.

Two functions, a layer and its gradient. The core computes both; the gradient of a gradient and
forward mode are by hand (``second``). Derivatives beyond that (a third one, many tangents at once,
most that torch.func takes) come from the page. ``vmap`` is in ``batching``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from gatewise import batching, formulas, native, second
from gatewise.native import FIELDS, Flat, GradSink, Tensors
from gatewise.spec import CellSpec

#: Where the projection of the first direction stands in what is flat.
W_HR = 4 + native.W_HR

Gradients = tuple[Tensor | None, ...]
Rule = Callable[..., Gradients]


class Run(NamedTuple):
    """How a layer is run: see ``native``, also for the dtypes of the tape and of y, and for a tape
    that lies by groups."""

    cell: CellSpec
    reduced: bool
    tape: torch.dtype
    output: torch.dtype
    by_groups: bool
    sink: GradSink | None


def layer(run: Run, *flat: Tensor | None) -> Tensors:
    """A layer that every derivative may be taken of."""
    if _nested_forward_mode():
        return formulas.layer(run.cell, *flat)
    results: Tensors = apply(Layer, run, *flat)
    return results


def apply(function: type[Function], *args: Any) -> Any:
    """``function.apply``, without its 10 us of book-keeping for torch.func where that is idle."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(Function, function).apply(*args)  # type: ignore[misc]


def may_be_forward() -> bool:
    """Whether forward mode, or a transform of torch.func that may be it, is on."""
    level: int = forward_ad._current_level
    return level >= 0 or torch._C._are_functorch_transforms_active()


def _nested_forward_mode() -> bool:
    """Whether a tangent of a tangent is asked for: of a Function torch takes it to be zero."""
    return transforms("Jvp") > 1


def is_functionalized() -> bool:
    """Whether torch.func.functionalize is on, which knows operators and no Function."""
    return transforms("Functionalize") > 0


def transforms(kind: str) -> int:
    """How many transforms of torch.func that are on are of a kind, ``Jvp`` or ``Vmap`` say."""
    if not torch._C._are_functorch_transforms_active():
        return 0
    wanted = getattr(torch._C._functorch.TransformType, kind)
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == wanted for level in stack)


def new_vmap(derivative: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """``torch.autograd.grad(is_grads_batched=True)``, and ``functional.jacobian(vectorize=True)``
    in either mode, still come with the vmap before torch.func's, whose tensors know few operations:
    take its axis off, map over it anew, put it back."""
    is_old = torch._C._functorch.is_legacy_batchedtensor

    @wraps(derivative)
    def either(ctx: Any, *given: Tensor | None) -> Gradients:
        for d in given:  # half the time of any(), and a step pays for it
            if d is not None and is_old(d):
                break
        else:
            return derivative(ctx, *given)
        level = torch._C._vmapmode_increment_nesting() - 1
        torch._C._vmapmode_decrement_nesting()
        mapped = {
            k: torch._remove_batch_dim(d, level, 1, 0)
            for k, d in enumerate(given)
            if d is not None and is_old(d)
        }
        found: list[Tensor | None] = []

        def dense(*axis: Tensor) -> tuple[Tensor, ...]:
            each = dict(zip(mapped, axis, strict=True))
            found[:] = derivative(ctx, *(each.get(k, d) for k, d in enumerate(given)))
            return tuple(d for d in found if d is not None)

        grads = iter(torch.func.vmap(dense)(*mapped.values()))
        return tuple(
            None if d is None else torch._add_batch_dim(next(grads), 0, level) for d in found
        )

    return either


F = TypeVar("F", bound=type[Function])


def spare_hooks(function: F) -> F:
    """The Function, whose results' hooks are not called where the loss does not use a result.

    It computes several results at once, and of one that is not used autograd hands its hooks None.
    Where torch computes each by a node of its own, that node does not run.
    """
    node: Any = function._backward_cls
    usual = node._register_hook_dict

    def register(self: Any, result: Tensor) -> None:
        result._backward_hooks = Hooks()
        usual(self, result)

    node._register_hook_dict = register
    return function


class Hooks(OrderedDict[int, Callable[..., Any]]):
    """The hooks of a result, by the numbers of their handles."""

    def __setitem__(self, number: int, hook: Callable[..., Any]) -> None:
        @wraps(hook)
        def spared(grad: Tensor | None) -> Any:
            return None if grad is None else hook(grad)

        knows_none = getattr(hook, "__module__", "").startswith("torch.")  # it counts its calls
        super().__setitem__(number, hook if knows_none else spared)


class Watch:
    """Tells whether a tensor is changed in place, and keeps none of its numbers alive."""

    __slots__ = ("before", "counter")

    def __init__(self, t: Tensor) -> None:
        self.counter = t.detach()  # counts the changes of t, whatever else it holds
        self.counter.data = _NOTHING
        self.before = self.counter._version

    def changed(self) -> bool:
        return self.counter._version != self.before


_NOTHING = torch.empty(0, device="cpu")  # whatever the default is at the first use


def tangent(by_hand: Rule, page: Rule, *args: Tensor | None) -> Gradients:
    """What by_hand finds, with the derivatives of what the page finds; mapped, the page's."""
    if transforms("Vmap"):
        return page(*args)
    results: Gradients = apply(ByHand, by_hand, page, *args)
    return results


class ByHand(Function):
    """args -> by_hand(*args), whose derivatives are those of page(*args)."""

    @staticmethod
    def forward(by_hand: Rule, page: Rule, *args: Tensor | None) -> Gradients:
        return by_hand(*args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        _, ctx.page, *args = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*args)

    @staticmethod
    def backward(ctx: Any, *d: Tensor | None) -> Gradients:
        return None, None, *formulas.vjp(ctx.page, ctx.saved_tensors, d)


@spare_hooks
class Layer(Function):
    """x, batch_sizes, h0, c0, *weights -> y, h_n, c_n, tape."""

    @staticmethod
    def forward(run: Run, *inputs: Any) -> Tensors:
        cell, reduced, tape, output, by_groups, _ = run
        found = native.forward(cell, tape, reduced, *inputs, output=output, by_groups=by_groups)
        return native.tensors(found)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensors) -> None:
        ctx.run, *flat = inputs
        y, h_n, c_n, tape = output
        ctx.watch = None
        if torch._C._are_functorch_transforms_active():
            y = y.clone()  # what the caller has may be changed
        elif not y.is_inference():  # of which no change is counted, and no gradient taken
            ctx.watch, y = Watch(y), y.data  # the same numbers, which autograd does not watch
        remember_layer(ctx, flat, (y, h_n, c_n, tape))
        if may_be_forward():
            ctx.save_for_forward(*flat, y, tape)

    @staticmethod
    @new_vmap
    def backward(ctx: Any, *d_results: Tensor | None) -> Gradients:
        *flat, y, tape = ctx.saved_tensors
        cell, reduced, _, output, by_groups, sink = ctx.run
        if ctx.watch is not None and ctx.watch.changed():  # what it was
            y, *_ = native.forward(cell, None, reduced, *flat, output=output)
        run = cell, reduced, reached(ctx.needs_input_grad[1:], flat, *d_results), sink
        if torch.is_grad_enabled() or may_be_forward():
            tape = native.in_order(cell, flat, tape) if by_groups else tape
            return None, *gradient(*run, *flat, y, tape, *d_results)
        return None, *native.backward(*run, *flat, y, tape, *d_results, by_groups=by_groups)

    @staticmethod
    @new_vmap
    def jvp(ctx: Any, *tangents: Any) -> Gradients:
        cell, saved, n = ctx.run.cell, ctx.saved_tensors, len(tangents) - 1

        def page(*both: Tensor | None) -> Gradients:
            layer = partial(formulas.layer, cell)
            return formulas.jvp(layer, both[:n], both[n + 2 :])

        def by_hand(*both: Tensor | None) -> Gradients:
            return tuple(second.tangent(cell, both[: n + 2], both[n + 2 :]))

        y, h_n, c_n, tape = tangent(by_hand, page, *saved, *tangents[1:])
        return y, h_n, c_n if cell.has_cell_state else None, tape

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], run: Run, *flat: Any) -> Any:
        return batching.layer(
            lambda *unbatched: apply(Layer, run._replace(sink=None), *unbatched),
            info.batch_size,
            in_dims[1:],
            flat,
        )


def reached(
    wanted: Sequence[bool], flat: Flat, d_y: Tensor | None, d_h_n: Tensor | None, *_: Tensor | None
) -> Sequence[bool]:
    """The wanted gradients but those, None in torch, of projections that nobody read: of one step
    of which only c is used."""
    x, batch_sizes = flat[:2]
    assert x is not None
    if d_y is not None or d_h_n is not None or flat[W_HR] is None:
        return wanted
    if len(x if batch_sizes is None else batch_sizes) > 1:
        return wanted
    return [want and k not in range(W_HR, len(flat), FIELDS) for k, want in enumerate(wanted)]


def gradient(
    cell: CellSpec,
    reduced: bool,
    wanted: Sequence[bool],
    sink: GradSink | None,
    *args: Tensor | None,
) -> Gradients:
    """A layer's gradients, by its inputs, that every derivative may be taken of."""
    x, *inputs, y, tape, d_y, d_h_n, d_c_n, d_tape = args
    W_hh = inputs[3 + native.W_HH]
    assert x is not None
    assert y is not None
    assert tape is not None
    assert W_hh is not None
    # The page computes in one dtype; autograd gives the gradient of x in its own.
    x, y = x.to(W_hh.dtype), y.to(W_hh.dtype)
    d_y = None if d_y is None else d_y.to(W_hh.dtype)
    # Else a derivative of this would go back to the layer a second time, with zeros.
    args = x, *inputs, y.detach(), tape.detach(), d_y, d_h_n, d_c_n, d_tape
    if _nested_forward_mode():
        found = iter(formulas.gradient(cell, wanted, *args))
    else:
        found = iter(apply(LayerGradient, cell, reduced, wanted, sink, *args))
    return tuple(next(found) if want else None for want in wanted)


class LayerGradient(Function):
    """inputs, y, tape, d_y, d_h_n, d_c_n, d_tape -> the wanted gradients."""

    @staticmethod
    def forward(
        cell: CellSpec, reduced: bool, wanted: Any, sink: GradSink | None, *args: Any
    ) -> tuple[Any, ...]:
        found = native.backward(cell, reduced, wanted, sink, *args)
        return tuple(d for d in found if d is not None)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        cell, _, wanted, _, *args = inputs
        remember_gradient(ctx, cell, wanted, args)
        if may_be_forward():
            ctx.save_for_forward(*args)

    @staticmethod
    @new_vmap
    def backward(ctx: Any, *d_grads: Tensor | None) -> Gradients:
        if torch.is_grad_enabled() or may_be_forward():
            return *[None] * 4, *second_gradient(ctx, d_grads)
        args, needed = ctx.saved_tensors, ctx.needs_input_grad[4:]
        return *[None] * 4, *second.gradient(ctx.cell, ctx.wanted, needed, args, d_grads)

    @staticmethod
    @new_vmap
    def jvp(ctx: Any, *tangents: Any) -> Gradients:
        cell, wanted, saved, n = ctx.cell, ctx.wanted, ctx.saved_tensors, len(tangents) - 4

        def page(*both: Tensor | None) -> Gradients:
            return formulas.jvp(_gradient(ctx), both[:n], both[n:])

        def by_hand(*both: Tensor | None) -> Gradients:
            return tuple(second.tangent_of_gradient(cell, wanted, both[:n], both[n:]))

        return tangent(by_hand, page, *saved, *tangents[4:])

    @staticmethod
    def vmap(
        info: Any, in_dims: Any, cell: Any, reduced: Any, wanted: Any, _: Any, *args: Any
    ) -> Any:
        return batching.gradient(
            lambda *unbatched: apply(LayerGradient, cell, reduced, wanted, None, *unbatched),
            info.batch_size,
            in_dims[4:],
            any(wanted[4:]),
            args,
        )


def remember_layer(ctx: Any, flat: Flat, output: Tensors) -> None:
    """Keep the tensors that the gradient of a layer needs."""
    y, _, c_n, tape = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*flat, y, tape)
    ctx.mark_non_differentiable(*(t for t in (c_n, tape) if not native.is_there(t)))


def remember_gradient(ctx: Any, cell: CellSpec, wanted: Sequence[bool], args: Flat) -> None:
    """Keep what the gradient of a gradient needs."""
    ctx.cell, ctx.wanted = cell, wanted
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*args)


def second_gradient(ctx: Any, d_grads: Flat) -> list[Tensor | None]:
    """The gradient of a layer's gradient."""
    found = formulas.vjp(_gradient(ctx), ctx.saved_tensors, d_grads)
    found[-6:-4] = None, None  # y, tape: to this, they are nothing but what the inputs make of them
    return found


def _gradient(ctx: Any) -> formulas.Function:
    return lambda *args: formulas.gradient(ctx.cell, ctx.wanted, *args)
