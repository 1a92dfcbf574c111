// The register tile: the one product of the project.
//
//   out[r][v] = in[r][v] + sum over k of a[r][k] * panel[k][v]      r < MR rows, v < NV vectors
//
// Every product (gates from x and h, d_h and d_x from the gate gradients, weight gradients,
// projection) is this loop over rows that may lie anywhere and a packed panel of NV vectors a k.
// Each output is one chain of multiply-adds in the order of k, so it has the same bits for any tile
// height and any split.
//
// Size: MR*NV accumulators + NV panel vectors + one broadcast must fit the registers. With 32
// registers 6 x 4 = 24 + 4 + 1; with 16, the panel is streamed and 3 broadcasts are held instead: 3
// x 4 = 12 + 3 + 1.
#pragma once
#include "shape.h"
#include "simd.h"

namespace gatewise::GATEWISE_ISA {

inline constexpr int MR = VECTOR_REGISTERS >= 32 ? 6 : 3;  // most rows of a tile
inline constexpr int NV = 4;                               // most vectors of a panel

// A stretch of the sum: `blocks` runs of `length` elements; from one run to the next each row moves
// on by `stride` elements, while the panel goes on without a gap.
template <class T>
struct Stretch {
  const T* const* rows;
  const T* panel;
  i64 blocks, length, stride;
};

template <class T, int rows, int vectors>
GATEWISE_INLINE void accumulate(const Stretch<T>& s, Vec<T> (&acc)[rows][vectors]) {
  constexpr int L = LANES<T>;
  const T* a[rows];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) a[r] = s.rows[r];
  const T* b = s.panel;
  for (i64 block = 0; block < s.blocks; block++) {
    for (i64 k = 0; k < s.length; k++) {
      if constexpr (VECTOR_REGISTERS >= 32) {
        Vec<T> w[vectors];
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) w[v] = load(b + v * L);
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
          const Vec<T> x = set1(a[r][k]);
#pragma GCC unroll 4
          for (int v = 0; v < vectors; v++) acc[r][v] = fma(x, w[v], acc[r][v]);
        }
      } else {
        Vec<T> x[rows];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) x[r] = set1(a[r][k]);
#pragma GCC unroll 4
        for (int v = 0; v < vectors; v++) {
          const Vec<T> w = load(b + v * L);
#pragma GCC unroll 8
          for (int r = 0; r < rows; r++) acc[r][v] = fma(x[r], w, acc[r][v]);
        }
      }
      b += vectors * L;
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) a[r] += s.stride;
  }
}

// in: null for zero. in and out may be the same rows; each holds NV vectors, contiguous.
template <class T, int rows, int vectors>
__attribute__((noinline)) void tile(int stretches, const Stretch<T>* stretch, const T* const* in,
                                    T* const* out) {
  constexpr int L = LANES<T>;
  Vec<T> acc[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) acc[r][v] = in ? load(in[r] + v * L) : set1(T(0));
  for (int s = 0; s < stretches; s++) accumulate<T, rows, vectors>(stretch[s], acc);
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
    for (int v = 0; v < vectors; v++) store(out[r] + v * L, acc[r][v]);
}

template <class T>
using Tile = void (*)(int, const Stretch<T>*, const T* const*, T* const*);

template <class T, int rows>
inline constexpr Tile<T> TILES_OF_HEIGHT[NV] = {tile<T, rows, 1>, tile<T, rows, 2>,
                                                tile<T, rows, 3>, tile<T, rows, 4>};

// The tile for a number of rows (1..MR) and a width in vectors (1..NV).
template <class T>
GATEWISE_INLINE Tile<T> choose_tile(i64 rows, int vectors) {
  switch (rows) {
    case 1:
      return TILES_OF_HEIGHT<T, 1>[vectors - 1];
    case 2:
      return TILES_OF_HEIGHT<T, 2>[vectors - 1];
#if defined(__AVX512F__) || defined(__aarch64__)
    case 3:
      return TILES_OF_HEIGHT<T, 3>[vectors - 1];
    case 4:
      return TILES_OF_HEIGHT<T, 4>[vectors - 1];
    case 5:
      return TILES_OF_HEIGHT<T, 5>[vectors - 1];
#endif
    default:
      return TILES_OF_HEIGHT<T, MR>[vectors - 1];
  }
}

// Calls f(first, count) over `rows` rows in balanced groups of at most MR: 16 -> 6 5 5.
template <class F>
GATEWISE_INLINE void for_tiles(i64 rows, F f) {
  i64 first = 0;
  for (i64 left = ceil_div(rows, MR); left > 0; left--) {
    const i64 count = ceil_div(rows - first, left);
    f(first, count);
    first += count;
  }
}

}  // namespace gatewise::GATEWISE_ISA
