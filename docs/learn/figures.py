"""Draw every figure of the lessons again, into docs/learn/img.

    .venv/bin/python docs/learn/figures.py

The runs are those of the pages: their Python is executed up to the point where the run is there.
The taggers are trained as in examples/explorer.py, which takes some seconds.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import gatewise
from gatewise.figures import COLOURS
from gatewise.reference import ACTIVATIONS

HERE = Path(__file__).parent
IMAGES = HERE / "img"
SHUT = "#e8e8e8"
MARKS = {"i": "o", "f": "s", "g": "o", "o": "^"}  # told apart without their colours
WAYS = {"fwd": "left to right", "reverse": "right to left"}


def names_of(page: str, until: str) -> dict[str, Any]:
    """What a page's Python has defined once the name `until` is there."""
    names: dict[str, Any] = {}
    for code in re.findall(r"```python\n(.*?)```", (HERE / page).read_text(), re.DOTALL):
        exec(code, names)
        if until in names:
            return names
    raise KeyError(until)


def module(path: Path) -> ModuleType:
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def keep(figure: Figure, name: str) -> None:
    """Write a figure without date and version, so that the same figure is the same file."""
    figure.savefig(IMAGES / f"{name}.png", dpi=130, metadata={"Software": None})


# --- one unit: structure.md -----------------------------------------------------------------------


class Unit:
    """The memory cell of structure.md on its twelve steps."""

    def __init__(self) -> None:
        page = names_of("structure.md", until="trace")
        self.trace: gatewise.Trace = page["trace"]
        self.number, self.store, self.read = page["number"], page["store"], page["read"]
        self.steps = np.arange(len(self.number))
        self.value = {name: self.trace[f"l0.fwd.{name}"][:, 0, 0].detach() for name in "ifgoch"}
        self.z = dict(zip("ifgo", self.trace.z[0, 0, :, 0, :, 0].detach().T, strict=True))
        self.before = torch.cat([torch.zeros(1), self.value["c"][:-1]])

    def panel(self, height: float = 2.0) -> tuple[Figure, Axes]:
        """An axis whose steps carry what the cell read there."""
        figure = Figure(figsize=(7.2, height), layout="constrained")
        axes = figure.subplots()
        axes.set_xlim(-0.6, len(self.steps) - 0.4)
        axes.set_xticks(self.steps, [f"{number:+.1f}" for number in self.number], color="0.35")
        axes.tick_params(axis="x", length=0)
        axes.tick_params(labelsize=8)
        for t, (store, read) in enumerate(zip(self.store, self.read, strict=True)):
            flags = "\n".join(["store"] * store + ["read"] * read)
            axes.annotate(
                flags, (t, 0), (0, -17), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="center", va="top", fontsize=8, weight="bold",
                color=COLOURS["i"] if store else "#a0527c", annotation_clip=False,
            )  # fmt: skip
        axes.set_xlabel(" \n ", fontsize=8)  # room for two lines of flags
        axes.spines[["top", "right"]].set_visible(False)
        return figure, axes

    def gate(self, name: str, title: str) -> Figure:
        """A valve a step, filled as far as it is open."""
        figure, axes = self.panel(1.9)
        axes.bar(self.steps, 1, 0.72, color=SHUT)
        axes.bar(self.steps, self.value[name], 0.72, color=COLOURS[name])
        self.write(axes, self.value[name], self.value[name].clamp(max=0.8) + 0.04)
        axes.set_yticks([0, 1], ["0 shut", "1 open"])
        axes.set_ylim(0, 1.02)
        axes.set_title(title, fontsize=10, loc="left")
        return figure

    def candidate(self) -> Figure:
        """Both halves of writing: how much, and what."""
        figure, axes = self.panel(2.1)
        axes.bar(self.steps, self.value["g"], 0.72, facecolor="none", edgecolor=COLOURS["g"])
        axes.bar(self.steps, self.value["i"] * self.value["g"], 0.72, color=COLOURS["g"])
        self.signed(axes, "outline: candidate g    filled: what is written, i * g")
        return figure

    def cell(self) -> Figure:
        """The two terms of the sum that is c."""
        figure, axes = self.panel(2.1)
        kept, written = self.value["f"] * self.before, self.value["i"] * self.value["g"]
        axes.bar(self.steps, kept, 0.72, color=COLOURS["f"], label="kept, f * c before")
        axes.bar(
            self.steps, written, 0.72, bottom=kept, color=COLOURS["g"], label="written, i * g",
            hatch="///", edgecolor="white",
        )  # fmt: skip
        axes.hlines(
            self.value["c"], self.steps - 0.44, self.steps + 0.44, COLOURS["c"], lw=2.4, label="c"
        )
        self.signed(axes, "")
        axes.legend(fontsize=8, frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
        return figure

    def output(self) -> Figure:
        """What is there to read, and what is read."""
        figure, axes = self.panel(2.1)
        axes.bar(self.steps, torch.tanh(self.value["c"]), 0.72, facecolor="none", edgecolor="black")
        axes.bar(self.steps, self.value["h"], 0.72, color=COLOURS["h"])
        self.signed(axes, "outline: tanh(c), what the cell holds    filled: h = o * tanh(c)")
        return figure

    @staticmethod
    def signed(axes: Axes, title: str) -> None:
        axes.axhline(0, color="0.5", lw=0.8)
        axes.set_ylim(-0.85, 0.85)
        axes.set_yticks([-0.5, 0, 0.5])
        axes.set_title(title, fontsize=10, loc="left")

    def write(self, axes: Axes, values: torch.Tensor, at: torch.Tensor) -> None:
        for t in self.steps:
            axes.text(t, at[t], f"{values[t]:.2f}", ha="center", va="bottom", size=7.5)

    def valves(self) -> Figure:
        """The two curves, with every z of the run on them."""
        figure = Figure(figsize=(7.2, 2.7), layout="constrained")
        left, right = figure.subplots(1, 2)
        for axes, activation, gates, most in ((left, "sigmoid", "ifo", 8), (right, "tanh", "g", 3)):
            z = torch.linspace(-most, most, 200)
            axes.axhline(0, color="0.8", lw=0.8)
            axes.plot(z, ACTIVATIONS[activation](z), color="0.55", lw=1.4)
            for gate in gates:
                axes.plot(
                    self.z[gate], self.value[gate], MARKS[gate], ms=6, mew=0.6, mec="white",
                    color=COLOURS[gate], label=gate,
                )  # fmt: skip
            axes.set_xlabel("z", fontsize=9)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize=9, frameon=False, loc="upper left")
        left.set_title("sigmoid: a valve, 0 shut to 1 open", fontsize=10)
        right.set_title("tanh: a value with a sign, -1 to 1", fontsize=10)
        return figure


