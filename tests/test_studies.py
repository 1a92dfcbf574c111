"""The studies: their plans, their arithmetic, and the directions of what they find."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

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
    gate_by_gate,
    same_loss,
    stats,
    tasks,
)
from gatewise.studies.frame import Json, Study
from gatewise.studies.learn import Recipe, train
from gatewise.studies.networks import DESIGNS, LAYERS, Design, Reader, equal_hidden_size, parameters

# --- the plans ----------------------------------------------------------------


def test_unknown_names_and_modes_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"expected one of gradient-reach.*got 'gradient'"):
        studies.run("gradient", "quick", tmp_path)
    with pytest.raises(ArgumentError, match="mode: expected one of quick, default, full"):
        studies.run("price", "fast", tmp_path)  # type: ignore[arg-type]


def planned(study: Study, mode: studies.Mode) -> list[Json]:
    """Every unit, as if all pilots had failed alike."""
    records = []
    for units in frame.stages(study, mode, records):
        records += [{"unit": u, "values": {"solved_at": None, "best": 0.5}} for u in units]
    return [r["unit"] for r in records]


@pytest.mark.parametrize("name", studies.names())
def test_every_study_is_planned_in_every_mode(name: str) -> None:
    study = studies.load(name)
    assert study.name == name
    assert study.question.endswith("?")
    assert study.predictions
    plans = [planned(study, mode) for mode in studies.MODES]
    assert [len(plan) for plan in plans] == sorted(len(plan) for plan in plans)
    for plan in plans:
        units = [json.dumps(unit) for unit in plan]
        assert len(set(units)) == len(units)


@pytest.mark.parametrize("name", studies.names())
def test_a_full_run_has_five_seeds_of_everything(name: str) -> None:
    seeds: dict[str, set[int]] = {}
    for unit in planned(studies.load(name), "full"):
        if "seed" in unit and "pilot" not in unit:
            apart = ("seed", "sequences")  # in long-lag some seeds are trained for longer
            kind = json.dumps({k: v for k, v in unit.items() if k not in apart})
            seeds.setdefault(kind, set()).add(unit["seed"])
    derived = {kind for kind in seeds if '"no clipping"' in kind}  # see long_lag.why
    assert all(len(found) >= 5 for kind, found in seeds.items() if kind not in derived)


@pytest.mark.parametrize(
    ("name", "one_rate", "another"),
    [("gate-by-gate", 0.01, 0.03), ("both-directions", 0.005, 0.05)],
)
def test_only_what_has_another_best_rate_is_measured_again(
    name: str, one_rate: float, another: float
) -> None:
    """All pilots favour the one rate but those of one network on one task."""
    study = studies.load(name)
    pilots = [unit for unit in study.units("full") if "pilot" in unit]
    special = {key: pilots[-1][key] for key in ("task", "cell", "network") if key in pilots[-1]}

    def record(unit: Json) -> Json:
        best = another if special.items() <= unit.items() else one_rate
        return {"unit": unit, "values": {"solved_at": None, "best": 0.1 + (unit["rate"] != best)}}

    again = study.then("full", [record(unit) for unit in pilots])
    tried = [unit for unit in pilots if special.items() <= unit.items() and unit["rate"] == another]
    assert len(again) == 5 * len(tried) > 0
    assert {unit["rate"] for unit in again} == {another}
    assert all(special.items() <= unit.items() and "pilot" not in unit for unit in again)
    assert {unit["seed"] for unit in again} == set(range(5))


# --- the arithmetic -----------------------------------------------------------


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


def test_identity_starts_as_the_identity() -> None:
    net = Reader(DESIGNS["RNN relu, identity"], 2, 4, 1, seed=0).layer
    assert torch.equal(net.get_parameter("weight_hh_l0"), torch.eye(4))
    assert not net.get_parameter("bias_ih_l0").any()
    assert not net.get_parameter("bias_hh_l0").any()
    torch_s = Reader(DESIGNS["RNN relu"], 2, 4, 1, seed=0).layer
    assert torch.equal(net.get_parameter("weight_ih_l0"), torch_s.get_parameter("weight_ih_l0"))


def test_every_gate_has_an_orthogonal_matrix_of_the_size_asked() -> None:
    net = Reader(Design("lstm", gain=3.0), 2, 4, 1, seed=0).layer
    for gate in net.get_parameter("weight_hh_l0").detach().split(4):
        assert torch.allclose(gate @ gate.T, 9 * torch.eye(4), atol=1e-5)


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


@pytest.mark.filterwarnings("ignore:the rounds of one measurement")
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


def test_a_busy_machine_is_noticed() -> None:
    def timed(*seconds: float) -> None:
        ends = (at for k, took in enumerate(seconds) for at in (100.0 * k, 100.0 * k + took))
        clock.in_turn({"a": lambda: None}, len(seconds) - 1, least=0.0, now=lambda: next(ends))

    timed(9.0, 1.0, 2.9, 1.0)  # the first is a warm-up
    with pytest.warns(UserWarning, match="differ by more than 3 times: the machine is busy"):
        timed(9.0, 1.0, 3.1, 1.0)


def test_one_disturbed_way_is_enough_to_notice() -> None:
    passed = [0.0]
    took = {"a": iter([1.0, 1.0, 1.0, 3.1]), "b": repeat(1.0)}  # two calls come before the rounds
    ways = {name: partial(lambda name: passed.append(next(took[name])), name) for name in took}
    with pytest.warns(UserWarning, match="differ by more than 3 times: the machine is busy"):
        clock.in_turn(ways, rounds=2, least=0.0, now=lambda: sum(passed))


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


def test_the_answer_of_gate_by_gate() -> None:
    def measured(task: str, cell: str, errors: list[float], solved: int) -> Json:
        there = {"error": 0.1, "half": 0.5, "errors": errors, "solved": solved}
        return {"task": task, "cell": cell, **there, "one_rate": dict(there)}

    study, cells = studies.load("gate-by-gate"), gate_by_gate.CELLS_SHOWN
    even = [0.1, 0.2, 0.1, 0.2, 0.1]  # far apart, and the same for all: seed by seed no difference
    rows = [measured(task, cell, even, 5) for task in ("adding", "text") for cell in cells]
    summary = {"rows": rows, "tasks": ["adding", "text"], "one_rate": 0.01, "tuning": []}
    begin = "The LSTM with one part taken out, beside the whole (forget bias 1, 5 seeds; each at"
    assert study.answer(summary) == f"{begin} 0.01 for all). On adding and text no part is missed."
    for row in rows:
        if row["cell"] == "no_input_gate":
            row["solved"], row["errors"] = 1, [0.13, 0.22, 0.13, 0.22, 0.13]
        if row["cell"] == "no_output_gate":
            row["solved"] = 2  # of five: chance does that
    alone = [row | {"errors": row["errors"][:1], "solved": 0} for row in rows]
    assert not any(gate_by_gate.missed_on(alone, cell) for cell in cells)  # one seed is chance
    summary["tuning"] = [{}]
    assert study.answer(summary) == (
        f"{begin} its own best rate, then at 0.01 for all). Adding is solved by the whole at 5, "
        "then 5 seeds; without the input gate at 1, then 5. On text the error of the whole (0.1, "
        "then 0.1) changes without the input gate by +0.0260 ± 0.0068, then +0 ± 0."
    )


def test_the_answer_of_price_follows_the_numbers() -> None:
    def summary(ours: float, torchs: float) -> Json:
        ratios = {
            "gatewise.LSTM / gatewise.RNN": [ours, 0.9 * ours, 1.1 * ours],
            "torch.nn.LSTM / torch.nn.RNN": [torchs, torchs, torchs],
            "gatewise.LSTM / torch.nn.RNN": [0.5, 0.4, 0.6],
        }
        return {"steps": [{"H": H, "phase": "training", "ratios": ratios} for H in (32, 64)]}

    answer = studies.load("price").answer
    assert answer(summary(3.0, 1.0)) == (
        "With the same kernels, gatewise over gatewise, a float32 training step of an LSTM takes "
        "3.00 [2.70, 3.30] (H = 32) to 3.00 [2.70, 3.30] (H = 64) times as long as a plain RNN's: "
        "the textbooks are right. In torch it takes 1.00 [1.00, 1.00] (H = 32) to 1.00 [1.00, 1.00]"
        " (H = 64) times as long, because torch runs the plain RNN step by step as many small "
        "operations and the LSTM in one fused call. gatewise.LSTM in place of torch.nn.RNN takes "
        "0.50 [0.40, 0.60] (H = 32) to 0.50 [0.40, 0.60] (H = 64) times as long."
    )
    assert "the textbooks are wrong" in answer(summary(1.05, 1.0))  # 0.95 to 1.16
    assert "because torch" not in answer(summary(3.0, 3.5))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the rounds of one measurement")
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
    plain = {gain: row["mean"][0] for gain, row in summary["gains"]["RNN tanh"].items()}
    assert plain["0.8"] < plain["1.0"] < 0 < plain["2.0"]
