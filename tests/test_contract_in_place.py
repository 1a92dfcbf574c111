"""Results that are changed in place before backward, as by ``ReLU(inplace=True)``, and inputs.

torch's layers allow it, but for the one-directional one in float32, whose kernel keeps its output.
"""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils.rnn import pack_sequence
from torch.utils.checkpoint import checkpoint
from twins import assert_close, twins

import gatewise

CHANGES = {
    "relu": torch.relu_,
    "dropout": nn.Dropout(inplace=True),
    "add": lambda t: t.add_(1),
    "last": lambda t: t[-1].mul_(2),
    "masked": lambda t: t.masked_fill_(t > 0.05, 0),
    "unseen": lambda t: t.detach().mul_(2),
}
KINDS = [
    (nn.LSTM, {"bidirectional": True}, False),
    (nn.LSTM, {"bidirectional": True, "num_layers": 2, "batch_first": True}, False),
    (nn.LSTM, {"proj_size": 2}, False),
    (nn.LSTM, {}, True),
    (nn.LSTM, {"dtype": torch.float64}, False),
    (nn.RNN, {"nonlinearity": "relu"}, False),
]


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("result", [0, 1, 2], ids=["output", "h_n", "c_n"])
@pytest.mark.parametrize(("cls", "options", "packed"), KINDS)
def test_where_torch_allows_it(cls, options, packed, result, change) -> None:
    dtype = options.get("dtype", torch.float32)
    sequences = [torch.randn(n, 3, dtype=dtype) for n in ((5, 4, 2) if packed else (5, 5, 5))]
    found = []
    for module in twins(cls, 3, 4, **options):
        x = pack_sequence(sequences) if packed else torch.stack(sequences, 1)
        output, state = module(x)
        results = [output.data if packed else output, *(state if cls is nn.LSTM else (state,))]
        torch.manual_seed(1)
        CHANGES[change](results[min(result, len(results) - 1)])
        loss = sum((t**3).sum() for t in results)
        found.append((results, torch.autograd.grad(loss, list(module.parameters()))))
    assert_close(*found)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN])
@pytest.mark.parametrize("compiled", [False, True])
def test_an_input_that_torch_copies(cls, batch_first, compiled) -> None:
    """Of what does not lie as (T, B, I): ``x += lstm(x)[0]`` works with ``batch_first``."""

    def run(module: nn.Module, leaf: torch.Tensor) -> torch.Tensor:
        x = leaf.clone()
        given = x if batch_first else x.transpose(0, 1)
        given += module(given)[0]
        return x

    found = []
    for module in twins(cls, 4, 4, batch_first=batch_first):
        leaf = torch.linspace(-1, 1, 40).reshape(5, 2, 4).requires_grad_()
        whole = compiled and isinstance(module, gatewise.lstm.Layers)
        x = (torch.compile(run, backend="aot_eager", fullgraph=True) if whole else run)(
            module, leaf
        )
        found.append((x, torch.autograd.grad(x.sum(), [leaf, *module.parameters()])))
    assert_close(*found)


def test_where_torch_does_not_ours_does() -> None:
    ours, theirs = twins(nn.LSTM, 3, 4)
    x = torch.randn(5, 2, 3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        theirs(x)[0].relu_().sum().backward()
    ours(x)[0].relu_().sum().backward()
    torch.relu(theirs(x)[0]).sum().backward()
    assert_close(*([p.grad for p in module.parameters()] for module in (ours, theirs)))


def test_again_and_to_second_order() -> None:
    lstm = gatewise.LSTM(2, 3, dtype=torch.float64)
    x = torch.randn(4, 2, 2, dtype=torch.float64, requires_grad=True)

    def second(result):
        (d_x,) = torch.autograd.grad((result**2).sum(), x, create_graph=True)
        return torch.autograd.grad(d_x.sin().sum(), [x, *lstm.parameters()], retain_graph=True)

    changed, expected = lstm(x)[0].mul_(2), second(lstm(x)[0] * 2)
    assert_close(second(changed), expected)
    changed.detach().zero_()  # between two backward passes: those of h_n see the h that was
    h_n = lstm(x)[1][0]
    assert_close(second(h_n), second(h_n))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_within_a_checkpoint(use_reentrant) -> None:
    lstm = gatewise.LSTM(3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.relu(lstm(x)[0]).sum(), x)
    checkpoint(lambda x: torch.relu_(lstm(x)[0]), x, use_reentrant=use_reentrant).sum().backward()
    assert_close(x.grad, expected)


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_within_a_compiled_model(backend) -> None:
    lstm = gatewise.LSTM(3, 4, bidirectional=True)
    x = torch.randn(5, 2, 3, requires_grad=True)
    (expected,) = torch.autograd.grad(torch.relu(lstm(x)[0]).sum(), x)
    torch.compiler.reset()
    compiled = torch.compile(lambda x: lstm(x)[0].relu_(), fullgraph=True, backend=backend)
    assert_close(torch.autograd.grad(compiled(x).sum(), x)[0], expected)


def test_within_torch_func() -> None:
    lstm = gatewise.LSTM(3, 4, bidirectional=True)
    x = torch.randn(3, 5, 2, 3)

    def d_x(relu):
        return vmap(grad(lambda x: relu(lstm(x)[0]).sum()))(x)

    assert_close(d_x(torch.relu_), d_x(torch.relu))


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.RNNCell])
def test_a_loop_of_cells(cls) -> None:
    ours, theirs = twins(cls, 3, 4)
    found = []
    for module, relu in ((ours, torch.relu_), (theirs, torch.relu)):
        state, total = None, 0
        for x in torch.linspace(-1, 1, 18).view(3, 2, 3):
            h, *c = module(x, state) if cls is nn.LSTMCell else (module(x, state),)
            h = relu(h)
            state, total = (h, *c) if c else h, total + h.sum()
        found.append(torch.autograd.grad(total, list(module.parameters())))
    assert_close(*found)


def test_no_output_is_kept_after_backward() -> None:
    gc.disable()  # nor is it held by a circle
    try:
        output, (h_n, _) = gatewise.LSTM(3, 4)(torch.randn(5, 2, 3))
        numbers, loss = StorageWeakRef(output.untyped_storage()), h_n.sum()
        del output
        assert not numbers.expired()
        loss.backward()
        assert numbers.expired()
    finally:
        gc.enable()
