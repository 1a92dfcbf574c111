"""The explorer page for a person's own model and input: a text, or a series from a file."""

from __future__ import annotations

import csv
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import gatewise
from gatewise import see
from gatewise.corpus import ALPHABET, letters_of
from gatewise.errors import ArgumentError, GatewiseError, ShapeError
from gatewise.spec import CELLS
from gatewise.tagger import KINDS, Tagger, pack

if TYPE_CHECKING:
    from gatewise.lstm import LSTM, RNN
    from gatewise.trace import Trace

#: Rows of the weights for each hidden unit, to the cell that is meant when none is named.
_USUAL = {4: "lstm", 1: "rnn"}

#: The largest number of a series.
_LARGEST = float(np.finfo(np.float32).max)

#: Letters that a page shows: more take long to open, and nobody steps through them.
MOST_LETTERS = 2000

#: Characters of a page: Chromium's strings have half a billion, and the page is one of them.
MOST_CHARACTERS = 400_000_000


class Series(NamedTuple):
    """What a layer reads, a row a step."""

    values: NDArray[np.float32]  # (T, I), all finite
    columns: list[str] | None = None  # I names, where the file has them


def text_page(path: Path, model: Tagger, text: str, beside: Tagger | None = None) -> Path:
    """Show a tagger while it puts the spaces back into a text.

    The gradients on the page are those of the decision at the middle letter: it shows how far to
    each side the model looks for it. A page shows the first 2,000 letters.

    Args:
        path: the page.
        beside: a second tagger, on the same text.

    Raises:
        ArgumentError: no letter in the text.
        OSError: the page cannot be written.

    Warns:
        UserWarning: the text is longer.
    """
    letters, shown = letters_of(text)
    if len(letters) > MOST_LETTERS:
        warnings.warn(
            f"the page shows the first {MOST_LETTERS:,} of {len(letters):,} letters",
            UserWarning,
            stacklevel=2,
        )
    letters, shown = letters[:MOST_LETTERS], shown[:MOST_LETTERS]
    tokens = [sign or ALPHABET[k] for sign, k in zip(shown, letters, strict=True)]
    middle = len(letters) // 2
    traces = [_traced(tagger, letters, middle) for tagger in (model, beside) if tagger]
    title = f"{KINDS[model.kind]}: {shorten(model.restore(''.join(tokens)), 80)}"
    loss = (middle, f"the decision whether a word ends after “{tokens[middle]}” at step {middle}")
    second = traces[1] if beside else None
    return see.write(traces[0], path, tokens, title, second, loss=loss)


def _traced(tagger: Tagger, letters: NDArray[np.int64], middle: int) -> Trace:
    x = tagger.embed(pack(letters)).data.detach()[:, None]  # (T, 1, embedding_size)
    trace: Trace = tagger.rnn.trace(x)
    tagger.linear(trace.output)[middle].sum().backward()
    tagger.zero_grad()
    return trace


def series_page(
    path: Path,
    layers: Sequence[LSTM | RNN],
    series: NDArray[np.float32],
    title: str,
    columns: list[str] | None = None,
) -> Path:
    """Show a layer while it reads a series (T, I); the gradients are those of its last output.

    Args:
        layers: the layer, and another to stand beside it, if any.
        columns: what the I numbers of a step are called.

    Raises:
        ShapeError: the series has another width than the layer's input_size, or so many steps that
            no browser would open the page.
        OSError: the page cannot be written.
    """
    traces = []
    most = int(MOST_CHARACTERS / sum(map(_characters, layers)))
    if len(series) > most:
        raise ShapeError(
            f"input: expected T = {most:,} steps at most, for a page that a browser opens, "
            f"got {len(series):,}; give a part of them"
        )
    for each in layers:
        if series.shape[1] != each.input_size:
            which = "the model" if each is layers[0] else "the model beside"
            raise ShapeError(
                f"input: expected I = {each.input_size} columns, as {which} reads, "
                f"got {series.shape[1]}"
            )
        dtype = next(each.parameters()).dtype
        trace = each.trace(torch.from_numpy(series)[:, None].to(dtype))
        trace.output[-1].sum().backward()
        traces.append(trace)
    tokens = series[:, 0].tolist() if series.shape[1] == 1 else None
    last = len(series) - 1
    loss = (last, f"the sum of the output at the last step, {last}")
    second = traces[1] if len(traces) > 1 else None
    return see.write(traces[0], path, tokens, title, second, loss=loss, columns=columns)


def _characters(layer: LSTM | RNN) -> float:
    """What one step adds to a page: of every value and its gradient four bytes, in base64."""
    D, H = 1 + layer.bidirectional, layer.hidden_size
    values = layer.num_layers * D * (len(layer.cell.slots) * H + (layer.proj_size or H))
    return 2 * 4 * 4 / 3 * values


