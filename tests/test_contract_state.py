"""Weights are read at the call, wherever they are kept; a module can be moved, copied, stored."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize
from twins import OURS, assert_close, assert_same, flat, twins

import gatewise

# torch says so of its own
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

F64 = torch.float64
KINDS = [
    pytest.param(nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3}, id="LSTM"),
    pytest.param(nn.RNN, {"num_layers": 2, "bidirectional": True}, id="RNN"),
    pytest.param(nn.LSTMCell, {}, id="LSTMCell"),
    pytest.param(nn.RNNCell, {}, id="RNNCell"),
]


def made(cls, options, dtype=F64):
    """Twins, an input for them, and the names of every weight."""
    ours, theirs = twins(cls, 5, 7, **options, dtype=dtype)
    x = torch.randn(*((4,) if cls in (nn.LSTM, nn.RNN) else ()), 2, 5, dtype=dtype)
    return ours, theirs, x, [name for name, _ in ours.named_parameters()]


# --- a weight that changed is a weight that counts -----------------------------------------------


def in_place(module, name, new):
    with torch.no_grad():
        getattr(module, name).copy_(new)


def through_data(module, name, new):
    getattr(module, name).data = new


def in_place_through_data(module, name, new):
    getattr(module, name).data.copy_(new)


def by_a_view(module, name, new):
    getattr(module, name).detach().view(-1)[:] = new.view(-1)


def by_numpy(module, name, new):
    getattr(module, name).detach().numpy()[...] = new.numpy()


def by_a_new_parameter(module, name, new):
    setattr(module, name, nn.Parameter(new))


def by_the_dict_of_parameters(module, name, new):
    module._parameters[name] = nn.Parameter(new)


def by_register_parameter(module, name, new):
    module.register_parameter(name, nn.Parameter(new))


def by_deleting(module, name, new):
    delattr(module, name)
    setattr(module, name, new)


def by_state_dict(module, name, new):
    module.load_state_dict({**module.state_dict(), name: new})


def by_assigning_state_dict(module, name, new):
    module.load_state_dict({**module.state_dict(), name: new}, assign=True)


def by_an_optimizer(module, name, new):
    weight = getattr(module, name)
    weight.grad = weight.detach() - new
    torch.optim.SGD([weight], lr=1.0).step()


def by_a_fused_optimizer(module, name, new):
    weight = getattr(module, name)
    weight.grad = weight.detach() - new
    torch.optim.SGD([weight], lr=1.0, fused=True).step()


def by_swapping_tensors(module, name, new):
    torch.utils.swap_tensors(getattr(module, name), nn.Parameter(new))


def by_set_(module, name, new):
    with torch.no_grad():
        getattr(module, name).set_(new)


def by_a_deprecated_flat_list(module, name, new):
    weights = list(module._flat_weights) if hasattr(module, "_flat_weights") else None
    if weights is None:
        pytest.skip("a cell has none")
    weights[module._flat_weights_names.index(name)] = nn.Parameter(new)
    module._flat_weights = weights


CHANGES = [
    in_place, through_data, in_place_through_data, by_a_view, by_numpy, by_a_new_parameter,
    by_the_dict_of_parameters, by_register_parameter, by_deleting, by_state_dict,
    by_assigning_state_dict, by_an_optimizer, by_a_fused_optimizer, by_swapping_tensors, by_set_,
    by_a_deprecated_flat_list,
]  # fmt: skip


@pytest.mark.parametrize(("cls", "options"), KINDS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("mode", ["grad", "no_grad", "checkpointed"])
def test_the_next_call_sees_every_change_of_every_weight(cls, options, change, mode) -> None:
    ours, theirs, x, names = made(cls, options)
    if mode == "checkpointed":
        ours.checkpoint = 2  # (of cells, there is nothing to recompute)
    torch.set_grad_enabled(mode != "no_grad")
    try:
        for name in names:
            ours(x)  # whatever could be kept from a call is kept now
            new = torch.randn_like(getattr(ours, name)).detach()
            with torch.enable_grad():
                change(ours, name, new.clone())
            theirs.load_state_dict({**theirs.state_dict(), name: new})
            assert_close(ours(x), theirs(x))
    finally:
        torch.set_grad_enabled(True)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_training_goes_where_torchs_goes(cls, options) -> None:
    ours, theirs, x, _ = made(cls, options)
    for module in (ours, theirs):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            result = module(x)
            while not isinstance(result, torch.Tensor):
                result = result[0]
            (result - 0.3).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_weight_norm_old_and_new(cls, options) -> None:
    for wrap in (parametrizations.weight_norm, old_weight_norm):
        ours, theirs, x, names = made(cls, options)
        for name in (names[0], names[1]):
            wrap(ours, name)
            wrap(theirs, name)
        assert_same(ours, theirs, x)
        for module in (ours, theirs):
            with torch.no_grad():
                for p in module.parameters():
                    p.mul_(1.5).add_(0.01)
        assert_same(ours, theirs, x)


def old_weight_norm(module, name):
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(module, name)


def test_weight_norm_counts_as_in_torch() -> None:
    lstm = gatewise.LSTM(5, 7)
    count = len(list(lstm._flat_weights))
    old_weight_norm(lstm, "weight_hh_l0")
    assert sum(isinstance(w, nn.Parameter) for w in lstm._flat_weights) == count - 1
    nn.utils.remove_weight_norm(lstm, "weight_hh_l0")
    assert sum(isinstance(w, nn.Parameter) for w in lstm._flat_weights) == count


class Double(nn.Module):
    def forward(self, w):
        return 2 * w

    def right_inverse(self, w):
        return w / 2


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_parametrizations(cls, options) -> None:
    ours, theirs, x, names = made(cls, options)
    before = ours(x)
    for name in names:
        parametrize.register_parametrization(ours, name, Double())
    assert_close(ours(x), before)
    with torch.no_grad():
        for name in names:
            ours.parametrizations[name].original.mul_(0.5)
            getattr(theirs, name).mul_(0.5)
    assert_close(ours(x), theirs(x))
    assert_close(copy.deepcopy(ours)(x), theirs(x))
    for name in names:
        parametrize.remove_parametrizations(ours, name)
    assert type(ours) is OURS[cls]
    assert_same(ours, theirs, x)


class Drop(nn.Module):
    """Another weight at each reading."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(weight, 0.5)


