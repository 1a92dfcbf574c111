"""The constructors: arguments, parameters, initial values, state_dict, repr."""

from __future__ import annotations

import inspect
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import skip_init
from twins import OURS, assert_same, twins

import gatewise
from gatewise import CELLS

LAYERS = [
    (cls, dict(num_layers=L, bias=bias, bidirectional=two, **extra))
    for cls, extras in (
        (nn.LSTM, [{}, {"proj_size": 3}]),
        (nn.RNN, [{}, {"nonlinearity": "relu"}]),
    )
    for L, bias, two, extra in product((1, 3), (True, False), (True, False), extras)
]
CELL_MODULES = [
    (nn.LSTMCell, {}),
    (nn.LSTMCell, {"bias": False}),
    (nn.RNNCell, {}),
    (nn.RNNCell, {"bias": False, "nonlinearity": "relu"}),
]


@pytest.mark.parametrize(("cls", "options"), LAYERS + CELL_MODULES)
def test_same_seed_same_parameters_bit_for_bit(cls, options) -> None:
    ours, theirs = twins(cls, 5, 7, **options)
    mine, its = list(ours.named_parameters()), list(theirs.named_parameters())
    assert [name for name, _ in mine] == [name for name, _ in its]
    for (_, a), (_, b) in zip(mine, its, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.rand(3), twin_rand(cls, options))


def twin_rand(cls, options):
    """What torch's generator gives after making torch's module: ours must have drawn as much."""
    torch.manual_seed(11)
    cls(5, 7, **options)
    return torch.rand(3)


@pytest.mark.parametrize(("cls", "options"), LAYERS + CELL_MODULES)
def test_state_dict_goes_both_ways(cls, options) -> None:
    ours, theirs = OURS[cls](5, 7, **options), cls(5, 7, **options)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    again = OURS[cls](5, 7, **options)
    again.load_state_dict(theirs.state_dict(), strict=True)
    assert list(again.state_dict()) == list(ours.state_dict()) == list(theirs.state_dict())
    for a, b in zip(again.parameters(), ours.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("cls", "options"), LAYERS + CELL_MODULES)
def test_reads_like_torchs(cls, options) -> None:
    ours, theirs = twins(cls, 5, 7, **options)
    assert repr(ours) == repr(theirs)
    for name in ("input_size", "hidden_size", *options):
        assert getattr(ours, name) == getattr(theirs, name)
    if hasattr(theirs, "mode"):
        assert ours.mode == theirs.mode


@pytest.mark.parametrize("cls", OURS)
def test_positional_order_is_torchs(cls) -> None:
    mine = inspect.signature(OURS[cls]).parameters.values()
    documented = {
        nn.LSTM: "input_size hidden_size num_layers bias batch_first dropout bidirectional "
        "proj_size",
        nn.RNN: "input_size hidden_size num_layers nonlinearity bias batch_first dropout "
        "bidirectional",
        nn.LSTMCell: "input_size hidden_size bias",
        nn.RNNCell: "input_size hidden_size bias nonlinearity",
    }[cls]
    positional = [p.name for p in mine if p.kind is not p.KEYWORD_ONLY]
    assert positional == [*documented.split(), "device", "dtype"]


def test_every_argument_by_position() -> None:
    ours, theirs = twins(
        nn.LSTM, 5, 7, 2, False, True, 0.25, True, 3, torch.device("cpu"), torch.float64
    )
    assert repr(ours) == repr(theirs)
    assert ours.weight_hr_l1_reverse.dtype == torch.float64
    ours, theirs = twins(nn.RNN, 5, 7, 2, "relu", False, True, 0.25, True)
    assert repr(ours) == repr(theirs)
    assert ours.mode == theirs.mode == "RNN_RELU"


def test_names_of_the_weights() -> None:
    ours, theirs = twins(nn.LSTM, 5, 7, 2, bidirectional=True, proj_size=3)
    assert ours._flat_weights_names == theirs._flat_weights_names
    assert ours._all_weights == theirs._all_weights
    assert [[id(w) for w in lane] for lane in ours.all_weights] == [
        [id(getattr(ours, name)) for name in lane] for lane in theirs._all_weights
    ]
    assert [tuple(w.shape) for w in ours._flat_weights] == [
        tuple(w.shape) for w in theirs._flat_weights
    ]


