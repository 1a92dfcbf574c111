"""The explorer answers within 50 ms: 512 units, 2,000 steps, in a real Chromium.

Times are the main thread's own processor time, from the event to the painted frame, so that waiting
for a busy machine does not fail the page.
"""

from __future__ import annotations

from statistics import median

import pytest
from chromium import (  # noqa: F401 (fixtures)
    bring,
    browser_fixture,
    opened_fixture,
    prepare,
    press,
    rest,
    settle,
    stop_the_clock,
    traced,
    until,
)

import gatewise
from gatewise import see

pytestmark = pytest.mark.browser

WORDS = ("it was the best of times, " * 80)[:2000]
FRAME = "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
KEY = f"""async ([key]) => {{
  document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }})); {FRAME} }}"""
HOVER = f"""async ([_, n]) => {{ const c = document.getElementById("map-image");
  const b = c.getBoundingClientRect();
  c.dispatchEvent(new PointerEvent("pointermove",
    {{ clientX: b.x + 90 + 20 * n, clientY: b.y + 50 + 5 * n }})); {FRAME} }}"""


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
        return self.busy() - start

    def least(self, script, argument) -> float:
        """The least of some, since caches and siblings are shared."""
        times: list[float] = []
        while len(times) < 8 and (len(times) < 5 or min(times[1:]) >= 50):
            times.append(self.once(script, argument, len(times)))
        return min(times[1:])


def test_every_interaction(opened, tmp_path) -> None:
    trace = traced(gatewise.LSTM(32, 512), T=2000, backward=False)
    size = see.write(trace, tmp_path / "size.html", tokens=WORDS).stat().st_size
    numbers = 4 * (6 * 2000 * 512 + 2000 * 32 + 2048 * (32 + 512 + 2))
    assert size < 1.34 * numbers + 300_000
    tab = opened(trace, tokens=WORDS)
    rest(tab)
    watch, times = Stopwatch(tab), {}
    for where in ("#cell", "#units", "#unit", "#directions", "#gradient"):
        bring(tab, where)
        for name in ("ArrowRight", "ArrowDown", "s", "."):
            times[where, name] = watch.least(KEY, name)
        if where == "#units":
            times |= {(where, field): watch.least(KEY, field) for field in "figoch"}
            times[where, "hover"] = watch.least(HOVER, "")
    assert max(times.values()) < 50, times


def test_a_burst_of_first_draws(opened) -> None:
    """Every field, gradient and order, one key after another, with nothing drawn ahead.

    Each is measured once, so none is a repeat of what is kept. The median is bounded: one draw
    among many may meet a collection of garbage. And it is held against steps of the same page,
    which a slow machine slows alike.
    """
    tab = opened(traced(gatewise.LSTM(32, 512), T=2000), tokens=WORDS, at="#field=h")
    tab.evaluate("window.requestIdleCallback = () => 0")
    bring(tab, "#units")
    watch, maps, steps = Stopwatch(tab), [], []
    for _ in range(2):
        for _ in range(4):  # orders
            for key in "figoch":
                maps.append(watch.once(KEY, key))
            maps.append(watch.once(KEY, "s"))
            steps += [watch.once(KEY, key) for key in ("ArrowRight", "ArrowDown")]
        maps.append(watch.once(KEY, "d"))
    assert median(maps) < 50, maps
    assert median(maps) < 2 * median(steps), (median(maps), median(steps))


CALLS = f"""async ([key]) => {{ const all = CanvasRenderingContext2D.prototype; let count = 0;
  const kept = ["fillRect", "strokeRect", "clearRect", "fillText", "drawImage", "stroke", "fill"]
    .map((name) => [name, all[name]]);
  for (const [name, call] of kept)
    all[name] = function (...given) {{ count += 1; return call.apply(this, given); }};
  const watch = new MutationObserver(() => {{}});
  const what = {{ subtree: true, childList: true, attributes: true }};
  for (const id of ["ribbon", "process", "diagram"])
    watch.observe(document.getElementById(id), what);
  document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
  await null;
  const changes = watch.takeRecords().length;
  for (const [name, call] of kept) all[name] = call;
  watch.disconnect();
  {FRAME}
  return [count, changes]; }}"""
