// Weights kept as bfloat16 where the processor multiplies pairs of them (bf16.h), in the panels of
// halves.h. x is bfloat16, but h is not, and the product must not round it as that of a sequence
// does: so it is split in two, the bfloat16 nearest to it and the one nearest to what that leaves.
// Both are multiplied with a weight that is loaded once; their sum is h but for one part in 2^17.
#pragma once
#include "halves.h"

namespace gatewise::GATEWISE_ISA {

#if defined(GATEWISE_PAIRS)
// The second part of a row lies `rest` pairs behind the first; 0: there is none.
struct SplitRows {
  Lines<const Pair> first;
  i64 rest;
};

// The vector v of n numbers, split; zeros behind the last of them. What is beyond bfloat16 is
// infinite, and leaves nothing.
GATEWISE_INLINE void split(const float* from, int n, Bf16* first, Bf16* rest) {
  const FloatV v = load(from, n);
  const ShortV nearest = shortened(v);
  __builtin_memcpy(first, &nearest, sizeof nearest);
  if (!rest) return;
  const FloatV size = (FloatV)((IntV)v & 0x7fffffff), largest = set1(0x1.fep127f);
  store(rest, size <= largest ? v - widened(nearest) : set1(0.0f));
}

struct PairStretch {
  SplitRows rows;
  const Pair* panel;
  i64 length;  // of the rows, in pairs
  i64 next;    // from this panel to the next
};

// Where there is room, acc has chains of its own for what is not split, for first and second parts.
template <bool both, int rows, int vectors, int panels, int chains>
GATEWISE_INLINE void accumulate_pairs(const PairStretch& s, i64 row,
                                      FloatV (&acc)[chains][rows][panels * vectors]) {
  constexpr int L = LANES<float>;
  constexpr int of_first = both ? 1 % chains : 0, of_rest = 2 % chains;
  const Lines<const Pair> first = s.rows.first.from(row);
  const i64 rest = s.rows.rest, next = s.next;
  const Pair* b = s.panel;
  for (i64 k = 0; k < s.length; k++, b += vectors * L) {
    IntV x[rows], y[rows];
#pragma GCC unroll 4
    for (int r = 0; r < rows; r++) {
      x[r] = set1(first[r][k]);
      if constexpr (both) y[r] = set1(first[r][k + rest]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < panels * vectors; v++) {
      const IntV w = held(load(b + (v / vectors) * next + (v % vectors) * L));
#pragma GCC unroll 4
      for (int r = 0; r < rows; r++) {
        acc[of_first][r][v] = fma(x[r], w, acc[of_first][r][v]);
        if constexpr (both) acc[of_rest][r][v] = fma(y[r], w, acc[of_rest][r][v]);
      }
    }
  }
}

// tile() of tile.h; the rows begin at `row`.
template <int rows, int vectors, int panels>
__attribute__((noinline)) void tile_of_pairs(int stretches, const PairStretch* stretch, i64 row,
                                             Lines<float> out) {
  static_assert(panels == 1 || rows == 1);
  constexpr int L = LANES<float>, W = panels * vectors, chains = rows == 1 ? 3 : 1;
  FloatV acc[chains][rows][W] = {};
  for (int s = 0; s < stretches; s++)
    if (stretch[s].rows.rest)
      accumulate_pairs<true, rows, vectors, panels>(stretch[s], row, acc);
    else
      accumulate_pairs<false, rows, vectors, panels>(stretch[s], row, acc);
#pragma GCC unroll 4
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < W; v++) {
      if constexpr (chains == 3) acc[0][r][v] = acc[0][r][v] + (acc[1][r][v] + acc[2][r][v]);
      store(out[r + v / vectors] + (v % vectors) * L, acc[0][r][v]);
    }
}

using PairTile = void (*)(int, const PairStretch*, i64, Lines<float>);

template <int rows, int panels = 1>
inline constexpr PairTile PAIR_TILES[NV] = {
    tile_of_pairs<rows, 1, panels>, tile_of_pairs<rows, 2, panels>, tile_of_pairs<rows, 3, panels>,
    tile_of_pairs<rows, 4, panels>};

struct PairedPanels : HalvedPanels {
  static i64 room(i64 K) { return 2 * gatewise::GATEWISE_ISA::room<Pair>(K); }

  // exact: all numbers are bfloat16.
  static SplitRows rows(Lines<const float> from, i64 count, i64 K, bool exact, int32_t* at) {
    constexpr int L = LANES<float>;
    const i64 apart = room(K), rest = apart / 2;
    Pair* const first = reinterpret_cast<Pair*>(at);
    for (i64 r = 0; r < count; r++) {
      Bf16 *near = as_numbers(first + r * apart), *left = as_numbers(first + r * apart + rest);
      for (i64 k = 0; k < K; k += L)
        split(from[r] + k, int(smaller(L, K - k)), near + k, exact ? nullptr : left + k);
    }
    return {{first, apart}, exact ? 0 : rest};
  }
  static PairStretch stretch(const SplitRows& rows, const int32_t* panel, i64 length, i64 W) {
    return {rows, reinterpret_cast<const Pair*>(panel), lines(length), lines(length) * W};
  }
  template <int stretches>
  static void product(i64 rows, int panels, int vectors, const PairStretch (&given)[stretches],
                      Lines<float> out) {
    if (panels == 2) return PAIR_TILES<1, 2>[vectors - 1](stretches, given, 0, out);
    i64 first = 0;
    for (i64 left = ceil_div(rows, HALVES_ROWS); left > 0; left--) {
      const i64 count = ceil_div(rows - first, left);
      choose(count)[vectors - 1](stretches, given, first, out.from(first));
      first += count;
    }
  }

 private:
  static const PairTile* choose(i64 rows) {
    return rows == 4   ? PAIR_TILES<4>
           : rows == 3 ? PAIR_TILES<3>
           : rows == 2 ? PAIR_TILES<2>
                       : PAIR_TILES<1>;
  }
};
using BriefPanels = PairedPanels;
#else
using BriefPanels = HalvedPanels;
#endif

}  // namespace gatewise::GATEWISE_ISA
