"""What a module refuses: torch's checks, in torch's order and words, each with the remedy.

Every function returns nothing, or what it has checked, or raises. The letters are those at the top
of reference.py.
"""

from __future__ import annotations

import numbers
import operator
import warnings
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from gatewise.errors import ArgumentError, DTypeError, ShapeError
from gatewise.spec import CELLS, CellSpec

Shape = tuple[int, ...]


def cell_name(cell: object) -> None:
    """The name of a row of CELLS."""
    names = f"Select from {', '.join(CELLS)}."
    if not isinstance(cell, str):
        raise ArgumentError(f"cell: expected a name, got {type(cell).__name__}. {names}")
    if cell not in CELLS:
        raise ArgumentError(f"Unknown cell {cell!r}. {names}")


def settings(
    input_size: int,
    hidden_size: int,
    num_layers: int,
    bias: bool,
    batch_first: bool,
    dropout: float,
    proj_size: int,
) -> None:
    """The arguments of a layer's constructor."""
    number = isinstance(dropout, numbers.Real) and not isinstance(dropout, bool)
    if not number or not 0 <= dropout <= 1:
        raise ArgumentError(
            "dropout should be a number in range [0, 1] representing the probability of an "
            f"element being zeroed, got {dropout!r}"
        )
    if dropout > 0 and num_layers == 1:
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout "
            f"expects num_layers greater than 1, but got dropout={dropout} and "
            f"num_layers={num_layers}",
            stacklevel=4,  # whoever called LSTM(...)
        )
    for name, flag in (("bias", bias), ("batch_first", batch_first)):
        if not isinstance(flag, bool):
            raise ArgumentError(f"{name} should be of type bool, got: {type(flag).__name__}")
    for name, size in (("input_size", input_size), ("hidden_size", hidden_size)):
        if not isinstance(size, int):  # the one kind that torch takes here
            raise _no_integer(name, size)
        positive(name, size)
    positive("num_layers", num_layers)
    if integer("proj_size", proj_size) < 0:
        raise ArgumentError(
            "proj_size should be a positive integer or zero to disable projections, "
            f"got {proj_size}"
        )
    if proj_size >= hidden_size:
        raise ArgumentError(
            f"proj_size has to be smaller than hidden_size, got {proj_size} and {hidden_size}"
        )


def checkpoint(every: object) -> None:
    """How many steps lie between two states that are kept."""
    if every is None or every is True or (type(every) is int and every >= 1):
        return
    raise ArgumentError(
        "checkpoint should be None (keep all gates), True (the states of every ceil(sqrt(T)) "
        f"steps or more) or k >= 1 of type int (of every k steps), got {every!r}"
    )


def integer(name: str, value: SupportsIndex) -> int:
    """A size is an integer, of Python, numpy or a tensor."""
    try:
        return operator.index(value)
    except TypeError:
        raise _no_integer(name, value) from None


def positive(name: str, value: SupportsIndex) -> int:
    """A size is an integer from 1."""
    size = integer(name, value)
    if size <= 0:
        raise ArgumentError(f"{name} must be greater than zero, got {size}")
    return size


def _no_integer(name: str, value: object) -> ArgumentError:
    return ArgumentError(f"{name} should be of type int, got: {type(value).__name__}")


def pair(hx: Any) -> tuple[Tensor, Tensor]:
    """The state of a cell that has a cell state: h and c."""
    if isinstance(hx, (tuple, list)) and len(hx) == 2:
        h, c = hx
        if isinstance(h, Tensor) and isinstance(c, Tensor):
            return h, c
    elif isinstance(hx, (tuple, list)) and hx and isinstance(hx[0], Tensor):
        raise ShapeError(
            f"lstm expects two hidden states, got {len(hx)}. Give (h_0, c_0), or leave hx out."
        )
    got = type(hx).__name__
    if isinstance(hx, (tuple, list)):
        got += f" of {', '.join(type(state).__name__ for state in hx) or 'nothing'}"
    raise ArgumentError(
        f"hx should be a tuple of two Tensors (h_0, c_0), got {got}. "
        "Give both, or leave hx out for zeros."
    )


