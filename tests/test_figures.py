"""A figure shows the numbers of its trace, keeps their sign in its colours, and touches no more."""

from __future__ import annotations

import struct
import subprocess
import sys

import numpy as np
import pytest
import torch
from matplotlib import colors
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from torch.nn.utils.rnn import pack_sequence

import gatewise
from gatewise import ArgumentError, ShapeError, Trace

T, B, H = 9, 2, 5
TOKENS = list("gate wise")


def traced(cell: str = "lstm", backward: bool = True, **how: object) -> Trace:
    trace = gatewise.LSTM(3, H, cell=cell, bidirectional=True, **how).trace(torch.randn(T, B, 3))
    if backward:
        (trace.output[-1].sum() + trace.output[0].sum()).backward()
    return trace


def drawn(figure: Figure) -> Figure:
    """The figure, once it has really been drawn."""
    figure.canvas.draw()
    return figure


def maps(figure: Figure) -> dict[str, object]:
    """The images of a figure by their titles."""
    return {ax.get_title(): ax.images[0] for ax in figure.axes if ax.images}


def test_maps_show_the_numbers_in_the_stated_order() -> None:
    trace = traced()
    images = maps(drawn(trace.plot(direction="reverse", sequence=1, tokens=TOKENS)))
    assert sorted(title[-1] for title in images) == sorted("ifgoch")
    by_memory = np.argsort(-trace.f[0, 1, :, 1].detach().numpy().astype(float).prod(axis=0))
    for title, image in images.items():
        values = getattr(trace, title[-1])[0, 1, :, 1].detach().numpy()
        np.testing.assert_array_equal(image.get_array(), values[:, by_memory].T)
        assert "longest memory on top" in image.axes.get_ylabel()
        assert image.axes.get_xlabel() == "step t, read right to left"
        assert [t.get_text() for t in image.axes.get_yticklabels()] == [str(u) for u in by_memory]
        assert [t.get_text() for t in image.axes.get_xticklabels()] == list("gate·wise")


def test_a_notebook_shows_the_figure() -> None:
    """As IPython asks for it, with nothing of pyplot imported."""
    figure = traced().plot_unit(1)
    png = figure._repr_png_()
    width, height = struct.unpack(">II", png[16:24])
    assert png.startswith(b"\x89PNG")
    assert (width, height) == tuple((figure.get_size_inches() * figure.dpi).astype(int))


def test_colours_keep_the_sign() -> None:
    figure = traced().plot()
    for title, image in maps(figure).items():
        low, high = image.get_clim()
        if title[-1] in "ifo":
            assert (image.cmap.name, low, high) == ("cividis", 0, 1)
        else:
            assert (image.cmap.name, low) == ("RdBu", -high)  # white is zero
            assert high == np.abs(image.get_array()).max()


@pytest.mark.parametrize("order", ["memory", "activity", "similarity", "index"])
def test_every_order_shows_every_unit_once(order: str) -> None:
    trace = traced()
    image = maps(trace.plot(["c"], order=order))["cell state c"]
    shown, c = np.asarray(image.get_array()), trace.c[0, 0, :, 0].detach().numpy()
    assert sorted(map(tuple, shown)) == sorted(map(tuple, c.T))
    if order == "activity":
        assert (np.diff(shown.std(axis=1)) <= 0).all()
    if order == "index":
        np.testing.assert_array_equal(shown, c.T)


def test_similar_units_stand_together() -> None:
    trace = traced(backward=False).to_numpy()
    wave, other = np.sin(np.arange(T)), np.cos(2.0 * np.arange(T))
    c = trace.records[0].tape[0, :, 0, 4]
    c[:] = np.stack([wave, other, 2 * wave, 3 * other, 4 * wave], axis=1)
    labels = trace.plot(["c"], order="similarity").axes[0].get_yticklabels()
    shown = [int(label.get_text()) for label in labels]
    assert set(shown[:3]) in ({0, 2, 4}, {1, 3, 0})
    assert {u % 2 for u in shown[:3]} == {0}


def test_gradients_are_drawn_as_signed_maps() -> None:
    trace = traced()
    image = maps(trace.plot(["f"], gradient=True, order="index"))["d loss / d f"]
    np.testing.assert_array_equal(image.get_array(), trace.grad.f[0, 0, :, 0].T)
    assert image.cmap.name == "RdBu"
    with pytest.raises(ArgumentError, match="after backward"):
        traced(backward=False).plot(gradient=True)


def test_padding_is_not_drawn() -> None:
    layer = gatewise.LSTM(3, H)
    trace = layer.trace(pack_sequence([torch.randn(n, 3) for n in (4, 7)], enforce_sorted=False))
    assert maps(trace.plot(["c"], sequence=0))["cell state c"].get_array().shape == (H, 4)
    assert len(trace.plot_unit(1, sequence=1).axes[0].lines[0].get_xdata()) == 7


