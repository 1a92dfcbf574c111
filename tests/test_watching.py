"""What is watched is what ran: loops over cells, compiled and exported models, transforms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gatewise
from gatewise import ArgumentError, patching, tracing, watching
from gatewise.recording import put
from gatewise.watching import Watch

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),  # torch's make_dual
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),  # Dynamo
]

T, B, I, H = 6, 3, 2, 4


class Loop(nn.Module):
    """A person's own loop over a cell; ``between`` is what it does to h after each step."""

    def __init__(self, kind: type, between: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        self.cell, self.between = kind(I, H, dtype=torch.float64), between

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for x_t in x:
            state = self.cell(x_t, state)
            if isinstance(state, tuple):
                state = (self.between(state[0]), state[1])
                outputs.append(state[0])
            else:
                state = self.between(state)
                outputs.append(state)
        return torch.stack(outputs)


def layer_of(cell: nn.Module) -> Any:
    """The layer that does at once what a loop over the cell does."""
    kind = gatewise.LSTM if isinstance(cell, gatewise.LSTMCell) else gatewise.RNN
    layer = kind(I, H, dtype=torch.float64)
    layer.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    return layer


def x_(*lead: int) -> Tensor:
    return torch.randn(*lead, T, B, I, dtype=torch.float64)


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


# --- cells ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [gatewise.LSTMCell, gatewise.RNNCell])
@pytest.mark.parametrize("single", [False, True])
def test_a_loop_over_a_cell_has_the_trace_of_a_layer(kind: type, single: bool) -> None:
    model, x = Loop(kind), x_()[:, 0] if single else x_()
    layer = layer_of(model.cell)
    with tracing(model, z=True) as traces:
        output = model(x)
    got, expected = traces["cell"], layer.trace(x)
    assert torch.equal(output, model(x))
    for name in ("i", "f", "g", "o", "c", "h", "z", "x", "output", "h_n", "c_n"):
        same(getattr(got, name), getattr(expected, name))
    for trace in (got, expected):
        (trace.c[0, 0, 2].sum() + (trace.output**2).sum()).backward()
    for name in ("i", "g", "c", "h"):
        same(getattr(got.grad, name), getattr(expected.grad, name))
    for name, parameter in model.cell.named_parameters():
        same(parameter.grad, getattr(layer, f"{name}_l0").grad)
    same(torch.from_numpy(got.jacobian()), torch.from_numpy(expected.jacobian()))


def test_a_cell_without_biases() -> None:
    cell, x = gatewise.LSTMCell(I, H, bias=False, dtype=torch.float64), x_()[0]
    with tracing(cell) as traces:
        seen = cell(x)
    same(traces[""].h_n[0], seen[0])
    assert all(map(torch.equal, seen, cell(x)))


@pytest.mark.parametrize("kind", [gatewise.LSTMCell, gatewise.RNNCell])
def test_a_watched_cell_takes_what_another_does(kind: type[nn.Module]) -> None:
    cell, x = kind(I, H), torch.randn(B, I).relu().to_sparse()
    expected = cell(x)
    with tracing(cell) as traces:
        seen = cell(x)
    assert torch.equal(torch.stack([*seen]), torch.stack([*expected]))
    assert traces[""].h.shape == (1, 1, 1, B, H)


def test_a_run_ends_where_the_state_is_another() -> None:
    model = Loop(gatewise.LSTMCell, between=lambda h: h * 0.9)
    with tracing(model, keep=None) as traces:
        model(x_())
    assert [trace.f.shape[2] for trace in traces.all("cell")] == [1] * T

    model = Loop(gatewise.LSTMCell, between=Tensor.detach)  # truncated backward: still one sequence
    with tracing(model, keep=None) as traces:
        model(x_())
        model(x_()[:2])
    assert [trace.f.shape[2] for trace in traces.all("cell")] == [T, 2]
    with tracing(model) as latest:
        model(x_())
        model(x_()[:2])
    assert [trace.f.shape[2] for trace in latest.all("cell")] == [2]


def test_two_sequences_side_by_side_are_two_runs() -> None:
    cell, one, two = gatewise.RNNCell(I, H), None, None
    with tracing(cell, keep=2) as traces:
        for _ in range(3):
            one, two = cell(torch.randn(B, I), one), cell(torch.randn(B, I), two)
    assert torch.equal(traces.all("")[0].h_n[0], one)
    assert torch.equal(traces.all("")[1].h_n[0], two)
    assert traces[""].h.shape == (1, 1, 3, B, H)


def test_a_trace_of_a_cell_keeps_the_steps_it_has() -> None:
    cell = gatewise.LSTMCell(I, H)
    with tracing(cell) as traces:
        state = cell(torch.randn(B, I))
        first = traces[""]
        cell(torch.randn(B, I), state)[0].sum().backward()
    assert first.grad.c.shape == (1, 1, 1, B, H)
    assert traces[""].grad.c.shape == (1, 1, 2, B, H)
    assert "_step" not in cell.__dict__


def test_the_memory_of_a_loop_is_bounded() -> None:
    model = Loop(gatewise.LSTMCell)
    with tracing(model, max_bytes=4 * B * 6 * H * 8) as traces:
        with pytest.raises(ArgumentError, match="max_bytes"):
            model(x_())
        assert traces["cell"].f.shape[2] == 4
        assert traces.nbytes == 4 * B * 6 * H * 8


def test_wrong_input_to_a_watched_cell_is_the_cell_s_own_error() -> None:
    cell = gatewise.LSTMCell(I, H)
    with pytest.raises(RuntimeError) as plain:
        cell(torch.zeros(B, I + 1))
    with tracing(cell) as traces, pytest.raises(RuntimeError) as watched:
        cell(torch.zeros(B, I + 1))
    assert str(watched.value) == str(plain.value)
    assert not traces


# --- other threads --------------------------------------------------------------------------------


def test_a_run_beside_a_watch_that_only_comes_or_goes_is_nobody_s() -> None:
    module, x = gatewise.LSTM(I, H, num_layers=2).double(), x_()
    expected, _ = module(x)
    watch = Watch(module)  # and has not heard of any call
    assert torch.equal(module(x)[0], expected)
    watch.leave()
    with tracing(module) as traces:
        module._forward_pre_hooks_with_kwargs.clear()  # which torch sets after the hook itself
        assert torch.equal(module(x)[0], expected)
    assert not traces


def test_one_who_comes_while_a_cell_steps_begins_with_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cell, x, layer = gatewise.LSTMCell(I, H).double(), x_(), watching.ops.layer
    with ExitStack() as late, tracing(cell) as traces:

        def meanwhile(*args: Any, **how: Any) -> Any:
            monkeypatch.undo()
            traces_of_late.append(late.enter_context(tracing(cell)))
            return layer(*args, **how)

        traces_of_late: list[Any] = []
        monkeypatch.setattr(watching.ops, "layer", meanwhile)
        cell(x[1], cell(x[0]))
        assert traces[""].f.shape[2] == 2
        assert traces_of_late[0][""].f.shape[2] == 1


# --- compiled, exported, transformed --------------------------------------------------------------


@pytest.fixture
def compiled() -> Any:
    torch._dynamo.reset()
    yield lambda model, **how: torch.compile(model, backend="eager", **how)
    torch._dynamo.reset()


def sequential(**how: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(I, I), gatewise.LSTM(I, H, bidirectional=True, **how)).double()


@pytest.mark.parametrize("before", [False, True])
def test_a_compiled_model_is_recorded(compiled: Any, before: bool) -> None:
    model, x = sequential(num_layers=2), x_()
    run = compiled(model)
    if before:
        run(x)
    with tracing(model) as traces, tracing(run, keep=None) as both:
        output, _ = run(x)
        run(x[:2])
    expected = model[1].trace(model[0](x))
    assert torch.equal(output, expected.output)
    assert torch.equal(both.all("_orig_mod.1")[0].f, expected.f)
    assert traces["1"].f.shape == (2, 2, 2, B, H)
    assert torch.equal(run(x)[0], output)  # and it runs on, with nobody watching


def test_a_trace_taken_inside_a_compiled_function(compiled: Any) -> None:
    module, x = gatewise.LSTM(I, H, num_layers=2).double(), x_()
    expected = module.trace(x * 2).f + 1
    assert torch.equal(compiled(lambda x: module.trace(x * 2).f + 1)(x), expected)


def test_a_compiled_model_is_patched(compiled: Any) -> None:
    model, x = sequential(), x_()
    run = compiled(model)
    plain, _ = run(x)
    with patching(model, {"1.l0.reverse.f": put(0.0)}):
        patched, _ = run(x)
        expected, _ = model(x)
    assert torch.equal(patched, expected)
    assert not torch.equal(patched, plain)
    assert torch.equal(run(x)[0], plain)


def test_a_compiled_loop_over_a_cell_is_recorded(compiled: Any) -> None:
    model, x = Loop(gatewise.RNNCell), x_()
    run = compiled(model)
    with tracing(model) as traces:
        output = run(x)
    assert torch.equal(traces["cell"].output, output)


def test_one_graph_cannot_be_watched_and_says_so(compiled: Any) -> None:
    model, x = sequential(), x_()
    run = compiled(model, fullgraph=True)
    plain, _ = run(x)
    with tracing(model), pytest.raises(Exception, match="compile it without fullgraph=True"):
        run(x)
    assert torch.equal(run(x)[0], plain)


@pytest.mark.parametrize("strict", [False, True])
def test_an_export_cannot_be_watched_and_says_so(strict: bool) -> None:
    model, x = sequential(), x_()
    with tracing(model), pytest.raises(Exception, match=r"outside the block|fullgraph"):
        torch.export.export(model, (x,), strict=strict)
    program = torch.export.export(model, (x,), strict=strict).module()
    assert torch.equal(program(x)[0], model(x)[0])
    with pytest.raises(ArgumentError, match="got none in GraphModule"), tracing(program):
        pass


def test_values_that_end_with_a_vmap_are_refused() -> None:
    model, x = sequential(), x_(5)
    loss = torch.func.grad(lambda x: model(x)[0].sum())
    for mapped in (torch.vmap(lambda x: model(x)[0]), torch.vmap(loss)):
        with tracing(model) as traces, pytest.raises(ArgumentError, match="inside the function"):
            mapped(x)
        assert not traces
    each = torch.vmap(lambda x: model[1].trace(x).c)(x)
    same(each[2], model[1].trace(x[2]).c)


@pytest.mark.parametrize("transform", ["grad", "jvp"])
def test_other_transforms_leave_plain_values(transform: str) -> None:
    model, x = sequential(), x_()
    with tracing(model) as traces:
        if transform == "grad":
            torch.func.grad(lambda x: model(x)[0].sum())(x)
        else:
            torch.func.jvp(lambda x: model(x)[0], (x,), (torch.ones_like(x),))
    expected = model[1].trace(model[0](x)).to_numpy()
    assert abs(traces["1"].to_numpy().f - expected.f).max() < 1e-12
