"""The classical tests of memory, as seeded generators: numpy in, numpy out, nothing stored.

    T steps   n sequences   I inputs   O outputs

Each task is drawn anew for every batch, so nothing can be learned by heart. ``tests/test_tasks.py``
compares what is drawn with the definition, written out by brute force.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
Answers = NDArray[np.floating[Any]]


#: The class that a loss does not count (torch's ``ignore_index``).
UNASKED = -100


@dataclass(frozen=True)
class Batch:
    """n sequences with what is wanted of them.

    Args:
        x: (T, n, I) the input; after a sequence's own length, zeros that nobody reads.
        y: (n,) float32 for a number, (n,) int64 for one class, (T, n) int64 for a class each step,
            ``UNASKED`` where nothing is asked.
        lengths: (n,) each sequence's own length; None where all are T long.
        counts: (T, n) the steps that are judged; None where the read-out is the last step.
        legal: (T, n, O) every answer that is right, where more than one is; else None.
    """

    x: Floats
    y: Floats | Ints
    lengths: Ints | None = None
    counts: Bools | None = None
    legal: Bools | None = None


@dataclass(frozen=True)
class Task:
    """One test of memory.

    Args:
        name: as in the results.
        steps: T, the nominal length, or the gap that has to be bridged.
        inputs, outputs: I and O.
        wanted: a number or a class at the end, or a class at each step.
        draw: (n, generator) -> Batch.
        judge: (answers (n, O) or (T, n, O), batch) -> the error; a NaN is a wrong answer.
        solved: the task counts as solved when the held-out error is below this.
        baseline: the error of the best answer that remembers nothing.
        error: what the error is, in words.
        held_out: as ``draw``, for what is never trained on; None where every draw is new.
    """

    name: str
    steps: int
    inputs: int
    outputs: int
    wanted: Literal["number", "class", "each"]
    draw: Callable[[int, np.random.Generator], Batch]
    judge: Callable[[Answers, Batch], float]
    solved: float
    baseline: float
    error: str
    held_out: Callable[[int, np.random.Generator], Batch] | None = None


def squared_error(answers: Answers, batch: Batch) -> float:
    """Mean over the sequences."""
    return float(np.mean((answers[..., 0] - batch.y) ** 2))


def share_wrong(answers: Answers, batch: Batch) -> float:
    """The share of the judged answers whose highest is not what is wanted."""
    wrong = (answers.argmax(-1) != batch.y) | np.isnan(answers).any(-1)
    return float(np.mean(wrong if batch.counts is None else wrong[batch.counts]))


def strings_wrong(answers: Answers, batch: Batch) -> float:
    """The share of strings in which an illegal sign is once held as likely as a legal one."""
    assert batch.legal is not None
    assert batch.counts is not None
    least = np.where(batch.legal, answers, np.inf).min(-1)
    most = np.where(batch.legal, -np.inf, answers).max(-1)
    right = least > most  # so that a NaN is wrong
    return float(np.mean((~right & batch.counts).any(0)))


def missed(answers: Answers, batch: Batch) -> float:
    """1 - F1 of class 1 over the judged steps.

    Example:
        >>> y = np.array([[1], [0], [1]])
        >>> said = np.array([[[0, 1]], [[1, 0]], [[1, 0]]])  # one of two found
        >>> round(missed(said, Batch(np.zeros((3, 1, 1), np.float32), y)), 4)
        0.3333
    """
    said = (answers[..., 1] > answers[..., 0]) & ~np.isnan(answers).any(-1)
    asked = np.asarray(batch.y != UNASKED) if batch.counts is None else batch.counts
    true, wanted = said & (batch.y == 1) & asked, (batch.y == 1) & asked
    return 1 - 2 * float(true.sum()) / max(1.0, float((said & asked).sum() + wanted.sum()))


def adding(T: int) -> Task:
    """Add the two marked numbers of a sequence of T pairs (number in [0, 1), mark).

    The two marks stand anywhere, as in Bai et al. 2018 (TCN repository,
    ``adding_problem/utils.py``). Who always answers the mean, 1, has a squared error of 2 * 1/12 =
    1/6.

    Source: Hochreiter and Schmidhuber 1997, experiment 4.

    Example:
        >>> batch = adding(50).draw(3, np.random.default_rng(0))
        >>> batch.x.shape, batch.y.shape
        ((50, 3, 2), (3,))
    """

    def draw(n: int, rng: np.random.Generator) -> Batch:
        x = np.zeros((T, n, 2), np.float32)
        x[..., 0] = rng.random((T, n), np.float32)
        first = rng.integers(0, T, n)
        second = (first + rng.integers(1, T, n)) % T  # any other step, all equally likely
        each = np.arange(n)
        x[first, each, 1] = x[second, each, 1] = 1
        return Batch(x, x[first, each, 0] + x[second, each, 0])

    return Task("adding", T, 2, 1, "number", draw, squared_error, 0.01, 1 / 6, "mean squared error")


def copy_memory(T: int, symbols: int = 10, alphabet: int = 8) -> Task:
    """Say again, in order, the symbols seen before T blank steps.

    Input: ``symbols`` of 1..alphabet, T-1 blanks (0), the sign to begin (alphabet + 1), blanks.
    Wanted: blanks, and in the last steps the symbols. The error counts the last steps only.

    Source: Hochreiter and Schmidhuber 1997, section 5; in this form Arjovsky et al. 2016, section
        4.1.

    Example:
        >>> batch = copy_memory(20).draw(2, np.random.default_rng(0))
        >>> batch.x.shape, bool((batch.y[-10:] == batch.x[:10].argmax(-1)).all())
        ((40, 2, 10), True)
    """

    def draw(n: int, rng: np.random.Generator) -> Batch:
        steps = T + 2 * symbols
        said = rng.integers(1, alphabet + 1, (symbols, n))
        signs = np.zeros((steps, n), np.int64)
        signs[:symbols] = said
        signs[symbols + T - 1] = alphabet + 1
        y = np.zeros((steps, n), np.int64)
        y[-symbols:] = said
        counts = np.zeros((steps, n), np.bool_)
        counts[-symbols:] = True
        return Batch(_one_hot(signs, alphabet + 2), y, counts=counts)

    blind = 1 - 1 / alphabet
    return Task(
        "copy_memory", T, alphabet + 2, alphabet + 1, "each", draw, share_wrong, 0.01, blind,
        "symbols wrong",
    )  # fmt: skip


#: The signs of the temporal order task: four that mean nothing, the two that count, begin and end.
ORDER_SIGNS = "abcdXYEB"


def temporal_order(T: int) -> Task:
    """Which of X and Y came first, which second, among many signs that mean nothing: four classes.

    Lengths T to 1.1 T; the first relevant sign at T/10 to T/5, the second at T/2 to 6T/10.

    Source: Hochreiter and Schmidhuber 1997, experiment 6a (T = 100).

    Example:
        >>> batch = temporal_order(100).draw(5, np.random.default_rng(0))
        >>> batch.x.shape[1:], sorted(set(batch.y.tolist())) <= [0, 1, 2, 3]
        ((5, 8), True)
    """

    def draw(n: int, rng: np.random.Generator) -> Batch:
        lengths = rng.integers(T, T + T // 10 + 1, n)
        signs = rng.integers(0, 4, (int(lengths.max()), n))
        each = np.arange(n)
        first, second = rng.integers(0, 2, n), rng.integers(0, 2, n)
        X, E, B = (ORDER_SIGNS.index(sign) for sign in "XEB")  # Y follows X
        signs[rng.integers(T // 10, T // 5 + 1, n), each] = X + first
        signs[rng.integers(T // 2, 6 * T // 10 + 1, n), each] = X + second
        signs[0], signs[lengths - 1, each] = E, B
        x = _one_hot(signs, len(ORDER_SIGNS))
        x[np.arange(len(x))[:, None] >= lengths] = 0
        return Batch(x, 2 * first + second, lengths)

    return Task("temporal_order", T, 8, 4, "class", draw, share_wrong, 0.01, 0.75, "classes wrong")


#: The Reber grammar: state -> the signs that may come and the state each leads to (None: the end).
REBER: tuple[dict[str, int | None], ...] = (
    {"B": 1},
    {"T": 2, "P": 3},
    {"S": 2, "X": 4},
    {"T": 3, "V": 5},
    {"X": 3, "S": 6},
    {"P": 4, "V": 6},
    {"E": None},
)
REBER_SIGNS = "BTPSXVE"


def reber_string(rng: np.random.Generator) -> tuple[str, list[str]]:
    """One string of the grammar, and the signs that were legal at each place.

    Example:
        >>> text, legal = reber_string(np.random.default_rng(0))
        >>> text[0], text[-1], legal[:2]
        ('B', 'E', ['B', 'TP'])
    """
    text = ""
    legal: list[str] = []
    state: int | None = 0
    while state is not None:
        ways = REBER[state]
        sign = list(ways)[rng.integers(len(ways))]
        text, state = text + sign, ways[sign]
        legal.append("".join(ways))
    return text, legal


def embedded_reber_string(rng: np.random.Generator) -> tuple[str, list[str]]:
    """B, T or P, a string of the grammar, the same T or P again, E; and what was legal."""
    arm = "TP"[rng.integers(2)]
    text, legal = reber_string(rng)
    return f"B{arm}{text}{arm}E", ["B", "TP", *legal, arm, "E"]


def embedded_reber() -> Task:
    """Predict the next sign of an embedded Reber string; the last but one needs the second.

    A string is right when, at every step, each legal next sign is held more likely than each
    illegal one. Who remembers everything but the arm gets half the strings right.

    Source: Hochreiter and Schmidhuber 1997, experiment 1; Fahlman 1991; Cleeremans et al. 1989.

    Example:
        >>> embedded_reber().draw(4, np.random.default_rng(0)).x.shape[1:]
        (4, 7)
    """

    def draw(n: int, rng: np.random.Generator) -> Batch:
        strings = [embedded_reber_string(rng) for _ in range(n)]
        lengths = np.array([len(text) - 1 for text, _ in strings])
        x = np.zeros((lengths.max(), n, 7), np.float32)
        y = np.full(x.shape[:2], UNASKED)
        legal = np.zeros(x.shape, np.bool_)
        for k, (text, ways) in enumerate(strings):
            place = [REBER_SIGNS.index(sign) for sign in text]
            steps = np.arange(len(text) - 1)
            x[steps, k, place[:-1]] = 1
            y[: len(steps), k] = place[1:]
            for t, signs in enumerate(ways[1:]):
                legal[t, k, [REBER_SIGNS.index(sign) for sign in signs]] = True
        return Batch(x, y, lengths, np.arange(len(x))[:, None] < lengths, legal)

    return Task("embedded_reber", 9, 7, 7, "each", draw, strings_wrong, 0.01, 0.5, "strings wrong")


def shifted(T: int, shift: int, alphabet: int = 4) -> Task:
    """At each step, the sign ``shift`` steps before it (memory), or after it if negative.

    Only who has seen the right-hand side can do better than 1 - 1/alphabet when ``shift`` < 0.

    Example:
        >>> batch = shifted(12, -3).draw(2, np.random.default_rng(0))
        >>> bool((batch.y[:-3] == batch.x[3:].argmax(-1)).all())
        True
    """

    def draw(n: int, rng: np.random.Generator) -> Batch:
        signs = rng.integers(0, alphabet, (T, n))
        counts = np.zeros((T, n), np.bool_)
        counts[max(shift, 0) : T + min(shift, 0)] = True
        y = np.where(counts, np.roll(signs, shift, axis=0), UNASKED)
        return Batch(_one_hot(signs, alphabet), y, counts=counts)

    name = f"{abs(shift)} steps {'back' if shift > 0 else 'ahead'}"
    blind = 1 - 1 / alphabet
    return Task(name, T, alphabet, alphabet, "each", draw, share_wrong, 0.01, blind, "signs wrong")


def named(name: str, T: int) -> Task:
    """The task of this name and length (the embedded Reber strings have lengths of their own).

    Copy memory is that of five symbols out of four: ten out of eight, as published, takes longer
    than a study has.

    Example:
        >>> named("adding", 100).steps, named("embedded_reber", 0).outputs
        (100, 7)
    """
    if name == "embedded_reber":
        return embedded_reber()
    if name == "copy_memory":
        return copy_memory(T, symbols=5, alphabet=4)
    return {"adding": adding, "temporal_order": temporal_order}[name](T)


def _one_hot(signs: Ints, size: int) -> Floats:
    return np.eye(size, dtype=np.float32)[signs]
