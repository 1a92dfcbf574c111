"""What each chapter of the lesson says: the result of one study, explained to a newcomer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gatewise.studies import both_directions, gate_by_gate, long_lag, price, tasks, tuning, wording
from gatewise.studies.frame import Json
from gatewise.studies.networks import LAYERS


def vanishing(run: Json) -> str:
    """What vanishes and explodes, and what the additive path changes."""
    summary = run["summary"]
    start, trained = summary["slopes"]["start"], summary["slopes"]["trained"]
    slopes = wording.table(
        ["network", "decades per 100 steps, at the start", "after training",
         "seeds that learned adding", "at the learning rate",
         f"too small for float32 after (of {summary['T']:,} steps, at the start)"],
        [
            [
                network,
                wording.pm(start[network]["h"]),
                wording.pm(trained[network]["h"]),
                f"{trained[network]['solved']} of {trained[network]['seeds']}",
                f"{trained[network]['rate']:g}",
                wording.span(start[network]["float32_ends"]),
            ]
            for network in start
        ],
    )  # fmt: skip
    distances = list(start["LSTM"]["at"])
    far = wording.table(
        ["network", *(f"{int(d):,} steps back" for d in distances)],
        [
            [f"{network}, {words}", *(wording.power(rows[network]["at"][d]) for d in distances)]
            for network in ("RNN tanh", "LSTM", "LSTM, forget bias 1")
            for words, rows in (("at the start", start), ("trained", trained))
        ],
    )
    gains = wording.table(
        ["W_hh of a tanh RNN", "decades per 100 steps"],
        [[f"{gain} x orthogonal", wording.pm(value)] for gain, value in summary["gains"].items()],
    )
    cut, free = summary["clipping"]["1.0"], summary["clipping"]["None"]
    return f"""
Training changes a weight by the gradient of the loss. What a network did k steps before the loss
counts only as far as the gradient reaches back over those k steps. In a plain RNN,
`h(t) = tanh(W_ih x(t) + W_hh h(t-1))`, each step back multiplies the gradient by the same W_hh and
by the slope of tanh, which is at most 1. A product of k such factors shrinks or grows like a number
to the power k: it **vanishes** or **explodes**. How fast is a slope, in decades (powers of ten) per
100 steps:

{slopes}

Minus 10 decades per 100 steps: over 100 steps the gradient becomes ten billion times smaller.
Forget bias 1 means that the forget gate starts with a bias of 1 instead of one near 0. The middle
of the seeds, as the norm of dL/dh:

{far}

An LSTM has a second way back. Its cell state is a sum, c(t) = f c(t-1) + i g, without a weight
matrix between c(t-1) and c(t). Along this **additive path** a step back multiplies the gradient by
the forget gate f alone, and the network can learn where to hold f near 1. It is no magic: f near
1/2, as torch starts it, halves the gradient every step, so that at the start an LSTM reaches little
further than a plain RNN. With forget bias 1, f starts near
sigmoid(1) = {1 / (1 + math.exp(-1)):.2f}. An orthogonal W_hh, which turns a vector without making
it longer or shorter, starts out further still. The difference comes with training: the LSTM learns
to hold the gradient, and the plain RNNs have nothing to hold it with.

Vanishing and exploding are one thing with two signs, as the size of W_hh decides:

{gains}

Clipping cures the explosion, not the vanishing: it scales the whole gradient, near and far alike.
Of the relu RNNs made to explode, {free["lost"]} of {free["seeds"]} were lost to infinities without
clipping and {cut["lost"]} of {cut["seeds"]} with it.

{_tuning(summary["tuning"], _network, _trained_on, until_solved=True)}
"""


def _trained_on(unit: Json) -> str:
    return f"adding, T = {unit['trained_on']}"


def _tuning(
    rows: Sequence[Json],
    who: Callable[[Json], str],
    where: Callable[[Json], str],
    until_solved: bool = False,
) -> str:
    """What the pilots of the learning rates said, a network a row and a task a column.

    Args:
        who, where: a unit -> the names of its row and of its column.
        until_solved: what counts is when a task is solved; else the lowest error.
    """
    if not rows:
        return "Learning rates were not tuned in this run: all networks had the same one."
    cells = {}
    for row in rows:
        tried = sorted(row["tried"])
        rates = " / ".join(f"{rate:g}" for rate, _, _ in tried)
        cells[who(row["unit"]), f"{where(row['unit'])} ({rates})"] = " / ".join(
            f"**{said}**" if rate == row["rate"] else said
            for rate, at, best in tried
            for said in [f"{at:,}" if until_solved and at is not None else wording.short(best)]
        )
    networks, columns = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
    table = wording.table(
        ["network", *columns],
        [[name, *(cells.get((name, column), "") for column in columns)] for name in networks],
    )
    found = "Sequences until solved (the lowest error if not)" if until_solved else "Lowest error"
    return (
        f"Equal tuning. {found} of one run at each learning rate (in brackets) from a seed that "
        f"does not count. In bold the rate that was taken: {rows[0]['tried'][0][0]:g}, unless "
        f"another is better by more than a tenth.\n\n{table}"
    )


def memory(run: Json) -> str:
    """Which networks remember, and why one that should did not."""
    summary = run["summary"]
    rows = []
    for row in summary["rows"]:
        when = f"{row['sequences'][1]:,}" if row["sequences"] else f"not in {row['most']:,}"
        rows.append(
            [
                long_lag.words(row["task"], row["T"]),
                row["network"],
                f"{row['rate']:g}",
                f"{row['solved']} of {row['seeds']}",
                when,
                wording.short(row["error"]),
                f"{row['parameters']:,}",
            ]
        )
    head = ["task", "network", "learning rate", "solved", "sequences until then (median)",
            "error (median)", "parameters"]  # fmt: skip
    return f"""
