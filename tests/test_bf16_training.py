"""Training with products in bfloat16, and the tape that is kept in it: core/bf16.h, native.py.

Integers that bfloat16 holds say what every gradient is, to the last bit. Otherwise the page in
float64 says how far off one is; and how far one may be, what torch's own bfloat16 reaches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_bf16 import PAIRS
from test_core import SIZES, Problem, kernels, make, on_the_core, on_the_page
from torch import Tensor

import gatewise
from gatewise import _core
from gatewise.reference import Weights
from gatewise.spec import CELLS

# Norm of the error over the norm: torch's bfloat16, on a processor where it trains in it, is off by
# 3.1e-3 forward and by 4.4e-3 to 5.1e-3 in gradients.
BOUNDS = {"value": 3.5e-3, "gradient": 5.1e-3}


@pytest.fixture(params=PAIRS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels(request.param):
        yield request.param


def train(p: Problem, given: dict[str, Any], page: dict[str, Any]) -> dict[str, Any]:
    """A step of training by reduced kernels, flat: every result and every gradient by its name."""
    out = on_the_core(p, given, page, reduced=True)
    return flat(out | {"tape": out["tape"].float()})


def flat(out: dict[str, Any]) -> dict[str, Tensor]:
    named = {k: v for k, v in out.items() if k != "d_weights" and v is not None}
    for d, ws in enumerate(out["d_weights"]):
        named |= {
            f"d_{k}[{d}]": w for k, w in zip(Weights._fields, ws, strict=True) if w is not None
        }
    return {k: v.detach() for k, v in named.items()}


def off(got: Tensor, want: Tensor) -> float:
    """Norm of the error over the norm; NaN where either has one."""
    return ((got.double() - want).norm() / want.norm().clamp_min(1e-30)).item()


def check(p: Problem, bounds: dict[str, float]) -> None:
    given = make(p)
    page = on_the_page(p, given)
    got = train(p, given, page)
    for name, want in flat(page).items():
        bound = bounds["gradient" if name.startswith("d_") else "value"]
        assert off(got[name], want) < bound, (name, p)


# Of few numbers: their errors do not even out, and a sum may all but cancel.
SMALL = {"value": 3e-2, "gradient": 3e-2}


@pytest.mark.parametrize("size", SIZES)
def test_sizes(isa: str, size: int) -> None:
    check(Problem(T=4, B=3, I=5, H=size), SMALL)
    check(Problem(T=3, B=9, I=size, H=18, D=2, threads=2), SMALL)
    check(Problem(T=3, B=size, I=3, H=17, threads=3), SMALL)
    check(Problem(T=1, B=5, I=size, H=9, D=2, bias=False, states=False), SMALL)


@pytest.mark.parametrize("cell", list(CELLS))
def test_cells(isa: str, cell: str) -> None:
    lengths = (2, 2, 1, 1, 1) if cell == "linear" else (9, 7, 7, 2, 1)
    bounds = SMALL | ({"gradient": 0.2} if cell == "rnn_relu" else {})  # rounded, z may change sign
    check(Problem(lengths=lengths, I=6, H=37, D=2, cell=cell, threads=2), bounds)
    check(Problem(T=2, B=11, I=6, H=70, cell=cell, states=False, bias=False), bounds)


@pytest.mark.parametrize("P", [1, 3, 17, 40])
def test_projection(isa: str, P: int) -> None:
    check(Problem(T=5, B=4, I=3, H=41, P=P, D=2), SMALL)
    check(Problem(lengths=(6, 5, 2, 1), I=7, H=70, P=P, threads=2), SMALL)
    check(Problem(T=4, B=1, I=7, H=41, P=P, threads=4), SMALL)


@pytest.mark.parametrize(
    "p",
    [
        Problem(T=60, B=32, I=64, H=64),
        Problem(T=1100, B=1, I=7, H=33, threads=2),
        Problem(T=150, B=9, I=33, H=31, D=2, threads=2),
        Problem(T=25, B=17, I=65, H=129, P=40),
        Problem(lengths=tuple(range(140, 100, -3)), I=20, H=63, D=2, threads=2),
        Problem(T=4, B=9, I=400, H=601, threads=2),  # weights so large that units are split
    ],
    ids=["H=64", "B=1", "B=9", "projection", "lengths", "wide_layers"],
)
def test_error(isa: str, p: Problem) -> None:
    """No larger than that of torch's bfloat16; several chunks."""
    check(p, BOUNDS)


