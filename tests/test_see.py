"""The explorer as a file: what it holds is the trace, what it lets through is nothing."""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import gatewise
from gatewise import ArgumentError, see
from gatewise.see import numbers, page


def traced(layer, x, backward=True):
    """The trace of a layer on x, with gradients of a loss on all of its output."""
    trace = layer.trace(x)
    if backward:
        trace.output.nan_to_num().pow(2).sum().backward()
    return trace


class Elements(HTMLParser):
    """The text of the elements of a page by id, and all start tags."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.by_id: dict[str, str] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._open: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(dict(attrs).get("id"))

    def handle_endtag(self, tag):
        if self._open:
            self._open.pop()

    def handle_data(self, data):
        if self._open and self._open[-1] is not None:
            name = self._open[-1]
            self.by_id[name] = self.by_id.get(name, "") + data


def read(text: str) -> tuple[dict, list[np.ndarray]]:
    """The description and the blocks of a page, as the page's script would read them."""
    elements = Elements(text)
    meta = json.loads(elements.by_id["meta"])
    count = sum(re.fullmatch(r"b\d+", name) is not None for name in elements.by_id)
    raw = [base64.b64decode(elements.by_id[f"b{n}"]) for n in range(count)]
    return meta, [np.frombuffer(data, "<f4") for data in raw]


def block(blocks, ref, like) -> np.ndarray:
    if isinstance(ref, dict):
        return np.full(like.shape, ref["fill"], np.float32)
    return blocks[ref].reshape(like.shape)


LAYERS = {
    **{name: {"cell": name} for name in gatewise.CELLS if not name.startswith("rnn")},
    "two directions": {"bidirectional": True, "num_layers": 2},
    "projection": {"proj_size": 3, "num_layers": 2},
}


@pytest.mark.parametrize("how", LAYERS.values(), ids=LAYERS)
def test_every_number_of_the_page_is_the_traces(how) -> None:
    check(gatewise.LSTM(4, 5, **how), torch.randn(6, 2, 4))


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_every_number_of_a_plain_rnn(nonlinearity) -> None:
    check(gatewise.RNN(4, 5, nonlinearity=nonlinearity, bidirectional=True), torch.randn(6, 2, 4))


def test_packed_sequences_end_at_their_own_length() -> None:
    x = pack_sequence([torch.randn(n, 4) for n in (3, 6, 1)], enforce_sorted=False)
    check(gatewise.LSTM(4, 5, bidirectional=True, num_layers=2), x, lengths=[3, 6, 1])


def check(layer, x, lengths=None) -> None:
    trace = traced(layer, x)
    meta, blocks = read(see.html(trace))
    trace = trace.to_numpy()
    lengths = lengths or [x.shape[0]] * x.shape[1]
    (model,) = meta["models"]
    assert [run["T"] for run in model["runs"]] == lengths
    for b, run in enumerate(model["runs"]):
        T = lengths[b]
        np.testing.assert_array_equal(block(blocks, run["x"][0], trace.x[:T, b]), trace.x[:T, b])
        for k, lanes in enumerate(run["lanes"]):
            for d, lane in enumerate(lanes):
                for name in numbers.FIELDS:
                    want = getattr(trace, name)[k, d, :T, b]
                    np.testing.assert_array_equal(block(blocks, lane["value"][name], want), want)
                    if name in lane["grad"]:
                        want = getattr(trace.grad, name)[k, d, :T, b]
                        np.testing.assert_array_equal(block(blocks, lane["grad"][name], want), want)
                at = k * trace.num_directions + d
                np.testing.assert_array_equal(blocks[lane["h_n"]], trace.h_n[at, b])
                if trace.cell.has_cell_state:
                    np.testing.assert_array_equal(blocks[lane["c_n"]], trace.c_n[at, b])
                weights = trace.weights[k][d]
                assert set(model["weights"][k][d]) == set(weights)
                for name, w in weights.items():
                    got = blocks[model["weights"][k][d][name]].reshape(w.shape)
                    np.testing.assert_array_equal(got, w)


