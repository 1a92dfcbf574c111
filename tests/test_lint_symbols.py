"""tools/lint_symbols.py: accepts a kernel that shares nothing, names what another shares."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "lint_symbols.py"
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")

pytestmark = pytest.mark.skipif(
    COMPILER is None or shutil.which("nm") is None, reason="no C++ compiler or no nm"
)

CLEAN = """
namespace gatewise {
void parallel(int);
namespace avx2 {
template <class T> __attribute__((noinline)) void fill(T* to, long n) {
  for (long k = 0; k < n; ++k) to[k] = T(k);
}
void run(float* to, long n) { fill(to, n); parallel(2); __builtin_memset(to, 0, n); }
}
}
"""


def lint(folder: Path, source: str) -> subprocess.CompletedProcess[str]:
    place = folder / "kernel_avx2.dir"
    place.mkdir()
    (place / "kernel.cpp").write_text(source)
    kernel = place / "kernel.cpp.o"
    command = [str(COMPILER), "-std=c++20", "-O1", "-fPIC", "-c", str(place / "kernel.cpp")]
    subprocess.run([*command, "-o", str(kernel)], check=True, capture_output=True)
    return subprocess.run(
        [sys.executable, str(TOOL), str(kernel)], capture_output=True, text=True, check=False
    )


def test_clean_kernel_passes(tmp_path: Path) -> None:
    result = lint(tmp_path, CLEAN)
    assert result.returncode == 0, result.stderr
    assert "1 kernel objects share nothing" in result.stdout


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            "namespace gatewise { template <class T> __attribute__((noinline)) T two(T x)"
            " { return x + x; }\nfloat four(float x); namespace avx2 { float go(float x)"
            " { return two(x); } } }",
            "defines float gatewise::two<float>(float) (weak",
        ),
        (
            "#include <vector>\nnamespace gatewise::avx2 { void push(std::vector<int>& v)"
            " { v.push_back(1); } }",
            "asks for operator new",
        ),
        ("namespace gatewise { int shared; }", "defines gatewise::shared (global)"),
        ("namespace gatewise::avx512 { int mine; }", "defines gatewise::avx512::mine (global)"),
        (
            "float sinf(float); namespace gatewise::avx2 { float go(float x) { return sinf(x); } }",
            "asks for sinf",
        ),
    ],
)
def test_what_is_shared_is_named(tmp_path: Path, more: str, says: str) -> None:
    result = lint(tmp_path, more.replace("float sinf", 'extern "C" float sinf') + CLEAN)
    assert result.returncode == 1
    assert says in result.stderr


def test_no_objects_is_a_failure(tmp_path: Path) -> None:
    copy = tmp_path / "tools" / TOOL.name
    copy.parent.mkdir()
    copy.write_text(TOOL.read_text())
    result = subprocess.run(
        [sys.executable, str(copy)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert "make setup" in result.stderr
