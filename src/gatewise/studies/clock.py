"""Timing several ways to do the same thing, in turn, so that a busy moment hits them all."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gatewise.studies import stats
from gatewise.studies.frame import Json

#: A quiet machine's rounds differ by less than this factor.
BUSY = 3


def in_turn(
    ways: Mapping[str, Callable[[], Any]],
    rounds: int,
    least: float = 5e-3,
    now: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds a call of each way, one value a round.

    Args:
        ways: what to call. Each is called twice beforehand, which also says how often a round must
            call it to last ``least`` seconds.
        rounds: how often all ways take their turn; the order moves on by one each round.
        now: the clock; ``time.process_time`` is that of the processor, for a busy machine.

    Warns where rounds of one way differ by more than ``BUSY`` times.

    Example:
        >>> from itertools import count
        >>> in_turn({"a": list, "b": dict}, rounds=3, now=count().__next__)
        {'a': [1.0, 1.0, 1.0], 'b': [1.0, 1.0, 1.0]}
    """
    calls = {}
    for name, way in ways.items():
        way()
        calls[name] = max(1, min(1000, int(least / max(1e-7, _seconds(way, 1, now)))))
    names, times = list(ways), {name: list[float]() for name in ways}
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            times[name].append(_seconds(ways[name], calls[name], now))
    if any(max(t) > BUSY * min(t) for t in times.values()):
        warnings.warn(
            f"the rounds of one measurement differ by more than {BUSY} times: the machine is busy, "
            "and what is timed on it says little; run with --fresh when it is quiet",
            stacklevel=2,
        )
    return times


def _seconds(way: Callable[[], Any], calls: int, now: Callable[[], float]) -> float:
    start = now()
    for _ in range(calls):
        way()
    return (now() - start) / calls


def ratio(times: Mapping[str, list[float]], above: str, below: str) -> list[float]:
    """Median of the ratio round by round, and its 95 % interval."""
    pairs = zip(times[above], times[below], strict=True)
    return [round(v, 4) for v in stats.middle([a / b for a, b in pairs])]


def medians(times: Mapping[str, list[float]]) -> Json:
    """Milliseconds of each: median, and its 95 % interval."""
    return {name: [round(1e3 * v, 5) for v in stats.middle(t)] for name, t in times.items()}


class Kept:
    """Counts the bytes that autograd keeps for the backward pass while it is entered.

    Parameters and the tensors named do not count: they are there anyway. Storage that several saved
    tensors share counts once.

    Example:
        >>> x = torch.ones(10, requires_grad=True)
        >>> with Kept(x) as kept:
        ...     y = (x * 2).exp().sum()
        >>> kept.bytes  # exp keeps its result
        40
    """

    def __init__(self, *known: Tensor, module: nn.Module | None = None) -> None:
        there = [*known, *(module.parameters() if module is not None else ())]
        self._known = {t.untyped_storage().data_ptr() for t in there}
        self._found: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._known:
            self._found[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def places(self) -> set[int]:
        """Where the storage that was saved begins."""
        return set(self._found)

    @property
    def bytes(self) -> int:
        """How much storage was saved."""
        return sum(self._found.values())

    def __enter__(self) -> Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *how: object) -> None:
        self._hooks.__exit__(*how)
