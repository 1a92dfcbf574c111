"""Which gate matters? From the plain RNN to the LSTM, one gate at a time: the rows of CELLS."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from gatewise.studies import realdata, style, tuning, wording
from gatewise.studies.frame import Json, Mode, Prediction, Published, Study
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

#: The learning rate that all rows have first.
RATE = 0.01

_SIZES: dict[Mode, Json] = {
    "quick": {"hidden": 12, "seeds": 2, "rates": [RATE],
              "tasks": [["adding", 12, 4_800], ["vowels", 0, 3_200]]},
    "default": {"hidden": 32, "seeds": 3, "rates": [RATE],
                "tasks": [["adding", 60, 25_600], ["embedded_reber", 0, 12_800],
                          ["text", 60, 19_200], ["vowels", 0, 9_600]]},
    "full": {"hidden": 32, "seeds": 5, "rates": [RATE, 0.003, 0.03, 0.1],
             "tasks": [["adding", 60, 48_000], ["embedded_reber", 0, 6_400],
                       ["text", 60, 32_000], ["vowels", 0, 9_600]]},
}  # fmt: skip


def task_of(name: str, T: int) -> Task:
    """A task of this study: real data, or one of the tests of memory."""
    if name == "text":
        return realdata.text(T)
    return realdata.vowels() if name == "vowels" else named(name, T)


def units(mode: Mode) -> list[Json]:
    """All rows at one learning rate; the pilots of the others."""
    return [tuning.at(RATE, unit) for unit in _runs(mode)] + tuning.pilots(_runs(mode))


def then(mode: Mode, records: list[Json]) -> list[Json]:
    """Each row at its own best rate, where that is not the one that it has been measured at."""
    tuned = tuning.tuned(_runs(mode), records, tuning.error)
    return [unit for unit in tuned if unit["rate"] != RATE]


def _runs(mode: Mode) -> list[Json]:
    """Seed by seed, so that a run that is stopped has the same seeds of everything."""
    size = _SIZES[mode]
    return [
        {"task": task, "T": T, "cell": cell, "seed": seed, "rates": size["rates"],
         "sequences": sequences, "hidden": size["hidden"]}
        for seed in range(size["seeds"])
        for task, T, sequences in size["tasks"]
        if task != "vowels" or realdata.has_vowels()
        for cell in CELLS_SHOWN
    ]  # fmt: skip


def measure(unit: Json) -> Json:
    task, seed = task_of(unit["task"], unit["T"]), unit["seed"]
    net = Reader(Design(unit["cell"], forget=1.0), task.inputs, unit["hidden"], task.outputs, seed)
    recipe = Recipe(unit["sequences"], rate=unit["rate"], looks=10, until_solved=False)
    return {"baseline": task.baseline, "error_is": task.error, **train(net, task, recipe, seed)}


def summarise(records: list[Json]) -> Json:
    rows = tuning.outcomes(records, RATE)
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    return {
        "rows": rows,
        "tasks": tasks,
        "mean_rank": {cell: _mean_rank(rows, cell) for cell in CELLS_SHOWN},
        "one_rate": RATE,
        "tuning": tuning.choices(records, tuning.error),
        "missing": [] if "vowels" in tasks else ["vowels: aeon is not installed"],
    }


def at_one_rate(rows: Sequence[Json]) -> list[Json]:
    """The rows as they are where all have the one rate."""
    return [row | row["one_rate"] for row in rows]


def _mean_rank(rows: Sequence[Json], cell: str) -> float:
    """1 is best; averaged over the tasks."""
    ranks = [
        1 + sum(other["error"] < row["error"] for other in rows if other["task"] == row["task"])
        for row in rows
        if row["cell"] == cell
    ]
    return round(fmean(ranks), 2)


def row(rows: Sequence[Json], task: str, cell: str) -> Json:
    """The row of this cell on this task."""
    return next(r for r in rows if (r["task"], r["cell"]) == (task, cell))


def factor(rows: Sequence[Json], cell: str) -> float:
    """How many times the LSTM's error a cell has, averaged over the tasks; both at least 1e-4."""

    def log(task: str, which: str) -> float:
        return math.log(max(float(row(rows, task, which)["error"]), 1e-4))

    tasks = dict.fromkeys(r["task"] for r in rows)
    return math.exp(fmean(log(task, cell) - log(task, "lstm") for task in tasks))


def missed_on(rows: Sequence[Json], cell: str) -> list[str]:
    """The tasks on which a cell's error is above the LSTM's and their intervals are apart."""
    return [
        ours["task"]
        for ours in rows
        if ours["cell"] == cell
        for lstm in [row(rows, ours["task"], "lstm")]
        if ours["error"] - ours["half"] > lstm["error"] + lstm["half"]
    ]


