"""One layer of a recurrent network as a differentiable operation (first cut: the page only)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gatewise import reference
from gatewise.reference import Weights
from gatewise.spec import CellSpec


class LayerResult(NamedTuple):
    """output (T, B, D*P) or (N, D*P); h_n (D, B, P); c_n (D, B, H); tape (D, T, B, S, H) or (D, N, S, H) or None."""

    output: Tensor
    h_n: Tensor
    c_n: Tensor
    tape: Tensor | None


def layer(
    cell: CellSpec,
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Weights],
    batch_sizes: Tensor | None = None,
    *,
    keep_tape: bool = False,
) -> LayerResult:
    """Run the D directions of one layer."""
    sizes = None if batch_sizes is None else batch_sizes.tolist()
    B = x.shape[1] if sizes is None else sizes[0]
    D, H, P = len(weights), weights[0].W_hh.shape[0] // len(cell.gates), weights[0].W_hh.shape[1]
    h0 = x.new_zeros(D, B, P) if h0 is None else h0
    c0 = x.new_zeros(D, B, H) if c0 is None else c0
    output, h_n, c_n, runs = reference.layer(cell, x, h0, c0, weights, sizes)
    tape = None
    if keep_tape:
        tape = torch.stack(
            [torch.stack([getattr(run.steps, slot) for slot in cell.slots], dim=-2) for run in runs]
        )
    return LayerResult(output, h_n, c_n, tape)
