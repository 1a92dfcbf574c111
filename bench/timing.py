"""Timing several things sample by sample in turn, and what the samples say."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np

Json = dict[str, Any]
Entrant = Callable[[], object]

SAMPLE = 4e-3  # seconds a sample lasts at least, by repeating short calls
#: Between a sample and the next probe: the spinning threads of an OpenMP pool go to sleep.
PAUSE = 8e-3
#: Seconds of calls before a sample. A pause empties the caches where other tenants use them, too:
#: the first call after it took up to a third longer, and only after 4 ms did calls take as long as
#: in a loop without pauses.
WARM = 8e-3
FEW = 5  # clean rounds without which all rounds are used and the row is marked noisy


@dataclass(frozen=True)
class Effort:
    """How long a row may take: at least ``least`` rounds, at most ``most``, about ``seconds``."""

    seconds: float = 3.0
    least: int = 7
    most: int = 41


@dataclass
class Rounds:
    """Seconds a call, by entrant, one a round; and whether the machine was quiet throughout."""

    times: dict[str, list[float]]
    quiet: list[bool] = field(default_factory=list)


def in_turn(entrants: Mapping[str, Entrant], quiet: Callable[[], bool], effort: Effort) -> Rounds:
    """Every entrant once a round, the order turned by one each time; a probe around each sample.

    Rounds in which a probe was slow are kept and marked. While fewer than ``effort.least`` are
    clean, up to three times the seconds are spent.
    """
    calls, warm = {}, {}
    for name, run in entrants.items():
        run()
        took = max(seconds(run, 1), 1e-7)
        calls[name] = max(1, min(10_000, int(SAMPLE / took)))
        warm[name] = ceil(WARM / took) if took < 10 * SAMPLE else 0
    names, rounds = list(entrants), Rounds({name: [] for name in entrants})
    begin = time.perf_counter()
    gc.collect()
    gc.disable()
    try:
        calm = quiet()
        while not _enough(rounds, time.perf_counter() - begin, effort):
            k = len(rounds.quiet) % len(names)
            all_calm = calm
            for name in names[k:] + names[:k]:
                run = entrants[name]
                seconds(run, warm[name])
                rounds.times[name].append(seconds(run, calls[name]))
                time.sleep(PAUSE)
                calm = quiet()
                all_calm = all_calm and calm
            rounds.quiet.append(all_calm)
    finally:
        gc.enable()
    return rounds


def _enough(rounds: Rounds, spent: float, effort: Effort) -> bool:
    done, clean = len(rounds.quiet), sum(rounds.quiet)
    if done < effort.least:
        return False
    if done >= effort.most or spent >= 3 * effort.seconds:
        return True
    return spent >= effort.seconds and clean >= effort.least


def seconds(run: Entrant, calls: int) -> float:
    """Of one call, the mean of ``calls``, of which there may be none."""
    start = time.perf_counter()
    for _ in range(calls):
        run()
    return (time.perf_counter() - start) / max(1, calls)


def summary(rounds: Rounds) -> Json:
    """Median and quartiles of every entrant, and its time over the first's with a 95 % interval."""
    clean = [k for k, quiet in enumerate(rounds.quiet) if quiet]
    noisy = len(clean) < min(FEW, len(rounds.quiet))
    used = list(range(len(rounds.quiet))) if noisy else clean
    times = {name: [values[k] for k in used] for name, values in rounds.times.items()}
    first, *others = times
    return {
        "rounds": len(rounds.quiet),
        "clean": len(clean),
        "noisy": noisy,
        "times": {name: _spread(values) for name, values in times.items()},
        "ratios": {name: ratio(times[name], times[first]) for name in others},
    }


def _spread(values: Sequence[float]) -> Json:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return {"median": float(middle), "low": float(low), "high": float(high), "least": min(values)}


def ratio(above: Sequence[float], below: Sequence[float], draws: int = 2000) -> list[float]:
    """Ratio of the medians of paired samples, and its 95 % interval by the bootstrap over pairs.

    Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.

    Example:
        >>> ratio([4.0, 4.0, 4.0], [2.0, 2.0, 2.0])
        [2.0, 2.0, 2.0]
    """
    pairs = np.array([above, below])
    drawn = np.random.default_rng(0).integers(0, len(above), (draws, len(above)))
    top, bottom = np.median(pairs[:, drawn], axis=-1)
    low, high = np.quantile(top / bottom, (0.025, 0.975))
    return [float(np.median(above) / np.median(below)), float(low), float(high)]


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The p of the best ``a * size**p``, by least squares on logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])
