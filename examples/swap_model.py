"""Put gatewise under a model that exists, without touching its code.

    .venv/bin/python examples/swap_model.py

A tagger written for torch.nn.LSTM is swapped in place. Its answers stay the same, and the optimizer
that was made before goes on training the same parameters.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import gatewise


class Tagger(nn.Module):
    """Somebody's model: it knows nothing of gatewise."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.encoder = nn.LSTM(32, 64, num_layers=2, bidirectional=True)
        self.head = nn.Linear(128, 5)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.encoder(self.embedding(words))[0])


def milliseconds(call: Callable[[], object], times: int = 10) -> float:
    """The best of some runs."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1000


def main() -> None:
    """Before, swap, after."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # one sentence at a time: threads would only wait for each other
    model, words = Tagger(), torch.randint(100, (40, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.inference_mode():
        before = model(words)
        torchs = milliseconds(lambda: model(words))

    print(gatewise.swap(model))

    with torch.inference_mode():
        after = model(words)
        ours = milliseconds(lambda: model(words))
    print(f"largest difference in an answer: {(after - before).abs().max():.1e}")
    print(f"40 words, one sentence: {torchs:.2f} ms before, {ours:.2f} ms after")

    loss = nn.functional.cross_entropy(model(words).flatten(0, 1), torch.randint(5, (40,)))
    loss.backward()
    held = model.encoder.weight_hh_l0.detach().clone()
    optimizer.step()
    print(f"the old optimizer still trains it: {not torch.equal(held, model.encoder.weight_hh_l0)}")


if __name__ == "__main__":
    main()
