"""Every cell state of a batch, with gradients: what torch.nn.LSTM computes and does not show.

    .venv/bin/python examples/cell_states.py

Three sequences of different lengths, packed; all gates and states of all steps; a loss on the cell
state itself.
"""

from __future__ import annotations

import torch
from torch.nn.utils.rnn import pack_sequence

import gatewise


def main() -> None:
    """Trace a packed batch, then train on what was traced."""
    torch.manual_seed(0)
    lstm = gatewise.LSTM(input_size=4, hidden_size=6, bidirectional=True)
    batch = pack_sequence([torch.randn(n, 4) for n in (3, 5, 2)], enforce_sorted=False)

    trace = lstm.trace(batch)
    print(trace)
    print("cell states (L, D, T, B, H):", tuple(trace.c.shape))
    print("of one lane (T, B, H):      ", tuple(trace["l0.reverse.c"].shape))
    print("lengths:                    ", trace.lengths.tolist())

    shut, opened = trace.saturation("f")
    print(f"forget gates: below 0.1 {shut.mean():.0%} of the time, above 0.9 {opened.mean():.0%}")
    print(f"longest memory of a unit: {trace.memory_length().max():.1f} steps")

    mean = trace.c.nanmean()  # padding is NaN
    loss = (trace.c - 0.5).square().nanmean()  # any value of any step can be in a loss
    loss.backward()
    reach = trace.gradient_reach("c")[0, 0, :, 1]
    print(f"mean cell state {mean.item():.3f}, loss {loss.item():.3f}")
    print("gradient at each step of sequence 1:", " ".join(f"{v:.4f}" for v in reach))
    print(f"and at the weights: {lstm.weight_ih_l0.grad.norm():.4f}")


if __name__ == "__main__":
    main()
