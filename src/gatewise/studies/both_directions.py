"""What does the second direction bring, and what does it cost?"""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gatewise.studies import clock, realdata, stats, style, tuning, wording
from gatewise.studies.frame import Json, Mode, Prediction, Study, pick
from gatewise.studies.learn import Recipe, loss_of, read, train
from gatewise.studies.networks import Design, Reader, equal_hidden_size
from gatewise.studies.tasks import Task, shifted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Forget bias 1 in every LSTM.
NETWORKS = {
    "RNN": Design("rnn"),
    "LSTM": Design("lstm", forget=1.0),
    "Bi-RNN": Design("rnn", both=True),
    "Bi-LSTM": Design("lstm", both=True, forget=1.0),
}
#: What they are called where LSTMs that start in another way are about.
SHOWN = {
    name: f"{name}, forget bias 1" if design.forget else name for name, design in NETWORKS.items()
}
SIZINGS = ("same hidden size", "same parameters")
#: The LSTM is the measure of both.
_PAIRS = [(n, s) for s in SIZINGS for n in NETWORKS if (n, s) != ("LSTM", "same parameters")]
_LOOKS = {
    "RNN": "RNN tanh",
    "LSTM": "LSTM, forget bias 1",
    "Bi-RNN": "Bi-RNN",
    "Bi-LSTM": "Bi-LSTM",
}

#: Whether a task can be done without the right-hand side.
NEEDS_RIGHT = {"steps ahead": True, "steps back": False, "text": True, "vowels": False}

_SIZES: dict[Mode, Json] = {
    "quick": {"hidden": 12, "seeds": 2, "rates": [0.01],
              "tasks": [["steps ahead", 3, 3_200], ["steps back", 3, 3_200]]},
    "default": {"hidden": 32, "seeds": 3, "rates": [0.005],
                "tasks": [["steps ahead", 5, 25_600], ["steps back", 5, 25_600],
                          ["text", 60, 25_600], ["vowels", 0, 9_600]]},
    "full": {"hidden": 32, "seeds": 5, "rates": [0.005, 0.0015, 0.015, 0.05],
             "tasks": [["steps ahead", 5, 25_600], ["steps back", 5, 25_600],
                       ["text", 60, 25_600], ["vowels", 0, 9_600]]},
}  # fmt: skip


def task_of(name: str, size: int) -> Task:
    """A task of this study; ``size`` is the shift, or the letters of a piece of text."""
    T = _length(name, size)
    if T is None:
        return realdata.vowels()
    if name == "text":
        return realdata.text(T)
    return shifted(T, size if name == "steps back" else -size)


def _length(name: str, size: int) -> int | None:
    """The steps of a task; a vowel is as long as it is."""
    return {"vowels": None, "text": size}.get(name, 6 * size)


def units(mode: Mode) -> list[Json]:
    """The time of a step; all networks at one learning rate; the pilots of the others."""
    size, runs = _SIZES[mode], _runs(mode)
    steps: list[Json] = [
        {"kind": "step", "task": task, "size": length, "hidden": size["hidden"], "rounds": 15}
        for task, length, _ in _tasks(mode)
    ]
    return steps + [tuning.at(unit["rates"][0], unit) for unit in runs] + tuning.pilots(runs)


def then(mode: Mode, records: list[Json]) -> list[Json]:
    """Each network at its own best rate, where that is not the one that it has been measured at."""
    tuned = tuning.tuned(_runs(mode), records, tuning.error)
    return [unit for unit in tuned if unit["rate"] != _SIZES[mode]["rates"][0]]


def _runs(mode: Mode) -> list[Json]:
    """Seed by seed, so that a run that is stopped has the same seeds of everything."""
    size = _SIZES[mode]
    return [
        {"task": task, "size": length, "network": network, "sizing": sizing, "seed": seed,
         "sequences": sequences, "rates": size["rates"], "hidden": size["hidden"]}
        for seed in range(size["seeds"])
        for task, length, sequences in _tasks(mode)
        for network, sizing in _PAIRS
    ]  # fmt: skip


