"""What the installation says of itself."""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import pytest
import torch

import gatewise
from gatewise import about


def test_info() -> None:
    found = gatewise.info()
    assert found.version == gatewise.__version__
    assert found.torch in (torch.__version__, torch.__version__.partition("+")[0])
    assert found.cells == tuple(gatewise.CELLS)
    assert json.loads(json.dumps(found.to_dict()))["machine"] == found.machine


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_are_those_of_a_run_now(threads: int) -> None:
    torch.set_num_threads(threads)
    assert gatewise.info().threads == threads


def test_before_torch_is_imported_threads_are_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert gatewise.info().threads == about.cores()


class Core:
    """Stands for the native core."""

    @staticmethod
    def info() -> dict[str, Any]:
        return {"isas": ["avx512", "avx2", "base"], "isa": "avx2"}


def only(name: str, answer: Any) -> Any:
    """import_module with one module replaced."""
    real = importlib.import_module

    def load(asked: str) -> Any:
        if asked != name:
            return real(asked)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return load


def test_what_the_core_says_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib, "import_module", only("gatewise._core", Core))
    found = about.info()
    assert (found.isas, found.isa) == (("avx512", "avx2", "base"), "avx2")
    assert "isas     avx512, avx2, base\nisa      avx2\n" in str(found)
    assert "note" not in str(found)


def test_a_missing_core_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = ImportError("no core here")
    monkeypatch.setattr(importlib, "import_module", only("gatewise._core", missing))
    found = about.info()
    assert (found.isas, found.isa) == ((), None)
    assert str(found).splitlines()[-1].startswith("note     the native core is not there (no core")
