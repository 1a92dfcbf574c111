"""The bench without its clock: sizes, work, statistics, comparisons, claims, tables and pages."""

from __future__ import annotations

import copy
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from bench import claims, figure, green, peers, report, run, timing
from bench import probe as bench_probe
from bench.cases import CHECKPOINT, GROUPS, OURS, PAIR, TORCH, Case, cases, work
from bench.entrants import Missing, Problem, build, disagreement
from bench.probe import Probe, by_isa
from gatewise import _core

ROOT = Path(__file__).parent.parent
ALL = cases(("avx2", "base"), 4, peers.NAMES)


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
    assert set(calls) == set("abc")


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
    probe = Probe(1)
    probe.peak["float32"] = 100.0
    monkeypatch.setattr(bench_probe._core, "probe", lambda *_: next(speeds))
    probe.begin()
    assert probe.quiet()
    assert not probe.quiet()
    assert not probe.quiet()
    assert probe.best == 91.0
    assert probe.peak["float32"] == 100.0


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


def test_another_answer_is_found() -> None:
    x = torch.ones(3)
    assert "apart" in disagreement({"a": x, "b": x + 1e-3}, "float32")
    assert "apart" in disagreement({"a": [x, x], "b": [x, x * torch.nan]}, "float32")
    assert disagreement({"a": [x, x], "b": x}, "float32") == ""


@pytest.mark.parametrize(
    "case",
    [
        Case("gates", 3, 2, 4, 4, entrants=(OURS, f"{OURS} bf16", "torch.nn.RNN", "gatewise.RNN")),
        Case("step", 1, 1, 4, 4, "inference", what="step", entrants=(OURS, TORCH)),
        Case("loop", 3, 2, 4, 4, what="model"),
    ],
    ids=lambda case: case.group,
)
def test_the_others_run(case: Case) -> None:
    entrants, _, missing = run.line_up(case)
    assert {*entrants, *missing} == set(case.entrants)
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
    assert "expected a result of this build" in capsys.readouterr().out


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
    assert report.load(given.out) == json.loads(json.dumps(result))


# --- claims and tables --------------------------------------------------------


PEAK = work(Case("fp32", 100, 32, 64, 64)) / 0.9


def row(case: Case, ours: float, theirs: float) -> dict[str, Any]:
    """A made-up measurement, in seconds."""
    first, second = case.entrants[:2]
    return {
        "key": case.key,
        "case": case.to_dict(),
        "work": work(case),
        "missing": {},
        "times": {first: {"median": ours}, second: {"median": theirs}},
        "ratios": {second: [theirs / ours, 0.9 * theirs / ours, 1.1 * theirs / ours]},
        "rounds": 9, "clean": 9, "noisy": False, "probe": PEAK,
    }  # fmt: skip


@pytest.fixture
def result() -> dict[str, Any]:
    fast, slow = Case("fp32", 100, 32, 64, 64, share=0.8), Case("odd", 100, 3, 50, 50, share=0.7)
    rows = [row(fast, 1.0, 4.0), row(slow, 1.0, 0.5)]
    for T in (10, 100, 1000):
        rows.append(row(Case("growth", T, 1, 8, 8, axis="T"), T / 100, T**2 / 100))
    moved = row(Case("contention", 9, 9, 9, 9, what="contention"), 1, 1)
    for time in moved["times"].values():
        time.update(calm=1.0, busy=3.0, worst=4.0, factor=3.0)
    kept = row(Case("memory", 9, 9, 9, 9, what="memory"), 1, 1)
    for time, count in zip(kept["times"].values(), (2**20, 2**21), strict=True):
        time["bytes"] = count
    return {
        "version": "0", "commit": "c0ffee", "when": "once", "machine": "a machine",
        "python": "3", "torch": "2", "compiler": "cc", "isa": "base", "threads": 2,
        "quick": False,
        "peak": dict.fromkeys(("float32", "float64", "bfloat16"), PEAK),
        "peak_by_isa": {},
        "own_instructions": {"float32": True, "float64": True, "bfloat16": False},
        "rows": [*rows, moved, kept],
    }  # fmt: skip


