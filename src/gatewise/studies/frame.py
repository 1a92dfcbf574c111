"""The frame that every study shares: plan, measure, keep, sum up, draw.

A study is a list of units. A unit is a small dict (which cell, which seed, ...) whose measurement
is one file, written whole or not at all and named after the unit; so an interrupted run goes on
where it stopped, and a longer plan takes over what a shorter one measured. When all units are there
they become ``result.json``, and the figure is drawn from that file and from nothing else.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, Literal

from gatewise.errors import ArgumentError
from gatewise.files import directory, whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

Mode = Literal["quick", "default", "full"]
MODES: tuple[Mode, ...] = ("quick", "default", "full")

#: Columns of a terminal that a name, a bar, a count and two times fill.
_WIDE = 64

#: What can be written to a JSON file; units, records and summaries are such dicts.
Json = dict[str, Any]

#: Called before each unit: how many are done, how many there are, what comes next.
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Prediction:
    """What we expected, written before the run, and the test of it.

    Args:
        text: the sentence.
        holds: summary -> True or False; None where this run did not ask; "undecided" where chance
            could have made it either.
    """

    text: str
    holds: Callable[[Json], bool | Literal["undecided"] | None]


@dataclass(frozen=True)
class Published:
    """A figure from the literature, to stand beside ours.

    Args:
        what: what was measured.
        value: the number they print, or None where they rank in words.
        source: paper, table or section.
        note: where their method differs from ours.
        key: how a drawing finds it.
    """

    what: str
    value: float | None
    source: str
    note: str = ""
    key: str = ""


@dataclass(frozen=True)
class Study:
    """One question.

    Args:
        name: how people ask for it, ``gatewise study NAME``.
        question, method: sentences for a reader.
        predictions: written before the run; the result says which held.
        units: mode -> what has to be measured, in order.
        then: mode and the records of those units -> what has to be measured after them, because it
            depends on what they said (a learning rate that pilots choose).
        measure: unit -> what was measured.
        summarise: records -> the numbers that the answer, the figure and the lesson use.
        answer: summary -> one line, with its uncertainty.
        draw: result -> a matplotlib figure.
        published: the literature beside ours.
        revision: raised when ``measure`` changes, so that no old unit is taken for a new one.
        threads: torch's threads while the study runs (small networks learn no sooner on more);
            None leaves them as they are.
    """

    name: str
    question: str
    method: str
    predictions: tuple[Prediction, ...]
    units: Callable[[Mode], list[Json]]
    measure: Callable[[Json], Json]
    summarise: Callable[[list[Json]], Json]
    answer: Callable[[Json], str]
    draw: Callable[[Json], Figure]
    published: tuple[Published, ...] = ()
    then: Callable[[Mode, list[Json]], list[Json]] = lambda mode, records: []
    revision: int = 1
    threads: int | None = None


@dataclass(frozen=True)
class Result:
    """A finished study: ``data`` is what ``path`` holds, ``figure`` is drawn from it."""

    path: Path
    figure: Path
    data: Json = field(repr=False)

    @property
    def answer(self) -> str:
        return str(self.data["answer"])


def carry_out(
    study: Study, mode: Mode, out: Path, progress: bool | Progress = True, fresh: bool = False
) -> Result:
    """Measure what is not yet measured, then write ``out/NAME/result.json`` and ``figure.png``.

    Args:
        out: the folder that holds one folder a study.
        progress: True draws a bar, False is silent, a function is called before each unit.
        fresh: measure again even what is there.

    Raises:
        ArgumentError: the mode is not one of ``MODES``, or the folder holds the result of a longer
            one.
        KeyboardInterrupt: passed on; what was measured stays, and the next call goes on from there.
    """
    import matplotlib.figure  # noqa: F401 (if it is missing, that is said before hours of work)

    if mode not in MODES:
        raise ArgumentError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
    folder = Path(out) / study.name
    finished = _read(folder / "result.json")
    if finished.get("mode") in MODES[MODES.index(mode) + 1 :]:
        raise ArgumentError(
            f"out: {folder / 'result.json'} is a {finished['mode']} run, which a {mode} one does "
            "not replace; choose another folder"
        )
    with directory(folder), _threads(study.threads):
        mark = _mark(study.name, study.revision, machine())
        if fresh or finished.get("mark") != mark:
            finished = {}
        if fresh:
            shutil.rmtree(folder / "units", ignore_errors=True)
        plan = _plan(study, mode, mark, folder)
        records = _measure(study, mode, finished.get("records", []), folder / "units", progress)
    if finished.get("mode") == mode and finished["records"] == records:
        plan = finished
    finished = _conclude(study, plan, records)
    write(folder / "result.json", finished)
    shutil.rmtree(folder / "units", ignore_errors=True)
    return Result(folder / "result.json", redraw(study, folder), finished)


def extend(study: Study, folder: Path, progress: bool | Progress = True) -> Result:
    """Bring a finished result up to what its study plans and says today.

    What the plan lacks is measured here, all else stays, whatever machine it is from; each record
    that is added says which machine that was. For what is learned, where a machine changes the
    rounding; what is timed belongs to one machine.

    Args:
        folder: where the study's ``result.json`` lies.

    Raises:
        FileNotFoundError: there is none.
    """
    import matplotlib.figure  # noqa: F401 (as above)

    finished = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    here = {"machine": f"{machine()['machine']}; {machine()['isa']}"}
    known, mode = finished["records"], finished["mode"]
    with _threads(study.threads):
        records = _measure(study, mode, known, folder / "units", progress, here)
    if any(record not in known for record in records):
        finished["finished"] = _now()
    finished["units"] = _mark(study.units(mode))
    finished = _conclude(study, finished, records)
    write(folder / "result.json", finished)
    shutil.rmtree(folder / "units", ignore_errors=True)
    return Result(folder / "result.json", redraw(study, folder), finished)


def stages(study: Study, mode: Mode, records: list[Json]) -> Iterator[list[Json]]:
    """The study's units, as they come back from a file; then those that wait for their records."""
    yield json.loads(json.dumps(study.units(mode)))
    yield json.loads(json.dumps(study.then(mode, records)))


