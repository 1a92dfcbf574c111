"""The named values of a run: one name, one array, for every layer, direction and step.

    L layers  D directions  T steps  B batch  H hidden size  P output size  N tokens of packed input

Arrays are torch tensors or numpy arrays, whichever the run left; this file imports no torch.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import ModuleType
from typing import Any

import numpy as np

from gatewise.errors import ArgumentError
from gatewise.spec import CellSpec

#: A torch tensor or a numpy array.
Array = Any

#: What has a name at every step: the four gates, the cell state, the hidden state.
NAMES = ("i", "f", "g", "o", "c", "h")
DIRECTIONS = ("fwd", "reverse")
#: The parameters of one direction of a layer, in the order of ``reference.Weights``.
WEIGHTS = ("W_ih", "W_hh", "b_ih", "b_hh", "W_hr", "peep")
_PATH = re.compile(r"l(\d+)\.(fwd|reverse)\.(\w+)")


def check_name(name: str, known: Sequence[str] = NAMES) -> None:
    """A name is one of those that are known."""
    if name not in known:
        raise ArgumentError(f"name: expected one of {' '.join(known)}, got {name!r}")


def library(array: Array) -> ModuleType:
    """numpy or torch: whichever made the array."""
    return sys.modules[type(array).__module__.partition(".")[0]]


def as_numpy(array: Array) -> np.ndarray:
    """The array as numpy, sharing memory where it can; bfloat16, which numpy lacks, as float32."""
    if isinstance(array, np.ndarray):
        return array
    array = array.detach().cpu()
    values: np.ndarray = (array.float() if "bfloat16" in str(array.dtype) else array).numpy()
    return values


@dataclass(frozen=True)
class Packing:
    """Where the N tokens of packed input sit in the (T, B) grid of the caller's sequences.

    Args:
        batch_sizes: (T,) how many sequences reach step t; never increasing.
        unsorted: (B,) the caller's sequence b is column unsorted[b] of the batch, longest first.
    """

    batch_sizes: np.ndarray
    unsorted: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """(T, B) True where a sequence has a step, sequences in the caller's order."""
        return np.asarray(self.unsorted < self.batch_sizes[:, None])

    @property
    def grid(self) -> np.ndarray:
        """(T, B) the token that sits there, or N for padding."""
        first = np.cumsum(self.batch_sizes) - self.batch_sizes
        return np.asarray(
            np.where(self.mask, first[:, None] + self.unsorted, self.batch_sizes.sum())
        )

    def pad(self, tokens: Array) -> Array:
        """(N, ...) as (T, B, ...), NaN at padding."""
        xp = library(tokens)
        return xp.concatenate([tokens, xp.full_like(tokens[:1], float("nan"))])[self.grid]

    def before(self, tokens: Array, first: Array, reverse: bool) -> Array:
        """The value one step earlier: (N, ...), from first (B, ...) where a sequence begins."""
        N, B = int(self.batch_sizes.sum()), int(self.batch_sizes[0])
        rows = np.split(np.arange(N), np.cumsum(self.batch_sizes)[:-1])
        begin = np.arange(N, N + B)
        if reverse:  # the step read before t is t+1, where the sequence has one
            later = [*rows[1:], begin[:0]]
            index = [np.r_[b, begin[len(b) : len(a)]] for a, b in zip(rows, later, strict=True)]
        else:
            index = [begin, *(a[: len(b)] for a, b in pairwise(rows))]
        return library(tokens).concatenate([tokens, first])[np.concatenate(index)]


class _Named:
    """A value by its name: ``values.f`` is ``values.field("f")``."""

    def __init__(self, doc: str) -> None:
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, values: Any, owner: type) -> Any:
        return self if values is None else values.field(self.name)


