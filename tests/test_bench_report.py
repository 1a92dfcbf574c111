"""What is made of a bench: claims, tables, figures and the pages of this repository."""

from __future__ import annotations

import copy
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from measured import ALL, PEAK, row

from bench import claims, figure, report, run
from bench.cases import CHECKPOINT, GROUPS, OURS, PAIR, TORCH, Case, work
from gatewise.errors import ArgumentError

ROOT = Path(__file__).parent.parent


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
        "version": "0", "build": "b", "commit": "c0ffee", "when": "once", "machine": "a machine",
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


def test_what_is_lost_is_marked_in_every_group(result: dict[str, Any]) -> None:
    """Every row in which ours stands beside torch's twin, whatever else takes part."""
    twins, result["rows"] = (TORCH, "torch.nn.LSTMCell"), []
    timed = [group for group in GROUPS if group not in ("memory", "contention", "trace")]
    for group in timed:
        case = next(case for case in ALL if case.group == group)
        twin = next(name for name in case.entrants if name in twins)
        pair = replace(case, entrants=(case.entrants[0], twin))
        result["rows"].append(row(pair, 1.0, 0.97))
        assert "slower" in report.table(result, group)
    found = {verdict.claim: verdict for verdict in claims.verdicts(result)}
    assert not found["slowest cell against torch.nn.LSTM (fp32/(100, 32, 64, 64)/training)"].holds


def test_gates_are_held_against_the_rnn_that_the_claim_names(result: dict[str, Any]) -> None:
    names = (OURS, f"{OURS} bf16", "torch.nn.RNN", "torch.nn.RNN bf16")
    found = {}
    for H in (128, 512):
        gates = row(Case("gates", 100, 32, H, H, entrants=names), 1.0, 1.0)
        took = zip(names, (8.0, 4.0, 5.0, 2.0), strict=True)
        gates["times"] = {name: {"median": median} for name, median in took}
        found |= {v.claim: v for v in claims.verdicts(result | {"rows": [gates]})}
    over = "over torch.nn.RNN in float32, training at H ="
    said = {claim: (v.measured, v.holds) for claim, v in found.items() if over in claim}
    assert said == {
        f"{OURS} in float32 {over} 128": ("1.60x", False),
        f"{OURS} in bfloat16 {over} 128": ("0.80x", True),
        f"{OURS} in bfloat16 {over} 512": ("0.80x", True),
    }


def test_an_instruction_set_is_held_against_its_own_peak(result: dict[str, Any]) -> None:
    """By the ratio of two peaks of one moment; a clock that rose later changes nothing."""
    case = Case("isas", 100, 32, 128, 128, entrants=(f"{OURS} base", f"{OURS} avx2"))
    forced = row(case, 1.0, 2 * work(case) / PEAK)  # half of what the probe found
    result |= {"rows": [forced], "peak_by_isa": {"base": 3.0, "avx2": 2.0}}
    result["peak"]["float32"] *= 1.1
    found = {v.claim: v for v in claims.verdicts(result)}
    assert found["share of its own peak with avx2 at H >= 128, lowest"].measured == "0.75"


def test_where_torch_fails_ours_is_still_told(result: dict[str, Any]) -> None:
    """In every group: its times stand, and no claim is made of a ratio that is not there."""
    result["rows"] = []
    for case in ALL:
        alone = row(case, 1.0, 2.0)
        alone["times"] = {case.entrants[0]: {"median": 1.0, "calm": 1.0, "busy": 1.0, "worst": 1.0,
                                             "factor": 1.0, "bytes": 2**20}}  # fmt: skip
        alone |= {"ratios": {}, "missing": dict.fromkeys(case.entrants[1:], "fails")}
        result["rows"].append(alone)
    result["peak_by_isa"] = {"base": 1.0, "avx2": 1.0}
    texts = [report.table(result, group) for group in GROUPS]
    assert all("fails" in text for text in texts[:-3])
    assert "torch fails, " in report.summary(result)
    said = report.claims_table(result)
    assert "over torch" not in said
    assert "cells at their share of peak" in said
    assert "No case was measured twice" in report.again(result)


def test_what_is_no_number_meets_no_claim(result: dict[str, Any]) -> None:
    fast, *_ = result["rows"]
    fast["times"][OURS]["median"] = math.nan
    fast["ratios"][TORCH] = [math.nan] * 3
    assert claims.lost(fast)
    assert claims.below(fast, result)
    assert not any(v.holds for v in claims.verdicts(result | {"rows": [fast]}))


