// The register tile: the one product of the project.
//
//   out[r][v] = in[r][v] + sum over k of a[r][k] * panel[k][v]      r < MR rows, v < NV vectors
//
// Every product (gates from x and h, d_h and d_x from the gate gradients, weight gradients,
// projection) is this loop over rows at equal distances and a packed panel of NV vectors a k.
// Each output is one chain of multiply-adds in the order of k, so it has the same bits for any tile
// height and any split. The operands a and panel are numbers, or pairs of them (bf16.h).
//
// Size: MR*NV accumulators + NV panel vectors + one broadcast must fit the registers. With 32
// registers 6 x 4 = 24 + 4 + 1; with 16, the panel is streamed and 3 broadcasts are held instead: 3
// x 4 = 12 + 3 + 1.
#pragma once
#include "bf16.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr int MR = VECTOR_REGISTERS >= 32 ? 6 : 3;  // most rows of a tile
inline constexpr int NV = 4;                               // most vectors of a panel

// What will be used next and is still far away. While tiles run, each of their rows fetches `pace`
// bytes from there on into the second-level cache with each element of the sum. (Fetched all at
// once, it would hold up the tile's own loads; the processor's own guess reaches too short.)
struct Ahead {
  uintptr_t from = 0;
  i64 pace = 0;
  // `bytes` in the course of so many rows, of which there may be none, and elements.
  static Ahead of(const void* from, i64 bytes, i64 rows, i64 elements) {
    return {uintptr_t(from), ceil_div(bytes, larger(1, rows * elements))};
  }
  // Where rows before these have fetched their part.
  Ahead behind(i64 rows, i64 elements) const {
    return {from + uintptr_t(rows * elements * pace), pace};
  }
};

// A stretch of the sum: `blocks` runs of `length` elements; from one run to the next each row moves
// on by `jump` elements, while the panel goes on without a gap. The panel after this one is `next`
// further on.
template <class E>
struct Stretch {
  Lines<const E> rows;
  const E* panel;
  i64 length;
  i64 blocks = 1, jump = 0, next = 0;
  Ahead ahead{};
};

template <class E, int rows, int vectors, int panels, bool ahead_too>
GATEWISE_INLINE void accumulate(const Stretch<E>& s, i64 row,
                                Vec<Sum<E>> (&acc)[rows][panels * vectors]) {
  constexpr int L = LANES<E>;
  const i64 apart = s.rows.stride;
  const E *first = s.rows[row], *b = s.panel;
  const uintptr_t pace = uintptr_t(rows * s.ahead.pace);
  uintptr_t ahead = s.ahead.behind(row, s.blocks * s.length).from;
  for (i64 block = 0; block < s.blocks; block++, first += s.jump) {
    const E* const end = first + s.length;
    // Unrolled, with one moving pointer a side: where another tenant shares the core, instructions
    // are short and not multiply-adds.
#pragma GCC unroll 4
    for (const E* a = first; a != end; a++, b += vectors * L) {
      if constexpr (ahead_too && rows > 1) {  // of one row, the loads are as fast as the cache
        fetch(ahead);
        ahead += pace;
      }
      if constexpr (rows == 1) {
        const Vec<E> x = set1(*a);
#pragma GCC unroll 8
        for (int v = 0; v < panels * vectors; v++)
          acc[0][v] = fma(x, load(b + (v / vectors) * s.next + (v % vectors) * L), acc[0][v]);
      } else if constexpr (VECTOR_REGISTERS >= 32) {
        Vec<E> w[vectors];
#pragma GCC unroll 8
        for (int v = 0; v < vectors; v++) w[v] = held(load(b + v * L));
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
          const Vec<E> x = held(set1(a[r * apart]));
#pragma GCC unroll 8
          for (int v = 0; v < vectors; v++) acc[r][v] = fma(x, w[v], acc[r][v]);
        }
      } else {
        Vec<E> x[rows];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) x[r] = held(set1(a[r * apart]));
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
          const Vec<E> w = held(load(b + v * L));
#pragma GCC unroll 8
          for (int r = 0; r < rows; r++) acc[r][v] = fma(x[r], w, acc[r][v]);
        }
      }
    }
  }
}

