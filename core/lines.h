// Products with the lines of a matrix b as they lie, out = a b, for few tokens (few.h):
//
//   lines_product    few rows: nothing is packed; the tile is that of tile.h but for its panel,
//                    whose lines are those of b
//   long_product     the same where b is large
//   block_product    many rows: some lines of a panel are packed, used by all rows while they are
//                    in the first-level cache, and given up for the next
//
// Each result is one chain of multiply-adds in the order of the lines.
#pragma once
#include "tile.h"

namespace gatewise::GATEWISE_ISA {

// A matrix as it lies, or turned: number (r, k) stands at data + r * row + k * column.
template <class T>
struct Matrix {
  const T* data;
  i64 row, column;
  const T* at(i64 r, i64 k) const { return data + r * row + k * column; }
};

// out[r][n] = sum over k of a(r, k) * b[k][n], for n in `last` lanes of the last of the vectors; or
// that much more (`add`).
template <class T, int rows, int vectors, bool whole>
GATEWISE_INLINE void sum_of_lines(Matrix<T> a, i64 length, Lines<const T> b, int last, Lines<T> out,
                                  bool add) {
  constexpr int L = LANES<T>;
  Vec<T> acc[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
      const T* from = out[r] + v * L;
      acc[r][v] = !add ? set1(T(0)) : whole || v + 1 < vectors ? load(from) : load(from, last);
    }
  for (i64 k = 0; k < length; k++) {
    const T* line = b[k];
    Vec<T> x[rows];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) x[r] = set1(*a.at(r, k));
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++) {
      const Vec<T> w = whole || v + 1 < vectors ? load(line + v * L) : load(line + v * L, last);
#pragma GCC unroll 8
      for (int r = 0; r < rows; r++) acc[r][v] = fma(x[r], w, acc[r][v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
    for (int v = 0; v < vectors; v++)
      whole || v + 1 < vectors ? store(out[r] + v * L, acc[r][v])
                               : store(out[r] + v * L, acc[r][v], last);
}

template <class T, int rows, int vectors>
__attribute__((noinline)) void lines_tile(Matrix<T> a, i64 length, Lines<const T> b, int last,
                                          Lines<T> out, bool add) {
  last == LANES<T> ? sum_of_lines<T, rows, vectors, true>(a, length, b, last, out, add)
                   : sum_of_lines<T, rows, vectors, false>(a, length, b, last, out, add);
}

template <class T>
using LinesTile = void (*)(Matrix<T>, i64, Lines<const T>, int, Lines<T>, bool);

template <class T, int rows>
inline constexpr LinesTile<T> LINES_OF[NV] = {lines_tile<T, rows, 1>, lines_tile<T, rows, 2>,
                                              lines_tile<T, rows, 3>, lines_tile<T, rows, 4>};

// [rows - 1][vectors - 1]
template <class T>
inline constexpr const LinesTile<T>* LINES_TILES[6] = {LINES_OF<T, 1>,
                                                       LINES_OF<T, 2>,
                                                       LINES_OF<T, 3>,
                                                       LINES_OF<T, smaller(4, MR)>,
                                                       LINES_OF<T, smaller(5, MR)>,
                                                       LINES_OF<T, MR>};

// out (rows, width) = a (rows, length) b (length, width), or more by that. The results are written
// row by row, as they lie.
template <class T>
void lines_product(i64 rows, i64 width, Matrix<T> a, i64 length, Lines<const T> b, Lines<T> out,
                   bool add) {
  constexpr int L = LANES<T>;
  i64 first = 0;
  for (i64 left = ceil_div(rows, MR); left > 0; left--) {  // balanced, as in tile.h
    const i64 count = ceil_div(rows - first, left);
    const Matrix<T> these{a.at(first, 0), a.row, a.column};
    for (i64 n = 0, end; n < width; n = end) {
      // One row: twice the chains in flight.
      const int most = count == 1 && width - n > (2 * NV - 1) * L ? 2 * NV : NV;
      const int vectors = int(smaller(most, ceil_div(width - n, L)));
      end = smaller(width, n + vectors * L);
      const auto tile =
          vectors == 2 * NV ? lines_tile<T, 1, 2 * NV> : LINES_TILES<T>[count - 1][vectors - 1];
      tile(these, length, b.right(n), int(end - n - (vectors - 1) * L), out.from(first).right(n),
           add);
    }
    first += count;
  }
}

// The same where b is large: some of its lines at a time, which all rows use while these are in the
// first-level cache; few enough that they are, however far apart they lie.
inline constexpr i64 FEW_LINES = 8, LINES_BYTES = i64(1) << 14;
template <class T>
void long_product(i64 rows, i64 width, Matrix<T> a, i64 length, Lines<const T> b, Lines<T> out) {
  const i64 most = larger(FEW_LINES, LINES_BYTES / (width * i64(sizeof(T))));
  for (i64 k = 0; k < length; k += most)
    lines_product<T>(rows, width, {a.at(0, k), a.row, a.column}, smaller(most, length - k),
                     b.from(k), out, k > 0);
}

// As few as two tiles of lines_product read each line of b twice, which is cheaper than to pack it.
constexpr bool rows_are_few(i64 rows) { return rows <= 2 * MR; }

// The same for many rows of a, which are operands E and lie as they are multiplied; b is rounded as
// it is packed, if they are pairs.
inline constexpr i64 BLOCK_BYTES = i64(1) << 14, BLOCK_ROWS = 48;
template <class E, class T = Sum<E>>
void block_product(i64 rows, i64 width, Lines<const E> a, i64 length, Lines<const T> b,
                   Lines<T> out, bool add) {
  constexpr i64 L = LANES<T>, most = BLOCK_BYTES / (NV * L * i64(sizeof(E)));
  alignas(64) E panel[most * NV * L];
  alignas(64) T last[BLOCK_ROWS * NV * L];
  for (i64 n = 0; n < width; n += NV * L) {
    const i64 valid = smaller(width - n, NV * L), vectors = ceil_div(valid, L), W = vectors * L;
    for (i64 k = 0; k == 0 || k < operands<E>(length); k += most) {
      const i64 lines = smaller(most, operands<E>(length) - k);
      for (i64 r = 0; r < lines; r++)
        for (i64 v = 0; v < vectors; v++) {
          const int lanes = int(smaller(L, valid - v * L));
          const auto part = [&](int of) {
            const i64 line = (k + r) * Operand<E>::numbers + of;
            if (IS_PAIR<E> && line >= length) return Vec<T>{};
            const T* from = b[line] + n + v * L;
            return lanes == L ? load(from) : load(from, lanes);
          };
          store(panel + r * W + v * L, operand<E>(part));
        }
      const auto add_up = [&](i64 first, i64 count, bool more, Lines<T> to) {
        product<E>(count, int(vectors), {{a.from(first).right(k), panel, lines}},
                   more ? Lines<const T>(to) : Lines<const T>{}, to);
      };
      const bool more = add || k > 0;
      const Lines<T> here = out.right(n);
      if (valid == W) {
        add_up(0, rows, more, here);
        continue;
      }
      // Whole vectors would reach into the line below.
      for (i64 first = 0; first < rows; first += BLOCK_ROWS) {
        const i64 count = smaller(BLOCK_ROWS, rows - first);
        const auto copy_rows = [&](auto from, auto to) {
          for (i64 r = 0; r < count; r++) copy(from[r], to[r], valid);
        };
        const Lines<T> block{last, W};
        if (more) copy_rows(here.from(first), block);
        add_up(first, count, more, block);
        copy_rows(block, here.from(first));
      }
    }
  }
}

}  // namespace gatewise::GATEWISE_ISA
