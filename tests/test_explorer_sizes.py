"""The explorer in windows of any size, in a real Chromium: nothing covers what is read."""

from __future__ import annotations

import pytest
from chromium import (  # noqa: F401 (fixtures)
    CHARACTERS,
    browser_fixture,
    opened_fixture,
    rest,
    settle,
    traced,
)

import gatewise

pytestmark = pytest.mark.browser

# 1280 x 1024 at 400 %, phones on their side, a small laptop at 200 %; phones and desktops
LOW = [(320, 256), (568, 320), (844, 390), (720, 450)]
HIGH = [(320, 640), (390, 844), (720, 900), (1280, 900)]

COVERED = """() => {
  const on = document.activeElement, bar = document.querySelector(".bar");
  const [one, two] = [on, bar].map((e) => e.getBoundingClientRect());
  if (on === document.body || bar.contains(on) || on.matches(".skip")) return "";
  const hidden = one.top < two.bottom - 1 && one.bottom > two.top && one.top < innerHeight;
  return hidden ? on.id || on.value || on.textContent : ""; }"""


@pytest.mark.parametrize("size", LOW + HIGH)
def test_what_is_focused_is_never_behind_the_bar(opened, size: tuple[int, int]) -> None:
    layer = gatewise.LSTM(4, 6, num_layers=2, bidirectional=True)
    tab = opened(traced(layer, B=2), tokens=[CHARACTERS] * 2, viewport=size)
    rest(tab)
    for key in ["Tab"] * 34 + ["Shift+Tab"] * 34:
        tab.keyboard.press(key)
        settle(tab)
        assert tab.evaluate(COVERED) == ""


@pytest.mark.parametrize("size", LOW + HIGH)
def test_the_bar_leaves_room_for_the_page(opened, size: tuple[int, int]) -> None:
    layer = gatewise.LSTM(4, 6, num_layers=2, bidirectional=True)
    tab = opened(traced(layer, B=2), tokens=[CHARACTERS] * 2, viewport=size)
    tab.evaluate("document.querySelector('#units').scrollIntoView()")
    settle(tab)
    bottom = tab.evaluate("document.querySelector('.bar').getBoundingClientRect().bottom")
    assert bottom < 0.5 * size[1]
    assert tab.evaluate("document.querySelector('#map-image').width") != 300  # it is drawn there
