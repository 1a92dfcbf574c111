"""How far a gradient reaches: exact, whatever the length."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import gatewise
from gatewise import CELLS
from gatewise.studies import gradient_reach as reach
from gatewise.studies import (
    tasks,
)
from gatewise.studies.networks import DESIGNS, Reader


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "linear"])
def test_reach_is_what_autograd_says(cell: str) -> None:
    torch.manual_seed(0)
    T, B, I, H = 12, 3, 2, 5
    spec = CELLS[cell]
    net = gatewise.LSTM(I, H, cell=cell, dtype=torch.float64)
    w = gatewise.Weights(
        *(net.get_parameter(f"{n}_l0").detach() for n in ("weight_ih", "weight_hh", "bias_ih")),
        b_hh=net.bias_hh_l0.detach(),
        peep=net.weight_peep_l0.detach() if spec.peephole else None,
    )
    x, v = torch.randn(T, B, I).double(), torch.randn(B, H).double()
    log_h, log_c = reach.reach(spec, x, w, v)
    h = c = torch.zeros(B, H).double().requires_grad_()
    hs, cs = [], []
    for x_t in x:
        s = gatewise.step(spec, x_t, h, c, w)
        h, c = s.h, s.c
        h.retain_grad()
        c.retain_grad()
        hs.append(h)
        cs.append(c)
    (v * h).sum().backward()
    for t in range(T):
        for found, state in ((log_h[t], hs[t]), (log_c[t], cs[t])):
            assert state.grad is not None
            assert torch.allclose(10**found, state.grad.norm(dim=1), rtol=1e-10, atol=0)


def test_reach_goes_on_where_float64_ends() -> None:
    w = gatewise.Weights(torch.zeros(4, 1).double(), torch.zeros(4, 1).double())
    T = 2000  # every gate is 1/2: the cell keeps a half of its gradient at each step
    _, log_c = reach.reach(
        CELLS["lstm"], torch.zeros(T, 1, 1).double(), w, torch.ones(1, 1).double()
    )
    assert log_c[0, 0] < -600
    expected = math.log10(0.5) * torch.arange(T, 0, -1).double()
    assert torch.allclose(log_c[:, 0], expected, rtol=1e-12)
    curve = reach.by_distance(log_c)
    assert math.isclose(reach.slope(curve) or 0, -100 * math.log10(2), rel_tol=1e-9)
    assert reach.ends(curve, reach.FLOAT32) == 125


def test_reach_agrees_with_the_trace() -> None:
    torch.manual_seed(1)
    lstm = gatewise.LSTM(2, 6, dtype=torch.float64)
    x, v = torch.randn(15, 2, 2).double(), torch.randn(2, 6).double()
    w = gatewise.Weights(*(p.detach() for p in lstm.parameters()))
    _, log_c = reach.reach(CELLS["lstm"], x, w, v)
    trace = lstm.trace(x)
    (trace.output[-1] * v).sum().backward()
    seen = trace.grad.c[0, 0].norm(dim=-1)
    assert torch.allclose(10**log_c, seen, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", reach.NETWORKS[:-1])
def test_the_curve_of_a_short_sequence_is_the_beginning_of_a_long_ones(name: str) -> None:
    net = Reader(DESIGNS[name], 2, 32, 1, seed=0)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(tasks.adding(200).draw(4, rng).x).double()
    v = torch.nn.functional.normalize(torch.from_numpy(rng.standard_normal((4, 32))))
    w = gatewise.Weights(*(p.detach().double() for p in net.layer.parameters()))
    whole, *parts = (
        reach.by_distance(reach.reach(CELLS[DESIGNS[name].cell], x[-T:], w, v)[0])
        for T in (200, 10, 100)
    )
    assert np.ptp(whole) > 0.2  # the identity holds all that it has
    for part in parts:
        assert np.abs(part - whole[: len(part)]).max() < 0.2


def test_a_dead_gradient_is_no_slope() -> None:
    assert reach.slope(np.full(50, -np.inf)) is None
    assert reach.ends(np.array([0.0, -np.inf]), reach.FLOAT64) == 1
