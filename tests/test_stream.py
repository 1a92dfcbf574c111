"""Stream: the bits of the whole sequence, the state, and weights that change under it."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import gatewise
from gatewise import ArgumentError, DTypeError, ShapeError, StaleError, Stream, _core
from gatewise.spec import CELLS


@pytest.fixture(params=_core.info()["isas"])
def isa(request):
    before = _core.info()["isa"]
    _core.select_isa(request.param)
    yield request.param
    _core.select_isa(before)


def whole(lstm: Any, x: Tensor, hx: Any = None) -> tuple[Tensor, Any]:
    with torch.no_grad():
        return lstm(x, hx)


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(torch.equal, a, b))
    return torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
@pytest.mark.parametrize("cell", list(CELLS))
def test_the_bits_of_the_whole(isa, cell, dtype) -> None:
    """Every cell; odd sizes; with projection and without; with biases and without."""
    for B, I, H, P, L, bias in (
        (1, 1, 1, 0, 1, True),
        (1, 5, 19, 0, 2, True),
        (1, 13, 70, 33, 2, False),
        (2, 3, 9, 4, 3, True),
        (7, 20, 33, 0, 1, True),
        (50, 4, 17, 16, 1, True),
    ):
        lstm = gatewise.LSTM(I, H, L, bias=bias, proj_size=P, cell=cell, dtype=dtype)
        stream, x = Stream(lstm, B), torch.randn(6, B, I, dtype=dtype)
        want, state = whole(lstm, x)
        for y, x_t in zip(want, x, strict=True):
            assert torch.equal(stream.step(x_t), y), (B, I, H, P)
        assert equal(stream.state, state)


def test_a_plain_rnn_and_batch_first(isa) -> None:
    rnn = gatewise.RNN(4, 9, nonlinearity="relu", batch_first=True)
    stream, x = Stream(rnn, 3), torch.randn(3, 5, 4)
    y, h_n = whole(rnn, x)
    got = torch.stack([stream.step(x[:, t]) for t in range(5)], dim=1)
    assert torch.equal(got, y)
    assert torch.equal(stream.state, h_n)


def test_other_kernels_do_not_disturb_a_stream() -> None:
    """The weights were packed for the instruction set of then; the stream stays with it."""
    lstm, before = gatewise.LSTM(3, 20), _core.info()["isa"]
    stream, x = Stream(lstm), torch.randn(4, 1, 3)
    want = whole(lstm, x)[0]
    try:
        for x_t, y, isa in zip(x, want, 2 * _core.info()["isas"], strict=False):
            _core.select_isa(isa)
            assert torch.equal(stream.step(x_t), y)
    finally:
        _core.select_isa(before)


# --- arrays --------------------------------------------------------------------------------------


def test_numpy_and_torch_get_their_own_kind() -> None:
    lstm = gatewise.LSTM(3, 5)
    a, b, x = Stream(lstm), Stream(lstm), torch.randn(4, 1, 3)
    for x_t in x:
        y, z = a.step(x_t), b.step(x_t.numpy())
        assert type(y) is Tensor
        assert type(z) is np.ndarray
        assert z.dtype == np.float32
        assert np.array_equal(y.numpy(), z)
        assert not y.requires_grad


def test_without_a_batch() -> None:
    lstm = gatewise.LSTM(3, 5)
    a, b, x = Stream(lstm), Stream(lstm), torch.randn(4, 3)
    for x_t in x:
        y = a.step(x_t)
        assert y.shape == (5,)
        assert torch.equal(y, b.step(x_t[None])[0])


def test_a_result_is_fresh_and_out_is_used() -> None:
    stream, x = Stream(gatewise.LSTM(3, 5), 2), torch.randn(2, 2, 3)
    first = stream.step(x[0])
    kept = first.clone()
    out = torch.full((2, 5), float("nan"))
    assert stream.step(x[1], out) is out
    assert torch.equal(first, kept)
    assert not torch.equal(out, first)
    array = np.full((2, 5), np.nan, np.float32)
    assert stream.step(x[1].numpy(), out=array) is array
    assert not np.isnan(array).any()
    assert stream.step(x[0]).resolve_neg().add_(1).shape == (2, 5)  # an ordinary tensor


def test_strided_rows() -> None:
    """A step of (B, T, I) is a view with gaps between its rows."""
    lstm, x = gatewise.LSTM(3, 5, batch_first=True), torch.randn(4, 6, 3)
    a, b, want = Stream(lstm, 4), Stream(lstm, 4), whole(lstm, x)[0]
    for t in range(6):
        assert torch.equal(a.step(x[:, t]), want[:, t])
        assert np.array_equal(b.step(x.numpy()[:, t]), want[:, t].numpy())


def test_what_does_not_fit() -> None:
    stream = Stream(gatewise.LSTM(3, 5), 2)
    x = torch.randn(2, 3)
    for bad in (torch.randn(1, 3), torch.randn(2, 4), torch.randn(3), torch.randn(1, 2, 3)):
        with pytest.raises(ShapeError, match=r"x: expected shape \(B = 2, I = 3\), got"):
            stream.step(bad)
    with pytest.raises(ShapeError, match="last axis"):
        stream.step(torch.randn(3, 2).T)
    with pytest.raises(DTypeError, match="expected float32"):
        stream.step(x.double())
    with pytest.raises(DTypeError, match="expected float32"):
        stream.step(x.numpy().astype(np.float64))
    dates = np.zeros((2, 3), "datetime64[s]")
    for other in ([[1.0, 2.0, 3.0]] * 2, 3, x.to_sparse(), x.to("meta"), dates):
        with pytest.raises(DTypeError, match="x: expected"):
            stream.step(other)  # type: ignore[type-var]
    with pytest.raises(ShapeError, match=r"out: expected shape \(B = 2, P = 5\)"):
        stream.step(x, torch.empty(2, 4))
    read_only = np.empty((2, 5), np.float32)
    read_only.flags.writeable = False
    with pytest.raises(ShapeError, match="writable"):
        stream.step(x.numpy(), read_only)
    assert stream.step(x).shape == (2, 5)  # and the stream goes on


def test_a_lazy_negative_is_refused() -> None:
    part = torch.randn(2, dtype=torch.complex64).conj().imag
    for x in (part.unsqueeze(-1), part.reshape(2, 1)):
        assert x.is_neg()
        with pytest.raises(ShapeError, match="resolve_neg"):
            Stream(gatewise.LSTM(1, 5), batch=2).step(x)


def test_a_gradient_is_refused() -> None:
    stream, x = Stream(gatewise.LSTM(3, 5)), torch.randn(1, 3, requires_grad=True)
    with pytest.raises(ArgumentError, match="detach"):
        stream.step(x)
    with torch.no_grad():
        assert not stream.step(x).requires_grad


def test_what_cannot_be_a_stream() -> None:
    with pytest.raises(ArgumentError, match="swap"):
        Stream(torch.nn.LSTM(3, 5))  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="one direction"):
        Stream(gatewise.LSTM(3, 5, bidirectional=True))
    for batch in (0, -1, 1.0, True, "1"):
        with pytest.raises(ArgumentError, match="batch"):
            Stream(gatewise.LSTM(3, 5), batch)  # type: ignore[arg-type]
    with pytest.raises(DTypeError, match="float32, float64 or bfloat16"):
        Stream(gatewise.LSTM(3, 5, dtype=torch.float16))
    mixed = gatewise.LSTM(3, 5)
    mixed.bias_hh_l0 = torch.nn.Parameter(mixed.bias_hh_l0.double())
    with pytest.raises(DTypeError, match="one dtype"):
        Stream(mixed)


# --- bfloat16 ------------------------------------------------------------------------------------

# Where pairs of bfloat16 are multiplied, a module rounds h at every step, and has other bits.
FLOAT = [isa for isa in _core.info()["isas"] if isa not in ("avx512bf16", "wide")]


@pytest.mark.parametrize("isa", FLOAT, indirect=True)
@pytest.mark.parametrize("cell", list(CELLS))
def test_the_bits_of_the_whole_in_bfloat16(isa, cell) -> None:
    """Every cell; odd sizes; with projection and without; what layers hand on."""
    for B, I, H, P, L, bias in (
        (1, 1, 1, 0, 1, True),
        (1, 5, 19, 0, 2, True),
        (1, 13, 150, 67, 2, False),
        (1, 129, 128, 0, 1, True),
        (2, 131, 90, 0, 3, True),
        (3, 70, 97, 96, 1, True),
        (7, 20, 150, 0, 1, True),
        (50, 40, 130, 33, 1, True),
    ):
        lstm = gatewise.LSTM(I, H, L, bias=bias, proj_size=P, cell=cell, dtype=torch.bfloat16)
        # So long that the layer packs its weights: a shorter run adds in another order.
        T = max(4, 1 + (max(I, P or H) + (P or H)) // (16 * B))
        stream, x = Stream(lstm, B), torch.randn(T, B, I).bfloat16()
        want, state = whole(lstm, x)
        for y, x_t in zip(want, x, strict=True):
            got = stream.step(x_t)
            assert got.dtype == torch.bfloat16
            assert torch.equal(got, y), (B, I, H, P)
        assert equal(stream.state, state)


@pytest.mark.parametrize(("B", "H"), [(1, 32), (1, 65), (8, 128)])
def test_bfloat16_is_no_further_from_float64_than_torch(isa, B, H) -> None:
    torch.manual_seed(3)
    theirs = torch.nn.LSTM(H, H, dtype=torch.bfloat16)
    ours = gatewise.LSTM(H, H, dtype=torch.bfloat16)
    ours.load_state_dict(theirs.state_dict())
    stream, x = Stream(ours, B), torch.randn(60, B, H).bfloat16()
    with torch.no_grad():
        exact = copy.deepcopy(theirs).double()(x.double())[0]
        both = theirs(x)[0], torch.stack([stream.step(x_t) for x_t in x])
    off = [(y.double() - exact).norm() / exact.norm() for y in both]
    assert off[1] < off[0]
    assert off[1] < 2e-3, "a rounding of y alone"


def test_bfloat16_in_and_out() -> None:
    stream, x = Stream(gatewise.LSTM(3, 5, dtype=torch.bfloat16)), torch.randn(1, 3)
    out = torch.empty(1, 5, dtype=torch.bfloat16)
    assert stream.step(x.bfloat16(), out) is out
    assert all(s.dtype == torch.bfloat16 for s in stream.state)
    for wrong in (x, x.numpy(), x.half()):
        with pytest.raises(DTypeError, match="x: expected bfloat16"):
            stream.step(wrong)
    with pytest.raises(DTypeError, match="out: expected bfloat16"):
        stream.step(x.bfloat16(), out.float())


class Foreign:
    """An array of a library that knows DLPack, and neither torch nor buffers."""

    def __init__(self, numbers: Tensor) -> None:
        self.numbers = numbers

    def __dlpack__(self, **how: Any) -> Any:
        return self.numbers.__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self.numbers.__dlpack_device__()


def test_bfloat16_of_another_library() -> None:
    """Its results would be numpy's, which has no such numbers; but they may go to a tensor."""
    lstm, x = gatewise.LSTM(3, 5, dtype=torch.bfloat16), torch.randn(1, 3).bfloat16()
    stream, out = Stream(lstm), torch.empty(1, 5, dtype=torch.bfloat16)
    with pytest.raises(DTypeError, match="numpy has no bfloat16"):
        stream.step(Foreign(x))  # type: ignore[type-var]
    stream.step(Foreign(x), out)  # type: ignore[type-var]
    assert torch.equal(out, Stream(lstm).step(x))


