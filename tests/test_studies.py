"""The studies: their frame, their arithmetic, what they find, and the lesson they make."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import gatewise
from gatewise import CELLS, studies
from gatewise.errors import ArgumentError
from gatewise.studies import (
    clock,
    cost_of_seeing,
    frame,
    lesson,
    same_loss,
    stats,
    tasks,
)
from gatewise.studies import gradient_reach as reach
from gatewise.studies.frame import Json, Prediction, Study, carry_out
from gatewise.studies.learn import Recipe, train
from gatewise.studies.networks import DESIGNS, LAYERS, Design, Reader, equal_hidden_size, parameters

ROOT = Path(__file__).parents[1]
LEARN = ROOT / "docs" / "learn"


# --- the frame ----------------------------------------------------------------


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


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    carry_out(Counter().study(), "quick", tmp_path, lambda done, of, what: told.append((done, of)))
    assert told == [(k, 4) for k in range(5)]


def test_unknown_names_and_modes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"expected one of gradient-reach.*got 'gradient'"):
        studies.run("gradient", "quick", tmp_path)
    with pytest.raises(ArgumentError, match="mode: expected one of quick, default, full"):
        studies.run("price", "fast", tmp_path)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", studies.names())
def test_every_study_is_planned_in_every_mode(name: str) -> None:
    study = studies.load(name)
    assert study.name == name
    assert study.question.endswith("?")
    assert study.predictions
    sizes = [len(study.units(mode)) for mode in studies.MODES]
    assert sizes == sorted(sizes)
    for mode in studies.MODES:
        units = [json.dumps(unit) for unit in study.units(mode)]
        assert len(set(units)) == len(units)
    full = {unit["seed"] for unit in study.units("full") if "seed" in unit}
    assert not full or len(full) >= 5


# --- the arithmetic -----------------------------------------------------------


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "linear"])
def test_reach_is_what_autograd_says(cell: str) -> None:
    torch.manual_seed(0)
    T, B, I, H = 12, 3, 2, 5
    spec = CELLS[cell]
    net = gatewise.LSTM(I, H, cell=cell, dtype=torch.float64)
    w = gatewise.Weights(
        *(net.get_parameter(f"{n}_l0").detach() for n in ("weight_ih", "weight_hh", "bias_ih")),
        b_hh=net.bias_hh_l0.detach(),
        peep=net.weight_peep_l0.detach() if spec.peephole else None,
    )
    x, v = torch.randn(T, B, I).double(), torch.randn(B, H).double()
    log_h, log_c = reach.reach(spec, x, w, v)
    h = c = torch.zeros(B, H).double().requires_grad_()
    hs, cs = [], []
    for x_t in x:
        s = gatewise.step(spec, x_t, h, c, w)
        h, c = s.h, s.c
        h.retain_grad()
        c.retain_grad()
        hs.append(h)
        cs.append(c)
    (v * h).sum().backward()
    for t in range(T):
        for found, state in ((log_h[t], hs[t]), (log_c[t], cs[t])):
            assert state.grad is not None
            assert torch.allclose(10**found, state.grad.norm(dim=1), rtol=1e-10, atol=0)


def test_reach_goes_on_where_float64_ends() -> None:
    w = gatewise.Weights(torch.zeros(4, 1).double(), torch.zeros(4, 1).double())
    T = 2000  # every gate is 1/2: the cell keeps a half of its gradient at each step
    _, log_c = reach.reach(
        CELLS["lstm"], torch.zeros(T, 1, 1).double(), w, torch.ones(1, 1).double()
    )
    assert log_c[0, 0] < -600
    expected = math.log10(0.5) * torch.arange(T, 0, -1).double()
    assert torch.allclose(log_c[:, 0], expected, rtol=1e-12)
    curve = reach.by_distance(log_c)
    assert math.isclose(reach.slope(curve) or 0, -100 * math.log10(2), rel_tol=1e-9)
    assert reach.ends(curve, reach.FLOAT32) == 125


def test_reach_agrees_with_the_trace() -> None:
    torch.manual_seed(1)
    lstm = gatewise.LSTM(2, 6, dtype=torch.float64)
    x, v = torch.randn(15, 2, 2).double(), torch.randn(2, 6).double()
    w = gatewise.Weights(*(p.detach() for p in lstm.parameters()))
    _, log_c = reach.reach(CELLS["lstm"], x, w, v)
    trace = lstm.trace(x)
    (trace.output[-1] * v).sum().backward()
    seen = trace.grad.c[0, 0].norm(dim=-1)
    assert torch.allclose(10**log_c, seen, rtol=1e-9, atol=0)


def test_a_dead_gradient_is_no_slope() -> None:
    assert reach.slope(np.full(50, -np.inf)) is None
    assert reach.ends(np.array([0.0, -np.inf]), reach.FLOAT64) == 1


def test_interval_of_a_mean() -> None:
    centre, half = stats.mean([4.0, 6.0])
    assert centre == 5
    assert math.isclose(half, 12.706 * math.sqrt(2) / math.sqrt(2), rel_tol=1e-3)
    assert stats.mean([7.0]) == (7.0, 0.0)


@pytest.mark.parametrize("n", [7, 11, 15, 31])
def test_interval_of_a_median_covers_what_it_says(n: int) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        _, low, high = stats.middle(rng.exponential(size=n).tolist())
        hits += low <= math.log(2) <= high
    assert hits / 2000 > 0.94


def test_exponent_of_a_power() -> None:
    assert math.isclose(stats.exponent([1, 10, 100], [5, 500, 50_000]), 2)


@pytest.mark.parametrize("cell", [name for name in CELLS if name != "linear"])
def test_parameters_are_counted_as_the_layer_has_them(cell: str) -> None:
    net = gatewise.LSTM(3, 5, cell=cell, bidirectional=True)
    assert sum(p.numel() for p in net.parameters()) == parameters(cell, 3, 5, directions=2)


@pytest.mark.parametrize("name", list(DESIGNS))
def test_equal_parameters_are_equal(name: str) -> None:
    design = DESIGNS[name]
    wanted = sum(p.numel() for p in Reader(DESIGNS["LSTM"], 4, 32, 3, 0).parameters())
    H = equal_hidden_size(design, 4, 3, 32)
    found = sum(p.numel() for p in Reader(design, 4, H, 3, 0).parameters())
    assert abs(found - wanted) < 0.04 * wanted


def test_forget_bias_is_the_sum_of_two_biases() -> None:
    for both in (False, True):
        net = Reader(Design("lstm", both=both, forget=1.0), 2, 4, 1, seed=0).layer
        for end in ("", "_reverse")[: 1 + both]:
            total = net.get_parameter(f"bias_ih_l0{end}") + net.get_parameter(f"bias_hh_l0{end}")
            assert total[4:8].tolist() == [1.0] * 4
            assert (total[:4] != 1).all()


def test_coupled_cell_starts_at_the_same_forget_gate() -> None:
    net = Reader(Design("coupled", forget=1.0), 2, 4, 1, seed=0).layer
    total = net.get_parameter("bias_ih_l0") + net.get_parameter("bias_hh_l0")
    assert total[:4].tolist() == [-1.0] * 4  # f = 1 - sigmoid(-1) = sigmoid(1)


def test_chrono_biases_hold_as_long_as_asked() -> None:
    net = Reader(Design("lstm", chrono=100), 2, 500, 1, seed=0).layer
    total = (net.get_parameter("bias_ih_l0") + net.get_parameter("bias_hh_l0")).view(4, 500)
    times = total[1].exp()
    assert times.min() >= 1
    assert 95 < times.max() <= 99
    assert torch.equal(total[0], -total[1])


def test_both_gates_start_where_they_are_told() -> None:
    net = Reader(Design("lstm", forget=5.0, entry=-5.0), 2, 4, 1, seed=0).layer
    total = net.get_parameter("bias_ih_l0") + net.get_parameter("bias_hh_l0")
    assert total[:8].tolist() == [-5.0] * 4 + [5.0] * 4
    assert (total[8:].abs() <= 1).all()


def test_equal_seeds_equal_networks_and_torchs_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    nets = [Reader(DESIGNS["LSTM"], 2, 8, 1, seed) for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    flat = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(flat[0], flat[1])
    assert not torch.equal(flat[0], flat[2])


@pytest.mark.parametrize("both", [False, True])
def test_a_shorter_sequence_is_read_at_its_own_end(both: bool) -> None:
    net = Reader(Design("lstm", both=both), 2, 6, 3, seed=0)
    x = torch.randn(9, 2, 2)
    answer = net(x, torch.tensor([9, 4]), last=True)
    alone = net(x[:4, 1:], last=True)
    assert torch.allclose(answer[1], alone[0], atol=1e-6)
    packed = pack_padded_sequence(x, torch.tensor([9, 4]), enforce_sorted=False)
    assert net(x, torch.tensor([9, 4])).shape == (9, 2, 3)
    assert len(packed.data) == 13


def test_training_learns_and_says_when() -> None:
    task = tasks.shifted(6, 1)
    net = Reader(DESIGNS["LSTM, forget bias 1"], task.inputs, 16, task.outputs, seed=0)
    found = train(net, task, Recipe(12_800, rate=0.02, looks=40), seed=0)
    assert found["solved_at"] is not None
    assert found["error"] < task.solved
    assert found["steps"] * 32 == found["solved_at"] == found["curve"][-1][0]


def test_equal_seeds_learn_equally() -> None:
    task = tasks.adding(8)
    runs = [
        train(Reader(DESIGNS["LSTM"], 2, 8, 1, 1), task, Recipe(640), seed=1)["curve"]
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_a_lost_run_is_said_to_be_lost() -> None:
    task = tasks.adding(60)
    net = Reader(Design("rnn_relu", gain=4.0), 2, 16, 1, seed=0)
    found = train(net, task, Recipe(3200, rate=1.0, clip=None, sgd=True), seed=0)
    assert found["lost"] is not None
    assert found["error"] is None
    json.dumps(found, allow_nan=False)


# --- time and memory ----------------------------------------------------------


def test_turns_are_fair_and_counted() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) for name in "ab"}  # type: ignore[misc]
    times = clock.in_turn(ways, rounds=4, least=0.0)
    assert [len(t) for t in times.values()] == [4, 4]
    assert "".join(order[4:]) == "abbaabba"


def test_another_clock_can_be_asked() -> None:
    ticks = iter(range(100))
    times = clock.in_turn({"a": lambda: None}, rounds=3, least=0.0, now=lambda: float(next(ticks)))
    assert times == {"a": [1.0, 1.0, 1.0]}


def test_ratio_is_taken_round_by_round() -> None:
    times = {"a": [2.0, 40.0, 6.0], "b": [1.0, 20.0, 3.0]}
    assert clock.ratio(times, "a", "b") == [2.0, 2.0, 2.0]


def test_kept_bytes_of_a_product() -> None:
    a, b = torch.randn(8, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    with clock.Kept() as everything:
        _ = a @ b
    with clock.Kept(a) as without_a:
        _ = a @ b
    assert everything.bytes == 4 * (8 * 4 + 4 * 5)
    assert without_a.bytes == 4 * 4 * 5


def test_our_layer_keeps_its_tape_and_no_more() -> None:
    T, B, H = 7, 3, 16
    lstm, x = gatewise.LSTM(H, H), torch.randn(T, B, H, requires_grad=True)
    with clock.Kept(x, module=lstm) as kept:
        lstm(x)
    assert 5 * T * B * H * 4 <= kept.bytes <= 7 * T * B * H * 4


def test_the_loop_of_cells_runs_the_same_network() -> None:
    torch.manual_seed(0)
    lstm, cell = gatewise.LSTM(6, 6), torch.nn.LSTMCell(6, 6)
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
        getattr(cell, part).data.copy_(getattr(lstm, f"{part}_l0").data)
    x = torch.randn(5, 2, 6)
    h, c = cost_of_seeing.loop(cell, x)
    *_, seen_c, seen_h = cost_of_seeing.look(lstm, x)
    assert torch.allclose(seen_h[0, 0], h, atol=1e-6)
    assert torch.allclose(seen_c[0, 0], c, atol=1e-6)


def test_the_four_layers_of_the_price_compute_the_same() -> None:
    x = torch.randn(4, 2, 8)
    for plain in ("RNN", "LSTM"):
        outputs = []
        for family in ("torch.nn", "gatewise"):
            torch.manual_seed(0)
            outputs.append(LAYERS[f"{family}.{plain}"][0](8, 8)(x)[0])
        assert torch.allclose(outputs[0], outputs[1], atol=1e-6)


def test_the_same_error_is_the_one_that_every_plain_rnn_reaches() -> None:
    """Two rates, two seeds: the better rate of each cell counts; seconds are pace times steps."""

    def run(cell: str, rate: float, seed: int, curve: list[list[float]]) -> Json:
        unit = {"kind": "loss", "cell": cell, "rate": rate, "seed": seed}
        values = {"best": min(e for _, e in curve), "curve": curve, "error_is": "wrong",
                  "multiply_adds_a_sequence": {"rnn": 10, "lstm": 40}[cell]}  # fmt: skip
        return {"unit": unit, "values": values}

    pace = {name: [ms, ms, ms] for name, ms in zip(LAYERS, (1.0, 8.0, 0.5, 2.0), strict=True)}
    found = same_loss.summarise([
        {"unit": {"kind": "pace"}, "values": {"milliseconds": pace}},
        run("rnn", 0.01, 0, [[32, 0.5], [64, 0.4]]),
        run("rnn", 0.01, 1, [[32, 0.5], [64, 0.3]]),
        run("rnn", 0.1, 0, [[32, 0.9], [64, 0.9]]),
        run("rnn", 0.1, 1, [[32, 0.9], [64, 0.9]]),
        run("lstm", 0.01, 0, [[32, 0.35], [64, 0.2]]),
        run("lstm", 0.01, 1, [[32, 0.6], [64, 0.2]]),
    ])  # fmt: skip
    assert math.isclose(found["target"], 0.4 * 1.02 + 1e-4, abs_tol=1e-4)
    rnn, lstm = found["layers"]["torch.nn.RNN"], found["layers"]["gatewise.LSTM"]
    assert (rnn["rate"], rnn["reached"], rnn["sequences"]) == (0.01, 2, [64, 64, 64])
    assert (lstm["sequences"], lstm["multiply_adds"]) == ([48, 32, 64], [1920, 1280, 2560])
    assert lstm["seconds"] == [0.003, 0.002, 0.004]


# --- directions, not digits ---------------------------------------------------


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where quick runs go. On one thread: they are small, and a busy machine then costs less."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path_factory.mktemp("studies")
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name", studies.names())
def test_quick_run(name: str, quick: Path) -> None:
    result = studies.run(name, "quick", quick, progress=False)
    assert result.figure.stat().st_size > 5000
    if name == "gradient-reach":
        _directions_of_reach(result.data["summary"])
    if name == "long-lag":
        errors = {r["network"]: r["error"] for r in result.data["summary"]["rows"] if r["T"] == 12}
        assert errors["LSTM, forget bias 1"] < errors["RNN tanh"]  # adding over 12 steps
    if name == "gate-by-gate":
        rows = [r for r in result.data["summary"]["rows"] if r["task"] == "vowels"]
        assert all(r["error"] < r["baseline"] / 2 for r in rows)
    if name == "both-directions":
        assert result.data["predictions"][0]["held"]
    if name == "cost-of-seeing":
        assert all(
            r["bytes"]["trace"] < r["bytes"]["cells"] for r in result.data["summary"]["rows"]
        )
    if name == "price":
        facts = result.data["summary"]["facts"][0]["layers"]
        assert facts["gatewise.LSTM"]["multiply_adds"] == 4 * facts["gatewise.RNN"]["multiply_adds"]


def _directions_of_reach(summary: Json) -> None:
    start = summary["slopes"]["start"]
    pairs = zip(start["LSTM, forget bias 1"]["each_h"], start["RNN tanh"]["each_h"], strict=True)
    assert all(lstm > rnn for lstm, rnn in pairs)
    assert summary["gains"]["0.8"][0] < summary["gains"]["1.0"][0] < 0 < summary["gains"]["2.0"][0]


# --- the lesson ---------------------------------------------------------------


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
    planned = json.loads(json.dumps(study.units(data["mode"])))
    assert [r["unit"] for r in data["records"]] == planned


def test_the_lessons_words_are_true_of_the_results() -> None:
    """What the lesson says in words, not in numbers, of the evidence on Bai et al. 2018."""
    data = json.loads((LEARN / "results" / "long-lag" / "result.json").read_text("utf-8"))
    why = data["summary"]["why"]

    def solved(change: str) -> float:
        return float(np.mean([n is not None for n in why[change]["solved_at"]]))

    slow = ("their settings", "forget bias 0", "forget bias 5", "input bias -5", "no clipping",
            "f = 1 - i, as in a GRU")  # fmt: skip
    assert all(solved(change) <= 0.2 for change in slow)
    assert all(solved(change) >= 0.8 for change in ("chrono", "forget bias 5, input bias -5"))
    assert 0 < solved("their settings, 2 times the updates") < 1
    assert solved("rate 0.01") > solved("their settings")


def test_make_studies_writes_what_the_page_is_made_of() -> None:
    recipe = (LEARN.parents[1] / "Makefile").read_text().split("\nstudies: ")[1].split("\n\n")[0]
    assert "gatewise study --all --out docs/learn/results" in recipe
    assert "studies.lesson docs/learn/results docs/learn/strengths-and-price.md" in recipe


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
