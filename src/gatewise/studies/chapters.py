"""What the lesson says of learning: the result of one study a chapter, explained to a newcomer.

The chapters on the price are in ``price_chapters``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from gatewise.studies import both_directions, gate_by_gate, long_lag, tasks, wording
from gatewise.studies.frame import Json


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
                _half(network),
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
        ["network", "of", *(f"{int(d):,} steps back" for d in distances)],
        [
            [f"{network}, {when}", of, *(wording.power(rows[network][key][d]) for d in distances)]
            for network in ("RNN tanh", "RNN relu, identity", "LSTM", "LSTM, forget bias 1")
            for when, rows in (("at the start", start), ("trained", trained))
            for of, key in (("dL/dh", "at"), ("dL/dc", "at_c"))
            if of == "dL/dh" or network.startswith("LSTM")
        ],
    )
    near, next_ = distances[:2]
    lstm = {key: [wording.power(trained["LSTM"][key][d]) for d in (near, next_)]
            for key in ("at", "at_c")}  # fmt: skip
    forget_1 = 1 / (1 + math.exp(-1))
    cut, free = summary["clipping"]["1.0"], summary["clipping"]["None"]
    return f"""
Training changes a weight by the gradient of the loss. What a network did k steps before the loss
counts only as far as the gradient reaches back over those k steps. In a plain RNN,
`h(t) = tanh(W_ih x(t) + W_hh h(t-1))`, each step back multiplies the gradient by the same W_hh and
by the slope of tanh, which is at most 1. A product of k such factors shrinks or grows like a number
to the power k: it **vanishes** or **explodes**. How fast is the slope of a line fitted to the
logarithm of the gradient's size, in decades (powers of ten) per 100 steps:

{slopes}

Minus 10 decades per 100 steps: over 100 steps the gradient becomes ten billion times smaller.
Forget bias 1 means that the forget gate starts with a bias of 1 instead of one near 0. Of the
Bi-LSTM this is the half that reads from left to right; the other half is near where this one is
far (in the figure). A line over thousands of steps does not say how large the gradient is at any
one of them. The norms of dL/dh, and in an LSTM of dL/dc, the middle of the seeds:

{far}

An LSTM has a second way back. Its cell state is a sum, c(t) = f c(t-1) + i g, without a weight
matrix between c(t-1) and c(t). Along this **additive path** a step back multiplies the gradient by
the forget gate f alone, and the network can learn where to hold f near 1. **It pays once to get
in**: from h the gradient enters the cell of an earlier step through gates that are nearly shut
(trained, |dL/dh| is {lstm["at"][0]} after {near} steps and {lstm["at"][1]} after {next_}); the cell
then holds it (|dL/dc| is {lstm["at_c"][0]} and {lstm["at_c"][1]}).

It is no magic. f near 1/2, as torch starts it, alone would halve the gradient every step
({100 * math.log10(0.5):.0f}). Measured is {start["LSTM"]["h"][0]:.0f}: the units with the largest f
last longest, and the path through h carries some more. With forget bias 1, f starts near
sigmoid(1) = {forget_1:.2f}: alone {100 * math.log10(forget_1):.1f}, measured
{start["LSTM, forget bias 1"]["h"][0]:.1f}. An orthogonal W_hh, which turns a vector without making
it longer or shorter, starts out further still.

{_identity(summary)}

Vanishing and exploding are one thing with two signs, as the size of W_hh decides. Decades per 100
steps at the start:

{_explosion(summary["gains"])}

The gates move the point of explosion, they do not abolish it: clip LSTMs, too. Clipping is for the
explosion, not for the vanishing: it scales the whole gradient, near and far alike. It keeps a run
alive; it does not make it learn. Of the relu RNNs made to explode, {free["lost"]} of
{free["seeds"]} were lost to infinities without clipping and {cut["lost"]} of {cut["seeds"]} with
it, but {cut["no_better"]} of these {cut["seeds"]} ended no better than who always answers 1.