@pytest.mark.parametrize("name", CELLS)
def test_every_row_has_the_weights_of_its_gates(name) -> None:
    cell = CELLS[name]
    lstm = gatewise.LSTM(5, 7, 2, bidirectional=True, proj_size=3, cell=name)
    G = len(cell.gates)
    assert lstm.weight_ih_l1.shape == (G * 7, 6)
    assert lstm.weight_hh_l0_reverse.shape == (G * 7, 3)
    assert lstm.bias_ih_l0.shape == lstm.bias_hh_l1_reverse.shape == (G * 7,)
    lanes = lstm._all_weights
    assert all((lane[-1].startswith("weight_peep")) == cell.peephole for lane in lanes)
    if cell.peephole:
        assert lstm.weight_peep_l1_reverse.shape == (3, 7)
    assert gatewise.RNN(5, 7, cell=name).cell is cell


def test_extra_repr_names_the_row() -> None:
    assert repr(gatewise.LSTM(5, 7, cell="coupled")) == "LSTM(5, 7, cell=coupled)"


def test_dropout_without_a_second_layer_warns_at_the_callers_line() -> None:
    for cls in (gatewise.LSTM, gatewise.RNN):
        with pytest.warns(UserWarning, match="dropout option adds dropout after all") as seen:
            cls(5, 7, dropout=0.5)
        assert seen[0].filename == __file__


@pytest.mark.parametrize("cls", OURS)
def test_device_and_dtype_are_those_asked_for(cls) -> None:
    module = OURS[cls](5, 7, device="meta", dtype=torch.float64)
    assert all(p.is_meta and p.dtype == torch.float64 for p in module.parameters())
    real = module.to_empty(device="cpu")
    torch.manual_seed(11)
    real.reset_parameters()
    torch.manual_seed(11)
    theirs = cls(5, 7, dtype=torch.float64)
    for a, b in zip(real.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
    skipped = skip_init(OURS[cls], 5, 7)
    assert [p.shape for p in skipped.parameters()] == [p.shape for p in theirs.parameters()]


def test_default_dtype_and_device_are_obeyed() -> None:
    torch.set_default_dtype(torch.float64)
    assert gatewise.LSTM(5, 7).weight_ih_l0.dtype == torch.float64
    with torch.device("meta"):
        assert gatewise.LSTM(5, 7).weight_ih_l0.is_meta


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", [np.int64, np.int32, torch.tensor], ids=str)
def test_integers_that_torch_takes(kind) -> None:
    for cls, sizes, options in (
        (nn.LSTM, (5, 7, kind(2)), {"proj_size": kind(3)}),
        (nn.RNN, (5, 7, kind(2)), {}),
        (nn.LSTMCell, (kind(5), kind(7)), {}),
        (nn.RNNCell, (kind(5), kind(7)), {}),
    ):
        ours, theirs = twins(cls, *sizes, **options)
        assert_same(ours, theirs, torch.randn(4, 5, requires_grad=True))
        assert all(type(v) is int for name, v in vars(ours).items() if name.endswith("_size"))


def test_peephole_weights_start_within_the_same_range() -> None:
    peep = gatewise.LSTM(5, 100, cell="peephole").weight_peep_l0
    assert 0.05 < peep.abs().max() <= 0.1


# --- a setting that changes later ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value"), [("num_layers", 1), ("batch_first", True), ("dropout", 1.0)]
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_setting_may_change_as_in_torch(setting, value, batch_first) -> None:
    ours, theirs = twins(nn.LSTM, 5, 7, 2, batch_first=batch_first)
    for module in (ours, theirs):
        setattr(module, setting, value)
    x = torch.randn(3, 3, 5)  # T and B may change places
    assert_same(ours, theirs, x)
    assert_same(ours, theirs, x, tuple(torch.randn(module_rows(theirs), 3, 7) for _ in "hc"))


def test_biases_may_be_left_out_later() -> None:
    """torch then reads other memory than it should."""
    ours, without = gatewise.LSTM(5, 7, 2), gatewise.LSTM(5, 7, 2, bias=False)
    without.load_state_dict(ours.state_dict(), strict=False)
    x = torch.randn(3, 3, 5)
    assert not torch.equal(ours(x)[0], without(x)[0])
    ours.bias = False
    assert torch.equal(ours(x)[0], without(x)[0])


def module_rows(module: nn.Module) -> int:
    return module.num_layers * (2 if module.bidirectional else 1)


def test_a_setting_that_asks_for_weights_which_are_not_there_is_refused_by_their_name() -> None:
    for setting, value, missing in (
        ("num_layers", 3, "weight_ih_l2"),
        ("bidirectional", True, "weight_ih_l0_reverse"),
        ("proj_size", 2, "weight_hr_l0"),
    ):
        ours = gatewise.LSTM(5, 7, 2)
        setattr(ours, setting, value)
        with pytest.raises(AttributeError, match=f"no attribute '{missing}'"):
            ours(torch.randn(3, 3, 5))