def sparse_integers(p: Problem) -> dict[str, Any]:
    """-1, 0 and 1, a row of a weight with one number that is not 0: two steps of the cell without
    activations stay below 256, up to which bfloat16 holds every integer."""
    given = make(p)

    def small(t: Tensor | None) -> Tensor | None:
        return None if t is None else torch.randint(-1, 2, t.shape).double()

    def row_by_row(w: Tensor | None) -> Tensor | None:
        if w is None:
            return None
        at = torch.arange(len(w)) % w.shape[1]  # spread, so that columns have few, too
        return torch.zeros_like(w).scatter_(
            1, at[:, None], torch.randint(-1, 2, (len(w), 1)).double()
        )

    weights = [
        Weights(row_by_row(w.W_ih), row_by_row(w.W_hh), None, None, row_by_row(w.W_hr), None)  # type: ignore[arg-type]
        for w in given["weights"]
    ]
    return {k: small(v) for k, v in given.items() if k != "weights"} | {"weights": weights}


@pytest.mark.parametrize("D", [1, 2])
def test_integers_to_the_last_bit(isa: str, D: int) -> None:
    """What is packed, paired, split and wired, in any length; an odd number of everything."""
    torch.manual_seed(7)
    for p in (
        Problem(T=2, B=5, I=3, H=17),
        Problem(T=2, B=1, I=5, H=33, threads=2),
        Problem(lengths=(2, 2, 2, 1, 1, 1, 1), I=2, H=70, threads=2),
        Problem(T=2, B=601, I=33, H=9, threads=3),  # a chunk is one step
        Problem(T=1, B=9, I=3, H=33, P=20),
        Problem(T=1, B=50, I=3, H=67, P=41, threads=2),
        Problem(lengths=(2, 2, 1, 1, 1), I=4, H=19, P=7),
    ):
        q = replace(p, cell="linear", D=D, states=False, bias=False)
        given = sparse_integers(q)
        page = on_the_page(q, given)
        assert max(v.abs().max() for k, v in page.items() if k in ("tape", "y", "d_x")) < 257
        got = train(q, given, page)
        for name, want in flat(page).items():
            assert torch.equal(got[name].double(), want), (name, q)


def steps_of_a_cell(
    p: Problem, given: list[dict[str, Any]], reduced: list[bool]
) -> tuple[list[dict[str, Any]], tuple[Tensor, ...]]:
    """Each a step of its own of the first's weights, and one sum of their gradients."""
    torch.set_num_threads(p.threads)
    weights = tuple(None if w is None else w.detach().float() for w in given[0]["weights"][0])
    into = (torch.full_like(weights[k], float("nan")) for k in (0, 1))
    sums = _core.TokenSums(*weights[:2], *into, torch.full((len(weights[0]),), float("nan")))
    found = []
    for one, rounds in zip(given, reduced, strict=True):
        x, h, c, d_c = (
            None if one[k] is None else one[k][0].detach().float()
            for k in ("x", "h0", "c0", "d_c_n")
        )
        d_h = (one["d_h_n"] + one["d_y"])[0].float()
        h_n, c_n, tape = _core.step(p.cell, x, h, c, weights, True, rounds)
        assert tape.dtype == (torch.bfloat16 if rounds else torch.float32)
        d_c = None if c_n is None else d_c
        wanted = True, True, c_n is not None
        d = _core.step_gradient(p.cell, wanted, x, h, c, weights, tape, d_h, d_c, sums)
        names = ("h_n", "c_n", "d_x", "d_h0", "d_c0")
        found.append({k: v for k, v in zip(names, (h_n, c_n, *d), strict=True) if v is not None})
    return found, sums.finish()


@pytest.mark.parametrize("threads", [1, pytest.param(3, id="3_threads")])
@pytest.mark.parametrize("rounds", [(True, True, True), (False, True, False), (True, False, True)])
def test_integers_in_steps_of_a_cell(isa: str, rounds: tuple[bool, ...], threads: int) -> None:
    """What is kept until there are many tokens, in numbers or rounded, in any length."""
    torch.manual_seed(8)
    for I, H, batches in (
        (1, 1, (1, 2, 1)),
        (3, 17, (5, 66, 1)),
        (33, 70, (9, 13, 50)),
        (5, 130, (200, 311, 2)),  # more than is kept
    ):
        p = Problem(T=1, I=I, H=H, cell="linear", bias=False, states=True, threads=threads)
        given = [sparse_integers(replace(p, B=B)) | {"d_tape": None} for B in batches]
        given = [one | {"weights": given[0]["weights"]} for one in given]
        pages = [on_the_page(replace(p, B=B), one) for B, one in zip(batches, given, strict=True)]
        got, sums = steps_of_a_cell(p, given, list(rounds))
        for one, page in zip(got, pages, strict=True):
            for name, value in one.items():
                want = page[name] if name in page else page[f"d_{name}"]
                assert torch.equal(value.double(), want[0]), (name, I, H)
        for k, d in enumerate(sums[:2]):
            want = sum(page["d_weights"][0][k] for page in pages)
            assert torch.equal(d.double(), want), (k, I, H)


