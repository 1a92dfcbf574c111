"""The weights of many steps as one node: gradients are summed once, and never those of before."""

from __future__ import annotations

import copy
import pickle
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from test_core import ISAS, kernels
from torch import Tensor

import gatewise
from gatewise import _core, native, ops

F64 = torch.float64


def twins(I: int = 4, H: int = 9, dtype: torch.dtype = F64) -> tuple[Any, Any]:
    ours, theirs = gatewise.LSTMCell(I, H, dtype=dtype), torch.nn.LSTMCell(I, H, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def loop(cell: Any, x: Tensor, hook: Any = None) -> Tensor:
    """The hook is that of the first h."""
    h, c = x.new_zeros(2, x.shape[1], cell.hidden_size)
    for k, x_t in enumerate(x):
        h, c = cell(x_t, (h, c))
        if k == 0 and hook is not None:
            h.register_hook(hook)
    return (h * c).sum()


def grads(cell: Any, x: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loop(cell, x), [p for p in cell.parameters() if p.requires_grad])


def assert_close(found: Any, wanted: Any) -> None:
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, atol=1e-13 if a.dtype == F64 else 1e-5)


def test_the_sums_are_gone_after_the_pass() -> None:
    cell, _ = twins()
    loop(cell, torch.randn(3, 2, 4, dtype=F64)).backward()
    assert cell._memo.joint.sums == {}


def test_the_sums_are_gone_after_a_pass_that_failed() -> None:
    """They are megabytes; and a pass that it was part of goes on with its own."""
    ours, theirs = twins()
    x = torch.randn(3, 2, 4, dtype=F64)
    kept = []

    def stop(_: Tensor) -> None:
        kept.append(len(ours._memo.joint.sums))
        raise KeyError

    def fail(_: Tensor) -> None:
        kept.append(len(ours._memo.joint.sums))
        with torch.enable_grad(), pytest.raises(KeyError):
            loop(ours, x, stop).backward()
        kept.append(len(ours._memo.joint.sums))

    found = torch.autograd.grad(loop(ours, x, fail), list(ours.parameters()))
    assert kept == [1, 2, 1]
    assert ours._memo.joint.sums == {}
    assert_close(found, grads(theirs, x))


