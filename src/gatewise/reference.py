"""THE SPECIFICATION: what an LSTM is, one formula a line, in plain torch.

    T steps   B batch   I input size   H hidden size   P output size (proj_size, else H)
    L layers  D directions   N tokens (T*B, or the sum of the lengths)
    G computed gates (4 in an LSTM, 1 in a plain RNN)   S slots of the tape
    x input   h hidden state   c cell state   i f g o gates in torch's order   z pre-activation
    d_ prefix: a gradient
    W_ih (G*H, I)   W_hh (G*H, P)   W_hr (P, H)   b_ih b_hh (G*H)   peep (3, H): i f o

Everything here is differentiable, takes any dtype, and writes nothing in place. Kernels, traces and
the explorer are tested against this page; it never calls them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from gatewise.spec import WELDED, CellSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
    "identity": lambda z: z,
}


def untouched(name: str, value: Tensor, t: int = 0) -> Tensor:
    """The tap that changes nothing: a tap sees i f g o c h of step t as each is made, by name, and
    what it returns stands in its place."""
    return value


class Weights(NamedTuple):
    """The parameters of one direction of one layer; None where the layer has none."""

    W_ih: Tensor  # (G*H, I)
    W_hh: Tensor  # (G*H, P)
    b_ih: Tensor | None = None  # (G*H), as b_hh
    b_hh: Tensor | None = None
    W_hr: Tensor | None = None  # (P, H)
    peep: Tensor | None = None  # (3, H): i f o


class Step(NamedTuple):
    """Everything one step computes: each (B, H), but h (B, P) and z (B, G*H)."""

    i: Tensor
    f: Tensor
    g: Tensor
    o: Tensor
    c: Tensor
    h: Tensor
    z: Tensor


class Run(NamedTuple):
    """One direction over a sequence: each step's values (T, B, ...) or (N, ...), the last state."""

    steps: Step
    h_n: Tensor
    c_n: Tensor


def step(
    cell: CellSpec,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: Weights,
    tap: Callable[..., Tensor] = untouched,
) -> Step:
    """One step of the cell.

    Args:
        cell: a row of ``gatewise.CELLS``.
        x: (B, I) the input at this step.
        h, c: (B, P), (B, H) the state before this step.
        w: the parameters.
        tap: sees each value by name, and may put another in its place.

    Returns:
        Step: i f g o c (B, H), h (B, P), z (B, G*H).

    Source: equations (1) to (5) of docs/math.md, which says whose they are.

    Example:
        >>> import torch
        >>> from gatewise import CELLS, Weights, step
        >>> w = Weights(torch.zeros(4, 2), torch.zeros(4, 1))
        >>> s = step(CELLS["lstm"], torch.ones(1, 2), torch.zeros(1, 1), torch.ones(1, 1), w)
        >>> s.f.item(), s.c.item()
        (0.5, 0.5)
    """
    z = x @ w.W_ih.T + h @ w.W_hh.T  # the previous hidden state joined with the input
    z = z if w.b_ih is None else z + w.b_ih
    z = z if w.b_hh is None else z + w.b_hh
    H = c.shape[-1]
    part = dict(zip(cell.gates, z.split(H, dim=-1), strict=True))
    peep_i, peep_f, peep_o = (0, 0, 0) if w.peep is None else w.peep

    def gate(name: str, peep: Tensor | int = 0, seen: Tensor | int = 0) -> Tensor:
        activation = getattr(cell, name)
        if activation in WELDED:
            return torch.ones_like(c) if activation == "one" else torch.zeros_like(c)
        return ACTIVATIONS[activation](part[name] + peep * seen if cell.peephole else part[name])

    i = tap("i", gate("i", peep_i, c))  # input gate: how much is written
    f = 1 - i if cell.coupled else gate("f", peep_f, c)
    f = tap("f", f)  # forget gate: how much of the old cell stays
    g = tap("g", gate("g"))  # candidate: what is written
    c = tap("c", f * c + i * g)  # cell state: no fully connected layer of its own
    o = tap("o", gate("o", peep_o, c))  # output gate: how much is read
    h = o * ACTIVATIONS[cell.out](c)  # hidden state
    h = tap("h", h if w.W_hr is None else h @ w.W_hr.T)  # projection
    return Step(i, f, g, o, c, h, z)


