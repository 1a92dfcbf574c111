"""Products that round what they multiply to bfloat16: core/bf16.h.

The page, given what has been rounded, says what a first step is; integers that bfloat16 holds say
what any step is, to the last bit; and torch's own bfloat16 says how far from float64 one may be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_core import SIZES, Problem, error, kernels, make, on_the_page, poisoned
from torch import Tensor

import gatewise
from gatewise import _core
from gatewise.reference import Weights
from gatewise.spec import CELLS

# Largest error of a step from inputs rounded beforehand: less than that of one activation in act.h,
# which is of saturated ones.
FIRST_STEP = 1.2e-4

PAIRS = [isa for isa in _core.info()["isas"] if isa in ("avx512bf16", "wide")]


@pytest.fixture(params=PAIRS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels(request.param):
        yield request.param


def run(p: Problem, given: dict[str, Any], reduced: bool) -> dict[str, Tensor | None]:
    """A layer in float32 by the kernels, into buffers that hold NaN."""
    cell, B, P = CELLS[p.cell], len(p.lengths) if p.lengths else p.B, p.P or p.H
    tokens = (sum(p.lengths),) if p.lengths else (p.T, B)
    x, h0, c0 = (None if given[k] is None else given[k].float() for k in ("x", "h0", "c0"))
    weights = tuple(tuple(None if w is None else w.float() for w in ws) for ws in given["weights"])
    shapes: dict[str, tuple[int, ...] | None] = {
        "y": (*tokens, p.D * P),
        "h_n": (p.D, B, P),
        "c_n": (p.D, B, p.H) if cell.has_cell_state else None,
        "tape": (p.D, *tokens, len(cell.slots), p.H),
    }
    out = {
        k: None if s is None else poisoned(torch.empty(s), torch.float32) for k, s in shapes.items()
    }
    sizes = None if p.lengths is None else torch.tensor(p.batch_sizes)
    _core.forward(p.cell, x, sizes, h0, c0, weights, *out.values(), p.threads, reduced=reduced)
    return out


def rounded(given: dict[str, Any]) -> dict[str, Any]:
    """The same with all that is multiplied in bfloat16's numbers."""

    def short(w: Tensor | None) -> Tensor | None:
        return None if w is None else w.bfloat16().double()

    return given | {
        "x": short(given["x"]),
        "h0": short(given["h0"]),
        "weights": [
            Weights(short(w.W_ih), short(w.W_hh), w.b_ih, w.b_hh, short(w.W_hr), w.peep)
            for w in given["weights"]
        ],
    }


def check_first_step(p: Problem) -> None:
    """Behind it h is rounded, and whether up or down is chance."""
    given = make(p)
    page, short, wide = (
        on_the_page(p, rounded(given)),
        run(p, given, True),
        run(p, given, False),
    )
    first = 0 if p.lengths is None else slice(0, len(p.lengths))
    for d in range(p.D if p.T == 1 else 1):
        got, want, other = (v["tape"][d, first] for v in (short, page, wide))
        assert error(got, want.detach()) < FIRST_STEP, p
        assert error(other, want.detach()) > FIRST_STEP, "not rounded at all"
    for name in ("y", "h_n", "c_n", "tape"):
        if short[name] is not None:
            assert error(short[name], page[name].detach()) < 2e-2, (name, p)


@pytest.mark.parametrize("size", SIZES)
def test_sizes(isa: str, size: int) -> None:
    check_first_step(Problem(T=3, B=5, I=4, H=size))
    check_first_step(Problem(T=2, B=4, I=size, H=18, D=2))
    check_first_step(Problem(T=2, B=size + 3, I=3, H=17))
    check_first_step(Problem(T=1, B=5, I=size, H=9, D=2))


@pytest.mark.parametrize("cell", list(CELLS))
def test_cells(isa: str, cell: str) -> None:
    T = 2 if cell == "linear" else 7  # products of states lose digits with every step
    check_first_step(Problem(T=T, B=5, I=6, H=37, D=2, cell=cell))
    check_first_step(Problem(T=2, B=4, I=6, H=70, cell=cell, states=False, bias=False))


@pytest.mark.parametrize("cell", list(CELLS))
def test_one_step(isa: str, cell: str) -> None:
    """By a route of its own (single.h); with the bits of a run of two directions, which has not."""
    for p in (
        Problem(T=1, B=5, I=6, H=37, cell=cell),
        Problem(T=1, B=70, I=7, H=70, cell=cell, threads=3, states=False),
        Problem(T=1, B=13, I=2050, H=3, cell=cell, bias=False, threads=2),  # a panel in parts
    ):
        check_first_step(p)
        given = make(replace(p, D=2))
        one = {k: v[:1] if k in ("h0", "c0") and v is not None else v for k, v in given.items()}
        both = run(replace(p, D=2), given, True)
        step = run(p, one | {"weights": given["weights"][:1]}, True)
        assert torch.equal(step["y"], both["y"][..., : p.H])  # type: ignore[index, arg-type]
        assert torch.equal(step["tape"][0], both["tape"][0])  # type: ignore[index]


def integers(p: Problem) -> dict[str, Any]:
    """-1, 0 and 1: then h(1) is at most (I + 2)^3, and bfloat16 holds integers up to 256."""
    given = make(p)

    def small(w: Tensor | None) -> Tensor | None:
        return None if w is None else torch.randint(-1, 2, w.shape).double()

    weights = [Weights(*map(small, w)) for w in given["weights"]]
    return given | {"x": small(given["x"]), "weights": weights}


