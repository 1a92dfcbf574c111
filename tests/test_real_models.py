"""What packages make of torch's layers, written small: each must work on ours after a swap."""

from __future__ import annotations

import abc
import copy
import io
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from twins import assert_close, assert_same, flat

import gatewise

F64 = torch.float64


def swapped(model: nn.Module, **options: bool) -> tuple[nn.Module, nn.Module]:
    """A model on ours, and as it was."""
    model = model.double()
    before = copy.deepcopy(model)
    gatewise.swap(model, **options)
    return model, before


def padded(B: int = 3, T: int = 5, I: int = 4) -> Tensor:
    return torch.linspace(-1, 1, B * T * I, dtype=F64).reshape(B, T, I).sin().requires_grad_()


# --- subclasses with a forward of their own ------------------------------------------------------


class ByLengths(abc.ABC, nn.RNNBase):
    """Takes padded sequences and their lengths, of which some may be zero, as a forecaster does."""

    @abc.abstractmethod
    def nothing_read(self, state, empty): ...

    def forward(self, x, hx=None, lengths=None):
        if lengths is None:
            return super().forward(x, hx)
        packed = rnn.pack_padded_sequence(
            x, lengths.clamp(min=1), batch_first=self.batch_first, enforce_sorted=False
        )
        output, state = super().forward(packed, hx)
        state = self.nothing_read(state, (lengths == 0)[None, :, None])
        return rnn.pad_packed_sequence(output, batch_first=self.batch_first)[0], state


class LSTMByLengths(ByLengths, nn.LSTM):
    def nothing_read(self, state, empty):
        return tuple(s.masked_fill(empty, 0.0) for s in state)


class LastStep(nn.LSTMCell):
    """Two steps a call, by the older form of super."""

    def forward(self, x, hx=None):
        hx = super(LastStep, self).forward(x, hx)  # noqa: UP008
        return super().forward(x, hx)


class Summarising(nn.RNN):
    def __call__(self, *args):
        return super().__call__(*args)[0][-1]


SUBCLASSES = [
    (lambda: LSTMByLengths(4, 3, 2, batch_first=True), (padded(), None, torch.tensor([2, 0, 5]))),
    (lambda: LSTMByLengths(4, 3, bidirectional=True), (padded(),)),
    (lambda: LastStep(4, 3), (padded()[0],)),
    (lambda: Summarising(4, 3, nonlinearity="relu"), (padded(),)),
]


@pytest.mark.parametrize(("make", "args"), SUBCLASSES)
def test_a_forward_of_its_own_runs_over_our_layer(make, args, monkeypatch) -> None:
    ours, before = swapped(make())
    assert isinstance(ours, type(before))
    assert isinstance(ours, gatewise.LSTM | gatewise.RNN | gatewise.LSTMCell)
    assert repr(ours) == repr(before)
    assert set(vars(ours)) == set(vars(gatewise.swap(copy.deepcopy(before)).model))
    assert_same(ours, before, *args)
    for name in ("lstm", "lstm_cell", "rnn_relu"):  # torch's own operations are not asked
        monkeypatch.setattr(torch, name, None)
        monkeypatch.setattr(torch._VF, name, None, raising=False)
    ours(*args)


def test_the_list_says_what_a_subclass_keeps() -> None:
    model = nn.Sequential(LSTMByLengths(4, 3))
    done = gatewise.swap(model)
    assert done.replaced[0].what.endswith("LSTMByLengths -> gatewise.LSTM")
    assert done.replaced[0].why == "keeps its own forward, nothing_read"
    assert gatewise.swap(model).replaced == ()


@pytest.mark.parametrize(("make", "args"), SUBCLASSES)
def test_a_subclass_is_copied_pickled_moved_and_loaded(make, args) -> None:
    ours, before = swapped(make())
    expected = ours(*args)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    for copied in (
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(file, weights_only=False),
    ):
        assert isinstance(copied, gatewise.LSTM | gatewise.RNN | gatewise.LSTMCell)
        assert_close(copied(*args), expected)
    ours.float().double()
    before.float().double()
    assert_same(ours, before, *args)
    for p in before.parameters():
        p.data.mul_(2.0)
    ours.load_state_dict(before.state_dict())
    assert_same(ours, before, *args)
    name = next(iter(ours._parameters))
    setattr(ours, name, nn.Parameter(torch.zeros_like(getattr(ours, name))))
    setattr(before, name, nn.Parameter(torch.zeros_like(getattr(before, name))))
    assert_same(ours, before, *args)


def test_a_subclass_keeps_its_weight_norm() -> None:
    ours = nn.Sequential(LSTMByLengths(4, 3, dtype=F64))
    parametrizations.weight_norm(ours[0], "weight_hh_l0")
    before = copy.deepcopy(ours)
    gatewise.swap(ours)
    assert isinstance(ours[0], gatewise.LSTM)
    assert_same(ours, before, padded())
    assert_same(copy.deepcopy(ours), before, padded())


def test_a_subclass_is_traced() -> None:
    ours, _ = swapped(nn.Sequential(LSTMByLengths(4, 3)))
    with gatewise.tracing(ours) as traces:
        output, (h_n, _) = ours(padded())
    assert_close(traces["0"].h[0, 0], output)
    assert_close(traces["0"].h[0, 0, -1], h_n[0])


# --- a model that asks what its layer is ---------------------------------------------------------


class Asking(nn.Module):
    """Packs for torch's layer; hands a mask to any other, as an agent's memory does."""

    def __init__(self):
        super().__init__()
        self.memory = nn.LSTM(4, 3, batch_first=True)

    def forward(self, x, lengths):
        if not isinstance(self.memory, nn.LSTM):
            return self.memory(x, mask=lengths)
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return rnn.pad_packed_sequence(self.memory(packed)[0], batch_first=True)[0]


def test_keep_type_for_a_model_that_asks() -> None:
    args = padded(), torch.tensor([2, 1, 5])
    plain, _ = swapped(Asking())
    with pytest.raises(TypeError, match="mask"):
        plain(*args)
    ours, before = swapped(Asking(), keep_type=True)
    assert type(ours.memory).__mro__.index(gatewise.LSTM) < type(ours.memory).__mro__.index(nn.LSTM)
    assert_same(ours, before, *args)
    assert_same(pickle.loads(pickle.dumps(ours)), before, *args)
    assert gatewise.swap(ours).replaced == ()


@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN, nn.LSTMCell, nn.RNNCell])
def test_keep_type_of_each(cls) -> None:
    ours, before = swapped(cls(4, 3), keep_type=True)
    plain, _ = swapped(copy.deepcopy(before))
    assert isinstance(ours, cls)
    assert not isinstance(plain, cls)
    assert isinstance(ours, getattr(gatewise, cls.__name__))
    assert repr(ours) == repr(before)
    assert set(vars(ours)) == set(vars(plain))
    ours.apply(lambda m: nn.init.orthogonal_(m.weight_hh_l0) if isinstance(m, nn.LSTM) else None)
    for m in (before, plain):
        m.load_state_dict(ours.state_dict())
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert_same(twin, before, padded()[0])
    assert all(map(torch.equal, flat(ours(padded()[0])), flat(plain(padded()[0]))))
