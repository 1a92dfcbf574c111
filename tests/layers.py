"""Random layers, by the operation under test and by the page: what the tests of ops compare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gatewise import formulas, ops
from gatewise.reference import Weights
from gatewise.spec import CELLS, CellSpec

#: The lengths of the packed layers: 3, 3, 2, 1 tokens.
BATCH_SIZES = torch.tensor([4, 3, 2])


@dataclass
class RandomLayer:
    """A layer with everything it may have, all leaves requiring grad."""

    cell: CellSpec
    x: Tensor
    h0: Tensor
    c0: Tensor
    weights: list[Weights]
    batch_sizes: Tensor | None = None

    @property
    def leaves(self) -> list[Tensor]:
        """Every input that has a gradient."""
        states = [self.h0, self.c0] if self.cell.has_cell_state else [self.h0]
        return [self.x, *states, *self.parameters]

    @property
    def parameters(self) -> list[Tensor]:
        return [w for direction in self.weights for w in direction if w is not None]

    def run(self, **options: Any) -> tuple[Tensor, ...]:
        """By ops: output, h_n, tape, and c_n where there is one."""
        result = ops.layer(
            self.cell,
            self.x,
            self.h0,
            self.c0,
            self.weights,
            self.batch_sizes,
            **{"keep_tape": True, **options},
        )
        return self._distinct(*result)

    def page(self) -> tuple[Tensor, ...]:
        """By the page, likewise."""
        flat = [w for direction in self.weights for w in direction]
        return self._distinct(
            *formulas.layer(self.cell, self.x, self.batch_sizes, self.h0, self.c0, *flat)
        )

    def _distinct(self, y: Tensor, h_n: Tensor, c_n: Tensor, tape: Tensor) -> tuple[Tensor, ...]:
        return (y, h_n, tape, c_n) if self.cell.has_cell_state else (y, h_n, tape)


def random_layer(
    cell: str = "lstm",
    *,
    D: int = 1,
    T: int = 3,
    B: int = 2,
    I: int = 3,
    H: int = 4,
    P: int | None = None,
    packed: bool = False,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
) -> RandomLayer:
    """P is given for a layer with a projection."""
    row = CELLS[cell]
    rows = len(row.gates) * H

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()

    def direction() -> Weights:
        return Weights(
            leaf(rows, I),
            leaf(rows, P or H),
            leaf(rows) if bias else None,
            leaf(rows) if bias else None,
            leaf(P, H) if P else None,
            leaf(3, H) if row.peephole else None,
        )

    B = int(BATCH_SIZES[0]) if packed else B
    x = leaf(int(BATCH_SIZES.sum()), I) if packed else leaf(T, B, I)
    return RandomLayer(
        row,
        x,
        leaf(D, B, P or H),
        leaf(D, B, H),
        [direction() for _ in range(D)],
        BATCH_SIZES if packed else None,
    )


def lazily_negated(t: Tensor) -> Tensor:
    """-t, as the part of a conjugate: the numbers in memory have the other sign, and are marked."""
    found = torch.complex(torch.zeros_like(t), t).conj().imag
    assert found.is_neg()
    return found


def assert_same(found: Any, expected: Any, **bounds: float) -> None:
    """Close, in nested tuples too; a NaN is never close."""
    torch.testing.assert_close(found, expected, equal_nan=False, **bounds)


def gradients(
    results: tuple[Tensor, ...], leaves: list[Tensor], seed: int = 1, **options: Any
) -> tuple[Tensor, ...]:
    """Of a random weighting of the results."""
    make = torch.Generator().manual_seed(seed)
    d = [torch.randn(r.shape, generator=make, dtype=r.dtype) for r in results]
    return torch.autograd.grad(results, leaves, d, **options)


Loss = Callable[..., Tensor]
