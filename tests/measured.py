"""Rows of a bench that nobody measured."""

from __future__ import annotations

from typing import Any

from bench import peers
from bench.cases import Case, cases, work

ALL = cases(("avx2", "base"), 4, peers.NAMES)
PEAK = work(Case("fp32", 100, 32, 64, 64)) / 0.9


def row(case: Case, ours: float, theirs: float) -> dict[str, Any]:
    """A made-up measurement, in seconds."""
    first, second = case.entrants[:2]
    return {
        "key": case.key,
        "case": case.to_dict(),
        "work": work(case),
        "missing": {},
        "times": {first: {"median": ours}, second: {"median": theirs}},
        "ratios": {second: [theirs / ours, 0.9 * theirs / ours, 1.1 * theirs / ours]},
        "rounds": 9, "clean": 9, "noisy": False, "probe": PEAK,
    }  # fmt: skip
