"""What takes part: a case and a name become something to call.

All entrants of a case compute the same thing from the same weights, input and incoming gradient;
what they return is compared before anything is timed.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import gatewise
from bench import peers
from bench.cases import BF16, CHECKPOINT, NUMPY, STREAM, Case
from bench.timing import Entrant

_core: Any = importlib.import_module("gatewise._core")

CLASSES = 10  # of the training loop
#: How far entrants may lie apart, relative to the largest value. Not a test of accuracy (tests/
#: has those): it tells a fast answer from another question's answer.
APART = {"float32": 1e-4, "float64": 1e-10, "bfloat16": 5e-2}


class Missing(Exception):
    """This entrant cannot take part here; the text says why."""


class Problem:
    """The tensors that all entrants of a case share; made from a fixed seed."""

    def __init__(self, case: Case) -> None:
        self.case = case
        torch.manual_seed(0)
        dtype = torch.float64 if case.dtype == "float64" else torch.float32
        T, B, I = case.T, case.B, case.I
        grad = case.mode == "training"
        padded = torch.randn(T, B, I, dtype=dtype)
        if case.lengths is None:
            self.input: Any = padded.requires_grad_(grad)
            self.x = self.input
        else:
            packed = pack_padded_sequence(padded, torch.tensor(case.lengths))
            self.x = packed.data.detach().requires_grad_(grad)
            self.input = PackedSequence(self.x, packed.batch_sizes)
        self.reference = nn.LSTM(
            I, case.H, case.L, bidirectional=case.D == 2, proj_size=case.P, dtype=dtype
        )
        self.plain = nn.RNN(I, case.H, dtype=dtype)
        self.d_output = torch.randn(*self.x.shape[:-1], case.D * (case.P or case.H), dtype=dtype)

    def module(self, source: Any, kind: str) -> nn.Module:
        """``source.LSTM`` or ``source.RNN`` with the problem's weights."""
        case, own = self.case, self.reference if kind == "LSTM" else self.plain
        more = {"num_layers": case.L, "bidirectional": case.D == 2}
        if kind == "LSTM":
            more["proj_size"] = case.P
        module: nn.Module = getattr(source, kind)(case.I, case.H, dtype=self.x.dtype, **more)
        module.load_state_dict(own.state_dict())
        return module.train(case.mode == "training")


def build(name: str, problem: Problem) -> Entrant:
    """The entrant of this name.

    Raises:
        Missing: it is not installed, or cannot do this case.
    """
    case = problem.case
    if name in peers.NAMES:
        return peers.build(name, problem, Missing)
    if case.what == "step":
        return _step(name, problem)
    if case.what == "cells":
        return _cells(name, problem)
    if case.what == "trace":
        return _trace(name, problem)
    if case.what == "model":
        return _model(name, problem)
    return _layer(name, problem)


def _source(name: str) -> Any:
    return gatewise if name.startswith("gatewise.") else nn


def _layer(name: str, problem: Problem) -> Entrant:
    """A layer, by name: gatewise.LSTM, torch.nn.RNN bf16, gatewise.LSTM avx2, ..."""
    module_name, _, how = name.partition(" ")
    module: Any = problem.module(_source(name), module_name.rpartition(".")[2])
    low = problem.case.dtype == "bfloat16" or how == BF16.strip()
    if name == CHECKPOINT:
        module.checkpoint = True
    run = _run_layer(module, problem, low)
    if how in _core.info()["isas"]:
        return _forced(how, run)
    return run


def _run_layer(module: nn.Module, problem: Problem, low: bool) -> Entrant:
    def under() -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16) if low else nullcontext()

    def output() -> Tensor:
        with under():
            out = module(problem.input)[0]
        return out.data if isinstance(out, PackedSequence) else out

    if problem.case.mode == "inference":

        def infer() -> Tensor:
            with torch.inference_mode():
                return output()

        return infer

    wanted = [problem.x, *module.parameters()]

    def train() -> list[Tensor]:
        out = output()
        return [out, *torch.autograd.grad(out, wanted, problem.d_output.to(out.dtype))]

    return train


def _forced(isa: str, run: Entrant) -> Entrant:
    """With the kernels of this instruction set, then with those chosen before."""
    usual = _core.info()["isa"]

    def forced() -> object:
        _core.select_isa(isa)
        try:
            return run()
        finally:
            _core.select_isa(usual)

    return forced


