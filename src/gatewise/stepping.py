"""The eager route of one step: a cell in a loop, under ``torch.autograd.Function``.

The weights of all steps are one node of the graph, ``Joint``. In a backward pass each step adds its
part of their gradients to sums that belong to the pass, in the core; when all have, the node hands
the sums on. Left to autograd, every step would make a gradient of every weight and autograd would
add it to the others, which costs more than the step. And one product of many tokens takes a part of
the time of many products of few, so the core keeps tokens until there are many.

Nothing is kept of what the weights hold: every step reads them. What is kept is which tensors they
are, and that is compared at every step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from gatewise import autograd, native
from gatewise.autograd import Gradients, apply, new_vmap
from gatewise.spec import CellSpec

_at_end_of_pass = torch.autograd.Variable._execution_engine.queue_callback

_CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace "
    "operation: a weight of a cell, between its step and the gradient of that step"
)


class Joint:
    """The weights of steps as one node of the graph, until anything about them changes."""

    __slots__ = ("node", "stand_in", "state", "sums", "weights")

    def __init__(self, weights: tuple[Tensor | None, ...]) -> None:
        self.weights = weights
        self.state = native.state(weights)
        self.sums: dict[int, native.TokenSums] = {}
        self.stand_in: Any = None
        if any(t is not None and t.requires_grad for t in weights):
            self.stand_in = apply(StandIn, self.sums, *weights[:4])
            self.node: Any = self.stand_in.grad_fn
            # Of the nodes that are ready, autograd takes first what was made last. This one is as
            # old as its first step, so what waits for the weights' gradients at the end of a later
            # pass, a hook of the module or FSDP, would come before it: it ranks with those that
            # put a gradient into a leaf.
            self.node._set_sequence_nr(2**64 - 1)

    def refuse_changed(self, read: tuple[bool, ...]) -> None:
        """torch's own words for a weight that changed between a step and its gradient.

        Args:
            read: of the first weights, whether the gradient needs what they hold.
        """
        if native.changed(self.weights, self.state):  # mostly not
            now = native.state(self.weights)[1::2]
            if any(r and n != w for r, n, w in zip(read, now, self.state[1::2], strict=False)):
                raise RuntimeError(_CHANGED)

    def sums_of_pass(self) -> native.TokenSums | None:
        """Those of the backward pass that runs, or None if it has no use for them."""
        this_pass = torch._C._current_graph_task_id()
        found = self.sums.get(this_pass)
        if found is not None or self.stand_in is None:
            return found
        if not torch._C._will_engine_execute_node(self.node):
            return None
        found = self.sums[this_pass] = native.token_sums(self.weights)
        _at_end_of_pass(EndOfPass(self.sums, this_pass))
        return found


class EndOfPass:
    """Held by the engine for as long as a pass runs, and let go of if the pass ends in an error,
    too: no StandIn takes the sums of that one."""

    __slots__ = ("sums", "this_pass")

    def __init__(self, sums: dict[int, native.TokenSums], this_pass: int) -> None:
        self.sums, self.this_pass = sums, this_pass

    def __call__(self) -> None:
        """Nothing is left to do at the end of a pass without an error."""

    def __del__(self) -> None:
        self.sums.pop(self.this_pass, None)


class Memo:
    """Where a module keeps the Joint of its last step."""

    __slots__ = ("joint",)

    def __init__(self) -> None:
        self.joint: Joint | None = None

    def of(self, weights: tuple[Tensor | None, ...]) -> Joint:
        """The last step's, if these are its weights, as they were; else a new one."""
        joint = self.joint
        if joint is None or not native.are(weights, joint.weights, joint.state):
            joint = Joint(weights)
            if all(t is None or t.is_leaf for t in weights):  # others hold a graph of their own
                self.joint = joint
        return joint

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of a module, or one that is read from a file, begins with an empty one."""
        return Memo, ()


def step(
    cell: CellSpec,
    joint: Joint,
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    reduced: bool,
) -> tuple[Tensor, Tensor | None]:
    """One step that a reverse-mode derivative may be taken of, but no transform of torch.func: h
    and c.

    Args:
        reduced: products round what they multiply to bfloat16, forward and backward.

    Raises:
        ValueError, TypeError: as ``native.step``.
    """
    results: tuple[Tensor, Tensor | None] = _apply_step(
        cell, joint, reduced, x, h, c, joint.stand_in
    )
    return results


class StandIn(Function):
    """W_ih, W_hh, b_ih, b_hh -> one tensor for all that want a gradient: its size, no numbers."""

    @staticmethod
    def forward(ctx: Any, sums: dict[int, native.TokenSums], *weights: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.sums = sums
        wanted = [t for t in weights if t is not None and t.requires_grad]
        ctx.shapes, ctx.dtype = [t.shape for t in wanted], wanted[0].dtype
        return wanted[0].new_zeros(()).expand(sum(shape.numel() for shape in ctx.shapes))

    @staticmethod
    @new_vmap
    def backward(ctx: Any, d: Tensor | None) -> Gradients:
        sums = ctx.sums.pop(torch._C._current_graph_task_id(), None)
        wanted = ctx.needs_input_grad[1:]
        grads: list[Tensor | None] = [None] * 4
        if sums is not None:
            both = wanted[2] and wanted[3]  # one sum for two
            d_W_ih, d_W_hh, d_b = (None if t is None else t.to(ctx.dtype) for t in sums.finish())
            grads = [d_W_ih, d_W_hh, d_b, d_b.clone() if both and d_b is not None else d_b]
        if d is not None:
            parts = iter(d.split([shape.numel() for shape in ctx.shapes]))
            shapes = iter(ctx.shapes)
            for k in range(4):
                if wanted[k]:
                    part, so_far = next(parts).view(next(shapes)), grads[k]
                    grads[k] = part if so_far is None else so_far + part
        return None, *(t if want else None for t, want in zip(grads, wanted, strict=True))


@autograd.spare_hooks
class Step(Function):
    """x, h, c and the weights' stand-in -> h, c: a layer of one step, without its axes T and D."""

    @staticmethod
    def forward(
        ctx: Any,
        cell: CellSpec,
        joint: Joint,
        reduced: bool,
        x: Tensor,
        h: Any,
        c: Any,
        _: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        h_n, c_n, tape = native.step(cell, True, x, h, c, joint.weights, reduced)
        ctx.cell, ctx.joint, ctx.reduced = cell, joint, reduced
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, h, c, tape)
        return h_n, c_n

    @staticmethod
    @new_vmap
    def backward(ctx: Any, d_h: Tensor | None, d_c: Tensor | None) -> Gradients:
        x, h, c, tape = ctx.saved_tensors
        cell, joint = ctx.cell, ctx.joint
        wanted = ctx.needs_input_grad[3:6]
        again = torch.is_grad_enabled() or autograd.may_be_forward()
        joint.refuse_changed((True,) * 6 if again else wanted[:2])  # d_x needs W_ih, d_h W_hh
        if again:
            run = cell, joint, ctx.reduced, wanted
            return None, None, None, *_differentiable(*run, x, h, c, tape, d_h, d_c)
        flat = x, h, c, joint.weights
        found = native.step_gradient(cell, wanted, *flat, tape, d_h, d_c, joint.sums_of_pass())
        return None, None, None, *found, None


