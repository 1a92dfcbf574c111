"""A sensor that answers at every step: a layer fed one step at a time.

    .venv/bin/python examples/streaming.py

Stream keeps the state and gives, step for step, the bits that the layer gives for the whole
sequence.
"""

from __future__ import annotations

import time

import torch

import gatewise


def main() -> None:
    """Whole, then step by step."""
    torch.manual_seed(0)
    lstm = gatewise.LSTM(input_size=8, hidden_size=32, num_layers=2)
    signal = torch.randn(200, 1, 8)
    with torch.inference_mode():
        whole, _ = lstm(signal)

    stream = gatewise.Stream(lstm)
    start = time.perf_counter()
    answers = [stream.step(now) for now in signal]
    each = (time.perf_counter() - start) / len(signal)
    print(f"same bits as the whole sequence: {torch.equal(torch.stack(answers), whole)}")
    print(f"a step takes {each * 1e6:.0f} microseconds")

    stream.reset()  # the next step begins a new sequence
    again = stream.step(signal[0])
    print(f"after reset, the first answer again: {torch.equal(again, answers[0])}")
    h, c = stream.state  # copies, (L, B, P) and (L, B, H): set them to go on from here later
    print(f"state: h {tuple(h.shape)}, c {tuple(c.shape)}")


if __name__ == "__main__":
    main()