def _step(name: str, problem: Problem) -> Entrant:
    """One step of one sequence, the state carried along; bf16: a module in bfloat16."""
    name, arrays, _ = name.partition(NUMPY)
    name, low, _ = name.partition(BF16)
    dtype = torch.bfloat16 if low else problem.x.dtype
    x, module = problem.x.to(dtype), problem.module(_source(name), "LSTM").to(dtype)
    if name == STREAM:
        lstm: Any = module
        x_t: Any = x[0].numpy() if arrays else x[0]
        step = gatewise.Stream(lstm, batch=problem.case.B).step
        step(x_t)  # as below, what is called goes on from the state after one step

        def stream_step() -> object:
            return step(x_t)

        return stream_step
    with torch.inference_mode():
        state = module(x)[1]

    def run() -> object:
        with torch.inference_mode():
            return module(x, state)[0]

    return run


def _cells(name: str, problem: Problem) -> Entrant:
    """T steps of a cell in a Python loop."""
    case, kind = problem.case, _source(name).LSTMCell
    cell = _cell(kind, problem)
    zeros = torch.zeros(case.B, case.H)

    def loop() -> Tensor:
        h, c, outputs = zeros, zeros, []
        for x_t in problem.x:
            h, c = cell(x_t, (h, c))
            outputs.append(h)
        return torch.stack(outputs)

    if case.mode == "inference":

        def infer() -> Tensor:
            with torch.inference_mode():
                return loop()

        return infer
    wanted = [problem.x, *cell.parameters()]

    def train() -> list[Tensor]:
        out = loop()
        return [out, *torch.autograd.grad(out, wanted, problem.d_output)]

    return train


def _cell(kind: Any, problem: Problem) -> nn.Module:
    cell: nn.Module = kind(problem.case.I, problem.case.H)
    weights = problem.reference.state_dict()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in weights.items()})
    return cell


def _trace(name: str, problem: Problem) -> Entrant:
    """Every state of every step, in training mode; or the forward run alone."""
    case, x = problem.case, problem.x
    if name == "torch.nn.LSTMCell loop":
        cell, zeros = _cell(nn.LSTMCell, problem), torch.zeros(case.B, case.H)

        def loop() -> Tensor:
            h, c, hidden, cells = zeros, zeros, [], []
            for x_t in x:
                h, c = cell(x_t, (h, c))
                hidden.append(h)
                cells.append(c)
            torch.stack(cells)
            return torch.stack(hidden)

        return loop
    lstm: Any = problem.module(gatewise, "LSTM").train()
    if name == "gatewise.LSTM forward":
        return lambda: lstm(x)[0]
    return lambda: lstm.trace(x).output


def _model(name: str, problem: Problem) -> Entrant:
    """One step of training a whole model: where a layer lives beside torch's own thread pool."""
    case = problem.case
    torch.manual_seed(0)
    before, after = nn.Linear(case.I, case.I), nn.Linear(case.H, CLASSES)
    layer = problem.module(_source(name), "LSTM")
    parameters = [p for m in (before, layer, after) for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=1e-4)
    wanted = torch.randint(CLASSES, (case.T * case.B,))
    x = problem.x.detach()

    def train() -> Tensor:
        optimizer.zero_grad()
        logits = after(layer(before(x))[0]).flatten(0, 1)
        loss = nn.functional.cross_entropy(logits, wanted)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return train


def disagreement(results: dict[str, object], dtype: str) -> str:
    """Which entrants did not compute what the first of their kind did, or nothing.

    Results without numbers in common (one gives an output, another output and gradients) are
    compared as far as they go.
    """
    firsts: dict[tuple[bool, bool], str] = {}
    for name, got in results.items():
        low = BF16 in name
        first = firsts.setdefault((".RNN" in name, low), name)
        bound = APART["bfloat16" if low else dtype]
        for a, b in zip(_tensors(got), _tensors(results[first]), strict=False):
            if a.shape != b.shape:
                return f"{name} and {first} differ in shape"
            apart = float((a - b).abs().max()) / (float(b.abs().max()) or 1.0)
            if not apart <= bound:
                return f"{name} and {first} lie {apart:.1e} apart"
    return ""


def _tensors(result: object) -> list[Tensor]:
    """In double; a step of a layer has an axis of one step more than that of a stream."""
    many = result if isinstance(result, list | tuple) else [result]
    tensors = (t if isinstance(t, Tensor) else torch.as_tensor(np.array(t)) for t in many)
    return [t.detach().double().squeeze() for t in tensors]