def test_nan_and_infinity_in_bfloat16() -> None:
    stream = Stream(gatewise.LSTM(3, 20, dtype=torch.bfloat16), 3)
    x = torch.randn(3, 3).bfloat16()
    x[0, 1], x[1, 1] = float("nan"), float("inf")
    y = stream.step(x)
    assert y[0].isnan().all()
    assert y[1:].isfinite().all()


@pytest.mark.parametrize("isa", FLOAT, indirect=True)
def test_what_is_between_steps_is_not_rounded(isa) -> None:
    """Neither by a copy nor by reload."""
    lstm, x = gatewise.LSTM(3, 5, dtype=torch.bfloat16), torch.randn(30, 1, 3).bfloat16()
    stream, want = Stream(lstm), whole(lstm, x)[0]
    for x_t, y in zip(x, want, strict=True):
        assert torch.equal(stream.step(x_t), y)
        stream = copy.deepcopy(stream)
        stream.reload()


@pytest.mark.parametrize("cell", list(CELLS))
def test_h_of_bfloat16_is_multiplied_whole(isa, cell) -> None:
    """Where it goes into products of pairs, too: with 17 bits of it, not 8."""
    for B, I, H, P in (
        (1, 32, 32, 0),
        (1, 7, 45, 0),
        (2, 5, 19, 6),
        (5, 3, 70, 33),
        (50, 4, 17, 0),
    ):
        lstm = gatewise.LSTM(I, H, proj_size=P, cell=cell, dtype=torch.bfloat16)
        wide, x = copy.deepcopy(lstm).float(), torch.randn(4, B, I).bfloat16()
        brief, exact = Stream(lstm, B), Stream(wide, B)
        for x_t in x:
            brief.step(x_t)
            exact.step(x_t.float())
        for got, want in zip(brief._states(), exact._states(), strict=True):
            assert (got - want).abs().max() < 2e-5 * want.abs().max(), (B, I, H, P)


