"""Watching a model run, and stepping in: LSTM.trace, gatewise.tracing, gatewise.patching.

These are the words for people; ``watching`` is how it is done.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from gatewise import checks
from gatewise.cells import Cell
from gatewise.errors import ArgumentError
from gatewise.fields import DIRECTIONS
from gatewise.keeping import CellRun, Recorder, Store
from gatewise.lstm import Layers
from gatewise.trace import Trace
from gatewise.watching import CHANGE, Patch, Watch, Where, in_plain_sight

_KEY = re.compile(r"(?:(?P<module>.+)\.)?l(?P<layer>\d+)\.(?P<way>fwd|reverse)\.(?P<name>\w+)")


@in_plain_sight
def record(module: nn.Module, x: Tensor | PackedSequence, hx: Any = None) -> Trace:
    """Run a layer once and return its Trace: ``LSTM.trace``."""
    with CHANGE:
        if Watch.place not in module.__dict__:
            return Watch(module).record_alone(x, hx)  # spares the book-keeping, dear to a short run
        watch = Watch.on(module).follow_calls()
        recorder = Recorder("", Store(max_bytes=None), keep=1, thread=threading.get_ident())
        watch.add(recorder)
    try:
        module(x, hx)
    finally:
        watch.drop(recorder)
    (trace,) = recorder.runs()
    return _as_trace(trace)


class Traces(Mapping[str, Trace]):
    """What was recorded, by qualified module name: ``traces["encoder"]`` is its latest run."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def all(self, name: str) -> tuple[Trace, ...]:
        """The runs of one layer that were kept, oldest first."""
        return tuple(map(_as_trace, self._runs(name)))

    @property
    def nbytes(self) -> int:
        """Bytes of tape and output in the kept traces."""
        return self._store.nbytes

    def __getitem__(self, name: str) -> Trace:
        runs = self._runs(name)
        if not runs:
            known = ", ".join(map(repr, self)) or "nothing, for no layer has run yet"
            raise KeyError(f"{name!r}: no run has this name; recorded: {known}")
        return _as_trace(runs[-1])

    def __iter__(self) -> Iterator[str]:
        return iter([name for name in tuple(self._store.layers) if self._runs(name)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __repr__(self) -> str:
        return "\n".join(f"{name!r}: {self[name]!r}" for name in self) or "Traces(none yet)"

    def _runs(self, name: str) -> tuple[Trace | CellRun, ...]:
        layer = self._store.layers.get(name)
        return layer.runs() if layer else ()


def _as_trace(run: Trace | CellRun) -> Trace:
    return run.trace() if isinstance(run, CellRun) else run


@contextmanager
def tracing(
    model: nn.Module,
    names: str | Iterable[str] = "*",
    *,
    keep: int | None = 1,
    max_bytes: int | None = 2**30,
    z: bool = False,
) -> Iterator[Traces]:
    """Record every run of every gatewise layer and cell in a model, in training and in eval.

    Calls of an ``LSTMCell`` or ``RNNCell`` become a run too, T = how many: each call whose state is
    the one that an earlier call gave is that run's next step, any other begins a new run. So a loop
    over a cell has the trace of a layer; where the loop changes h between steps (dropout, say),
    each step is a run of its own, which ``keep=None`` keeps.

    Layers of a compiled model are recorded while Python runs them, between the compiled parts; a
    model compiled with ``fullgraph=True`` says that it cannot be.

    Runs of all threads are recorded, also those that overlap: each layer or loop over a cell as a
    run of its own, in the order in which they end.

    Args:
        model: holds gatewise layers, or is one (its name is then "").
        names: which layers, by qualified name; ``*`` stands for anything.
        keep: how many runs to keep of each layer, the latest ones; None keeps all.
        max_bytes: the most memory that kept traces may take, or None for no bound. It is looked at
            before a layer runs, so nothing is dropped in silence and nothing is half recorded. Of
            runs that overlap, none sees what the others will take.
        z: compute the pre-activations along with each run.

    Yields:
        Traces: name -> the latest Trace; ``.all(name)`` gives every kept one. It stays after the
        block.

    Raises:
        ArgumentError: the model has no gatewise layer, or none by these names, or keep is below 1;
            or, when a layer runs, the trace would pass max_bytes, or the values would end with a
            torch.vmap.
        RuntimeError: the model is exported inside the block.

    Example:
        >>> import torch, gatewise
        >>> model = torch.nn.Sequential(gatewise.RNN(3, 4, batch_first=True))
        >>> with gatewise.tracing(model) as traces:
        ...     _ = model(torch.zeros(2, 5, 3))
        >>> traces["0"]
        Trace(rnn, L=1 D=1 T=5 B=2 H=4 P=4, welded i f o)
    """
    layers = _modules(model, (Layers, Cell), "LSTM, RNN, LSTMCell or RNNCell")
    wanted = [names] if isinstance(names, str) else list(names)
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for name in layers):
            raise ArgumentError(
                f"names: expected names of gatewise layers ({', '.join(map(repr, layers))}), "
                f"got {pattern!r}; * stands for anything"
            )
    if keep is not None and keep < 1:
        raise ArgumentError(f"keep: expected 1 or more, or None, got {keep}")
    store = Store(max_bytes)
    chosen = {n: m for n, m in layers.items() if any(fnmatchcase(n, p) for p in wanted)}
    with CHANGE:
        watches = [
            (Watch.on(module).follow_calls(), Recorder(name, store, keep, z))
            for name, module in chosen.items()
        ]
        for watch, recorder in watches:
            watch.add(recorder)
    try:
        yield Traces(store)
    finally:
        for watch, recorder in watches:
            watch.drop(recorder)


@contextmanager
def patching(model: nn.Module, patches: Mapping[str, Patch]) -> Iterator[None]:
    """Change gates or states while a model runs, and see what comes of it.

    A layer with a patch runs by the page (``reference.sequence``), one step after another: exact,
    with gradients through everything, and slow. Other layers run as ever. Traces show the values as
    patched. Patches of the same value apply in the order in which they were entered. In a compiled
    model it is as with ``tracing``. Cells need no patches: who loops over a cell holds its states.

    Args:
        model: holds gatewise layers, or is one.
        patches: "<module>.l<layer>.<fwd|reverse>.<i|f|g|o|c|h>" -> fn(value, where) -> value. The
            value is (n, H), for h (n, P): the n sequences that reach step ``where.t``.

    Raises:
        ArgumentError: a key names no value that its layer computes.
        ShapeError: when the layer runs, a function gave back another shape.

    Example:
        >>> import torch, gatewise
        >>> from gatewise.recording import put
        >>> lstm = gatewise.LSTM(3, 4)
        >>> with gatewise.patching(lstm, {"l0.fwd.f": put(0.0, steps=[2], units=[1])}):
        ...     trace = lstm.trace(torch.zeros(5, 1, 3))
        >>> trace["l0.fwd.f"][2, 0, 1].item()
        0.0
    """
    layers = _modules(model, (Layers,), "LSTM or RNN")
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
    with CHANGE:
        watches = [
            (Watch.on(layers[name]).follow_calls(), group) for name, group in by_module.items()
        ]
        for watch, group in watches:
            watch.patches = [*watch.patches, group]
    try:
        yield
    finally:
        for watch, group in watches:
            with CHANGE:
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
        chosen = range(now.shape[-1]) if units is None else units
        columns = torch.as_tensor(chosen, device=now.device)
        new = torch.as_tensor(value, dtype=now.dtype, device=now.device)
        return now.index_copy(-1, columns, new.expand(now.shape[0], len(columns)))

    return patch


# --- the layers of a model ------------------------------------------------------------------------


def _modules(model: nn.Module, kinds: tuple[type[nn.Module], ...], one: str) -> dict[str, Any]:
    """Every module of these kinds in a model, by its qualified name."""
    checks.module(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, kinds)}
    if not layers:
        raise ArgumentError(
            f"model: expected at least one gatewise.{one} in it, got none in "
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
