"""A page of one's own model and input: what is read, what is refused, and that it is what ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

import gatewise
from gatewise import ArgumentError, ShapeError, see
from gatewise.explain import (
    MOST_CHARACTERS,
    MOST_LETTERS,
    _characters,
    read_layer,
    read_series,
    series_page,
    text_page,
)
from gatewise.tagger import Tagger

SHAPES: list[dict[str, Any]] = [
    {},
    {"num_layers": 3, "bidirectional": True},
    {"bias": False},
    {"proj_size": 2, "num_layers": 2},
    {"proj_size": 1, "bidirectional": True, "bias": False},
]


# --- layers -------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # torch's own
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("file", ["a.pt", "a.safetensors"])
def test_sizes_come_from_the_weights(shape: dict[str, Any], file: str, tmp_path: Path) -> None:
    theirs = nn.LSTM(3, 5, **shape)
    save = torch.save if file == "a.pt" else safetensors.torch.save_file
    save(theirs.state_dict(), tmp_path / file)
    ours = read_layer(tmp_path / file)
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.filterwarnings("ignore:.*an RNN, taken for one of tanh")
def test_plain_rnn_and_a_layer_in_a_model(tmp_path: Path) -> None:
    model = nn.ModuleDict({"front": nn.LSTM(2, 4), "back": nn.ModuleDict({"rnn": nn.RNN(3, 6)})})
    path = tmp_path / "a.pt"
    torch.save(model.double().state_dict(), path)
    with pytest.raises(ArgumentError, match=r"choose one with --layer: front, back\.rnn"):
        read_layer(path)
    with pytest.raises(
        ArgumentError, match=r"a\.pt: expected --layer to be one of front, back\.rnn, got 'rnn'"
    ):
        read_layer(path, "rnn")
    x = torch.randn(4, 1, 3, dtype=torch.float64)
    for prefix in ("back.rnn", "back.rnn."):
        torch.testing.assert_close(read_layer(path, prefix)(x), model["back"]["rnn"](x))


def test_the_only_layer_needs_no_name(tmp_path: Path) -> None:
    torch.save(nn.LSTM(2, 3).state_dict(), tmp_path / "a.pt")
    with pytest.raises(ArgumentError, match=r"expected no --layer, .* has no name, got 'rnn'"):
        read_layer(tmp_path / "a.pt", "rnn")


def test_relu_has_to_be_said(tmp_path: Path) -> None:
    path, theirs, x = tmp_path / "a.pt", nn.RNN(2, 3, nonlinearity="relu"), torch.randn(4, 1, 2)
    torch.save(theirs.state_dict(), path)
    torch.testing.assert_close(read_layer(path, cell="rnn_relu")(x), theirs(x))
    with pytest.warns(UserWarning, match=r"a\.pt: an RNN, taken for .* give --cell rnn_relu"):
        assert read_layer(path).cell.name == "rnn"
    read_layer(path, cell="rnn")  # said, and so without a warning


def test_a_checkpoint_that_holds_the_state_dict_under_a_key(tmp_path: Path) -> None:
    path, model = tmp_path / "a.ckpt", nn.ModuleDict({"rnn": nn.LSTM(2, 3)})
    optimizer = torch.optim.Adam(model.parameters())
    x = torch.randn(4, 1, 2)
    model["rnn"](x)[0].sum().backward()
    optimizer.step()
    held = {"epoch": 3, "model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save(held, path)
    torch.testing.assert_close(read_layer(path)(x), model["rnn"](x))
    averaged = nn.ModuleDict({"rnn": nn.LSTM(2, 3)})
    torch.save(held | {"ema": averaged.state_dict()}, path)
    with pytest.raises(ArgumentError, match=r"choose one with --layer: model\.rnn, ema\.rnn"):
        read_layer(path)
    torch.testing.assert_close(read_layer(path, "ema.rnn")(x), averaged["rnn"](x))


@pytest.mark.parametrize("cell", ["coupled", "peephole", "no_output_gate"])
def test_other_cells(cell: str, tmp_path: Path) -> None:
    path, first = tmp_path / "a.pt", gatewise.LSTM(2, 3, cell=cell)
    torch.save(first.state_dict(), path)
    x = torch.randn(4, 1, 2)
    torch.testing.assert_close(read_layer(path, cell=cell)(x), first(x))


def test_weights_that_see_the_cell_are_of_a_peephole(tmp_path: Path) -> None:
    path, first = tmp_path / "a.pt", gatewise.LSTM(2, 3, cell="peephole")
    torch.save(first.state_dict(), path)
    x = torch.randn(4, 1, 2)
    torch.testing.assert_close(read_layer(path)(x), first(x))


def test_weights_that_fit_no_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(nn.GRU(2, 3).state_dict(), path)
    with pytest.raises(ArgumentError, match=r"a\.pt: 3 x H rows .* got none; a GRU is not a cell"):
        read_layer(path)
    torch.save(nn.LSTM(2, 3).state_dict(), path)
    with pytest.raises(ArgumentError, match=r"4 x H rows .* got rnn"):
        read_layer(path, cell="rnn")
    torch.save(nn.Linear(2, 3).state_dict(), path)
    with pytest.raises(ArgumentError, match=r"weight_ih_l0 among them, got weight, bias; save"):
        read_layer(path)
    torch.save({"epoch": 3, "model": {}}, path)
    with pytest.raises(ArgumentError, match="got no tensor; save them with"):
        read_layer(path)
    half = nn.LSTM(2, 3, num_layers=2).state_dict()
    del half["bias_hh_l1"]
    torch.save(half, path)
    with pytest.raises(ArgumentError, match=r"its weights fit no layer .*bias_hh_l1"):
        read_layer(path)


@pytest.mark.parametrize("file", ["a.pt", "a.safetensors"])
def test_files_that_hold_no_weights(file: str, tmp_path: Path) -> None:
    path = tmp_path / file
    for data in (b"", b"x" * 100, b"PK\x03\x04" + bytes(50)):
        path.write_bytes(data)
        with pytest.raises(ArgumentError, match="expected a state_dict"):
            read_layer(path)
    with pytest.raises(FileNotFoundError):
        read_layer(tmp_path / "missing.pt")


def test_no_code_is_run(tmp_path: Path) -> None:
    torch.save(nn.LSTM(2, 3), tmp_path / "whole.pt")
    with pytest.raises(ArgumentError, match="could run code"):
        read_layer(tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ArgumentError, match="expected a state_dict, got list"):
        read_layer(tmp_path / "list.pt")


# --- series -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rows", "names"),
    [
        ("1\n2\n-3e1\n", [[1], [2], [-30]], None),
        ("day, price\n1, 2.5\n\n3, 4\n", [[1, 2.5], [3, 4]], ["day", "price"]),
        ("\ufeffa,b\r\n1,2\r\n", [[1, 2]], ["a", "b"]),
        ('"1","2"\n', [[1, 2]], None),
        ("Q1 2024, 7 8 b\n1, 2\n", [[1, 2]], ["Q1 2024", "7 8 b"]),
        ("a title\n1, 2\n", [[1, 2]], None),
    ],
)
def test_csv(text: str, rows: list[list[float]], names: list[str] | None, tmp_path: Path) -> None:
    path = tmp_path / "a.CSV"
    path.write_text(text, encoding="utf-8", newline="")
    values, columns = read_series(path)
    assert values.tolist() == rows
    assert columns == names


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("", "no numbers in it"),
        ("price\n", "no numbers in it"),
        ("1,2\n3\n", "line 2: expected 2 columns, got 1"),
        ("a,b\n1,2\n3,x\n", r"line 3, column 2 \(b\): expected a finite number, got 'x'; fill it"),
        ("day,b\n1999-12-31,2\n", r"line 2, column 1 \(day\): .* '1999-12-31'; .* or the column"),
        ("a,b\nC,hPa\n1,2\n", r"line 2, column 1 \(a\): .* got 'C'; .*leave out the row or"),
        ("1,2\n\n3, \n", "line 3, column 2: expected a finite number, got ''; fill it in"),
        ("1\nnan\n", "line 2, column 1: expected a finite number, got 'nan'"),
        ("a,\n1,inf\n", "line 2, column 2: expected a finite number, got 'inf'"),
        ("1\n1e39\n", "line 2, column 1: expected a number that float32 holds, got '1e39'"),
        ("1\n1_000\n", "line 2, column 1: expected a finite number, got '1_000'"),
        ("1.5 2\n3 4\n", "line 1: expected numbers, got '1.5 2'; write commas between"),
        ("a b\n3 4\n", "line 2: expected numbers, got '3 4'; write commas between"),
        ("a;b\n1,5;2\n", "line 2: .* got '1,5;2'; write commas between numbers, and a point in"),
        ("1\t2\n3\t4\n", r"line 1: expected numbers, got '1\\t2'; write commas"),
        ("1;2;3\n", "line 1: expected numbers, got '1;2;3'; write commas"),
        ("\x00\xff", "no numbers in it|not a text file"),
    ],
)
def test_csv_refused(text: str, wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text)
    with pytest.raises(ArgumentError, match=wrong):
        read_series(path)


def test_a_series_that_no_browser_would_open(tmp_path: Path) -> None:
    layer, page = gatewise.LSTM(2, 4, 2, bidirectional=True, proj_size=3), tmp_path / "a.html"
    series = np.zeros((40, 2), np.float32)
    series_page(page, [layer], series[:20], "")
    short = page.stat().st_size
    series_page(page, [layer], series, "")
    each = (page.stat().st_size - short) / 20
    assert 0.9 < _characters(layer) / each < 1.1
    most = int(MOST_CHARACTERS / _characters(layer) / 2)
    with pytest.raises(ShapeError, match=f"T = {most:,} steps at most.* got {most + 1:,}"):
        series_page(page, [layer, layer], np.zeros((most + 1, 2), np.float32), "")


def test_a_csv_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in (b"\xff\xfe1\x000", "größe\n1\n".encode("latin-1"), "a\n1\n".encode("utf-16")):
        path.write_bytes(text)
        with pytest.raises(ArgumentError, match="not a text file in UTF-8; save it as that"):
            read_series(path)


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 1, 3)])
@pytest.mark.parametrize("dtype", ["f8", "i2", "?", ">f4"])
def test_npy(shape: tuple[int, ...], dtype: str, tmp_path: Path) -> None:
    array = (np.arange(np.prod(shape)).reshape(shape) % 5).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    series = read_series(tmp_path / "a.npy").values
    assert series.dtype == np.float32
    assert np.array_equal(series, array.reshape(5, -1).astype("f4"))


def test_one_sequence_of_a_batch(tmp_path: Path) -> None:
    array = np.random.default_rng(0).standard_normal((5, 3, 2)).astype("f4")
    np.save(tmp_path / "a.npy", array)
    assert np.array_equal(read_series(tmp_path / "a.npy", batch=2).values, array[:, 2])
    for wrong in (3, -1):
        with pytest.raises(ArgumentError, match=rf"--batch 0 to 2, got {wrong}"):
            read_series(tmp_path / "a.npy", batch=wrong)
    np.save(tmp_path / "a.npy", array[:, 0])
    with pytest.raises(ArgumentError, match=r"--batch 0, for it holds one sequence, got 1"):
        read_series(tmp_path / "a.npy", batch=1)


def test_npy_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for array, wrong in (
        (np.zeros((4, 2, 3)), r"2 sequences.*choose one with --batch 0 to 1"),
        (np.zeros((4, 2, 3, 1)), r"got shape \(4, 2, 3, 1\)"),
        (np.zeros((0, 3)), r"got shape \(0, 3\)"),
        (np.zeros((4, 0, 3)), r"got shape \(4, 0, 3\)"),
        (np.array(1.0), r"got shape \(\)"),
        (np.zeros(3, complex), "one array of real numbers"),
        (np.array(["a"]), "one array of real numbers"),
        (np.array([1, None]), "not an array of numbers"),
        (np.array([1e300]), r"float32\), got 1e\+300 at step 0, column 0"),
    ):
        np.save(path, array, allow_pickle=True)
        with pytest.raises(ArgumentError, match=wrong):
            read_series(path)
    path.write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(ArgumentError, match="not an array of numbers"):
        read_series(path)
    with pytest.raises(ArgumentError, match=r"expected a \.csv or a \.npy file"):
        read_series(tmp_path / "a.txt")


# --- pages --------------------------------------------------------------------


@pytest.fixture
def explored(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """The traces that were explored, and how."""
    seen: list[tuple[Any, dict[str, Any]]] = []
    write = see.write

    def explore(trace: Any, path: Path, *args: Any, **kwargs: Any) -> Any:
        seen.append((trace, dict(zip(("tokens", "title", "beside"), args, strict=True)) | kwargs))
        return write(trace, path, *args, **kwargs)

    monkeypatch.setattr(see, "write", explore)
    return seen


def test_a_series_page_shows_what_the_layer_does(tmp_path: Path, explored: list[Any]) -> None:
    theirs = nn.LSTM(1, 4)
    torch.save(theirs.state_dict(), tmp_path / "a.pt")
    series = np.sin(np.arange(9, dtype="f4"))[:, None]
    beside = gatewise.RNN(1, 4)
    layer = read_layer(tmp_path / "a.pt")
    page = series_page(tmp_path / "a.html", [layer, beside], series, "a sine")
    ((trace, how),) = explored
    torch.testing.assert_close(trace.output, theirs(torch.from_numpy(series)[:, None])[0])
    torch.testing.assert_close(how["beside"].output, beside(torch.from_numpy(series)[:, None])[0])
    assert how["tokens"] == pytest.approx(series[:, 0].tolist())
    assert torch.equal(trace.grad.h[0, 0, -1], torch.ones(1, 4))
    assert how["loss"] == (8, "the sum of the output at the last step, 8")
    text = page.read_text()
    assert "<title>a sine" in text
    assert text.rstrip().endswith("</html>")


def test_a_series_of_another_width(tmp_path: Path) -> None:
    series = np.zeros((5, 2), "f4")
    with pytest.raises(ShapeError, match="expected I = 3 columns, as the model reads, got 2"):
        series_page(tmp_path / "a.html", [gatewise.LSTM(3, 4)], series, "")
    with pytest.raises(ShapeError, match="I = 3 columns, as the model beside reads, got 2"):
        series_page(tmp_path / "a.html", [gatewise.LSTM(2, 4), gatewise.LSTM(3, 4)], series, "")
    assert list(tmp_path.iterdir()) == []


def test_a_text_page_shows_what_the_tagger_does(tmp_path: Path, explored: list[Any]) -> None:
    both, plain = Tagger("bilstm", 5, 4), Tagger("rnn", 5, 4)
    page = text_page(tmp_path / "a.html", both, "I'm Ær", beside=plain)
    ((trace, how),) = explored
    assert how["tokens"] == ["I'", "m", "Æ", "e", "r"]
    T = len(how["tokens"])
    assert trace.f.shape == (1, 2, T, 1, 5)
    assert how["beside"].h.shape == (1, 1, T, 1, 5)
    # The decision at the middle letter looks left through one direction, right through the other.
    reach = trace.grad.h[0, :, :, 0].abs().sum(-1)
    middle = T // 2
    assert how["loss"] == (2, "the decision whether a word ends after “Æ” at step 2")
    assert (reach[0, : middle + 1] > 0).all()
    assert (reach[0, middle + 1 :] == 0).all()
    assert (reach[1, middle:] > 0).all()
    assert (reach[1, :middle] == 0).all()
    assert "Bi-LSTM" in page.read_text()
    assert all(p.grad is None for p in both.parameters())


def test_a_long_text_is_cut(tmp_path: Path, explored: list[Any]) -> None:
    with pytest.warns(UserWarning, match=r"the page shows the first 2,000 of 8,000 letters"):
        text_page(tmp_path / "a.html", Tagger("rnn", 2, 2), "word" * MOST_LETTERS)
    assert len(explored[0][1]["tokens"]) == MOST_LETTERS
