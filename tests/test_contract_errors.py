"""Bad input: where torch raises, ours raises the same type, with torch's words and the remedy."""

from __future__ import annotations

import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.testing._internal import common_modules
from torch.testing._internal.common_modules import ModuleErrorEnum
from twins import OURS, twins

import gatewise
from gatewise.errors import ArgumentError, GatewiseError, ShapeError

zeros = torch.zeros

TORCHS = [
    (cls, sample)
    for cls, make in (
        (nn.LSTM, common_modules.module_error_inputs_torch_nn_RNN_GRU),
        (nn.RNN, common_modules.module_error_inputs_torch_nn_RNN_GRU),
        (nn.LSTMCell, common_modules.module_error_inputs_torch_nn_LSTMCell),
        (nn.RNNCell, common_modules.module_error_inputs_torch_nn_RNN_GRU_Cell),
    )
    for sample in make(None, "cpu", torch.float32, requires_grad=False, training=False)
]


@pytest.mark.parametrize(("cls", "sample"), TORCHS)
def test_torchs_error_samples(cls, sample) -> None:
    made, call = (
        sample.module_error_input.constructor_input,
        sample.module_error_input.forward_input,
    )
    raises = pytest.raises(sample.error_type, match=sample.error_regex)
    if sample.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
        with raises:
            OURS[cls](*made.args, **made.kwargs)
    else:
        module = OURS[cls](*made.args, **made.kwargs)
        with raises:
            module(*call.args, **call.kwargs)


SETTINGS = [
    (nn.LSTM, args, {})
    for args in [(3, 0), (0, 3), (-1, 3), (3.0, 4), (3, 4.0), (3, "4"), (3, 4, 0), (3, 4, 2.0)]
]
SETTINGS += [
    (nn.LSTM, (3, 4), setting)
    for setting in [
        {"dropout": True}, {"dropout": -0.1}, {"dropout": 1.5}, {"dropout": float("nan")},
        {"dropout": "a"}, {"dropout": None}, {"bias": 1}, {"bias": None}, {"batch_first": 1},
        {"num_layers": 0}, {"num_layers": "1"}, {"proj_size": -1}, {"proj_size": 4},
        {"proj_size": 9}, {"proj_size": 1.5}, {"dtype": torch.int32}, {"nonsense": 1},
    ]
]  # fmt: skip
SETTINGS += [
    (nn.RNN, (3, 4), setting)
    for setting in [{"nonlinearity": "x"}, {"nonlinearity": 3}, {"proj_size": 2}, {"bias": 0}]
]
SETTINGS += [
    (cls, args, {}) for cls in (nn.LSTMCell, nn.RNNCell) for args in [(-1, 3), (3, -4), (3.0, 4)]
]

#: Where torch's words come from deep inside and say nothing to the caller, ours are others.
UNTOLD = (
    "argument must be", "could not convert", "cannot be interpreted", "not supported between",
    "failed to unpack", "negative dimension", "got an unexpected keyword",
    "got an invalid combination",
)  # fmt: skip


@pytest.mark.parametrize(("cls", "args", "options"), SETTINGS)
def test_settings(cls, args, options) -> None:
    with pytest.raises((ValueError, TypeError, RuntimeError)) as theirs:
        cls(*args, **options)
    with pytest.raises(theirs.type) as ours:
        OURS[cls](*args, **options)
    said = str(theirs.value)
    if not any(words in said for words in UNTOLD):
        assert said.rstrip(".") in str(ours.value)


def packed(*sizes, I=3, dtype=torch.float32):
    batch_sizes = torch.tensor(sizes)
    return PackedSequence(zeros(int(batch_sizes.sum()), I, dtype=dtype), batch_sizes)


