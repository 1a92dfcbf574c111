"""The bench without its clock: sizes, work, statistics, comparisons, and a run of it."""

from __future__ import annotations

import gc
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from threading import Thread
from time import perf_counter, sleep
from typing import Any

import numpy as np
import pytest
import torch
from measured import ALL, PEAK, row
from rich.console import Console

from bench import apart as bench_apart
from bench import green, peers, report, run, timing
from bench import probe as bench_probe
from bench.cases import CHECKPOINT, GROUPS, OURS, PAIR, TORCH, Case, cases, work
from bench.entrants import Missing, Problem, build, disagreement
from bench.probe import Probe, by_isa
from gatewise import _core

ROOT = Path(__file__).parent.parent


# --- cases --------------------------------------------------------------------


def test_every_group_has_cases_and_a_quick_one() -> None:
    assert [group for group in GROUPS if any(c.group == group for c in ALL)] == list(GROUPS)
    assert {case.group for case in ALL if case.quick} == set(GROUPS)


def test_keys_are_unique() -> None:
    assert len({case.key for case in ALL}) == len(ALL)


def test_threads_go_up_to_all() -> None:
    counts = {case.threads for case in cases((), 6) if case.group == "threads"}
    assert counts == {1, 2, 4, 6}


def test_lengths_run_evenly_from_the_longest() -> None:
    case = Case("packed", 100, 32, 8, 8, shortest=10)
    assert case.lengths is not None
    assert (case.lengths[0], case.lengths[-1], len(case.lengths)) == (100, 10, 32)
    assert case.lengths == sorted(case.lengths, reverse=True)
    assert case.tokens == sum(case.lengths) < 3200


def test_work() -> None:
    T, B, I, H = 7, 3, 5, 4
    forward = Case("fp32", T, B, I, H, "inference")
    assert work(forward) == 2 * T * B * 4 * H * (I + H)
    assert work(Case("fp32", T, B, I, H)) == 3 * work(forward)
    assert work(forward, "rnn") == work(forward) // 4
    both = Case("variants", T, B, I, H, "inference", L=2, D=2)
    assert work(both) == 2 * T * B * 2 * 4 * H * ((I + H) + (2 * H + H))
    projected = Case("variants", T, B, I, H, "inference", P=2)
    assert work(projected) == 2 * T * B * (4 * H * (I + 2) + H * 2)
    packed = Case("packed", T, B, I, H, "inference", shortest=1)
    assert work(packed) == 2 * (7 + 4 + 1) * 4 * H * (I + H)


# --- statistics ---------------------------------------------------------------


def test_ratio_has_an_interval_around_it() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = rng.normal(1, 0.1, 40), rng.normal(2, 0.1, 40)
    middle, low, high = timing.ratio(list(theirs), list(ours))
    assert low < middle < high
    assert middle == pytest.approx(np.median(theirs) / np.median(ours))
    assert low > 1.8
    assert high < 2.2


def test_the_interval_covers_what_it_says() -> None:
    """Of ratios whose logarithms are skewed, between 90 and 99 of a hundred."""
    rng = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        ours, theirs = 1 + rng.exponential(1, 15), 2 + rng.exponential(2, 15)
        _, low, high = timing.ratio(list(theirs), list(ours))
        hits += low <= 2.0 <= high
    assert 360 <= hits <= 396


def test_the_interval_is_of_medians_of_pairs() -> None:
    slow = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 90.0]  # a pause in one round
    assert timing.ratio(slow, [1.0] * 9)[2] < 2.0
    clock = [1.0, 2.0, 4.0, 8.0, 16.0]  # the machine became slower, for both alike
    assert timing.ratio([3 * each for each in clock], clock) == [3.0, 3.0, 3.0]


def test_noisy_rounds_are_counted_and_left_out() -> None:
    times = {"a": [1.0] * 6 + [9.0] * 3, "b": [2.0] * 6 + [90.0] * 3}
    found = timing.summary(timing.Rounds(times, [True] * 6 + [False] * 3))
    assert (found["rounds"], found["clean"], found["noisy"]) == (9, 6, False)
    assert found["times"]["a"]["median"] == 1.0
    assert found["ratios"] == {"b": [2.0, 2.0, 2.0]}


