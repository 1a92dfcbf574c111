// Compiled once per instruction set, with GATEWISE_ISA naming the namespace. No standard library:
// an inline function of it, compiled here with wide instructions, could be the copy the linker
// keeps for all.
#include "kernel.h"

#include "backward.h"
#include "forward.h"
#include "probe.h"

namespace gatewise::GATEWISE_ISA {

template <class T>
void activations(const T* x, T* s, T* t, i64 n) {
  for (i64 k = 0; k < n; k += LANES<T>) {
    const int lanes = int(smaller(LANES<T>, n - k));
    const Vec<T> v = load(x + k, lanes);
    store(s + k, sigmoid<T>(v), lanes);
    store(t + k, tanh<T>(v), lanes);
  }
}

template <class T>
constexpr Kernels<T> KERNELS = {forward_bytes<T>, forward<T>,     backward_bytes<T>,
                                backward<T>,      activations<T>, probe<T>};

#define GATEWISE_TEXT(name) #name
#define GATEWISE_NAME(name) GATEWISE_TEXT(name)

extern const Table table;
const Table table = {GATEWISE_NAME(GATEWISE_ISA), VECTOR_BYTES, KERNELS<float>, KERNELS<double>};

}  // namespace gatewise::GATEWISE_ISA