def test_a_row_without_our_answer_is_missed_and_named(result: dict[str, Any]) -> None:
    fast = result["rows"][0]
    assert "rows in which ours ran, with the right answer" not in {
        verdict.claim for verdict in claims.verdicts(result)
    }
    fast |= {"times": {}, "ratios": {}, "wrong": "torch.nn.LSTM and ours | lie\n2 apart"}
    missed = claims.verdicts(result)[0]
    assert missed.claim == "rows in which ours ran, with the right answer"
    assert (missed.measured, missed.holds) == (f"not {fast['key']}", False)
    for text in (report.summary(result), report.table(result, "fp32")):
        assert r"torch.nn.LSTM and ours \| lie 2 apart" in text  # one line of a table


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
    assert "| (100, 2, 8, 8) | 100.0 MiB | 10.0 MiB | - |" in text


def test_a_case_in_several_groups_shows_all_it_took(result: dict[str, Any]) -> None:
    """The lowest ratio and the highest for the README; what asks something else is apart."""
    fast, *_ = result["rows"]
    case = claims.case_of(fast)
    result["rows"] += [
        row(replace(case, group="peers", share=0.0, entrants=(*PAIR, "jax")), 1.0, 2.0),
        row(replace(case, group="threads", threads=2), 1.0, 3.0),
        row(replace(case, group="threads", threads=1), 1.0, 1.5),
        row(replace(case, group="variants", D=2), 1.0, 1.2),
        row(replace(case, group="step", what="step", entrants=("gatewise.Stream", TORCH)), 1, 9),
    ]
    assert "| 2.00x to 4.00x, 90% of peak |" in report.summary(result)
    assert "| fp32 4.00x, peers 2.00x, threads 3.00x |" in report.again(result)
    assert report.again(result).count("\n") == 4
    result["rows"][-5] = row(replace(case, group="peers"), 1.0, 0.9)
    assert "| 0.90x to 4.00x (slower), 90% of peak |" in report.summary(result)


def test_every_row_can_be_told(result: dict[str, Any]) -> None:
    lines = [report.row_text(each, result) for each in result["rows"]]
    assert "4.00x" in lines[0]
    assert "below aim" in lines[1]
    assert "1.0 MiB" in lines[-1]
    assert "3.0x when disturbed" in lines[-2]


def test_the_heading_says_what_meetings_took(result: dict[str, Any]) -> None:
    assert "meeting" not in report.heading(result)  # older results do not know
    for k, one in enumerate(result["rows"]):
        one["meeting"] = (0.06 if k else 0.38) * 1e-6
    said = f"0.06 us in the middle row, 0.06 to 0.38; 1 of {len(result['rows'])} rows with slow"
    assert said in report.heading(result)
    assert "slow meetings" in report.table(result, "fp32")
    assert "slow meetings" not in report.table(result, "odd")
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


def test_the_bars_are_the_shares_of_both(result: dict[str, Any]) -> None:
    axes = Figure().subplots()
    figure._shares(axes, result)
    shares = [claims.share(result["rows"][0], name, result) for name in PAIR]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(shares)
    assert shares[0] == 4 * shares[1]


def test_a_noisy_or_partial_result_is_not_published(
    result: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    assert "not measured: bf16" in report.unfit(result)
    assert "quick" in report.unfit(result | {"quick": True})
    result["rows"] = [row(case, 1.0, 2.0) for case in ALL]
    assert report.unfit(result) == ""
    planned = sum(case.group != "peers" for case in ALL)
    assert report.unfit(result | {"planned": planned}) == ""
    stopped = report.unfit(result | {"planned": planned + 3})
    assert f"3 of {planned + 3} rows were not measured" in stopped
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
    report.RESULT.write_text(report.RESULT.read_text()[:-9])
    assert report.main() == 2
    assert "cut short" in capsys.readouterr().err


def test_result_survives_json(result: dict[str, Any], tmp_path: Path) -> None:
    run.save(result, tmp_path / "r.json")
    again = report.load(tmp_path / "r.json")
    assert again == json.loads(json.dumps(result))
    assert report.load(tmp_path / "none.json") is None
    (tmp_path / "r.json").write_text((tmp_path / "r.json").read_text()[:-9])
    with pytest.raises(ArgumentError, match="cut short"):
        report.load(tmp_path / "r.json")


# --- the pages of this repository ---------------------------------------------


@pytest.mark.parametrize("page", report.PAGES, ids=lambda path: path.name)
def test_pages_say_what_the_results_say(page: Path) -> None:
    text = page.read_text()
    assert len(report.MARKS.findall(text)) == text.count(": end -->") - text.count("demo: end -->")
    assert report.fill(text, report.load(), report.link(page)) == text


def test_speed_page_shows_every_group() -> None:
    text = (ROOT / "docs" / "speed.md").read_text()
    shown = {match[1] for match in report.MARKS.findall(text)}
    assert shown == {*GROUPS, "run", "machines", "claims", "again", "figure"}


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
