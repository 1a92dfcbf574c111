"""A problem's LSTM as an ONNX model, for the libraries that read one."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bench.entrants import Problem

onnx: Any = importlib.import_module("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

GATES = (0, 3, 1, 2)  # ONNX has i o f c, torch i f g o


def model(problem: Problem) -> bytes:
    """One layer, one direction: x (T, B, I) -> y (T, B, H)."""
    case, weights = problem.case, problem.reference.state_dict()

    def rows(name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        blocks = np.split(weights[f"{name}_l0"].numpy(), 4)
        return np.concatenate([blocks[gate] for gate in GATES])[None]

    parts = {
        "W": rows("weight_ih"),
        "R": rows("weight_hh"),
        "b": np.concatenate([rows("bias_ih"), rows("bias_hh")], axis=1),
    }
    nodes = [
        helper.make_node("LSTM", ["x", "W", "R", "b"], ["all"], hidden_size=case.H),
        helper.make_node("Squeeze", ["all", "axes"], ["y"]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in parts.items()]
    constants.append(numpy_helper.from_array(np.array([1]), "axes"))
    ends = [
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [case.T, case.B, size])]
        for name, size in (("x", case.I), ("y", case.H))
    ]
    graph = helper.make_graph(nodes, "lstm", *ends, constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = made.SerializeToString()
    return data
