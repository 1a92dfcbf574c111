"""A layer that keeps a state every k steps instead of the gates of every step: ``checkpoint=``.

Forward, the layer runs a stretch of k steps at a time and writes no tape. Backward, it goes over
the stretches from the last to the first, computes the gates of one anew from the state before it,
takes their gradient, and uses the memory again for the next. With k near sqrt(T), both the states
that are kept and the gates that are there at once grow with sqrt(T).

At every stretch the weights are packed three times, their gradients unpacked, the workers called.
A short stretch does little else; so where k is not given, stretches are as long as is worth it. A
run of one stretch is one run of the core forward, and two backward.

Directions of sequences that are equally long run side by side: the n-th stretch of one lies as far
from the left as that of the other from the right. Else these have sequences of their own, and the
directions run one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import isqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from gatewise import autograd, native
from gatewise.autograd import Gradients
from gatewise.native import Flat, Results
from gatewise.spec import CellSpec

#: Tokens of a stretch beside which the packing takes little time, and values of h beside
#: which the calls do.
TOKENS, VALUES = 2048, 2048 * 64

#: Numbers that torch sets to zero in the thread that asks for it; of 32768 it makes a team's work.
CLEARED = 1 << 14


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
    """Steps of the directions that run side by side.

    Args:
        directions: which.
        tokens: of each of them, in what is cut along its first axis.
        sizes: of the batch at each of its steps, where packed.
        rows: how many sequences there are.
        came: how many of them come from the stretch before.
        begin: the others, which begin here; open where they are the last there are.
        going: how many go on in the next; the others end here.
        at: where in what is kept the states of those that came begin.
    """

    directions: slice
    tokens: list[slice]
    sizes: Tensor | None
    rows: int
    came: int
    begin: slice
    going: int
    at: int

    @property
    def of_both(self) -> bool:
        """Whether two directions run, each in tokens of its own."""
        return len(self.tokens) == 2

    def of(self, t: Tensor) -> tuple[Tensor, ...]:
        """The tokens of each direction in t, where all see the same."""
        return tuple(t[tokens] for tokens in self.tokens)

    def of_each(self, t: Tensor, size: int) -> tuple[Tensor, ...]:
        """The same where the last axis has ``size`` numbers for every direction there is."""
        first = range(self.directions.start * size, self.directions.stop * size, size)
        return tuple(
            t[tokens, ..., n : n + size] for tokens, n in zip(self.tokens, first, strict=True)
        )

    def kept(self, t: Tensor) -> Tensor:
        """The states of those that came, in what is kept."""
        end = self.at + len(self.tokens) * self.came
        return t[self.at : end].view(len(self.tokens), self.came, t.shape[1])


def cut(x: Tensor, batch_sizes: Tensor | None, D: int, every: int) -> list[list[Stretch]]:
    """All steps, in stretches of ``every``: a list for all directions, or one for each."""
    T = len(x) if batch_sizes is None else len(batch_sizes)
    sizes = [x.shape[1]] * T if batch_sizes is None else batch_sizes.tolist()
    first = range(T + 1) if batch_sizes is None else [0, *accumulate(sizes)]
    # Without steps there is one stretch: the core refuses it, with its reason.
    steps = [(begin, min(begin + every, T)) for begin in range(0, max(T, 1), every)]
    runs, at = [], 0
    for of_run in [range(D)] if batch_sizes is None else [range(d, d + 1) for d in range(D)]:
        run = []
        for begin, end in steps:
            of_each = [(T - end, T - begin) if d else (begin, end) for d in of_run]
            left, right = of_each[0]
            rows = sizes[left] if T else 0
            came, going = rows if left else 0, sizes[right] if right < T else 0
            if of_run.start:
                came, going = going, came
            run.append(
                Stretch(
                    slice(of_run.start, of_run.stop),
                    [slice(first[left], first[right]) for left, right in of_each],
                    None if batch_sizes is None else batch_sizes[left:right],
                    *(rows, came, slice(came, rows if left else None), going, at),
                )
            )
            at += len(of_run) * came
        runs.append(run)
    return runs


# --- the two runs ---------------------------------------------------------------------------------


def forward(
    cell: CellSpec, reduced: bool, every: int, flat: Flat
) -> tuple[Results, Tensor, Tensor]:
    """The results, and the states that stretches begin with, but for those that were given: h, c,
    one a row."""
    x, batch_sizes, h0, c0, *weights = flat
    assert x is not None
    D, _, H, P = native.sizes(cell, x, batch_sizes, h0, weights)
    runs = cut(x, batch_sizes, D, every)
    R = sum(len(s.tokens) * s.came for run in runs for s in run)
    kept_h, kept_c = x.new_empty(R, P), x.new_empty(R if cell.has_cell_state else 0, H)
    if len(runs[0]) == 1:
        return native.forward(cell, None, reduced, *flat), kept_h, kept_c
    _, h_n, c_n, _ = native.empty_results(cell, None, x, batch_sizes, h0, weights)
    y, last = native.empty(x.dtype, *x.shape[:-1], D * P), (h_n, c_n)
    kept = kept_h, None if c_n is None else kept_c
    for run in runs:
        for s, following in pairwise([*run, None]):
            assert s is not None
            states = [_before(*of, s) for of in zip(kept, (h0, c0), strict=True)]
            ends = [_room(*of, s, following) for of in zip(kept, last, strict=True)]
            inputs = (s.of(x), s.sizes, *states, *native.of_directions(weights, s.directions))
            native.fill(cell, reduced, (s.of_each(y, P), *ends, None), inputs, part=_part(s))
            for of in zip(ends, kept, last, strict=True):
                _bring(*of, s, following)
    return (y, h_n, c_n, None), kept_h, kept_c


def _part(s: Stretch) -> native.Part:
    return native.Part(reverse=s.directions.start == 1, adds_inputs=s.directions.stop == 2)


def _before(kept: Tensor | None, given: Tensor | None, s: Stretch) -> Tensor | None:
    """The states before a stretch."""
    if kept is None and s.came > 0:
        return None
    came = None if kept is None or s.came == 0 else s.kept(kept)
    return _joined(came, given, s.begin, s)


def _joined(some: Tensor | None, of_all: Tensor | None, which: slice, s: Stretch) -> Tensor | None:
    """``some`` for the first sequences, then those of ``of_all`` for the others; None is zero."""
    if some is not None and some.shape[1] == s.rows:
        return some
    others = None if of_all is None else of_all[s.directions, which]
    if some is None:
        return others
    if others is None:
        others = some.new_zeros(len(some), s.rows - some.shape[1], some.shape[2])
    return torch.cat([some, others], 1)


def _room(
    kept: Tensor | None, last: Tensor | None, s: Stretch, following: Stretch | None
) -> Tensor | None:
    """For the states at the end of a stretch: where they belong, if all go on or all end."""
    if kept is None or last is None:
        return None
    if following is None:
        return last[s.directions, : s.rows]
    if s.going == s.rows:
        return following.kept(kept)
    return kept.new_empty(len(s.tokens), s.rows, kept.shape[1])


def _bring(
    ends: Tensor | None,
    kept: Tensor | None,
    last: Tensor | None,
    s: Stretch,
    following: Stretch | None,
) -> None:
    """The states that go on are kept; the others are the last of their sequence."""
    if ends is None or kept is None or last is None or following is None or s.going == s.rows:
        return
    following.kept(kept).copy_(ends[:, : s.going])
    last[s.directions, s.going : s.rows] = ends[:, s.going :]


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
    runs = cut(x, batch_sizes, D, every)
    if len(runs[0]) == 1:
        none = x.new_empty(0)  # y and tape, which are computed anew
        rest = *weights, none, none, *d_results, None
        return native.backward(
            cell, reduced, wanted, None, x, batch_sizes, h0, c0, *rest, by_groups=True
        )
    grads = native.empty_gradients((None, *flat[1:]), wanted)
    grads[0] = d_x = native.empty(x.dtype, *x.shape) if wanted[0] else None
    d_given = grads[2:4]
    for t in (d_x if runs[0][0].of_both else None, *grads[4:]):  # which every stretch adds to
        _clear(t)
    d_y, *d_last = d_results
    stateful = kept if cell.has_cell_state else (kept[0], None)
    rooms = _rooms(cell, torch.bfloat16 if reduced else x.dtype, x, P, H, runs)
    for run in runs:
        d_going: list[Tensor | None] = [None, None]
        for s in reversed(run):
            states = [_before(*of, s) for of in zip(stateful, (h0, c0), strict=True)]
            inputs = (s.of(x), s.sizes, *states, *native.of_directions(weights, s.directions))
            y, gates = _again(cell, reduced, inputs, *rooms, s)
            d_ends = [
                _joined(*of, slice(s.going, s.rows), s) for of in zip(d_going, d_last, strict=True)
            ]
            d_before = [_d_room(*of, s) for of in zip(states, d_given, strict=True)]
            d_tokens = None if d_x is None else s.of(d_x)
            sums = native.of_directions(grads[4:], s.directions)
            found = (d_tokens, None, *d_before, *sums)
            d_outputs = (None if d_y is None else s.of_each(d_y, P), *d_ends, None)
            native.fill_gradients(
                cell, found, inputs, y, gates, d_outputs, part=_part(s), by_groups=True
            )
            d_going = [_d_came(*of, s) for of in zip(d_before, d_given, strict=True)]
    return grads


def _clear(t: Tensor | None) -> None:
    """In pieces that torch does not hand to other threads."""
    for piece in () if t is None else t.view(-1).split(CLEARED):
        piece.zero_()


def _rooms(
    cell: CellSpec, dtype: torch.dtype, x: Tensor, P: int, H: int, runs: list[list[Stretch]]
) -> tuple[Tensor, Tensor]:
    """For y and the tape of any stretch."""
    most = max(t.stop - t.start for run in runs for s in run for t in s.tokens)
    D = len(runs[0][0].tokens)
    return (
        native.empty(x.dtype, most, *x.shape[1:-1], D * P),
        native.empty(dtype, D * most, *x.shape[1:-1], len(cell.slots), H),
    )


def _again(
    cell: CellSpec, reduced: bool, inputs: Sequence[Any], ys: Tensor, tape: Tensor, s: Stretch
) -> tuple[Tensor, Tensor]:
    """y and the tape of a stretch, which are written over those of another."""
    (x, *_), batch_sizes, h0, _, *weights = inputs
    _, h_n, c_n, _ = native.empty_results(cell, None, x, batch_sizes, h0, weights)
    y, n = ys[: len(x)], len(s.tokens)
    of_stretch = tape[: n * len(x)].view(n, len(x), *tape.shape[1:])
    results = y, h_n, c_n, of_stretch
    native.fill(cell, reduced, results, inputs, part=_part(s), by_groups=True)
    return y, of_stretch


def _d_room(state: Tensor | None, d_given: Tensor | None, s: Stretch) -> Tensor | None:
    """For the gradient at the states before a stretch; where it belongs, if all begin here."""
    if s.came == 0:
        return None if d_given is None else d_given[s.directions, s.begin]
    return None if state is None else torch.empty_like(state)


def _d_came(d_before: Tensor | None, d_given: Tensor | None, s: Stretch) -> Tensor | None:
    """The gradient at the states that came; those of the others were given."""
    if d_before is None or s.came == 0:
        return None
    if d_given is not None and s.came < s.rows:
        d_given[s.directions, s.begin] = d_before[:, s.came :]
    return d_before[:, : s.came]


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
