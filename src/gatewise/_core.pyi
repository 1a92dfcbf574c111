"""
The native kernels. gatewise.ops is the door that checks, differentiates and dispatches.
"""

from typing import Any

from collections.abc import Sequence


def rows_of_first_group(cell: str, batch_sizes: object | None, T: int, B: int, N: int, I: int, H: int, P: int, bytes: int) -> int:
    """
    A tape of numbers of so many bytes that lies by groups has all tokens of so many rows, the first of the batch, before those of the others; and is in the order of time if these are all B.
    """

def forward(cell: str, x: object, batch_sizes: object | None, h0: object | None, c0: object | None, weights: tuple[Any, ...], y: object, h_n: object, c_n: object | None, tape: object | None, threads: int, reduced: bool = False, in_parts: bool = False, reverse: bool = False, by_groups: bool = False) -> None:
    """
    Run the D directions of one layer; fills y, h_n, c_n and, unless it is None, the tape. Reduced: in float32 the products round what they multiply to bfloat16, where has_pairs(), and x, y and the tape may be bfloat16. In parts: a part of a longer run, with the bits of the whole, even if it is one step; x and y may be tuples, of an array for each direction. Reverse: direction 0 runs from right to left, too. By groups: so lies the tape, see rows_of_first_group().
    """

def backward(cell: str, x: object, batch_sizes: object | None, h0: object | None, c0: object | None, weights: tuple[Any, ...], y: object, tape: object, d_y: object | None, d_h_n: object | None, d_c_n: object | None, d_tape: object | None, d_x: object | None, d_h0: object | None, d_c0: object | None, d_weights: tuple[Any, ...], g_tape: object | None, g_h: object | None, threads: int, adds: bool = False, reverse: bool = False, by_groups: bool = False, adds_inputs: bool = False) -> None:
    """
    Run the layer's gradient; fills every output that is not None, and changes no input. Adds: those of the weights to what is there; adds_inputs: that of x, too. x, y, d_y and d_x may be tuples, of an array for each direction. Reverse: direction 0 runs from right to left, too. Of a tape in bfloat16: with products that round what they multiply to it; x, y, d_y and, unless it is added to, d_x may then be bfloat16, too.
    """

def layer(cell: str, x: object, batch_sizes: object | None, h0: object | None, c0: object | None, weights: tuple[Any, ...], keep_tape: bool, rounded: bool, reduced: bool, brief: bool, by_groups: bool, threads: int) -> tuple[Any, ...]:
    """
    The same on torch tensors: y, h_n, c_n or None, tape or None; the tape rounded to bfloat16 or not, and y, brief, too. What does not fit, is not contiguous or lazy raises TypeError or ValueError.
    """

def layer_gradient(cell: str, wanted: tuple[Any, ...], x: object, batch_sizes: object | None, h0: object | None, c0: object | None, weights: tuple[Any, ...], y: object, tape: object, d_y: object | None, d_h_n: object | None, d_c_n: object | None, d_tape: object | None, by_groups: bool, threads: int) -> tuple[Any, ...]:
    """
    The same of the gradient: one for each of x, batch_sizes, h0, c0 and the fields of the weights, None where it is not wanted.
    """

def state(tensors: tuple[Any, ...]) -> tuple[Any, ...]:
    """
    Of tensors, None among them: the dtype of the first; then of each how often it was changed in place and whether it wants a gradient.
    """

