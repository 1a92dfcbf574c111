"""Few tokens for large weights: these, and their gradients, lie as they are (dots.h, few.h)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_core import ISAS, Problem, check, kernels, make, on_the_core, on_the_page

from gatewise import _core
from gatewise.spec import CELLS


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels(request.param):
        yield request.param


@pytest.mark.parametrize("cell", list(CELLS))
def test_every_cell(isa: str, cell: str) -> None:
    check(Problem(T=2, B=2, I=31, H=37, cell=cell))
    check(Problem(T=5, B=1, I=75, H=19, D=2, cell=cell, states=False, bias=False))
    check(Problem(lengths=(4, 2, 1), I=9, H=110, D=2, cell=cell, threads=2))


@pytest.mark.parametrize("threads", [1, 3])
def test_every_shape(isa: str, threads: int) -> None:
    check(Problem(T=3, B=5, I=190, H=70, threads=threads))
    check(Problem(T=2, B=7, I=1, H=230, D=2, threads=threads, states=False))
    check(Problem(T=1, B=4, I=50, H=17, D=2, threads=threads))
    check(Problem(T=4, B=1, I=40, H=65, P=33, threads=threads))
    check(Problem(T=3, B=2, I=66, H=34, dtype=torch.float64, D=2, threads=threads))
    check(Problem(lengths=(3, 3, 1), I=33, H=80, P=90, D=2, dtype=torch.float64, threads=threads))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_backward(isa: str, threads: int) -> None:
    """So few that neither weights nor gradients are packed (few.h), and the first that are not."""
    check(Problem(T=8, B=1, I=20, H=50, threads=threads))
    check(Problem(T=8, B=4, I=64, H=66, D=2, threads=threads))
    check(Problem(T=2, B=20, I=1, H=180, threads=threads, states=False, dtype=torch.float64))
    check(Problem(T=24, B=1, I=90, H=13, threads=threads, bias=False))
    check(Problem(T=25, B=1, I=90, H=13, threads=threads))
    check(Problem(lengths=(5, 5, 3, 2, 1, 1, 1), I=11, H=90, D=2, threads=threads))


def test_wherever_they_lie(isa: str) -> None:
    """x and d_x of a batch that comes first in memory: its steps are no equal distances apart."""
    p = Problem(T=3, B=4, I=37, H=30, D=2, threads=2)
    given = make(p)
    page = on_the_page(p, given)
    want = on_the_core(p, given, page)
    x = given["x"].transpose(0, 1).contiguous().transpose(0, 1)
    assert x.stride() != given["x"].stride()
    got = on_the_core(p, given | {"x": x}, page)
    assert got["d_x"].stride() == x.stride()
    assert torch.equal(got["d_x"], want["d_x"])
    for of, ones in zip(got["d_weights"], want["d_weights"], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(of, ones, strict=True) if a is not None)


def test_lengths_that_grow_and_memory_that_may_not_be_written_are_refused() -> None:
    weights = (tuple(torch.zeros(s) for s in ((8, 3), (8, 2), (8,), (8,))) + (None, None),)
    h, c = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2)

    def run(sizes: list[int], h_n: Any) -> None:
        y, sizes_t = torch.empty(3, 2), torch.tensor(sizes)
        x = torch.zeros(3, 3)
        _core.forward("lstm", x, sizes_t, None, None, weights, y, h_n, c, None, 1)

    run([2, 1], h)
    with pytest.raises(ValueError, match="batch_sizes"):
        run([1, 2], h)
    locked = h.numpy().copy()
    locked.flags.writeable = False
    with pytest.raises(ValueError, match="h_n: expected an array that may be written"):
        run([2, 1], locked)
