"""What stands in a layer or a cell while somebody records or patches it.

Every computation of a layer passes its ``_run_layer``, every step of a cell its ``_step``. A watch
takes that place, and goes when the last who needs it leaves.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gatewise import ops
from gatewise.cells import Cell
from gatewise.errors import ShapeError
from gatewise.fields import DIRECTIONS, Packing
from gatewise.keeping import Recorder
from gatewise.ops import LayerResult
from gatewise.reference import Weights
from gatewise.spec import CellSpec
from gatewise.trace import GradSink, LayerRecord, Trace


class Where(NamedTuple):
    """Where a value stands that a patch may change.

    Args:
        name: i, f, g, o, c or h.
        t: the step of the input.
        rows: (n,) which of the caller's sequences the n rows of the value belong to. For packed
            input, n falls as sequences end.
    """

    name: str
    t: int
    rows: Tensor


#: Takes a value (n, H), or (n, P) for h, and gives the one to go on with.
Patch = Callable[[Tensor, Where], Tensor]


def in_plain_sight(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, run by Python even where a compiler reads the model.

    A compiled model then runs in pieces around the watched layers, and what is seen is what ran.
    """

    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if torch.compiler.is_exporting():
            raise RuntimeError(
                "gatewise.tracing, patching: expected a model that runs, got one that is exported; "
                "export it outside the block. An exported program has no layers left to watch"
            )
        torch._dynamo.graph_break(msg=_IN_PIECES)  # with fullgraph=True this is the error
        return torch.compiler.disable(function)(*args, **kwargs)

    return run


_IN_PIECES = (
    "gatewise.tracing and patching watch layers while Python runs them: watch the model itself in "
    "place of the compiled one, or compile it without fullgraph=True"
)


#: Held by who takes or leaves a place, or has one alone.
CHANGE = threading.RLock()


class _Call(threading.local):
    """The module's call in this thread: who records it, and what it has left so far."""

    recorders: Sequence[Recorder] = ()
    records: list[LayerRecord]
    packing: Packing | None = None


