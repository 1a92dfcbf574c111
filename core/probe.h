// The peak of this instruction set, for the bench: multiply-adds and nothing else. Enough
// independent chains to cover their latency (4 cycles, two a cycle), few enough for 16 registers.
// Of numbers, or of pairs of bfloat16.
#pragma once
#include "bf16.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr int CHAINS = 12;

// Runs `rounds` rounds of all chains; returns the floating-point operations done. The results go to
// sink (CHAINS vectors at most 64 bytes each), so that none can be left out.
template <class E>
i64 probe(i64 rounds, Sum<E>* sink) {
  using T = Sum<E>;
  Vec<T> chain[CHAINS];
  const Vec<E> a = set1(E(sink[0])), b = set1(E(sink[1]));  // not known to the compiler
#pragma GCC unroll 12
  for (int k = 0; k < CHAINS; k++) chain[k] = set1(T(k));
  for (i64 r = 0; r < rounds; r++)
#pragma GCC unroll 12
    for (int k = 0; k < CHAINS; k++)
      if constexpr (IS_PAIR<E>)
        chain[k] = fma(a, b, chain[k]);
      else
        chain[k] = fma(chain[k], a, b);
#pragma GCC unroll 12
  for (int k = 0; k < CHAINS; k++) store(sink + k * LANES<T>, chain[k]);
  return rounds * CHAINS * LANES<T> * 2 * Operand<E>::numbers;
}

}  // namespace gatewise::GATEWISE_ISA
