"""The explorer in a real Chromium: it says what the trace says, and obeys the hand.

python tests/test_explorer.py DIRECTORY     writes the screenshots to look at
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from chromium import (  # noqa: F401 (fixtures)
    CHARACTERS,
    browser_fixture,
    chromium,
    number,
    opened_fixture,
    press,
    rest,
    settle,
    shown,
    state,
    stop_the_clock,
    traced,
)

import gatewise
from gatewise import see

pytestmark = pytest.mark.browser

LAYERS = {
    **{name: lambda name=name: gatewise.LSTM(4, 6, cell=name) for name in ("lstm", "peephole")},
    "coupled": lambda: gatewise.LSTM(4, 6, cell="coupled"),
    "no_forget_gate": lambda: gatewise.LSTM(4, 6, cell="no_forget_gate"),
    "no_input_gate": lambda: gatewise.LSTM(4, 6, cell="no_input_gate"),
    "no_output_gate": lambda: gatewise.LSTM(4, 6, cell="no_output_gate"),
    "linear": lambda: gatewise.LSTM(4, 6, cell="linear"),
    "both ways": lambda: gatewise.LSTM(4, 6, num_layers=2, bidirectional=True),
    "projection": lambda: gatewise.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3),
    "rnn": lambda: gatewise.RNN(4, 6, bidirectional=True),
    "rnn_relu": lambda: gatewise.RNN(4, 6, nonlinearity="relu"),
}


# --- the numbers --------------------------------------------------------------


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_the_numbers_on_the_page_are_the_traces(make, opened) -> None:
    layer = make()
    trace = traced(layer, B=2)
    tab = opened(trace, tokens=[CHARACTERS, CHARACTERS[::-1]], viewport=(1280, 4000))
    pick = np.random.default_rng(0)
    trace = trace.to_numpy()
    L, D, T, B, H = trace.c.shape
    P = trace.h.shape[-1]
    for _ in range(3):
        k, d, t, b, u = (int(pick.integers(n)) for n in (L, D, T, B, H))
        p = int(pick.integers(P)) if P != H else u
        tab.evaluate(
            "s => modules['main.js'].set(s)",
            {"layer": k, "dir": d, "t": t, "batch": b, "unit": u, "out": p},
        )
        settle(tab)
        rows = tab.evaluate(
            """() => [...document.querySelectorAll("#rows tr")].map(r => [
            r.cells[1].dataset.name, r.cells[1].dataset.value,
            r.cells[1].textContent, r.cells[2].textContent, r.cells[3].textContent])"""
        )
        for name, value, text, slope, code in rows:
            at = (k, d, t, b, p if name == "h" else u)
            want = getattr(trace, name)[at]
            assert np.float32(value) == np.float32(text) == want
            assert eval(code, {"trace": trace}) == want
            assert np.float32(0 if slope == "–" else slope) == getattr(trace.grad, name)[at]
        assert [row[0] for row in rows] == list("ifgoch")
        moments(tab, trace, k, d, t, b, u, p)


def moments(tab, trace, k, d, t, b, u, p) -> None:
    """The formulas of the five moments and the wires of the diagram, against the trace."""
    cell = trace.cell
    i, f, g, o, c = (float(getattr(trace, name)[k, d, t, b, u]) for name in "ifgoc")
    h = float(trace.h[k, d, t, b, p])
    before = previous(trace, k, d, t, b, u)
    want = {"i": i, "f": f, "g": g, "o": o, "c": c, "h": h}
    if cell.has_cell_state:
        want |= {"cBefore": before, "kept": f * before, "written": i * g}
    for n, gate in enumerate(cell.gates):
        want[f"z_{gate}"] = float(trace.z[k, d, t, b, n, u])
    elements, sums = [], []
    for n in range(5):
        tab.evaluate(f"modules['main.js'].set({{ moment: {n} }})")
        settle(tab)
        elements += tab.evaluate(
            """() => [...document.querySelectorAll("#process [data-name], #diagram [data-name]")]
            .map(e => [e.dataset.name, e.dataset.value, e.textContent])"""
        )
        sums += tab.evaluate(
            "[...document.querySelectorAll('#moment-join td.sum')].map(e => +e.dataset.value)"
        )
    for name, value, text in elements:
        if name in want and text != "":
            assert float(value) == pytest.approx(want[name], rel=1e-5, abs=2e-6), name
            assert shown(text) == pytest.approx(want[name], rel=0.05, abs=0.006), name
    assert {name for name, _, _ in elements} >= set(want) - {"i", "f", "o", "c"}
    np.testing.assert_allclose(sums, trace.z[k, d, t, b, :, u], rtol=1e-5, atol=2e-6)


def previous(trace, k, d, t, b, u) -> float:
    """c before step t, in the order in which the direction reads."""
    T = trace.c.shape[2]
    at = t + 1 if d == 1 else t - 1
    return float(trace.c[k, d, at, b, u]) if 0 <= at < T else 0.0


def test_the_update_is_written_out_with_the_readers_own_numbers(opened) -> None:
    torch.manual_seed(3)
    trace = traced(gatewise.LSTM(4, 6))
    tab = opened(trace, tokens=CHARACTERS, at="#t=5&unit=2&moment=3")
    text = tab.locator("#moment-update .numbers").inner_text()
    left, right = re.sub(r"\s+", " ", text).strip("= ").split(" = ")
    total = eval(left.replace("−", "-").replace("·", "*"))
    assert total == pytest.approx(shown(right), abs=0.03)
    assert shown(right) == pytest.approx(trace.c[0, 0, 5, 0, 2].item(), abs=0.006)
    assert "·" in left
    assert "+" in left


def test_the_largest_contributions_are_named(opened) -> None:
    layer = gatewise.LSTM(4, 6)
    trace = traced(layer)
    tab = opened(trace, tokens=CHARACTERS, at="#t=5&unit=2&moment=1")
    row = 6 + 2  # the forget gate's row of unit 2
    x, h = trace.x[5, 0], trace.h[0, 0, 4, 0]
    parts = {f"x[{k}]": (layer.weight_ih_l0[row, k] * x[k]).item() for k in range(4)}
    parts |= {f"h(t−1)[{k}]": (layer.weight_hh_l0[row, k] * h[k]).item() for k in range(6)}
    parts["bias"] = (layer.bias_ih_l0 + layer.bias_hh_l0)[row].item()
    largest = sorted(parts, key=lambda name: -abs(parts[name]))[:5]
    terms = tab.locator("#moment-forget .terms")
    labels = terms.locator(".bar-label").all()
    assert [re.match(r"\S+?(\[\d+\])?(?=\W*\d|$)", one.inner_text())[0] for one in labels[:5]]
    values = [float(v.get_attribute("data-value")) for v in terms.locator(".bar-number").all()]
    assert [one.evaluate("e => e.firstChild.textContent") for one in labels[:5]] == largest
    np.testing.assert_allclose(values[:5], [parts[name] for name in largest], rtol=1e-4)
    assert sum(values) == pytest.approx(sum(parts.values()), abs=1e-5)


# --- the hand -----------------------------------------------------------------


def test_keys(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6, num_layers=2, bidirectional=True))
    tab = opened(trace, tokens=CHARACTERS, beside=traced(gatewise.RNN(4, 6)))
    press(tab, "Home")
    assert state(tab, "t") == 0
    press(tab, "ArrowRight", "ArrowRight", "ArrowLeft")
    assert state(tab, "t") == 1
    press(tab, "End", "ArrowRight")
    assert state(tab, "t") == 9
    assert tab.locator(".cell.now b").inner_text() == "a"
    tab.evaluate("modules['main.js'].set({unit: 2, moment: 1})")
    press(tab, "ArrowDown", "ArrowDown", "ArrowUp")
    assert state(tab, "unit") == 3
    press(tab, ".", ".")
    assert state(tab, "moment") == 3
    assert tab.locator("#moment-update").is_visible()
    assert not tab.locator("#moment-forget").is_visible()
    press(tab, ",", "f")
    assert (state(tab, "moment"), state(tab, "field")) == (2, "f")
    press(tab, "d")
    assert state(tab, "grad") is True
    press(tab, "s")
    assert state(tab, "sort") == "activity"
    press(tab, "l", "r")
    assert (state(tab, "layer"), state(tab, "dir")) == (1, 1)
    assert "t+1" in tab.locator("#diagram").text_content()
    press(tab, "m")
    assert (state(tab, "model"), state(tab, "dir"), state(tab, "field")) == (1, 0, "h")
    assert "always shut" in tab.locator("#diagram").text_content()
    press(tab, "+")
    a, b = state(tab, "win")
    assert b - a == 8
    press(tab, "0")
    assert state(tab, "win") == [0, 10]
    press(tab, "?")
    assert tab.locator("#help").is_visible()
    press(tab, "Escape", "t")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"


def test_scrub_click_and_choose(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6), B=3)
    tab = opened(trace, tokens=[CHARACTERS] * 3)
    tab.locator("#step").fill("7")
    settle(tab)
    assert state(tab, "t") == 7
    tab.locator(".cell").nth(3).click()
    settle(tab)
    assert state(tab, "t") == 3
    tab.locator("#chooser select[data-name=batch]").select_option("2")
    tab.locator("#unit-number").fill("4")
    tab.locator("#unit-number").press("Enter")
    tab.locator("#tab-read").click()
    settle(tab)
    assert (state(tab, "batch"), state(tab, "unit"), state(tab, "moment")) == (2, 4, 4)
    want = trace.o[0, 0, 3, 2, 4].item()
    assert number(tab, "#moment-read [data-name=o]") == pytest.approx(want)


@pytest.mark.parametrize(
    ("typed", "unit"), [("2.7", 3), ("999", 5), ("-4", 0), ("1e1", 5), ("", 2)]
)
def test_a_unit_that_is_typed_is_one_that_there_is(opened, typed: str, unit: int) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS, at="#unit=2")
    tab.locator("#unit-number").fill(typed)
    tab.locator("#unit-number").press("Enter")
    settle(tab)
    assert state(tab, "unit") == unit
    assert tab.locator("#unit-number").input_value() == str(unit)
    assert "NaN" not in tab.locator("main").inner_text()


HINT = "A patch changed this value"


def test_a_patch_is_said_and_nothing_else_is_taken_for_one(opened) -> None:
    torch.manual_seed(0)
    layer = gatewise.RNN(16, 64, nonlinearity="relu")
    tab = opened(layer.trace(torch.randn(10, 1, 16) * 3e5), at="#moment=2")
    for t in range(10):
        for unit in range(0, 64, 7):
            tab.evaluate("s => modules['main.js'].set(s)", {"t": t, "unit": unit})
            assert HINT not in tab.locator("#process").text_content()
    lstm = gatewise.LSTM(4, 6)
    with gatewise.patching(lstm, {"l0.fwd.f": lambda value, where: value * 0.9}):
        trace = lstm.trace(torch.randn(10, 1, 4))
    tab = opened(trace, at="#moment=1&t=3")
    assert HINT in tab.locator("#process").text_content()


@pytest.mark.parametrize("sort", ["index", "activity", "memory", "similarity"])
@pytest.mark.parametrize("field", ["c", "f"])
def test_hover_reads_and_click_selects(field, sort, opened) -> None:
    trace = traced(gatewise.LSTM(4, 6))
    tab = opened(trace, tokens=CHARACTERS, at=f"#field={field}&sort={sort}", viewport=(1280, 1600))
    values = getattr(trace, field)[0, 0, :, 0].detach().numpy()
    f, c = (getattr(trace, name)[0, 0, :, 0].detach().double().numpy() for name in "fc")
    keys = {"activity": -np.abs(c).mean(0), "memory": -np.log(f).mean(0)}
    rows = list(np.argsort(keys[sort])) if sort in keys else list(range(6))
    box = tab.locator("#map-image").bounding_box()
    width, height = box["width"] - 46, box["height"] - 24
    seen = set()
    for row, t in ((0, 0), (2, 7), (5, 9)):
        tab.mouse.move(box["x"] + 46 + (t + 0.5) * width / 10, box["y"] + (row + 0.5) * height / 6)
        text = tab.locator(".tip").inner_text()
        unit = int(re.search(r"unit (\d+), step", text)[1])
        if sort != "similarity":
            assert unit == rows[row]
        assert f"step {t} “{CHARACTERS[t]}”" in text
        assert np.float32(number(tab, ".tip")) == values[t, unit]
        seen.add(unit)
        tab.mouse.click(box["x"] + 46 + (t + 0.5) * width / 10, box["y"] + (row + 0.5) * height / 6)
        settle(tab)
        assert (state(tab, "unit"), state(tab, "t")) == (unit, t)
    assert len(seen) == 3


def test_play_runs_through_the_moments_and_stops_at_the_end(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS, at="#t=8&moment=3")
    stop_the_clock(tab)
    press_clock(tab, " ")
    seen = []
    for _ in range(60):
        seen.append((state(tab, "t"), state(tab, "moment")))
        tab.clock.run_for(200)
    seen = [one for n, one in enumerate(seen) if one not in seen[:n]]
    assert seen == [(8, 3), (8, 4), (9, 0), (9, 1), (9, 2), (9, 3), (9, 4)]
    assert state(tab, "playing") is False
    assert tab.locator("#play").get_attribute("aria-label") == "Play"


def press_clock(tab, key) -> None:
    tab.keyboard.press(key)
    tab.clock.run_for(50)


def test_a_reverse_lane_plays_from_the_last_step(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6, bidirectional=True))
    tab = opened(trace, tokens=CHARACTERS, at="#dir=1&t=0&moment=4&pace=step")
    stop_the_clock(tab)
    press_clock(tab, " ")
    assert state(tab, "t") == 9
    tab.clock.run_for(1500)
    assert state(tab, "t") == 7


# --- screenshots --------------------------------------------------------------


def screenshots(folder: Path) -> None:
    """Pictures of the pages that a change should be looked at in."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    both = traced(gatewise.LSTM(8, 16, bidirectional=True))
    beside = traced(gatewise.RNN(8, 16))
    large = traced(gatewise.LSTM(32, 512), T=2000)
    words = ("it was the best of times, it was the worst of times, " * 40)[:2000]
    wave = torch.linspace(0, 30, 240).sin()[:, None, None]
    pages = {
        "light": (both, {"tokens": CHARACTERS, "beside": beside}, "#moment=1", {}),
        "dark": (both, {"tokens": CHARACTERS}, "#moment=3", {"color_scheme": "dark"}),
        "narrow": (both, {"tokens": CHARACTERS}, "", {"viewport": {"width": 390, "height": 800}}),
        "rnn": (both, {"tokens": CHARACTERS, "beside": beside}, "#model=1&moment=2", {}),
        "large": (large, {"tokens": words}, "#sort=memory&field=f", {}),
        "series": (gatewise.LSTM(1, 24).trace(wave), {}, "", {}),
        "peephole": (traced(gatewise.LSTM(8, 16, cell="peephole")), {}, "#moment=4", {}),
    }
    with chromium() as running:
        for name, (trace, how, at, context) in pages.items():
            path = see.write(trace, folder / f"{name}.html", **how)
            tab = running.new_page(**{"viewport": {"width": 1280, "height": 900}} | context)
            tab.goto(path.as_uri() + at)
            for _ in range(2):  # what is far from the window is not laid out, nor in the picture
                tall = tab.evaluate("document.documentElement.scrollHeight")
                tab.set_viewport_size({"width": tab.viewport_size["width"], "height": tall})
                rest(tab)
            tab.screenshot(path=folder / f"{name}.png", full_page=True)
            print(folder / f"{name}.png")
            tab.close()


if __name__ == "__main__":
    screenshots(Path(sys.argv[1]).resolve())
