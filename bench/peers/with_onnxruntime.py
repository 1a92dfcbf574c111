"""onnxruntime: inference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from bench.peers import onnx_model

if TYPE_CHECKING:
    from bench.entrants import Problem
    from bench.timing import Entrant

onnxruntime: Any = importlib.import_module("onnxruntime")

MODES = ("inference",)


def build(problem: Problem) -> Entrant:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        onnx_model.model(problem), options, providers=["CPUExecutionProvider"]
    )
    feed = {"x": problem.x.numpy()}
    return lambda: session.run(None, feed)[0]