@pytest.mark.parametrize("cell", [name for name, cell in CELLS.items() if not cell.peephole])
def test_steps_of_a_cell(isa: str, cell: str) -> None:
    """As those of a layer of one step, but for the order of sums."""
    p = Problem(T=1, B=67, I=31, H=41, cell=cell)
    given = make(p) | {"d_tape": None}
    layer = train(p, given, on_the_page(p, given))
    (got,), (d_W_ih, d_W_hh, d_b) = steps_of_a_cell(p, [given], [True])
    of_weights = {"d_W_ih[0]": d_W_ih, "d_W_hh[0]": d_W_hh, "d_b_ih[0]": d_b}
    wanted = {name: layer[name][0] for name in got} | {name: layer[name] for name in of_weights}
    for name, value in (got | of_weights).items():
        largest = wanted[name].abs().max().item()
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-5 * largest)


def test_a_tape_in_bfloat16_is_one_in_float_rounded(isa: str) -> None:
    for p in (
        Problem(T=9, B=5, I=6, H=37, D=2),
        Problem(lengths=(6, 5, 2, 1), I=7, H=41, P=9, threads=2),
    ):
        given = make(p)
        page = on_the_page(p, given)
        short = on_the_core(p, given, page, reduced=True)
        x, h0, c0 = (given[k].float() for k in ("x", "h0", "c0"))
        weights = tuple(
            tuple(None if w is None else w.float() for w in ws) for ws in given["weights"]
        )
        sizes = None if p.lengths is None else torch.tensor(p.batch_sizes)
        y, h_n, c_n = (torch.empty_like(short[k]) for k in ("y", "h_n", "c_n"))
        tape = torch.full(short["tape"].shape, float("nan"))
        _core.forward(p.cell, x, sizes, h0, c0, weights, y, h_n, c_n, tape, 1, reduced=True)
        assert torch.equal(tape.bfloat16(), short["tape"])
        assert torch.equal(y, short["y"])
        assert torch.equal(c_n, short["c_n"])


BRIEF = [
    Problem(T=3, B=2, I=1, H=1),
    Problem(T=9, B=5, I=6, H=37, D=2),
    Problem(T=40, B=32, I=27, H=64, threads=2),
    Problem(T=30, B=1, I=33, H=90, D=2, threads=3, states=False),
    Problem(T=1, B=9, I=15, H=16),
    Problem(T=1, B=66, I=15, H=40, threads=2, states=False),
    Problem(lengths=(6, 5, 2, 1), I=7, H=41, P=9, D=2, threads=2),
    Problem(lengths=tuple(range(60, 20, -3)), I=20, H=63, D=2, threads=2),
    Problem(T=5, B=4, I=65, H=41, P=17, bias=False, states=False),
    Problem(T=4, B=9, I=400, H=601, threads=2),
    Problem(T=6, B=7, I=3, H=35, cell="rnn", D=2),
    Problem(T=6, B=7, I=3, H=35, cell="peephole"),
]


@pytest.mark.parametrize("brief", [("x",), ("y",), ("d_y",), ("x", "y", "d_y")], ids="+".join)
@pytest.mark.parametrize("p", BRIEF, ids=str)
def test_tokens_in_bfloat16_are_those_in_float_rounded(
    isa: str, p: Problem, brief: tuple[str, ...]
) -> None:
    given = make(p)
    for k in ("x", "d_y"):
        given[k] = given[k].detach().bfloat16().double().requires_grad_(k == "x")
    page = on_the_page(p, given)
    whole = flat(on_the_core(p, given, page, reduced=True))
    short = flat(on_the_core(p, given, page, reduced=True, brief=brief))
    if "y" in brief:
        whole |= {"y": whole["y"].bfloat16(), "h_n": whole["h_n"].bfloat16().float()}
    if "x" in brief:
        whole["d_x"] = whole["d_x"].bfloat16()
    for name, value in whole.items():
        assert torch.equal(value, short[name]), name


