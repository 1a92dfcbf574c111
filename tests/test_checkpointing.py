"""checkpoint=: the same layer, with states kept in place of gates."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwd
from layers import RandomLayer, assert_same, gradients, random_layer
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from twins import BOUNDS, flat

import gatewise
from gatewise import native, ops
from gatewise.reference import Weights
from gatewise.spec import CELLS

# torch's own make_dual, when first called
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")

STEPS = (True, 1, 2, 3, 100)  # of a layer of 3 steps, or 4 packed: some do not divide it


def assert_close(found: Any, expected: Any) -> None:
    """To the bound of the dtype, relative to the largest value; a NaN is never close."""
    for a, b in zip(flat(found), flat(expected), strict=True):
        atol = BOUNDS[b.dtype] * max(b.abs().max().item() if b.numel() else 0.0, 1e-30)
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def results(layer: RandomLayer, checkpoint: Any) -> tuple[Tensor, ...]:
    """Output, h_n and, where there is one, c_n."""
    y, h_n, c_n, tape = ops.layer(
        layer.cell, layer.x, layer.h0, layer.c0, layer.weights, layer.batch_sizes,
        checkpoint=checkpoint,
    )  # fmt: skip
    assert tape is None
    return (y, h_n, c_n) if layer.cell.has_cell_state else (y, h_n)


def assert_as_without(layer: RandomLayer, checkpoint: Any) -> None:
    """Results to the bit, gradients to rounding."""
    expected, found = results(layer, None), results(layer, checkpoint)
    assert_same(found, expected, atol=0, rtol=0)
    assert_close(gradients(found, layer.leaves), gradients(expected, layer.leaves))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("P", [None, 2], ids=["plain", "projected"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_as_without(cell: str, D: int, P: int | None, packed: bool) -> None:
    layer = random_layer(cell, D=D, P=P, packed=packed)
    for checkpoint in STEPS:
        assert_as_without(layer, checkpoint)


@pytest.mark.parametrize(("T", "B", "H"), [(1, 1, 1), (17, 1, 16), (23, 5, 33), (50, 40, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("D", [1, 2])
def test_sizes(T: int, B: int, H: int, dtype: torch.dtype, D: int) -> None:
    layer = random_layer(T=T, B=B, H=H, D=D, dtype=dtype)
    for checkpoint in (True, 1, 7):
        assert_as_without(layer, checkpoint)


@pytest.mark.parametrize("lengths", [[9], [9, 9, 9], [40, 1], [23, 22, 9, 9, 8, 1, 1]])
@pytest.mark.parametrize("D", [1, 2])
def test_lengths(lengths: list[int], D: int) -> None:
    layer = random_layer(D=D, packed=True, dtype=torch.float32)
    packed = pack_sequence([torch.randn(n, 3) for n in lengths])
    layer.x, layer.batch_sizes = packed.data.requires_grad_(), packed.batch_sizes
    layer.h0, layer.c0 = (torch.randn(D, len(lengths), 4, requires_grad=True) for _ in range(2))
    for checkpoint in (True, 1, 4):
        assert_as_without(layer, checkpoint)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_a_state_that_is_not_given_and_has_no_gradient(cell: str, packed: bool) -> None:
    layer = random_layer(cell, D=2, packed=packed)
    leaves = [layer.x, *layer.parameters]

    def run(checkpoint: Any) -> Tensor:
        args = (layer.cell, layer.x, None, None, layer.weights, layer.batch_sizes)
        return ops.layer(*args, checkpoint=checkpoint).output

    for checkpoint in STEPS:
        found, expected = run(checkpoint), run(None)
        assert_same(found, expected, atol=0, rtol=0)
        assert_close(gradients((found,), leaves), gradients((expected,), leaves))


@pytest.mark.parametrize("used", [[0], [1], [2], [1, 2]])
def test_a_loss_may_use_only_some_results(used: list[int]) -> None:
    layer = random_layer(D=2, P=2, packed=True)
    found, expected = ([results(layer, k)[n] for n in used] for k in (2, None))
    assert_close(gradients(tuple(found), layer.leaves), gradients(tuple(expected), layer.leaves))


@pytest.mark.parametrize("name", ["x", "h0", "c0", *Weights._fields])
def test_only_the_gradients_that_are_wanted(name: str) -> None:
    layer = random_layer("peephole", P=2)
    for leaf in layer.leaves:
        leaf.requires_grad_(False)
    wanted = getattr(layer, name, None)
    wanted = getattr(layer.weights[0], name) if wanted is None else wanted
    wanted.requires_grad_()
    assert_close(*(gradients(results(layer, k), [wanted]) for k in (2, None)))


def test_no_sequence_at_all() -> None:
    layer = random_layer(T=5, B=0, D=2)
    assert_as_without(layer, 2)
    assert gradients(results(layer, 2), layer.parameters)[0].abs().max() == 0


def test_backward_again_gives_the_same_bits() -> None:
    layer = random_layer(D=2, P=2, packed=True)
    found = results(layer, 2)
    first = gradients(found, layer.leaves, retain_graph=True)
    assert_same(gradients(found, layer.leaves), first, atol=0, rtol=0)


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_in_the_core_each_direction_may_have_tokens_of_its_own(packed: bool) -> None:
    layer = random_layer(D=2, packed=packed)
    x, *states = (t.detach() for t in (layer.x, layer.h0, layer.c0))
    weights = tuple(tuple(t if t is None else t.detach() for t in w) for w in layer.weights)
    xs, H = (x, torch.randn_like(x)), 4

    def run(x: Any, directions: slice, y: Any, **how: bool) -> tuple[Any, ...]:
        h, c = (t[directions] for t in states)
        ends = torch.empty_like(h), torch.empty_like(c)
        inputs = x, layer.batch_sizes, h, c, weights[directions]
        native._core.forward("lstm", *inputs, y, *ends, None, 2, **how)
        return y, *ends

    def room(*numbers: int) -> tuple[Tensor, ...]:
        return tuple(x.new_empty(*x.shape[:-1], n) for n in numbers)

    both, (y, other), pair = slice(0, 2), room(H, H), room(H, H)
    apart = run(xs, both, pair)
    alone = run(xs[0], slice(0, 1), y), run(xs[1], slice(1, 2), other, reverse=True)
    for d, (of_x, found) in enumerate(zip(xs, alone, strict=True)):
        whole, *ends = run(of_x, both, *room(2 * H))
        expected = whole[..., d * H : (d + 1) * H], *(t[d : d + 1] for t in ends)
        assert_same(found, expected, atol=0, rtol=0)
        assert_same((pair[d], *(t[d : d + 1] for t in apart[1:])), expected, atol=0, rtol=0)
    for x_of, y_of in ((xs[:1], pair), (xs, pair[:1]), ((x, x[1:]), pair)):
        with pytest.raises(ValueError, match=r"^[xy]: expected"):
            run(x_of, both, y_of)


# --- memory: what the promise is -----------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("D", [1, 2])
def test_states_are_kept_and_no_gates(D: int, packed: bool, monkeypatch) -> None:
    T, B, H, S = 100, 3, 8, 5
    layer = random_layer(T=T, B=B, H=H, D=D)
    if packed:
        layer.batch_sizes = torch.full((T,), B)
        layer.x = layer.x.detach().flatten(0, 1).requires_grad_()
    given = {t.data_ptr() for t in layer.leaves}
    kept: list[Tensor] = []
    tapes: list[Tensor] = []
    fill = native.fill

    def spy(cell: Any, reduced: Any, buffers: Any, inputs: Any, **how: Any) -> None:
        tapes.append(buffers[3])
        fill(cell, reduced, buffers, inputs, **how)

    monkeypatch.setattr(native, "fill", spy)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = results(layer, 10)
    states = [t for t in kept if t.is_floating_point() and t.data_ptr() not in given]
    assert sum(t.numel() for t in states) == D * 9 * B * 2 * H  # h and c before all but the first
    calls, together = (10 * D, 1) if packed else (10, D)  # directions of a call
    assert tapes == [None] * calls
    tapes.clear()
    gradients(found, layer.leaves)
    assert [t.numel() for t in tapes] == [together * 10 * B * S * H] * calls
    assert len({t.data_ptr() for t in tapes}) == 1


@pytest.mark.parametrize(
    ("T", "B", "H", "every"),
    [(4, 2048, 64, 2), (5, 2048, 64, 3), (9, 2048, 64, 3), (10, 2048, 64, 4)]  # ceil(sqrt(T))
    + [(10, 512, 64, 4), (10, 511, 64, 5), (10, 300, 65, 7), (9, 2, 64, 9)]  # 2048 tokens
    + [(10, 2048, 16, 4), (10, 2048, 8, 8), (10, 2048, 1, 10), (1, 1, 1, 1), (1, 0, 1, 1)],
)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_true_is_the_root_of_t_or_what_is_worth_a_call(
    T: int, B: int, H: int, every: int, packed: bool
) -> None:
    layer = random_layer(T=T, B=B, I=1, H=H, dtype=torch.float32)
    if packed and B:
        layer.batch_sizes, layer.x = torch.full((T,), B), layer.x.flatten(0, 1)
    _, h_n, _ = results(layer, True)
    assert h_n.grad_fn is not None
    kept_h, kept_c = h_n.grad_fn.saved_tensors[-2:]
    stretches = -(-T // every)
    assert len(kept_h) == len(kept_c) == (stretches - 1) * B


def test_true_where_some_sequences_end_early() -> None:
    layer = random_layer(D=2, H=64, packed=True)
    packed = pack_sequence([torch.randn(n, 3).double() for n in [300] * 10 + [200] * 5 + [40] * 5])
    layer.x, layer.batch_sizes = packed.data.requires_grad_(), packed.batch_sizes
    layer.h0, layer.c0 = (torch.randn(2, 20, 64).double().requires_grad_() for _ in range(2))
    with torch.no_grad():
        for w in layer.parameters:
            w.mul_(0.1)
    kept_h = results(layer, True)[1].grad_fn.saved_tensors[-2]
    assert len(kept_h) == 2 * (15 + 10)  # of three stretches
    assert_as_without(layer, True)


def test_the_output_may_be_changed_and_the_weights_may_not() -> None:
    layer = random_layer()
    expected = gradients(results(layer, None), layer.leaves)
    found = results(layer, 2)
    found[0].data.add_(1)
    assert_close(gradients(found, layer.leaves), expected)
    found = results(layer, 2)
    with torch.no_grad():
        layer.weights[0].W_hh.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        found[1].sum().backward()


# --- modules -------------------------------------------------------------------------------------


def run_module(module: Any, x: Any, hx: Any) -> tuple[list[Tensor], tuple[Tensor, ...]]:
    torch.manual_seed(5)  # for dropout
    data = x.data if isinstance(x, PackedSequence) else x
    found = [t for t in flat(module(x, hx)) if t.requires_grad]
    leaves = [data, *flat(hx), *module.parameters()]
    return found, gradients(tuple(found), leaves)


def test_a_weight_that_the_loss_does_not_reach_has_no_gradient() -> None:
    lstm = gatewise.LSTM(3, 6, proj_size=2, checkpoint=True)
    lstm(torch.randn(1, 4, 3))[1][1].sum().backward()  # c of one step knows nothing of P
    assert lstm.weight_hr_l0.grad is None
    assert lstm.weight_ih_l0.grad is not None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_a_stack(packed: bool, dtype: torch.dtype) -> None:
    module = gatewise.LSTM(
        3, 8, 3, batch_first=True, dropout=0.5, bidirectional=True, proj_size=2, dtype=dtype
    )
    x: Any = torch.randn(4, 11, 3, dtype=dtype, requires_grad=True)
    if packed:
        x = pack_sequence([torch.randn(n, 3, dtype=dtype) for n in (2, 11, 5, 5)], False)
        x = x._replace(data=x.data.requires_grad_())
    hx = tuple(torch.randn(6, 4, n, dtype=dtype, requires_grad=True) for n in (2, 8))
    outputs, grads = run_module(module, x, hx)
    module.checkpoint = True
    found, found_grads = run_module(module, x, hx)
    assert_same(found, outputs, atol=0, rtol=0)
    assert_close(found_grads, grads)


def test_rnn_and_autocast() -> None:
    module = gatewise.RNN(3, 8, nonlinearity="relu", checkpoint=2)
    x, h0 = torch.randn(5, 3, requires_grad=True), torch.randn(1, 8, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, grads = run_module(module, x, h0)
        module.checkpoint = None
        expected, expected_grads = run_module(module, x, h0)
    assert outputs[0].dtype == torch.bfloat16
    assert_same(outputs, expected, atol=0, rtol=0)
    assert_close(grads, expected_grads)


def test_inference_and_frozen_weights_keep_nothing_anyway(monkeypatch) -> None:
    module = gatewise.LSTM(3, 4, checkpoint=2).requires_grad_(False)
    monkeypatch.setattr("gatewise.checkpointing.layer", None)
    module(torch.randn(5, 1, 3))
    with torch.no_grad():
        module.requires_grad_()(torch.randn(5, 1, 3))


@pytest.mark.parametrize("checkpoint", [0, -1, False, 2.0, "yes", torch.tensor(2)])
def test_refused(checkpoint: Any) -> None:
    message = r"checkpoint should be None .*, True .* or k >= 1 of type int"
    with pytest.raises(gatewise.ArgumentError, match=message):
        gatewise.LSTM(3, 4, checkpoint=checkpoint)
    with pytest.raises(gatewise.ArgumentError, match=message):
        gatewise.RNN(3, 4, checkpoint=checkpoint)
    lstm = gatewise.LSTM(3, 4)
    lstm.checkpoint = checkpoint
    with pytest.raises(gatewise.ArgumentError, match=message):
        lstm(torch.zeros(2, 1, 3))


def test_it_is_shown_copied_and_pickled_and_is_no_weight() -> None:
    lstm = gatewise.LSTM(3, 4, checkpoint=7)
    assert repr(lstm) == "LSTM(3, 4, checkpoint=7)"
    assert repr(gatewise.RNN(3, 4, checkpoint=True)) == "RNN(3, 4, checkpoint=True)"
    assert repr(gatewise.LSTM(3, 4)) == "LSTM(3, 4)"
    assert copy.deepcopy(lstm).checkpoint == pickle.loads(pickle.dumps(lstm)).checkpoint == 7
    assert lstm.state_dict().keys() == nn.LSTM(3, 4).state_dict().keys()
    nn.LSTM(3, 4).load_state_dict(lstm.state_dict())


def test_a_state_of_before_and_a_swapped_module_have_none() -> None:
    lstm = gatewise.LSTM(3, 4, checkpoint=7)
    state = {k: v for k, v in vars(lstm).items() if k != "checkpoint"}
    old = gatewise.LSTM.__new__(gatewise.LSTM)
    old.__setstate__(state)
    assert old.checkpoint is None
    model = nn.ModuleList([nn.LSTM(3, 4)])
    gatewise.swap(model)
    assert model[0].checkpoint is None
    lstm.checkpoint = 7
    gatewise.swap(nn.ModuleList([lstm]))
    assert lstm.checkpoint == 7


# --- derivatives of other kinds, and other routes: the values of a layer without ------------------


def test_gradcheck() -> None:
    for packed in (False, True):
        layer = random_layer(D=2, packed=packed, I=2, H=2)
        leaves = layer.leaves

        def run(*_: Tensor, layer: RandomLayer = layer) -> tuple[Tensor, ...]:
            return results(layer, 2)  # the leaves are changed in place

        assert gradcheck(run, leaves, fast_mode=True, check_batched_grad=True)
        assert gradgradcheck(run, leaves, fast_mode=True)


def test_the_gradient_of_a_gradient() -> None:
    layer = random_layer("peephole", D=2, P=2, packed=True)

    def second(checkpoint: Any) -> tuple[Tensor, ...]:
        first = gradients(results(layer, checkpoint), layer.leaves, create_graph=True)
        return gradients(first, layer.leaves, seed=2, allow_unused=True, materialize_grads=True)

    assert_close(second(2), second(None))


def test_forward_mode_and_torch_func() -> None:
    lstm, x = gatewise.LSTM(3, 4, dtype=torch.float64), torch.randn(5, 2, 3, dtype=torch.float64)
    parameters = dict(lstm.named_parameters())
    v = torch.randn_like(x)

    def loss(parameters: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(lstm, parameters, (x,))[0].square().sum()

    def everything() -> list[Any]:
        with fwd.dual_level():
            tangent = fwd.unpack_dual(lstm(fwd.make_dual(x, v))[0]).tangent
        each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x[:, :, None])
        return [
            tangent,
            torch.func.jvp(lambda x: lstm(x)[0], (x,), (v,))[1],
            torch.vmap(lambda x: lstm(x)[0])(torch.stack([x, v])),
            *each.values(),
        ]

    expected = everything()
    lstm.checkpoint = 2
    assert_close(everything(), expected)


def test_a_trace() -> None:
    lstm, x = gatewise.LSTM(3, 4, 2, checkpoint=2), torch.randn(5, 2, 3)
    trace = lstm.trace(x)
    assert trace.c.shape == (2, 1, 5, 2, 4)
    with gatewise.tracing(lstm) as traces:
        lstm(x)[0].sum().backward()
    assert_same(traces[""].c, trace.c)
    assert traces[""].grad.c.abs().sum() > 0


def test_torch_checkpoint_around_it_and_hooks_under_it() -> None:
    lstm = gatewise.LSTM(3, 4, checkpoint=2)
    x = torch.randn(5, 2, 3, requires_grad=True)
    expected = torch.autograd.grad(lstm(x)[0].sum(), x)
    outer = torch.utils.checkpoint.checkpoint(lambda x: lstm(x)[0], x, use_reentrant=False)
    assert_same(torch.autograd.grad(outer.sum(), x), expected, atol=0, rtol=0)
    with torch.autograd.graph.save_on_cpu():
        found = lstm(x)[0]
    assert_same(torch.autograd.grad(found.sum(), x), expected, atol=0, rtol=0)


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_compiled_and_exported() -> None:
    lstm, x = gatewise.LSTM(3, 4, checkpoint=2), torch.randn(5, 2, 3)
    expected = lstm(x)[0]
    compiled = torch.compile(lstm, backend="aot_eager", fullgraph=True)(x)[0]
    assert_same(compiled, expected, atol=0, rtol=0)
    assert_close(
        *(torch.autograd.grad(y.sum(), list(lstm.parameters())) for y in (compiled, expected))
    )
    exported = torch.export.export(lstm, (x,)).module()(x)[0]
    assert_same(exported, expected, atol=0, rtol=0)
