"""Watching a model run, and stepping in: LSTM.trace, gatewise.tracing, gatewise.patching.

Every computation of a gatewise layer passes ``_run_layer``. A ``Watch`` stands there while somebody
records or patches, and goes when the last of them leaves.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gatewise import ops
from gatewise.errors import ArgumentError, ShapeError
from gatewise.fields import DIRECTIONS, Packing
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

_KEY = re.compile(r"(?:(?P<module>.+)\.)?l(?P<layer>\d+)\.(?P<way>fwd|reverse)\.(?P<name>\w+)")


# --- for people -----------------------------------------------------------------------------------


def record(module: nn.Module, x: Tensor | PackedSequence, hx: Any = None) -> Trace:
    """Run a layer once and return its Trace: ``LSTM.trace``."""
    traces = Traces(keep=1, max_bytes=None)
    watch, recorder = Watch.on(module), ("", traces, False)
    watch.recorders.append(recorder)
    try:
        if watch.hooks:
            module(x, hx)
        else:  # nobody else is watching: spare the hooks, which cost more than a short run
            watch.begin(module, (x,), {})
            watch.end(module, (), module(x, hx))
    finally:
        watch.recorders.remove(recorder)
        watch.leave()
    return traces[""]


class Traces(Mapping[str, Trace]):
    """What was recorded, by qualified module name: ``traces["encoder"]`` is its latest run.

    Args:
        keep: runs kept of each layer; the oldest goes when one more begins.
        max_bytes: the most that the kept traces may hold, or None.
    """

    def __init__(self, keep: int | None, max_bytes: int | None) -> None:
        self._keep, self._max_bytes = keep, max_bytes
        self._kept: dict[str, deque[Trace]] = {}

    def all(self, name: str) -> tuple[Trace, ...]:
        """The runs of one layer that were kept, oldest first."""
        return tuple(self._kept.get(name, ()))

    @property
    def nbytes(self) -> int:
        """Bytes of tape and output in the kept traces."""
        return sum(trace.nbytes for kept in self._kept.values() for trace in kept)

    def __getitem__(self, name: str) -> Trace:
        if name not in list(self):
            known = ", ".join(map(repr, self)) or "nothing, for no layer has run yet"
            raise KeyError(f"{name!r}: no run has this name; recorded: {known}")
        return self._kept[name][-1]

    def __iter__(self) -> Iterator[str]:
        return (name for name, kept in self._kept.items() if kept)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return "\n".join(f"{name!r}: {self[name]!r}" for name in self) or "Traces(none yet)"

    def _begin(self, name: str) -> None:
        kept = self._kept.setdefault(name, deque())
        if len(kept) == self._keep:
            kept.popleft()

    def _check_room(self, name: str, coming: int) -> None:
        total = self.nbytes + coming
        if self._max_bytes is not None and total > self._max_bytes:
            raise ArgumentError(
                f"max_bytes: expected at most {self._max_bytes:,} bytes of trace, got {total:,} "
                f"with this run of layer {name!r}; trace fewer layers (names=) or runs (keep=), "
                "shorten the input, or raise max_bytes"
            )

    def _end(self, name: str, trace: Trace) -> None:
        self._kept[name].append(trace)


@contextmanager
def tracing(
    model: nn.Module,
    names: str | Iterable[str] = "*",
    *,
    keep: int | None = 1,
    max_bytes: int | None = 2**30,
    z: bool = False,
) -> Iterator[Traces]:
    """Record every run of every gatewise layer in a model, in training and in eval.

    Args:
        model: holds gatewise layers, or is one (its name is then "").
        names: which layers, by qualified name; ``*`` stands for anything.
        keep: how many runs to keep of each layer, the latest ones; None keeps all.
        max_bytes: the most memory that kept traces may take, or None for no bound. It is looked at
            before a layer runs, so nothing is dropped in silence and nothing is half recorded.
        z: compute the pre-activations along with each run.

    Yields:
        Traces: name -> the latest Trace; ``.all(name)`` gives every kept one. It stays after the
        block.

    Raises:
        ArgumentError: the model has no gatewise layer, or none by these names; or, when a layer
            runs, the trace would pass max_bytes.

    Example:
        >>> import torch, gatewise
        >>> model = torch.nn.Sequential(gatewise.RNN(3, 4, batch_first=True))
        >>> with tracing(model) as traces:
        ...     _ = model(torch.zeros(2, 5, 3))
        >>> traces["0"]
        Trace(rnn, L=1 D=1 T=5 B=2 H=4 P=4, welded i f o)
    """
    layers = _layers(model)
    wanted = [names] if isinstance(names, str) else list(names)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ArgumentError(
                f"names: expected names of gatewise layers ({', '.join(map(repr, layers))}), "
                f"got {pattern!r}; * stands for anything"
            )
    traces = Traces(keep, max_bytes)
    chosen = {n: m for n, m in layers.items() if any(fnmatchcase(n, p) for p in wanted)}
    watches = [
        (Watch.on(module).follow_calls(), (name, traces, z)) for name, module in chosen.items()
    ]
    for watch, recorder in watches:
        watch.recorders.append(recorder)
    try:
        yield traces
    finally:
        for watch, recorder in watches:
            watch.recorders.remove(recorder)
            watch.leave()


@contextmanager
def patching(model: nn.Module, patches: Mapping[str, Patch]) -> Iterator[None]:
    """Change gates or states while a model runs, and see what comes of it.

    A layer with a patch runs by the page (``reference.sequence``), one step after another: exact,
    with gradients through everything, and slow. Other layers run as ever. Traces show the values as
    patched. Patches of the same value apply in the order in which they were entered.

    Args:
        model: holds gatewise layers, or is one.
        patches: "<module>.l<layer>.<fwd|reverse>.<i|f|g|o|c|h>" -> fn(value, where) -> value. The
            value is (n, H), for h (n, P): the n sequences that reach step ``where.t``.

    Raises:
        ArgumentError: a key names no value that its layer computes.
        ShapeError: when the layer runs, a function gave back another shape.

    Example:
        >>> import torch, gatewise
        >>> lstm = gatewise.LSTM(3, 4)
        >>> with patching(lstm, {"l0.fwd.f": put(0.0, steps=[2], units=[1])}):
        ...     trace = lstm.trace(torch.zeros(5, 1, 3))
        >>> trace["l0.fwd.f"][2, 0, 1].item()
        0.0
    """
    layers = _layers(model)
    by_module: dict[str, dict[tuple[int, int, str], Patch]] = {}
    for key, fn in patches.items():
        found = _KEY.fullmatch(key)
        name = (found["module"] or "") if found else ""
        if found is None or name not in layers:
            raise ArgumentError(
                "patches: expected keys as '<module>.l<layer>.<fwd|reverse>.<name>' with one of "
                f"the modules {', '.join(map(repr, layers))}, got {key!r}"
            )
        place = (int(found["layer"]), DIRECTIONS.index(found["way"]), found["name"])
        by_module.setdefault(name, {})[_checked(layers[name], place, key)] = fn
    watches = [(Watch.on(layers[name]).follow_calls(), group) for name, group in by_module.items()]
    for watch, group in watches:
        watch.patches.append(group)
    try:
        yield
    finally:
        for watch, group in watches:
            watch.patches = [kept for kept in watch.patches if kept is not group]
            watch.leave()


def put(
    value: float | Tensor, steps: Sequence[int] | None = None, units: Sequence[int] | None = None
) -> Patch:
    """The patch that puts a value in place of what was computed.

    Args:
        value: a number or a tensor that fits (n, H) or the chosen units; gradients flow into it.
        steps: at which steps of the input; None for all.
        units: in which units; None for all.
    """

    def patch(now: Tensor, where: Where) -> Tensor:
        if steps is not None and where.t not in steps:
            return now
        columns = torch.arange(now.shape[-1]) if units is None else torch.as_tensor(units)
        new = torch.as_tensor(value, dtype=now.dtype, device=now.device)
        return now.index_copy(-1, columns, new.expand(now.shape[0], len(columns)))

    return patch


# --- how it is done -------------------------------------------------------------------------------


class Watch:
    """Stands in a layer's ``_run_layer`` for all who record or patch that layer."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.recorders: list[tuple[str, Traces, bool]] = []
        self.patches: list[dict[tuple[int, int, str], Patch]] = []
        self.records: list[LayerRecord] = []
        self.packing: Packing | None = None
        self.hooks: tuple[Any, ...] = ()
        module.__dict__["_run_layer"] = self.run_layer

    @classmethod
    def on(cls, module: nn.Module) -> Watch:
        """The watch on a module: the one that stands there, else a new one."""
        standing = module.__dict__.get("_run_layer")
        return cls(module) if standing is None else standing.__self__

    def follow_calls(self) -> Watch:
        """See each call of the module begin and end."""
        self.hooks = self.hooks or (
            self.module.register_forward_pre_hook(self.begin, with_kwargs=True),
            self.module.register_forward_hook(self.end),
        )
        return self

    def leave(self) -> None:
        """Go, unless somebody still needs this watch."""
        if not self.recorders and not self.patches:
            del self.module.__dict__["_run_layer"]
            for hook in self.hooks:
                hook.remove()

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A call of the module begins: drop what an unfinished one left."""
        self.records, self.packing = [], None
        given = args[0] if args else kwargs.get("input")
        if isinstance(given, PackedSequence) and len(given.batch_sizes):
            unsorted = given.unsorted_indices
            columns = torch.arange(int(given.batch_sizes[0])) if unsorted is None else unsorted
            self.packing = Packing(given.batch_sizes.numpy(), columns.cpu().numpy())
        for name, traces, _ in self.recorders:
            traces._begin(name)

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A call of the module is complete."""
        if not self.recorders:
            return
        trace = Trace(self.module.cell, tuple(self.records), self.packing)
        self.records = []
        if any(z for _, _, z in self.recorders):
            trace.keep_z()
        for name, traces, _ in self.recorders:
            traces._end(name, trace)

    def run_layer(
        self,
        k: int,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        batch_sizes: Tensor | None,
        keep_tape: bool = False,
    ) -> LayerResult:
        """Layer k, in place of the module's own."""
        cell: CellSpec = self.module.cell
        weights: list[Weights] = self.module._weights(k)
        D, (rows, P) = len(weights), weights[0].W_hh.shape
        H = rows // len(cell.gates)
        B = x.shape[1] if batch_sizes is None else int(batch_sizes[0])
        coming = D * x.shape[:-1].numel() * (len(cell.slots) * H + P) * x.element_size()
        for name, traces, _ in self.recorders:
            traces._check_room(name, coming + sum(record.nbytes for record in self.records))

        sink = GradSink() if self.recorders else None
        patched = any(layer == k for group in self.patches for layer, _, _ in group)
        result = ops.layer(
            cell, x, h0, c0, weights, batch_sizes,
            keep_tape=keep_tape or sink is not None,
            sink=sink if torch.is_grad_enabled() else None,
            taps=[partial(self._tap, k, d) for d in range(D)] if patched else None,
        )  # fmt: skip
        if sink is not None:
            h0 = x.new_zeros(D, B, P) if h0 is None else h0
            c0 = (x.new_zeros(D, B, H) if c0 is None else c0) if cell.has_cell_state else h0
            given = [w for lane in weights for w in lane if w is not None]
            named = [{n: w for n, w in lane._asdict().items() if w is not None} for lane in weights]
            frozen = any(w.is_inference() for w in given)
            versions = None if frozen else [w._version for w in given]
            self.records.append(LayerRecord(x, h0, c0, *result, named, sink, versions))
        return result

    def _tap(self, k: int, d: int, name: str, value: Tensor, t: int = 0) -> Tensor:
        for group in self.patches:
            fn = group.get((k, d, name))
            if fn is None:
                continue
            rows = torch.arange(len(value))
            if self.packing is not None:  # longest first
                rows = torch.as_tensor(self.packing.unsorted).argsort()[: len(value)]
            new = fn(value, Where(name, t, rows))
            if new.shape != value.shape:
                raise ShapeError(
                    f"patches: expected l{k}.{DIRECTIONS[d]}.{name} at step {t} to stay "
                    f"{tuple(value.shape)} (n, {'P' if name == 'h' else 'H'}), got "
                    f"{tuple(new.shape)} from the function"
                )
            value = new
        return value


def _layers(model: nn.Module) -> dict[str, Any]:
    """Every gatewise layer of a model by its qualified name."""
    layers = {name: m for name, m in model.named_modules() if hasattr(m, "_run_layer")}
    if not layers:
        raise ArgumentError(
            f"model: expected at least one gatewise.LSTM or RNN in it, got none in "
            f"{type(model).__name__}; gatewise.swap(model) puts them in place of torch's"
        )
    return layers


def _checked(module: Any, place: tuple[int, int, str], key: str) -> tuple[int, int, str]:
    """The place of a patch, if its layer computes such a value."""
    k, d, name = place
    names = dict.fromkeys((*module.cell.slots, "h"))
    if k >= module.num_layers or d > module.bidirectional or name not in names:
        ways = "fwd or reverse" if module.bidirectional else "fwd"
        raise ArgumentError(
            f"patches: expected layer 0 to {module.num_layers - 1}, {ways}, and one of "
            f"{' '.join(names)}, which this {module.cell.name} computes, got {key!r}"
        )
    return place
