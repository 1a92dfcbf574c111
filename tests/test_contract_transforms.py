"""torch.compile, export, torch.func, second derivatives, threads and forks, over the modules."""

from __future__ import annotations

import copy
import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.export import Dim, export
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap
from torch.nn.utils.rnn import pack_sequence
from twins import assert_close, assert_same, flat, gradients, twins

import gatewise

# torch compiles some of its own formulas with what it has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")

F64 = torch.float64
rand = partial(torch.randn, dtype=F64)
MAKE = {
    "LSTM": partial(gatewise.LSTM, 3, 5, 2, bidirectional=True, proj_size=2),
    "RNN": partial(gatewise.RNN, 3, 5, 2, batch_first=True),
    "LSTMCell": partial(gatewise.LSTMCell, 3, 5),
    "RNNCell": partial(gatewise.RNNCell, 3, 5),
}


@pytest.fixture(params=MAKE)
def module(request):
    return MAKE[request.param](dtype=F64)


def input_for(module, *lead):
    steps = (4,) if isinstance(module, gatewise.LSTM) else ()
    after = (4,) if isinstance(module, gatewise.RNN) else ()
    return rand(*lead, *steps, 2, *after, 3)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("training", [True, False])
def test_compiles_to_one_graph(module, backend, training) -> None:
    module.train(training)
    compiled = torch.compile(module, fullgraph=True, backend=backend)
    x = input_for(module).requires_grad_()
    got, expected = compiled(x), module(x)
    assert_close(got, expected)
    assert_close(gradients(module, got, [x]), gradients(module, expected, [x]))
    with torch.no_grad():
        assert_close(compiled(x), expected)


class Holder(nn.Module):
    """A model as torch.fx traces it: recurrent layers among others."""

    def __init__(self, of):
        super().__init__()
        self.lstm, self.rnn = of.LSTM(3, 5, dtype=F64), of.RNN(5, 4, dtype=F64)
        self.cell, self.last = of.LSTMCell(4, 2, dtype=F64), of.RNNCell(2, 2, dtype=F64)

    def forward(self, x, h):
        y, (h_n, _) = self.lstm(x, (h, h))
        y, _ = self.rnn(y + h_n)
        h, c = self.cell(y[-1])
        return self.last(self.cell(y[0], (h, c))[0], c)


def test_fx_takes_a_layer_for_one_node() -> None:
    ours, theirs = Holder(gatewise), Holder(nn)
    ours.load_state_dict(theirs.state_dict())
    graphs = [torch.fx.symbolic_trace(model) for model in (ours, theirs)]
    assert str(graphs[0].graph) == str(graphs[1].graph)
    x, h = rand(6, 2, 3), rand(1, 2, 5)
    assert_close(graphs[0](x, h), theirs(x, h))
    with pytest.raises(ValueError, match=r"torch.fx: .*Trace torch.nn.Sequential\(layer\)"):
        torch.fx.symbolic_trace(ours.lstm)


def test_fx_runs_a_hook_once() -> None:
    ours, theirs = Holder(gatewise), Holder(nn)
    ours.load_state_dict(theirs.state_dict())
    for model in (ours, theirs):
        model.lstm.register_forward_hook(lambda _, args, out: (out[0] * 2, out[1]))
        model.cell.register_forward_pre_hook(lambda _, args: (args[0] * 3, *args[1:]))
    graphs = [torch.fx.symbolic_trace(model) for model in (ours, theirs)]
    x, h = rand(6, 2, 3), rand(1, 2, 5)
    assert_close([g(x, h) for g in graphs], [theirs(x, h)] * 2)


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.RNNCell])
def test_a_compiled_step_is_left_to_the_compiler(cls) -> None:
    """It fuses the formulas of a step with what surrounds it; one operator a step takes twice the
    time."""
    ours, theirs = twins(cls, 3, 5, dtype=F64)
    called = []

    def backend(graph, _):
        called.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(ours, backend=backend, fullgraph=True)
    for lead in ((2,), ()):
        h, c = rand((*lead, 5), requires_grad=True), rand((*lead, 5), requires_grad=True)
        for hx in (None, (h, c) if cls is nn.LSTMCell else h):
            assert_same(compiled, theirs, rand((*lead, 3), requires_grad=True), hx)
    assert called
    assert not [name for name in called if "gatewise" in name]


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    model = nn.Sequential(nn.Linear(3, 3), gatewise.LSTM(3, 5, 2, dropout=0.5)).eval()
    x = torch.randn(4, 2, 3)
    compiled = torch.compile(model, fullgraph=True)
    got, expected = compiled(x), model(x)
    for a, b in zip(flat(got), flat(expected), strict=True):
        torch.testing.assert_close(a, b)


