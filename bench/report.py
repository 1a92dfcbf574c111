"""Tables and figures out of results; nothing in them is typed.

    python -m bench.report

puts them between the marks ``<!-- bench NAME: begin -->`` and ``<!-- bench NAME: end -->`` of
README.md and the pages under docs/. Each other JSON file beside result.json is another machine's
result: bench/results/NAME.json becomes docs/speed-NAME.md, the same page with its numbers.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench import claims
from bench.cases import CHECKPOINT, GROUPS, OURS, PAIR, TORCH
from bench.claims import Json, case_of, share
from gatewise.errors import ArgumentError

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "result.json"
FIGURE = ROOT / "docs" / "figures" / "speed.svg"
SPEED = ROOT / "docs" / "speed.md"
PAGES = (ROOT / "README.md", SPEED, ROOT / "docs" / "kernels.md")
MARKS = re.compile(r"(<!-- bench ([\w ]+): begin[^\n]*-->\n).*?(<!-- bench \2: end -->)", re.DOTALL)
MOST_NOISY = 0.1  # of the rows
LOST, LOW, FAR, NOISY = "slower", "below aim", "slow meetings", "noisy"
UNITS = (("s", 1.0), ("ms", 1e-3), ("us", 1e-6))
#: What every result has.
HEAD = {"version", "build", "commit", "when", "machine", "python", "torch", "compiler", "isa",
        "threads", "quick", "own_instructions", "peak", "peak_by_isa", "rows"}  # fmt: skip


def load(path: Path = RESULT) -> Json | None:
    """A result, or None where nothing has been measured yet.

    Raises:
        ArgumentError: the file is something else, or was cut short.
    """
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text())
        cases_there = [case_of(row) for row in found["rows"]]
    except (ValueError, TypeError, KeyError):
        cases_there = []
    if not cases_there or not found.keys() >= HEAD:
        raise ArgumentError(f"{path}: no result of this bench, or cut short; remove it")
    return dict(found)


# --- text for the terminal --------------------------------------------------------------------


def heading(result: Json) -> str:
    """Machine, versions and peak, in lines."""
    peak = ", ".join(
        f"{dtype} {value / 1e9:.0f}"
        for dtype, value in result["peak"].items()
        if result["own_instructions"][dtype]
    )
    noisy = _noisy(result)
    missing = [d for d, own in result["own_instructions"].items() if not own]
    return "\n".join(
        (
            f"{result['machine']}; {result['isa']} kernels, {result['threads']} thread"
            + "s" * (result["threads"] > 1)
            + (f"; {noisy} of {len(result['rows'])} rows noisy" if noisy else ""),
            f"gatewise {result['version']} at {result['commit']}, {result['compiler']}; "
            f"torch {result['torch']}, Python {result['python']}; {result['when']}",
            f"peak, GFLOP/s: {peak}"
            + "".join(f"; {dtype} has no instructions here: float32's peak" for dtype in missing),
            *_meetings(result),
        )
    )


def _meetings(result: Json) -> list[str]:
    """What a meeting of the threads took while the rows were measured."""
    took = sorted(row["meeting"] * 1e6 for row in result["rows"] if "meeting" in row)
    if not took or result["threads"] < 2:
        return []
    far = sum(claims.slow_meetings(row, result) for row in result["rows"])
    return [
        f"a meeting of the threads: {took[len(took) // 2]:.2f} us in the middle row, {took[0]:.2f} "
        f"to {took[-1]:.2f}; {far} of {len(result['rows'])} rows with slow ones"
    ]


def _noisy(result: Json) -> int:
    """Rows in which too few rounds were quiet."""
    return sum(claims.noisy(row, result) for row in result["rows"])


def row_text(row: Json, result: Json) -> str:
    """What was just measured, in one line."""
    case, words = case_of(row), []
    for name, time in row["times"].items():
        if "bytes" in time:
            words.append(f"{name} {_bytes(time['bytes'])}")
        elif "factor" in time:
            words.append(f"{name} {time['factor']:.1f}x when disturbed")
        else:
            words.append(f"{name} {_time(time['median'])}{_percent(row, name, result)}")
            if name in row["ratios"]:
                words[-1] += f" ({row['ratios'][name][0]:.2f}x)"
    return f"{case.label} {case.mode}: " + "; ".join(words + _absent(row) + _marks(row, result))


def verdicts_text(result: Json) -> str:
    return "\n".join(
        f"{'holds ' if v.holds else 'MISSED'}  {v.claim}: {v.measured} ({v.bound})"
        for v in claims.verdicts(result)
    )


# --- tables -----------------------------------------------------------------------------------


def blocks(result: Json | None) -> dict[str, Callable[[], str]]:
    """What can stand between marks, by name; empty before the first measurement."""
    if result is None:
        names = (*GROUPS, "run", "machines", "claims", "again", "summary", "figure")
        return dict.fromkeys(names, lambda: "")
    found: dict[str, Callable[[], str]] = {group: partial(table, result, group) for group in GROUPS}
    return found | {
        "run": lambda: heading(result).replace("\n", "  \n") + "\n",
        "machines": machines,
        "claims": lambda: claims_table(result),
        "again": lambda: again(result),
        "summary": lambda: summary(result),
        "figure": lambda: f"![Share of the peak by size, and how time grows]({FIGURE.name})\n",
    }


def machines() -> str:
    """The pages of all machines, if there are several."""
    lines = []
    for path in (RESULT, *others()):
        if (result := load(path)) is not None:
            page = page_of(path).name
            lines.append(f"- [{page}]({page}): {heading(result).splitlines()[0]}\n")
    return "\nMachines:\n\n" + "".join(lines) if len(lines) > 1 else ""


def fill(text: str, result: Json | None, figure: str = "") -> str:
    """``text`` with every marked block written anew.

    Raises:
        KeyError: a mark names a block that does not exist.
    """
    made = blocks(result)

    def block(match: re.Match[str]) -> str:
        content = made[match[2]]()
        if match[2] == "figure" and content and figure:
            content = content.replace(FIGURE.name, figure)
        return f"{match[1]}{content}{match[3]}"

    return MARKS.sub(block, text)


def table(result: Json, group: str) -> str:
    """The rows of a group; what is lost stays in and is marked."""
    rows = [row for row in result["rows"] if row["case"]["group"] == group]
    if not rows:
        return "Not measured in this run.\n"
    if group == "memory":
        return _memory_table(rows)
    if group == "contention":
        return _contention_table(rows)
    names = list(dict.fromkeys(name for row in rows for name in row["case"]["entrants"]))
    names = [name for name in names if any(name in row["times"] for row in rows)]
    lines = [["T, B, I, H", "mode", *(f"`{name}`" for name in names), ""]]
    for row in rows:
        case = case_of(row)
        cells = [case.label, case.mode]
        cells += [_cell(row, name, result) for name in names]
        lines.append([*cells, ", ".join(_marks(row, result) + _absent(row))])
    text = _markdown(lines)
    if group == "growth":
        for (axis, name), power in claims.fits(result).items():
            text += f"\nTime of `{name}` grows as {axis}^{power:.2f}.  "
        text += "\n"
    return text


def _cell(row: Json, name: str, result: Json) -> str:
    if name not in row["times"]:
        return "-"
    text = _time(row["times"][name]["median"]) + _percent(row, name, result)
    if name in row["ratios"]:
        middle, low, high = row["ratios"][name]
        text += f"; {middle:.2f}x [{low:.2f}, {high:.2f}]"
    return text


def _memory_table(rows: list[Json]) -> str:
    names = (OURS, CHECKPOINT, TORCH)
    lines = [["T, B, I, H", *(f"`{name}`" for name in names), "ours over torch's"]]
    for row in rows:
        taken = {name: time["bytes"] for name, time in row["times"].items()}
        cells = [_bytes(taken[name]) if name in taken else "-" for name in names]
        note = "; ".join(_absent(row))
        if taken.keys() >= set(PAIR):
            mark = " more" if taken[OURS] > taken[TORCH] else ""
            note = "; ".join([f"{taken[OURS] / taken[TORCH]:.2f}x{mark}", *_absent(row)])
        lines.append([case_of(row).label, *cells, note])
    text = _markdown(lines)
    if (power := claims.checkpoint_power(rows)) is not None:
        text += f"\nMemory of `{CHECKPOINT}`, beyond output and gradient of the input, grows as "
        text += f"T^{power:.2f}.\n"
    return text


def _contention_table(rows: list[Json]) -> str:
    lines = [["T, B, I, H", "", "calm", "disturbed", "worst", "disturbed over calm"]]
    for row in rows:
        for name, t in row["times"].items():
            times = [_time(t[k]) for k in ("calm", "busy", "worst")]
            lines.append([case_of(row).label, f"`{name}`", *times, f"{t['factor']:.1f}x"])
    return _markdown(lines)


def claims_table(result: Json) -> str:
    lines = [["claim", "bound", "measured", ""]]
    for verdict in claims.verdicts(result):
        held = "holds" if verdict.holds else "**missed**"
        lines.append([verdict.claim, verdict.bound, verdict.measured, held])
    return _markdown(lines)


def summary(result: Json) -> str:
    """For the README: how many times faster than torch.nn.LSTM, and the share of peak."""
    lines = [["T, B, I, H", "training", "inference"]]
    found: dict[str, dict[str, str]] = {}
    for row in result["rows"]:
        group = row["case"]["group"]
        if group not in ("fp32", "packed", "bf16"):
            continue
        name = case_of(row).label + (", bfloat16" if group == "bf16" else "")
        found.setdefault(name, {})[row["case"]["mode"]] = _in_brief(row, result)
    lines += [[name, c.get("training", "-"), c.get("inference", "-")] for name, c in found.items()]
    return _markdown(lines) + "\n" + heading(result).replace("\n", "  \n") + "\n"


def _in_brief(row: Json, result: Json) -> str:
    if "wrong" in row:
        return str(row["wrong"])
    rows = claims.raced(result).get(claims.problem(row, result), [])
    ratios = sorted(each["ratios"][TORCH][0] for each in rows)
    ends = dict.fromkeys(f"{ratio:.2f}x" for ratio in (ratios[:1] + ratios[-1:]))
    mark = f" ({LOST})" if any(map(claims.lost, rows)) else ""
    said = " to ".join(ends) or "torch fails"
    return f"{said}{mark}, {share(row, OURS, result):.0%} of peak"


def again(result: Json) -> str:
    """The cases that stand in several groups: how far a ratio lies from itself."""
    lines = [["T, B, I, H", "mode", "torch's time over ours, by group"]]
    for case, rows in claims.raced(result).items():
        if len(rows) > 1:
            said = (f"{r['case']['group']} {r['ratios'][TORCH][0]:.2f}x" for r in rows)
            lines.append([case.label, case.mode, ", ".join(said)])
    return _markdown(lines) if len(lines) > 1 else "No case was measured twice in this run.\n"


def _markdown(lines: list[list[str]]) -> str:
    head, *rest = lines
    parts = [head, ["---"] * len(head), *rest]
    lines = [[" ".join(cell.split()).replace("|", r"\|") for cell in cells] for cells in parts]
    return "\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _absent(row: Json) -> list[str]:
    return [f"without {name}: {why}" for name, why in row.get("missing", {}).items()]


def _marks(row: Json, result: Json) -> list[str]:
    if "wrong" in row:
        return [row["wrong"]]
    marks = [LOST] if claims.lost(row) else []
    marks += [LOW] if claims.below(row, result) else []
    marks += [FAR] if claims.slow_meetings(row, result) else []
    return marks + ([NOISY] if claims.noisy(row, result) else [])


def _percent(row: Json, name: str, result: Json) -> str:
    if row["case"]["what"] != "layer":
        return ""
    return f", {share(row, name, result):.0%}"


def _time(seconds: float) -> str:
    """Three digits and a unit.

    Example:
        >>> _time(0.00123), _time(4.5e-7), _time(0.0009996), _time(1234.0)
        ('1.23 ms', '0.45 us', '1 ms', '1230 s')
    """
    digits = float(f"{seconds:.3g}")  # rounded first: 999.6 us are 1 ms
    unit, size = next(each for each in UNITS if digits >= each[1] or each is UNITS[-1])
    return f"{float(f'{digits / size:.3g}'):g} {unit}"


def _bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB"


def others() -> list[Path]:
    """The results of other machines."""
    return sorted(path for path in RESULT.parent.glob("*.json") if path != RESULT)


def page_of(path: Path) -> Path:
    """The page of a result."""
    return SPEED if path == RESULT else SPEED.with_stem(f"{SPEED.stem}-{path.stem}")


def figure_of(path: Path) -> Path:
    """The figure of a result."""
    return FIGURE if path == RESULT else FIGURE.with_stem(f"{FIGURE.stem}-{path.stem}")


def other_page(path: Path) -> str:
    """The page of another machine's result, out of that of the first."""
    text = fill(SPEED.read_text(), load(path), link(SPEED, figure_of(path)))
    return text.replace(RESULT.name, path.name)


