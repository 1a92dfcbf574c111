"""A single step in bfloat16, whose large weights are read as they lie (bind_step.cpp, dots.h)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_core import ISAS, kernels
from torch import Tensor

import gatewise
from gatewise import formulas, native
from gatewise.reference import Weights
from gatewise.spec import CELLS, CellSpec

BF16 = torch.bfloat16
SIZES = [  # B, I, H
    (1, 64, 64), (1, 1, 1), (2, 1, 200), (3, 13, 50), (7, 65, 33), (16, 5, 17), (5, 200, 1),
]  # fmt: skip


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels(request.param):
        yield request.param


def step_of(cell: CellSpec, B: int, I: int, H: int) -> tuple[Tensor, Tensor, Tensor, Weights]:
    G = len(cell.gates)
    W_ih, W_hh = torch.randn(G * H, I) / I**0.5, torch.randn(G * H, H) / H**0.5
    peep = torch.randn(3, H).to(BF16) if cell.peephole else None
    w = [t.to(BF16) for t in (W_ih, W_hh, torch.randn(G * H), torch.randn(G * H))]
    x, h, c = (torch.randn(B, n).to(BF16) for n in (I, H, H))
    return x, h, c, Weights(*w, None, peep)


def assert_rounded(found: Tensor | None, exact: Tensor) -> None:
    """The bfloat16 next to what is exact, which is itself known to the errors of a float32 step."""
    assert found is not None
    assert found.dtype == BF16
    assert ((found.double() - exact).abs() <= exact.abs() / 2**8 + 2e-6).all()


@pytest.mark.parametrize("cell", [name for name in CELLS if native.covers(CELLS[name])])
@pytest.mark.parametrize(("B", "I", "H"), SIZES)
def test_it_is_the_step_of_the_page(isa: str, cell: str, B: int, I: int, H: int) -> None:
    row = CELLS[cell]
    x, h, c, w = step_of(row, B, I, H)
    found = native.step(row, False, x, h, c, tuple(w))
    wide = Weights(*(None if t is None else t.double() for t in w))
    exact = formulas.step(row, x.double(), h.double(), c.double(), wide)
    assert_rounded(found[0], exact[0])
    assert (found[1] is None) == (not row.has_cell_state)
    if row.has_cell_state:
        assert_rounded(found[1], exact[1])


@pytest.mark.parametrize("cell", [name for name in CELLS if native.covers(CELLS[name])])
@pytest.mark.parametrize(
    ("B", "I", "H"),
    [(17, 1, 1), (18, 7, 33), (40, 1050, 20), (77, 13, 70), (128, 65, 50), (129, 3, 37)],
)
def test_of_many_rows_it_multiplies_pairs(isa: str, cell: str, B: int, I: int, H: int) -> None:
    """The numbers of a reduced step in float32; nothing is lost of what is bfloat16."""
    row = CELLS[cell]
    x, h, c, w = step_of(row, B, I, H)
    found = native.step(row, False, x, h, c, tuple(w))
    wide = tuple(None if t is None else t.float() for t in w)
    want = native.step(row, False, x.float(), h.float(), c.float(), wide, reduced=True)
    for got, of_wide in zip(found[:2], want[:2], strict=True):
        assert (got is None) == (of_wide is None)
        assert got is None or torch.equal(got, of_wide.bfloat16())  # type: ignore[union-attr]


def test_what_may_be_absent(isa: str) -> None:
    row = CELLS["lstm"]
    x, h, c, w = step_of(row, 3, 13, 21)
    wide = torch.full((3, 30), torch.nan, dtype=BF16)
    wide[:, 4:17] = x
    whole = native.step(row, False, x, h, c, tuple(w))
    of_rows = native.step(row, False, wide[:, 4:17], h, c, tuple(w))
    assert torch.equal(of_rows[0], whole[0])
    without = (*w[:2], None, None, None, None)
    zeros = torch.zeros(84, dtype=BF16)
    given = (*w[:2], zeros, zeros, None, None)
    a = native.step(row, False, x, None, None, without)
    b = native.step(row, False, x, torch.zeros_like(h), torch.zeros_like(c), given)
    assert torch.equal(a[0], b[0])
    assert torch.equal(a[1], b[1])  # type: ignore[arg-type]


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    x, h, c, w = step_of(CELLS["lstm"], 5, 40, 150)
    threads = torch.get_num_threads()
    found = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append(native.step(CELLS["lstm"], False, x, h, c, tuple(w))[0])
    torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("B", [1, 16, 17, 129])
def test_cells_and_layers_take_it(B: int) -> None:
    """Layers of several directions or steps do not."""
    cell, x = gatewise.LSTMCell(6, 9, dtype=BF16), torch.randn(B, 6, dtype=BF16)
    state = torch.randn(2, B, 9, dtype=BF16)
    weights = (*(p.detach() for p in cell.parameters()), None, None)
    lstm = gatewise.LSTM(6, 9, dtype=BF16)
    lstm.load_state_dict({f"{name}_l0": p for name, p in cell.state_dict().items()})
    with torch.no_grad():
        h, c = cell(x, (state[0], state[1]))
        y, (h_n, c_n) = lstm(x[None], (state[:1], state[1:]))
    if B <= 16:
        want = native.step(CELLS["lstm"], False, x, state[0], state[1], weights)
        assert torch.equal(h, want[0])
        assert torch.equal(c, want[1])  # type: ignore[arg-type]
    wide = gatewise.LSTMCell(6, 9)
    wide.load_state_dict(cell.state_dict())
    with torch.no_grad():
        near = wide(x.float(), (state[0].float(), state[1].float()))
    torch.testing.assert_close((h, c), tuple(t.to(BF16) for t in near))
    for found, of_cell in ((y, h), (h_n, h), (c_n, c)):
        assert torch.equal(found[0], of_cell)
    y.fill_(3)
    assert torch.equal(h_n[0], h)
    learning, _ = cell(x, (state[0], state[1]))
    torch.testing.assert_close(learning, h)
    learning.float().sum().backward()
    assert all(p.grad is not None for p in cell.parameters())


def trained(cell: Any, x: Tensor, dtype: torch.dtype, again: bool = False) -> list[Tensor]:
    """The last h of a loop and the gradients of its sum of squares; again: of those gradients'."""
    cell, state = copy.deepcopy(cell).to(dtype), None
    x = x.to(dtype).requires_grad_()
    for x_t in x:
        state = cell(x_t, state)
    h = state[0] if isinstance(state, tuple) else state
    assert h is not None
    wanted = [x, *cell.parameters()]
    grads = torch.autograd.grad(h.square().sum(), wanted, create_graph=again)
    if again:
        grads = torch.autograd.grad(sum(g.square().sum() for g in grads), wanted)
    assert all(g.dtype == dtype for g in grads)
    return [t.detach().double() for t in (h, *grads)]


