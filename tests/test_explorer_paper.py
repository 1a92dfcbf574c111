"""The explorer on paper, in a real Chromium: nothing over anything else, and twice the same."""

from __future__ import annotations

import pytest
import torch
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

WORDS = ("it was the best of times, it was the worst of times, " * 40)[:2000]
PAPERS = [(size, margin) for size in ("Letter", "A4") for margin in ("0", "1cm")]

PAGES = {
    "both ways": lambda: (
        traced(gatewise.LSTM(8, 16, num_layers=2, bidirectional=True)),
        {"tokens": CHARACTERS, "beside": traced(gatewise.RNN(8, 16))},
    ),
    "peephole": lambda: (traced(gatewise.LSTM(3, 8, cell="peephole"), T=40), {}),
    "projection": lambda: (traced(gatewise.LSTM(8, 16, proj_size=4)), {"tokens": CHARACTERS}),
    "long text": lambda: (traced(gatewise.LSTM(8, 32), T=2000), {"tokens": WORDS}),
}


def printed(tab, size: str, margin: str):
    """The pages of the page on paper."""
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 is not installed")
    sides = dict.fromkeys(("top", "bottom", "left", "right"), margin)
    return pdfium.PdfDocument(tab.pdf(format=size, print_background=True, margin=sides))


def covered(page) -> list[str]:
    """Pieces of text that lie on others."""
    text = page.get_textpage()
    boxes = [text.get_rect(k) for k in range(text.count_rects())]
    return [
        f"{text.get_text_bounded(*one)!r} on {text.get_text_bounded(*other)!r}"
        for n, one in enumerate(boxes)
        for other in boxes[:n]
        if min(one[2], other[2]) - max(one[0], other[0]) > 4
        and min(one[3], other[3]) - max(one[1], other[1]) > 2
        and abs(one[1] - other[1]) > 1  # the outline of a number lies under it
    ]


def cut(page) -> list[str]:
    """Pieces of text that leave the paper."""
    text = page.get_textpage()
    boxes = [text.get_rect(k) for k in range(text.count_rects())]
    return [text.get_text_bounded(*box) for box in boxes if box[2] > page.get_width()]


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
def test_nothing_is_printed_over_anything_else(make, opened) -> None:
    torch.manual_seed(1)
    trace, how = make()
    tab = opened(trace, at="#moment=4", **how)
    for size, margin in PAPERS:
        pages = list(printed(tab, size, margin))
        assert [covered(page) + cut(page) for page in pages] == [[]] * len(pages), (size, margin)


def test_the_table_of_the_join_is_as_wide_as_its_column(opened) -> None:
    tab = opened(traced(gatewise.LSTM(3, 8, cell="peephole"), T=40))
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    table, column = (tab.locator(one).bounding_box() for one in (".join", "#moment-join .math"))
    assert table["width"] <= column["width"] + 1


def test_a_long_text_begins_below_its_heading_and_is_parted_between_lines(opened) -> None:
    trace, how = PAGES["long text"]()
    tab = opened(trace, **how)
    # what is drawn on canvas is text on paper, too
    texts = [page.get_textpage().get_text_range() for page in printed(tab, "Letter", "1cm")]
    texts = ["".join(text.split()) for text in texts]
    (first,) = (text for text in texts if "Thetext,coloured" in text)
    assert "itwasthebestoftimes" in first.partition("Thetext,coloured")[2]
    lines = "".join(texts).partition("Thetext,coloured")[2]
    assert "".join(WORDS.split()) in lines  # every line once


def test_what_is_printed_again_is_the_same(opened) -> None:
    trace, how = PAGES["both ways"]()
    tab = opened(trace, **how)
    rest(tab)
    first, *others = (
        [sorted(one.type for one in page.get_objects()) for page in printed(tab, "A4", "1cm")]
        for _ in range(3)
    )
    assert others == [first, first]


def test_print_shows_all_five_moments_in_light(opened) -> None:
    dark = {"color_scheme": "dark"}
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS, context=dark)
    tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    tab.emulate_media(media="print")
    for name in ("join", "forget", "write", "update", "read"):
        assert tab.locator(f"#moment-{name}").is_visible()
    assert not tab.locator("#play").is_visible()
    assert tab.evaluate("document.documentElement.dataset.theme") == "light"
    widths = tab.evaluate("[...document.querySelectorAll('canvas')].map(c => c.clientWidth)")
    assert max(widths) == 680 < tab.viewport_size["width"]  # drawn for paper, and not scaled to it
    assert tab.locator("#numbers").bounding_box()["width"] == 680
    assert len(tab.pdf()) > 20_000
    tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"


def test_on_paper_no_canvas_wipes_out_the_one_below_it(opened) -> None:
    """Print takes a canvas as its calls, and a cleared rectangle then clears the page."""
    tab = opened(traced(gatewise.LSTM(4, 6)), tokens=CHARACTERS)
    tab.evaluate(
        """() => { window.cleared = 0; const all = CanvasRenderingContext2D.prototype;
        all.clearRect = () => { window.cleared += 1; };
        window.dispatchEvent(new Event('beforeprint')); }"""
    )
    settle(tab)
    assert tab.evaluate("window.cleared") == 0
