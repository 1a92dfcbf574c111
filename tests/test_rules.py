"""The habits of this repository that a machine can check; each rule has a twin that it rejects."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

import gatewise

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "gatewise"
CORE = ROOT / "core"

# Who may import what, the standard library apart: modules of this project (without the leading
# `gatewise.`; "api" is `import gatewise` itself, as a user would) and other packages. A key is a
# module, or a package for all in it. Imports for type checkers alone do not count.
API = {"api"}
PAGE = {"spec", "torch"}
NATIVE = PAGE | {"errors", "reference", "native", "private"}
ROUTES = NATIVE | {"batching", "formulas", "listening"}
MODULES = {"spec", "errors", "checks", "ops", "reference", "torch"}
VALUES = {"spec", "errors", "fields", "numpy"}  # torch arrives as arrays
APPLICATION = API | {"spec", "errors", "numpy", "torch", "safetensors", "about", "files", "corpus"}
MAY_IMPORT: dict[str, set[str]] = {
    "spec": set(),
    "errors": set(),
    "files": set(),
    "about": {"spec", "errors", "_core"},
    "reference": PAGE,  # never the core: a specification does not call what it specifies
    "private": {"torch"},
    "native": NATIVE | {"_core", "numpy"},
    "batching": NATIVE,
    "listening": NATIVE,
    "formulas": NATIVE | {"listening"},
    "second": NATIVE,
    "autograd": ROUTES | {"second"},
    "checkpointing": ROUTES | {"autograd"},
    "operators": ROUTES | {"autograd"},
    "stepping": ROUTES | {"autograd"},
    "ops": ROUTES | {"autograd", "checkpointing", "operators", "stepping"},
    "checks": {"errors", "spec", "torch"},
    "lstm": MODULES | {"recording"},
    "cells": MODULES | {"lstm", "stepping"},
    "stream": {"errors", "lstm", "native", "numpy", "torch"},
    "both": {"lstm", "cells", "torch"},
    "swapping": MODULES | {"lstm", "cells", "both"},
    "keeping": {"spec", "errors", "trace", "torch"},
    "watching": MODULES | {"lstm", "cells", "fields", "trace", "keeping"},
    "recording": MODULES | {"lstm", "cells", "fields", "trace", "keeping", "watching"},
    "fields": VALUES,
    "trace": VALUES | {"trace_file", "analysis", "figures", "see", "xarray"},
    "trace_file": VALUES | {"trace", "files", "safetensors"},
    "analysis": VALUES | {"trace"},
    "figures": VALUES | {"trace", "analysis", "matplotlib"},
    "see": {"spec", "errors", "files", "trace", "numpy"},
    "corpus": {"errors", "numpy"},
    "studies": API | {"spec", "errors", "files", "corpus", "numpy", "torch", "matplotlib", "rich"},
    "tagger": APPLICATION,
    "training": APPLICATION | {"tagger"},
    "explain": APPLICATION | {"tagger", "training", "see"},
    "forecasting": API | {"errors", "lstm", "numpy", "torch"},
    "demo": APPLICATION | {"tagger", "training", "explain", "rich"},
    "cli": {"errors", "files", "typer"},  # and anything inside a subcommand's function
}
INSIDE_FUNCTIONS_ANYTHING = {"cli"}

# Kernel objects see nothing but these: the linker may give one's STL call to all instruction sets.
KERNEL_SYSTEM_INCLUDES = {"cstdint", "cstddef"}
INTRINSICS = re.compile(r"^(\w*intrin|arm_(neon|sve|acle))\.h$")

MOST_LINES = 600
SOURCES = {".py", ".pyi", ".h", ".cpp", ".js", ".css", ".html", ".sh", ".md"}
MACHINE_PATH = re.compile(r"(?<![\w.$}~])/(?:home|root|tmp|work|Users|mnt|scratch)/[\w.]")
REFUSED_NAMES = re.compile(r"(?i)(^|_)(utils?|helpers?|misc|common)($|_)")


def tracked() -> list[PurePosixPath]:
    """Files of the repository, those about to be added included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [PurePosixPath(line) for line in listing.stdout.splitlines() if (ROOT / line).is_file()]


