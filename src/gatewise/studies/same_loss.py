"""What each layer needs to reach the same error: sequences, seconds, multiply-adds.

The learning is done once a cell (torch's layer and ours compute the same), the time of a step is
measured for the four layers in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import numpy as np

import gatewise
from gatewise.studies import clock, learn, realdata
from gatewise.studies.frame import Json, pick
from gatewise.studies.networks import LAYERS, Design, Reader
from gatewise.studies.tasks import Task, shifted

#: Sequences in a step where the layers learn.
BATCH = 32


def measure(unit: Json) -> Json:
    """A unit of kind "loss" (one training) or "pace" (the four layers in turn)."""
    return _learn(unit) if unit["kind"] == "loss" else _pace(unit)


def _task(unit: Json) -> Task:
    return realdata.text() if unit["task"] == "text" else shifted(12, 2)


def _learn(unit: Json) -> Json:
    """Train on text (or a small stand-in): after how many sequences is the error how low?

    Once a cell: torch's layer and ours compute the same.
    """
    task = _task(unit)
    net = Reader(Design(unit["cell"]), task.inputs, unit["H"], task.outputs, unit["seed"])
    recipe = learn.Recipe(unit["sequences"], BATCH, unit["rate"], looks=80, until_solved=False)
    G = len(gatewise.CELLS[unit["cell"]].gates)
    work = 3 * task.steps * G * unit["H"] * (task.inputs + unit["H"])
    return {**learn.train(net, task, recipe, unit["seed"]), "multiply_adds_a_sequence": work,
            "error_is": task.error}  # fmt: skip


def _pace(unit: Json) -> Json:
    """Whole training steps of that task, optimiser and all, of the four layers in turn."""
    task = _task(unit)
    batch = task.draw(BATCH, np.random.default_rng(0))
    ways: dict[str, Callable[[], Any]] = {}
    for name, (make, cell) in LAYERS.items():
        net = Reader(Design(cell), task.inputs, unit["H"], task.outputs, seed=0)
        layer = make(task.inputs, unit["H"])
        layer.load_state_dict(net.layer.state_dict())
        net.layer = layer
        ways[name] = partial(
            learn.step, net, task, batch, learn.optimizer(net, learn.Recipe(BATCH)), clip=1.0
        )
    return {"milliseconds": clock.medians(clock.in_turn(ways, unit["rounds"]))}


def summarise(records: list[Json]) -> Json:
    """What each layer needs to the error that every seed of the plain RNN reaches.

    Each cell at its own best rate of those that both tried. Sequences are the middle of the seeds,
    with the lowest and the highest; seconds are those sequences at the layer's measured pace.
    """
    learned, pace = pick(records, kind="loss"), pick(records, kind="pace")[0]["values"]
    tuned = {cell: _at_best_rate(pick(learned, cell=cell)) for cell in ("rnn", "lstm")}
    if any(r["values"]["best"] is None for r in tuned["rnn"]):
        return {}
    target = round(max(r["values"]["best"] for r in tuned["rnn"]) * 1.02 + 1e-4, 4)
    found: Json = {"target": target, "error_is": learned[0]["values"]["error_is"], "layers": {}}
    for name, (_, cell) in LAYERS.items():
        runs = [r["values"] for r in tuned[cell]]
        at = sorted(n for v in runs if (n := _reached(v, target)) is not None)
        needed = [median(at), at[0], at[-1]] if len(at) == len(runs) else None
        each = pace["milliseconds"][name][0] / 1e3 / BATCH
        work = runs[0]["multiply_adds_a_sequence"]
        found["layers"][name] = {
            "rate": tuned[cell][0]["unit"]["rate"],
            "seeds": len(runs),
            "reached": len(at),
            "milliseconds_a_step": pace["milliseconds"][name],
            "sequences": needed,
            "seconds": needed and [round(n * each, 3) for n in needed],
            "multiply_adds": needed and [n * work for n in needed],
            "best": median(v["best"] for v in runs),
        }
    return found


def _at_best_rate(records: list[Json]) -> list[Json]:
    """The records of the rate whose middle seed comes lowest."""
    rates = sorted({r["unit"]["rate"] for r in records})

    def middle(rate: float) -> float:
        bests = [r["values"]["best"] for r in pick(records, rate=rate)]
        return median(math.inf if best is None else best for best in bests)

    return pick(records, rate=min(rates, key=middle))


def _reached(values: Json, target: float) -> int | None:
    """Sequences seen at the first look at which the error was no higher than the target."""
    return next((n for n, e in values["curve"] if e is not None and e <= target), None)