def answer(summary: Json) -> str:
    found = [(f"all at {summary['one_rate']:g}", at_one_rate(summary["rows"]))]
    if summary["tuning"]:
        found.insert(0, (tuning.said(summary["tuning"]), summary["rows"]))
    return " ".join(
        (
            "Parts of the LSTM that are missed when they are taken out, over "
            f"{len(summary['tasks'])} tasks (the error rises beyond the intervals).",
            *(f"{how.capitalize()}: {_missed(rows)}." for how, rows in found),
        )
    )


def _missed(rows: Sequence[Json]) -> str:
    """The removed parts that are missed, those missed on most tasks first, and where."""
    where = {cell: missed_on(rows, cell) for cell in _REMOVED}
    return ", ".join(
        f"{CELLS_SHOWN[cell].replace('no', 'the', 1)} "
        f"({'; '.join(_said(rows, task, cell) for task in where[cell])})"
        for cell in sorted(_REMOVED, key=lambda cell: len(where[cell]), reverse=True)
        if where[cell]
    ) or "none"  # fmt: skip


def _said(rows: Sequence[Json], task: str, cell: str) -> str:
    ours, lstm = row(rows, task, cell), row(rows, task, "lstm")
    return f"{wording.task(task)}: {wording.error(ours)} without, {wording.error(lstm)} with"


#: Errors below this stand at the left edge of the figure.
_LEAST = 1e-4


def draw(result: Json) -> Figure:
    """A line of dots a cell."""
    summary = result["summary"]
    tasks = summary["tasks"]
    figure, axes = style.canvas((len(tasks) + 1) // 2, 2, result["question"], height=3.8)
    for ax, task in zip(axes, tasks, strict=True):
        for k, cell in enumerate(CELLS_SHOWN):
            found = row(summary["rows"], task, cell)
            colour = {"lstm": style.BLUE, "rnn": style.ORANGE}.get(cell, style.BLACK)
            style.seeds(ax, k, found["errors"], _LEAST, color=colour, marker="D", markersize=6)
        ax.set(title=wording.task(task), xscale="log", xlabel=f"{found['error_is']}, held out")
        names = list(CELLS_SHOWN.values()) if ax in axes[::2] else []
        ax.set_yticks(range(len(CELLS_SHOWN)), names, fontsize=9)
        few = any(e < _LEAST for r in summary["rows"] if r["task"] == task for e in r["errors"])
        style.limits(ax, len(CELLS_SHOWN), found["baseline"], _LEAST if few else None)
        style.plain(ax, "x")
    if "vowels" in tasks:
        ax = axes[tasks.index("vowels")]
        theirs = next(p["value"] for p in result["published"] if p["key"] == "vowels")
        ax.axvline(theirs, color="#555555", linewidth=0.9, linestyle=":")
        ax.text(theirs, -0.65, " Kudo et al. 1999", fontsize=8, va="center")
    return figure


def _forget_first(summary: Json) -> bool:
    """Greff et al.: forget gate and output activation are missed on most tasks."""
    missed = {cell: len(missed_on(summary["rows"], cell)) for cell in _REMOVED}
    least = min(missed["no_forget_gate"], missed["no_output_activation"])
    return all(
        missed[cell] < least
        for cell in _REMOVED
        if cell not in ("no_forget_gate", "no_output_activation")
    )


def _little_changes(summary: Json) -> bool:
    """Coupled costs less than any removed part, and is within 1.5 of the LSTM, as peepholes are."""
    factors = {cell: factor(summary["rows"], cell) for cell in CELLS_SHOWN}
    return all(1 / 1.5 < factors[cell] < 1.5 for cell in ("coupled", "peephole")) and all(
        factors["coupled"] < factors[cell] for cell in _REMOVED
    )


_GREFF = "Greff et al. 2015 (speech, handwriting, music)"
_JOZEFOWICZ = "Jozefowicz, Zaremba and Sutskever 2015 (arithmetic, XML, language)"
STUDY = Study(
    name="gate-by-gate",
    question="Which gate matters?",
    method=(
        "The same training for every row of CELLS: Adam, batch 32, clip 1, equal hidden size, "
        "forget bias 1 where there is a forget gate (f = 1 - i starts at the same f). Equal "
        "tuning: each row at its own best of the same learning rates, found on each task by pilots "
        "of equal length from a seed that does not count. All were measured at 0.01, chosen "
        "before, as well: answer, figure and predictions are of the first kind. Adding and "
        "embedded Reber are drawn anew; text: pieces of 60 letters without spaces, held-out "
        "chapters; vowels: 270 utterances of nine speakers, 370 held out. Error: best of ten looks "
        "at the held-out set, which flatters every row alike. Dashed: who remembers nothing."
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
            _little_changes,
        ),
        Prediction(
            "The plain RNN is worst or next to worst on the tasks of memory.",
            lambda s: all(
                sum(
                    row(s["rows"], t, c)["error"] > row(s["rows"], t, "rnn")["error"]
                    for c in CELLS_SHOWN
                ) <= 1
                for t in s["tasks"]
                if t in ("adding", "embedded_reber")
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
