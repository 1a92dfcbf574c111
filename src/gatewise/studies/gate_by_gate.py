"""Which gate matters? From the plain RNN to the LSTM, one gate at a time: the rows of CELLS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING

from gatewise.studies import realdata, stats, style
from gatewise.studies.frame import Json, Mode, Prediction, Published, Study, pick
from gatewise.studies.learn import Recipe, train
from gatewise.studies.networks import Design, Reader
from gatewise.studies.tasks import Task, named

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Rows of CELLS, from the plain RNN to the LSTM and past it, and what each lacks or adds.
CELLS_SHOWN = {
    "rnn": "plain RNN (no gate)",
    "no_forget_gate": "no forget gate",
    "no_input_gate": "no input gate",
    "no_output_gate": "no output gate",
    "no_input_activation": "no input activation",
    "no_output_activation": "no output activation",
    "coupled": "f = 1 - i",
    "lstm": "LSTM",
    "peephole": "LSTM and peepholes",
}
_REMOVED = tuple(name for name in CELLS_SHOWN if name.startswith("no_"))

_SIZES: dict[Mode, Json] = {
    "quick": {"hidden": 12, "seeds": 2, "rates": [0.01],
              "tasks": [["adding", 12, 4_800], ["vowels", 0, 3_200]]},
    "default": {"hidden": 32, "seeds": 3, "rates": [0.01],
                "tasks": [["adding", 60, 25_600], ["embedded_reber", 0, 12_800],
                          ["text", 60, 19_200], ["vowels", 0, 9_600]]},
    "full": {"hidden": 64, "seeds": 10, "rates": [0.001, 0.003, 0.01],
             "tasks": [["adding", 100, 64_000], ["embedded_reber", 0, 32_000],
                       ["text", 60, 128_000], ["vowels", 0, 19_200]]},
}  # fmt: skip


def task_of(name: str, T: int) -> Task:
    """A task of this study: real data, or one of the tests of memory."""
    if name == "text":
        return realdata.text(T)
    return realdata.vowels() if name == "vowels" else named(name, T)


def units(mode: Mode) -> list[Json]:
    size = _SIZES[mode]
    return [
        {"task": task, "T": T, "cell": cell, "seed": seed, "rate": rate, "sequences": sequences,
         "hidden": size["hidden"]}
        for task, T, sequences in size["tasks"]
        if task != "vowels" or realdata.has_vowels()
        for cell in CELLS_SHOWN
        for seed in range(size["seeds"])
        for rate in size["rates"]
    ]  # fmt: skip


def measure(unit: Json) -> Json:
    task, seed = task_of(unit["task"], unit["T"]), unit["seed"]
    net = Reader(Design(unit["cell"], forget=1.0), task.inputs, unit["hidden"], task.outputs, seed)
    recipe = Recipe(unit["sequences"], rate=unit["rate"], looks=10, until_solved=False)
    return {"baseline": task.baseline, "error_is": task.error, **train(net, task, recipe, seed)}


def summarise(records: list[Json]) -> Json:
    tasks = list(dict.fromkeys(r["unit"]["task"] for r in records))
    rows = []
    for task in tasks:
        for cell in CELLS_SHOWN:
            here = pick(records, task=task, cell=cell)
            rates = sorted({r["unit"]["rate"] for r in here})
            tried = [_errors(pick(here, rate=rate)) for rate in rates]
            best = min(range(len(rates)), key=lambda k: median(tried[k]))
            centre, half = stats.mean(tried[best])
            rows.append({
                "task": task, "cell": cell, "rate": rates[best], "errors": tried[best],
                "error": round(centre, 6), "half": half,
                **{k: here[0]["values"][k] for k in ("parameters", "error_is", "baseline")},
            })  # fmt: skip
    ranks = {
        cell: [
            1 + sum(other["error"] < row["error"] for other in rows if other["task"] == row["task"])
            for row in rows
            if row["cell"] == cell
        ]
        for cell in CELLS_SHOWN
    }
    return {
        "rows": rows,
        "tasks": tasks,
        "ranks": ranks,
        "mean_rank": {cell: round(fmean(found), 2) for cell, found in ranks.items()},
        "missing": [] if "vowels" in tasks else ["vowels: aeon is not installed"],
    }


def _errors(records: Sequence[Json]) -> list[float]:
    """The best error of each seed; a lost run counts as the answer that remembers nothing."""
    return [
        r["values"]["best"] if r["values"]["best"] is not None else r["values"]["baseline"]
        for r in records
    ]


def _row(summary: Json, task: str, cell: str) -> Json:
    found: Json = next(r for r in summary["rows"] if (r["task"], r["cell"]) == (task, cell))
    return found


def factor(summary: Json, task: str, cell: str) -> float:
    """How many times the LSTM's error a cell has; both at least 1e-4."""
    ours, lstm = (max(float(_row(summary, task, c)["error"]), 1e-4) for c in (cell, "lstm"))
    return ours / lstm


def _worst(summary: Json) -> list[str]:
    """The removed parts, by the mean of the logarithms of what their loss costs, worst first."""

    def cost(cell: str) -> float:
        return fmean(math.log(factor(summary, task, cell)) for task in summary["tasks"])

    return sorted(_REMOVED, key=cost, reverse=True)