S = partial(zeros, 1, 2, 4)  # a good state of LSTM(3, 4) for a batch of two
CALLS = [
    # what, module, arguments, torch's words or the reason for which ours are others
    ("rank 1", nn.LSTM, (zeros(3),), None),
    ("rank 4", nn.LSTM, (zeros(1, 5, 2, 3),), None),
    ("rank 1", nn.RNN, (zeros(3),), None),
    ("features", nn.LSTM, (zeros(5, 2, 7),), None),
    ("features", nn.RNN, (zeros(5, 7),), None),
    ("no steps", nn.LSTM, (zeros(0, 2, 3),), None),
    ("no steps, no batch", nn.LSTM, (zeros(0, 0, 3),), None),
    ("no steps, one sequence", nn.RNN, (zeros(0, 3),), None),
    ("dtype", nn.LSTM, (zeros(5, 2, 3).double(),), None),
    ("dtype", nn.RNN, (zeros(5, 2, 3).half(),), None),
    ("integers", nn.LSTM, (zeros(5, 2, 3).long(),), None),
    ("device", nn.LSTM, (zeros(5, 2, 3, device="meta"),), None),
    ("layers of h", nn.LSTM, (zeros(5, 2, 3), (zeros(2, 2, 4), S())), None),
    ("batch of h", nn.LSTM, (zeros(5, 2, 3), (zeros(1, 3, 4), S())), None),
    ("units of h", nn.LSTM, (zeros(5, 2, 3), (zeros(1, 2, 5), S())), None),
    ("layers of c", nn.LSTM, (zeros(5, 2, 3), (S(), zeros(2, 2, 4))), None),
    ("units of c", nn.LSTM, (zeros(5, 2, 3), (S(), zeros(1, 2, 5))), None),
    ("layers of h", nn.RNN, (zeros(5, 2, 3), zeros(2, 2, 4)), None),
    ("units of h", nn.RNN, (zeros(5, 2, 3), zeros(1, 2, 3)), None),
    ("state of one sequence", nn.LSTM, (zeros(5, 3), (zeros(2, 4), zeros(2, 4))), None),
    ("rank of h", nn.LSTM, (zeros(5, 2, 3), (zeros(1, 4), S())), None),
    ("rank of c", nn.LSTM, (zeros(5, 3), (zeros(1, 4), S())), None),
    ("rank of h", nn.RNN, (zeros(5, 2, 3), zeros(1, 4)), None),
    ("rank of h", nn.RNN, (zeros(5, 3), zeros(1, 1, 4)), None),
    ("device of h", nn.LSTM, (zeros(5, 2, 3), (S(device="meta"), S())), None),
    ("three states", nn.LSTM, (zeros(5, 2, 3), (S(), S(), S())), None),
    ("one tensor for two", nn.LSTM, (zeros(5, 2, 3), zeros(2, 1, 2, 4)), "hx should be a tuple"),
    ("dtype of h", nn.LSTM, (zeros(5, 2, 3), (S().double(), S())), r"hidden\[0\] dtype"),
    ("dtype of c", nn.LSTM, (zeros(5, 2, 3), (S(), S().double())), r"hidden\[1\] dtype"),
    ("dtype of h", nn.RNN, (zeros(5, 2, 3), S().double()), "hidden dtype"),
    ("packed dtype", nn.LSTM, (packed(2, 1, dtype=torch.float64),), "RNN input dtype"),
    (
        "packed state",
        nn.LSTM,
        (packed(2, 1), (zeros(1, 3, 4), zeros(1, 3, 4))),
        r"hidden\[0\] size",
    ),
    ("packed state", nn.RNN, (packed(2, 1), zeros(1, 3, 4)), None),
    ("packed features", nn.RNN, (packed(2, 1, I=4),), None),
    ("packed rank", nn.RNN, (PackedSequence(zeros(3, 1, 3), torch.tensor([2, 1])),), None),
    ("packed of none", nn.RNN, (packed(),), None),
    ("packed growing", nn.RNN, (packed(1, 2),), "batch_sizes"),
    (
        "packed too short",
        nn.RNN,
        (PackedSequence(zeros(4, 3), torch.tensor([2, 1])),),
        "batch_sizes",
    ),
    (
        "packed too long",
        nn.RNN,
        (PackedSequence(zeros(2, 3), torch.tensor([2, 1])),),
        "batch_sizes",
    ),
    ("packed zero", nn.RNN, (PackedSequence(zeros(2, 3), torch.tensor([2, 0])),), "at least 1"),
    (
        "packed negative",
        nn.RNN,
        (PackedSequence(zeros(1, 3), torch.tensor([2, -1])),),
        "batch_sizes",
    ),
    (
        "packed of two axes",
        nn.LSTM,
        (PackedSequence(zeros(2, 3), torch.ones(2, 1, dtype=torch.int64)),),
        "1 dimension",
    ),
    (
        "packed of no axis",
        nn.LSTM,
        (PackedSequence(zeros(2, 3), torch.tensor(2)),),
        "1 dimension",
    ),
    ("packed of int32", nn.LSTM, (PackedSequence(zeros(2, 3), torch.tensor([2]).int()),), "int64"),
    ("rank 3", nn.LSTMCell, (zeros(2, 2, 3),), None),
    ("rank 0", nn.RNNCell, (zeros(()),), None),
    ("features", nn.LSTMCell, (zeros(2, 5),), None),
    ("features, one", nn.RNNCell, (zeros(5),), None),
    ("units of h", nn.LSTMCell, (zeros(2, 3), (zeros(2, 5), zeros(2, 4))), None),
    ("batch of h", nn.LSTMCell, (zeros(2, 3), (zeros(3, 4), zeros(2, 4))), None),
    ("units of c", nn.LSTMCell, (zeros(2, 3), (zeros(2, 4), zeros(2, 5))), None),
    ("batch of c", nn.LSTMCell, (zeros(2, 3), (zeros(2, 4), zeros(3, 4))), None),
    ("h of one, batch", nn.LSTMCell, (zeros(2, 3), (zeros(4), zeros(4))), None),
    ("h of a batch, one", nn.LSTMCell, (zeros(3), (zeros(1, 4), zeros(1, 4))), None),
    ("h of one, batch of as many", nn.RNNCell, (zeros(4, 3), zeros(4)), "hidden0"),
    ("three states", nn.LSTMCell, (zeros(2, 3), (zeros(2, 4),) * 3), "two hidden states"),
    ("one state", nn.LSTMCell, (zeros(2, 3), (zeros(2, 4),)), "two hidden states"),
    ("tensor for two", nn.LSTMCell, (zeros(2, 3), zeros(2, 2, 4)), "hx should be a tuple"),
    ("dtype", nn.LSTMCell, (zeros(2, 3).double(),), "must have the same dtype"),
    ("dtype of h", nn.RNNCell, (zeros(2, 3), zeros(2, 4).double()), "must have the same dtype"),
]