def test_tokens_in_bfloat16_may_be_parts_of_others(isa: str) -> None:
    """Nothing behind them is read or written."""
    p = Problem(T=4, B=5, I=19, H=21, D=2)
    given = make(p)
    page = on_the_page(p, given)

    def part(n: int, of: Tensor | None = None) -> Tensor:
        room = torch.full((p.T, p.B, n + 3), float("nan"), dtype=torch.bfloat16)
        return room[..., :n] if of is None else room[..., :n].copy_(of)

    def rest(of: Tensor) -> Tensor:
        return of.as_strided((p.T, p.B, 3), of.stride(), of.shape[-1])

    x, y, d_x = part(p.I, given["x"].detach()), part(2 * p.H), part(p.I)
    d_y = part(2 * p.H, given["d_y"])
    whole = on_the_core(p, given, page, reduced=True, brief=("x", "y", "d_y"))
    h0, c0, d_h_n, d_c_n, d_tape = (
        given[k].detach().float() for k in ("h0", "c0", "d_h_n", "d_c_n", "d_tape")
    )
    weights = tuple(tuple(None if w is None else w.float() for w in ws) for ws in given["weights"])
    h_n, c_n, tape = (torch.empty_like(whole[k]) for k in ("h_n", "c_n", "tape"))
    _core.forward(p.cell, x, None, h0, c0, weights, y, h_n, c_n, tape, 2, reduced=True)
    _core.backward(
        p.cell, x, None, h0, c0, weights, y, tape, d_y, d_h_n, d_c_n, d_tape,
        d_x, None, None, ((None,) * 6,) * 2, None, None, 2,
    )  # fmt: skip
    assert torch.equal(y, whole["y"])
    assert torch.equal(d_x, whole["d_x"])
    assert rest(y).isnan().all()
    assert rest(d_x).isnan().all()


def test_only_reduced_runs_have_tokens_in_bfloat16(isa: str) -> None:
    p = Problem()
    given = make(p)
    page = on_the_page(p, given)
    for brief in ("x", "y", "d_y"):
        with pytest.raises(TypeError, match=f"^{brief}: expected .*float32"):
            on_the_core(p, given, page, brief=(brief,))
    with pytest.raises(TypeError, match="d_x: expected the dtype of x"):  # added to what is there
        on_the_core(p, given, page, reduced=True, brief=("x",), adds=1.0)


@pytest.mark.parametrize("forget_bias", [0.0, 3.0])
def test_what_the_tape_costs(forget_bias: float) -> None:
    """Gates in bfloat16 put gradients off by what everybody's are; c beside them adds little, so it
    is rounded there. (In the run it stays float.) Products in float, to see the tape alone."""
    p = Problem(T=60, B=8, I=32, H=32)
    given = make(p) | {"d_tape": None}
    given["weights"][0].b_ih[p.H : 2 * p.H] += forget_bias
    page = on_the_page(p, given)
    exact = page["tape"].detach()
    gates = torch.cat([exact[..., :4, :].bfloat16().double(), exact[..., 4:, :]], dim=-2)
    errors = []
    for tape in (gates, exact.bfloat16().double()):
        grads = backward(p, given, page, tape)
        errors.append([off(d, page[name]) for name, d in grads.items()])
    for of_gates, of_all in zip(*errors, strict=True):
        assert of_gates > 1e-3, "not rounded at all"
        assert of_all < 1.15 * of_gates


def backward(
    p: Problem, given: dict[str, Any], page: dict[str, Any], tape: Tensor
) -> dict[str, Tensor]:
    """d_x, d_h0 and d_c0 by the kernels in float, from this tape."""
    x, h0, c0, y, *d = (
        v.detach().float()
        for v in (*(given[k] for k in ("x", "h0", "c0")), page["y"],
                  *(given[k] for k in ("d_y", "d_h_n", "d_c_n")))
    )  # fmt: skip
    weights = tuple(tuple(None if w is None else w.float() for w in ws) for ws in given["weights"])
    out = {f"d_{k}": torch.empty_like(v) for k, v in (("x", x), ("h0", h0), ("c0", c0))}
    _core.backward(
        p.cell, x, None, h0, c0, weights, y, tape.float(), *d, None, *out.values(),
        ((None,) * 6,), None, None, 1,
    )  # fmt: skip
    return out


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    for p in (
        Problem(T=150, B=1, I=90, H=130),
        Problem(T=60, B=23, I=9, H=70, D=2),
        Problem(T=40, B=5, I=90, H=130, P=40),
        Problem(lengths=(60, 52, 44, 30, 22, 9, 9), I=80, H=130, cell="peephole"),
        Problem(T=4, B=17, I=300, H=530),
    ):
        given = make(p)
        page = on_the_page(p, given)
        one = train(p, given, page)
        for threads in (2, 3, 5):
            many = train(replace(p, threads=threads), given, page)
            for name, value in one.items():
                assert torch.equal(value, many[name]), (name, threads, p)


