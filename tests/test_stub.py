"""The committed stub of the native core is what nanobind makes of the module that is built.

To write it anew: ``.venv/bin/python tests/test_stub.py > src/gatewise/_core.pyi``
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

STUB = Path(__file__).parents[1] / "src" / "gatewise" / "_core.pyi"


def generated() -> str:
    """The stub of the built module."""
    stubgen = pytest.importorskip("nanobind.stubgen", reason="nanobind is not installed")
    from gatewise import _core

    maker = stubgen.StubGen(module=_core, quiet=True)
    maker.put(_core)
    text: str = maker.get()
    for bare, full in (("tuple", "tuple[Any, ...]"), ("dict", "dict[str, Any]")):
        text = re.sub(rf"\b{bare}\b(?!\[)", full, text)
    return text.replace('\n"""\n', '\n"""\n\nfrom typing import Any\n', 1)


def test_stub_is_the_built_module_s() -> None:
    assert STUB.read_text() == generated()


if __name__ == "__main__":
    sys.stdout.write(generated())
