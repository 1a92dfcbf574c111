"""The call: the same values and gradients as torch's modules, in every layout they take."""

from __future__ import annotations

import contextlib
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence, pad_packed_sequence
from torch.testing._internal import common_modules
from twins import OURS, assert_close, assert_same, flat, gradients, twins

import gatewise
from gatewise import CELLS, _core, reference

F64 = torch.float64
rand = partial(torch.randn, dtype=F64)

make_lstm = common_modules.module_inputs_torch_nn_LSTM
make_rnn = partial(common_modules.module_inputs_torch_nn_RNN_GRU, is_rnn=True)
make_lstm_cell = common_modules.module_inputs_torch_nn_LSTMCell
make_rnn_cell = partial(common_modules.module_inputs_torch_nn_RNN_GRU_Cell, is_rnn=True)
SAMPLES = [
    (cls, sample)
    for cls, make in (
        (nn.LSTM, make_lstm),
        (nn.RNN, partial(make_rnn, with_packed_sequence=True)),
        (nn.LSTMCell, make_lstm_cell),
        (nn.RNNCell, make_rnn_cell),
    )
    for sample in make(None, "cpu", F64, requires_grad=True, training=True)
]  # fmt: skip


def test_torchs_samples_are_all_here() -> None:
    count = {cls.__name__: sum(c is cls for c, _ in SAMPLES) for cls in OURS}
    assert count == {"LSTM": 32, "RNN": 64, "LSTMCell": 2, "RNNCell": 3}


@pytest.mark.parametrize(("cls", "sample"), SAMPLES)
def test_torchs_samples(cls, sample) -> None:
    made, call = sample.constructor_input, sample.forward_input
    ours, theirs = twins(cls, *made.args, **made.kwargs, dtype=F64)
    assert_same(ours, theirs, *call.args, **call.kwargs)
    if sample.reference_fn and not isinstance(call.args[0], tuple):  # torch's rule for one sequence
        expected = sample.reference_fn(ours, *call.args, **call.kwargs)
        assert_close(ours(*call.args, **call.kwargs), expected)


def states(module, B=None, requires_grad=True):
    """A state for the module: (h_0, c_0), or h_0; without B for one sequence."""
    rows = module.num_layers * (2 if module.bidirectional else 1)
    lead = (rows,) if B is None else (rows, B)
    h = rand(*lead, module.proj_size or module.hidden_size, requires_grad=requires_grad)
    c = rand(*lead, module.hidden_size, requires_grad=requires_grad)
    return (h, c) if module.mode == "LSTM" else h


KINDS = [
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 2}),
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
]
GRID = [
    (cls, dict(num_layers=L, bidirectional=two, batch_first=first, **extra))
    for (cls, extra), L, two, first in product(KINDS, (1, 2), (False, True), (False, True))
]


@pytest.mark.parametrize(("cls", "options"), GRID)
def test_batches_with_and_without_states(cls, options) -> None:
    ours, theirs = twins(cls, 3, 5, **options, dtype=F64)
    shape = (2, 6, 3) if options["batch_first"] else (6, 2, 3)
    x = rand(shape, requires_grad=True)
    assert_same(ours, theirs, x)
    assert_same(ours, theirs, x, states(theirs, 2))


@pytest.mark.parametrize(("cls", "options"), GRID)
def test_one_sequence(cls, options) -> None:
    ours, theirs = twins(cls, 3, 5, **options, dtype=F64)
    x = rand(6, 3, requires_grad=True)
    assert_same(ours, theirs, x)
    assert_same(ours, theirs, x, states(theirs))


@pytest.mark.parametrize(("cls", "options"), GRID)
@pytest.mark.parametrize("lengths", [[4, 4, 1], [2, 5, 1, 5]], ids=["sorted", "unsorted"])
def test_packed(cls, options, lengths) -> None:
    ours, theirs = twins(cls, 3, 5, **options, dtype=F64)
    data = [rand(n, 3, requires_grad=True) for n in lengths]
    packed = pack_sequence(data, enforce_sorted=lengths == sorted(lengths, reverse=True))
    hx = states(theirs, len(lengths))
    for args in ((packed,), (packed, hx)):
        got, expected = ours(*args), theirs(*args)
        for a, b in zip(got[0], expected[0], strict=True):
            assert (a is None) == (b is None)
        assert_close(got, expected)
        leaves = [*data, *(hx if isinstance(hx, tuple) else (hx,))] if len(args) == 2 else data
        by_ours, by_theirs = gradients(ours, got, leaves), gradients(theirs, expected, leaves)
        for a, b in zip(by_ours, by_theirs, strict=True):
            assert_close(a, b)


