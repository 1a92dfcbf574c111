"""Scratch memory of the kernels: used again, bounded, given back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

import gatewise
from gatewise import _core


def held() -> int:
    return _core.info()["workspace_bytes"]


def of_results() -> int:
    return _core.info()["result_bytes"]


@pytest.fixture(autouse=True)
def nothing_held() -> Iterator[None]:
    gatewise.release_workspaces()
    assert (held(), of_results()) == (0, 0)
    yield
    gatewise.release_workspaces()


def step(lstm: gatewise.LSTM, x: torch.Tensor) -> list[torch.Tensor]:
    y = lstm(x)[0]
    return [y.detach(), *torch.autograd.grad(y.sum(), list(lstm.parameters()))]


def test_used_again_and_given_back() -> None:
    lstm, x = gatewise.LSTM(8, 16, bidirectional=True), torch.randn(20, 3, 8)
    first = step(lstm, x)
    once = held()
    assert once > 0
    for _ in range(5):
        step(lstm, x)
    assert held() == once
    step(lstm, x[:5])
    assert held() == once  # a smaller call finds room in the larger block
    gatewise.release_workspaces()
    assert held() == 0
    again = step(lstm, x)
    assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_a_larger_block_takes_the_place_of_a_smaller() -> None:
    lstm = gatewise.LSTM(8, 16)
    for T in (1, 10, 100):
        x = torch.randn(T, 200, 8)
        step(lstm, x)
        grown = held()
        gatewise.release_workspaces()
        torch.autograd.grad(lstm(x)[0].sum(), list(lstm.parameters()))  # as it would be by itself
        assert held() == grown


def test_the_memory_of_a_result_is_used_again() -> None:
    """Of one that is gone; never of one that is held, by whatever view; for up to half of it."""
    lstm = gatewise.LSTM(8, 64).requires_grad_(False)
    large, small, smaller = torch.randn(100, 16, 8), torch.randn(60, 16, 8), torch.randn(40, 16, 8)
    y = lstm(large)[0]
    there, bits = y.data_ptr(), y.clone()
    last = y[-1, -1, -8:]
    del y
    assert of_results() == 0
    other = lstm(large)[0]
    assert other.data_ptr() != there
    assert torch.equal(last, bits[-1, -1, -8:])
    del last
    kept = of_results()
    assert 100 * 16 * 64 * 4 <= kept <= 100 * 16 * 64 * 4 + 4096
    assert lstm(smaller)[0].data_ptr() != there  # less than half
    assert lstm(small)[0].data_ptr() == there  # and gone again at once
    again = lstm(large)[0]
    assert again.data_ptr() == there
    assert torch.equal(again, bits)
    del again, other
    assert of_results() > kept
    gatewise.release_workspaces()
    assert of_results() == 0


def test_kept_results_are_bounded() -> None:
    lstm = gatewise.LSTM(2, 64).requires_grad_(False)
    results = [lstm(torch.zeros(steps, 8, 2))[0] for steps in range(40, 80)]
    newest = results[-1].data_ptr()
    size = results[0].numel() * 4
    while results:
        del results[0]
    assert 31 * size < of_results() < 33 * 2 * size  # 32 of 40
    assert lstm(torch.zeros(79, 8, 2))[0].data_ptr() == newest  # the oldest went
    huge = [lstm(torch.zeros(40_000, 8, 2))[0] for _ in range(5)]  # 82 MB each
    while huge:
        del huge[0]
    assert of_results() <= 256 << 20


def test_results_are_let_go_by_many_threads() -> None:
    """And by a forked child, which gets memory of its own."""
    lstm, x = gatewise.LSTM(8, 64).requires_grad_(False), torch.randn(50, 8, 8)
    expected = lstm(x)[0].clone()

    def run(_: int) -> bool:
        return all(torch.equal(lstm(x)[0], expected) for _ in range(50))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(8)))
    pid = os.fork()
    if pid == 0:
        os._exit(0 if run(0) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("options", [{}, {"proj_size": 40}, {"cell": "peephole"}])
def test_weights_that_want_no_gradient_take_no_room(options: dict[str, Any]) -> None:
    lstm = gatewise.LSTM(8, 64, **options)
    x = torch.randn(20, 16, 8, requires_grad=True)
    sums = sum(w.numel() * 4 for name, w in lstm.named_parameters() if "bias" not in name)
    room = {}
    for wanted in (False, True):
        lstm.requires_grad_(wanted)
        gatewise.release_workspaces()
        lstm(x)[0].sum().backward()
        room[wanted] = held()
    assert room[False] + sums <= room[True]


LARGE_RESULT = """
import resource
from pathlib import Path
import torch
import gatewise

def resident():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()

