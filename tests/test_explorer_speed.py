"""The explorer answers within 50 ms: 512 units, 2,000 steps, in a real Chromium.

Times are the main thread's own processor time, from the event to the painted frame, so that waiting
for a busy machine does not fail the page.
"""

from __future__ import annotations

from statistics import median

import pytest
from chromium import browser_fixture, opened_fixture, settle, traced  # noqa: F401 (fixtures)

import gatewise
from gatewise import see

pytestmark = pytest.mark.browser

WORDS = ("it was the best of times, " * 80)[:2000]
KEY = """([key]) => document.body.dispatchEvent(
  new KeyboardEvent("keydown", { key, bubbles: true }))"""
HOVER = """([_, n]) => { const c = document.getElementById("map-image");
  const b = c.getBoundingClientRect();
  c.dispatchEvent(new PointerEvent("pointermove",
    { clientX: b.x + 90 + 20 * n, clientY: b.y + 50 + 5 * n })); }"""


class Stopwatch:
    """Milliseconds of the main thread that an event costs."""

    def __init__(self, tab) -> None:
        self.tab = tab
        self.session = tab.context.new_cdp_session(tab)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})

    def busy(self) -> float:
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return 1000 * next(m["value"] for m in metrics if m["name"] == "TaskDuration")

    def once(self, script, *arguments) -> float:
        start = self.busy()
        self.tab.evaluate(script, arguments)
        settle(self.tab)
        return self.busy() - start

    def least(self, script, argument) -> float:
        """The least of some, since caches and siblings are shared."""
        times: list[float] = []
        while len(times) < 8 and (len(times) < 5 or min(times[1:]) >= 50):
            times.append(self.once(script, argument, len(times)))
        return min(times[1:])


def rest(tab) -> None:
    """Wait until the page has nothing left to do, as a reader does who looks first."""
    for _ in range(600):
        if tab.evaluate("performance.getEntriesByName('rested').length"):
            break
        tab.wait_for_timeout(100)
    tab.evaluate("performance.clearMarks('rested')")


def test_every_interaction(opened, tmp_path) -> None:
    trace = traced(gatewise.LSTM(32, 512), T=2000, backward=False)
    size = see.write(trace, tmp_path / "size.html", tokens=WORDS).stat().st_size
    numbers = 4 * (6 * 2000 * 512 + 2000 * 32 + 2048 * (32 + 512 + 2))
    assert size < 1.34 * numbers + 300_000
    tab = opened(trace, tokens=WORDS)
    rest(tab)
    watch, times = Stopwatch(tab), {}
    for where in ("#cell", "#units", "#unit", "#directions", "#gradient"):
        tab.evaluate("id => document.querySelector(id).scrollIntoView()", where)
        tab.wait_for_timeout(300)
        for name in ("ArrowRight", "ArrowDown", "s", "."):
            times[where, name] = watch.least(KEY, name)
        if where == "#units":
            times |= {(where, field): watch.least(KEY, field) for field in "figoch"}
            times[where, "hover"] = watch.least(HOVER, "")
    assert max(times.values()) < 50, times


def test_the_first_draw_of_every_field_gradient_and_order(opened) -> None:
    """Each is measured once, so none is a repeat of what is kept.

    The median is bounded: one draw among many may meet a collection of garbage. And it is held
    against the same draws made again, which a slow machine slows alike.
    """
    tab = opened(traced(gatewise.LSTM(32, 512), T=2000), tokens=WORDS, at="#field=h")
    tab.evaluate("document.querySelector('#units').scrollIntoView()")
    watch, first, again = Stopwatch(tab), [], []
    for n in range(8):  # four orders, each without gradients and with them
        rest(tab)
        first += [watch.once(KEY, field) for field in "figoch"]
        again += [watch.once(KEY, field) for field in "figoch"]
        rest(tab)
        first.append(watch.once(KEY, "d"))
        if n % 2:
            rest(tab)
            first.append(watch.once(KEY, "s"))
    assert median(first) < 50, first
    assert median(first) < 1.5 * median(again), (median(first), median(again))