def read_series(path: Path, batch: int | None = None) -> Series:
    """A series from a .csv file, a row a step, or from a .npy array (T,), (T, I) or (T, B, I).

    A first row of a CSV without any number in it is taken as the names of the columns.

    Args:
        batch: which of B sequences; None where there is one.

    Returns:
        Series: (T, I) float32, all finite, and the names.

    Raises:
        OSError: it cannot be read.
        ArgumentError: it is of another kind, holds no series, or a value is missing.
    """
    if path.suffix.lower() == ".npy":
        series, columns = _from_npy(path), None
    elif path.suffix.lower() == ".csv":
        series, columns = _from_csv(path)
    else:
        raise ArgumentError(f"{path}: expected a .csv or a .npy file")
    if series.ndim not in (1, 2, 3) or 0 in series.shape:
        raise ArgumentError(
            f"{path}: expected a series (T,) or (T, I), or B of them (T, B, I), with no axis of 0, "
            f"got shape {series.shape}"
        )
    if series.ndim < 3:
        series = series.reshape(len(series), 1, -1)
    series = series[:, _which(path, series.shape[1], batch)]
    with np.errstate(over="ignore"):  # what is too large for float32 is refused below
        values = np.ascontiguousarray(series, np.float32)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        t, k = bad[0]
        raise ArgumentError(
            f"{path}: expected finite numbers (float32), got {series[t, k]} at step {t}, column {k}"
        )
    return Series(values, columns)


def _which(path: Path, B: int, batch: int | None) -> int:
    """Which of B sequences."""
    if batch is None and B > 1:
        raise ArgumentError(
            f"{path}: {B} sequences (T, B, I): choose one with --batch 0 to {B - 1}"
        )
    if batch is not None and not 0 <= batch < B:
        known = f"0 to {B - 1}" if B > 1 else "0, for it holds one sequence"
        raise ArgumentError(f"{path}: expected --batch {known}, got {batch}")
    return batch or 0


def _from_npy(path: Path) -> NDArray[np.generic]:
    with path.open("rb") as file:
        try:
            array = np.load(file, allow_pickle=False)
        except (ValueError, EOFError):
            raise ArgumentError(f"{path}: not an array of numbers that numpy.save wrote") from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biuf":
        raise ArgumentError(f"{path}: expected one array of real numbers")
    return array


def _from_csv(path: Path) -> tuple[NDArray[np.generic], list[str] | None]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [
                (n, row) for n, row in enumerate(csv.reader(file), 1) if any(map(str.strip, row))
            ]
    except UnicodeDecodeError:
        raise ArgumentError(f"{path}: not a text file in UTF-8; save it as that") from None
    except csv.Error:
        raise ArgumentError(f"{path}: not a text file of comma-separated numbers") from None
    names: list[str] = []
    if rows and not any(_number(cell) is not None or _parted(cell) for cell in rows[0][1]):
        names, rows = [name.strip() for name in rows[0][1]], rows[1:]
    if not rows:
        raise ArgumentError(f"{path}: no numbers in it")
    width = len(rows[0][1])
    values = []
    for n, row in rows:
        numbers = [_number(cell) for cell in row]
        if any(map(_parted, row)):
            raise ArgumentError(
                f"{path}, line {n}: expected numbers, got {','.join(row)[:40]!r}; write commas "
                "between numbers, and a point in them"
            )
        if len(row) != width:
            raise ArgumentError(f"{path}, line {n}: expected {width} columns, got {len(row)}")
        for k, number in enumerate(numbers):
            if number is None or not abs(number) <= _LARGEST:
                known = number is not None and math.isfinite(number)
                name = names[k][:20] if k < len(names) else ""
                raise ArgumentError(
                    f"{path}, line {n}, column {k + 1}{name and f' ({name})'}: expected "
                    f"{'a number that float32 holds' if known else 'a finite number'}, got "
                    f"{row[k].strip()[:20]!r}; fill it in, or leave out the row or the column"
                )
        values.append(numbers)
    return np.array(values, np.float64), names if len(names) == width else None


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)  # as Python writes a thousand: 1_000
    except ValueError:
        return None


def _parted(cell: str) -> bool:
    """Whether something else than a comma stands between numbers, as where that is in a number."""
    words = cell.split()
    spaced = len(words) > 1 and all(_number(word) is not None for word in words)
    return spaced or re.search(r"\d\s*[;\t|]\s*[-+.\d]", cell) is not None


