"""So many runs and so many bytes are kept, at a cost that what is kept already does not raise."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import gatewise
from gatewise import ArgumentError, keeping, tracing
from gatewise.keeping import Recorder, Store
from gatewise.trace import LayerRecord

T, B, I, H = 6, 3, 2, 4
STEP = B * (5 * H + H) * 4  # bytes of a step of an LSTM


def x_(n: int = T) -> Tensor:
    return torch.randn(n, B, I)


@pytest.fixture
def hurried() -> Iterator[None]:
    """Threads take turns as often as Python lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def together(work: Callable[[int], None], threads: int = 3) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for each in [pool.submit(work, k) for k in range(threads)]:
            each.result()


# --- threads --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [gatewise.LSTM, gatewise.LSTMCell])
@pytest.mark.parametrize("keep", [None, 2])
def test_threads_record_into_one_block(hurried: None, kind: type, keep: int | None) -> None:
    module, turns = kind(I, H), 100
    x = x_() if kind is gatewise.LSTM else x_()[0]
    with torch.no_grad(), tracing(module, keep=keep) as traces:

        def work(k: int) -> None:
            for _ in range(turns):
                module(x)
                assert traces.nbytes >= 0
                assert len(traces.all("")) <= (keep or 3 * turns)

        together(work)
    kept = traces.all("")
    assert len(kept) == (keep or 3 * turns)
    assert traces.nbytes == sum(trace.nbytes for trace in kept)


def test_each_thread_s_loop_over_a_cell_is_a_run(hurried: None) -> None:
    cell, n = gatewise.LSTMCell(I, H), 20
    inputs = [x_(n) for _ in range(3)]
    with torch.no_grad(), tracing(cell, keep=None) as traces:

        def loop(k: int) -> None:
            state = None
            for x in inputs[k]:
                state = cell(x, state)
                assert traces[""].f.shape[2] >= 1

        together(loop)
    seen = {tuple(trace.x.flatten().tolist()) for trace in traces.all("")}
    assert seen == {tuple(x.flatten().tolist()) for x in inputs}


def recorded_steps(recorder: Recorder) -> list[int]:
    return [len(run.steps) for run in recorder.runs()]


def step() -> LayerRecord:
    """What a step of an LSTM leaves."""
    cell = gatewise.LSTMCell(I, H)
    with tracing(cell) as traces:
        cell(x_()[0])
    return traces[""].records[0]


def test_two_steps_from_one_state_at_once_are_two_runs() -> None:
    recorder, cell, first = Recorder("", Store(None), keep=None), gatewise.CELLS["lstm"], step()
    recorder.add_step(recorder.end_before(None, None), cell, first)
    ends = [recorder.end_before(first.h_n[0], first.c_n[0]) for _ in range(2)]
    for end in ends:
        recorder.add_step(end, cell, step())
    assert recorded_steps(recorder) == [2, 1]
    assert recorder.store.nbytes == 3 * STEP


def test_a_step_whose_run_was_pushed_out_meanwhile_begins_another() -> None:
    recorder, cell, first = Recorder("", Store(None), keep=1), gatewise.CELLS["lstm"], step()
    recorder.add_step(recorder.end_before(None, None), cell, first)
    end = recorder.end_before(first.h_n[0], first.c_n[0])
    recorder.add_step(recorder.end_before(None, None), cell, step())  # of another thread
    recorder.add_step(end, cell, step())
    assert recorded_steps(recorder) == [1]
    assert recorder.store.nbytes == STEP


# --- the cost of a step ---------------------------------------------------------------------------


