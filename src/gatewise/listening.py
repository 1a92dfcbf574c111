"""Total gradients of a run by the page: a hook at each value, as it is made.

The kernels report d loss / d value themselves; this is how the page does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor

from gatewise.native import GradSink
from gatewise.spec import CellSpec

Tap = Callable[..., Tensor]


def taps(
    cell: CellSpec,
    given: Sequence[Tap],
    sink: GradSink,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor,
    c0: Tensor,
    *weights: Tensor | None,
) -> list[Tap]:
    """The given taps, one per direction, each followed by a listener that reports to the sink."""
    D, steps = len(given), x.shape[:-1]
    listener = _Listener(
        cell.slots,
        None if batch_sizes is None else batch_sizes.tolist(),
        (D, *steps, len(cell.slots), c0.shape[-1]),
        (D, *steps, h0.shape[-1]),
        sink,
        learns=any(t is not None and t.requires_grad for t in (x, h0, c0, *weights)),
    )
    return [partial(listener.listen, d, tap) for d, tap in enumerate(given)]


class _Listener:
    """Gathers the gradients that arrive at the values of a run, and reports after each pass.

    It holds no value of the run: a hook that did would keep its own graph alive for ever.
    """

    def __init__(
        self,
        slots: Sequence[str],
        sizes: Sequence[int] | None,
        tape_shape: tuple[int, ...],
        h_shape: tuple[int, ...],
        sink: GradSink,
        learns: bool,
    ) -> None:
        self.slots, self.sink, self.learns = slots, sink, learns
        self.shapes = tape_shape, h_shape
        ends = list(accumulate(sizes)) if sizes is not None else []
        self.places = [slice(end - n, end) for end, n in zip(ends, sizes or (), strict=True)]
        self.backward_pass: int | None = None

    def listen(self, d: int, tap: Tap, name: str, value: Tensor, t: int = 0) -> Tensor:
        """A tap: what the given one makes of the value, with a hook on it."""
        value = tap(name, value, t=t)
        if torch.is_grad_enabled() and (name == "h" or name in self.slots):
            if self.learns and not value.requires_grad:
                value = value.detach().requires_grad_()  # a constant has a gradient all the same
            if value.requires_grad:
                value.register_hook(partial(self.hear, d, name, t))
        return value

    def hear(self, d: int, name: str, t: int, grad: Tensor) -> None:
        """The gradient of one value has arrived."""
        number = torch._C._current_graph_task_id()
        if number != self.backward_pass:
            self.backward_pass = number
            self.tape, self.h = (grad.new_zeros(shape) for shape in self.shapes)
            torch.autograd.Variable._execution_engine.queue_callback(self.report)
        place = self.places[t] if self.places else t
        into = self.h[d] if name == "h" else self.tape[d][..., self.slots.index(name), :]
        into[place] += grad.detach()

    def report(self) -> None:
        """The backward pass is over."""
        self.sink.add(self.tape, self.h)
        del self.tape, self.h
