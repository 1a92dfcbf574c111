"""Recording changes nothing and leaves nothing behind; a patch does what the page says it does."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

import gatewise
from gatewise import CELLS, ArgumentError, ShapeError, _core, patching, reference, tracing
from gatewise.recording import Where, put

T, B, I, H = 6, 3, 2, 4


class Pair(nn.Module):
    """An encoder inside, a plain RNN beside it, and something that is not ours."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict({"lstm": gatewise.LSTM(I, H, num_layers=2, dropout=0.5)})
        self.rnn = gatewise.RNN(H, H, bidirectional=True, batch_first=True)
        self.head = nn.Linear(2 * H, 1)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.encoder["lstm"](x)
        return self.head(self.rnn(states.transpose(0, 1))[0])


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def x_(n: int = T) -> Tensor:
    return torch.randn(n, B, I, dtype=torch.float64)


def lstm(**how: object) -> gatewise.LSTM:
    return gatewise.LSTM(I, H, dtype=torch.float64, **how)


# --- recording ------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
def test_every_layer_of_a_model_is_recorded_and_nothing_else_changes(training: bool) -> None:
    model, x = Pair().double().train(training), x_()
    torch.manual_seed(3)
    plain = model(x)
    plain.sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    torch.manual_seed(3)
    with tracing(model) as traces:
        watched = model(x)
    watched.sum().backward()
    assert torch.equal(watched, plain)
    for name, p in model.named_parameters():
        assert torch.equal(p.grad, expected[name]), name
    assert sorted(traces) == ["encoder.lstm", "rnn"]
    assert traces["rnn"].f.shape == (1, 2, T, B, H)
    encoder = traces["encoder.lstm"]
    same(encoder.output.transpose(0, 1), traces["rnn"].x.transpose(0, 1))
    dropped = (encoder.records[1].x == 0).any()  # what layer 1 read has been through dropout
    assert dropped == training
    assert encoder.grad.c.abs().sum() > 0