def test_padding_is_never_read() -> None:
    lstm = gatewise.LSTM(3, 5, 2, bidirectional=True, dtype=F64)
    x, lengths = rand(6, 3, 3), torch.tensor([2, 6, 1])
    clean = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
    for b, n in enumerate(lengths):
        x[n:, b] = float("nan")
    dirty = lstm(pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert_close(dirty, clean)


def test_packed_is_each_sequence_alone() -> None:
    lstm = gatewise.LSTM(3, 5, 2, bidirectional=True, dtype=F64)
    data = [rand(n, 3) for n in (3, 7, 1)]
    output, (h_n, c_n) = lstm(pack_sequence(data, enforce_sorted=False))
    padded, lengths = pad_packed_sequence(output)
    for b, x in enumerate(data):
        alone = lstm(x)
        assert_close((padded[: lengths[b], b], (h_n[:, b], c_n[:, b])), alone)


@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN])
@pytest.mark.parametrize("batch_first", [False, True])
def test_batch_of_none(cls, batch_first) -> None:
    ours, theirs = twins(cls, 3, 5, 2, bidirectional=True, batch_first=batch_first, dtype=F64)
    x = rand((0, 4, 3) if batch_first else (4, 0, 3), requires_grad=True)
    assert_same(ours, theirs, x)
    assert_same(ours, theirs, x, states(theirs, 0))


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.RNNCell])
@pytest.mark.parametrize("lead", [(), (1,), (4,), (0,)], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_cells(cls, lead, bias) -> None:
    ours, theirs = twins(cls, 3, 5, bias=bias, dtype=F64)
    x = rand(*lead, 3, requires_grad=True)
    h, c = (rand(*lead, 5, requires_grad=True) for _ in range(2))
    assert_same(ours, theirs, x)
    assert_same(ours, theirs, x, (h, c) if cls is nn.LSTMCell else h)


def test_cell_nonlinearity_is_read_at_the_call() -> None:
    ours, theirs = twins(nn.RNNCell, 3, 5, dtype=F64)
    ours.nonlinearity = theirs.nonlinearity = "relu"
    assert_same(ours, theirs, rand(4, 3, requires_grad=True))


def test_a_loop_of_cells_is_the_layer() -> None:
    lstm, cell = gatewise.LSTM(3, 5, dtype=F64), gatewise.LSTMCell(3, 5, dtype=F64)
    cell.load_state_dict({k.removesuffix("_l0"): v for k, v in lstm.state_dict().items()})
    x, state, hs = rand(6, 2, 3), None, []
    for x_t in x:
        state = cell(x_t, state)
        hs.append(state[0])
    output, (h_n, c_n) = lstm(x)
    assert_close((torch.stack(hs), state), (output, (h_n[0], c_n[0])))


@pytest.mark.parametrize("name", CELLS)
def test_every_row_runs_and_equals_the_page(name) -> None:
    cell = CELLS[name]
    proj = 2 if cell.has_cell_state else 0
    lstm = gatewise.LSTM(3, 5, 2, bidirectional=True, proj_size=proj, cell=name, dtype=F64)
    x, P = rand(4, 2, 3), proj or 5
    h0, c0 = rand(4, 2, P), rand(4, 2, 5)
    weights = [lstm._weights(k) for k in range(2)]
    output, h_n, c_n, _ = reference.stack(cell, x, h0, c0, weights)
    if cell.has_cell_state:
        assert_close(lstm(x, (h0, c0)), (output, (h_n, c_n)))
    else:
        assert_close(lstm(x, h0), (output, h_n))


def views():
    x = rand(6, 2, 3)
    wide, tall = rand(6, 2, 9), rand(12, 2, 3)
    yield "transposed", rand(2, 6, 3).transpose(0, 1)
    yield "features last but not dense", wide[..., ::3]
    yield "features far apart", rand(3, 2, 6).permute(2, 1, 0)
    yield "every second step", tall[::2]
    yield "backwards by flip", x.flip(0)
    yield "expanded over the batch", rand(6, 1, 3).expand(6, 2, 3)
    yield "expanded over time", rand(1, 2, 3).expand(6, 2, 3)
    yield "at an odd offset", rand(6 * 2 * 3 + 1)[1:].view(6, 2, 3)
    yield "one step", x[:1]


@pytest.mark.parametrize(("x"), [pytest.param(x, id=name) for name, x in views()])
@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_strides_and_views(x, dtype) -> None:
    ours, theirs = twins(nn.LSTM, 3, 5, 2, bidirectional=True, dtype=dtype)
    if dtype != F64:
        x = (
            torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x)
            if 0 not in x.stride()
            else x.to(dtype)
        )
    before = x.clone()
    assert_same(ours, theirs, x, tuple(s.to(dtype)[:, ::2] for s in states(theirs, 4, False)))
    assert torch.equal(x, before)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_nan_and_infinity_spread_as_in_torch(bad) -> None:
    ours, theirs = twins(nn.LSTM, 3, 5, 2, bidirectional=True)
    x = torch.randn(6, 2, 3)
    x[3, 1, 2] = bad
    for a, b in zip((ours(x)[0], *ours(x)[1]), (theirs(x)[0], *theirs(x)[1]), strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert_close(a.nan_to_num(0), b.nan_to_num(0))


@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN])
@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("training", [True, False])
def test_dropout_draws_what_torch_draws(cls, p, training) -> None:
    ours, theirs = twins(cls, 3, 5, 3, dropout=p, bidirectional=True, dtype=F64)
    ours.train(training)
    theirs.train(training)
    x, results = rand(6, 2, 3, requires_grad=True), []
    for module in (ours, theirs):
        torch.manual_seed(5)
        got = module(x)
        results.append((got, gradients(module, got, [x]), torch.rand(2)))
    assert_close(results[0], results[1])
    if p == 0 or not training:
        ours.dropout = 0.0
        assert torch.equal(ours(x)[0], results[0][0][0])