def test_an_infinite_h_in_bfloat16(isa) -> None:
    """And one beyond bfloat16. Neither leaves a part that would cancel it."""
    rnn = gatewise.RNN(1, 1, nonlinearity="relu", bias=False, dtype=torch.bfloat16)
    torch.nn.init.ones_(rnn.weight_hh_l0)
    stream = Stream(rnn)
    for h in (float("inf"), 3.4e38):
        stream._core.exchange(torch.tensor([[[h]]]), None, True)
        assert stream.step(torch.zeros(1, 1, dtype=torch.bfloat16)).item() == float("inf")


# --- state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
@pytest.mark.parametrize("B", [1, 3])
def test_state_round_trip(cell, B) -> None:
    P = 4 if cell == "lstm" else 0
    lstm, x = gatewise.LSTM(3, 5, 2, proj_size=P, cell=cell), torch.randn(6, B, 3)
    stream = Stream(lstm, B)
    for x_t in x[:3]:
        stream.step(x_t)
    state = stream.state
    assert equal(state, whole(lstm, x[:3])[1])
    end = [stream.step(x_t) for x_t in x[3:]]
    assert not equal(state, stream.state), "the state that was got must be a copy"
    stream.state = state
    assert all(torch.equal(stream.step(x_t), y) for x_t, y in zip(x[3:], end, strict=True))
    stream.state = tuple(s.numpy() for s in state) if cell == "lstm" else state.numpy()
    assert torch.equal(stream.step(x[3]), end[0])
    flip = lambda s: torch._neg_view(-s)  # noqa: E731 (the same numbers)
    stream.state = tuple(map(flip, state)) if cell == "lstm" else flip(state)
    assert torch.equal(stream.step(x[3]), end[0])
    torch.testing.assert_close(whole(lstm, x[3:4], state)[0][0], end[0])