def redraw(study: Study, folder: Path) -> Path:
    """Draw ``figure.png`` from ``result.json`` alone; the picture carries that file's digest."""
    text = (folder / "result.json").read_text(encoding="utf-8")
    figure = study.draw(json.loads(text))
    with whole(folder / "figure.png") as draft:
        figure.savefig(draft, dpi=110, metadata={"Source": digest(text), "Software": "gatewise"})
    return folder / "figure.png"


def digest(text: str) -> str:
    """The name of a file's content."""
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, data: Json) -> None:
    """Write JSON whole or not at all, a line an entry and a line a record of a list.

    Raises:
        ValueError: a number that JSON cannot hold.
    """
    entries = (f"{_line(key)}: {_lines(value)}" for key, value in data.items())
    with whole(path) as draft:
        draft.write_text("{\n" + ",\n".join(entries) + "\n}\n", encoding="utf-8")


def _lines(value: Any) -> str:
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(map(_line, value)) + "\n]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def machine() -> Json:
    """What the numbers are measured on: processor, instruction set, threads, versions."""
    import torch

    import gatewise

    here = gatewise.info().to_dict()
    for wordy in ("cells", "isas", "note"):
        here.pop(wordy, None)
    return here | {"torch_threads": torch.get_num_threads()}


def finite(value: float) -> float | None:
    """The number, or None where JSON has no word for it (infinite, not a number)."""
    return float(value) if math.isfinite(value) else None


def pick(records: Sequence[Json], **wanted: Any) -> list[Json]:
    """The records whose unit has these values."""
    return [r for r in records if all(r["unit"].get(k) == v for k, v in wanted.items())]


def _mark(*content: Any) -> str:
    """A short name for this content."""
    return digest(json.dumps(content, sort_keys=True))[:16]


