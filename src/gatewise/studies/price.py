"""What do the gates cost? Time, memory and work of the LSTM beside the plain RNN."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import gatewise
from gatewise.studies import clock, same_loss, stats, style, wording
from gatewise.studies.frame import Json, Mode, Prediction, Study, pick
from gatewise.studies.networks import LAYERS, parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LOOKS: dict[str, Json] = {
    "torch.nn.RNN": {"color": style.ORANGE, "marker": "o", "linestyle": "--"},
    "torch.nn.LSTM": {"color": style.SKY, "marker": "s", "linestyle": "-."},
    "gatewise.RNN": {"color": style.RED, "marker": "D", "linestyle": ":"},
    "gatewise.LSTM": {"color": style.BLUE, "marker": "^", "linestyle": "-"},
}
#: What stands behind a layer's name when it runs under bfloat16 autocast.
LOW = ", bfloat16"
#: Like for like in float32, which is the headline; then what stands beside it.
RATIOS = (
    ("gatewise.LSTM", "gatewise.RNN"),
    ("torch.nn.LSTM", "torch.nn.RNN"),
    ("gatewise.LSTM", "torch.nn.RNN"),
    (f"gatewise.LSTM{LOW}", "torch.nn.RNN"),
    (f"torch.nn.LSTM{LOW}", "torch.nn.RNN"),
    (f"torch.nn.RNN{LOW}", "torch.nn.RNN"),
    ("gatewise.RNN", "torch.nn.RNN"),
    ("gatewise.LSTM", "torch.nn.LSTM"),
)
PHASES = ("training", "inference")

_SIZES: dict[Mode, Json] = {
    "quick": {"H": [32, 64], "rounds": 5, "T": [8, 32], "B": [1, 8], "seeds": 1, "sequences": 1600,
              "learn": 12, "rates": [0.01]},
    "default": {"H": [32, 64, 128, 256, 512], "rounds": 7, "T": [10, 30, 100, 300, 1000],
                "B": [1, 4, 16, 64], "seeds": 2, "sequences": 12_800, "learn": 64,
                "rates": [0.01]},
    "full": {"H": [32, 64, 128, 256, 512, 1024], "rounds": 15,
             "T": [10, 30, 100, 300, 1000, 3000], "B": [1, 4, 16, 64, 256],
             "seeds": 5, "sequences": 25_600, "learn": 64, "rates": [0.003, 0.01]},
}  # fmt: skip


def units(mode: Mode) -> list[Json]:
    size = _SIZES[mode]
    rounds = size["rounds"]
    plan: list[Json] = [
        {"kind": "step", "H": H, "T": max(25, min(100, 25_600 // H)), "B": 32, "rounds": rounds}
        for H in size["H"]
    ]
    axes = {"T": {"B": 8, "H": 64}, "B": {"T": 50, "H": 64}}
    plan += [
        {"kind": "growth", "axis": axis, axis: n, **others, "rounds": rounds}
        for axis, others in axes.items()
        for n in size[axis]
    ]
    learned = {"task": "steps back" if mode == "quick" else "text", "H": size["learn"]}
    plan += [{"kind": "pace", **learned, "rounds": rounds}]
    return plan + [
        {"kind": "loss", "cell": cell, **learned, "sequences": size["sequences"], "rate": rate,
         "seed": seed}
        for seed in range(size["seeds"])
        for cell in ("rnn", "lstm")
        for rate in size["rates"]
    ]  # fmt: skip


def measure(unit: Json) -> Json:
    if unit["kind"] in ("loss", "pace"):
        return same_loss.measure(unit)
    T, B, H = unit["T"], unit["B"], unit["H"]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(T, B, H, generator=generator)
    found: Json = {"layers": {}, "failed": {}}
    steps: dict[str, Callable[[], Any]] = {}
    runs: dict[str, Callable[[], Any]] = {}
    for low in (False, True) if unit["kind"] == "step" else (False,):
        for layer_name, (make, cell) in LAYERS.items():
            name = layer_name + LOW * low
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                layer = make(H, H)
            step, run = _training_step(layer, x, low), _inference(layer, x, low)
            try:
                found["layers"][name] = _facts(layer, cell, x, low)
                step()
                run()
            except RuntimeError as problem:
                found["failed"][name] = str(problem).splitlines()[0]
            else:
                steps[name], runs[name] = step, run
    for phase, ways in (("training", steps), ("inference", runs)):
        if unit["kind"] == "growth" and phase == "inference":
            continue
        times = clock.in_turn(ways, unit["rounds"])
        found[phase] = {
            "milliseconds": clock.medians(times),
            "ratios": {
                f"{above} / {below}": clock.ratio(times, above, below)
                for above, below in RATIOS
                if above in times and below in times
            },
        }
    return found


def _facts(layer: nn.Module, cell: str, x: Tensor, low: bool) -> Json:
    """What can be counted: parameters, multiply-adds of a forward, bytes kept for the backward."""
    T, B, H = x.shape
    x = x.clone().requires_grad_()
    with clock.Kept(x, module=layer) as kept, _autocast(low):
        layer(x)
    return {
        "parameters": parameters(cell, H, H),
        "multiply_adds": T * B * len(gatewise.CELLS[cell].gates) * H * (H + H),
        "bytes_kept": kept.bytes,
    }


def _autocast(low: bool) -> torch.autocast:
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=low)


def _training_step(layer: nn.Module, x: Tensor, low: bool) -> Callable[[], None]:
    """Forward, and the gradients of the input and of every parameter."""
    x = x.clone().requires_grad_()
    d_output = torch.ones(x.shape, dtype=torch.bfloat16 if low else torch.float32)

    def step() -> None:
        layer.zero_grad(set_to_none=True)
        x.grad = None
        with _autocast(low):
            output = layer(x)[0]
        output.backward(d_output.to(output.dtype))

    return step


def _inference(layer: nn.Module, x: Tensor, low: bool) -> Callable[[], None]:
    @torch.no_grad()
    def run() -> None:
        with _autocast(low):
            layer(x)

    return run


def summarise(records: list[Json]) -> Json:
    steps = []
    facts = []
    for record in pick(records, kind="step"):
        unit, values = record["unit"], record["values"]
        size = {axis: unit[axis] for axis in "HTB"}
        steps += [size | {"phase": phase} | values[phase] for phase in PHASES]
        facts.append(size | {key: values[key] for key in ("layers", "failed")})
    return {
        "steps": steps,
        "facts": facts,
        "exponents": {
            axis: {name: round(_exponent(points), 3) for name in LAYERS
                   if len(points := growth(records, axis, name)) > 1}
            for axis in ("T", "B", "H")
        },
        "same_loss": same_loss.summarise(records),
    }  # fmt: skip


def growth(records: list[Json], axis: str, name: str) -> list[tuple[float, float]]:
    """(size, milliseconds of a training step) along one axis; for H a step of 100 by 32 tokens."""
    here = pick(records, kind="step") if axis == "H" else pick(records, kind="growth", axis=axis)
    points = []
    for record in here:
        times = record["values"]["training"]["milliseconds"]
        scale = 100 / record["unit"]["T"] if axis == "H" else 1.0
        if name in times:
            points.append((record["unit"][axis], times[name][0] * scale))
    return points


def _exponent(points: list[tuple[float, float]]) -> float:
    """Fitted on the larger half, where the fixed cost of a call no longer shows."""
    far = points[-max(2, (len(points) + 1) // 2) :]
    return stats.exponent([x for x, _ in far], [y for _, y in far])


def ratio(
    summary: Json, H: int, above: str, below: str = "torch.nn.RNN", phase: str = "training"
) -> list[float] | None:
    """Median and interval of a ratio at one size; None where one of the two did not run."""
    row = next(s for s in summary["steps"] if (s["H"], s["phase"]) == (H, phase))
    found: list[float] | None = row["ratios"].get(f"{above} / {below}")
    return found


def sizes(summary: Json) -> list[int]:
    """The hidden sizes measured."""
    return sorted({s["H"] for s in summary["steps"]})


def answer(summary: Json) -> str:
    ends = (sizes(summary)[0], sizes(summary)[-1])

    def over(above: str, below: str) -> list[list[float]]:
        """Of the smallest hidden size and of the largest."""
        found = [ratio(summary, H, above, below) for H in ends]
        return [each for each in found if each is not None]

    def said(found: list[list[float]]) -> str:
        parts = [f"{wording.ratio(r)} (H = {H})" for r, H in zip(found, ends, strict=True)]
        return f"{' to '.join(parts)} times as long"

    ours, torchs = over("gatewise.LSTM", "gatewise.RNN"), over("torch.nn.LSTM", "torch.nn.RNN")
    longer = all(low > 1 for _, low, _ in ours)
    smaller = all(a[0] < b[0] for a, b in zip(torchs, ours, strict=True))
    return (
        "With the same kernels, gatewise over gatewise, a float32 training step of an LSTM takes "
        f"{said(ours)} as a plain RNN's: "
        f"{'the textbooks are right' if longer else 'here the textbooks are wrong'}. "
        f"In torch it takes {said(torchs)}"
        + (
            ", because torch runs the plain RNN step by step as many small operations and the LSTM "
            "in one fused call"
            if smaller
            else ""
        )
        + f". gatewise.LSTM in place of torch.nn.RNN takes "
        f"{said(over('gatewise.LSTM', 'torch.nn.RNN'))}."
    )


def draw(result: Json) -> Figure:
    summary, records = result["summary"], result["records"]
    figure, axes = style.canvas(3, 2, result["question"], height=4.0)
    _ratio_axes(axes[0], summary, "training")
    _ratio_axes(axes[1], summary, "inference")
    _loss_axes(axes[2], records, summary["same_loss"])
    for ax, axis, words in (
        (axes[3], "T", "steps T (B = 8, H = 64)"),
        (axes[4], "B", "batch B (T = 50, H = 64)"),
        (axes[5], "H", "hidden size H (B = 32, per 100 steps)"),
    ):
        for name in LAYERS:
            points = growth(records, axis, name)
            power = summary["exponents"][axis].get(name)
            ax.plot(*zip(*points, strict=True), **_LOOKS[name], markersize=4,
                    label=f"{name}: {axis}^{power:.2f}")  # fmt: skip
        ax.set(xscale="log", yscale="log", xlabel=words, ylabel="ms a training step")
        style.plain(ax)
        style.small(ax)
    return figure


def _ratio_axes(ax: Axes, summary: Json, phase: str) -> None:
    lines = (
        ("gatewise.LSTM", "gatewise.RNN", style.BLUE, "^", "-"),
        ("torch.nn.LSTM", "torch.nn.RNN", style.SKY, "s", "-."),
        ("gatewise.LSTM", "torch.nn.RNN", style.BLACK, "P", "-"),
        ("gatewise.RNN", "torch.nn.RNN", style.RED, "D", ":"),
        (f"gatewise.LSTM{LOW}", "torch.nn.RNN", style.GREEN, "v", "--"),
        (f"torch.nn.LSTM{LOW}", "torch.nn.RNN", style.PINK, "o", "--"),
    )
    for name, below, colour, mark, dashes in lines:
        points = []
        for H in sizes(summary):
            found = ratio(summary, H, name, below, phase)
            if found is not None:
                points.append((H, *found))
        if not points:
            continue
        across, mid, low, high = zip(*points, strict=True)
        ax.plot(across, mid, color=colour, marker=mark, linestyle=dashes, markersize=5,
                label=f"{name} / {below}")  # fmt: skip
        ax.fill_between(across, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.axhline(1, color="#555555", linewidth=0.9)
    ax.set(xscale="log", yscale="log", xlabel="hidden size H", ylabel="times as long",
           title=f"{phase}: beside a plain RNN")  # fmt: skip
    ax.set_xticks(sizes(summary), [str(H) for H in sizes(summary)])
    ticks = [0.125, 0.25, 0.5, 1, 2, 4]
    ax.set_yticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    style.below(ax)


def _loss_axes(ax: Axes, records: list[Json], found: Json) -> None:
    """Error against seconds of training: every seed of each layer, at its cell's best rate."""
    for name, row in found.get("layers", {}).items():
        each = row["milliseconds_a_step"][0] / 1e3 / same_loss.BATCH
        runs = pick(records, kind="loss", cell=LAYERS[name][1], rate=row["rate"])
        for k, record in enumerate(runs):
            points = [(n * each, e) for n, e in record["values"]["curve"] if e is not None]
            looks = _LOOKS[name] | {"marker": "", "linewidth": 1.1, "alpha": 0.8}
            ax.plot(*zip(*points, strict=True), **looks, label=name if k == 0 else None)
    if found:
        ax.axhline(found["target"], color="#555555", linestyle=":", linewidth=1)
        ax.set(xlabel="seconds of training", ylabel=found["error_is"])
    ax.set(xscale="log", yscale="log", title="the same error (dotted): when?")
    style.plain(ax)
    style.small(ax)


