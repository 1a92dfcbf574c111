"""Runs tests over the AVX-512 kernels on a machine that has no AVX-512.

A processor that has it is emulated (Bochs, by the package bochscpu-python). It sees the memory of
this process at the same addresses, so the kernels' own instructions run on the tests' own arrays:
the kernels named wide, which share AVX-512's layout, are replaced by calls into the emulator. One
thread, some ten million instructions a second.

Usage: emulate.py avx512|avx512bf16 [ARGUMENTS OF PYTEST]     (default: the tests of these kernels)
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import mmap
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from gatewise import _core

ROOT = Path(__file__).parent.parent
CHOICE = "wide and not (threads or chunks or wide_layers or large_tape)"
SHORT = f"{CHOICE} and not (test_error or autocast or compiled)"
TESTS = {
    "avx512": ("tests/test_core.py", "tests/test_stream.py", "-k", CHOICE, "-q"),
    "avx512bf16": ("tests/test_bf16.py", "tests/test_bf16_training.py", "-k", SHORT, "-q"),
}
UNAVAILABLE = 77  # the exit code where there is nothing to emulate with

PAGE, REGION = 1 << 12, 1 << 30
PRESENT_WRITABLE, LARGE_PAGE = 0b11, 1 << 7
MXCSR = 0x9FC0  # as in threads.cpp: denormals are flushed to zero
WITH_AVX512, WITHOUT = 0xE7, 0x07  # XCR0: x87, SSE, AVX, and AVX-512's masks and registers
NO_SUCH_INSTRUCTION = 6  # the number of the exception
CALL = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * 4)
# What the emulator's library looks for before its own. Its default processor gives way to one with
# bfloat16; and two functions of glibc 2.38, which an older one has by other names.
BEFORE = """
#define _GNU_SOURCE
#include <dlfcn.h>
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
void* _Z23create_corei3_cnl_cpuidP8BX_CPU_C(void* cpu) {
  void* library = dlopen(LIBRARY, RTLD_LAZY | RTLD_NOLOAD);
  return ((void* (*)(void*))dlsym(library, "_Z28create_sapphire_rapids_cpuidP8BX_CPU_C"))(cpu);
}
"""


class Unavailable(Exception):
    """What this machine lacks to emulate another."""


def emulator() -> Any:
    """The module bochscpu."""
    if "bochscpu" in sys.modules:
        return sys.modules["bochscpu"]
    package = importlib.util.find_spec("bochscpu")
    if package is None or package.origin is None:
        raise Unavailable("no emulator (Linux on x86-64: pip install bochscpu-python)")
    library = next(Path(package.origin).parent.glob("_bochscpu*.so"))
    with tempfile.TemporaryDirectory() as folder:
        before = str(Path(folder, "before.so"))
        flags = [f'-DLIBRARY="{library}"', "-xc", "-", "-shared", "-fPIC", "-o", before, "-ldl"]
        subprocess.run([os.environ.get("CXX", "c++"), *flags], input=BEFORE, text=True, check=True)
        ctypes.CDLL(before, ctypes.RTLD_GLOBAL)
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


def tables(emulated: str) -> tuple[list[str], Any, Any]:
    """Names of the kernels, and their addresses in the tables of wide and of the emulated one."""
    table = getattr(ctypes.CDLL(_core.__file__), "gatewise_table", None)
    if table is None or "wide" not in _core.info()["isas"]:
        raise Unavailable("the core was built without GATEWISE_WIDE")
    table.restype, table.argtypes = ctypes.c_void_p, [ctypes.c_char_p]
    header = (ROOT / "core" / "kernel.h").read_text()
    names = 2 * re.findall(r"\(\*(\w+)\)", header.split("struct Kernels")[1].split("};")[0])
    after = 16  # the table's name and its vector_bytes
    wide, there = (
        (ctypes.c_uint64 * len(names)).from_address(table(isa) + after)
        for isa in (b"wide", emulated.encode())
    )
    return names, wide, there


def emulate(emulated: str) -> None:
    """From now on the kernels named wide are others, emulated."""
    names, wide, there = tables(emulated)
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
        processor.call(there[names.index("activations")], *at, 16)
    processor.registers = WITH_AVX512
    for k, name in enumerate(names):
        if name == "stream_state":  # two pointers back, and no arithmetic; the layout is the same
            continue
        call = CALL(lambda *arguments, at=there[k]: processor.call(at, *arguments))
        KEPT.append(call)
        wide[k] = ctypes.cast(call, ctypes.c_void_p).value


KEPT: list[Any] = []


class OneThread:
    """The core, in one thread whatever is asked for (the last argument)."""

    def __getattr__(self, name: str) -> Any:
        function: Any = getattr(_core, name)
        if name in ("forward", "backward"):
            return lambda *arguments, **named: function(*arguments[:-1], 1, **named)
        return function


class Plugin:
    """Of pytest."""

    def __init__(self, emulated: str) -> None:
        self.emulated = emulated

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """The modules are imported: their core is now the emulated one."""
        emulate(self.emulated)
        torch.set_num_threads(1)  # which is what the modules ask the core for
        for name, module in list(sys.modules.items()):  # those that others import, too
            if name.startswith("test_") and getattr(module, "_core", None) is _core:
                vars(module)["_core"] = OneThread()


def main(emulated: str, *arguments: str) -> int:
    os.chdir(ROOT)
    try:
        tables(emulated)
        emulator()
    except Unavailable as what:
        print(what)
        return UNAVAILABLE
    return int(pytest.main([*(arguments or TESTS[emulated])], [Plugin(emulated)]))


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # the emulator does not survive a clean exit