lstm, x = gatewise.LSTM(8, 8), torch.randn(8000, 32, 8)
tape = 8000 * 32 * 5 * 8 * 4
want = torch.cat([lstm(x[:, k : k + 16])[0].detach() for k in (0, 16)], dim=1)
before = resident()
y = lstm(x)[0]
assert resident() - before > tape
assert torch.equal(y, want)
y.sum().backward()
gatewise.release_workspaces()
del y
assert resident() - before < tape // 2
"""


def test_a_large_result_goes_back_to_the_system() -> None:
    """Results of more than 32 MB have memory of their own."""
    subprocess.run([sys.executable, "-c", LARGE_RESULT], check=True, timeout=60)


def test_of_many_threads_a_few_blocks_stay() -> None:
    lstm, x = gatewise.LSTM(8, 16), torch.randn(50, 3, 8)
    step(lstm, x)
    one = held()
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: step(lstm, x), range(64)))
    assert 0 < held() <= 8 * one


def test_what_would_pass_the_bound_does_not_stay() -> None:
    rnn = gatewise.RNN(1, 1, bidirectional=True)

    def held_after(B: int) -> int:
        gatewise.release_workspaces()
        with torch.no_grad():
            rnn(torch.zeros(1, B, 1))
        return held()

    rows = 2**20
    bytes_a_row = held_after(rows) / rows  # reserved for other calls: this one does not touch it
    assert held_after(int(0.9 * 2**30 / bytes_a_row)) > 0.8 * 2**30
    assert held_after(int(1.1 * 2**30 / bytes_a_row)) == 0


def test_scratch_goes_back_with_its_last_tensor() -> None:
    a, b = _core.scratch(torch.empty(0), [(3, 5), (70000,)])
    assert (a.shape, b.shape, a.dtype) == ((3, 5), (70000,), torch.float32)
    assert held() == 0
    a.fill_(1)
    b.fill_(2)
    assert (a == 1).all()
    view, place = b[:10], b.data_ptr()
    del a, b
    assert held() == 0
    with ThreadPoolExecutor(1) as pool:
        pool.submit(view.mul_, 2).result()
    assert (view == 4).all()
    del view
    assert held() > 4 * 70000
    again = _core.scratch(torch.empty(0), [(3, 5), (70000,)])
    assert again[1].data_ptr() == place


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_few_bits_are_widened_in_it(dtype: torch.dtype) -> None:
    """Fresh memory for them at every call would be touched page by page, 2 us each."""
    lstm, x = gatewise.LSTM(8, 64, dtype=dtype), torch.randn(3, 2, 8, dtype=dtype)
    wide = gatewise.LSTM(8, 64)  # the same run under autocast, its weights wide already
    wide.load_state_dict(lstm.state_dict())
    widened = sum(4 * p.numel() for p in wide.parameters())
    with torch.no_grad():
        with torch.autocast("cpu", dtype):
            want = wide(x.float())[0]
        alone = held()
        assert torch.equal(lstm(x)[0], want)
    assert held() >= alone + widened
    y = lstm(x)[0]
    gatewise.release_workspaces()
    torch.autograd.grad(y.float().sum(), lstm.weight_ih_l0, retain_graph=True)
    alone = held()
    y.float().sum().backward()
    del y
    assert held() >= alone + widened  # for backward they were kept
    with torch.autocast("cpu", dtype):
        y = wide(x.float())[0]
    y.float().sum().backward()
    for p, q in zip(lstm.parameters(), wide.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad.to(dtype))


OUT_OF_MEMORY = """
import resource
import pytest
import torch
import gatewise

lstm, x = gatewise.LSTM(8, 64), torch.randn(5, 3, 8)
want = lstm(x)[0].detach()
pages = int(open("/proc/self/statm").read().split()[0])
most = pages * resource.getpagesize() + (1 << 30)
resource.setrlimit(resource.RLIMIT_AS, (most, most))
gates = torch.zeros(1, 1, 8).expand(1000, 2000, 8)  # 2.6 GB of them
for call in (lambda: lstm(gates), lambda: gatewise._core.scratch(x, [(1 << 30,)])):
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator: can't allocate memory: you tried"):
        call()
assert torch.equal(lstm(x)[0], want)
"""


def test_out_of_memory_is_torchs_error() -> None:
    subprocess.run([sys.executable, "-c", OUT_OF_MEMORY], check=True, timeout=60)


TOO_LARGE = """
import pytest
import torch
import gatewise
from gatewise import _core

torch.set_grad_enabled(False)
for n in (2**50, 2**58, 2**60, 2**62):
    one = torch.zeros(1, 1, 1)
    for H in (1, 4, 8, 16):
        for call in (
            lambda: gatewise.LSTM(1, H)(one.expand(n, 1, 1)),
            lambda: gatewise.LSTM(1, H)(one.expand(1, n, 1)),
            lambda: gatewise.LSTMCell(1, H)(one[0].expand(n, 1)),
            lambda: gatewise.Stream(gatewise.LSTM(1, H), n),
            lambda: _core.empty(one, [n, H], 4),
            lambda: _core.scratch(one, [(n, H)]),
        ):
            with pytest.raises(RuntimeError, match="can't allocate memory|overflow"):
                call()
"""


def test_a_size_that_no_number_holds_is_no_end_of_the_process() -> None:
    subprocess.run([sys.executable, "-c", TOO_LARGE], check=True, timeout=60)