DRAWN = """() => ["text", "curves", "lanes", "reach"].map((id) => {
  const { width, height } = document.getElementById(id);
  const copy = new OffscreenCanvas(width, height).getContext("2d");
  copy.drawImage(document.getElementById(id), 0, 0);
  return copy.getImageData(0, 0, width, height).data.reduce((sum, v) => (31 * sum + v) % 65521, 0);
})"""


@pytest.fixture
def tall(opened):
    """The page with gradients, all of it in view."""
    tab = opened(
        traced(gatewise.LSTM(32, 512), T=2000), tokens=WORDS, at="#t=96", viewport=(1280, 4200)
    )
    rest(tab)
    return tab


def test_an_interaction_is_few_calls_of_canvas(tall) -> None:
    """Thousands of calls are what a frame has no time for; and a theme leaves markup as it is."""
    for key in ("End", "Home"):  # words that were never in view are written, each with a call
        tall.evaluate(KEY, [key])
        prepare(tall)
    for key in ("ArrowRight", "ArrowDown", "End", "i", "d", "d", "s", "+", "0", "t", "t"):
        calls, changes = tall.evaluate(CALLS, [key])
        assert 20 < calls < 1000, (key, calls)
        if key == "t":
            assert changes < 10
        prepare(tall)


def test_what_is_in_view_is_drawn_in_the_next_frame(tall) -> None:
    for key in ("ArrowDown", "i", "d"):
        before = tall.evaluate(DRAWN)
        tall.evaluate(KEY, [key])
        after = tall.evaluate(DRAWN)
        assert after[0] != before[0]
        rest(tall)
        assert tall.evaluate(DRAWN) == after


WRITTEN = """() => { const all = CanvasRenderingContext2D.prototype, known = all.fillText;
  window.written = 0;  // on what is kept, and put on the screen from there
  all.fillText = function (...given) {
    if (!this.canvas.isConnected) window.written += 1;
    return known.apply(this, given); }; }"""


def written(tab, key) -> int:
    """How many words a key makes the page write, then and ahead of the next keys."""
    before = tab.evaluate("window.written")
    tab.evaluate(KEY, [key])
    prepare(tab)
    return tab.evaluate("window.written") - before


def test_words_are_written_once(opened) -> None:
    """A jump scrolls the coloured text; what was on the screen before is not written again."""
    tab = opened(traced(gatewise.LSTM(2, 4), T=2000), tokens=WORDS, at="#t=5")
    bring(tab, "#unit-text")
    tab.evaluate(WRITTEN)
    first = [written(tab, key) for key in ("End", "Home")]
    again = [written(tab, key) for key in ("End", "Home", "End")]
    assert first[0] > 500
    assert again == [0, 0, 0]


def test_words_that_models_and_sequences_share_a_place_with_are_kept(opened) -> None:
    trace = traced(gatewise.LSTM(2, 4), T=600, B=2)
    words = [WORDS[:600], WORDS[600:0:-1]]
    beside = traced(gatewise.RNN(2, 4), T=600, B=2)
    tab = opened(trace, beside=beside, tokens=words, batch=[0, 1], at="#t=5")
    bring(tab, "#unit-text")
    tab.evaluate(WRITTEN)
    counts = [(key, written(tab, key)) for key in "mbmbmb"]
    assert counts.pop(1)[1] > 500, "the words of the second sequence"
    assert counts == [(key, 0) for key in "mmbmb"]


RESIZED = """() => { const kept = CanvasRenderingContext2D.prototype.fillText;
  window.written = 0;
  CanvasRenderingContext2D.prototype.fillText = function (...given) {
    window.written += 1; return kept.apply(this, given); };
  document.documentElement.style.width = "900px";
  window.dispatchEvent(new Event("resize")); }"""
SIZES = """() => { const canvas = document.getElementById("curves");
  return [window.written, canvas.clientWidth, canvas.width]; }"""


def test_drawings_stretch_with_the_window_and_are_made_anew_at_rest(opened) -> None:
    tab = opened(traced(gatewise.LSTM(2, 4), T=50), viewport=(1280, 2400))
    rest(tab)
    stop_the_clock(tab)
    first = tab.evaluate(f"(({RESIZED})(), ({SIZES})())")
    assert first == [0, 900 - 56, 1280 - 96]
    tab.clock.run_for(90)
    assert tab.evaluate(SIZES) == first
    tab.clock.run_for(20)
    last = tab.evaluate(SIZES)
    assert last[0] > 10
    assert last[1:] == [900 - 56, 900 - 56]


