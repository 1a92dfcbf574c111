"""What the project claims about its speed, each held against a result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

from bench.cases import BF16, CHECKPOINT, OURS, PAIR, STREAM, TORCH, Case, work
from bench.timing import exponent

Json = dict[str, Any]
TORCH_CELL = "torch.nn.LSTMCell"
SLOWER = 0.98  # below this ratio a cell is lost
SLOW = 0.7  # of the best probe: a row that never reached this was disturbed from begin to end
SLOW_MEETINGS = 3  # times the least of a run: a meeting of threads on cores without a common cache
RNN = "torch.nn.RNN"


@dataclass(frozen=True)
class Verdict:
    """A claim, its bound in words, what was measured, and whether that holds."""

    claim: str
    bound: str
    measured: str
    holds: bool


def case_of(row: Json) -> Case:
    return Case(**{**row["case"], "entrants": tuple(row["case"]["entrants"])})


def share(row: Json, name: str, result: Json) -> float:
    """The entrant's speed as a share of the peak of its number type while the row was timed."""
    case = case_of(row)
    dtype = "bfloat16" if name.endswith(BF16) else case.dtype
    done = work(case, "rnn" if ".RNN" in name else "lstm")
    peak = _clock(row, result) * result["peak"][dtype]
    return float(done / row["times"][name]["median"] / peak)


def _clock(row: Json, result: Json) -> float:
    """The best probe of the row over the best of all."""
    return float(row["probe"] / result["peak"]["float32"])


def problem(row: Json, result: Json) -> Case:
    """What a row asks, whatever group it stands in and whoever else takes part."""
    case = case_of(row)
    threads = 0 if case.threads == result["threads"] else case.threads
    return replace(case, group="", axis="", share=0.0, entrants=(), quick=False, threads=threads)


def raced(result: Json) -> dict[Case, list[Json]]:
    """By what they ask, the rows in which our layer stands beside torch's."""
    found: dict[Case, list[Json]] = {}
    for row in result["rows"]:
        if _raced(row) and row["case"]["entrants"][0].startswith(OURS):
            found.setdefault(problem(row, result), []).append(row)
    return found


def slow_meetings(row: Json, result: Json) -> bool:
    """Whether the threads took far longer to meet than in other rows: no cache between them."""
    least = min((each["meeting"] for each in result["rows"] if "meeting" in each), default=0)
    return bool(row.get("meeting", 0) > SLOW_MEETINGS * least)


def noisy(row: Json, result: Json) -> bool:
    """Whether too few of the row's rounds were quiet, or it was disturbed from begin to end."""
    return bool(row.get("noisy") or ("probe" in row and _clock(row, result) < SLOW))


def lost(row: Json) -> bool:
    """Whether ours, the first of the row, is slower than torch's."""
    ratios = row.get("ratios", {})
    return any(not ratios[name][0] >= SLOWER for name in (TORCH, TORCH_CELL) if name in ratios)


def below(row: Json, result: Json) -> bool:
    """Whether ours is below the share of peak that the case aims at."""
    aim = row["case"]["share"]
    return bool(aim and OURS in row["times"] and not share(row, OURS, result) >= aim)


