"""The lesson made from the results: ``python -m gatewise.studies.lesson RESULTS PAGE.md``.

Every number on the page comes out of a ``result.json``; a test compares the page with the results.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from gatewise.files import whole
from gatewise.studies import both_directions, chapters, names, price, wording
from gatewise.studies.frame import Json

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
                f"torch {run['machine']['torch']}, threads used: {run['machine']['torch_threads']}",
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

Every ± and every interval in brackets is at 95 %, over seeds or over rounds of timing. In the
figures a line is the middle of the seeds and the band around it goes from the lowest seed to the
highest; a small dot is one seed, a large mark the middle one. What was run, and where:

{runs}
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
    "price": ("The price of the gates", chapters.cost),
    "cost-of-seeing": ("The price of seeing them", chapters.seeing),
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python -m gatewise.studies.lesson RESULTS PAGE.md")
    write(Path(sys.argv[1]), Path(sys.argv[2]))
