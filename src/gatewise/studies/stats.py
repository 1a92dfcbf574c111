"""The few statistics the studies use, each with its uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, stdev

#: Student's t, two-sided 95 %, by degrees of freedom 1, 2, 3, ... (any table).
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % confidence interval (Student's t; 0 for one value).

    Example:
        >>> mean([1.0, 2.0, 3.0])
        (2.0, 2.484)
    """
    n = len(values)
    if n < 2:
        return float(values[0]), 0.0
    t = _T95[n - 2] if n - 1 <= len(_T95) else 1.96 + 2.4 / (n - 1)
    return fmean(values), round(t * stdev(values) / math.sqrt(n), 3 + _digits(fmean(values)))


def plus_minus(pair: Sequence[float]) -> str:
    """A mean and half the width of its interval, with one decimal, two below 1.

    Example:
        >>> plus_minus([-22.537, 4.354]), plus_minus([-0.055, 0.037])
        ('-22.5 ± 4.4', '-0.06 ± 0.04')
    """
    digits = 1 if abs(pair[0]) >= 1 else 2
    return f"{pair[0]:.{digits}f} ± {pair[1]:.{digits}f}"


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Median with a 95 % confidence interval that assumes no distribution (ranks of the binomial).

    With fewer than six values no such interval exists: the smallest and the largest are returned.

    Example:
        >>> middle([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
        (5.0, 2.0, 8.0)
    """
    ranked = sorted(values)
    n, tail, low = len(ranked), 0.0, 0
    for k in range(n // 2):
        tail += math.comb(n, k) / 2**n
        if tail > 0.025:
            break
        low = k
    return median(ranked), ranked[low], ranked[n - 1 - low]


def fisher(one: int, other: int, n: int) -> float:
    """How likely so unequal counts, each out of n, are by chance (Fisher's exact test, two-sided).

    Example:
        >>> round(fisher(0, 5, 5), 4), round(fisher(1, 5, 5), 4), round(fisher(2, 5, 5), 4)
        (0.0079, 0.0476, 0.1667)
    """
    total = one + other
    ways = [math.comb(n, k) * math.comb(n, total - k) if k <= total else 0 for k in range(n + 1)]
    return sum(way for way in ways if way <= ways[one]) / math.comb(2 * n, total)


def share(p: float, n: int) -> float:
    """Half the 95 % interval of a share p that was counted in n (the normal approximation).

    Example:
        >>> round(share(0.5, 100), 3)
        0.098
    """
    return 1.96 * math.sqrt(p * (1 - p) / n)


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and intercept of the least-squares line.

    Example:
        >>> line([0, 1, 2], [1, 3, 5])
        (2.0, 1.0)
    """
    x_mean, y_mean = fmean(x), fmean(y)
    spread = sum((a - x_mean) ** 2 for a in x)
    slope = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread
    return slope, y_mean - slope * x_mean


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """The power p of the best y = a * x**p, fitted on logarithms.

    Example:
        >>> round(exponent([1, 2, 4], [3, 12, 48]), 6)
        2.0
    """
    return line([math.log(v) for v in x], [math.log(v) for v in y])[0]


def _digits(value: float) -> int:
    """Decimals that keep four significant digits of a value below one."""
    return max(0, -math.floor(math.log10(abs(value)))) if value else 0
