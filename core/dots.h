// Products of a few rows with the rows of a matrix as they lie in memory, in numbers of the rows'
// kind or in bfloat16: nothing is packed, nothing is turned. Each result is a dot product, summed
// in L lanes that are added up at the end; so its last bits are not those of tile.h, which adds one
// product after the other.
#pragma once
#include "pack.h"
#include "tile.h"

namespace gatewise::GATEWISE_ISA {

// A part of a dot product: `length` numbers of each row, and of each row of the matrix.
template <class T, class M = T>
struct DotStretch {
  Lines<const T> rows;
  Lines<const M> matrix;
  i64 length;
};

// The numbers 0 .. n-1 as a type.
template <int... k>
struct Numbers {};
template <int n, int... k>
constexpr auto numbers() {
  if constexpr (n == 0)
    return Numbers<k...>{};
  else
    return numbers<n - 1, n - 1, k...>();
}

// One round of sums over lanes: of the lanes that lie `apart`, half the sums of a, half those of b.
// The first operand is a blend, so that only the second has to cross lanes.
template <class T, int apart, int... lane>
GATEWISE_INLINE Vec<T> folded(Vec<T> a, Vec<T> b, Numbers<lane...>) {
  constexpr int L = LANES<T>;
  return shuffle<(lane & apart ? L + lane : lane)...>(a, b) +
         shuffle<(lane & apart ? L : 0) + (lane ^ apart)...>(a, b);
}

// The sums over lanes of n vectors, in log2(n) rounds, the first of lanes that lie `apart`.
template <class T, int apart, int n>
GATEWISE_INLINE Vec<T> sums_of_lanes(const Vec<T> (&v)[n]) {
  if constexpr (n == 1) {
    return v[0];
  } else {
    Vec<T> half[n / 2];
#pragma GCC unroll 8
    for (int k = 0; k < n / 2; k++)
      half[k] = folded<T, apart>(v[k], v[k + n / 2], numbers<LANES<T>>());
    return sums_of_lanes<T, apart / 2>(half);
  }
}

// Rows of the matrix at once: as many as leave registers for all sums. They lie as far apart as
// makes their lanes meet in the first rounds, so that of each pass over them one vector is left.
template <class T>
constexpr int lines_at_once(int rows) {
  int lines = LANES<T>;
  while (lines * rows > MR * NV) lines /= 2;
  return lines;
}

// out[r] = in[r] + the dot products of row r with L rows of the matrix, of which `lines` exist.
template <class T, class M, int rows>
__attribute__((noinline)) void dots_tile(int stretches, const DotStretch<T, M>* stretch, int lines,
                                         Lines<const T> in, Lines<T> out) {
  constexpr int L = LANES<T>, N = lines_at_once<T>(rows), passes = L / N;
  Vec<T> part[rows][passes];
  for (int first = 0; first < passes; first++) {
    Vec<T> acc[rows][N];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 16
      for (int m = 0; m < N; m++) acc[r][m] = set1(T(0));
    for (int s = 0; s < stretches; s++) {
      const DotStretch<T, M>& of = stretch[s];
      const M* w[N];
#pragma GCC unroll 16
      for (int m = 0; m < N; m++) w[m] = of.matrix[smaller(first + m * passes, lines - 1)];
      const auto add = [&](auto get) __attribute__((always_inline)) {
        Vec<T> x[rows];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) x[r] = get(of.rows[r]);
#pragma GCC unroll 16
        for (int m = 0; m < N; m++) {
          const Vec<T> line = get(w[m]);
#pragma GCC unroll 8
          for (int r = 0; r < rows; r++) acc[r][m] = fma(x[r], line, acc[r][m]);
        }
      };
      i64 k = 0;
      for (; k + L <= of.length; k += L) add([k](const auto* p) { return load(p + k); });
      if (k < of.length) add([k, n = int(of.length - k)](const auto* p) { return load(p + k, n); });
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) part[r][first] = sums_of_lanes<T, L / 2>(acc[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; r++) {
    const Vec<T> sum = sums_of_lanes<T, passes / 2>(part[r]);
    store(out[r], in.data ? load(in[r]) + sum : sum);
  }
}

template <class T, class M>
inline constexpr void (*DOTS_TILES[6])(int, const DotStretch<T, M>*, int, Lines<const T>,
                                       Lines<T>) = {dots_tile<T, M, 1>,
                                                    dots_tile<T, M, 2>,
                                                    dots_tile<T, M, 3>,
                                                    dots_tile<T, M, smaller(4, MR)>,
                                                    dots_tile<T, M, smaller(5, MR)>,
                                                    dots_tile<T, M, MR>};

// z of panel j (pack.h): the products of any number of rows with the gates' rows of the matrices,
// in balanced tiles as in tile.h; on top of `in`, whose data are null for zero.
template <class T, class M = T, int stretches>
void dots(const Units<T>& u, i64 j, i64 rows, const DotStretch<T, M> (&given)[stretches],
          Lines<const T> in, Lines<T> out) {
  for (int q = 0; q < u.groups; q++)
    for (int gate = 0; gate < u.G && u.lanes(j, q); gate++) {
      const i64 line = gate * u.H + j * u.U + q * LANES<T>, at = (q * u.G + gate) * LANES<T>;
      DotStretch<T, M> of[stretches];
      i64 first = 0;
      for (i64 left = ceil_div(rows, MR); left > 0; left--) {
        const i64 count = ceil_div(rows - first, left);
        for (int s = 0; s < stretches; s++)
          of[s] = {given[s].rows.from(first), given[s].matrix.from(line), given[s].length};
        DOTS_TILES<T, M>[count - 1](stretches, of, u.lanes(j, q), in.from(first).right(at),
                                    out.from(first).right(at));
        first += count;
      }
    }
}

}  // namespace gatewise::GATEWISE_ISA
