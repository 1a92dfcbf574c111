"""ops.layer: gradients, their gradients, tangents, on the eager route."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import core_double
import pytest
import torch
import torch.autograd.forward_ad as fwd
from layers import RandomLayer, assert_same, gradients, lazily_negated, random_layer
from torch.autograd import gradcheck, gradgradcheck

import gatewise
from gatewise import formulas, native
from gatewise.reference import Weights
from gatewise.spec import CELLS

# torch's own make_dual, when first called
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("P", [None, 2], ids=["plain", "projected"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_are_the_pages(cell: str, D: int, P: int | None, packed: bool) -> None:
    layer = random_layer(cell, D=D, P=P, packed=packed)
    assert_same(gradients(layer.run(), layer.leaves), gradients(layer.page(), layer.leaves))


def test_third_derivatives_are_the_pages() -> None:
    layer = random_layer(D=2, P=2, packed=True)
    unused = {"allow_unused": True, "materialize_grads": True}

    def third(results: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        first = gradients(results, layer.leaves, create_graph=True)
        second = gradients(first, layer.leaves, seed=2, create_graph=True, **unused)
        return gradients(second, layer.leaves, seed=3, **unused)

    assert_same(third(layer.run()), third(layer.page()))


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("by", ["x", "h0", "W_hh"])
def test_a_penalty_on_a_gradient_is_without_the_page(by: str, autocast: bool, monkeypatch) -> None:
    """As a critic's by its input, which trains; by the page it takes several times as long."""
    layer = random_layer("peephole", P=2)
    of = layer.weights[0].W_hh if by == "W_hh" else getattr(layer, by)

    def penalty(results: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        first = gradients(results, [of], create_graph=True)
        with torch.autocast("cpu", enabled=autocast):
            return gradients(first, layer.leaves, seed=2, allow_unused=True, materialize_grads=True)

    expected = penalty(layer.page())
    monkeypatch.setattr(formulas, "layer", None)
    assert_same(penalty(layer.run()), expected)


@pytest.mark.parametrize("used", [u for n in (1, 2, 3) for u in combinations(range(4), n)])
def test_a_loss_may_use_only_some_results(used: tuple[int, ...]) -> None:
    layer = random_layer(D=2, P=2, packed=True)
    found = gradients(tuple(layer.run()[k] for k in used), layer.leaves)
    assert_same(found, gradients(tuple(layer.page()[k] for k in used), layer.leaves))


@pytest.mark.parametrize("T", [3, 60])
@pytest.mark.parametrize("name", ["x", "h0", "c0", *Weights._fields])
def test_only_the_gradients_that_are_wanted(name: str, T: int, monkeypatch) -> None:
    layer = random_layer("peephole", T=T, B=9, P=2)
    expected = dict(zip(map(id, layer.leaves), gradients(layer.page(), layer.leaves), strict=True))
    for leaf in layer.leaves:
        leaf.requires_grad_(False)
    wanted = getattr(layer, name, None)
    wanted = getattr(layer.weights[0], name) if wanted is None else wanted
    wanted.requires_grad_()

    asked: list[Any] = []
    backward = native.backward

    def spy(cell: Any, reduced: Any, which: Any, *args: Any, **how: Any) -> Any:
        asked.append(sum(which))
        return backward(cell, reduced, which, *args, **how)

    monkeypatch.setattr(native, "backward", spy)
    assert_same(gradients(layer.run(), [wanted])[0], expected[id(wanted)])
    assert asked == [1]


def test_backward_again_gives_the_same_bits_and_changes_nothing() -> None:
    layer = random_layer(D=2, P=2, packed=True)
    results = layer.run()
    before = [t.detach().clone() for t in (*layer.leaves, *results)]
    first = gradients(results, layer.leaves, retain_graph=True)
    again = gradients(results, layer.leaves, retain_graph=True)
    assert_same(again, first, atol=0, rtol=0)
    assert_same([t.detach() for t in (*layer.leaves, *results)], before, atol=0, rtol=0)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_at_most_six_numbers_a_unit_and_token_are_kept(cell: str, packed: bool) -> None:
    layer = random_layer(cell, D=2, H=7, packed=packed)
    given = {t.data_ptr() for t in (*layer.leaves, layer.c0)}
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer.run(keep_tape=False)
    ours = [t for t in kept if t.is_floating_point() and t.data_ptr() not in given]
    tokens = layer.x.shape[:-1].numel()
    assert sum(t.numel() for t in ours) == 2 * tokens * 7 * (len(layer.cell.slots) + 1)
    assert len(layer.cell.slots) <= 5


def test_the_two_biases_get_two_gradients() -> None:
    layer = random_layer()
    bias, other = layer.weights[0].b_ih, layer.weights[0].b_hh
    d_ih, d_hh = gradients(layer.run(), [bias, other])
    assert_same(d_ih, d_hh, atol=0, rtol=0)
    d_ih.zero_()  # as gradient clipping in place would
    assert d_hh.abs().min() > 0


@pytest.mark.parametrize("changed", ["x", "W_hh"])
def test_an_input_may_not_be_changed_before_backward(changed: str) -> None:
    layer = random_layer()
    results = layer.run()
    target = {"x": layer.x, "W_hh": layer.weights[0].W_hh}[changed]
    loss = results[1].sum()
    with torch.no_grad():
        target.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("how", ["expanded", "transposed", "negative", "wider"])
def test_a_gradient_of_any_layout(how: str) -> None:
    layer = random_layer(T=3, B=3, H=4)
    y = layer.run()[0]
    d_y = {
        "expanded": torch.ones((), dtype=y.dtype).expand(y.shape),
        "transposed": torch.randn(4, 3, 3, dtype=y.dtype).permute(2, 1, 0),
        "negative": lazily_negated(torch.randn_like(y)),
        "wider": torch.randn(3, 3, 9, dtype=y.dtype)[..., 1:5],
    }[how]
    found = torch.autograd.grad(y, layer.leaves, d_y)
    assert_same(found, torch.autograd.grad(layer.page()[0], layer.leaves, d_y))


def test_what_often_comes_in_pieces_takes_no_detour(monkeypatch: pytest.MonkeyPatch) -> None:
    """The core raises at it, and a short run takes no longer than that does."""

    def detour(*_: Any, **__: Any) -> None:
        raise AssertionError("went around")

    for name in ("fill", "fill_gradients", "_dense"):
        monkeypatch.setattr(native, name, detour)
    lstm, cell = gatewise.LSTM(3, 4), gatewise.LSTMCell(3, 4)
    x = torch.randn(2, 3, 5).permute(2, 0, 1).requires_grad_()
    state = torch.zeros(1, 1, 4).expand(1, 2, 4)
    y, (h_n, c_n) = lstm(x, (state, state))
    h, c = cell(torch.randn(2, 3))
    for loss in y.sum(), h_n.mean(), c_n.sum(), y[-1].sum(), h.sum(), c.mean():
        loss.backward(retain_graph=True)


def _as_function(layer: RandomLayer) -> Any:
    """The layer as a function of its leaves, and these short enough to perturb one by one."""

    def function(*leaves: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = dict(zip(map(id, layer.leaves), leaves, strict=True))

        def of(t: torch.Tensor | None) -> torch.Tensor | None:
            return None if t is None else given.get(id(t), t)

        weights = [Weights(*map(of, w)) for w in layer.weights]  # type: ignore[arg-type]
        moved = RandomLayer(
            layer.cell, *map(of, (layer.x, layer.h0, layer.c0)), weights, layer.batch_sizes
        )
        return moved.run()

    return function


@pytest.mark.parametrize(
    ("cell", "packed"), [("lstm", True), ("rnn", False), ("peephole", False), ("coupled", False)]
)
def test_gradcheck(cell: str, packed: bool) -> None:
    """Backward, forward mode and batched gradients against finite differences."""
    layer = random_layer(cell, D=2, T=2, H=2, P=3, packed=packed)
    assert gradcheck(
        _as_function(layer),
        layer.leaves,
        fast_mode=True,
        check_forward_ad=True,
        check_batched_grad=True,
    )


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradgradcheck(cell: str, packed: bool) -> None:
    """The gradient of the gradient, backward and forward over it, against finite differences."""
    layer = random_layer(cell, D=2, T=2, H=2, P=1, packed=packed)
    assert gradgradcheck(
        _as_function(layer),
        layer.leaves,
        fast_mode=True,
        check_fwd_over_rev=True,
        check_batched_grad=True,
    )


def test_gradcheck_of_every_entry() -> None:
    layer = random_layer("lstm", T=2, B=1, I=2, H=2)
    assert gradcheck(_as_function(layer), layer.leaves, check_forward_ad=True)


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_tangent_is_never_zero_by_accident(grad: bool) -> None:
    layer = random_layer(D=2)
    direction = torch.randn_like(layer.x)
    with torch.set_grad_enabled(grad), fwd.dual_level():
        moved = RandomLayer(
            layer.cell, fwd.make_dual(layer.x, direction), layer.h0, layer.c0, layer.weights
        )
        found = [fwd.unpack_dual(r).tangent for r in moved.run()]
        expected = [fwd.unpack_dual(r).tangent for r in moved.page()]
    assert_same(found, expected)
    assert all(t.abs().max() > 0 for t in found)


@pytest.mark.parametrize("times", [1, 2], ids=["gradient", "of_a_gradient"])
@pytest.mark.parametrize("along", ["x", "d_y"])
def test_a_tangent_reaches_a_gradient_of_which_no_graph_is_kept(along: str, times: int) -> None:
    layer = random_layer(D=2, P=2)
    direction, of_d = torch.randn_like(layer.x), torch.randn(3, 2, 4, dtype=torch.float64)
    found = []
    for run in (RandomLayer.run, RandomLayer.page):
        with fwd.dual_level():
            x, d = layer.x, torch.ones_like(of_d)
            if along == "x":
                x = fwd.make_dual(x, direction)
            else:
                d = fwd.make_dual(d, of_d)
            moved = RandomLayer(layer.cell, x, layer.h0, layer.c0, layer.weights)
            (grad,) = torch.autograd.grad(run(moved)[0], x, d, create_graph=times == 2)
            if times == 2:
                (grad,) = torch.autograd.grad(grad.square().sum(), x)
            found.append(fwd.unpack_dual(grad).tangent)
    assert found[1].abs().max() > 0
    assert_same(*found)


def test_batched_gradients_are_the_gradients_one_by_one() -> None:
    layer = random_layer(D=2)
    y = layer.run()[0]
    d = torch.randn(4, *y.shape, dtype=y.dtype)
    options = {"retain_graph": True, "allow_unused": True}
    found = torch.autograd.grad(y, layer.leaves, d, is_grads_batched=True, **options)
    each = [torch.autograd.grad(y, layer.leaves, one, **options) for one in d]
    assert_same(found, tuple(map(torch.stack, zip(*each, strict=True))))


# --- the total gradients --------------------------------------------------------------------------


class Sink:
    """Keeps what backward reports."""

    def __init__(self) -> None:
        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, tape: torch.Tensor, h: torch.Tensor) -> None:
        self.seen.append((tape, h))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_sink_gets_what_autograd_finds(cell: str, packed: bool, monkeypatch) -> None:
    layer = random_layer(cell, D=2, P=2, packed=packed)
    sink, second = Sink(), Sink()
    gradients(layer.run(sink=sink), layer.leaves)
    monkeypatch.setattr(native, "_core", core_double)
    gradients(layer.run(sink=second), layer.leaves)
    assert len(sink.seen) == 1
    assert_same(sink.seen, second.seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_results_that_the_core_makes_are_those_in_buffers(
    cell: str, packed: bool, dtype: torch.dtype, monkeypatch
) -> None:
    layer = random_layer(cell, D=2, P=2, packed=packed, dtype=dtype)
    core, buffers = native._core, (native.fill, native.fill_gradients)
    found = {}
    for made_by_the_core in (True, False):
        fill, fill_gradients = (None, None) if made_by_the_core else buffers
        monkeypatch.setattr(native, "fill", fill)
        monkeypatch.setattr(native, "fill_gradients", fill_gradients)
        if not made_by_the_core:
            monkeypatch.setattr(core, "layer", core_double.layer)
            monkeypatch.setattr(core, "layer_gradient", core_double.layer)
        results = layer.run()
        found[made_by_the_core] = results, gradients(results, layer.leaves)
    assert_same(found[True], found[False], atol=0, rtol=0)


def test_a_sink_hears_of_every_backward_pass_and_of_no_forward() -> None:
    layer = random_layer()
    sink = Sink()
    results = layer.run(sink=sink)
    assert not sink.seen
    gradients(results, layer.leaves, retain_graph=True)
    gradients(results, layer.leaves)
    first, second = sink.seen
    assert_same(first, second, atol=0, rtol=0)


def test_the_core_and_its_double_agree_on_every_call() -> None:
    """The double is what other tests trust; here both fill the same buffers."""
    layer = random_layer("peephole", D=2, P=2, packed=True)
    found = {}
    for core in (native._core, core_double):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(native, "_core", core)
            results = layer.run()
            found[core.__name__] = results, gradients(results, layer.leaves)
    (one, two) = found.values()
    assert_same(one, two)
