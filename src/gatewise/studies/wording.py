"""How the lesson writes its tables and numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from gatewise.studies import stats
from gatewise.studies.frame import Json


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(table(["a", "b"], [[1, 2]]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def pm(pair: Sequence[float] | None) -> str:
    """A mean with half its interval; in words where no gradient was left to have a slope."""
    return "no gradient left" if pair is None else stats.plus_minus(pair)


def task(name: str) -> str:
    """How a sentence names a task.

    Example:
        >>> task("embedded_reber"), task("steps back")
        ('embedded Reber', 'steps back')
    """
    return name.replace("_", " ").replace("reber", "Reber")


def error(found: Json) -> str:
    """The error of a network over its seeds: mean and half its interval.

    Example:
        >>> error({"error": 0.23456, "half": 0.0123})
        '0.235 ± 0.012'
    """
    return f"{found['error']:.3g} ± {found['half']:.2g}"


def signed(pair: Sequence[float]) -> str:
    """A difference and half its interval, with as many decimals as that has a meaning for.

    Example:
        >>> signed([0.02581, 0.01148]), signed([-0.0081, 0.0067]), signed([0.0, 0.0])
        ('+0.026 ± 0.011', '-0.0081 ± 0.0067', '+0 ± 0')
    """
    digits = max(0, 1 - math.floor(math.log10(pair[1]))) if pair[1] else 0
    return f"{pair[0]:+.{digits}f} ± {pair[1]:.{digits}f}"


def power(exponent: float | None) -> str:
    """A power of ten; 0 where there is no logarithm.

    Example:
        >>> power(-22.4), power(-0.1), power(None)
        ('10^-22', '10^0', '0')
    """
    return "0" if exponent is None else f"10^{round(exponent)}"


def span(values: Sequence[int | None]) -> str:
    """The range over the seeds.

    Example:
        >>> span([9, 7, None])
        '7 to 9 (2 of 3 seeds)'
    """
    there = sorted(v for v in values if v is not None)
    if not there:
        return "not reached"
    span = f"{there[0]}" if there[0] == there[-1] else f"{there[0]} to {there[-1]}"
    return span if len(there) == len(values) else f"{span} ({len(there)} of {len(values)} seeds)"


def ratio(found: Sequence[float] | None) -> str:
    """A median with its interval; nothing where it was not measured."""
    return "" if found is None else f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def middle(found: Sequence[float] | None, form: str) -> str:
    """The middle of the seeds and their range.

    Example:
        >>> middle([2, 1, 3], ".1f")
        '2.0 (1.0 to 3.0)'
    """
    if found is None:
        return "not by all"
    mid, low, high = (format(v, form) for v in found)
    return f"{mid} ({low} to {high})"


def ends(values: Sequence[float], form: str) -> str:
    """From the lowest to the highest; nothing for none.

    Example:
        >>> ends([0.31, 0.1, 0.2], ".1f"), ends([3, 3], "d")
        ('0.1 to 0.3', '3')
    """
    both = [format(v, form) for v in (min(values), max(values))] if values else []
    return " to ".join(dict.fromkeys(both))


def ms(found: Sequence[float] | None) -> str:
    """The median of a time; nothing where it was not measured."""
    return "" if found is None else f"{found[0]:.3g}"


def short(value: float | None) -> str:
    """An error in three digits; "lost" where training was."""
    return "lost" if value is None else f"{value:.3g}"
