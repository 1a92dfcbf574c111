"""From a Trace to one HTML file: put the page around the numbers, write it whole.

The page's script and style are allowed by their hash alone and every other source is forbidden, so
it cannot reach the network, and nothing that a token or a title contains can run.
"""

from __future__ import annotations

import base64
import hashlib
import html as markup
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gatewise.files import whole
from gatewise.see.numbers import gather

if TYPE_CHECKING:
    from gatewise.trace import Trace

_HERE = Path(__file__).parent


def write(
    trace: Trace,
    path: str | os.PathLike[str],
    tokens: Sequence[Any] | None = None,
    title: str | None = None,
    beside: Trace | None = None,
    *,
    batch: int | Sequence[int] | None = None,
    loss: tuple[int, str] | None = None,
    columns: Sequence[str] | None = None,
) -> Path:
    """Write the explorer of a trace: one HTML file that opens from disk.

    The file appears whole or not at all.

    Args:
        trace: what a layer did on a sequence; with ``trace.grad``, its gradients are shown too.
        path: the file to write; its directory exists.
        tokens: what stands at each step, T of them: a string, words, or numbers (then the input is
            drawn as a series); for several sequences one such list each. None: the input is drawn.
        title: what the page is called; the text of the tokens if not given.
        beside: a second trace on the same sequence, such as a plain RNN's, to stand beside.
        batch: which sequences of the batch the page holds; by default the first ones, at most 8,
            while they take less than 32 MB.
        loss: whose gradients the trace holds, (step, name), as in ``(9, "the last output")``: the
            page says the name and marks the step.
        columns: what the I numbers of the input are called, as ``["temperature", "rain"]``, where
            the page would say x[0] and x[1].

    Returns:
        Path: the file.

    Raises:
        ArgumentError: tokens, batch, beside, loss or columns do not fit the trace.
        OSError: the directory is missing or cannot be written to.

    Warns:
        UserWarning: the page holds more than 100 MB.

    Example:
        >>> import tempfile, torch, gatewise
        >>> trace = gatewise.LSTM(3, 4, bidirectional=True).trace(torch.zeros(5, 1, 3))
        >>> write(trace, Path(tempfile.mkdtemp()) / "page.html", tokens="hello").name
        'page.html'
    """
    page = html(trace, tokens, title, beside, batch=batch, loss=loss, columns=columns)
    target = Path(path)
    with whole(target) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")
    return target


def html(
    trace: Trace,
    tokens: Sequence[Any] | None = None,
    title: str | None = None,
    beside: Trace | None = None,
    *,
    batch: int | Sequence[int] | None = None,
    loss: tuple[int, str] | None = None,
    columns: Sequence[str] | None = None,
) -> str:
    """The explorer as text; arguments, errors and warning as for :func:`write`."""
    meta, blocks = gather(trace, tokens, title, beside, batch=batch, loss=loss, columns=columns)
    return render(meta, blocks)


class Inline:
    """A rich representation: a notebook shows the page in a frame of its own."""

    def __init__(self, page: str, height: int) -> None:
        self.page = page
        self.height = height

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{markup.escape(self.page)}" title="gatewise explorer" loading="lazy" '
            f'style="width:100%;height:{self.height}px;border:0;border-radius:6px"></iframe>'
        )


def inline(
    trace: Trace,
    tokens: Sequence[Any] | None = None,
    title: str | None = None,
    beside: Trace | None = None,
    *,
    batch: int | Sequence[int] | None = None,
    loss: tuple[int, str] | None = None,
    columns: Sequence[str] | None = None,
    height: int = 860,
) -> Inline:
    """The explorer inside a notebook: the same page, shown as the value of a cell.

    Args:
        height: of the frame, in pixels; the others, errors and warning as for :func:`write`.

    Example:
        >>> import torch, gatewise
        >>> frame = inline(gatewise.LSTM(3, 4).trace(torch.zeros(5, 1, 3)), columns=["a", "b", "c"])
        >>> frame.height
        860
    """
    return Inline(
        html(trace, tokens, title, beside, batch=batch, loss=loss, columns=columns), height
    )


def render(meta: Mapping[str, Any], blocks: Sequence[bytes]) -> str:
    """The page around its numbers."""
    script, style = bundle("main.js"), (_HERE / "style.css").read_text("utf-8")
    policy = f"default-src 'none'; script-src '{_sha(script)}'; style-src '{_sha(style)}'"
    described = json.dumps(meta, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    parts = {
        "TITLE": markup.escape(str(meta["title"])),
        "POLICY": markup.escape(policy, quote=False),
        "STYLE": style,
        # inside a script element only "<" can end it or open a comment
        "META": described.replace("<", "\\u003c"),
        "BLOCKS": "\n".join(
            f'<script type="text/plain" id="b{n}">{base64.b64encode(block).decode()}</script>'
            for n, block in enumerate(blocks)
        ),
        "SCRIPT": script,
    }
    template = (_HERE / "page.html").read_text("utf-8")
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda found: parts[found[1]], template)


def _sha(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


_IMPORT = re.compile(r'^import \{([^}]+)\} from "\./([\w.]+)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:const|function\*?|async function|class) (\w+))", re.MULTILINE)


def bundle(entry: str) -> str:
    """ES modules as one script: each module a function that returns what it exports.

    Args:
        entry: the module to start from; it and what it imports are files beside this one.

    Raises:
        ValueError: a module imports or exports in a form that this does not read.
    """
    done: dict[str, str] = {}

    def visit(name: str) -> None:
        if name in done:
            return
        source = (_HERE / name).read_text("utf-8")
        for found in _IMPORT.finditer(source):
            visit(found[2])
        exports = ", ".join(_EXPORT.findall(source))
        source = _IMPORT.sub(lambda m: f'const {{{m[1]}}} = modules["{m[2]}"];\n', source)
        source = _EXPORT.sub("", source)
        if re.search(r"^(import|export)\b", source, re.MULTILINE) or "</script" in source:
            raise ValueError(
                f"{name}: write imports as {{ names }} from one file, exports in place"
            )
        done[name] = (
            f'modules["{name}"] = (() => {{\n{source.strip()}\nreturn {{ {exports} }};\n}})();\n'
        )

    visit(entry)
    return '"use strict";\nconst modules = {};\n' + "\n".join(done.values())