def fits(result: Json) -> dict[tuple[str, str], float]:
    """The exponent of time by (letter, entrant), over the upper half of the sizes.

    Small sizes measure the price of a call, which does not grow.
    """
    found = {}
    for axis in "TBH":
        for name in (OURS, TORCH):
            rows = [r for r in _of(result["rows"], "growth") if r["case"]["axis"] == axis]
            rows = [row for row in rows if name in row["times"]]
            rows.sort(key=lambda row: row["case"][axis])
            upper = rows[-max(2, (len(rows) + 1) // 2) :]
            if len(upper) < 2:
                continue
            sizes = [row["case"][axis] for row in upper]
            found[axis, name] = exponent(sizes, [r["times"][name]["median"] for r in upper])
    return found


def geometric_mean(values: Iterable[float]) -> float:
    logs = [log(value) for value in values]
    return exp(sum(logs) / len(logs))


def verdicts(result: Json) -> list[Verdict]:
    """Every claim for which the result has rows."""
    rows = [row for row in result["rows"] if row.get("times")]
    made = (_shares, _never_slower, _means, _gates, _one_step, _cells, _seeing, _contention)
    found = [verdict for claim in made for verdict in claim(rows, result)]
    found = [*found, *_memory(rows), *_growth(result), *_isas(rows, result)]
    return [*_answered(result["rows"]), *found]


def _answered(rows: list[Json]) -> Iterator[Verdict]:
    """A row without times is in no other claim: it is missed here."""
    if failed := [row["key"] for row in rows if case_of(row).entrants[0] not in row["times"]]:
        yield Verdict("rows in which ours ran, with the right answer", f"all {len(rows)}",
                      f"not {', '.join(failed)}", False)  # fmt: skip


def _at_least(claim: str, bound: float, value: float, unit: str = "") -> Verdict:
    return Verdict(claim, f"at least {bound:g}{unit}", f"{value:.2f}{unit}", value >= bound)


def _at_most(claim: str, bound: float, value: float, unit: str = "") -> Verdict:
    return Verdict(claim, f"at most {bound:g}{unit}", f"{value:.2f}{unit}", value <= bound)


def _shares(rows: list[Json], result: Json) -> Iterator[Verdict]:
    aimed = [row for row in rows if row["case"]["share"] and OURS in row["times"]]
    if aimed:
        met = sum(not below(row, result) for row in aimed)
        yield Verdict(
            "cells at their share of peak", f"all {len(aimed)}", str(met), met == len(aimed)
        )


def _never_slower(rows: list[Json], _: Json) -> Iterator[Verdict]:
    if raced := [row for row in rows if _raced(row)]:
        worst = min(raced, key=lambda row: row["ratios"][TORCH][0])
        yield _at_least(
            f"slowest cell against torch.nn.LSTM ({worst['key']})",
            SLOWER,
            worst["ratios"][TORCH][0],
            "x",
        )


def _means(rows: list[Json], _: Json) -> Iterator[Verdict]:
    def ratios(group: str, mode: str, keep: Callable[[Json], bool] = bool) -> list[float]:
        return [
            row["ratios"][TORCH][0]
            for row in rows
            if (row["case"]["group"], row["case"]["mode"]) == (group, mode)
            and keep(row["case"])
            and _raced(row)
        ]

    for group, mode, bound in (
        ("fp32", "training", 1.7), ("fp32", "inference", 1.5), ("bf16", "training", 1.7)
    ):  # fmt: skip
        if values := ratios(group, mode):
            mean = geometric_mean(values)
            yield _at_least(f"{group} {mode}, geometric mean over torch", bound, mean, "x")
    for H, bound in ((64, 8.0), (512, 3.0)):
        if values := ratios("packed", "training", _of_size(H)):
            yield _at_least(f"packed training at H = {H} over torch", bound, values[0], "x")


def _of_size(H: int) -> Callable[[Json], bool]:
    return lambda case: bool(case["H"] == H)


def _gates(rows: list[Json], _: Json) -> Iterator[Verdict]:
    for row in _of(rows, "gates"):
        H, times = row["case"]["H"], row["times"]
        for how, dtype, most in (("", "float32", 128), (BF16, "bfloat16", 512)):
            if most >= H and {OURS + how, RNN} <= times.keys():
                took = times[OURS + how]["median"] / times[RNN]["median"]
                yield _at_most(f"{OURS} in {dtype} over {RNN} in float32, training at H = {H}",
                               1.0, took, "x")  # fmt: skip


def _one_step(rows: list[Json], _: Json) -> Iterator[Verdict]:
    kernel = {32: 0.26, 64: 1.25, 128: 5.0, 256: 22.0}
    for row in _of(rows, "step"):
        H = row["case"]["H"]
        for how, part in (("", 1.0), (BF16, 0.5)):
            if H in kernel and STREAM + how in row["times"]:
                yield _at_most(f"a step of Stream{how} at H = {H}", part * kernel[H] + 0.6,
                               row["times"][STREAM + how]["median"] * 1e6, " us")  # fmt: skip


def _cells(rows: list[Json], _: Json) -> Iterator[Verdict]:
    for mode, bound in (("inference", 2.5), ("training", 3.5)):
        for sizes, small, least in (("H <= 64", True, bound), ("H >= 128", False, SLOWER)):
            found = [
                row["ratios"][TORCH_CELL][0]
                for row in _of(rows, "cells")
                if row["case"]["mode"] == mode and (row["case"]["H"] <= 64) is small
                if TORCH_CELL in row["ratios"]
            ]
            if found:
                what = f"LSTMCell in a loop, {mode}, {sizes}, slowest over torch"
                yield _at_least(what, least, min(found), "x")
    alone = [
        row["times"][TORCH]["median"] / row["times"][OURS]["median"]
        for row in _of(rows, "step")
        if {OURS, TORCH} <= row["times"].keys()
    ]
    if alone:
        yield _at_least("a layer called for one step, slowest over torch", SLOWER, min(alone), "x")


def _seeing(rows: list[Json], _: Json) -> Iterator[Verdict]:
    loop = {(32, 64): 6.0, (32, 256): 2.2, (1, 64): 20.0}
    for row in _of(rows, "trace"):
        case, ratios = row["case"], row["ratios"]
        if len(ratios) < 2:
            continue
        where = f"at B = {case['B']}, H = {case['H']}"
        took = 1 / ratios["gatewise.LSTM forward"][0]
        yield _at_most(f"trace over forward in training mode {where}", 1.15, took, "x")
        bound, claim = loop[case["B"], case["H"]], "trace against a loop over torch.nn.LSTMCell"
        yield _at_least(f"{claim} {where}", bound, ratios["torch.nn.LSTMCell loop"][0], "x")


def _contention(rows: list[Json], _: Json) -> Iterator[Verdict]:
    if found := [row for row in _of(rows, "contention") if OURS in row["times"]]:
        worst = max(row["times"][OURS]["factor"] for row in found)
        yield _at_most("training step while another process takes a core, over calm", 2.5, worst,
                       "x")  # fmt: skip


def _memory(rows: list[Json]) -> Iterator[Verdict]:
    beside = [row for row in _of(rows, "memory") if row["times"].keys() >= set(PAIR)]
    if beside:
        worst = max(row["times"][OURS]["bytes"] / row["times"][TORCH]["bytes"] for row in beside)
        yield _at_most("peak memory of a training step over torch's, largest", 1.0, worst, "x")
    if (power := checkpoint_power(rows)) is not None:
        yield _at_most("exponent of memory in T with checkpoint=True, beyond output and gradient "
                       "of the input", 0.55, power)  # fmt: skip
    checked = [row for row in _of(rows, "growth") if CHECKPOINT in row["times"]]
    if checked:
        worst = max(row["ratios"][CHECKPOINT][0] for row in checked)
        yield _at_most("training step with checkpoint=True over one without, largest", 1.4, worst,
                       "x")  # fmt: skip


def beyond(row: Json, name: str) -> int:
    """Bytes beyond what every layer has to fill: the output, and the gradient of the input."""
    case = case_of(row)
    filled = 4 * case.tokens * (case.D * (case.P or case.H) + case.I)
    return int(row["times"][name]["bytes"]) - filled


def checkpoint_power(rows: list[Json]) -> float | None:
    """The exponent of memory in T with checkpoint=True, by rows that differ in T alone."""
    grown = [r for r in _of(rows, "memory") if r["case"]["axis"] and CHECKPOINT in r["times"]]
    if len(grown) < 2:
        return None
    return exponent([r["case"]["T"] for r in grown], [beyond(r, CHECKPOINT) for r in grown])


def _growth(result: Json) -> Iterator[Verdict]:
    bounds = {"T": 1.05, "B": 1.05, "H": 2.05}
    for (axis, name), power in fits(result).items():
        if name == OURS:
            yield _at_most(f"exponent of time in {axis}", bounds[axis], power)


def _isas(rows: list[Json], result: Json) -> Iterator[Verdict]:
    name, peaks = f"{OURS} avx2", result["peak_by_isa"]
    shares = [  # both peaks are of one moment; avx2's is half of that of wide multiply-adds
        share(row, name, result) * peaks[result["isa"]] / peaks["avx2"]
        for row in _of(rows, "isas")
        if name in row["times"] and row["case"]["H"] >= 128 and row["case"]["B"] > 1
    ]
    if shares:
        what = "share of its own peak with avx2 at H >= 128, lowest"
        yield _at_least(what, 0.75, min(shares))


def _raced(row: Json) -> bool:
    """Whether the row has a ratio to torch's layer."""
    return TORCH in row.get("ratios", {})


def _of(rows: list[Json], group: str) -> list[Json]:
    return [row for row in rows if row["case"]["group"] == group]