def test_a_projected_layer_shows_its_hidden_state_apart() -> None:
    trace = traced(proj_size=2)
    images = maps(drawn(trace.plot()))
    assert images["hidden state h"].get_array().shape == (2, T)
    assert images["hidden state h"].axes.get_ylabel() == "projected unit"
    assert "hidden state h" not in curves(trace.plot_unit(3))


def test_long_tokens_cover_nothing() -> None:
    tokens = ["pneumonoultramicroscopicsilicovolcanoconi" + str(k) for k in range(T)]
    figure = traced().plot(tokens=tokens)
    FigureCanvasAgg(figure).draw()
    panels = [ax for ax in figure.axes if ax.images]
    titles = [ax.title.get_window_extent() for ax in panels]
    labels = [label for ax in panels for label in ax.get_xticklabels()]
    assert {label.get_text() for label in labels} == {"pneumonoult…"}
    assert not any(
        label.get_window_extent().overlaps(title) for label in labels for title in titles
    )


def curves(figure: Figure) -> dict[str, object]:
    return {
        line.get_label(): line
        for ax in figure.axes
        for line in ax.lines
        if not line.get_label().startswith("_")
    }


def test_the_six_curves_of_a_unit() -> None:
    trace = traced()
    lines = curves(drawn(trace.plot_unit(3, sequence=1, tokens=TOKENS)))
    assert len(lines) == 6
    for title, line in lines.items():
        np.testing.assert_array_equal(
            line.get_ydata(), getattr(trace, title[-1])[0, 0, :, 1, 3].detach().numpy()
        )
    assert len({line.get_color() for line in lines.values()}) == 6


def test_no_gate_of_a_unit_hides_another() -> None:
    lines = curves(drawn(traced().plot_unit(3)))
    panels = {title[-1]: line.axes for title, line in lines.items()}
    assert len({panels[name] for name in "ifo"}) == 3
    assert panels["g"] is panels["c"] is panels["h"]
    for name in "ifo":
        filled, outline = panels[name].patches
        for steps in (filled, outline):
            np.testing.assert_array_equal(
                steps.get_data().values, lines[title_of(name)].get_ydata()
            )
            assert steps.get_data().edges[[0, -1]].tolist() == [-0.5, T - 0.5]


def title_of(name: str) -> str:
    return {"i": "input gate i", "f": "forget gate f", "o": "output gate o"}[name]


def dashes(panel: object) -> set[tuple[float, float]]:
    """Where they are, (step, row)."""
    marks = [each for each in panel.collections if isinstance(each, PathCollection)]
    return {tuple(at) for each in marks for at in each.get_offsets().tolist()}


def test_a_dash_marks_what_is_below_zero() -> None:
    trace = traced()
    image = maps(drawn(trace.plot(["c"])))["cell state c"]
    rows, steps = np.nonzero(np.asarray(image.get_array()) < 0)
    assert dashes(image.axes) == set(zip(steps.tolist(), rows.tolist(), strict=True))
    assert all(y < 0 for _, y in dashes(image.colorbar.ax))
    assert len(dashes(image.colorbar.ax)) == 3
    assert not dashes(maps(trace.plot(["f"]))["forget gate f"].axes)
    text = drawn(trace.plot_text(TOKENS, 2, "c")).axes[0]
    below = np.flatnonzero(trace.c[0, 0, :, 0, 2].detach().numpy() < 0)
    assert {int(x) for x, _ in dashes(text)} == set(below.tolist())


def test_a_map_without_room_has_no_dashes() -> None:
    trace = gatewise.LSTM(3, 90).trace(torch.randn(T, 1, 3))
    assert not dashes(maps(trace.plot(["c"]))["cell state c"].axes)


@pytest.mark.parametrize("cell", gatewise.CELLS)
def test_every_cell_can_be_drawn(cell: str) -> None:
    trace = traced(cell)
    drawn(trace.plot())
    drawn(trace.plot_unit(0))
    drawn(trace.plot_reach())
    drawn(trace.plot_text(TOKENS, 0))
    if cell == "rnn":
        assert list(maps(trace.plot())) == ["hidden state h"]
        assert list(curves(trace.plot_unit(0))) == ["hidden state h"]
        assert "most active on top" in trace.plot().axes[0].get_ylabel()


def test_reach_draws_the_norms_of_both_traces() -> None:
    trace, plain = traced(), traced("rnn")
    figure = drawn(trace.plot_reach(beside=plain, labels=["ours", "plain"]))
    lines = curves(figure)
    assert list(lines) == [
        f"{name}, layer 0, {way}"
        for name in ("ours", "plain")
        for way in ("left to right", "right to left")
    ]
    expected = trace.gradient_reach()[0, 1].mean(axis=-1)
    np.testing.assert_allclose(lines["ours, layer 0, right to left"].get_ydata(), expected)
    assert figure.axes[0].get_yscale() == "log"
    looks = {(line.get_color(), line.get_linestyle()) for line in lines.values()}
    assert len(looks) == 4