_apply_step: Any = super(Function, Step).apply
"""Of a step, many times: see ``autograd.apply``, which asks each time what ``ops`` has asked."""


def _differentiable(
    cell: CellSpec,
    joint: Joint,
    reduced: bool,
    wanted: tuple[bool, ...],
    x: Tensor,
    h: Tensor | None,
    c: Tensor | None,
    tape: Tensor,
    d_h: Tensor | None,
    d_c: Tensor | None,
) -> Gradients:
    """The gradients by x, h, c and the stand-in, as those of a layer, which have derivatives."""
    h_n = native.step(cell, False, x, h, c, joint.weights, reduced)[0]
    own, inputs = x.dtype, (x, h, c, h_n, d_h, d_c, *joint.weights)
    if own == torch.bfloat16:
        inputs = tuple(None if t is None else t.float() for t in inputs)
    of_x, *states, y, d_h, d_c = (None if t is None else t.unsqueeze(0) for t in inputs[:6])
    args = of_x, None, *states, *inputs[6:], y, tape[None, None], None, d_h, d_c, None
    of_weights = [t is not None and t.requires_grad for t in joint.weights]
    of_layer = wanted[0], False, *wanted[1:], *of_weights
    found = [
        None if t is None else t.to(own)
        for t in autograd.gradient(cell, reduced, of_layer, None, *args)
    ]
    of_states = (None if t is None else t.squeeze(0) for t in (found[0], *found[2:4]))
    flat = [t.flatten() for t in found[4:] if t is not None]
    return *of_states, torch.cat(flat) if flat else None