def test_reset() -> None:
    stream, x = Stream(gatewise.LSTM(3, 5, 2), 2), torch.randn(2, 3)
    first = stream.step(x)
    assert not torch.equal(stream.step(x), first)
    stream.reset()
    assert all((s == 0).all() for s in stream.state)
    assert torch.equal(stream.step(x), first)


def test_a_state_that_does_not_fit() -> None:
    stream = Stream(gatewise.LSTM(3, 5), 2)
    h, c = stream.state
    with pytest.raises(ShapeError, match=r"h \(L, B, P\) = \(1, 2, 5\), got \(1, 3, 5\)"):
        stream.state = torch.zeros(1, 3, 5), c
    with pytest.raises(ShapeError, match=r"c \(L, B, H\)"):
        stream.state = h, torch.zeros(1, 2, 4)
    with pytest.raises(ArgumentError, match=r"\(h, c\)"):
        stream.state = h


def test_nan_stays_in_its_sequence(isa) -> None:
    stream, x = Stream(gatewise.LSTM(3, 20), 2), torch.randn(2, 3)
    x[0, 1] = float("nan")
    y = stream.step(x)
    assert y[0].isnan().all()
    assert not y[1].isnan().any()


def test_denormals_are_zero_and_the_caller_keeps_his_own(isa) -> None:
    """A cell that forgets runs towards zero and would stay among the slow, denormal numbers."""
    lstm = gatewise.LSTM(1, 8)
    with torch.no_grad():
        for p in lstm.parameters():
            p.zero_()
        lstm.bias_ih_l0[8:16] = -3  # f = 0.05; nothing comes in: g = tanh(0)
    stream, x = Stream(lstm), torch.zeros(1, 1)
    stream.state = torch.zeros(1, 1, 8), torch.ones(1, 1, 8)
    for _ in range(60):
        stream.step(x)
    assert (stream.state[1] == 0).all()
    tiny = torch.tensor([1e-39]) * torch.tensor([0.5])
    assert tiny.item() > 0, "the caller's own arithmetic must keep its denormals"


