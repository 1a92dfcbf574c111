"""Train the memory cell of docs/learn/structure.md: one LSTM unit that keeps a number.

    .venv/bin/python examples/memory_cell.py [--seed 4] [--rounds 1000]

At each step come a number, a flag "store" and a flag "read". The unit learns to say the number that
came with the last "store" whenever "read" is up, and 0 otherwise. Prints the weights it found.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import gatewise


def batch(T: int = 16, B: int = 64) -> tuple[Tensor, Tensor]:
    """Random sequences (T, B, 3) and what should be said (T, B, 1)."""
    number = torch.rand(T, B) * 1.4 - 0.7
    store = (torch.rand(T, B) < 0.2).to(number)
    store[0] = 1
    read = (torch.rand(T, B) < 0.5).to(number)
    held = [number[0]]
    for t in range(1, T):
        held.append(torch.where(store[t] > 0, number[t], held[-1]))
    return torch.stack([number, store, read], -1), (torch.stack(held) * read).unsqueeze(-1)


def train(seed: int, rounds: int) -> tuple[gatewise.LSTM, float]:
    """A unit, and its mean squared error on sequences it has not seen."""
    torch.manual_seed(seed)
    lstm = gatewise.LSTM(input_size=3, hidden_size=1, dtype=torch.float64)
    optimizer = torch.optim.Adam(lstm.parameters(), lr=0.05)
    for _ in range(rounds):
        x, said = batch()
        loss = torch.nn.functional.mse_loss(lstm(x)[0], said)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, said = batch(B=256)
    return lstm, torch.nn.functional.mse_loss(lstm(x)[0], said).item()


def main() -> None:
    """Train, and print the weights gate by gate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1000)
    given = parser.parse_args()
    torch.set_default_dtype(torch.float64)
    lstm, error = train(given.seed, given.rounds)
    print(f"mean squared error {error:.4f}; always saying 0 gives {7**2 / 300 / 2:.4f}")
    bias = lstm.bias_ih_l0 + lstm.bias_hh_l0
    print("           number  store   read      h   bias")
    for k, gate in enumerate(("input", "forget", "candidate", "output")):
        row = [*lstm.weight_ih_l0[k], *lstm.weight_hh_l0[k], bias[k]]
        print(f"{gate:9} " + " ".join(f"{weight.item():6.1f}" for weight in row))


if __name__ == "__main__":
    main()