def asked(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> int:
    """How often a run asks for the bytes of a record, or compares a state with another."""
    count = 0

    def counted(of: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            nonlocal count
            count += 1
            return of(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(LayerRecord, "nbytes", property(counted(LayerRecord.nbytes.fget)))
        patch.setattr(keeping, "_is", counted(keeping._is))
        run()
    return count


def loop(n: int, between: Callable[[Tensor], Tensor], max_bytes: int | None = None) -> None:
    cell, h, c = gatewise.LSTMCell(I, H), torch.zeros(B, H), torch.zeros(B, H)
    with torch.no_grad(), tracing(cell, keep=None, max_bytes=max_bytes):
        for x in x_(n):
            h, c = cell(x, (between(h), c))


def layers(n: int) -> None:
    module = gatewise.LSTM(I, H)
    with torch.no_grad(), tracing(module, keep=None):
        for _ in range(n):
            module(x_(1))


@pytest.mark.parametrize(
    "run",
    [
        lambda n: loop(n, lambda h: h),
        lambda n: loop(n, lambda h: h, max_bytes=2**30),
        lambda n: loop(n, lambda h: h * 0.9),  # each step is a run
        layers,
    ],
    ids=["one run", "bounded", "a run each step", "layers"],
)
def test_what_is_kept_does_not_make_a_step_dearer(
    monkeypatch: pytest.MonkeyPatch, run: Callable[[int], None]
) -> None:
    few, many = (asked(monkeypatch, lambda n=n: run(n)) for n in (20, 40))
    assert few > 0
    assert many <= 2 * few + 2


# --- bounds ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layers", "both"), [(2, False), (1, True), (2, True)])
def test_the_bound_holds_for_all_that_one_call_leaves(layers: int, both: bool) -> None:
    module = gatewise.LSTM(I, H, num_layers=layers, bidirectional=both)
    whole = T * STEP * layers * (1 + both)
    with tracing(module, max_bytes=whole) as traces:
        module(x_())
    assert traces.nbytes == whole
    with (
        tracing(module, max_bytes=whole - 1) as traces,
        pytest.raises(ArgumentError, match=f"at most {whole - 1:,} bytes of trace, got {whole:,}"),
    ):
        module(x_())
    assert not traces


def test_what_is_pushed_out_is_counted_no_longer() -> None:
    model = nn.ModuleDict({"layer": gatewise.LSTM(I, H), "cell": gatewise.LSTMCell(I, H)})
    with tracing(model, keep=2) as traces:
        for n in (1, 2, 3):
            state = None
            for x in x_(n):
                state = model["cell"](x, state)
            model["layer"](x_(n))
    assert traces.nbytes == 2 * (2 + 3) * STEP


# --- what goes on from where ----------------------------------------------------------------------


def lengths(between: Callable[..., tuple[Tensor, Tensor]], n: int = 2) -> list[int]:
    """Steps of each run of a loop over a cell that does something to its state."""
    cell, state = gatewise.LSTMCell(I, H), None
    with torch.no_grad(), tracing(cell, keep=None) as traces:
        for x in x_(n):
            state = between(*cell(x, state))
    return [trace.f.shape[2] for trace in traces.all("")]


def test_another_cell_state_begins_a_run() -> None:
    assert lengths(lambda h, c: (h.clone(), c.clone())) == [2]
    assert lengths(lambda h, c: (h, c * 0.5)) == [1, 1]
    assert lengths(lambda h, c: (h * 0.5, c)) == [1, 1]


@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("which", [0, 1])
def test_a_state_that_was_changed_in_place_begins_a_run(which: int, row: int) -> None:
    def reset(*state: Tensor) -> tuple[Tensor, ...]:
        state[which][row] = 0
        return state

    assert lengths(reset) == [1, 1]


def test_states_alike_in_their_first_numbers_are_told_apart() -> None:
    cell = gatewise.LSTMCell(I, 40)
    x, other = torch.randn(2, B, I)
    with torch.no_grad(), tracing(cell, keep=None) as traces:
        (h, c) = cell(x)
        cell(other, (h.index_fill(1, torch.tensor([39]), 0.5), c))
        cell(other, (h, c))
    assert [trace.f.shape[2] for trace in traces.all("")] == [2, 1]


def test_a_state_that_is_no_number_begins_a_run() -> None:
    cell, state = gatewise.LSTMCell(I, H), None
    with torch.no_grad(), tracing(cell, keep=2) as traces:
        for x in torch.full((3, B, I), torch.nan):
            state = cell(x, state)
    assert [trace.f.shape[2] for trace in traces.all("")] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_loop_under_autocast_is_one_run(dtype: torch.dtype) -> None:
    cell, state = gatewise.LSTMCell(I, H), None
    with tracing(cell) as traces, torch.autocast("cpu", dtype=dtype):
        for x in x_(3).to(dtype):
            state = cell(x, state)
    assert state[0].dtype == dtype
    assert traces[""].f.shape == (1, 1, 3, B, H)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda t: pickle.loads(pickle.dumps(t))])
def test_what_was_recorded_can_be_copied_and_saved(copied: Callable[..., object]) -> None:
    model = nn.ModuleDict({"layer": gatewise.LSTM(I, H), "cell": gatewise.LSTMCell(I, H)})
    with torch.no_grad(), tracing(model) as traces:
        model["cell"](x_()[0])
        model["layer"](x_())
    other = copied(traces)
    assert list(other) == list(traces) == ["cell", "layer"]
    assert other.nbytes == traces.nbytes
    assert torch.equal(other["layer"].f, traces["layer"].f)
    assert torch.equal(other["cell"].f, traces["cell"].f)
