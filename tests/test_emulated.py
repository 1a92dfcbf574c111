"""The kernels of AVX-512 under an emulator: tools/emulate.py runs the kernels' tests over them."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(960)  # four minutes alone
@pytest.mark.parametrize(("isa", "least"), [("avx512", 100), ("avx512bf16", 30)])
def test_emulated(isa: str, least: int) -> None:
    """Without a skip inside: what cannot be emulated here is said once, by this test."""
    if importlib.util.find_spec("bochscpu") is None:
        pytest.skip("the emulator is not installed: pip install bochscpu-python")
    done = subprocess.run(
        [sys.executable, "tools/emulate.py", isa],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=900,
    )
    if done.returncode == 77:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.findall(r"(\d+) passed", done.stdout)[-1]) > least