@pytest.mark.parametrize(
    "wrap",
    [
        parametrizations.spectral_norm,
        lambda m, n: parametrize.register_parametrization(m, n, Drop()),
    ],
)
def test_a_weight_that_is_another_at_each_reading_is_read_once_a_call(wrap) -> None:
    """torch reads four times a call, or once where parametrize.cached() sees to it."""
    ours, theirs = twins(nn.LSTM, 5, 7, 2, bidirectional=True, dropout=0.5, dtype=F64)
    for module in (ours, theirs):
        torch.manual_seed(3)
        for name in ("weight_hh_l0", "weight_ih_l0", "weight_hh_l1_reverse"):
            wrap(module, name)
    theirs.load_state_dict(ours.state_dict())
    for seed in range(3):
        x = torch.randn(4, 2, 5, dtype=F64)
        torch.manual_seed(seed)
        got = ours(x)
        torch.manual_seed(seed)
        with parametrize.cached():
            expected = theirs(x)
        assert_close(got, expected)
    assert_close(list(ours.state_dict().values()), list(theirs.state_dict().values()))


def test_pruning() -> None:
    ours, theirs, x, _ = made(nn.LSTM, {})
    from torch.nn.utils import prune

    for module in (ours, theirs):
        torch.manual_seed(3)
        prune.random_unstructured(module, "weight_hh_l0", amount=0.5)
    assert_close(ours(x), theirs(x))


@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN])
def test_weights_tied_between_directions(cls) -> None:
    ours, theirs, x, _ = made(cls, {"bidirectional": True})
    for module in (ours, theirs):
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
            setattr(module, name + "_reverse", getattr(module, name))
    assert len(list(ours.parameters())) == 5
    assert_same(ours, theirs, x)
    in_place(ours, "weight_ih_l0", torch.zeros_like(ours.weight_ih_l0))
    in_place(theirs, "weight_ih_l0", torch.zeros_like(theirs.weight_ih_l0))
    assert_same(ours, theirs, x)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_functional_call(cls, options) -> None:
    ours, theirs, x, names = made(cls, options)
    before = ours(x)
    new = {name: torch.randn_like(getattr(ours, name)).requires_grad_() for name in names}
    for name in names:  # all at once, and one by one
        for weights in (new, {name: new[name]}):
            assert_close(functional_call(ours, weights, x), functional_call(theirs, weights, x))
    result = functional_call(ours, new, x)
    while not isinstance(result, torch.Tensor):
        result = result[0]
    (gradient,) = torch.autograd.grad(result.sum(), [new[names[0]]])
    assert gradient.abs().sum() > 0
    assert_close(ours(x), before)


# --- moved, copied, stored -----------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_dtype_and_device_follow_the_module(cls, options) -> None:
    ours, theirs, x, _ = made(cls, options)
    assert_same(ours.float(), theirs.float(), x.float())
    assert_same(ours.to(F64), theirs.to(F64), x)
    empty = copy.deepcopy(ours).to("meta")
    assert all(p.is_meta for p in empty.parameters())
    shape = [t.shape for t in flat(empty(x.to("meta")))]
    assert shape == [t.shape for t in flat(ours(x))]
    filled = empty.to_empty(device="cpu")
    filled.load_state_dict(ours.state_dict())
    assert_close(filled(x), ours(x))


