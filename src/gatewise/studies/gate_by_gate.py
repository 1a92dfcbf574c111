"""Which gate matters? From the plain RNN to the LSTM, one gate at a time: the rows of CELLS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from gatewise.studies import realdata, stats, style, tuning
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
    "quick": {"hidden": 12, "seeds": 2, "rates": [],
              "tasks": [["adding", 12, 4_800], ["vowels", 0, 3_200]]},
    "default": {"hidden": 32, "seeds": 3, "rates": [],
                "tasks": [["adding", 60, 25_600], ["embedded_reber", 0, 12_800],
                          ["text", 60, 19_200], ["vowels", 0, 9_600]]},
    "full": {"hidden": 32, "seeds": 5, "rates": [0.003, 0.01, 0.03],
             "tasks": [["adding", 60, 48_000], ["embedded_reber", 0, 6_400],
                       ["text", 60, 32_000], ["vowels", 0, 9_600]]},
}  # fmt: skip


def task_of(name: str, T: int) -> Task:
    """A task of this study: real data, or one of the tests of memory."""
    if name == "text":
        return realdata.text(T)
    return realdata.vowels() if name == "vowels" else named(name, T)


#: The learning rate of all rows.
RATE = 0.01


def units(mode: Mode) -> list[Json]:
    """Seed by seed, so that a run that is stopped has the same seeds of everything; then pilots."""
    size = _SIZES[mode]
    plan = [
        {"task": task, "T": T, "cell": cell, "seed": seed, "rate": RATE, "sequences": sequences,
         "hidden": size["hidden"]}
        for seed in range(size["seeds"])
        for task, T, sequences in size["tasks"]
        if task != "vowels" or realdata.has_vowels()
        for cell in CELLS_SHOWN
    ]  # fmt: skip
    return plan + tuning.pilots([unit | {"rates": size["rates"]} for unit in plan], part=3)


def measure(unit: Json) -> Json:
    task, seed = task_of(unit["task"], unit["T"]), unit["seed"]
    net = Reader(Design(unit["cell"], forget=1.0), task.inputs, unit["hidden"], task.outputs, seed)
    recipe = Recipe(unit["sequences"], rate=unit["rate"], looks=10, until_solved=False)
    return {"baseline": task.baseline, "error_is": task.error, **train(net, task, recipe, seed)}


def summarise(records: list[Json]) -> Json:
    counted = pick(records, pilot=None)
    tasks = list(dict.fromkeys(r["unit"]["task"] for r in counted))
    rows = []
    for task in tasks:
        for cell in CELLS_SHOWN:
            here = pick(counted, task=task, cell=cell)
            errors = _errors(here)
            centre, half = stats.mean(errors)
            rows.append({
                "task": task, "cell": cell, "errors": errors,
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
        "tuning": tuning.choices(records, tuning.error),
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


def missed_on(summary: Json, cell: str) -> list[str]:
    """The tasks on which a cell's error is above the LSTM's and their intervals are apart."""

    def apart(task: str) -> bool:
        ours, lstm = _row(summary, task, cell), _row(summary, task, "lstm")
        return bool(ours["error"] - ours["half"] > lstm["error"] + lstm["half"])

    return [task for task in summary["tasks"] if apart(task)]


def _worst(summary: Json) -> list[str]:
    """The removed parts, by the number of tasks on which they are missed, most first."""
    return sorted(_REMOVED, key=lambda cell: len(missed_on(summary, cell)), reverse=True)


def answer(summary: Json) -> str:
    parts = [
        f"{CELLS_SHOWN[cell]} ({', '.join(_said(summary, task, cell) for task in tasks)})"
        for cell in _worst(summary)
        if (tasks := missed_on(summary, cell))
    ]
    return (
        f"Worse than the LSTM beyond the intervals, over {len(summary['tasks'])} tasks: "
        f"{'; '.join(parts) or 'no part that was taken out'}."
    )


def _said(summary: Json, task: str, cell: str) -> str:
    ours, lstm = _row(summary, task, cell), _row(summary, task, "lstm")
    return f"{task.replace('_', ' ')} {_pm(ours)} for {_pm(lstm)}"


def _pm(row: Json) -> str:
    return f"{row['error']:.3g} ± {row['half']:.2g}"


#: Errors below this stand at the left edge of the figure.
_LEAST = 1e-4


def draw(result: Json) -> Figure:
    """A line of dots a cell."""
    summary = result["summary"]
    tasks = summary["tasks"]
    figure, axes = style.canvas((len(tasks) + 1) // 2, 2, result["question"], height=3.8)
    for ax, task in zip(axes, tasks, strict=True):
        for k, cell in enumerate(CELLS_SHOWN):
            row = _row(summary, task, cell)
            colour = {"lstm": style.BLUE, "rnn": style.ORANGE}.get(cell, style.BLACK)
            style.seeds(ax, k, row["errors"], _LEAST, color=colour, marker="D", markersize=6)
        ax.set(title=task.replace("_", " "), xscale="log", xlabel=f"{row['error_is']}, held out")
        names = list(CELLS_SHOWN.values()) if ax in axes[::2] else []
        ax.set_yticks(range(len(CELLS_SHOWN)), names, fontsize=9)
        few = any(e < _LEAST for r in summary["rows"] if r["task"] == task for e in r["errors"])
        style.limits(ax, len(CELLS_SHOWN), row["baseline"], _LEAST if few else None)
        style.plain(ax, "x")
    if "vowels" in tasks:
        ax = axes[tasks.index("vowels")]
        theirs = next(p["value"] for p in result["published"] if p["key"] == "vowels")
        ax.axvline(theirs, color="#555555", linewidth=0.9, linestyle=":")
        ax.text(theirs, -0.65, " Kudo et al. 1999", fontsize=8, va="center")
    return figure


def _forget_first(summary: Json) -> bool:
    """Greff et al.: forget gate and output activation are missed on most tasks."""
    missed = {cell: len(missed_on(summary, cell)) for cell in _REMOVED}
    least = min(missed["no_forget_gate"], missed["no_output_activation"])
    return all(
        missed[cell] < least
        for cell in _REMOVED
        if cell not in ("no_forget_gate", "no_output_activation")
    )


_GREFF = "Greff et al. 2015 (speech, handwriting, music)"
_JOZEFOWICZ = "Jozefowicz, Zaremba and Sutskever 2015 (arithmetic, XML, language)"
STUDY = Study(
    name="gate-by-gate",
    question="Which gate matters?",
    method=(
        "The same training for every row of CELLS: Adam at 0.01, batch 32, clip 1, equal hidden "
        "size, forget bias 1 where there is a forget gate (f = 1 - i starts at the same f). Equal "
        "tuning: the one learning rate was chosen before; pilots a third as long, from a seed that "
        "does not count, show what others would have done for each row. Adding and embedded Reber "
        "are drawn anew; text: pieces of 60 letters without spaces, held-out chapters; vowels: 270 "
        "utterances of nine speakers, 370 held out. Error: best of ten looks at the held-out set, "
        "which flatters every row alike. Dashed: who remembers nothing."
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
    threads=1,
    measure=measure,
    summarise=summarise,
    answer=answer,
    draw=draw,
    published=(
        *(
            Published(f"{CELLS_SHOWN[cell]}: {words}", None, source, "", cell)
            for source, cell, words in (
                (_GREFF, "no_forget_gate", "significantly worse on all three sets"),
                (_GREFF, "no_output_activation", "significantly worse on all three sets"),
                (_GREFF, "no_input_gate", "significantly worse, but not on music"),
                (_GREFF, "no_output_gate", "significantly worse, but not on music"),
                (_GREFF, "no_input_activation", "significantly worse, but not on music"),
                (_GREFF, "coupled", "no significant change"),
                (_GREFF, "peephole", "no significant change"),
                (_JOZEFOWICZ, "no_forget_gate", "much worse, but not on language"),
                (_JOZEFOWICZ, "no_input_gate", "worse"),
                (_JOZEFOWICZ, "no_output_gate", "hardly worse"),
            )
        ),
        Published(
            "vowels: share wrong", realdata.VOWELS_PUBLISHED, "Kudo, Toyama and Shimbo 1999",
            "their passing-through regions, the same split", "vowels",
        ),
    ),
)  # fmt: skip