def test_too_few_clean_rounds_use_all_and_say_so() -> None:
    rounds = timing.Rounds({"a": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}, [True] * 2 + [False] * 4)
    found = timing.summary(rounds)
    assert found["noisy"]
    assert found["times"]["a"]["median"] == 3.5


def test_few_clean_rounds_are_enough_and_fewer_are_not() -> None:
    for clean in (timing.FEW - 1, timing.FEW):
        rounds = timing.Rounds({"a": [1.0] * 9}, [True] * clean + [False] * (9 - clean))
        assert timing.summary(rounds)["noisy"] == (clean < timing.FEW)


def test_a_row_waits_for_clean_rounds_but_not_for_ever() -> None:
    effort = timing.Effort(seconds=2.0, least=3, most=9)

    def enough(clean: int, noisy: int, spent: float) -> bool:
        return timing._enough(timing.Rounds({}, [True] * clean + [False] * noisy), spent, effort)

    assert [enough(2, 0, 99.0), enough(3, 0, 1.9), enough(3, 0, 2.0)] == [False, False, True]
    assert [enough(2, 5, 5.9), enough(2, 5, 6.0), enough(0, 9, 0.1)] == [False, True, True]


def test_seconds_are_of_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: list[float] = []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: sum(clock))
    assert timing.seconds(lambda: clock.append(2.0), 5) == 2.0
    assert timing.seconds(lambda: clock.append(2.0), 0) == 0.0


def test_everybody_takes_a_turn() -> None:
    calls: list[str] = []
    entrants: dict[str, timing.Entrant] = {
        name: lambda name=name: calls.append(name)  # type: ignore[misc]
        for name in "abc"
    }
    answers = iter([True, True, False, *[True] * 99])
    effort = timing.Effort(seconds=1e-9, least=3, most=3)
    rounds = timing.in_turn(entrants, lambda: next(answers), effort)
    assert all(len(times) == 3 for times in rounds.times.values())
    assert rounds.quiet == [False, True, True]
    # Once to see that it runs and how long it takes, then who was second is first.
    assert "".join(name for name, _ in groupby(calls)) == "abc" + "abc" + "bca" + "cab"


def test_nobody_cleans_up_while_the_clock_runs() -> None:
    seen: list[bool] = []
    effort = timing.Effort(seconds=1e-9, least=2, most=2)
    timing.in_turn({"a": lambda: seen.append(gc.isenabled())}, lambda: True, effort)
    assert seen[:2] == [True, True]
    assert not any(seen[2:])
    assert gc.isenabled()


def test_a_sample_is_warm(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0
    log: list[str] = []

    def call(name: str, took: float) -> None:
        nonlocal clock
        clock += took
        log.append(name)

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(timing.time, "sleep", lambda _: log.append("pause"))
    entrants = {"short": partial(call, "short", 3e-3), "long": partial(call, "long", 0.1)}
    timing.in_turn(entrants, lambda: True, timing.Effort(seconds=1e-9, least=1, most=1))
    # To see how long a call takes; then three calls of 3 ms warm one, and 0.1 s warm themselves.
    assert log == ["short"] * 2 + ["long"] * 2 + ["short"] * (3 + 1) + ["pause", "long", "pause"]


def test_probe_counts_work_on_every_instruction_set() -> None:
    before = _core.info()["isa"]
    peaks = by_isa(1)
    assert set(peaks) <= set(_core.info()["isas"])
    assert "base" in peaks
    assert all(speed > 1e8 for speed in peaks.values())
    assert _core.info()["isa"] == before
    assert _core.probe("float64", 2, 1e-4) > 0


@pytest.mark.parametrize(("dtype", "seconds"), [("float8", 1e-4), ("float32", 0.0)])
def test_probe_refuses(dtype: str, seconds: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        _core.probe(dtype, 1, seconds)


def test_a_type_without_instructions_has_the_peak_of_float32() -> None:
    probe = Probe(1)
    probe.own = {"float32": True, "float64": True, "bfloat16": False}
    probe.measure(3)
    assert probe.peak["bfloat16"] > 1e8


def test_a_row_is_held_against_the_clock_of_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds = iter([*[90.0] * 5, 91.0, 60.0, 70.0])
    monkeypatch.setattr(bench_probe, "waited", lambda: 0.0)
    probe = Probe(1)
    probe.peak["float32"] = 100.0
    monkeypatch.setattr(bench_probe._core, "probe", lambda *_: next(speeds))
    probe.begin()
    assert probe.quiet()
    assert not probe.quiet()
    assert not probe.quiet()
    assert probe.best == 91.0
    assert probe.peak["float32"] == 100.0


def test_who_stood_in_line_was_not_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, line = 0.0, 0.0
    monkeypatch.setattr(bench_probe._core, "probe", lambda *_: 90.0)  # between the others' turns
    monkeypatch.setattr(bench_probe, "waited", lambda: line)
    monkeypatch.setattr(bench_probe.time, "perf_counter", lambda: clock)
    probe = Probe(1)
    found = []
    for waiting in (0.0, 0.2, 0.3, 0.2):
        clock, line = clock + 1.0, line + waiting
        found.append(probe.quiet())
    assert found == [True, True, False, True]


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="only Linux counts")
def test_the_system_counts_who_stands_in_line() -> None:
    """Two busy threads outside the interpreter on one core: one of them waits at any time."""
    cores, before, start = os.sched_getaffinity(0), bench_probe.waited(), perf_counter()
    os.sched_setaffinity(0, {min(cores)})
    try:
        both = [Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"a", b"b", 300_000))
                for _ in range(2)]  # fmt: skip
        for each in both:
            each.start()
        sleep(0.05)
        found = bench_probe.waited() - before
        passed = perf_counter() - start
        for each in both:
            each.join()
    finally:
        os.sched_setaffinity(0, cores)
    assert found > 0.3 * passed


