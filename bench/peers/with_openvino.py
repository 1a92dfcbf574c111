"""openvino: inference."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from bench.peers import onnx_model

if TYPE_CHECKING:
    from bench.entrants import Problem
    from bench.timing import Entrant

openvino: Any = importlib.import_module("openvino")

MODES = ("inference",)


def build(problem: Problem) -> Entrant:
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = openvino.Core()
    read = core.read_model(onnx_model.model(problem), b"")
    request = core.compile_model(read, "CPU", settings).create_infer_request()
    feed = {"x": problem.x.numpy()}

    def infer() -> object:
        return request.infer(feed)["y"].copy()

    return infer