{_tuning(summary["tuning"], _network, _trained_on, until_solved=True)}
"""


def _identity(summary: Json) -> str:
    """What a plain RNN can do that starts with the identity."""
    network = "RNN relu, identity"
    start, trained = (summary["slopes"][when][network] for when in ("start", "trained"))
    solved = {
        row["unit"]["network"]: {rate for rate, at, _ in row["tried"] if at is not None}
        for row in summary["tuning"]
    }
    breaks = sorted(solved.get("LSTM", set()) - solved.get(network, set()))
    broken = f" (in the pilots below: {' and '.join(f'{rate:g}' for rate in breaks)})" * bool(
        breaks
    )
    return f"""
The difference comes with training: the LSTM learns where to hold the gradient. A plain RNN can be
started so that it holds it everywhere: a relu RNN whose W_hh is the identity (Le, Jaitly and Hinton
2015) starts with a slope of {wording.pm(start["h"])} and then learns adding, too
({trained["solved"]} of {trained["seeds"]} seeds at {trained["rate"]:g}). But it does not learn at
rates that the LSTM bears{broken}, and what it held at the start it does not keep in training
(a slope of {wording.ends(trained["each_h"], ".1f")}).
""".strip()


def _explosion(gains: Json) -> str:
    """Slopes by the size of W_hh, a network a column."""
    sizes = dict.fromkeys(gain for found in gains.values() for gain in found)
    return wording.table(
        ["W_hh, that of each gate", *gains],
        [
            [
                f"{gain} x orthogonal",
                *(
                    wording.pm(found[gain]["mean"]) if gain in found else ""
                    for found in gains.values()
                ),
            ]
            for gain in sizes
        ],
    )


def _half(network: str) -> str:
    """The name of a row on the gradient, which of two directions shows one."""
    return f"{network}, forget bias 1: left to right" if network == "Bi-LSTM" else network


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
        ends = (tried[0][0], tried[-1][0])
        cells[who(row["unit"]), f"{where(row['unit'])} ({rates})"] = " / ".join(
            f"**{said}**" + "†" * (rate in ends) if rate == row["rate"] else said
            for rate, at, best in tried
            for said in [f"{at:,}" if until_solved and at is not None else wording.short(best)]
        )
    networks, columns = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))
    table = wording.table(
        ["network", *columns],
        [[name, *(cells.get((name, column), "") for column in columns)] for name in networks],
    )
    edge = ""
    if "†" in table:
        edge = " † The lowest or highest rate that was tried: a better one may lie beyond."
    found = "Sequences until solved (the lowest error if not)" if until_solved else "Lowest error"
    return (
        f"Equal tuning. {found} of one run at each learning rate (in brackets) from a seed that "
        f"does not count. In bold the rate that was taken: {rows[0]['tried'][0][0]:g}, unless "
        f"another is better by more than a tenth.{edge}\n\n{table}"
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
tests of memory: add two marked numbers among many; say five signs again after a pause; name the
order of two signs among many that mean nothing; predict strings whose last sign but one repeats the
second. None asks for memory alone: adding also wants a sum, and the strings of Reber a grammar,
which is most of what is to be learned there, over lags that plain RNNs bridge as well. All
networks have as many parameters as the LSTM. "LSTM" and "RNN tanh" with nothing behind start as
torch starts them; "chrono" starts the forget gates open for times between one step and the whole
sequence, and the input gates as far shut; "identity" starts W_hh as the identity and the biases
at 0.

{wording.table(head, rows)}

The error is the mean square for adding (who always answers 1 has {tasks.adding(9).baseline:.3g}),
and the share of wrong answers for the others. A step of training sees 32 sequences here, and one in
1997: where the figures below are in sequences, theirs are as many steps, ours a 32nd of it. Forty
looks are taken in a run, and training ends at the first that is good enough; above, on the
gradient, ten: a network can so be solved here at a seed at which it is not there.

{_told_to_hold(summary["rows"], summary["tuning"])}

{_tuning(summary["tuning"], _network, _task_of, until_solved=True)}

{_why(run).strip()}
"""


