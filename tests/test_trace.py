"""A trace holds what the page computes, by name, with total gradients; on every cell and layout."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import gatewise
from gatewise import CELLS, ArgumentError, Trace, reference
from gatewise.fields import NAMES, WEIGHTS

T, B, I, H = 5, 4, 2, 4
LENGTHS = (2, 5, 3, 2)  # not sorted; two end at the same step

SHAPES = {
    "one layer": {},
    "both ways": {"bidirectional": True},
    "stacked both ways": {"bidirectional": True, "num_layers": 2},
    "without bias": {"bias": False},
    "projected": {"proj_size": 3, "bidirectional": True, "num_layers": 2},
}


def make(cell: str = "lstm", dtype: torch.dtype = torch.float64, **how: object) -> gatewise.LSTM:
    module = gatewise.LSTM(I, H, cell=cell, dtype=dtype, **how)
    if cell == "linear":  # nothing bounds its products: keep them from exploding
        for parameter in module.parameters():
            parameter.data.mul_(0.2)
    return module


def sequences() -> list[Tensor]:
    return [torch.randn(n, I, dtype=torch.float64) for n in LENGTHS]


def plain() -> Tensor:
    return torch.randn(T, B, I, dtype=torch.float64)


def packed() -> PackedSequence:
    return pack_sequence(sequences(), enforce_sorted=False)


def states(module: gatewise.LSTM, batch: int = B) -> tuple[Tensor, Tensor] | Tensor:
    rows = module.num_layers * (1 + module.bidirectional)
    h = torch.randn(rows, batch, module.proj_size or H, dtype=torch.float64)
    return (h, torch.randn(rows, batch, H).double()) if module.cell.has_cell_state else h


def page(module: gatewise.LSTM, x: Tensor, hx: object, tap: object = None) -> list[list[object]]:
    """runs [layer][direction] of the specification for a plain batch."""
    h0, c0 = hx if isinstance(hx, tuple) else (hx, torch.zeros(*hx.shape[:2], H).double())
    D, runs = 1 + module.bidirectional, []
    for k in range(module.num_layers):
        here = []
        for d in range(D):
            taps = {} if tap is None else {"tap": tap(k, d)}
            at, w = k * D + d, module._weights(k)[d]
            run = reference.sequence(module.cell, x, h0[at], c0[at], w, reverse=d == 1, **taps)
            here.append(run)
        x = torch.cat([run.steps.h for run in here], dim=-1)
        runs.append(here)
    return runs


def same(got: Tensor, expected: Tensor, atol: float = 1e-12) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", CELLS)
def test_every_value_of_every_cell_is_the_page_s(cell: str) -> None:
    module = make(cell, num_layers=2, bidirectional=True)
    x, hx = plain(), states(module)
    trace = module.trace(x, hx)
    for k, runs in enumerate(page(module, x, hx)):
        for d, run in enumerate(runs):
            for name in NAMES:
                same(getattr(trace, name)[k, d], getattr(run.steps, name))


@pytest.mark.parametrize("how", SHAPES.values(), ids=SHAPES)
def test_every_value_of_every_shape_is_the_page_s(how: dict[str, object]) -> None:
    module = make(**how)
    x, hx = plain(), states(module)
    trace = module.trace(x, hx)
    for k, runs in enumerate(page(module, x, hx)):
        for d, run in enumerate(runs):
            for name in NAMES:
                same(getattr(trace, name)[k, d], getattr(run.steps, name))


@pytest.mark.parametrize("layout", [plain, packed])
@pytest.mark.parametrize("how", SHAPES.values(), ids=SHAPES)
def test_results_are_those_of_the_call(how: dict[str, object], layout: object) -> None:
    module = make(**how)
    x, hx = layout(), states(module)
    trace, (output, (h_n, c_n)) = module.trace(x, hx), module(x, hx)
    if isinstance(output, PackedSequence):
        output, _ = torch.nn.utils.rnn.pad_packed_sequence(output, padding_value=torch.nan)
    assert torch.equal(trace.output.nan_to_num(7), output.nan_to_num(7))
    assert torch.equal(trace.h_n, h_n)
    assert torch.equal(trace.c_n, c_n)


def test_weights_have_the_names_of_the_page() -> None:
    assert reference.Weights._fields == WEIGHTS


def test_a_batch_first_layer_and_a_single_sequence_trace_time_first() -> None:
    module = make(batch_first=True)
    x = plain()
    same(module.trace(x.transpose(0, 1)).c, gatewise_like(module).trace(x).c)
    alone = module.trace(x[:, 0])
    assert alone.c.shape == (1, 1, T, 1, H)
    same(alone.c[..., 0, :], module.trace(x.transpose(0, 1)).c[..., 0, :])


def gatewise_like(module: gatewise.LSTM) -> gatewise.LSTM:
    twin = make()
    twin.load_state_dict(module.state_dict())
    return twin


@pytest.mark.parametrize("cell", ["lstm", "rnn", "coupled", "peephole"])
def test_packed_sequences_trace_as_each_one_alone_in_the_caller_s_order(cell: str) -> None:
    module = make(cell, bidirectional=True, num_layers=2)
    given = sequences()
    trace = module.trace(pack_sequence(given, enforce_sorted=False))
    assert trace.lengths.tolist() == list(LENGTHS)
    for b, x in enumerate(given):
        alone = module.trace(x[:, None])
        for name in (*NAMES, "z"):
            together, wanted = getattr(trace, name)[:, :, :, b], getattr(alone, name)[:, :, :, 0]
            same(together[:, :, : len(x)], wanted)
            assert together[:, :, len(x) :].isnan().all()
        same(trace.x[: len(x), b], x)
        same(trace.h_n[:, b], alone.h_n[:, 0])
        same(trace.c_n[:, b], alone.c_n[:, 0])


def test_a_packed_batch_that_was_sorted_already_keeps_its_order() -> None:
    given = sorted(sequences(), key=len, reverse=True)
    trace = make().trace(pack_sequence(given))
    assert trace.lengths.tolist() == [5, 3, 2, 2]
    same(trace.x[:3, 1], given[1])


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", [plain, packed])
def test_z_is_what_enters_each_activation(cell: str, layout: object) -> None:
    module = make(cell, bidirectional=True, num_layers=2)
    trace = module.trace(layout(), states(module))
    for n, gate in enumerate(module.cell.gates):
        activation = reference.ACTIVATIONS[getattr(module.cell, gate)]
        got, expected = activation(trace.z[..., n, :]), getattr(trace, gate)
        same(got[:, :, trace.mask], expected[:, :, trace.mask])


def test_z_is_the_page_s_z() -> None:
    module = make(proj_size=3)
    x, hx = plain(), states(module)
    same(module.trace(x, hx).z.flatten(-2)[0, 0], page(module, x, hx)[0][0].steps.z)


def test_z_after_the_weights_moved_must_have_been_asked_for() -> None:
    module, x = make(), plain()
    plainly = module.trace(x)
    with gatewise.tracing(module, z=True) as traces:
        module(x)
    kept, copied = traces[""], plainly.to_numpy()
    before = plainly.z.detach().clone()
    with torch.no_grad():
        module.weight_hh_l0.mul_(2)
    with pytest.raises(ArgumentError, match="layer 0 has others by now"):
        _ = plainly.z
    with pytest.raises(ArgumentError, match=r"to_numpy\(\), which copies them"):
        _ = plainly.weights
    same(kept.z, before)
    np.testing.assert_allclose(copied.z, before, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(plainly.to_numpy().c, copied.c)  # the values do not depend on it


# --- names ----------------------------------------------------------------------------------------


def test_names_lead_to_views_of_the_tape() -> None:
    trace = make(bidirectional=True, num_layers=2).trace(plain())
    view = trace.layer(1).reverse.f
    tape = trace.records[1].tape
    assert view.untyped_storage().data_ptr() == tape.untyped_storage().data_ptr()
    same(view, tape[1, :, :, 1])
    for name in trace.names():
        k, way, field = name.split(".")
        same(trace[name], getattr(trace, field)[int(k[1:]), int(way == "reverse")])
    assert len(set(trace.names())) == 2 * 2 * 6
    same(trace.layer(-1).fwd.h, trace.h[1, 0])
    same(trace["l1.fwd.z"], trace.z[1, 0])


@pytest.mark.parametrize("name", ["l0.fwd", "l0.fwd.q", "l2.fwd.f", "l0.back.f", "f", "l0.fwd.ff"])
def test_a_wrong_name_is_an_error_that_says_what_is_known(name: str) -> None:
    trace = make().trace(plain())
    with pytest.raises(ArgumentError, match=r"expected|layer: expected 0 to 0"):
        trace[name]


def test_one_direction_has_no_reverse() -> None:
    with pytest.raises(ArgumentError, match="direction: expected one of fwd, got 'reverse'"):
        _ = make().trace(plain()).layer(0).reverse


def test_last_is_the_end_of_each_direction_and_not_the_last_output() -> None:
    trace = make(bidirectional=True, num_layers=2).trace(plain())
    same(trace.last(1, "fwd"), trace.output[-1, :, :H])
    same(trace.last(1, "reverse"), trace.output[0, :, H:])
    assert not torch.allclose(trace.last(1, "reverse"), trace.output[-1, :, H:])
    same(trace.last(0, "reverse", "c"), trace.c[0, 1, 0])
    for ask in (trace.field, trace.layer(0).fwd.field, trace.layer(0).fwd.tokens):
        with pytest.raises(ArgumentError, match="name: expected one of i f g o c h z, got 'q'"):
            ask("q")
    with pytest.raises(ArgumentError, match="name: expected one of h c, got 'f'"):
        trace.before(0, 0, "f")
    with pytest.raises(ArgumentError, match="name: expected one of h c"):
        trace.last(0, "fwd", "f")


def test_repr_says_cell_sizes_and_layout() -> None:
    assert repr(make(proj_size=3).trace(plain())) == "Trace(lstm, L=1 D=1 T=5 B=4 H=4 P=3)"
    assert "packed, 12 tokens" in repr(make("rnn").trace(packed()))
    assert "welded i f o" in repr(make("rnn").trace(plain()))


# --- gradients ------------------------------------------------------------------------------------


def total_gradients(module: gatewise.LSTM, x: Tensor, hx: object, loss: object) -> dict:
    """d loss / d value (T, B, ...), by adding a zero to each value of the page; by [k, d, name]."""
    zeros: dict[tuple[int, int, str, int], Tensor] = {}

    def tap(k: int, d: int) -> object:
        def add(name: str, value: Tensor, t: int = 0) -> Tensor:
            zero = zeros[k, d, name, t] = torch.zeros_like(value, requires_grad=True)
            return value + zero

        return add

    loss([[run.steps for run in runs] for runs in page(module, x, hx, tap)]).backward()
    return {
        (k, d, name): torch.stack([zeros[k, d, name, t].grad for t in range(T)])
        for k in range(module.num_layers)
        for d in range(1 + module.bidirectional)
        for name in NAMES
    }


def mixture(values: list[Tensor]) -> Tensor:
    """A loss in which every number has its own weight."""
    return sum(
        (torch.linspace(-1, 1, v.numel(), dtype=v.dtype).reshape(v.shape) * v).sum() for v in values
    )


@pytest.mark.filterwarnings("ignore:gatewise. no kernel for cell 'of my own'")
@pytest.mark.parametrize("own_cell", [False, True], ids=["kernel", "page"])
@pytest.mark.parametrize("cell", CELLS)
def test_grad_is_the_total_gradient_of_every_value(cell: str, own_cell: bool) -> None:
    module = make(cell, num_layers=2, bidirectional=True)
    if own_cell:  # a row that no kernel knows runs by the page
        module.cell = replace(module.cell, name="of my own")
    x, hx = plain(), states(module)
    trace = module.trace(x, hx)
    assert trace.grad is None
    slots = module.cell.slots
    mixture([trace.output, *(getattr(trace, name) for name in slots)]).backward()

    def loss(steps: list[list[object]]) -> Tensor:
        top = torch.cat([s.h for s in steps[-1]], dim=-1)
        stacked = (torch.stack([getattr(s, name) for row in steps for s in row]) for name in slots)
        return mixture([top, *stacked])

    for (k, d, name), expected in total_gradients(module, x, hx, loss).items():
        got = getattr(trace.grad, name)[k, d]
        welded = name not in (*slots, "h", "c") and not (name == "f" and module.cell.coupled)
        if name == "c" and not module.cell.has_cell_state:
            continue  # c is g there; the page also counts c alone
        same(got, torch.zeros_like(got) if welded else expected)


@pytest.mark.filterwarnings("ignore:gatewise. no kernel for cell 'of my own'")
@pytest.mark.parametrize("own_cell", [False, True], ids=["kernel", "page"])
@pytest.mark.parametrize("cell", ["lstm", "rnn", "coupled", "peephole"])
def test_grad_of_packed_input_is_that_of_each_sequence_alone(cell: str, own_cell: bool) -> None:
    module = make(cell, bidirectional=True, proj_size=3 if cell == "lstm" else 0)
    if own_cell:
        module.cell = replace(module.cell, name="of my own")
    given = sequences()
    trace = module.trace(pack_sequence(given, enforce_sorted=False))
    (trace.h_n.sin().sum() + trace.f[:, :, trace.mask].pow(2).sum()).backward()
    for b, x in enumerate(given):
        alone = module.trace(x[:, None])
        (alone.h_n.sin().sum() + alone.f.pow(2).sum()).backward()
        for name in NAMES:
            same(
                getattr(trace.grad, name)[:, :, : len(x), b],
                getattr(alone.grad, name)[:, :, :, 0],
            )


def test_grad_adds_up_over_backward_passes_and_is_zero_where_the_loss_does_not_reach() -> None:
    module = make(num_layers=2)
    trace = module.trace(plain())
    loss = trace.c[0].pow(2).sum()
    loss.backward(retain_graph=True)
    once = trace.grad.c.clone()
    assert not trace.grad.c[1].any()
    assert trace.grad.c[0].all()
    loss.backward()
    same(trace.grad.c, 2 * once)


def test_no_graph_no_gradient() -> None:
    with torch.no_grad():
        trace = make().trace(plain())
    assert trace.grad is None
    assert not trace.f.requires_grad


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["plain", "packed"])
def test_every_value_is_differentiable(cell: str, layout: str) -> None:
    module = make(cell, bidirectional=True)
    batch = packed()
    data = (batch.data if layout == "packed" else torch.randn(3, 2, I).double()).requires_grad_()
    names = (*module.cell.slots, "h")
    weights = tuple(module.parameters())

    def values(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        trace = module.trace(batch._replace(data=x) if layout == "packed" else x)
        return tuple(getattr(trace, name)[:, :, trace.mask] for name in names)

    assert torch.autograd.gradcheck(values, (data, *weights), fast_mode=True)


def test_every_value_of_a_projected_layer_is_differentiable() -> None:
    module = make(proj_size=3, num_layers=2)
    x = torch.randn(3, 2, I, dtype=torch.float64, requires_grad=True)

    def values(x: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
        trace = module.trace(x)
        return tuple(getattr(trace, name) for name in (*NAMES, "z"))

    assert torch.autograd.gradcheck(values, (x, *module.parameters()), fast_mode=True)


def test_a_loss_on_a_gate_trains_it() -> None:
    module, x = make(), plain()
    step = torch.optim.Adam(module.parameters(), 0.05)
    first = None
    for _ in range(40):
        loss = (1 - module.trace(x).f).pow(2).mean()
        first = loss.item() if first is None else first
        step.zero_grad()
        loss.backward()
        step.step()
    assert loss.item() < first / 10


# --- elsewhere ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", ["lstm", "rnn", "peephole"])
@pytest.mark.parametrize("layout", [plain, packed])
def test_a_saved_trace_comes_back_whole(cell: str, layout: object, tmp_path: Path) -> None:
    module = make(cell, bidirectional=True, num_layers=2, proj_size=3 if cell == "lstm" else 0)
    trace = module.trace(layout(), states(module))
    trace.h_n.sin().sum().backward()
    trace.save(tmp_path / "run.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["run.safetensors"]
    back = Trace.load(tmp_path / "run.safetensors")
    assert back.cell == module.cell
    assert repr(back) == repr(trace)
    for name in (*NAMES, "z", "x", "output", "h_n", "c_n", "mask"):
        expected = getattr(trace, name)
        expected = expected.detach().numpy() if isinstance(expected, Tensor) else expected
        np.testing.assert_allclose(getattr(back, name), expected, rtol=0, atol=1e-12)
    for name in NAMES:
        np.testing.assert_array_equal(getattr(back.grad, name), getattr(trace.grad, name).detach())
    np.testing.assert_array_equal(back.weights[1][1]["W_hh"], module.weight_hh_l1_reverse.detach())


def test_a_trace_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        make().trace(plain()).save(tmp_path / "run.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("no tensors here")
    for name in ("other.safetensors", "text"):
        with pytest.raises(ArgumentError, match=r"expected a file that Trace\.save wrote"):
            Trace.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        Trace.load(tmp_path / "absent")
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        Trace.load(tmp_path)


def test_numpy_has_the_same_numbers_and_does_not_follow_later_changes() -> None:
    module, x = make(bidirectional=True), plain()
    trace = module.trace(x)
    trace.output.sum().backward()
    still = trace.to_numpy()
    values = {name: getattr(trace, name).detach().clone() for name in (*NAMES, "z", "x")}
    with torch.no_grad():
        x.zero_()
        module.weight_ih_l0.zero_()
    for name, value in values.items():
        np.testing.assert_allclose(getattr(still, name), value, rtol=0, atol=1e-12)
    assert isinstance(still.grad.c, np.ndarray)
    assert isinstance(still.last(), np.ndarray)


def test_explore_writes_a_page(tmp_path: Path) -> None:
    trace = make(bidirectional=True).trace(plain())
    path = trace.explore(tmp_path / "page.html", tokens="abcde", title="a run of mine")
    assert "a run of mine" in path.read_text(encoding="utf-8")


def test_xarray_names_its_dimensions() -> None:
    trace = make(bidirectional=True, num_layers=2).trace(packed())
    data = trace.to_xarray()
    assert data.f.dims == ("layer", "direction", "step", "batch", "unit")
    forget = data.f.sel(layer=1, direction="reverse").isel(batch=1, step=2)
    np.testing.assert_array_equal(forget, trace.f[1, 1, 2, 1].detach())
    assert data.length.values.tolist() == list(LENGTHS)


def test_without_xarray_the_error_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xarray", None)
    with pytest.raises(ArgumentError, match="pip install xarray"):
        make().trace(plain()).to_xarray()


def test_bfloat16_traces_in_float32() -> None:
    module = make(dtype=torch.bfloat16)
    trace = module.trace(plain().bfloat16())
    assert trace.f.dtype == torch.float32
    assert trace.to_numpy().output.dtype == np.float32
    wide = gatewise_like(module)
    torch.testing.assert_close(trace.c.double(), wide.trace(trace.x.double()).c, rtol=0, atol=2e-2)
    torch.testing.assert_close(torch.sigmoid(trace.z[..., 0, :]), trace.i, rtol=0, atol=2e-2)


def test_an_empty_batch_has_an_empty_trace() -> None:
    trace = make(bidirectional=True).trace(plain()[:, :0])
    assert trace.f.shape == (1, 2, T, 0, H)
    assert trace.z.shape == (1, 2, T, 0, 4, H)


def test_one_step_and_one_unit() -> None:
    module = gatewise.LSTM(1, 1).double()
    trace = module.trace(torch.ones(1, 1, 1).double())
    same(trace.c.flatten(), (trace.i * trace.g).flatten())


def test_reading_a_trace_imports_no_torch() -> None:
    modules = "gatewise.trace, gatewise.analysis, gatewise.figures, gatewise.trace_file"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    for prefix, expected in (("", "False"), ("import torch; ", "True")):
        done = subprocess.run(
            [sys.executable, "-c", prefix + code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == expected