def sequence(
    cell: CellSpec,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    w: Weights,
    reverse: bool = False,
    batch_sizes: Sequence[int] | None = None,
    tap: Callable[..., Tensor] = untouched,
) -> Run:
    """One direction over a whole sequence.

    Args:
        x: (T, B, I), or (N, I) with ``batch_sizes``: the tokens of step 0, then of step 1, ...,
            the longest sequence first, as in ``torch.nn.utils.rnn.PackedSequence``.
        h0, c0: (B, P), (B, H) the initial state.
        reverse: run from each sequence's last step to its first (right to left).
        batch_sizes: how many sequences reach step t; never increasing.
        tap: sees each value by step and name, and may put another in its place.

    Returns:
        Run: the values of every step in the order of x, then h_n (B, P) and c_n (B, H), the state
        after each sequence's own last step (its first, if ``reverse``).

    Example:
        >>> import torch
        >>> from gatewise import CELLS, Weights, sequence
        >>> w = Weights(torch.ones(8, 3), torch.ones(8, 2))
        >>> x, h0 = torch.ones(5, 1, 3), torch.zeros(1, 2)
        >>> run = sequence(CELLS["lstm"], x, h0, h0, w)
        >>> run.steps.f.shape, run.h_n.shape
        (torch.Size([5, 1, 2]), torch.Size([1, 2]))
    """
    xs = list(x) if batch_sizes is None else list(x.split(list(batch_sizes)))
    order = range(len(xs) - 1, -1, -1) if reverse else range(len(xs))
    h, c = h0, c0
    steps: list[Step] = []
    for t in order:
        n = len(xs[t])  # the n longest sequences take part in this step; the others keep theirs
        s = step(cell, xs[t], h[:n], c[:n], w, partial(tap, t=t))
        h, c = torch.cat([s.h, h[n:]]), torch.cat([s.c, c[n:]])
        steps.append(s)
    if reverse:
        steps.reverse()
    join = torch.stack if batch_sizes is None else torch.cat
    return Run(Step(*(join(field) for field in zip(*steps, strict=True))), h, c)


def layer(
    cell: CellSpec,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Weights],
    batch_sizes: Sequence[int] | None = None,
    taps: Sequence[Callable[..., Tensor]] = (untouched, untouched),
) -> tuple[Tensor, Tensor, Tensor, list[Run]]:
    """The D directions of one layer: left to right, and right to left, their results joined.

    Args:
        h0, c0: (D, B, P), (D, B, H).
        weights, taps: one per direction.

    Returns:
        output (T, B, D*P) or (N, D*P), h_n (D, B, P), c_n (D, B, H), and one Run per direction.
    """
    runs = [
        sequence(cell, x, h0[d], c0[d], w, d == 1, batch_sizes, taps[d])
        for d, w in enumerate(weights)
    ]
    output = torch.cat([run.steps.h for run in runs], dim=-1)
    return output, torch.stack([r.h_n for r in runs]), torch.stack([r.c_n for r in runs]), runs


def stack(
    cell: CellSpec,
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weights: Sequence[Sequence[Weights]],
    batch_sizes: Sequence[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, list[list[Run]]]:
    """L layers, each reading the output of the one below.

    Args:
        h0, c0: (L*D, B, P), (L*D, B, H), ordered layer then direction.
        weights: [layer][direction].

    Returns:
        output (T, B, D*P) or (N, D*P), h_n (L*D, B, P), c_n (L*D, B, H), runs [layer][direction].
    """
    D = len(weights[0])
    h_n, c_n, runs = [], [], []
    for k, w in enumerate(weights):
        here = slice(k * D, (k + 1) * D)
        x, h, c, run = layer(cell, x, h0[here], c0[here], w, batch_sizes)
        h_n.append(h)
        c_n.append(c)
        runs.append(run)
    return x, torch.cat(h_n), torch.cat(c_n), runs
