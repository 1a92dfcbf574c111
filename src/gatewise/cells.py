"""LSTMCell and RNNCell: one step, in place of the modules of the same names in torch.nn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from gatewise import checks, ops
from gatewise.lstm import FIELDS, Recurrent, row_of
from gatewise.reference import Weights
from gatewise.spec import CELLS, CellSpec
from gatewise.stepping import Memo

_LSTM = CELLS["lstm"]


class Cell(Recurrent):
    """One step of a cell."""

    input_size: int
    bias: bool

    def __init__(
        self,
        gates: int,
        input_size: int,
        hidden_size: int,
        bias: bool,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.input_size = I = checks.positive("input_size", input_size)
        self.hidden_size = H = checks.positive("hidden_size", hidden_size)
        self.bias = bias
        self._memo = Memo()
        rows = gates * H
        shapes = ((rows, I), (rows, H), (rows,), (rows,))
        for name, shape in zip(FIELDS, shapes, strict=False):
            absent = name.startswith("bias") and not bias
            empty = None if absent else torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state of this module or of torch's."""
        nn.Module.__setstate__(self, state)
        self._memo = Memo()
        self.__dict__.pop("_step", None)  # who watched what this is a copy of

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Begin anew: from float to double and back, a parameter is another node of the graph."""
        self._memo = Memo()
        nn.Module._apply(self, fn, recurse)
        return self

    def extra_repr(self) -> str:
        shown = f"{self.input_size}, {self.hidden_size}"
        return shown if self.bias is True else f"{shown}, bias={self.bias}"

    def _weights(self) -> Weights:
        """The weights as they are now; as in torch, each bias may be None."""
        biases = (getattr(self, name) for name in FIELDS[2:4])
        return Weights(*map(self._weight, FIELDS[:2]), *biases)

    def _step(
        self,
        cell: CellSpec,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        reduced: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """x (B, I), h and c (B, H), or without B for one, to the next h and c."""
        if isinstance(x, Tensor) and x.dim() == 1 and _is_one(h) and _is_one(c):
            x, h, c = ops.as_first(x, h, c)
            h, c = Cell._step(self, cell, x, h, c)  # a watch, if there is one, has been asked
            return h.squeeze(0), c.squeeze(0)
        own = self._parameters
        weights: Any
        try:
            weights = own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"], None, None
        except KeyError:  # a parametrization keeps it elsewhere
            weights = self._weights()
        else:
            quick = ops.step(cell, self._memo, x, h, c, weights, reduced)
            if quick is not None:
                return quick
            if not torch.is_autocast_enabled("cpu") or weights[0] is None or weights[1] is None:
                weights = self._weights()  # which says what is wrong with them
        if torch.is_autocast_enabled("cpu") and weights[0].dtype != torch.float64:
            return self._step_autocast(cell, x, h, c, weights)
        w = Weights(*weights)
        if not self._all_fit(x, h, c, w.W_ih):
            x, h, c = self._checked(cell, x, h, c, w.W_ih)
        return ops.any_step(cell, x, h, c, w, reduced)

    def _checked(
        self, cell: CellSpec, x: Tensor, h: Tensor | None, c: Tensor | None, w: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """x, h and c as a dense batch that fits the weights."""
        if isinstance(x, Tensor) and (x.is_sparse or x.is_sparse_csr):
            x = x.to_dense()
        checks.cell_ranks(cell, x, h, c)
        if x.dim() == 1:
            x, h, c = ops.as_first(x, h, c)
        checks.cell_fits(x, h, c, w, self.input_size, self.hidden_size)
        return x, h, c

    def _step_autocast(
        self, cell: CellSpec, x: Tensor, h: Tensor | None, c: Tensor | None, weights: Any
    ) -> tuple[Tensor, Tensor]:
        """A step in the weights' own dtype, in results of the dtypes that torch's autocast gives.

        torch, too, keeps c and h as they came, so that a long loop of cells loses nothing by it.
        What products multiply is rounded as torch rounds it where they are so large that this pays.
        """
        checks.tensor("input", x)
        own = weights[0].dtype
        kept = torch.get_autocast_dtype("cpu")
        if cell.has_cell_state:
            kept = torch.promote_types(kept, x.dtype if c is None else c.dtype)
        x = x.to(own)
        h, c = (None if s is None else s.to(own) for s in (h, c))
        reduced = ops.pays_reduced(x, *weights[:2])
        new = None
        if "_step" not in self.__dict__:  # nobody watches
            new = ops.step(cell, self._memo, x, h, c, weights, reduced, autocast=True)
        if new is None:
            with torch.autocast("cpu", enabled=False):
                new = self._step(cell, x, h, c, reduced)
        new_h = new[0].to(kept)
        return new_h, new_h if new[1] is new[0] else new[1].to(kept)

    def _all_fit(self, x: Tensor, h: Tensor | None, c: Tensor | None, w: Tensor) -> bool:
        """The quick answer for a batch; what is wrong, if anything, is for the checks to say."""
        if not isinstance(x, Tensor) or x.dim() != 2:
            return False
        size = (x.shape[0], self.hidden_size)
        return (
            x.shape[1] == self.input_size
            and (h is None or (h.shape == size and h.dtype == w.dtype and h.device == w.device))
            and (c is None or (c.shape == size and c.dtype == w.dtype and c.device == w.device))
            and x.dtype == w.dtype
            and x.device == w.device
            and all(t is None or t.layout is torch.strided for t in (x, h, c))
        )


def _is_one(state: Tensor | None) -> bool:
    return state is None or state.dim() == 1


class LSTMCell(Cell):
    """A drop-in for ``torch.nn.LSTMCell``: one step of an LSTM.

    Args:
        input_size: I, features of the input.
        hidden_size: H, units of the cell.
        bias: with the two bias vectors, which add up.
        device, dtype: of the parameters.

    Raises:
        ArgumentError: a size is no positive integer.

    Source: Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000.

    Example:
        >>> import torch, gatewise
        >>> h, c = gatewise.LSTMCell(10, 20)(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(4, input_size, hidden_size, bias, device, dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            input: (B, I), or (I) for a batch of none.
            hx: the pair (h, c), each (B, H), or (H); zeros if absent.

        Returns:
            The next (h, c), each (B, H), or (H). They are computed at once: a gradient by c (of
            ``autograd.grad``, ``retain_grad``, a hook) is what comes by c's own way on, without
            what comes through h of the same step, as where torch runs the step as one operation
            (on GPUs); on CPUs torch counts both, and so does the trace of ``gatewise.tracing``.

        Raises:
            ShapeError: a rank or a size does not fit.
            DTypeError: input and weights are not of one dtype.
            ArgumentError: hx is no pair of tensors.
        """
        if isinstance(input, Proxy):
            return self._as_node(input, hx)
        h, c = (None, None) if hx is None else checks.pair(hx)
        return self._step(_LSTM, input, h, c)


class RNNCell(Cell):
    """A drop-in for ``torch.nn.RNNCell``: one step of a plain RNN.

    Args:
        nonlinearity: "tanh" or "relu".

    The other arguments, and what it raises, are those of ``LSTMCell``.

    Source: Elman 1990.

    Example:
        >>> import torch, gatewise
        >>> gatewise.RNNCell(10, 20)(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(1, input_size, hidden_size, bias, device, dtype)
        self.nonlinearity = nonlinearity

    def extra_repr(self) -> str:
        shown = super().extra_repr()
        return (
            shown if self.nonlinearity == "tanh" else f"{shown}, nonlinearity={self.nonlinearity}"
        )

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """One step.

        Args:
            input: (B, I), or (I) for a batch of none.
            hx: h, (B, H) or (H); zeros if absent.

        Returns:
            The next h, (B, H) or (H).

        Raises:
            ShapeError: a rank or a size does not fit.
            DTypeError: input and weights are not of one dtype.
            ArgumentError: hx is no tensor, or the nonlinearity is neither tanh nor relu.
        """
        if isinstance(input, Proxy):
            return self._as_node(input, hx)
        if hx is not None:
            checks.tensor("hx", hx, " (no pair: an RNN has no cell state)")
        return self._step(CELLS[row_of(self.nonlinearity)], input, hx, None)[0]
