"""swap: what it replaces, what stays as it was, what it leaves and what it says."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.rnn import pack_sequence
from twins import assert_close, assert_same, flat

import gatewise

F64 = torch.float64


class Reader(nn.Module):
    """An encoder and a decoder as people write them."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.encoder = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True, dropout=0.25)
        self.parts = nn.ModuleDict({"rnn": nn.RNN(16, 5, nonlinearity="relu", batch_first=True)})
        self.cells = nn.ModuleList([nn.LSTMCell(5, 4), nn.RNNCell(4, 3)])
        self.again = self.encoder
        self.head = nn.Sequential(nn.Linear(3, 2), nn.GRU(2, 2))

    def forward(self, tokens):
        x, _ = self.encoder(self.embed(tokens))
        x, _ = self.parts["rnn"](x)
        h, _ = self.cells[0](x[:, -1])
        return self.head(self.cells[1](h))[0]


@pytest.fixture
def model():
    return Reader().double().eval()


TOKENS = torch.arange(12).reshape(3, 4)


def test_same_results_and_gradients_after_the_swap(model) -> None:
    before = copy.deepcopy(model)
    gatewise.swap(model)
    assert_same(model, before, TOKENS)
    model.train()
    before.train()
    results = []
    for m in (model, before):  # the dropout between the layers too
        torch.manual_seed(3)
        results.append(m(TOKENS))
    assert_close(*results)


def test_the_list_of_what_was_done(model) -> None:
    swapped = gatewise.swap(model)
    assert swapped.model is model
    assert swapped.replaced == (
        ("encoder, again", "torch.nn.LSTM -> gatewise.LSTM", ""),
        ("parts.rnn", "torch.nn.RNN -> gatewise.RNN", ""),
        ("cells.0", "torch.nn.LSTMCell -> gatewise.LSTMCell", ""),
        ("cells.1", "torch.nn.RNNCell -> gatewise.RNNCell", ""),
    )
    assert swapped.left == (("head.1", "torch.nn.GRU", "gatewise has no such cell"),)
    lines = str(swapped).splitlines()
    assert lines[0] == "replaced  encoder, again  torch.nn.LSTM -> gatewise.LSTM"
    assert lines[-1].split("  ")[0] == "left"
    assert lines[-1].endswith("gatewise has no such cell")


def test_the_second_call_has_nothing_to_do(model) -> None:
    first = gatewise.swap(model)
    classes = [type(m) for m in model.modules()]
    second = gatewise.swap(model)
    assert second.replaced == ()
    assert second.left == first.left
    assert classes == [type(m) for m in model.modules()]


def test_identity_is_kept_whatever_holds_the_module(model) -> None:
    held = [model.encoder]  # a list that no module knows of
    ids = [id(m) for m in model.modules()]
    names = list(model.state_dict())
    gatewise.swap(model)
    assert [id(m) for m in model.modules()] == ids
    assert list(model.state_dict()) == names
    assert type(held[0]) is gatewise.LSTM
    assert model.again is model.encoder


def test_parameters_are_the_same_and_an_older_optimizer_trains_them(model) -> None:
    model.train()
    model.encoder.weight_hh_l0.requires_grad_(False)
    before = copy.deepcopy(model)
    steps = []
    for m in (model, before):
        optimizer = torch.optim.Adam(m.parameters(), lr=0.01)
        ids = [id(p) for p in m.parameters()]
        if m is model:
            gatewise.swap(m)
        assert [id(p) for p in m.parameters()] == ids
        torch.manual_seed(3)
        for _ in range(5):
            optimizer.zero_grad()
            m(TOKENS).square().sum().backward()
            optimizer.step()
        steps.append(list(m.parameters()))
    assert not model.encoder.weight_hh_l0.requires_grad
    for a, b in zip(*steps, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_training_mode_stays_with_each_module(model) -> None:
    model.train()
    model.encoder.eval()
    gatewise.swap(model)
    assert not model.encoder.training
    assert model.cells[0].training


def test_hooks_and_buffers_stay(model) -> None:
    calls = []

    def note(name):
        return lambda *_, **__: calls.append(name)

    lstm = model.encoder
    lstm.register_forward_pre_hook(note("pre"))
    lstm.register_forward_hook(note("post"))
    lstm.register_full_backward_hook(note("backward"))
    lstm.register_state_dict_post_hook(note("state_dict"))
    lstm.register_load_state_dict_pre_hook(lambda module, *_: calls.append(module is lstm))
    lstm.register_buffer("scale", torch.ones(2))
    lstm.note = "mine"
    gatewise.swap(model)
    model(TOKENS).sum().backward()
    model.load_state_dict(model.state_dict())
    assert calls[:3] == ["pre", "post", "backward"]
    assert "state_dict" in calls
    assert True in calls
    assert False not in calls
    assert lstm.note == "mine"
    assert "encoder.scale" in model.state_dict()


def test_a_hook_may_change_the_output(model) -> None:
    model.encoder.register_forward_hook(lambda m, args, out: (out[0] * 2, out[1]))
    before = copy.deepcopy(model)
    gatewise.swap(model)
    assert_close(model(TOKENS), before(TOKENS))


@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN, nn.LSTMCell, nn.RNNCell])
def test_the_model_itself(cls) -> None:
    module = cls(3, 4).double()
    before = copy.deepcopy(module)
    swapped = gatewise.swap(module)
    assert swapped.model is module
    assert swapped.replaced[0].name == ""
    assert "(the model)" in str(swapped)
    assert type(module).__module__.startswith("gatewise")
    assert_same(module, before, torch.randn(2, 3, dtype=F64))


