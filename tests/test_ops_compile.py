"""ops.layer compiled and exported: one node of the graph, one graph for all lengths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from layers import assert_same, gradients, random_layer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence
from torch.utils.flop_counter import FlopCounterMode
from twins import flat, twins

from gatewise import ops
from gatewise.reference import Weights
from gatewise.spec import CELLS

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script"),  # torch's make_dual
]

LAYER = torch.ops.gatewise.layer.default
GRADIENT = torch.ops.gatewise.layer_gradient.default


class Net(nn.Module):
    """Two directions, every result."""

    def __init__(self, cell: str = "lstm", keep_tape: bool = False) -> None:
        super().__init__()
        layer = random_layer(cell, D=2, I=5, H=4, P=3, dtype=torch.float32)
        self.cell, self.keep_tape = CELLS[cell], keep_tape
        self.names = [name for name, w in layer.weights[0]._asdict().items() if w is not None]
        self.all = nn.ParameterList([nn.Parameter(w.detach()) for w in layer.parameters])

    def forward(
        self, x: Tensor, batch_sizes: Tensor | None = None, h0: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        half = len(self.names)
        weights = [
            Weights(**{name: self.all[at + k] for k, name in enumerate(self.names)})
            for at in (0, half)
        ]
        result = ops.layer(self.cell, x, h0, None, weights, batch_sizes, keep_tape=self.keep_tape)
        return result if self.keep_tape else result[:3]


@pytest.fixture(autouse=True)
def fresh_dynamo() -> None:
    torch._dynamo.reset()


def _compiled(net: nn.Module, backend: str = "aot_eager") -> tuple[Any, Any]:
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    return torch.compile(net, fullgraph=True, dynamic=True, backend=counter), counter


# Sizes that are no others' (a length that equals the batch would be taken for it).
SIZES = [(7, 2), (11, 6), (4, 9)]


@pytest.mark.parametrize("cell", ["lstm", "rnn", "peephole"])
@pytest.mark.parametrize("keep_tape", [False, True], ids=["", "tape"])
def test_one_graph_trains_every_length(cell: str, keep_tape: bool) -> None:
    net = Net(cell, keep_tape)
    compiled, counter = _compiled(net)
    for T, B in SIZES:
        x = torch.randn(T, B, 5, requires_grad=True)
        leaves = [x, *net.parameters()]
        expected = net(x)
        assert_same(compiled(x), expected)
        for k in range(len(expected)):
            found = gradients((compiled(x)[k],), leaves)
            assert_same(found, gradients((net(x)[k],), leaves))
    assert counter.frame_count == 1


def test_one_graph_infers_every_length() -> None:
    net = Net()
    compiled, counter = _compiled(net)
    with torch.no_grad():
        for T, B in SIZES:
            x = torch.randn(T, B, 5)
            assert_same(compiled(x), net(x))
    assert counter.frame_count == 1
    (graph,) = counter.graphs
    (node,) = [n for n in graph.graph.nodes if n.target is torch.ops.gatewise.layer]
    assert node.args[-1] is False  # no tape


@pytest.mark.parametrize("state", [True, False], ids=["h0", ""])
def test_one_graph_for_packed_sequences(state: bool) -> None:
    net = Net()
    compiled, counter = _compiled(net)
    for lengths in ([8, 7, 4, 4], [9, 5, 5, 2, 1, 1], [6, 6, 6, 6, 3]):
        B = len(lengths)
        packed = pack_padded_sequence(torch.randn(lengths[0], B, 5), torch.tensor(lengths))
        args = (packed.data, packed.batch_sizes, torch.randn(2, B, 3) if state else None)
        found, expected = compiled(*args), net(*args)
        assert_same(found, expected)
        leaves = list(net.parameters())
        assert_same(gradients(found, leaves), gradients(expected, leaves))
    assert counter.frame_count == 1


@pytest.mark.slow
def test_inductor() -> None:
    net = Net()
    compiled, counter = _compiled(net, "inductor")
    for T, B in SIZES:
        x = torch.randn(T, B, 5, requires_grad=True)
        leaves = [x, *net.parameters()]
        assert_same(gradients(compiled(x), leaves), gradients(net(x), leaves))
    assert counter.frame_count == 1


def test_inference_and_training_alternate() -> None:
    net = Net()
    compiled, counter = _compiled(net)
    x = torch.randn(7, 2, 5)
    for _ in range(2):
        with torch.no_grad():
            assert_same(compiled(x), net(x))
        assert_same(gradients(compiled(x), [net.all[0]]), gradients(net(x), [net.all[0]]))
    assert counter.frame_count == 2


def test_autocast_compiles() -> None:
    net = Net()
    compiled, _ = _compiled(net)
    x = torch.randn(7, 2, 5)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(x), net(x)
    assert found[0].dtype == torch.bfloat16
    assert_same(found, expected)


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "non-strict"])
def test_export_with_dynamic_lengths_and_batch(strict: bool) -> None:
    net = Net()
    T, B = torch.export.Dim("T", min=1), torch.export.Dim("B", min=1)
    program = torch.export.export(
        net, (torch.randn(7, 2, 5),), dynamic_shapes=({0: T, 1: B},), strict=strict
    )
    assert [n.target for n in program.graph.nodes if n.op == "call_function"].count(LAYER) == 1
    exported = program.module()
    for steps, batch in [*SIZES, (1, 1), (1, 3)]:
        x = torch.randn(steps, batch, 5)
        assert_same(exported(x), net(x))
    x = torch.randn(3, 4, 5, requires_grad=True)  # it keeps no tape, and trains all the same
    assert_same(gradients(exported(x), [x]), gradients(net(x), [x]))


# --- the operators themselves ---------------------------------------------------------------------


def _args(cell: str = "lstm", packed: bool = False, **sizes: Any) -> tuple[Any, ...]:
    """Of the operator: x, batch_sizes, h0, c0, weights, cell, reduced."""
    layer = random_layer(cell, D=2, packed=packed, **sizes)
    weights = [w for direction in layer.weights for w in direction]
    return layer.x, layer.batch_sizes, layer.h0, layer.c0, weights, cell, False


@pytest.mark.parametrize(
    ("cell", "packed", "keep_tape"),
    [("lstm", False, True), ("lstm", True, True), ("lstm", False, False), ("rnn", False, True)],
)
def test_opcheck(cell: str, packed: bool, keep_tape: bool) -> None:
    torch.library.opcheck(LAYER, (*_args(cell, packed), keep_tape))


def test_opcheck_of_the_gradient() -> None:
    *inputs, cell, reduced = _args(T=2, H=2)
    y, _, c_n, tape = (t.detach() for t in LAYER(*inputs, cell, reduced, True))
    wanted = [True, False, True, False, *[w is not None for w in inputs[4]]]
    torch.library.opcheck(
        GRADIENT,
        (
            *inputs,
            y,
            tape,
            torch.randn_like(y),
            None,
            torch.randn_like(c_n),
            None,
            cell,
            reduced,
            wanted,
        ),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
    )


def _of_x(args: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    """A loss by the operator."""
    return lambda x: LAYER(x, *args[1:], True)[0].sin().sum()


def _of_x_eager(args: tuple[Any, ...]) -> Callable[[Tensor], Tensor]:
    _, batch_sizes, h0, c0, w, cell, _ = args
    weights = [Weights(*w[:6]), Weights(*w[6:])]
    return lambda x: ops.layer(CELLS[cell], x, h0, c0, weights, batch_sizes).output.sin().sum()


def test_gradcheck_of_the_operator() -> None:
    args = _args(T=2, B=1, H=2)
    x, h0 = args[0], args[2]

    def function(x: Tensor, h0: Tensor) -> tuple[Tensor, ...]:
        return LAYER(x, args[1], h0, *args[3:], True)

    assert gradcheck(function, (x, h0), fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(function, (x, h0), fast_mode=True, check_fwd_over_rev=True)


def test_vmap_of_the_operator_without_a_tape() -> None:
    x, *rest = _args()
    found = vmap(lambda x: LAYER(x, *rest, False)[:3])(torch.stack([x, 2 * x]))
    expected = zip(LAYER(x, *rest, True)[:3], LAYER(2 * x, *rest, True)[:3], strict=True)
    assert_same(found, tuple(torch.stack(pair) for pair in expected))


TRANSFORMS: dict[str, Callable[..., Any]] = {
    "grad": lambda f, x: grad(f)(x),
    "grad of grad": lambda f, x: grad(lambda x: grad(f)(x).sin().sum())(x),
    "vmap": lambda f, x: vmap(f)(torch.stack([x, 2 * x])),
    "gradients of each sample": lambda f, x: vmap(grad(f))(torch.stack([x, 2 * x])),
    "jvp": lambda f, x: jvp(f, (x,), (x.cos(),)),
    "jvp of jvp": lambda f, x: jvp(lambda x: jvp(f, (x,), (x.cos(),))[1], (x,), (x.sin(),)),
    "grad of jvp": lambda f, x: grad(lambda x: jvp(f, (x,), (x.cos(),))[1])(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_transform_of_the_operator(transform: str) -> None:
    args = _args()
    x, f = args[0].detach(), TRANSFORMS[transform]
    assert_same(f(_of_x(args), x), f(_of_x_eager(args), x))


@pytest.mark.parametrize("transform", ["grad", "vmap", "gradients of each sample", "jvp"])
def test_a_transform_compiles(transform: str) -> None:
    args = tuple(
        [None if w is None else w.detach() for w in a] if isinstance(a, list) else a
        for a in _args()
    )
    x, f = args[0].detach(), TRANSFORMS[transform]
    compiled = torch.compile(lambda x: f(_of_x_eager(args), x), backend="aot_eager")
    assert_same(compiled(x), f(_of_x_eager(args), x))


def test_forward_over_reverse_of_the_operator_is_refused_not_zero() -> None:
    args = _args()
    x = args[0].detach()
    with pytest.raises(NotImplementedError, match="grad of jvp"):
        jvp(grad(_of_x(args)), (x,), (x,))


# --- other who record -----------------------------------------------------------------------------


def test_fake_tensors() -> None:
    net = Net(keep_tape=True)
    x = torch.randn(7, 2, 5)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        found = net(mode.from_tensor(x))
    assert [t.shape for t in found] == [t.shape for t in net(x)]


def test_activation_checkpointing() -> None:
    net = Net()
    x = torch.randn(7, 2, 5, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(lambda x: net(x)[0], x, use_reentrant=False)
    leaves = [x, *net.parameters()]
    assert_same(gradients((y,), leaves), gradients((net(x)[0],), leaves))


COUNTED = [
    (nn.LSTM, {"num_layers": 2, "bidirectional": True}, (7, 2, 4)),
    (nn.LSTM, {"proj_size": 3}, (7, 2, 4)),
    (nn.RNN, {"bias": False}, (7, 4)),
    (nn.LSTMCell, {}, (2, 4)),
    (nn.RNNCell, {}, (2, 4)),
]


@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize(("cls", "options", "shape"), COUNTED)
def test_flops_are_counted_as_torchs_own(cls, options, shape, wanted) -> None:
    counts = []
    for module in twins(cls, 4, 5, dtype=torch.float64, **options):  # in float32 torch counts none
        x = torch.randn(shape, dtype=torch.float64, requires_grad=wanted)
        with FlopCounterMode(display=False) as counter:
            y = flat(module(x))[0]
            forward = counter.get_total_flops()
            y.sum().backward()
        counts.append((forward, counter.get_total_flops()))
    assert counts[0] == counts[1]


def test_flops_of_packed_sequences_and_of_states() -> None:
    counts = []
    for module in twins(nn.LSTM, 4, 5, dtype=torch.float64):
        module.weight_ih_l0.requires_grad_(False)
        packed = pack_sequence([torch.randn(n, 4, dtype=torch.float64) for n in (6, 3, 1)])
        h0 = torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            module(packed, (h0, h0))[0].data.sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]
