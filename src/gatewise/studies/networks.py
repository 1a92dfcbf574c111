"""The networks under study: a recurrent layer, its start values, and a linear read-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import gatewise
from gatewise import CELLS

#: Rows of CELLS that are plain RNNs, by torch's word for them.
_PLAIN = {"rnn": "tanh", "rnn_relu": "relu"}


@dataclass(frozen=True)
class Design:
    """A recurrent layer and how it starts.

    Args:
        cell: a row of ``gatewise.CELLS``.
        both: two directions.
        forget: the bias of the forget gate at the start; None leaves torch's initialisation. A
            coupled cell, which has no forget gate, gets the same f = 1 - i by its input gate.
        entry: the bias of the input gate at the start; None leaves torch's.
        chrono: longest lag T expected: forget biases log U(1, T-1), input biases their negatives
            (Tallec and Ollivier 2018, "Can recurrent neural networks warp time?", section 2).
        gain: W_hh, that of each gate, starts as this times a random orthogonal matrix; None:
            torch's.
        identity: W_hh starts as the identity and the biases as 0 (Le, Jaitly and Hinton 2015, "A
            simple way to initialize recurrent networks of rectified linear units").
    """

    cell: str = "lstm"
    both: bool = False
    forget: float | None = None
    entry: float | None = None
    chrono: int | None = None
    gain: float | None = None
    identity: bool = False


#: The designs that several studies share, by the name in figures and results.
DESIGNS = {
    "RNN tanh": Design("rnn"),
    "RNN relu": Design("rnn_relu"),
    "RNN relu, identity": Design("rnn_relu", identity=True),
    "RNN tanh, orthogonal": Design("rnn", gain=1.0),
    "LSTM": Design("lstm"),
    "LSTM, forget bias 1": Design("lstm", forget=1.0),
    "Bi-RNN": Design("rnn", both=True),
    "Bi-LSTM": Design("lstm", both=True, forget=1.0),
}


#: The four layers: who makes it, and which row of CELLS it is.
LAYERS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "torch.nn.RNN": (nn.RNN, "rnn"),
    "torch.nn.LSTM": (nn.LSTM, "lstm"),
    "gatewise.RNN": (gatewise.RNN, "rnn"),
    "gatewise.LSTM": (gatewise.LSTM, "lstm"),
}


def layer(
    design: Design,
    input_size: int,
    hidden_size: int,
    seed: int,
    layers: int = 1,
    dtype: torch.dtype = torch.float32,
) -> nn.Module:
    """The recurrent layer; equal seeds, equal weights; torch's own generator is left alone."""
    shape = (input_size, hidden_size, layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module
        if design.cell in _PLAIN:
            net = gatewise.RNN(*shape, nonlinearity=_PLAIN[design.cell], bidirectional=design.both)
        else:
            net = gatewise.LSTM(*shape, bidirectional=design.both, cell=design.cell)
        _start(net, design, hidden_size)
    return net.to(dtype)


def parameters(cell: str, input_size: int, hidden_size: int, directions: int = 1) -> int:
    """How many weights and biases one layer of a cell has.

    Example:
        >>> parameters("lstm", 2, 3), parameters("rnn", 2, 3), parameters("lstm", 2, 3, 2)
        (84, 21, 168)
    """
    G, H = len(CELLS[cell].gates), hidden_size
    return directions * (G * H * (input_size + H + 2) + (3 * H if CELLS[cell].peephole else 0))


def equal_hidden_size(design: Design, input_size: int, output_size: int, H: int) -> int:
    """The hidden size at which a design has as many parameters, read-out included, as an LSTM of H.

    Example:
        >>> [equal_hidden_size(DESIGNS[name], 2, 1, 32) for name in ("LSTM", "RNN tanh")]
        [32, 66]
    """

    def size(cell: str, h: int, directions: int) -> int:
        return parameters(cell, input_size, h, directions) + (directions * h + 1) * output_size

    wanted = size("lstm", H, 1)
    return min(
        range(1, 4 * H + 8),
        key=lambda h: abs(size(design.cell, h, 2 if design.both else 1) - wanted),
    )


class Reader(nn.Module):
    """A recurrent layer with a linear read-out: at every step, or after the whole sequence.

    Example:
        >>> net = Reader(DESIGNS["Bi-LSTM"], 2, 8, 3, seed=0)
        >>> net(torch.zeros(5, 4, 2)).shape, net(torch.zeros(5, 4, 2), last=True).shape
        (torch.Size([5, 4, 3]), torch.Size([4, 3]))
    """

    def __init__(
        self,
        design: Design,
        input_size: int,
        hidden_size: int,
        output_size: int,
        seed: int,
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.layer = layer(design, input_size, hidden_size, seed, layers)
        self.hidden_size, self.directions = hidden_size, 2 if design.both else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.head = nn.Linear(self.directions * hidden_size, output_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None, last: bool = False) -> Tensor:
        """x (T, B, I), lengths (B,) -> (T, B, O), or (B, O) after each sequence's last step."""
        packed: Tensor | PackedSequence = x
        if lengths is not None:
            packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
        output, state = self.layer(packed)
        if last:
            h_n = state[0] if isinstance(state, tuple) else state
            output = torch.cat(list(h_n[-self.directions :]), dim=-1)
        elif isinstance(output, PackedSequence):
            output, _ = pad_packed_sequence(output, total_length=len(x))
        answer: Tensor = self.head(output)
        return answer


@torch.no_grad()
def _start(net: nn.Module, design: Design, H: int) -> None:
    gates = CELLS[design.cell].gates

    def rows(gate: str) -> slice:
        return slice(gates.index(gate) * H, (gates.index(gate) + 1) * H)

    for name, weight in net.named_parameters():
        if design.gain is not None and name.startswith("weight_hh"):
            for gate in weight.split(H):
                gate.copy_(design.gain * nn.init.orthogonal_(torch.empty_like(gate)))
        if design.identity and name.startswith("weight_hh"):
            nn.init.eye_(weight)
        elif design.identity and name.startswith("bias"):
            nn.init.zeros_(weight)
        for part, bias in _biases(design, H, gates).items():
            if name.startswith("bias_ih"):
                weight[rows(part)] = bias
            elif name.startswith("bias_hh"):  # torch adds two biases: the other one is then zero
                weight[rows(part)] = 0


def _biases(design: Design, H: int, gates: tuple[str, ...]) -> dict[str, Tensor]:
    """What the biases of single gates are set to."""
    wanted: dict[str, Tensor] = {}
    if design.chrono is not None:
        lag = torch.empty(H).uniform_(1, design.chrono - 1).log()
        wanted = {"f": lag, "i": -lag}
    if design.forget is not None:
        bias = torch.full((H,), design.forget)
        wanted |= {"f": bias} if "f" in gates or not CELLS[design.cell].coupled else {"i": -bias}
    if design.entry is not None:
        wanted |= {"i": torch.full((H,), design.entry)}
    return {gate: bias for gate, bias in wanted.items() if gate in gates}
