"""Breaks the code on purpose, one place at a time, and asserts that the tests notice.

Each row of mutations.toml is applied alone to a scratch copy of the tree; the core is rebuilt if
the row is in it; its tests must then turn red. Before that, on the whole copy, they are green.

Usage: mutations.py [WORD ...]      only rows with one of the words in their file or reason
Exit: 0 all noticed; 1 a mutation survived; 2 a row is wrong: its text is not there exactly once, it
does not compile, or its tests do not run.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
MOST_SECONDS = 300  # for the tests of one row: a mutation may also make them hang


class WrongRowError(Exception):
    """A row of the table that cannot be tried; the text says why."""


@dataclass(frozen=True)
class Mutation:
    """In ``file``, ``old`` (there exactly once) becomes ``new``; ``why`` says what that breaks."""

    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]

    @property
    def in_core(self) -> bool:
        return self.file.startswith("core/")

    def applied(self, text: str) -> str:
        """``text`` of the file with the mutation in it. White space is free."""
        pattern = r"\s+".join(re.escape(word) for word in self.old.split())
        changed, places = re.subn(pattern, lambda _: self.new.strip(), text)
        if places != 1:
            raise WrongRowError(f"{self.file}: {places} places have {self.old!r}, not 1")
        if changed == text:
            raise WrongRowError(f"{self.file}: {self.old!r} is replaced by itself")
        return changed


def load(path: Path) -> list[Mutation]:
    """The rows of a table. A row without ``tests`` takes those of the row above."""
    rows: list[Mutation] = []
    tests: tuple[str, ...] = ()
    for row in tomllib.loads(path.read_text())["mutation"]:
        tests = tuple(row.pop("tests", tests))
        rows.append(Mutation(**row, tests=tests))
    return rows


class Scratch:
    """A copy of the tree, and an interpreter that sees the copy and this interpreter's packages."""

    def __init__(self, tree: Path, folder: Path) -> None:
        self.tree = folder / "tree"
        self.build_folder = folder / "build"
        listing = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=tree,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in filter(None, listing.split("\0")):
            if (tree / name).is_file():
                (self.tree / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(tree / name, self.tree / name)
        self.python = self._interpreter(folder / "venv")

    def _interpreter(self, venv: Path) -> Path:
        """An environment of its own: a package installed in place would shadow the copy."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        packages = [path for path in sys.path if path.endswith("-packages")]
        site = next(venv.glob("lib/python*/site-packages"))
        (site / "scratch.pth").write_text("\n".join([str(self.tree / "src"), *packages]) + "\n")
        return venv / "bin" / "python"

    def take_core(self) -> None:
        """Use the core that is built already."""
        code = "import gatewise._core as core; print(core.__file__)"
        found = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        if found.returncode == 0:
            shutil.copy2(found.stdout.strip(), self.tree / "src" / "gatewise")

    def build_core(self) -> None:
        """Compile what changed in the copy's core, and put the result into the package."""
        nanobind = [str(self.python), "-m", "nanobind", "--cmake_dir"]
        where = subprocess.run(nanobind, capture_output=True, text=True, check=True).stdout.strip()
        if not self.build_folder.exists():
            recipe = self.tree / "CMakeLists.txt"  # half the optimisation, a third of the time
            recipe.write_text(recipe.read_text().replace(" -O3 ", " -O1 "))
            self._run_tool(
                *("cmake", "-S", self.tree, "-B", self.build_folder, "-G", "Ninja"),
                *("-DCMAKE_BUILD_TYPE=Release", f"-Dnanobind_DIR={where}", "-DSKBUILD=2"),
                "-DGATEWISE_WIDE=ON",  # the tests of bfloat16 need it on most machines
                *(f"-DPython_EXECUTABLE={self.python}", "-DSKBUILD_PROJECT_NAME=gatewise"),
                *("-DSKBUILD_PROJECT_VERSION=0", "-DSKBUILD_PLATLIB_DIR=unused"),
            )
        self._run_tool("cmake", "--build", self.build_folder, "--target", "_core")
        for old in (self.tree / "src" / "gatewise").glob("_core.*.so"):
            old.unlink()
        built = next(self.build_folder.rglob("_core*.so"))
        shutil.copy2(built, self.tree / "src" / "gatewise")

    def _run_tool(self, *command: str | Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
        if done.returncode:
            raise WrongRowError(f"does not build:\n{(done.stdout + done.stderr)[-3000:]}")

    def test(self, tests: Sequence[str]) -> str:
        """The first test that fails, or "" if all pass."""
        command = [
            str(self.python),
            "-m",
            "pytest",
            "-x",
            "-q",
            "--no-header",
            "-p",
            "no:cacheprovider",
        ]
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        try:
            done = subprocess.run(
                [*command, *tests],
                cwd=self.tree,
                env=environment,
                capture_output=True,
                text=True,
                timeout=MOST_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return "they did not end"
        if done.returncode == 0:
            return ""
        failed = re.search(r"^FAILED (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
        if failed:
            return failed[1]
        if done.returncode < 0:
            return f"the interpreter died of signal {-done.returncode}"
        raise WrongRowError(f"its tests do not run:\n{(done.stdout + done.stderr)[-2000:]}")


def try_one(scratch: Scratch, mutation: Mutation) -> str:
    """What noticed the mutation, or "" where nothing did. The copy is whole again afterwards."""
    path = scratch.tree / mutation.file
    text = path.read_text()
    path.write_text(mutation.applied(text))
    try:
        if mutation.in_core:
            scratch.build_core()
        return scratch.test(mutation.tests)
    finally:
        path.write_text(text)


def run(tree: Path, rows: Sequence[Mutation]) -> int:
    """Try every row on a copy of ``tree``, print the table, return the exit status."""
    survived, wrong = 0, 0
    try:
        for mutation in rows:  # before anything slow
            mutation.applied((tree / mutation.file).read_text())
    except (WrongRowError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(tree, Path(folder))
        try:
            if any(mutation.in_core for mutation in rows):
                scratch.build_core()
            else:
                scratch.take_core()
            for tests in dict.fromkeys(mutation.tests for mutation in rows):
                if red := scratch.test(tests):
                    raise WrongRowError(f"red without any mutation: {red}")
        except WrongRowError as error:
            print(error, file=sys.stderr)
            return 2
        core_is_mutated = False
        for mutation in rows:
            start = time.monotonic()
            try:
                if core_is_mutated and not mutation.in_core:
                    scratch.build_core()
                core_is_mutated = mutation.in_core
                noticed = try_one(scratch, mutation)
                verdict = f"noticed by {noticed}" if noticed else "SURVIVED"
                survived += not noticed
            except WrongRowError as error:
                verdict, wrong = f"WRONG ROW: {error}", wrong + 1
            seconds = time.monotonic() - start
            print(f"{mutation.file:30} {mutation.why:60} {seconds:5.0f} s  {verdict}", flush=True)
    noticed_count = len(rows) - survived - wrong
    print(
        f"{noticed_count} of {len(rows)} mutations noticed, {survived} survived, {wrong} wrong rows"
    )
    return 2 if wrong else 1 if survived else 0


def main(words: Sequence[str]) -> int:
    rows = load(ROOT / "tools" / "mutations.toml")
    chosen = [r for r in rows if not words or any(w in f"{r.file} {r.why}" for w in words)]
    if not chosen:
        print(f"no row has any of: {' '.join(words)}", file=sys.stderr)
        return 2
    return run(ROOT, chosen)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
