"""What a layer learns from a series, and that it reads the series as it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gatewise.errors import ShapeError
from gatewise.forecasting import STEPS, learn


def wave(T: int) -> np.ndarray:
    t = np.arange(T)
    return np.stack([np.sin(t / 3), np.cos(t / 3), np.zeros(T)], 1).astype("f4")


@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_it_learns_what_comes_next(cell: str) -> None:
    found = learn(wave(120), cell, rounds=100)
    assert found.layer.cell.name == cell
    assert found.same_again == pytest.approx(2 / 3 * (1 - np.cos(1 / 3)) * 2, rel=0.05)
    assert found.error < found.same_again / 3
    again = learn(wave(120), cell, rounds=100)
    assert torch.equal(found.layer.weight_hh_l0, again.layer.weight_hh_l0)


def test_it_reads_the_series_as_it_is() -> None:
    """Of a series in other units the same is learned, and the layer says the same of it."""
    plain, moved = wave(90), wave(90) * [3, 20, 1] + [1, -500, 7]
    layers = [learn(x.astype("f4"), rounds=20).layer for x in (plain, moved)]
    outputs = [
        layer(torch.from_numpy(x.astype("f4"))[:, None])[0]
        for layer, x in zip(layers, (plain, moved), strict=True)
    ]
    assert outputs[0].abs().max() > 0.1
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-3, rtol=0)


@pytest.mark.parametrize("T", [2, 3, STEPS, STEPS + 1, STEPS + 2, 2 * STEPS + 1])
def test_any_length_will_do(T: int) -> None:
    found = learn(wave(T), rounds=2)
    assert np.isfinite(found.error)
    assert found.layer.input_size == 3


def test_of_one_step_nothing_comes_next() -> None:
    with pytest.raises(ShapeError, match=r"input: expected T = 2 steps or more, .* got 1"):
        learn(wave(1))


def test_the_random_numbers_of_others_stay() -> None:
    torch.manual_seed(5)
    want = torch.rand(1)
    torch.manual_seed(5)
    learn(wave(5), rounds=1)
    assert torch.equal(torch.rand(1), want)
