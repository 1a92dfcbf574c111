"""The main job: what it prints, writes, uses again, and leaves after Ctrl-C."""

from __future__ import annotations

import io
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from gatewise import ArgumentError, corpus, demo
from gatewise.demo import Interrupt, table, table_markdown, verdict
from gatewise.tagger import KINDS, Score
from gatewise.training import Race, Settings, Training, load

SMALL = Settings(hidden_size=6, embedding_size=4, epochs=1, batch=16)


@pytest.fixture(autouse=True)
def small_text(monkeypatch: pytest.MonkeyPatch) -> None:
    verse = "The cat sat on the mat. A dog ran, and the cat ran."
    numbers = {c * 1000 + v: verse for c in range(1, 21) for v in range(1, 11)}
    text = corpus.split(numbers)
    monkeypatch.setattr(corpus, "load", lambda: text)


def run(
    out: Path, *texts: str, width: int = 300, terminal: bool = False, **kwargs: Any
) -> tuple[Any, str]:
    told = io.StringIO()
    console = Console(file=told, width=width, force_terminal=terminal, color_system=None)
    results = demo.run(out, SMALL, texts, console=console, **kwargs)
    return results, told.getvalue()


def test_the_whole_job(tmp_path: Path) -> None:
    out = tmp_path / "new" / "place"
    results, told = run(out, "thecatsat")
    assert not results["interrupted"]
    assert json.loads((out / "results.json").read_text()) == results
    assert [row["text"] for row in results["restored"]][:2] == ["thecatsat", "ilovechina"]
    for kind, name in KINDS.items():
        model = load(out / f"{kind}.safetensors")
        numbers = results["models"][kind]
        assert numbers["parameters"] == model.size
        assert numbers["trained"] == 1
        race = Training(kind, SMALL, corpus.load().train)
        assert race.resume(out / f"{kind}.safetensors")
        for family, seconds in numbers["seconds_per_epoch"].items():
            assert seconds == race.race.epoch(family, len(corpus.load().train))
        for row in results["restored"]:
            assert row[kind] == model.restore(row["text"])
            assert row[kind] in told
        assert name in told
    names = {*(f"{kind}.safetensors" for kind in KINDS), "results.json", "explorer.html"}
    assert {path.name for path in out.iterdir()} == names
    assert all(str(out / name) in told for name in names)
    assert told.count("gatewise s/epoch") == 1


def test_what_is_trained_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = run(tmp_path)

    def refuse(*_: object) -> Any:
        raise AssertionError("trained again")

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_step_raced", refuse)
        patched.setattr("gatewise.training._step", refuse)
        second, told = run(tmp_path, "adogran")
        with pytest.raises(AssertionError, match="trained again"):
            run(tmp_path, fresh=True)
    assert told.count("trained before") == 3
    assert second["models"] == first["models"]
    assert second["restored"][1:] == first["restored"]


def test_the_progress_fits_a_narrow_terminal(tmp_path: Path) -> None:
    run(tmp_path)
    _, told = run(tmp_path, width=40, terminal=True)
    progress = told[: told.index("gatewise s/epoch")]
    for name in KINDS.values():
        assert re.search(rf"{name:<9} F1 0\.\d\d\d, trained before", progress)
    assert "\u2026" not in progress  # nothing is cut


def test_the_progress_in_a_file_is_a_line_when_a_model_begins_and_when_it_is_done(
    tmp_path: Path,
) -> None:
    _, told = run(tmp_path)
    lines = told.splitlines()[: 2 * len(KINDS)]
    for name, begun, done in zip(KINDS.values(), lines[::2], lines[1::2], strict=True):
        assert re.fullmatch(rf"{name:<9} training, \d+ batches", begun)
        assert re.fullmatch(rf"{name:<9} F1 0\.\d\d\d", done)
    _, told = run(tmp_path)
    for name, line in zip(KINDS.values(), told.splitlines(), strict=False):
        assert re.fullmatch(rf"{name:<9} F1 0\.\d\d\d, trained before", line)


