// Weights and columns in the order in which the tile reads them. The layout is drawn here, once.
//
// A panel is NV vectors wide; L lanes are one vector. The gates of one unit stand in one panel, so
// that a tile ends with everything that the cell needs for its units:
//
//   W (G*H, K) in torch's rows          panel j, one line a k                        units of a
//   panel
//     i: H rows                    LSTM    [ i:L | f:L | g:L | o:L ]                      U = L
//     f: H rows          ->        3 gates [ i:L | g:L | o:L ]                            U = L
//     g: H rows                    2 gates [ g:L | o:L | g:L | o:L ]  (2 groups)          U = 2 L
//     o: H rows                    RNN     [ g:L | g:L | g:L | g:L ]  (4 groups)          U = 4 L
//
// (No more groups than there are units for: a small RNN has narrow panels.)
//
// A line has W = groups * G * L numbers: gate q of unit j*U + group*L + lane stands at
// (group*G + q)*L + lane. Units past H are zeros. Panels follow each other: [J][K][W].
//
// For the products with W transposed (d_h, d_x) a panel holds up to NV vectors of K's axis, and its
// lines follow the order in which the gate gradients lie: panel j, then (group, gate, lane):
// [panels][J*W][width].
//
// Where the operands are pairs (bf16.h), a line of a panel holds the pairs of two lines, and K
// counts pairs.
#pragma once
#include "tile.h"

