"""A real Chromium for the tests of the explorer, and what they share: pages, keys, colours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from gatewise import see

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run"),
]
CHARACTERS = "ilovechina"


@contextmanager
def chromium() -> Iterator:
    """A running browser."""
    api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not Path(CHROMIUM).exists():
        pytest.skip(f"there is no Chromium at {CHROMIUM}")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module", name="browser")
def browser_fixture() -> Iterator:
    with chromium() as running:
        yield running


@pytest.fixture(name="opened")
def opened_fixture(browser, tmp_path):
    """Opens the page of a trace from disk; fails on any console error, exception or request."""
    troubles: list[str] = []
    contexts = []

    def asked(url, path):
        if url.split("#")[0] != path.as_uri():
            troubles.append(url)

    def open_page(trace, *, at="", viewport=(1280, 900), context=None, **how):
        path = see.write(trace, tmp_path / f"{len(contexts)}.html", **how)
        width, height = viewport
        made = browser.new_context(
            viewport={"width": width, "height": height}, offline=True, **(context or {})
        )
        made.set_default_timeout(120_000)  # milliseconds, of a busy machine
        contexts.append(made)
        tab = made.new_page()
        tab.on("console", lambda m: troubles.append(m.text) if m.type != "log" else None)
        tab.on("pageerror", lambda error: troubles.append(str(error)))
        tab.on("request", lambda r: asked(r.url, path))
        tab.goto(path.as_uri() + at)
        settle(tab)
        return tab

    yield open_page
    for made in contexts:
        made.close()
    assert troubles == []


# Two frames: in the first is drawn what a change asked for, and the second may show more places.
# After each the page is told which places are in view: at the latest with the observer here.
SETTLE = """async () => { for (let n = 0; n < 2; n++)
  await new Promise((done) => requestAnimationFrame(() =>
    new IntersectionObserver((_, watch) => { watch.disconnect(); setTimeout(done); })
      .observe(document.body))); }"""


def settle(tab) -> None:
    """Wait for the drawing that the last action asked for."""
    tab.evaluate(SETTLE)


def until(tab, condition: str) -> None:
    """Wait until an expression of the page holds, however long a busy machine takes."""
    # the page's own policy forbids the eval of Playwright's wait_for_function; and who asks often
    # leaves a slow page no idle time
    tab.evaluate(
        f"""async () => {{ for (let wait = 10, all = 0; all < 120_000; all += wait) {{
        if ({condition}) return;
        wait = Math.min(500, 1.5 * wait);
        await new Promise((done) => setTimeout(done, wait)); }}
        throw new Error("waited in vain for " + {condition!r}); }}"""
    )


def rest(tab) -> None:
    """Wait until the page has nothing left to do, as a reader does who looks first."""
    settle(tab)
    until(tab, "modules['main.js'].rested()")


def prepare(tab) -> None:
    """Wait for what the page makes ahead for the next keys: sooner than ``rest``."""
    settle(tab)
    until(tab, "!modules['paint.js'].slicing()")


def bring(tab, selector: str) -> None:
    """Scroll to a place, and wait until it is drawn there."""
    tab.evaluate("id => document.querySelector(id).scrollIntoView()", selector)
    prepare(tab)


def stop_the_clock(tab) -> None:
    """From here the time of the page goes on only when it is told to."""
    tab.clock.install(time=0)
    tab.clock.pause_at(1)


def press(tab, *keys) -> None:
    for key in keys:
        tab.keyboard.press(key)
        settle(tab)


def traced(layer, T=10, B=1, backward=True):
    """The trace of a layer on random input, with gradients of its last output."""
    trace = layer.trace(torch.randn(T, B, layer.input_size))
    if backward:
        trace.output[-1].pow(2).sum().backward()
    return trace


def state(tab, name):
    return tab.evaluate(f"modules['main.js'].state.{name}")


def number(tab, selector) -> float:
    return float(tab.locator(selector).first.get_attribute("data-value"))


def shown(text: str) -> float:
    """A number as a reader reads it: 0.87, −0.65, 1.2·10⁻⁵."""
    text = text.replace("−", "-").translate(str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-"))
    return float(re.sub(r"·10(-?\d+)$", r"e\1", text))


def pixel(tab, canvas, x, y) -> list[int]:
    """The colour at a place of a canvas in CSS pixels."""
    return tab.evaluate(
        """([id, x, y]) => { const c = document.getElementById(id), r = devicePixelRatio;
        const copy = new OffscreenCanvas(1, 1).getContext("2d");
        copy.drawImage(c, Math.floor(x * r), Math.floor(y * r), 1, 1, 0, 0, 1, 1);
        return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3); }""",
        [canvas, x, y],
    )


def colour(tab, kind, limit, v, power=1) -> list[int]:
    text = tab.evaluate(
        "([kind, limit, v, power]) => { const m = modules['colour.js'];"
        " return m.colour('light', m.scale(kind, limit, power), v); }",
        [kind, limit, v, power],
    )
    return [int(n) for n in re.findall(r"\d+", text)]


def luminance(text: str) -> float:
    parts = [int(n) / 255 for n in re.findall(r"\d+", text)[:3]]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
