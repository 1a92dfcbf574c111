"""A character tagger that says after which letters a word ends.

An embedding, a recurrent layer, a linear one. Three kinds of equal hidden size: a plain RNN and an
LSTM, which read left to right and decide at each letter without seeing the next, and a Bi-LSTM,
which reads both ways.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import gatewise
from gatewise.corpus import ALPHABET, SENTENCE, Letters, letters_of

#: The kinds, with the name that people read.
KINDS = {"rnn": "plain RNN", "lstm": "LSTM", "bilstm": "Bi-LSTM"}


class Tagger(nn.Module):
    """Letters in, one logit a letter out: does a word end here?

    Args:
        kind: one of ``KINDS``.
        hidden_size, embedding_size: of each direction; of each letter.
        family: where LSTM and RNN come from, ``gatewise`` or ``torch.nn``; the parameters have the
            same names and shapes in both.

    Example:
        >>> model = Tagger("bilstm", hidden_size=8, embedding_size=4)
        >>> model(pack(letters_of("ilovechina")[0])).data.shape
        torch.Size([10])
    """

    def __init__(
        self, kind: str, hidden_size: int, embedding_size: int, family: Any = gatewise
    ) -> None:
        super().__init__()
        self.kind = kind
        both = kind == "bilstm"
        layer = family.RNN if kind == "rnn" else family.LSTM
        self.embedding = nn.Embedding(len(ALPHABET), embedding_size)
        self.rnn = layer(embedding_size, hidden_size, bidirectional=both)
        self.linear = nn.Linear(hidden_size * (1 + both), 1)

    def forward(self, letters: PackedSequence) -> PackedSequence:
        """Letters (N,), packed, to logits (N,), packed."""
        states, _ = self.rnn(self.embed(letters))
        return PackedSequence(self.linear(states.data).squeeze(-1), letters.batch_sizes)

    def embed(self, letters: PackedSequence) -> PackedSequence:
        """What the recurrent layer reads: (N, embedding_size), packed."""
        return PackedSequence(self.embedding(letters.data), letters.batch_sizes)

    def restore(self, text: str) -> str:
        """Put the spaces back into a text.

        Raises:
            ArgumentError: no letter in the text.
        """
        letters, shown = letters_of(text)
        with torch.inference_mode():
            ends = (self(pack(letters)).data > 0).tolist()
        return "".join(s + " " * end for s, end in zip(shown, ends, strict=True)).strip()

    @property
    def size(self) -> int:
        """How many parameters it has."""
        return sum(p.numel() for p in self.parameters())


def pack(letters: NDArray[np.int64]) -> PackedSequence:
    """One sequence (T,) as a PackedSequence."""
    return PackedSequence(torch.from_numpy(letters), torch.ones(len(letters), dtype=torch.int64))


@dataclass(frozen=True)
class Batch:
    """Pieces of text, packed.

    Args:
        letters: (N,) packed: the first letter of every piece, then the second, ...
        ends: (N,) float32, 1 where a word ends.
        last: (N,) True at a piece's last letter, where a word ends whatever the text.

    Example:
        >>> batch = Batch.of(gatewise.corpus.read("a rose"), np.array([0, 1]), np.array([1, 4]))
        >>> batch.letters.batch_sizes.tolist(), batch.ends.tolist()
        ([2, 1, 1, 1], [0.0, 1.0, 0.0, 0.0, 1.0])
    """

    letters: PackedSequence
    ends: Tensor
    last: Tensor

    @staticmethod
    def of(text: Letters, starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> Batch:
        """The B pieces of a text that begin at ``starts`` (B,), of ``lengths`` (B,); no padding."""
        order = np.argsort(-lengths, kind="stable")
        starts, lengths = starts[order], lengths[order]
        steps = np.arange(lengths[0])[:, None]
        there = steps < lengths  # (T, B); row by row it is the order of a PackedSequence
        at = (starts + steps)[there]
        return Batch(
            PackedSequence(torch.from_numpy(text.letters[at]), torch.from_numpy(there.sum(1))),
            torch.from_numpy(text.ends[at]).float(),
            torch.from_numpy((steps == lengths - 1)[there]),
        )

    def __len__(self) -> int:
        return len(self.ends)


@dataclass(frozen=True)
class Score:
    """How well word ends are found; a piece's last letter, where one always ends, does not count.

    Example:
        >>> Score(found=8, false=2, missed=0).f1
        0.888...
    """

    found: int = 0
    false: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        """The share of what was called an end that is one."""
        return self.found / max(1, self.found + self.false)

    @property
    def recall(self) -> float:
        """The share of the ends that were found."""
        return self.found / max(1, self.found + self.missed)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        return 2 * self.found / max(1, 2 * self.found + self.false + self.missed)


def score(model: Tagger, text: Letters, batch: int = 256) -> Score:
    """Tag every sentence of a text by itself and compare."""
    starts, lengths = text.pieces(text.stops >= SENTENCE)
    alike = np.argsort(lengths)
    counts = np.zeros(3, int)
    with torch.inference_mode():
        for group in np.array_split(alike, max(1, round(len(alike) / batch))):
            part = Batch.of(text, starts[group], lengths[group])
            said = (model(part.letters).data > 0)[~part.last]
            true = (part.ends > 0)[~part.last]
            counts += [int(s.sum()) for s in (said & true, said & ~true, ~said & true)]
    return Score(*counts.tolist())
