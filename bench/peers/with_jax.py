"""jax: a scan over steps, compiled."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from bench.entrants import Problem
    from bench.timing import Entrant

jax: Any = importlib.import_module("jax")
jnp = jax.numpy

MODES = ("inference", "training")


def _forward(weights: Any, x: Any) -> Any:
    W_ih, W_hh, b_ih, b_hh = weights
    zx = x @ W_ih.T + (b_ih + b_hh)

    def step(state: Any, zx_t: Any) -> Any:
        h, c = state
        i, f, g, o = jnp.split(zx_t + h @ W_hh.T, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((x.shape[1], W_hh.shape[1]), x.dtype)
    return jax.lax.scan(step, (zeros, zeros), zx)[1]


def build(problem: Problem) -> Entrant:
    weights = [jnp.asarray(value.numpy()) for value in problem.reference.state_dict().values()]
    x, d_y = jnp.asarray(problem.x.detach().numpy()), jnp.asarray(problem.d_output.numpy())
    if problem.case.mode == "inference":
        forward = jax.jit(_forward)
        return lambda: np.asarray(forward(weights, x))

    def step(weights: Any, x: Any, d_y: Any) -> Any:
        y, back = jax.vjp(_forward, weights, x)
        return y, back(d_y)

    compiled = jax.jit(step)

    def train() -> list[Any]:
        y, (_, d_x) = jax.block_until_ready(compiled(weights, x, d_y))
        return [np.asarray(y), np.asarray(d_x)]

    return train
