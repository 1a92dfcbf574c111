"""Prints how many lines the core and the package have: a number to keep an eye on."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = {
    "core": ("core", (".h", ".cpp")),
    "src": ("src/gatewise", (".py", ".js", ".css", ".html")),
}


def lines(folder: Path, suffixes: tuple[str, ...]) -> int:
    """Lines of the files under ``folder`` with one of ``suffixes``."""
    files = (path for path in folder.rglob("*") if path.suffix in suffixes)
    return sum(len(path.read_text().splitlines()) for path in files)


def main() -> None:
    counts = {name: lines(ROOT / folder, kinds) for name, (folder, kinds) in PARTS.items()}
    parts = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"lines: {parts}, together {sum(counts.values())}")


if __name__ == "__main__":
    main()
