"""Puts what `make demo` measured into the README, and the numbers it came from beside it.

Usage: readme.py [RESULTS]      (default: gatewise-demo/results.json)
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from gatewise.demo import table_markdown

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
KEPT = ROOT / "docs" / "demo.json"
PLACE = re.compile(r"(<!-- demo: begin[^\n]*-->\n).*?(<!-- demo: end -->)", re.DOTALL)


def with_table(readme: str, results: dict[str, object]) -> str:
    """``readme`` with the table of ``results`` between its two marks."""
    text, places = PLACE.subn(lambda m: f"{m[1]}{table_markdown(results)}{m[2]}", readme)
    if places != 1:
        raise SystemExit(f"README.md: {places} places for the demo's table, not 1")
    return text


def main(arguments: list[str]) -> None:
    source = Path(arguments[0]) if arguments else ROOT / "gatewise-demo" / "results.json"
    README.write_text(with_table(README.read_text(), json.loads(source.read_text())))
    shutil.copyfile(source, KEPT)
    print(f"README.md and {KEPT.relative_to(ROOT)} now show {source}")


if __name__ == "__main__":
    main(sys.argv[1:])
