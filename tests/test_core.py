"""The kernels against the page: every cell and instruction set, odd sizes, poisoned buffers."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gatewise
from gatewise import _core, reference
from gatewise.reference import Weights
from gatewise.spec import CELLS

ISAS = _core.info()["isas"]

# Largest error against the page in float64, relative to the largest value of that array. A float32
# sum of K products drifts by about sqrt(K) half-ulps of 6e-8; a gradient is a sum over tokens of
# such sums, and a state has been through T steps.
BOUNDS = {
    torch.float32: {"value": 2e-6, "gradient": 5e-6},
    torch.float64: {"value": 1e-14, "gradient": 2e-14},
}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """An instruction set, with all the threads that a problem names, however small it is."""
    with kernels(request.param):
        yield request.param


@contextmanager
def kernels(isa: str) -> Iterator[None]:
    """These kernels, for every number of threads, with scratch memory of NaN that they may not read
    before they write it, nor leave."""
    before, work = _core.info()["isa"], _core.work_per_thread(0.0)
    guards, rows = _core.guard_workspaces(True), _core.rows_of_worker(2)
    _core.select_isa(isa)
    yield
    _core.select_isa(before)
    _core.rows_of_worker(rows)
    _core.work_per_thread(work)
    _core.guard_workspaces(guards)


@dataclass(frozen=True)
class Problem:
    """One layer: sizes, lengths (longest first, or None), what is given and what is asked."""

    T: int = 5
    B: int = 3
    I: int = 4
    H: int = 5
    P: int | None = None  # projection
    D: int = 1
    lengths: tuple[int, ...] | None = None
    bias: bool = True
    states: bool = True
    dtype: torch.dtype = torch.float32
    threads: int = 1
    cell: str = "lstm"

    @property
    def batch_sizes(self) -> list[int] | None:
        if self.lengths is None:
            return None
        return [sum(n > t for n in self.lengths) for t in range(self.lengths[0])]


def make(p: Problem) -> dict[str, Any]:
    """Inputs in float64 whose values fit p.dtype exactly."""
    torch.manual_seed(zlib.crc32(repr(replace(p, threads=1, dtype=torch.float64)).encode()))
    cell = CELLS[p.cell]
    G, P, B = len(cell.gates), p.P or p.H, len(p.lengths) if p.lengths else p.B

    def random(*shape: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*shape, dtype=torch.float64) * scale).to(p.dtype).double()

    s = (p.H + p.I) ** -0.5
    weights = [
        Weights(
            random(G * p.H, p.I, scale=s),
            random(G * p.H, P, scale=s),
            random(G * p.H, scale=0.5) if p.bias else None,
            random(G * p.H, scale=0.5) if p.bias else None,
            random(p.P, p.H, scale=s) if p.P else None,
            random(3, p.H) if cell.peephole else None,
        )
        for _ in range(p.D)
    ]
    tokens = (sum(p.lengths),) if p.lengths else (p.T, B)
    state = cell.has_cell_state
    return {
        "x": random(*tokens, p.I),
        "h0": random(p.D, B, P) if p.states else None,
        "c0": random(p.D, B, p.H) if p.states and state else None,
        "weights": weights,
        "d_y": random(*tokens, p.D * P),
        "d_h_n": random(p.D, B, P) if p.states else None,
        "d_c_n": random(p.D, B, p.H) if p.states and state else None,
        "d_tape": random(p.D, *tokens, len(cell.slots), p.H) if p.states else None,
    }


def on_the_page(p: Problem, given: dict[str, Any]) -> dict[str, Any]:
    """Everything the core computes, by the page and autograd in float64."""
    cell = CELLS[p.cell]
    B, P = len(p.lengths) if p.lengths else p.B, p.P or p.H
    leaf = {k: given[k].clone().requires_grad_() for k in ("x", "h0", "c0") if given[k] is not None}
    weights = [
        Weights(*(None if w is None else w.clone().requires_grad_() for w in ws))
        for ws in given["weights"]
    ]
    h0 = leaf.get("h0", torch.zeros(p.D, B, P, dtype=torch.float64))
    c0 = leaf.get("c0", torch.zeros(p.D, B, p.H, dtype=torch.float64))
    y, h_n, c_n, runs = reference.layer(cell, leaf["x"], h0, c0, weights, p.batch_sizes)
    slots = [[getattr(run.steps, name) for name in cell.slots] for run in runs]
    tape = torch.stack([torch.stack(s, dim=-2) for s in slots])
    loss = (y * given["d_y"]).sum()
    for value, d in ((h_n, given["d_h_n"]), (c_n, given["d_c_n"]), (tape, given["d_tape"])):
        loss = loss if d is None else loss + (value * d).sum()
    wanted = [
        leaf["x"],
        *(leaf[k] for k in ("h0", "c0") if k in leaf),
        *(w for ws in weights for w in ws if w is not None),
    ]
    grads = iter(torch.autograd.grad(loss, wanted, allow_unused=True))
    out: dict[str, Any] = {
        "y": y,
        "h_n": h_n,
        "c_n": c_n if cell.has_cell_state else None,
        "tape": tape,
    }
    out["d_x"] = next(grads)
    out |= {f"d_{k}": next(grads) for k in ("h0", "c0") if k in leaf}
    out["d_weights"] = [[None if w is None else next(grads) for w in ws] for ws in weights]
    return out


def poisoned(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.full(like.shape, float("nan"), dtype=dtype)


def on_the_core(
    p: Problem,
    given: dict[str, Any],
    page: dict[str, Any],
    reduced: bool = False,
    adds: float | None = None,
    brief: Collection[str] = (),
    by_groups: bool = False,
) -> dict[str, Any]:
    """The same by the kernels, into buffers that hold NaN; reduced: with a tape in bfloat16; adds:
    the gradients of x and the weights to this number; brief: x, y and d_y that are bfloat16;
    by_groups: so lies the tape."""

    def dtype(name: str) -> torch.dtype:
        return torch.bfloat16 if name in brief else p.dtype

    def cast(v: Tensor | None, name: str = "") -> Tensor | None:
        return None if v is None else v.to(dtype(name))

    sizes = None if p.lengths is None else torch.tensor(p.batch_sizes)
    x, h0, c0 = (cast(given[k], k) for k in ("x", "h0", "c0"))
    weights = tuple(tuple(cast(w) for w in ws) for ws in given["weights"])
    out = {
        k: None if page[k] is None else poisoned(page[k], dtype(k))
        for k in ("y", "h_n", "c_n", "tape")
    }
    out["d_x"] = torch.full_like(x, float("nan"))  # laid out as x is
    out["tape"] = out["tape"].bfloat16() if reduced else out["tape"]
    inputs = p.cell, x, sizes, h0, c0, weights
    results = (out[k] for k in ("y", "h_n", "c_n", "tape"))
    _core.forward(*inputs, *results, p.threads, reduced=reduced, by_groups=by_groups)
    bare = poisoned(page["y"], dtype("y"))  # inference, without a tape
    h_n, c_n = (None if out[k] is None else poisoned(out[k], p.dtype) for k in ("h_n", "c_n"))
    _core.forward(*inputs, bare, h_n, c_n, None, p.threads, reduced=reduced)
    assert torch.equal(bare, out["y"])
    assert torch.equal(h_n, out["h_n"])
    d_states = {
        f"d_{k}": poisoned(page[f"d_{k}"], p.dtype) for k in ("h0", "c0") if f"d_{k}" in page
    }
    d_weights = [
        [None if d is None or k == 3 else poisoned(d, p.dtype) for k, d in enumerate(ws)]
        for ws in page["d_weights"]
    ]
    for d in (d for ds in ([out["d_x"]], *d_weights) for d in ds if d is not None):
        d.fill_(float("nan") if adds is None else adds)
    g_tape, P = poisoned(page["tape"], p.dtype), out["h_n"].shape[2]
    g_h = torch.full((p.D, *x.shape[:-1], P), float("nan"), dtype=p.dtype)
    saved = [out[k].clone() for k in ("y", "tape")]
    arguments = (
        *inputs, out["y"], out["tape"],
        cast(given["d_y"], "d_y"),
        *(cast(given[k]) for k in ("d_h_n", "d_c_n", "d_tape")),
        out["d_x"], d_states.get("d_h0"), d_states.get("d_c0"),
        tuple(tuple(ws) for ws in d_weights), g_tape, g_h, p.threads,
    )  # fmt: skip
    add = adds is not None
    _core.backward(*arguments, adds=add, adds_inputs=add, by_groups=by_groups)
    assert torch.equal(saved[0], out["y"]), "backward overwrote the output"
    assert torch.equal(saved[1], out["tape"]), "backward overwrote the tape"
    assert not g_tape.isnan().any()
    assert not g_h.isnan().any()
    for ws in d_weights:
        ws[3] = ws[2]
    return out | d_states | {"d_weights": d_weights}


def error(got: Tensor, want: Tensor) -> float:
    """Largest difference relative to the largest value; NaN where either has one.

    A value far below 0.1 is what is left of larger ones that cancelled: it counts as 0.1.
    """
    if want.numel() == 0:
        return 0.0
    return ((got.double() - want).abs().max() / want.abs().max().clamp_min(0.1)).item()


def check(p: Problem) -> None:
    given = make(p)
    page = on_the_page(p, given)
    core = on_the_core(p, given, page)
    bound = BOUNDS[p.dtype]
    for name in ("y", "h_n", "c_n", "tape"):
        if page[name] is not None:
            assert error(core[name], page[name].detach()) < bound["value"], (name, p)
    for name in ("d_x", "d_h0", "d_c0"):
        if name in page:
            assert error(core[name], page[name]) < bound["gradient"], (name, p)
    for d, (got, want) in enumerate(zip(core["d_weights"], page["d_weights"], strict=True)):
        for name, g, w in zip(Weights._fields, got, want, strict=True):
            if w is not None:
                assert error(g, w) < bound["gradient"], (d, name, p)


SIZES = (1, 2, 3, 7, 8, 9, 15, 16, 17, 63, 65, 129)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("H", SIZES)
def test_hidden_sizes(isa: str, H: int, dtype: torch.dtype) -> None:
    check(Problem(T=4, B=3, I=5, H=H, dtype=dtype))
    check(Problem(T=3, B=9, I=2, H=H, D=2, dtype=dtype, threads=2))


@pytest.mark.parametrize("I", SIZES)
def test_input_sizes(isa: str, I: int) -> None:
    check(Problem(T=3, B=2, I=I, H=9))
    check(Problem(T=2, B=7, I=I, H=18, dtype=torch.float64))


@pytest.mark.parametrize("B", SIZES)
def test_batch_sizes(isa: str, B: int) -> None:
    check(Problem(T=3, B=B, I=3, H=17, threads=1))
    check(Problem(T=2, B=B, I=3, H=20, D=2, threads=3))


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize("D", [1, 2])
def test_cells(isa: str, cell: str, D: int) -> None:
    bounded = 2 if cell == "linear" else 9  # products of states lose digits with every step
    for dtype in (torch.float32, torch.float64):
        check(Problem(T=bounded, B=5, I=6, H=19, D=D, cell=cell, dtype=dtype))
    lengths = (2, 2, 1) if cell == "linear" else (11, 7, 7, 2, 1)
    check(Problem(lengths=lengths, I=6, H=37, D=D, cell=cell, threads=2))
    check(Problem(lengths=lengths, I=6, H=70, D=D, cell=cell, states=False, bias=False))


@pytest.mark.parametrize("P", [1, 3, 16, 17, 40])
@pytest.mark.parametrize("D", [1, 2])
def test_projection(isa: str, P: int, D: int) -> None:
    check(Problem(T=5, B=4, I=3, H=41, P=P, D=D))
    check(Problem(lengths=(6, 5, 2, 1), I=7, H=70, P=P, D=D, dtype=torch.float64, threads=2))
    check(Problem(T=4, B=1, I=7, H=41, P=P, D=D, threads=4))


@pytest.mark.parametrize(
    "lengths", [(1,), (5,), (3, 3), (9, 1), (8, 7, 6, 5, 4, 3, 2, 1), (20,) * 3 + (2,) * 20]
)
@pytest.mark.parametrize("D", [1, 2])
def test_lengths(isa: str, lengths: tuple[int, ...], D: int) -> None:
    check(Problem(lengths=lengths, I=5, H=18, D=D))
    check(Problem(lengths=lengths, I=5, H=18, D=D, threads=2, states=False))


@pytest.mark.parametrize("size", SIZES)
def test_one_step(isa: str, size: int) -> None:
    """Single steps go by routes of their own (few.h; forward single.h, up to 128 rows), and few
    rows are not packed (dots.h)."""
    for dtype in (torch.float32, torch.float64):
        check(Problem(T=1, B=3, I=5, H=size, dtype=dtype))
        check(Problem(T=1, B=1, I=size, H=9, dtype=dtype))
    check(Problem(T=1, B=size, I=3, H=17, threads=3))
    check(Problem(T=1, B=2, I=size, H=size, states=False, bias=False, threads=2))
    check(Problem(T=1, B=128, I=size, H=70, threads=2))
    check(Problem(T=1, B=129, I=size, H=70))
    check(Problem(T=1, B=12, I=size, H=70))
    check(Problem(T=1, B=13, I=size, H=70))
    check(Problem(T=1, B=20, I=1030 + size, H=70, threads=3))  # a panel in parts


@pytest.mark.parametrize("cell", list(CELLS))
@pytest.mark.parametrize("H", [5, 19, 70])
def test_one_step_of_every_cell(isa: str, cell: str, H: int) -> None:
    for B in (1, 7, 20):
        check(Problem(T=1, B=B, I=6, H=H, cell=cell))
    check(Problem(T=1, B=4, I=6, H=H, cell=cell, states=False, dtype=torch.float64))
    check(Problem(lengths=(1, 1, 1), I=6, H=H, cell=cell))


def test_many_chunks(isa: str) -> None:
    """Time long enough that backward walks it in several chunks, with states between them."""
    check(Problem(T=1100, B=1, I=3, H=20, threads=2))
    check(Problem(T=150, B=9, I=3, H=20, D=2, threads=2))
    check(Problem(lengths=tuple(range(140, 100, -3)), I=3, H=20, D=2, dtype=torch.float64))


def test_wide_layers(isa: str) -> None:
    """Sums over gates longer than one cache block."""
    check(Problem(T=2, B=3, I=300, H=530))
    check(Problem(T=2, B=13, I=100, H=300, P=130, D=2, dtype=torch.float64, threads=2))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_huge_weights_of_two_directions(isa: str, threads: int) -> None:
    """Of few rows, the directions run one after the other, all workers on each."""
    check(Problem(T=3, B=3, I=20, H=800, D=2, threads=threads))
    check(Problem(lengths=(3, 1), I=20, H=800, P=750, D=2, threads=threads))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_weights(isa: str, threads: int) -> None:
    """Weights so large that their units are split, and rows are not dealt into groups."""
    check(Problem(T=7, B=9, I=330, H=345, threads=threads))
    check(Problem(T=1, B=150, I=330, H=345, threads=threads))
    check(Problem(lengths=(9, 8, 8, 5, 5, 4, 2, 1, 1), I=40, H=345, P=330, threads=threads))


@pytest.mark.parametrize("threads", [1, 2])
def test_large_tape(isa: str, threads: int) -> None:
    """It is written past the caches."""
    check(Problem(T=60, B=32, I=240, H=240, threads=threads))


@pytest.mark.parametrize("cell", ["lstm", "rnn", "peephole", "coupled"])
def test_bits_do_not_depend_on_threads(isa: str, cell: str) -> None:
    problems = (  # each with work enough to be shared by five
        Problem(T=2, B=5, I=20, H=150, cell=cell),
        Problem(T=150, B=1, I=200, H=200, cell=cell),
        Problem(T=60, B=23, I=9, H=70, D=2, cell=cell),
        Problem(
            lengths=(60, 52, 44, 30, 22, 9, 9),
            I=80,
            H=130,
            P=None if cell == "rnn" else 40,
            cell=cell,
        ),
        # By their weights: units split forward and in a group; units split, one group.
        Problem(T=4, B=17, I=150, H=330, cell=cell),
        Problem(lengths=(5, 5, 4, 4, 4, 2, 2, 2, 1), I=300, H=345, cell=cell),
    )
    for p in problems:
        given = make(p)
        page = on_the_page(p, given)
        one = on_the_core(p, given, page)
        for threads in (2, 3, 5):
            many = on_the_core(replace(p, threads=threads), given, page)
            for name, value in one.items():
                if name == "d_weights":
                    assert all(torch.equal(a, b) for ws, vs in zip(value, many[name], strict=True)
                               for a, b in zip(ws, vs, strict=True) if a is not None)  # fmt: skip
                elif value is not None:
                    assert torch.equal(value, many[name]), (name, threads)


@pytest.mark.parametrize("P", [None, 48])
def test_no_worker_reads_what_another_is_yet_to_write(isa: str, P: int | None) -> None:
    """Several chunks and rows that two workers cannot share evenly: one is behind the other."""
    p = Problem(T=60, B=33, I=8, H=64, P=P)
    given = make(p)
    page = on_the_page(p, given)
    one = on_the_core(p, given, page)
    for threads in (2, 2, 2, 3):
        many = on_the_core(replace(p, threads=threads), given, page)
        for ws, vs in zip(one["d_weights"], many["d_weights"], strict=True):
            for name, a, b in zip(Weights._fields, ws, vs, strict=True):
                assert a is None or torch.equal(a, b), (name, threads)


def test_step_by_step_is_the_whole(isa: str) -> None:
    """A sequence fed one step at a time, as parts, gives the bits of the sequence fed whole."""
    for B, I, H, dtype in (
        (1, 5, 37, torch.float32),
        (7, 20, 33, torch.float32),
        (3, 4, 9, torch.float64),
    ):
        given = make(Problem(T=6, B=B, I=I, H=H, dtype=dtype))
        x, h, c = (given[k].to(dtype) for k in ("x", "h0", "c0"))
        weights = tuple(
            tuple(None if w is None else w.to(dtype) for w in ws) for ws in given["weights"]
        )
        y, h_n, c_n = x.new_empty(6, B, H), torch.empty_like(h), torch.empty_like(c)
        _core.forward("lstm", x, None, h, c, weights, y, h_n, c_n, None, 1)
        for t in range(6):
            one, h_next, c_next = x.new_empty(1, B, H), torch.empty_like(h), torch.empty_like(c)
            _core.forward(
                "lstm", x[t : t + 1], None, h, c, weights, one, h_next, c_next, None, 1,
                in_parts=True,
            )  # fmt: skip
            assert torch.equal(one[0], y[t])
            h, c = h_next, c_next
        assert torch.equal(c, c_n)


@pytest.mark.parametrize("D", [1, 2])
def test_exact_with_identity_and_integers(isa: str, D: int) -> None:
    """Small integers, no activations: every product, pack, tail and wire, to the last bit."""
    torch.manual_seed(3)
    for T, I, H, B, P in (
        (2, 3, 17, 5, None),
        (2, 16, 5, 2, 3),
        (2, 9, 33, 1, 20),
        (1, 9, 33, 3, None),
    ):
        p = Problem(T=T, B=B, I=I, H=H, P=P, D=D, cell="linear", states=True)
        given = make(p)
        for key, value in given.items():
            if key == "weights":
                given[key] = [
                    Weights(
                        *(None if w is None else torch.randint(-1, 2, w.shape).double() for w in ws)
                    )
                    for ws in value
                ]
            elif value is not None:
                given[key] = torch.randint(-1, 2, value.shape).double()
        for dtype in (torch.float64,):
            q = replace(p, dtype=dtype)
            page = on_the_page(q, given)
            core = on_the_core(q, given, page)
            largest = max(v.abs().max().item() for v in (page["y"], page["tape"], page["d_x"]))
            assert largest < 2**53
            for name in ("y", "h_n", "c_n", "tape", "d_x", "d_h0", "d_c0"):
                assert torch.equal(core[name].double(), page[name]), (name, p)
            for got, want in zip(core["d_weights"], page["d_weights"], strict=True):
                for name, g, w in zip(Weights._fields, got, want, strict=True):
                    assert w is None or torch.equal(g.double(), w), (name, p)


def test_strided_input_and_output(isa: str) -> None:
    """Batch-first arrays are views here: the kernels read and write through strides."""
    given = make(Problem(T=5, B=4, I=6, H=11, D=2))
    weights = tuple(tuple(None if w is None else w.float() for w in ws) for ws in given["weights"])
    x = given["x"].float()
    h, c = torch.empty(2, 4, 11), torch.empty(2, 4, 11)
    y = torch.full((5, 4, 22), float("nan"))
    _core.forward("lstm", x, None, None, None, weights, y, h, c, None, 1)
    room = torch.full((4, 5, 30), float("nan"))
    wide = torch.randn(4, 5, 13)
    wide[:, :, 2:8] = x.transpose(0, 1)
    _core.forward(
        "lstm",
        wide[:, :, 2:8].transpose(0, 1),
        None,
        None,
        None,
        weights,
        room[:, :, 3:25].transpose(0, 1),
        h,
        c,
        None,
        2,
    )
    assert torch.equal(room[:, :, 3:25].transpose(0, 1), y)
    assert room[:, :, :3].isnan().all()
    assert room[:, :, 25:].isnan().all()


def test_nan_and_infinity_stay_where_they_belong(isa: str) -> None:
    x = torch.randn(4, 3, 2)
    x[1, 0, 0] = float("nan")
    x[1, 1, 0] = float("inf")
    m = torch.nn.LSTM(2, 18)
    weights = (tuple(w.detach() for w in m.all_weights[0]) + (None, None),)
    y, h, c = torch.empty(4, 3, 18), torch.empty(1, 3, 18), torch.empty(1, 3, 18)
    _core.forward("lstm", x, None, None, None, weights, y, h, c, None, 1)
    want = m(x)[0].detach()
    assert torch.equal(y.isnan(), want.isnan())
    ok = ~want.isnan()
    assert (y[ok] - want[ok]).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
def test_gradients_of_infinite_input(isa: str, dtype: torch.dtype) -> None:
    """A gate that infinity shut is shut: zero times infinity is no number, here as on the page."""
    ours, torchs = gatewise.LSTM(5, 7, dtype=dtype), torch.nn.LSTM(5, 7, dtype=dtype)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(4, 3, 5, dtype=dtype)
    x[1, 1, 1], x[2, 0, 0] = float("inf"), -float("inf")
    for got, want in zip(*(_gradients(m, x) for m in (ours, torchs)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("where", ["x", "weight_hh_l0", "bias_ih_l0", "the gradient"])
def test_gradients_of_a_relu_that_is_no_number(isa: str, where: str) -> None:
    """Its gradient passes, as on the page and in torch; a relu at 0 stops even one that is none."""
    ours, torchs = (cls(5, 7, nonlinearity="relu") for cls in (gatewise.RNN, torch.nn.RNN))
    x, d_y = torch.randn(4, 3, 5), torch.randn(4, 3, 7)
    given = {"x": x, "the gradient": d_y, **dict(torchs.named_parameters())}
    given[where].detach().view(-1)[3] = float("nan")
    ours.load_state_dict(torchs.state_dict())
    both = [torch.autograd.grad(m(x)[0], list(m.parameters()), d_y) for m in (ours, torchs)]
    for got, want in zip(*both, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, equal_nan=True)


def _gradients(m: torch.nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(m(x)[0].nan_to_num().sum(), list(m.parameters()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_activation_error(isa: str, dtype: type) -> None:
    """The errors that act.h states, measured; exact saturation; NaN and infinity."""
    x = np.concatenate(
        [np.linspace(-30, 30, 400_001), np.linspace(-1, 1, 100_001), np.logspace(-30, 2, 5000)]
    ).astype(dtype)
    s, t = np.full_like(x, np.nan), np.full_like(x, np.nan)
    _core.activations(x, s, t)
    exact = x.astype(np.longdouble)
    sigmoid, tanh = 1 / (1 + np.exp(-exact)), np.tanh(exact)
    unit = np.finfo(dtype).eps
    assert np.max(np.abs(s - sigmoid)) < 1.5 * unit
    assert np.max(np.abs(t - tanh)) < 2 * unit
    assert np.max(np.abs(t - tanh) / np.abs(tanh).clip(1e-30)) < 4 * unit  # also near zero
    edge = np.array([np.inf, -np.inf, np.nan, 0.0, 1e4, -1e4], dtype)
    s, t = np.empty_like(edge), np.empty_like(edge)
    _core.activations(edge, s, t)
    assert s[0] == 1
    assert 0 <= s[1] < 1e-37
    assert np.isnan([s[2], t[2]]).all()
    assert (s[3], t[3]) == (0.5, 0)
    assert (t[0], t[1], t[4], t[5]) == (1, -1, 1, -1)


def test_both_tables_of_cells_are_equal() -> None:
    native = _core.cells()
    assert list(native) == list(CELLS)
    for name, row in CELLS.items():
        fields = native[name]
        assert all(
            fields[k] == getattr(row, k) for k in ("i", "f", "g", "o", "out", "coupled", "peephole")
        )
        assert fields["gates"] == len(row.gates)
        assert fields["slots"] == len(row.slots)


@pytest.mark.parametrize(
    "p",
    [
        Problem(T=30, B=9, I=5, H=17, cell="peephole"),
        Problem(T=30, B=9, I=5, H=17, P=4, D=2),
        Problem(T=3, B=2, I=90, H=130, cell="peephole"),  # few.h
        Problem(lengths=(11, 7, 7, 2, 1), I=6, H=37, D=2, threads=2),
    ],
    ids=str,
)
def test_gradients_added_to_what_is_there(isa: str, p: Problem) -> None:
    given = make(p)
    page = on_the_page(p, given)
    core = on_the_core(p, given, page, adds=0.5)
    for got, want in zip(core["d_weights"], page["d_weights"], strict=True):
        for g, w in zip(got, want, strict=True):
            assert w is None or error(g - 0.5, w) < BOUNDS[torch.float32]["gradient"]
    assert error(core["d_x"] - 0.5, page["d_x"]) < BOUNDS[torch.float32]["gradient"]


def test_saturated_gates(isa: str) -> None:
    """Extreme biases: gates shut or wide open lose nothing in the gradients."""
    for gate in range(4):
        for value in (-60.0, -20.0, 20.0):
            p = Problem(T=6, B=4, I=5, H=17)
            given = make(p)
            given["weights"][0].b_ih[gate * 17 : (gate + 1) * 17] = value
            page = on_the_page(p, given)
            core = on_the_core(p, given, page)
            for g, w in zip(core["d_weights"][0], page["d_weights"][0], strict=True):
                assert w is None or error(g, w) < BOUNDS[torch.float32]["gradient"], (gate, value)


def test_unknown_isa_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"expected one of .*base.* got 'mmx'"):
        _core.select_isa("mmx")
