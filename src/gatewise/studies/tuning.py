"""Equal tuning: every network tries the same learning rates.

The trying is done by pilots: one run a rate, as long as those that count, from a seed that no
result is taken from. A study then measures every network at its own best rate (``tuned``), and
shows what the pilots chose it from (``choices``).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

from gatewise.studies import stats
from gatewise.studies.frame import Json, pick

#: The seed of every pilot; no result is taken from it.
SEED = 1_000
#: Another rate than the first has to be better by more than this share: it is one seed.
EQUAL = 0.1

Score = Callable[[Json], float]


def error(values: Json) -> float:
    """The score of a run that is trained to its end: its lowest held-out error."""
    return math.inf if values["best"] is None else float(values["best"])


def sequences(values: Json) -> float:
    """The score of a run that stops when the task is solved: when; unsolved after all solved."""
    return float(values["solved_at"]) if values["solved_at"] is not None else 1e9 * error(values)


def pilots(plan: Sequence[Json]) -> list[Json]:
    """For each kind of unit in a plan, a pilot a rate; none where there is nothing to choose.

    Args:
        plan: units with ``rates``, the learning rates that they may try; the first is what they
            have where no other is better.

    Example:
        >>> plan = [{"sequences": 96, "rates": [0.01, 0.1], "seed": seed} for seed in range(5)]
        >>> pilots(plan)[1]
        {'sequences': 96, 'seed': 1000, 'rate': 0.1, 'pilot': True}
    """
    kinds = {_kind(unit): unit for unit in plan}.values()
    return [
        at(rate, unit) | {"seed": SEED, "pilot": True}
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
    return [at(chosen.get(_kind(unit), unit["rates"][0]), unit) for unit in plan]


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


def said(found: Sequence[Json]) -> str:
    """How a sentence says which learning rates were taken, by what ``choices`` found.

    Example:
        >>> said([])
        'all at one learning rate'
    """
    return "each at its own best learning rate" if found else "all at one learning rate"


def outcomes(records: Sequence[Json], rate: float) -> list[Json]:
    """Of each kind: its held-out errors at its own best rate, and at one that all were measured at.

    Returns:
        What the unit is, apart from seed, rate and sequences; rate: its own best, or the one where
        there were no pilots; error, half, errors: mean, half its 95 % interval and each seed's;
        solved: at how many seeds the task was; one_rate: these four at the one rate; parameters,
        error_is, baseline.
    """
    chosen = {_kind(row["unit"]): row["rate"] for row in choices(records, error)}
    kinds: dict[str, list[Json]] = {}
    for record in records:
        if "pilot" not in record["unit"]:
            kinds.setdefault(_kind(record["unit"]), []).append(record)
    return [
        {
            **json.loads(kind),
            "rate": chosen.get(kind, rate),
            **_errors(pick(runs, rate=chosen.get(kind, rate))),
            "one_rate": _errors(pick(runs, rate=rate)),
            **{key: runs[0]["values"][key] for key in ("parameters", "error_is", "baseline")},
        }
        for kind, runs in kinds.items()
    ]


def sizes(records: Sequence[Json], steps: Callable[[Json], int | None]) -> Json:
    """The hidden size of all; of each task its steps, where it has a length, and its sequences."""
    units = {u["task"]: u for r in records if "pilot" not in (u := r["unit"])}
    return {
        "hidden": records[0]["unit"]["hidden"],
        "tasks": {
            task: {"T": steps(unit), "sequences": unit["sequences"]} for task, unit in units.items()
        },
    }


def _errors(records: Sequence[Json]) -> Json:
    """The best error of each seed; a lost run counts as the answer that remembers nothing."""
    values = [r["values"] for r in records]
    errors = [v["best"] if v["best"] is not None else v["baseline"] for v in values]
    centre, half = stats.mean(errors)
    solved = sum(v["solved_at"] is not None for v in values)
    return {"error": round(centre, 6), "half": half, "errors": errors, "solved": solved}


def _best(scores: dict[float, float]) -> float:
    """The first rate if its score counts as equal to the lowest, else the rate of the lowest."""
    first, lowest = next(iter(scores)), min(scores, key=scores.__getitem__)
    return first if scores[first] <= scores[lowest] * (1 + EQUAL) else lowest


def at(rate: float, unit: Json) -> Json:
    """A unit of a plan at one learning rate.

    Example:
        >>> at(0.1, {"cell": "lstm", "rates": [0.01, 0.1]})
        {'cell': 'lstm', 'rate': 0.1}
    """
    return {key: value for key, value in unit.items() if key != "rates"} | {"rate": rate}


def _kind(unit: Json) -> str:
    """What a unit is, apart from its seed, its rate and how long it is trained."""
    apart = ("seed", "rate", "rates", "sequences", "pilot")
    return json.dumps({k: v for k, v in unit.items() if k not in apart}, sort_keys=True)
