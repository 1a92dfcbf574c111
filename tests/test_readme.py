"""README.md and CONTRIBUTING.md: the commands exist, the map is true, the table was measured.

Their code and their links: test_docs.py.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_ci_runs_the_test_command_of_the_readme() -> None:
    assert re.search(r"^    make test$", README, re.MULTILINE)
    assert re.search(r"^make test\b", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "Makefile"])
def test_every_make_target_exists(page: str) -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / page).read_text()))
    assert named
    assert named <= targets


def test_map_names_what_exists() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"[\w./]+\.(?:py|h|cpp)\b", page.split("## Map")[1].split("## ")[0])
    there = {
        path.name for folder in ("src", "core", "tools") for path in (ROOT / folder).rglob("*")
    }
    assert named
    assert {name.split("/")[-1] for name in named} <= there


def test_table_is_what_the_demo_measured() -> None:
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools" / "readme.py")
    assert spec is not None
    assert spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    if not tool.KEPT.exists():  # then the README shows no numbers
        assert tool.PLACE.sub(r"\1\2", README) == README
        return
    results = json.loads(tool.KEPT.read_text())
    assert tool.with_table(README, results) == README
    model = next(iter(results["models"].values()))
    model["f1"] += 0.01
    assert tool.with_table(README, results) != README


def test_the_words_on_two_directions_are_true_of_the_table() -> None:
    """What docs/learn/bilstm.md says in words of the time that the second direction takes."""
    models = json.loads((ROOT / "docs" / "demo.json").read_text())["models"]
    one, two = (models[kind]["seconds_per_epoch"] for kind in ("lstm", "bilstm"))
    assert 1 < two["gatewise"] / one["gatewise"] < 2 < two["torch.nn"] / one["torch.nn"]
