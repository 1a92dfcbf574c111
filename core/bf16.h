// What a product multiplies, its operands: numbers as they are, or rounded to bfloat16, in pairs.
//
// One instruction multiplies two pairs and adds both products to a float. So where operands are
// pairs, the axis that a sum runs over is walked two numbers at a time: a row of x, h or gate
// gradients is bfloat16 in memory and is read as pairs as it lies, zeros at its end; a line of a
// panel (pack.h) holds the pairs of two lines, the even one in the low halves. Sums, gates and the
// cell state stay in float, as torch has it.
//
// Everything that multiplies is a template over the operand E of numbers T: E = T, or Pair for
// float.
#pragma once
#include "cell.h"
#include "groups.h"
#include "shape.h"
#include "simd.h"

namespace gatewise::GATEWISE_ISA {

enum class Pair : int32_t {};

template <>
struct VectorOf<Pair> {
  using V = IntV;
};

template <class E>
struct Operand {
  using Number = E;  // of a row in memory
  using Sum = E;
  static constexpr int numbers = 1;
};
template <>
struct Operand<Pair> {
  using Number = Bf16;
  using Sum = float;
  static constexpr int numbers = 2;
};
template <class E>
using Number = typename Operand<E>::Number;
template <class E>
using Sum = typename Operand<E>::Sum;
template <class E>
inline constexpr bool IS_PAIR = Operand<E>::numbers == 2;

// How many operands n numbers make; how many a row of them takes up, in whole vectors if rounded.
template <class E>
constexpr i64 operands(i64 n) {
  return ceil_div(n, Operand<E>::numbers);
}
template <class E>
constexpr i64 room(i64 n) {
  return IS_PAIR<E> ? operands<E>(round_up(n, LANES<Sum<E>>)) : n;
}
template <class E>
constexpr i64 operand_bytes(i64 n) {
  return operands<E>(n) * i64(sizeof(E));
}

template <class E>
Number<E>* as_numbers(E* row) {
  return reinterpret_cast<Number<E>*>(row);
}

// Where a direction of a call has its tape, if the numbers on it are K.
template <class K, class Direction>
GATEWISE_INLINE auto tape_of(const Direction& dir) {
  if constexpr (sizeof(K) == sizeof(Bf16))
    return dir.rounded_tape;
  else
    return dir.tape;
}

// What a call of these operands has for its tape.
template <class E, class Call>
GATEWISE_INLINE TapeOrder tape_order(const Call& call) {
  const int G = CELLS[call.cell].cell.gates();
  return {call.sequence, call.by_groups ? tape_groups(call.dims, G, sizeof(Number<E>)) : 1};
}

template <class T>
T widened(T v) {
  return v;
}

GATEWISE_INLINE FloatV widened(ShortV v) {
  return (FloatV)(__builtin_convertvector(v, BitsV) << 16);
}
GATEWISE_INLINE ShortV load_short(const Bf16* p) {
  ShortV v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
GATEWISE_INLINE FloatV load(const Bf16* p) { return widened(load_short(p)); }
GATEWISE_INLINE FloatV load(const Bf16* p, int n) { return widened(load_short(p, n)); }

#if defined(GATEWISE_PAIRS)
GATEWISE_INLINE IntV set1(Pair s) { return IntV{} + int32_t(s); }

GATEWISE_INLINE void store(Bf16* p, FloatV v) {
  const ShortV s = shortened(v);
  __builtin_memcpy(p, &s, sizeof s);
}
GATEWISE_INLINE void store(Bf16* p, FloatV v, int n) { store_short(p, shortened(v), n); }

GATEWISE_INLINE IntV paired(ShortV even, ShortV odd) {
  return (IntV)(__builtin_convertvector(even, BitsV) | __builtin_convertvector(odd, BitsV) << 16);
}
#endif

// A vector of operands of the lines line(0), and line(1) if they are pairs.
template <class E, class F>
GATEWISE_INLINE Vec<E> operand(F line) {
  if constexpr (IS_PAIR<E>)
    return paired(shortened(line(0)), shortened(line(1)));
  else
    return line(0);
}

// A row of n numbers, rounded or as they are; whole vectors, with zeros behind the last number.
template <class N>
GATEWISE_INLINE void round_row(const N* from, i64 n, Bf16* to) {
  constexpr i64 L = LANES<float>;
  i64 k = 0;
#pragma GCC unroll 4
  for (; k + L <= n; k += L) store(to + k, load(from + k));
  if (k < n) store(to + k, load(from + k, int(n - k)));
}

// The same, and nothing behind the last number.
template <class T>
GATEWISE_INLINE void round_numbers(const T* from, i64 n, Bf16* to) {
  constexpr i64 L = LANES<T>;
  i64 k = 0;
  for (; k + L <= n; k += L) store(to + k, load(from + k));
  if (k < n) store(to + k, load(from + k, int(n - k)), int(n - k));
}

template <class T>
void widen_row(const Bf16* from, i64 n, T* to) {
  for (i64 k = 0; k < n; k++) to[k] = T(widened(from[k]));
}

}  // namespace gatewise::GATEWISE_ISA