@pytest.mark.parametrize(
    ("cls", "args", "words"),
    [pytest.param(*call, id=f"{call[0].__name__}: {what}") for what, *call in CALLS],
)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_calls(cls, args, words, grad) -> None:
    ours, theirs = twins(cls, 3, 4)
    with torch.set_grad_enabled(grad):
        with pytest.raises(GatewiseError) as got:
            ours(*args)
        if words is None:
            with pytest.raises((ValueError, RuntimeError, TypeError, IndexError)) as expected:
                theirs(*args)
            said = str(expected.value).rstrip(".")
            if expected.type is IndexError:
                return  # torch noticed too late to say what was wrong
            assert issubclass(got.type, expected.type)
            assert said in str(got.value)
            assert len(str(got.value)) > len(said) + 20 or "Convert" in said, "no remedy"
        else:
            assert re.search(words, str(got.value))


@pytest.mark.parametrize("bad", [None, [1.0], np.zeros((5, 2, 3)), "abc"])
def test_input_that_is_no_tensor(bad) -> None:
    for module in (
        gatewise.LSTM(3, 4),
        gatewise.RNN(3, 4),
        gatewise.LSTMCell(3, 4),
        gatewise.RNNCell(3, 4),
    ):
        with pytest.raises(TypeError, match="input should be a Tensor"):
            module(bad)


@pytest.mark.parametrize("bad", [(None, None), (S(), None), "ab", 3, ()])
def test_states_that_are_no_tensors(bad) -> None:
    with pytest.raises((TypeError, RuntimeError), match=r"hx should be a tuple|two hidden states"):
        gatewise.LSTM(3, 4)(zeros(5, 2, 3), bad)
    with pytest.raises(TypeError, match="hx should be a Tensor"):
        gatewise.RNN(3, 4)(zeros(5, 2, 3), bad)


def test_the_remedy_fits_what_is_no_tensor() -> None:
    with pytest.raises(TypeError, match=r"got NoneType\. It cannot be left out"):
        gatewise.LSTM(3, 4)(None)
    with pytest.raises(TypeError, match=r"Convert it: torch\.as_tensor\(input\)"):
        gatewise.LSTM(3, 4)(np.zeros((5, 2, 3)))
    with pytest.raises(TypeError, match=r"Give one of its Tensors alone: hx\[0\]"):
        gatewise.RNN(3, 4)(zeros(5, 2, 3), (S(), S()))