# --- weights that change -------------------------------------------------------------------------


def training_step(lstm: Any) -> None:
    optimizer = torch.optim.SGD(lstm.parameters(), lr=0.1)
    lstm(torch.randn(3, 1, 3))[0].sum().backward()
    optimizer.step()


def swap_weight(lstm: Any) -> None:
    lstm.weight_hh_l1 = torch.nn.Parameter(lstm.weight_hh_l1.detach().clone())


def fill_behind(lstm: Any) -> None:
    for p in lstm.parameters():
        p.data.mul_(1.5)


def fill_by_numpy(lstm: Any) -> None:
    for p in lstm.parameters():
        p.detach().numpy()[:] = 0.25


def new_data(lstm: Any) -> None:
    for p in lstm.parameters():
        p.data = p.data.clone()


def optimize(lstm: Any, **how: bool) -> None:
    optimizer = torch.optim.Adam(lstm.parameters(), lr=0.1, **how)
    lstm(torch.randn(3, 1, 3))[0].sum().backward()
    optimizer.step()


def add_to_each(lstm: Any) -> None:
    with torch.no_grad():
        torch._foreach_add_(list(lstm.parameters()), 0.5)


def from_vector(lstm: Any) -> None:
    count = sum(p.numel() for p in lstm.parameters())
    torch.nn.utils.vector_to_parameters(torch.rand(count), lstm.parameters())


AT_ONCE = {
    "training": training_step,
    "Adam, one by one": lambda lstm: optimize(lstm, foreach=False),
    "Adam, foreach": lambda lstm: optimize(lstm, foreach=True),
    "Adam, fused": lambda lstm: optimize(lstm, fused=True),
    "_foreach_add_": add_to_each,
    "vector_to_parameters": from_vector,
    "load_state_dict": lambda lstm: lstm.load_state_dict(gatewise.LSTM(3, 5, 2).state_dict()),
    "assigned": lambda lstm: lstm.load_state_dict(gatewise.LSTM(3, 5, 2).state_dict(), assign=True),
    "another parameter": swap_weight,
    ".data of all": fill_behind,
    "numpy": fill_by_numpy,
    ".data replaced": new_data,
    "double": lambda lstm: lstm.double(),
    "initialised": lambda lstm: lstm.reset_parameters(),
}


@pytest.mark.parametrize("change", AT_ONCE.values(), ids=AT_ONCE.keys())
def test_changed_weights_raise_at_the_next_step(change) -> None:
    lstm, x = gatewise.LSTM(3, 5, 2), torch.randn(1, 3)
    stream = Stream(lstm)
    step = stream.step  # whoever took it along has the new weights, too
    step(x)
    state = stream.state
    change(lstm)
    for _ in range(2):  # and go on raising
        with pytest.raises(StaleError, match=r"_l[01] .* \.reload\(\)"):
            step(x)
    assert equal(stream.state, state)
    stream.reload()
    dtype = lstm.weight_ih_l0.dtype
    hx = tuple(s.to(dtype) for s in state)
    want = whole(lstm, x[None].to(dtype), hx)[0][0]
    torch.testing.assert_close(step(x.to(dtype)), want)


def steps_until_stale(stream: Stream, x: Tensor, most: int) -> None:
    for _ in range(most):
        try:
            stream.step(x)
        except StaleError:
            return
    pytest.fail(f"not found in {most} steps")


