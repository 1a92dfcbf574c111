"""core/threads.cpp: the checks of tests/core/threads_test.cpp, plain and under ThreadSanitizer."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "core" / "threads.cpp"
CHECKS_SOURCE = ROOT / "tests" / "core" / "threads_test.cpp"
CHECKS = re.findall(r"^    NAMED\((\w+)\),$", CHECKS_SOURCE.read_text(), re.MULTILINE)
# ThreadSanitizer starts no threads in a forked child, and takes an address space without a limit.
SANITIZED = [
    check
    for check in CHECKS
    if "fork" not in check and check not in ("refused_threads", "absurd_request")
]
SANITIZER = ("-fsanitize=thread", "-g")
COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")


def compiled(source: Path, to: Path, *flags: str) -> Path:
    """``source`` compiled, or linked, to ``to``."""
    command = [
        str(COMPILER),
        "-std=c++20",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        *flags,
    ]
    command += [f"-I{ROOT / 'core'}", str(source), "-o", str(to)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return to


def program_of(checks: Path, folder: Path, *flags: str, source: Path = SOURCE) -> Path:
    """The compiled ``checks`` linked with the pool in ``source``."""
    return compiled(source, folder / "threads_test", *flags, str(checks))


def run(program: Path, *check: str) -> subprocess.CompletedProcess[str]:
    options = "halt_on_error=1 atexit_sleep_ms=20"
    return subprocess.run(
        [program, *check],
        check=False,
        capture_output=True,
        text=True,
        timeout=90,
        env={**os.environ, "TSAN_OPTIONS": options},
    )


def passes(program: Path, check: str) -> None:
    result = run(program, check)
    assert result.returncode == 0, f"{check}: exit {result.returncode}\n{result.stderr}"


def broken(folder: Path, pattern: str, replacement: str) -> Path:
    """threads.cpp with one thing wrong."""
    text, places = re.subn(pattern, replacement, SOURCE.read_text())
    assert places, f"{pattern!r} is nowhere in {SOURCE.name}"
    copy = folder / "threads.cpp"
    copy.write_text(text)
    return copy


@pytest.fixture(scope="module")
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(CHECKS_SOURCE, tmp_path_factory.mktemp("checks") / "checks.o", "-c")


@pytest.fixture(scope="module")
def program(checks: Path) -> Path:
    return program_of(checks, checks.parent)


@pytest.fixture(scope="module")
def sanitized_checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sanitized")
    try:
        built = compiled(CHECKS_SOURCE, folder / "checks.o", "-c", *SANITIZER)
        program = program_of(built, folder, *SANITIZER)
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no ThreadSanitizer")
    if run(program).returncode != 0:
        pytest.skip("ThreadSanitizer does not start on this kernel")
    return built


@pytest.fixture(scope="module")
def sanitized(sanitized_checks: Path) -> Path:
    return sanitized_checks.parent / "threads_test"


def test_every_check_is_run(program: Path) -> None:
    assert run(program).stdout.split() == CHECKS
    assert run(program, "no such check").returncode == 2


@pytest.mark.parametrize("check", CHECKS)
def test_threads(program: Path, check: str) -> None:
    passes(program, check)


@pytest.fixture(scope="module")
def on_openmp(checks: Path) -> Path:
    try:
        to = checks.parent / "on_openmp"
        return compiled(SOURCE, to, str(checks), "-Wl,--no-as-needed", "-lgomp")
    except subprocess.CalledProcessError:
        pytest.skip("this compiler has no GNU OpenMP library")


@pytest.mark.parametrize("check", CHECKS)
def test_threads_on_openmp(on_openmp: Path, check: str) -> None:
    if check == "refused_threads":
        pytest.skip("GNU's OpenMP library ends a process that is refused a thread")
    passes(on_openmp, check)


def test_torch_and_gatewise_share_workers() -> None:
    code = """
import os, torch, gatewise
torch.set_num_threads(2)
torch.randn(1_000_000).exp()
before = len(os.listdir("/proc/self/task"))
with torch.no_grad():
    gatewise.LSTM(64, 64)(torch.randn(100, 32, 64))
print(before, len(os.listdir("/proc/self/task")))
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("the system does not list threads")
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after = map(int, out.stdout.split())
    assert before == after >= 2


@pytest.mark.parametrize("check", SANITIZED)
def test_threads_under_sanitizer(sanitized: Path, check: str) -> None:
    passes(sanitized, check)


@pytest.mark.parametrize(
    ("check", "pattern", "replacement"),
    [
        ("counts", r"job\.share\(0\);\n  for", r"job.share(1);\n  for"),
        ("idle_burns_nothing", r"kAwake\{75\}", "kAwake{500'000}"),
        ("denormals", "0x8040|1u << 24", "0"),
        ("second_caller_does_not_wait", r"!held\.exchange\(true\)", "true"),
        ("late_workers_are_left_out", r"kRepay \* \(", "0 * ("),
        ("late_workers_are_left_out", r"- waited\)", ")"),
        ("punctual_workers_share", r"kLeast = 1\.0", "kLeast = 1.999"),
        ("fork_in_the_middle", r"  held\.store\(false\);\n\}\n\[", "}\n["),
    ],
)
def test_checks_can_fail(
    checks: Path, tmp_path: Path, check: str, pattern: str, replacement: str
) -> None:
    wrong = program_of(checks, tmp_path, source=broken(tmp_path, pattern, replacement))
    assert run(wrong, check).returncode != 0


def test_sanitizer_sees_a_barrier_without_ordering(sanitized_checks: Path, tmp_path: Path) -> None:
    relaxed = broken(tmp_path, "__ATOMIC_(ACQUIRE|RELEASE|ACQ_REL)", "__ATOMIC_RELAXED")
    program = program_of(sanitized_checks, tmp_path, *SANITIZER, source=relaxed)
    assert "data race" in run(program, "barrier").stderr
