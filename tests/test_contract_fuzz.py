"""Any settings, any sizes, any lengths: the values and gradients of torch's modules."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from twins import assert_close, assert_same, gradients, twins

F64 = torch.float64
size = st.integers(1, 20)


@st.composite
def settings(draw: Any) -> tuple[type[nn.Module], tuple[int, int], dict[str, Any]]:
    """A class and the arguments to make it with."""
    H = draw(size)
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
        "dtype": F64,
    }
    if draw(st.booleans()):
        return (
            nn.RNN,
            (draw(size), H),
            options | {"nonlinearity": draw(st.sampled_from(["tanh", "relu"]))},
        )
    return nn.LSTM, (draw(size), H), options | {"proj_size": draw(st.integers(0, H - 1))}


def state(module: nn.Module, lead: tuple[int, ...]) -> Any:
    """A random state for the module."""
    rows = (module.num_layers * (2 if module.bidirectional else 1), *lead)
    h = torch.randn(*rows, module.proj_size or module.hidden_size, dtype=F64, requires_grad=True)
    c = torch.randn(*rows, module.hidden_size, dtype=F64, requires_grad=True)
    return (h, c) if isinstance(module, nn.LSTM) else h


@given(settings(), size, st.integers(0, 9), st.booleans(), st.booleans(), st.data())
def test_batches_and_single_sequences(made, T, B, single, with_state, data) -> None:
    cls, sizes, options = made
    ours, theirs = twins(cls, *sizes, **options)
    lead = (T,) if single else (B, T) if options["batch_first"] else (T, B)
    x = torch.randn(*lead, sizes[0], dtype=F64, requires_grad=True)
    if data.draw(st.booleans(), label="every second feature of a wider input"):
        x = torch.randn(*lead, 2 * sizes[0], dtype=F64)[..., ::2].requires_grad_()
    hx = state(theirs, () if single else (B,)) if with_state else None
    assert_same(ours, theirs, x, hx)


@given(settings(), st.lists(size, min_size=1, max_size=9), st.booleans(), st.booleans())
def test_lengths(made, lengths, with_state, is_sorted) -> None:
    cls, sizes, options = made
    ours, theirs = twins(cls, *sizes, **options)
    lengths = sorted(lengths, reverse=True) if is_sorted else lengths
    x = torch.full((max(lengths), len(lengths), sizes[0]), float("nan"), dtype=F64)
    for b, n in enumerate(lengths):
        x[:n, b] = torch.randn(n, sizes[0])
    x.requires_grad_()
    packed = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=is_sorted)
    hx = state(theirs, (len(lengths),)) if with_state else None
    got, expected = ours(packed, hx), theirs(packed, hx)
    assert_close(got, expected)
    for a, b in zip(gradients(ours, got, [x]), gradients(theirs, expected, [x]), strict=True):
        assert_close(a, b)
