"""Stream: a recurrent module fed one step at a time, with little beside the arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from gatewise import native
from gatewise.errors import ArgumentError, DTypeError, ShapeError
from gatewise.lstm import Layers

Array = TypeVar("Array", Tensor, "np.ndarray[Any, Any]")
State = Any
"""(h, c), or h alone where the cell has no cell state."""

_DTYPES = (*native.DTYPES, torch.bfloat16)


class Stream:
    """A module that is fed one step at a time, and keeps the state between steps.

    A Stream holds its own copy of the weights, packed once, when it is made. When the weights of
    the module change afterwards the next step raises ``StaleError``; ``reload()`` copies them anew.
    A step sees at once that a parameter was replaced, and looks at one of the parameters in turn:
    whether it lies in other memory, torch's count of its changes, and 64 of its bytes, the next at
    each look. So a training step, ``load_state_dict`` and whatever else changes most numbers of all
    parameters raise at the next step, by whatever door they came: torch, ``.data``, a numpy view,
    another process. What changes one parameter raises after at most as many steps as there are
    parameters; what changes a few numbers of it, and torch does not count, when their bytes have
    had their turn.

    Every step gives the bits that the module gives for the sequence as a whole, in evaluation mode
    (no dropout); of one so short that the module does not pack its weights, 16*T*B <= I + P, it
    gives the values, rounded otherwise. No gradient passes through a Stream. One thread at a time
    may use it.

    A module in bfloat16 (``lstm.bfloat16()``) takes and gives bfloat16, and its weights, which are
    most of what a step reads, take half the room. States and sums are float32 between the steps;
    where the processor multiplies pairs of bfloat16, the module rounds h at every step of a
    sequence, and the last bits of its results are others.

    Args:
        lstm: a ``gatewise.LSTM`` or ``RNN`` of any cell, on the CPU, with one direction; float32,
            float64 or bfloat16.
        batch: B, sequences that are fed side by side.

    Raises:
        ArgumentError: the module is no such module, or batch is no positive int.
        DTypeError: the weights are of another dtype or on another device.

    Example:
        >>> import torch, gatewise
        >>> lstm = gatewise.LSTM(10, 20, num_layers=2)
        >>> stream, x = gatewise.Stream(lstm), torch.randn(5, 1, 10)
        >>> y = torch.stack([stream.step(x_t) for x_t in x])
        >>> y.shape, torch.equal(y, lstm(x)[0])
        (torch.Size([5, 1, 20]), True)
    """

    def __init__(self, lstm: Layers, batch: int = 1) -> None:
        if not isinstance(lstm, Layers):
            raise ArgumentError(
                "lstm: expected a gatewise.LSTM or RNN, got "
                f"{type(lstm).__module__}.{type(lstm).__qualname__}. "
                "gatewise.swap(model) replaces torch's."
            )
        if lstm.bidirectional:
            raise ArgumentError(
                "lstm: expected one direction, got bidirectional=True, which needs the last step "
                "before the first output. Call the module on the whole sequence instead."
            )
        if not isinstance(batch, int) or isinstance(batch, bool) or batch < 1:
            raise ArgumentError(f"batch: expected an int of at least 1, got {batch!r}.")
        if not native.covers(lstm.cell):
            raise ArgumentError(f"lstm: no kernel for the cell {lstm.cell.name!r}.")
        self._lstm = lstm
        self.batch = batch
        self._core = self._pack()
        if type(self).step is Stream.step:  # a call of Python less: a tenth of a small step
            self.step = self._core.step  # type: ignore[method-assign]

    def _pack(self) -> Any:
        layers = [self._lstm._weights(k)[0] for k in range(self._lstm.num_layers)]
        first = layers[0].W_hh
        for name, w in ((n, w) for layer in layers for n, w in layer._asdict().items()):
            if w is not None and (not w.is_cpu or w.dtype not in _DTYPES):
                raise DTypeError(
                    "lstm: expected weights in float32, float64 or bfloat16 on the CPU, got "
                    f"{name} in {w.dtype} on {w.device}. Convert the module: lstm.float().cpu()"
                )
            if w is not None and w.dtype != first.dtype:
                raise DTypeError(
                    f"lstm: expected weights of one dtype, got {first.dtype} and {w.dtype}. "
                    "Convert the module: lstm.float()"
                )
        watched = [
            (module._parameters, name, parameter)
            for module in self._lstm.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]
        self._dtype = first.dtype
        self._kept = torch.float32 if first.dtype == torch.bfloat16 else first.dtype
        return native.stream(self._lstm.cell, self.batch, layers, watched)

    def step(self, x: Array, out: Array | None = None) -> Array:
        """Feed one step.

        Args:
            x: (B, I), or (I) where B = 1; a torch tensor or a numpy array, of the weights' dtype.
            out: (B, P), or (P), to write the result to, instead of a new array.

        Returns:
            h of the last layer, (B, P), or (P): of the kind of x, or ``out``.

        Raises:
            ShapeError: a size does not fit, or the last axis has gaps.
            DTypeError: x is not of the weights' dtype, is not on the CPU, or is no array.
            ArgumentError: x requires a gradient while gradients are recorded.
            StaleError: the module's weights are no longer those of the Stream.
        """
        made: Array = self._core.step(x, out)
        return made

    def reload(self) -> None:
        """Copy the module's weights again. The state stays, unless its shape has changed.

        Raises:
            DTypeError: the weights are of another dtype by now, or on another device.
        """
        states = self._states()
        self._core.become(self._pack())
        if [tuple(s.shape) for s in states] == [shape for _, shape in self._shapes()]:
            self.state = states

    def reset(self) -> None:
        """Set the state to zero: the next step is the first of a sequence."""
        self._core.reset()

    @property
    def state(self) -> State:
        """The state after the last step, as copies: (h, c) with h (L, B, P) and c (L, B, H), or h
        alone where the cell has no cell state: what the module takes and returns, in its dtype.

        It may be set, to tensors or numpy arrays; with B = 1 also to (L, P) and (L, H). Setting
        raises ShapeError or ArgumentError where it does not fit.
        """
        states = tuple(s.to(self._dtype) for s in self._states())
        return states if len(states) == 2 else states[0]

    @state.setter
    def state(self, state: State) -> None:
        shapes = self._shapes()
        given: Sequence[Any] = state if isinstance(state, (tuple, list)) else (state,)
        if len(given) != len(shapes):
            names = ", ".join(name for name, _ in shapes)
            raise ArgumentError(f"state: expected ({names}), got {len(given)} of them.")
        arrays = []
        for (name, shape), value in zip(shapes, given, strict=True):
            t = torch.as_tensor(value).detach().to("cpu", self._kept)
            if t.dim() == 2 and self.batch == 1:
                t = t.unsqueeze(1)
            if t.shape != shape:
                size = "P" if name == "h" else "H"
                raise ShapeError(
                    f"state: expected {name} (L, B, {size}) = {shape}, got {tuple(t.shape)}. "
                    "reset() sets it to zero."
                )
            arrays.append(t.resolve_neg().contiguous())
        h, c = (*arrays, None)[:2]
        self._core.exchange(h, c, True)

    def _states(self) -> tuple[Tensor, ...]:
        """The states as they are kept: those of bfloat16 in float32."""
        arrays = tuple(torch.empty(shape, dtype=self._kept) for _, shape in self._shapes())
        self._core.exchange(*(*arrays, None)[:2], False)
        return arrays

    def _shapes(self) -> list[tuple[str, tuple[int, int, int]]]:
        L, B, H, P = self._core.sizes()
        h = ("h", (L, B, P))
        return [h, ("c", (L, B, H))] if self._lstm.cell.has_cell_state else [h]

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles pack the weights of their own module."""
        return _restored, (self._lstm, self.batch, self._states())

    def __repr__(self) -> str:
        return f"Stream({self._lstm!r}, batch={self.batch})"


def _restored(lstm: Layers, batch: int, state: State) -> Stream:
    stream = Stream(lstm, batch)
    stream.state = state
    return stream
