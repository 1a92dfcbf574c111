"""What is measured with the help of another process: contention and memory.

Run as a module it is that process: ``python -m bench.apart ENTRANT CASE`` prints the bytes
that a training step needed beyond what was there before it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

from bench.cases import Case
from bench.timing import Entrant, Json, seconds

ROOT = Path(__file__).parent.parent
TURNS = 5  # calm and disturbed in turn, so often
TURN = 0.4  # seconds each


def contention(entrants: dict[str, Entrant], turns: int = TURNS) -> Json:
    """Times of a call while nothing else and while one busy process runs.

    Returns:
        For each entrant: medians ``calm`` and ``busy``, the ``worst`` busy call, and ``factor``,
        busy over calm.
    """
    calm: dict[str, list[float]] = {name: [] for name in entrants}
    busy: dict[str, list[float]] = {name: [] for name in entrants}
    for run in entrants.values():
        seconds(run, 3)
    for _ in range(turns):
        for name, run in entrants.items():
            calm[name] += _for_a_while(run)
            with _busy_core():
                busy[name] += _for_a_while(run)
    times = {}
    for name in entrants:
        before, during = median(calm[name]), median(busy[name])
        times[name] = {
            "median": before,
            "calm": before,
            "busy": during,
            "worst": max(busy[name]),
            "factor": during / before,
        }
    return {"times": times, "rounds": turns}


def _for_a_while(run: Entrant) -> list[float]:
    times: list[float] = []
    end = time.perf_counter() + TURN
    while time.perf_counter() < end or len(times) < 3:
        times.append(seconds(run, 1))
    return times


@contextmanager
def _busy_core() -> Iterator[None]:
    """Another process computes without a pause, on the last core where that can be said."""
    pin = "import os; os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})"
    code = f"{pin if hasattr(os, 'sched_setaffinity') else ''}\nprint(flush=True)\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it runs
        yield
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def memory(case: Case, threads: int) -> Json:
    """The peak of a training step of every entrant, each in a fresh process, in bytes."""
    times, missing = {}, {}
    for name in case.entrants:
        command = [sys.executable, "-m", "bench.apart", name, json.dumps(case.to_dict())]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        ran = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        if ran.returncode:
            missing[name] = "fails: " + (ran.stderr.strip() or "killed").splitlines()[-1]
        else:
            times[name] = {"bytes": int(ran.stdout)}
    return {"times": times, "missing": missing, "rounds": 1}


def _peak_of_a_step(name: str, fields: dict[str, Any]) -> int:
    """A tiny step first, so that what a library sets up once does not count."""
    from dataclasses import replace

    from bench.entrants import Problem, build

    case = Case(**{**fields, "entrants": tuple(fields["entrants"]), "what": "layer"})
    build(name, Problem(replace(case, T=2, B=1, I=8, H=8, shortest=0)))()
    run = build(name, Problem(case))
    with suppress(OSError):  # not every system forgets the highest that was before
        Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    run()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    """Of this process, in bytes: VmRSS now, VmHWM at most so far."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines[field].split()[0]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    print(_peak_of_a_step(sys.argv[1], json.loads(sys.argv[2])))