def main() -> int:
    """Write the pages and the figures."""
    from bench import figure

    results = {}
    for path in (RESULT, *others()):
        try:
            result = load(path)
        except ArgumentError as wrong:
            print(f"bench: {wrong}", file=sys.stderr)
            return 2
        if result is None:
            print(f"bench: {path} is not there; run make bench", file=sys.stderr)
            return 2
        if why := unfit(result):
            print(f"bench: {path.name} is not published: {why}", file=sys.stderr)
            return 2
        results[path] = result
    written = [*map(figure_of, results), *PAGES, *map(page_of, others())]
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    for path, result in results.items():
        figure.draw(result, figure_of(path))
    for page in PAGES:
        page.write_text(fill(page.read_text(), results[RESULT], link(page)))
    for path in others():
        page_of(path).write_text(other_page(path))
    print(", ".join(str(path.relative_to(ROOT)) for path in written))
    return 0


def unfit(result: Json) -> str:
    """Why a result must not stand in the pages, or nothing."""
    noisy, rows = _noisy(result), len(result["rows"])
    if result["quick"]:
        return "a quick look, with few samples"
    if noisy > MOST_NOISY * rows:
        return f"{noisy} of {rows} rows were measured while something else was at work"
    groups = [row["case"]["group"] for row in result["rows"]]
    if missing := set(GROUPS) - {"peers"} - set(groups):
        return f"not measured: {', '.join(sorted(missing))}; run the rest with --only"
    lacking = result.get("planned", 0) - sum(group != "peers" for group in groups)
    if lacking > 0:
        return f"it was stopped: {lacking} of {result['planned']} rows were not measured"
    return ""


def link(page: Path, figure: Path = FIGURE) -> str:
    """A figure's place, as seen from a page."""
    return figure.relative_to(page.parent).as_posix()


if __name__ == "__main__":
    sys.exit(main())
