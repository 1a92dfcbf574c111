"""The public names and their signatures, and that importing the package costs nothing."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gatewise

HERE = Path(__file__).parent
GOLDEN = HERE / "golden" / "surface.txt"


def surface() -> str:
    """Every public name, one a line, with what it is or how it is called."""
    lines = []
    for name in sorted(gatewise.__all__):
        value = getattr(gatewise, name)
        if inspect.isclass(value):
            lines.append(f"class {name}({', '.join(c.__name__ for c in value.__bases__)})")
            lines += [f"    {member}" for member in members(value)]
        elif callable(value):
            lines.append(f"def {name}{signature(value)}")
        else:
            lines.append(f"{name}: {type(value).__name__}")
    return "\n".join(lines) + "\n"


def members(cls: type) -> list[str]:
    """What a class and its bases in gatewise define under a public name, and the constructor."""
    ours = [c for c in cls.__mro__ if c.__module__.startswith("gatewise")]
    found = {name: of for c in reversed(ours) for name, of in vars(c).items() if name[0] != "_"}
    shown = {name: signature(of) if callable(of) else "" for name, of in found.items()}
    if cls.__init__ is not object.__init__ and not issubclass(cls, BaseException | tuple):
        shown["__init__"] = signature(cls.__init__)
    return [name + shown[name] for name in sorted(shown)]


def signature(of: object) -> str:
    text = str(inspect.signature(of))  # type: ignore[arg-type]
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)  # annotations are strings
    return re.sub(r"<function (\w+) at \w+>", r"\1", text)


def test_surface_is_the_golden_one() -> None:
    """After a change on purpose: python tests/test_surface.py > tests/golden/surface.txt"""
    assert surface() == GOLDEN.read_text()


def test_every_name_is_documented() -> None:
    for name in gatewise.__all__:
        value = getattr(gatewise, name)
        if callable(value):
            assert (value.__doc__ or "").strip(), name


def examples() -> list[doctest.DocTest]:
    """What ``help`` shows of each public name and of what is defined in it."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = []
    for name in gatewise.__all__:
        value = getattr(gatewise, name)
        if callable(value):
            found += finder.find(value, f"gatewise.{name}", globs={})
    return [test for test in found if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_can_be_pasted_as_it_stands(example: doctest.DocTest) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    said: list[str] = []
    doctest.DocTestRunner(optionflags=flags).run(example, out=said.append)
    assert not said, "".join(said)


def test_all_names_are_there_and_listed() -> None:
    assert sorted(set(gatewise.__all__)) == sorted(gatewise.__all__)
    assert set(gatewise._LAZY) < set(gatewise.__all__)
    assert set(gatewise.__all__) <= set(dir(gatewise))
    assert all(hasattr(gatewise, name) for name in gatewise.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'gatewise' has no attribute 'GRU'"):
        gatewise.GRU  # noqa: B018


def test_no_module_hides_a_public_name() -> None:
    """Importing gatewise.x sets gatewise.x to the module: no public name may be called so."""
    modules = {module.name for module in pkgutil.iter_modules(gatewise.__path__)}
    assert not modules & set(gatewise.__all__)


def test_version_is_the_projects() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    assert gatewise.__version__ == project["version"]


def imported(code: str, module: str) -> bool:
    """Whether a fresh Python has imported ``module`` after running ``code``."""
    asked = f"{code}\nimport sys\nprint({module!r} in sys.modules)"
    command = [sys.executable, "-W", "error", "-c", asked]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout == "True\n"


LIGHT = [
    "import gatewise",
    "import gatewise; gatewise.CELLS, gatewise.ShapeError, gatewise.__version__, dir(gatewise)",
    "import gatewise; gatewise.Trace",
    "from gatewise import CellSpec, info; info()",
]


@pytest.mark.parametrize("code", LIGHT)
def test_importing_leaves_torch_out(code) -> None:
    assert not imported(code, "torch")


def test_that_test_can_fail() -> None:
    assert imported("import torch", "torch")
    assert imported("import gatewise; gatewise.LSTM", "torch")


def test_names_stay_right_whatever_is_imported_first() -> None:
    code = """
import gatewise.swapping, gatewise.recording, gatewise.lstm
import gatewise
assert callable(gatewise.swap) and callable(gatewise.tracing)
from gatewise import swap
assert swap is gatewise.swap is gatewise.swapping.swap
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", gatewise._LAZY)
def test_a_lazy_name_is_its_modules(name) -> None:
    module = importlib.import_module(f"gatewise.{gatewise._LAZY[name]}")
    assert getattr(gatewise, name) is getattr(module, name)
    assert getattr(gatewise, name).__module__ == module.__name__


if __name__ == "__main__":
    sys.stdout.write(surface())
