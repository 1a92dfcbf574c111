"""A module of torch's and ours with the same weights, and how their results are compared."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gatewise

OURS = {
    nn.LSTM: gatewise.LSTM,
    nn.RNN: gatewise.RNN,
    nn.LSTMCell: gatewise.LSTMCell,
    nn.RNNCell: gatewise.RNNCell,
}

#: Largest accepted difference, as a share of the largest value. Both sides round: torch's float32
#: differs from the page in float64 by up to 1e-6 itself; bfloat16 has 8 bits.
BOUNDS = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2e-2}


def twins(cls: type[nn.Module], *args: Any, **kwargs: Any) -> tuple[nn.Module, nn.Module]:
    """Ours and torch's, made with the same arguments after the same seed."""
    made = []
    for kind in (OURS[cls], cls):
        torch.manual_seed(11)
        made.append(kind(*args, **kwargs))
    return made[0], made[1]


def flat(result: Any) -> list[Tensor]:
    """The tensors of a result, in order."""
    if isinstance(result, Tensor):
        return [result]
    if isinstance(result, PackedSequence):
        return [t for t in result if t is not None]
    return [t for part in result for t in flat(part)]


def assert_close(got: Any, expected: Any) -> None:
    """Same shapes, dtypes and values to the bound of the dtype; a NaN is never close."""
    got, expected = flat(got), flat(expected)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        scale = b.abs().max().item() if b.numel() else 0.0
        atol = BOUNDS.get(b.dtype, 0.0) * max(scale, 1e-30)
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def gradients(module: nn.Module, result: Any, inputs: list[Tensor]) -> list[Tensor | None]:
    """d of a fixed mixture of all results by the inputs and every parameter."""
    loss = torch.zeros((), dtype=torch.float64)
    for t in flat(result):
        if t.is_floating_point():
            mix = torch.linspace(-1, 1, t.numel(), dtype=t.dtype).reshape(t.shape)
            loss = loss + (mix * t).sum()
    wanted = [*inputs, *module.parameters()]  # what is before the inputs may be shared with a twin
    return list(torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True))


def assert_same(ours: nn.Module, theirs: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Both give the same values, and the same gradients to every parameter and every input."""
    inputs = [t for t in flat([a for a in args if a is not None]) if t.is_floating_point()]
    inputs = [t for t in inputs if t.requires_grad]
    got, expected = ours(*args, **kwargs), theirs(*args, **kwargs)
    assert type(got) is type(expected)
    assert_close(got, expected)
    by_ours = gradients(ours, got, inputs)
    by_theirs = gradients(theirs, expected, inputs)
    for a, b in zip(by_ours, by_theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert_close(a, b)