def _told_to_hold(rows: Sequence[Json], tried: Sequence[Json]) -> str:
    """What the plain RNN solves that starts as the identity, and where it breaks."""
    network = "RNN relu, identity"
    lstm = {(row["task"], row["T"]): row["solved"] for row in rows if row["network"] == "LSTM"}
    solved = "; ".join(
        f"{long_lag.words(row['task'], row['T'])} at {row['solved']} of {row['seeds']} seeds"
        + (f" ({lstm[row['task'], row['T']]})" if (row["task"], row["T"]) in lstm else "")
        for row in rows
        if row["network"] == network
    )
    failed = [
        f"{_task_of(row['unit'])} at {rate:g}{' (lost)' if best is None else ''}"
        for row in tried
        if row["unit"]["network"] == network
        for rate, at, best in sorted(row["tried"])
        if at is None
    ]
    pilots = f" Its pilots failed on {'; '.join(failed)}." if failed else ""
    return f"""
**A plain RNN can hold, too, if it is told to.** A relu RNN that starts as the identity solves, in
brackets the LSTM as torch starts it, {solved}.{pilots}
""".strip()


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

{_verdict(summary).strip() if summary["why_T"] == 600 else ""}
"""


def _solved(found: Json) -> str:
    return f"{sum(n is not None for n in found['solved_at'])} of {len(found['solved_at'])}"


def _when(found: Json) -> str:
    return wording.ends([n // 32 for n in found["solved_at"] if n is not None], ",d")


def _verdict(summary: Json) -> str:
    """What follows; ``tests/test_lesson.py`` holds the words to the results."""
    why, norms = summary["why"], summary["why_norms"]
    later = sum(norm >= long_lag.THEIRS["clip"] for norm in norms["their settings"])

    def of(change: str) -> str:
        return _solved(why[change][0])

    def after(change: str) -> str:
        return _when(why[change][0])

    longer = why["their settings"][-1]
    both, tied, free = "forget bias 5, input bias -5", "coupled, f = 1 - i", "no clipping"
    return f"""
**What helps most is where the gates start.** With their settings {of("their settings")} were solved
in the updates of their figure; of those that ran on to twice as many, {_solved(longer)} (after
{_when(longer)}): slow at best. Started for long times (chrono), the same layer is done after
{after("chrono")} updates ({of("chrono")}). Both gates have to start so. A forget gate near 1 alone
(bias 5) keeps everything, and an input gate at 1/2 lets 600 numbers in, of which two count:
{of("forget bias 5")}. An input gate nearly shut alone (bias -5) lets in what a forget gate at 0.73
loses again: {of("input bias -5")}. Together: {of(both)}, after {after(both)}. **Their GRU has this
built in**: its update gate opens to the past as far as it shuts to the input, so that whatever
training moves, it moves both. An LSTM so tied, f = 1 - i, with the forget gate where theirs begins,
is done after {after(tied)} updates ({of(tied)}). Clipping is not the cause: in the updates of their
figure no gradient came to their limit of {long_lag.THEIRS["clip"]:g} (the largest to
{max(norms[free]):.1f}), so that removing it changes nothing (without: {of(free)}); in the
updates after those it acted at {later} of {len(norms["their settings"])} seeds. A higher learning
rate helps (at 0.01: {of("rate 0.01")}, after {after("rate 0.01")}). Not measured: their layer of
130, and a training set that does not change.
"""


def gates(run: Json) -> str:
    """Which part of the cell is missed when it is taken out."""
    summary = run["summary"]
    missing = "".join(f"\n\nNot run: {words}." for words in summary["missing"])
    tables = "\n\n".join(
        f"At {how}:\n\n{_by_cell(rows, summary['tasks'])}"
        for how, rows in gate_by_gate.kinds(summary).items()
    )
    return f"""