def test_a_long_sentence_is_shown_whole(tmp_path: Path) -> None:
    sentence = "thecatsatonthemat" * 5
    _, told = run(tmp_path, sentence, width=40)
    said = told[told.index("thecatsat") :]
    assert sentence in re.sub(r"\s", "", said)
    assert "\u2026" not in said


def test_a_damaged_model_is_trained_again(tmp_path: Path) -> None:
    first, _ = run(tmp_path)
    (tmp_path / "lstm.safetensors").write_bytes(b"nothing")
    second, told = run(tmp_path)
    assert told.count("trained before") == 2
    assert second["models"]["lstm"]["f1"] == first["models"]["lstm"]["f1"]


def stop_after(monkeypatch: pytest.MonkeyPatch, kind: str, steps: int) -> None:
    """Press Ctrl-C in the middle of a step of one of the models."""
    run_whole = Training.run

    def run_until(self: Training) -> Iterator[float]:
        for loss in run_whole(self):
            if self.kind == kind and self.step == steps:
                signal.raise_signal(signal.SIGINT)
            yield loss

    monkeypatch.setattr(Training, "run", run_until)


def test_ctrl_c_keeps_what_there_is_and_the_next_start_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = run(tmp_path / "whole")
    out = tmp_path / "out"
    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        stop_after(patched, "lstm", 2)
        results, told = run(out)
    assert signal.getsignal(signal.SIGINT) is before
    assert results["interrupted"]
    assert list(results["models"]) == ["rnn", "lstm"]
    assert 0 < results["models"]["lstm"]["trained"] < 1
    assert "Not all three are trained" in told
    assert "goes on from here" in told
    assert "% trained)" in told
    assert {path.name for path in out.iterdir()} == {
        "rnn.safetensors",
        "lstm.safetensors",
        "results.json",
    }
    again, told = run(out)
    assert told.count("trained before") == 1
    assert not again["interrupted"]
    assert {kind: model["f1"] for kind, model in again["models"].items()} == {
        kind: model["f1"] for kind, model in whole["models"].items()
    }
    assert again["restored"] == whole["restored"]


