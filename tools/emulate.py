"""Runs tests over the AVX-512 kernels on a machine that has no AVX-512.

A processor that has it is emulated (Bochs, by the package bochscpu-python). It sees the memory of
this process at the same addresses, so the kernels' own instructions run on the tests' own arrays:
the kernels named wide, which share AVX-512's layout, are replaced by calls into the emulator. One
thread, some ten million instructions a second.

Usage: emulate.py [ARGUMENTS OF PYTEST]     (default: the tests of the kernels, half a minute)
"""

from __future__ import annotations

import ctypes
import importlib
import mmap
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from gatewise import _core

ROOT = Path(__file__).parent.parent
CHOICE = "wide and not (threads or chunks or wide_layers)"
TESTS = ("tests/test_core.py", "tests/test_stream.py", "-k", CHOICE, "-q")
UNAVAILABLE = 77  # the exit code where there is nothing to emulate with

PAGE, REGION = 1 << 12, 1 << 30
PRESENT_WRITABLE, LARGE_PAGE = 0b11, 1 << 7
MXCSR = 0x9FC0  # as in threads.cpp: denormals are flushed to zero
WITH_AVX512, WITHOUT = 0xE7, 0x07  # XCR0: x87, SSE, AVX, and AVX-512's masks and registers
NO_SUCH_INSTRUCTION = 6  # the number of the exception
CALL = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)
# Functions of glibc 2.38 that the emulator's wheel asks for; older ones have them by other names.
NEWER_GLIBC = """
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
unsigned long long __isoc23_strtoull(const char* s, char** end, int base) {
  return strtoull(s, end, base);
}
int __isoc23_sscanf(const char* s, const char* format, ...) {
  va_list list;
  va_start(list, format);
  const int n = vsscanf(s, format, list);
  va_end(list);
  return n;
}
"""


class Unavailable(Exception):
    """What this machine lacks to emulate another."""


def emulator() -> Any:
    """The module bochscpu."""
    try:
        return importlib.import_module("bochscpu")
    except ModuleNotFoundError as missing:
        raise Unavailable(f"{missing} (Linux on x86-64: pip install bochscpu-python)") from missing
    except ImportError as wrong:
        if "__isoc23" not in str(wrong):
            raise
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "newer_glibc.so")
        command = [os.environ.get("CXX", "c++"), "-xc", "-", "-shared", "-fPIC", "-o", str(library)]
        subprocess.run(command, input=NEWER_GLIBC, text=True, check=True)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    return importlib.import_module("bochscpu")


