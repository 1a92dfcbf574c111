"""The generators against their definitions, written out by brute force."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gatewise import corpus
from gatewise.studies import realdata, tasks
from gatewise.studies.tasks import REBER, REBER_SIGNS, UNASKED, Batch, Task

EVERY: list[Callable[[], Task]] = [
    lambda: tasks.adding(30),
    lambda: tasks.copy_memory(12),
    lambda: tasks.temporal_order(40),
    tasks.embedded_reber,
    lambda: tasks.shifted(20, 5),
    lambda: tasks.shifted(20, -5),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def same(a: Batch, b: Batch) -> bool:
    return all(
        (left is None and right is None) or np.array_equal(left, right)
        for left, right in zip(vars(a).values(), vars(b).values(), strict=True)
    )


@pytest.mark.parametrize("make", EVERY)
def test_seed_decides_everything(make: Callable[[], Task]) -> None:
    task = make()
    assert same(task.draw(7, rng(3)), task.draw(7, rng(3)))
    assert not same(task.draw(7, rng(3)), task.draw(7, rng(4)))


@pytest.mark.parametrize("make", EVERY)
def test_sizes_and_types_fit_the_task(make: Callable[[], Task]) -> None:
    task = make()
    batch = task.draw(5, rng())
    assert batch.x.dtype == np.float32
    assert batch.x.shape[1:] == (5, task.inputs)
    assert batch.y.shape == (batch.x.shape[:2] if task.wanted == "each" else (5,))
    if batch.lengths is not None:
        assert len(batch.x) == batch.lengths.max()
        after = np.arange(len(batch.x))[:, None] >= batch.lengths
        assert not batch.x[after].any()
    asked = batch.y[batch.counts] if batch.counts is not None else batch.y
    if task.wanted != "number":
        assert asked.min() >= 0
        assert asked.max() < task.outputs


def test_adding_is_the_sum_of_the_two_marked_numbers() -> None:
    batch = tasks.adding(25).draw(200, rng())
    for k in range(200):
        numbers, marks = batch.x[:, k, 0], batch.x[:, k, 1]
        assert sorted(set(marks.tolist())) == [0.0, 1.0]
        marked = [float(v) for v, m in zip(numbers, marks, strict=True) if m == 1]
        assert len(marked) == 2
        assert batch.y[k] == np.float32(marked[0]) + np.float32(marked[1])
    assert batch.x[..., 0].min() >= 0
    assert batch.x[..., 0].max() < 1


def test_adding_marks_every_pair_of_steps_equally_often() -> None:
    marks = tasks.adding(4).draw(60_000, rng()).x[..., 1]
    pairs = {tuple(np.flatnonzero(column)) for column in marks.T}
    assert pairs == {(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)}
    counts = [np.mean((marks[a] == 1) & (marks[b] == 1)) for a, b in pairs]
    assert np.allclose(counts, 1 / 6, atol=0.01)


def test_adding_baseline_is_the_variance_of_the_sum() -> None:
    y = tasks.adding(10).draw(200_000, rng()).y
    assert abs(float(np.mean((y - 1) ** 2)) - tasks.adding(10).baseline) < 2e-3


def test_copy_memory_asks_for_what_was_said_and_for_blanks_before() -> None:
    T = 15
    batch = tasks.copy_memory(T).draw(40, rng())
    signs = batch.x.argmax(-1)
    assert len(signs) == T + 20
    assert np.array_equal(batch.x.sum(-1), np.ones_like(signs, np.float32))
    for k in range(40):
        said = signs[:10, k].tolist()
        assert all(1 <= s <= 8 for s in said)
        assert signs[10:, k].tolist() == [0] * (T - 1) + [9] + [0] * 10
        assert batch.y[:, k].tolist() == [0] * (T + 10) + said
        assert batch.counts is not None
        assert batch.counts[:, k].tolist() == [False] * (T + 10) + [True] * 10


def test_temporal_order_names_the_first_and_the_second_sign() -> None:
    T = 60
    batch = tasks.temporal_order(T).draw(300, rng())
    assert batch.lengths is not None
    assert set(batch.lengths.tolist()) == set(range(60, 67))
    for k, length in enumerate(batch.lengths):
        text = "".join(tasks.ORDER_SIGNS[s] for s in batch.x[:length, k].argmax(-1))
        assert text[0] == "E"
        assert text[-1] == "B"
        assert set(text[1:-1]) <= set("abcdXY")
        where = [t for t, sign in enumerate(text) if sign in "XY"]
        assert len(where) == 2
        assert T // 10 <= where[0] <= T // 5
        assert T // 2 <= where[1] <= 6 * T // 10
        assert ["XX", "XY", "YX", "YY"][batch.y[k]] == text[where[0]] + text[where[1]]
    assert set(batch.y.tolist()) == {0, 1, 2, 3}


def every_string(longest: int) -> dict[str, list[str]]:
    """All strings of the grammar up to a length, found by walking every path."""
    found: dict[str, list[str]] = {}
    paths: list[tuple[str, list[str], int]] = [("", [], 0)]
    while paths:
        text, legal, state = paths.pop()
        for sign, after in REBER[state].items():
            longer = (text + sign, [*legal, "".join(REBER[state])])
            if after is None:
                found[longer[0]] = longer[1]
            elif len(longer[0]) < longest:
                paths.append((*longer, after))
    return found


def test_reber_grammar_holds_the_strings_of_the_paper() -> None:
    language = every_string(9)
    # The grammar's shortest strings, and two that it forbids.
    assert {"BTXSE", "BPVVE", "BTSXSE", "BTXXVVE", "BPTVVE", "BPVPSE"} <= set(language)
    assert "BTVVE" not in language
    assert "BTXS" not in language


def test_every_drawn_string_is_of_the_grammar_with_its_legal_signs() -> None:
    language, source = every_string(14), rng()
    seen = 0
    for _ in range(300):
        text, legal = tasks.embedded_reber_string(source)
        assert text[0] == "B"
        assert text[1] == text[-2]
        assert text[1] in "TP"
        assert text[-1] == "E"
        inner = text[2:-2]
        if inner in language:
            seen += 1
            assert [set(s) for s in legal[2:-2]] == [set(s) for s in language[inner]]
    assert seen > 250


def test_reber_batch_asks_for_the_next_sign() -> None:
    batch = tasks.embedded_reber().draw(50, rng(1))
    source = rng(1)
    assert batch.lengths is not None
    assert batch.legal is not None
    assert batch.counts is not None
    for k in range(50):
        text, legal = tasks.embedded_reber_string(source)
        n = len(text) - 1
        assert batch.lengths[k] == n
        assert "".join(REBER_SIGNS[s] for s in batch.x[:n, k].argmax(-1)) == text[:-1]
        assert "".join(REBER_SIGNS[s] for s in batch.y[:n, k]) == text[1:]
        assert set(batch.y[n:, k].tolist()) <= {UNASKED}
        for t in range(n):
            asked = {REBER_SIGNS[s] for s in np.flatnonzero(batch.legal[t, k])}
            assert asked == set(legal[t + 1])


@pytest.mark.parametrize("shift", [1, 4, -1, -4])
def test_shifted_asks_for_a_sign_that_is_there(shift: int) -> None:
    batch = tasks.shifted(10, shift).draw(20, rng())
    signs = batch.x.argmax(-1)
    for t in range(10):
        for k in range(20):
            there = 0 <= t - shift < 10
            assert batch.y[t, k] == (signs[t - shift, k] if there else UNASKED)
            assert batch.counts is not None
            assert batch.counts[t, k] == there


def answers(task: Task, batch: Batch) -> np.ndarray:
    """The perfect answer to a batch."""
    if task.wanted == "number":
        return np.asarray(batch.y)[:, None]
    if batch.legal is not None:
        return batch.legal.astype(float)
    return np.eye(task.outputs)[np.where(batch.y == UNASKED, 0, batch.y)]


@pytest.mark.parametrize("make", EVERY)
def test_error_is_zero_for_the_perfect_answer_and_grows_with_one_wrong(
    make: Callable[[], Task],
) -> None:
    task = make()
    batch = task.draw(10, rng())
    perfect = answers(task, batch)
    assert task.judge(perfect, batch) == 0
    wrong = perfect.copy()
    if task.wanted == "each":
        t = int(np.flatnonzero(batch.counts[:, 0])[0])  # type: ignore[index]
        wrong[t, 0] = 1 - wrong[t, 0]
    else:
        wrong[0] = 1 - wrong[0] + (task.wanted == "number")
    assert task.judge(wrong, batch) > 0


def test_an_answer_that_is_not_a_number_is_never_right() -> None:
    for make in EVERY:
        task = make()
        batch = task.draw(4, rng())
        error = task.judge(np.full_like(answers(task, batch), np.nan), batch)
        assert not error < task.solved


def test_text_asks_where_words_end() -> None:
    task = realdata.text(40)
    batch = task.draw(6, rng())
    whole = corpus.load().train.spaced()
    for k in range(6):
        letters = [corpus.ALPHABET[s] for s in batch.x[:, k].argmax(-1)]
        spaced = "".join(a + " " * int(b) for a, b in zip(letters, batch.y[:, k], strict=True))
        assert spaced.strip() in whole
    everywhere = np.zeros((*batch.y.shape, 2))
    everywhere[..., 1] = 1
    held_out = task.held_out(400, rng()) if task.held_out else batch
    wide = np.broadcast_to(everywhere[:, :1], (*held_out.y.shape, 2))
    assert abs(task.judge(wide, held_out) - task.baseline) < 0.02


def test_held_out_text_is_never_drawn_for_training() -> None:
    task = realdata.text(50)
    assert task.held_out is not None
    held_out, train = task.held_out(20, rng()), corpus.load().train.spaced()
    for k in range(20):
        letters = [corpus.ALPHABET[s] for s in held_out.x[:, k].argmax(-1)]
        spaced = "".join(a + " " * int(b) for a, b in zip(letters, held_out.y[:, k], strict=True))
        assert spaced.strip() not in train


@pytest.mark.skipif(not realdata.has_vowels(), reason="aeon, which ships them, is not installed")
def test_vowels_are_those_of_the_paper() -> None:
    task = realdata.vowels()
    assert task.held_out is not None
    batch = task.held_out(0, rng())
    assert batch.x.shape == (29, 370, 12)
    # UCI archive: utterances of each of the nine speakers in the test set.
    assert np.bincount(batch.y).tolist() == [31, 35, 88, 44, 29, 24, 40, 50, 29]
    assert batch.lengths is not None
    assert (batch.lengths.min(), batch.lengths.max()) == (7, 29)
    many = task.draw(5000, rng())
    assert np.allclose(np.bincount(many.y) / 5000, 1 / 9, atol=0.02)  # 30 of each to train on
    assert many.lengths is not None
    inside = np.arange(len(many.x))[:, None] < many.lengths
    assert np.allclose(many.x[inside].mean(0), 0, atol=0.05)
    assert np.allclose(many.x[inside].std(0), 1, atol=0.05)