def _no_slower(name: str, below: str, largest: int) -> Callable[[Json], bool | None]:
    """Whether a layer's training step is no slower than another's up to a hidden size."""

    def holds(summary: Json) -> bool | None:
        found = [ratio(summary, H, name, below) for H in sizes(summary) if largest >= H]
        there = [r[0] for r in found if r is not None]
        return all(r <= 1 for r in there) if len(there) == len(found) else None

    return holds


def _fewer_sequences(summary: Json) -> bool | None:
    layers = summary["same_loss"].get("layers")
    if not layers:
        return None
    rnn, lstm = (layers[name]["sequences"] for name in ("torch.nn.RNN", "gatewise.LSTM"))
    return bool(lstm and lstm[0] < rnn[0])


STUDY = Study(
    name="price",
    question="What do the gates cost?",
    method=(
        "Four layers with I = H in one process, taking turns; each value is the median of the "
        "rounds with a distribution-free 95 % interval, and a ratio is taken round by round. A "
        "training step is a forward and the gradients of the input and of every parameter; batch "
        "32; 100 steps, fewer where H is above 256. bfloat16 is torch's autocast, its ratio too "
        "is to torch.nn.RNN in float32. Multiply-adds are those of the matrix products, forward. "
        "Bytes kept: storage that autograd saves, without parameters and input. The same error: on "
        "text without spaces, equal hidden size, as torch starts them, Adam, batch 32, clip 1, "
        "the same learning rates tried and the best taken for each cell; seconds are sequences "
        "times the pace of a whole training step, for which the four layers took turns; "
        "multiply-adds are three times the forward's. Exponents are fitted on the larger half of "
        "each axis."
    ),
    predictions=(
        Prediction(
            "In float32 a training step of gatewise.LSTM is no slower than torch.nn.RNN's up to H "
            "= 128.",
            _no_slower("gatewise.LSTM", "torch.nn.RNN", 128),
        ),
        Prediction(
            "Under bfloat16 autocast it is no slower than torch.nn.RNN in float32 up to H = 512.",
            _no_slower(f"gatewise.LSTM{LOW}", "torch.nn.RNN", 512),
        ),
        Prediction(
            "gatewise.LSTM is at no size slower than torch.nn.LSTM in float32 training.",
            _no_slower("gatewise.LSTM", "torch.nn.LSTM", 10_000),
        ),
        Prediction(
            "Time grows linearly in T and B, and no faster than quadratically in H, for every "
            "layer (exponents within 0.15).",
            lambda s: all(
                p <= {"T": 1.15, "B": 1.15, "H": 2.15}[axis]
                for axis, found in s["exponents"].items()
                for p in found.values()
            ),
        ),
        Prediction(
            "The LSTM needs fewer sequences than the plain RNN to the same loss.",
            _fewer_sequences,
        ),
    ),
    units=units,
    measure=measure,
    summarise=summarise,
    answer=answer,
    draw=draw,
)