@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN])
def test_what_was_swapped_is_as_good_as_new(cls) -> None:
    module = cls(3, 4, 2, bias=False, bidirectional=True, batch_first=True, dtype=F64)
    before = copy.deepcopy(module)
    gatewise.swap(module)
    new = getattr(gatewise, cls.__name__)(
        3, 4, 2, bias=False, bidirectional=True, batch_first=True, dtype=F64
    )
    assert set(vars(module)) == set(vars(new))
    assert repr(module) == repr(before)
    for twin in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same(twin, before, torch.randn(2, 5, 3, dtype=F64))
        packed = pack_sequence([torch.randn(n, 3, dtype=F64) for n in (2, 4)], enforce_sorted=False)
        assert_close(twin(packed), before(packed))
    module.weight_ih_l0 = nn.Parameter(torch.zeros_like(module.weight_ih_l0))
    assert not torch.equal(
        module(torch.ones(2, 5, 3, dtype=F64))[0], before(torch.ones(2, 5, 3, dtype=F64))[0]
    )


class Initialised(nn.LSTM):
    """Changes only how it is built."""

    def __init__(self, size: int):
        super().__init__(size, size)
        self.init_weights()

    def init_weights(self):
        nn.init.orthogonal_(self.weight_hh_l0)

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.ones_(self.bias_ih_l0)

    def extra_repr(self):
        return "mine"

    def flatten_parameters(self):
        pass


class Deeper(Initialised):
    """One more of the kind."""


class Alone(nn.LSTM):
    def forward(self, input, hx=None):
        return input @ self.weight_hh_l0[:4], self.bias_hh_l0


class Below(Alone):
    def forward(self, input, hx=None):
        return super().forward(2 * input, hx)


class Checked(nn.LSTM):
    def check_input(self, input, batch_sizes):
        super().check_input(input, batch_sizes)


@pytest.mark.parametrize("cls", [Initialised, Deeper])
def test_a_subclass_that_only_initialises_is_replaced(cls) -> None:
    model = nn.Sequential(cls(4).double())
    before = copy.deepcopy(model)
    swapped = gatewise.swap(model)
    assert type(model[0]) is gatewise.LSTM
    assert "reset_parameters" in swapped.replaced[0].why
    assert_same(model, before, torch.randn(5, 2, 4, dtype=F64))


@pytest.mark.parametrize(
    ("cls", "name"), [(Alone, "forward"), (Below, "forward"), (Checked, "check_input")]
)
def test_a_subclass_that_does_the_work_of_the_layer_is_left(cls, name) -> None:
    model = nn.Sequential(cls(4, 4))
    x = torch.randn(5, 2, 4)
    before = flat(model(x))
    swapped = gatewise.swap(model)
    assert type(model[0]) is cls
    assert swapped.replaced == ()
    assert swapped.left[0].why == f"has its own {name}"
    assert all(map(torch.equal, before, flat(model(x))))


class WrittenOut(nn.RNNBase):
    """An LSTM step by step in Python, for its own kind of loop, as torchrl has it."""

    def __init__(self, *sizes):
        super().__init__("LSTM", *sizes)


def test_a_layer_of_its_own_is_left_for_what_it_is() -> None:
    left = gatewise.swap(nn.ModuleList([WrittenOut(3, 4), nn.GRUCell(3, 4)])).left
    assert [row.why for row in left] == ["computes a cell of its own", "gatewise has no such cell"]


def test_forward_replaced_on_the_instance_is_left() -> None:
    lstm = nn.LSTM(4, 4)
    lstm.forward = lambda x, hx=None: x
    assert gatewise.swap(lstm).left[0].why == "has its own forward"
    assert type(lstm) is nn.LSTM


