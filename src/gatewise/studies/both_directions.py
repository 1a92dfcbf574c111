"""What does the second direction bring, and what does it cost?"""

from __future__ import annotations

import time
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import torch

from gatewise.studies import realdata, stats, style
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
SIZINGS = ("same hidden size", "same parameters")
_LOOKS = {
    "RNN": "RNN tanh",
    "LSTM": "LSTM, forget bias 1",
    "Bi-RNN": "Bi-RNN",
    "Bi-LSTM": "Bi-LSTM",
}

#: Whether a task can be done without the right-hand side.
NEEDS_RIGHT = {"steps ahead": True, "steps back": False, "text": True, "vowels": False}

_SIZES: dict[Mode, Json] = {
    "quick": {"hidden": 12, "seeds": 2, "rate": 0.01,
              "tasks": [["steps ahead", 3, 3_200], ["steps back", 3, 3_200]]},
    "default": {"hidden": 32, "seeds": 3, "rate": 0.005,
                "tasks": [["steps ahead", 5, 25_600], ["steps back", 5, 25_600],
                          ["text", 60, 25_600], ["vowels", 0, 9_600]]},
    "full": {"hidden": 64, "seeds": 10, "rate": 0.003,
             "tasks": [["steps ahead", 10, 64_000], ["steps back", 10, 64_000],
                       ["text", 60, 256_000], ["vowels", 0, 19_200]]},
}  # fmt: skip


def task_of(name: str, size: int) -> Task:
    """A task of this study; ``size`` is the shift, or the letters of a piece of text."""
    if name == "text":
        return realdata.text(size)
    if name == "vowels":
        return realdata.vowels()
    return shifted(6 * size, size if name == "steps back" else -size)


def units(mode: Mode) -> list[Json]:
    size = _SIZES[mode]
    return [
        {"task": task, "size": length, "network": network, "sizing": sizing, "seed": seed,
         "sequences": sequences, "rate": size["rate"], "hidden": size["hidden"]}
        for task, length, sequences in size["tasks"]
        if task != "vowels" or realdata.has_vowels()
        for sizing in SIZINGS
        for network in NETWORKS
        if (network, sizing) != ("LSTM", "same parameters")  # the LSTM is the measure of both
        for seed in range(size["seeds"])
    ]  # fmt: skip


def measure(unit: Json) -> Json:
    task, design, H = task_of(unit["task"], unit["size"]), NETWORKS[unit["network"]], unit["hidden"]
    if unit["sizing"] == "same parameters":
        H = equal_hidden_size(design, task.inputs, task.outputs, H)
    net = Reader(design, task.inputs, H, task.outputs, unit["seed"])
    recipe = Recipe(unit["sequences"], rate=unit["rate"], looks=10, until_solved=False)
    found = train(net, task, recipe, unit["seed"])
    return {"hidden": H, "step": _step_seconds(net, task), "baseline": task.baseline,
            "error_is": task.error, **found}  # fmt: skip


def _step_seconds(net: Reader, task: Task) -> float:
    """Median of seven training steps on one batch, after two that do not count."""
    batch = task.draw(32, np.random.default_rng(0))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        torch.autograd.grad(loss_of(task, read(net, task, batch), batch), list(net.parameters()))
        times.append(time.perf_counter() - start)
    return median(times[2:])


def summarise(records: list[Json]) -> Json:
    rows = []
    for task, sizing, network in dict.fromkeys(
        (r["unit"]["task"], r["unit"]["sizing"], r["unit"]["network"]) for r in records
    ):
        here = [r["values"] for r in pick(records, task=task, sizing=sizing, network=network)]
        errors = [v["best"] if v["best"] is not None else v["baseline"] for v in here]
        centre, half = stats.mean(errors)
        rows.append({
            "task": task, "sizing": sizing, "network": network, "error": round(centre, 6),
            "half": half, "errors": errors,
            "milliseconds": round(1e3 * median(v["step"] for v in here), 3),
            **{key: here[0][key] for key in ("parameters", "hidden", "error_is", "baseline")},
        })  # fmt: skip
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return {"rows": rows, "tasks": tasks, "H": records[0]["unit"]["hidden"]}


def row(summary: Json, task: str, network: str, sizing: str = SIZINGS[0]) -> Json:
    """One network on one task; the LSTM is the same row at both sizings."""
    sizing = SIZINGS[0] if network == "LSTM" else sizing
    wanted = (task, network, sizing)
    found: Json = next(
        r for r in summary["rows"] if (r["task"], r["network"], r["sizing"]) == wanted
    )
    return found


def answer(summary: Json) -> str:
    parts = []
    for task in summary["tasks"]:
        one, two = row(summary, task, "LSTM"), row(summary, task, "Bi-LSTM")
        equal = row(summary, task, "Bi-LSTM", SIZINGS[1])
        parts.append(
            f"{task}: LSTM {_pm(one)}, Bi-LSTM {_pm(two)} ({_pm(equal)} at equal parameters), "
            f"{two['milliseconds'] / one['milliseconds']:.1f} times the step"
        )
    return f"Held-out error, H = {summary['H']}. " + "; ".join(parts) + "."


def _pm(found: Json) -> str:
    return f"{found['error']:.3g} ± {found['half']:.2g}"


def draw(result: Json) -> Figure:
    summary = result["summary"]
    tasks = summary["tasks"]
    figure, axes = style.canvas(1, len(tasks), result["question"], height=3.8)
    for ax, task in zip(axes, tasks, strict=True):
        for network in NETWORKS:
            for sizing in SIZINGS:
                if (network, sizing) == ("LSTM", SIZINGS[1]):
                    continue
                found = row(summary, task, network, sizing)
                errors = [max(e, 5e-4) for e in found["errors"]]
                looks = style.look(_LOOKS[network], linestyle="", markersize=7)
                face = looks["color"] if sizing == SIZINGS[0] else "white"
                ax.vlines(found["parameters"], min(errors), max(errors), color=looks["color"])
                ax.plot(found["parameters"], median(errors), **looks, markerfacecolor=face,
                        label=f"{network}, {sizing}")  # fmt: skip
        ax.axhline(found["baseline"], color="#888888", linewidth=0.8, linestyle="--")
        need = "needs" if NEEDS_RIGHT[task] else "does not need"
        ax.set(title=f"{task}\n({need} the right-hand side)", xscale="log", yscale="log",
        xlabel="parameters",
               ylabel=found["error_is"])  # fmt: skip
        style.plain(ax)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
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
        "one-directional LSTM. Adam at one learning rate, batch 32, clip 1, forget bias 1. Tasks: "
        "say the sign that comes a few steps later, or came a few steps before; where words end "
        "in text without spaces; which of nine speakers said a vowel. The step is one forward and "
        "backward of a batch of 32, the median of seven. Error: best of ten looks at the held-out "
        "set."
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
    measure=measure,
    summarise=summarise,
    answer=answer,
    draw=draw,
)
