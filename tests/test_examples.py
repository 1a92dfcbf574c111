"""examples/: every script runs as a person would run it, and says something true."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"

#: Arguments that keep a run short, and what must stand in what it prints.
RUNS: dict[str, tuple[tuple[str, ...], str]] = {
    "cell_states.py": ((), r"longest memory of a unit: \d+\.\d steps"),
    "explorer.py": (("--out", "page.html"), r"wrote page\.html"),
    "memory_cell.py": (("--rounds", "300"), r"mean squared error 0\.00\d+; always saying 0 gives"),
    "streaming.py": ((), r"same bits as the whole sequence: True(.|\n)*first answer again: True"),
    "swap_model.py": ((), r"difference in an answer: \d\.\de-0[6-9](.|\n)*still trains it: True"),
}


def test_every_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, said = RUNS[name]
    monkeypatch.chdir(tmp_path)  # where it may write
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert re.search(said, capsys.readouterr().out)
