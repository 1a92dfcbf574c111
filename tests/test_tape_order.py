"""A tape that lies by groups of rows: core/groups.h, native.in_order.

Where its numbers lie changes none of them: every result and every gradient has the bits of a run
whose tape is in the order of time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from layers import assert_same, random_layer
from test_bf16 import PAIRS
from test_core import ISAS, Problem, kernels, make, on_the_core, on_the_page
from torch import Tensor

import gatewise
from gatewise import _core, native, ops
from gatewise.spec import CELLS


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels(request.param):
        yield request.param


PROBLEMS = [
    Problem(T=5, B=8, I=3, H=5),
    Problem(T=7, B=9, I=6, H=37, D=2),
    Problem(T=3, B=33, I=9, H=18, P=7),
    Problem(T=2, B=130, I=4, H=9),  # several blocks of rows
    Problem(T=80, B=23, I=9, H=33, states=False),  # several chunks
    Problem(lengths=(9, 9, 7, 6, 6, 4, 2, 2, 1), I=7, H=41, D=2),
    Problem(lengths=tuple(range(40, 6, -3)), I=20, H=18, P=5),
    Problem(lengths=(3,) * 8, I=2, H=3, bias=False),
    Problem(lengths=(40,) + (2,) * 8, I=3, H=17, D=2),  # a group of one
    Problem(lengths=(9,) * 3 + (1,) * 20, I=3, H=17),
    Problem(T=6, B=8, I=3, H=35, cell="peephole"),
    Problem(lengths=(6, 5, 5, 3, 3, 2, 1, 1, 1), I=4, H=21, cell="rnn"),
]


def sizes(p: Problem) -> Tensor | None:
    return None if p.lengths is None else torch.tensor(p.batch_sizes)


def has_groups(p: Problem, given: dict[str, Any], itemsize: int) -> bool:
    *tokens, I = given["x"].shape
    B = len(p.lengths) if p.lengths else p.B
    T = p.lengths[0] if p.lengths else p.T
    N, P = torch.Size(tokens).numel(), p.P or p.H
    return _core.rows_of_first_group(p.cell, sizes(p), T, B, N, I, p.H, P, itemsize) < B


def in_time(p: Problem, given: dict[str, Any], tape: Tensor) -> Tensor:
    weights = [w for ws in given["weights"] for w in ws]
    flat = (given["x"], sizes(p), given["h0"], given["c0"], *weights)
    return native.in_order(CELLS[p.cell], flat, tape)


def assert_same_numbers(p: Problem, reduced: bool = False) -> None:
    given = make(p)
    page = on_the_page(p, given)
    expected = on_the_core(p, given, page, reduced)
    assert has_groups(p, given, expected["tape"].itemsize)
    for threads in (1, 2, 3, 4):
        q = replace(p, threads=threads)
        found = on_the_core(q, given, page, reduced, by_groups=True)
        assert not torch.equal(found["tape"], expected["tape"]), "in the order of time"
        found["tape"] = in_time(p, given, found["tape"])
        assert_same(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("p", PROBLEMS, ids=str)
def test_the_same_numbers(isa: str, p: Problem) -> None:
    assert_same_numbers(p)
    assert_same_numbers(replace(p, dtype=torch.float64))


@pytest.mark.parametrize("isa", PAIRS, indirect=True)
@pytest.mark.parametrize("p", PROBLEMS, ids=str)
def test_the_same_numbers_in_bfloat16(isa: str, p: Problem) -> None:
    assert_same_numbers(p, reduced=True)


@hypothesis.given(st.lists(st.integers(1, 60), min_size=8, max_size=40))
def test_half_of_the_tokens_in_each(lengths: list[int]) -> None:
    """As nearly as whole sequences allow, the longest first."""
    lengths = sorted(lengths, reverse=True)
    active = torch.tensor([sum(n > t for n in lengths) for t in range(lengths[0])])
    B, N = len(lengths), sum(lengths)
    first = _core.rows_of_first_group("lstm", active, len(active), B, N, 1, 3, 3, 4)
    if len(active) == 1:
        assert first == B, "one step has one group"
    else:
        apart = [abs(N - 2 * sum(lengths[:k])) for k in range(1, B)]
        assert apart[first - 1] == min(apart)


@pytest.mark.parametrize(
    "p",
    [
        Problem(T=5, B=7, I=3, H=5),  # few sequences
        Problem(T=1, B=9, I=3, H=5),  # one step
        Problem(T=2, B=8, I=40, H=30),  # few tokens: another algorithm
        Problem(T=3, B=300, I=200, H=520),  # large weights
    ],
    ids=["rows", "step", "tokens", "weights"],
)
def test_one_group_is_in_the_order_of_time(isa: str, p: Problem) -> None:
    given = make(p)
    page = on_the_page(p, given)
    expected = on_the_core(p, given, page)
    assert not has_groups(p, given, 4)
    assert_same(on_the_core(p, given, page, by_groups=True), expected, rtol=0, atol=0)


def test_a_tape_of_other_numbers_than_the_products_does_not() -> None:
    if not PAIRS:
        pytest.skip("no kernels that multiply pairs of bfloat16")
    with kernels(PAIRS[0]):
        p = Problem(T=5, B=8)
        given = make(p)
        page = on_the_page(p, given)
        x, h0, c0 = (given[k].float() for k in ("x", "h0", "c0"))
        weights = tuple(
            tuple(None if w is None else w.float() for w in ws) for ws in given["weights"]
        )
        out = [page[k].detach().float() for k in ("y", "h_n", "c_n", "tape")]
        with pytest.raises(TypeError, match="tape: expected bfloat16 of a reduced run"):
            _core.forward(
                p.cell, x, None, h0, c0, weights, *out, 1, reduced=True, by_groups=True
            )  # fmt: skip


# --- what else reads it ---------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "peephole", "rnn"])
def test_gradient_of_a_gradient(cell: str) -> None:
    """Of more rows than one group has; the page is without a tape."""
    layer = random_layer(cell, T=4, B=9, D=2)

    def twice(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        loss = sum((r * r).sum() for r in results if r.numel())
        first = torch.autograd.grad(loss, layer.x, create_graph=True)  # type: ignore[arg-type]
        wanted = [layer.x, *(w for ws in layer.weights for w in ws if w is not None)]
        return torch.autograd.grad(first[0].pow(2).sum(), wanted)

    def run() -> tuple[Tensor, ...]:
        out = ops.layer(layer.cell, layer.x, layer.h0, layer.c0, layer.weights)
        return out.output, out.h_n

    assert_same(twice(run()), twice(layer.page()[:2]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_mapped_over_and_of_packed_input(autocast: bool) -> None:
    lstm = gatewise.LSTM(3, 5)
    lengths = torch.tensor([6, 6, 5, 4, 4, 3, 2, 1, 1])
    x = torch.randn(6, 9, 3, requires_grad=True)
    given = torch.nn.utils.rnn.pack_padded_sequence(x, lengths)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = lstm(given)[0].data
    d_y = torch.randn(3, *y.shape).to(y.dtype)
    (many,) = torch.autograd.grad(y, x, d_y, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(y, x, d, retain_graph=True)[0] for d in d_y]
    bounds = {"rtol": 0.05, "atol": 0.02} if autocast else {}
    assert_same(many, torch.stack(each), **bounds)
