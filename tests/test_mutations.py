"""tools/mutations.py: its rows fit the code, and a mutation that nothing notices is told."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutations", ROOT / "tools" / "mutations.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutations"] = module
    spec.loader.exec_module(module)
    return module


mutations = tool()
ROWS = mutations.load(ROOT / "tools" / "mutations.toml")


@pytest.mark.parametrize("mutation", ROWS, ids=lambda mutation: mutation.why)
def test_row_fits_the_code(mutation: mutations.Mutation) -> None:
    assert mutation.applied((ROOT / mutation.file).read_text())
    files = [name.split("::")[0] for name in mutation.tests if name.endswith(".py") or "::" in name]
    assert files
    assert all((ROOT / name).exists() for name in files)


def test_reasons_are_distinct() -> None:
    assert len({row.why for row in ROWS}) == len(ROWS)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project of one function with one test."""
    package = tmp_path / "src" / "gatewise"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("def twice(x):\n    return x + x\n")
    (tmp_path / "test_it.py").write_text(
        "import gatewise\n\ndef test_it():\n    assert gatewise.twice(2) == 4\n"
    )
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    return tmp_path


def row(old: str, new: str) -> mutations.Mutation:
    return mutations.Mutation(
        "src/gatewise/__init__.py", old, new, f"{old} to {new}", ("test_it.py",)
    )


def test_survivors_are_told(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mutations.run(tree, [row("x + x", "x - x"), row("x + x", "x * x")]) == 1
    noticed, survived, summary = capsys.readouterr().out.splitlines()
    assert noticed.endswith("noticed by test_it.py::test_it")
    assert survived.endswith("SURVIVED")
    assert summary == "1 of 2 mutations noticed, 1 survived, 0 wrong rows"


def test_tests_that_do_not_run_notice_nothing(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mutations.run(tree, [row("def twice", "syntax error")]) == 2
    assert "its tests do not run" in capsys.readouterr().out


@pytest.mark.parametrize(("old", "places"), [("x", 3), ("x / x", 0)])
def test_text_that_is_not_there_once(
    tree: Path, capsys: pytest.CaptureFixture[str], old: str, places: int
) -> None:
    assert mutations.run(tree, [row(old, "1")]) == 2
    assert f"{places} places have '{old}', not 1" in capsys.readouterr().err


def test_red_before_any_mutation_is_an_error(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "test_it.py").write_text("def test_it():\n    assert False\n")
    assert mutations.run(tree, [row("x + x", "x - x")]) == 2
    assert "red without any mutation: test_it.py::test_it" in capsys.readouterr().err