def test_the_first_fault_is_named_in_torchs_order() -> None:
    """Rank of the input, of the states, dtype, features, hidden[0], hidden[1], then T = 0."""
    lstm = gatewise.LSTM(3, 4)
    faults = [
        (zeros(3).double(), (zeros(4), zeros(4)), "2D or 3D"),
        (zeros(0, 2, 7).double(), (zeros(4), zeros(4)), "hx and cx"),
        (zeros(0, 2, 7).double(), (zeros(1, 1, 1), zeros(1, 1, 1)), "dtype"),
        (zeros(0, 2, 7), (zeros(1, 1, 1), zeros(1, 1, 1)), "input_size"),
        (zeros(0, 2, 3), (zeros(1, 1, 1), zeros(1, 1, 1)), r"hidden\[0\]"),
        (zeros(0, 2, 3), (S(), zeros(1, 1, 1)), r"hidden\[1\]"),
        (zeros(0, 2, 3), (S(), S()), "sequence length"),
    ]
    for x, hx, words in faults:
        with pytest.raises(GatewiseError, match=words):
            lstm(x, hx)


def test_unsorted_packed_state_is_measured_before_it_is_sorted() -> None:
    lstm = gatewise.LSTM(3, 4)
    unsorted = pack_sequence([zeros(2, 3), zeros(3, 3)], enforce_sorted=False)
    for B in (1, 3):
        with pytest.raises(RuntimeError, match=re.escape("Expected hidden[0] size (1, 2, 4)")):
            lstm(unsorted, (zeros(1, B, 4), zeros(1, B, 4)))


def test_unknown_row_lists_the_rows() -> None:
    with pytest.raises(ValueError, match=r"Unknown cell 'gru'\. Select from lstm, rnn"):
        gatewise.LSTM(3, 4, cell="gru")
    with pytest.raises(ValueError, match="Unknown cell"):
        gatewise.RNN(3, 4, cell="gru")
    for no_name in (["lstm"], gatewise.CELLS["lstm"]):
        with pytest.raises(ValueError, match=r"cell: expected a name, got \w+\. Select from lstm"):
            gatewise.LSTM(3, 4, cell=no_name)  # type: ignore[arg-type]


def test_unknown_nonlinearity_of_a_cell() -> None:
    cell = gatewise.RNNCell(3, 4, nonlinearity="x")  # torch, too, says so at the call
    with pytest.raises(RuntimeError, match="Unknown nonlinearity"):
        cell(zeros(2, 3))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("weight_ih_l0", (16, 2)), ("weight_ih_l0", (12, 3)), ("weight_hh_l0", (16, 3)),
     ("bias_hh_l0", (15,)), ("bias_ih_l0", (16, 1)), ("weight_ih_l0", (16,))],
)  # fmt: skip
def test_a_weight_that_does_not_fit_raises(name, shape) -> None:
    lstm = gatewise.LSTM(3, 4)
    setattr(lstm, name, nn.Parameter(torch.zeros(shape)))
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises((ValueError, RuntimeError)):
            lstm(zeros(5, 2, 3))


@pytest.mark.parametrize("shape", [(7, 4), (0, 4), (16,), (16, 4, 1), ()])
@pytest.mark.parametrize(("cls", "name"), [("LSTM", "weight_hh_l0"), ("LSTMCell", "weight_hh")])
def test_a_weight_that_tells_no_hidden_size_is_refused_by_what_it_is(cls, name, shape) -> None:
    module = getattr(gatewise, cls)(3, 4)
    setattr(module, name, nn.Parameter(torch.zeros(shape)))
    got = str(shape).replace(",)", ")")
    words = rf"W_hh: expected shape \(G\*H, P\) with G = 4, got {re.escape(got)}; give each"
    with pytest.raises(ShapeError, match=words):
        module(zeros(5, 3))


@pytest.mark.parametrize(
    ("cls", "name"),
    [("LSTM", "weight_ih_l0"), ("LSTM", "weight_hh_l0"), ("LSTM", "bias_ih_l0"),
     ("RNN", "weight_hh_l0"), ("LSTMCell", "weight_ih"), ("LSTMCell", "weight_hh"),
     ("RNNCell", "weight_hh")],
)  # fmt: skip
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_a_weight_that_was_set_to_none_is_named(cls, name, grad) -> None:
    module = getattr(gatewise, cls)(3, 4)
    setattr(module, name, None)
    with torch.set_grad_enabled(grad), pytest.raises(ArgumentError, match=f"{name} .* got None"):
        module(zeros(5, 3))