def are(tensors: tuple[Any, ...], others: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    """
    Whether the tensors are those others and their state is that of before.
    """

def changed(tensors: tuple[Any, ...], before: tuple[Any, ...]) -> bool:
    """
    Whether one of the tensors was changed in place since it was in that state.
    """

class TokenSums:
    """The weight gradients of many steps of a cell."""

    def __init__(self, W_ih: object, W_hh: object, d_W_ih: object | None, d_W_hh: object | None, d_b: object | None) -> None:
        """The last three are written: what finish() returns. None: not wanted."""

    def finish(self) -> tuple[Any, ...]:
        """d_W_ih, d_W_hh, d_b: the sums over all steps."""

def step(cell: str, x: object, h: object | None, c: object | None, weights: tuple[Any, ...], keep_tape: bool, reduced: bool = False) -> tuple[Any, ...]:
    """
    One step of a layer of one direction, on torch tensors: (h, c or None, tape or None). Reduced as in forward(), with a tape that is rounded. What does not fit or is not contiguous raises TypeError or ValueError.
    """

def step_gradient(cell: str, wanted: tuple[Any, ...], x: object, h: object | None, c: object | None, weights: tuple[Any, ...], tape: object, d_h_n: object | None, d_c_n: object | None, sums: TokenSums | None) -> tuple[Any, ...]:
    """
    The gradients by x, h and c, where they are wanted; those of the weights go into the sums.
    """

class Stream:
    """Layers that run one step a call. gatewise.Stream wraps it."""

    def __init__(self, cell: str, batch: int, dtype: str, weights: Sequence[tuple[Any, ...]], watched: Sequence[tuple[Any, ...]], is_recording: object, numpy_empty: object, numpy_dtype: object | None) -> None:
        """
        dtype: of x and the results: float32, float64 or bfloat16. weights: (W_ih, W_hh, b_ih, b_hh, W_hr, peep) a layer, those of bfloat16 as float32. watched: (dict[str, Any], key, tensor).
        """

    def step(self, x: object | None, out: object | None = None) -> object:
        """One step of all layers: help(gatewise.Stream.step)."""

    def reset(self) -> None:
        """All states to zero."""

    def exchange(self, h: object, c: object | None, load: bool) -> None:
        """The states from (load) or into the arrays h (L, B, P) and c (L, B, H)."""

    def sizes(self) -> tuple[Any, ...]:
        """L, B, H, P."""

    def become(self, other: Stream) -> None:
        """
        Goes on with the weights and the state of another, which is not used any more.
        """

def scratch(like: object, shapes: Sequence[Sequence[int]]) -> tuple[Any, ...]:
    """
    Tensors of these shapes in float32, of the kind of like, in memory that is kept for reuse like that of a call. Their numbers are undefined.
    """

def empty(like: object, shape: Sequence[int], bytes: int) -> object:
    """
    A tensor of this shape, of the kind of like, of numbers of so many bytes: 8 or 4, or 2 for bfloat16; in memory that is kept for the next result. Its numbers are undefined.
    """

def activations(x: object, sigmoid: object, tanh: object) -> None:
    """The kernels' own sigmoid and tanh of a vector."""

def probe(dtype: str, threads: int, seconds: float) -> float:
    """
    Multiply-adds a second, in floating-point operations, of the instruction set in use.
    """

def cells() -> dict[str, Any]:
    """The kernels' table of cells, to be held against gatewise.CELLS."""

def info() -> dict[str, Any]:
    """Instruction sets found and in use, compiler, memory kept for reuse."""

def select_isa(name: str) -> None:
    """Use the kernels of this instruction set from now on."""

def work_per_thread(operations: float) -> float:
    """
    The work below which a further thread is not woken; returns what it was. 0 for tests: all threads, however small the work and whatever they gain.
    """

def rows_of_worker(rows: int) -> int:
    """
    For tests: the rows that a worker must have to take a part of the batch, whatever pays; returns what it was. 0: what pays.
    """

def meeting_time(threads: int) -> float:
    """
    Seconds that a meeting of so many workers takes, measured in the last half second.
    """

def has_pairs() -> bool:
    """Whether the kernels in use have products of pairs of bfloat16."""

def guard_workspaces(on: bool) -> bool:
    """
    For tests; returns what it was. The scratch memory of a call is then filled with NaN before, and a call that has written behind its end raises RuntimeError.
    """

def release() -> None:
    """Give the scratch memory kept for reuse back to the system."""
