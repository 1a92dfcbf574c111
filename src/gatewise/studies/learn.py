"""Training one network on one task until it is solved, or until its sequences are used up."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from gatewise.studies.frame import Json, finite
from gatewise.studies.tasks import Batch, Task

#: Sequences that are held out, drawn from a stream of their own.
HELD_OUT = 512


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the same for every network that is compared.

    Args:
        sequences: how many at most; training stops earlier when the task is solved.
        batch: sequences in a step.
        rate: Adam's learning rate.
        clip: the largest norm of all gradients together; None does not clip.
        looks: how often the held-out error is taken, evenly over the sequences.
        sgd: plain gradient descent instead of Adam.
        until_solved: stop when the task is solved.
    """

    sequences: int
    batch: int = 32
    rate: float = 1e-3
    clip: float | None = 1.0
    looks: int = 20
    sgd: bool = False
    until_solved: bool = True


def train(net: nn.Module, task: Task, recipe: Recipe, seed: int) -> Json:
    """Train, and say how it went.

    Returns:
        error: held-out error at the end; best: the lowest seen; solved_at: sequences seen at the
        first look at which the task was solved, or None; steps, seconds (training alone);
        seconds_a_step; curve: [sequences, error] pairs; norms: largest and median gradient norm
        before clipping; lost: the step at which a loss or gradient stopped being finite, or None.
    """
    stream = np.random.default_rng([seed, 1])
    held_out = (task.held_out or task.draw)(HELD_OUT, np.random.default_rng([seed, 2]))
    updates = optimizer(net, recipe)
    steps = math.ceil(recipe.sequences / recipe.batch)
    every = max(1, steps // recipe.looks)
    curve: list[list[float | None]] = []
    norms: list[float] = []
    solved_at, lost, seconds, k = None, None, 0.0, 0
    for k in range(1, steps + 1):
        batch = task.draw(recipe.batch, stream)
        start = time.perf_counter()
        norm = step(net, task, batch, updates, recipe.clip)
        seconds += time.perf_counter() - start
        if not math.isfinite(norm):
            lost = k
            break
        norms.append(norm)
        if k % every == 0 or k == steps:
            error = held_out_error(net, task, held_out)
            curve.append([k * recipe.batch, finite(error)])
            if error < task.solved and solved_at is None:
                solved_at = k * recipe.batch
                if recipe.until_solved:
                    break
    seen = [error for _, error in curve if error is not None]
    return {
        "error": curve[-1][1] if curve and lost is None else None,
        "best": min(seen, default=None),
        "solved_at": solved_at,
        "steps": k,
        "seconds": round(seconds, 4),
        "seconds_a_step": seconds / max(1, len(norms)),
        "curve": [[n, e if e is None else round(e, 6)] for n, e in curve],
        "norms": [finite(max(norms, default=0.0)), finite(float(np.median(norms or [0.0])))],
        "lost": lost,
        "parameters": sum(p.numel() for p in net.parameters()),
    }


def optimizer(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The one that the recipe names."""
    family = torch.optim.SGD if recipe.sgd else torch.optim.Adam
    return family(net.parameters(), lr=recipe.rate, fused=True)


def step(
    net: nn.Module, task: Task, batch: Batch, updates: torch.optim.Optimizer, clip: float | None
) -> float:
    """One step of training; the norm of all gradients before clipping.

    Not a number, and no change, where the norm or the loss is not finite.
    """
    updates.zero_grad()
    loss = loss_of(task, read(net, task, batch), batch)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), math.inf if clip is None else clip).item()
    if not math.isfinite(norm + loss.item()):
        return math.nan
    updates.step()
    return norm


def read(net: nn.Module, task: Task, batch: Batch) -> Tensor:
    """What the network answers: (n, O), or (T, n, O) where every step is judged."""
    lengths = None if batch.lengths is None else torch.from_numpy(batch.lengths)
    answer: Tensor = net(torch.from_numpy(batch.x), lengths, last=task.wanted != "each")
    return answer


def loss_of(task: Task, answer: Tensor, batch: Batch) -> Tensor:
    """What training makes small: squared error, or cross-entropy of every step that was read."""
    wanted = torch.from_numpy(batch.y)
    if task.wanted == "number":
        return nn.functional.mse_loss(answer.squeeze(-1), wanted)
    if task.wanted == "class":
        return nn.functional.cross_entropy(answer, wanted)
    return nn.functional.cross_entropy(answer.flatten(0, 1), wanted.flatten())


@torch.no_grad()
def held_out_error(net: nn.Module, task: Task, batch: Batch) -> float:
    """The error in the task's own words."""
    net.eval()
    answer = read(net, task, batch).numpy()
    net.train()
    return task.judge(answer, batch)
