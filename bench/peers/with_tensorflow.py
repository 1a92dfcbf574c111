"""tensorflow: keras.layers.LSTM in a tf.function."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.entrants import Problem
    from bench.timing import Entrant

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # read when it is imported
tf: Any = importlib.import_module("tensorflow")

MODES = ("inference", "training")


def build(problem: Problem) -> Entrant:
    case = problem.case
    W_ih, W_hh, b_ih, b_hh = (v.numpy() for v in problem.reference.state_dict().values())
    layer = tf.keras.layers.LSTM(case.H, return_sequences=True)
    x = tf.constant(problem.x.detach().numpy().swapaxes(0, 1))  # batch first
    d_y = tf.constant(problem.d_output.numpy().swapaxes(0, 1))
    layer.build(x.shape)
    layer.set_weights([W_ih.T, W_hh.T, b_ih + b_hh])  # keras, too, has i f c o
    if case.mode == "inference":
        forward = tf.function(layer)
        return lambda: forward(x).numpy().swapaxes(0, 1)

    def step(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return y, tape.gradient(y, [x, *layer.trainable_weights], output_gradients=d_y)

    compiled = tf.function(step)

    def train() -> list[Any]:
        y, (d_x, *_) = compiled(x)
        return [y.numpy().swapaxes(0, 1), d_x.numpy().swapaxes(0, 1)]

    return train
