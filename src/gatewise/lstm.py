"""LSTM and RNN: in place of the modules of the same names in torch.nn.

The letters are those at the top of reference.py. A call checks its arguments, brings the input to
(T, B, I), and hands layer after layer to ``ops.layer``. Each weight is read from the module once a
call, before anything is computed, and never kept in a second form, so none can be out of date.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from gatewise import checks, ops
from gatewise.errors import ArgumentError
from gatewise.reference import Weights
from gatewise.spec import CELLS, CellSpec

if TYPE_CHECKING:
    from gatewise.trace import Trace

State = Tensor | tuple[Tensor, Tensor]
"""h for a plain RNN; (h, c) for a cell with a cell state."""

#: What a parameter is called, in the order of ``Weights``, which is torch's order; then which way.
FIELDS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr", "weight_peep")
WAYS = ("", "_reverse")

#: torch's name of a cell, ``nn.RNNBase.mode``.
MODES = {"LSTM": "lstm", "RNN_TANH": "rnn", "RNN_RELU": "rnn_relu"}
NONLINEARITIES = {"tanh": "rnn", "relu": "rnn_relu"}

#: Settings that decide which weights there are.
_NAMING = frozenset({"num_layers", "bias", "bidirectional", "proj_size"})

_NO_TORCHSCRIPT = (
    "gatewise modules do not support TorchScript (torch.jit.script, torch.jit.trace). "
    "Use torch.compile or torch.export; or put torch.nn back: gatewise.unswap(model)."
)


class Recurrent(nn.Module):
    """What layers and cells share: initialisation, and a plain word about TorchScript."""

    hidden_size: int

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), in their order, as torch does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def __prepare_scriptable__(self) -> NoReturn:  # what torch.jit.script asks first
        raise NotImplementedError(_NO_TORCHSCRIPT)

    def _slow_forward(self, *args: Any, **kwargs: Any) -> NoReturn:  # torch.jit.trace calls it
        self.__prepare_scriptable__()

    def _as_node(self, input: Proxy, hx: Any) -> Any:
        """The call as one node of a graph of torch.fx, which a module of torch.nn is, too."""
        tracer: Any = input.tracer
        name = tracer.path_of_module(self)
        if not name:
            raise ArgumentError(
                "torch.fx: expected a model that holds this layer, got the layer itself, which is "
                "one node of a graph. Trace torch.nn.Sequential(layer)."
            )
        args = (input,) if hx is None else (input, hx)
        if self._forward_pre_hooks or self._forward_hooks:  # they are in the graph already
            layer = tracer.create_proxy("get_attr", name, (), {})
            return tracer.create_proxy("call_method", "forward", (layer, *args), {})
        return tracer.create_proxy("call_module", name, args, {})

    def _weight(self, name: str) -> Tensor:
        """A weight as it is now."""
        weight: Tensor | None = self._parameters.get(name)  # cheaper than getattr on a Module
        if weight is None:  # a parametrization, weight_norm, a replica keep it elsewhere
            weight = getattr(self, name)
        if weight is None:
            raise ArgumentError(
                f"{name} should be a Tensor, got None. Assign a torch.nn.Parameter; for a layer "
                "without biases, make it with bias=False."
            )
        if weight.layout is not torch.strided:
            checks.dense(name, weight)
        return weight


class Layers(Recurrent):
    """L layers of one cell, in one direction or both."""

    cell: CellSpec
    input_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    checkpoint: bool | int | None

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
        checkpoint: bool | int | None,
    ) -> None:
        super().__init__()
        checks.cell_name(cell)
        checks.settings(input_size, hidden_size, num_layers, bias, batch_first, dropout, proj_size)
        checks.checkpoint(checkpoint)
        self.cell = CELLS[cell]
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = index(num_layers)
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = index(proj_size)
        self.checkpoint = checkpoint
        self._names = self._name_weights()

        rows, P = len(self.cell.gates) * hidden_size, self.proj_size or hidden_size
        for k, layer in enumerate(self._names):
            I = P * len(layer) if k else input_size
            shapes = ((rows, I), (rows, P), (rows,), (rows,), (P, hidden_size), (3, hidden_size))
            for names in layer:
                for name, shape in zip(names, shapes, strict=True):
                    if name:
                        empty = torch.empty(shape, device=device, dtype=dtype)
                        setattr(self, name, nn.Parameter(empty))
        self.reset_parameters()

    def _name_weights(self) -> list[list[list[str | None]]]:
        """[layer][direction][field of Weights]: its name, or None if there is no such weight."""
        has = (True, True, self.bias, self.bias, self.proj_size > 0, self.cell.peephole)
        fields = [field if here else None for field, here in zip(FIELDS, has, strict=True)]
        ways = WAYS if self.bidirectional else WAYS[:1]
        return [
            [[field and f"{field}_l{k}{way}" for field in fields] for way in ways]
            for k in range(self.num_layers)
        ]

    def __setattr__(self, name: str, value: Any) -> None:
        """A setting may change later: with fewer layers, the lower ones are those that run."""
        nn.Module.__setattr__(self, name, value)  # not RNNBase's, if ``swap`` left that beneath
        if name in _NAMING and "_names" in self.__dict__:
            self._names = self._name_weights()

    # --- the weights, under every name that torch gives them -------------------------------------

    def _weights(self, k: int) -> list[Weights]:
        """The weights of layer k as they are now, one ``Weights`` per direction."""
        return [
            Weights._make([None if name is None else self._weight(name) for name in names])
            for names in self._names[k]
        ]

    @property
    def _all_weights(self) -> list[list[str]]:
        return [[name for name in way if name] for layer in self._names for way in layer]

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """The weights, one list for each direction of each layer."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> tuple[Tensor | None, ...]:  # a list in torch; who wrote to an item
        return tuple(getattr(self, name, None) for name in self._flat_weights_names)  # must notice

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[Tensor | None]) -> None:
        for name, weight in zip(self._flat_weights_names, weights, strict=True):
            if weight is not None and weight is not getattr(self, name, None):
                setattr(self, name, weight)

    def flatten_parameters(self) -> None:
        """Do nothing: there is no second copy of the weights to bring up to date."""

    @property
    def mode(self) -> str:
        """torch's name of the cell: LSTM, RNN_TANH or RNN_RELU."""
        return next((mode for mode in MODES if MODES[mode] == self.cell.name), self.cell.name)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state of this module or of torch's, of any age."""
        nn.Module.__setstate__(self, state)
        if "cell" not in state:
            self.cell = CELLS[MODES[state["mode"]]]
        self.__dict__.setdefault("proj_size", 0)  # torch had none before 1.8
        self.__dict__.setdefault("checkpoint", None)
        for computed in ("mode", "all_weights", "_all_weights", "_flat_weights",
                         "_flat_weights_names", "_flat_weight_refs", "_run_layer"):  # fmt: skip
            self.__dict__.pop(computed, None)
        self._names = self._name_weights()

    def extra_repr(self) -> str:
        shown = [str(self.input_size), str(self.hidden_size)]
        usual = {"proj_size": 0, "num_layers": 1, "bias": True, "batch_first": False,
                 "dropout": 0, "bidirectional": False, "checkpoint": None}  # fmt: skip
        shown += [f"{k}={getattr(self, k)}" for k, v in usual.items() if getattr(self, k) != v]
        if self.mode not in MODES:
            shown.append(f"cell={self.cell.name}")
        return ", ".join(shown)

    # --- the call --------------------------------------------------------------------------------

    # for a subclass whose own forward asks torch's questions
    check_input = nn.RNNBase.check_input
    check_hidden_size = nn.RNNBase.check_hidden_size
    get_expected_hidden_size = nn.RNNBase.get_expected_hidden_size

    def forward(
        self, input: Tensor | PackedSequence, hx: State | None = None
    ) -> tuple[Tensor | PackedSequence, State]:
        """Run the layers over a batch of sequences.

        Args:
            input: (T, B, I); (B, T, I) if ``batch_first``; (T, I) for one sequence; or a
                ``PackedSequence`` of sequences of different lengths.
            hx: the state before the first step, zeros if absent: h_0 (L*D, B, P), and for a cell
                with a cell state the pair (h_0, c_0) with c_0 (L*D, B, H). Layer by layer, and in a
                layer left to right before right to left. No B for one sequence; ``batch_first``
                does not move B here.

        Returns:
            output (T, B, D*P), laid out as the input: h of the last layer at every step, left to
            right in the first P places. Then the state after the last step, shaped as ``hx``.

        Raises:
            ShapeError: a rank or a size does not fit, or T = 0.
            DTypeError: the input, the states and the weights are not of one dtype and device.
            ArgumentError: the input is no tensor; hx is no tensor, or no pair of them.
        """
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, hx)
        if isinstance(input, Proxy):
            return self._as_node(input, hx)
        checks.tensor("input", input, " or a PackedSequence")
        gated, rank = self.cell.has_cell_state, input.dim()
        checks.input_rank(input, self.input_size, self._layout, gated)
        h0, c0 = self._split(hx, rank)
        weights = self._checked_weights(input, self._layout if rank == 3 else "(T, I)")
        if rank == 2:
            x = input.unsqueeze(1)
        elif self.batch_first:
            x = input.transpose(0, 1)
        else:
            x = input
        if ops.records_gradients():
            x = x.contiguous()  # as in torch: what is copied is the caller's to change
        if h0 is not None:
            self._check_states(x, h0, c0, x.shape[1])
        checks.steps(x.shape[0])
        output, h_n, c_n = self._run(x, h0, c0, weights, None)
        if rank == 2:
            output, h_n, c_n = output.squeeze(1), h_n.squeeze(1), c_n.squeeze(1)
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, (h_n, c_n) if gated else h_n

    def _forward_packed(
        self, input: PackedSequence, hx: State | None
    ) -> tuple[PackedSequence, State]:
        x, batch_sizes, longest_first, given_order = input
        h0, c0 = self._split(hx, 3)
        checks.packing(x, batch_sizes)
        weights = self._checked_weights(x, "(N, I)")
        compiling = torch.compiler.is_compiling()  # then B is not known, unless something has it
        if h0 is None and compiling and longest_first is not None:
            h0 = x.new_zeros(self._rows, len(longest_first), self.proj_size or self.hidden_size)
        elif h0 is not None:
            self._check_states(x, h0, c0, h0.shape[1] if compiling else int(batch_sizes[0]))
            if longest_first is not None:
                h0 = h0.index_select(1, longest_first)
                c0 = None if c0 is None else c0.index_select(1, longest_first)
        output, h_n, c_n = self._run(x, h0, c0, weights, batch_sizes)
        if given_order is not None:
            h_n, c_n = h_n.index_select(1, given_order), c_n.index_select(1, given_order)
        packed = PackedSequence(output, batch_sizes, longest_first, given_order)
        return packed, (h_n, c_n) if self.cell.has_cell_state else h_n

    def _split(self, hx: State | None, rank: int) -> tuple[Tensor | None, Tensor | None]:
        """h0 and c0 (L*D, B, ...) out of the caller's hx."""
        if hx is None:
            return None, None
        if self.cell.has_cell_state:
            states: tuple[Tensor, ...] = checks.pair(hx)
        else:
            states = (checks.tensor("hx", hx, " (no pair: this cell has no cell state)"),)
        checks.state_rank(states, rank)
        if rank == 2:
            states = tuple(state.unsqueeze(1) for state in states)
        return states[0], states[1] if len(states) == 2 else None

    def _checked_weights(self, x: Tensor, layout: str) -> list[list[Weights]]:
        """The weights of every layer, which the input fits. A weight may be costly to read, or
        another at each reading (spectral norm, dropout on a weight)."""
        weights = [self._weights(k) for k in range(len(self._names))]
        checks.input_fits(x, weights[0][0].W_ih, self.input_size, layout)
        return weights

    def _check_states(self, x: Tensor, h0: Tensor, c0: Tensor | None, B: int) -> None:
        rows, H = self._rows, self.hidden_size
        name = "hidden" if c0 is None else "hidden[0]"
        checks.state_fits(name, h0, x, (rows, B, self.proj_size or H), "(L*D, B, P)")
        if c0 is not None:
            checks.state_fits("hidden[1]", c0, x, (rows, B, H), "(L*D, B, H)")

    @property
    def _rows(self) -> int:
        """L*D, the rows of a state."""
        return len(self._names) * len(self._names[0])

    @property
    def _layout(self) -> str:
        return "(B, T, I)" if self.batch_first else "(T, B, I)"

    def _run(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: list[list[Weights]],
        batch_sizes: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """All layers; x (T, B, I) or (N, I); h0, h_n (L*D, B, P); c0, c_n (L*D, B, H)."""
        L, D = len(weights), len(weights[0])
        h_n, c_n = [], []
        for k in range(L):
            h, c = (s if s is None or L == 1 else s[k * D : (k + 1) * D] for s in (h0, c0))
            run = self._run_layer(k, x, h, c, weights[k], batch_sizes)
            x = run.output
            if self.training and self.dropout and k + 1 < L:
                x = nn.functional.dropout(x, self.dropout)
            h_n.append(run.h_n)
            c_n.append(run.c_n)
        if L == 1:
            return x, h_n[0], c_n[0]
        last_h = torch.cat(h_n)
        return x, last_h, torch.cat(c_n) if self.cell.has_cell_state else last_h

    def _run_layer(self, k: int, *given: Any, **watched: Any) -> ops.LayerResult:
        """Layer k alone, by ``ops.layer``. Every computation passes here: a watch stands here."""
        checks.checkpoint(self.checkpoint)
        return ops.layer(self.cell, *given, checkpoint=self.checkpoint, **watched)

    def trace(self, x: Tensor | PackedSequence, hx: State | None = None) -> Trace:
        """Run once and return every gate, cell and hidden state of every step as a ``Trace``.

        Args:
            x, hx: as for a call.

        Returns:
            Trace: i f g o c (L, D, T, B, H) and h (L, D, T, B, P), by name and as attributes, with
            their graph; ``output`` (T, B, D*P), ``h_n`` and ``c_n``, whatever the layout of x;
            after a backward pass the gradients at all of them, ``.grad``.

        Raises: what a call raises.

        Example:
            >>> import torch, gatewise
            >>> trace = gatewise.LSTM(2, 3, num_layers=2).trace(torch.randn(5, 1, 2))
            >>> trace.f.shape, trace["l0.fwd.f"].shape
            (torch.Size([2, 1, 5, 1, 3]), torch.Size([5, 1, 3]))
        """
        from gatewise.recording import record

        trace: Trace = record(self, x, hx)
        return trace


class LSTM(Layers):
    """A drop-in for ``torch.nn.LSTM``: same arguments, parameters, results and errors.

    Args:
        input_size: I, features of the input at a step.
        hidden_size: H, units of the cell.
        num_layers: L, layers; each reads the output of the one below.
        bias: with the two bias vectors of each layer, which add up.
        batch_first: input and output are (B, T, ...) instead of (T, B, ...). States are not moved.
        dropout: in training, the probability with which each output of every layer but the last
            is set to zero. 0 to 1.
        bidirectional: D = 2, a second run from right to left, whose output is joined to the first.
        proj_size: P, if not 0: h is projected from H to P values, P < H.
        device, dtype: of the parameters.
        cell: the name of a row of ``gatewise.CELLS``. Weights then have G*H rows for the G gates
            that the row computes, and a row with peepholes adds ``weight_peep_l{k}`` (3, H), the
            weights of i, f and o. A row without a cell state takes and returns h alone.
        checkpoint: what a training step keeps for backward. None: every gate of every step. k: the
            states of every k steps, from which backward computes the gates again; True: k =
            ceil(sqrt(T)), so that memory beyond input and output grows with sqrt(T), but no fewer
            steps than are worth the calls: about 2048 tokens, and 131072 / H of them.
            Outputs are the same to the bit (to rounding, where 16*T*B <= I + P), gradients to
            rounding. It holds for ``backward`` and ``torch.autograd.grad`` in eager mode. Under
            ``torch.compile``, ``torch.export`` and the transforms of ``torch.func``, in forward
            mode and while somebody traces, all gates are kept; with ``create_graph=True`` they are
            all computed again at once. It may be changed later, as ``lstm.checkpoint``.

    Raises:
        ArgumentError: an argument is out of its range or of the wrong kind.

    Source: Hochreiter and Schmidhuber 1997; forget gate: Gers, Schmidhuber and Cummins 2000.

    Example:
        >>> import torch, gatewise
        >>> lstm = gatewise.LSTM(input_size=10, hidden_size=20, num_layers=2, bidirectional=True)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 40]), torch.Size([4, 3, 20]), torch.Size([4, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        cell: str = "lstm",
        checkpoint: bool | int | None = None,
    ) -> None:
        super().__init__(
            cell, input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional,
            proj_size, device, dtype, checkpoint,
        )  # fmt: skip

    # as above, in torch's form for two states
    check_forward_args = nn.LSTM.check_forward_args
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden


class RNN(Layers):
    """A drop-in for ``torch.nn.RNN``: same arguments, parameters, results and errors.

    Args:
        nonlinearity: "tanh" or "relu".
        cell: the name of a row of ``gatewise.CELLS``, in place of ``nonlinearity``.

    The other arguments, and what it raises, are those of ``LSTM``; ``proj_size`` is refused, as in
    torch.

    Source: Elman 1990.

    Example:
        >>> import torch, gatewise
        >>> output, h_n = gatewise.RNN(10, 20, batch_first=True)(torch.randn(3, 5, 10))
        >>> output.shape, h_n.shape
        (torch.Size([3, 5, 20]), torch.Size([1, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        cell: str | None = None,
        proj_size: int = 0,
        checkpoint: bool | int | None = None,
    ) -> None:
        if proj_size:
            raise ArgumentError(
                "proj_size argument is only supported for LSTM, not RNN or GRU. For a plain RNN "
                'with a projection: gatewise.LSTM(..., proj_size=..., cell="rnn").'
            )
        super().__init__(
            cell or row_of(nonlinearity), input_size, hidden_size, num_layers, bias,
            batch_first, dropout, bidirectional, 0, device, dtype, checkpoint,
        )  # fmt: skip
        self.nonlinearity = nonlinearity

    # as above, in torch's form for one state
    check_forward_args = nn.RNN.check_forward_args
    permute_hidden = nn.RNN.permute_hidden


def row_of(nonlinearity: str) -> str:
    """The name of the plain RNN's row with this nonlinearity."""
    if nonlinearity not in NONLINEARITIES:
        raise ArgumentError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
    return NONLINEARITIES[nonlinearity]
