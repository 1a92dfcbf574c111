"""Checks that each kernel object shares no code with the others.

The same source is compiled once per instruction set. If two objects define the same weak symbol
(an inline function of a header, a template of the standard library), the linker keeps one of them
for everybody, and it may be the one with AVX-512 in it. So an object defines what is in its own
namespace, gatewise::<instruction set>, and asks for nothing but the core, memcpy and its kin, and
the runtime of the compiler.

Usage: lint_symbols.py [OBJECT ...]     (default: the kernels of every build under build/)
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RUNTIME = re.compile(
    r"mem(cpy|set|move)"
    r"|__stack_chk_fail|_GLOBAL_OFFSET_TABLE_|__tls_get_addr"
    r"|__cxa_pure_virtual|_Unwind_Resume|__gxx_personality_v0|DW\.ref\.__gxx_personality_v0"
)


def isa_of(path: Path) -> str:
    """kernel_avx2.dir/core/kernel.cpp.o -> avx2."""
    for part in path.parts:
        if match := re.fullmatch(r"kernel_(\w+)\.dir", part):
            return match[1]
    raise SystemExit(f"{path} is not in a folder named kernel_<instruction set>.dir")


def faults(symbols: Iterable[tuple[str, str]], isa: str) -> list[str]:
    """What is wrong with an object of instruction set ``isa``.

    Args:
        symbols: (mangled name, type letter of nm) of each.
    """
    inside = re.compile(rf"_Z\w*?N[KVRO]*8gatewise{len(isa)}{isa}(?=\d|[A-Z])")
    found = []
    for name, kind in symbols:
        own = inside.match(name)
        if kind == "U" or kind in "wv":
            core = re.match(r"_ZN[KVRO]*8gatewise", name)
            if not (own or core or RUNTIME.fullmatch(name)):
                found.append(f"asks for {name}")
        elif kind.isupper() and not own:
            shared = (
                "weak: the linker may give it to every instruction set"
                if kind in "WV"
                else "global"
            )
            found.append(f"defines {name} ({shared})")
        elif kind == "u" and not own:
            found.append(f"defines {name} (unique in the whole process)")
    return found


def read(path: Path) -> list[tuple[str, str]]:
    """The symbols of an object file; macOS puts one more underscore before each name."""
    listing = subprocess.run(["nm", "-P", path], capture_output=True, text=True, check=True).stdout
    rows = (line.split() for line in listing.splitlines())
    return [(re.sub(r"^_(?=_Z|mem)", "", row[0]), row[1]) for row in rows if len(row) > 1]


def demangled(lines: list[str]) -> str:
    text = "\n".join(lines)
    try:
        return subprocess.run(
            ["c++filt"], input=text, capture_output=True, text=True, check=True
        ).stdout
    except OSError:
        return text


def main(arguments: list[str]) -> int:
    objects = [Path(a) for a in arguments]
    objects = objects or sorted(ROOT.glob("build/*/CMakeFiles/kernel_*.dir/**/*.o"))
    if not objects:
        print("no kernel objects under build/: run `make setup` first", file=sys.stderr)
        return 1
    wrong = [f"{path}: {fault}" for path in objects for fault in faults(read(path), isa_of(path))]
    if wrong:
        print(demangled(wrong), file=sys.stderr)
        return 1
    print(f"symbols: {len(objects)} kernel objects share nothing")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
