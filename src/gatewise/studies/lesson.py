"""The lesson made from the results: ``python -m gatewise.studies.lesson RESULTS PAGE.md``.

Every number on the page comes out of a ``result.json``; a test compares the page with the results.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from gatewise.files import whole
from gatewise.studies import both_directions, gate_by_gate, names, price, stats, tasks
from gatewise.studies.frame import Json
from gatewise.studies.networks import LAYERS

_HELD = {True: "yes", False: "**no**", None: "not asked in this run"}


def write(results: Path, page: Path) -> None:
    """Write the page from the results of all studies.

    Raises:
        FileNotFoundError: a study has no ``result.json`` under ``results``.
    """
    with whole(page) as draft:
        draft.write_text(render(results, os.path.relpath(results, page.parent)), encoding="utf-8")


def render(results: Path, link: str) -> str:
    """The page as text.

    Args:
        results: the folder with one folder a study.
        link: that folder as seen from the page.
    """
    found = {
        name: json.loads((results / name / "result.json").read_text(encoding="utf-8"))
        for name in names()
    }
    parts = [_opening(found)]
    for name, (title, explain) in _SECTIONS.items():
        run = found[name]
        parts += [f"## {title}", f"**{run['answer']}**", explain(run), _evidence(run, link)]
    parts += ["## When an LSTM is the wrong choice", _wrong_choice(found), _losses(found)]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(table(["a", "b"], [[1, 2]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _opening(found: dict[str, Json]) -> str:
    runs = table(
        ["study", "mode", "seeds", "finished", "minutes", "machine"],
        [
            [
                name,
                run["mode"],
                len(run["seeds"]) or "timing",
                run["finished"][:10],
                f"{run['seconds'] / 60:.1f}",
                f"{run['machine']['machine']}; {run['machine']['isa']}; "
                f"torch {run['machine']['torch']}, {run['machine']['torch_threads']} threads",
            ]
            for name, run in found.items()
        ],
    )
    short = "\n".join(f"- **{_SECTIONS[name][0]}.** {run['answer']}" for name, run in found.items())
    return f"""
<!-- Written by gatewise.studies.lesson from the results; run make studies to write it anew. -->
# What an LSTM buys, and what it costs

Textbooks say: the gates of an LSTM slow down the vanishing of gradients over long sequences,
without abolishing it, and the price is training that is far slower than a plain RNN's of the same
size. This page measures both. Each section asks one question; what was expected is written down
before the run, and stays on the page when it turns out wrong. `gatewise study NAME` asks a
question again on your machine, `make studies` asks all of them and writes this page anew.

## In short

{short}

Intervals are at 95 %, over seeds or over rounds of timing. What was run, and where:

{runs}
"""


def _vanishing(run: Json) -> str:
    summary = run["summary"]
    start, trained = summary["slopes"]["start"], summary["slopes"]["trained"]
    slopes = table(
        ["network", "decades per 100 steps, at the start", "after training", "solved the training",
         f"float32 ends after (of {summary['T']:,} steps, at the start)"],
        [
            [
                network,
                _pm(start[network]["h"]),
                _pm(trained[network]["h"]),
                f"{trained[network]['solved']} of {trained[network]['seeds']}",
                _span(start[network]["float32_ends"]),
            ]
            for network in start
        ],
    )  # fmt: skip
    distances = list(start["LSTM"]["at"])
    far = table(
        ["network", *(f"{int(d):,} steps back" for d in distances)],
        [
            [f"{network}, {words}", *(_power(rows[network]["at"][d]) for d in distances)]
            for network in ("RNN tanh", "LSTM", "LSTM, forget bias 1")
            for words, rows in (("at the start", start), ("trained", trained))
        ],
    )
    gains = table(
        ["W_hh of a tanh RNN", "decades per 100 steps"],
        [[f"{gain} x orthogonal", _pm(value)] for gain, value in summary["gains"].items()],
    )
    cut, free = summary["clipping"]["1.0"], summary["clipping"]["None"]
    return f"""
Training changes a weight by the gradient of the loss. What a network did k steps before the loss
counts only as far as the gradient reaches back over those k steps. In a plain RNN,
`h(t) = tanh(W x(t) + U h(t-1))`, each step back multiplies the gradient by the same U and by the
slope of tanh, which is at most 1. A product of k such factors shrinks or grows like a number to
the power k: it **vanishes** or **explodes**.

