"""gatewise: an LSTM for CPUs. Drop-in for torch.nn.LSTM, fast, every gate of every step in sight.

Use:   gatewise.LSTM, RNN, LSTMCell, RNNCell in place of torch.nn's; gatewise.swap(model), unswap;
       gatewise.Stream(lstm) to run one step at a time.
See:   lstm.trace(x), gatewise.tracing(model), gatewise.patching(model, {...}).
Prove: ``gatewise study``, ``gatewise bench``.

A name is imported when it is first asked for: ``import gatewise`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gatewise.about import Info, info, release_workspaces
from gatewise.errors import ArgumentError, DTypeError, GatewiseError, ShapeError, StaleError
from gatewise.spec import CELLS, CellSpec

if TYPE_CHECKING:
    from gatewise.cells import LSTMCell, RNNCell
    from gatewise.lstm import LSTM, RNN
    from gatewise.recording import patching, tracing
    from gatewise.reference import Weights, sequence, step
    from gatewise.stream import Stream
    from gatewise.swapping import Swapped, swap, unswap
    from gatewise.trace import Trace

__version__ = "0.1.0"

#: Names that are imported at first use, and the module that has them.
_LAZY = {
    "LSTM": "lstm",
    "LSTMCell": "cells",
    "RNN": "lstm",
    "RNNCell": "cells",
    "Stream": "stream",
    "Swapped": "swapping",
    "Trace": "trace",
    "Weights": "reference",
    "patching": "recording",
    "sequence": "reference",
    "step": "reference",
    "swap": "swapping",
    "tracing": "recording",
    "unswap": "swapping",
}

__all__ = [
    "CELLS",
    "LSTM",
    "RNN",
    "ArgumentError",
    "CellSpec",
    "DTypeError",
    "GatewiseError",
    "Info",
    "LSTMCell",
    "RNNCell",
    "ShapeError",
    "StaleError",
    "Stream",
    "Swapped",
    "Trace",
    "Weights",
    "info",
    "patching",
    "release_workspaces",
    "sequence",
    "step",
    "swap",
    "tracing",
    "unswap",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    except ModuleNotFoundError as missing:
        if missing.name != "torch":
            raise
        raise ModuleNotFoundError(
            f"gatewise.{name}: expected torch, got none installed; pip install 'gatewise[torch]'",
            name="torch",
        ) from None
    globals()[name] = value  # from now on found without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
