"""ops.layer under the transforms of torch.func: each against the page under the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers import RandomLayer, assert_same, random_layer
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from gatewise import native
from gatewise.reference import Weights

# torch's own make_dual, when first called
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

V = 3  # the mapped axis

Loss = Callable[..., torch.Tensor]
Parameters = tuple[torch.Tensor, ...]


class Case:
    """A loss over every result of a two-way layer, and a few of everything to map over."""

    def __init__(self, cell: str = "lstm", packed: bool = False) -> None:
        self.layer = random_layer(cell, D=2, T=3, H=2, packed=packed)
        self.x, self.h0, self.c0 = (
            t.detach() for t in (self.layer.x, self.layer.h0, self.layer.c0)
        )
        self.p: Parameters = tuple(t.detach() for t in self.layer.parameters)
        self.xs, self.hs, self.cs = (
            torch.randn(V, *t.shape, dtype=t.dtype) for t in (self.x, self.h0, self.c0)
        )
        self.ps: Parameters = tuple(torch.randn(V, *t.shape, dtype=t.dtype) for t in self.p)

    def loss(self, by: Callable[[RandomLayer], tuple[torch.Tensor, ...]]) -> Loss:
        first = self.layer.weights[0]
        names = [name for name, w in first._asdict().items() if w is not None]

        def loss(p: Parameters, x: Any, h0: Any, c0: Any) -> torch.Tensor:
            half = len(names)
            weights = [
                Weights(**dict(zip(names, part, strict=True))) for part in (p[:half], p[half:])
            ]
            results = by(RandomLayer(self.layer.cell, x, h0, c0, weights, self.layer.batch_sizes))
            return torch.stack([(r * (k + 1)).sin().sum() for k, r in enumerate(results)]).sum()

        return loss


Transform = Callable[[Loss, Case], Any]


def _flat(s: Case) -> tuple[Any, ...]:
    return s.p, s.x, s.h0, s.c0


def _like(tensors: Any) -> Any:
    """A direction to move in."""
    if isinstance(tensors, tuple):
        return tuple(_like(t) for t in tensors)
    make = torch.Generator().manual_seed(3)
    return torch.randn(tensors.shape, generator=make, dtype=tensors.dtype)


def _two(f: Loss, s: Case) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: torch.stack([f(s.p, x, s.h0, s.c0), f(s.p, 2 * x, s.h0, s.c0)])


def _late(f: Loss, s: Case) -> Any:
    _, pull = vjp(lambda x: f(s.p, x, s.h0, s.c0), s.x)
    one = torch.ones((), dtype=s.x.dtype)
    return jvp(lambda u: jvp(lambda u: pull(u)[0].sin(), (u,), (one,))[1], (one,), (one,))


TRANSFORMS: dict[str, Transform] = {
    "grad": lambda f, s: grad(f, (0, 1, 2, 3))(*_flat(s)),
    "grad of grad": lambda f, s: grad(lambda x: grad(f, 1)(s.p, x, s.h0, s.c0).sin().sum())(s.x),
    "third derivative": lambda f, s: grad(
        lambda x: grad(lambda x: grad(f, 1)(s.p, x, s.h0, s.c0).sum())(x).sum()
    )(s.x),
    "vmap over x": lambda f, s: vmap(f, (None, 0, None, None))(s.p, s.xs, s.h0, s.c0),
    "vmap over x, last axis": lambda f, s: vmap(f, (None, -1, None, None))(
        s.p, s.xs.movedim(0, -1), s.h0, s.c0
    ),
    "vmap over states": lambda f, s: vmap(f, (None, None, 0, 0))(s.p, s.x, s.hs, s.cs),
    "vmap over weights": lambda f, s: vmap(f, (0, None, None, None))(s.ps, s.x, s.h0, s.c0),
    "vmap over all": lambda f, s: vmap(f)(s.ps, s.xs, s.hs, s.cs),
    "vmap of vmap": lambda f, s: vmap(vmap(f, (None, 0, None, None)), (0, None, None, None))(
        s.ps, s.xs, s.h0, s.c0
    ),
    "gradients of each sample": lambda f, s: vmap(grad(f), (None, 0, None, None))(
        s.p, s.xs, s.h0, s.c0
    ),
    "gradients of each sample's data": lambda f, s: vmap(grad(f, (1, 2, 3)), (None, 0, None, None))(
        s.p, s.xs, s.h0, s.c0
    ),
    "gradients where only the state is mapped": lambda f, s: vmap(
        grad(f, (0, 1, 2)), (None, None, 0, None)
    )(s.p, s.x, s.hs, s.c0),
    "gradients of an ensemble": lambda f, s: vmap(grad(f, (0, 1)), (0, 0, None, None))(
        s.ps, s.xs, s.h0, s.c0
    ),
    "grad of vmap": lambda f, s: grad(
        lambda p: vmap(f, (None, 0, None, None))(p, s.xs, s.h0, s.c0).sum()
    )(s.p),
    "jvp": lambda f, s: jvp(f, _flat(s), _like(_flat(s))),
    "jvp of jvp": lambda f, s: jvp(
        lambda x: jvp(lambda x: f(s.p, x, s.h0, s.c0), (x,), (_like(x),))[1], (s.x,), (_like(s.x),)
    ),
    "jvp of jvp of grad": lambda f, s: jvp(
        lambda x: jvp(lambda x: grad(f, 1)(s.p, x, s.h0, s.c0), (x,), (_like(x),))[1],
        (s.x,),
        (_like(s.x),),
    ),
    "jvp of jvp of a pull-back made before": _late,
    "hessian times vector, forward over reverse": lambda f, s: jvp(
        lambda p: grad(f)(p, s.x, s.h0, s.c0), (s.p,), (_like(s.p),)
    ),
    "hessian times vector, reverse over forward": lambda f, s: grad(
        lambda x: jvp(lambda x: f(s.p, x, s.h0, s.c0), (x,), (_like(x),))[1]
    )(s.x),
    "jacrev": lambda f, s: jacrev(_two(f, s))(s.x),
    "jacfwd": lambda f, s: jacfwd(_two(f, s))(s.x),
    "hessian": lambda f, s: hessian(lambda h: f(s.p, s.x, h, s.c0))(s.h0),
    "functionalize": lambda f, s: functionalize(f)(s.p, s.x, s.h0, s.c0),
    "functionalize of gradients": lambda f, s: functionalize(grad(f, (0, 1)))(s.p, s.x, s.h0, s.c0),
    "gradients of functionalize": lambda f, s: grad(functionalize(f), (0, 1))(s.p, s.x, s.h0, s.c0),
    "functionalize of vmap": lambda f, s: functionalize(vmap(f, (None, 0, None, None)))(
        s.p, s.xs, s.h0, s.c0
    ),
    "jacrev of jacrev": lambda f, s: jacrev(jacrev(lambda h: f(s.p, s.x, h, s.c0)))(s.h0),
    "jacfwd of jacfwd": lambda f, s: jacfwd(jacfwd(lambda h: f(s.p, s.x, h, s.c0)))(s.h0),
}


def _agree(transform: str, case: Case) -> None:
    f = TRANSFORMS[transform]
    assert_same(f(case.loss(RandomLayer.run), case), f(case.loss(RandomLayer.page), case))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_of_a_layer_is_that_of_the_page(transform: str) -> None:
    _agree(transform, Case())


@pytest.mark.parametrize("cell", ["rnn", "peephole"])
@pytest.mark.parametrize(
    "transform", ["vmap over x", "gradients of each sample", "jvp", "jacfwd", "vmap over weights"]
)
def test_other_cells(transform: str, cell: str) -> None:
    """A plain RNN has no cell state to map over; peepholes are one weight more."""
    _agree(transform, Case(cell))


@pytest.mark.parametrize(
    "transform", ["vmap over x", "vmap over weights", "gradients of each sample", "jvp", "jacrev"]
)
def test_packed(transform: str) -> None:
    _agree(transform, Case(packed=True))


def test_an_axis_over_the_data_alone_is_one_run(monkeypatch) -> None:
    """Folded into the batch: forward, and backward to the data."""
    runs = []
    for name in ("forward", "backward"):
        call = getattr(native, name)

        def run(*args, name=name, call=call, **more) -> Any:
            runs.append(name)
            return call(*args, **more)

        monkeypatch.setattr(native, name, run)
    case = Case()
    loss = case.loss(RandomLayer.run)
    vmap(grad(loss, (1, 2, 3)), (None, 0, 0, None))(case.p, case.xs, case.hs, case.c0)
    assert runs == ["forward", "backward"]