def inked(figure: Figure, line: object) -> int:
    """How many pixels of a drawn figure have the colour of a line."""
    pixels = np.asarray(drawn(figure).canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
    want = np.round(255 * np.array(colors.to_rgb(line.get_color())))  # type: ignore[attr-defined]
    return int((pixels == want).all(axis=-1).sum())


def test_one_step_is_seen() -> None:
    trace = gatewise.LSTM(3, H).trace(torch.randn(1, 1, 3))
    trace.output.sum().backward()
    for figure in (trace.plot_unit(0), trace.plot_reach()):
        FigureCanvasAgg(figure)
        for line in [line for ax in figure.axes for line in ax.lines if len(line.get_xdata()) == 1]:
            figure.axes[0].legend_ = figure.axes[-1].legend_ = None
            assert inked(figure, line) > 9, line.get_label()
        assert all(t == round(t) for ax in figure.axes for t in ax.get_xticks())


def test_every_lane_of_the_reach_has_a_line_of_its_own() -> None:
    trace = traced(num_layers=3)
    beside = traced("rnn", num_layers=3)
    lines = trace.plot_reach(beside=beside).axes[0].lines
    looks = {(line.get_color(), line.get_linestyle()) for line in lines}
    assert len(lines) == len(looks) == 12


def test_the_reach_of_one_sequence() -> None:
    trace = traced(num_layers=1)
    shown = trace.plot_reach(sequence=1).axes[0].lines[0].get_ydata()
    np.testing.assert_array_equal(shown, trace.gradient_reach()[0, 0, :, 1])
    with pytest.raises(ArgumentError, match="sequence: expected 0 to 1"):
        trace.plot_reach(sequence=2)


def test_rows_of_a_projected_state_are_numbered_by_whole_units() -> None:
    figure = drawn(gatewise.LSTM(3, H, proj_size=3).trace(torch.randn(T, B, 3)).plot(["h"]))
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["0", "1", "2"]


def test_text_is_coloured_by_the_unit() -> None:
    trace = traced()
    figure = drawn(trace.plot_text(TOKENS, 2, "c"))
    panel = figure.axes[0]
    assert [text.get_text() for text in panel.texts] == list("gate·wise")
    c = trace.c[0, 0, :, 0, 2].detach().numpy()
    scale = colors.Normalize(-np.abs(c).max(), np.abs(c).max())
    import matplotlib as mpl

    for patch, value in zip(panel.patches, c, strict=True):
        np.testing.assert_allclose(patch.get_facecolor(), mpl.colormaps["RdBu"](scale(value)))
    for text, patch in zip(panel.texts, panel.patches, strict=True):
        ink, paper = (colors.to_rgb(each) for each in (text.get_color(), patch.get_facecolor()))
        assert abs(np.mean(ink) - np.mean(paper)) > 0.25  # it can be read


def test_text_breaks_between_words_where_it_can() -> None:
    lines = [
        text.get_position()[1] for text in traced().plot_text(TOKENS, 0, width=6).axes[0].texts
    ]
    assert [int(y) for y in lines] == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    lines = [
        text.get_position()[1] for text in traced().plot_text(TOKENS, 0, width=3).axes[0].texts
    ]
    assert max(int(y) for y in lines) == 2  # a word longer than a line


def test_a_caller_s_axes_are_used_and_nothing_global_changes() -> None:
    code = """
import sys, torch, gatewise
from matplotlib import rcParams
from matplotlib.figure import Figure
before = rcParams.copy()
trace = gatewise.LSTM(2, 3).trace(torch.randn(4, 1, 2))
trace.output.sum().backward()
figure = Figure()
axes = figure.subplots(2, 3)
assert trace.plot(ax=axes) is figure
assert trace.plot_unit(0, ax=axes[0, 0]) is figure
assert trace.plot_unit(0, ax=axes[:, 1]) is figure
assert trace.plot_reach(ax=axes[1, 1]) is figure
assert trace.plot_text(list("abcd"), 0, ax=axes[1, 2]) is figure
assert rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda t: t.plot(["q"]), ArgumentError, "names: expected some of i f g o c h, got 'q'"),
        (lambda t: t.plot(order="size"), ArgumentError, "order: expected memory, activity"),
        (
            lambda t: t.plot(tokens=["a"]),
            ShapeError,
            r"tokens: expected one a step \(T = 9\), got 1",
        ),
        (
            lambda t: t.plot(sequence=2),
            ArgumentError,
            r"sequence: expected 0 to 1 \(B - 1\), got 2",
        ),
        (lambda t: t.plot(ax=Figure().subplots()), ShapeError, "ax: expected 6 axes, got 1"),
        (
            lambda t: t.plot_text("abcdefghi", 0, "z"),
            ArgumentError,
            "name: expected one of i f g o c h, got 'z'",
        ),
        (lambda t: t.plot_unit(5), ArgumentError, r"unit: expected 0 to 4 \(H - 1\), got 5"),
        (lambda t: t.plot_text(["a"], 0), ShapeError, "tokens: expected one a step"),
    ],
)
def test_what_does_not_fit_is_said(call: object, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        call(traced(backward=False))