@pytest.mark.parametrize("again", [False, True], ids=["gradient", "gradient of it"])
@pytest.mark.parametrize("kind", ["LSTMCell", "RNNCell"])
@pytest.mark.parametrize(
    ("T", "B", "I", "H"),
    [(4, 1, 8, 9), (6, 3, 17, 33), (3, 16, 40, 64), (3, 17, 40, 64), (2, 130, 7, 9)],
)
def test_a_loop_learns_no_worse_than_torchs(isa: str, kind: str, T, B, I, H, again) -> None:
    """Largest errors against float64, over all results: ours rounds less on the way."""
    theirs, ours = (getattr(where, kind)(I, H) for where in (torch.nn, gatewise))
    theirs.load_state_dict({k: v.to(BF16).float() for k, v in theirs.state_dict().items()})
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, I).to(BF16)
    exact = trained(theirs, x, torch.float64, again)

    def error(found: list[Tensor]) -> float:
        pairs = zip(found, exact, strict=True)
        return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)

    assert error(trained(ours, x, BF16, again)) < 1.1 * error(trained(theirs, x, BF16, again))


def test_a_loop_with_frozen_weights_and_with_a_changed_one() -> None:
    cell, x = gatewise.LSTMCell(6, 9, dtype=BF16), torch.randn(2, 3, 6, dtype=BF16)
    x.requires_grad_()
    cell.weight_hh.requires_grad_(False)
    h, c = cell(x[1], cell(x[0]))
    (h + c).sum().backward()
    assert cell.weight_hh.grad is None
    assert cell.weight_ih.grad.dtype == cell.bias_hh.grad.dtype == x.grad.dtype == BF16
    h, c = cell(x[1], cell(x[0]))
    with torch.no_grad():
        cell.weight_hh.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (h + c).sum().backward()


def test_two_layers_of_a_step() -> None:
    lstm = gatewise.LSTM(6, 9, num_layers=2, dtype=BF16)
    wide = gatewise.LSTM(6, 9, num_layers=2)
    wide.load_state_dict(lstm.state_dict())
    x = torch.randn(1, 2, 6, dtype=BF16)
    with torch.no_grad():
        torch.testing.assert_close(lstm(x)[0], wide(x.float())[0].to(BF16), rtol=0.02, atol=0.01)