A gradient that reaches back is worth something only if the network learns from it. Four classical
tests ask for memory and nothing else: add two marked numbers among many; say five signs again after
a pause; name the order of two signs among many that mean nothing; predict strings whose last sign
but one repeats the second. All networks have as many parameters as the LSTM. "Chrono" starts the
forget gates open for times between one step and the whole sequence, and the input gates as far
shut.

{wording.table(head, rows)}

The error is the mean square for adding (who always answers 1 has {tasks.adding(9).baseline:.3g}),
and the share of wrong answers for the others. A step of training sees 32 sequences here, and one in
1997: where the figures below are in sequences, theirs are as many steps, ours a 32nd of it.

{_tuning(summary["tuning"], _network, _task_of, until_solved=True)}

{_why(run).strip()}
"""


def _network(unit: Json) -> str:
    return str(unit["network"])


def _task_of(unit: Json) -> str:
    return long_lag.words(unit["task"], unit["T"])


def _why(run: Json) -> str:
    """Why Bai et al.'s LSTM failed: the evidence as a table, and what follows from it."""
    summary = run["summary"]
    said = {p["key"]: p["value"] for p in run["published"]}
    rows = [
        [
            change,
            f"{found['sequences'] // 32:,}",
            _solved(found),
            _when(found),
            wording.ends([e for e in found["errors"] if e is not None], ".2g"),
        ]
        for change, outcomes in summary["why"].items()
        for found in outcomes
    ]
    head = [f"adding, T = {summary['why_T']}", "updates", "seeds that solved it", "after updates",
            "held-out squared error at the end"]  # fmt: skip
    return f"""
### Why did the LSTM of Bai et al. 2018 fail?

They report that an LSTM fails at adding over 600 steps: a squared error of {said["bai"]}, where who
always answers 1 has {tasks.adding(600).baseline:.4f} and their GRU {said["bai GRU"]:.6f}. Their
settings with a layer of {summary["why_hidden"]} in place of 130, and one change a row (a second row
of the same name: the seeds of it that were trained for longer):

{wording.table(head, rows)}

{_verdict(summary["why"]).strip() if summary["why_T"] == 600 else ""}
"""


def _solved(found: Json) -> str:
    return f"{sum(n is not None for n in found['solved_at'])} of {len(found['solved_at'])}"


