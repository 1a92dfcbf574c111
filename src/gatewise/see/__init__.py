"""The explorer: one self-contained HTML page from a Trace.

page.py gathers the numbers and writes the page; page.html and style.css are the page; of the ES
modules data.js and cell.js hold the numbers and formulas (no drawing), colour.js the colours, main.js
the state and the keys, and each of the others draws one part.
"""

from gatewise.see.page import html, inline, write

__all__ = ["html", "inline", "write"]
