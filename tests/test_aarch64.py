"""tools/aarch64.sh: its check of the kernels passes here, too, and sees a kernel that is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tools" / "aarch64.sh"
CHECK = ROOT / "tests" / "core" / "kernel_test.cpp"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
CROSS = ("aarch64-linux-gnu-g++", "qemu-aarch64-static")


def checked(core: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """The check of the base kernels in ``core``, compiled for this machine and run."""
    sources = [str(CHECK), *(str(core / name) for name in ("kernel.cpp", "threads.cpp"))]
    flags = ["-std=c++20", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized"]
    flags += ["-ffp-contract=off", "-fno-math-errno", "-pthread", "-DGATEWISE_ISA=base"]
    program = folder / "check"
    subprocess.run([str(COMPILER), *flags, f"-I{core}", *sources, "-o", program], check=True)
    return subprocess.run([program], check=False, capture_output=True, text=True, timeout=90)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_check_passes_here(tmp_path: Path) -> None:
    result = checked(ROOT / "core", tmp_path)
    assert result.returncode == 0, result.stdout
    assert result.stdout.endswith(" layers, 0 faults\n")


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")
def test_check_sees_a_wrong_kernel(tmp_path: Path) -> None:
    core = shutil.copytree(ROOT / "core", tmp_path / "core")
    right, wrong = "return g ? token(t) - first : first;", "return g ? token(t) : first;"
    text = (core / "shape.h").read_text()
    assert text.count(right) == 1
    (core / "shape.h").write_text(text.replace(right, wrong))
    result = checked(core, tmp_path)
    assert result.returncode == 1
    assert "lengths, two groups" in result.stdout


@pytest.mark.skipif(
    any(shutil.which(tool) is None for tool in CROSS), reason=f"needs {' and '.join(CROSS)}"
)
def test_kernels_on_aarch64() -> None:
    result = subprocess.run([SCRIPT], check=False, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
