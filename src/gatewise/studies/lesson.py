"""The lesson made from the results: ``python -m gatewise.studies.lesson RESULTS PAGE.md``.

Every number on the page comes out of a ``result.json``; a test compares the page with the results.
With ``--extend`` in front, every result is first brought up to what its study plans and says today:
after a change of words or of a figure nothing is measured, after a longer plan only what is new.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path

from gatewise.files import whole
from gatewise.studies import both_directions, chapters, load, names, price, price_chapters, wording
from gatewise.studies.frame import Json, extend

_HELD = {
    True: "yes",
    False: "**no**",
    None: "not asked in this run",
    "undecided": "undecided: within the uncertainty",
}


#: The words on this page that run: a test compares what they print.
_SEEN = """
```python
import torch
import gatewise

torch.manual_seed(0)
x = torch.randn(101, 1, 8).double()
rnn, lstm, holds = gatewise.RNN(8, 32), gatewise.LSTM(8, 32), gatewise.LSTM(8, 32)
with torch.no_grad():
    holds.bias_ih_l0[32:64] = 4  # rows of the forget gate, which is now about sigmoid(4) = 0.98
for layer in (rnn, lstm, holds):
    trace = layer.double().trace(x)
    trace.output[-1].sum().backward()  # a loss at the last step alone
    reach = trace.gradient_reach("h")[0, 0, :, 0]
    print([f"{reach[-1 - k]:.0e}" for k in (0, 10, 50, 100)])
```
```text
['6e+00', '1e-02', '9e-13', '9e-25']
['6e+00', '5e-03', '1e-11', '7e-21']
['6e+00', '2e-01', '9e-02', '7e-01']
```
""".strip()


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


def _opening(found: dict[str, Json]) -> str:
    runs = wording.table(
        ["study", "mode", "seeds", "finished", "minutes", "machine"],
        [
            [
                name,
                run["mode"],
                len(run["seeds"]) or "timing",
                run["finished"][:10],
                f"{run['seconds'] / 60:.1f}",
                f"{run['machine']['machine']}; {run['machine']['isa']}; "
                f"torch {run['machine']['torch']}, threads used: {run['machine']['torch_threads']}"
                + _elsewhere(run["records"]),
            ]
            for name, run in found.items()
        ],
    )
    short = "\n".join(f"- **{_SECTIONS[name][0]}.** {run['answer']}" for name, run in found.items())
    return f"""
<!-- Written by gatewise.studies.lesson from the results; run make studies to write it anew. -->
# What an LSTM buys, and what it costs

- A plain RNN loses the gradient within tens of steps.
- An LSTM loses it as fast until it learns, or is told, to hold it.
- Start the gates for the length you need (chrono, below).
- A second direction is for tasks that need what comes after.
- The price is {_price(found["price"]["summary"])} times a plain RNN's step of training.

Vanishing in one line each: how large the gradient of a loss at the last step is 0, 10, 50 and 100
steps before it, in a plain RNN, in an LSTM as torch starts it, and in one whose forget gates are
told to stay open.

{_SEEN}

The first two lose it alike: a gate that stands at 1/2 halves what it should hold. What an LSTM has,
and a plain RNN has not, is a gate that can be opened, by whoever starts it or by training. The rest
of the page measures that. In a hurry, read "In numbers", the figures, and the last section.

Textbooks say: gradients vanish over long sequences (Hochreiter 1991, Untersuchungen zu dynamischen
neuronalen Netzen; Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013); the gates of
an LSTM slow that down, without abolishing it; and the price is training that is far slower than a
plain RNN's of the same size. A second direction sees the right-hand side, too (Graves and
Schmidhuber 2005). This page measures all of it. Each section asks one question; what was expected
was written down before, and stays on the page when it turns out wrong. The protocol changed after
the first full run: every network got its own best learning rate and five seeds, and later the plain
RNN that starts as the identity joined. `gatewise study NAME` asks a question again on your machine,
`make studies` asks all of them and writes this page anew.

## In numbers

{short}

Every ± and every interval in brackets is at 95 %, over seeds or over rounds of timing. In the
figures a line is the middle of the seeds and the band around it goes from the lowest seed to the
highest; a small dot is one seed, a large mark the middle one. What was run, and where:

{runs}
"""


def _elsewhere(records: list[Json]) -> str:
    """On which other machines some of the runs were made."""
    added = Counter(r["machine"] for r in records if "machine" in r)
    return "".join(
        f"; {n} of {len(records)} runs later on {machine}" for machine, n in added.items()
    )


def _price(cost: Json) -> str:
    """The step of an LSTM over a plain RNN's, same kernels, from the smallest H to the largest."""
    sizes = price.sizes(cost)
    ratios = (price.ratio(cost, H, "gatewise.LSTM", "gatewise.RNN") for H in (sizes[0], sizes[-1]))
    return " to ".join(f"{found[0]:.1f}" for found in ratios if found)


def _wrong_choice(found: dict[str, Json]) -> str:
    two, cost = found["both-directions"]["summary"], found["price"]["summary"]
    lines = []
    for task in two["tasks"]:
        rnn, lstm = (both_directions.row(two, task, name) for name in ("RNN", "LSTM"))
        as_good = rnn["error"] <= lstm["error"] + lstm["half"] and both_directions.equal(rnn, lstm)
        if not both_directions.NEEDS_RIGHT[task] and as_good:
            lines.append(
                f"- **The lag is short.** On `{task}` the plain RNN is as good as the LSTM (error "
                f"{wording.error(rnn)} and {wording.error(lstm)}: equal), with "
                f"{rnn['parameters']:,} parameters in place of {lstm['parameters']:,}."
            )
    lines.append(
        f"- **Time is short.** A float32 training step takes {_price(cost)} times as long as a "
        "plain RNN's (same kernels, from the smallest H measured to the largest)."
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
        wording.table(
            ["expected before the run", "held"],
            [[p["text"], _HELD[p["held"]]] for p in run["predictions"]],
        ),
    ]
    rows = [
        [p["what"], f"{p['value']:,.6g}", p["source"], p["note"]]
        for p in run["published"]
        if p["value"] is not None
    ]
    if rows:
        parts.append(wording.table(["published", "value", "source", "note"], rows))
    parts.append(f"*How:* {run['method']}")
    return "\n\n".join(parts)


_SECTIONS = {
    "gradient-reach": ("What vanishes, and why the cell's additive path helps", chapters.vanishing),
    "long-lag": ("What that buys: memory", chapters.memory),
    "gate-by-gate": ("Which gate matters", chapters.gates),
    "both-directions": ("Two directions", chapters.directions),
    "price": ("The price of the gates", price_chapters.cost),
    "cost-of-seeing": ("The price of seeing them", price_chapters.seeing),
}

if __name__ == "__main__":
    _longer = sys.argv[1:2] == ["--extend"]
    if len(sys.argv) != 3 + _longer:
        sys.exit("usage: python -m gatewise.studies.lesson [--extend] RESULTS PAGE.md")
    _results, _page = map(Path, sys.argv[-2:])
    if _missing := [n for n in names() if not (_results / n / "result.json").is_file()]:
        sys.exit(
            f"{_results}: no result of {', '.join(_missing)}; "
            f"gatewise study --all --out {_results} measures what is missing"
        )
    for _name in names() if _longer else ():
        extend(load(_name), _results / _name)
    write(_results, _page)
