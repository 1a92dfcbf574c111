"""A layer's tangent and the derivatives of its gradient, by hand: (15) to (20) of docs/math.md.

A gradient is J'q, where J is the Jacobian of the run. Along r it is r'J'q, which is q'Jr too. So
its gradient by q is Jr, the tangent of the run along r: one walk over time, below. Its gradient by
the inputs is the tangent of the gradient along r. The equations of a gradient are linear in what
arrives, so that is the core's backward pass once more, at which other things arrive.

    _dot suffix: a tangent along r   _before: of the step before   d_ prefix: a total gradient

Tokens come first here, (N, ...), packed or not. Nobody takes a derivative of what is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gatewise import native
from gatewise.native import Flat
from gatewise.reference import ACTIVATIONS, Weights
from gatewise.spec import GATES, CellSpec

#: From d_v to d_z, by the value v of an activation.
SLOPE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sigmoid": torch.ops.aten.sigmoid_backward,
    "tanh": torch.ops.aten.tanh_backward,
    "relu": lambda d, v: torch.ops.aten.threshold_backward(d, v, 0),
    "identity": lambda d, v: d,
}
#: How the slope bends: its own slope, divided by it. (16)
BEND: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda v: torch.rsub(v, 1, alpha=2),
    "tanh": lambda v: -2 * v,
    "relu": torch.zeros_like,
    "identity": torch.zeros_like,
}
#: The gates with peepholes, in the order of their weights, and what they see.
PEEPHOLES = (("i", "c_before"), ("f", "c_before"), ("o", "c"))

Named = dict[str, Tensor]


def gradient(
    cell: CellSpec, wanted: Sequence[bool], needed: Sequence[bool], args: Flat, d_grads: Flat
) -> list[Tensor | None]:
    """The gradient of ``native.backward``.

    Args:
        wanted, args: as for ``native.backward``. A tape that is rounded is made anew.
        needed: for each of args, whether its gradient is; those of y and tape are not.
        d_grads: the cotangents of the wanted gradients; None is zero.

    Returns:
        One gradient for each of args, None where it is not needed.
    """
    given = iter(d_grads)
    along = [next(given) if want else None for want in wanted]
    with torch.autocast("cpu", enabled=False):
        run = Run(cell, args[:-4], along)
        by_inputs: Flat = [None] * len(along)
        if any(needed[: len(along)]):
            by_inputs = run.tangents_of_gradients(needed[: len(along)], args[-4:])
        return [*by_inputs, None, None, *run.tangents(needed[-4:])]


def tangent(cell: CellSpec, args: Flat, along: Flat) -> list[Tensor | None]:
    """The tangents of y, h_n and, where they are there, c_n and the tape.

    Args:
        args: x, batch_sizes, h0, c0, *weights, y, tape. A tape that is rounded, or not there, is
            made anew.
        along: the tangents of all but y and tape; None is zero.
    """
    with torch.autocast("cpu", enabled=False):
        there = args[-1] is not None and native.is_there(args[-1])
        return Run(cell, args, along).tangents((True, True, cell.has_cell_state, there))


def tangent_of_gradient(
    cell: CellSpec, wanted: Sequence[bool], args: Flat, along: Flat
) -> list[Tensor | None]:
    """The tangents of the wanted gradients of ``native.backward``.

    Args:
        wanted, args: as for ``native.backward``.
        along: the tangents of args; None is zero. Those of y and tape follow from the others.
    """
    with torch.autocast("cpu", enabled=False):
        run = Run(cell, args[:-4], along[:-6])
        found = run.tangents_of_gradients(wanted, args[-4:], along[-4:])
        return [t for t, want in zip(found, wanted, strict=True) if want]


class Run:
    """A run of a layer, its values' tangents and those of its gradients.

    Args:
        args: x, batch_sizes, h0, c0, *weights, y, tape.
        along: r, by each of these but y and tape; None is zero.
    """

    def __init__(self, cell: CellSpec, args: Flat, along: Flat) -> None:
        *inputs, y, tape = args
        x = inputs[0]
        assert x is not None
        assert y is not None
        assert tape is not None
        if not native.is_there(tape) or tape.dtype != x.dtype:
            y, *_, tape = native.tensors(native.forward(cell, x.dtype, False, *inputs))
        self.cell, self.x, self.y, self.tape = cell, x, y, tape
        self.rest = *inputs[1:], y, tape
        self.lanes = [Lane(cell, d, inputs, along, y, values) for d, values in enumerate(tape)]

    def tangents(self, needed: Sequence[bool]) -> list[Tensor | None]:
        """Of y, h_n, c_n and the tape."""
        lanes = self.lanes
        of_y, of_h_n, of_c_n, of_tape = needed
        return [
            torch.cat([lane.h_dot for lane in lanes], -1).view(self.y.shape) if of_y else None,
            torch.stack([lane.h_dot[lane.order.last] for lane in lanes]) if of_h_n else None,
            torch.stack([lane.dot["c"][lane.order.last] for lane in lanes]) if of_c_n else None,
            self._tape([lane.slots(lane.dot) for lane in lanes]) if of_tape else None,
        ]

    def tangents_of_gradients(
        self, needed: Sequence[bool], cotangents: Flat, cotangents_dot: Flat = (None,) * 4
    ) -> Flat:
        """Of those by x, batch_sizes, h0, c0, *weights, where y, h_n, c_n and the tape got
        cotangents."""
        lanes, totals = self.lanes, _Totals()
        native.backward(
            self.cell, False, [False] * len(needed), totals, self.x, *self.rest, *cotangents
        )
        for lane, d_tape, d_h in zip(lanes, totals.tape, totals.h, strict=True):
            lane.turn(d_tape.flatten(0, -3), d_h.flatten(0, -2))
        arriving_y, arriving_tape = None, self._tape([lane.slots(lane.arriving) for lane in lanes])
        if any(lane.w_dot.W_hh is not None for lane in lanes):
            arriving_y = torch.cat([lane.arriving_h for lane in lanes], -1).view(self.y.shape)
        of_y, of_h_n, of_c_n, of_tape = cotangents_dot
        arriving = _sum(arriving_y, of_y), of_h_n, of_c_n, _sum(arriving_tape, of_tape)
        found = native.backward(self.cell, False, needed, None, self.x, *self.rest, *arriving)
        for lane in lanes:
            lane.add_rest(found)
        return found

    def _tape(self, slots: list[Tensor]) -> Tensor:
        return torch.stack(slots).view(self.tape.shape)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """None is zero."""
    return b if a is None else a if b is None else a + b


class _Totals:
    """A sink that keeps the total gradients."""

    def add(self, tape: Tensor, h: Tensor) -> None:
        self.tape, self.h = tape, h


class Order:
    """Where the step before a token stands.

    Args:
        sizes: of the batch at each step.
        reverse: whether the run goes from right to left.
    """

    def __init__(self, sizes: list[int], reverse: bool) -> None:
        self.sizes, self.N, self.B, self.way = sizes, sum(sizes), sizes[0], -1 if reverse else 1
        self.index: Tensor | None = None  # where all lengths are T a step lies B tokens on
        self.last: Tensor | slice = slice(self.B) if reverse else slice(self.N - self.B, None)
        if sizes[-1] == sizes[0]:
            return
        rows = torch.arange(self.N + self.B, device="cpu")
        steps, first = rows[: self.N].split(sizes), rows[self.N :]
        pairs = list(zip(steps, [*steps[1:], first[:0]], strict=True))  # and the step to the right
        if reverse:
            before = [t for a, b in pairs for t in (b, first[len(b) : len(a)])]
        else:
            before = [first, *(a[: len(b)] for a, b in pairs[:-1])]
            self.last = torch.cat([a[len(b) :] for a, b in reversed(pairs)])
        self.index = torch.cat(before)

    def before(self, tokens: Tensor, first: Tensor) -> Tensor:
        """The value before each token; first: that before the first step, (B, ...)."""
        if self.index is not None:
            return torch.cat([tokens, first])[self.index]
        if self.way < 0:
            return torch.cat([tokens[self.B :], first])
        return torch.cat([first, tokens[: self.N - self.B]])

    def towards(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The transpose: what each token sends to the one before it, and to what came first."""
        if self.index is not None:
            sent = values.new_zeros(self.N + self.B, *values.shape[1:])
            sent[self.index] = values
            return sent[: self.N], sent[self.N :]
        none, apart = torch.zeros_like(values[: self.B]), self.N - self.B
        if self.way < 0:
            return torch.cat([none, values[:apart]]), values[apart:]
        return torch.cat([values[self.B :], none]), values[: self.B]