def texts() -> Iterator[tuple[PurePosixPath, str]]:
    """Tracked files that are text, with what is in them."""
    for path in tracked():
        try:
            yield path, (ROOT / path).read_text()
        except UnicodeDecodeError:
            continue


# --- who imports what ---------------------------------------------------------


def imported(node: ast.AST, inside_functions: bool = True) -> Iterator[str]:
    """Dotted names that running ``node`` imports; ``from gatewise import a`` is gatewise.a."""
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.level == 0, f"line {node.lineno}: relative import"
        names = [f"gatewise.{alias.name}" for alias in node.names]
        yield from names if node.module == "gatewise" else [str(node.module)]
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
        return
    elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children = iter(node.orelse)
    for child in children:
        yield from imported(child, inside_functions)


def short(name: str) -> str:
    """gatewise.see.page -> see; gatewise.LSTM -> api; torch.nn -> torch."""
    first, _, rest = name.partition(".")
    if first != "gatewise":
        return first
    part = rest.split(".")[0]
    is_module = part == "_core" or (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").is_file()
    return part if part and is_module else "api"


def forbidden_imports(module: str, source: str) -> set[str]:
    """What ``source`` imports although the table does not let ``module`` do so."""
    anything_inside = module in INSIDE_FUNCTIONS_ANYTHING
    names = {short(name) for name in imported(ast.parse(source), not anything_inside)}
    return names - MAY_IMPORT[module] - {module} - set(sys.stdlib_module_names)


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports(path: Path) -> None:
    module = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert module in MAY_IMPORT, f"{module} has no row in MAY_IMPORT"
    assert not forbidden_imports(module, path.read_text())


def test_package_itself_imports_nothing_that_needs_an_extra() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    names = {short(name) for name in imported(tree, inside_functions=False)}
    assert names <= set(sys.stdlib_module_names) | {"about", "spec", "errors"}


@pytest.mark.parametrize(
    ("module", "source", "found"),
    [
        ("spec", "import numpy", {"numpy"}),
        ("reference", "from gatewise import _core", {"_core"}),
        ("reference", "def f():\n    from gatewise.ops import layer", {"ops"}),
        ("trace", "import torch.nn", {"torch"}),
        ("trace", "if TYPE_CHECKING:\n    import torch\nelse:\n    import jax", {"jax"}),
        ("studies", "from gatewise.ops import layer", {"ops"}),
        ("cli", "import torch", {"torch"}),
        ("see", "class A:\n    import gatewise", {"api"}),
    ],
)
def test_import_rule_can_fail(module: str, source: str, found: set[str]) -> None:
    assert forbidden_imports(module, source) == found


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("studies", "import gatewise\nfrom gatewise import LSTM"),
        ("trace", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("cli", "def demo():\n    import torch"),
    ],
)
def test_import_rule_lets_pass(module: str, source: str) -> None:
    assert not forbidden_imports(module, source)


def modules_after(statement: str) -> set[str]:
    """What a fresh interpreter has loaded after ``statement``."""
    code = f"import sys\n{statement}\nprint(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_gatewise_does_not_import_torch() -> None:
    assert "torch" not in modules_after("import gatewise; gatewise.CELLS; gatewise.CellSpec")


def test_torch_would_be_seen() -> None:
    assert "torch" in modules_after("import gatewise.reference")


def test_without_torch_the_remedy_is_said() -> None:
    code = "import sys; sys.modules['torch'] = None; import gatewise; gatewise.LSTM"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    said = run.stderr.strip().splitlines()[-1]
    assert said.endswith("gatewise.LSTM: expected torch, got none installed; "
                         "pip install 'gatewise[torch]'")  # fmt: skip


# --- what the core includes ---------------------------------------------------


def includes(source: str) -> tuple[set[str], set[str]]:
    """Headers of the system, headers of the core."""
    found = re.findall(r'^\s*#\s*include\s*([<"])([^>"]+)', source, re.MULTILINE)
    return {name for mark, name in found if mark == "<"}, {
        name for mark, name in found if mark == '"'
    }


def kernel_files() -> set[str]:
    """kernel.cpp and all that it includes, directly or not."""
    files, new = set(), {"kernel.cpp"}
    while new:
        files |= new
        new = set().union(*(includes((CORE / name).read_text())[1] for name in new)) - files
    return files


