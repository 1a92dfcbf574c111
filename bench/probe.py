"""How fast this machine can multiply and add, and whether it is quiet right now."""

from __future__ import annotations

import importlib
import time
from pathlib import Path
from typing import Any

_core: Any = importlib.import_module("gatewise._core")

DTYPES = ("float32", "float64", "bfloat16")
#: Of the row's best: less, and somebody else was at work. A core that is shared gives half or
#: less; a clock that follows heat and load moves by a tenth on its own, and all entrants with it.
QUIET = 0.8
MOMENT = 1e-3  # seconds of a probe
#: Of the time since the last probe, what all threads together stood in line for a core: more, and
#: somebody else was at work between the probes. A quiet machine has 0.01, at times 0.1; one busy
#: process beside two threads on two cores makes it 1.4, and half of the probes do not meet it.
WAITING = 0.25


class Probe:
    """The peak of ``threads`` cores by number type, in operations a second; the best ever seen.

    Multiply-adds in registers, of the instruction set in use, all threads at once. A number type
    without instructions of its own is computed in float32 and has float32's peak.

    The clock of a processor follows heat and load, at times by a fifth over minutes. So a row is
    held against the best that the probes between its own samples saw: ``best``.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.peak = dict.fromkeys(DTYPES, 0.0)
        self.own = {dtype: _known(dtype) for dtype in DTYPES}
        self.best = 0.0  # of the row that is being measured
        self._last = time.perf_counter(), waited()

    def measure(self, moments: int = 50) -> None:
        """Look again; the machine may have become quieter."""
        for dtype in DTYPES:
            source = dtype if self.own[dtype] else "float32"
            for _ in range(moments):
                speed = _core.probe(source, self.threads, MOMENT)
                self.peak[dtype] = max(self.peak[dtype], speed)

    def begin(self) -> None:
        """A row begins: what counts is the machine as it is now."""
        self.best = 0.0
        for _ in range(5):
            self.quiet()

    def quiet(self) -> bool:
        """Whether all cores are ours at this moment, and were since the last probe."""
        speed: float = _core.probe("float32", self.threads, MOMENT)
        self.best = max(self.best, speed)
        self.peak["float32"] = max(self.peak["float32"], speed)
        last, self._last = self._last, (time.perf_counter(), waited())
        passed, in_line = (now - before for now, before in zip(self._last, last, strict=True))
        return speed >= QUIET * self.best and in_line <= WAITING * passed

    def meeting(self) -> float:
        """What a meeting of the threads takes now, in seconds; a virtual machine that has its
        processors on cores without a common cache for some minutes takes several times as long."""
        took: float = _core.meeting_time(self.threads)
        return took

    def alone(self) -> bool:
        """Whether nobody else computes here: most moments are quiet."""
        if not self.peak["float32"]:
            self.measure()
        return sum(self.quiet() for _ in range(20)) >= 15


def waited() -> float:
    """Seconds that threads of this process were ready to run and others ran; 0 if nobody counts."""
    found = 0
    for counted in Path("/proc/self/task").glob("*/schedstat"):
        try:
            found += int(counted.read_text().split()[1])
        except (OSError, IndexError):  # the thread has ended; a system that does not count
            continue
    return found * 1e-9


def _known(dtype: str) -> bool:
    try:
        _core.probe(dtype, 1, 1e-6)
    except ValueError:
        return False
    return True


def isas() -> list[str]:
    """The instruction sets of this machine, best first; not the one that only tests a layout."""
    return [isa for isa in _core.info()["isas"] if isa != "wide"]


def by_isa(threads: int) -> dict[str, float]:
    """The float32 peak of every instruction set of this machine."""
    usual, peaks = _core.info()["isa"], {}
    for isa in isas():
        _core.select_isa(isa)
        peaks[isa] = max(_core.probe("float32", threads, MOMENT) for _ in range(50))
    _core.select_isa(usual)
    return peaks
