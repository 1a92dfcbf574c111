"""The explorer in a real Chromium for everybody: colours, keys, listening, links, small screens."""

from __future__ import annotations

import re

import numpy as np
import pytest
from chromium import (  # noqa: F401 (fixtures)
    CHARACTERS,
    browser_fixture,
    luminance,
    opened_fixture,
    press,
    rest,
    settle,
    state,
    traced,
)

import gatewise

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_can_be_read(scheme, opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS, context={"color_scheme": scheme})
    assert tab.evaluate("document.documentElement.dataset.theme") == scheme
    paper = luminance(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.8) == (scheme == "light")
    names = ["--ink", "--soft", "--accent", "--forward", "--reverse", "--other"]
    pairs = tab.evaluate(
        """names => names.flatMap(n => ["--paper", "--raised", "--faint"].map(b => {
        const e = document.createElement("p"); document.body.append(e);
        e.style.color = `var(${n})`; e.style.background = `var(${b})`;
        const s = getComputedStyle(e), out = [n, b, s.color, s.backgroundColor]; e.remove();
        return out; }))""",
        names,
    )
    for name, behind, ink, ground in pairs:
        low, high = sorted([luminance(ink), luminance(ground)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (name, behind)
    for cell in tab.locator(".cell b, #process .n").all():
        ink, ground = cell.evaluate(
            "e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor]; }"
        )
        low, high = sorted([luminance(ink), luminance(ground)])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_scales_keep_the_sign_for_the_colour_blind_and_order_in_grey(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS)
    for theme in ("light", "dark"):
        ramps = {
            kind: tab.evaluate(
                f"Array.from({{length: 256}}, (_, k) => {{ const m = modules['colour.js'];"
                f" const s = m.scale('{kind}'); return m.colour('{theme}', s, s.value(k)); }})"
            )
            for kind in ("gate", "signed")
        }
        away = -1 if theme == "light" else 1  # from the paper's lightness
        gate = np.array([luminance(c) for c in ramps["gate"]])
        assert (away * np.diff(gate[::8]) > 0).all()
        signed = np.array([luminance(c) for c in ramps["signed"]])
        assert (away * np.diff(signed[128::8]) > 0).all()
        assert (away * np.diff(signed[127::-8]) > 0).all()
        # blue minus yellow is what every common colour blindness leaves
        rgb = np.array([[int(n) for n in re.findall(r"\d+", c)] for c in ramps["signed"]])
        yellow = rgb[:, :2].mean(1) - rgb[:, 2]
        assert (yellow[:100] > 12).all()
        assert (yellow[156:] < -12).all()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_forced_colours_leave_those_that_mean_something(scheme, opened) -> None:
    forced = {"forced_colors": "active", "color_scheme": scheme}
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS, context=forced)
    paper = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    for selector in (".cell b", ".track i", ".formula .n"):
        seen = tab.evaluate(
            "s => [...document.querySelectorAll(s)].map(e => getComputedStyle(e).backgroundColor)",
            selector,
        )
        assert seen
        assert paper not in seen, selector
    width = tab.evaluate("getComputedStyle(document.getElementById('play')).borderWidth")
    assert width == "1px"
    step = tab.locator("#step")
    assert step.evaluate("e => getComputedStyle(e).forcedColorAdjust") == "none"


def test_reduced_motion_stands_still(opened) -> None:
    calm = {"reduced_motion": "reduce"}
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS, context=calm)
    press(tab, " ")
    assert state(tab, "playing") is True
    assert tab.evaluate("document.getAnimations().length") == 0
    assert tab.locator("html.playing").count() == 0


def test_everything_has_a_name_for_screen_readers(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6, bidirectional=True))
    tab = opened(trace, tokens=CHARACTERS, beside=traced(gatewise.RNN(4, 6)))
    rest(tab)  # parts off the screen are drawn when the page has time
    nameless = tab.evaluate(
        """() => [...document.querySelectorAll("button, input, select, canvas, [role=img]")]
        .filter(e => !e.ariaLabel && !e.textContent.trim() && !e.labels?.length
          && e.ariaHidden !== "true" && !e.closest("[hidden], .tip"))
        .map(e => e.outerHTML.slice(0, 90))"""
    )
    assert nameless == []
    press(tab, "Home")
    rest(tab)
    assert re.match(
        r"Step 0 of 0 to 9, “i”, unit \d+: input gate ", tab.locator("#live").inner_text()
    )
    assert tab.locator("#step").get_attribute("aria-valuetext") == "step 0 of 0 to 9, i"


def test_the_keyboard_reaches_every_control(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS)
    reached = set()
    for _ in range(40):
        tab.keyboard.press("Tab")
        reached.add(tab.evaluate("document.activeElement.id || document.activeElement.value"))
    assert {"play", "step", "theme", "grad", "sort", "map-image", "clock", "c"} <= reached
    tabs = {f"tab-{name}" for name in ["join", "forget", "write", "update", "read"]}
    assert tabs & reached == {"tab-forget"}  # the arrows do the rest


