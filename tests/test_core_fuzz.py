"""Whatever is handed to the binding, it computes or raises: no call takes the interpreter down."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gatewise import _core
from gatewise.spec import CELLS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of the odder tensors

DTYPES = (torch.float32, torch.float64)
size = st.integers(1, 9)


@st.composite
def strangers(draw: Any) -> Any:
    """What no array of a call should be, or only just is."""
    shape = draw(st.lists(st.integers(0, 9), max_size=6))
    tensor = torch.zeros(shape, dtype=draw(st.sampled_from([*DTYPES, torch.int64])))
    made = {
        "none": lambda: None,
        "number": lambda: 3,
        "text": lambda: "x",
        "list": lambda: [1.0, 2.0],
        "bytes": lambda: b"12345678",
        "object": object,
        "another shape": lambda: tensor,
        "parameter": lambda: torch.nn.Parameter(torch.zeros(shape)),
        "numpy": tensor.numpy,
        "numpy, read only": lambda: np.broadcast_to(np.float32(1), shape),
        "numpy, the other end first": lambda: np.zeros(shape, ">f4"),
        "numpy, records": lambda: np.zeros(shape, [("a", "f4"), ("b", "f4")]),
        "numpy, strings": lambda: np.zeros(shape, "U3"),
        "no memory": lambda: torch._efficientzerotensor(shape),
        "meta": lambda: tensor.to("meta"),
        "sparse": tensor.to_sparse,
        "complex": lambda: torch.zeros(shape, dtype=torch.complex64),
        "half": tensor.bfloat16,
        "quantized": lambda: torch.quantize_per_tensor(torch.zeros(shape), 0.1, 0, torch.qint8),
        "imaginary": lambda: torch.zeros(shape, dtype=torch.complex64).conj().imag,
        "of zeros": lambda: torch.ones(1).expand(shape) if shape else torch.ones(()),
    }
    return made[draw(st.sampled_from(sorted(made)))]()


@st.composite
def turned(draw: Any, array: torch.Tensor) -> Any:
    """The array itself, laid out, typed or held in another way."""
    ways = {
        "float64": array.double,
        "float32": array.float,
        "numpy": array.numpy,
        "numpy, read only": lambda: np.broadcast_to(array.numpy(), array.shape),
        "backwards": lambda: np.flip(array.numpy(), 0) if array.dim() else array.numpy(),
        "unaligned": lambda: np.frombuffer(
            b"_" + array.numpy().tobytes(), array.numpy().dtype, offset=1
        ).reshape(array.shape),
        "one number": lambda: array.flatten()[:1].expand(array.shape),
        "gaps": lambda: array.new_zeros(*array.shape, 2)[..., 0],
        "first two axes swapped": lambda: (
            array.transpose(0, 1).contiguous().transpose(0, 1) if array.dim() > 1 else array
        ),
        "no memory": lambda: torch._efficientzerotensor(array.shape, dtype=array.dtype),
        "longer": lambda: torch.cat([array, array]),
        "shorter": lambda: array[:-1],
        "one axis more": lambda: array[None],
    }
    return ways[draw(st.sampled_from(sorted(ways)))]()


def replaced(tree: Any, at: int, new: Any) -> tuple[Any, int]:
    """The nest of tuples with its leaf number ``at`` replaced, and what is left to count."""
    if not isinstance(tree, tuple):
        return (new if at == 0 else tree), at - 1
    items = []
    for item in tree:
        item, at = replaced(item, at, new)  # noqa: PLW2901
        items.append(item)
    return tuple(items), at


def leaves(tree: Any) -> list[Any]:
    return [leaf for item in tree for leaf in leaves(item)] if isinstance(tree, tuple) else [tree]


@st.composite
def calls(draw: Any) -> tuple[str, tuple[Any, ...]]:
    """A call that fits, with up to three of its arguments changed."""
    cell = draw(st.sampled_from(sorted(CELLS)))
    spec, dtype = CELLS[cell], draw(st.sampled_from(DTYPES))
    T, B, I, H = (draw(size) for _ in "TBIH")
    D = draw(st.integers(1, 2))
    G, S = len(spec.gates), len(spec.slots)

    def new(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    rows, peep = G * H, new(3, H) if spec.peephole else None
    lane = (new(rows, I), new(rows, H), new(rows), new(rows), None, peep)
    name = draw(st.sampled_from(["forward", "backward", "step", "step_gradient", "activations"]))
    whole = (cell, new(T, B, I), None, new(D, B, H), new(D, B, H), (lane,) * D)
    if name == "forward":
        args = (*whole, new(T, B, D * H), new(D, B, H), new(D, B, H), new(D, T, B, S, H), 2)
    elif name == "backward":
        gone = (*lane[:3], None, None, peep)
        y, state, tape = new(T, B, D * H), new(D, B, H), new(D, T, B, S, H)
        args = (*whole, y, tape, y, state, state, tape, new(T, B, I), state.clone(), state.clone(),
                (tuple(None if w is None else w.clone() for w in gone),) * D,
                tape.clone(), new(D, T, B, H), 2)  # fmt: skip
    elif name == "step":
        args = (cell, new(B, I), new(B, H), new(B, H), lane, True)
    elif name == "step_gradient":
        sums = new(rows, I), new(rows, H), new(rows, I), new(rows, H), new(rows)
        args = (cell, (True,) * 3, new(B, I), new(B, H), new(B, H), lane, new(B, S, H), new(B, H),
                new(B, H), sums)  # fmt: skip
    else:
        args = (new(T), new(T), new(T))
    fitting = leaves(args)
    for at in draw(st.lists(st.integers(0, len(fitting) - 1), unique=True, max_size=3)):
        is_array = isinstance(fitting[at], torch.Tensor)
        other = draw(strangers() | turned(fitting[at]) if is_array else strangers())
        args, _ = replaced(args, at, other)
    return name, args


@given(calls())
def test_a_call_computes_or_raises(call: tuple[str, tuple[Any, ...]]) -> None:
    name, args = call
    with contextlib.suppress(TypeError, ValueError, RuntimeError, BufferError):
        if name == "step_gradient":
            sums = _core.TokenSums(*args[-1])
            for _ in range(2):
                _core.step_gradient(*args[:-1], sums)
            sums.finish()
        else:
            getattr(_core, name)(*args)


@pytest.mark.parametrize("name", ["forward", "step"])
def test_a_tensor_without_memory_is_refused_with_its_name(name: str) -> None:
    """What a derivative of zero looks like in torch: a shape and no numbers."""
    nothing, y, state = (torch._efficientzerotensor((3, 2, 4)), torch.zeros(3, 2, 5),
                         torch.zeros(1, 2, 5))  # fmt: skip
    weights = (torch.zeros(20, 4), torch.zeros(20, 5), None, None, None, None)
    args: dict[str, tuple[Any, ...]] = {
        "forward": (nothing, None, None, None, (weights,), y, state, state.clone(), None, 1),
        "step": (nothing[0], None, None, weights, False),
    }
    with pytest.raises(ValueError, match=r"x: expected numbers in memory; call \.clone\(\) first"):
        getattr(_core, name)("lstm", *args[name])