def _plan(study: Study, mode: Mode, mark: str, folder: Path) -> Json:
    """What is asked and what is expected, on disk before anything is measured."""
    path = folder / "units" / "plan.json"
    plan = {
        "study": study.name,
        "mode": mode,
        "mark": mark,
        "units": _mark(study.units(mode)),
        "question": study.question,
        "method": study.method,
        "predictions": [p.text for p in study.predictions],
        "machine": machine(),
    }
    there = _read(path)
    if there.get("mark") != mark:  # what is there is of another machine or another method
        shutil.rmtree(folder / "units", ignore_errors=True)
    if any(there.get(key) != value for key, value in plan.items()):
        there = plan | {"planned": _now()}
        path.parent.mkdir(exist_ok=True)
        write(path, there)
    return there


def _measure(
    study: Study,
    mode: Mode,
    known: list[Json],
    folder: Path,
    progress: bool | Progress,
    more: Json | None = None,
) -> list[Json]:
    """The records of all units, those that are known among them; ``more`` goes into a new one."""
    there = {_mark(record["unit"]): record for record in known}
    records: list[Json] = []
    with _reporter(study.name, progress) as report:
        for units in stages(study, mode, records):
            total = len(records) + len(units)
            for unit in units:
                report(len(records), total, label(unit))
                path = folder / f"{_mark(unit)}.json"
                record = there.get(path.stem) or _read(path)
                if record.get("unit") != unit:
                    start = time.perf_counter()
                    values = study.measure(unit)
                    seconds = round(time.perf_counter() - start, 3)
                    record = {"unit": unit, "values": values, "seconds": seconds, **(more or {})}
                    path.parent.mkdir(exist_ok=True)
                    write(path, record)
                records.append(record)
        report(len(records), len(records), "done")
    return records


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """So many of torch's threads meanwhile; None: as many as there are."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _conclude(study: Study, plan: Json, records: list[Json]) -> Json:
    """What the records say, in the words of today; ``plan`` may be an earlier conclusion."""
    summary, units = study.summarise(records), [r["unit"] for r in records]
    return {
        **plan,
        "question": study.question,
        "method": study.method,
        "seeds": sorted({unit["seed"] for unit in units if "seed" in unit and "pilot" not in unit}),
        "finished": plan.get("finished", _now()),
        "seconds": round(sum(r["seconds"] for r in records), 1),
        "answer": study.answer(summary),
        "predictions": [{"text": p.text, "held": p.holds(summary)} for p in study.predictions],
        "summary": summary,
        "published": [vars(p) for p in study.published],
        "records": records,
    }


def label(unit: Json) -> str:
    """A unit in a few words."""
    return " ".join(str(v) if isinstance(v, str) else f"{k}={v}" for k, v in unit.items())


@contextmanager
def _reporter(name: str, progress: bool | Progress) -> Iterator[Progress]:
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total, what: None
    else:
        from rich import get_console

        console = get_console()
        if console.is_terminal or console.is_jupyter:
            with _bars(name, console) as report:
                yield report
        else:  # a file: a bar would be there at the end only
            yield lambda done, total, what: console.print(
                f"{name} {done}/{total} {what}", markup=False, highlight=False, soft_wrap=True
            )


@contextmanager
def _bars(name: str, console: Console) -> Iterator[Progress]:
    """A line with a bar; where it is narrow the bar gives way, and first what is being measured."""
    from rich.progress import BarColumn, MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    count, left = MofNCompleteColumn(), TimeRemainingColumn()
    wide = ("{task.description}", BarColumn(20), count, TimeElapsedColumn(), left)
    room = console.width - _WIDE
    columns = (*wide, "{task.fields[what]}") if room > 0 else ("{task.description}", count, left)
    with Bars(*columns, console=console) as bars:
        task = bars.add_task(name, total=None, what="")
        yield lambda done, total, what: bars.update(
            task, completed=done, total=total, what=shorten(what, max(1, room), placeholder="")
        )


def _read(path: Path) -> Json:
    """The file's content; nothing where there is no file, or one that is not ours."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