def test_flatten_parameters_replaced_on_the_instance_stays() -> None:
    lstm, before = nn.LSTM(4, 4, dtype=F64), nn.LSTM(4, 4, dtype=F64)
    before.load_state_dict(lstm.state_dict())
    lstm.flatten_parameters = lambda: "mine"  # as AWD-LSTM's weight drop does
    gatewise.swap(lstm)
    assert type(lstm) is gatewise.LSTM
    assert lstm.flatten_parameters() == "mine"
    assert_same(lstm, before, torch.randn(5, 2, 4, dtype=F64))


def test_an_attribute_of_the_same_name_is_left() -> None:
    lstm = nn.LSTM(4, 4)
    lstm.cell = nn.Linear(2, 2)
    assert "named as one of gatewise's: cell" in gatewise.swap(lstm).left[0].why


def test_looking_draws_no_random_number() -> None:
    state = torch.get_rng_state()
    gatewise.swap(nn.Sequential(nn.LSTM(4, 4, device="meta"), nn.RNNCell(2, 2, device="meta")))
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN, nn.LSTMCell, nn.RNNCell])
def test_weight_norm_stays(cls) -> None:
    module = nn.Sequential(cls(3, 4).double())
    name = "weight_hh_l0" if hasattr(module[0], "weight_hh_l0") else "weight_hh"
    parametrizations.weight_norm(module[0], name)
    before = copy.deepcopy(module)
    gatewise.swap(module)
    x = torch.randn(2, 3, dtype=F64)
    assert isinstance(module[0], getattr(gatewise, cls.__name__))
    assert parametrize.is_parametrized(module[0], name)
    assert_same(module, before, x)
    for m in (module, before):
        with torch.no_grad():
            m[0].parametrizations[name].original0.mul_(3)
    assert_same(module, before, x)
    assert_same(copy.deepcopy(module), before, x)
    parametrize.remove_parametrizations(module[0], name)
    assert type(module[0]) is getattr(gatewise, cls.__name__)
    assert_close(module(x), before(x))
    assert gatewise.swap(module).replaced == ()


def test_old_weight_norm_stays() -> None:
    lstm, before = nn.LSTM(3, 4, dtype=F64), nn.LSTM(3, 4, dtype=F64)
    for m in (lstm, before):
        with pytest.warns(FutureWarning, match="weight_norm"):
            nn.utils.weight_norm(m, "weight_hh_l0")
    before.load_state_dict(lstm.state_dict())
    gatewise.swap(lstm)
    x = torch.randn(5, 2, 3, dtype=F64)
    assert_same(lstm, before, x)
    for m in (lstm, before):
        with torch.no_grad():
            m.weight_hh_l0_g.mul_(3)
    assert_same(lstm, before, x)


def test_dtypes_and_devices_without_kernels_are_left() -> None:
    model = nn.Sequential(
        nn.LSTM(3, 4).half(), nn.LSTM(3, 4, dtype=torch.complex64), nn.LSTM(3, 4).bfloat16()
    )
    swapped = gatewise.swap(model)
    assert [row.name for row in swapped.replaced] == ["2"]
    assert swapped.left[0].why.startswith("is torch.float16: the kernels compute")
    assert swapped.left[1].why.startswith("is torch.complex64")


def test_a_model_on_meta_is_swapped_before_it_has_weights() -> None:
    model = nn.Sequential(nn.LSTM(3, 4, device="meta"))
    gatewise.swap(model)
    source = nn.Sequential(nn.LSTM(3, 4))
    model.to_empty(device="cpu").load_state_dict(source.state_dict())
    x = torch.randn(5, 2, 3)
    for a, b in zip(flat(model(x)), flat(source(x)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:`?torch.(jit|ao).*:DeprecationWarning")
def test_torchscript_is_left() -> None:
    model = nn.Sequential(torch.jit.script(nn.LSTM(3, 4)), nn.LSTM(3, 4))
    swapped = gatewise.swap(model)
    assert [row.name for row in swapped.replaced] == ["1"]
    assert "TorchScript" in swapped.left[0].why


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_is_left() -> None:
    model = nn.Sequential(nn.LSTM(3, 4))
    quantized = torch.ao.quantization.quantize_dynamic(model, {nn.LSTM})
    swapped = gatewise.swap(quantized)
    assert swapped.replaced == ()
    assert "quantized" in swapped.left[0].why


def test_a_model_without_any() -> None:
    swapped = gatewise.swap(nn.Linear(2, 2))
    assert (swapped.replaced, swapped.left) == ((), ())
    assert "none" in str(swapped)


@pytest.mark.parametrize("bad", [None, [nn.LSTM(2, 2)], nn.LSTM])
def test_what_is_no_model(bad) -> None:
    with pytest.raises(TypeError, match=r"model should be a torch\.nn\.Module, got"):
        gatewise.swap(bad)


def test_a_swapped_model_compiles_whole(model) -> None:
    model.head = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()
    expected = model(TOKENS)
    gatewise.swap(model)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_close(compiled(TOKENS), expected)
