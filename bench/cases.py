"""What is timed: sizes as data. Letters are those at the top of reference.py.

Work counts 2*N*D*G*H*(I+P) operations for a layer forward (N tokens: real ones only), with a
projection 2*N*D*H*P more, and three times that for a training step: forward and all gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gatewise.spec import CELLS

Mode = Literal["training", "inference"]
What = Literal["layer", "step", "cells", "trace", "model", "contention", "memory"]

OURS, TORCH, STREAM = "gatewise.LSTM", "torch.nn.LSTM", "gatewise.Stream"
PAIR = (OURS, TORCH)
CHECKPOINT = OURS + " checkpoint"  # a state every ceil(sqrt(T)) steps or more, and no gates
BF16 = " bf16"  # behind an entrant's name: under bfloat16 autocast; of a step, a module in bfloat16
NUMPY = " numpy"  # behind the entrant of a step: arrays in and out, in place of tensors

GROUPS = {
    "fp32": "float32, one layer",
    "packed": "packed sequences, lengths spread evenly",
    "bf16": "bfloat16 autocast",
    "variants": "projection, float64, two directions, two layers",
    "odd": "sizes that are no multiple of 16",
    "short": "a few steps of a few rows",
    "gates": "the price of gates: an LSTM beside plain RNNs",
    "step": "one step at a time",
    "cells": "a loop over LSTMCell",
    "trace": "the price of seeing",
    "loop": "a whole training loop: linear, LSTM, linear, cross-entropy, Adam",
    "threads": "threads",
    "isas": "instruction sets, forced one by one",
    "growth": "growth in T, B and H",
    "contention": "a training step while another process takes a core",
    "memory": "peak memory of a training step, in a fresh process",
    "peers": "other libraries",
}


@dataclass(frozen=True)
class Case:
    """One row of the bench.

    Args:
        T, B, I, H, L, D: sizes; P: proj_size, 0 for none.
        shortest: lengths run evenly from this to T, packed; 0: all are T.
        dtype: "bfloat16" means float32 under autocast.
        threads: 0 for all that the run has.
        axis: which letter grows, in the group "growth".
        share: the share of peak aimed at, 0 for none; entrants: ours first.
    """

    group: str
    T: int
    B: int
    I: int
    H: int
    mode: Mode = "training"
    dtype: str = "float32"
    P: int = 0
    L: int = 1
    D: int = 1
    shortest: int = 0
    threads: int = 0
    axis: str = ""
    what: What = "layer"
    share: float = 0.0
    entrants: tuple[str, ...] = PAIR
    quick: bool = False

    @property
    def lengths(self) -> list[int] | None:
        """Longest first; None where all are T."""
        if not self.shortest:
            return None
        apart = (self.T - self.shortest) / max(1, self.B - 1)
        return [round(self.T - k * apart) for k in range(self.B)]

    @property
    def tokens(self) -> int:
        return self.T * self.B if self.lengths is None else sum(self.lengths)

    @property
    def label(self) -> str:
        """The case in words, without its group and mode."""
        words = [f"({self.T}, {self.B}, {self.I}, {self.H})"]
        words += [f"lengths {self.shortest} to {self.T}"] if self.shortest else []
        words += [f"projection {self.P}"] if self.P else []
        words += [self.dtype] if self.dtype == "float64" else []
        words += ["two directions"] if self.D == 2 else []
        words += [f"{self.L} layers"] if self.L > 1 else []
        words += [f"{self.threads} thread{'s' * (self.threads > 1)}"] if self.threads else []
        return ", ".join(words)

    @property
    def key(self) -> str:
        """The case's name in the results; no two cases share one."""
        return "/".join(filter(None, (self.group, self.axis, self.label, self.mode)))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def work(case: Case, cell: str = "lstm") -> int:
    """Floating-point operations of one call, as the head of this file says.

    Example:
        >>> work(Case("fp32", 100, 32, 64, 64, "inference"))
        209715200
    """
    G, P, total, I = len(CELLS[cell].gates), case.P or case.H, 0, case.I
    for _ in range(case.L):
        total += 2 * case.tokens * case.D * G * case.H * (I + P)
        total += 2 * case.tokens * case.D * case.H * case.P
        I = case.D * P
    return total * (3 if case.mode == "training" else 1)


