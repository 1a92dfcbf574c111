"""A torch that lacks what is used of it is refused at once, and by name."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gatewise import private

ROOT = Path(__file__).parent.parent
SOURCES = {
    path: path.read_text()
    for path in [*ROOT.glob("src/gatewise/**/*.py"), *ROOT.glob("core/*")]
    if path.name != "private.py"
}
WHERE_IT_IS_ASKED_FOR = ("_dynamo",)  # loaded by whoever compiles


def unlisted(source: str) -> set[str]:
    """What a source takes from torch that is not public and that NAMES does not have."""
    found = re.findall(r"\btorch\.((?:\w+\.)*_\w+(?:\.\w+)*)", source)
    listed = {name[: len(each)] for name in private.NAMES for each in found}
    return {n for n in found if n not in listed and not n.startswith(WHERE_IT_IS_ASKED_FOR)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_is_private_is_listed(path: Path) -> None:
    assert not unlisted(SOURCES[path])


def test_that_test_can_fail() -> None:
    source = "torch._C._new(torch.nn.LSTM, torch._VF._unpack_dual), torch.nn._inner.name"
    assert unlisted(source) == {"_C._new", "nn._inner.name"}


@pytest.mark.parametrize("name", private.NAMES)
def test_what_is_listed_is_used(name: str) -> None:
    word = re.compile(rf"\b{name.rpartition('.')[2]}\b")
    assert any(word.search(source) for source in SOURCES.values())


def test_the_pinned_torch_is_one_of_those_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = project["optional-dependencies"]["torch"][0].removeprefix("torch==")
    oldest, newest = ([int(n) for n in version.split(".")] for version in private.TESTED)
    assert oldest <= [int(n) for n in pinned.split(".")] <= newest


@pytest.mark.parametrize("name", ["_C._current_graph_task_id", "_remove_batch_dim"])
def test_a_torch_that_lacks_something_is_refused(name: str) -> None:
    code = f"import torch, gatewise; del torch.{name}; gatewise.LSTM"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = run.stderr.strip().splitlines()[-1]
    oldest, newest = private.TESTED
    assert said.startswith(f"ImportError: gatewise: expected torch {oldest} to {newest}")
    assert f"has no torch.{name}; pip install" in said