def test_dropout_of_all_leaves_only_the_last_layer_s_biases() -> None:
    lstm = gatewise.LSTM(3, 5, 2, dropout=1.0, dtype=F64)
    other = rand(6, 2, 3)
    assert torch.equal(lstm(rand(6, 2, 3))[0], lstm(other)[0])
    lstm.eval()
    assert not torch.equal(lstm(rand(6, 2, 3))[0], lstm(other)[0])


@pytest.mark.parametrize("used", ["output", "h_n", "c_n", "output h_n", "h_n c_n"])
def test_gradients_when_only_some_results_are_used(used) -> None:
    ours, theirs = twins(nn.LSTM, 3, 5, 2, bidirectional=True, proj_size=2, dtype=F64)
    x, hx = rand(6, 2, 3, requires_grad=True), states(theirs, 2)
    grads = []
    for module in (ours, theirs):
        output, (h_n, c_n) = module(x, hx)
        pick = {"output": output, "h_n": h_n, "c_n": c_n}
        grads.append(gradients(module, [pick[name] for name in used.split()], [x, *hx]))
    assert_close(grads[0], grads[1])


HOOKED = [(nn.LSTM, used, every) for used in range(3) for every in (None, 2)]
HOOKED += [(nn.RNN, used, None) for used in range(2)] + [(nn.LSTMCell, 1, None)]


@pytest.mark.parametrize(("cls", "used", "checkpoint"), HOOKED)
def test_hooks_of_results_hear_what_torchs_do(cls, used, checkpoint) -> None:
    """As those that clip a gradient: of a result that the loss does not use they hear nothing."""
    found = []
    for module in twins(cls, 3, 4, dtype=F64):
        module.checkpoint = checkpoint
        x = torch.linspace(-1, 1, 30, dtype=F64).view(5, 2, 3)
        results = flat(module(x[0] if cls is nn.LSTMCell else x))
        heard, counted = [], []

        def clip(name, grad, heard=heard):
            heard.append((name, round(grad.norm().item(), 9)))
            return grad.clamp(-0.1, 0.1)

        for name, t in enumerate(results):
            removed = t.register_hook(partial(clip, "removed"))
            t.register_hook(partial(clip, name))
            removed.remove()
        register_multi_grad_hook(results, counted.append)
        results[used].sum().backward()
        found.append((heard, [[d is not None for d in all_] for all_ in counted], module))
    ours, theirs = found
    assert ours[:2] == theirs[:2]
    assert_close(*([p.grad for p in one[2].parameters()] for one in found))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"num_layers": 2}])