def test_one_graph_for_all_lengths_and_batches() -> None:
    lstm = gatewise.LSTM(3, 5, 2, bidirectional=True, dtype=F64)
    count = 0

    def counting(graph, example_inputs):
        nonlocal count
        count += 1
        return graph

    compiled = torch.compile(lstm, fullgraph=True, dynamic=True, backend=counting)
    for T, B in ((4, 2), (7, 2), (3, 5), (50, 9)):
        x = rand(T, B, 3)
        assert_close(compiled(x), lstm(x))
    assert count == 1


def test_compiled_sees_a_weight_that_changed() -> None:
    lstm = gatewise.LSTM(3, 5, dtype=F64)
    compiled = torch.compile(lstm, fullgraph=True, backend="eager")
    x = rand(4, 2, 3)
    compiled(x)
    with torch.no_grad():
        lstm.weight_hh_l0.mul_(2)
    assert_close(compiled(x), lstm(x))
    lstm.weight_ih_l0 = nn.Parameter(rand(20, 3))
    assert_close(compiled(x), lstm(x))


def test_compiles_with_states() -> None:
    lstm = gatewise.LSTM(3, 5, 2, dtype=F64)
    compiled = torch.compile(lstm, fullgraph=True, backend="eager")
    x, hx = rand(4, 2, 3), (rand(2, 2, 5), rand(2, 2, 5))
    assert_close(compiled(x, hx), lstm(x, hx))
    assert_close(
        compiled(x[:, 0], (hx[0][:, 0], hx[1][:, 0])), lstm(x[:, 0], (hx[0][:, 0], hx[1][:, 0]))
    )


def test_compiles_packed_input() -> None:
    lstm = gatewise.LSTM(3, 5, 2, bidirectional=True, dtype=F64)
    compiled = torch.compile(lstm, fullgraph=True, backend="aot_eager")
    hx = (rand(4, 3, 5), rand(4, 3, 5))
    for lengths in ((4, 2, 6), (5, 5, 1)):
        x = pack_sequence([rand(n, 3) for n in lengths], enforce_sorted=False)
        assert_close(compiled(x), lstm(x))
        assert_close(compiled(x, hx), lstm(x, hx))


def test_packed_input_without_a_state_breaks_no_graph_if_it_was_not_sorted() -> None:
    lstm = gatewise.LSTM(3, 5, 2, bidirectional=True, proj_size=2, dtype=F64)
    graphs = []
    compiled = torch.compile(lstm, backend=lambda graph, _: graphs.append(graph) or graph)
    x = pack_sequence([rand(n, 3) for n in (2, 5, 4)], enforce_sorted=False)
    got, expected = compiled(x), lstm(x)
    assert_close(got, expected)
    assert_close(gradients(lstm, got, []), gradients(lstm, expected, []))
    assert len(graphs) == 1


@pytest.mark.parametrize("name", ["LSTM", "RNN"])
def test_exports_with_dynamic_time_and_batch(name) -> None:
    module = MAKE[name](dtype=F64).eval()
    axes = {0: Dim("B"), 1: Dim("T")} if module.batch_first else {0: Dim("T"), 1: Dim("B")}
    exported = export(module, (rand(4, 6, 3),), dynamic_shapes={"input": axes}).module()
    for lead in ((4, 6), (9, 2), (2, 30)):
        x = rand(*lead, 3)
        assert_close(exported(x), module(x))