@pytest.mark.parametrize(("cls", "options"), KINDS)
@pytest.mark.parametrize("future", [True, False])
def test_apply_that_replaces_the_parameters(cls, options, future) -> None:
    ours, theirs, x, _ = made(cls, options)
    torch.__future__.set_overwrite_module_params_on_conversion(future)
    try:
        assert_same(ours.float(), theirs.float(), x.float())
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def by_torch(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize(("cls", "options"), KINDS)
@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), by_torch],
    ids=["deepcopy", "copy", "pickle", "torch.save"],
)  # fmt: skip
def test_copies(cls, options, copied) -> None:
    ours, theirs, x, names = made(cls, options)
    twin = copied(ours.eval())
    assert type(twin) is type(ours)
    assert not twin.training
    assert repr(twin) == repr(ours)
    assert_same(twin, theirs, x)
    if copied is not copy.copy:  # a deep copy stands on its own
        in_place(ours, names[0], torch.zeros_like(getattr(ours, names[0])))
        assert_same(twin, theirs, x)


def test_a_state_from_before_projections() -> None:
    ours, theirs, x, _ = made(nn.LSTM, {"num_layers": 2, "bidirectional": True})
    for module in (ours, theirs):
        state = dict(module.__getstate__())
        del state["proj_size"]
        old = type(module).__new__(type(module))
        old.__setstate__(state)
        assert old.proj_size == 0
        assert_close(old(x), theirs(x))


def test_a_state_of_torchs_module() -> None:
    for cls, options in ((nn.LSTM, {"proj_size": 3}), (nn.RNN, {"nonlinearity": "relu"})):
        _, theirs, x, _ = made(cls, options)
        ours = OURS[cls].__new__(OURS[cls])
        ours.__setstate__(dict(theirs.__getstate__()))
        assert_same(ours, theirs, x)


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_replica_for_data_parallel(cls, options) -> None:
    ours, _, x, names = made(cls, options)
    replica = ours._replicate_for_data_parallel()
    for name in names:  # as torch.nn.parallel.replicate does
        setattr(replica, name, getattr(ours, name).clone())
    assert_close(replica(x), ours(x))


@pytest.mark.parametrize(("cls", "options"), KINDS)
def test_hooks_run_once_a_call(cls, options) -> None:
    ours, _, x, _ = made(cls, options)
    calls = []
    ours.register_forward_pre_hook(lambda *_: calls.append("before"))
    ours.register_forward_hook(lambda *_: calls.append("after"))
    ours(x)
    ours(x[0] if x.dim() == 2 else x[:, 0])
    assert calls == ["before", "after"] * 2


def test_flatten_parameters_does_nothing() -> None:
    ours, theirs, x, _ = made(nn.LSTM, {})
    pointers = [p.data_ptr() for p in ours.parameters()]
    assert ours.flatten_parameters() is None
    assert [p.data_ptr() for p in ours.parameters()] == pointers
    assert_same(ours, theirs, x)


def test_writing_to_an_item_of_the_flat_weights_is_not_lost_silently() -> None:
    lstm = gatewise.LSTM(5, 7)
    with pytest.raises(TypeError):
        lstm._flat_weights[0] = torch.zeros(28, 5)


def test_a_subclass_works_as_a_subclass_of_torchs_would() -> None:
    class Mine(gatewise.LSTM):
        def reset_parameters(self):
            super().reset_parameters()
            nn.init.ones_(self.bias_hh_l0)

        def forward(self, input, hx=None):
            return super().forward(input, hx)[0]

    mine = Mine(5, 7, batch_first=True)
    assert torch.equal(mine.bias_hh_l0, torch.ones(28))
    assert mine(torch.zeros(2, 3, 5)).shape == (2, 3, 7)


def by_hand(base):
    """A subclass that checks and sorts with torch's own methods before it computes."""

    class Mine(base):
        def forward(self, input, hx, order=None):
            self.check_forward_args(input, hx, None)
            hx = self.permute_hidden(hx, order)
            return super().forward(input, hx)

    return Mine


@pytest.mark.parametrize("cls", [nn.LSTM, nn.RNN])
def test_a_subclass_may_ask_what_torchs_may(cls) -> None:
    ours, theirs = (by_hand(kind)(3, 5, 2, dtype=F64) for kind in (OURS[cls], cls))
    ours.load_state_dict(theirs.state_dict())
    h = torch.randn(2, 4, 5, dtype=F64)
    hx = (h, h + 1) if cls is nn.LSTM else h
    assert_same(ours, theirs, torch.randn(6, 4, 3, dtype=F64), hx, torch.tensor([2, 0, 3, 1]))
    for x, bad in ((torch.zeros(6, 4, 2, dtype=F64), hx), (torch.zeros(6, 3, 3, dtype=F64), hx)):
        with pytest.raises(RuntimeError) as expected:
            theirs(x, bad)
        with pytest.raises(RuntimeError, match=re.escape(str(expected.value))):
            ours(x, bad)
