// Compiled once per instruction set, with GATEWISE_ISA naming the namespace. No standard library:
// an inline function of it, compiled here with wide instructions, could be the copy the linker
// keeps for all.
#include "kernel.h"

#include "probe.h"
#include "route.h"
#include "stream.h"

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
constexpr Kernels<T> KERNELS = {
    .forward_bytes = forward_bytes_of_any<T>,
    .forward = forward_of_any<T>,
    .backward_bytes = backward_bytes_of_any<T>,
    .backward = backward_of_any<T>,
    .sums_bytes = sums_bytes_of_any<T>,
    .sums = sums_of_any<T>,
    .activations = activations<T>,
    .stream_bytes = stream_bytes<T>,
    .stream_pack = stream_pack<T>,
    .stream_state = stream_state<T>,
    .stream_step = stream_step<T>,
    .probe = probe<T>,
};

#if defined(GATEWISE_PAIRS)
constexpr i64 (*PROBE_PAIRS)(i64, float*) = probe<Pair>;
#else
constexpr i64 (*PROBE_PAIRS)(i64, float*) = nullptr;
#endif

#define GATEWISE_TEXT(name) #name
#define GATEWISE_NAME(name) GATEWISE_TEXT(name)

extern const Table table;
const Table table = {
    GATEWISE_NAME(GATEWISE_ISA), VECTOR_BYTES, MR, KERNELS<float>, KERNELS<double>, PROBE_PAIRS};

}  // namespace gatewise::GATEWISE_ISA