KERNEL_FILES = kernel_files()


def forbidden_includes(name: str, source: str) -> set[str]:
    """Includes that core file ``name`` must not have."""
    found = set()
    for header in includes(source)[0]:
        if header.startswith("nanobind/") or header == "Python.h":
            allowed = name in ("arrays.h", "lock.h") or (
                name.startswith("bind") and name.endswith(".cpp")
            )
        elif header == "cpuid.h":
            allowed = name == "dispatch.cpp"
        elif INTRINSICS.match(header):
            allowed = name == "simd.h"
        else:
            allowed = name not in KERNEL_FILES or header in KERNEL_SYSTEM_INCLUDES
        if not allowed:
            found.add(header)
    return found


def test_what_a_kernel_is_made_of() -> None:
    assert {"kernel.h", "simd.h", "forward.h", "backward.h", "threads.h"} <= KERNEL_FILES
    assert KERNEL_FILES.isdisjoint({"bind.cpp", "dispatch.h", "threads.cpp"})


@pytest.mark.parametrize(
    "path", sorted(p for p in CORE.iterdir() if p.is_file()), ids=lambda p: p.name
)
def test_includes(path: Path) -> None:
    assert not forbidden_includes(path.name, path.read_text())


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("dispatch.cpp", "nanobind/nanobind.h"),
        ("bind.cpp", "cpuid.h"),
        ("tile.h", "immintrin.h"),
        ("act.h", "arm_neon.h"),
        ("kernel.cpp", "vector"),
        ("forward.h", "cmath"),
    ],
)
def test_include_rule_can_fail(name: str, header: str) -> None:
    source = f"#include <cstdint>\n  #  include <{header}>  // why not\n"
    assert forbidden_includes(name, source) == {header}


# --- files --------------------------------------------------------------------


def too_long(path: PurePosixPath, text: str) -> bool:
    return path.suffix in SOURCES and len(text.splitlines()) > MOST_LINES


def refused_name(path: PurePosixPath) -> bool:
    return any(REFUSED_NAMES.search(part.split(".")[0]) for part in path.parts)


def machine_paths(text: str) -> list[str]:
    """Lines that name a place on somebody's machine."""
    return [line for line in text.splitlines() if MACHINE_PATH.search(line)]


def test_no_file_is_too_long() -> None:
    assert not [str(path) for path, text in texts() if too_long(path, text)]


def test_no_name_says_nothing() -> None:
    assert not [str(path) for path in tracked() if refused_name(path)]


def test_no_machine_paths() -> None:
    assert not {str(path): found for path, text in texts() if (found := machine_paths(text))}


def test_file_rules_can_fail() -> None:
    source = PurePosixPath("src/gatewise/see/page.js")
    assert too_long(source, "x\n" * (MOST_LINES + 1))
    assert not too_long(source, "x\n" * MOST_LINES)
    for name in ("src/gatewise/utils.py", "tests/helpers/a.py", "core/string_util.h"):
        assert refused_name(PurePosixPath(name))
    assert not refused_name(
        PurePosixPath("src/gatewise/common_sense_is_rare.py".replace("common_", ""))
    )
    for place in ("home/ada", "tmp/out", "root/.cache", "work/main"):
        assert machine_paths(f"see /{place} there")
    assert not machine_paths("$HOME/tmp/x https://a.org/home/b build/tmp/c ~/tmp/x")


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert gatewise.__version__ == project["version"]


# --- one command a verb -------------------------------------------------------


@pytest.mark.parametrize(
    ("python", "compiler", "missing"),
    [
        ("no-such-python", "c++", "Python 3.11 or newer, no 'no-such-python' here"),
        (sys.executable, "no-such-compiler", "a C++20 compiler, no 'no-such-compiler' here"),
        (sys.executable, "false", "a C++20 compiler, 'false' does not compile C++20"),
    ],
)
def test_what_is_missing_is_said_in_one_line(python: str, compiler: str, missing: str) -> None:
    command = ["env", f"CXX={compiler}", str(ROOT / "tools" / "machine.sh"), python]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert run.stderr.startswith(f"missing: {missing}")
    assert run.stderr.count("\n") == 1
