"""The explorer in a real Chromium: what it draws, for everybody."""

from __future__ import annotations

from functools import partial
from io import BytesIO

import numpy as np
import pytest
import torch
from chromium import (  # noqa: F401 (fixtures)
    CHARACTERS,
    bring,
    browser_fixture,
    colour,
    luminance,
    opened_fixture,
    pixel,
    press,
    rest,
    settle,
    state,
    traced,
)
from matplotlib.image import imread

import gatewise
from gatewise import see
from gatewise.recording import put

pytestmark = pytest.mark.browser


# --- what is drawn ------------------------------------------------------------


def test_a_capture_of_the_whole_page_shows_every_part(opened) -> None:
    # without scrolling, as readers capture a page for a paper
    layers = [kind(4, 6, bidirectional=True) for kind in (gatewise.LSTM, gatewise.RNN)]
    trace, beside = (traced(layer) for layer in layers)
    tab = opened(trace, tokens=CHARACTERS, beside=beside)
    rest(tab)
    tops = tab.evaluate(
        """[...document.querySelectorAll("main > section")].map((e) => {
        const { top, height } = e.getBoundingClientRect(); return [top + scrollY, height]; })"""
    )
    assert len(tops) == 6
    seen = imread(BytesIO(tab.screenshot(full_page=True)))[..., :3]
    for top, height in tops:
        part = seen[int(top) + 40 : int(top + height)]  # below its upper line
        inked = np.abs(part - part[0, 0]).max(-1) > 0.2
        assert inked[: len(part) // 2].mean() > 0.01
        assert inked[len(part) // 2 :].mean() > 0.01


def test_the_map_shows_every_value_in_its_colour(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6))
    tab = opened(trace, tokens=CHARACTERS, at="#field=f", viewport=(1280, 1600))
    box = tab.locator("#map-image").bounding_box()
    width, height = box["width"] - 46, box["height"] - 24
    for t in range(10):
        for u in range(6):
            got = pixel(tab, "map-image", 46 + (t + 0.5) * width / 10, (u + 0.5) * height / 6)
            assert got == colour(tab, "gate", 1, trace.f[0, 0, t, 0, u].item())


@pytest.mark.parametrize("grad", [False, True])
def test_a_pixel_of_a_crowded_map_is_the_colour_of_a_mean(grad, opened) -> None:
    T, H = 2500, 450
    trace = traced(gatewise.RNN(1, H), T=T)
    tab = opened(trace, at=f"#field=h&grad={int(grad)}&sort=activity")
    tab.locator("#map-image").scroll_into_view_if_needed()
    tab.locator("#map-image[aria-busy=false]").wait_for()
    source = trace.grad if grad else trace
    values = source.h[0, 0, :, 0].detach().double().numpy()
    activity = np.abs(trace.c[0, 0, :, 0].detach().double().numpy()).mean(0)
    by_activity = np.argsort([-float(f"{one:.4g}") for one in activity], kind="stable")
    width, height = int(tab.locator("#map-image").bounding_box()["width"]) - 46, 380
    row_of = np.arange(H) * height // H
    limit = np.abs(values.ravel()[:: T * H // 200_000]).max()  # as reach() looks at them
    for column in (1, 7, width // 2, width - 2):  # inside the frame
        steps = slice(*(-(-c * T // width) for c in (column, column + 1)))
        for row in (1, 2, 5, 190, 378):
            mean = values[steps][:, by_activity[row_of == row]].mean()
            want = colour(tab, "signed", limit, mean, power=1 / 3 if grad else 1)
            assert pixel(tab, "map-image", 46 + column + 0.5, row + 0.5) == want


COUNTS = """() => { window.said = [];
  const all = CanvasRenderingContext2D.prototype, write = all.fillText;
  all.fillText = function (text, x, y) {
    if (this.canvas.className === "overlay") {
      const half = / units$/.test(text) ? this.measureText(text).width / 2 : 8;
      window.said.push([text, (this.getTransform().f / devicePixelRatio || y), half]);
    }
    return write.call(this, text, x, y); }; }"""


@pytest.mark.parametrize("H", [16, 512])
def test_beside_the_map_no_name_lies_on_another(opened, H: int) -> None:
    tab = opened(traced(gatewise.LSTM(4, H, num_layers=1), backward=False), tokens=CHARACTERS)
    bring(tab, "#units")
    tab.evaluate(COUNTS)
    height = tab.locator("#map-image").bounding_box()["height"] - 24
    seen = 0
    for unit in range(0, H, H // 16):
        tab.evaluate("window.said = []")
        tab.evaluate("u => modules['main.js'].set({ unit: u })", unit)
        settle(tab)
        places = {text: (y, half) for text, y, half in tab.evaluate("window.said")}
        y, _ = places.pop(str(unit))
        assert 6 <= y <= height - 6  # its arrow is whole
        for other, room in places.values():
            seen += 1
            assert abs(other - y) > room + 8
            assert room <= other <= height - room
    assert seen > 10


@pytest.mark.parametrize(("row", "t"), [(0, 0), (1, 700), (1, 1999)])
def test_the_lens_over_few_units_is_full(opened, row: int, t: int) -> None:
    trace = traced(gatewise.LSTM(4, 2), T=2000, backward=False)
    tab = opened(trace, at="#field=c", viewport=(1280, 1600))
    bring(tab, "#units")
    box = tab.locator("#map-image").bounding_box()
    x = box["x"] + 46 + (t + 0.5) * (box["width"] - 46) / 2000
    tab.mouse.move(x, box["y"] + (row + 0.5) * (box["height"] - 24) / 2)
    lens = tab.locator(".loupe").bounding_box()
    assert (lens["width"], lens["height"]) == (17 * 9, 2 * 9)
    clear = """() => { const c = document.querySelector(".loupe");
      const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
      return data.filter((v, k) => k % 4 === 3 && v < 255).length; }"""
    assert tab.evaluate(clear) == 0


def test_the_text_wears_the_colours_of_the_unit(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6))
    tab = opened(trace, tokens=CHARACTERS, at="#unit=3&field=o&t=0", viewport=(1280, 2400))
    widths = tab.evaluate(
        """() => { const c = document.createElement("canvas").getContext("2d");
        c.font = "17px " + getComputedStyle(document.documentElement).getPropertyValue("--mono");
        return c.measureText("i").width; }"""
    )
    each = int(np.ceil(widths)) + 2
    for t in range(1, 10):
        want = colour(tab, "gate", 1, trace.o[0, 0, t, 0, 3].item())
        assert pixel(tab, "text", 2 + t * each + 1, 4) == want
    tab.locator("#text").click(position={"x": 2 + 7 * each + 3, "y": 12})
    settle(tab)
    assert state(tab, "t") == 7


def test_lanes_join_both_directions_and_end_in_h_n(opened) -> None:
    trace = traced(gatewise.LSTM(4, 5, bidirectional=True))
    tab = opened(trace, tokens=CHARACTERS, at="#t=4", viewport=(1280, 3000))
    bring(tab, "#directions")
    box = tab.locator("#lanes").bounding_box()
    gutter, each = 132, (box["width"] - 264) / 10
    tall, half, top = 64, 48, 34
    out = top + tall + 46
    second = out + 2 * half + 46
    limits = [trace.h[0, d, :, 0].abs().max().item() for d in range(2)]
    for t in (0, 3, 9):
        for u in range(5):
            for d, (lane_top, joined_top) in enumerate([(top, out), (second, out + half)]):
                want = colour(tab, "signed", limits[d], trace.h[0, d, t, 0, u].item())
                x = gutter + (t + 0.5) * each
                assert pixel(tab, "lanes", x, lane_top + (u + 0.5) * tall / 5) == want
                assert pixel(tab, "lanes", x, joined_top + (u + 0.5) * half / 5) == want
                assert trace.output[t, 0, d * 5 + u] == trace.h[0, d, t, 0, u]
    for d, (x, y) in enumerate([(box["width"] - 132 + 26 + 8, top), (132 - 26 - 8, second)]):
        for u in range(5):
            want = colour(tab, "signed", limits[d], trace.h_n[d, 0, u].item())
            assert pixel(tab, "lanes", x, y + (u + 0.5) * tall / 5) == want
    caption = tab.locator("#directions .caption").inner_text()
    assert "reverse h at step 4, which has read steps 9 down to 4" in caption
    # half way, the lanes have not met: the middle of the output is not there yet
    paper = pixel(tab, "lanes", 60, out + 8)
    tab.locator("#clock").fill("3")
    settle(tab)
    assert pixel(tab, "lanes", gutter + 1.5 * each, top + 7) != paper
    assert pixel(tab, "lanes", gutter + 3.5 * each, top + 7) == paper
    assert pixel(tab, "lanes", gutter + 8.5 * each, second + 7) != paper
    assert pixel(tab, "lanes", gutter + 1.5 * each, out + 7) == paper
    tab.locator("#clock").fill("6")
    settle(tab)
    ready = [pixel(tab, "lanes", gutter + (t + 0.3) * each, out + 7) != paper for t in range(10)]
    assert ready == [t in (4, 5) for t in range(10)]


def test_gradient_reach_of_both_layers(opened) -> None:
    lstm, rnn = traced(gatewise.LSTM(4, 6), T=40), traced(gatewise.RNN(4, 6), T=40)
    tab = opened(lstm, beside=rnn)
    bring(tab, "#gradient")
    items = tab.locator(".reach-said li")
    for n, (trace, name) in enumerate([(lstm, "c"), (rnn, "h")]):
        norm = getattr(trace.grad, name)[0, 0, :, 0].norm(dim=-1)
        top = int(norm.argmax())
        far = next(t for t in range(top + 1) if norm[t] >= 0.01 * norm.max())
        assert int(items.nth(n).get_attribute("data-steps")) == top - far


def test_whose_gradients_they_are_is_said_and_marked(opened) -> None:
    trace = traced(gatewise.LSTM(4, 6), T=40)
    tab = opened(trace, loss=(30, "the answer at step 30"), at="#t=2&grad=1")
    bring(tab, "#gradient")
    assert "The loss is here the answer at step 30;" in tab.locator("#loss").inner_text()
    assert "gradient of the answer at step 30." in tab.locator("#unit-lead").inner_text()
    tab.evaluate(
        """() => { const all = CanvasRenderingContext2D.prototype, write = all.fillText;
        all.fillText = function (text, x, y) { if (text === "loss") window.loss = x;
          return write.call(this, text, x, y); }; }"""
    )
    press(tab, "ArrowRight")
    width = tab.locator("#reach").bounding_box()["width"] - 60 - 130
    assert abs(tab.evaluate("window.loss") - (60 + 30.5 / 40 * width)) < 6
    tab = opened(trace)
    bring(tab, "#gradient")
    assert not tab.locator("#loss").is_visible()


def test_without_gradients_the_page_says_how_to_get_them(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6), backward=False), tokens=CHARACTERS)
    assert tab.locator("#grad").is_disabled()
    assert "call backward" in tab.locator("#grad-hint").inner_text()
    bring(tab, "#gradient")
    assert "trace.explore(path)" in tab.locator("#reach-view .hint").inner_text()
    press(tab, "d")
    assert state(tab, "grad") is False


def test_a_series_is_drawn_and_scrubbed(opened) -> None:
    trace = gatewise.LSTM(1, 6).trace(torch.linspace(-1, 1, 90).sin()[:, None, None])
    tab = opened(trace)
    box = tab.locator("#ribbon canvas").bounding_box()
    tab.mouse.click(box["x"] + box["width"] * 30.5 / 90, box["y"] + 10)
    settle(tab)
    assert state(tab, "t") == 30
    assert not tab.locator("#unit-text").is_visible()
    assert not tab.locator(".cells").is_visible()


def test_the_input_is_called_by_its_columns(opened) -> None:
    layer = gatewise.LSTM(2, 2, num_layers=2)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(9.0)  # what a gate hears most
        layer.weight_ih_l1.fill_(99.0)
    x = torch.tensor([[0.5, -1.25], [2.0, 0.0]])[:, None]
    tab = opened(layer.trace(x), columns=["temperature", "<i>rain"], at="#t=0&moment=1")
    assert tab.locator("#ribbon .columns").text_content() == "temperature beside <i>rain"
    said = "temperature 0.50 and <i>rain −1.25"
    assert tab.locator("#diagram .token").text_content() == said
    assert f"step 0, {said}, unit" in tab.locator("#lead").text_content()
    terms = tab.locator("#moment-forget .terms .bar-label")
    names = partial(terms.evaluate_all, "all => all.map(one => one.firstChild.data)")
    assert names()[:2] == ["<i>rain", "temperature"]
    tab.evaluate("modules['main.js'].set({ layer: 1 })")
    settle(tab)
    assert {"below[0]", "below[1]"} < set(names())
    tab.evaluate("modules['main.js'].set({ layer: 0 })")
    press(tab, ",")
    cells = tab.locator("#moment-join .strip").first.locator("i")
    assert cells.evaluate_all("all => all.map(one => one.title)") == [
        "temperature = 0.50",
        "<i>rain = −1.25",
    ]


def test_few_numbers_are_said_and_many_counted(opened) -> None:
    for I, said in ((2, "1.00 and 1.00"), (3, "1.00 and 1.00 and 1.00"), (4, "4 numbers")):
        tab = opened(gatewise.LSTM(I, 3).trace(torch.ones(2, 1, I)))
        assert tab.locator("#diagram .token").text_content() == said
        assert not tab.locator("#ribbon .columns").is_visible()
    x = torch.tensor([[[-30012.4, 9999.0]]])
    tab = opened(gatewise.LSTM(2, 3).trace(x), columns=["price", ""])
    assert tab.locator("#diagram .token").text_content() == "price −30,012 and 9999.0"
    long = ["a name of twenty signs", "another that is as long"]
    tab = opened(gatewise.LSTM(2, 3).trace(torch.ones(2, 1, 2)), columns=long)
    assert tab.locator("#diagram .token").text_content() == "2 numbers"


# --- in words -----------------------------------------------------------------


@pytest.mark.parametrize("width", [360, 718, 1280])
@pytest.mark.parametrize("H", [4, 128, 600])
def test_what_lanes_are_called_stands_whole(opened, H: int, width: int) -> None:
    trace = traced(gatewise.LSTM(4, H, bidirectional=True))
    tab = opened(trace, tokens=CHARACTERS, viewport=(width, 900))
    cut = """() => { window.cut = []; window.said = [];
        const all = CanvasRenderingContext2D.prototype, write = all.fillText;
        all.fillText = function (text, x, y) {
          if (this.canvas.closest("#lanes") && this.textAlign === "right") {
            window.said.push(text);
            if (x < this.measureText(text).width) window.cut.push(text);
          }
          return write.call(this, text, x, y); }; }"""
    bring(tab, "#lanes")
    tab.evaluate(cut)
    tab.keyboard.press("ArrowLeft")
    settle(tab)
    assert tab.evaluate("window.cut") == []
    name = f"{H}:{2 * H}" if H > 4 or width < 620 else f"output[t, {H}:{2 * H}]"
    assert name in tab.evaluate("window.said")


def test_names_of_curves_stand_whole_on_a_phone(opened) -> None:
    both = {"bidirectional": True}
    x = torch.randn(10, 1, 4)
    first, second = (kind(4, 6, **both).trace(x) for kind in (gatewise.LSTM, gatewise.RNN))
    for trace in (first, second):
        trace.output.sum().backward()
    tab = opened(first, beside=second, tokens=CHARACTERS, viewport=(360, 740))
    bring(tab, "#reach")
    assert right_edge(tab) == 0


def right_edge(tab) -> int:
    """The strongest ink in the last columns of the curves of the gradient."""
    edge = tab.evaluate(
        """() => { const c = document.getElementById("reach");
        return [...c.getContext("2d").getImageData(c.width - 2, 0, 2, c.height).data]; }"""
    )
    assert len(edge) > 0
    return max(edge)


@pytest.mark.parametrize(("t", "T"), [(0, 1), (0, 3), (2, 3)])
def test_what_the_caption_of_the_lanes_says_at_their_ends(opened, t: int, T: int) -> None:
    tab = opened(traced(gatewise.LSTM(4, 3, bidirectional=True), T=T), at=f"#t={t}")
    bring(tab, "#lanes")
    caption = tab.locator("#directions .caption").text_content()
    assert f"has read {'steps 0 to 2' if t else 'step 0 alone'}, with" in caption
    assert ("steps 2 down to 0. " if t < T - 1 else f"step {t} alone. ") in caption
    assert ("So output[-1] is not h_n" in caption) == (T > 1)


def test_a_number_of_a_series_is_written_as_numbers_are(opened) -> None:
    tab = opened(traced(gatewise.LSTM(1, 3), T=4), tokens=[0.5, -1.25, 2.0, -3.0], at="#t=1")
    assert tab.locator("#diagram .token").text_content() == "−1.25"
    assert "step 1, −1.25, unit" in tab.locator("#lead").text_content()


def test_weights_have_their_names_of_the_lessons(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6, proj_size=2)), at="#moment=0", viewport=(360, 740))
    said = "zi, zf, zg, zo = Wih xt + Whh ht−1 + b"
    formula = tab.locator("#moment-join .formula")
    assert formula.text_content() == said
    assert formula.evaluate("e => e.scrollWidth <= e.clientWidth")
    press(tab, *".....")
    assert "ht = Whr mt" in tab.locator("#moment-read .math").text_content()


def test_a_plain_rnn_begins_with_what_it_does(opened) -> None:
    tab = opened(traced(gatewise.RNN(4, 6)), tokens=CHARACTERS)
    assert tab.locator("#tab-write").get_attribute("aria-selected") == "true"
    assert tab.locator("#lanes-title").text_content() == "Where output and h_n come from"


def test_what_is_not_a_number_says_so(opened) -> None:
    layer, x = gatewise.LSTM(3, 4), torch.zeros(6, 1, 3)
    x[2] = float("nan")
    tab = opened(layer.trace(x), at="#t=4&moment=2", tokens="abcdef")
    assert "not a number" in tab.locator("#moment-write .plain").text_content()
    assert "lets an unknown share in" in tab.locator("#moment-write .plain").text_content()
    assert "not a number" in tab.locator("#unit-lead").text_content()
    assert tab.locator("#moment-write .valve-curve").count() == 2
    assert tab.locator("#moment-write .valve-dot").count() == 0
    tab.evaluate("modules['main.js'].set({ t: 1 })")
    settle(tab)
    assert tab.locator("#moment-write .valve-dot").count() == 2


def test_the_page_says_where_numbers_end(opened) -> None:
    layer, x = gatewise.LSTM(3, 4, bidirectional=True), torch.zeros(6, 1, 3)
    x[2] = float("nan")
    tab = opened(layer.trace(x), tokens="abcdef")
    assert "From step 2 on, values" in tab.locator("#broken").inner_text()
    tab.evaluate("modules['main.js'].set({ dir: 1 })")
    settle(tab)
    assert "From step 2 down, values" in tab.locator("#broken").inner_text()
    assert "Weights" not in tab.locator("#broken").inner_text()
    tab = opened(layer.trace(torch.zeros(6, 1, 3)), tokens="abcdef")
    assert not tab.locator("#broken").is_visible()


def test_weights_that_are_no_numbers_are_said(opened) -> None:
    layer = gatewise.LSTM(3, 4, bidirectional=True)
    with torch.no_grad():
        layer.weight_hh_l0[1, 2] = float("inf")
    tab = opened(layer.trace(torch.ones(6, 1, 3)), tokens="abcdef")
    assert tab.locator("#broken").inner_text().startswith("Weights of this lane are not numbers")
    tab.evaluate("modules['main.js'].set({ dir: 1 })")
    settle(tab)
    assert not tab.locator("#broken").is_visible()


AXES = """() => { const c = document.getElementById("curves"), copy = [];
  const { data } = c.getContext("2d").getImageData(0, 0, 44, c.height);
  for (let y = 0; y < c.height; y++)
    copy.push(data.slice(4 * 44 * y, 4 * 44 * (y + 1)).some((v) => v > 0));
  return [22, 150, 278].map((top) => copy.slice(top - 6, top + 116).some(Boolean)); }"""


def test_a_band_without_a_number_has_an_axis(opened) -> None:
    layer, x = gatewise.LSTM(3, 4), torch.full((6, 1, 3), float("nan"))
    tab = opened(layer.trace(x), tokens="abcdef")
    bring(tab, "#curves")
    assert tab.evaluate(AXES) == [True, True, True]


def test_a_number_among_those_that_are_none_is_a_dot(opened) -> None:
    layer, x = gatewise.LSTM(3, 4), torch.ones(6, 1, 3)
    x[1] = float("nan")
    tab = opened(layer.trace(x), at="#t=4", tokens="abcdef")
    bring(tab, "#curves")
    middle = 46 + (tab.locator("#curves").bounding_box()["width"] - 46 - 150) / 12
    blue = tab.evaluate(
        """x => { const c = document.getElementById("curves");
        const all = c.getContext("2d").getImageData(Math.floor(x) - 1, 0, 3, c.height).data;
        const blue = (v, k) => k % 4 === 2 && all[k + 1] > 99 && v - all[k - 2] > 99;
        return all.filter(blue).length; }""",
        middle,
    )
    assert blue > 0  # the cell


def test_an_infinite_number_leaves_the_band_of_the_others(opened) -> None:
    layer = gatewise.LSTM(3, 4, cell="linear")
    with gatewise.patching(layer, {"l0.fwd.c": put(-float("inf"), steps=[4])}):
        trace = layer.trace(torch.ones(6, 1, 3))
    tab = opened(trace, at="#t=1&unit=0", tokens="abcdef")
    bring(tab, "#curves")
    assert tab.evaluate(AXES) == [True, True, True]


CUT = """() => { window.cut = [];
  const all = CanvasRenderingContext2D.prototype, write = all.fillText;
  all.fillText = function (text, x, y) {
    if (this.canvas.id === "curves") {
      const wide = this.measureText(text).width, room = this.canvas.clientWidth;
      const from = { right: x - wide, center: x - wide / 2 }[this.textAlign] ?? x;
      if (from < 0 || from + wide > room || /e[-+]?\\d/.test(text)) window.cut.push(text);
      window.said = [...(window.said ?? []), text];
    }
    return write.call(this, text, x, y); }; }"""


@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("size", [1e-9, 1.0, 1e6])
def test_numbers_of_the_curves_stand_whole(opened, size: float, width: int) -> None:
    trace = gatewise.LSTM(4, 6, cell="linear").trace(torch.randn(10, 1, 4))
    (trace.output.sum() * size).backward()
    tab = opened(trace, tokens=CHARACTERS, viewport=(width, 900))
    bring(tab, "#curves")
    tab.evaluate(CUT)
    press(tab, "d", "ArrowLeft")
    assert state(tab, "grad") is True
    assert tab.evaluate("window.cut") == []
    assert ("⁻" in "".join(tab.evaluate("window.said"))) == (size < 1)


def test_one_of_a_kind_is_counted_as_one(opened) -> None:
    tab = opened(gatewise.LSTM(1, 1).trace(torch.zeros(1, 1, 1)))
    assert tab.locator("#what").text_content() == "LSTM · 1 layer · 1 unit · 1 step"


def test_a_very_long_series_is_drawn(opened) -> None:
    """More steps than a call in JavaScript takes arguments."""
    layer, T = gatewise.RNN(1, 1), 150_000
    tab = opened(traced(layer, T=T), tokens=[0.5] * T, at="#t=140000")
    rest(tab)  # what is off screen is drawn when nothing else happens
    assert tab.locator(".reach-said li").get_attribute("data-steps") is not None


def test_a_very_long_token_is_cut_short(opened) -> None:
    long = "👩‍👩‍👧 supercalifragilisticexpialidocious " * 9
    words = [long, "a", "b"]
    tab = opened(traced(gatewise.LSTM(4, 6), T=3), tokens=words, at="#t=0", viewport=(390, 800))
    rest(tab)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    drawing = tab.locator("#diagram").bounding_box()
    token = tab.locator("#diagram .token").bounding_box()
    assert token["x"] + token["width"] <= drawing["x"] + drawing["width"]
    assert "…”, unit" in tab.locator("#lead").text_content()
    assert long.strip() in tab.locator("#unit-text .hidden").text_content()  # for those who listen


def test_names_of_cells_stand_whole_beside_their_curves(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6, cell="no_output_activation")), tokens=CHARACTERS)
    bring(tab, "#reach")
    assert right_edge(tab) == 0


def test_gates_of_any_size_are_no_valves(opened) -> None:
    tab = opened(traced(gatewise.LSTM(4, 6, cell="linear")), tokens=CHARACTERS)
    assert "its gates, numbers of any size, are factors" in tab.locator("#lead").inner_text()
    assert not tab.locator("#key-gates").is_visible()
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS)
    assert "numbers between 0 and 1, act as valves" in tab.locator("#lead").inner_text()
    assert tab.locator("#key-gates").is_visible()