def read_layer(path: Path, prefix: str | None = None, cell: str | None = None) -> LSTM | RNN:
    """An LSTM or RNN from a saved state_dict; its sizes come from the shapes of its weights.

    Args:
        path: a safetensors file, or what ``torch.save(module.state_dict(), path)`` wrote; also a
            checkpoint of dictionaries, of which one is the state_dict.
        prefix: which layer of a larger model, as in ``encoder.lstm``; in a checkpoint also under
            which key, ``model.encoder.lstm``.
        cell: a name in ``gatewise.CELLS``, where the weights leave it open.

    Raises:
        OSError: it cannot be read.
        ArgumentError: no recurrent layer in it, several and none named, weights that fit no cell.

    Warns:
        UserWarning: an RNN's, of tanh or of relu, and no cell is named: it is taken for tanh.
    """
    tensors, sign = _tensors(path), "weight_ih_l0"
    found = [name.removesuffix(sign).rstrip(".") for name in tensors if name.endswith(sign)]
    names = ", ".join(found)
    if not found:
        got = shorten(", ".join(tensors) or "no tensor", 200, placeholder=" ...")
        raise ArgumentError(
            f"{path}: expected the weights of an LSTM or RNN, {sign} among them, got {got}; "
            "save them with torch.save(module.state_dict(), path)"
        )
    if prefix is None and len(found) > 1:
        raise ArgumentError(f"{path}: several recurrent layers; choose one with --layer: {names}")
    chosen = found[0] if prefix is None else prefix.rstrip(".")
    if chosen not in found:
        known = f"--layer to be one of {names}" if names else "no --layer, for its one has no name"
        raise ArgumentError(f"{path}: expected {known}, got {prefix!r}")
    start = f"{chosen}." if chosen else ""
    pattern = re.compile(re.escape(start) + r"(weight|bias)_(ih|hh|hr|peep)_l\d+(_reverse)?")
    weights = {k.removeprefix(start): t for k, t in tensors.items() if pattern.fullmatch(k)}
    try:
        layer = _layer(weights, cell)
        layer.load_state_dict(weights)
    except GatewiseError as wrong:
        raise ArgumentError(f"{path}: {wrong}") from None
    except (KeyError, RuntimeError, IndexError) as wrong:
        reason = " ".join(str(wrong).split())
        raise ArgumentError(f"{path}: its weights fit no layer ({reason})") from None
    if cell is None and layer.cell.name == "rnn":
        warnings.warn(
            f"{path}: an RNN, taken for one of tanh, for weights do not say; if it is of relu, "
            "give --cell rnn_relu",
            UserWarning,
            stacklevel=2,
        )
    return layer.eval()


def _layer(weights: Mapping[str, Tensor], cell: str | None) -> LSTM | RNN:
    """An untrained layer of the shape that these weights have."""
    rows, input_size = weights["weight_ih_l0"].shape
    out = weights["weight_hh_l0"].shape[1]
    projected = "weight_hr_l0" in weights
    hidden_size = weights["weight_hr_l0"].shape[1] if projected else out
    gates = rows / hidden_size
    peephole = "peephole" if "weight_peep_l0" in weights else None
    name = cell or peephole or _USUAL.get(int(gates) if gates.is_integer() else 0)
    fit = [row for row, spec in CELLS.items() if len(spec.gates) == gates]
    if name not in fit:
        raise ArgumentError(
            f"{gates:g} x H rows of weights (H = {hidden_size}): expected --cell to be one of "
            f"{', '.join(fit) or 'none'}, got {cell or 'none'}; a GRU is not a cell of gatewise"
        )
    kind: dict[str, Any] = {
        "num_layers": sum(re.fullmatch(r"weight_ih_l\d+", key) is not None for key in weights),
        "bias": "bias_ih_l0" in weights,
        "bidirectional": "weight_ih_l0_reverse" in weights,
        "dtype": torch.promote_types(weights["weight_ih_l0"].dtype, torch.float32),
    }
    if name in ("rnn", "rnn_relu"):
        return gatewise.RNN(input_size, hidden_size, cell=name, **kind)
    return gatewise.LSTM(
        input_size, hidden_size, proj_size=out if projected else 0, cell=name, **kind
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    data = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            return dict(safetensors.torch.load(data))
        held = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception:  # what a file that is no state_dict makes of an unpickler is open-ended
        raise ArgumentError(
            f"{path}: expected a state_dict, from torch.save(module.state_dict(), path) or as "
            "safetensors; a whole pickled module is not loaded, for it could run code"
        ) from None
    if isinstance(held, nn.Module) or not isinstance(held, Mapping):
        raise ArgumentError(f"{path}: expected a state_dict, got {type(held).__name__}")
    return dict(_named(held))


def _named(held: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state_dict, or of a checkpoint that holds it beside other things."""
    for key, value in held.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _named(value, f"{prefix}{key}.")
