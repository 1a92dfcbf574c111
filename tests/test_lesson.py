"""The lesson made from the results: it says what they say, in numbers and in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from gatewise import studies
from gatewise.studies import frame, lesson, long_lag

LEARN = Path(__file__).parents[1] / "docs" / "learn"


def test_the_lesson_says_what_the_results_say() -> None:
    page = (LEARN / "strengths-and-price.md").read_text(encoding="utf-8")
    assert page == lesson.render(LEARN / "results", "results"), "run: make studies"


@pytest.mark.parametrize("name", studies.names())
def test_a_result_says_what_its_records_say(name: str) -> None:
    study = studies.load(name)
    data = json.loads((LEARN / "results" / name / "result.json").read_text("utf-8"))
    summary = json.loads(json.dumps(study.summarise(data["records"])))
    assert data["summary"] == summary
    assert data["answer"] == study.answer(summary)
    assert [p["held"] for p in data["predictions"]] == [
        prediction.holds(summary) for prediction in study.predictions
    ]
    planned = chain.from_iterable(frame.stages(study, data["mode"], data["records"]))
    assert [r["unit"] for r in data["records"]] == list(planned)


def test_the_words_on_bai_et_al_are_true_of_the_results() -> None:
    """What the lesson says in words, not in numbers, of why their LSTM failed."""
    data = json.loads((LEARN / "results" / "long-lag" / "result.json").read_text("utf-8"))
    why = data["summary"]["why"]

    def solved(change: str, row: int = 0) -> float:
        return float(np.mean([n is not None for n in why[change][row]["solved_at"]]))

    slow = ("their settings", "forget bias 0", "forget bias 5", "input bias -5", "no clipping")
    soon = ("chrono", "forget bias 5, input bias -5", "coupled, f = 1 - i")
    assert all(solved(change) <= 0.2 for change in slow)
    assert all(solved(change) >= 0.8 for change in soon)
    assert all(len(outcomes[0]["solved_at"]) == 5 for outcomes in why.values())
    assert 0 < solved("their settings", -1) < 1
    assert solved("rate 0.01") > solved("their settings")
    norms = data["summary"]["why_norms"]
    assert max(norms["no clipping"]) < long_lag.THEIRS["clip"]
    assert len(norms["no clipping"]) == len(norms["their settings"]) == 5


def test_the_words_on_reach_are_true_of_the_results() -> None:
    data = json.loads((LEARN / "results" / "gradient-reach" / "result.json").read_text("utf-8"))
    start, trained = (data["summary"]["slopes"][when] for when in ("start", "trained"))
    slope = {name: found["h"][0] for name, found in start.items()}
    assert slope["RNN tanh, orthogonal"] > slope["LSTM, forget bias 1"] > slope["LSTM"]
    held = "RNN relu, identity"
    plain = [row["h"][0] for name, row in trained.items() if "RNN" in name and name != held]
    assert trained["LSTM"]["h"][0] > -1 > -10 > max(plain)
    assert start[held]["each_h"] == [0.0] * 5
    assert trained[held]["solved"] >= 4
    assert min(trained[held]["each_h"]) < min(trained["LSTM"]["each_h"])
    for steps in ("10", "100"):  # paid once, on the way from h into the cell, and held there
        assert trained["LSTM"]["at"][steps] < trained["LSTM"]["at_c"][steps] - 1 < -1.5
    gains = data["summary"]["gains"]
    assert min(gains["RNN tanh"]["2.0"]["each"]) > 0 > max(gains["LSTM"]["2.0"]["each"])
    assert all(min(gains[name]["16.0"]["each"]) > 0 for name in gains)
    cut = data["summary"]["clipping"]["1.0"]
    assert cut["lost"] == 0 < cut["no_better"]


def test_the_words_on_a_plain_rnn_that_is_told_to_hold_are_true_of_the_results() -> None:
    data = json.loads((LEARN / "results" / "long-lag" / "result.json").read_text("utf-8"))
    solved = {(r["task"], r["T"], r["network"]): r["solved"] for r in data["summary"]["rows"]}
    assert solved["adding", 100, "RNN relu, identity"] > solved["adding", 100, "RNN tanh"]


def test_the_words_on_the_price_are_true_of_the_results() -> None:
    """An LSTM takes longer than a plain RNN at every size where the same kernels run both."""
    data = json.loads((LEARN / "results" / "price" / "result.json").read_text("utf-8"))
    for row in data["summary"]["steps"]:
        assert row["ratios"]["gatewise.LSTM / gatewise.RNN"][1] > 1
        both = (row["ratios"][f"{made}.LSTM / {made}.RNN"] for made in ("torch.nn", "gatewise"))
        assert next(both)[0] < next(both)[0]


def test_where_adding_is_not_tuned_all_have_the_rate_that_the_page_names() -> None:
    data = json.loads((LEARN / "results" / "long-lag" / "result.json").read_text("utf-8"))
    tuned = {(r["unit"]["task"], r["unit"]["T"]) for r in data["summary"]["tuning"]}
    rates = {(r["task"], r["T"], r["network"]): r["rate"] for r in data["summary"]["rows"]}
    others = {key: rate for key, rate in rates.items() if key[:2] not in tuned}
    assert {(task, T) for task, T, _ in others} == {
        ("adding", 200),
        ("adding", 400),
        ("adding", 750),
    }
    for (_, T, network), rate in others.items():
        assert rate == (rates["adding", 100, network] if T == 200 else 0.01)
    said = "over 200 steps each network has its rate of 100 steps, over more all have 0.01"
    assert said in data["method"]


@pytest.mark.parametrize(
    ("args", "folder"),
    [("", "docs/learn"), ("--full --fresh", "docs/learn"),
     ("--quick", "build/studies"), ("--fresh", "build/studies")],
)  # fmt: skip
def test_make_studies_writes_the_page_only_from_full_results(args: str, folder: str) -> None:
    alone = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    made = subprocess.run(
        ["make", "--dry-run", "--assume-old=setup", "studies", f"ARGS={args}"],
        cwd=LEARN.parents[1], capture_output=True, text=True, check=True, env=alone,
    ).stdout.splitlines()  # fmt: skip
    study, page = (next(line for line in made if word in line) for word in ("study", "lesson"))
    assert f"--all --out {folder}/results {args or '--full'}" in study
    assert f"studies.lesson {folder}/results {folder}/strengths-and-price.md" in page


def test_a_figure_is_drawn_from_the_result_alone() -> None:
    """The literature in a figure is what the file says, not what the code says by now."""
    study = studies.load("long-lag")
    data = json.loads((LEARN / "results" / "long-lag" / "result.json").read_text("utf-8"))
    changed = {"adding 100": 123.0, "bai": 0.4}
    data["published"] = [p | {"value": changed.get(p["key"], 9.0)} for p in data["published"]]
    left, right = study.draw(data).axes
    assert 123.0 in [x for line in left.lines for x in line.get_xdata()]
    assert 0.4 in [y for line in right.lines for y in line.get_ydata()]


@pytest.mark.parametrize("name", studies.names())
def test_the_figure_was_drawn_from_the_result_beside_it(name: str) -> None:
    from PIL import Image

    folder = LEARN / "results" / name
    with Image.open(folder / "figure.png") as picture:
        assert picture.info["Source"] == frame.digest((folder / "result.json").read_text("utf-8"))


def test_a_changed_result_changes_the_lesson(tmp_path: Path) -> None:
    for name in studies.names():
        data = json.loads((LEARN / "results" / name / "result.json").read_text("utf-8"))
        if name == "price":
            data["summary"]["steps"][0]["ratios"]["gatewise.LSTM / torch.nn.RNN"][0] += 1
        (tmp_path / name).mkdir()
        frame.write(tmp_path / name / "result.json", data)
    page = (LEARN / "strengths-and-price.md").read_text(encoding="utf-8")
    assert lesson.render(tmp_path, "results") != page


@pytest.mark.parametrize("more", [(), ("--extend",)])
def test_what_is_missing_is_said_before_anything_is_measured(
    more: tuple[str, ...], tmp_path: Path
) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    for name in studies.names()[:-1]:
        (results / name).mkdir(parents=True)
        (results / name / "result.json").write_text("{}")
    ended = subprocess.run(
        [sys.executable, "-m", "gatewise.studies.lesson", *more, results, page],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith(f"{results}: no result of {studies.names()[-1]}; gatewise study")
    assert not page.exists()
