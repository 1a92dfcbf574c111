"""What this installation is: versions, instruction sets, threads, cells, and the machine."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gatewise.errors import ArgumentError
from gatewise.spec import CELLS


@dataclass(frozen=True)
class Info:
    """What ``gatewise info`` prints.

    Args:
        version, python, torch: versions; torch is None where it is not installed.
        machine: processor, cores this process may use, system.
        isas, isa: the instruction sets found on this machine, and the one chosen.
        threads: how many a run uses at most: torch's number, ``torch.get_num_threads()``. Until
            torch is imported, the cores that this process may use.
        cells: names of ``gatewise.CELLS``.
        note: what is missing, in one line; else empty.

    Example:
        >>> import gatewise
        >>> gatewise.info().cells[:2]
        ('lstm', 'rnn')
    """

    version: str
    python: str
    torch: str | None
    machine: str
    isas: tuple[str, ...]
    isa: str | None
    threads: int
    cells: tuple[str, ...]
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        rows = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return "\n".join(f"{name:<9}{_show(value)}" for name, value in rows if value != "")


def _show(value: object) -> str:
    if value is None or value == ():
        return "none"
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def info() -> Info:
    """Look at this installation; torch is not imported for it.

    Raises:
        ArgumentError: GATEWISE_ISA names an instruction set that is not here.
    """
    core, note = _core()
    return Info(
        version=importlib.import_module("gatewise").__version__,
        python=platform.python_version(),
        torch=version("torch"),
        machine=machine(),
        isas=tuple(core.get("isas", ())),
        isa=core.get("isa"),
        threads=_threads(),
        cells=tuple(CELLS),
        note=note,
    )


def release_workspaces() -> None:
    """Give the memory that the kernels keep back to the system.

    What a call needs besides its results is kept for the next call: at most 1 GiB, in at most 8
    blocks. So is the memory of large results (64 KiB and more) that nobody holds any longer: at
    most 256 MiB, in at most 32 blocks. Calls that run meanwhile and results that are held are not
    disturbed; the next call takes what it needs anew.

    Example:
        >>> import gatewise
        >>> gatewise.release_workspaces()
    """
    importlib.import_module("gatewise._core").release()


def version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def machine() -> str:
    """The machine in a line, for the caption of a table of times."""
    return f"{_processor()}, {cores()} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def _threads() -> int:
    torch = sys.modules.get("torch")  # not imported for this
    return torch.get_num_threads() if torch else cores()


def _core() -> tuple[Mapping[str, Any], str]:
    try:
        return importlib.import_module("gatewise._core").info(), ""
    except ImportError as missing:
        return {}, f"the native core is not there ({missing}); pip install . builds it"
    except ValueError as wrong:
        raise ArgumentError(str(wrong)) from None
