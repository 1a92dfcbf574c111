"""What is kept of what ran: of each layer the latest runs, whichever threads they run in."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gatewise.errors import ArgumentError
from gatewise.spec import CellSpec
from gatewise.trace import GradSink, LayerRecord, Trace


class Store:
    """What the recorders of one block share.

    Args:
        max_bytes: the most that the kept traces may hold, or None.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self.max_bytes = max_bytes
        self.nbytes = 0  # a running total: a sum at each step would make T of them cost T^2
        self.lock = threading.RLock()  # on the total and on all that is kept
        self.layers: dict[str, Recorder] = {}  # in the order in which they first ran
        self.batchings = _batchings()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "lock": None}  # a copy, or what was saved, has a lock of its own

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, lock=threading.RLock())


class Recorder:
    """Keeps the latest runs of one layer, for one who records it.

    Args:
        name: what the layer is called there.
        store: shared with the recorders of the other layers.
        keep: how many runs; None keeps all.
        z: whether pre-activations are wanted too.
        thread: whose runs, by its ident; None for all.
    """

    def __init__(
        self,
        name: str,
        store: Store,
        keep: int | None,
        z: bool = False,
        thread: int | None = None,
    ) -> None:
        self.name, self.store, self.keep, self.z, self.thread = name, store, keep, z, thread
        self._runs: deque[Trace | CellRun] = deque()
        self._ends = _Ends()

    def runs(self) -> tuple[Trace | CellRun, ...]:
        """What is kept now, oldest first."""
        with self.store.lock:
            return tuple(self._runs)

    def begin(self) -> None:
        """A run begins, and needs the memory of the one that it will push out."""
        if _batchings() > self.store.batchings:
            raise ArgumentError(
                f"tracing: layer {self.name!r} runs under torch.vmap, whose values end with it; "
                "give the layer its batch as axis B, or trace inside the function that vmap takes"
            )
        with self.store.lock:
            self.store.layers.setdefault(self.name, self)
            self._make_room(for_one=True)

    def check_room(self, coming: int) -> None:
        """Refuse so many bytes more, if they are too many."""
        most, total = self.store.max_bytes, self.store.nbytes + coming
        if most is not None and total > most:
            raise ArgumentError(
                f"max_bytes: expected at most {most:,} bytes of trace, got {total:,} "
                f"with this run of layer {self.name!r}; trace fewer layers (names=) or runs "
                "(keep=), shorten the input, or raise max_bytes"
            )

    def end(self, trace: Trace) -> None:
        """A run of a layer is complete."""
        with self.store.lock:
            self._keep(trace)
            self.store.nbytes += trace.nbytes

    def end_before(self, h: Tensor | None, c: Tensor | None) -> End | None:
        """The end of a cell's run that goes on from this state; None, where a run begins."""
        with self.store.lock:
            run = None if h is None else self._ends.find(h, c)
            if run is not None:
                return End(run, run.steps[-1])
        self.begin()
        return None

    def add_step(self, end: End | None, cell: CellSpec, step: LayerRecord) -> None:
        """A step of a cell is complete, which came after this end."""
        with self.store.lock:
            # In other threads the run may have gone on from the same state, or been pushed out.
            if end is None or end.run.dropped or end.run.steps[-1] is not end.step:
                run = CellRun(cell)
                self._keep(run)
            else:
                run = end.run
            self.store.nbytes += run.add(step)
            self._ends.put(run)

    def _keep(self, run: Trace | CellRun) -> None:
        self._runs.append(run)
        self._make_room()  # runs that overlap all begin before one of them is kept

    def _make_room(self, for_one: bool = False) -> None:
        while self.keep is not None and len(self._runs) > self.keep - for_one:
            oldest = self._runs.popleft()
            self.store.nbytes -= oldest.nbytes
            if isinstance(oldest, CellRun):
                oldest.dropped = True
                self._ends.remove(oldest)