class Processor:
    """An emulated processor without operating system, at work in this process.

    A virtual address is the same here and there. The emulator's physical addresses are few, so each
    gigabyte in use here is one large page there, numbered as it comes; region 0 has the page
    tables.
    """

    def __init__(self) -> None:
        self.bochs = emulator()
        self.cpu = importlib.import_module("bochscpu.cpu")
        self.memory = importlib.import_module("bochscpu.memory")
        self.registers = WITH_AVX512
        self.regions, self.tables = [0], 0
        self.top = self._table()
        self.below: dict[int, Any] = {}
        self.stack, self.halt = mmap.mmap(-1, 1 << 22), mmap.mmap(-1, PAGE)
        self.halt[0] = 0xF4  # hlt: where every call returns to
        self.session = self.bochs.Session()
        self.session.missing_page_handler = self._insert_page
        self.hook = self.bochs.Hook()
        self.hook.hlt = lambda session, _: session.stop()
        self.hook.exception = self._exception
        self.exception = -1

    def call(self, function: int, *arguments: int) -> int:
        """The result of a function of up to four integers that returns one."""
        self._map_memory()
        state = self.bochs.State()
        self.cpu.set_long_mode(state)
        state.cr0 = (state.cr0 & ~0b100) | 0b10  # floating point without an operating system's help
        state.cr4 |= 1 << 9 | 1 << 10 | 1 << 18  # SSE and its exceptions, XSAVE
        state.xcr0, state.mxcsr, state.cr3, state.rflags = self.registers, MXCSR, PAGE, 0b10
        state.cs = self._segment(0x10, 0xA09B)
        state.ss = state.ds = state.es = state.fs = state.gs = self._segment(0x18, 0xC093)
        state.rip = function
        state.rsp = _address(self.stack) + len(self.stack) - 64 - 8
        ctypes.c_uint64.from_address(state.rsp).value = _address(self.halt)
        for name, value in zip(("rdi", "rsi", "rdx", "rcx"), arguments, strict=False):
            setattr(state, name, value % (1 << 64))
        self.session.cpu.state = state
        self.exception = -1
        self.session.run([self.hook])
        if self.exception >= 0:
            raise RuntimeError(f"exception {self.exception} in the emulated processor")
        return int(self.session.cpu.state.rax)

    def _table(self) -> Any:
        """An empty page table: the next page of physical region 0."""
        self.tables += 1
        page = self.memory.allocate_host_page()
        self.memory.page_insert(self.tables * PAGE, page)
        return (ctypes.c_uint64 * 512).from_address(page)

    def _map_memory(self) -> None:
        """Every gigabyte of this process that has anything in it."""
        for line in Path("/proc/self/maps").read_text().splitlines():
            begin, end = (int(n, 16) for n in line.split()[0].split("-"))
            for region in range(begin // REGION, (end - 1) // REGION + 1):
                if begin >> 47 or region in self.regions:
                    continue
                upper, lower = divmod(region, 512)
                if upper not in self.below:
                    self.below[upper] = self._table()
                    self.top[upper] = self.tables * PAGE | PRESENT_WRITABLE
                physical = len(self.regions) * REGION
                self.below[upper][lower] = physical | PRESENT_WRITABLE | LARGE_PAGE
                self.regions.append(region)

    def _insert_page(self, physical: int) -> None:
        region, offset = divmod(physical // PAGE * PAGE, REGION)
        self.memory.page_insert(region * REGION + offset, self.regions[region] * REGION + offset)

    def _exception(self, session: Any, _: int, vector: int, __: int) -> None:
        self.exception = vector
        session.stop()

    def _segment(self, selector: int, attributes: int) -> Any:
        segment = self.bochs.Segment()
        segment.selector, segment.attr, segment.present = selector, attributes, True
        segment.base, segment.limit = 0, 0xFFFFFFFF
        return segment


def _address(of: mmap.mmap) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(of))


def tables() -> tuple[list[str], Any, Any]:
    """Names of the kernels, and the addresses in the tables of wide and of avx512."""
    table = getattr(ctypes.CDLL(_core.__file__), "gatewise_table", None)
    if table is None or "wide" not in _core.info()["isas"]:
        raise Unavailable("the core was built without GATEWISE_WIDE")
    table.restype, table.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    header = (ROOT / "core" / "kernel.h").read_text()
    names = 2 * re.findall(r"\(\*(\w+)\)", header.split("struct Kernels")[1].split("};")[0])
    after = 16  # the table's name and its vector_bytes
    wide, avx512 = (
        (ctypes.c_uint64 * len(names)).from_address(table(isa) + after)
        for isa in (b"wide", b"avx512")
    )
    return names, wide, avx512


def emulate() -> None:
    """From now on the kernels named wide are those of AVX-512, emulated."""
    names, wide, avx512 = tables()
    here = ctypes.addressof(wide)
    page = here // PAGE * PAGE
    libc = ctypes.CDLL(None)
    writable = mmap.PROT_READ | mmap.PROT_WRITE
    assert libc.mprotect(ctypes.c_void_p(page), here + len(names) * 8 - page, writable) == 0
    processor = Processor()
    processor.registers = WITHOUT  # the check can fail: such a processor refuses the same call
    room = (ctypes.c_float * 48)()
    at = [ctypes.addressof(room) + 64 * k for k in range(3)]
    with pytest.raises(RuntimeError, match=f"exception {NO_SUCH_INSTRUCTION} "):
        processor.call(avx512[names.index("activations")], *at, 16)
    processor.registers = WITH_AVX512
    for k, name in enumerate(names):
        if name == "stream_state":  # two pointers back, and no arithmetic; the layout is the same
            continue
        call = CALL(lambda *arguments, at=avx512[k]: processor.call(at, *arguments))
        KEPT.append(call)
        wide[k] = ctypes.cast(call, ctypes.c_void_p).value


KEPT: list[Any] = []


class OneThread:
    """The core, in one thread whatever is asked for (the last argument)."""

    def __getattr__(self, name: str) -> Any:
        function: Any = getattr(_core, name)
        if name in ("forward", "backward"):
            return lambda *arguments: function(*arguments[:-1], 1)
        return function


class Plugin:
    """Of pytest."""

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """The modules are imported: their core is now the emulated one."""
        emulate()
        for module in {item.module for item in session.items if isinstance(item, pytest.Function)}:
            module._core = OneThread()


def main(arguments: list[str]) -> int:
    os.chdir(ROOT)
    try:
        tables()
        emulator()
    except Unavailable as what:
        print(what)
        return UNAVAILABLE
    return int(pytest.main(arguments or list(TESTS), [Plugin()]))


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the emulator does not survive a clean exit
