"""The thin route of a cell's step: against the page and against the route of whole layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import lazily_negated
from torch import Tensor

import gatewise
from gatewise import ops, reference
from gatewise.reference import Weights
from gatewise.spec import CELLS

F64 = torch.float64
CASES = [("lstm", gatewise.LSTMCell, {}), ("rnn", gatewise.RNNCell, {}),
         ("rnn_relu", gatewise.RNNCell, {"nonlinearity": "relu"})]  # fmt: skip


@pytest.fixture
def thin(monkeypatch):
    """How many steps took the thin route."""
    taken = []
    step = ops.step

    def counted(*args: Any) -> Any:
        found = step(*args)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(ops, "step", counted)
    return taken


def run(module: Any, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    if isinstance(module, gatewise.LSTMCell):
        return module(x, (h, c))
    out = module(x, h)
    return out, out


@pytest.mark.parametrize(("name", "cls", "more"), CASES, ids=[case[0] for case in CASES])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("B", [1, 3, 70])
def test_values_and_gradients_are_the_pages(thin, name, cls, more, bias, B) -> None:
    for I, H in ((1, 1), (5, 7), (9, 33)):
        module = cls(I, H, bias=bias, dtype=F64, **more)
        leaves = [torch.randn(B, n, dtype=F64, requires_grad=True) for n in (I, H, H)]
        leaves += module.parameters()
        h, c = run(module, *leaves[:3])
        w = Weights(
            *[getattr(module, n, None) for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        )
        page = reference.step(CELLS[name], *leaves[:3], w)
        assert torch.allclose(h, page.h, atol=1e-14)
        d = torch.randn(B, H, dtype=F64)
        used = leaves if name == "lstm" else leaves[:2] + leaves[3:]
        loss, want = (h * d).sum(), (page.h * d).sum()
        if name == "lstm":
            loss, want = loss + (c * c).sum(), want + (page.c * page.c).sum()
        found = torch.autograd.grad(loss, used, retain_graph=True)
        for a, b in zip(found, torch.autograd.grad(want, used), strict=True):
            assert torch.allclose(a, b, atol=1e-13)
        again = torch.autograd.grad(loss, used)
        assert all(map(torch.equal, found, again)), "the first backward spoiled what it saved"
    assert set(thin) == {True}, "a step with a gradient is thin"


def test_in_inference_it_is_the_same(thin) -> None:
    cell = gatewise.LSTMCell(5, 20)
    x, h, c = torch.randn(3, 5), torch.randn(3, 20), torch.randn(3, 20)
    with torch.no_grad():
        bare = cell(x, (h, c))
    assert all(map(torch.equal, bare, cell(x, (h, c))))
    assert not bare[0].requires_grad
    assert all(thin)
    with torch.no_grad():
        lstm = gatewise.LSTM(5, 20)
        lstm.load_state_dict({f"{name}_l0": p for name, p in cell.named_parameters()})
        assert torch.equal(lstm(x[None], (h[None], c[None]))[0][0], bare[0])
        from_zero = cell(x)
        assert torch.equal(lstm(x[None])[0][0], from_zero[0])


@pytest.mark.parametrize("of", range(5))
def test_only_what_is_wanted(of) -> None:
    cell = gatewise.LSTMCell(5, 7, dtype=F64).requires_grad_(False)
    x, h, c = (torch.randn(2, n, dtype=F64) for n in (5, 7, 7))
    leaf = [x, h, c, cell.weight_hh, cell.bias_hh][of].requires_grad_()
    (d,) = torch.autograd.grad(sum(t.sum() for t in cell(x, (h, c))), leaf)
    for p in (x, h, c, *cell.parameters()):
        p.requires_grad_()
    assert torch.equal(d, torch.autograd.grad(sum(t.sum() for t in cell(x, (h, c))), leaf)[0])


def test_derivatives_beyond_the_first(thin) -> None:
    for name, cls, more in CASES[:2]:
        cell = cls(2, 3, dtype=F64, **more)
        args = [torch.randn(2, n, dtype=F64, requires_grad=True) for n in (2, 3, 3)]
        args = args if name == "lstm" else args[:2]

        def f(x: Tensor, h: Tensor, *c: Tensor, cell: Any = cell) -> Any:
            return cell(x, (h, *c) if c else h)

        assert torch.autograd.gradcheck(f, args)
        assert torch.autograd.gradgradcheck(f, args)
        assert torch.autograd.gradcheck(f, args, check_batched_grad=True)
    assert all(thin)


def test_the_gradient_of_a_loop() -> None:
    ours, theirs = gatewise.LSTMCell(4, 9, dtype=F64), torch.nn.LSTMCell(4, 9, dtype=F64)
    ours.load_state_dict(theirs.state_dict())
    x, state = torch.randn(12, 3, 4, dtype=F64), (torch.zeros(3, 9, dtype=F64),) * 2
    for cell in (ours, theirs):
        s = state
        for x_t in x:
            s = cell(x_t, s)
        (s[0] * s[1]).sum().backward()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(p.grad, q.grad, atol=1e-13)
    assert ours.bias_ih.grad.data_ptr() != ours.bias_hh.grad.data_ptr(), "one buffer for two"


def test_a_changed_input_is_noticed() -> None:
    cell, x = gatewise.LSTMCell(4, 5), torch.randn(2, 4)
    h, _ = cell(x)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()


def test_what_is_not_plain_goes_the_other_way(thin) -> None:
    """Views with gaps, lazy negatives, parametrizations: by the route of layers."""
    cell, theirs = gatewise.LSTMCell(4, 6), torch.nn.LSTMCell(4, 6)
    theirs.load_state_dict(cell.state_dict())
    h = torch.randn(6, 2).T
    x = torch.randn(2, 4, dtype=torch.complex64).conj().imag
    for args in ((torch.randn(2, 4), (h, h)), (x, None), (torch.randn(4, 2).T, None)):
        assert torch.allclose(cell(*args)[0], theirs(*args)[0], atol=1e-6)
    assert not any(thin)
    bias = cell.bias_ih.detach().clone()
    torch.nn.utils.parametrize.register_parametrization(cell, "bias_ih", torch.nn.Tanh())
    with torch.no_grad():
        theirs = torch.nn.LSTMCell(4, 6)
        theirs.load_state_dict(
            {k: v for k, v in cell.state_dict().items() if k in dict(theirs.named_parameters())},
            strict=False,
        )
        theirs.bias_ih.copy_(bias.tanh())
        assert torch.allclose(cell(torch.ones(2, 4))[0], theirs(torch.ones(2, 4))[0], atol=1e-6)


@pytest.mark.parametrize("cls", ["LSTMCell", "RNNCell"])
@pytest.mark.parametrize(
    ("marked", "I", "H"),
    [("x", 4, 6), ("state", 4, 6), ("gradient", 4, 6), ("x", 1, 6), ("state", 4, 1),
     ("weights", 1, 1)],
)  # fmt: skip
def test_a_lazy_lazily_negated(cls, marked, I, H) -> None:
    ours = getattr(gatewise, cls)(I, H, dtype=F64)
    theirs = getattr(torch.nn, cls)(I, H, dtype=F64)
    theirs.load_state_dict(ours.state_dict())
    x, *state = torch.randn(2, I, dtype=F64), *torch.randn(2, 2, H, dtype=F64)
    x.requires_grad_()
    if marked == "state":
        state = [lazily_negated(t) for t in state]
    found = []
    for cell in (ours, theirs):
        if marked == "weights":
            for name, w in list(cell.named_parameters()):
                setattr(cell, name, torch.nn.Parameter(lazily_negated(w.detach())))
        given = lazily_negated(x) if marked == "x" else x
        result = cell(given, tuple(state) if cls == "LSTMCell" else state[0])
        results = result if cls == "LSTMCell" else (result,)
        with torch.no_grad():
            without = cell(given, tuple(state) if cls == "LSTMCell" else state[0])
        d = [torch.linspace(1, 2, t.numel(), dtype=F64).view_as(t) for t in results]
        d = [lazily_negated(t) for t in d] if marked == "gradient" else d
        grads = torch.autograd.grad(results, [x, *cell.parameters()], d)
        found.append((*results, *(without if cls == "LSTMCell" else (without,)), *grads))
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)


def test_results_are_ordinary_tensors() -> None:
    with torch.no_grad():
        h, c = gatewise.LSTMCell(4, 6)(torch.randn(2, 4))
    assert h.is_contiguous()
    assert h.storage_offset() == 0
    assert (h + 1).add_(c).shape == (2, 6)
    h.add_(1)
    del c
    assert torch.equal(h.clone(), h)


def test_a_gradient_by_c_is_of_its_own_way_and_the_traces_is_whole() -> None:
    theirs, ours = torch.nn.LSTMCell(5, 7, dtype=F64), gatewise.LSTMCell(5, 7, dtype=F64)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 5, dtype=F64)
    h, c = theirs(x)
    (whole,) = torch.autograd.grad(h.sum() + 2 * c.sum(), c)
    with gatewise.tracing(ours) as traces:
        h, c = ours(x)
    (own,) = torch.autograd.grad(h.sum() + 2 * c.sum(), c, retain_graph=True)
    torch.testing.assert_close(own, torch.full_like(c, 2.0))
    (h.sum() + 2 * c.sum()).backward()
    (trace,) = traces.values()
    torch.testing.assert_close(torch.as_tensor(trace.grad.c[0, 0, 0]), whole)


def test_float16_autocast_is_not_that_of_bfloat16() -> None:
    """A cell so large that it pays to round its products to bfloat16, which are too coarse here."""
    cell, x = gatewise.LSTMCell(256, 256), torch.randn(64, 256)
    h = {}
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cpu", dtype):
            h[dtype] = cell(x)[0].double()
    exact = cell.double()(x.double())[0]
    off = {dtype: (found - exact).abs().max() for dtype, found in h.items()}
    assert off[torch.float16] < off[torch.bfloat16] / 4