namespace gatewise::GATEWISE_ISA {

// How the H units of a cell with G computed gates fall into panels.
template <class T>
struct Units {
  i64 H;
  int G;
  int groups;   // groups of L units in a panel: no more than there are
  int vectors;  // vectors in a panel, groups * G
  i64 W;        // numbers in a line of a panel
  i64 U;        // units in a panel
  i64 J;        // panels
  i64 K;        // numbers in a line of all panels, J * W
  constexpr Units(i64 units, int gates)
      : H(units),
        G(gates),
        groups(int(smaller(gates > 2 ? 1 : NV / gates, ceil_div(units, LANES<T>)))),
        vectors(groups * gates),
        W(i64(vectors) * LANES<T>),
        U(i64(groups) * LANES<T>),
        J(ceil_div(units, U)),
        K(J * W) {}
  // The units in group q of panel j that exist: 0..L.
  constexpr int lanes(i64 j, int q) const {
    return int(larger(0, smaller(LANES<T>, H - j * U - i64(q) * LANES<T>)));
  }
};

// A plain axis of `size` numbers in panels of `vectors` vectors; the last panel is as narrow as it
// can be.
template <class T>
struct Axis {
  i64 size;
  int vectors;
  i64 panels;
  i64 padded;  // size, rounded up to whole vectors
  constexpr Axis(i64 n, int v = NV)
      : size(n),
        vectors(v),
        panels(ceil_div(n, i64(v) * LANES<T>)),
        padded(round_up(n, LANES<T>)) {}
  constexpr i64 first(i64 p) const { return p * vectors * LANES<T>; }
  constexpr int width(i64 p) const {  // in vectors
    return int(smaller(vectors, ceil_div(size - first(p), LANES<T>)));
  }
};

// LANES x LANES numbers, rows to columns.
template <class T>
GATEWISE_INLINE void transpose(Vec<T> (&row)[LANES<T>]) {
  constexpr int L = LANES<T>;
  if (transpose_at_once(row)) return;
#pragma GCC unroll 4
  for (int round = 1; round < L; round *= 2) {
    Vec<T> next[L];
#pragma GCC unroll 16
    for (int k = 0; k < L / 2; k++) {
      next[2 * k] = row[k];
      next[2 * k + 1] = row[k + L / 2];
      interleave(next[2 * k], next[2 * k + 1]);
    }
#pragma GCC unroll 16
    for (int k = 0; k < L; k++) row[k] = next[k];
  }
}

// Columns first .. end-1 of up to L rows of K numbers, n of them there: the rows as the lanes of
// one vector a line, `apart` operands from line to line; zeros in the other lanes.
template <class N, class E>
void pack_lanes(const N* rows, int n, i64 K, i64 first, i64 end, E* column, i64 apart) {
  using T = Sum<E>;
  constexpr int L = LANES<T>, numbers = Operand<E>::numbers;
  for (i64 k = first; k < end; k += L) {
    const int kn = int(smaller(L, end - k));
    Vec<T> block[L];
    if (n < L || kn < L || !load_columns(rows + k, K, block)) {
      for (int r = 0; r < L; r++)
        block[r] = r >= n    ? Vec<T>{}
                   : kn == L ? load(rows + r * K + k)
                             : load(rows + r * K + k, kn);
      transpose<T>(block);
    }
    for (int r = 0; r < kn; r += numbers)
      store(column + operands<E>(k - first + r) * apart,
            operand<E>([&](int of) { return block[r + of]; }));
  }
}

// Lines first .. end-1 of gate panel j of W (G*H, K), to `lines`. What is packed in parts is cut at
// whole vectors.
template <class N, class T, class E>
void pack_gate_lines(const N* weight, i64 K, i64 first, i64 end, const Units<T>& u, E* lines,
                     i64 j) {
  constexpr int L = LANES<T>;
  for (int q = 0; q < u.groups; q++)
    for (int gate = 0; gate < u.G; gate++)
      pack_lanes(weight + (gate * u.H + j * u.U + i64(q) * L) * K, u.lanes(j, q), K, first, end,
                 lines + (q * u.G + gate) * L, u.W);
}

// The gate panels [j][K][W] of W (G*H, K).
template <class T, class E>
void pack_gates(const T* weight, i64 K, const Units<T>& u, E* panels, i64 j) {
  pack_gate_lines(weight, K, 0, K, u, panels + j * operands<E>(K) * u.W, j);
}

// Panel p of a matrix (size, K) whose rows become lanes: [panels][K][width].
template <class T, class E>
void pack_rows(const T* matrix, i64 K, const Axis<T>& axis, E* panels, i64 p) {
  constexpr int L = LANES<T>;
  E* panel = panels + axis.first(p) * operands<E>(K);  // every panel before this one is whole
  for (int v = 0; v < axis.width(p); v++) {
    const i64 row = axis.first(p) + i64(v) * L;
    pack_lanes(matrix + row * K, int(smaller(L, axis.size - row)), K, 0, K, panel + v * L,
               i64(axis.width(p)) * L);
  }
}

// The reverse way for a gradient: lines [K][W] of panel j into d_W, or added to it.
template <class T>
void unpack_gates(const T* panel, i64 K, const Units<T>& u, T* d_weight, i64 j, bool add) {
  constexpr int L = LANES<T>;
  for (int q = 0; q < u.groups; q++)
    for (int gate = 0; gate < u.G; gate++) {
      const int n = u.lanes(j, q);
      T* rows = d_weight + (gate * u.H + j * u.U + i64(q) * L) * K;
      const T* column = panel + (q * u.G + gate) * L;
      for (i64 k = 0; k < K; k += L) {
        const int kn = int(smaller(L, K - k));
        Vec<T> block[L];
        for (int r = 0; r < L; r++) block[r] = r < kn ? load(column + (k + r) * u.W) : Vec<T>{};
        transpose<T>(block);
        for (int r = 0; r < n; r++) {
          T* const to = rows + r * K + k;
          if (add) block[r] = block[r] + load(to, kn);
          if (kn == L)
            store(to, block[r]);
          else
            store(to, block[r], kn);
        }
      }
    }
}

// b_ih + b_hh as one line of W numbers a panel; zeros where the layer has no bias.
template <class T>
void pack_bias(const T* b_ih, const T* b_hh, const Units<T>& u, T* lines, i64 j) {
  constexpr int L = LANES<T>;
  for (int q = 0; q < u.groups; q++)
    for (int gate = 0; gate < u.G; gate++) {
      const int n = u.lanes(j, q);
      const i64 at = gate * u.H + j * u.U + i64(q) * L;
      Vec<T> sum = {};
      if (b_ih) sum = sum + load(b_ih + at, n);
      if (b_hh) sum = sum + load(b_hh + at, n);
      store(lines + j * u.W + (q * u.G + gate) * L, sum);
    }
}

// Panel p of W's second axis, lines in the order of the gate gradients: [panels][J*W][width].
template <class T, class E>
void pack_back(const T* weight, const Axis<T>& axis, const Units<T>& u, E* panels, i64 p) {
  constexpr int L = LANES<T>, numbers = Operand<E>::numbers;
  const int width = axis.width(p);
  const i64 first = axis.first(p);
  E* line = panels + first * operands<E>(u.K);
  for (i64 j = 0; j < u.J; j++)
    for (int q = 0; q < u.groups; q++)
      for (int gate = 0; gate < u.G; gate++) {
        const int n = u.lanes(j, q);
        const T* row = weight + (gate * u.H + j * u.U + i64(q) * L) * axis.size + first;
        for (int r = 0; r < L; r += numbers, row += numbers * axis.size)
          for (int v = 0; v < width; v++, line += L) {
            const i64 left = axis.size - first - i64(v) * L;
            store(line, operand<E>([&](int of) {
                    const T* from = row + of * axis.size + v * L;
                    return r + of >= n ? Vec<T>{} : left >= L ? load(from) : load(from, int(left));
                  }));
          }
      }
}

// Panel p of a plain matrix (K, size): [panels][K][width]. Used for W_hr in d_u = d_h W_hr.
template <class T, class E>
void pack_lines(const T* matrix, i64 K, const Axis<T>& axis, E* panels, i64 p) {
  constexpr int L = LANES<T>, numbers = Operand<E>::numbers;
  const int width = axis.width(p);
  const i64 first = axis.first(p);
  E* line = panels + first * operands<E>(K);
  for (i64 k = 0; k < K; k += numbers)
    for (int v = 0; v < width; v++, line += L) {
      const i64 left = axis.size - first - i64(v) * L;
      store(line, operand<E>([&](int of) {
              const T* from = matrix + (k + of) * axis.size + first + i64(v) * L;
              return k + of >= K ? Vec<T>{} : left >= L ? load(from) : load(from, int(left));
            }));
    }
}

// Columns of up to L token vectors: column k of the chunk holds the k-th number of every token.
// columns[k][token], `stride` operands apart. Fills tokens first .. first+count-1 (count <= L);
// zeros up to L.
template <class N, class E>
void pack_columns(const N* const* tokens, int count, i64 K, E* columns, i64 stride, i64 first) {
  using T = Sum<E>;
  constexpr int L = LANES<T>;
  for (i64 k = 0; k < K; k += L) {
    const int kn = int(smaller(L, K - k));
    Vec<T> block[L];
    for (int r = 0; r < L; r++)
      block[r] = r >= count ? Vec<T>{} : kn == L ? load(tokens[r] + k) : load(tokens[r] + k, kn);
    transpose<T>(block);
    for (int r = 0; r < kn; r++) store(as_numbers(columns + (k + r) * stride) + first, block[r]);
  }
}

}  // namespace gatewise::GATEWISE_ISA