def test_second_derivatives(module) -> None:
    x = input_for(module).requires_grad_()
    names, weights = zip(*module.named_parameters(), strict=True)

    def call(x, *weights):
        return tuple(flat(functional_call(module, dict(zip(names, weights, strict=True)), x)))

    weights = tuple(w.detach().requires_grad_() for w in weights)
    assert gradcheck(
        call, (x, *weights), fast_mode=True, check_forward_ad=True, check_batched_grad=True
    )
    assert gradgradcheck(call, (x, *weights), fast_mode=True)


def test_vmap_over_the_input(module) -> None:
    xs = input_for(module, 3)
    got = vmap(module)(xs)
    for k in range(3):
        assert_close(tuple(t[k] for t in flat(got)), tuple(flat(module(xs[k]))))


def test_an_ensemble_by_vmap_over_the_weights() -> None:
    models = [gatewise.LSTM(3, 5, dtype=F64) for _ in range(3)]
    weights, buffers = torch.func.stack_module_state(models)
    base, x = copy.deepcopy(models[0]).to("meta"), rand(4, 2, 3)
    got = vmap(lambda w, b: functional_call(base, (w, b), (x,))[0])(weights, buffers)
    assert_close(got, torch.stack([model(x)[0] for model in models]))


def test_gradients_of_each_sample(module) -> None:
    weights = {name: w.detach() for name, w in module.named_parameters()}

    def loss(weights, x):
        return sum(t.square().sum() for t in flat(functional_call(module, weights, x)))

    xs = input_for(module, 3)
    got = vmap(grad(loss), in_dims=(None, 0))(weights, xs)
    for k in range(3):
        expected = torch.autograd.grad(
            loss(dict(module.named_parameters()), xs[k]), list(module.parameters())
        )
        assert_close([got[name][k] for name in weights], list(expected))


def test_jvp_is_the_derivative_along_a_direction(module) -> None:
    x, v = input_for(module), input_for(module)
    call = lambda x: tuple(flat(module(x)))  # noqa: E731
    values, tangents = jvp(call, (x,), (v,))
    assert_close(values, call(x))
    eps = 1e-6
    for tangent, up, down in zip(tangents, call(x + eps * v), call(x - eps * v), strict=True):
        assert tangent.abs().sum() > 0
        torch.testing.assert_close(tangent, (up - down) / (2 * eps), rtol=0, atol=1e-8)


def test_jacobians_forward_and_reverse_agree() -> None:
    rnn = gatewise.LSTM(2, 3, dtype=F64)
    x = rand(3, 1, 2)
    call = lambda x: rnn(x)[0]  # noqa: E731
    assert_close(jacfwd(call)(x), jacrev(call)(x))


def test_many_threads_at_once(module) -> None:
    xs = [input_for(module) for _ in range(16)]
    expected = [module(x) for x in xs]

    def work(k):
        x = xs[k].clone().requires_grad_()
        result = module(x)
        (d_x,) = torch.autograd.grad(flat(result)[0].square().sum(), x)
        return result, d_x

    with ThreadPoolExecutor(8) as pool:
        for (got, d_x), want, x in zip(pool.map(work, range(16)), expected, xs, strict=True):
            assert_close(got, want)
            leaf = x.clone().requires_grad_()
            (d_want,) = torch.autograd.grad(flat(module(leaf))[0].square().sum(), leaf)
            assert_close(d_x, d_want)


def child(module, x, queue) -> None:
    queue.put(flat(module(x))[0].detach().numpy())


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child() -> None:
    lstm = gatewise.LSTM(64, 64, 2, bidirectional=True)
    x = torch.randn(20, 32, 64)
    lstm(x)[0].sum().backward()  # the parent has used its threads
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=child, args=(lstm, x, queue))
    process.start()
    got = queue.get(timeout=30)
    process.join(30)
    assert process.exitcode == 0
    assert_close(torch.from_numpy(got), lstm(x)[0].detach())


def test_checkpointing() -> None:
    lstm = gatewise.LSTM(3, 5, 2, dtype=F64)
    x = pack_sequence([rand(4, 3).requires_grad_(), rand(2, 3)])
    output = torch.utils.checkpoint.checkpoint(lambda x: lstm(x)[0].data, x, use_reentrant=False)
    expected = lstm(x)[0].data
    assert_close(output, expected)
    assert_close(gradients(lstm, output, []), gradients(lstm, expected, []))
