"""A layer that keeps a state every k steps instead of the gates of every step: ``checkpoint=``.

Forward, the layer runs a stretch of k steps at a time and writes no tape. Backward, it goes over
the stretches from the last to the first, computes the gates of one anew from the state before it,
takes their gradient, and uses the memory again for the next. With k near sqrt(T), both the states
that are kept and the gates that are there at once grow with sqrt(T).

At every stretch the weights are packed three times, their gradients unpacked, the workers called.
A short stretch does little else; so where k is not given, stretches are as long as is worth it. A
run of one stretch is one run of the core forward, and two backward.

Each direction runs by itself, as a run from left to right. What runs from right to left is turned
around stretch by stretch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from gatewise import autograd, native
from gatewise.autograd import Gradients
from gatewise.native import Flat, Results
from gatewise.spec import CellSpec

#: Tokens of a stretch beside which the packing takes little time (3 %), and values of h beside
#: which the calls do.
TOKENS, VALUES = 1024, 2048 * 64


def layer(cell: CellSpec, reduced: bool, checkpoint: bool | int, *flat: Tensor | None) -> Results:
    """A layer that a gradient may be taken of.

    Args:
        checkpoint: k, to keep a state every k steps; True for k = ceil(sqrt(T)), or more.
    """
    x, batch_sizes, h0, _, *weights = flat
    assert x is not None
    T = max(1, len(x) if batch_sizes is None else len(batch_sizes))
    _, _, H, _ = native.sizes(cell, x, batch_sizes, h0, weights)
    k = usual_steps(T, x.shape[:-1].numel(), H) if checkpoint is True else int(checkpoint)
    every = min(k, T)
    y, h_n, c_n = autograd.apply(Checkpointed, cell, reduced, every, *flat)
    return y, h_n, c_n, None


def usual_steps(T: int, tokens: int, H: int) -> int:
    """k, where it is not given: ceil(sqrt(T)), or so many steps as are worth a stretch; then evened
    out, so that the last stretch is about as long as the others."""
    fewest = max(TOKENS, VALUES // max(1, H))
    k = max(isqrt(T - 1) + 1, _ceil_div(fewest * T, max(1, tokens)))
    return _ceil_div(T, _ceil_div(T, k))


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


# --- time, cut in stretches -----------------------------------------------------------------------


class Stretch(NamedTuple):
    """Steps of a run.

    Args:
        begin, end: which; counted in the order of the run.
        rows: how many sequences are there at its begin; going: how many go on behind its end.
        at: where in what is kept the states before it begin.
        sizes: of the batch at each of its steps, where packed.
    """

    begin: int
    end: int
    rows: int
    going: int
    at: int
    sizes: Tensor | None

    def tokens(self) -> int:
        return (self.end - self.begin) * self.rows if self.sizes is None else int(self.sizes.sum())


def cut(x: Tensor, batch_sizes: Tensor | None, every: int) -> list[Stretch]:
    """All steps, in stretches of ``every``; the first has the most tokens."""
    T = len(x) if batch_sizes is None else len(batch_sizes)
    begins = range(0, max(T, 1), every)
    rows = [x.shape[1]] * len(begins) if batch_sizes is None else batch_sizes[::every].tolist()
    stretches, at = [], -rows[0]  # nothing is kept before the first: its states are given
    for begin, now, going in zip(begins, rows, [*rows[1:], 0], strict=True):
        end = min(begin + every, T)
        sizes = None if batch_sizes is None else batch_sizes[begin:end]
        stretches.append(Stretch(begin, end, now, going, at, sizes))
        at += now
    return stretches


class Straight:
    """The tokens of a stretch, where the run goes from left to right.

    Args:
        x: (T, B, I), or packed (N, I); so is every tensor that is cut.
    """

    def __init__(self, x: Tensor, batch_sizes: Tensor | None) -> None:
        self.T = len(x)
        self.batch_sizes = batch_sizes
        if batch_sizes is not None:  # where each step begins
            self.first = torch.cat([batch_sizes.new_zeros(1), batch_sizes.cumsum(0)])

    def take(self, t: Tensor, s: Stretch) -> Tensor:
        """The tokens of t in the order of the run."""
        if s.sizes is None:
            return t[s.begin : s.end]
        return t[int(self.first[s.begin]) : int(self.first[s.end])]

    def room(self, t: Tensor, s: Stretch) -> Tensor:
        """Where to write the tokens for t."""
        return self.take(t, s)

    def put(self, t: Tensor, s: Stretch, tokens: Tensor, add: bool = False) -> None:
        """Bring what was written to its place in t: it is there."""


class Turned(Straight):
    """The same where it goes from right to left: step n of the run is step len - 1 - n of a
    sequence. Either way as many sequences have a step n, so the sizes of the batch are the same."""

    def __init__(self, x: Tensor, batch_sizes: Tensor | None) -> None:
        super().__init__(x, batch_sizes)
        if batch_sizes is not None:  # of b: how many steps have more than b sequences
            self.lengths = torch.bincount(batch_sizes).flip(0).cumsum(0).flip(0)[1:]

    def take(self, t: Tensor, s: Stretch) -> Tensor:
        return (
            t[self._mirrored(s)].flip(0) if s.sizes is None else t.index_select(0, self._tokens(s))
        )

    def room(self, t: Tensor, s: Stretch) -> Tensor:
        n = s.end - s.begin if s.sizes is None else int(s.sizes.sum())
        return t.new_empty(n, *t.shape[1:])

    def put(self, t: Tensor, s: Stretch, tokens: Tensor, add: bool = False) -> None:
        if s.sizes is not None:
            (t.index_add_ if add else t.index_copy_)(0, self._tokens(s), tokens)
        elif add:
            t[self._mirrored(s)] += tokens.flip(0)
        else:
            t[self._mirrored(s)] = tokens.flip(0)

    def _mirrored(self, s: Stretch) -> slice:
        return slice(self.T - s.end, self.T - s.begin)

    def _tokens(self, s: Stretch) -> Tensor:
        """Where the tokens of the run stand in what is packed."""
        assert s.sizes is not None
        begin, end = int(self.first[s.begin]), int(self.first[s.end])
        step = torch.arange(s.begin, s.end, device="cpu").repeat_interleave(s.sizes)
        row = torch.arange(begin, end, device="cpu") - self.first[step]
        found: Tensor = self.first[self.lengths[row] - 1 - step] + row
        return found


WAYS = (Straight, Turned)


# --- the two runs ---------------------------------------------------------------------------------


def forward(
    cell: CellSpec, reduced: bool, every: int, flat: Flat
) -> tuple[Results, Tensor, Tensor]:
    """The results, and the states before every stretch but the first: h (D, R, P), c (D, R, H)."""
    x, batch_sizes, h0, c0, *weights = flat
    assert x is not None
    D, _, H, P = native.sizes(cell, x, batch_sizes, h0, weights)
    stretches = cut(x, batch_sizes, every)
    if len(stretches) == 1:
        none = x.new_empty(D, 0, 0)
        return native.forward(cell, None, reduced, *flat), none, none
    results = native.empty_results(cell, None, x, batch_sizes, h0, weights)
    y, h_n, c_n, _ = results
    R = sum(s.going for s in stretches)
    kept_h, kept_c = x.new_empty(D, R, P), x.new_empty(D, R if cell.has_cell_state else 0, H)
    for d in range(D):
        way = WAYS[d](x, batch_sizes)
        half = y[..., d * P : (d + 1) * P]
        h, c = _row(h0, d), _row(c0, d)
        for s in stretches:
            out, h_end = way.room(half, s), _room(kept_h, s, d)
            c_end = None if c_n is None else _room(kept_c, s, d)
            inputs = (way.take(x, s), s.sizes, h, c, *native.of_direction(weights, d))
            native.fill(cell, reduced, (out, h_end, c_end, None), inputs, in_parts=True)
            way.put(half, s, out)
            h = _going(h_end, s, kept_h, h_n, d)
            c = None if c_end is None or c_n is None else _going(c_end, s, kept_c, c_n, d)
    return results, kept_h, kept_c


def _room(kept: Tensor, s: Stretch, d: int) -> Tensor:
    """For the states at the end of a stretch: where they are kept, if all of them go on."""
    if s.going < s.rows:
        return kept.new_empty(1, s.rows, kept.shape[2])
    at = s.at + s.rows
    return kept[d : d + 1, at : at + s.rows]


def _going(ends: Tensor, s: Stretch, kept: Tensor, last: Tensor, d: int) -> Tensor:
    """The states that go on, which are kept; the others are the last of their sequence."""
    if s.going == s.rows:
        return ends
    at = s.at + s.rows
    kept[d, at : at + s.going] = ends[0, : s.going]
    last[d, s.going : s.rows] = ends[0, s.going :]
    return ends[:, : s.going]


def backward(
    cell: CellSpec,
    reduced: bool,
    every: int,
    wanted: Sequence[bool],
    flat: Flat,
    kept: Flat,
    d_results: Flat,
) -> Flat:
    """The gradients by flat, None where not wanted.

    Args:
        kept: the states that ``forward`` kept.
        d_results: d_y, d_h_n, d_c_n; None is zero.
    """
    x, batch_sizes, h0, c0, *weights = flat
    assert x is not None
    D, _, H, P = native.sizes(cell, x, batch_sizes, h0, weights)
    stretches = cut(x, batch_sizes, every)
    if len(stretches) == 1:
        none = x.new_empty(0)  # y and tape, which are computed anew
        rest = *weights, none, none, *d_results, None
        return native.backward(cell, reduced, wanted, None, x, batch_sizes, h0, c0, *rest)
    grads = native.empty_gradients(flat, wanted)
    d_x, d_y = grads[0], d_results[0]
    dtype = torch.bfloat16 if reduced else x.dtype
    tape = x.new_empty(stretches[0].tokens(), len(cell.slots), H, dtype=dtype)
    for d in range(D):
        way = WAYS[d](x, batch_sizes)
        half = None if d_y is None else d_y[..., d * P : (d + 1) * P]
        d_last = [_row(t, d) for t in d_results[1:]]
        sums = native.of_direction(grads[4:], d)
        d_states: list[Tensor | None] = [None, None]
        for s in reversed(stretches):
            if s.begin == 0:
                states, d_before = [[_row(t, d) for t in both] for both in ((h0, c0), grads[2:4])]
            else:
                states = [_states(t, s, d) for t in kept]
                d_before = [None if t is None else torch.empty_like(t) for t in states]
            inputs = (way.take(x, s), s.sizes, *states, *native.of_direction(weights, d))
            y, gates = _again(cell, reduced, inputs, tape)
            d_ends = [_at_end(*of, s) for of in zip(d_states, d_last, strict=True)]
            d_outputs = (None if half is None else way.take(half, s), *d_ends, None)
            d_tokens = None if d_x is None else way.room(d_x, s)
            found = (d_tokens, None, *d_before, *sums)
            adds = s is not stretches[-1]
            native.fill_gradients(cell, found, inputs, y, gates, d_outputs, adds=adds)
            if d_x is not None and d_tokens is not None:
                way.put(d_x, s, d_tokens, add=True)
            d_states = d_before
    return grads


def _again(cell: CellSpec, reduced: bool, inputs: Flat, tape: Tensor) -> tuple[Tensor, Tensor]:
    """y and the tape of a stretch, which is written over that of another."""
    x, batch_sizes, h0, _, *weights = inputs
    assert x is not None
    y, h_n, c_n, _ = native.empty_results(cell, None, x, batch_sizes, h0, weights)
    *steps, _ = x.shape
    of_stretch = tape[: x.shape[:-1].numel()].view(1, *steps, *tape.shape[1:])
    native.fill(cell, reduced, (y, h_n, c_n, of_stretch), inputs, in_parts=True)
    return y, of_stretch


def _row(t: Tensor | None, d: int) -> Tensor | None:
    return None if t is None else t[d : d + 1]


def _states(kept: Tensor | None, s: Stretch, d: int) -> Tensor | None:
    """The states before a stretch."""
    assert kept is not None
    return kept[d : d + 1, s.at : s.at + s.rows] if kept.shape[1] else None


def _at_end(d_going: Tensor | None, d_last: Tensor | None, s: Stretch) -> Tensor | None:
    """The gradient at the states behind a stretch: of those that go on, then of a last one."""
    d_ended = None if d_last is None else d_last[:, s.going : s.rows]
    if d_going is None or s.going == s.rows:
        return d_ended if d_going is None else d_going
    if d_ended is None:
        d_ended = d_going.new_zeros(1, s.rows - s.going, d_going.shape[2])
    return torch.cat([d_going, d_ended], 1)


@autograd.spare_hooks
class Checkpointed(Function):
    """x, batch_sizes, h0, c0, *weights -> y, h_n, c_n."""

    @staticmethod
    def forward(
        ctx: Any, cell: CellSpec, reduced: bool, every: int, *flat: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        (y, h_n, c_n, _), *kept = forward(cell, reduced, every, flat)
        ctx.run = cell, reduced, every
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*flat, *kept)
        return y, h_n, c_n

    @staticmethod
    @autograd.new_vmap
    def backward(ctx: Any, *d_results: Tensor | None) -> Gradients:
        *flat, kept_h, kept_c = ctx.saved_tensors
        cell, reduced, every = ctx.run
        wanted = autograd.reached(ctx.needs_input_grad[3:], flat, *d_results)
        if torch.is_grad_enabled() or autograd.may_be_forward():
            none = kept_h.new_empty(0)  # y and tape, which a derivative of this computes anew
            args = (*flat, none, none, *d_results, None)
            return *[None] * 3, *autograd.gradient(cell, reduced, wanted, None, *args)
        kept = kept_h, kept_c
        return *[None] * 3, *backward(cell, reduced, every, wanted, flat, kept, d_results)