class DirectionView:
    """One direction of one layer: each value (T, B, H), h (T, B, P), a view of the tape.

    For packed input the values are laid out in the caller's (T, B), NaN at padding, which copies;
    ``tokens(name)`` is the view, (N, H), in the order of the packed data.
    """

    i = _Named("(T, B, H) input gate: how much is written")
    f = _Named("(T, B, H) forget gate: how much of the old cell state stays")
    g = _Named("(T, B, H) candidate: what is written")
    o = _Named("(T, B, H) output gate: how much is read")
    c = _Named("(T, B, H) cell state after the step")
    h = _Named("(T, B, P) hidden state after the step")

    def __init__(self, values: Fields, k: int, d: int) -> None:
        self._values, self.k, self.d = values, k, d

    def tokens(self, name: str) -> Array:
        """A value as the kernel laid it out: (T, B, ...), or (N, ...) for packed input."""
        check_name(name, (*NAMES, "z"))
        return self._values._lane(self.k, self.d, name)

    def field(self, name: str) -> Array:
        """A value by its name."""
        tokens, packing = self.tokens(name), self._values.packing
        return tokens if packing is None else packing.pad(tokens)

    @property
    def z(self) -> Array:
        """(T, B, G, H) pre-activations, gates in the order of ``cell.gates``; see ``Trace.z``."""
        return self.field("z")

    def __repr__(self) -> str:
        return f"l{self.k}.{DIRECTIONS[self.d]} of {self._values!r}"


class LayerView:
    """One layer of a trace: ``.fwd`` and, where it reads both ways, ``.reverse``."""

    def __init__(self, values: Fields, k: int) -> None:
        self._values, self.k = values, k

    def __getitem__(self, direction: str | int) -> DirectionView:
        return DirectionView(self._values, self.k, self._values.direction(direction))

    @property
    def fwd(self) -> DirectionView:
        """Left to right."""
        return self["fwd"]

    @property
    def reverse(self) -> DirectionView:
        """Right to left; step t is still step t of the input."""
        return self["reverse"]


class Fields:
    """Named values of every layer, direction and step; a Trace is one, its gradient another.

    ``.i .f .g .o .c`` are (L, D, T, B, H) and ``.h`` is (L, D, T, B, P); ``.layer(0).fwd.i`` is one
    lane of them without a copy, and so is ``["l0.fwd.i"]``.
    """

    i = _Named("(L, D, T, B, H) input gates")
    f = _Named("(L, D, T, B, H) forget gates")
    g = _Named("(L, D, T, B, H) candidates")
    o = _Named("(L, D, T, B, H) output gates")
    c = _Named("(L, D, T, B, H) cell states")
    h = _Named("(L, D, T, B, P) hidden states")

    cell: CellSpec
    packing: Packing | None

    @property
    def num_layers(self) -> int:
        """L."""
        raise NotImplementedError

    @property
    def num_directions(self) -> int:
        """D: 1, or 2 for a layer that reads both ways."""
        raise NotImplementedError

    def _lane(self, k: int, d: int, name: str) -> Array:
        """Value `name` of layer k, direction d, as the kernel laid it out."""
        raise NotImplementedError

    def direction(self, direction: str | int) -> int:
        """The number of a direction: 0 for "fwd", 1 for "reverse"."""
        known = DIRECTIONS[: self.num_directions]
        if direction in known:
            return DIRECTIONS.index(str(direction))
        if direction in range(len(known)):
            return int(direction)
        raise ArgumentError(f"direction: expected one of {', '.join(known)}, got {direction!r}")

    def layer(self, k: int) -> LayerView:
        """Layer k; negative numbers count from the top."""
        if not -self.num_layers <= k < self.num_layers:
            raise ArgumentError(f"layer: expected 0 to {self.num_layers - 1} (L - 1), got {k}")
        return LayerView(self, k % self.num_layers)

    def field(self, name: str) -> Array:
        """A value of all layers and directions: (L, D, T, B, ...)."""
        lanes = [
            self.layer(k)[d].field(name)
            for k in range(self.num_layers)
            for d in range(self.num_directions)
        ]
        if len(lanes) == 1:  # nothing to stack, nothing to copy
            return lanes[0][None, None]
        stacked = library(lanes[0]).stack(lanes)
        return stacked.reshape((self.num_layers, self.num_directions, *lanes[0].shape))

    def names(self) -> Iterator[str]:
        """Every name that ``[...]`` takes, layer by layer: l0.fwd.i, l0.fwd.f, ..."""
        for k in range(self.num_layers):
            for direction in DIRECTIONS[: self.num_directions]:
                yield from (f"l{k}.{direction}.{name}" for name in NAMES)

    def __getitem__(self, name: str) -> Array:
        found = _PATH.fullmatch(name)
        if found is None or found[3] not in (*NAMES, "z"):
            raise ArgumentError(
                f"name: expected l<layer>.<fwd|reverse>.<{'|'.join(NAMES)}|z>, as in 'l0.fwd.f', "
                f"got {name!r}"
            )
        return self.layer(int(found[1]))[found[2]].field(found[3])