def one_unit() -> None:
    """The figures of structure.md."""
    unit = Unit()
    keep(unit.valves(), "valves")
    keep(unit.gate("f", "forget gate f: how much of the old cell stays"), "forget")
    keep(unit.gate("i", "input gate i: how much is written"), "input")
    keep(unit.candidate(), "candidate")
    keep(unit.cell(), "cell")
    keep(unit.gate("o", "output gate o: how much is read"), "output-gate")
    keep(unit.output(), "output")
    tokens = [
        f"{number:+.1f}" + " store" * store + " read" * read
        for number, store, read in zip(unit.number, unit.store, unit.read, strict=True)
    ]
    keep(unit.trace.plot_unit(0, tokens=tokens), "unit")


# --- two directions: bilstm.md --------------------------------------------------------------------


def two_directions() -> None:
    """The marks of bilstm.md: what each direction knows at each step."""
    page = names_of("bilstm.md", until="trace")
    output, marks = page["output"][:, 0].detach(), page["x"][:, 0, 0]
    figure = Figure(figsize=(7.2, 3.0), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for column, (axes, way) in enumerate(zip(panels, WAYS.values(), strict=True)):
        colour = (COLOURS["h"], "#D55E00")[column]
        axes.bar(range(len(output)), output[:, column], 0.72, color=colour)
        for t, value in enumerate(output[:, column]):
            axes.text(t, value + 0.03, f"{value:.2f}", ha="center", va="bottom", size=8)
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 1])
        axes.set_title(f"output[:, 0, {column}], read {way}", fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    ticks = [f"t = {t}" + "\nmark" * bool(mark) for t, mark in enumerate(marks)]
    panels[-1].set_xticks(range(len(marks)), ticks)
    for axes in panels:
        axes.tick_params(axis="x", length=0)
    keep(figure, "directions")


def taggers(text: str = "ilovechina") -> None:
    """Real letters: a Bi-LSTM and an RNN that learned where words end."""
    explorer = module(HERE.parent.parent / "examples" / "explorer.py")
    torch.manual_seed(0)
    lstm = gatewise.LSTM(26, 16, bidirectional=True)
    explorer.train(lstm, 32)
    trace = lstm.trace(explorer.encode(text))
    keep(trace.plot(tokens=text), "tagger")
    ends = np.isin(np.arange(len(text)), (0, 4, 9)).astype(float)  # i love china
    r = trace.tracking(ends, "h").r[0]
    figure = Figure(figsize=(6.2, 2.1), layout="constrained")
    for axes, way, of_units in zip(figure.subplots(2, 1), WAYS, r, strict=True):
        unit = int(np.abs(of_units).argmax())
        trace.plot_text(list(text), unit, "h", direction=way, ax=axes)
        title = f"{WAYS[way]}: h of unit {unit}, correlation {of_units[unit]:.2f}"
        axes.set_title(title, fontsize=10, loc="left")
    keep(figure, "tagger-directions")


def main() -> None:
    """Draw everything."""
    matplotlib.use("agg")
    IMAGES.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    one_unit()
    two_directions()
    taggers()
    for name, drawing in module(HERE / "drawings.py").all_drawings().items():
        (IMAGES / f"{name}.svg").write_text(drawing)


if __name__ == "__main__":
    main()