def _tasks(mode: Mode) -> list[list[Any]]:
    """Name, size and sequences of what can be run here."""
    return [each for each in _SIZES[mode]["tasks"] if each[0] != "vowels" or realdata.has_vowels()]


def measure(unit: Json) -> Json:
    if "kind" in unit:
        return _steps(unit)
    net, task = _net(unit, unit["network"], unit["sizing"]), task_of(unit["task"], unit["size"])
    recipe = Recipe(unit["sequences"], rate=unit["rate"], looks=10, until_solved=False)
    return {"hidden": net.hidden_size, "baseline": task.baseline, "error_is": task.error,
            **train(net, task, recipe, unit["seed"])}  # fmt: skip


def _net(unit: Json, network: str, sizing: str) -> Reader:
    design, task, H = NETWORKS[network], task_of(unit["task"], unit["size"]), unit["hidden"]
    if sizing == "same parameters":
        H = equal_hidden_size(design, task.inputs, task.outputs, H)
    return Reader(design, task.inputs, H, task.outputs, unit.get("seed", 0))


def _steps(unit: Json) -> Json:
    """Milliseconds of processor time of a forward and backward: each network, taking turns."""
    task = task_of(unit["task"], unit["size"])
    batch = task.draw(32, np.random.default_rng(0))

    def step(net: Reader) -> None:
        torch.autograd.grad(loss_of(task, read(net, task, batch), batch), list(net.parameters()))

    ways = {
        f"{network}, {sizing}": partial(step, _net(unit, network, sizing))
        for network, sizing in _PAIRS
    }
    return clock.medians(clock.in_turn(ways, unit["rounds"], now=time.process_time))


def summarise(records: list[Json]) -> Json:
    learned = pick(records, kind=None)
    one_rate = learned[0]["unit"]["rate"]
    steps = {r["unit"]["task"]: r["values"] for r in pick(records, kind="step")}
    rows = tuning.outcomes(learned, one_rate)
    for found in rows:
        name = f"{found['network']}, {found['sizing']}"
        found["milliseconds"] = steps[found["task"]][name][0]
    tasks = list(dict.fromkeys(found["task"] for found in rows))
    sizes = tuning.sizes(learned, lambda unit: _length(unit["task"], unit["size"]))
    return {"rows": rows, "tasks": tasks, "H": sizes["hidden"], "sizes": sizes,
            "one_rate": one_rate, "tuning": tuning.choices(learned, tuning.error)}  # fmt: skip


def row(summary: Json, task: str, network: str, sizing: str = SIZINGS[0]) -> Json:
    """One network on one task; the LSTM is the same row at both sizings."""
    sizing = SIZINGS[0] if network == "LSTM" else sizing
    wanted = (task, network, sizing)
    found: Json = next(
        r for r in summary["rows"] if (r["task"], r["network"], r["sizing"]) == wanted
    )
    return found


def equal(one: Json, other: Json) -> bool:
    """Whether two errors are no further apart than their seeds: differences seed by seed."""
    pairs = zip(one["errors"], other["errors"], strict=True)
    apart, half = stats.mean([a - b for a, b in pairs])
    return abs(apart) <= half


def answer(summary: Json) -> str:
    parts, times = [], []
    for task in summary["tasks"]:
        one, two = row(summary, task, "LSTM"), row(summary, task, "Bi-LSTM")
        small = row(summary, task, "Bi-LSTM", SIZINGS[1])
        errors = ", ".join(map(wording.error, (one, two, small)))
        parts.append(f"{task} {errors}" + " (equal)" * (equal(one, two) and equal(one, small)))
        times.append(two["milliseconds"] / one["milliseconds"])
    return (
        "Held-out error of the LSTM (forget bias 1), of the Bi-LSTM of the same hidden size and of "
        f"the Bi-LSTM of the same parameters, {tuning.said(summary['tuning'])}: "
        f"{'; '.join(parts)}. At the same hidden size ({summary['H']}) a step takes "
        f"{min(times):.1f} to {max(times):.1f} times as long with a second direction."
    )


