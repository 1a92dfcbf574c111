"""Which worker takes what, rows of the batch or units, changes no bit (team.h)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_core import ISAS, Problem, kernels, make, on_the_core, on_the_page

from gatewise import _core

PROBLEMS = {
    "rows": Problem(T=9, B=7, I=5, H=70),
    "both ways": Problem(T=7, B=6, I=3, H=33, D=2),
    "one row": Problem(T=40, B=1, I=6, H=130),
    "lengths": Problem(lengths=(9, 7, 7, 4, 2, 1), I=4, H=37, states=False),
    "projection": Problem(T=6, B=5, I=7, H=90, P=35),
    "float64": Problem(T=8, B=9, I=5, H=41, dtype=torch.float64),
    "peephole": Problem(T=8, B=5, I=5, H=41, cell="peephole"),
}


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    with kernels(request.param):
        yield request.param


def flat(found: Any) -> list[torch.Tensor]:
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, (list, tuple)):
        return [t for part in found for t in flat(part)]
    return [t for part in found.values() for t in flat(part)] if isinstance(found, dict) else []


@pytest.mark.parametrize("p", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_bits_of_all_threads(isa: str, p: Problem) -> None:
    given = make(p)
    page = on_the_page(p, given)
    pairs = _core.has_pairs() and p.dtype == torch.float32
    for reduced in (False, True)[: 1 + pairs]:
        want = flat(on_the_core(p, given, page, reduced=reduced))
        for threads in (2, 3):
            for rows in (1, 2, 4, 20):  # that a worker must have to take a part of the batch
                _core.rows_of_worker(rows)
                got = flat(on_the_core(replace(p, threads=threads), given, page, reduced=reduced))
                assert all(map(torch.equal, got, want)), (threads, rows)
        assert len(got) == len(want) > 8


@pytest.mark.parametrize("dims", [(50, 4, 300, 300), (50, 40, 300, 300), (50, 4, 8, 8)])
def test_what_pays_has_these_bits_threads(dims: tuple[int, int, int, int]) -> None:
    """Between 2 and 4 rows a worker it depends on the machine, at this moment."""
    T, B, I, H = dims
    p = Problem(T=T, B=B, I=I, H=H)
    given = make(p)
    page = on_the_page(p, given)
    want = flat(on_the_core(p, given, page))
    for _ in range(3):
        got = flat(on_the_core(replace(p, threads=2), given, page))
        assert all(map(torch.equal, got, want))
