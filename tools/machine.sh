#!/bin/sh
# Says in one line what this machine lacks to build gatewise, and fails. Silent when all is there.
# Usage: tools/machine.sh [python]      CXX chooses the compiler, as in CMake.
python=${1:-python3}
compiler=${CXX:-c++}

missing() {
    echo "missing: $1" >&2
    exit 1
}

command -v "$python" >/dev/null 2>&1 ||
    missing "Python 3.11 or newer, no '$python' here (Debian: apt install python3-venv python3-dev)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    missing "Python 3.11 or newer, '$python' is older (choose one with: make PYTHON=python3.12 ...)"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    missing "Python's venv module (Debian: apt install python3-venv)"
"$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
    missing "Python's C headers (Debian: apt install python3-dev)"
command -v "$compiler" >/dev/null 2>&1 ||
    missing "a C++20 compiler, no '$compiler' here (Debian: apt install g++; macOS: xcode-select --install)"
printf '#include <atomic>\n#include <concepts>\nstatic_assert(std::integral<int>);\n' |
    "$compiler" -std=c++20 -x c++ -fsyntax-only - 2>/dev/null ||
    missing "a C++20 compiler, '$compiler' does not compile C++20 (gcc 11, clang 14 or newer do)"