def _when(found: Json) -> str:
    return wording.ends([n // 32 for n in found["solved_at"] if n is not None], ",d")


def _verdict(why: dict[str, list[Json]]) -> str:
    """What follows; ``tests/test_lesson.py`` holds the words to the results."""

    def of(change: str) -> str:
        return _solved(why[change][0])

    def after(change: str) -> str:
        return _when(why[change][0])

    longer = why["their settings"][-1]
    return f"""
**What decides is where the gates start.** With their settings {of("their settings")} were solved in
the updates of their figure; of those that ran on to twice as many, {_solved(longer)} (after
{_when(longer)}): slow at best. Started for long times (chrono), the same layer is done after
{after("chrono")} updates ({of("chrono")}). Both gates have to start so. A forget gate near 1 alone
(bias 5) keeps everything, and an input gate at 1/2 lets 600 numbers in, of which two count:
{of("forget bias 5")}. An input gate nearly shut alone (bias -5) lets in what a forget gate at 0.73
loses again: {of("input bias -5")}. Together: {of("forget bias 5, input bias -5")}, after
{after("forget bias 5, input bias -5")}. **Their GRU has this built in**: its one gate opens to the
past as far as it shuts to the input, so that whatever training moves, it moves both. An LSTM so
tied, f = 1 - i, with the forget gate where theirs begins, is done after
{after("coupled, f = 1 - i")} updates
({of("coupled, f = 1 - i")}). Clipping is not the cause (without it: {of("no clipping")}); a higher
learning rate helps (at 0.01: {of("rate 0.01")}, after {after("rate 0.01")}). Not measured: their
layer of 130, and a training set that does not change.
"""


def gates(run: Json) -> str:
    """Which part of the cell is missed when it is taken out."""
    summary = run["summary"]
    ranked = [
        [*row, summary["mean_rank"][cell]]
        for row, cell in zip(_by_cell(summary["rows"]), gate_by_gate.CELLS_SHOWN, strict=True)
    ]
    tasks = list(map(wording.task, summary["tasks"]))
    missing = "".join(f"\n\nNot run: {words}." for words in summary["missing"])
    return f"""
An LSTM is c(t) = f c(t-1) + i g, h(t) = o tanh(c(t)). The input gate i says what enters the cell,
the forget gate f what stays, the output gate o what is shown; g and the last tanh are the input and
the output activation. Every cell here is a row of `gatewise.CELLS`: the LSTM with one part welded
or taken out, down to the plain RNN; {tuning.said(summary["tuning"])}. Lower is better; mean and
95 % interval over the seeds.

{wording.table(["cell", *tasks, "mean rank"], ranked)}{missing}

{_beside_the_literature(run)}

{_tuning(summary["tuning"], _cell, _task)}

{_at_one_rate(summary) if summary["tuning"] else ""}
"""


def _at_one_rate(summary: Json) -> str:
    """The same cells at one learning rate, and what another rate brought."""
    rows, one_rate = summary["rows"], summary["one_rate"]
    table = wording.table(
        ["cell", *map(wording.task, summary["tasks"])], _by_cell(gate_by_gate.at_one_rate(rows))
    )
    others = [row for row in rows if row["rate"] != one_rate]
    worse = [
        f"{gate_by_gate.CELLS_SHOWN[row['cell']]} on {wording.task(row['task'])} (at "
        f"{row['rate']:g}: {wording.error(row)})"
        for row in others
        if row["error"] > row["one_rate"]["error"]
    ]
    return (
        f"How much of this is the learning rate? The same with {one_rate:g} for all, chosen "
        f"before:\n\n{table}\n\nWhat is best for one seed need not be best for five: of the "
        f"{len(others)} times that a pilot took another rate, the mean error became larger "
        f"{len(worse)} times: {', '.join(worse) or 'none'}."
    )


def _by_cell(rows: Sequence[Json]) -> list[list[object]]:
    """A line a cell: what it is, and its error on each task."""
    return [
        [words, *(wording.error(row) for row in rows if row["cell"] == cell)]
        for cell, words in gate_by_gate.CELLS_SHOWN.items()
    ]


def _beside_the_literature(run: Json) -> str:
    """What others found of each part, and on which tasks it was missed here."""
    rows, one_rate = run["summary"]["rows"], run["summary"]["one_rate"]
    lines = [
        [
            said["what"],
            said["source"],
            _missed(rows, said["key"]),
            _missed(gate_by_gate.at_one_rate(rows), said["key"]),
        ]
        for said in run["published"]
        if said["value"] is None
    ]
    head = ["against the LSTM", "found by", "here, beyond the intervals",
            f"here, at {one_rate:g} for all"]  # fmt: skip
    return wording.table(head, lines)


def _missed(rows: Sequence[Json], cell: str) -> str:
    tasks = gate_by_gate.missed_on(rows, cell)
    return f"worse on {' and '.join(map(wording.task, tasks))}" if tasks else "worse on none"


def _cell(unit: Json) -> str:
    return gate_by_gate.CELLS_SHOWN[unit["cell"]]


def _task(unit: Json) -> str:
    return wording.task(unit["task"])


def directions(run: Json) -> str:
    """What the second direction brings, beside what it doubles."""
    summary = run["summary"]
    rows = [
        [
            row["task"],
            "yes" if both_directions.NEEDS_RIGHT[row["task"]] else "no",
            row["network"],
            row["sizing"],
            f"{row['rate']:g}",
            wording.error(row),
            wording.error(row["one_rate"]),
            f"{row['parameters']:,}",
            f"{row['milliseconds']:.2f}",
        ]
        for row in summary["rows"]
    ]
    head = ["task", "needs the right", "network", "sizing", "learning rate", "error",
            f"error at {summary['one_rate']:g} for all", "parameters",
            "ms of processor time a step"]  # fmt: skip
    return f"""
A second run from right to left, joined with the first, sees what is still to come. It doubles the
parameters and the work, and it can only start when the sequence has ended: no answer while the
input still runs.

{wording.table(head, rows)}

{_tuning(summary["tuning"], _network_sized, _task)}
"""


def _network_sized(unit: Json) -> str:
    return f"{unit['network']}, {unit['sizing']}"


def cost(run: Json) -> str:
    """Time, memory and work, and all three to the same error."""
    summary = run["summary"]
    layers = list(LAYERS) + [name + price.LOW for name in LAYERS]
    head = ["H", *layers]
    parts = []
    for phase in price.PHASES:
        rows = [
            [row["H"], *(wording.ms(row["milliseconds"].get(name)) for name in layers)]
            for row in summary["steps"]
            if row["phase"] == phase
        ]
        parts.append(f"Milliseconds, {phase}:\n\n{wording.table(head, rows)}")
    ratios = wording.table(
        ["H", *(" over ".join(pair) for pair in price.RATIOS)],
        [
            [
                H,
                *(
                    wording.ratio(price.ratio(summary, H, above, below))
                    for above, below in price.RATIOS
                ),
            ]
            for H in price.sizes(summary)
        ],
    )
    counts = wording.table(
        ["H", "layer", "parameters", "multiply-adds forward", "kilobytes kept for backward"],
        [
            [fact["H"], name, f"{row['parameters']:,}", f"{row['multiply_adds']:,}",
             f"{row['bytes_kept'] / 1e3:,.0f}"]
            for fact in summary["facts"]
            for name, row in fact["layers"].items()
            if name in LAYERS
        ],
    )  # fmt: skip
    failed = sorted(
        {(name, why) for fact in summary["facts"] for name, why in fact["failed"].items()}
    )
    growth = wording.table(
        ["layer", *(f"time grows with {axis} to the power" for axis in summary["exponents"])],
        [
            [name, *(summary["exponents"][axis].get(name, "") for axis in summary["exponents"])]
            for name in LAYERS
        ],
    )
    return "\n\n".join(
        [
            "Four gates instead of one: four times the parameters, four times the multiply-adds "
            "of the same hidden size, and more to keep for the backward pass. What that costs in "
            "time is a matter of the implementation as well, so four of them took turns in one "
            "run.",
            f"Training step, ratios with their 95 % intervals:\n\n{ratios}",
            *parts,
            counts,
            *(f"Did not run here: {name} ({why})." for name, why in failed),
            growth,
            _same_loss(summary["same_loss"]),
        ]
    )


def _same_loss(found: Json) -> str:
    if not found:
        return "A plain RNN was lost in this run: there is no error that all of them reach."
    rows = [
        [
            name,
            f"{row['rate']:g}",
            f"{row['reached']} of {row['seeds']}",
            wording.middle(row["sequences"], ",.0f"),
            f"{row['milliseconds_a_step'][0]:.2f}",
            wording.middle(row["seconds"], ".2f"),
            wording.middle(
                row["multiply_adds"] and [n / 1e9 for n in row["multiply_adds"]], ",.1f"
            ),
            wording.short(row["best"]),
        ]
        for name, row in found["layers"].items()
    ]
    head = ["layer", "learning rate", "seeds that got there", "sequences", "ms a step", "seconds",
            "10^9 multiply-adds", "best error later"]  # fmt: skip
    return (
        f"To the same error: {found['error_is']} {found['target']:.3g} on held-out text, which "
        "every seed of the plain RNN reaches (the middle of the seeds, and from the lowest to the "
        f"highest):\n\n{wording.table(head, rows)}"
    )


def seeing(run: Json) -> str:
    """What it takes to see the gates."""
    summary = run["summary"]
    rows = [
        [
            f"({row['T']}, {row['B']}, {row['H']})",
            wording.ratio(row["trace / forward"]),
            wording.ratio(row["cells / trace"]),
            wording.ratio(row["gradients / backward"]),
            wording.ratio(row["cells / gradients"]),
            " / ".join(f"{row['bytes'][way] / 1e3:,.0f}" for way in ("forward", "trace", "cells")),
        ]
        for row in summary["rows"]
    ]
    head = ["(T, B, H)", "trace over forward", "LSTMCell loop over trace",
            "trace with gradients over forward and backward", "loop with gradients over that",
            "kilobytes: forward / trace / loop"]  # fmt: skip
    return f"""
What the backward pass must keep of every step (the gates and the cell state) is what a person
wants to see. `lstm.trace(x)` hands out that one buffer; the usual way with torch alone is a loop
of LSTMCell, which shows h and c and no gate. Here the trace is made and all six fields are
read: each is a view that takes Python 0.01 to 0.02 ms, which a run as short as that of
(100, 1, 64) feels and a longer one does not.

{wording.table(head, rows)}
"""