def test_sequences_that_the_page_leaves_out_are_counted(opened) -> None:
    tab = opened(gatewise.LSTM(1, 2).trace(torch.zeros(3, 20, 1)))
    assert tab.locator("#what").text_content().endswith(" · 3 steps · 8 of 20 sequences")


def test_tokens_cannot_become_markup(opened) -> None:
    evil = ["</script><script>window.hit=1</script>", "<img src=x onerror=window.hit=1>", "<b>", ""]
    tab = opened(traced(gatewise.LSTM(4, 6), T=4), tokens=evil, title="<i onclick=x>")
    for n in range(4):
        tab.evaluate(f"modules['main.js'].set({{t: {n}}})")
        settle(tab)
    assert tab.evaluate("window.hit") is None
    assert tab.locator(".cell b").nth(2).inner_text() == "<b>"
    assert tab.locator("h1").inner_text() == "<i onclick=x>"


def test_the_page_works_inside_a_notebooks_frame(browser, tmp_path) -> None:
    shown_inline = see.inline(traced(gatewise.LSTM(4, 6)), CHARACTERS)._repr_html_()
    (tmp_path / "notebook.html").write_text(f"<!DOCTYPE html><p>cell</p>{shown_inline}", "utf-8")
    tab = browser.new_page(viewport={"width": 900, "height": 900})
    errors: list[str] = []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda m: errors.append(m.text))
    tab.goto((tmp_path / "notebook.html").as_uri())
    frame = tab.frame_locator("iframe")
    frame.locator("#tab-read").click()
    frame.locator("#moment-read").wait_for()
    assert errors == []
    tab.close()
