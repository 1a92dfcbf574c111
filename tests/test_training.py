"""Training: the plan, learning, stopping and going on, the race, the file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from gatewise import ArgumentError, training
from gatewise.corpus import PHRASE, read
from gatewise.tagger import KINDS, Batch, Tagger, score
from gatewise.training import FORMAT, Race, Settings, Training, load, plan

TEXT = read("the cat sat on the mat. a dog ran, and the cat ran; the man had a hat. " * 40)
SMALL = Settings(hidden_size=8, embedding_size=4, epochs=2, batch=16)


def state(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trained(kind: str = "rnn", settings: Settings = SMALL, steps: int = -1) -> Training:
    run = Training(kind, settings, TEXT)
    for _ in run.run():
        if run.step == steps:
            break
    return run


def test_every_epoch_sees_every_letter_once() -> None:
    for settings in (SMALL, dataclasses.replace(SMALL, epochs=1, batch=1000)):
        seen = torch.zeros(len(TEXT), dtype=torch.int64)
        for starts, lengths in plan(TEXT, settings):
            for start, length in zip(starts, lengths, strict=True):
                seen[start : start + length] += 1
        assert (seen == settings.epochs).all()


def test_pieces_end_where_phrases_do_and_batches_are_alike() -> None:
    batches = plan(TEXT, SMALL)
    for starts, lengths in batches:
        assert (TEXT.stops[starts + lengths - 1] >= PHRASE).all()
    within = np.mean([lengths.std() for _, lengths in batches])
    assert within < 0.5 * np.concatenate([lengths for _, lengths in batches]).std()
    sizes = [len(lengths) for _, lengths in batches]
    assert abs(sum(sizes) / len(sizes) - SMALL.batch) < 2


def test_equal_settings_equal_model() -> None:
    first = trained(steps=4)
    assert same(state(first.model), state(trained(steps=4).model))
    other = trained(settings=dataclasses.replace(SMALL, seed=1), steps=4)
    assert not same(state(first.model), state(other.model))


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns(kind: str) -> None:
    run = Training(kind, Settings(hidden_size=16, epochs=12, batch=8, learning_rate=0.02), TEXT)
    losses = list(run.run())
    assert losses[-1] < 0.5 * losses[0]
    assert score(run.model, TEXT).f1 > 0.9


@pytest.mark.parametrize("kind", ["rnn", "bilstm"])
def test_stopped_and_gone_on_equals_never_stopped(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    whole = trained(kind)
    trained(kind, steps=3).save(path)
    torch.manual_seed(99)
    again = Training(kind, SMALL, TEXT)
    assert again.resume(path)
    assert (again.step, again.done) == (3, False)
    list(again.run())
    assert again.done
    assert again.seen == SMALL.epochs * len(TEXT)
    assert same(state(again.model), state(whole.model))


def test_a_finished_model_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    run = trained()
    run.score = score(run.model, TEXT)
    run.save(path)
    again = Training("rnn", SMALL, TEXT)
    assert again.resume(path)
    assert again.done
    assert (again.score, again.race, again.seconds) == (run.score, run.race, run.seconds)
    assert not [name for name in safetensors.torch.load_file(path) if name.startswith("adam.")]
    model = load(path)
    assert same(state(model), state(run.model))
    assert model.restore("thecatran") == run.model.restore("thecatran")


def test_what_was_trained_otherwise_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    trained().save(path)
    fresh = state(Training("rnn", SMALL, TEXT).model)
    others = [
        Training("lstm", SMALL, TEXT),
        Training("rnn", dataclasses.replace(SMALL, seed=1), TEXT),
        Training("rnn", SMALL, TEXT[: len(TEXT) // 2]),
    ]
    assert not any(other.resume(path) for other in others)
    later = Training("rnn", SMALL, TEXT)
    info = dataclasses.replace(training.info(), version="99")
    monkeypatch.setattr(training, "info", lambda: info)
    assert not later.resume(path)
    assert not later.resume(tmp_path / "missing")
    assert later.step == 0
    assert same(state(later.model), fresh)


def test_times_keep_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, partly = tmp_path / "done", tmp_path / "partly"
    finished, begun = trained(), trained(steps=3)
    finished.save(done)
    begun.save(partly)
    monkeypatch.setattr(training, "place", lambda: "elsewhere")
    again = Training("rnn", SMALL, TEXT)
    assert again.resume(done)
    assert (again.race, again.place) == (finished.race, finished.place)
    onward = Training("rnn", SMALL, TEXT)
    assert onward.resume(partly)
    assert (onward.step, onward.race, onward.place) == (3, training.Race(), "elsewhere")


def test_the_race_is_run_and_changes_nothing() -> None:
    raced, alone = Training("lstm", SMALL, TEXT), Training("lstm", SMALL, TEXT)
    alone._raced = set()
    losses = list(raced.run())
    assert losses == list(alone.run())
    assert same(state(raced.model), state(alone.model))
    count = min(training.RACED, raced.steps)
    assert len(raced.race.letters) == count
    assert raced.race.difference < 1e-6
    for seconds in raced.race.seconds.values():
        assert len(seconds) == count
        assert min(seconds) > 0
    assert alone.race.epoch("gatewise", 100) is None


Step = tuple[str, int, float]


def raced(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> tuple[Training, list[Step]]:
    """A training whose steps only say whose they are, at which step, and at what rate."""
    taken: list[Step] = []
    run = Training("rnn", settings, TEXT)

    def step(model: Tagger, _: object, batch: object, rate: float) -> tuple[float, float]:
        ours = model is run.model
        taken.append(("ours" if ours else "torch's", run.step, rate))
        apart = 0.25 if len(run.race.letters) == 2 else 0.125  # the largest in the middle
        return (1.0, 1.0) if ours else (1.0 + apart, 2.0)

    monkeypatch.setattr(training, "_step", step)
    assert len(list(run.run())) == run.steps
    return run, taken


def test_the_race_is_spread_over_the_training_and_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    run, taken = raced(monkeypatch, dataclasses.replace(SMALL, batch=2))
    at = sorted({step for who, step, _ in taken if who == "torch's"})
    assert len(at) == len(run.race.letters) == training.RACED
    assert np.diff([0, *at, run.steps]).max() <= run.steps / training.RACED + 1
    turns = [[who for who, step, _ in taken if step == k] for k in at]
    assert turns[0] == ["torch's", "torch's", "ours"]  # its first call ever does not count
    assert turns[1::2] == [["ours", "torch's"]] * (training.RACED // 2)
    assert turns[2::2] == [["torch's", "ours"]] * (training.RACED // 2 - 1)
    assert run.race.seconds == {"gatewise": [1.0] * len(at), "torch.nn": [2.0] * len(at)}
    assert run.race.difference == 0.25


def test_the_rate_rises_and_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    _, taken = raced(monkeypatch, dataclasses.replace(SMALL, batch=2))
    rates = [rate / SMALL.learning_rate for who, _, rate in taken if who == "ours"]
    top = int(np.argmax(rates))
    assert (rates[0], rates[-1]) == pytest.approx((0.01, 0.0), abs=1e-3)
    assert 0.98 < rates[top] <= 1.0
    assert 0.03 < top / len(rates) < 0.07
    assert rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    assert rates[len(rates) // 2] == pytest.approx(0.5, abs=0.05)


def test_a_step_is_clipped() -> None:
    run = Training("rnn", SMALL, TEXT)
    with torch.no_grad():
        run.model.linear.weight *= 1000
    training._step(run.model, run.optimizer, Batch.of(TEXT, *run.plan[0]), 0.0)
    norms = [float(p.grad.norm()) for p in run.model.parameters() if p.grad is not None]
    assert np.linalg.norm(norms) == pytest.approx(1.0, abs=1e-3)


def test_an_epoch_is_timed_by_its_middle_letter() -> None:
    race = Race([10] * 5, {"gatewise": [50.0, 10.0, 40.0, 20.0, 30.0]})
    assert race.epoch("gatewise", 10) == 30.0
    assert Race().epoch("gatewise", 10) is None


def test_a_pause_of_the_machine_does_not_decide_the_race() -> None:
    letters = [10, 30, 20, 20, 20]
    race = training.Race(letters, {"gatewise": [1.0, 3.0, 2.0, 90.0, 2.0], "torch.nn": [4.0] * 5})
    assert race.epoch("gatewise", 1000) == pytest.approx(100)
    assert race.epoch("torch.nn", 1000) == pytest.approx(200)
    assert race.spread() == pytest.approx(45)
    letters = [10] * 11
    paused = training.Race(letters, {"gatewise": [1.0] * 10 + [90.0], "torch.nn": [4.0] * 11})
    assert paused.spread() == 1
    alike = training.Race([10, 20], {"gatewise": [2.0, 4.0], "torch.nn": [1.0, 2.0]})
    assert (alike.epoch("gatewise", 30), alike.epoch("torch.nn", 30)) == (6.0, 3.0)


def test_the_family_of_torch_trains_the_same() -> None:
    ours, theirs = Training("lstm", SMALL, TEXT), Training("lstm", SMALL, TEXT, torch.nn)
    pairs = list(zip(ours.run(), theirs.run(), strict=True))
    assert pairs[-1][0] == pytest.approx(pairs[-1][1], rel=1e-3)
    assert theirs.race.letters == []


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_a_damaged_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.safetensors"
    run = trained(steps=2)
    run.save(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ArgumentError, match="not a tagger that gatewise demo saved, or damaged"):
        load(path)
    assert not Training("rnn", SMALL, TEXT).resume(path)


def test_a_file_that_does_not_fit_what_it_says(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    run = trained(steps=1)
    tensors = run.model.state_dict()
    for about in (run.about() | {"kind": "gru"}, run.about() | {"kind": "bilstm"}, {}):
        safetensors.torch.save_file(tensors, path, {FORMAT: json.dumps(about)})
        with pytest.raises(ArgumentError, match="do not fit what it says"):
            load(path)
        assert not Training("rnn", SMALL, TEXT).resume(path)


@pytest.mark.parametrize(("name", "value"), [("hidden_size", 0), ("epochs", -1), ("letters", -5)])
def test_settings_out_of_range(name: str, value: int) -> None:
    with pytest.raises(ArgumentError, match=f"{name}: expected .*, got {value}"):
        Settings(**{name: value})
