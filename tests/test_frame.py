"""The frame of the studies: plan, measure, keep, go on, conclude."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from gatewise.errors import ArgumentError
from gatewise.studies import frame
from gatewise.studies.frame import Json, Prediction, Study, carry_out


class Counter:
    """A study of four units that can be made to stop, and counts what it measures."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.measured: list[int] = []
        self.stop_at = stop_at

    def measure(self, unit: Json) -> Json:
        if unit["k"] == self.stop_at:
            raise KeyboardInterrupt
        self.measured.append(unit["k"])
        return {"square": unit["k"] ** 2}

    def study(self, **changes: Any) -> Study:
        from matplotlib.figure import Figure

        fields: dict[str, Any] = {
            "name": "counter",
            "question": "What are the squares?",
            "method": "Multiply.",
            "predictions": (
                Prediction("They add up to 14.", lambda s: bool(s["sum"] == 14)),
                Prediction("They add up to 15.", lambda s: bool(s["sum"] == 15)),
                Prediction("Nobody asked.", lambda s: None),
            ),
            "units": lambda mode: [{"k": k, "seed": k % 2, "at": (k,)} for k in range(4)],
            "measure": self.measure,
            "summarise": lambda records: {"sum": sum(r["values"]["square"] for r in records)},
            "answer": lambda summary: f"{summary['sum']} ± 0",
            "draw": lambda result: Figure(),
        }
        return Study(**{**fields, **changes})


def test_a_result_says_everything(tmp_path: Path) -> None:
    result = carry_out(Counter().study(), "quick", tmp_path, progress=False)
    data = json.loads(result.path.read_text())
    assert data == result.data
    assert data["answer"] == result.answer == "14 ± 0"
    assert [p["held"] for p in data["predictions"]] == [True, False, None]
    assert data["seeds"] == [0, 1]
    assert data["planned"] <= data["finished"]
    assert {"machine", "torch", "python", "version", "torch_threads"} <= set(data["machine"])
    assert [r["values"]["square"] for r in data["records"]] == [0, 1, 4, 9]
    assert sorted(p.name for p in result.path.parent.iterdir()) == ["figure.png", "result.json"]


def test_ctrl_c_keeps_what_is_done_and_the_next_start_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        carry_out(Counter(stop_at=2).study(), "quick", tmp_path, progress=False)
    plan = json.loads((tmp_path / "counter" / "units" / "plan.json").read_text())
    assert plan["question"] == "What are the squares?"
    assert plan["predictions"][0] == "They add up to 14."
    assert not (tmp_path / "counter" / "result.json").exists()
    again = Counter()
    result = carry_out(again.study(), "quick", tmp_path, progress=False)
    assert again.measured == [2, 3]
    assert result.data["planned"] == plan["planned"]
    assert result.data["summary"] == {"sum": 14}


def test_a_finished_study_is_not_measured_again_unless_asked(tmp_path: Path) -> None:
    carry_out(Counter().study(), "quick", tmp_path, progress=False)
    second, third = Counter(), Counter()
    carry_out(second.study(), "quick", tmp_path, progress=False)
    assert second.measured == []
    carry_out(third.study(), "quick", tmp_path, progress=False, fresh=True)
    assert third.measured == [0, 1, 2, 3]


