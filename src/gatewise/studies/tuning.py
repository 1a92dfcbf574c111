"""Equal tuning: every network tries the same learning rates.

The trying is done by pilots: one run a rate, from a seed that no result is taken from. A study then
measures every network at its own best rate (``tuned``), or all at one that was chosen before, and
shows what the pilots would have had it choose (``choices``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from statistics import median

from gatewise.studies.frame import Json

#: The seed of every pilot; no result is taken from it.
SEED = 1_000
#: Scores that differ by less than this share count as equal: it is one seed.
EQUAL = 0.1

Score = Callable[[Json], float]


def error(values: Json) -> float:
    """The score of a run that is trained to its end: its lowest held-out error."""
    return math.inf if values["best"] is None else float(values["best"])


def sequences(values: Json) -> float:
    """The score of a run that stops when the task is solved: when; unsolved after all solved."""
    return float(values["solved_at"]) if values["solved_at"] is not None else 1e9 * error(values)


def pilots(plan: Sequence[Json], part: int = 1) -> list[Json]:
    """For each kind of unit in a plan, a pilot a rate; none where there is nothing to choose.

    Args:
        plan: units with ``rates``, the learning rates that they may try.
        part: a pilot has the sequences of a run, divided by this.

    Example:
        >>> plan = [{"sequences": 96, "rates": [0.01, 0.1], "seed": seed} for seed in range(5)]
        >>> pilots(plan, part=3)[1]
        {'sequences': 32, 'seed': 1000, 'rate': 0.1, 'pilot': True}
    """
    kinds = {_kind(unit): unit for unit in plan}.values()
    return [
        _at(rate, unit) | {"seed": SEED, "sequences": unit["sequences"] // part, "pilot": True}
        for unit in kinds
        for rate in unit["rates"]
        if len(unit["rates"]) > 1
    ]


def tuned(plan: Sequence[Json], records: Sequence[Json], score: Score) -> list[Json]:
    """The plan, each unit at the rate that its pilots found best, or at the only one there is.

    Args:
        plan: as for ``pilots``.
        records: those of the pilots, and others.
    """
    chosen = {_kind(row["unit"]): row["rate"] for row in choices(records, score)}
    return [_at(chosen.get(_kind(unit), unit["rates"][0]), unit) for unit in plan]


def choices(records: Sequence[Json], score: Score) -> list[Json]:
    """Of each kind: what every rate led to, and the rate chosen.

    Returns:
        unit: what it is, apart from seed, rate and sequences; tried: [rate, sequences until solved
        or None, lowest error] of each; rate: the one chosen.
    """
    kinds: dict[str, list[Json]] = {}
    for record in records:
        if "pilot" in record["unit"]:
            kinds.setdefault(_kind(record["unit"]), []).append(record)
    return [
        {
            "unit": json.loads(kind),
            "tried": [
                [r["unit"]["rate"], r["values"]["solved_at"], r["values"]["best"]] for r in tried
            ],
            "rate": _best({r["unit"]["rate"]: score(r["values"]) for r in tried}),
        }
        for kind, tried in kinds.items()
    ]


def _best(scores: dict[float, float]) -> float:
    """The rate of the lowest score; of those that count as equal, the middle one."""
    lowest = min(scores.values())
    good = [rate for rate, found in scores.items() if found <= lowest * (1 + EQUAL)]
    middle = median(scores)
    return min(good, key=lambda rate: abs(math.log(rate / middle)))


def _at(rate: float, unit: Json) -> Json:
    return {key: value for key, value in unit.items() if key != "rates"} | {"rate": rate}


def _kind(unit: Json) -> str:
    """What a unit is, apart from its seed, its rate and how long it is trained."""
    apart = ("seed", "rate", "rates", "sequences", "pilot")
    return json.dumps({k: v for k, v in unit.items() if k not in apart}, sort_keys=True)