// in: data null for zero. Each line holds the vectors of a panel; in and out may be the same lines.
// The rows of the stretches begin at `row`. One row may take two panels at once, to have enough
// chains in flight: line p is then panel p.
template <class E, int rows, int vectors, int panels = 1>
__attribute__((noinline)) void tile(int stretches, const Stretch<E>* stretch, i64 row,
                                    Lines<const Sum<E>> in, Lines<Sum<E>> out) {
  using T = Sum<E>;
  static_assert(panels == 1 || rows == 1);
  constexpr int L = LANES<T>, W = panels * vectors;
  Vec<T> acc[rows][W];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < W; v++)
      acc[r][v] = in.data ? load(in[r + v / vectors] + (v % vectors) * L) : set1(T(0));
  for (int s = 0; s < stretches; s++)
    if (stretch[s].ahead.pace)
      accumulate<E, rows, vectors, panels, true>(stretch[s], row, acc);
    else  // a loop of its own: what fetches nothing is no instruction longer
      accumulate<E, rows, vectors, panels, false>(stretch[s], row, acc);
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < W; v++) store(out[r + v / vectors] + (v % vectors) * L, acc[r][v]);
}

template <class E>
using Tile = void (*)(int, const Stretch<E>*, i64, Lines<const Sum<E>>, Lines<Sum<E>>);

template <class E, int rows, int panels = 1>
inline constexpr Tile<E> TILES[NV] = {tile<E, rows, 1, panels>, tile<E, rows, 2, panels>,
                                      tile<E, rows, 3, panels>, tile<E, rows, 4, panels>};

// The tile for a number of rows (1..MR) and a width in vectors (1..NV).
template <class E>
GATEWISE_INLINE Tile<E> choose_tile(i64 rows, int vectors) {
  if (rows == MR) return TILES<E, MR>[vectors - 1];
  if constexpr (MR > 3) {
    if (rows == 5) return TILES<E, 5>[vectors - 1];
    if (rows == 4) return TILES<E, 4>[vectors - 1];
    if (rows == 3) return TILES<E, 3>[vectors - 1];
  }
  return rows == 2 ? TILES<E, 2>[vectors - 1] : TILES<E, 1>[vectors - 1];
}

// The product for any number of rows, in balanced tiles of at most MR: 16 -> 6 5 5. The stretches
// are used where they lie: a copy would wait for all stores before it, those of the cell among
// them.
template <class E>
GATEWISE_INLINE void product(i64 rows, int vectors, int stretches, const Stretch<E>* stretch,
                             Lines<const Sum<E>> in, Lines<Sum<E>> out) {
  i64 first = 0;
  for (i64 left = ceil_div(rows, MR); left > 0; left--) {
    const i64 count = ceil_div(rows - first, left);
    choose_tile<E>(count, vectors)(stretches, stretch, first, in.from(first), out.from(first));
    first += count;
  }
}

template <class E, int stretches>
GATEWISE_INLINE void product(i64 rows, int vectors, const Stretch<E> (&stretch)[stretches],
                             Lines<const Sum<E>> in, Lines<Sum<E>> out) {
  product<E>(rows, vectors, stretches, stretch, in, out);
}

// One row and two panels of the same width; out[0] and out[1] are the panels' results.
template <class E>
GATEWISE_INLINE void product_of_two(int vectors, int stretches, const Stretch<E>* stretch,
                                    Lines<const Sum<E>> in, Lines<Sum<E>> out) {
  TILES<E, 1, 2>[vectors - 1](stretches, stretch, 0, in, out);
}

}  // namespace gatewise::GATEWISE_ISA
