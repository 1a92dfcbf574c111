"""Look inside a Bi-LSTM that puts the spaces back, beside a plain RNN: writes one HTML page.

    .venv/bin/python examples/explorer.py [ilovechina] [--out page.html]

A tiny pair of taggers learns from a dozen sentences, for some seconds, whether a word ends after
each letter; the explorer then shows both on the letters given.
"""

from __future__ import annotations

import argparse

import torch
from torch import nn
from torch.nn import functional as F

import gatewise

SENTENCES = """
i love the sea and the sea loves me
we love tea in the morning and they love china tea
china is far and the way is long
the cat sat on the mat and i sat in the sun
you and i walk in the rain on the long way home
she loves the rain and he loves the sun
the old man has a long story and i love it
in the morning the birds sing in the trees
they came from china with tea and silk
i live in the old town by the sea
a man with a cat has a home
we sing and the birds in the trees sing with me
""".strip().splitlines()
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def encode(letters: str) -> torch.Tensor:
    """(T, 1, 26) one-hot letters."""
    return F.one_hot(torch.tensor([LETTERS.index(a) for a in letters]), 26).float()[:, None]


def ends(sentence: str) -> torch.Tensor:
    """(T,) 1 where a word ends."""
    return torch.tensor([float(n == len(w) - 1) for w in sentence.split() for n in range(len(w))])


def train(layer: nn.Module, width: int, rounds: int = 25) -> nn.Linear:
    """Teach a layer with a linear head where words end; returns the head."""
    head = nn.Linear(width, 1)
    optimizer = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.02)
    for _ in range(rounds):
        for sentence in SENTENCES:
            logits = head(layer(encode(sentence.replace(" ", "")))[0])[:, 0, 0]
            loss = F.binary_cross_entropy_with_logits(logits, ends(sentence))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


def main() -> None:
    """Train, trace, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("letters", nargs="?", default="ilovechina")
    parser.add_argument("--out", default="explorer.html")
    given = parser.parse_args()
    torch.manual_seed(0)
    lstm = gatewise.LSTM(26, 16, bidirectional=True)
    rnn = gatewise.RNN(26, 16)
    traces = []
    for layer, width in ((lstm, 32), (rnn, 16)):
        head = train(layer, width)
        trace = layer.trace(encode(given.letters))
        logits = head(trace.output)[:, 0, 0]
        logits[-1].backward()  # the last answer: how far back does its gradient reach?
        traces.append(trace)
        words = "".join(
            letter + " " * (logit > 0) for letter, logit in zip(given.letters, logits, strict=True)
        )
        print(f"{layer.__class__.__name__}: {words.strip()}")
    traces[0].explore(given.out, tokens=given.letters, beside=traces[1])
    print(f"wrote {given.out}")


if __name__ == "__main__":
    main()
