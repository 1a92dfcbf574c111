"""Each question of a trace, answered again by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_sequence

import gatewise
from gatewise import CELLS, ArgumentError, ShapeError, Trace, reference

T, B, I, H = 7, 2, 3, 4


def layer(cell: str = "lstm", **how: object) -> gatewise.LSTM:
    return gatewise.LSTM(I, H, cell=cell, dtype=torch.float64, **how)


def x_(n: int = T, batch: int = B) -> Tensor:
    return torch.randn(n, batch, I, dtype=torch.float64)


def brute_jacobian(module: gatewise.LSTM, x: Tensor, at: int, t: int, d: int = 0) -> Tensor:
    """d c(at) / d c(t) (H, H) of one sequence, by differentiating the page in a shift of c(t)."""
    h0 = torch.zeros(1, module.proj_size or H, dtype=torch.float64)

    def c_at(shift: Tensor) -> Tensor:
        def tap(name: str, value: Tensor, t: int, at_t: int = t) -> Tensor:
            moves = "c" if module.cell.has_cell_state else "g"
            return value + shift if (name, t) == (moves, at_t) else value

        run = reference.sequence(
            module.cell, x, h0, torch.zeros(1, H).double(), module._weights(0)[d], d == 1, tap=tap
        )
        return run.steps.c[at, 0]

    return torch.autograd.functional.jacobian(c_at, torch.zeros(H, dtype=torch.float64))


@pytest.mark.parametrize("direction", ["fwd", "reverse"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_jacobian_is_the_page_s(cell: str, direction: str) -> None:
    module, x = layer(cell, bidirectional=True), x_()
    trace = module.trace(x)
    for at in (None, 3):
        d = int(direction == "reverse")
        end = (0 if d else T - 1) if at is None else at
        got = trace.jacobian(at=at, direction=direction, sequence=1)
        for t in range(T):
            expected = brute_jacobian(module, x[:, 1:], end, t, d)
            np.testing.assert_allclose(got[t], expected, rtol=0, atol=1e-12)
        row = trace.jacobian(2, at=at, direction=direction, sequence=1)
        np.testing.assert_allclose(row, got[:, 2], rtol=0, atol=1e-15)


def test_the_jacobian_of_a_projected_and_packed_layer() -> None:
    module = layer(proj_size=2)
    given = [x_(n, 1)[:, 0] for n in (3, 6)]
    trace = module.trace(pack_sequence(given, enforce_sorted=False))
    for b, x in enumerate(given):
        got = trace.jacobian(sequence=b)
        assert got.shape == (len(x), H, H)
        for t in range(len(x)):
            expected = brute_jacobian(module, x[:, None], len(x) - 1, t)
            np.testing.assert_allclose(got[t], expected, rtol=0, atol=1e-12)


def test_the_jacobian_takes_the_loss_s_gradient_back() -> None:
    trace = layer(num_layers=2).trace(x_())
    trace.c_n[1, 0, 2].backward()  # one number: its gradient by c(t) is a row of the Jacobian
    got = trace.jacobian(2, layer=1)
    np.testing.assert_allclose(got, trace.grad.c[1, 0, :, 0], rtol=0, atol=1e-12)


def test_the_direct_path_is_the_product_of_forget_gates_and_not_the_jacobian() -> None:
    trace = layer(bidirectional=True).trace(x_())
    f = trace.f[0, :, :, 1].detach().numpy()
    expected = [f[0, t + 1 :].prod(axis=0) for t in range(T)]
    np.testing.assert_allclose(trace.direct_path(sequence=1), expected, rtol=1e-12)
    expected = [f[1, :t].prod(axis=0) for t in range(T)]
    np.testing.assert_allclose(trace.direct_path(direction="reverse", sequence=1), expected)
    own = np.einsum("tuu->tu", trace.jacobian(sequence=1))
    assert not np.allclose(own[:-1], trace.direct_path(sequence=1)[:-1], rtol=1e-3)
    np.testing.assert_array_equal(trace.direct_path(at=2)[3:], 0)


def test_without_recurrent_weights_the_two_are_one() -> None:
    module = layer()
    with torch.no_grad():
        module.weight_hh_l0.zero_()
    trace = module.trace(x_())
    own = np.einsum("tuu->tu", trace.jacobian())
    np.testing.assert_allclose(own, trace.direct_path(), rtol=1e-12)


@pytest.mark.parametrize(
    "how", [{"at": T}, {"unit": H}, {"sequence": B}, {"layer": 1}, {"direction": "up"}]
)
def test_a_lane_that_is_not_there_is_an_error(how: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="expected"):
        layer().trace(x_()).jacobian(**how)


def given(**values: object) -> Trace:
    """A trace of two units over T steps with chosen gates: f and o by a formula, not by a run."""
    trace = gatewise.LSTM(1, 2).trace(torch.zeros(T, 1, 1)).to_numpy()
    tape = np.zeros((1, T, 1, 5, 2))
    for name, value in values.items():
        tape[0, :, 0, trace.cell.slots.index(name)] = value
    trace.records[0].tape = tape
    return trace


def test_memory_length_is_the_time_to_fall_to_one_in_e() -> None:
    f = np.stack([np.full(T, math.exp(-1 / 20)), np.array([1, 0.5, 1, 0.5, 1, 1, 1])], axis=1)
    trace = given(f=f)
    np.testing.assert_allclose(trace.memory_length()[0, 0], [20, T / (2 * math.log(2))])
    # what is left of the direct path after tau steps, continued at the same rate, is 1/e
    left, tau = trace.direct_path()[0], trace.memory_length()[0, 0]
    np.testing.assert_allclose(left[0], math.exp(-(T - 1) / tau[0]))


def test_memory_length_at_the_ends_of_the_range() -> None:
    assert np.isinf(layer("no_forget_gate").trace(x_()).memory_length()).all()
    assert not layer("rnn").trace(x_()).memory_length().any()


def test_saturation_counts_steps_at_either_end() -> None:
    o = np.stack([[0, 0.05, 0.1, 0.5, 0.9, 0.95, 1], np.full(T, 0.5)], axis=1)
    shut, opened = given(o=o).saturation("o")
    np.testing.assert_allclose(shut[0, 0], [2 / T, 0])
    np.testing.assert_allclose(opened[0, 0], [2 / T, 0])
    g = np.stack([[-1, -0.9, -0.5, 0, 0.5, 0.9, 1], np.zeros(T)], axis=1)
    low, high = given(g=g).saturation("g")  # |g| > 0.8 is where the sigmoid of 2z leaves 0.1..0.9
    np.testing.assert_allclose((low[0, 0], high[0, 0]), [[2 / T, 0], [2 / T, 0]])


def test_saturation_leaves_padding_out_and_refuses_what_cannot_saturate() -> None:
    module = layer(bidirectional=True)
    sequences = [4 * x_(n, 1)[:, 0] for n in (2, 6)]
    trace = module.trace(pack_sequence(sequences, enforce_sorted=False))
    tokens = np.concatenate([module.trace(x[:, None]).i.detach()[0, :, :, 0] for x in sequences], 1)
    np.testing.assert_allclose(trace.saturation("i").shut[0], (tokens < 0.1).mean(axis=1))
    np.testing.assert_allclose(trace.saturation("i").open[0], (tokens > 0.9).mean(axis=1))
    assert trace.saturation("i").open.any()
    assert layer("coupled").trace(x_()).saturation("f").open.shape == (1, 1, H)
    for cell, gate in (("rnn", "f"), ("rnn_relu", "g"), ("no_output_gate", "o"), ("lstm", "c")):
        with pytest.raises(ArgumentError, match="gate: expected a gate with sigmoid or tanh"):
            layer(cell).trace(x_()).saturation(gate)


def test_gradient_reach_is_the_norm_at_each_step() -> None:
    module = layer(bidirectional=True)
    trace = module.trace(pack_sequence([x_(n, 1)[:, 0] for n in (2, 6)], enforce_sorted=False))
    with pytest.raises(ArgumentError, match=r"call backward\(\)"):
        trace.gradient_reach()
    trace.last(0, "fwd").pow(2).sum().backward()
    reach = trace.gradient_reach()
    assert np.isnan(reach[0, 0, 2:, 0]).all()
    for b, n in enumerate((2, 6)):
        for t in range(n):
            expected = math.sqrt(sum(v**2 for v in trace.grad.c[0, 0, t, b].tolist()))
            assert reach[0, 0, t, b] == pytest.approx(expected, rel=1e-12)
    assert not reach[0, 1, :2, 0].any()  # the loss looks at the other direction
    with pytest.raises(ArgumentError, match="name: expected one of i f g o c h"):
        trace.gradient_reach("z")


def test_tracking_is_pearson_s_correlation() -> None:
    trace = layer(num_layers=2, bidirectional=True).trace(x_())
    signal = np.random.default_rng(0).random((T, B)) > 0.5
    r, best = trace.tracking(signal)
    c = trace.c.detach().numpy()
    for k, d, u in np.ndindex(2, 2, H):
        expected = np.corrcoef(c[k, d, :, :, u].ravel(), signal.ravel())[0, 1]
        assert r[k, d, u] == pytest.approx(expected, abs=1e-12)
    values = [abs(value) for value, _ in best]
    assert values == sorted(values, reverse=True)
    value, name = best[0]
    assert name.startswith("l")
    path, unit = name[:-1].split("[")
    assert np.corrcoef(trace[path][..., int(unit)].detach().numpy().ravel(), signal.ravel())[
        0, 1
    ] == (pytest.approx(value, abs=1e-12))


def test_tracking_finds_the_unit_that_holds_the_answer() -> None:
    signal = np.array([0, 0, 1, 1, 1, 0, 0.0])
    c = np.stack([np.full(T, 3.0), -5 * signal], axis=1)
    r, best = given(c=c).tracking(signal)
    np.testing.assert_allclose(r[0, 0], [0, -1], atol=1e-12)
    assert best[0][1] == "l0.fwd.c[1]"


def test_tracking_leaves_out_padding_and_unlabelled_steps() -> None:
    module = layer()
    trace = module.trace(pack_sequence([x_(n, 1)[:, 0] for n in (3, 6)], enforce_sorted=False))
    signal = np.random.default_rng(1).random((6, 2))
    signal[4, 1] = np.nan
    use = trace.mask & ~np.isnan(signal)
    h = trace.h.detach().numpy()[0, 0][use]
    got = trace.tracking(signal, "h").r[0, 0]
    expected = [np.corrcoef(h[:, u], signal[use])[0, 1] for u in range(H)]
    np.testing.assert_allclose(got, expected, atol=1e-12)


def test_tracking_refuses_a_signal_that_does_not_fit_or_vary() -> None:
    trace = layer().trace(x_())
    with pytest.raises(ShapeError, match=r"signal: expected \(T,\) = \(7,\) or .* got \(2, 7\)"):
        trace.tracking(np.zeros((B, T)))
    with pytest.raises(ArgumentError, match="expected one that varies"):
        trace.tracking(np.ones(T))
    with pytest.raises(ArgumentError, match="name: expected one of i f g o c h, got 'z'"):
        trace.tracking(np.arange(T), "z")
