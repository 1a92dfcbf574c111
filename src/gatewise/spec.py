"""The cells as data: one row says which nonlinearity sits at each gate.

The LSTM is a row. The plain RNN is a row with every gate welded open or shut. The variants of
Greff et al. 2015 are rows with one change each. Kernels (core/cell.h holds the same rows), tests,
bench, command line and explorer read this table; nothing else in the project knows a cell by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Activation = Literal["sigmoid", "tanh", "relu", "identity", "one", "zero"]

#: torch's order of the gates, and the only order in this project.
GATES = ("i", "f", "g", "o")

#: Activations that do not look at their input: a gate with one of them is welded and costs nothing.
WELDED = ("one", "zero")


@dataclass(frozen=True)
class CellSpec:
    """What one recurrent cell is.

    Args:
        name: how people ask for it, ``LSTM(..., cell=name)``.
        i, f, g, o: activation of the input gate, the forget gate, the candidate, the output gate.
        out: activation between the cell state and the output gate.
        coupled: the forget gate is ``1 - i`` and has no weights of its own.
        peephole: the gates i and f see c(t-1), the gate o sees c(t), each by a weight per unit.
        source: paper and name of the variant there.

    Example:
        >>> from gatewise import CELLS
        >>> CELLS["lstm"].gates
        ('i', 'f', 'g', 'o')
        >>> CELLS["rnn"].gates
        ('g',)
        >>> CELLS["coupled"].slots
        ('i', 'g', 'o', 'c')
    """

    name: str
    i: Activation = "sigmoid"
    f: Activation = "sigmoid"
    g: Activation = "tanh"
    o: Activation = "sigmoid"
    out: Activation = "tanh"
    coupled: bool = False
    peephole: bool = False
    source: str = ""

    @cached_property
    def gates(self) -> tuple[str, ...]:
        """The gates that are computed, in torch's order; G of them, so weights have G*H rows."""
        return tuple(
            gate
            for gate in GATES
            if getattr(self, gate) not in WELDED and not (gate == "f" and self.coupled)
        )

    @property
    def has_cell_state(self) -> bool:
        """False where c(t) is g(t) itself (i welded open, f welded shut), as in the plain RNN."""
        return not (self.i == "one" and self.f == "zero")

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """What the tape keeps of a step: the computed gates, then the cell state; S in all."""
        return (*self.gates, "c") if self.has_cell_state else self.gates


_GREFF = "Greff et al. 2015, 'LSTM: A Search Space Odyssey'"
_ROWS = (
    CellSpec("lstm", source="Hochreiter and Schmidhuber 1997; forget gate: Gers et al. 2000"),
    CellSpec("rnn", i="one", f="zero", o="one", out="identity", source="Elman 1990"),
    CellSpec(
        "rnn_relu", i="one", f="zero", g="relu", o="one", out="identity", source="Le et al. 2015"
    ),
    CellSpec("no_input_gate", i="one", source=f"NIG: {_GREFF}"),
    CellSpec("no_forget_gate", f="one", source=f"NFG: {_GREFF}; the LSTM of 1997"),
    CellSpec("no_output_gate", o="one", source=f"NOG: {_GREFF}"),
    CellSpec("no_input_activation", g="identity", source=f"NIAF: {_GREFF}"),
    CellSpec("no_output_activation", out="identity", source=f"NOAF: {_GREFF}"),
    CellSpec("coupled", coupled=True, source=f"CIFG: {_GREFF}"),
    CellSpec("peephole", peephole=True, source=f"P: {_GREFF}; Gers and Schmidhuber 2000"),
    CellSpec(
        "linear",
        i="identity",
        f="identity",
        g="identity",
        o="identity",
        out="identity",
        source="a test instrument: with small integers every result is exact",
    ),
)

#: Every cell by name. A new variant is a row here, a row in core/cell.h and a line in docs/math.md.
CELLS: dict[str, CellSpec] = {row.name: row for row in _ROWS}