def _both(train: float, infer: float, group: str, *sizes: int, **more: Any) -> list[Case]:
    T, B, I, H = sizes
    return [
        Case(group, T, B, I, H, "training", share=train, **more),
        Case(group, T, B, I, H, "inference", share=infer, **more),
    ]


def _layers() -> list[Case]:
    cases = []
    for train, infer, *sizes in (
        (0.80, 0.80, 100, 32, 64, 64),
        (0.85, 0.86, 100, 32, 128, 128),
        (0.85, 0.90, 100, 32, 256, 256),
        (0.85, 0.90, 100, 32, 512, 512),
        (0.82, 0.85, 50, 64, 1024, 1024),
        (0.74, 0.74, 1000, 16, 64, 64),
        (0.75, 0.78, 28, 128, 28, 128),
        (0.42, 0.44, 100, 1, 64, 64),
        (0.56, 0.54, 100, 1, 256, 256),
    ):
        small = sizes[3] <= 128
        cases += _both(train, infer, "fp32", *sizes, quick=small)
    for H, train, infer in ((64, 0.78, 0.78), (256, 0.82, 0.85), (512, 0.84, 0.88)):
        cases += _both(train, infer, "packed", 100, 32, H, H, shortest=10, quick=H == 64)
    for H, train, infer in (
        (64, 0.66, 0.72), (128, 0.74, 0.80), (256, 0.80, 0.86), (512, 0.84, 0.90)
    ):  # fmt: skip
        cases += _both(train, infer, "bf16", 100, 32, H, H, dtype="bfloat16", quick=H == 64)
    for H in (128, 256):
        kinds: tuple[dict[str, Any], ...] = (
            {"P": H // 2}, {"dtype": "float64"}, {"D": 2}, {"L": 2}
        )  # fmt: skip
        for kind in kinds:
            cases += _both(0.78, 0.80, "variants", 100, 32, H, H, **kind, quick=H == 128)
    odd: list[tuple[int, ...]] = [(100, 32, H, H) for H in (50, 129, 200, 300)]
    odd += [(100, 32, I, 128) for I in (1, 13, 513)]
    odd += [(100, B, 128, 128) for B in (3, 5, 7, 24)]
    for given in odd:
        full = given[3] / (-(-given[3] // 16) * 16)
        train, infer = round(0.75 * full, 3), round(0.78 * full, 3)
        cases += _both(train, infer, "odd", *given, quick=given[3] == 50)
    for T, B, H in ((8, 4, 64), (8, 1, 256), (2, 1, 512), (4, 16, 512), (8, 1, 1024)):
        cases += _both(0, 0, "short", T, B, H, H, quick=H == 64)
    return cases


def _modules() -> list[Case]:
    rnn = "torch.nn.RNN"
    others = (OURS, OURS + BF16, rnn, rnn + BF16, TORCH, TORCH + BF16, "gatewise.RNN")
    cases = [
        Case("gates", 100, 32, H, H, entrants=others, quick=H == 64) for H in (64, 128, 256, 512)
    ]
    one = (STREAM, STREAM + NUMPY, STREAM + BF16, OURS, TORCH, TORCH + BF16)
    cases += [
        Case("step", 1, 1, H, H, "inference", what="step", entrants=one, quick=H == 64)
        for H in (32, 64, 128, 256, 512)
    ]
    loop = ("gatewise.LSTMCell", "torch.nn.LSTMCell")
    modes: tuple[Mode, ...] = ("inference", "training")
    cases += [
        Case("cells", 50, B, H, H, mode, what="cells", entrants=loop, quick=B == 8 and H == 64)
        for B, H in (
            (1, 32), (1, 64), (8, 32), (8, 64), (1, 256), (1, 512), (32, 128), (32, 256), (32, 512),
            (64, 256), (64, 500), (128, 256),
        )
        for mode in modes
    ]  # fmt: skip
    seeing = ("gatewise.LSTM.trace", "gatewise.LSTM forward", "torch.nn.LSTMCell loop")
    cases += [
        Case("trace", 100, B, H, H, "inference", what="trace", entrants=seeing, quick=H == 64)
        for B, H in ((32, 64), (32, 256), (1, 64))
    ]
    cases += [
        Case("loop", *sizes, what="model", quick=sizes[3] == 64)
        for sizes in ((100, 32, 64, 64), (100, 32, 256, 256), (28, 128, 28, 128), (100, 8, 64, 128))
    ]
    return cases


def _growth() -> list[Case]:
    cases = [
        Case("growth", T, 1, 64, 64, axis="T", quick=T <= 1000) for T in (10, 100, 1000, 10_000)
    ]
    cases.append(Case("growth", 100_000, 1, 64, 64, axis="T", entrants=(*PAIR, CHECKPOINT)))
    cases.append(Case("growth", 10_000, 8, 128, 128, entrants=(*PAIR, CHECKPOINT)))
    cases += [Case("growth", 50, 2**k, 128, 128, axis="B", quick=4 <= k <= 6) for k in range(10)]
    cases += [Case("growth", 50, 32, 2**k, 2**k, axis="H", quick=k <= 7) for k in range(4, 11)]
    return cases


def _memory() -> list[Case]:
    three = (*PAIR, CHECKPOINT)
    cases = [
        Case("memory", T, B, H, H, D=D, shortest=shortest, what="memory", entrants=three,
             quick=(T, H) == (100, 64))
        for T, B, H, D, shortest in (
            (100, 32, 64, 1, 0), (100, 32, 256, 1, 0), (100, 32, 512, 1, 0), (1000, 16, 64, 1, 0),
            (50, 64, 1024, 1, 0), (100, 32, 256, 2, 0), (100, 32, 256, 1, 10),
            (100_000, 1, 64, 1, 0),
        )
    ]  # fmt: skip
    return cases + [
        Case("memory", T, 16, 64, 64, axis="T", what="memory", entrants=(OURS, CHECKPOINT))
        for T in (1000, 8000, 64_000)
    ]


def cases(isas: Sequence[str] = (), threads: int = 1, peers: Sequence[str] = ()) -> list[Case]:
    """Every row, in the order of GROUPS.

    Args:
        isas: instruction sets of this machine, best first.
        threads: of the run; the group "threads" goes 1, 2, 4, ... up to it.
        peers: names of the other libraries.
    """
    counts = sorted({2**k for k in range(threads.bit_length()) if 2**k <= threads} | {threads})
    found = _layers() + _modules()
    for n in counts:
        for sizes, D in (((100, 32, 64, 64), 2), ((100, 32, 256, 256), 1), ((100, 1, 256, 256), 1)):
            found.append(Case("threads", *sizes, D=D, threads=n, quick=D == 2))
    for H, B in ((64, 32), (128, 32), (256, 32), (512, 32), (256, 1)):
        forced = (*(f"{OURS} {isa}" for isa in isas), TORCH)
        if isas:
            found += _both(0, 0, "isas", 100, B, H, H, entrants=forced, quick=H == 128)
    found += _growth()
    for H, B in ((64, 32), (256, 32), (256, 1)):
        found.append(Case("contention", 100, B, H, H, what="contention", quick=(H, B) == (64, 32)))
    found += _memory()
    if peers:
        for T, B, H in (
            (100, 32, 64),
            (100, 32, 256),
            (100, 32, 512),
            (1000, 16, 64),
            (100, 1, 64),
        ):
            found += _both(0, 0, "peers", T, B, H, H, entrants=(*PAIR, *peers), quick=T * B <= 100)
    return found
