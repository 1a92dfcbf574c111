"""unswap: torch.nn under a model again, as if ours had never been there."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from test_swapping import TOKENS, Initialised, Reader
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from twins import assert_close, assert_same

import gatewise

F64 = torch.float64
LAYERS = {
    "LSTM": {"num_layers": 2, "bidirectional": True, "proj_size": 2, "dropout": 0.25},
    "RNN": {"nonlinearity": "relu", "bias": False, "batch_first": True},
    "LSTMCell": {},
    "RNNCell": {"nonlinearity": "relu"},
}


@pytest.fixture
def model() -> nn.Module:
    return Reader().double().eval()


def test_back_is_where_it_came_from(model) -> None:
    before = copy.deepcopy(model)
    ids = [id(t) for t in (*model.modules(), *model.parameters())]
    gatewise.swap(model)
    rows = gatewise.unswap(model).replaced
    assert [id(t) for t in (*model.modules(), *model.parameters())] == ids
    assert rows[0] == ("encoder, again", "gatewise.LSTM -> torch.nn.LSTM", "")
    assert len(rows) == 4
    for ours, theirs in zip(model.modules(), before.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert vars(ours).keys() == vars(theirs).keys()
    assert_same(model, before, TOKENS)
    assert gatewise.unswap(model).replaced == ()


@pytest.mark.parametrize("name", LAYERS)
def test_one_that_was_ours_from_the_start(name) -> None:
    how = LAYERS[name]
    ours = getattr(gatewise, name)(3, 4, **how).double()
    theirs = getattr(nn, name)(3, 4, **how).double()
    theirs.load_state_dict(ours.state_dict())
    gatewise.unswap(ours)
    assert type(ours) is type(theirs)
    assert vars(ours).keys() == vars(theirs).keys()
    assert repr(ours) == repr(theirs)
    x = torch.randn(2, 3, dtype=F64)
    for m in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_same(m.eval(), theirs.eval(), x)
    gatewise.swap(ours)
    assert_same(ours, theirs, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_what_ours_cannot_do_it_can_again() -> None:
    model = nn.Sequential(gatewise.LSTM(3, 4)).eval()
    x = torch.randn(5, 2, 3)
    with pytest.raises(NotImplementedError, match=r"gatewise\.unswap"):
        torch.jit.script(model)
    expected = model(x)
    gatewise.unswap(model)
    assert_close(torch.jit.script(model)(x), expected)
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    assert "quantized" in type(quantized[0]).__module__


class Doubled(nn.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class Ours(gatewise.LSTM):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


def test_subclasses() -> None:
    model = nn.Sequential(Doubled(3, 4), Initialised(3), nn.LSTM(3, 4))
    before = copy.deepcopy(model)
    gatewise.swap(model, keep_type=True)
    gatewise.unswap(model)
    assert [type(m) for m in model] == [Doubled, nn.LSTM, nn.LSTM]
    x = torch.randn(5, 2, 3)
    for ours, theirs in zip(model, before, strict=True):
        assert_close(ours(x), theirs(x))
    left = gatewise.unswap(nn.Sequential(Ours(3, 4))).left
    assert left[0].why == "has its own forward, made for gatewise.LSTM"


def test_a_parametrization_stays() -> None:
    lstm = gatewise.LSTM(3, 4).double()
    parametrizations.weight_norm(lstm, "weight_hh_l0")
    before = copy.deepcopy(lstm)
    gatewise.unswap(lstm)
    assert isinstance(lstm, nn.LSTM)
    assert parametrize.is_parametrized(lstm, "weight_hh_l0")
    x = torch.randn(5, 2, 3, dtype=F64)
    assert_close(lstm(x), before(x))
    parametrize.remove_parametrizations(lstm, "weight_hh_l0")
    assert type(lstm) is nn.LSTM
    assert_close(lstm(x), before(x))


def test_what_torch_has_not_is_left() -> None:
    model = nn.Sequential(
        gatewise.LSTM(3, 4, cell="peephole"), gatewise.RNN(3, 4, cell="rnn_relu"), nn.GRU(3, 4)
    )
    back = gatewise.unswap(model)
    assert back.left == (("0", "gatewise.LSTM", "torch.nn has no cell 'peephole'"),)
    assert [row.name for row in back.replaced] == ["1"]
    assert type(model[0]) is gatewise.LSTM
    assert repr(model[1]) == repr(nn.RNN(3, 4, nonlinearity="relu"))
    assert vars(model[1])["nonlinearity"] == "relu"


def test_what_is_lost_is_told() -> None:
    lstm = gatewise.LSTM(3, 4, checkpoint=True)
    assert gatewise.unswap(lstm).replaced[0].why == "no longer with checkpoint=True"


@pytest.mark.parametrize("name", ["LSTM", "LSTMCell"])
def test_while_it_is_watched_it_is_left(name) -> None:
    model = nn.Sequential(getattr(gatewise, name)(3, 4))
    with gatewise.tracing(model):
        assert "is watched" in gatewise.unswap(model).left[0].why
    assert gatewise.unswap(model).left == ()


@pytest.mark.parametrize("bad", [None, gatewise.LSTM])
def test_what_is_no_model(bad) -> None:
    with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, got"):
        gatewise.unswap(bad)