def answer(summary: Json) -> str:
    worst = _worst(summary)
    parts = []
    for task in summary["tasks"]:
        lstm = _row(summary, task, "lstm")
        most = _row(summary, task, max(_REMOVED, key=lambda c: factor(summary, task, c)))
        parts.append(
            f"{task.replace('_', ' ')}: LSTM {lstm['error']:.3g} ± {lstm['half']:.2g}, worst "
            f"{CELLS_SHOWN[most['cell']]} {most['error']:.3g} ± {most['half']:.2g}"
        )
    return (
        f"Over all tasks the dearest part to lose is: {CELLS_SHOWN[worst[0]]}, then "
        f"{CELLS_SHOWN[worst[1]]}. Errors: " + "; ".join(parts) + "."
    )


def draw(result: Json) -> Figure:
    summary = result["summary"]
    tasks = summary["tasks"]
    figure, axes = style.canvas(1, len(tasks), result["question"], height=4.2)
    for ax, task in zip(axes, tasks, strict=True):
        for k, cell in enumerate(CELLS_SHOWN):
            row = _row(summary, task, cell)
            colour = {"lstm": style.BLUE, "rnn": style.ORANGE}.get(cell, style.BLACK)
            errors = [max(e, 1e-4) for e in row["errors"]]
            ax.hlines(k, min(errors), max(errors), color=colour, alpha=0.5, linewidth=3)
            ax.plot(errors, [k] * len(errors), "o", color=colour, markersize=3)
            ax.plot(median(errors), k, "D", color=colour, markersize=6)
        ax.axvline(row["baseline"], color="#888888", linewidth=0.8, linestyle="--")
        ax.set(title=task.replace("_", " "), xscale="log", xlabel=f"{row['error_is']}, held out")
        ax.set_yticks(range(len(CELLS_SHOWN)), list(CELLS_SHOWN.values()) if ax is axes[0] else [])
        ax.invert_yaxis()
        style.plain(ax, "x")
    if "vowels" in tasks:
        ax = axes[tasks.index("vowels")]
        theirs = next(p["value"] for p in result["published"] if p["key"] == "vowels")
        ax.axvline(theirs, color="#888888", linewidth=0.8, linestyle=":")
        ax.text(theirs, -0.5, " Kudo et al. 1999", fontsize=7, va="bottom")
    return figure


def _forget_first(summary: Json) -> bool:
    """Greff et al.: forget gate and output activation are the two dearest parts."""
    return set(_worst(summary)[:2]) == {"no_forget_gate", "no_output_activation"}


_GREFF = "Greff et al. 2015, LSTM: A Search Space Odyssey, sections 5 and 6"
STUDY = Study(
    name="gate-by-gate",
    question="Which gate matters?",
    method=(
        "The same training for every row of CELLS: Adam, batch 32, clip 1, equal hidden size, "
        "forget bias 1 where there is a forget gate (f = 1 - i starts at the same f), the same "
        "learning rates tried and the best taken for each. Adding and embedded Reber are drawn "
        "anew; text: pieces of 60 letters without spaces, held-out chapters; vowels: 270 "
        "utterances of nine speakers, 370 held out. The rate is chosen, and the best look taken, "
        "on the held-out error, which flatters every row alike. Dashed: who remembers nothing."
    ),
    predictions=(
        Prediction(
            "Forget gate and output activation are the two parts whose loss costs most, as Greff "
            "et al. found.",
            _forget_first,
        ),
        Prediction(
            "Coupling f = 1 - i costs less than any removed part, and peepholes change little: "
            "both within a factor of 1.5 of the LSTM's error, averaged over the tasks.",
            lambda s: all(
                abs(fmean(math.log(factor(s, t, c)) for t in s["tasks"])) < math.log(1.5)
                for c in ("coupled", "peephole")
            ),
        ),
        Prediction(
            "The plain RNN is worst or next to worst on the tasks of memory.",
            lambda s: all(
                sum(
                    _row(s, t, c)["error"] > _row(s, t, "rnn")["error"] for c in CELLS_SHOWN
                ) <= 1
                for t in s["tasks"]
                if t in ("adding", "embedded_reber")
            ),
        ),
    ),
    units=units,
    measure=measure,
    summarise=summarise,
    answer=answer,
    draw=draw,
    published=(
        Published(
            "no forget gate, no output activation: significantly worse on all three data sets",
            None, _GREFF, "speech, handwriting, music", "greff",
        ),
        Published("coupled gates, no peepholes: no significant loss", None, _GREFF, "", "greff"),
        Published(
            "the forget gate matters most, then the input gate, the output gate least",
            None, "Jozefowicz, Zaremba and Sutskever 2015", "not in language modelling, where the "
            "forget gate mattered little to them", "jozefowicz",
        ),
        Published(
            "vowels: share wrong", realdata.VOWELS_PUBLISHED, "Kudo, Toyama and Shimbo 1999",
            "their passing-through regions, the same split", "vowels",
        ),
    ),
)  # fmt: skip