def test_the_first_step_that_is_no_number() -> None:
    layer, x = gatewise.LSTM(4, 3, bidirectional=True), torch.zeros(5, 2, 4)
    x[3, 1] = float("nan")
    (model,) = read(see.html(layer.trace(x)))[0]["models"]
    assert model["broken_weights"] == [[False, False]]
    assert [[lane["broken"] for lane in run["lanes"][0]] for run in model["runs"]] == [
        [None, None],
        [3, 3],
    ]
    with torch.no_grad():
        layer.bias_ih_l0_reverse[2] = float("nan")
    (model,) = read(see.html(layer.trace(x)))[0]["models"]
    assert model["broken_weights"] == [[False, True]]
    assert model["runs"][0]["lanes"][0][0]["broken"] is None
    assert model["runs"][0]["lanes"][0][1]["broken"] == 4  # it reads from the end


def test_the_page_starts_from_the_states_that_the_run_was_given() -> None:
    x = pack_sequence([torch.randn(n, 4) for n in (2, 5)], enforce_sorted=False)
    h0, c0 = torch.randn(2, 1, 2, 3)
    trace = gatewise.LSTM(4, 3).trace(x, (h0, c0))
    meta, blocks = read(see.html(trace))
    for b in range(2):
        lane = meta["models"][0]["runs"][b]["lanes"][0][0]
        np.testing.assert_array_equal(blocks[lane["h0"]], h0[0, b])
        np.testing.assert_array_equal(blocks[lane["c0"]], c0[0, b])


def test_equal_blocks_are_stored_once() -> None:
    trace = traced(gatewise.RNN(4, 5), torch.randn(6, 1, 4))
    meta, _ = read(see.html(trace))
    value = meta["models"][0]["runs"][0]["lanes"][0][0]["value"]
    assert value["c"] == value["g"] == value["h"]
    assert value["f"] == {"fill": 0.0}
    assert value["i"] == value["o"] == {"fill": 1.0}


def test_weights_that_changed_since_are_left_out() -> None:
    layer = gatewise.LSTM(4, 5)
    trace = layer.trace(torch.randn(3, 1, 4))
    with torch.no_grad():
        layer.weight_ih_l0.mul_(2)
    assert read(see.html(trace))[0]["models"][0]["weights"] is None


def test_without_backward_there_are_no_gradients() -> None:
    trace = traced(gatewise.LSTM(4, 5), torch.randn(3, 1, 4), backward=False)
    assert read(see.html(trace))[0]["models"][0]["runs"][0]["lanes"][0][0]["grad"] is None


# --- words and refusals -------------------------------------------------------


def test_tokens_and_title_are_text_and_nothing_else() -> None:
    evil = ["</script><script>alert(1)</script>", "<!--", "&amp;", '"', "{{SCRIPT}}", "\u2028"]
    trace = traced(gatewise.LSTM(4, 5), torch.randn(6, 1, 4))
    text = see.html(trace, evil, title="<img src=x onerror=alert(1)> {{STYLE}}")
    elements = Elements(text)
    assert json.loads(elements.by_id["meta"])["tokens"] == [evil]
    assert sum(tag == "script" for tag, _ in elements.tags) == len(read(text)[1]) + 2
    assert not any(tag == "img" or "onerror" in attrs for tag, attrs in elements.tags)
    assert "<h1>&lt;img src=x onerror=alert(1)&gt; {{STYLE}}</h1>" in text


def test_nothing_but_the_pages_own_script_and_style_may_load() -> None:
    text = see.html(traced(gatewise.LSTM(4, 5), torch.randn(3, 1, 4)))
    elements = Elements(text)
    (policy,) = (a["content"] for tag, a in elements.tags if a.get("http-equiv"))
    script = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    style = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)

    def source(parts):
        (part,) = parts
        return "'sha256-" + base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() + "'"

    assert policy == f"default-src 'none'; script-src {source(script)}; style-src {source(style)}"
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}
    assert not any(name in a for _, a in elements.tags for name in ("src", "style", "onclick"))