# --- the module -----------------------------------------------------------------------------------


def step(lstm: gatewise.LSTM, x: Tensor, autocast: bool = True) -> tuple[Tensor, list[Tensor]]:
    """Output, and the gradients by input and parameters, in their dtype."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = lstm(x)[0]
    mix = torch.linspace(-1, 1, y.numel()).reshape(y.shape)
    grads = torch.autograd.grad((y.float() * mix).sum(), [x, *lstm.parameters()])
    assert all(d.dtype == x.dtype for d in grads)
    return y.detach(), list(grads)


@pytest.mark.parametrize("sizes", [{}, {"bidirectional": True}, {"proj_size": 20, "bias": False}])
@pytest.mark.parametrize("B", [1, 6])
def test_autocast(isa: str, B: int, sizes: dict[str, Any]) -> None:
    """Trains in the numbers that it infers in, as near to float64 as torch would be, the same bits
    whether or not somebody watches or checkpoints."""
    torch.manual_seed(4)
    lstm, x = gatewise.LSTM(33, 47, num_layers=2, **sizes), torch.randn(50, B, 33)
    y, grads = step(lstm, x)
    assert y.dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(lstm(x)[0], y)
    assert not torch.equal(step(lstm, x, autocast=False)[0].bfloat16(), y)
    with gatewise.tracing(lstm):
        watched = step(lstm, x)
    lstm.checkpoint = 7  # the last stretch is one step
    less = step(lstm, x)
    lstm.checkpoint = None
    exact = step(lstm.double(), x.double(), autocast=False)
    for found, same in ((watched, True), (less, False)):
        assert torch.equal(found[0], y)
        for got, want in zip(found[1], grads, strict=True):
            assert torch.equal(got, want) if same else off(got, want.double()) < 1e-3
    assert off(y, exact[0]) < BOUNDS["value"] + 2**-9
    together = [torch.cat([d.flatten() for d in of]) for of in (grads, exact[1])]
    assert off(*together) < 2 * BOUNDS["gradient"]  # two layers


def test_one_step_is_float(isa: str) -> None:
    """Of few sequences: to round the weights costs more than products in bfloat16 save."""
    lstm, x = gatewise.LSTM(8, 16), torch.randn(1, 15, 8)
    y, grads = step(lstm, x)
    exact = step(lstm, x, autocast=False)
    assert torch.equal(y, exact[0].bfloat16())
    assert all(off(a, b.double()) < 5e-3 for a, b in zip(grads, exact[1], strict=True))
    one_more = step(lstm, torch.cat([x, x[:, :1]], dim=1))[0]
    assert torch.equal(one_more[:, :15], y) == (not _core.has_pairs())


@pytest.mark.parametrize("proj_size", [0, 20])
def test_the_gradient_by_x_does_not_depend_on_whether_weights_have_one(
    isa: str, proj_size: int
) -> None:
    lstm, x = gatewise.LSTM(5, 33, proj_size=proj_size), torch.randn(70, 9, 5, requires_grad=True)
    found = []
    for wanted in (True, False):
        lstm.requires_grad_(wanted)
        with torch.autocast("cpu", torch.bfloat16):
            y = lstm(x)[0]
        found += torch.autograd.grad(y.float().square().sum(), [x])
    assert found[0].abs().max() > 0
    assert torch.equal(*found)


@pytest.mark.parametrize("isa", ["base"], indirect=True)
def test_without_such_products_all_is_float(isa: str) -> None:
    lstm, x = gatewise.LSTM(8, 16), torch.randn(9, 4, 8)
    y, _ = step(lstm, x)
    assert torch.equal(y, step(lstm, x, autocast=False)[0].bfloat16())
    p = Problem()
    given = make(p)
    page = on_the_page(p, given)
    with pytest.raises(TypeError, match="tape: expected the dtype of x"):
        on_the_core(p, given, page, reduced=True)


def test_the_tape_takes_half_the_memory(isa: str) -> None:
    kept: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        kept.append(t)
        return t

    lstm, x = gatewise.LSTM(8, 16), torch.randn(9, 4, 8)
    watch = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with watch, torch.autocast("cpu", torch.bfloat16):
        lstm(x)
    (tape,) = (t for t in kept if t.dim() == 5)
    assert tape.nbytes == 9 * 4 * 5 * 16 * 2
    assert tape.dtype == torch.bfloat16


def test_compiled(isa: str) -> None:
    """The same products; a tape in float, since whoever holds the graph may look at it."""
    torch._dynamo.reset()
    lstm, x = gatewise.LSTM(8, 16), torch.randn(9, 4, 8)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    y, grads = step(lstm, x)
    got = step(compiled, x)
    assert torch.equal(got[0], y)
    assert all(torch.equal(a, b) for a, b in zip(got[1], grads, strict=True))


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's make_dual
def test_forward_mode_and_vmap(isa: str) -> None:
    """A tangent is the page's; mapped over, a run is the same run."""
    lstm, x, v = gatewise.LSTM(3, 5), torch.randn(6, 4, 3), torch.randn(6, 4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y, tangent = torch.func.jvp(lambda x: lstm(x)[0], (x,), (v,))
        mapped = torch.func.vmap(lambda x: lstm(x)[0])(torch.stack([x, 2 * x]))
        one_by_one = torch.stack([lstm(x)[0], lstm(2 * x)[0]])
    exact = torch.func.jvp(lambda x: lstm(x)[0], (x,), (v,))
    assert off(y, exact[0].double()) < 1e-2
    assert off(tangent, exact[1].double()) < 1e-2
    assert torch.equal(mapped, one_by_one)


def test_gradient_of_a_gradient(isa: str) -> None:
    """In float32, also where x and y are bfloat16."""
    lstm, x = gatewise.LSTM(3, 5), torch.randn(6, 4, 3).bfloat16().float().requires_grad_()
    brief = x.detach().bfloat16().requires_grad_()
    found = []
    for given, autocast in ((x, False), (x, True), (brief, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = lstm(given)[0]
        (d_x,) = torch.autograd.grad(y.float().pow(2).sum(), given, create_graph=True)
        assert d_x.dtype == given.dtype
        more = torch.autograd.grad(d_x.float().pow(2).sum(), [given, *lstm.parameters()])
        assert more[0].dtype == given.dtype
        found.append(more)
    for short in found[1:]:
        assert all(off(a, b.double()) < 3e-2 for a, b in zip(short, found[0], strict=True))


def test_gradients_mapped_over(isa: str) -> None:
    lstm, x = gatewise.LSTM(3, 5), torch.randn(6, 4, 3).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = lstm(x)[0]
    d_y = torch.randn(2, *y.shape).bfloat16()
    (many,) = torch.autograd.grad(y, x, d_y, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, x, d, retain_graph=True)[0] for d in d_y]
    assert off(many, torch.stack(each).double()) < 1e-2


@pytest.mark.parametrize("module", ["autocast", "bfloat16"])
def test_what_comes_in_bfloat16_is_kept_and_given_as_it_is(isa: str, module: str) -> None:
    kept: list[Tensor] = []
    lstm, x = gatewise.LSTM(8, 16), torch.randn(9, 4, 8).bfloat16().requires_grad_()
    lstm = lstm.bfloat16() if module == "bfloat16" else lstm
    watch = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with watch, torch.autocast("cpu", torch.bfloat16, enabled=module == "autocast"):
        y = lstm(x)[0]
    assert sum(t.data_ptr() == x.data_ptr() for t in kept) == 1
    assert sum(t.data_ptr() == y.data_ptr() for t in kept) == 1  # not of what was converted
    y.square().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    wide = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        lstm.float()(wide)[0].square().sum().backward()
    assert wide.grad is not None
    assert torch.equal(x.grad, wide.grad.bfloat16())


def test_an_output_in_bfloat16_may_be_changed_before_its_gradient(isa: str) -> None:
    lstm, x = gatewise.LSTM(8, 16), torch.randn(9, 4, 8, requires_grad=True)
    found = []
    for changes in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            y = lstm(x)[0]
        loss = (y.mul_(2) if changes else 2 * y).sum()
        found.append(torch.autograd.grad(loss, [x, *lstm.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
