// Which kernels this machine can run, and which one is used.
#pragma once
#include <string>
#include <vector>

#include "kernel.h"

namespace gatewise {

// Best first. Decided once, from what the processor and the operating system support.
const std::vector<const Table*>& supported();

// The table in use: the best one, or the one GATEWISE_ISA names. Throws std::invalid_argument,
// listing the valid names, if GATEWISE_ISA or `name` is unknown or unsupported here.
const Table& active();
void select(const std::string& name);

// The kernels in use multiply pairs of bfloat16.
inline bool has_pairs() { return active().probe_pairs; }

// The active kernels of a number type.
template <class T>
const Kernels<T>& kernels() {
  if constexpr (sizeof(T) == 4)
    return active().f32;
  else
    return active().f64;
}

}  // namespace gatewise
