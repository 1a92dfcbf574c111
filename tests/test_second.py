"""The gradient of a layer's gradient, against the page."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers import assert_same, gradients, random_layer

import gatewise
from gatewise import formulas, native, ops
from gatewise.spec import CELLS

UNUSED = {"allow_unused": True, "materialize_grads": True}
#: Sums in float64, in another order.
BOUNDS = {"rtol": 1e-10, "atol": 1e-12}


def second(
    results: tuple[torch.Tensor, ...], by: list[torch.Tensor], again: list[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    """The gradient by ``again`` of the gradient by ``by``."""
    first = gradients(results, by, create_graph=True)
    return gradients(first, again, seed=2, **UNUSED)


@pytest.fixture
def without_the_page(monkeypatch) -> Any:
    """To call after the page has said what is right."""
    return lambda: monkeypatch.setattr(formulas, "layer", None)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("P", [None, 3], ids=["plain", "projected"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_of_every_cell(
    cell: str, D: int, P: int | None, packed: bool, without_the_page: Any
) -> None:
    layer = random_layer(cell, D=D, P=P, T=5, packed=packed)
    expected = second(layer.page(), layer.leaves, layer.leaves)
    without_the_page()
    assert_same(second(layer.run(), layer.leaves, layer.leaves), expected, **BOUNDS)


@pytest.mark.parametrize(
    ("T", "B", "I", "H", "P"),
    [(1, 1, 1, 1, None), (1, 3, 2, 5, 4), (7, 1, 9, 17, None), (3, 2, 1, 2, 7), (2, 0, 3, 4, None)],
)
@pytest.mark.parametrize("D", [1, 2])
def test_of_odd_sizes(D: int, T: int, B: int, I: int, H: int, P: int | None) -> None:
    layer = random_layer("peephole", D=D, T=T, B=B, I=I, H=H, P=P)
    found, expected = (second(r, layer.leaves, layer.leaves) for r in (layer.run(), layer.page()))
    assert_same(found, expected, **BOUNDS)


@pytest.mark.parametrize("cell", ["peephole", "rnn"])
def test_where_only_some_inputs_want_a_gradient(cell: str, without_the_page: Any) -> None:
    layer = random_layer(cell, D=2, P=2, packed=True)
    pairs = [(by, again) for by in layer.leaves for again in layer.leaves]
    expected = [second(layer.page(), [by], [again]) for by, again in pairs]
    without_the_page()
    for leaf in layer.leaves:
        leaf.requires_grad_(False)
    for (by, again), right in zip(pairs, expected, strict=True):
        by.requires_grad_()
        again.requires_grad_()
        assert_same(second(layer.run(), [by], [again]), right, **BOUNDS)
        by.requires_grad_(False)
        again.requires_grad_(False)


def test_of_a_layer_without_biases_and_states() -> None:
    layer = random_layer(D=2, bias=False)
    flat = [layer.x, None, None, None, *(w for direction in layer.weights for w in direction)]
    leaves = [layer.x, *layer.parameters]
    run = ops.layer(layer.cell, layer.x, None, None, layer.weights)[:3]
    page = formulas.layer(layer.cell, *flat)[:3]
    assert_same(second(run, leaves, leaves), second(page, leaves, leaves), **BOUNDS)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "rnn", "coupled"])
def test_by_what_arrives(cell: str, packed: bool) -> None:
    """At output, h_n, tape and c_n."""
    layer = random_layer(cell, D=2, P=2, packed=packed)
    d = [torch.randn_like(r).requires_grad_() for r in layer.run()]

    def of(results: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        first = torch.autograd.grad(results, layer.leaves, d, create_graph=True)
        return gradients(first, [*d, *layer.leaves], seed=2, **UNUSED)

    assert_same(of(layer.run()), of(layer.page()), **BOUNDS)


@pytest.mark.parametrize("cell", CELLS)
def test_in_float32(cell: str) -> None:
    """Some hundred roundings of 6e-8, of terms no larger than the largest."""
    layer = random_layer(cell, D=2, P=2, packed=True, dtype=torch.float32)
    found, expected = (second(r, layer.leaves, layer.leaves) for r in (layer.run(), layer.page()))
    for d, right in zip(found, expected, strict=True):
        assert_same(d, right, rtol=0, atol=2e-5 * right.abs().max().item())


def test_again_gives_the_same_bits() -> None:
    layer = random_layer("peephole", D=2, P=2, packed=True)
    first = gradients(layer.run(), layer.leaves, create_graph=True)
    before = [t.detach().clone() for t in (*layer.leaves, *first)]
    one, two = (
        gradients(first, layer.leaves, seed=2, retain_graph=True, **UNUSED) for _ in range(2)
    )
    assert_same(one, two, atol=0, rtol=0)
    assert_same([t.detach() for t in (*layer.leaves, *first)], before, atol=0, rtol=0)


@pytest.mark.parametrize(
    "options",
    [{"num_layers": 3}, {"bidirectional": True, "num_layers": 2}, {"proj_size": 3}],
    ids=["layers", "bidirectional", "projected"],
)
def test_a_penalty_on_a_critics_gradient_is_torchs(options: dict[str, Any]) -> None:
    """As in Gulrajani et al. 2017."""
    theirs = torch.nn.LSTM(3, 5, dtype=torch.float64, **options)
    ours = gatewise.LSTM(3, 5, dtype=torch.float64, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    for critic in (ours, theirs):
        (grad,) = torch.autograd.grad(critic(x)[0].square().sum(), x, create_graph=True)
        (grad.norm(dim=(0, 2)) - 1).square().mean().backward()
    for found, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert_same(found.grad, expected.grad, **BOUNDS)


def test_takes_two_backward_passes_of_the_core(monkeypatch) -> None:
    """For the total gradients, and for the tangent; none for results at which nothing arrives."""
    layer = random_layer(D=2)
    (grad,) = torch.autograd.grad(layer.run()[0].sum(), [layer.x], create_graph=True)
    calls = []
    backward = native.backward
    monkeypatch.setattr(
        native, "backward", lambda *args, **how: calls.append(args) or backward(*args, **how)
    )
    grad.square().sum().backward()
    assert len(calls) == 2