@pytest.mark.parametrize("D", [1, 2])
def test_integers_to_the_last_bit(isa: str, D: int) -> None:
    """No activations, and every product exact: what is packed, split and wired, in any length."""
    torch.manual_seed(5)
    for p in (
        Problem(T=2, B=5, I=3, H=17, D=D, cell="linear", states=False),
        Problem(
            lengths=(2, 2, 2, 1, 1, 1, 1), I=2, H=70, D=D, cell="linear", states=False, threads=2
        ),
        Problem(T=2, B=61, I=4, H=9, D=D, cell="linear", states=False, threads=3),
        Problem(T=1, B=9, I=3, H=33, P=20, D=D, cell="linear", states=False),
        Problem(T=1, B=7, I=3, H=18, P=1, D=D, cell="linear", states=False, threads=2),
        Problem(T=1, B=50, I=3, H=41, P=67, D=D, cell="linear", states=False),
    ):
        given = integers(p)
        short, wide = run(p, given, True), run(p, given, False)
        for name, value in short.items():
            assert value is not None
            assert wide[name] is not None
            assert torch.equal(value, wide[name]), (name, p)  # type: ignore[arg-type]


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    for p in (
        Problem(T=60, B=23, I=9, H=70, D=2),
        Problem(T=40, B=5, I=90, H=130, P=40),
        Problem(lengths=(60, 52, 44, 30, 22, 9, 9), I=80, H=130),
        Problem(T=1, B=23, I=9, H=70),
    ):
        given = make(p)
        one = run(p, given, True)
        for threads in (2, 3, 5):
            many = run(replace(p, threads=threads), given, True)
            for name in one:
                assert torch.equal(one[name], many[name]), (name, threads)  # type: ignore[arg-type]


def test_activation_error(isa: str) -> None:
    """The errors that act.h states, measured on the gates of a step without weights."""
    z = torch.cat([torch.linspace(-30, 30, 40_001), torch.logspace(-20, 1, 2000)])
    z = torch.cat([z, -z, torch.tensor([0.0, 1e4, -1e4, float("inf"), -float("inf")])])
    H = len(z)
    x, y, h_n, c_n = (
        torch.zeros(1, 1, 1),
        torch.empty(1, 1, 1),
        torch.empty(1, 1, 1),
        torch.empty(1, 1, H),
    )
    weights = (
        torch.zeros(4 * H, 1),
        torch.zeros(4 * H, 1),
        z.repeat(4),
        None,
        torch.zeros(1, H),
        None,
    )
    tape = torch.full((1, 1, 1, 5, H), float("nan"))
    _core.forward("lstm", x, None, None, None, (weights,), y, h_n, c_n, tape, 1, reduced=True)
    i, f, g, o, _ = tape[0, 0, 0].double()
    exact = z.double()
    assert torch.equal(i, o)
    assert (i - exact.sigmoid()).abs().max() < 1.5e-4
    assert (f - exact.sigmoid()).abs().max() < 1.8e-7
    nearly_open = (exact > 0) & (exact < 6)  # beyond, float32 has few digits of 1 - f
    assert ((1 - f) / (-exact).sigmoid() - 1)[nearly_open].abs().max() < 1e-4
    assert (g - exact.tanh()).abs().max() < 1.5e-4
    not_zero = exact != 0
    assert (g / exact.tanh() - 1)[not_zero].abs().max() < 6e-4
    assert i.max() < 1
    assert g.abs().max() < 1


def test_few_rows(isa: str) -> None:
    """Input first, and units split: by other ways, the numbers of many rows."""
    p = Problem(T=70, B=5, I=9, H=70)
    given = make(p)
    many = run(p, given, True)
    for B in (1, 2, 3):
        few = {k: v[:, :B].contiguous() for k, v in given.items() if k in ("x", "h0", "c0")}
        got = run(replace(p, B=B, threads=3), given | few, True)
        assert torch.equal(got["y"], many["y"][:, :B])  # type: ignore[index, arg-type]
        assert torch.equal(got["c_n"], many["c_n"][:, :B])  # type: ignore[index, arg-type]


def test_nan_and_infinity_stay_where_they_belong(isa: str) -> None:
    p = Problem(T=3, B=6, I=4, H=18)
    given = make(p)
    given["x"][1, 0, 0] = float("nan")
    given["x"][1, 1, 1] = float("inf")
    y = run(p, given, True)["y"]
    assert y is not None
    assert y[1:, 0].isnan().all()
    assert not y[0].isnan().any()
    assert not y[:, 2:].isnan().any()
    assert y.nan_to_num(0).isfinite().all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("H", [16, 65])
def test_no_further_from_float64_than_torch(isa: str, H: int, bidirectional: bool) -> None:
    """And the module asks for it: its numbers are not those of a computation in float32."""
    torch.manual_seed(6)
    theirs = torch.nn.LSTM(H, H, 2, bidirectional=bidirectional)
    x = torch.randn(40, 8, H)
    ours = gatewise.LSTM(H, H, 2, bidirectional=bidirectional)
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        short = [m.bfloat16()(x.bfloat16())[0].double() for m in (theirs, ours)]
        exact = ours.double()(x.bfloat16().double())[0]
        in_float = ours.float()(x.bfloat16().float())[0].bfloat16().double()
    off = [(y - exact).norm() / exact.norm() for y in short]
    assert off[1] < 1.02 * off[0]
    assert off[1] < 5e-3
    assert not torch.equal(short[1], in_float)
