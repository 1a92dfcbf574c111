"""What stands around a call: a default device, inference mode, a first use within either."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.func import vmap
from torch.nn.utils.rnn import pack_padded_sequence
from twins import assert_close, twins

import gatewise
from gatewise.recording import put

# torch compiles some of its own formulas with what it has deprecated
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit")

LENGTHS = [2, 5, 1]


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """New tensors are made on another device than the CPU, where the modules and inputs are."""
    with torch.device("meta"):
        yield


def packed(dtype: torch.dtype = torch.float32) -> nn.utils.rnn.PackedSequence:
    x = torch.randn(5, 3, 4, device="cpu", dtype=dtype)
    lengths = torch.tensor(LENGTHS, device="cpu")
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def gradients(module: nn.Module, *args: object) -> list[torch.Tensor]:
    output, _ = module(*args)
    output = output if isinstance(output, torch.Tensor) else output.data
    return list(torch.autograd.grad(output.square().sum(), list(module.parameters())))


# --- a default device -----------------------------------------------------------------------------


def test_a_checkpointed_packed_layer_elsewhere(elsewhere: None) -> None:
    with torch.device("cpu"):
        x = packed()
        whole = gatewise.LSTM(4, 6, bidirectional=True)
        expected = gradients(whole, x)
    whole.checkpoint = 2
    assert_close(gradients(whole, x), expected)


def test_a_packed_trace_elsewhere(elsewhere: None) -> None:
    with torch.device("cpu"):
        x = packed()
        x = nn.utils.rnn.PackedSequence(x.data, x.batch_sizes)
        lstm = gatewise.LSTM(4, 6)
        expected = lstm.trace(x).c
    torch.testing.assert_close(lstm.trace(x).c, expected, rtol=0, atol=0, equal_nan=True)


def test_a_patch_elsewhere(elsewhere: None) -> None:
    with torch.device("cpu"):
        x = packed()
        lstm = gatewise.LSTM(4, 6)
        patches = {"l0.fwd.f": put(0.0, units=[1])}
        with gatewise.patching(lstm, patches):
            expected = lstm(x)[0].data
    with gatewise.patching(lstm, patches):
        assert torch.equal(lstm(x)[0].data, expected)


def test_a_second_derivative_of_a_packed_layer_elsewhere(elsewhere: None) -> None:
    with torch.device("cpu"):
        x = packed()
        lstm = gatewise.LSTM(4, 6)

    def second() -> torch.Tensor:
        output = lstm(x)[0].data.square().sum()
        first = torch.autograd.grad(output, lstm.weight_ih_l0, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), lstm.weight_hh_l0)[0]

    found = second()
    with torch.device("cpu"):
        assert_close(found, second())


@pytest.mark.parametrize("around", ['torch.device("meta")', "torch.inference_mode()"])
def test_a_first_use_where_tensors_are_of_another_kind(around: str) -> None:
    """A model is often made on no device, and then it is the first thing that needs the modules."""
    code = f"""
import gatewise, torch
with {around}:
    gatewise.LSTM(4, 6), gatewise.LSTMCell(4, 6)
lstm, cell = gatewise.LSTM(4, 6), gatewise.LSTMCell(4, 6)
lstm(torch.randn(5, 3, 4))[0].sum().backward()
cell(torch.randn(3, 4))[0].sum().backward()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


# --- inference mode -------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", [None, 2])
@pytest.mark.parametrize("packs", [False, True])
def test_gradients_switched_on_within_inference_mode(packs: bool, checkpoint: int | None) -> None:
    """As an inner function does that knows nothing of the outer one; torch computes."""
    ours, theirs = twins(nn.LSTM, 4, 6, num_layers=2)
    ours.checkpoint = checkpoint
    x = packed() if packs else torch.randn(5, 3, 4)
    with torch.inference_mode(), torch.enable_grad():
        found, expected = ours(x), theirs(x)
    assert_close(found, expected)
    assert all(t.is_inference() for t in found[1])
    assert_close(gradients(ours, x), gradients(theirs, x))


def test_a_trace_with_gradients_switched_on_within_inference_mode() -> None:
    lstm, x = gatewise.LSTM(4, 6), torch.randn(5, 3, 4)
    with torch.inference_mode(), torch.enable_grad():
        found = lstm.trace(x)
    assert torch.equal(found.f, lstm.trace(x).f)


def test_a_cell_with_gradients_switched_on_within_inference_mode() -> None:
    ours, theirs = twins(nn.LSTMCell, 4, 6)
    x = torch.randn(2, 3, 4)
    with torch.inference_mode(), torch.enable_grad():
        found, expected = (m(x[1], m(x[0])) for m in (ours, theirs))
    assert_close(found, expected)
    assert_close(gradients(ours, x[0]), gradients(theirs, x[0]))


def test_vmap_within_inference_mode() -> None:
    lstm, x = gatewise.LSTM(4, 6), torch.randn(2, 5, 3, 4)
    with torch.inference_mode():
        found = vmap(lambda one: lstm(one)[0])(x)
    assert_close(found, torch.stack([lstm(one)[0].detach() for one in x]))


def test_forward_mode_within_inference_mode() -> None:
    lstm, x, t = gatewise.LSTM(4, 6), torch.randn(5, 3, 4), torch.randn(5, 3, 4)
    with torch.inference_mode():
        found = torch.func.jvp(lambda x: lstm(x)[0], (x,), (t,))
    expected = torch.func.jvp(lambda x: lstm(x)[0], (x,), (t,))
    assert_close(found, [t.detach() for t in expected])