def module(model: object) -> None:
    """A model is a module, and one."""
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"model should be a torch.nn.Module, got {type(model).__name__}. "
            "Give one model at a time."
        )


def tensor(name: str, value: object, or_else: str = "") -> Tensor:
    """An argument is a tensor."""
    if isinstance(value, Tensor):
        return value
    if value is None:
        remedy = "It cannot be left out."
    elif isinstance(value, (tuple, list)) and value and isinstance(value[0], Tensor):
        remedy = f"Give one of its Tensors alone: {name}[0]"
    else:
        remedy = f"Convert it: torch.as_tensor({name})"
    raise ArgumentError(f"{name} should be a Tensor{or_else}, got {type(value).__name__}. {remedy}")


def dense(name: str, value: Tensor) -> None:
    """A tensor has its numbers in a row: not a sparse, nor a nested one."""
    if value.layout is not torch.strided or value.is_nested:
        raise ArgumentError(
            f"{name} should be a dense Tensor, got one of layout {value.layout}. Convert it: "
            + (
                f"torch.nn.utils.rnn.pack_sequence({name}.unbind())"
                if value.is_nested
                else f"{name}.to_dense()"
            )
        )


# --- a layer -------------------------------------------------------------------------------------


def input_rank(x: Tensor, input_size: int, layout: str, gated: bool) -> None:
    """x (T, I), or of the layout."""
    if x.dim() not in (2, 3):
        kind, noun = ("LSTM", "") if gated else ("RNN", " tensor")
        raise ShapeError(
            f"{kind}: Expected input to be 2D or 3D, got {x.dim()}D{noun} instead. "
            f"Give {layout} for a batch or (T, I) for one sequence, I = {input_size}."
        )
    dense("input", x)


def packing(x: Tensor, batch_sizes: Tensor) -> None:
    """x (N, I); the number of sequences at each step, at least 1, never growing, N together."""
    if x.dim() != 2:
        raise ShapeError(
            f"input must have 2 dimensions, got {x.dim()}. The data of a PackedSequence are "
            "(N, I), one row a token: make it with torch.nn.utils.rnn.pack_sequence."
        )
    if batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
        raise DTypeError(
            "batch_sizes of a PackedSequence should be int64 on the CPU, got "
            f"{batch_sizes.dtype} on {batch_sizes.device}. Convert them: .to('cpu', torch.int64)"
        )
    if batch_sizes.dim() != 1:
        raise ShapeError(
            f"batch_sizes of a PackedSequence must have 1 dimension (T), got {batch_sizes.dim()}. "
            "Make it with torch.nn.utils.rnn.pack_sequence."
        )
    steps(len(batch_sizes))
    if torch.compiler.is_compiling():  # their values are not known yet
        return
    sizes = batch_sizes.tolist()
    if sizes[-1] < 1 or sizes != sorted(sizes, reverse=True) or sum(sizes) != len(x):
        raise ShapeError(
            "batch_sizes of a PackedSequence should be at least 1, never grow, and add up to the "
            f"number of tokens N = {len(x)}, got {sizes[:20]}{'...' if len(sizes) > 20 else ''}, "
            f"together {sum(sizes)}. Make it with torch.nn.utils.rnn.pack_sequence."
        )


def state_rank(states: tuple[Tensor, ...], rank: int) -> None:
    """Each state (L*D, B, size), or (L*D, size) for one sequence."""
    ranks = [state.dim() for state in states]
    if ranks != [rank] * len(states):
        kind = "batched" if rank == 3 else "unbatched"
        what, got = "hx", f"{ranks[0]}-D tensor"
        if len(ranks) == 2:
            what, got = "hx and cx", f"({ranks[0]}-D, {ranks[1]}-D) tensors"
        raise ShapeError(
            f"For {kind} {rank}-D input, {what} should also be {rank}-D but got {got}. A state is "
            "(L*D, B, size) for a batch or a PackedSequence, (L*D, size) for one sequence."
        )


