// Weights kept as bfloat16, the upper half of a float, where a product waits for them and not for
// the multiply-add units. They are widened in the register, so products, sums and their order, and
// with them the bits, are those of float. A number of a panel holds two lines of pack.h:
//
//   panel j, one line a pair of k      [ i:L | f:L | g:L | o:L ]      low half k even, high half
//   k odd; zeros where there is no odd one
#pragma once
#include "pack.h"
#include "tile.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr int HALVES_ROWS = VECTOR_REGISTERS >= 32 ? 4 : 2;  // most rows of a tile

GATEWISE_INLINE IntV load_pairs(const int32_t* p) {
  IntV v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

struct HalvesStretch {
  Lines<const float> rows;
  const int32_t* panel;
  i64 length;  // of the rows, in numbers
  i64 next;    // from this panel to the next
};

// tile() of tile.h. The panel is streamed: a vector of it becomes two, for all rows, and is gone.
template <int rows, int vectors, int panels>
__attribute__((noinline)) void tile_of_halves(int stretches, const HalvesStretch* stretch,
                                              Lines<float> out) {
  static_assert(panels == 1 || rows == 1);
  constexpr int L = LANES<float>, W = panels * vectors;
  const IntV upper = IntV{} + int32_t(0xffff0000);
  FloatV acc[rows][W] = {};
  for (int s = 0; s < stretches; s++) {
    const auto [lines, panel, length, next] = stretch[s];
    const int32_t* b = panel;
    i64 k = 0;
    for (; k + 1 < length; k += 2, b += vectors * L) {
      FloatV even[rows], odd[rows];
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) {
        even[r] = set1(lines[r][k]);
        odd[r] = set1(lines[r][k + 1]);
      }
#pragma GCC unroll 8
      for (int v = 0; v < W; v++) {
        const IntV pairs = load_pairs(b + (v / vectors) * next + (v % vectors) * L);
        const FloatV low = (FloatV)(pairs << 16), high = (FloatV)(pairs & upper);
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) acc[r][v] = fma(odd[r], high, fma(even[r], low, acc[r][v]));
      }
    }
    if (k == length) continue;
#pragma GCC unroll 8
    for (int v = 0; v < W; v++) {
      const IntV pairs = load_pairs(b + (v / vectors) * next + (v % vectors) * L);
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++)
        acc[r][v] = fma(set1(lines[r][k]), (FloatV)(pairs << 16), acc[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < W; v++) store(out[r + v / vectors] + (v % vectors) * L, acc[r][v]);
}

using HalvesTile = void (*)(int, const HalvesStretch*, Lines<float>);

template <int rows, int panels = 1>
inline constexpr HalvesTile HALVES_TILES[NV] = {
    tile_of_halves<rows, 1, panels>, tile_of_halves<rows, 2, panels>,
    tile_of_halves<rows, 3, panels>, tile_of_halves<rows, 4, panels>};

// How a stream keeps its weights, and what it does with them: as they are, or as bfloat16 (pairs.h:
// or those where the processor multiplies pairs). rows(): what is multiplied with the panels, made
// of `count` rows of K numbers in room() numbers of memory for each of them.
template <class T>
struct WholePanels {
  using Number = T;
  static i64 lines(i64 K) { return K; }
  static i64 room(i64) { return 0; }
  static Lines<const T> rows(Lines<const T> from, i64, i64, bool, Number*) { return from; }
  static void pack(const T* weight, i64 K, const Units<T>& u, T* panels, i64 j) {
    pack_gates(weight, K, u, panels, j);
  }
  // Number n of line k of a panel of width W; lines come in order.
  static void set(T* panel, i64 W, i64 k, i64 n, T value) { panel[k * W + n] = value; }
  static Stretch<T> stretch(Lines<const T> rows, const T* panel, i64 length, i64 W) {
    return {rows, panel, length, 1, 0, length * W};
  }
  // Two panels at once are for one row.
  template <int stretches>
  static void product(i64 rows, int panels, int vectors, const Stretch<T> (&given)[stretches],
                      Lines<T> out) {
    panels == 2 ? product_of_two<T>(vectors, stretches, given, {}, out)
                : gatewise::GATEWISE_ISA::product<T>(rows, vectors, given, {}, out);
  }
};

struct HalvedPanels {
  using Number = int32_t;
  static i64 lines(i64 K) { return ceil_div(K, 2); }
  static i64 room(i64) { return 0; }
  static Lines<const float> rows(Lines<const float> from, i64, i64, bool, Number*) { return from; }

  static void pack(const float* weight, i64 K, const Units<float>& u, int32_t* panels, i64 j) {
    constexpr int L = LANES<float>;
    alignas(64) float block[L * NV * L];
    const IntV upper = IntV{} + int32_t(0xffff0000), lower = IntV{} + int32_t(0xffff);
    int32_t* line = panels + j * lines(K) * u.W;
    for (i64 first = 0; first < K; first += L) {
      const i64 end = smaller(K, first + L);
      pack_gate_lines(weight, K, first, end, u, block, j);
      for (i64 k = 0; k < end - first; k += 2, line += u.W)
        for (i64 n = 0; n < u.W; n += L) {
          const float* even = block + k * u.W + n;
          const IntV odd = first + k + 1 < K ? (IntV)load(even + u.W) : IntV{};
          const IntV pairs = (((IntV)load(even) >> 16) & lower) | (odd & upper);
          __builtin_memcpy(line + n, &pairs, sizeof pairs);
        }
    }
  }
  static void set(int32_t* panel, i64 W, i64 k, i64 n, float value) {
    const uint32_t bits = __builtin_bit_cast(uint32_t, value) >> 16;
    int32_t& pair = panel[k / 2 * W + n];
    pair = k % 2 ? int32_t(uint32_t(pair) | bits << 16) : int32_t(bits);
  }
  static HalvesStretch stretch(Lines<const float> rows, const int32_t* panel, i64 length, i64 W) {
    return {rows, panel, length, lines(length) * W};
  }
  template <int stretches>
  static void product(i64 rows, int panels, int vectors, const HalvesStretch (&given)[stretches],
                      Lines<float> out) {
    if (panels == 2) return HALVES_TILES<1, 2>[vectors - 1](stretches, given, out);
    HalvesStretch stretch[stretches];
    for (int s = 0; s < stretches; s++) stretch[s] = given[s];
    i64 first = 0;
    for (i64 left = ceil_div(rows, HALVES_ROWS); left > 0; left--) {
      const i64 count = ceil_div(rows - first, left);
      choose(count)[vectors - 1](stretches, stretch, out.from(first));
      for (int s = 0; s < stretches; s++) stretch[s].rows = stretch[s].rows.from(count);
      first += count;
    }
  }

 private:
  static const HalvesTile* choose(i64 rows) {
    if constexpr (HALVES_ROWS == 4) {
      if (rows == 4) return HALVES_TILES<4>;
      if (rows == 3) return HALVES_TILES<3>;
    }
    return rows == 2 ? HALVES_TILES<2> : HALVES_TILES<1>;
  }
};

template <class T>
void widen(const uint16_t* from, i64 n, T* to) {
  for (i64 k = 0; k < n; k++) to[k] = T(__builtin_bit_cast(float, uint32_t(from[k]) << 16));
}
template <class T>
void shorten(const T* from, i64 n, uint16_t* to) {
  for (i64 k = 0; k < n; k++) to[k] = uint16_t(rounded(float(from[k])) >> 16);
}
// Both: what bfloat16 leaves of it.
template <class T>
void shorten_and_widen(const T* from, i64 n, T* to) {
  for (i64 k = 0; k < n; k++)
    to[k] = T(__builtin_bit_cast(float, rounded(float(from[k])) & 0xffff0000));
}

}  // namespace gatewise::GATEWISE_ISA