#: Errors below this stand at the left edge of the figure.
_LEAST = 3e-4


def draw(result: Json) -> Figure:
    """A line of dots a network."""
    summary = result["summary"]
    tasks = summary["tasks"]
    figure, axes = style.canvas((len(tasks) + 1) // 2, 2, result["question"], height=3.4)
    for ax, task in zip(axes, tasks, strict=True):
        for k, (network, sizing) in enumerate(_PAIRS):
            found = row(summary, task, network, sizing)
            looks = style.look(_LOOKS[network], linestyle="", markersize=8)
            face = looks["color"] if sizing == SIZINGS[0] else "white"
            style.seeds(ax, k, found["errors"], _LEAST, **looks, markerfacecolor=face)
        side = "both sides count" if NEEDS_RIGHT[task] else "the left side is enough"
        ax.set(title=f"{task}: {side}", xscale="log", xlabel=f"{found['error_is']}, held out")
        names = [f"{SHOWN[network]},\n{sizing}" for network, sizing in _PAIRS]
        ax.set_yticks(range(len(_PAIRS)), names if ax in axes[::2] else [], fontsize=9)
        few = any(e < _LEAST for r in summary["rows"] if r["task"] == task for e in r["errors"])
        style.limits(ax, len(_PAIRS), found["baseline"], _LEAST if few else None)
        style.plain(ax, "x")
    return figure


def _needs(summary: Json) -> bool:
    """Where the right-hand side is needed, even an equally small Bi-LSTM beats the LSTM."""
    return all(
        row(summary, t, "Bi-LSTM", SIZINGS[1])["error"] < row(summary, t, "LSTM")["error"]
        for t in summary["tasks"]
        if NEEDS_RIGHT[t]
    )


def _back(summary: Json) -> bool | None:
    """Where it is not needed, the Bi-LSTM of equal parameters is no better than the LSTM."""
    if "steps back" not in summary["tasks"]:
        return None
    two, one = row(summary, "steps back", "Bi-LSTM", SIZINGS[1]), row(summary, "steps back", "LSTM")
    return bool(two["error"] >= one["error"] - one["half"])


STUDY = Study(
    name="both-directions",
    question="What does the second direction bring, and what does it cost?",
    method=(
        "RNN, LSTM and both in two directions, at equal hidden size and at the parameters of the "
        "one-directional LSTM. Adam, batch 32, clip 1, forget bias 1. Equal tuning: each network "
        "at its own best of the same learning rates, found on each task by pilots of equal length "
        "from a seed that does not count. All were measured at 0.005, chosen before, as well: "
        "answer, figure and predictions are of the first kind. The layer's two directions as in "
        "Graves and Schmidhuber 2005. Tasks: say the sign that comes a "
        "few steps later, or came a few steps before; where words end in text without spaces; "
        "which of nine speakers said a vowel. The step is one forward and backward of a batch of "
        "32 in processor time, the networks in turn, the median of 15 rounds. Error: best of ten "
        "looks at the held-out set, which flatters all alike; on vowels the learning rates, too, "
        f"are chosen on the {realdata.VOWELS_HELD_OUT} published test utterances, there being no "
        "others. Equal: the difference seed by seed is within its 95 % interval. Dashed: who "
        "remembers nothing."
    ),
    predictions=(
        Prediction(
            "On every task that needs the right-hand side the Bi-LSTM beats the LSTM even at equal "
            "parameters.",
            _needs,
        ),
        Prediction(
            "On the task that needs only the left-hand side a Bi-LSTM of equal parameters is no "
            "better.",
            _back,
        ),
        Prediction(
            "At equal hidden size the second direction takes 1.5 to 2.2 times the step.",
            lambda s: all(
                1.5
                <= row(s, t, "Bi-LSTM")["milliseconds"] / row(s, t, "LSTM")["milliseconds"]
                <= 2.2
                for t in s["tasks"]
            ),
        ),
    ),
    units=units,
    then=then,
    threads=1,
    measure=measure,
    summarise=summarise,
    answer=answer,
    draw=draw,
)
