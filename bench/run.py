"""Times gatewise beside its peers and writes what was found as JSON.

    make bench                        about ten minutes; bench/results/result.json
    make bench ARGS=--quick           a minute; build/bench-quick.json
    make bench ARGS="--only packed"   one group anew, the others kept if they are of this build
    make bench ARGS=--again           what was noisy anew, the rest kept if it is of this build

Rows that were noisy are measured again at the end. Ctrl-C keeps what is done. ``python -m
bench.report`` then writes the tables and the figure.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import metadata
from math import inf
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

import gatewise
from bench import apart, claims, green, peers, report
from bench.cases import GROUPS, Case, cases, work
from bench.entrants import Missing, Problem, build, disagreement
from bench.probe import Probe, by_isa, isas
from bench.timing import Effort, Entrant, Json, in_turn, summary
from gatewise import about
from gatewise.errors import ArgumentError
from gatewise.files import place, whole

ROOT = Path(__file__).resolve().parent.parent
QUICK = Effort(seconds=0.2, least=3, most=9)
AGAIN = 2  # times at most that noisy rows are measured again


def main(arguments: list[str]) -> int:
    given = _arguments(arguments)
    try:
        return bench(given, Console(highlight=False, soft_wrap=True))
    except KeyboardInterrupt:
        print("stopped before anything was measured", file=sys.stderr)
        return 130
    except OSError as wrong:  # no place for the result, or no more
        named = f"{wrong.filename}: {wrong.strerror}" if wrong.filename else wrong
        print(f"gatewise bench: {named}", file=sys.stderr)
        return 2
    except ArgumentError as wrong:
        print(f"gatewise bench: {wrong}", file=sys.stderr)
        return 2


def bench(given: argparse.Namespace, console: Console) -> int:
    """All of it; the exit status."""
    given.out.parent.mkdir(parents=True, exist_ok=True)
    place(given.out)
    old = report.load(given.out)  # what stands there and is no result, is not replaced by one
    threads = given.threads or about.cores()
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", "LSTM with projections")  # torch says how it does them

    console.print("the kernel tests of this build ...", end=" ")
    failed = green.check()
    console.print("red" if failed else "green")
    if failed:
        console.print(failed, markup=False)
        console.print("Not timed: a wrong answer has no speed.")
        return 1

    others = {} if given.only and "peers" not in given.only else peers.installed()
    every = cases(isas(), threads, [name for name, why in others.items() if not why])
    result = begin(given, threads, others)
    if given.again and not result["rows"]:
        raise ArgumentError(f"{given.out}: expected a result of this build; run without --again")
    if old and (anew := len(old["rows"]) - len(result["rows"])):
        console.print(f"{given.out}: {anew} rows that are there go when the first new one is there")
    if not chosen(given, every):
        raise ArgumentError("--only peers: none of the other libraries is installed")
    console.print(report.heading(result), markup=False)
    if not Probe(threads).alone():
        console.print("other processes are at work here: what follows is noise")
    for name, why in others.items():
        if why:
            console.print(f"without {name}: {why}", markup=False)
    try:
        run(every, result, given, console)
    except KeyboardInterrupt:
        if not result["rows"]:
            raise
        console.print(f"stopped; {given.out} has what was done")
        return 130
    console.print(f"\n{report.verdicts_text(result)}\n{given.out}", markup=False)
    if given.out == report.RESULT:
        console.print("python -m bench.report writes the pages that show it")
    return 0


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gatewise bench", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small cases, few samples: a minute")
    parser.add_argument("--only", action="append", choices=list(GROUPS), metavar="GROUP",
                        help=f"of {', '.join(GROUPS)}; may be given repeatedly")  # fmt: skip
    parser.add_argument("--again", action="store_true",
                        help="only what was noisy in the result that is there")  # fmt: skip
    parser.add_argument("--threads", type=int, default=0, help="default: all cores")
    parser.add_argument("--seconds", type=float, default=3.0, help="for a row, about")
    parser.add_argument("--out", type=Path, help="the JSON file")
    given = parser.parse_args(arguments)
    if given.threads < 0 or not 0 < given.seconds < inf:
        parser.error("--threads and --seconds: expected more than 0")
    if given.again and (given.quick or given.only):
        parser.error("--again: expected without --quick and --only")
    quick_out, out = ROOT / "build" / "bench-quick.json", report.RESULT
    given.out = given.out or (quick_out if given.quick else out)
    return given


def chosen(given: argparse.Namespace, every: list[Case]) -> list[Case]:
    plan = [case for case in every if not given.only or case.group in given.only]
    return [case for case in plan if case.quick] if given.quick else plan


def begin(given: argparse.Namespace, threads: int, others: dict[str, str]) -> Json:
    """The head of a result; with --only and --again also the rows that another run on this build
    left."""
    info = gatewise.info()
    core = sys.modules["gatewise._core"].info()
    probe = Probe(threads)
    probe.measure()
    result: Json = {
        "version": info.version,
        "build": green.build(),
        "commit": commit(),
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": info.machine,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "compiler": core["compiler"],
        "isa": info.isa,
        "threads": threads,
        "quick": given.quick,
        "openmp": {k: v for k, v in os.environ.items() if k.startswith(("OMP_", "GOMP_", "KMP_"))},
        "peers": {n: why if why else _version(n) for n, why in others.items()},
        "own_instructions": probe.own,
        "peak": probe.peak,
        "peak_by_isa": by_isa(threads) | {info.isa: probe.peak["float32"]},
        "planned": len(cases(isas(), threads)),  # the peers come on top
        "rows": [],
    }
    if (given.only or given.again) and (old := report.load(given.out)) is not None:
        same = ("build", "machine", "isa", "threads", "torch", "quick")
        if all(old.get(k) == result[k] for k in same):
            anew = () if given.again else given.only
            result["rows"] = [row for row in old["rows"] if row["case"]["group"] not in anew]
            result["peak"] = {k: max(v, old["peak"][k]) for k, v in probe.peak.items()}
            result["peers"] = result["peers"] or old["peers"]
    return result


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown version"


def commit() -> str:
    """The commit, and whether the tree differs from it."""

    def git(*command: str) -> str:
        ran = subprocess.run(
            ["git", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return ran.stdout.strip()

    touched = git("status", "--porcelain", "--untracked-files=no", "--", "core", "src")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" and changes" * bool(touched))


def run(every: list[Case], result: Json, given: argparse.Namespace, console: Console) -> None:
    """The chosen cases, then those of them that were noisy; the file is written after each.

    The probe alone decides what is noisy: a row that was measured in quiet stays, whatever it says.
    """
    rows, plan = result["rows"], chosen(given, every)
    for row in rows_of([] if given.again else plan, result, given, console):
        rows.append(row)
        save(result, given.out)
    for _ in range(0 if given.quick else AGAIN):
        noisy = {row["key"]: k for k, row in enumerate(rows) if claims.noisy(row, result)}
        odd = [case for case in plan if case.key in noisy]
        if odd:
            console.print("\nagain, since noisy:")
        for row in rows_of(odd, result, given, console):
            if not claims.noisy(row, result):
                rows[noisy[row["key"]]] = row
                save(result, given.out)


def rows_of(
    plan: list[Case], result: Json, given: argparse.Namespace, console: Console
) -> Iterator[Json]:
    """Measure one case after the other, and show them."""
    effort = QUICK if given.quick else Effort(seconds=given.seconds)
    probe = Probe(result["threads"])
    probe.peak = result["peak"]
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(plan))
        group = ""
        for case in plan:
            if case.group != group:
                group = case.group
                probe.measure(10)
                console.print(f"\n{GROUPS[group]}", style="bold")
            bar.update(task, description=f"{case.group} {case.label}")
            row = measure(case, probe, effort, result["threads"])
            yield row
            console.print("  " + report.row_text(row, result), markup=False)
            bar.advance(task)


def measure(case: Case, probe: Probe, effort: Effort, threads: int) -> Json:
    """One row of the result."""
    row: Json = {"key": case.key, "case": case.to_dict(), "work": work(case)}
    torch.set_num_threads(case.threads or threads)
    try:
        if case.what == "memory":
            return row | apart.memory(case, threads)
        entrants, results, missing = line_up(case)
        row["missing"] = missing
        wrong = disagreement(results, case.dtype)
        if case.entrants[0] not in entrants:  # there is nothing to hold the others against
            wrong = "ours does not run"
        if wrong:
            return row | {"wrong": wrong, "times": {}, "ratios": {}}
        if case.what == "contention":
            return row | apart.contention(entrants, 2 if effort is QUICK else apart.TURNS)
        probe.begin()
        meeting = probe.meeting()
        row |= summary(in_turn(entrants, probe.quiet, effort))
        return row | {"probe": probe.best, "meeting": meeting}
    finally:
        torch.set_num_threads(threads)


def line_up(case: Case) -> tuple[dict[str, Entrant], dict[str, object], dict[str, str]]:
    """Who takes part, what each returns, and why the others do not take part."""
    problem = Problem(case)
    entrants: dict[str, Entrant] = {}
    results: dict[str, object] = {}
    missing: dict[str, str] = {}
    for name in case.entrants:
        try:
            entrant = build(name, problem)
            results[name] = entrant()
            entrants[name] = entrant
        except Missing as why:
            missing[name] = str(why)
        except RuntimeError as failure:  # torch has no bfloat16 LSTM on some processors
            missing[name] = "fails: " + str(failure).partition(". ")[0]
    return entrants, results, missing


def save(result: dict[str, Any], path: Path) -> None:
    """All of it or nothing."""
    with whole(path) as draft:
        draft.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
