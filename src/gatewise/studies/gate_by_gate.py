"""Which gate matters? From the plain RNN to the LSTM, one gate at a time: the rows of CELLS."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from gatewise.studies import realdata, stats, style, tuning, wording
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
    "lstm": "LSTM, forget bias 1",
    "peephole": "LSTM and peepholes",
}
#: The tasks that a run solves or does not; its error is then far below or no better than before.
COUNTED = ("adding", "embedded_reber")
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
             "tasks": [["adding", 60, 48_000], ["embedded_reber", 0, 16_000],
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
        "sizes": tuning.sizes(records, lambda unit: unit["T"] or None),
        "one_rate": RATE,
        "tuning": tuning.choices(records, tuning.error),
        "missing": [] if "vowels" in tasks else ["vowels: aeon is not installed"],
    }


def at_one_rate(rows: Sequence[Json]) -> list[Json]:
    """The rows as they are where all have the one rate."""
    return [row | row["one_rate"] for row in rows]


def row(rows: Sequence[Json], task: str, cell: str) -> Json:
    """The row of this cell on this task."""
    return next(r for r in rows if (r["task"], r["cell"]) == (task, cell))


def factor(rows: Sequence[Json], cell: str) -> float:
    """How many times the LSTM's error a cell has, averaged over the tasks; both at least 1e-4."""

    def log(task: str, which: str) -> float:
        return math.log(max(float(row(rows, task, which)["error"]), 1e-4))

    tasks = dict.fromkeys(r["task"] for r in rows)
    return math.exp(fmean(log(task, cell) - log(task, "lstm") for task in tasks))


def more(rows: Sequence[Json], task: str, cell: str) -> tuple[float, float]:
    """By how much a cell's error is above the LSTM's: differences seed by seed, and half their
    interval."""
    pairs = zip(row(rows, task, cell)["errors"], row(rows, task, "lstm")["errors"], strict=True)
    return stats.mean([ours - lstm for ours, lstm in pairs])


def missed_on(rows: Sequence[Json], cell: str) -> list[str]:
    """The tasks on which a cell is worse than the LSTM, and not by chance (5 %).

    Where a task is solved or not: it is solved at fewer seeds. Else: the error is larger.
    """

    def missed(task: str) -> bool:
        ours, lstm = row(rows, task, cell), row(rows, task, "lstm")
        if task not in COUNTED:
            above, half = more(rows, task, cell)
            return above > half and len(ours["errors"]) > 1  # of one seed there is no interval
        by_chance = stats.fisher(ours["solved"], lstm["solved"], len(lstm["errors"]))
        return bool(ours["solved"] < lstm["solved"] and by_chance < 0.05)

    return [task for task in dict.fromkeys(r["task"] for r in rows) if missed(task)]


def kinds(summary: Json) -> dict[str, list[Json]]:
    """The rows by the learning rates they were trained at, in words."""
    at_one = {f"{summary['one_rate']:g} for all": at_one_rate(summary["rows"])}
    return ({"its own best rate": summary["rows"]} if summary["tuning"] else {}) | at_one


def answer(summary: Json) -> str:
    by_rate = kinds(summary)
    missed = {
        task: [c for c in _REMOVED if any(task in missed_on(rows, c) for rows in by_rate.values())]
        for task in summary["tasks"]
    }
    parts = [_said(by_rate, task, cells) for task, cells in missed.items() if cells]
    nothing = [wording.task(task) for task, cells in missed.items() if not cells]
    if nothing:
        parts.append(f"On {' and '.join(nothing)} no part is missed.")
    seeds = len(summary["rows"][0]["errors"])
    return (
        f"The LSTM with one part taken out, beside the whole (forget bias 1, {seeds} seeds; each "
        f"at {', then at '.join(by_rate)}). {' '.join(parts)}"
    )


def _said(by_rate: dict[str, list[Json]], task: str, cells: Sequence[str]) -> str:
    """Of one task: what the LSTM reaches, and what it reaches without the parts that are missed."""

    def each(say: Callable[[list[Json]], str]) -> str:
        return ", then ".join(map(say, by_rate.values()))

    def solved(cell: str) -> str:
        return each(lambda rows: f"{row(rows, task, cell)['solved']}")

    def rise(cell: str) -> str:
        return each(lambda rows: wording.signed(more(rows, task, cell)))

    name = wording.task(task)
    title = name[0].upper() + name[1:]
    parts = {cell: CELLS_SHOWN[cell].replace("no", "without the", 1) for cell in cells}
    if task in COUNTED:
        without = "; ".join(f"{part} at {solved(cell)}" for cell, part in parts.items())
        return f"{title} is solved by the whole at {solved('lstm')} seeds; {without}."
    whole = each(lambda rows: f"{row(rows, task, 'lstm')['error']:.3g}")
    without = "; ".join(f"{part} by {rise(cell)}" for cell, part in parts.items())
    return f"On {name} the error of the whole ({whole}) changes {without}."


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
        "before, as well; figure and predictions are of the first kind. Adding and embedded Reber "
        "are drawn anew; text: pieces of 60 letters without spaces, held-out chapters; vowels: "
        f"270 utterances of nine speakers, {realdata.VOWELS_HELD_OUT} held out. Error: best of ten "
        "looks at the held-out set, which flatters every row alike; on vowels the learning rates, "
        f"too, are chosen on these {realdata.VOWELS_HELD_OUT}, there being no others. Missed: of "
        "adding and embedded Reber, solved at fewer seeds (Fisher's exact test, 5 %); of text and "
        "vowels, the difference to the LSTM at the same seed is above 0 (Student's t, 95 %). "
        "Dashed: who remembers nothing."
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
            "their passing-through regions, the same split, tested once; here rate and look are "
            "chosen on the utterances that are counted, and of "
            f"{realdata.VOWELS_HELD_OUT} a share of 2.5 % is in itself uncertain by "
            f"{100 * stats.share(0.025, realdata.VOWELS_HELD_OUT):.1f} points",
            "vowels",
        ),
    ),
)  # fmt: skip
