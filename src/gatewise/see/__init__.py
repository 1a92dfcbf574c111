"""The explorer: one self-contained HTML page from a Trace.

numbers.py gathers the numbers, page.py puts page.html, style.css and the ES modules around them. Of
the modules, data.js and cell.js hold what is computed and said (no drawing), colour.js and paint.js
colours and canvas, main.js the state and the keys; each of the others draws one part.
"""

from gatewise.see.page import html, inline, write

__all__ = ["html", "inline", "write"]
