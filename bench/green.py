"""The kernel tests, run before anything is timed: a wrong answer has no speed.

They run once for a build. A stamp keeps the digest of all that they depend on: the extension, the
Python between it and the user, and the tests themselves.
"""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
STAMP = ROOT / "build" / "bench-green"
TESTS = ("tests/test_core.py",)
#: How is measured and what: rows of before a change here do not stand beside those of after it.
MEASURES = [Path(__file__).with_name(f"{name}.py")
            for name in ("apart", "cases", "entrants", "probe", "timing")]  # fmt: skip


def extension() -> Path:
    """The compiled core in use."""
    return Path(str(importlib.import_module("gatewise._core").__file__))


def digest(paths: Iterable[Path]) -> str:
    """Of the files' contents, in order.

    Example:
        >>> digest([])[:8]
        'e3b0c442'
    """
    whole = hashlib.sha256()
    for path in paths:
        whole.update(path.read_bytes())
    return whole.hexdigest()


def build() -> str:
    """Names what is timed and how: the digest of the extension, the package's Python, the bench."""
    package = sorted((ROOT / "src" / "gatewise").glob("*.py"))
    return digest([extension(), *package, *MEASURES])[:16]


def check(stamp: Path = STAMP) -> str:
    """Run the kernel tests unless they passed on these very files; what failed, or nothing."""
    key = build() + digest(ROOT / test for test in TESTS)
    if stamp.is_file() and stamp.read_text() == key:
        return ""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode:
        return ran.stdout[-3000:] + ran.stderr[-1000:]
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(key)
    return ""
