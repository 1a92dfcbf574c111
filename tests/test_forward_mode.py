"""Tangents of a layer and of its gradient, by hand, against the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwd
from layers import RandomLayer, assert_same, gradients, random_layer
from torch import Tensor
from torch.func import grad, jacfwd, jvp

import gatewise
from gatewise import formulas
from gatewise.reference import Weights
from gatewise.spec import CELLS

# torch's own make_dual, when first called
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

#: Sums in float64, in another order.
BOUNDS = {"rtol": 1e-10, "atol": 1e-12}

Run = Callable[[RandomLayer], tuple[torch.Tensor, ...]]


@pytest.fixture
def without_the_page(monkeypatch) -> Any:
    """To call after the page has said what is right."""
    return lambda: monkeypatch.setattr(formulas, "layer", None)


def moved(layer: RandomLayer, by: set[int] | None = None) -> RandomLayer:
    """The layer, on a level of forward mode, with a direction to move in at its leaves, or some."""
    make = torch.Generator().manual_seed(4)
    number = iter(range(len(layer.leaves)))

    def dual(t: torch.Tensor) -> torch.Tensor:
        along = torch.randn(t.shape, generator=make, dtype=torch.float64).to(t.dtype)
        return fwd.make_dual(t, along) if by is None or next(number) in by else t

    x, h0 = dual(layer.x), dual(layer.h0)
    c0 = dual(layer.c0) if layer.cell.has_cell_state else layer.c0
    weights = [Weights(*(w if w is None else dual(w) for w in of)) for of in layer.weights]
    return replace(layer, x=x, h0=h0, c0=c0, weights=weights)


def tangents(results: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    pairs = [fwd.unpack_dual(r) for r in results]
    return [torch.zeros_like(p.primal) if p.tangent is None else p.tangent for p in pairs]


def of_layer(layer: RandomLayer, run: Run, by: set[int] | None = None) -> Any:
    with torch.no_grad(), fwd.dual_level():
        return tangents(run(moved(layer, by)))


def of_gradient(layer: RandomLayer, run: Run, by: set[int] | None = None) -> Any:
    with fwd.dual_level():
        return tangents(gradients(run(moved(layer, by)), layer.leaves))


KINDS = pytest.mark.parametrize("kind", [of_layer, of_gradient])


@KINDS
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("P", [None, 3], ids=["plain", "projected"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_of_every_cell(
    cell: str, D: int, P: int | None, packed: bool, kind: Any, without_the_page: Any
) -> None:
    layer = random_layer(cell, D=D, P=P, T=5, packed=packed)
    expected = kind(layer, RandomLayer.page)
    without_the_page()
    assert_same(kind(layer, RandomLayer.run), expected, **BOUNDS)


@KINDS
@pytest.mark.parametrize(
    ("T", "B", "I", "H", "P"),
    [(1, 1, 1, 1, None), (1, 3, 2, 5, 4), (7, 1, 9, 17, None), (3, 2, 1, 2, 7), (2, 0, 3, 4, None)],
)
def test_of_odd_sizes(
    T: int, B: int, I: int, H: int, P: int | None, kind: Any, without_the_page: Any
) -> None:
    layer = random_layer("peephole", D=2, T=T, B=B, I=I, H=H, P=P)
    expected = kind(layer, RandomLayer.page)
    without_the_page()
    assert_same(kind(layer, RandomLayer.run), expected, **BOUNDS)


@KINDS
@pytest.mark.parametrize("cell", ["peephole", "rnn"])
def test_along_one_of_all(cell: str, kind: Any, without_the_page: Any) -> None:
    layer = random_layer(cell, D=2, P=2, packed=True)
    each = [{k} for k in range(len(layer.leaves))]
    expected = [kind(layer, RandomLayer.page, by) for by in each]
    without_the_page()
    for by, right in zip(each, expected, strict=True):
        assert_same(kind(layer, RandomLayer.run, by), right, **BOUNDS)


def test_of_what_arrives_at_a_gradient(without_the_page: Any) -> None:
    layer = random_layer(D=2, P=2, packed=True)
    make = torch.Generator().manual_seed(5)
    d, d_dot = (
        [torch.randn(r.shape, generator=make, dtype=r.dtype) for r in layer.run()] for _ in "ab"
    )

    def of(run: Run) -> Any:
        with fwd.dual_level():
            arrives = [fwd.make_dual(*pair) for pair in zip(d, d_dot, strict=True)]
            return tangents(torch.autograd.grad(run(moved(layer)), layer.leaves, arrives))

    expected = of(RandomLayer.page)
    without_the_page()
    assert_same(of(RandomLayer.run), expected, **BOUNDS)


TRANSFORMS: dict[str, Callable[[Callable[..., torch.Tensor], torch.Tensor], Any]] = {
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),)),
    "jvp of grad": lambda f, x: jvp(grad(lambda x: f(x).sin().sum()), (x,), (x.cos(),)),
}


@pytest.mark.parametrize("wants_grad", [False, True], ids=["constant", "trainable"])
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_of_a_module(transform: str, wants_grad: bool, without_the_page: Any) -> None:
    """Its own weights may want a gradient of the tangent; the tangent is by hand."""
    lstm = gatewise.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)
    lstm.requires_grad_(wants_grad)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    run = TRANSFORMS[transform]
    twin = torch.nn.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)
    twin.load_state_dict(lstm.state_dict())
    eps = 1e-6
    if transform == "jvp":
        ahead, back = (twin(x + s * eps * x.cos())[0].detach() for s in (1, -1))
    else:

        def slope(x: torch.Tensor) -> torch.Tensor:
            x = x.requires_grad_()
            return torch.autograd.grad(twin(x)[0].sin().sum(), x)[0]

        ahead, back = (slope((x + s * eps * x.cos()).detach()) for s in (1, -1))
    without_the_page()
    _, found = run(lambda x: lstm(x)[0], x)
    assert_same(found, (ahead - back) / (2 * eps), rtol=1e-6, atol=1e-8)
    assert found.requires_grad == wants_grad


def test_a_tangent_has_derivatives() -> None:
    """Of weights, of the input and of the direction, from the page."""
    layer = random_layer("peephole", D=2, P=2, packed=True)
    v = torch.randn_like(layer.x).requires_grad_()

    def of(run: Run) -> tuple[torch.Tensor, ...]:
        with fwd.dual_level():
            results = run(replace(layer, x=fwd.make_dual(layer.x, v)))
            dots = tuple(fwd.unpack_dual(r).tangent for r in results)  # None would raise
            return gradients(dots, [v, *layer.leaves], allow_unused=True)

    assert_same(of(RandomLayer.run), of(RandomLayer.page), **BOUNDS)


def test_many_directions_at_once() -> None:
    lstm = gatewise.LSTM(2, 3, dtype=torch.float64).requires_grad_(False)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    found = jacfwd(lambda x: lstm(x)[0])(x)
    for place in ((0, 0, 0), (2, 1, 1)):
        along = torch.zeros_like(x)
        along[place] = 1
        _, column = jvp(lambda x: lstm(x)[0], (x,), (along,))
        assert_same(found[(..., *place)], column, **BOUNDS)


@pytest.mark.parametrize("strategy", ["forward-mode", "reverse-mode"])
@pytest.mark.parametrize("kind", ["RNN", "LSTM", "RNNCell", "LSTMCell"])
def test_a_jacobian_of_all_directions_at_once(kind: str, strategy: str) -> None:
    """It comes with a vmap older than torch.func's."""
    module = getattr(gatewise, kind)(3, 4, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64)

    def output(x: Tensor) -> Tensor:
        found = module(x)
        return found if isinstance(found, Tensor) else found[0]

    jacobian = partial(torch.autograd.functional.jacobian, output, x)
    found = jacobian(vectorize=True, strategy=strategy)
    torch.testing.assert_close(found, jacobian())
