"""LSTM, RNN, LSTMCell and RNNCell that are instances of torch's classes, too: for ``swap``.

torch.compile refuses an instance of ``torch.nn.LSTM`` or ``RNN`` whatever it runs, so these are not
what ``gatewise.LSTM`` is.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from gatewise import cells, lstm


class _OneList:
    """Without what nn.RNNBase does for its second list of the weights, which ours has not."""

    _apply = nn.Module._apply
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel
    __getstate__ = nn.Module.__getstate__


class LSTM(_OneList, lstm.LSTM, nn.LSTM):  # type: ignore[misc, override]
    """``gatewise.LSTM``, and a ``torch.nn.LSTM``."""


class RNN(_OneList, lstm.RNN, nn.RNN):  # type: ignore[misc, override]
    """``gatewise.RNN``, and a ``torch.nn.RNN``."""


class LSTMCell(cells.LSTMCell, nn.LSTMCell):
    """``gatewise.LSTMCell``, and a ``torch.nn.LSTMCell``."""


class RNNCell(cells.RNNCell, nn.RNNCell):
    """``gatewise.RNNCell``, and a ``torch.nn.RNNCell``."""


def over(cls: type[nn.Module], ours: type[lstm.Recurrent]) -> type[lstm.Recurrent]:
    """A subclass of torch's class, with ours between the two: what it calls by super() is ours.

    Args:
        cls: the subclass.
        ours: one of the classes here, over the class of torch's that cls is made from.
    """
    metaclass: Any = type(cls)
    members = {"__module__": cls.__module__, "__reduce_ex__": _reduce}
    made: type[lstm.Recurrent] = metaclass(cls.__name__, (cls, ours), members)
    return made


def _reduce(module: lstm.Recurrent, protocol: int) -> tuple[object, ...]:
    """For copies and pickles: a class made by ``over`` has no name to be found by."""
    return _blank, type(module).__bases__, module.__getstate__()  # type: ignore[no-untyped-call]


def _blank(cls: type[nn.Module], ours: type[lstm.Recurrent]) -> lstm.Recurrent:
    made = over(cls, ours)
    return made.__new__(made)