def test_arrows_move_within_tabs_and_choices(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS, at="#t=4&moment=1&field=f")
    tab.locator("#tab-forget").focus()
    press(tab, "ArrowRight")
    assert (state(tab, "moment"), state(tab, "t")) == (2, 4)
    tab.locator("#fields [value=f]").focus()
    press(tab, "ArrowRight", "ArrowRight")
    assert (state(tab, "field"), state(tab, "t")) == ("g", 4)
    unit = state(tab, "unit")
    press(tab, "ArrowDown", "ArrowDown", "ArrowUp")
    assert (state(tab, "field"), state(tab, "unit")) == ("o", unit)


def test_names_for_those_who_listen(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS)
    names = tab.evaluate("[...document.querySelectorAll('#fields button')].map(e => e.ariaLabel)")
    assert names == ["forget gate", "input gate", "candidate", "output gate", "cell", "hidden"]
    title = tab.locator("#diagram title").text_content()
    assert "old cell " in title
    assert "forget gate hears " in title
    assert "cBefore" not in title
    assert "z_" not in title
    press(tab, " ")
    assert tab.locator("#play").get_attribute("title") == "Pause (space)"
    press(tab, " ")
    assert tab.locator("#play").get_attribute("title") == "Play (space)"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_gates_that_are_not_at_work_can_be_read(scheme, opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), at="#moment=3", context={"color_scheme": scheme})
    rgb = r"[\d.]+"
    for gate in tab.locator(".diagram .gate.off").all():
        ink, fill, ground = gate.evaluate(
            """e => { const of = (one) => getComputedStyle(one);
            return [of(e.querySelector("text")).fill, of(e.querySelector("rect")).fill,
              of(document.querySelector(".diagram .body")).fill]; }"""
        )
        fill, ground = ([float(n) for n in re.findall(rgb, one)[:3]] for one in (fill, ground))
        mixed = [round(0.3 * one + 0.7 * two) for one, two in zip(fill, ground, strict=True)]
        low, high = sorted([luminance(ink), luminance(str(mixed))])
        assert (high + 0.05) / (low + 0.05) >= 4.5


def test_a_view_can_be_linked_to(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6, num_layers=2), B=2)
    how = {"tokens": [CHARACTERS] * 2}
    tab = opened(trace, at="#t=0&unit=5&moment=0&layer=1&batch=1&field=o&sort=memory", **how)
    press(tab, "ArrowRight", "d", "t", "+")
    tab.locator("#pace").select_option("fast")
    rest(tab)
    again = opened(trace, at="#" + tab.url.split("#")[1], **how)
    for name in (
        *("t", "unit", "moment", "layer", "batch", "field", "sort", "grad", "win", "theme", "pace"),
    ):
        assert state(again, name) == state(tab, name)
    assert again.locator("#pace").input_value() == "fast"
    assert [state(again, name) for name in ("grad", "win", "theme")] == [True, [0, 8], "dark"]
    assert [state(tab, name) for name in ("t", "unit", "moment")] == [1, 5, 0]
    odd = opened(trace, at="#t=999&unit=x&field=z&sort=no&moment=9&win=5&playing=1&model=7", **how)
    assert (state(odd, "t"), state(odd, "field"), state(odd, "model")) == (9, "c", 0)


def test_the_view_follows_the_address(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS, at="#t=1&unit=2&win=0-8")
    assert state(tab, "win") == [0, 8]
    tab.evaluate("location.hash = '#t=4&unit=5&grad=1'")
    settle(tab)
    assert [state(tab, name) for name in ("t", "unit", "grad", "win")] == [4, 5, True, [0, 10]]
    entries = tab.evaluate("history.length")
    tab.evaluate("document.querySelector('.skip').click()")
    settle(tab)
    assert tab.evaluate("[document.activeElement.id, history.length]") == ["step", entries]
    assert state(tab, "t") == 4


def test_a_model_that_has_a_lane_finds_it_again(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6, num_layers=2, bidirectional=True))
    tab = opened(trace, beside=traced(gatewise.RNN(4, 3)), at="#layer=1&dir=1&unit=5&field=o")
    press(tab, "m")
    seen = [state(tab, name) for name in ("layer", "dir", "unit", "field")]
    assert seen == [0, 0, 2, "h"]
    press(tab, "m")
    assert [state(tab, name) for name in ("layer", "dir", "unit", "field")] == [1, 1, 5, "o"]


def test_narrow_screens_scroll_one_way_only(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6, bidirectional=True, num_layers=2), B=2)
    tab = opened(trace, tokens=[CHARACTERS] * 2, viewport=(360, 740))
    rest(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