class Watch:
    """Stands in a layer's ``_run_layer`` for all who record or patch that layer."""

    place: ClassVar[str] = "_run_layer"

    def __init__(self, module: Any) -> None:
        self.module = module
        self.recorders: list[Recorder] = []
        self.patches: list[dict[tuple[int, int, str], Patch]] = []
        self.call = _Call()
        self.hooks: tuple[Any, ...] = ()
        # From here on the runs of other threads come by.
        module.__dict__[self.place] = self.stand_in()

    @staticmethod
    def on(module: nn.Module) -> Watch:
        """The watch on a layer or a cell: the one that stands there, else a new one."""
        kind = CellWatch if isinstance(module, Cell) else Watch
        standing = module.__dict__.get(kind.place)
        return kind(module) if standing is None else standing.__self__

    def stand_in(self) -> Callable[..., Any]:
        """What takes the module's place."""
        return self.run_layer

    def follow_calls(self) -> Watch:
        """See each call of the module begin and end."""
        if self.hooks:
            return self
        self.hooks = (
            self.module.register_forward_pre_hook(self.hear_begin, with_kwargs=True),
            self.module.register_forward_hook(self.hear_end),
        )
        return self

    def record_alone(self, x: Tensor | PackedSequence, hx: Any) -> Trace:
        """Run the module once for one who watches it alone, and leave."""
        self.thread = threading.get_ident()
        self.records: list[LayerRecord] = []
        self.module.__dict__[self.place] = self.run_alone
        try:
            self.module(x, hx)
        finally:
            self.module.__dict__[self.place] = self.stand_in()  # for who came while it ran
            self.leave()
        return Trace(self.module.cell, tuple(self.records), _packing(x))

    def run_alone(self, *layer: Any) -> LayerResult:
        """Layer k, kept in the thread that watches it alone."""
        if self.thread == threading.get_ident():
            return self.keep(self.records, *layer)
        result: LayerResult = type(self.module)._run_layer(self.module, *layer)
        return result

    def __reduce__(self) -> tuple[Any, ...]:
        return _idle, (type(self),)  # nobody watches a copy of the module, or what was saved of it

    def add(self, recorder: Recorder) -> None:
        """One who records comes."""
        self.recorders = [*self.recorders, recorder]  # anew: a step may be at the list before

    def drop(self, recorder: Recorder) -> None:
        """One who recorded is done."""
        with CHANGE:
            self.recorders = [one for one in self.recorders if one is not recorder]
            self.leave()

    def leave(self) -> None:
        """Go, unless somebody still needs this watch."""
        if not self.recorders and not self.patches:
            del self.module.__dict__[self.place]
            for hook in self.hooks:
                hook.remove()

    def begin(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
    ) -> None:
        """A call of the module begins: drop what an unfinished one left.

        While another thread sets the hooks or removes them, torch may call without kwargs; such a
        call is nobody's.
        """
        here = threading.get_ident()
        wanted = [] if kwargs is None else self.recorders
        self.call.recorders = [one for one in wanted if one.thread in (None, here)]
        self.call.records = []
        self.call.packing = _packing(args[0] if args else (kwargs or {}).get("input"))
        for one in self.call.recorders:
            one.begin()

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A call of the module is complete."""
        call = self.call
        if not call.recorders:
            return
        trace = Trace(self.module.cell, tuple(call.records), call.packing)
        for one in call.recorders:
            if one.z:
                trace.keep_z()
            one.end(trace)
        call.recorders, call.records = (), []

    hear_begin, hear_end = in_plain_sight(begin), in_plain_sight(end)

    @in_plain_sight
    def run_layer(
        self,
        k: int,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Weights],
        batch_sizes: Tensor | None,
    ) -> LayerResult:
        """Layer k, run by the module in full sight."""
        for one in self.call.recorders:  # where there is none, no record is counted either
            kept = sum(record.nbytes for record in self.call.records)
            one.check_room(kept + _coming(self.module.cell, x, weights))
        patched = self.patches and any(k == layer for p in self.patches for layer, _, _ in p)
        taps = [partial(self._tap, k, d) for d in range(len(weights))] if patched else None
        if self.call.recorders:
            return self.keep(self.call.records, k, x, h0, c0, weights, batch_sizes, taps)
        result: LayerResult = type(self.module)._run_layer(
            self.module, k, x, h0, c0, weights, batch_sizes, taps=taps
        )
        return result

    def keep(
        self,
        records: list[LayerRecord],
        k: int,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        weights: Sequence[Weights],
        batch_sizes: Tensor | None,
        taps: Sequence[Callable[..., Tensor]] | None = None,
    ) -> LayerResult:
        """Layer k, run by the module; what it leaves goes to the records."""
        sink = GradSink()
        result: LayerResult = type(self.module)._run_layer(
            self.module, k, x, h0, c0, weights, batch_sizes,
            keep_tape=True, sink=sink if ops.records_gradients() else None, taps=taps,
        )  # fmt: skip
        records.append(_record(x, h0, c0, weights, result, sink))
        return result

    def _tap(self, k: int, d: int, name: str, value: Tensor, t: int = 0) -> Tensor:
        for group in self.patches:
            fn = group.get((k, d, name))
            if fn is None:
                continue
            rows = torch.arange(len(value), device="cpu")
            if self.call.packing is not None:  # longest first
                rows = torch.from_numpy(self.call.packing.unsorted).argsort()[: len(value)]
            new = fn(value, Where(name, t, rows))
            if new.shape != value.shape:
                raise ShapeError(
                    f"patches: expected l{k}.{DIRECTIONS[d]}.{name} at step {t} to stay "
                    f"{tuple(value.shape)} (n, {'P' if name == 'h' else 'H'}), got "
                    f"{tuple(new.shape)} from the function"
                )
            value = new
        return value


def _idle(kind: type[Watch]) -> Watch:
    """A watch for nobody, on nothing."""
    watch = kind.__new__(kind)
    watch.recorders, watch.patches, watch.call, watch.hooks = [], [], _Call(), ()
    return watch


class CellWatch(Watch):
    """Stands in the ``_step`` of an LSTMCell or RNNCell for all who record that cell."""

    place = "_step"

    def stand_in(self) -> Callable[..., Any]:
        return self.step

    def follow_calls(self) -> Watch:
        return self  # a step is a call

    @in_plain_sight
    def step(
        self,
        cell: CellSpec,
        x: Tensor,
        h: Tensor | None,
        c: Tensor | None,
        reduced: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """One step, in place of the module's own, which says what the arguments are."""
        module = self.module
        w = module._weights()
        if torch.is_autocast_enabled("cpu") and w.W_ih.dtype != torch.float64:
            found: tuple[Tensor, Tensor] = type(module)._step(module, cell, x, h, c)
            return found  # by way of a step without autocast, which comes here again
        given = x
        x, h, c = module._checked(cell, x, h, c, w.W_ih)
        recorders = self.recorders
        ends = [one.end_before(h, c) for one in recorders]
        for one in recorders:
            one.check_room(_coming(cell, x, (w,)))

        x, h, c = ops.as_first(x, h, c)
        sink = GradSink()
        result = ops.layer(
            cell,
            x,
            h,
            c,
            (w,),
            keep_tape=True,
            sink=sink if ops.records_gradients() else None,
            reduced=reduced,
        )
        record = _record(x, h, c, (w,), result, sink)
        if any(one.z for one in recorders):
            Trace(cell, (record,)).keep_z()
        for end, one in zip(ends, recorders, strict=True):
            one.add_step(end, cell, record)
        h, c = result.h_n.squeeze(0), result.c_n.squeeze(0)
        return (h.squeeze(0), c.squeeze(0)) if given.dim() == 1 else (h, c)


def _packing(given: Any) -> Packing | None:
    """Where the tokens of an input sit, if it is packed."""
    if not isinstance(given, PackedSequence) or not len(given.batch_sizes):
        return None
    unsorted = given.unsorted_indices
    B = int(given.batch_sizes[0])
    columns = torch.arange(B, device="cpu") if unsorted is None else unsorted
    return Packing(given.batch_sizes.numpy(), columns.cpu().numpy())


def _coming(cell: CellSpec, x: Tensor, weights: Sequence[Weights]) -> int:
    """Bytes of tape and output that the run of one layer, x (..., I), will leave."""
    rows, P = weights[0].W_hh.shape
    each = len(cell.slots) * (rows // len(cell.gates)) + P
    return len(weights) * x.shape[:-1].numel() * each * x.element_size()


def _record(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Weights],
    result: LayerResult,
    sink: GradSink,
) -> LayerRecord:
    """What a run of one layer left."""
    try:
        versions = [w._version for lane in weights for w in lane if w is not None]
    except RuntimeError:  # tensors of inference mode keep no count
        versions = None
    return LayerRecord(x, h0, c0, *result, weights, sink, versions)
