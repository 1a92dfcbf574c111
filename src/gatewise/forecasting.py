"""For who has a series and no model: a layer that learns from it, in seconds, what comes next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import gatewise
from gatewise.errors import ShapeError
from gatewise.lstm import LSTM, RNN

#: Steps that a piece of the series has in training, and pieces that are learned from.
STEPS, PIECES = 100, 64


class Forecaster(NamedTuple):
    """A layer that learned, and how well: mean squared errors, in variances of the columns."""

    layer: LSTM | RNN
    error: float  # on the series it learned from
    same_again: float  # of who always says that the next row is this one


@contextmanager
def _one_thread() -> Iterator[None]:
    """Layers so small have no work for two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def learn(
    series: NDArray[np.float32], cell: str = "lstm", hidden_size: int = 8, rounds: int = 200
) -> Forecaster:
    """Train a layer, with a linear head that is then put away, to say row t + 1 after rows 0 to t.

    It learns from columns of mean 0 and variance 1. What made them so goes into its weights and
    biases at the end, so that it reads the series as it is.

    Args:
        series: (T, I), T at least 2; its first 6,400 steps are learned from.
        cell: ``lstm`` or ``rnn``.
        hidden_size: H.
        rounds: training steps, each of all that is learned from.

    Returns:
        Forecaster: the same for the same series.

    Raises:
        ShapeError: T is 1, and nothing comes next.

    Example:
        >>> import numpy as np
        >>> wave = np.sin(np.arange(200, dtype=np.float32))[:, None]
        >>> found = learn(wave, hidden_size=4)
        >>> found.layer.input_size, found.error < found.same_again
        (1, True)
    """
    T, I = series.shape
    if T < 2:
        raise ShapeError(f"input: expected T = 2 steps or more, to learn what comes next, got {T}")
    mean, deviation = series.mean(0, dtype=np.float64), series.std(0, dtype=np.float64)
    deviation[deviation == 0] = 1  # a column that never changes
    scaled = torch.from_numpy(((series - mean) / deviation).astype(np.float32))
    length = min(T - 1, STEPS)
    count = min((T - 1) // length, PIECES)
    now, after = (
        part[: count * length].reshape(count, length, I).transpose(0, 1)
        for part in (scaled[:-1], scaled[1:])
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = gatewise.LSTM if cell == "lstm" else gatewise.RNN
        layer, head = kind(I, hidden_size, cell=cell), nn.Linear(hidden_size, I)
    updates = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    with _one_thread():
        for _ in range(rounds):
            loss = nn.functional.mse_loss(head(layer(now)[0]), after)
            updates.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(layer.parameters(), 1.0)
            updates.step()
    with torch.no_grad():
        error = nn.functional.mse_loss(head(layer(now)[0]), after).item()
        bias, weight = layer.get_parameter("bias_ih_l0"), layer.get_parameter("weight_ih_l0")
        weight.div_(torch.from_numpy(deviation))
        bias.sub_(weight.double() @ torch.from_numpy(mean))
    return Forecaster(layer.eval(), error, nn.functional.mse_loss(now, after).item())