def test_what_is_lost_is_marked_and_stays(result: dict[str, Any]) -> None:
    fast, slow, *_ = result["rows"]
    assert claims.share(fast, OURS, result) == pytest.approx(0.9)
    slower_clock = fast | {"probe": 0.9 * fast["probe"]}
    assert claims.share(slower_clock, OURS, result) == pytest.approx(1.0)
    assert not claims.noisy(slower_clock, result)
    assert claims.noisy(fast | {"probe": 0.6 * fast["probe"]}, result)
    assert not claims.lost(fast)
    assert not claims.below(fast, result)
    assert claims.lost(slow)
    assert claims.below(slow, result)
    text = report.table(result, "odd")
    assert "0.50x [0.45, 0.55]" in text
    assert "slower, below aim" in text
    assert "slower" not in report.table(result, "fp32")


def test_verdicts(result: dict[str, Any]) -> None:
    found = {verdict.claim: verdict for verdict in claims.verdicts(result)}
    assert found["fp32 training, geometric mean over torch"].measured == "4.00x"
    assert not found["cells at their share of peak"].holds
    assert not found["slowest cell against torch.nn.LSTM (odd/(100, 3, 50, 50)/training)"].holds
    assert found["peak memory of a training step over torch's, largest"].measured == "0.50x"
    assert found["exponent of time in T"].measured == "1.00"
    assert claims.fits(result)["T", TORCH] == pytest.approx(2.0)
    late = found["training step while another process takes a core, over calm"]
    assert (late.measured, late.holds) == ("3.00x", False)


def test_what_is_said_of_checkpoint(result: dict[str, Any]) -> None:
    slow = row(Case("growth", 9, 2, 8, 8, entrants=(OURS, CHECKPOINT)), 1.0, 1.25)
    grown = []
    for T, root in ((100, 10), (10_000, 100)):
        names = (OURS, CHECKPOINT)
        case = Case("memory", T, 2, 8, 8, axis="T", what="memory", entrants=names)
        grown.append(row(case, 1, 1))
        for name, time in grown[-1]["times"].items():
            time["bytes"] = 4 * T * 2 * 16 + (2**20 * root if name == CHECKPOINT else 2**20 * T)
    result["rows"] += [slow, *grown]
    found = {verdict.claim: verdict for verdict in claims.verdicts(result)}
    name = "exponent of memory in T with checkpoint=True, beyond output and gradient of the input"
    assert (found[name].measured, found[name].holds) == ("0.50", True)
    name = "training step with checkpoint=True over one without, largest"
    assert (found[name].measured, found[name].holds) == ("1.25x", True)
    assert claims.fits(result)["T", OURS] == pytest.approx(1.0)  # of time, as before
    text = report.table(result, "memory")
    assert "grows as T^0.50" in text
    assert "| (100, 2, 8, 8) | 100.0 MB | 10.0 MB | - |" in text


def test_every_row_can_be_told(result: dict[str, Any]) -> None:
    lines = [report.row_text(each, result) for each in result["rows"]]
    assert "4.00x" in lines[0]
    assert "below aim" in lines[1]
    assert "1.0 MB" in lines[-1]
    assert "3.0x when disturbed" in lines[-2]


def test_the_heading_says_what_meetings_took(result: dict[str, Any]) -> None:
    assert "meeting" not in report.heading(result)  # older results do not know
    for k, one in enumerate(result["rows"]):
        one["meeting"] = (0.06 if k else 0.38) * 1e-6
    assert "0.06 us in the middle row, 0.06 to 0.38" in report.heading(result)
    assert "meeting" not in report.heading(result | {"threads": 1})