@pytest.mark.parametrize("dtype", [F64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("isa", ISAS)
def test_tokens_are_kept_until_there_are_many(isa, dtype, threads) -> None:
    """Fewer than a tile, a part of what is kept, more than that, and a step of more than that."""
    torch.set_num_threads(threads)
    for I, H, batches in ((1, 3, [1]), (37, 70, [9, 5]), (50, 33, [300, 90]), (3, 9, [2, 700])):
        ours, theirs = twins(I, H, dtype)
        found = []
        with kernels(isa):
            for cell in (ours, theirs):
                torch.manual_seed(1)
                losses = [loop(cell, torch.randn(3, B, I, dtype=dtype)) / B for B in batches]
                found.append(torch.autograd.grad(sum(losses), list(cell.parameters())))
        assert_close(*found)


def test_sums_refuse_what_does_not_fit() -> None:
    cell = _core.TokenSums
    W_ih, W_hh = torch.zeros(8, 3), torch.zeros(8, 2)
    with pytest.raises(ValueError, match=r"d_W_ih: expected shape \(G\*H = 8, I = 3\)"):
        cell(W_ih, W_hh, W_hh, None, None)
    with pytest.raises(TypeError, match="d_b: expected the dtype"):
        cell(W_ih, W_hh, None, None, torch.zeros(8, dtype=F64))
    with pytest.raises(ValueError, match="expected W_ih"):
        cell(W_ih, W_hh[:4], None, None, None)
    with pytest.raises(ValueError, match="expected W_ih"):
        cell(W_ih[:0], W_hh[:0], None, None, None)
    empty = cell(W_ih, W_hh, torch.full((8, 3), torch.nan), None, None).finish()
    assert torch.equal(empty[0], W_ih), "no token, no gradient"
    assert empty[1:] == (None, None)


def test_a_dtype_there_and_back_between_two_passes() -> None:
    ours, theirs = twins()
    x = torch.randn(3, 2, 4, dtype=F64)
    for cell in (ours, theirs):
        loop(cell, x).backward()
        cell.float().double()  # the same parameters, and other nodes of the graph
    assert_close(grads(ours, x), grads(theirs, x))


def test_each_pass_has_sums_of_its_own() -> None:
    ours, theirs = twins()
    x = torch.randn(5, 3, 4, dtype=F64)
    loss, want = loop(ours, x), loop(theirs, x)
    for factor in (1.0, 3.0):
        (factor * loss).backward(retain_graph=True)
        (factor * want).backward(retain_graph=True)
    loop(ours, x[:2]).backward()  # another graph, the same node
    loop(theirs, x[:2]).backward()
    assert_close([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])
    assert len({d.data_ptr() for d in grads(ours, x)}) == 4, "one buffer for the two biases"


def test_a_pass_inside_a_pass() -> None:
    """As reentrant checkpointing does: a backward pass that runs others over the same cell."""
    ours, theirs = twins()
    found = []
    for cell in (ours, theirs):
        x = torch.randn(4, 2, 4, dtype=F64, generator=torch.Generator().manual_seed(1))

        def run(x: Tensor, cell: Any = cell) -> Tensor:
            return loop(cell, x)

        total = torch.zeros((), dtype=F64)
        x.requires_grad_()
        for part in x.split(2):
            total = total + torch.utils.checkpoint.checkpoint(run, part, use_reentrant=True)
        total.backward()
        found.append([x.grad, *(p.grad for p in cell.parameters())])
    assert_close(*found)


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("kind", ["LSTMCell", "RNNCell"])
def test_a_batch_of_none_goes_the_same_way(kind, gradients, monkeypatch) -> None:
    """As in a parser's stack: not the way of a layer, many times as long."""
    cell = getattr(gatewise, kind)(4, 9, dtype=F64)
    x = torch.randn(3, 4, dtype=F64)
    found = []
    for steps in (x, x[:, None]):
        monkeypatch.setattr(ops, "layer", ops.layer if steps.dim() == 3 else None)
        with torch.set_grad_enabled(gradients):
            state = None
            for x_t in steps:
                out = cell(x_t, state)
                state = out
            flat = [t.flatten() for t in (out if isinstance(out, tuple) else (out,))]
            total = sum(t.sum() for t in flat)
            grads = torch.autograd.grad(total, list(cell.parameters())) if gradients else ()
        found.append([*flat, *grads])
        monkeypatch.undo()
    assert_close(*found)


def by_data(p: list[Any]) -> None:
    for t in p:
        t.data.mul_(1.5)


def by_other_data(p: list[Any]) -> None:
    for t in p:
        t.data = t.data * 1.5


def by_vector(p: list[Any]) -> None:
    with torch.no_grad():
        vector = 1.5 * torch.nn.utils.parameters_to_vector(p)
    torch.nn.utils.vector_to_parameters(vector, p)


def by_foreach(p: list[Any]) -> None:
    with torch.no_grad():
        torch._foreach_mul_(p, 1.5)


def by_numpy(p: list[Any]) -> None:
    for t in p:
        t.detach().numpy()[:] *= 1.5


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("change", [by_data, by_other_data, by_vector, by_foreach, by_numpy])
def test_changed_weights_are_used_at_once(change, gradients) -> None:
    """Nothing of what the weights hold is kept, so a change is seen by whatever door it came."""
    ours, theirs = twins(dtype=torch.float32)
    x = torch.randn(3, 2, 4)
    with torch.set_grad_enabled(gradients):
        for _ in range(3):
            for cell in (ours, theirs):
                change(list(cell.parameters()))
            assert_close([loop(ours, x).detach()], [loop(theirs, x).detach()])
            if gradients:
                assert_close(grads(ours, x), grads(theirs, x))


def test_only_the_input(monkeypatch) -> None:
    ours, theirs = twins()
    x = torch.randn(3, 2, 4, dtype=F64, requires_grad=True)
    loss = loop(ours, x)
    with monkeypatch.context() as nobody_would_take_them:
        nobody_would_take_them.delattr(native, "token_sums")
        (d,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert_close([d], torch.autograd.grad(loop(theirs, x), x))
    assert_close(torch.autograd.grad(loss, list(ours.parameters())), grads(theirs, x))
    assert_close(
        torch.autograd.grad(loop(ours, x), ours.bias_hh),
        torch.autograd.grad(loop(theirs, x), theirs.bias_hh),
    )


@pytest.mark.parametrize("frozen", range(4))
def test_frozen_and_thawed(frozen) -> None:
    ours, theirs = twins()
    x = torch.randn(3, 2, 4, dtype=F64)
    for wanted in (True, False, True):
        for cell in (ours, theirs):
            list(cell.parameters())[frozen].requires_grad_(wanted)
        assert_close(grads(ours, x), grads(theirs, x))


def double(cell: Any) -> None:
    cell.double()


def by_data(cell: Any) -> None:
    for p in cell.parameters():
        p.data.mul_(0.5)


def by_numpy(cell: Any) -> None:
    for p in cell.parameters():
        p.detach().numpy()[...] *= 0.5


def replaced(cell: Any) -> None:
    cell.weight_hh = torch.nn.Parameter(cell.weight_hh.detach() * 0.5)


def other_data(cell: Any) -> None:
    cell.weight_ih.data = cell.weight_ih.data * 0.5


def trained(cell: Any) -> None:
    torch.optim.SGD(cell.parameters(), lr=0.1).step()


CHANGES = [double, by_data, by_numpy, replaced, other_data, trained]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_changed_weights_are_seen_at_once(change) -> None:
    ours, theirs = twins(dtype=torch.float32)
    x = torch.randn(3, 2, 4)
    for cell in (ours, theirs):
        loop(cell, x).backward()
        change(cell)
        cell.zero_grad()
    x = x.to(ours.weight_ih.dtype)
    assert_close([loop(ours, x)], [loop(theirs, x)])
    assert_close(grads(ours, x), grads(theirs, x))


def test_weights_that_change_before_the_gradient() -> None:
    cell, x = gatewise.LSTMCell(4, 5), torch.randn(3, 2, 4)
    loss = loop(cell, x)
    with torch.no_grad():
        cell.weight_hh.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    loop(cell, x).backward()  # and the cell goes on


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("name", ["weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("wanted", ["", "x", "h", "c", "xhc"])
def test_a_changed_weight_is_refused_where_it_is_needed(wanted, name, steps) -> None:
    """As an agent's, that learns between a step and its gradient."""
    found = []
    for cell in twins():
        x, h, c = (
            torch.linspace(-1, 1, 2 * n, dtype=F64).view(2, n).requires_grad_(letter in wanted)
            for n, letter in ((4, "x"), (9, "h"), (9, "c"))
        )
        state = h, c
        for _ in range(steps):
            state = cell(x, state)
        with torch.no_grad():
            getattr(cell, name).add_(1)
        leaves = [t for t in (x, h, c, *cell.parameters()) if t.requires_grad]
        try:
            found.append(torch.autograd.grad((state[0] * state[1]).sum(), leaves))
        except RuntimeError as refused:
            found.append("modified by an inplace operation" in str(refused))
    ours, theirs = found
    if isinstance(theirs, bool):
        assert ours is theirs is True
    else:
        assert_close(ours, theirs)


def test_a_changed_weight_is_refused_to_second_order() -> None:
    """Which computes the step again."""
    cell, x = gatewise.LSTMCell(4, 5), torch.randn(2, 4)
    h, _ = cell(x)
    with torch.no_grad():
        cell.bias_ih.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(h.sum(), cell.weight_ih, create_graph=True)


def test_weights_that_come_from_elsewhere() -> None:
    """A hypernetwork: the gradient goes on behind the weights."""
    ours, theirs = twins()
    x, scale = torch.randn(3, 2, 4, dtype=F64), torch.ones((), dtype=F64, requires_grad=True)
    found = []
    for cell in (ours, theirs):
        weights = {name: p * scale for name, p in cell.named_parameters()}
        loss = torch.zeros((), dtype=F64)
        h = c = torch.zeros(2, 9, dtype=F64)
        for x_t in x:
            h, c = torch.func.functional_call(cell, weights, (x_t, (h, c)))
            loss = loss + (h * c).sum()
        found.append(torch.autograd.grad(loss, [scale, *cell.parameters()]))
    assert_close(*found)


def test_weights_that_hold_a_graph_are_not_kept() -> None:
    cell, x = gatewise.LSTMCell(4, 5), torch.randn(2, 4)
    weights = {name: p * 2 for name, p in cell.named_parameters()}
    kept = weakref.ref(weights["weight_hh"])
    torch.func.functional_call(cell, weights, (x,))
    del weights
    assert kept() is None


def test_steps_without_a_state() -> None:
    """The sums' memory is used again: of h there is what a step before left."""
    ours, theirs = twins()
    x = torch.randn(3, 2, 4, dtype=F64)
    grads(ours, x)
    found = []
    for cell in (ours, theirs):
        loss = sum((h * c).sum() for h, c in map(cell, x))
        found.append(torch.autograd.grad(loss, list(cell.parameters())))
    assert_close(*found)


def test_second_derivatives_of_a_loop() -> None:
    ours, theirs = twins(2, 3)
    x = torch.randn(3, 2, 2, dtype=F64, requires_grad=True)
    found = []
    for cell in (ours, theirs):
        first = torch.autograd.grad(loop(cell, x), [x, *cell.parameters()], create_graph=True)
        penalty = sum((d * d).sum() for d in first)
        found.append(torch.autograd.grad(penalty, [x, *cell.parameters()]))
    assert_close(*found)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_have_weights_of_their_own(again) -> None:
    cell, x = gatewise.LSTMCell(4, 5, dtype=F64), torch.randn(3, 2, 4, dtype=F64)
    want = grads(cell, x)
    other = again(cell)
    assert_close(grads(other, x), want)
    loop(other, x).backward()
    assert cell.weight_ih.grad is None


@pytest.mark.parametrize("kind", ["LSTMCell", "RNNCell"])
def test_a_hook_of_the_module_finds_the_gradients_of_its_weights(kind) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, dtype=F64, requires_grad=True)
    ours, theirs = (getattr(where, kind)(5, 6, dtype=F64) for where in (gatewise, torch.nn))
    theirs.load_state_dict(ours.state_dict())
    found: dict[Any, list[Tensor]] = {ours: [], theirs: []}
    for cell, seen in found.items():
        cell.register_full_backward_hook(lambda m, *_, seen=seen: seen.append(m.weight_ih.grad))
        for _ in range(3):  # the second pass has the node of the first
            cell.zero_grad()
            h = cell(x)[0] if kind == "LSTMCell" else cell(x)
            h.square().sum().backward()
    assert_close(found[ours], found[theirs])


def test_passes_in_threads() -> None:
    cell, x = gatewise.LSTMCell(4, 5, dtype=F64), torch.randn(8, 6, 2, 4, dtype=F64)
    want = [grads(cell, one) for one in x]
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(lambda one: grads(cell, one), x), want, strict=True):
            assert_close(found, wanted)


def turns_during(call) -> float:
    """Of the turns that another thread would have alone, those it has while ``call`` runs."""
    turns, done = 0, False

    def other() -> None:
        nonlocal turns
        while not done:
            time.sleep(1e-4)
            turns += 1

    with ThreadPoolExecutor(1) as pool:
        pool.submit(other)
        try:
            begin, before = time.perf_counter(), turns
            time.sleep(0.02)
            alone = (turns - before) / (time.perf_counter() - begin)
            begin, before = time.perf_counter(), turns
            call()
            return (turns - before) / (time.perf_counter() - begin) / alone
        finally:
            done = True


# On a busy machine either thread may wait for a processor: one round of many says what can be.
ROUNDS = range(30)


def test_a_large_step_lets_other_threads_go_on() -> None:
    """Python's lock is free while the core computes, forward and backward."""
    cell, x = gatewise.LSTMCell(700, 700).requires_grad_(False), torch.randn(600, 700)
    loss = cell(x.requires_grad_())[0].sum()
    for call in (lambda: cell(x), lambda: loss.backward(retain_graph=True)):
        assert any(turns_during(call) > 0.5 for _ in ROUNDS)


def test_a_call_that_keeps_pythons_lock_is_told_apart() -> None:
    assert any(turns_during(lambda: sum(range(5_000_000))) < 0.2 for _ in ROUNDS)