def test_a_recording_leaves_nothing_behind() -> None:
    model = Pair()
    before = [dict(module.__dict__) for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with pytest.raises(ShapeError), tracing(model):
        model(torch.zeros(T, B, I + 1))
    with patching(model, {"rnn.l0.reverse.h": put(0.0)}):
        pass
    assert [m.__dict__.keys() for m in model.modules()] == [each.keys() for each in before]
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks


@pytest.mark.parametrize("patched", [False, True])
def test_a_trace_frees_its_graph_when_it_is_dropped(patched: bool) -> None:
    module = lstm()
    with patching(module, {"l0.fwd.f": put(0.5, steps=[1])} if patched else {}):
        trace = module.trace(x_())
    trace.output.sum().backward(retain_graph=True)
    gone = weakref.ref(trace.records[0].tape)
    del trace
    gc.collect()
    assert gone() is None


def test_names_choose_the_layers() -> None:
    model = Pair()
    with tracing(model, "enc*") as traces:
        model(torch.zeros(T, B, I))
    assert list(traces) == ["encoder.lstm"]
    with tracing(model, ["rnn", "encoder.lstm"]) as traces:
        model(torch.zeros(T, B, I))
    assert len(traces) == 2
    with (
        pytest.raises(ArgumentError, match=r"'encoder\.lstm', 'rnn'.*got 'decoder'"),
        tracing(model, "decoder"),
    ):
        pass
    with pytest.raises(KeyError, match=r"recorded: 'encoder\.lstm', 'rnn'"):
        traces["head"]


def test_a_model_without_our_layers_is_an_error_that_names_swap() -> None:
    with pytest.raises(ArgumentError, match=r"gatewise\.swap\(model\)"), tracing(nn.LSTM(I, H)):
        pass
    for watch in (tracing, partial(patching, patches={})):
        with pytest.raises(ArgumentError, match=r"should be a torch\.nn\.Module, got list"):
            watch([gatewise.LSTM(I, H)]).__enter__()


@pytest.mark.parametrize("keep", [0, -1])
def test_at_least_one_run_is_kept(keep: int) -> None:
    with (
        pytest.raises(ArgumentError, match=f"keep: expected 1 or more, or None, got {keep}"),
        tracing(gatewise.LSTM(I, H), keep=keep),
    ):
        pass


def test_the_latest_run_is_kept_and_more_on_request() -> None:
    module = lstm()
    runs = [x_(n) for n in (2, 3, 4)]
    with (
        tracing(module) as latest,
        tracing(module, keep=2) as two,
        tracing(module, keep=None) as all_,
    ):
        for x in runs:
            module(x)
    assert [len(trace.f[0, 0]) for trace in latest.all("")] == [4]
    assert [len(trace.f[0, 0]) for trace in two.all("")] == [3, 4]
    assert [len(trace.f[0, 0]) for trace in all_.all("")] == [2, 3, 4]
    assert two[""] is all_[""]
    assert two.nbytes == (3 + 4) * B * (5 * H + H) * 8


def test_memory_is_bounded_before_the_layer_runs() -> None:
    module = lstm(num_layers=2)
    one_layer = T * B * (5 * H + H) * 8
    with tracing(module, max_bytes=2 * one_layer, keep=None) as traces:
        module(x_())
        with pytest.raises(ArgumentError, match=rf"at most {2 * one_layer:,} bytes.*keep="):
            module(x_())
    assert len(traces.all("")) == 1
    with tracing(module, max_bytes=2 * one_layer) as traces:  # the old run makes room for the new
        module(x_())
        module(x_())
    assert len(traces.all("")) == 1


def test_a_call_that_fails_leaves_no_half_trace() -> None:
    module = lstm(num_layers=2)

    def fail(value: Tensor, where: Where) -> Tensor:
        raise RuntimeError("in the second layer")

    with tracing(module) as traces:
        with pytest.raises(RuntimeError, match="second"), patching(module, {"l1.fwd.f": fail}):
            module(x_())
        assert not traces
        module(x_(2))
    assert traces[""].f.shape == (2, 1, 2, B, H)


def test_inference_mode_records_values() -> None:
    module, x = lstm(), x_()
    expected = module.trace(x)
    with torch.inference_mode():
        trace = module.trace(x)
    assert torch.equal(trace.c, expected.c)
    assert torch.equal(trace.z, expected.z)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_ran_without_a_graph_has_its_z_without_one(mode: type) -> None:
    module, x = lstm(), x_()
    with mode():
        trace = module.trace(x)
    assert not trace.z.requires_grad
    same(trace.z, module.trace(x).z.detach())


def test_recordings_nest() -> None:
    module, x = lstm(), x_()
    with tracing(module) as outer:
        with tracing(module) as inner:
            module(x)
        alone = module.trace(2 * x)
        module(3 * x)
    assert "_run_layer" not in module.__dict__
    for trace, times in ((inner[""], 1), (alone, 2), (outer[""], 3)):
        same(trace.c, module.trace(times * x).c)


def test_threads_do_not_see_each_other_s_runs() -> None:
    module, n = gatewise.LSTM(I, H, num_layers=2), 4
    inputs = [torch.randn(40, 2, I) for _ in range(n)]
    expected = [module.trace(x).c for x in inputs]
    wrong: list[str] = []

    def use(k: int) -> None:
        for turn in range(60):
            if k == 0:
                module(inputs[k])
            elif k == 1 and turn % 2:
                # All runs are kept: the next one, of another thread, would drop this one.
                with tracing(module, keep=None) as traces:
                    module(inputs[k])
                    trace = traces[""]
                if trace.num_layers != 2:
                    wrong.append(repr(trace))
            elif not torch.equal(module.trace(inputs[k]).c, expected[k]):
                wrong.append(f"thread {k}")

    with ThreadPoolExecutor(n) as pool:
        for each in [pool.submit(use, k) for k in range(n)]:
            each.result()
    assert wrong == []
    assert "_run_layer" not in module.__dict__


def test_runs_that_overlap_keep_no_more_than_they_may() -> None:
    module, both = lstm(), Barrier(2, timeout=60)

    def meet(value: Tensor, where: Where) -> Tensor:
        if where.t == 0:
            both.wait()
        return value

    with tracing(module, keep=1) as traces, patching(module, {"l0.fwd.c": meet}):
        for _ in range(2):
            with ThreadPoolExecutor(2) as pool:
                for each in [pool.submit(module, x_()) for _ in range(2)]:
                    each.result()
            assert len(traces.all("")) == 1


def test_a_trace_has_the_run_of_its_own_thread() -> None:
    """Another thread begins inside the call, and ends after it, before the trace is handed over."""
    module, both, here = lstm(), Barrier(2, timeout=60), threading.get_ident()
    mine, other = x_(2), x_(3)

    def inside(value: Tensor, where: Where) -> Tensor:
        if where.t == 0 and threading.get_ident() == here:
            pool.submit(module.trace, other).add_done_callback(found.append)
            both.wait()
        elif where.t == 0:
            both.wait()
            both.wait()
        return value

    def after(*_: object) -> None:
        if threading.get_ident() == here:
            both.wait()
        both.wait()

    found: list[Future[gatewise.Trace]] = []
    with ThreadPoolExecutor(1) as pool, patching(module, {"l0.fwd.c": inside}):
        module.register_forward_hook(after)
        trace = module.trace(mine)
    assert torch.equal(trace.x, mine)
    assert torch.equal(found[0].result().x, other)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_watched_model_is_not_watched(copied: Callable[..., nn.Module]) -> None:
    model = nn.ModuleDict({"layer": lstm(), "cell": gatewise.LSTMCell(I, H).double()})
    x = x_()
    alone = len(pickle.dumps(model))
    with tracing(model, keep=None) as traces, patching(model, {"layer.l0.fwd.f": put(0.0)}):
        model["layer"](x)
        model["cell"](x[0])
        other = copied(model)
        assert len(pickle.dumps(model)) < 2 * alone  # no trace in it
        plain, (c, _) = other["layer"](x)[0], other["cell"](x[0])
    assert [len(traces.all(name)) for name in ("layer", "cell")] == [1, 1]
    same(plain, model["layer"](x)[0])
    same(c, model["cell"](x[0])[0])
    assert not {"_run_layer", "_step"} & {*other["layer"].__dict__, *other["cell"].__dict__}


def test_parametrized_weights_are_those_that_ran() -> None:
    module, x = lstm(), x_()
    nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
    trace = module.trace(x)
    same(torch.sigmoid(trace.z[..., 1, :]), trace.f)
    same(torch.from_numpy(trace.weights[0][0]["W_hh"]), module.weight_hh_l0.detach())


# --- patching -------------------------------------------------------------------------------------


def page_with(module: gatewise.LSTM, x: Tensor, fn: object, d: int = 0) -> reference.Run:
    """The specification of a layer in which fn(name, value, t) stands in."""
    zeros = torch.zeros(x.shape[1], H, dtype=x.dtype)
    h0 = torch.zeros(x.shape[1], module.proj_size or H, dtype=x.dtype)
    return reference.sequence(module.cell, x, h0, zeros, module._weights(0)[d], d == 1, tap=fn)


@pytest.mark.parametrize("cell", CELLS)
def test_each_value_of_each_cell_can_be_patched(cell: str) -> None:
    module, x = lstm(cell=cell, bidirectional=True), x_()
    for d, way in enumerate(("fwd", "reverse")):
        for patched in dict.fromkeys((*module.cell.slots, "h")):

            def fn(name: str, value: Tensor, t: int, patched: str = patched) -> Tensor:
                return value * 0.3 + t if name == patched else value

            with patching(module, {f"l0.{way}.{patched}": lambda v, at: v * 0.3 + at.t}):
                trace = module.trace(x)
                output, _ = module(x)
            expected = page_with(module, x, fn, d)
            for name in dict.fromkeys((*module.cell.slots, "h")):
                same(getattr(trace, name)[0, d], getattr(expected.steps, name))
            same(trace.h_n[d], expected.h_n)
            assert torch.equal(output, trace.output)
    same(module.trace(x).output, module(x)[0])  # and all is as before


def test_an_untouched_patch_gives_the_kernel_s_numbers() -> None:
    module, x = lstm(proj_size=3, num_layers=2, bidirectional=True), x_()
    with patching(module, {"l1.reverse.c": lambda value, at: value}):
        patched = module(x)
    torch.testing.assert_close(patched, module(x), rtol=0, atol=1e-12)


def test_put_reaches_the_chosen_steps_and_units_and_what_follows() -> None:
    module, x = lstm(), x_()
    before = module.trace(x)
    with patching(module, {"l0.fwd.f": put(1.0, steps=[3], units=[0, 2])}):
        after = module.trace(x)
    assert torch.equal(after.f[0, 0, 3, :, [0, 2]], torch.ones(B, 2).double())
    same(after.f[0, 0, 3, :, [1, 3]], before.f[0, 0, 3, :, [1, 3]])
    same(after.c[0, 0, :3], before.c[0, 0, :3])
    assert (after.c[0, 0, 3, :, [0, 2]] != before.c[0, 0, 3, :, [0, 2]]).all()
    same(after.c[0, 0, 3, :, [1, 3]], before.c[0, 0, 3, :, [1, 3]])
    assert (after.c[0, 0, 4:] != before.c[0, 0, 4:]).all()


def test_gradients_flow_through_a_patch_and_into_it() -> None:
    module = lstm(bidirectional=True)
    value = torch.rand(2, dtype=torch.float64, requires_grad=True)
    x = x_(4).requires_grad_()

    def output(value: Tensor, x: Tensor, *_: Tensor) -> Tensor:
        with patching(module, {"l0.fwd.i": put(value, steps=[1, 2], units=[0, 3])}):
            return module(x)[0]

    assert torch.autograd.gradcheck(output, (value, x, *module.parameters()), fast_mode=True)


def constant(value: Tensor, where: Where) -> Tensor:
    """0.5 at step 2, with no way back to what was computed."""
    return torch.full_like(value, 0.5) if where.t == 2 else value


@pytest.mark.parametrize("patch", [put(0.5, steps=[2]), constant])
def test_a_patched_trace_has_total_gradients_of_the_values_as_patched(patch: object) -> None:
    module, x = lstm(), x_()
    with patching(module, {"l0.fwd.f": patch}):
        trace = module.trace(x)
    trace.h_n.sum().backward()
    zeros = {}

    def fn(name: str, value: Tensor, t: int) -> Tensor:
        value = torch.full_like(value, 0.5) if (name, t) == ("f", 2) else value
        zeros[name, t] = torch.zeros_like(value, requires_grad=True)
        return value + zeros[name, t]

    page_with(module, x, fn).h_n.sum().backward()
    for name in ("i", "f", "g", "o", "c", "h"):
        expected = torch.stack([zeros[name, t].grad for t in range(T)])
        same(getattr(trace.grad, name)[0, 0], expected)


def test_for_packed_input_a_patch_knows_whose_rows_it_sees() -> None:
    module, lengths = lstm(bidirectional=True), (2, 5, 3)
    given = [torch.randn(n, I, dtype=torch.float64) for n in lengths]
    seen: dict[int, list[int]] = {}

    def only_the_second(value: Tensor, where: Where) -> Tensor:
        seen[where.t] = where.rows.tolist()
        return torch.where((where.rows == 1)[:, None], torch.zeros_like(value), value)

    x = pack_sequence(given, enforce_sorted=False)
    before = module.trace(x)
    with patching(module, {"l0.reverse.c": only_the_second}):
        after = module.trace(x)
    assert seen == {0: [1, 2, 0], 1: [1, 2, 0], 2: [1, 2], 3: [1], 4: [1]}
    assert not after.c[0, 1, :, 1].any()
    for b in (0, 2):
        same(after.c[:, :, : lengths[b], b], before.c[:, :, : lengths[b], b])
    same(after.c[0, 0, :, 1], before.c[0, 0, :, 1])


@pytest.mark.parametrize("patch_first", [True, False])
def test_a_patch_and_a_recording_see_each_other_however_they_nest(patch_first: bool) -> None:
    model, x = Pair().double().eval(), x_()
    key = {"encoder.lstm.l1.fwd.o": put(0.25)}
    if patch_first:
        with patching(model, key), tracing(model) as traces:
            model(x)
    else:
        with tracing(model) as traces, patching(model, key):
            model(x)
    encoder = traces["encoder.lstm"]
    same(encoder.o[1], torch.full_like(encoder.o[1], 0.25))
    same(encoder.h[1], 0.25 * encoder.c[1].tanh())
    same(traces["rnn"].x, encoder.output)


def test_patches_of_one_value_apply_in_the_order_they_were_entered() -> None:
    module, x = lstm(), x_()
    with (
        patching(module, {"l0.fwd.g": put(1.0)}),
        patching(module, {"l0.fwd.g": lambda value, at: value * 2}),
    ):
        same(module.trace(x).g, torch.full((1, 1, T, B, H), 2.0).double())


def test_a_bfloat16_layer_is_patched_in_float32_as_the_kernel_computes() -> None:
    module = gatewise.LSTM(I, H, dtype=torch.bfloat16)
    x = x_().bfloat16()
    with patching(module, {"l0.fwd.c": lambda value, at: value}):
        patched = module.trace(x)
    atol = (
        1e-2 if _core.has_pairs() else 1e-5
    )  # with products in bfloat16 a run is as near as these
    torch.testing.assert_close(patched.c, module.trace(x).c, rtol=0, atol=atol)
    assert patched.output.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "key", ["l0.fwd", "head.l0.fwd.f", "encoder.lstm.l2.fwd.f", "encoder.lstm.l0.reverse.f",
            "rnn.l0.fwd.f", "rnn.l0.fwd.c", "encoder.lstm.l0.fwd.q"],
)  # fmt: skip
def test_a_key_that_names_no_computed_value_is_an_error(key: str) -> None:
    with pytest.raises(ArgumentError, match="patches: expected"), patching(Pair(), {key: put(0)}):
        pass


def test_a_patch_of_another_shape_is_an_error_that_says_where() -> None:
    module = lstm()
    with (
        pytest.raises(ShapeError, match=r"l0\.fwd\.f at step 0 to stay \(3, 4\).*got \(3, 1\)"),
        patching(module, {"l0.fwd.f": lambda value, at: value[:, :1]}),
    ):
        module(x_())