def input_fits(x: Tensor, weight: Tensor, input_size: int, layout: str) -> None:
    """x has the weights' dtype and device, and I features."""
    if x.dtype != weight.dtype and not _autocast():
        raise DTypeError(
            f"RNN input dtype ({x.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({x.dtype})"
        )
    if x.shape[-1] != input_size:
        raise ShapeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {input_size}, got {x.shape[-1]}. input is {layout}, I = {input_size}."
        )
    if x.device != weight.device:
        raise DTypeError(
            "Input and parameter tensors are not at the same device, found input tensor at "
            f"{x.device} and parameter tensor at {weight.device}. "
            f"Move one: input.to('{weight.device}'), or model.to('{x.device}')"
        )


def state_fits(name: str, state: Tensor, x: Tensor, shape: Shape, letters: str) -> None:
    """A state is dense, has the shape, and the dtype and device of the input."""
    dense(name, state)
    if state.shape != shape:
        raise ShapeError(
            f"Expected {name} size {shape}, got {list(state.shape)}. It is {letters} = {shape}, "
            "L layers times D directions; batch_first does not move B here."
        )
    if state.dtype != x.dtype and not _autocast():
        raise DTypeError(
            f"{name} dtype ({state.dtype}) does not match input dtype ({x.dtype}). "
            f"Convert it: {name}.to({x.dtype})"
        )
    if state.device != x.device:
        raise DTypeError(
            "Input and hidden tensors are not at the same device, found input tensor at "
            f"{x.device} and hidden tensor at {state.device}. "
            f"Move it: {name}.to('{x.device}')"
        )


def steps(T: int) -> None:
    """There is a step to run."""
    if T == 0:
        raise ShapeError(
            "Expected sequence length to be larger than 0 in RNN, got T = 0. "
            "Leave empty sequences out before the call."
        )


# --- a cell --------------------------------------------------------------------------------------


def cell_ranks(cell: CellSpec, x: Tensor, h: Tensor | None, c: Tensor | None) -> None:
    """x, h and c are dense, (B, size), or (size) for one."""
    kind, states = ("RNN", {"hidden": h})
    if cell.has_cell_state:
        kind, states = ("LSTM", {"hx[0]": h, "hx[1]": c})
    tensor("input", x)
    for name, value in {"input": x, **states}.items():
        if value is None:
            continue
        dense(name, value)
        if value.dim() not in (1, 2):
            raise ShapeError(
                f"{kind}Cell: Expected {name} to be 1D or 2D, got {value.dim()}D instead. "
                "Give (B, size) for a batch or (size) for one; a whole sequence goes to "
                f"gatewise.{kind}."
            )


def cell_fits(
    x: Tensor, h: Tensor | None, c: Tensor | None, weight: Tensor, I: int, H: int
) -> None:
    """x (B, I), h and c (B, H), of the weights' dtype and device."""
    B = x.shape[0]
    if x.shape[1] != I:
        raise ShapeError(
            f"input has inconsistent input_size: got {x.shape[1]} expected {I}. "
            f"input is (B, I) or (I), I = {I}."
        )
    for k, state in enumerate((h, c)):
        if state is None or state.shape == (B, H):
            continue
        remedy = f"hidden{k} is (B, H) = ({B}, {H}), or (H) where the input is (I)."
        if state.shape[0] != B:
            raise ShapeError(
                f"Input batch size {B} doesn't match hidden{k} batch size {state.shape[0]}. "
                f"{remedy}"
            )
        raise ShapeError(
            f"hidden{k} has inconsistent hidden_size: got {state.shape[min(1, state.dim() - 1)]}, "
            f"expected {H}. {remedy}"
        )
    for name, value in {"input": x, "hidden0": h, "hidden1": c}.items():
        if value is None or (value.dtype == weight.dtype and value.device == weight.device):
            continue
        if value.device != weight.device or not _autocast():
            raise DTypeError(
                f"{name} and weights must have the same dtype and device, but got {value.dtype} on "
                f"{value.device} and {weight.dtype} on {weight.device}. "
                f"Convert it: {name}.to(cell.weight_ih)"
            )


def _autocast() -> bool:
    """Under autocast the operators choose the dtype."""
    return torch._C._is_any_autocast_enabled()
