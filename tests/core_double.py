"""A stand-in for the native core, made of the page and of autograd: the same calls and checks.

It serves where the kernels are not the subject, and as a second opinion where they are.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import torch
from torch import Tensor

from gatewise import reference
from gatewise.reference import Step, Weights
from gatewise.spec import CELLS, CellSpec

PER_DIRECTION = 6  # fields of Weights


def forward(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: tuple[tuple[Tensor | None, ...], ...],
    y: Tensor,
    h_n: Tensor,
    c_n: Tensor | None,
    tape: Tensor | None,
    threads: int,
    reduced: bool = False,
    in_parts: bool = False,
    reverse: bool = False,
    by_groups: bool = False,
) -> None:
    """Fill y, h_n, c_n and tape; see ``rows_of_first_group``."""
    spec = _check(cell, x, batch_sizes, (h0, c0, *sum(weights, ())), threads)
    if y.requires_grad or y.stride(-1) != 1 or (tape is not None and not tape.is_contiguous()):
        raise ValueError("y, tape: detached, with a last stride of 1; the tape contiguous")
    with torch.no_grad():
        h0, c0 = _states(spec, x, batch_sizes, h0, c0, weights)
        runs = [
            _run(spec, x, h0[d], c0[d], Weights(*w), reverse or d == 1, batch_sizes)  # type: ignore[arg-type]
            for d, w in enumerate(weights)
        ]
        y.copy_(_output(runs, batch_sizes))
        h_n.copy_(torch.stack([h for _, h, _ in runs]))
        if c_n is not None:
            c_n.copy_(torch.stack([c for _, _, c in runs]))
        if tape is not None:
            tape.copy_(_tape(spec, runs, batch_sizes))


def backward(*given: Any) -> None:
    """Fill the gradients that have a buffer; the arguments are those of ``_backward``."""
    with ThreadPoolExecutor(1) as fresh:  # inside an operator autograd is off: not in a new thread
        fresh.submit(_backward, *given).result()


def _backward(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: tuple[tuple[Tensor | None, ...], ...],
    y: Tensor,
    tape: Tensor,
    d_y: Tensor | None,
    d_h_n: Tensor | None,
    d_c_n: Tensor | None,
    d_tape: Tensor | None,
    d_x: Tensor | None,
    d_h0: Tensor | None,
    d_c0: Tensor | None,
    d_weights: tuple[tuple[Tensor | None, ...], ...],
    g_tape: Tensor | None,
    g_h: Tensor | None,
    threads: int,
    adds: bool = False,
    reverse: bool = False,
    by_groups: bool = False,
    adds_inputs: bool = False,
) -> None:
    inputs = (h0, c0, *sum(weights, ()), y, tape, d_y, d_h_n, d_c_n, d_tape)
    spec = _check(cell, x, batch_sizes, inputs, threads)
    if d_y is not None and d_y.stride(-1) != 1:
        raise ValueError("d_y: the last stride must be 1")
    h0, c0 = _states(spec, x, batch_sizes, h0, c0, weights)
    with torch.enable_grad():
        x, h0, c0 = (t.detach().clone().requires_grad_() for t in (x, h0, c0))
        leaves = [
            Weights(*(None if t is None else t.detach().clone().requires_grad_() for t in w))  # type: ignore[arg-type]
            for w in weights
        ]
        runs = [
            _run(spec, x, h0[d], c0[d], w, reverse or d == 1, batch_sizes)
            for d, w in enumerate(leaves)
        ]
        results = (
            _output(runs, batch_sizes),
            torch.stack([h for _, h, _ in runs]),
            torch.stack([c for _, _, c in runs]),
            _tape(spec, runs, batch_sizes),
        )
        loss = x.new_zeros(())
        for result, d in zip(results, (d_y, d_h_n, d_c_n, d_tape), strict=True):
            loss = loss + (0 if d is None else (result * d).sum())
    buffers: list[Tensor | None] = [d_x, d_h0, d_c0, *sum(d_weights, ())]
    wanted: list[Tensor | None] = [x, h0, c0, *(t for w in leaves for t in w)]
    for k, (buffer, leaf) in enumerate(zip(buffers, wanted, strict=True)):
        if buffer is not None:
            assert leaf is not None
            there = buffer.clone() if (adds_inputs, False, False, *[adds] * 12)[k] else 0
            buffer.copy_(there + _grad(loss, leaf))
    join = torch.stack if batch_sizes is None else torch.cat
    for direction, (steps, _, _) in enumerate(runs):
        if g_tape is not None:
            for k, slot in enumerate(spec.slots):
                g_tape[direction, ..., k, :] = join([_grad(loss, getattr(s, slot)) for s in steps])
        if g_h is not None:
            g_h[direction] = join([_grad(loss, s.h) for s in steps])


def rows_of_first_group(cell: str, batch_sizes: Tensor | None, T: int, B: int, *sizes: int) -> int:
    """All: every tape is in the order of time."""
    return B


def layer(*given: Any) -> NoReturn:
    """Leave results to the caller, as the native core does with what is not plain."""
    raise TypeError("expected buffers for the results")


layer_gradient = layer


def info() -> dict[str, Any]:
    """What this core is."""
    return {"isas": ["page"], "isa": "page", "cells": list(CELLS)}


def has_pairs() -> bool:
    """Whether products of bfloat16 are to be had."""
    return False


def _check(
    cell: str,
    x: Tensor,
    batch_sizes: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    threads: int,
) -> CellSpec:
    """Refuse what the native core refuses, as far as its caller can get it wrong."""
    for t in (x, *tensors):
        if t is None:
            continue
        if t.dtype not in (torch.float32, torch.float64) or t.dtype != x.dtype:
            raise TypeError(f"expected {x.dtype}, float32 or float64, got {t.dtype}")
    if x.stride(-1) != 1:
        raise ValueError("x: the last stride must be 1")
    if batch_sizes is not None and batch_sizes.dtype != torch.int64:
        raise TypeError("batch_sizes: expected int64")
    if threads < 1:
        raise ValueError("threads: expected at least 1")
    return CELLS[cell]


def _states(
    spec: CellSpec,
    x: Tensor,
    batch_sizes: Tensor | None,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: tuple[tuple[Tensor | None, ...], ...],
) -> tuple[Tensor, Tensor]:
    W_hh = weights[0][1]
    assert W_hh is not None
    rows, P = W_hh.shape
    B = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
    h0 = x.new_zeros(len(weights), B, P) if h0 is None else h0
    return h0, x.new_zeros(len(weights), B, rows // len(spec.gates)) if c0 is None else c0


def _run(
    spec: CellSpec,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w: Weights,
    reverse: bool,
    batch_sizes: Tensor | None,
) -> tuple[list[Step], Tensor, Tensor]:
    """The page's sequence(), but the steps stay apart, so that each has a gradient of its own."""
    xs = list(x) if batch_sizes is None else list(x.split(batch_sizes.tolist()))
    steps: dict[int, Step] = {}
    for t in sorted(range(len(xs)), reverse=reverse):
        n = len(xs[t])
        s = steps[t] = reference.step(spec, xs[t], h[:n], c[:n], w)
        h, c = torch.cat([s.h, h[n:]]), torch.cat([s.c, c[n:]])
    return [steps[t] for t in range(len(xs))], h, c


def _output(runs: list[tuple[list[Step], Tensor, Tensor]], batch_sizes: Tensor | None) -> Tensor:
    join = torch.stack if batch_sizes is None else torch.cat
    return torch.cat([join([s.h for s in steps]) for steps, _, _ in runs], dim=-1)


def _tape(
    spec: CellSpec, runs: list[tuple[list[Step], Tensor, Tensor]], batch_sizes: Tensor | None
) -> Tensor:
    join = torch.stack if batch_sizes is None else torch.cat
    slots = [
        [join([getattr(s, slot) for s in steps]) for slot in spec.slots] for steps, _, _ in runs
    ]
    return torch.stack([torch.stack(of_run, dim=-2) for of_run in slots])


def _grad(loss: Tensor, of: Tensor) -> Tensor:
    if not (loss.requires_grad and of.requires_grad):
        return torch.zeros_like(of)
    (d,) = torch.autograd.grad(loss, of, retain_graph=True, materialize_grads=True)
    return d
