"""README.md and docs/: their Python runs and prints what they say, their links lead somewhere.

The blocks of a page run in order, in one namespace. What is compared:

- a block of text right after a block of Python: what that Python printed;
- ``expression  # value`` on a line of its own: the value, a torch.Size shown as (2, 3);
- ``a, (b, c) = ...  # (2, 3), (4,), (4,)``: the shapes of a, b and c.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from gatewise import CELLS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text()]
SHAPE = re.compile(r"\((?:\d+,|\d+(?:, \d+)+)\)")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


class Block(NamedTuple):
    """Python of a page, and the text that it should print, or None where the page does not say."""

    code: str
    printed: str | None


def blocks(page: str) -> list[Block]:
    fences = r"^```python\n(.*?)^```$(?:\n+^```text\n(.*?)^```$)?"
    return [Block(*found) for found in re.findall(fences, page, re.MULTILINE | re.DOTALL)]


def run(page: str) -> Iterator[tuple[str, str]]:
    """Run a page; give every stated result as (what the page says, what came)."""
    names: dict[str, object] = {}
    for block in blocks(page):
        printed, lines = io.StringIO(), block.code.splitlines()
        with contextlib.redirect_stdout(printed):
            for statement in ast.parse(block.code).body:
                stated = comment(lines[(statement.end_lineno or 0) - 1])
                if isinstance(statement, ast.Expr) and stated:
                    value = eval(compile(ast.Expression(statement.value), "page", "eval"), names)
                    if value is not None:  # not a call such as print
                        yield stated, show(value)
                    continue
                exec(compile(ast.Module([statement], []), "page", "exec"), names)
                shapes = SHAPE.findall(stated)
                if shapes and isinstance(statement, ast.Assign):
                    targets = re.findall(r"\b[^\W_]\w*", ast.unparse(statement.targets[0]))
                    came = [show(names[target].shape) for target in targets]  # type: ignore[attr-defined]
                    yield ", ".join(shapes), ", ".join(came)
        if block.printed:
            yield block.printed.strip(), printed.getvalue().strip()


def comment(line: str) -> str:
    return line.partition("  # ")[2].strip()


def show(value: object) -> str:
    return str(tuple(value)) if isinstance(value, torch.Size) else repr(value)


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_page_prints_what_it_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where a page may write
    for said, came in run(page.read_text()):
        assert came == said


@pytest.mark.parametrize(
    "page",
    [
        "```python\n1 + 1  # 3\n```\n",
        "```python\nprint(2)\n```\n\n```text\n3\n```\n",
        "```python\nimport torch\n\nx = torch.zeros(2, 3)  # (3, 2)\n```\n",
    ],
)
def test_a_wrong_page_is_noticed(page: str) -> None:
    assert any(said != came for said, came in run(page))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$|^    .*?$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", prose):
        path, _, part = link.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), link
        if part:
            assert part in anchors(there.read_text()), link


def anchors(page: str) -> list[str]:
    """The names of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings]


def test_letters_are_those_of_the_page() -> None:
    begins = r"T steps|L layers  |G computed|x input|d_ prefix|W_ih \("
    letters = re.compile(rf"^\W*((?:{begins}).*)$", re.MULTILINE)
    pages = ("src/gatewise/reference.py", "core/shape.h", "docs/math.md")
    legends = [letters.findall((ROOT / page).read_text()) for page in pages]
    assert len(legends[0]) == 6
    assert legends[0] == legends[1] == legends[2]


def test_every_cell_has_its_line() -> None:
    """Name, number of gates and source, as spec.py has them."""
    page = (ROOT / "docs" / "math.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| .* \| (\d) \| (.*) \|$", page, re.MULTILINE)
    assert rows == [(name, str(len(cell.gates)), cell.source) for name, cell in CELLS.items()]


def test_equations_are_numbered_in_order() -> None:
    page = (ROOT / "docs" / "math.md").read_text()
    assert re.findall(r"^\*\*\((\d+)\)", page, re.MULTILINE) == [str(n + 1) for n in range(20)]
    assert "(1) to (6) of docs/math.md" in (ROOT / "core" / "forward.h").read_text()


def test_code_that_the_mathematics_names_is_there() -> None:
    page = (ROOT / "docs" / "math.md").read_text()
    named = re.findall(r"`(\w+)`", page.split("## Where each stands")[1].split("## ")[0])
    files = (
        "core/forward.h",
        "core/backward.h",
        "core/gradients.h",
        "core/pointwise.h",
        "src/gatewise/reference.py",
    )
    code = "".join((ROOT / file).read_text() for file in files)
    assert named
    for name in named:
        assert re.search(rf"\b(?:void|def) {name}\(", code), name