ONE_CHANGED = {  # what is done to a parameter, and how many looks at it find it
    "counted": (lambda p: p.detach().view(-1)[-1].add_(1), lambda p: 1),
    "moved": (lambda p: setattr(p, "data", p.data.clone()), lambda p: 1),
    "all of it behind": (lambda p: p.data.add_(1), lambda p: 1),
    "one number behind": (lambda p: p.data.view(-1)[-1].add_(1), lambda p: -(-p.numel() // 16)),
}


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l1", "bias_hh_l0"])
@pytest.mark.parametrize(("change", "looks"), ONE_CHANGED.values(), ids=ONE_CHANGED.keys())
def test_one_changed_parameter_is_found_in_turn(name, change, looks) -> None:
    """One of the parameters is looked at in a step, and 64 bytes of it."""
    lstm, x = gatewise.LSTM(3, 20, 2), torch.randn(1, 3)
    p, count = getattr(lstm, name), len(list(lstm.parameters()))
    for before in range(count):  # whoever's turn it is
        stream = Stream(lstm)
        for _ in range(before):
            stream.step(x)
        change(p)
        steps_until_stale(stream, x, count * looks(p))


def test_a_step_of_ones_own() -> None:
    class Doubled(Stream):
        def step(self, x, out=None):  # type: ignore[no-untyped-def]
            return 2 * super().step(x, out)

    lstm, x = gatewise.LSTM(3, 4), torch.randn(1, 3)
    assert torch.equal(Doubled(lstm).step(x), 2 * Stream(lstm).step(x))


def test_a_parametrized_module() -> None:
    """The numbers come from elsewhere; what is watched is where they come from."""
    lstm = gatewise.LSTM(3, 5)
    torch.nn.utils.parametrizations.weight_norm(lstm, "weight_hh_l0")
    stream, x = Stream(lstm), torch.randn(4, 1, 3)
    want = whole(lstm, x)[0]
    assert torch.equal(torch.stack([stream.step(x_t) for x_t in x]), want)
    with torch.no_grad():
        lstm.parametrizations.weight_hh_l0.original0.mul_(2)
    steps_until_stale(stream, x[0], len(list(lstm.parameters())))
    with pytest.raises(StaleError, match="original0"):
        stream.step(x[0])


def test_reading_weights_is_no_change() -> None:
    lstm, x = gatewise.LSTM(3, 5), torch.randn(1, 3)
    stream = Stream(lstm)
    lstm.state_dict()
    copy.deepcopy(lstm)
    lstm.eval().requires_grad_(False)
    lstm.zero_grad()
    for _ in range(300):
        stream.step(x)


# --- copies, threads, processes ------------------------------------------------------------------


@pytest.mark.parametrize("again", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))])
def test_a_copy_goes_on_by_itself(again) -> None:
    lstm, x = gatewise.LSTM(3, 5), torch.randn(3, 1, 3)
    stream = Stream(lstm)
    stream.step(x[0])
    other = again(stream)
    assert torch.equal(other.step(x[1]), stream.step(x[1]))
    other.reset()
    fill_behind(lstm)
    other.step(x[2])  # its module is another one
    with pytest.raises(StaleError):
        stream.step(x[2])


@pytest.mark.parametrize("H", [20, 700])  # the larger one works without Python's lock
def test_streams_in_threads(H) -> None:
    lstm, x = gatewise.LSTM(4, H, 2), torch.randn(8, 4, 1, 4)

    def run(x_s: Tensor) -> Tensor:
        stream = Stream(lstm)
        return torch.stack([stream.step(x_t) for x_t in x_s])

    want = [run(x_s) for x_s in x]
    with ThreadPoolExecutor(4) as pool:
        for got, y in zip(pool.map(run, x), want, strict=True):
            assert torch.equal(got, y)


def test_one_stream_in_two_threads_is_refused_or_in_turn() -> None:
    """A step that releases Python's lock refuses a second one; none is ever mixed with another."""
    lstm, x = gatewise.LSTM(4, 1200), torch.randn(1, 4)
    stream, errors, end = Stream(lstm), [], time.monotonic() + 60

    def run(_: int) -> int:  # steps that were done until some thread was refused
        done = 0
        try:
            while not errors and time.monotonic() < end:
                stream.step(x)
                done += 1
        except RuntimeError as error:
            errors.append(str(error))
        return done

    with ThreadPoolExecutor(4) as pool:
        done = sum(pool.map(run, range(4)))
    assert errors and all("another thread" in error for error in errors)  # noqa: PT018
    alone = Stream(lstm)
    for _ in range(done):
        alone.step(x)
    assert torch.equal(stream.step(x), alone.step(x))


def test_after_a_fork() -> None:
    lstm, x = gatewise.LSTM(4, 20), torch.randn(2, 1, 4)
    stream = Stream(lstm)
    stream.step(x[0])
    want = copy.deepcopy(stream).step(x[1])
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if torch.equal(stream.step(x[1]), want) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(stream.step(x[1]), want)
