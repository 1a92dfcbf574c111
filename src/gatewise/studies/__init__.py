"""What the LSTM buys and what it costs, measured on the reader's machine: one module a question.

Example:
    >>> names()
    ('gradient-reach', 'long-lag', 'gate-by-gate', 'both-directions', 'price', 'cost-of-seeing')
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from gatewise.errors import ArgumentError
from gatewise.studies.frame import MODES, Mode, Progress, Result, Study, carry_out

__all__ = ["MODES", "Mode", "Result", "Study", "load", "names", "run"]

_NAMES = (
    "gradient-reach",
    "long-lag",
    "gate-by-gate",
    "both-directions",
    "price",
    "cost-of-seeing",
)


def names() -> tuple[str, ...]:
    """The studies, in the order in which the lesson tells them."""
    return _NAMES


def load(name: str) -> Study:
    """The study of this name.

    Raises:
        ArgumentError: there is none; the text lists those there are.
    """
    if name not in _NAMES:
        raise ArgumentError(f"name: expected one of {', '.join(_NAMES)}, got {name!r}")
    study = import_module(f"gatewise.studies.{name.replace('-', '_')}").STUDY
    assert isinstance(study, Study)
    return study


def run(
    name: str,
    mode: Mode = "default",
    out: str | Path = "studies",
    progress: bool | Progress = True,
    fresh: bool = False,
) -> Result:
    """Answer one question; write ``OUT/NAME/result.json`` and ``OUT/NAME/figure.png``.

    Args:
        name: one of ``names()``.
        mode: "quick" (under a minute, for a look and for CI), "default" (minutes), "full" (what the
            lesson shows; some hours on one core).
        out: the folder for the results.
        progress: True draws a bar, False is silent, a function gets (done, total, what comes next).
        fresh: measure again even what an earlier run of the same mode, machine and version
            measured.

    Raises:
        ArgumentError: an unknown name or mode, or ``out`` holds the result of a longer mode.
        KeyboardInterrupt: passed on; what was measured stays, and the next call goes on from there.
    """
    return carry_out(load(name), mode, Path(out), progress, fresh)