CHANGED = f"""async ([key]) => {{ const watch = new MutationObserver(() => {{}});
  watch.observe(document.querySelector(".cells"), {{ subtree: true, childList: true,
    characterData: true, attributes: true }});
  document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
  await null;
  const at = [...document.querySelectorAll(".cell")].findIndex((one) => one.matches(".now"));
  const changes = watch.takeRecords().length;
  watch.disconnect();
  const count = document.querySelectorAll(".cell").length;
  {FRAME}
  return [at, count, changes]; }}"""


def test_a_step_along_the_ribbon_changes_two_cells_and_shows_both_neighbours(opened) -> None:
    tab = opened(traced(gatewise.LSTM(2, 4), T=300), tokens=WORDS[:300], at="#t=100")
    changes = []
    for _ in range(60):
        place, count, changed = tab.evaluate(CHANGED, ["ArrowRight"])
        assert 2 <= place < count - 2
        changes.append(changed)
    assert median(changes) <= 4, changes


def test_the_diagram_of_each_model_is_drawn_once(opened) -> None:
    trace, beside = traced(gatewise.LSTM(2, 4)), traced(gatewise.RNN(2, 4))
    tab = opened(trace, beside=beside, tokens="abcdefghij", at="#t=3")
    tab.evaluate("window.first = document.querySelector('#diagram svg')")
    press(tab, "m")
    assert not tab.evaluate("window.first.isConnected")
    press(tab, "m")
    assert tab.evaluate("document.querySelector('#diagram svg') === window.first")


READ = """async ([key]) => { let count = 0;
  const all = HTMLScriptElement.prototype;  // where the blocks are
  const text = Object.getOwnPropertyDescriptor(all, "textContent");
  const get = function () { count += 1; return text.get.call(this); };
  Object.defineProperty(all, "textContent", { ...text, get });
  document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  await null;
  Object.defineProperty(all, "textContent", text);
  return count; }"""


def test_what_a_key_may_ask_for_is_decoded_before(opened) -> None:
    """The other sequences, models, layers and directions, while nothing happens."""
    how = {"num_layers": 2, "bidirectional": True}
    trace = traced(gatewise.LSTM(3, 4, **how), T=30, B=2)
    beside = traced(gatewise.RNN(3, 4, **how), T=30, B=2)
    tab = opened(trace, beside=beside, at="#t=7")
    for key in "bmlr":
        prepare(tab)
        assert tab.evaluate(READ, [key]) == 0, key


AT_ONCE = f"""async ([key]) => {{ const map = document.getElementById("map-image");
  map.getContext("2d").clearRect(50, 5, 9, 9);
  document.body.dispatchEvent(new KeyboardEvent("keydown", {{ key, bubbles: true }}));
  await null;
  const copy = new OffscreenCanvas(1, 1).getContext("2d");
  copy.drawImage(map, 54, 9, 1, 1, 0, 0, 1, 1);
  const found = [map.ariaBusy, copy.getImageData(0, 0, 1, 1).data[3]];
  {FRAME}
  return found; }}"""


WHOLE = "document.getElementById('map-image').ariaBusy === 'false'"


def test_a_large_map_is_there_at_once_and_whole_soon_after(opened) -> None:
    tab = opened(traced(gatewise.LSTM(32, 512), T=2000), tokens=WORDS)
    bring(tab, "#units")
    for key in "dfgd":
        until(tab, WHOLE)
        assert tab.evaluate(AT_ONCE, [key]) == ["true", 255]
    until(tab, WHOLE)
    assert tab.evaluate(AT_ONCE, ["d"]) == ["false", 255]  # what was made is kept
    for key in "fiohcgdfiohcg":  # each field, and the gradient of each
        tab.evaluate(AT_ONCE, [key])
        until(tab, WHOLE)
    for key in "fiohcgdfiohcg":
        assert tab.evaluate(AT_ONCE, [key]) == ["false", 255], key