@pytest.mark.parametrize(("T", "is_packed"), [(1, False), (1, True), (2, False)])
def test_a_projection_that_nobody_reads_gets_no_gradient(T, is_packed, options, checkpoint) -> None:
    """Of one step of which only c is used. A gradient of zero would let weights decay."""
    found = []
    for module in twins(nn.LSTM, 3, 4, proj_size=2, dtype=F64, **options):
        module.checkpoint = checkpoint
        x = torch.linspace(-1, 1, 6 * T, dtype=F64).view(T, 2, 3)
        _, (_, c_n) = module(pack_sequence(list(x.unbind(1))) if is_packed else x)
        c_n.sum().backward()
        found.append([p.grad for p in module.parameters()])
    ours, theirs = found
    assert [d is None for d in ours] == [d is None for d in theirs]
    assert any(d is None for d in ours) == (T == 1)
    assert_close(*([d for d in grads if d is not None] for grads in found))


def test_backward_again_gives_the_same() -> None:
    lstm = gatewise.LSTM(3, 5, 2, bidirectional=True, dtype=F64)
    x = rand(6, 2, 3, requires_grad=True)
    loss = lstm(x)[0].square().sum()
    wanted = [x, *lstm.parameters()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    second = torch.autograd.grad(loss, wanted)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_frozen_parameters_get_no_gradient_and_change_no_other() -> None:
    ours, theirs = twins(nn.LSTM, 3, 5, 2, dtype=F64)
    for module in (ours, theirs):
        module.weight_hh_l0.requires_grad_(False)
        module.bias_ih_l1.requires_grad_(False)
        module(torch.ones(4, 2, 3, dtype=F64))[0].sum().backward()
    assert ours.weight_hh_l0.grad is None
    assert ours.bias_ih_l1.grad is None
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        if a.requires_grad:
            assert_close(a.grad, b.grad)


def test_no_grad_and_inference_mode() -> None:
    lstm, x = gatewise.LSTM(3, 5, 2, dtype=F64), rand(6, 2, 3)
    expected = lstm(x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            got = lstm(x)
        assert not got[0].requires_grad
        assert_close(got, expected)


@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"proj_size": 2}], ids=str)
@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN])
def test_input_made_in_inference_mode(cls, options) -> None:
    """As by an encoder that is not trained: autograd may not keep it, but torch copies a batch that
    comes first."""
    if cls is nn.RNN and "proj_size" in options:
        return
    with torch.inference_mode():
        x = rand(4, 6, 3)
    ours, theirs = twins(cls, 3, 5, 2, batch_first=True, dtype=F64, **options)
    assert_same(ours, theirs, x)
    for module in twins(cls, 3, 5, 2, dtype=F64, **options):
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            module(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_smaller_dtypes(dtype) -> None:
    ours, theirs = twins(nn.LSTM, 13, 20, 2, bidirectional=True, dtype=dtype)
    x = torch.randn(9, 4, 13, dtype=dtype, requires_grad=True)
    wide = nn.LSTM(13, 20, 2, bidirectional=True, dtype=F64)
    wide.load_state_dict(theirs.state_dict())
    got, exact = ours(x), wide(x.double())
    assert got[0].dtype == dtype
    bound = {torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    for a, b in zip((got[0], *got[1]), (exact[0], *exact[1]), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound)


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    ("cls", "options"), [(nn.LSTM, {}), (nn.LSTM, {"proj_size": 7}), (nn.RNN, {})]
)
@pytest.mark.parametrize("is_packed", [False, True], ids=["batch", "packed"])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
def test_autocast(cls, options, is_packed, x_dtype, state_dtype) -> None:
    fused = cls is nn.LSTM and not options and not is_packed
    if fused and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("torch has no fused bfloat16 LSTM on this processor")
    ours, theirs = twins(cls, 16, 32, 2, **options)
    x, hx = torch.randn(9, 4, 16).to(x_dtype), None
    if state_dtype is not None:
        hx = [s.to(state_dtype) for s in flat(states(theirs, 4, requires_grad=False))]
        hx = hx if cls is nn.LSTM else hx[0]
    if is_packed:
        x = pack_padded_sequence(x, torch.tensor([9, 7, 7, 1]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = ours(x, hx), theirs(x, hx)
    for a, b in zip(flat(got), flat(expected), strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=3e-2)
    flat(got)[0].sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in ours.parameters())


def test_autocast_leaves_float64_alone() -> None:
    ours, theirs = twins(nn.LSTM, 3, 5, dtype=F64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(ours, theirs, rand(6, 2, 3, requires_grad=True))


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.RNNCell])
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, torch.bfloat16])
def test_autocast_of_cells(cls, x_dtype, state_dtype) -> None:
    ours, theirs = twins(cls, 13, 20)
    args = [torch.randn(4, 13, dtype=x_dtype)]
    if state_dtype is not None:
        h, c = (torch.randn(4, 20, dtype=state_dtype) for _ in range(2))
        args.append((h, c) if cls is nn.LSTMCell else h)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = flat(ours(*args)), flat(theirs(*args))
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a.float(), b.float(), rtol=0, atol=3e-2)