class Partial(NamedTuple):
    """Something by each of ``Weights``, None for zero."""

    W_ih: Tensor | None
    W_hh: Tensor | None
    b_ih: Tensor | None
    b_hh: Tensor | None
    W_hr: Tensor | None
    peep: Tensor | None


class Lane:
    """One direction of a layer: its values, their tangents, and what arrives at the second walk.

    Args:
        inputs, along: x, batch_sizes, h0, c0, *weights; and v, by each of them, None for zero.
        y: of all directions.
        tape: of this one.
    """

    def __init__(
        self, cell: CellSpec, d: int, inputs: Flat, along: Flat, y: Tensor, tape: Tensor
    ) -> None:
        x, batch_sizes, h0, c0, *weights = inputs
        x_dot, _, h0_dot, c0_dot, *weights_dot = along
        assert x is not None
        self.cell, self.d = cell, d
        self.w = Weights._make(native.of_direction(weights, d))
        self.w_dot = Partial._make(native.of_direction(weights_dot, d))
        P, H = self.w.W_hh.shape[1], tape.shape[-1]
        sizes = [x.shape[1]] * len(x) if batch_sizes is None else batch_sizes.tolist()
        self.order = Order(sizes, reverse=d == 1)
        self.x, self.x_dot = x.flatten(0, -2), None if x_dot is None else x_dot.flatten(0, -2)
        self.h = y[..., d * P : (d + 1) * P].flatten(0, -2)
        self.h0, self.h0_dot, c0, self.c0_dot = (
            y.new_zeros(sizes[0], n) if t is None else t[d]
            for t, n in ((h0, P), (h0_dot, P), (c0, H), (c0_dot, H))
        )
        self.value = self._values(tape.flatten(0, -3), c0)
        z_dot = self._arriving_z()
        self.z_dot, self.dot = self._gates(z_dot), self._walk(z_dot)

    def _values(self, tape: Tensor, c0: Tensor) -> Named:
        """(2) to (4), from the tape."""
        v = dict(zip(self.cell.slots, tape.unbind(1), strict=True))
        v.setdefault("c", v["g"])
        v["out"] = ACTIVATIONS[self.cell.out](v["c"])
        v["c_before"] = self.order.before(v["c"], c0)
        return self._with_the_others(v, 1.0)

    def _with_the_others(self, of: Named, one: float) -> Named:
        """The gates that are not computed, too: of values, where one is 1, or tangents, where 0."""
        if self.cell.coupled:
            of["f"] = one - of["i"]
        for gate in GATES:
            if gate not in of:
                welded = one * (getattr(self.cell, gate) == "one")
                of[gate] = of["c"].new_full((), welded).expand_as(of["c"])
        return of

    def _through(self, name: str, d: Tensor) -> Tensor:
        """d times the slope of an activation, that of a gate or "out"."""
        return SLOPE[getattr(self.cell, name)](d, self.value[name])

    def _bend(self, name: str) -> Tensor:
        return BEND[getattr(self.cell, name)](self.value[name])

    def _partners(self, of: Named) -> Named:
        """What each gate is multiplied by in (3) and (4). Linear: of tangents it is the tangent."""
        i = of["g"] - of["c_before"] if self.cell.coupled else of["g"]
        return {"i": i, "f": of["c_before"], "g": of["i"], "o": of["out"]}

    def _gates(self, z: Tensor) -> Named:
        """(N, G*H), gate by gate."""
        return dict(zip(self.cell.gates, z.chunk(len(self.cell.gates), 1), strict=True))

    def _peepholes(self, peep: Tensor | None) -> Iterator[tuple[str, str, Tensor]]:
        """Gate, what it sees, and by which weights."""
        for (gate, seen), p in zip(PEEPHOLES, () if peep is None else peep, strict=False):
            if gate in self.cell.gates:
                yield gate, seen, p

    def slots(self, of: Named) -> Tensor:
        """(N, S, H), as on the tape."""
        return torch.stack([of[slot] for slot in self.cell.slots], 1)

    # --- the first walk

    def _arriving_z(self) -> Tensor:
        """The tangent of z, (N, G*H), but for what comes by the tangents of the step before."""
        w, w_dot, order = self.w, self.w_dot, self.order
        h = None if w_dot.W_hh is None else order.before(self.h, self.h0)
        z = None
        for t, W in ((self.x_dot, w.W_ih), (self.x, w_dot.W_ih), (h, w_dot.W_hh)):
            if t is not None and W is not None:
                z = t @ W.T if z is None else z.addmm_(t, W.T)
        if z is None:
            z = self.h.new_zeros(order.N, len(w.W_ih))
        for b in (w_dot.b_ih, w_dot.b_hh):
            if b is not None:
                z += b
        gates = self._gates(z)
        for gate, seen, p in self._peepholes(w_dot.peep):
            gates[gate].addcmul_(p, self.value[seen])
        return z

    def _factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """The slopes of a step, peepholes included: (N, G, H) of c and m by z, (N, H) of c by
        c_before, and of m, the hidden state without its projection, by c."""
        v, gates = self.value, self.cell.gates
        partner = self._partners(v)
        factor = {gate: self._through(gate, partner[gate]) for gate in gates}
        keep, read = v["f"], self._through("out", v["o"])
        for gate, seen, p in self._peepholes(self.w.peep):
            if seen == "c":
                read = torch.addcmul(read, factor[gate], p)
            else:
                keep = torch.addcmul(keep, factor[gate], p)
        return torch.stack([factor[gate] for gate in gates], 1), keep, read

    def _walk(self, z: Tensor) -> Named:
        """The tangents of all values; those of z in its place, of m and h in self. (15)"""
        w, W_hr_dot, v, order = self.w, self.w_dot.W_hr, self.value, self.order
        c_dot = torch.empty_like(v["out"])
        self.m_dot = self.h_dot = torch.empty_like(c_dot)
        if w.W_hr is not None:
            self.h_dot = torch.zeros_like(self.h)
            if W_hr_dot is not None:
                self.h_dot = v["o"] * v["out"] @ W_hr_dot.T
        of_c = len(self.cell.gates) - ("o" in self.cell.gates)  # how many gates c is made of
        tokens = (z, *self._factors(), c_dot, self.m_dot, self.h_dot)
        steps = list(zip(*(t.split(order.sizes) for t in tokens), strict=True))
        c_before, h_before = self.c0_dot, self.h0_dot
        for z_t, factor_t, keep_t, read_t, c_t, m_t, h_t in steps[:: order.way]:
            n = len(z_t)
            if n != len(c_before):
                c_before = torch.cat([c_before[:n], self.c0_dot[len(c_before) : n]])
                h_before = torch.cat([h_before[:n], self.h0_dot[len(h_before) : n]])
            parts = z_t.addmm_(h_before, w.W_hh.T).view(factor_t.shape) * factor_t
            torch.sum(parts[:, :of_c], 1, out=c_t).addcmul_(keep_t, c_before)
            torch.mul(read_t, c_t, out=m_t)
            if "o" in self.cell.gates:
                m_t.add_(parts[:, of_c])
            if w.W_hr is not None:
                h_t.addmm_(m_t, w.W_hr.T)
            c_before, h_before = c_t, h_t
        dot = {"c": c_dot, "c_before": order.before(c_dot, self.c0_dot)}
        dot["out"] = self._through("out", c_dot)
        gates = self._gates(z)
        for gate, seen, p in self._peepholes(w.peep):
            gates[gate].addcmul_(p, dot[seen])
        dot |= {gate: self._through(gate, z_dot) for gate, z_dot in gates.items()}
        return self._with_the_others(dot, 0.0)

    # --- the second walk

    def turn(self, d_tape: Tensor, d_h: Tensor) -> None:
        """What arrives at h and at the slots, by their total gradients. (17) to (19)"""
        cell, w_dot, v, dot, order = self.cell, self.w_dot, self.value, self.dot, self.order
        d = dict(zip(cell.slots, d_tape.unbind(1), strict=True))
        d.setdefault("c", d["g"])
        d_m = d_h if self.w.W_hr is None else d_h @ self.w.W_hr
        self.d_h, self.d_z = d_h, {gate: self._through(gate, d[gate]) for gate in cell.gates}
        to: Named = {}
        for gate, partner in self._partners(dot).items():
            if gate in cell.gates:
                to[gate] = d[gate] * self._bend(gate) * self.z_dot[gate]
                to[gate].addcmul_(d_m if gate == "o" else d["c"], partner)
        of_out = torch.addcmul(dot["o"], v["o"] * self._bend("out"), dot["c"]).mul_(d_m)
        if w_dot.W_hr is not None:
            m = d_h @ w_dot.W_hr
            of_out.addcmul_(m, v["o"])
            if "o" in to:
                to["o"].addcmul_(m, v["out"])
        to["c"], back = self._through("out", of_out), d["c"] * dot["f"]
        for gate, seen, p in self._peepholes(w_dot.peep):
            (to["c"] if seen == "c" else back).addcmul_(self.d_z[gate], p)
        from_after, self.arriving_c0 = order.towards(back)
        to["c"] += from_after
        if not cell.has_cell_state:
            to["g"] += to["c"]
        self.arriving, self.all_d_z = to, torch.cat(list(self.d_z.values()), 1)
        self.arriving_h, self.arriving_h0 = torch.zeros_like(self.h), torch.zeros_like(self.h0)
        if w_dot.W_hh is not None:
            self.arriving_h, self.arriving_h0 = order.towards(self.all_d_z @ w_dot.W_hh)

    def add_rest(self, found: Flat) -> None:
        """Add, to what the second walk found, what it does not see. (20)"""
        d_x, _, d_h0, d_c0, *d_weights = found
        d_w, z = Partial._make(native.of_direction(d_weights, self.d)), self.all_d_z
        if d_x is not None and self.w_dot.W_ih is not None:
            d_x.add_((z @ self.w_dot.W_ih).view(d_x.shape))
        if d_h0 is not None:
            d_h0[self.d].add_(self.arriving_h0)
        if d_c0 is not None:
            d_c0[self.d].add_(self.arriving_c0)
        if d_w.W_ih is not None and self.x_dot is not None:
            d_w.W_ih.addmm_(z.T, self.x_dot)
        if d_w.W_hh is not None:
            d_w.W_hh.addmm_(z.T, self.order.before(self.h_dot, self.h0_dot))
        if d_w.W_hr is not None:
            d_w.W_hr.addmm_(self.d_h.T, self.m_dot)
        for gate, seen, d_p in self._peepholes(d_w.peep):
            d_p.add_((self.d_z[gate] * self.dot[seen]).sum(0))
