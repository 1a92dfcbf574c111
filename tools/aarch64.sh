#!/bin/sh
# Compiles the kernels for 64-bit ARM and checks them there: natively, or emulated by qemu.
# Usage: tools/aarch64.sh      (Debian: apt install g++-aarch64-linux-gnu qemu-user-static)
set -eu
cd "$(dirname "$0")/.."
compiler=aarch64-linux-gnu-g++
run=qemu-aarch64-static
if [ "$(uname -m)" = aarch64 ]; then
    compiler=${CXX:-c++}
    run=env
fi
for tool in "$compiler" "$run"; do
    command -v "$tool" >/dev/null 2>&1 || {
        echo "missing: $tool (Debian: apt install g++-aarch64-linux-gnu qemu-user-static)" >&2
        exit 1
    }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
compile() {
    "$compiler" -std=c++20 -Wall -Wextra -Icore -DGATEWISE_ISA=base "$@"
}
# As in CMakeLists.txt.
compile -O3 -ffp-contract=off -fno-exceptions -fno-rtti -fno-math-errno -Wno-maybe-uninitialized \
    -c core/kernel.cpp -o "$folder/kernel.o"
compile -O1 -static -pthread tests/core/kernel_test.cpp core/threads.cpp "$folder/kernel.o" -o "$folder/check"
"$run" "$folder/check"