@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(("name", "field"), [("weight_hh_l0", "W_hh"), ("bias_ih_l0", "b_ih")])
def test_a_weight_of_another_dtype_raises(name, field, grad) -> None:
    lstm = gatewise.LSTM(3, 4)
    setattr(lstm, name, nn.Parameter(getattr(lstm, name).detach().double()))
    said = re.escape(f"{field}: expected the dtype of x (float32), got float64; convert it")
    with torch.set_grad_enabled(grad), pytest.raises(GatewiseError, match=said) as raised:
        lstm(zeros(5, 2, 3))
    assert isinstance(raised.value, RuntimeError)  # which is what torch raises


def test_autocast_leaves_float64_alone_so_it_does_not_fit() -> None:
    said = re.escape("W_ih: expected the dtype of x (float64), got float32; convert it")
    with torch.autocast("cpu"), pytest.raises(GatewiseError, match=said):
        gatewise.LSTM(3, 4)(zeros(5, 2, 3).double())


def test_what_a_wrong_state_is_made_of_is_said() -> None:
    lstm, x = gatewise.LSTM(3, 4), zeros(5, 2, 3)
    for bad, got in (((None, None), "tuple of NoneType, NoneType"), ([], "list of nothing")):
        with pytest.raises(TypeError, match=f"got {got}"):
            lstm(x, bad)


def test_the_layout_of_the_input_is_that_of_the_call() -> None:
    for x, layout in (
        (zeros(5, 2, 7), "(B, T, I)"), (zeros(5, 7), "(T, I)"), (packed(2, 1, I=7), "(N, I)"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(f"input is {layout}, I = 3")):
            gatewise.LSTM(3, 4, batch_first=True)(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_input_that_is_not_dense() -> None:
    nested = torch.nested.nested_tensor([zeros(5, 3), zeros(2, 3)])
    for x, remedy in ((zeros(5, 2, 3).to_sparse(), ".to_dense()"), (nested, "pack_sequence")):
        with pytest.raises(RuntimeError, match=re.escape(remedy)):
            gatewise.LSTM(3, 4)(x)


def test_states_that_are_not_dense() -> None:
    sparse = zeros(1, 2, 4).to_sparse()
    for call, name in (
        (lambda: gatewise.LSTM(3, 4)(zeros(5, 2, 3), (sparse, sparse)), "hidden[0]"),
        (lambda: gatewise.RNN(3, 4)(zeros(5, 2, 3), sparse), "hidden"),
        (lambda: gatewise.LSTMCell(4, 4)(zeros(2, 4), (zeros(2, 4), sparse[0])), "hx[1]"),
        (lambda: gatewise.RNNCell(4, 4)(zeros(2, 4), sparse[0]), "hidden"),
    ):
        words = re.escape(f"{name} should be a dense Tensor, got one of layout torch.sparse_coo")
        with pytest.raises(ArgumentError, match=words):
            call()


@pytest.mark.parametrize(("cls", "name"), [("RNN", "weight_ih_l0"), ("LSTMCell", "weight_hh")])
def test_a_weight_that_is_not_dense(cls, name) -> None:
    module = getattr(gatewise, cls)(4, 4)
    setattr(module, name, nn.Parameter(getattr(module, name).detach().to_sparse()))
    words = f"{name} should be a dense Tensor, got one of layout torch.sparse_coo"
    with pytest.raises(ArgumentError, match=words):
        module(zeros(5, 4))


def test_torchscript_says_that_it_is_not_supported() -> None:
    for module in (gatewise.LSTM(3, 4), nn.Sequential(gatewise.RNN(3, 4)), gatewise.LSTMCell(3, 4)):
        example = (zeros(5, 3) if not isinstance(module, gatewise.LSTMCell) else zeros(3),)
        for convert in (torch.jit.script, partial(torch.jit.trace, example_inputs=example)):
            with (
                pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit"),
                pytest.raises(NotImplementedError, match="do not support TorchScript"),
            ):
                convert(module)
