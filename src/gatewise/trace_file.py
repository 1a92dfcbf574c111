"""A trace on disk: one safetensors file, every array under its name, the rest as JSON inside.

l0.fwd.i  l0.fwd.c  l0.fwd.h ...   the values, (T, B, H), or (N, H) in packed order
l0.fwd.h0  l0.fwd.c0  l0.fwd.h_n  l0.fwd.c_n  l0.x     where the layer began, ended, what it read
l0.fwd.W_ih ...                    the weights, if they were still those of the run
grad.l0.fwd.c ...                  the gradients, if backward has run
batch_sizes  unsorted              the layout of packed input
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from errno import EISDIR
from pathlib import Path
from typing import Any

import numpy as np

from gatewise.errors import ArgumentError
from gatewise.fields import DIRECTIONS, WEIGHTS, Packing
from gatewise.files import whole
from gatewise.spec import CellSpec
from gatewise.trace import GradSink, LayerRecord, Trace

#: Under this name the file's metadata hold the JSON; it ends in the version of the layout.
KEY = "gatewise.trace.1"
_ENDS = ("h0", "c0", "h_n", "c_n")


def save(trace: Trace, path: Path) -> None:
    """Write a trace, whole or not at all."""
    from safetensors.numpy import save_file

    trace = trace.to_numpy()
    arrays: dict[str, np.ndarray] = {}
    for k, record in enumerate(trace.records):
        arrays[f"l{k}.x"] = record.x
        for d in range(trace.num_directions):
            lane = f"l{k}.{DIRECTIONS[d]}."
            for s, slot in enumerate(trace.cell.slots):
                arrays[lane + slot] = record.tape[d][..., s, :]
            arrays[lane + "h"] = record.h[d]
            for end in _ENDS:
                arrays[lane + end] = getattr(record, end)[d]
            for name, w in zip(WEIGHTS, record.weights[d], strict=True) if record.weights else ():
                if w is not None:
                    arrays[lane + name] = w
            if record.grad.tape is not None and record.grad.h is not None:
                for s, slot in enumerate(trace.cell.slots):
                    arrays["grad." + lane + slot] = record.grad.tape[d][..., s, :]
                arrays["grad." + lane + "h"] = record.grad.h[d]
    if trace.packing is not None:
        arrays["batch_sizes"] = trace.packing.batch_sizes
        arrays["unsorted"] = trace.packing.unsorted
    about = {
        "cell": asdict(trace.cell),
        "layers": trace.num_layers,
        "directions": trace.num_directions,
    }
    with whole(path) as draft:
        dense = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
        save_file(dense, draft, metadata={KEY: json.dumps(about)})


def load(path: Path) -> Trace:
    """Read what ``save`` wrote; the arrays are numpy's."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():  # of which safetensors says "no such device", and not which
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(path))
    try:
        with safe_open(path, framework="np") as file:
            about = json.loads((file.metadata() or {})[KEY])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 no mapping
    except (SafetensorError, KeyError) as error:
        raise ArgumentError(
            f"path: expected a file that Trace.save wrote ({KEY}), got {path}: {error}"
        ) from None
    cell, ways = CellSpec(**about["cell"]), DIRECTIONS[: about["directions"]]
    records = [_record(cell, f"l{k}.", ways, arrays) for k in range(about["layers"])]
    sizes = arrays.get("batch_sizes")
    return Trace(cell, records, None if sizes is None else Packing(sizes, arrays["unsorted"]))


def _record(
    cell: CellSpec, layer: str, ways: tuple[str, ...], arrays: dict[str, Any]
) -> LayerRecord:
    def tape(lanes: str) -> np.ndarray:
        return np.stack(
            [np.stack([arrays[f"{lanes}{w}.{s}"] for s in cell.slots], axis=-2) for w in ways]
        )

    lanes = [f"{layer}{way}." for way in ways]
    weights = [[arrays.get(lane + name) for name in WEIGHTS] for lane in lanes]
    grad = GradSink()
    if f"grad.{lanes[0]}h" in arrays:
        grad.add(tape(f"grad.{layer}"), np.stack([arrays[f"grad.{lane}h"] for lane in lanes]))
    ends = [np.stack([arrays[lane + end] for lane in lanes]) for end in _ENDS]
    h0, c0, h_n, c_n = ends
    output = np.concatenate([arrays[lane + "h"] for lane in lanes], axis=-1)
    return LayerRecord(
        arrays[layer + "x"],
        h0,
        c0,
        output,
        h_n,
        c_n,
        tape(layer),
        weights if f"{lanes[0]}W_ih" in arrays else None,
        grad,
    )
