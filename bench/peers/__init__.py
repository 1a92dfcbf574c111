"""Other libraries that have an LSTM, each behind one small module; none is needed.

An adapter has ``MODES`` (what it can do) and ``build(problem) -> callable``, which returns what
``torch.nn.LSTM`` would: the output, or [output, d_x] in training (its weights have another layout).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.entrants import Problem
    from bench.timing import Entrant

#: Name in the tables, module of the adapter.
_ADAPTERS = {
    "onnxruntime": "with_onnxruntime",
    "openvino": "with_openvino",
    "jax": "with_jax",
    "tensorflow": "with_tensorflow",
}
NAMES = tuple(_ADAPTERS)


def build(name: str, problem: Problem, missing: type[Exception]) -> Entrant:
    """The peer's LSTM for a problem; raises ``missing`` with the reason where there is none."""
    try:
        adapter = importlib.import_module(f"bench.peers.{_ADAPTERS[name]}")
    except ImportError as absent:
        raise missing(f"not installed ({absent.name or absent})") from None
    if problem.case.mode not in adapter.MODES:
        raise missing(f"does not do {problem.case.mode}")
    run: Entrant = adapter.build(problem)
    return run


def installed() -> dict[str, str]:
    """The reason why each cannot take part; empty where it can."""
    found = {}
    for name, module in _ADAPTERS.items():
        try:
            importlib.import_module(f"bench.peers.{module}")
            found[name] = ""
        except ImportError as absent:
            found[name] = f"not installed ({absent.name or absent})"
    return found
