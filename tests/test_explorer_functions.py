"""The functions of the explorer that draw nothing, called in a real Chromium."""

from __future__ import annotations

import ast
import base64

import numpy as np
import pytest
import torch
from chromium import browser_fixture, traced  # noqa: F401 (fixtures)

import gatewise
from gatewise import see

pytestmark = pytest.mark.browser

LARGEST = "of its largest gradient"
FIRST = "at the step it read first"


@pytest.fixture(scope="module")
def functions(browser, tmp_path_factory):
    """Calls a function of a module of the page."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("pure") / "page.html"
    see.write(traced(gatewise.LSTM(4, 6)), path)
    tab = browser.new_page()
    tab.goto(path.as_uri())
    yield lambda code: tab.evaluate(f"(() => {{ const {{ {code} }})()")
    tab.close()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("0", "0.00"), ("0.854", "0.85"), ("-0.65", "−0.65"), ("12345", "1.2·10⁴"),
        ("123.45", "123.5"), ("0.0123", "0.012"),
        ("-0.00012", "−1.2·10⁻⁴"), ("1e-20", "1.0·10⁻²⁰"), ("NaN", "NaN"),
        ("-Infinity", "−∞"), ("null", "–"),
    ],
)  # fmt: skip
def test_numbers_for_reading(value, text, functions) -> None:
    assert functions(f"show }} = modules['cell.js']; return show({value});") == text


@pytest.mark.parametrize("value", [0.1, 1 / 3, -2.5e-30, 123456.789, 1.17549435e-38, 1.2158e-6])
def test_exact_numbers_are_the_shortest_that_give_the_float_back(value, functions) -> None:
    single = np.float32(value)
    text = functions(f"exact }} = modules['cell.js']; return exact({float(single)!r});")
    assert np.float32(ast.literal_eval(text)) == single
    assert len(text.replace("-", "")) <= len(str(single).replace("-", "")) + 1


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 12287, 12288, 12289, 30000])
def test_blocks_are_decoded_in_pieces(count, native, functions) -> None:
    values = np.random.default_rng(count).normal(size=count).astype("<f4")
    text = base64.b64encode(values.tobytes()).decode()
    got, pieces = functions(
        f"decode }} = modules['data.js']; const known = Uint8Array.prototype.setFromBase64;"
        f" if (!{str(native).lower()}) Uint8Array.prototype.setFromBase64 = undefined;"
        f" const making = decode('{text}'); let pieces = 0, step;"
        " while (!(step = making.next()).done) pieces += 1;"
        " Uint8Array.prototype.setFromBase64 = known; return [[...step.value], pieces];"
    )
    assert np.array_equal(np.array(got, "<f4"), values)
    assert pieces == -(-len(text) // 65536)


@pytest.mark.parametrize(("n", "m"), [(7, 5), (3, 5), (7, 2), (3, 2), (1, 1)])
def test_means(n, m, functions) -> None:
    pick = np.random.default_rng(n * m)
    T, width, a, b = 12, 6, 2, 9
    values = pick.normal(size=(T, width)).round(3)
    values[4, 1] = np.nan
    rows = pick.permutation(width)[:5]
    data = str(values.ravel().tolist()).replace("nan", "NaN")
    got = functions(
        "means } = modules['data.js']; const out = [];"
        f"const values = {{ data: {data}, width: {width} }};"
        f"for (const [column, one] of means(values, {rows.tolist()}, {a}, {b}, {n}, {m})) out"
        ".push([column, [...one].map(String)]); return out;"
    )
    assert [column for column, _ in got] == list(range(n))
    row_of = np.arange(5) * m // 5
    for column, means in got:
        steps = slice(*(a + -(-c * (b - a) // n) for c in (column, column + 1)))
        want = [values[steps][:, rows[row_of == row]].mean() for row in range(m)]
        np.testing.assert_allclose([float(mean) for mean in means], want, rtol=1e-12)


@pytest.mark.parametrize("limit", [1, 3e-7, 2.5e4])
def test_the_scale_of_cube_roots(limit, functions) -> None:
    pick = np.random.default_rng(0)
    values = [*pick.normal(size=3000), *10 ** pick.uniform(-12, 0, size=3000), 0.0, -0.0, -1e-30]
    values = [float(v * limit) for one in (*values, 1, 5) for v in (one, -one)]
    got, want = functions(
        f"colour, scale }} = modules['colour.js']; const values = {values};"
        f"values.push(NaN, Infinity, -Infinity); const cubic = scale('signed', {limit}, 1 / 3);"
        f"const one = scale('signed'); return [values.map((v) => colour('light', cubic, v)),"
        f" values.map((v) => colour('light', one, Math.cbrt(v / {limit})))];"
    )
    assert got == want
    assert len(set(want)) > 200


@pytest.mark.parametrize(
    ("window", "width", "t", "T", "want"),
    [
        ([0, 10], 10, 3, 40, [0, 10]),
        ([0, 10], 10, 10, 40, [1, 11]),
        ([20, 30], 10, 12, 40, [12, 22]),
        ([0, 10], 4, 39, 40, [36, 40]),
        ([0, 0], 8, 20, 40, [16, 24]),
        ([0, 10], 99, 20, 40, [0, 40]),
    ],
)
def test_windows_move_as_little_as_they_must(window, width, t, T, want, functions) -> None:
    call = f"windowAround({window}, {width}, {t}, {T})"
    assert functions(f"windowAround }} = modules['data.js']; return {call};") == want


@pytest.mark.parametrize(
    ("norm", "reverse", "steps", "whole"),
    [
        ([1, 1, 1], "false", 2, True),
        ([1e-9, 0.001, 0.02, 0.5, 1], "false", 2, False),
        ([1, 0.5, 0.001], "true", 1, False),
        ([0, 0], "false", 0, False),
    ],
)
def test_reach(norm, reverse, steps, whole, functions) -> None:
    code = f"distance }} = modules['data.js']; return distance({norm}, {reverse});"
    assert functions(code) == {"steps": steps, "whole": whole}


@pytest.mark.parametrize(
    ("norm", "reverse", "want"),
    [
        ("[1, 1, 4]", "false", f"still has 25 % {LARGEST} {FIRST}, 2 steps before"),
        ("[4, 1]", "true", f"still has 25 % {LARGEST} {FIRST}, 1 step before"),
        ("[3, 2, 1]", "false", "has its largest gradient at the step it read first"),
        ("[0, 0, 1]", "true", "has its gradient at one step only, the first that it read"),
        ("[1e-9, 0.5, 1]", "false", f"has less than 1 % {LARGEST} more than 1 step before it"),
        ("[0, 0.001, 1]", "false", f"has less than 1 % {LARGEST} at every step before it"),
        ("[0, 0]", "false", "has no gradient: the loss does not depend on it"),
        ("[0, NaN]", "false", "has a gradient that is not a number"),
    ],
)  # fmt: skip
def test_reach_in_words(norm, reverse, want, functions) -> None:
    code = f"sentence }} = modules['reach.js']; return sentence({norm}, {reverse});"
    assert functions(code).replace("\N{NO-BREAK SPACE}", " ") == want


@pytest.mark.parametrize(
    ("words", "room", "want"),
    [
        (list("ab cd"), 100, [(0, 0), (10, 0), (20, 0), (30, 0), (40, 0)]),
        (list("ab cd"), 45, [(0, 0), (10, 0), (20, 0), (0, 1), (10, 1)]),
        (list("abcde"), 25, [(0, 0), (10, 0), (0, 1), (10, 1), (0, 2)]),
        (list("a\nb"), 100, [(0, 0), (10, 0), (0, 1)]),
        (["one", "two", "six"], 25, [(0, 0), (10, 0), (0, 1)]),
    ],
)
def test_text_breaks_between_words(words, room, want, functions) -> None:
    call = f"flow({words}, {[10] * len(words)}, {room}).map(p => [p.x, p.line])"
    assert functions(f"flow }} = modules['text.js']; return {call};") == [list(p) for p in want]
