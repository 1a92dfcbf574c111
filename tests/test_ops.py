"""ops.layer: the values, whatever dtype, device, stride and route they come by."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings

import pytest
import torch
from layers import RandomLayer, assert_same, lazily_negated, random_layer
from test_bf16 import PAIRS
from test_core import kernels

from gatewise import _core, formulas, ops
from gatewise.reference import Weights
from gatewise.spec import CELLS, CellSpec

ISAS = _core.info()["isas"]


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("P", [None, 2], ids=["plain", "projected"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_values_are_the_pages(cell: str, D: int, P: int | None, packed: bool) -> None:
    layer = random_layer(cell, D=D, P=P, packed=packed)
    assert_same(layer.run(), layer.page())
    with torch.no_grad():
        assert_same(layer.run(), layer.page())
        bare = ops.layer(layer.cell, layer.x, layer.h0, layer.c0, layer.weights, layer.batch_sizes)
    assert bare.tape is None
    assert_same(bare.output, layer.page()[0])


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
@pytest.mark.parametrize("present", ["", "h", "c"])
def test_a_state_of_none_is_zeros(present: str, packed: bool) -> None:
    layer = random_layer(D=2, P=2, packed=packed)
    h0, c0 = layer.h0 if present == "h" else None, layer.c0 if present == "c" else None
    layer.h0 = layer.h0 if present == "h" else torch.zeros_like(layer.h0)
    layer.c0 = layer.c0 if present == "c" else torch.zeros_like(layer.c0)
    result = ops.layer(layer.cell, layer.x, h0, c0, layer.weights, layer.batch_sizes)
    assert_same((result.output, result.h_n), layer.page()[:2])


@pytest.mark.parametrize("biases", ["none", "b_ih", "b_hh"])
def test_any_of_the_biases_may_be_missing(biases: str) -> None:
    layer = random_layer(D=2)
    absent = [name for name in ("b_ih", "b_hh") if name != biases]
    layer.weights = [w._replace(**dict.fromkeys(absent)) for w in layer.weights]
    assert_same(layer.run(), layer.page())


def test_without_a_cell_state_c_n_is_h_n() -> None:
    layer = random_layer("rnn", P=2)
    result = ops.layer(layer.cell, layer.x, layer.h0, layer.c0, layer.weights)
    assert result.c_n is result.h_n


def test_an_equal_row_of_the_table_is_the_row() -> None:
    layer = random_layer()
    layer.cell = copy.deepcopy(layer.cell)
    assert layer.cell is not CELLS["lstm"]
    assert_same(layer.run(), layer.page())  # and no warning: the kernel runs it


# --- strides, views, values -----------------------------------------------------------------------


def _views(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """x (T, B, I), the same numbers in other layouts."""
    T, B, I = x.shape
    wide = x.new_full((T, B, I + 3), torch.nan)
    wide[..., 1 : 1 + I] = x
    return {
        "batch first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "last axis apart": x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        "inside a wider one": wide[..., 1 : 1 + I],
        "negative": lazily_negated(-x),
        "flipped twice": x.flip(0).flip(0),
    }


@pytest.mark.parametrize("view", _views(torch.zeros(1, 1, 1)))
def test_a_view_of_the_input_is_its_numbers(view: str) -> None:
    layer = random_layer(T=4, B=3)
    expected = layer.run()
    x = _views(layer.x.detach())[view]
    assert_same(x, layer.x.detach())
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            found = RandomLayer(layer.cell, x, layer.h0, layer.c0, layer.weights).run()
        assert_same(found, expected, atol=0, rtol=0)


def test_what_leaked_from_a_transform_is_its_numbers() -> None:
    layer = random_layer()
    leaked = []

    def loss(x: torch.Tensor) -> torch.Tensor:
        result = ops.layer(layer.cell, x, layer.h0, layer.c0, layer.weights)
        leaked.append(result.h_n)
        return result.output.sum()

    torch.func.grad(loss)(layer.x.detach())
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            again = ops.layer(layer.cell, layer.x, leaked[0], layer.c0, layer.weights)
            layer.h0 = leaked[0] * 1
            assert_same(again.output, layer.page()[0])


def test_one_row_repeated_for_the_batch() -> None:
    layer = random_layer(B=3)
    layer.x = layer.x.detach()[:, :1].expand(-1, 3, -1)
    assert_same(layer.run(), layer.page())


def test_views_of_weights_and_states() -> None:
    layer = random_layer(D=2, P=2)
    expected = layer.run()

    def apart(t: torch.Tensor) -> torch.Tensor:
        return torch.stack([t, t.new_full(t.shape, torch.nan)], dim=-1)[..., 0]

    layer.h0, layer.c0 = apart(layer.h0), apart(layer.c0)
    layer.weights = [Weights(*(w if w is None else apart(w) for w in ws)) for ws in layer.weights]
    assert_same(layer.run(), expected, atol=0, rtol=0)


def test_weights_changed_in_place_are_seen() -> None:
    layer = random_layer()
    layer.run()
    with torch.no_grad():
        for w in layer.parameters:
            w.mul_(-0.5)
        layer.weights[0].W_hh.data = torch.randn_like(layer.weights[0].W_hh)
    assert_same(layer.run(), layer.page())


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", ["x", "h0", "c0", "W_hh", "b_ih"])
def test_nan_and_infinity_go_where_the_page_takes_them(place: str, value: float) -> None:
    layer = random_layer(T=3, B=2)
    target = getattr(layer, place) if place in ("x", "h0", "c0") else None
    target = getattr(layer.weights[0], place) if target is None else target
    with torch.no_grad():
        target[(0,) * target.dim()] = value
    for found, expected in zip(layer.run(), layer.page(), strict=True):
        torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("D", [1, 2])
def test_a_batch_of_none(D: int) -> None:
    layer = random_layer(B=0, D=D, P=2)
    y, h_n, tape, c_n = layer.run()
    assert y.shape == (3, 0, 2 * D)
    assert (h_n.shape, c_n.shape, tape.shape) == ((D, 0, 2), (D, 0, 4), (D, 3, 0, 5, 4))
    (y.sum() + tape.sum()).backward()
    for w in layer.parameters:
        assert_same(w.grad, torch.zeros_like(w))


@pytest.mark.parametrize("packed", [False, True], ids=["dense", "packed"])
def test_the_bits_do_not_depend_on_the_number_of_threads(packed: bool) -> None:
    layer = random_layer(T=20, B=16, I=40, H=64, D=2, packed=packed, dtype=torch.float32)
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results = layer.run()
        loss = sum(r.square().sum() for r in results)
        runs.append((*results, *torch.autograd.grad(loss, layer.leaves)))
    for other in runs[1:]:
        assert_same(other, runs[0], atol=0, rtol=0)


# --- dtypes and devices ---------------------------------------------------------------------------


def in_double(layer: RandomLayer) -> RandomLayer:
    return RandomLayer(
        layer.cell,
        *(t.detach().double() for t in (layer.x, layer.h0, layer.c0)),
        [Weights(*(w if w is None else w.detach().double() for w in ws)) for ws in layer.weights],
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("isa", [i for i in ISAS if i not in PAIRS])
def test_short_floats_are_computed_in_float32_and_rounded_once(
    isa: str, dtype: torch.dtype
) -> None:
    layer = random_layer(D=2, P=2, T=6, dtype=dtype)
    with kernels(isa):
        y, h_n, tape, c_n = layer.run()
        y.float().sum().backward()
    assert (y.dtype, h_n.dtype, c_n.dtype, tape.dtype) == (dtype, dtype, dtype, torch.float32)
    for found, expected in zip((y, h_n, tape, c_n), in_double(layer).page(), strict=True):
        bound = torch.finfo(found.dtype).eps * (1 if found.dtype == dtype else 20)
        assert_same(found.double(), expected, atol=bound, rtol=bound)
    assert all(t.grad is not None and t.grad.dtype == dtype for t in layer.parameters)


@pytest.mark.parametrize("isa", PAIRS)
def test_where_pairs_are_multiplied_bfloat16_is_nearer_than_the_page_in_it(isa: str) -> None:
    """Sums and the tape are float32 there, too; and float16 is computed in it as anywhere."""
    layer, other = (
        random_layer(D=2, P=2, T=6, H=32, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)
    )
    with kernels(isa):
        results, tape = layer.run(), other.run()[2]
    assert [r.dtype for r in results] == [torch.bfloat16] * 2 + [torch.float32, torch.bfloat16]
    for found, short, exact in zip(results, layer.page(), in_double(layer).page(), strict=True):
        assert (found.double() - exact).norm() < (short.double() - exact).norm()
    assert (results[2] != results[2].bfloat16()).float().mean() > 0.9
    assert_same(tape.double(), in_double(other).page()[2], atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_gives_its_own_dtype_and_full_gradients(dtype: torch.dtype) -> None:
    layer = random_layer(dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        y, h_n, _, c_n = layer.run()
    assert y.dtype == h_n.dtype == c_n.dtype == dtype
    bound = torch.finfo(dtype).eps
    assert_same(y.float(), layer.page()[0], atol=bound, rtol=bound)
    y.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in layer.parameters)


def test_autocast_takes_mixed_dtypes_and_leaves_float64_alone() -> None:
    layer = random_layer(dtype=torch.float32)
    layer.x = layer.x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.run()[0].dtype == torch.bfloat16
        assert random_layer(dtype=torch.float64).run()[0].dtype == torch.float64


@pytest.mark.parametrize("place", ["x", "h0", "W_hh"])
@pytest.mark.parametrize("pair", ["float32 float64", "bfloat16 float32", "float64 float32"])
def test_mixed_dtypes_are_refused(pair: str, place: str) -> None:
    first, second = (getattr(torch, name) for name in pair.split())
    layer = random_layer(dtype=first)
    if place == "W_hh":
        layer.weights = [w._replace(W_hh=w.W_hh.to(second)) for w in layer.weights]
    else:
        setattr(layer, place, getattr(layer, place).to(second))
    with pytest.raises(TypeError, match=r"expected .*dtype of x"):
        layer.run()


def test_meta_tensors_give_shapes_and_no_warning() -> None:
    layer = random_layer(D=2, P=2)
    meta = RandomLayer(
        layer.cell,
        *(t.detach().to("meta") for t in (layer.x, layer.h0, layer.c0)),
        [Weights(*(w if w is None else w.detach().to("meta") for w in ws)) for ws in layer.weights],
    )
    for found, like in zip(meta.run(), layer.run(), strict=True):
        assert found.is_meta
        assert found.shape == like.shape
    meta.x.requires_grad_()
    meta.run()[0].sum().backward()
    assert meta.x.grad is not None
    assert meta.x.grad.shape == layer.x.shape


def test_what_no_kernel_has_runs_on_formulas_and_says_so_once(monkeypatch) -> None:
    monkeypatch.setattr(ops, "_warned", set())
    layer = random_layer("linear", dtype=torch.complex128)
    with pytest.warns(UserWarning, match="complex128.*plain torch formulas") as seen:
        found = layer.run()
    assert seen[0].filename == layers_file()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(layer.run(), found)
    assert_same(found, layer.page())


def test_a_cell_of_ones_own_runs_on_formulas(monkeypatch) -> None:
    monkeypatch.setattr(ops, "_warned", set())
    layer = random_layer()
    layer.cell = CellSpec("lstm", g="relu")  # the name alone does not make it a row of the table
    with pytest.warns(UserWarning, match="no kernel for cell 'lstm'"):
        found = layer.run()
    assert_same(found, layer.page())
    assert found[0].grad_fn is not None


def layers_file() -> str:
    """Where the warning should point: at whoever called ops.layer."""
    return sys.modules["layers"].__file__ or ""


@pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")
def test_torch_script_is_refused() -> None:
    layer = random_layer()
    with pytest.raises(RuntimeError, match=r"TorchScript.*torch\.export"):
        torch.jit.trace(lambda x: ops.layer(layer.cell, x, None, None, layer.weights)[0], layer.x)


def test_inference_keeps_nothing() -> None:
    layer = random_layer()
    with torch.no_grad():
        assert layer.run(keep_tape=False)[0].grad_fn is None
    for leaf in layer.leaves:
        leaf.requires_grad_(False)
    assert ops.layer(layer.cell, layer.x, None, None, layer.weights).output.grad_fn is None
    with torch.inference_mode():
        assert_same(layer.run()[0].clone(), formulas_output(layer))


def formulas_output(layer: RandomLayer) -> torch.Tensor:
    return formulas.layer(layer.cell, layer.x, None, layer.h0, layer.c0, *layer.weights[0])[0]


def test_without_the_core_the_remedy_is_said() -> None:
    code = (
        "import sys\n"
        "sys.modules['gatewise._core'] = None\n"
        "try:\n"
        "    import gatewise.ops\n"
        "except ImportError as error:\n"
        "    assert 'pip install .' in str(error), error\n"
        "    print('said')\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=120
    )
    assert ran.stdout.strip() == "said", ran.stderr