{slopes}

Minus 10 decades per 100 steps means: over 100 steps the gradient becomes ten billion times smaller.
The middle of the seeds, as the norm of dL/dh:

{far}

An LSTM has a second way back. Its cell state is a sum, c(t) = f c(t-1) + i g, without a weight
matrix between c(t-1) and c(t). Along this **additive path** a step back multiplies the gradient by
the forget gate f alone, and the network can learn where to hold f near 1. It is no magic: f near
1/2, as torch starts it, halves the gradient every step, so that at the start an LSTM reaches little
further than a plain RNN. With forget bias 1, f starts near
sigmoid(1) = {1 / (1 + math.exp(-1)):.2f}. The difference comes with training: the plain RNN has
nothing to hold the gradient with, however long it learns.

Vanishing and exploding are one thing with two signs, as the size of U decides:

{gains}

Clipping cures the explosion, not the vanishing: it scales the whole gradient, near and far alike.
Of the relu RNNs made to explode, {free["lost"]} of {free["seeds"]} were lost to infinities without
clipping and {cut["lost"]} of {cut["seeds"]} with it.
"""


def _memory(run: Json) -> str:
    summary = run["summary"]
    rows = []
    for row in summary["rows"]:
        when = f"{row['sequences'][1]:,}" if row["sequences"] else f"not in {row['most']:,}"
        rows.append(
            [
                f"{row['task'].replace('_', ' ')}, T = {row['T']}",
                row["network"],
                f"{row['solved']} of {row['seeds']}",
                when,
                _short(row["error"]),
                f"{row['parameters']:,}",
            ]
        )
    head = ["task", "network", "solved", "sequences until then (median)", "error", "parameters"]
    return f"""
A gradient that reaches back is worth something only if the network learns from it. Four classical
tests ask for memory and nothing else: add two marked numbers among many; say symbols again after a
pause; name the order of two signs among many that mean nothing; predict strings whose last sign
but one repeats the second. All networks have as many parameters as the LSTM. "Chrono" starts the
forget gates open for times between one step and the whole sequence, and the input gates as far
shut.

{table(head, rows)}