def test_the_second_ctrl_c_does_not_wait() -> None:
    # A job in the background starts with the signal ignored; a terminal's does not.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with Interrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert interrupt.asked
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_bad_input_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="at least one letter"):
        run(tmp_path / "out", "fine", "...")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        run(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_markup_in_a_text_is_text(tmp_path: Path) -> None:
    _, told = run(tmp_path, "[bold]cat[/bold]")
    assert "[bold]cat[/bold]" in told.replace(" ", "")


def row(name: str, f1: float, trained: float = 1, raced: bool = True) -> dict[str, Any]:
    seconds = {"gatewise": 2.0, "torch.nn": 9.0} if raced else {"gatewise": None, "torch.nn": None}
    return {
        "name": name,
        "f1": f1,
        "trained": trained,
        "seconds_per_epoch": seconds,
        "parameters": 12345,
        "raced_batches": 24 if raced else 0,
        "loss_difference": 2e-7,
    }


def results_of(*rows: dict[str, Any]) -> dict[str, Any]:
    return {
        "models": dict(zip(KINDS, rows, strict=False)),
        "settings": {"hidden_size": 128, "epochs": 2},
        "measured_on": ["Abacus 3000, 2 cores, threads used: 2, gatewise 1.0 (avx2)"],
        "text": "King James text",
        "held_out_letters": 310593,
        "training_letters": 2911817,
    }


def test_the_table_for_the_readme() -> None:
    results = results_of(row("plain RNN", 0.8), row("LSTM", 0.9, 0.25), row("Bi-LSTM", 0, 0, False))
    head, rule, *rows, _, caption = table_markdown(results).splitlines()
    assert head == "| model | F1 | gatewise s/epoch | torch.nn s/epoch | parameters |"
    assert rule == "| --- | ---: | ---: | ---: | ---: |"
    assert rows == [
        "| plain RNN | 0.800 | 2.0 | 9.0 (4.5 x) | 12,345 |",
        "| LSTM (25% trained) | 0.900 | 2.0 | 9.0 (4.5 x) | 12,345 |",
        "| Bi-LSTM (0% trained) | 0.000 |  |  | 12,345 |",
    ]
    for said in (
        "Abacus 3000, 2 cores",
        "threads used: 2",
        "avx2",
        "same 24 batches",
        "the median time of a letter",
        "310,593",
        "2e-07",
    ):
        assert said in caption


@pytest.mark.parametrize("width", [40, 80, 90])
def test_no_number_is_cut_however_narrow_the_terminal(width: int) -> None:
    results = results_of(row("plain RNN", 0.8), row("LSTM", 0.9, 0.25), row("Bi-LSTM", 0.98))
    told = io.StringIO()
    Console(file=told, width=width).print(table(results, width))
    lines = told.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    for whole in ("LSTM (25% trained)", "gatewise s/epoch", "9.0 (4.5 x)", "12,345"):
        assert whole in told.getvalue()
    assert (len(lines) == 7) == (width == 90)


def test_short_seconds_are_not_rounded_to_nothing() -> None:
    short = row("plain RNN", 0.8) | {"seconds_per_epoch": {"gatewise": 0.0123, "torch.nn": 0.5}}
    assert "| 0.012 | 0.5 (40.7 x) |" in table_markdown(results_of(short))


def test_the_caption_says_that_sizes_differ() -> None:
    results = results_of(row("plain RNN", 0.8), row("LSTM", 0.9) | {"parameters": 49380})
    assert "the LSTM has 4.0 times the parameters of the plain RNN" in demo.caption(results)
    assert "times the parameters" not in demo.caption(results_of(row("plain RNN", 0.8)))


def test_the_caption_tells_the_largest_difference() -> None:
    results = results_of(row("plain RNN", 0.8) | {"loss_difference": 5e-7}, row("LSTM", 0.9))
    assert "losses apart by at most 5e-07" in demo.caption(results)


def test_scored_is_what_was_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored = []
    monkeypatch.setattr(demo, "score", lambda model, text: scored.append(text) or Score(1, 1, 1))
    run(tmp_path)
    assert all(text is corpus.load().held_out for text in scored)
    assert len(scored) == len(KINDS)
    both = corpus.Corpus(corpus.read("one rose"), corpus.read("two cats"))
    first = demo._first(both, 3)
    assert (first.train.spaced(), first.held_out.spaced()) == ("one", "two")


def test_a_busy_machine_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm, torn = {"race_spread": 2.9}, {"race_spread": 7.2}
    assert demo.busy({"models": {"rnn": calm, "lstm": calm}}) == ""
    for models in ({"rnn": calm, "lstm": torn}, {"rnn": torn, "lstm": calm}):
        assert "rounds 7 times apart" in demo.busy({"models": models})
    for spread in (1.0, 7.2):
        monkeypatch.setattr(Race, "spread", lambda _, spread=spread: spread)
        _, told = run(tmp_path)
        assert told.count("The machine was busy") == (spread > 3)


def test_why_china_is_not_known_is_said(tmp_path: Path) -> None:
    _, told = run(tmp_path)
    assert told.index("ilovechina") < told.index(demo.UNKNOWN)


def test_the_verdict_is_honest() -> None:
    best = results_of(row("plain RNN", 0.8), row("LSTM", 0.85), row("Bi-LSTM", 0.98))
    expected = "The Bi-LSTM reads best: F1 0.980 (LSTM 0.850, plain RNN 0.800)"
    assert verdict(best).startswith(expected)
    beaten = results_of(row("plain RNN", 0.8), row("LSTM", 0.85), row("Bi-LSTM", 0.84))
    beside = "F1 0.840 (LSTM 0.850, plain RNN 0.800)."
    assert verdict(beaten) == f"The Bi-LSTM does not read best here: {beside}"
    none = results_of(row("plain RNN", 0.0), row("LSTM", 0.0), row("Bi-LSTM", 0.0004))
    assert verdict(none).startswith("The Bi-LSTM does not read best here: F1 0.000")
    partly = results_of(row("plain RNN", 0.8), row("LSTM", 0.85), row("Bi-LSTM", 0.98, 0.9))
    assert verdict(partly) == "Not all three are trained: no comparison."
