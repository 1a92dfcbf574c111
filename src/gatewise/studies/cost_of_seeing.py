"""What does it cost to see every gate of every step, and its gradient?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import gatewise
from gatewise.studies import clock, style
from gatewise.studies.frame import Json, Mode, Prediction, Study

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CASES: dict[Mode, list[tuple[int, int, int]]] = {
    "quick": [(20, 4, 16), (20, 1, 16)],
    "default": [(100, 32, 64), (100, 32, 256), (100, 1, 64), (1000, 4, 64)],
    "full": [(100, 32, 64), (100, 32, 128), (100, 32, 256), (100, 32, 512), (100, 1, 64),
             (100, 1, 256), (1000, 4, 64), (10_000, 1, 64)],
}  # fmt: skip
_ROUNDS: dict[Mode, int] = {"quick": 5, "default": 15, "full": 21}

#: What is timed, in the order of the figure; and what each is compared with.
WAYS = {
    "forward": "gatewise.LSTM, forward",
    "trace": "gatewise.LSTM.trace: every i f g o c h",
    "cells": "loop of torch.nn.LSTMCell: h and c",
    "forward and backward": "gatewise.LSTM, forward and backward",
    "trace and gradients": "trace, backward, and the gradient of every gate",
    "cells and gradients": "loop of torch.nn.LSTMCell with the gradients of h and c",
}


def units(mode: Mode) -> list[Json]:
    return [{"T": T, "B": B, "H": H, "rounds": _ROUNDS[mode]} for T, B, H in _CASES[mode]]


def measure(unit: Json) -> Json:
    T, B, H = unit["T"], unit["B"], unit["H"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lstm, cell = gatewise.LSTM(H, H), nn.LSTMCell(H, H)
        x = torch.randn(T, B, H, requires_grad=True)
    for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):  # both run the same network
        getattr(cell, part).data.copy_(getattr(lstm, f"{part}_l0").data)
    ways = _ways(lstm, cell, x)
    times = clock.in_turn(ways, unit["rounds"])
    return {
        "milliseconds": clock.medians(times),
        "trace / forward": clock.ratio(times, "trace", "forward"),
        "cells / trace": clock.ratio(times, "cells", "trace"),
        "gradients / backward": clock.ratio(times, "trace and gradients", "forward and backward"),
        "cells / gradients": clock.ratio(times, "cells and gradients", "trace and gradients"),
        "bytes": _bytes(lstm, cell, x),
    }


def _ways(lstm: Any, cell: nn.LSTMCell, x: Tensor) -> dict[str, Callable[[], Any]]:
    def forward() -> Tensor:
        output: Tensor = lstm(x)[0]
        return output

    def forget() -> None:
        lstm.zero_grad(set_to_none=True)
        cell.zero_grad(set_to_none=True)
        x.grad = None

    def forward_and_backward() -> None:
        forget()
        forward().sum().backward()

    def trace() -> list[Tensor]:
        return look(lstm, x)

    def trace_and_gradients() -> list[Tensor]:
        forget()
        trace = lstm.trace(x)
        trace.output.sum().backward()
        return [getattr(trace.grad, name) for name in "ifgoch"]

    def cells() -> tuple[Tensor, Tensor]:
        return loop(cell, x)

    def cells_and_gradients() -> list[Tensor | None]:
        forget()
        hs, cs = _unrolled(cell, x)
        for state in (*hs, *cs):
            state.retain_grad()
        torch.stack(hs).sum().backward()
        return [state.grad for state in (*hs, *cs)]

    return {
        "forward": forward,
        "trace": trace,
        "cells": cells,
        "forward and backward": forward_and_backward,
        "trace and gradients": trace_and_gradients,
        "cells and gradients": cells_and_gradients,
    }


def look(lstm: Any, x: Tensor) -> list[Tensor]:
    """Every gate and state of every step, each (1, 1, T, B, H)."""
    trace = lstm.trace(x)
    return [getattr(trace, name) for name in "ifgoch"]


def loop(cell: nn.LSTMCell, x: Tensor) -> tuple[Tensor, Tensor]:
    """h and c of every step (T, B, H), as people collect them with torch alone."""
    hs, cs = _unrolled(cell, x)
    return torch.stack(hs), torch.stack(cs)


def _unrolled(cell: nn.LSTMCell, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    h = c = x.new_zeros(x.shape[1], cell.hidden_size)
    hs, cs = [], []
    for x_t in x:
        h, c = cell(x_t, (h, c))
        hs.append(h)
        cs.append(c)
    return hs, cs


def _bytes(lstm: nn.Module, cell: nn.LSTMCell, x: Tensor) -> Json:
    """What a forward, a trace and the loop hold until the backward."""
    with clock.Kept(x, module=lstm) as kept:
        lstm(x)
    with clock.Kept(x, module=lstm) as traced:
        seen = look(lstm, x)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in seen}
    with clock.Kept(x, module=cell) as looped:
        loop(cell, x)
    extra = sum(size for place, size in held.items() if place not in traced.places)
    return {"forward": kept.bytes, "trace": traced.bytes + extra, "cells": looped.bytes}


def summarise(records: list[Json]) -> Json:
    rows = [{k: r["unit"][k] for k in "TBH"} | r["values"] for r in records]
    return {"rows": rows}


def _row(summary: Json, *shape: int) -> Json | None:
    return next((r for r in summary["rows"] if (r["T"], r["B"], r["H"]) == shape), None)


def answer(summary: Json) -> str:
    seen, loops = (
        sorted(r[key] for r in summary["rows"]) for key in ("trace / forward", "cells / trace")
    )
    return (
        f"Over the shapes measured, tracing every gate takes {_interval(seen[0])} to "
        f"{_interval(seen[-1])} times the bare forward, and a loop of LSTMCell, which shows no "
        f"gate, {_interval(loops[0])} to {_interval(loops[-1])} times the trace."
    )


def _interval(found: list[float]) -> str:
    return f"{found[0]:.2f} [{found[1]:.2f}, {found[2]:.2f}]"


def draw(result: Json) -> Figure:
    """Time with its interval, hollow with gradients; memory."""
    rows = result["summary"]["rows"]
    figure, (left, right) = style.canvas(1, 2, result["question"], height=4.8)
    shapes = [f"({r['T']}, {r['B']}, {r['H']})" for r in rows]
    for j, (way, words) in enumerate(WAYS.items()):
        colour, mark = _LOOKS[j % 3]
        mid, low, high = zip(*(r["milliseconds"][way] for r in rows), strict=True)
        y = [k + 0.13 * (j - 2.5) for k in range(len(rows))]
        left.hlines(y, low, high, color=colour, linewidth=2)
        left.plot(mid, y, mark, color=colour, markersize=5, label=words,
                  markerfacecolor=colour if j < 3 else "white")  # fmt: skip
    left.set(xscale="log", xlabel="milliseconds", ylabel="(T, B, H)", title="time")
    held = {
        "forward": "forward, for its backward",
        "trace": "trace, all it holds",
        "cells": "loop of LSTMCell, for its backward",
    }
    for j, (name, words) in enumerate(held.items()):
        y = [k + 0.2 * (j - 1) for k in range(len(rows))]
        colour, mark = _LOOKS[j]
        right.plot([r["bytes"][name] / 1e6 for r in rows], y, mark, color=colour, markersize=5,
                   label=words)  # fmt: skip
    right.set(xscale="log", xlabel="megabytes kept", title="memory")
    for ax in (left, right):
        ax.set_yticks(range(len(rows)), shapes)
        ax.invert_yaxis()
        style.plain(ax, "x")
        style.small(ax, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    return figure


#: Colour and mark of ours, of the trace, of the loop.
_LOOKS = ((style.BLUE, "^"), (style.GREEN, "s"), (style.ORANGE, "o"))


def _loop_slower(summary: Json) -> bool | None:
    """The factors promised: 6 at (100, 32, 64), 2.2 at (100, 32, 256), 20 at (100, 1, 64)."""
    promised = {(100, 32, 64): 6.0, (100, 32, 256): 2.2, (100, 1, 64): 20.0}
    found = [(row, least) for shape, least in promised.items() if (row := _row(summary, *shape))]
    return all(row["cells / trace"][0] >= least for row, least in found) if found else None


STUDY = Study(
    name="cost-of-seeing",
    question="What does it cost to see every gate of every step, and its gradient?",
    method=(
        "One LSTM layer, I = H, float32, with gradients on, in one process and in turn: a bare "
        "forward; a trace with all six fields read; a loop of torch.nn.LSTMCell with the same "
        "weights that collects h and c (it cannot give the gates); and each of them with its "
        "backward and the gradients of all it shows. Medians with a distribution-free 95 % "
        "interval; ratios round by round. Memory is storage: saved for backward, and for the "
        "trace also what its fields hold beyond that."
    ),
    predictions=(
        Prediction(
            "A trace takes at most 1.15 times the bare forward in training mode, at every size.",
            lambda s: all(r["trace / forward"][0] <= 1.15 for r in s["rows"]),
        ),
        Prediction(
            "The LSTMCell loop takes at least 6 times as long as the trace at (100, 32, 64), 2.2 "
            "times at (100, 32, 256) and 20 times at (100, 1, 64).",
            _loop_slower,
        ),
        Prediction(
            "The trace holds less than half of the memory of the loop.",
            lambda s: all(r["bytes"]["trace"] < r["bytes"]["cells"] / 2 for r in s["rows"]),
        ),
    ),
    units=units,
    measure=measure,
    summarise=summarise,
    answer=answer,
    draw=draw,
)