@pytest.mark.parametrize(
    ("tokens", "kind", "shown"),
    [
        ("abc", "text", ["a", "b", "c"]),
        (["I", "love", ""], "text", ["I", "love", ""]),
        ([["a", "b", "c"]], "text", ["a", "b", "c"]),
        ([1, 2.5, -3], "series", ["1", "2.5", "-3"]),
        (np.array([0.1, 0.2, 0.3]), "series", ["0.1", "0.2", "0.3"]),
        (None, "series", None),
    ],
)
def test_what_stands_at_a_step(tokens, kind, shown) -> None:
    meta, _ = read(see.html(traced(gatewise.LSTM(4, 5), torch.randn(3, 1, 4)), tokens))
    assert meta["kind"] == kind
    assert meta["tokens"] == (None if shown is None else [shown])


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ({"tokens": "ab"}, r"tokens: expected .*lengths \[3, 3\].*got lengths \[2, 2\]"),
        ({"tokens": [list("abc")]}, r"tokens: expected one list of tokens for each sequence"),
        ({"batch": 2}, r"batch: expected places in a batch of B = 2, got 2"),
        ({"batch": []}, r"batch: expected"),
        ({"columns": ["a"]}, r"columns: expected I = 4 names, got 1"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(how, text, tmp_path) -> None:
    trace = traced(gatewise.LSTM(4, 5), torch.randn(3, 2, 4))
    with pytest.raises(gatewise.errors.ArgumentError, match=text):
        see.write(trace, tmp_path / "page.html", **how)
    assert list(tmp_path.iterdir()) == []


def test_beside_must_have_read_the_same_steps() -> None:
    one = traced(gatewise.LSTM(4, 5), torch.randn(3, 1, 4))
    two = traced(gatewise.RNN(4, 5), torch.randn(4, 1, 4))
    with pytest.raises(gatewise.errors.ArgumentError, match="beside: expected a trace of the same"):
        see.html(one, beside=two)


def test_the_loss_is_said() -> None:
    trace = traced(gatewise.LSTM(4, 5), torch.randn(3, 1, 4))
    assert read(see.html(trace))[0]["loss"] is None
    meta, _ = read(see.html(trace, loss=(2, "the last output")))
    assert meta["loss"] == {"t": 2, "name": "the last output"}
    for wrong in (3, -1):
        with pytest.raises(ArgumentError, match=rf"loss: expected a step 0 to 2, got {wrong}"):
            see.html(trace, loss=(wrong, "none"))


def test_columns_have_short_names() -> None:
    trace = traced(gatewise.LSTM(3, 5), torch.randn(3, 1, 3))
    assert read(see.html(trace))[0]["columns"] is None
    meta, _ = read(see.html(trace, columns=["rain \t (mm)", "", "n" * 25]))
    assert meta["columns"] == ["rain (mm)", "", "n" * 23 + "…"]


def test_of_how_many_sequences_the_page_shows_some() -> None:
    trace = traced(gatewise.LSTM(4, 5), torch.randn(3, 20, 4))
    meta, _ = read(see.html(trace))
    assert (meta["batch"], meta["of"]) == (list(range(8)), 20)


# --- the file -----------------------------------------------------------------


def test_the_file_is_the_page(tmp_path) -> None:
    trace = traced(gatewise.LSTM(4, 5), torch.randn(3, 1, 4))
    path = tmp_path / "page.html"
    path.write_text("what was there")
    assert see.write(trace, str(path), "a→b") == path
    assert path.read_text("utf-8") == see.html(trace, "a→b")
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch) -> None:
    trace = traced(gatewise.LSTM(4, 5), torch.randn(3, 1, 4))
    path = tmp_path / "page.html"
    path.write_text("what was there")

    def full(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space"):
        see.write(trace, path)
    assert path.read_text() == "what was there"
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_in_a_notebook_the_same_page_stands_in_a_frame() -> None:
    trace = traced(gatewise.LSTM(4, 5), torch.randn(3, 1, 4))
    shown = see.inline(trace, "abc", height=500)._repr_html_()
    (frame,) = re.findall(r'<iframe srcdoc="([^"]*)"', shown)
    assert markup.unescape(frame) == see.html(trace, "abc")
    assert "height:500px" in shown


def test_sizes_are_bounded(monkeypatch) -> None:
    trace = traced(gatewise.LSTM(4, 5), torch.randn(50, 3, 4))
    assert read(see.html(trace))[0]["batch"] == [0, 1, 2]
    assert read(see.html(trace, batch=-1))[0]["batch"] == [2]
    assert read(see.html(trace, batch=np.int64(1)))[0]["batch"] == [1]
    for wrong in (3, -4, [0, 3], [], 1.5, [1.5], "x"):
        with pytest.raises(ArgumentError, match=r"batch: expected places .* B = 3, got"):
            see.html(trace, batch=wrong)
    monkeypatch.setattr(numbers, "SEVERAL_BYTES", 2 * 4 * 50 * 5 * 6 * 2 + 1)
    assert read(see.html(trace))[0]["batch"] == [0, 1]
    monkeypatch.setattr(numbers, "LARGE_BYTES", 1e4)
    with pytest.warns(UserWarning, match=r"MB of numbers.*batch=\[0\]"):
        see.html(trace)
    monkeypatch.setattr(numbers, "LARGE_BYTES", 1e9)
    monkeypatch.setattr(numbers, "WEIGHT_BYTES", 4 * 20 * (4 + 5 + 2) - 1)
    assert read(see.html(trace))[0]["models"][0]["weights"] is None


# --- orders of the units ------------------------------------------------------


def test_memory_is_the_time_in_which_forgetting_leaves_a_share_of_1_over_e() -> None:
    f = np.array([[0.5, 1.0, 0.0], [0.8, 1.0, 0.9]])
    one = numbers.memory(f)[0]
    assert np.isclose((0.5 * 0.8) ** (one / 2), np.exp(-1))
    assert numbers.memory(f)[1] == np.inf
    assert numbers.memory(f)[2] == 0


def test_similar_units_stand_side_by_side() -> None:
    t = np.linspace(0, 12, 200)[:, None]
    phase = np.repeat([0.0, 2.1, 4.2], 4)
    mixed = np.random.default_rng(0).permutation(12)
    values = np.sin(t + phase[mixed])
    order = numbers.similarity(values)
    assert sorted(order) == list(range(12))
    groups = phase[mixed][order]
    assert (np.diff(groups) != 0).sum() == 2


@pytest.mark.parametrize("shape", [(1, 5), (2, 2), (9, 1), (5, 4)])
def test_any_units_have_an_order(shape) -> None:
    for values in (
        np.zeros(shape),
        np.full(shape, np.nan),
        np.full(shape, np.inf),
        np.full(shape, 1e300),
        np.random.default_rng(0).normal(size=shape),
    ):
        assert sorted(numbers.similarity(values)) == list(range(shape[1]))


# --- modules as one script ----------------------------------------------------


def test_modules_are_bundled_in_the_order_they_need(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(page, "_HERE", tmp_path)
    (tmp_path / "main.js").write_text('import { a } from "./a.js";\nexport const b = a + 1;\n')
    (tmp_path / "a.js").write_text("export const a = 1;\nexport function f() {}\n")
    script = page.bundle("main.js")
    assert script.index('modules["a.js"]') < script.index('modules["main.js"]')
    assert "return { a, f };" in script
    assert 'const { a } = modules["a.js"];' in script


@pytest.mark.parametrize(
    "source", ['import x from "./a.js";', "export default 1;", "export { a };", "// </script>"]
)
def test_a_module_in_another_form_is_refused(source, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(page, "_HERE", tmp_path)
    (tmp_path / "main.js").write_text(source + "\n")
    with pytest.raises(ValueError, match=r"main\.js: write imports as"):
        page.bundle("main.js")