def test_a_result_is_extended_by_what_its_plan_lacks_and_by_no_more(tmp_path: Path) -> None:
    """On any machine: what is there stays, what is added says where it is from."""
    before = carry_out(Counter().study(), "full", tmp_path, progress=False).data
    path = tmp_path / "counter" / "result.json"
    frame.write(path, before | {"mark": "of another machine"})
    again = Counter()
    reworded = again.study(method="Multiply twice.")
    data = frame.extend(reworded, path.parent, progress=False).data
    assert again.measured == []
    assert data == before | {"mark": "of another machine", "method": "Multiply twice."}
    longer = again.study(units=lambda mode: [{"k": k, "seed": k % 2, "at": (k,)} for k in range(6)])
    stopping = Counter(stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        frame.extend(stopping.study(units=longer.units), path.parent, progress=False)
    data = frame.extend(longer, path.parent, progress=False).data
    assert (stopping.measured, again.measured) == ([4], [5])
    assert ["machine" in r for r in data["records"]] == [False] * 4 + [True] * 2
    assert json.loads(path.read_text()) == data
    assert data["summary"] == {"sum": 55}
    assert sorted(p.name for p in path.parent.iterdir()) == ["figure.png", "result.json"]


def test_a_shorter_run_never_replaces_a_longer_one(tmp_path: Path) -> None:
    full = carry_out(Counter().study(), "full", tmp_path, progress=False).path
    before = full.read_bytes()
    for fresh in (False, True):
        refused = Counter()
        with pytest.raises(
            ArgumentError, match=r"out: .*result\.json is a full run.*another folder"
        ):
            carry_out(refused.study(revision=2), "quick", tmp_path, progress=False, fresh=fresh)
        assert refused.measured == []
    assert full.read_bytes() == before
    assert sorted(p.name for p in full.parent.iterdir()) == ["figure.png", "result.json"]
    longer = carry_out(Counter().study(), "quick", tmp_path / "other", progress=False)
    again = carry_out(Counter().study(), "full", tmp_path / "other", progress=False)
    assert (longer.data["mode"], again.data["mode"]) == ("quick", "full")


@pytest.mark.parametrize("change", [{"revision": 2}, {"units": lambda mode: [{"k": 3}]}])
def test_another_plan_takes_nothing_from_the_old_one(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        carry_out(Counter(stop_at=3).study(), "quick", tmp_path, progress=False)
    other = Counter()
    carry_out(other.study(**change), "quick", tmp_path, progress=False)
    assert other.measured == ([3] if "units" in change else [0, 1, 2, 3])


def test_a_longer_plan_takes_over_what_a_shorter_one_measured(tmp_path: Path) -> None:
    short = Counter().study(units=lambda mode: [{"k": k} for k in (1, 2)])
    carry_out(short, "quick", tmp_path, progress=False)
    longer = Counter()
    units = [{"k": k} for k in (0, 1, 2, 3)]
    result = carry_out(longer.study(units=lambda mode: units), "full", tmp_path, progress=False)
    assert longer.measured == [0, 3]
    assert [r["unit"] for r in result.data["records"]] == units
    assert result.data["mode"] == "full"


def test_what_is_said_of_a_finished_study_follows_the_code(tmp_path: Path) -> None:
    first = carry_out(Counter().study(), "quick", tmp_path, progress=False).data
    again = Counter()
    changed = again.study(summarise=lambda records: {"sum": len(records)}, method="Count.")
    second = carry_out(changed, "quick", tmp_path, progress=False).data
    assert again.measured == []
    assert (second["answer"], second["method"]) == ("4 ± 0", "Count.")
    assert (second["planned"], second["finished"]) == (first["planned"], first["finished"])


def test_what_waits_for_the_first_units_is_measured_after_them(tmp_path: Path) -> None:
    def then(mode: str, records: list[Json]) -> list[Json]:
        return [{"k": sum(r["values"]["square"] for r in records)}]  # 14

    first = Counter(stop_at=14)
    with pytest.raises(KeyboardInterrupt):
        carry_out(first.study(then=then), "quick", tmp_path, progress=False)
    assert first.measured == [0, 1, 2, 3]
    again = Counter()
    told: list[tuple[int, int]] = []
    result = carry_out(
        again.study(then=then), "quick", tmp_path, lambda done, of, what: told.append((done, of))
    )
    assert again.measured == [14]
    assert result.data["summary"] == {"sum": 14 + 14**2}
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 5), (5, 5)]
    third = Counter()
    carry_out(third.study(then=then), "quick", tmp_path, progress=False)
    assert third.measured == []


def test_a_study_runs_on_its_own_number_of_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    study = Counter().study(threads=before + 1, measure=lambda unit: seen.append(
        torch.get_num_threads()) or {"square": 0})  # fmt: skip
    result = carry_out(study, "quick", tmp_path, progress=False)
    assert seen == [before + 1] * 4
    assert result.data["machine"]["torch_threads"] == before + 1
    assert torch.get_num_threads() == before


def test_a_file_cut_short_is_measured_again(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        carry_out(Counter(stop_at=3).study(), "quick", tmp_path, progress=False)
    files = (tmp_path / "counter" / "units").glob("*.json")
    next(f for f in files if '"k": 1' in f.read_text()).write_text('{"unit": {"k"')
    again = Counter()
    carry_out(again.study(), "quick", tmp_path, progress=False)
    assert again.measured == [1, 3]


def test_a_number_json_cannot_hold_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        frame.write(tmp_path / "result.json", {"x": math.nan})
    assert list(tmp_path.iterdir()) == []


def test_what_draws_is_missed_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = Counter()
    study = counter.study()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        carry_out(study, "quick", tmp_path / "out", progress=False)
    with pytest.raises(ModuleNotFoundError, match="matplotlib"):
        frame.extend(study, tmp_path / "out", progress=False)
    assert counter.measured == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [120, 80, 40])
def test_the_line_of_progress_is_whole_on_any_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    told = io.StringIO()
    console = Console(file=told, width=width, force_terminal=True, legacy_windows=False)
    monkeypatch.setattr("rich.get_console", lambda: console)
    units = [{"cell": "no_output_activation", "width": 128, "k": k} for k in range(4)]
    carry_out(Counter().study(units=lambda mode: units), "quick", tmp_path, progress=True)
    last = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", told.getvalue()).replace("\r", "\n").split("\n")
    said = [line for line in last if line.startswith("counter")]
    assert said
    assert "\u2026" not in "".join(said)
    assert all(len(line) <= width for line in said)
    assert ("\u2501" in said[-1]) == (width >= 80)  # the bar
    assert "4/4" in said[-1]


def test_progress_in_a_file_is_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr("rich.get_console", lambda: Console(file=told, width=80))
    carry_out(Counter().study(), "quick", tmp_path, progress=True)
    lines = told.getvalue().splitlines()
    assert lines[0] == "counter 0/4 k=0 seed=0 at=[0]"
    assert lines[-1] == "counter 4/4 done"
    assert len(lines) == 5


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    carry_out(Counter().study(), "quick", tmp_path, lambda done, of, what: told.append((done, of)))
    assert told == [(k, 4) for k in range(5)]