def test_pages_are_filled_between_their_marks(result: dict[str, Any]) -> None:
    page = "a\n<!-- bench fp32: begin (x) -->\nold\n<!-- bench fp32: end -->\nb\n"
    filled = report.fill(page, result)
    assert "old" not in filled
    assert "4.00x" in filled
    assert report.fill(filled, result) == filled
    assert filled.startswith("a\n<!-- bench fp32: begin (x) -->\n")
    assert filled.endswith("<!-- bench fp32: end -->\nb\n")
    empty = report.fill(filled, None)
    assert "(x) -->\n<!-- bench fp32: end" in empty
    with pytest.raises(KeyError):
        report.fill(page.replace("fp32", "fp33"), result)


def test_figure_carries_the_digest_of_its_rows(result: dict[str, Any], tmp_path: Path) -> None:
    figure.draw(result, tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert figure.digest(result) in text
    figure.draw(result, tmp_path / "b.svg")
    assert text == (tmp_path / "b.svg").read_text()
    changed = copy.deepcopy(result)
    changed["rows"][0]["times"][OURS]["median"] *= 2
    assert figure.digest(changed) != figure.digest(result)


def test_a_noisy_or_partial_result_is_not_published(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    assert "some groups" in report.unfit(result)
    assert "quick" in report.unfit(result | {"quick": True})
    result["rows"] = [row(case, 1.0, 2.0) for case in ALL]
    assert report.unfit(result) == ""
    noisy = copy.deepcopy(result)
    for each in noisy["rows"][: len(ALL) // 5]:
        each["noisy"] = True
    assert "something else" in report.unfit(noisy)
    assert f"{len(ALL) // 5} of {len(ALL)} rows noisy" in report.heading(noisy)
    monkeypatch.setattr(report, "RESULT", tmp_path / "r.json")
    assert report.main() == 2
    assert "is not there" in capsys.readouterr().err
    run.save(noisy, report.RESULT)
    assert report.main() == 2
    assert "not published" in capsys.readouterr().err


def test_result_survives_json(result: dict[str, Any], tmp_path: Path) -> None:
    run.save(result, tmp_path / "r.json")
    again = report.load(tmp_path / "r.json")
    assert again == json.loads(json.dumps(result))
    assert report.load(tmp_path / "none.json") is None


# --- the pages of this repository ---------------------------------------------


@pytest.mark.parametrize("page", report.PAGES, ids=lambda path: path.name)
def test_pages_say_what_the_results_say(page: Path) -> None:
    text = page.read_text()
    assert len(report.MARKS.findall(text)) == text.count(": end -->") - text.count("demo: end -->")
    assert report.fill(text, report.load(), report.link(page)) == text


def test_speed_page_shows_every_group() -> None:
    text = (ROOT / "docs" / "speed.md").read_text()
    shown = {match[1] for match in report.MARKS.findall(text)}
    assert shown == {*GROUPS, "run", "machines", "claims", "figure"}


@pytest.mark.parametrize("path", report.others(), ids=lambda path: path.stem)
def test_another_machine_has_the_page_with_its_numbers(path: Path) -> None:
    page = report.page_of(path)
    assert page.read_text() == report.other_page(path)
    assert f"({page.name})" in report.SPEED.read_text()
    assert report.link(page, report.figure_of(path)) in page.read_text()


@pytest.mark.parametrize("path", [report.RESULT, *report.others()], ids=lambda path: path.stem)
def test_figure_is_of_these_results(path: Path) -> None:
    result = report.load(path)
    assert result is not None
    assert figure.digest(result) in report.figure_of(path).read_text()


def test_constants_named_in_the_kernels_page_are_those_of_the_core() -> None:
    core = "\n".join(path.read_text() for path in (ROOT / "core").glob("*.h"))
    named = re.findall(r"`([A-Z_]+) = (\d+)`", (ROOT / "docs" / "kernels.md").read_text())
    assert len(named) >= 6
    for name, value in named:
        assert re.search(rf"\b{name} =\s+{value};", core), f"{name} = {value}"