# --- entrants -----------------------------------------------------------------

SMALL = [
    Case("fp32", 4, 3, 5, 6),
    Case("packed", 6, 3, 5, 6, shortest=2),
    Case("packed", 6, 3, 5, 6, "inference", shortest=2),
    Case("variants", 4, 2, 3, 6, P=2),
    Case("variants", 4, 2, 3, 6, dtype="float64"),
    Case("variants", 4, 2, 3, 6, D=2, L=2),
    Case("bf16", 4, 2, 3, 6, dtype="bfloat16"),
    Case("cells", 4, 2, 3, 6, what="cells", entrants=("gatewise.LSTMCell", "torch.nn.LSTMCell")),
    Case("trace", 4, 2, 6, 6, "inference", what="trace",
         entrants=("gatewise.LSTM.trace", "gatewise.LSTM forward", "torch.nn.LSTMCell loop")),
    Case("isas", 4, 2, 3, 6, entrants=(f"{OURS} base", TORCH)),
    Case("growth", 5, 2, 3, 6, entrants=(*PAIR, CHECKPOINT)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.key)
def test_entrants_answer_the_same_question(case: Case) -> None:
    usual = _core.info()["isa"]
    _, results, missing = run.line_up(case)
    assert not {name for name in missing if name.startswith("gatewise")}
    assert disagreement(results, case.dtype) == ""
    answers = [len(answer) for answer in results.values() if isinstance(answer, list)]
    assert case.mode == "inference" or min(answers) == max(answers) > 2
    assert _core.info()["isa"] == usual


def test_a_training_step_is_whole() -> None:
    """The output, and the gradients of the input and of every weight."""
    _, results, _ = run.line_up(Case("fp32", 4, 3, 5, 6))
    for result in results.values():
        assert isinstance(result, list)
        shapes = [tuple(each.shape) for each in result]
        assert shapes == [(4, 3, 6), (4, 3, 5), (24, 5), (24, 6), (24,), (24,)]


def test_who_is_disturbed_is_held_against_who_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    busy: list[bool] = []
    order: list[tuple[str, bool]] = []

    @contextmanager
    def other() -> Iterator[None]:
        busy.append(True)
        yield
        busy.pop()

    def times(run: Any) -> list[float]:
        order.append((run(), bool(busy)))
        return [1.0, 2.0, 9.0] if busy else [0.5, 0.5, 0.75]

    monkeypatch.setattr(bench_apart, "_busy_core", other)
    monkeypatch.setattr(bench_apart, "_for_a_while", times)
    found = bench_apart.contention({"a": lambda: "a", "b": lambda: "b"}, turns=2)
    assert order == [("a", False), ("a", True), ("b", False), ("b", True)] * 2
    expected = {"median": 0.5, "calm": 0.5, "busy": 2.0, "worst": 9.0, "factor": 4.0}
    assert found["times"] == {"a": expected, "b": expected}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").is_file(), reason="only Linux forgets")
def test_memory_is_the_peak_and_not_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the process held before; 80 MB are filled, and given back."""
    np.ones(30_000_000)
    monkeypatch.setattr("bench.entrants.build", lambda *_: lambda: np.ones(10_000_000))
    fields = Case("memory", 2, 1, 3, 4, what="memory").to_dict()
    found = bench_apart._peak_of_a_step(OURS, fields)
    assert 79e6 < found < 100e6


def test_another_answer_is_found() -> None:
    x = torch.ones(3)
    assert "apart" in disagreement({"a": x, "b": x + 1e-3}, "float32")
    assert "apart" in disagreement({"a": [x, x], "b": [x, x * torch.nan]}, "float32")
    assert "shape" in disagreement({"a": x, "b": x[:2]}, "float32")
    assert disagreement({"a": [x, x], "b": x}, "float32") == ""


def test_like_is_compared_with_like() -> None:
    """An RNN with an RNN, bfloat16 with bfloat16 and its own bound."""
    x = torch.ones(3)
    first = {OURS: x, f"{OURS} bf16": x + 0.1, "gatewise.RNN": x + 1}
    assert disagreement(first, "float32") == ""
    assert disagreement(first | {f"{TORCH} bf16": x + 0.12}, "float32") == ""
    assert "apart" in disagreement(first | {f"{TORCH} bf16": x + 0.2}, "float32")
    assert "apart" in disagreement(first | {"torch.nn.RNN": x + 1.01}, "float32")


@pytest.mark.parametrize(
    "case",
    [
        Case("gates", 3, 2, 4, 4, entrants=(OURS, f"{OURS} bf16", "torch.nn.RNN", "gatewise.RNN")),
        next(case for case in ALL if case.group == "step"),
        Case("loop", 3, 2, 4, 4, what="model"),
    ],
    ids=lambda case: case.group,
)
def test_the_others_run(case: Case) -> None:
    entrants, results, missing = run.line_up(case)
    assert {*entrants, *missing} == set(case.entrants)
    assert disagreement(results, case.dtype) == ""
    assert not {name for name in missing if name.startswith("gatewise")}


def test_a_peer_that_is_not_there_says_why() -> None:
    problem = Problem(Case("peers", 3, 1, 4, 4))
    for name, why in peers.installed().items():
        if why:
            with pytest.raises(Missing, match="not installed"):
                build(name, problem)


def test_what_was_lined_up() -> None:
    case = Case("fp32", 2, 1, 3, 4)
    probe = Probe(1)
    probe.measure(1)
    row = run.measure(case, probe, timing.Effort(1e-9, 2, 2), 1)
    assert (row["rounds"], set(row["times"]), set(row["ratios"])) == (2, set(PAIR), {TORCH})


@pytest.mark.parametrize("wrong", ["fails", "answers wrongly"])
def test_without_ours_nothing_is_timed(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the others there would be ratios that look as if they were over ours."""

    def ours() -> torch.Tensor:
        if wrong == "fails":
            raise RuntimeError("no. Never")
        return torch.zeros(2, 1, 4)

    case, how = Case("fp32", 2, 1, 3, 4, "inference"), build
    monkeypatch.setattr(run, "build", lambda n, p: ours if n == OURS else how(n, p))
    row = run.measure(case, Probe(1), timing.Effort(1e-9, 2, 2), 1)
    assert (row["times"], row["ratios"]) == ({}, {})
    assert row["missing"] == ({OURS: "fails: no"} if wrong == "fails" else {})
    assert ("apart" in row["wrong"]) == (wrong != "fails")


def test_red_tests_leave_no_stamp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = tmp_path / "stamp"
    red = tmp_path / "test_red.py"
    red.write_text("def test_red():\n    assert False\n")
    monkeypatch.setattr(green, "TESTS", (str(red),))
    assert "1 failed" in green.check(stamp)
    assert not stamp.exists()
    red.write_text("def test_green():\n    pass\n")
    assert green.check(stamp) == ""
    assert green.check(stamp) == ""  # from the stamp
    red.write_text("def test_red_again():\n    assert False\n")
    assert green.check(stamp)


def test_arguments() -> None:
    quick = run._arguments(["--quick", "--only", "packed"])
    plan = run.chosen(quick, ALL)
    assert {case.group for case in plan} == {"packed"}
    assert all(case.quick for case in plan)
    assert quick.out != report.RESULT
    with pytest.raises(SystemExit):
        run._arguments(["--only", "nothing"])
    with pytest.raises(SystemExit):
        run._arguments(["--again", "--only", "packed"])


def test_again_needs_a_result_of_this_build(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(green, "check", lambda: "")
    assert run.main(["--again", "--out", str(tmp_path / "r.json")]) == 2
    assert "expected a result of this build" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"rows": [{"case": {"T": 3}}]}', "# a page"])
def test_what_is_no_result_is_not_replaced_by_one(text: str, tmp_path: Path, capsys) -> None:
    mine = tmp_path / "mine.json"
    mine.write_text(text)
    assert run.main(["--quick", "--out", str(mine)]) == 2
    assert f"{mine}: no result of this bench" in capsys.readouterr().err
    assert mine.read_text() == text


@pytest.mark.parametrize("out", ["file/r.json", "."])
def test_no_place_for_the_result_is_said_before_anything_is_measured(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(green, "check", lambda: pytest.fail("begun"))
    (tmp_path / "file").write_text("mine")
    assert run.main(["--quick", "--out", str(tmp_path / out)]) == 2
    assert capsys.readouterr().err.startswith("gatewise bench: ")


def test_ctrl_c_says_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    def stop(*_: Any) -> str:
        raise KeyboardInterrupt

    out = tmp_path / "r.json"
    arguments = ["--quick", "--only", "fp32", "--out", str(out)]
    with monkeypatch.context() as patched:
        patched.setattr(green, "check", stop)
        assert run.main(arguments) == 130
    assert "before anything was measured" in capsys.readouterr().err
    monkeypatch.setattr(green, "check", lambda: "")
    monkeypatch.setattr(bench_probe, "MOMENT", 1e-5)
    rows = iter([row(Case("fp32", 100, 32, 64, 64), 1.0, 2.0)])
    monkeypatch.setattr(run, "measure", lambda *_: next(rows, None) or stop())
    assert run.main(arguments) == 130
    assert f"{out} has what was done" in capsys.readouterr().out
    kept = report.load(out)
    assert kept is not None
    assert [row["key"] for row in kept["rows"]] == ["fp32/(100, 32, 64, 64)/training"]
    assert "it was stopped" not in report.unfit(kept | {"quick": False})  # groups are missing, too
    again = run.begin(
        run._arguments(["--quick", "--only", "odd", "--out", str(out)]), kept["threads"], {}
    )
    assert again["rows"] == kept["rows"]
    anew = run.begin(run._arguments(arguments), kept["threads"], {})
    assert anew["rows"] == []
    run.save(kept | {"build": "another"}, out)
    other = run.begin(
        run._arguments(["--quick", "--only", "odd", "--out", str(out)]), kept["threads"], {}
    )
    assert other["rows"] == []


@pytest.mark.parametrize("only", [(), ("--only", "fp32")], ids=["all", "one_group"])
def test_noisy_rows_are_measured_again_and_no_others(
    only: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a row is the faster or the slower for it; of the groups that are asked for."""
    quiet, soon, never = [case for case in ALL if case.group == "fp32"][:3]
    other = next(case for case in ALL if case.group == "packed")
    measured: list[str] = []

    def measure(case: Case, *_: Any) -> dict[str, Any]:
        measured.append(case.key)
        noisy = case is never or (case is not quiet and measured.count(case.key) < 3)
        return row(case, float(len(measured)), 2.0) | {"noisy": noisy}

    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(Probe, "measure", lambda *_: None)
    before = row(other, 9.0, 2.0) | {"noisy": True}
    result = {"rows": [before], "threads": 2, "peak": {"float32": PEAK}}
    given = run._arguments(["--out", str(tmp_path / "r.json"), *only])
    run.run([quiet, soon, never], result, given, Console(quiet=True))
    assert measured == [quiet.key, soon.key, never.key, *[soon.key, never.key] * 2]
    times = [next(iter(each["times"].values()))["median"] for each in result["rows"]]
    assert times == [9.0, 1.0, 6.0, 3.0]
    assert json.loads(given.out.read_text()) == json.loads(json.dumps(result))