class CellRun:
    """Steps of a cell, each from the state that the one before gave: a sequence, as a layer's."""

    def __init__(self, cell: CellSpec) -> None:
        self.cell = cell
        self.steps: list[LayerRecord] = []
        self.nbytes = 0  # of tape and output
        self.dropped = False
        self.keys: set[tuple[float, ...]] = set()  # where _Ends has it
        self._changes: list[int] | None = None  # in place, of the state in which it ends
        self._trace: Trace | None = None

    def add(self, step: LayerRecord) -> int:
        """One more step, of so many bytes; a trace that was given out keeps the steps it has."""
        self.steps.append(step)
        self._changes = _changes(step)
        nbytes = step.nbytes
        self.nbytes += nbytes
        return nbytes

    def ends_in(self, h: Tensor, c: Tensor | None) -> bool:
        """Whether (h, c), each (B, H), is the state after the last step."""
        last = self.steps[-1]
        return (
            _changes(last) == self._changes
            and _is(h, last.h_n[0])
            and (c is None) == (not self.cell.has_cell_state)
            and (c is None or _is(c, last.c_n[0]))
        )

    def trace(self) -> Trace:
        """The steps so far as a Trace of one layer and one direction."""
        steps, trace = tuple(self.steps), self._trace  # another thread may add one meanwhile
        if trace is None or len(trace.records[0].x) != len(steps):
            first, last = steps[0], steps[-1]
            zs = [step.z for step in steps if step.z is not None]
            joined = LayerRecord(
                torch.cat([step.x for step in steps]), first.h0, first.c0,
                torch.cat([step.output for step in steps]), last.h_n, last.c_n,
                torch.cat([step.tape for step in steps], 1),
                first.weights, _Gathered(steps), first.versions,
                [torch.cat([z[0] for z in zs])] if zs else None,
            )  # fmt: skip
            self._trace = trace = Trace(self.cell, (joined,))
        return trace


class End(NamedTuple):
    """Where a run of a cell ended when it was looked at."""

    run: CellRun
    step: LayerRecord


class _Ends:
    """Runs of a cell by the state in which they end: a look at each would cost T runs T^2 looks."""

    def __init__(self) -> None:
        self._latest: CellRun | None = None  # to have a step: the one that most loops go on with
        self._others: dict[tuple[float, ...], list[CellRun]] = {}

    def find(self, h: Tensor, c: Tensor | None) -> CellRun | None:
        """The run that ends in this state."""
        if self._latest is not None and self._latest.ends_in(h, c):
            return self._latest
        alike = reversed(self._others.get(_first(h), ()))
        return next((run for run in alike if run.ends_in(h, c)), None)

    def put(self, run: CellRun) -> None:
        """The run has one more step."""
        if run is self._latest:
            return
        self.remove(run)
        before, self._latest = self._latest, run
        if before is not None:
            before.keys = set(map(_first, _roundings(before.steps[-1].h_n[0][:1, :8])))
            for key in before.keys:
                self._others.setdefault(key, []).append(before)

    def remove(self, run: CellRun) -> None:
        """The run is not to be found where it was."""
        if run is self._latest:
            self._latest = None
        for key in run.keys:
            alike = self._others[key]
            alike.remove(run)
            if not alike:
                del self._others[key]
        run.keys = set()


class _Gathered(GradSink):
    """The gradients of many steps, each of which has a sink of its own."""

    def __init__(self, steps: Sequence[LayerRecord]) -> None:
        self._steps = steps

    @property
    def tape(self) -> Tensor | None:  # type: ignore[override]
        if all(step.grad.tape is None for step in self._steps):
            return None
        tapes = [(step.tape, step.grad.tape) for step in self._steps]
        return torch.cat([torch.zeros_like(v) if g is None else g for v, g in tapes], 1)

    @property
    def h(self) -> Tensor | None:  # type: ignore[override]
        if all(step.grad.h is None for step in self._steps):
            return None
        outputs = [(step.output[None], step.grad.h) for step in self._steps]
        return torch.cat([torch.zeros_like(v) if g is None else g for v, g in outputs], 1)


def _roundings(made: Tensor) -> Iterator[Tensor]:
    """A state as a step made it, and its numbers as autocast rounds them."""
    return (made.to(short).to(made.dtype) for short in (made.dtype, torch.bfloat16, torch.float16))


def _is(given: Tensor, made: Tensor) -> bool:
    """Whether a state is the one that a step made, rounded or not."""
    return given.shape == made.shape and any(torch.equal(given, r) for r in _roundings(made))


def _first(state: Tensor) -> tuple[float, ...]:
    """A few numbers of a state, (B, H), by which to look for it."""
    return tuple(state[:1, :8].flatten().tolist())


def _changes(step: LayerRecord) -> list[int] | None:
    """torch's counts of in-place changes to the state that a step gave."""
    try:
        return [state._version for state in (step.h_n, step.c_n)]
    except RuntimeError:  # tensors of inference mode keep no count
        return None


def _batchings() -> int:
    """How many torch.vmap stand around this call."""
    if not torch._C._are_functorch_transforms_active():
        return 0
    stack = torch._C._functorch.get_interpreter_stack() or []
    return sum(level.key() == torch._C._functorch.TransformType.Vmap for level in stack)
