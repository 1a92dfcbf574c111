"""The page: it equals torch.nn.LSTM and torch.nn.RNN in float64, and its derivatives are right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from gatewise import reference
from gatewise.reference import Weights
from gatewise.spec import CELLS

FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
F64 = torch.float64

# Two orders of adding the same products differ in the last bits; a state has been through T steps.
BOUND = 1e-14


def weights_of(module: nn.RNNBase) -> list[list[Weights]]:
    """[layer][direction], the module's own parameters."""
    ways = ("", "_reverse") if module.bidirectional else ("",)
    return [
        [
            Weights(*(getattr(module, f"{field}_l{k}{way}", None) for field in FIELDS))
            for way in ways
        ]
        for k in range(module.num_layers)
    ]


def both(module: nn.RNNBase, cell: str, lengths: list[int] | None = None) -> Any:
    """What torch and what the page compute, outputs then gradients of everything."""
    T, B, L = 7, 4, module.num_layers * (1 + module.bidirectional)
    P = module.proj_size or module.hidden_size
    x = torch.randn(T, B, module.input_size, dtype=F64)
    batch_sizes = None
    if lengths is not None:
        x, batch_sizes, *_ = packed = pack_padded_sequence(x, torch.tensor(lengths))
    x = x.requires_grad_()
    h0 = torch.randn(L, B, P, dtype=F64, requires_grad=True)
    c0 = torch.randn(L, B, module.hidden_size, dtype=F64, requires_grad=True)
    gated = CELLS[cell].has_cell_state
    given = x if lengths is None else packed._replace(data=x)
    output, states = module(given, (h0, c0) if gated else h0)
    output = output if lengths is None else output.data
    h_n, c_n = states if gated else (states, states)
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    page = reference.stack(CELLS[cell], x, h0, c0, weights_of(module), sizes)
    asked = [x, h0, *([c0] if gated else []), *module.parameters()]

    def all_of(values: list[Tensor]) -> list[Tensor]:
        torch.manual_seed(1)
        loss = sum(((v * torch.randn_like(v)).sum() for v in values), torch.zeros((), dtype=F64))
        return values + list(torch.autograd.grad(loss, asked))

    kept = 3 if gated else 2
    return all_of([output, h_n, c_n][:kept]), all_of(list(page[:3])[:kept])


@pytest.mark.parametrize("lengths", [None, [7, 4, 4, 1]], ids=["batch", "packed"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"num_layers": 3},
        {"bidirectional": True},
        {"num_layers": 2, "bidirectional": True},
        {"proj_size": 2},
        {"proj_size": 3, "num_layers": 2, "bidirectional": True},
    ],
    ids=str,
)
def test_lstm_is_torchs(options: dict[str, Any], lengths: list[int] | None) -> None:
    for got, want in zip(*both(nn.LSTM(3, 5, dtype=F64, **options), "lstm", lengths), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=BOUND)


@pytest.mark.parametrize("lengths", [None, [7, 4, 4, 1]], ids=["batch", "packed"])
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize(("nonlinearity", "cell"), [("tanh", "rnn"), ("relu", "rnn_relu")])
def test_rnn_is_torchs(
    nonlinearity: str, cell: str, options: dict[str, Any], lengths: list[int] | None
) -> None:
    module = nn.RNN(3, 5, nonlinearity=nonlinearity, dtype=F64, **options)
    for got, want in zip(*both(module, cell, lengths), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=BOUND)


def step_by_hand(cell: str) -> tuple[dict[str, float], dict[str, float]]:
    """One unit, one step, all weights different: what the page computes and what a person would."""
    row, sigmoid, tanh = CELLS[cell], torch.sigmoid, torch.tanh
    x, h, c, G = 0.3, -0.7, 0.9, len(row.gates)
    W_ih = torch.tensor([[0.5], [-0.4], [1.1], [0.8]], dtype=F64)[:G]
    W_hh = torch.tensor([[0.2], [0.6], [-0.9], [-0.3]], dtype=F64)[:G]
    bias = torch.tensor([0.1, 0.7, -0.2, 0.4], dtype=F64)[:G]
    peep = torch.tensor([[0.5], [-1.5], [2.5]], dtype=F64)
    one = torch.ones(1, 1, dtype=F64)
    got = reference.step(
        row, x * one, h * one, c * one,
        Weights(W_ih, W_hh, bias, bias, None, peep if row.peephole else None),
    )  # fmt: skip
    z = dict(zip(row.gates, (W_ih * x + W_hh * h).flatten() + 2 * bias, strict=True))
    p = peep.flatten() if row.peephole else torch.zeros(3, dtype=F64)
    want: dict[str, Tensor] = {"i": torch.ones((), dtype=F64), "f": torch.ones((), dtype=F64)}
    if "i" in z:
        want["i"] = sigmoid(z["i"] + p[0] * c)
    if "f" in z:
        want["f"] = sigmoid(z["f"] + p[1] * c)
    if row.coupled:
        want["f"] = 1 - want["i"]
    want["g"] = z["g"] if cell == "no_input_activation" else tanh(z["g"])
    want["c"] = want["f"] * c + want["i"] * want["g"]
    want["o"] = sigmoid(z["o"] + p[2] * want["c"]) if "o" in z else torch.ones((), dtype=F64)
    read = want["c"] if cell == "no_output_activation" else tanh(want["c"])
    want["h"] = want["o"] * read
    return {k: getattr(got, k).item() for k in want}, {k: v.item() for k, v in want.items()}


@pytest.mark.parametrize("cell", [c for c in CELLS if not c.startswith("rnn") and c != "linear"])
def test_rows_by_hand(cell: str) -> None:
    got, want = step_by_hand(cell)
    assert got == pytest.approx(want, rel=1e-14)


@pytest.mark.parametrize("cell", list(CELLS))
def test_derivatives(cell: str) -> None:
    row, I, H, P = CELLS[cell], 1, 2, 2
    G, sizes = len(row.gates) * H, [2, 1]

    def leaf(*shape: int) -> Tensor:
        return (0.5 * torch.randn(*shape, dtype=F64)).requires_grad_()

    flat = [leaf(G, I), leaf(G, P), leaf(G), leaf(G), leaf(P, H)]
    flat += [leaf(3, H)] if row.peephole else []

    def layer(x: Tensor, h0: Tensor, c0: Tensor, *w: Tensor) -> tuple[Tensor, ...]:
        return reference.layer(row, x, h0, c0, [Weights(*w), Weights(*w)], sizes)[:3]

    inputs = (leaf(3, I), leaf(2, 2, P), leaf(2, 2, H), *flat)
    assert torch.autograd.gradcheck(layer, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(layer, inputs, fast_mode=True)