@pytest.mark.parametrize("B", [17, 80])
@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.RNNCell])
def test_autocast_of_a_large_step(cls, B: int) -> None:
    """Of many rows products are rounded, as torch's are; who looks on sees the same numbers."""
    I, H = 600, 1300 if cls is nn.RNNCell else 350
    ours, theirs = twins(cls, I, H)
    x = torch.randn(3, B, I, requires_grad=True)

    def steps(cell, around=contextlib.nullcontext):
        state, found = None, []
        with torch.autocast("cpu", dtype=torch.bfloat16), around():
            for step in x:
                state = cell(step, state)
                found += flat(state)
        if not found[0].requires_grad:
            return found
        loss = sum(t.float().square().sum() for t in found)
        return found + list(torch.autograd.grad(loss, [x, *cell.parameters()]))

    got, expected = steps(ours), steps(theirs)
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        distance = (a.float() - b.float()).abs().max() / b.float().abs().max()
        assert distance < 3e-2
    results = [t for t in got if t.requires_grad]
    for around in (torch.no_grad, lambda: gatewise.tracing(ours)):
        watched = steps(ours, around)
        for a, b in zip(watched, results, strict=False):
            assert torch.equal(a, b)
    for a, b in zip(watched, got, strict=True):  # gradients are sums in another order
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3 * b.abs().max().item())
    if _core.has_pairs():
        with torch.no_grad():
            plain = ours(x[0])
        plain = plain[0] if cls is nn.LSTMCell else plain
        assert not torch.equal(plain.bfloat16(), got[0].bfloat16()), "not rounded"


def test_settings_are_read_at_the_call() -> None:
    ours, theirs = twins(nn.LSTM, 3, 5, 2, dtype=F64)
    ours.batch_first = theirs.batch_first = True
    assert_same(ours, theirs, rand(2, 6, 3, requires_grad=True))


def test_keyword_arguments_and_lists() -> None:
    ours, theirs = twins(nn.LSTM, 3, 5, dtype=F64)
    x, hx = rand(6, 2, 3), list(states(theirs, 2))
    assert_close(ours(input=x, hx=hx), theirs(input=x, hx=hx))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.RNNCell])
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_a_sparse_step(cls, sparse) -> None:
    """As of a bag of words."""
    ours, theirs = twins(cls, 6, 5, dtype=F64)
    x = sparse(torch.eye(4, 6, dtype=F64))
    found = []
    for cell in (ours, theirs):
        results = flat(cell(x))
        found.append(
            [*results, *torch.autograd.grad(sum(t.sum() for t in results), cell.parameters())]
        )
    assert_close(*found)
    with torch.no_grad():
        assert_close(ours(x), theirs(x))