{_why(run).strip()}
"""


def _why(run: Json) -> str:
    """Why Bai et al.'s LSTM failed: the evidence as a table, and what follows from it."""
    summary = run["summary"]
    said = {p["key"]: p["value"] for p in run["published"]}
    rows = [
        [
            change,
            f"{sum(n is not None for n in found['solved_at'])} of {len(found['solved_at'])}",
            f"{found['sequences'] // 32:,}",
            _range([n // 32 for n in found["solved_at"] if n is not None], ",d"),
            _range([e for e in found["errors"] if e is not None], ".2g"),
        ]
        for change, found in summary["why"].items()
    ]
    head = [f"adding, T = {summary['why_T']}", "runs solved", "within updates", "solved after",
            "held-out squared error at the end"]  # fmt: skip
    return f"""
### Why did the LSTM of Bai et al. 2018 fail?

They report that an LSTM fails at adding over 600 steps: a squared error of {said["bai"]}, where who
always answers 1 has {tasks.adding(600).baseline:.4f} and their GRU {said["bai GRU"]:.6f}. Their
settings with a layer of {summary["why_hidden"]} in place of 130, and one change a row:

{table(head, rows)}

{_verdict(summary["why"]).strip() if summary["why_T"] == 600 else ""}
"""


def _verdict(why: dict[str, Json]) -> str:
    """What follows; ``tests/test_studies.py`` holds the words to the results."""

    def solved(change: str) -> str:
        found = why[change]["solved_at"]
        return f"{sum(n is not None for n in found)} of {len(found)}"

    def when(change: str) -> str:
        return _range([n // 32 for n in why[change]["solved_at"] if n is not None], ",d")

    longer = next(change for change in why if change.endswith("times the updates"))
    return f"""
**What decides is where the gates start.** With their settings {solved("their settings")} were
solved in the updates of their figure; of those that ran on to twice as many, {solved(longer)}
(after {when(longer)}): slow at best. Started for long times (chrono), the same layer is done after
{when("chrono")} updates ({solved("chrono")}). Both gates have to start so. A forget gate near 1
alone (bias 5) keeps everything, and an input gate at 1/2 lets 600 numbers in, of which two count:
{solved("forget bias 5")}. An input gate nearly shut alone (bias -5) lets in what a forget gate at
0.73 loses again: {solved("input bias -5")}. Together: {solved("forget bias 5, input bias -5")},
after {when("forget bias 5, input bias -5")}. Clipping is not the cause (without it:
{solved("no clipping")}); a higher learning rate helps (at 0.01: {solved("rate 0.01")}, after
{when("rate 0.01")}). What is not explained: their GRU was solved, and the nearest we have to it,
an LSTM with f = 1 - i, is not when it starts at forget bias 1
({solved("f = 1 - i, as in a GRU")}). And not measured: their layer of 130, and a training set that
does not change.
"""


def _gates(run: Json) -> str:
    summary = run["summary"]
    rows = []
    for cell, words in gate_by_gate.CELLS_SHOWN.items():
        errors = [
            f"{row['error']:.3g} ± {row['half']:.2g}"
            for row in summary["rows"]
            if row["cell"] == cell
        ]
        rows.append([words, *errors, summary["mean_rank"][cell]])
    missing = "".join(f"\n\nNot run: {words}." for words in summary["missing"])
    return f"""
An LSTM is c(t) = f c(t-1) + i g, h(t) = o tanh(c(t)). The input gate i says what enters the cell,
the forget gate f what stays, the output gate o what is shown; g and the last tanh are the input and
the output activation. Every cell here is a row of `gatewise.CELLS`: the LSTM with one part welded
or taken out, down to the plain RNN. Lower is better; mean and 95 % interval over the seeds.

{table(["cell", *(t.replace("_", " ") for t in summary["tasks"]), "mean rank"], rows)}{missing}
"""


def _directions(run: Json) -> str:
    summary = run["summary"]
    rows = [
        [
            row["task"],
            "yes" if both_directions.NEEDS_RIGHT[row["task"]] else "no",
            row["network"],
            row["sizing"],
            f"{row['error']:.3g} ± {row['half']:.2g}",
            f"{row['parameters']:,}",
            f"{row['milliseconds']:.2f}",
        ]
        for row in summary["rows"]
    ]
    head = ["task", "needs the right", "network", "sizing", "error", "parameters",
            "ms of processor time a step"]  # fmt: skip
    return f"""
A second run from right to left, joined with the first, sees what is still to come. It doubles the
parameters and the work, and it can only start when the sequence has ended: no answer while the
input still runs.

{table(head, rows)}
"""


def _price(run: Json) -> str:
    summary = run["summary"]
    layers = list(LAYERS) + [name + price.LOW for name in LAYERS]
    head = ["H", *layers]
    parts = []
    for phase in price.PHASES:
        rows = [
            [row["H"], *(_ms(row["milliseconds"].get(name)) for name in layers)]
            for row in summary["steps"]
            if row["phase"] == phase
        ]
        parts.append(f"Milliseconds, {phase}:\n\n{table(head, rows)}")
    ratios = table(
        ["H", *(" over ".join(pair) for pair in price.RATIOS)],
        [
            [H, *(_ratio(price.ratio(summary, H, above, below)) for above, below in price.RATIOS)]
            for H in price.sizes(summary)
        ],
    )
    counts = table(
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
    growth = table(
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
            _middle(row["sequences"], ",.0f"),
            f"{row['milliseconds_a_step'][0]:.2f}",
            _middle(row["seconds"], ".2f"),
            _middle(row["multiply_adds"] and [n / 1e9 for n in row["multiply_adds"]], ",.1f"),
            _short(row["best"]),
        ]
        for name, row in found["layers"].items()
    ]
    head = ["layer", "learning rate", "seeds that got there", "sequences", "ms a step", "seconds",
            "10^9 multiply-adds", "best error later"]  # fmt: skip
    return (
        f"To the same error: {found['error_is']} {found['target']:.3g} on held-out text, which "
        "every seed of the plain RNN reaches (the middle of the seeds, and from the lowest to the "
        f"highest):\n\n{table(head, rows)}"
    )


def _seeing(run: Json) -> str:
    summary = run["summary"]
    rows = [
        [
            f"({row['T']}, {row['B']}, {row['H']})",
            _ratio(row["trace / forward"]),
            _ratio(row["cells / trace"]),
            _ratio(row["gradients / backward"]),
            _ratio(row["cells / gradients"]),
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
of LSTMCell, which shows h and c and no gate.

{table(head, rows)}
"""


def _wrong_choice(found: dict[str, Json]) -> str:
    two, cost = found["both-directions"]["summary"], found["price"]["summary"]
    lines = []
    for task in two["tasks"]:
        rnn, lstm = (both_directions.row(two, task, name) for name in ("RNN", "LSTM"))
        if not both_directions.NEEDS_RIGHT[task] and rnn["error"] <= lstm["error"] + lstm["half"]:
            lines.append(
                f"- **The lag is short.** On `{task}` the plain RNN's error is {rnn['error']:.3g} "
                f"with {rnn['parameters']:,} parameters, the LSTM's {lstm['error']:.3g} with "
                f"{lstm['parameters']:,}."
            )
    slow = []
    for H in price.sizes(cost):
        found_ratio = price.ratio(cost, H, "gatewise.LSTM")
        if found_ratio is not None and found_ratio[1] > 1:
            slow.append(f"{found_ratio[0]:.2f} at H = {H}")
    if slow:
        lines.append(
            "- **Time is short.** A float32 training step still takes longer than torch's plain "
            "RNN, "
            f"by these factors: {', '.join(slow)}."
        )
    lines += [
        "- **The lag is longer than the forget gate can hold.** A gate at 0.99 keeps 0.99^k: the "
        "gradient vanishes, only later. See the slopes above.",
        "- **Answers are wanted while the input runs**: then a Bi-LSTM is out, an LSTM is not.",
        "- **Many processors are idle.** Each step waits for the one before, however wide the "
        "machine; a convolution or attention does not. (Said, not measured here.)",
    ]
    return "\n".join(lines)


def _losses(found: dict[str, Json]) -> str:
    wrong = [
        f"- {name}: {p['text']}"
        for name, run in found.items()
        for p in run["predictions"]
        if p["held"] is False
    ]
    if not wrong:
        return "Every prediction that this run asked held."
    return "What we expected and did not see:\n\n" + "\n".join(wrong)


def _evidence(run: Json, link: str) -> str:
    """What is the same under every section: figure, predictions, literature, method."""
    parts = [
        f"![{run['question']}]({link}/{run['study']}/figure.png)",
        table(
            ["expected before the run", "held"],
            [[p["text"], _HELD[p["held"]]] for p in run["predictions"]],
        ),
    ]
    if run["published"]:
        rows = [
            [p["what"], "" if p["value"] is None else f"{p['value']:,.6g}", p["source"], p["note"]]
            for p in run["published"]
        ]
        parts.append(table(["published", "value", "source", "note"], rows))
    parts.append(f"*How:* {run['method']}")
    return "\n\n".join(parts)


def _pm(pair: Sequence[float] | None) -> str:
    return "no gradient left" if pair is None else stats.plus_minus(pair)


def _power(exponent: float | None) -> str:
    return "0" if exponent is None else f"10^{exponent:.0f}"


def _span(values: Sequence[int | None]) -> str:
    """The range over the seeds."""
    there = sorted(v for v in values if v is not None)
    if not there:
        return "not reached"
    span = f"{there[0]}" if there[0] == there[-1] else f"{there[0]} to {there[-1]}"
    return span if len(there) == len(values) else f"{span} ({len(there)} of {len(values)} seeds)"


def _ratio(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def _middle(found: Sequence[float] | None, form: str) -> str:
    """The middle of the seeds and their range."""
    if found is None:
        return "not by all"
    mid, low, high = (format(v, form) for v in found)
    return f"{mid} ({low} to {high})"


def _range(values: Sequence[float], form: str) -> str:
    """From the lowest to the highest; nothing for none."""
    ends = [format(v, form) for v in (min(values), max(values))] if values else []
    return " to ".join(dict.fromkeys(ends))


def _ms(found: Sequence[float] | None) -> str:
    return "" if found is None else f"{found[0]:.3g}"


def _short(value: float | None) -> str:
    return "lost" if value is None else f"{value:.3g}"


_SECTIONS = {
    "gradient-reach": ("What vanishes, and why the cell's additive path helps", _vanishing),
    "long-lag": ("What that buys: memory", _memory),
    "gate-by-gate": ("Which gate matters", _gates),
    "both-directions": ("Two directions", _directions),
    "price": ("The price of the gates", _price),
    "cost-of-seeing": ("The price of seeing them", _seeing),
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m gatewise.studies.lesson RESULTS PAGE.md")
    write(Path(sys.argv[1]), Path(sys.argv[2]))