An LSTM is c(t) = f c(t-1) + i g, h(t) = o tanh(c(t)). The input gate i says what enters the cell,
the forget gate f what stays, the output gate o what is shown; g and the last tanh are the input and
the output activation. Every cell here is a row of `gatewise.CELLS`: the LSTM with one part welded
or taken out, down to the plain RNN. {_sizes(summary["sizes"])} Adding and embedded Reber are solved
or not: at how many seeds. Of text and vowels: the mean error (lower is better), and in brackets its
difference to the LSTM's, seed by seed, with the 95 % interval.{_alike(summary)}

{tables}{missing}

{_other_rates(summary) if summary["tuning"] else ""}

{_beside_the_literature(run)}

{_tuning(summary["tuning"], _cell, _task)}
"""


def _alike(summary: Json) -> str:
    """The tasks that every cell solves at every seed, by whatever rate."""
    rows = [row for kind in gate_by_gate.kinds(summary).values() for row in kind]
    tasks = [
        wording.task(task)
        for task in summary["tasks"]
        if all(r["solved"] == len(r["errors"]) for r in rows if r["task"] == task)
    ]
    names = " and ".join(tasks)
    return f" Every cell solves {names}, which so tells no part from another." if tasks else ""


def _sizes(found: Json) -> str:
    """How large the networks are and how long each task is trained."""
    tasks = "; ".join(
        f"{wording.task(task)}{length}: {size['sequences']:,}"
        for task, size in found["tasks"].items()
        for length in [f" (T = {size['T']})" if size["T"] else ""]
    )
    return f"Hidden size {found['hidden']}; trained on so many sequences: {tasks}."


def _other_rates(summary: Json) -> str:
    """What another learning rate than the one for all brought."""
    others = [row for row in summary["rows"] if row["rate"] != summary["one_rate"]]
    worse = [
        f"{gate_by_gate.CELLS_SHOWN[row['cell']]} on {wording.task(row['task'])} (at "
        f"{row['rate']:g}: {_reached(row)} for {_reached(row['one_rate'] | {'task': row['task']})})"
        for row in others
        if row["error"] > row["one_rate"]["error"]
    ]
    return (
        "A pilot is one seed, and what is best for one need not be best for five: of the "
        f"{len(others)} times that it took another rate than {summary['one_rate']:g}, the mean "
        f"error became larger {len(worse)} times: {', '.join(worse) or 'none'}."
    )


def _reached(row: Json) -> str:
    if row["task"] in gate_by_gate.COUNTED:
        return f"{row['solved']} of {len(row['errors'])} seeds"
    return wording.error(row)


def _by_cell(rows: Sequence[Json], tasks: Sequence[str]) -> str:
    """A line a cell: at how many seeds it solves a task, or its error beside the LSTM's."""

    def said(task: str, cell: str) -> str:
        found = gate_by_gate.row(rows, task, cell)
        if task in gate_by_gate.COUNTED:
            return f"{found['solved']} of {len(found['errors'])}"
        beside = wording.signed(gate_by_gate.more(rows, task, cell))
        return f"{found['error']:.3g}" + f" ({beside})" * (cell != "lstm")

    return wording.table(
        ["cell", *map(wording.task, tasks)],
        [
            [words, *(said(task, cell) for task in tasks)]
            for cell, words in gate_by_gate.CELLS_SHOWN.items()
        ],
    )


def _beside_the_literature(run: Json) -> str:
    """What others found of each part, and on which tasks it was missed here."""
    kinds = gate_by_gate.kinds(run["summary"])
    lines = [
        [said["what"], said["source"], *(_missed(rows, said["key"]) for rows in kinds.values())]
        for said in run["published"]
        if said["value"] is None
    ]
    head = ["against the LSTM", "found by", *(f"here, at {how}" for how in kinds)]
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
            both_directions.SHOWN[row["network"]],
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

{_sizes(summary["sizes"])} Every LSTM here starts with forget bias 1.

{wording.table(head, rows)}

{_tuning(summary["tuning"], _network_sized, _task)}
"""


def _network_sized(unit: Json) -> str:
    return f"{both_directions.SHOWN[unit['network']]}, {unit['sizing']}"
