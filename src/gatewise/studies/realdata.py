"""Real sequences that ordinary packages ship, as tasks; nothing is downloaded at run time.

* ``text``: English without its spaces (``gatewise.corpus``): where does a word end?
* ``vowels``: nine male speakers of Japanese say "ae"; 12 cepstrum coefficients of a linear
  prediction analysis, 7 to 29 frames: who speaks? 270 utterances to train on, 370 held out, as
  published. Source: Kudo, Toyama and Shimbo 1999, "Multidimensional curve classification using
  passing-through regions", Pattern Recognition Letters 20; UCI archive, "Japanese Vowels"; the
  files are those that ``aeon`` (BSD) ships.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import numpy as np

from gatewise import corpus
from gatewise.errors import ArgumentError
from gatewise.studies.tasks import Batch, Floats, Task, missed, share_wrong

#: The classical result beside ours: 94.1 % of the held-out utterances right (Kudo et al. 1999).
VOWELS_PUBLISHED = 1 - 0.941
#: How many utterances are held out, as published.
VOWELS_HELD_OUT = 370


def text(T: int = 60) -> Task:
    """Pieces of T letters from anywhere in the text: does a word end after this letter?

    The error is 1 - F1 of the word ends; who marks every letter has 1 - 2p/(1+p), p the share of
    letters that end a word.

    Raises:
        ArgumentError: the package that carries the text is not installed.
    """
    parts = _corpus()
    p = float(parts.held_out.ends.mean())

    def draw_from(letters: corpus.Letters, n: int, rng: np.random.Generator) -> Batch:
        places = np.arange(T)[:, None] + rng.integers(0, len(letters) - T, n)
        x = np.eye(len(corpus.ALPHABET), dtype=np.float32)[letters.letters[places]]
        return Batch(x, letters.ends[places].astype(np.int64))

    return Task(
        "text", T, len(corpus.ALPHABET), 2, "each", lambda n, rng: draw_from(parts.train, n, rng),
        missed, 0.0, 1 - 2 * p / (1 + p), "1 - F1 of the word ends",
        held_out=lambda n, rng: draw_from(parts.held_out, n, rng),
    )  # fmt: skip


def vowels() -> Task:
    """Which of nine speakers says this? 12 numbers a frame, 7 to 29 frames.

    Raises:
        ArgumentError: the package that carries the recordings is not installed.
    """
    (train_x, train_y), (test_x, test_y) = _utterances("TRAIN"), _utterances("TEST")
    every = np.concatenate(train_x)
    centre, spread = every.mean(0), every.std(0)

    def batch_of(xs: list[Floats], ys: list[int]) -> Batch:
        lengths = np.array([len(x) for x in xs])
        x = np.zeros((lengths.max(), len(xs), 12), np.float32)
        for k, series in enumerate(xs):
            x[: len(series), k] = (series - centre) / spread
        return Batch(x, np.array(ys), lengths)

    def draw(n: int, rng: np.random.Generator) -> Batch:
        chosen = rng.integers(0, len(train_x), n)
        return batch_of([train_x[k] for k in chosen], [train_y[k] for k in chosen])

    return Task(
        "vowels", 29, 12, 9, "class", draw, share_wrong, 0.0,
        1 - max(test_y.count(k) for k in range(9)) / len(test_y), "speakers wrong",
        held_out=lambda n, rng: batch_of(test_x, test_y),
    )  # fmt: skip


def has_vowels() -> bool:
    """Whether the recordings are on this machine."""
    return _vowel_file("TRAIN") is not None


@cache
def _corpus() -> corpus.Corpus:
    return corpus.load()


def _vowel_file(part: str) -> Path | None:
    try:
        listed = files("aeon") or []
    except PackageNotFoundError:
        return None
    return next(
        (Path(str(f.locate())) for f in listed if f.name == f"JapaneseVowels_{part}.ts"), None
    )


@cache
def _utterances(part: str) -> tuple[list[Floats], list[int]]:
    """Each utterance (frames, 12) and its speaker 0..8. The file is read; aeon is not imported."""
    path = _vowel_file(part)
    if path is None:
        raise ArgumentError(
            "the recordings of vowels: aeon is not installed; pip install 'gatewise[studies]'"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    xs, ys = [], []
    for row in lines[[text.lower() for text in lines].index("@data") + 1 :]:
        *channels, speaker = row.split(":")
        xs.append(np.array([c.split(",") for c in channels], np.float32).T)
        ys.append(int(speaker) - 1)
    return xs, ys
