// Sizes, and views with named axes.
//
//   T steps   B batch   I input size   H hidden size   P output size (proj_size, else H)
//   L layers  D directions   N tokens (T*B, or the sum of the lengths)
//   G computed gates (4 in an LSTM, 1 in a plain RNN)   S slots of the tape
//   x input   h hidden state   c cell state   i f g o gates in torch's order   z pre-activation
//   d_ prefix: a gradient
//   W_ih (G*H, I)   W_hh (G*H, P)   W_hr (P, H)   b_ih b_hh (G*H)   peep (3, H): i f o
#pragma once
#include <cstddef>
#include <cstdint>

namespace gatewise {

using i64 = int64_t;

enum class Bf16 : uint16_t {};  // bfloat16: the upper half of a float
constexpr float widened(Bf16 v) { return __builtin_bit_cast(float, uint32_t(v) << 16); }
// In the upper half the bfloat16 nearest to v, of two the even one; a NaN stays one.
constexpr uint32_t rounded(float v) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, v);
  return v == v ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
}

constexpr i64 ceil_div(i64 a, i64 b) { return (a + b - 1) / b; }
constexpr i64 round_up(i64 a, i64 b) { return ceil_div(a, b) * b; }
constexpr i64 smaller(i64 a, i64 b) { return a < b ? a : b; }
constexpr i64 larger(i64 a, i64 b) { return a > b ? a : b; }

struct Dims {
  i64 T, B, I, H, P, D, N;
};

// How many sequences take part in each step, the longest first, and the tokens before step t: of
// all rows, and of those of the first group (groups.h). All null where all lengths are T; a token
// is then t*B + b.
struct Sequence {
  const i64* batch_sizes;
  const i64* offsets;  // [T+1]
  i64 T, B;
  i64 first_rows = B / 2;              // of the first group
  const i64* first_offsets = nullptr;  // [T+1]
  const i64* row_offsets = nullptr;    // [B+1]: tokens of the rows before row b, of all steps
  i64 active(i64 t) const { return t < 0 || t >= T ? 0 : batch_sizes ? batch_sizes[t] : B; }
  i64 token(i64 t) const { return offsets ? offsets[t] : t * B; }
  // The same of group g of two.
  i64 token_of(i64 g, i64 t) const {
    const i64 first = first_offsets ? first_offsets[t] : t * first_rows;
    return g ? token(t) - first : first;
  }
};

// Rows at equal distances: row r begins at data + r * stride. Distances in elements.
template <class T>
struct Lines {
  T* data = nullptr;
  i64 stride = 0;
  T* operator[](i64 r) const { return data + r * stride; }
  Lines from(i64 r) const { return data ? Lines{data + r * stride, stride} : *this; }
  Lines right(i64 n) const { return data ? Lines{data + n, stride} : *this; }
  operator Lines<const T>() const { return {data, stride}; }
};

// Vectors (one a token) in the caller's array, contiguous along the last axis. Distances in
// elements.
template <class T>
struct View {
  T* data;
  i64 step;  // from step t to t+1; unused where lengths differ (then tokens follow each other)
  i64 row;   // from sequence b to b+1
  T* at(const Sequence& s, i64 t, i64 b) const {
    return data + (s.offsets ? s.offsets[t] * row : t * step) + b * row;
  }
};

// The k-th of `count` nearly equal shares of n things.
struct Share {
  i64 begin, end;
};
constexpr Share share(i64 n, i64 k, i64 count) { return {n * k / count, n * (k + 1) / count}; }

}  // namespace gatewise
